//! `compress` end to end on a small model.

use crate::{Place, bytes};

const HEAL: &str = "--steps 6 --batch-size 2 --seq-len 24 --eval-tokens 200";

#[test]
fn sharing_stores_less_and_healing_helps() {
    let place = Place::new();
    place.text("t.txt", 400);
    place
        .ok("train --arch nano --data t.txt --steps 60 --batch-size 4 --seq-len 32 --lr 3e-3 -o m");
    let line = "compress --model m --data t.txt --loops 2 --rank 2 --steps 40 --batch-size 4 --seq-len 32 --lr 2e-3 --eval-tokens 400 --baselines -o c";
    let json = place.json(line);
    let stored = |stage: &str| json[stage]["stored"].as_u64().unwrap();
    let perplexity = |stage: &str| json[stage]["perplexity"].as_f64().unwrap();
    assert!(stored("shared") < stored("original"), "{json}");
    assert!(stored("tied") < stored("shared"));
    assert_eq!(json["shared"]["logical"], json["original"]["logical"]);
    assert!(perplexity("healed") < perplexity("shared"), "{json}");
    assert!(!place.path("c.work").exists());

    let plan = place.json("inspect c");
    assert_eq!(plan["stored"]["parameters"], stored("shared"));
    assert_eq!(plan["logical"]["parameters"], json["original"]["logical"]);
    let kinds: Vec<&str> =
        plan["sharing"].as_array().unwrap().iter().map(|l| l["kind"].as_str().unwrap()).collect();
    assert!(kinds.contains(&"tied") && kinds.contains(&"low-rank"), "{kinds:?}");

    // The result is a model like any other: it is measured the same and can be written out.
    let measured = place.json("eval c --data t.txt --max-tokens 100");
    place.ok("materialize c -o plain");
    let plain = place.json("eval plain --data t.txt --max-tokens 100");
    let (a, b) =
        (measured["text"]["loss"].as_f64().unwrap(), plain["text"]["loss"].as_f64().unwrap());
    assert!((a - b).abs() < 1e-3, "{a} {b}");
    let plain = place.json("inspect plain");
    let lines = plain["sharing"].as_array().unwrap();
    assert!(lines.iter().all(|line| line["which"] == "lm_head.weight"), "{lines:?}");
}

#[test]
fn the_other_method_and_the_other_format() {
    let place = Place::new();
    place.model("m", 8);
    place.text("t.txt", 200);
    place.text("e.txt", 37);
    let json = place.json(&format!("compress --model m --method foldgpt --remove 0.25 --data t.txt --eval-data e.txt {HEAL} -o f"));
    assert!(json["healed"]["stored"].as_u64() < json["original"]["stored"].as_u64(), "{json}");
    place.ok(&format!("compress --model m --data t.txt --rank 1 --format gguf {HEAL} -o c.gguf"));
    assert_eq!(place.json("inspect c.gguf")["kind"], "GGUF file");
}

#[test]
fn what_cannot_work_is_refused_before_anything_is_measured() {
    let place = Place::new();
    place.model("m", 4);
    place.text("t.txt", 200);
    for (method, option, remedy) in [
        ("foldgpt", "remove=2", "not in 0..1"),
        ("foldgpt", "heal.temperature=0", "temperature"),
        ("relaxed-recursive", "loops=3", "take one of [1, 2, 4]"),
        ("masa", "groups=9", "9 is not in 1..=4"),
        ("kdgqa", "scheme=pgqa", "use gqa"),
        ("stable-rps", "compression=0.5", "1 is the nearest"),
        ("mor", "mixture.recursions=1", "use 2 or more"),
        ("parscale", "sigma=0", "use 0.02"),
    ] {
        let line = format!("compress --model m --method {method} --data t.txt -o x");
        place.refused(&format!("{line} --set options.{option}"), &[remedy]);
        assert!(!place.path("x").exists() && !place.path("x.work").exists(), "{method}");
    }
}

