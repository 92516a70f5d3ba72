//! Every rule fires, at the right line, on a workspace that breaks it and nothing else.

use std::path::Path;

use super::*;
use crate::miniature::Miniature;

/// Expects that the workspace breaks exactly `rule`, first at `place` (`path:line`).
#[track_caller]
fn expect(tree: &Miniature, rule: &str, place: &str) {
    let findings = check(&tree.load());
    let printed: Vec<String> = findings.iter().map(ToString::to_string).collect();
    let first = printed.first().expect("no rule fired");
    assert!(first.starts_with(&format!("{place}: {rule}: ")), "{printed:#?}");
    assert!(findings.iter().all(|finding| finding.rule == rule), "{printed:#?}");
}

#[track_caller]
fn expect_none(tree: &Miniature) {
    let printed: Vec<String> = check(&tree.load()).iter().map(ToString::to_string).collect();
    assert!(printed.is_empty(), "{printed:#?}");
}

const NN: &str = "crates/commons-nn/src/lib.rs";
const WEIGHTS: &str = "crates/commons-weights/src/lib.rs";

#[test]
fn this_repository_is_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let findings = check(&Tree::load(root).unwrap());
    let printed: Vec<String> = findings.iter().map(ToString::to_string).collect();
    assert!(printed.is_empty(), "{}", printed.join("\n"));
}

#[test]
fn the_miniature_is_tidy() {
    expect_none(&Miniature::new());
}

#[test]
fn rules_have_names_of_their_own() {
    let names: std::collections::BTreeSet<_> = RULES.iter().map(|rule| rule.name).collect();
    assert_eq!(names.len(), RULES.len());
}

#[test]
fn method_crates_do_not_see_each_other() {
    let tree = Miniature::new();
    tree.package("commons-adapters", "commons-weights = { path = \"../commons-weights\" }\n");
    expect(&tree, "layers", "crates/commons-adapters/Cargo.toml:6");
}

#[test]
fn no_layer_looks_up_even_in_tests() {
    let tree = Miniature::new();
    tree.package("commons-core", "[dev-dependencies]\ncommons-nn.path = \"../commons-nn\"\n");
    expect(&tree, "layers", "crates/commons-core/Cargo.toml:7");
}

#[test]
fn a_package_without_a_layer_is_found() {
    let tree = Miniature::new();
    tree.package("commons-extra", "");
    expect(&tree, "layers", "crates/commons-extra/Cargo.toml:1");
}

#[test]
fn allowed_edges_are_allowed() {
    let tree = Miniature::new();
    let below = "commons-nn = { path = \"../commons-nn\" }\n";
    tree.package("commons-adapters", below);
    tree.package("commons", &format!("clap = \"4\"\nindicatif = \"1\"\n{below}"));
    expect_none(&tree);
}

#[test]
fn only_the_binary_parses_arguments() {
    let tree = Miniature::new();
    tree.package("commons-nn", "clap = { version = \"4\" }\n");
    expect(&tree, "binary-only", "crates/commons-nn/Cargo.toml:6");
}

#[test]
fn only_the_binary_has_the_full_runtime() {
    let tree = Miniature::new();
    let tokio =
        |features: &str| format!("tokio = {{ version = \"1\", features = [{features}] }}\n");
    tree.package("commons-swarm", &tokio("\"sync\""));
    expect_none(&tree);
    tree.package("commons-swarm", &tokio("\"sync\", \"full\""));
    expect(&tree, "binary-only", "crates/commons-swarm/Cargo.toml:6");
}

#[test]
fn core_has_no_tensors() {
    let tree = Miniature::new();
    tree.package("commons-society", "gemm = \"0.19\"\n");
    expect(&tree, "tensor-free", "crates/commons-society/Cargo.toml:6");
}

#[test]
fn candle_is_reached_through_ops() {
    let tree = Miniature::new();
    tree.package("commons-nn", "candle-core = \"0.11\"\n");
    expect_none(&tree);
    tree.package("commons-adapters", "# tensors\ncandle-core = \"0.11\"\n");
    expect(&tree, "candle-behind-ops", "crates/commons-adapters/Cargo.toml:7");
}

#[test]
fn candle_nn_is_not_used_at_all() {
    let tree = Miniature::new();
    tree.package("commons-ops", "[dependencies.candle-nn]\nversion = \"0.11\"\n");
    expect(&tree, "candle-behind-ops", "crates/commons-ops/Cargo.toml:6");
    let tree = Miniature::new();
    tree.write(NN, "//! A crate.\n// candle_nn is only named here\nuse candle_nn::Linear;\n");
    expect(&tree, "candle-behind-ops", &format!("{NN}:3"));
}

