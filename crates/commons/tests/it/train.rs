//! `train` end to end.

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
