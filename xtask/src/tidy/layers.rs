//! Which package may depend on which.

use super::Breach;
use crate::tree::{Package, Tree};

/// What a package of the workspace may depend on.
struct Layer {
    name: &'static str,
    below: &'static [&'static str],
}

const CORE: &str = "commons-core";
const OPS: &str = "commons-ops";
const NN: &str = "commons-nn";
const ENGINE: &str = "commons-engine";

/// The layers, lowest first. Method crates stand side by side and never see each other: what two
/// of them need moves down. A new crate gets its line here.
const LAYERS: &[Layer] = &[
    Layer { name: CORE, below: &[] },
    Layer { name: "commons-society", below: &[CORE] },
    Layer { name: "commons-knowledge", below: &[CORE] },
    Layer { name: OPS, below: &[CORE] },
    Layer { name: NN, below: &[CORE, OPS] },
    Layer { name: "commons-weights", below: &[CORE, OPS, NN] },
    Layer { name: "commons-adapters", below: &[CORE, OPS, NN] },
    Layer { name: "commons-models", below: &[CORE, OPS, NN] },
    Layer { name: "commons-search", below: &[CORE, OPS, NN] },
    Layer { name: "commons-swarm", below: &[CORE, OPS, NN] },
    Layer { name: ENGINE, below: &[CORE, OPS, NN] },
    Layer { name: "commons-rl", below: &[CORE, OPS, NN, ENGINE] },
    Layer { name: "commons-benches", below: &[CORE, OPS, NN, ENGINE] },
    Layer { name: "xtask", below: &[CORE] },
];

/// The binary stands on top of all of them.
const BINARY: &str = "commons";

/// Programs of the workspace: they may parse arguments, and they are never depended on.
const PROGRAMS: &[&str] = &[BINARY, "commons-benches", "xtask"];

/// Crates without tensors: they build and test in seconds.
const TENSOR_FREE: &[&str] = &[CORE, "commons-society", "commons-knowledge"];

/// Packages that bring tensors along.
const TENSOR_PACKAGES: &[&str] = &["gemm", "burn", "tch", "ort", "safetensors", "ndarray"];

/// Rule `layers`.
pub fn edges(tree: &Tree) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for package in &tree.packages {
        if package.name == BINARY {
            continue;
        }
        let Some(layer) = LAYERS.iter().find(|layer| layer.name == package.name) else {
            let message = format!("package `{}` has no layer; give it one", package.name);
            breaches.push(Breach::new(&manifest(package), 1, message));
            continue;
        };
        for dependency in &package.dependencies {
            let name = dependency.name.as_str();
            let ours = name == BINARY || tree.packages.iter().any(|other| other.name == name);
            if ours && !layer.below.contains(&name) {
                let message = format!(
                    "`{}` may not depend on `{name}`, only on [{}]; what both need moves down",
                    package.name,
                    layer.below.join(", ")
                );
                breaches.push(at_dependency(tree, package, name, message));
            }
        }
    }
    breaches
}

/// Rule `binary-only`.
pub fn binary_only(tree: &Tree) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for package in &tree.packages {
        for dependency in &package.dependencies {
            let name = dependency.name.as_str();
            let full = |f: &String| f == "full" || f == "rt-multi-thread";
            let allowed: &[&str] = match name {
                "clap" => PROGRAMS,
                "axum" | "miette" | "indicatif" => &[BINARY],
                "tokio" if dependency.features.iter().any(full) => &[BINARY],
                _ => continue,
            };
            if !allowed.contains(&package.name.as_str()) {
                let message = format!("`{name}` belongs to the binary, not to a library");
                breaches.push(at_dependency(tree, package, name, message));
            }
        }
    }
    breaches
}

/// Rule `tensor-free`.
pub fn tensor_free(tree: &Tree) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for package in &tree.packages {
        if !TENSOR_FREE.contains(&package.name.as_str()) {
            continue;
        }
        for dependency in &package.dependencies {
            let name = dependency.name.as_str();
            let tensors = TENSOR_PACKAGES.contains(&name) || name.starts_with("candle-");
            if tensors {
                let message = format!("`{name}` brings tensors into `{}`", package.name);
                breaches.push(at_dependency(tree, package, name, message));
            }
        }
    }
    breaches
}

/// Rule `lints`.
pub fn lints(tree: &Tree) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for package in &tree.packages {
        let path = manifest(package);
        let text = tree.file(&path).map_or("", |file| file.text.as_str());
        let table = text.parse::<toml::Table>().unwrap_or_default();
        let inherited = table
            .get("lints")
            .and_then(|lints| lints.get("workspace"))
            .and_then(toml::Value::as_bool);
        if inherited != Some(true) {
            breaches.push(Breach::new(&path, 1, "add `[lints] workspace = true`"));
        }
    }
    breaches
}

/// Path of a package's manifest from the root.
pub fn manifest(package: &Package) -> String {
    if package.folder.is_empty() {
        "Cargo.toml".to_owned()
    } else {
        format!("{}/Cargo.toml", package.folder)
    }
}

/// A breach at the line of the manifest that asks for `dependency`.
pub fn at_dependency(
    tree: &Tree,
    package: &Package,
    dependency: &str,
    message: impl Into<String>,
) -> Breach {
    let path = manifest(package);
    let text = tree.file(&path).map_or("", |file| file.text.as_str());
    let names = |line: &str| {
        let rest = line.trim_start().strip_prefix(dependency);
        let table = line.starts_with('[') && line.contains(&format!(".{dependency}]"));
        rest.is_some_and(|rest| rest.starts_with(['.', ' ', '='])) || table
    };
    let line = text.lines().position(names).map_or(1, |index| index + 1);
    Breach::new(&path, line, message)
}