#[test]
fn functions_without_a_right_gradient_are_found() {
    for call in [
        "softmax_last_dim(&x)",
        "x.scatter(&i, &s, 0)",
        "x.scatter_add(&i, &s, 0)",
        "x.upsample_nearest2d(4, 4)",
        "rotary_emb::rope(&x)",
        "loss.backward()",
    ] {
        let tree = Miniature::new();
        let code = format!("//! A crate.\nfn f() {{\n    {call};\n}}\n");
        tree.write("crates/commons-ops/src/lib.rs", &code);
        expect_none(&tree);
        tree.write(NN, &code);
        expect(&tree, "gradients", &format!("{NN}:3"));
    }
}

#[test]
fn our_own_ops_of_the_same_name_are_fine() {
    let tree = Miniature::new();
    tree.write(NN, "//! A crate.\nfn f() { ops::scatter_add(x, i, s); ops::backward(&loss); }\n");
    expect_none(&tree);
}

#[test]
fn randomness_without_a_seed_is_found() {
    for call in ["Tensor::randn(0, 1)", "Var::rand(0, 1)", "rand::random()", "x.rand_like(0, 1)"] {
        let tree = Miniature::new();
        tree.write(
            NN,
            &format!("//! A crate.\n#[cfg(test)]\nmod tests {{ fn f() {{ {call}; }} }}\n"),
        );
        expect(&tree, "seeded", &format!("{NN}:3"));
    }
    let tree = Miniature::new();
    tree.package("commons-nn", "rand = \"0.10\"\n");
    expect(&tree, "seeded", "crates/commons-nn/Cargo.toml:6");
}

#[test]
fn unsafe_code_stays_in_its_modules() {
    let tree = Miniature::new();
    let code = "//! Maps files.\nfn f() { unsafe { g() } }\n";
    tree.write("crates/commons-nn/src/mmap.rs", code);
    tree.write("crates/commons-ops/src/simd/dot.rs", code);
    expect_none(&tree);
    tree.write("crates/commons-nn/src/map.rs", code);
    expect(&tree, "unsafe-modules", "crates/commons-nn/src/map.rs:2");
}

#[test]
fn libraries_do_not_print() {
    let tree = Miniature::new();
    let code = "//! A crate.\n/// `println!(1)`\nfn f() { println!(\"x\") }\n";
    tree.write("crates/commons/src/main.rs", code);
    tree.write("crates/commons-nn/tests/it/main.rs", code);
    tree.write("crates/commons-nn/src/tests.rs", code);
    expect_none(&tree);
    tree.write(NN, code);
    expect(&tree, "silent-libraries", &format!("{NN}:3"));
}

#[test]
fn unfinished_code_is_found() {
    for call in ["todo!()", "unimplemented!()", "dbg!(1)"] {
        let tree = Miniature::new();
        tree.write(
            "crates/commons/src/main.rs",
            &format!("//! Main.\nfn main() {{\n{call};\n}}\n"),
        );
        expect(&tree, "finished", "crates/commons/src/main.rs:3");
    }
}

#[test]
fn libraries_do_not_read_the_clock() {
    let code = "//! A crate.\nfn f() { let start = Instant::now(); }\n";
    let tree = Miniature::new();
    tree.write("crates/commons-core/src/evidence/run.rs", code);
    tree.write("crates/commons/src/main.rs", code);
    expect_none(&tree);
    tree.write("crates/commons-core/src/running.rs", code);
    expect(&tree, "clock", "crates/commons-core/src/running.rs:2");
}

#[test]
fn libraries_reach_the_network_in_one_place() {
    let code = "//! Files from elsewhere.\nuse std::net::TcpStream;\n";
    let tree = Miniature::new();
    tree.write("crates/commons-nn/src/hub/get.rs", code);
    expect_none(&tree);
    tree.write("crates/commons-nn/src/data.rs", code);
    expect(&tree, "network", "crates/commons-nn/src/data.rs:2");
}

#[test]
fn long_files_are_found() {
    let tree = Miniature::new();
    let text = |lines| "//! Long.\n".repeat(lines);
    tree.write("crates/commons-nn/src/long.rs", &text(600));
    expect_none(&tree);
    tree.write("crates/commons-nn/src/long.rs", &text(601));
    expect(&tree, "file-length", "crates/commons-nn/src/long.rs:601");
}

#[test]
fn a_package_with_lints_of_its_own_is_found() {
    let tree = Miniature::new();
    tree.replace("crates/commons-nn/Cargo.toml", "[lints]\nworkspace = true\n", "");
    expect(&tree, "lints", "crates/commons-nn/Cargo.toml:1");
}

#[test]
fn a_method_has_all_its_files() {
    for name in ["evidence.rs", "tests.rs", "smoke.toml", "full.toml"] {
        let tree = Miniature::new();
        tree.remove(&Miniature::method(name));
        expect(&tree, "method-folder", &format!("{WEIGHTS}:7"));
    }
}

