//! Every method that shares weights inside a decoder, against everything a user does with a model.

use crate::interruption::killed_at;
use crate::{Place, bytes};

const TRAIN: &str = "--data t.txt --batch-size 2 --seq-len 24 --lr 1e-3";

/// Methods that make a model from the start.
const TRAINED: [&str; 5] = ["masa", "mor", "moge", "stable-rps", "widenet"];

/// Options under which a method applies to a model of eight layers, four heads and two key heads, or
/// makes a new one.
fn options(method: &str, trained: bool) -> &'static str {
    match method {
        "masa" if trained => "--atoms 2",
        "stable-rps" if trained => "--pool-compression 2",
        "relaxed-recursive" => "--loops 2 --rank 2",
        "foldgpt" => "--remove 0.25 --set options.gates.steps=4",
        "kdgqa" => "--kv-heads 1",
        "masa" => "--ratio 0.2",
        "parscale" => "--streams 2 --prefix-tokens 3",
        "stable-rps" => "--compression 2",
        "mor" => "--recursions 2",
        "moge" => "--experts 8 --active-experts 4 --expert-groups 2",
        "widenet" => "--experts 4 --share-layers",
        other => panic!("`{other}` has no line in the matrix: say how it applies to a small model"),
    }
}

/// The key of `config.json` that other programs do not know, where a product has one.
fn unknown_elsewhere(method: &str) -> Option<&'static str> {
    match method {
        "parscale" => Some("parallel_streams"),
        "mor" => Some("mixture_of_recursions"),
        "moge" | "widenet" => Some("mixture_of_experts"),
        _ => None,
    }
}

/// Loss on 100 tokens of `t.txt`.
fn loss(place: &Place, model: &str) -> f64 {
    let measured = place.json(&format!("eval {model} --data t.txt --max-tokens 100"));
    measured["text"]["loss"].as_f64().unwrap()
}

/// `method` applied to a model, or a new model shaped by it.
fn shared_by(method: &str, trained: bool) -> Place {
    let place = Place::new();
    place.model("m", 8);
    place.text("t.txt", 400);
    let options = options(method, trained);
    if trained {
        place.ok(&format!("train --arch nano {options} {TRAIN} --steps 3 -o c"));
        return place;
    }
    place.ok(&format!(
        "compress --model m --method {method} {options} --data t.txt --steps 3 --batch-size 2 \
         --seq-len 24 --eval-tokens 100 -o c"
    ));
    place
}

/// What other programs load says the same.
fn written_out(place: &Place, method: &str) {
    let (shared, stored) = (loss(place, "c"), place.json("inspect c"));
    assert!(stored["stored"]["parameters"].as_u64() > Some(0), "{method}");
    if let Some(key) = unknown_elsewhere(method) {
        // What other programs would load and misread must not be written.
        for out in ["plain", "plain.gguf"] {
            place.refused(&format!("materialize c -o {out}"), &[key, "commons"]);
            assert!(!place.path(out).exists());
        }
        let said = place.ok("generate c --prompt abcab --max-tokens 12 --temperature 0");
        assert!(!said.out.is_empty(), "{method}");
        return;
    }
    place.ok("materialize c -o plain");
    assert!((loss(place, "plain") - shared).abs() < 1e-4, "{method}");
    place.ok("materialize c -o plain.gguf --dtype f16");
    assert!((loss(place, "plain.gguf") - shared).abs() < 2e-2, "{method}");
    // With a cache, token by token, shared or not.
    let said = |model: &str| {
        place.ok(&format!("generate {model} --prompt abcab --max-tokens 12 --temperature 0")).out
    };
    assert_eq!(said("c"), said("plain"), "{method}");
}

/// It trains on, whole and with an adapter, and a killed run ends in the same bytes.
fn trained_on(place: &Place, method: &str) {
    let before = loss(place, "c");
    let line = |out: &str| format!("train --model c {TRAIN} --steps 150 --save-steps 10 -o {out}");
    killed_at(place, &line("more"), "more.work/checkpoints/step-000010");
    place.ok(&format!("{} --resume", line("more")));
    assert!(loss(place, "more") < before, "{method}");
    let sharing = |model: &str| place.json(&format!("inspect {model}"))["stored"].clone();
    assert_eq!(sharing("more"), sharing("c"), "{method}: the plan went lost in training");
    place.ok(&line("again"));
    assert_eq!(
        bytes(place.path("more/model.safetensors")),
        bytes(place.path("again/model.safetensors")),
        "{method}"
    );
    let experts = unknown_elsewhere(method) == Some("mixture_of_experts");
    let targets = if experts { "q_proj,v_proj" } else { "q_proj,down_proj" };
    place.ok(&format!(
        "train --model c --lora-rank 2 --target-modules {targets} {TRAIN} --steps 12 -o adapter"
    ));
    let adapted = loss(place, "adapter");
    assert!(adapted < before, "{method}");
    if unknown_elsewhere(method).is_none() {
        place.ok("materialize c --adapter adapter/adapter -o adapted");
        assert!((loss(place, "adapted") - adapted).abs() < 1e-4, "{method}");
    }
}

#[test]
fn every_method_works_with_every_verb() {
    let compressing = commons_weights::COMPRESSORS.iter().map(|method| (method.slug(), false));
    let products: Vec<(&str, bool)> = compressing.chain(TRAINED.map(|m| (m, true))).collect();
    // `masa`, `mor` and `stable-rps` stand in both lists.
    assert_eq!(products.len(), commons_weights::METHODS.len() + 3);
    for (method, trained) in products {
        let place = shared_by(method, trained);
        written_out(&place, method);
        trained_on(&place, method);
    }
}
