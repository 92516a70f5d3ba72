//! `train` end to end.

use serde_json::Value;

use crate::{Place, bytes};

const SMALL: &str = "--steps 4 --batch-size 2 --seq-len 16 --set train.save_steps=2";

#[test]
fn a_new_model_learns_and_is_usable() {
    let place = Place::new();
    place.text("t.txt", 300);
    let json = place.json(
        "train --arch nano --data t.txt --steps 30 --batch-size 4 --seq-len 32 --lr 3e-3 -o m",
    );
    assert!(
        json["last_loss"].as_f64().unwrap() < json["first_loss"].as_f64().unwrap() - 0.5,
        "{json}"
    );
    assert_eq!(json["steps"], 30);
    assert!(json["text"]["apart"].as_str().unwrap().contains("held out"), "{json}");
    assert!(!place.path("m.work").exists());
    place.ok("generate m --prompt line --max-tokens 4");
    assert_eq!(place.json("inspect m")["kind"], "Hugging Face folder");
    // The same run again gives the same bytes, and may replace them unasked.
    let first = bytes(place.path("m/model.safetensors"));
    place
        .ok("train --arch nano --data t.txt --steps 30 --batch-size 4 --seq-len 32 --lr 3e-3 -o m");
    assert_eq!(first, bytes(place.path("m/model.safetensors")));
    place.refused("train --arch nano --data t.txt --steps 3 -o m", &["exists already"]);
}

#[test]
fn routed_recursions_are_trained_and_used_everywhere_but_in_other_programs() {
    for options in ["--router expert", "--router token --recursion-cache shared"] {
        let place = Place::new();
        place.text("t.txt", 300);
        place.ok(&format!(
            "train --arch nano --recursions 2 {options} --data t.txt -o m {SMALL} --lr 3e-3"
        ));
        let inspected = place.json("inspect m");
        let kinds: Vec<&str> = inspected["sharing"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|line| line["kind"].as_str())
            .collect();
        assert!(kinds.contains(&"tied") && kinds.contains(&"routed"), "{inspected}");
        assert_eq!(inspected["architecture"]["mixture_of_recursions"]["recursions"], 2);
        let stored = inspected["stored"]["parameters"].as_u64();
        assert!(stored < inspected["logical"]["parameters"].as_u64(), "{inspected}");
        let loss = |model: &str| {
            let json = place.json(&format!("eval {model} --data t.txt --max-tokens 100"));
            json["text"]["loss"].as_f64().unwrap()
        };
        let before = loss("m");
        assert_eq!(place.json("generate m --prompt line --greedy -n 4")["new_tokens"], 4);
        place.ok(&format!("train --model m --data t.txt -o more {SMALL} --lr 3e-3"));
        assert!(loss("more") < before, "{options}");
        place.ok(&format!("train --model m --data t.txt --lora-rank 2 -o a {SMALL} --lr 1e-2"));
        assert!(loss("a") < before, "{options}");
        let words = ["mixture_of_recursions", "transformers", "generate"];
        place.refused("materialize m -o plain", &words);
        place.refused("materialize m -o plain.gguf", &words);
        assert!(!place.path("plain").exists() && !place.path("plain.gguf").exists());
        place.refused("eval m --data t.txt --exits 2", &["mixture_of_recursions", "one by one"]);
        place.refused(
            "compress --model m --method foldgpt --remove 0.25 --data t.txt --dry-run",
            &["mixture_of_recursions"],
        );
    }
    let place = Place::new();
    place.text("t.txt", 300);
    let refused = |line: &str, words: &[&str]| {
        place.refused(&format!("train --data t.txt -o x {SMALL} {line}"), words);
    };
    refused("--arch micro --recursions 3", &["num_hidden_layers", "take 5 or 8 layers"]);
    refused(
        "--arch nano --recursions 2 --layer-sharing sequence --recursion-cache shared",
        &["kv_cache", "middle_cycle"],
    );
    refused("--router token", &["--recursions"]);
    let none = ["mixture_of_recursions", "there are none", "--recursions"];
    refused("--recursions 0 --router token", &none);
    refused("--set mixture_of_recursions.router=token", &none);
}