#[test]
fn unequal_groups_are_shown_used_and_written_out() {
    let place = Place::new();
    place.text("t.txt", 400);
    place
        .ok("train --arch nano --data t.txt --steps 20 --batch-size 4 --seq-len 32 --lr 3e-3 -o m");
    let heads = place.json("inspect m")["architecture"]["num_key_value_heads"].as_u64().unwrap();
    let line = format!(
        "compress --model m --method kdgqa --kv-heads {heads} --set seq_len=24 --data t.txt {HEAL} -o g"
    );
    place.ok(&line);
    let shown = place.json("inspect g");
    let rows = shown["architecture"]["query_heads_per_kv_head"].as_array().unwrap();
    let queries = shown["architecture"]["num_attention_heads"].as_u64().unwrap();
    for row in rows {
        let sum: u64 = row.as_array().unwrap().iter().map(|a| a.as_u64().unwrap()).sum();
        assert_eq!(sum, queries, "{row}");
    }
    let kinds = |json: &serde_json::Value| json["sharing"].to_string().contains("grouped");
    assert!(kinds(&shown), "{shown}");
    place.ok("generate g --prompt The -n 4");
    place.ok("materialize g -o plain");
    assert!(!kinds(&place.json("inspect plain")));
    let loss = |model: &str| {
        let json = place.json(&format!("eval {model} --data t.txt --max-tokens 100"));
        json["text"]["loss"].as_f64().unwrap()
    };
    assert!((loss("g") - loss("plain")).abs() < 1e-3);
}

#[test]
fn a_pooled_model_is_a_model() {
    let place = Place::new();
    place.model("m", 4);
    place.text("t.txt", 200);
    let json = place.json(&format!(
        "compress --model m --method stable-rps --compression 4 --data t.txt {HEAL} -o p"
    ));
    assert!(json["healed"]["stored"].as_u64() < json["original"]["stored"].as_u64(), "{json}");
    assert!(place.json("inspect p")["sharing"].to_string().contains("hashed"));
    place.ok("materialize p -o plain");
    let loss = |model: &str| {
        let json = place.json(&format!("eval {model} --data t.txt --max-tokens 100"));
        json["text"]["loss"].as_f64().unwrap()
    };
    assert!((loss("p") - loss("plain")).abs() < 1e-3);
}

#[test]
fn a_dry_run_writes_nothing() {
    let place = Place::new();
    place.model("m", 4);
    let json = place.json("compress --model m --loops 2 --rank 4 --dry-run");
    assert!(json["shared"]["stored"].as_u64() < json["original"]["stored"].as_u64());
    assert_eq!(place.list("."), ["m"]);
    assert!(
        place
            .ok("compress --model m --loops 2 --rank 4 --dry-run")
            .out
            .contains("groups of 2 layers")
    );
}

#[test]
fn settings_come_from_a_file_and_are_kept() {
    let place = Place::new();
    place.model("m", 4);
    place.text("t.txt", 200);
    let toml = "model = \"m\"\ndata = \"t.txt\"\nno_heal = true\neval_tokens = 100\n[options]\nloops = 4\nrank = 1\n";
    std::fs::write(place.path("c.toml"), toml).unwrap();
    let json = place.json("compress --config c.toml --set rank=2 -o c");
    assert_eq!(
        (&json["settings"]["options"]["loops"], &json["settings"]["options"]["rank"]),
        (&4.into(), &2.into())
    );
    assert!(json["healed"].is_null());
    let kept: serde_json::Value =
        serde_json::from_slice(&bytes(place.path("c/commons.json"))).unwrap();
    assert_eq!(kept, json["settings"]);
}