#[test]
fn a_method_is_listed_with_its_module() {
    let tree = Miniature::new();
    tree.replace(WEIGHTS, "    &Entry::<halving::Halving>::NEW,\n", "");
    expect(&tree, "method-folder", &format!("{}:1", Miniature::method("evidence.rs")));
    let tree = Miniature::new();
    tree.replace(WEIGHTS, "NEW,\n", "NEW,\n    &Elsewhere,\n");
    expect(&tree, "method-folder", &format!("{WEIGHTS}:8"));
}

#[test]
fn golden_values_that_tests_read_are_there() {
    let tree = Miniature::new();
    let tests = Miniature::method("tests.rs");
    tree.write(&tests, "//! Tests.\nconst G: &str = include_str!(\"golden.json\");\n");
    expect(&tree, "method-folder", &format!("{tests}:2"));
    tree.write(&Miniature::method("golden.json"), "{}");
    expect_none(&tree);
}

#[test]
fn recipes_are_toml() {
    let tree = Miniature::new();
    let smoke = Miniature::method("smoke.toml");
    tree.write(&smoke, "steps = 1\nlr = = 2\n");
    expect(&tree, "method-folder", &format!("{smoke}:2"));
}

#[test]
fn documentation_has_its_headings_in_order() {
    let module = Miniature::method("mod.rs");
    let tree = Miniature::new();
    tree.replace(&module, "# Claim\n", "# Promise\n");
    expect(&tree, "method-docs", &format!("{module}:11"));
    let tree = Miniature::new();
    tree.replace(&module, "//! # Differs\n//! Nothing.\n", "");
    expect(&tree, "method-docs", &format!("{module}:15"));
    let tree = Miniature::new();
    tree.replace(&module, "//! Half the weights.\n", "");
    expect(&tree, "method-docs", &format!("{module}:11"));
    let tree = Miniature::new();
    tree.replace(&module, "//! ```\n//! # let hidden", "//! ```ignore\n//! # let hidden");
    expect(&tree, "method-docs", &format!("{module}:17"));
    let tree = Miniature::new();
    tree.replace(&module, "//! Two layers share one weight.\n//!\n", "");
    expect(&tree, "method-docs", &format!("{module}:1"));
}

#[test]
fn results_belong_to_the_recipe_beside_them() {
    let full = Miniature::method("full.toml");
    let tree = Miniature::new();
    tree.write(&full, "# Whole numbers may stand for floats.\nrate = 1\nsteps = 100\n");
    expect_none(&tree);
    tree.write(&full, "rate = 1\nsteps = 200\n");
    expect(&tree, "fresh-results", &format!("{full}:2"));
    tree.write(&full, "steps = 100\n[data]\nname = \"x\"\n");
    expect(&tree, "fresh-results", &format!("{full}:3"));
    tree.write(&full, "steps = 100\nruns = [{ size = 2 }]\n");
    expect_none(&tree);
    for other in ["{ size = 3 }", "{ size = 2 }, { size = 2 }", "{ width = 2 }"] {
        tree.write(&full, &format!("steps = 100\nruns = [{other}]\n"));
        expect(&tree, "fresh-results", &format!("{full}:2"));
    }
}

#[test]
fn results_are_those_of_this_method_and_recipe() {
    let path = Miniature::method("result.json");
    let tree = Miniature::new();
    tree.replace(&path, "\"slug\": \"halving\"", "\"slug\": \"doubling\"");
    expect(&tree, "fresh-results", &format!("{path}:3"));
    let tree = Miniature::new();
    tree.replace(&path, "\"recipe\": \"full\"", "\"recipe\": \"smoke\"");
    expect(&tree, "fresh-results", &format!("{path}:5"));
    let tree = Miniature::new();
    tree.replace(&path, "\"verdict\": \"holds\"", "\"verdict\": \"fails\"");
    expect(&tree, "fresh-results", &format!("{path}:1"));
    let tree = Miniature::new();
    tree.write(&path, "{ \"slug\": ");
    expect(&tree, "fresh-results", &format!("{path}:1"));
}

#[test]
fn paths_of_one_machine_are_found() {
    for line in ["cd /home/ann/commons", "data = \"/opt/data/x\"", "cp x /root/y"] {
        let tree = Miniature::new();
        tree.write("scripts/run.sh", &format!("#!/bin/sh\n{line}\n"));
        expect(&tree, "portable", "scripts/run.sh:2");
    }
    let tree = Miniature::new();
    tree.write("scripts/run.sh", "cp ~/home/x .\n# see https://example.org/opt/x\n");
    expect_none(&tree);
}

#[test]
fn package_hosts_are_found() {
    let tree = Miniature::new();
    tree.write("scripts/get.py", "a = 1\nurl = 'https://files.pythonhosted.org/x.whl'\n");
    expect(&tree, "portable", "scripts/get.py:2");
}