#[test]
fn dictionaries_are_trained_and_written_out() {
    let place = Place::new();
    place.text("t.txt", 300);
    let line = |more: &str, out: &str| format!("train --data t.txt -o {out} {SMALL} {more}");
    place.ok(&line("--arch nano", "whole"));
    place.ok(&line("--arch nano --atoms 2", "m"));
    place.ok(&line("--arch nano --atoms 2 --set dictionaries.raw_coefficients=true", "raw"));
    let stored = |m: &str| place.json(&format!("inspect {m}"))["stored"]["parameters"].clone();
    let [whole, made, raw] = ["whole", "m", "raw"].map(|m| stored(m).as_u64().unwrap());
    // Four layers, of each projection two matrices and a row of two for every layer; no network.
    assert_eq!(whole - made, 2 * (2 * 64 * 64 + 2 * 32 * 64) - 4 * 4 * 2);
    assert_eq!(made, raw);
    let sharing = place.json("inspect m")["sharing"].to_string();
    assert!(sharing.contains("combined"), "{sharing}");
    place.ok("materialize m -o plain");
    assert_eq!(place.json("generate m --prompt line --greedy -n 4")["new_tokens"], 4);
    let refused = |more: &str, words: &[&str]| {
        place.refused(&line(more, "x"), words);
        assert!(!place.path("x.work").exists(), "{more}");
    };
    refused("--atoms 4", &["atoms", "use 1 to 3"]);
    refused("--atoms 2 --shared-projections q,q", &["share", "once"]);
    refused("--atoms 2 --shared-projections x", &["share", "x"]);
    refused("--arch micro --atoms 2 --recursions 2", &["shared already"]);
    refused("--atoms 2 --share-layers", &["shared already"]);
    refused("--set dictionaries.start=uniform", &["there are no atoms", "--atoms"]);
    refused("--shared-projections q", &["--atoms"]);
    let recompute = "--atoms 2 --set train.gradient_checkpointing=true";
    refused(recompute, &["gradient_checkpointing", "raw_coefficients"]);
}

#[test]
fn a_pool_is_trained_and_written_out() {
    let place = Place::new();
    place.text("t.txt", 300);
    let line = |more: &str, out: &str| format!("train --data t.txt -o {out} {SMALL} {more}");
    place.ok(&line("--arch nano", "whole"));
    place.ok(&line("--arch nano --pool-compression 8", "m"));
    let stored = |m: &str| place.json(&format!("inspect {m}"))["stored"]["parameters"].clone();
    let [whole, pooled] = ["whole", "m"].map(|m| stored(m).as_u64().unwrap());
    let matrices = 4 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 176);
    assert_eq!(whole - pooled, matrices - matrices / 8);
    place.ok("materialize m -o plain");
    assert_eq!(place.json("generate m --prompt line --greedy -n 4")["new_tokens"], 4);
    let refused = |more: &str, words: &[&str]| {
        place.refused(&line(more, "x"), words);
        assert!(!place.path("x.work").exists(), "{more}");
    };
    refused("--pool-compression 0.5", &["compression", "1 is the nearest"]);
    refused("--pool-compression nan", &["compression"]);
    refused("--pool-compression 2 --atoms 2", &["--atoms", "take one"]);
    refused("--pool-compression 2 --share-layers", &["made from others already"]);
    refused("--set pool.embedding=true", &["there is none", "--pool-compression"]);
    refused("--pool-compression 2 --optimizer sgd", &["sgd on a pool", "adamw"]);
    refused("--model m --optimizer sgd", &["sgd on a pool", "adamw"]);
}