#[test]
fn dictionaries_are_models_like_any_other() {
    let place = Place::new();
    place.model("m", 6);
    place.text("t.txt", 300);
    let line = "compress --model m --method masa --ratio 0.3 --set options.groups=2 --data t.txt";
    let json = place.json(&format!("{line} {HEAL} -o c"));
    assert!(json["shared"]["stored"].as_u64() < json["original"]["stored"].as_u64(), "{json}");
    assert_eq!(json["shared"]["logical"], json["original"]["logical"]);
    let plan = place.json("inspect c");
    let kinds: Vec<&str> =
        plan["sharing"].as_array().unwrap().iter().map(|l| l["kind"].as_str().unwrap()).collect();
    assert!(kinds.contains(&"combined") && kinds.contains(&"low-rank"), "{kinds:?}");
    same_loss(&place, "c");
    // Factored weights, which share nothing, go the same way.
    place.ok(&format!("{line} --set options.atoms_share=0 --no-heal --eval-tokens 200 -o f"));
    same_loss(&place, "f");
    // Trained on, with adapters on the combined weights.
    place.ok(
        "train --model c --data t.txt --steps 3 --batch-size 2 --seq-len 24 --lora-rank 2 -o l",
    );
    assert_eq!(place.ok("generate l --prompt line --greedy -n 4 --json").code, 0);
    place.refused("compress --model m --method foldgpt --ratio 0.3 --dry-run", &["masa"]);
    place.refused(
        "compress --model m --method masa --ratio 1.5 --data t.txt --dry-run",
        &["ratio", "between 0 and 1"],
    );
}

/// The folder `name` and its plain form have one loss.
fn same_loss(place: &Place, name: &str) {
    let loss = |model: &str| {
        let json = place.json(&format!("eval {model} --data t.txt --max-tokens 100"));
        json["text"]["loss"].as_f64().unwrap()
    };
    place.ok(&format!("materialize {name} -o {name}-plain"));
    let (a, b) = (loss(name), loss(&format!("{name}-plain")));
    assert!((a - b).abs() < 1e-3, "{a} {b}");
}

#[test]
fn parallel_streams_run_everywhere_but_in_other_programs() {
    let place = Place::new();
    place.model("m", 3);
    place.text("t.txt", 300);
    let line = "compress --model m --method parscale --streams 2 --prefix-tokens 4 --data t.txt";
    let json = place.json(&format!("{line} {HEAL} -o p"));
    assert!(json["shared"]["stored"].as_u64() > json["original"]["stored"].as_u64(), "{json}");
    let title = json["tables"][0]["title"].as_str().unwrap();
    assert!(title.contains("add parameters"), "{title}");
    place.json("inspect p");
    place.json("eval p --data t.txt --max-tokens 100");
    assert_eq!(place.json("generate p --prompt line --greedy -n 4")["new_tokens"], 4);
    place.ok(
        "train --model p --data t.txt --steps 3 --batch-size 2 --seq-len 24 --lora-rank 2 -o l",
    );
    let words = ["parallel_streams", "2 streams", "transformers", "generate"];
    place.refused("materialize p -o plain", &words);
    place.refused("materialize p -o plain.gguf", &words);
    place
        .refused(&format!("{line} --streams 0 --dry-run").replace("--streams 2 ", ""), &["1..=64"]);
    place.refused("compress --model p --method parscale --data t.txt --dry-run", &["already"]);
    place.refused("compress --model p --method masa --data t.txt --dry-run", &["parallel streams"]);
    // Training goes on with what was added alone, or with all of it.
    let more = "train --model p --data t.txt --steps 3 --batch-size 2 --seq-len 24";
    let added = place.json(&format!("{more} --freeze-base -o f"))["trainable"].as_u64().unwrap();
    let all = place.json(&format!("{more} -o g"))["trainable"].as_u64().unwrap();
    let stored = |m: &str| place.json(&format!("inspect {m}"))["stored"]["parameters"].as_u64();
    assert_eq!(
        (stored("f"), all, all - added),
        (stored("p"), stored("p").unwrap(), stored("m").unwrap())
    );
    place.refused(
        "train --model m --data t.txt --steps 3 --freeze-base -o x",
        &["--freeze-base", "no parallel streams", "parscale"],
    );
    // Before any healing, not after it.
    place.refused(&format!("{line} --format gguf -o w.gguf"), &words);
    assert!(!place.path("w.gguf").exists());
}