#[test]
fn mixtures_of_experts_are_trained_and_used_everywhere_but_in_other_programs() {
    for (options, line, share) in [
        ("--experts 8 --active-experts 4 --expert-groups 2", "2 of each of 2 groups of 4", false),
        ("--experts 4 --share-layers --set mixture_of_experts.capacity_factor=1.2", "2 of 4", true),
    ] {
        let place = Place::new();
        place.text("t.txt", 300);
        let trained =
            place.ok(&format!("train --arch nano {options} --data t.txt -o m {SMALL} --lr 3e-3"));
        assert!(trained.err.contains("balance"), "{}", trained.err);
        assert_eq!(trained.err.contains("dropped"), share, "{}", trained.err);
        let inspected = place.json("inspect m");
        let lines = inspected["sharing"].as_array().unwrap();
        let experts = lines.iter().find(|l| l["kind"] == "experts").unwrap();
        assert!(experts["how"].as_str().unwrap().contains(line), "{inspected}");
        let tied = lines.iter().find(|l| l["kind"] == "tied" && l["how"] == "layers 0–3");
        assert_eq!(tied.is_some(), share, "{inspected}");
        if let Some(tied) = tied {
            assert_eq!(tied["which"], "q k v o, 4 experts, router", "{inspected}");
        }
        let number = |value: &Value| value.as_u64().unwrap();
        // Norms of nano, and one router in every layer; attention, experts of a token and the head.
        let (router, experts) = if share { (4 * 64, 2 * 88) } else { (8 * 64, 4 * 44) };
        let layer = 2 * 64 * 64 + 2 * 32 * 64 + router + 3 * 64 * experts;
        let vocabulary = number(&inspected["architecture"]["vocab_size"]);
        assert_eq!(number(&inspected["active"]), 4 * layer as u64 + 64 * vocabulary);
        let (stored, logical) = (&inspected["stored"], &inspected["logical"]);
        assert_eq!(number(&stored["parameters"]) < number(&logical["parameters"]), share);
        assert!(place.ok("inspect m").out.contains("multiply a token"));

        let loss = |model: &str| {
            let json = place.json(&format!("eval {model} --data t.txt --max-tokens 100"));
            json["text"]["loss"].as_f64().unwrap()
        };
        let before = loss("m");
        assert_eq!(place.json("generate m --prompt line --greedy -n 4")["new_tokens"], 4);
        place.ok("eval m --data t.txt --max-tokens 50 --exits 2");
        place.ok(&format!("train --model m --data t.txt -o more {SMALL} --lr 3e-3"));
        assert!(loss("more") < before, "{options}");
        assert_eq!(place.json("inspect more")["stored"], *stored);
        place.refused(
            &format!("train --model m --data t.txt --lora-rank 2 -o a {SMALL}"),
            &["gate_proj", "experts", "--target-modules q_proj,k_proj,v_proj,o_proj"],
        );
        assert!(!place.path("a").exists() && !place.path("a.work").exists());
        place.ok(&format!(
            "train --model m --data t.txt --lora-rank 2 --target-modules q_proj,v_proj -o a {SMALL} --lr 1e-2"
        ));
        assert!(loss("a") < before, "{options}");

        let words = ["mixture_of_experts", "transformers", "generate"];
        place.refused("materialize m -o plain", &words);
        place.refused("materialize m -o plain.gguf", &words);
        assert!(!place.path("plain").exists() && !place.path("plain.gguf").exists());
        for method in ["foldgpt --remove 0.25", "relaxed-recursive --loops 2", "parscale"] {
            place.refused(
                &format!("compress --model m --method {method} --data t.txt --dry-run"),
                &["mixture_of_experts", "dense model", "share_layers"],
            );
        }
    }
}

#[test]
fn experts_that_do_not_fit_are_refused_before_anything_is_written() {
    let place = Place::new();
    place.text("t.txt", 300);
    let refused = |line: &str, words: &[&str]| {
        place.refused(&format!("train --data t.txt -o x {SMALL} {line}"), words);
        assert!(!place.path("x.work").exists(), "{line}");
    };
    refused("--experts 16 --expert-groups 3", &["expert_groups", "take 1 or 2"]);
    refused(
        "--experts 16 --active-experts 5 --expert-groups 4",
        &["num_experts_per_tok", "take 4"],
    );
    refused("--experts 4 --active-experts 9", &["num_experts_per_tok", "take 1 to 4"]);
    refused("--experts 4 --recursions 2", &["mixture_of_recursions", "share_layers"]);
    refused("--share-layers --recursions 2", &["share_layers", "mixture_of_recursions"]);
    refused("--active-experts 2", &["--experts"]);
    refused(
        "--set mixture_of_experts.num_experts_per_tok=2 --set mixture_of_experts.router_noise=1",
        &["mixture_of_experts", "--experts"],
    );
    refused("--experts 4 --set mixture_of_experts.experts=4", &["mixture_of_experts"]);
    place.model("m", 2);
    let words = ["share_layers", "new model"];
    place.refused(
        &format!("train --model m --data t.txt -o x --set share_layers=true {SMALL}"),
        &words,
    );
}

/// Without experts, layers that share are a plan like any other: written out, other programs load it.
#[test]
fn layers_that_share_are_written_out_as_a_plain_model() {
    let place = Place::new();
    place.text("t.txt", 300);
    place.ok(&format!("train --arch nano --share-layers --data t.txt -o m {SMALL} --lr 3e-3"));
    let inspected = place.json("inspect m");
    assert_eq!(inspected["architecture"]["model_type"], "llama");
    assert_eq!(inspected["architecture"]["share_layers"], true);
    assert_eq!(inspected["sharing"][0]["which"], "q k v o gate up down");
    let loss = |model: &str| {
        let json = place.json(&format!("eval {model} --data t.txt --max-tokens 100"));
        json["text"]["loss"].as_f64().unwrap()
    };
    place.ok("materialize m -o plain");
    place.ok("materialize m -o plain.gguf --dtype f32");
    assert!((loss("plain") - loss("m")).abs() < 1e-5);
    assert!((loss("plain.gguf") - loss("m")).abs() < 1e-4);
    assert!(place.json("inspect plain")["architecture"].get("share_layers").is_none());
    place.ok(&format!("train --model m --data t.txt --lora-rank 2 -o a {SMALL} --lr 1e-2"));
    place.ok("materialize m --adapter a/adapter -o adapted");
    assert!((loss("adapted") - loss("a")).abs() < 1e-4);
    place.ok(
        "compress --model m --method relaxed-recursive --loops 2 --rank 2 --data t.txt --steps 3 \
         --batch-size 2 --seq-len 24 --eval-tokens 100 -o c",
    );
    let shared_otherwise = place.json("inspect c");
    assert!(shared_otherwise["architecture"].get("share_layers").is_none(), "{shared_otherwise}");
    place.ok("generate c --prompt line --greedy -n 4");
}

#[test]
fn adapters_leave_the_model_alone_and_are_written_for_peft() {
    let place = Place::new();
    place.model("m", 2);
    place.text("t.txt", 100);
    let json = place.json(&format!(
        "train --model m --data t.txt --lora-rank 2 --target-modules q_proj,v_proj -o a {SMALL}"
    ));
    // Rank 2 on 32 → 32 and 32 → 16, in two layers.
    assert_eq!(json["trainable"], 2 * 2 * ((32 + 32) + (32 + 16)));
    let adapter = place.json("inspect a/adapter");
    assert_eq!(adapter["kind"], "PEFT adapter folder");
    assert_eq!(
        (&adapter["adapter"]["r"], &adapter["adapter"]["peft_type"]),
        (&2.into(), &"LORA".into())
    );
    let plan = place.json("inspect a");
    assert_eq!(
        plan["sharing"].as_array().unwrap().iter().filter(|l| l["kind"] == "low-rank").count(),
        1
    );
}

#[test]
fn every_optimizer_takes_a_step() {
    let place = Place::new();
    place.text("t.txt", 60);
    for optimizer in ["adamw", "sgd", "muon", "adafactor", "zero_order"] {
        let out = format!("m-{optimizer}");
        place.ok(&format!(
            "train --arch nano --data t.txt --optimizer {optimizer} --lr 1e-3 {SMALL} -o {out}"
        ));
        assert!(place.path(&out).join("model.safetensors").is_file());
    }
}
