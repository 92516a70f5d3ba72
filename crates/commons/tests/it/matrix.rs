//! Every method that shares the weights of a decoder, against everything a user does with a model.

use crate::{Place, bytes};

const TRAIN: &str = "--data t.txt --batch-size 2 --seq-len 24 --lr 1e-3";

/// Options under which a method applies to a model of eight layers, four heads and two key heads.
fn options(method: &str) -> &'static str {
    match method {
        "relaxed-recursive" => "--loops 2 --rank 2",
        "foldgpt" => "--remove 0.25 --set options.gates.steps=4",
        "kdgqa" => "--kv-heads 1",
        "masa" => "--ratio 0.2",
        "parscale" => "--streams 2 --prefix-tokens 3",
        "stable-rps" => "--compression 2",
        other => panic!("`{other}` has no line in the matrix: say how it applies to a small model"),
    }
}

/// Loss on 100 tokens of `t.txt`.
fn loss(place: &Place, model: &str) -> f64 {
    let measured = place.json(&format!("eval {model} --data t.txt --max-tokens 100"));
    measured["text"]["loss"].as_f64().unwrap()
}

fn shared_by(method: &str) -> Place {
    let place = Place::new();
    place.model("m", 8);
    place.text("t.txt", 400);
    let options = options(method);
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
    if method == "parscale" {
        // Other programs know no streams; what they would load must not be written.
        place.refused("materialize c -o plain", &["parallel_streams", "commons"]);
        assert!(!place.path("plain").exists());
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

/// It trains on, whole and with an adapter, and an interrupted run ends in the same bytes.
fn trained_on(place: &Place, method: &str) {
    let before = loss(place, "c");
    place.ok(&format!("train --model c {TRAIN} --steps 12 -o more"));
    assert!(loss(place, "more") < before, "{method}");
    let sharing = |model: &str| place.json(&format!("inspect {model}"))["stored"].clone();
    assert_eq!(sharing("more"), sharing("c"), "{method}: the plan went lost in training");
    place.ok(&format!("train --model c {TRAIN} --steps 12 -o again"));
    assert_eq!(
        bytes(place.path("more/model.safetensors")),
        bytes(place.path("again/model.safetensors")),
        "{method}"
    );
    place.ok(&format!(
        "train --model c --lora-rank 2 --target-modules q_proj,down_proj {TRAIN} --steps 12 -o adapter"
    ));
    let adapted = loss(place, "adapter");
    assert!(adapted < before, "{method}");
    if method != "parscale" {
        place.ok("materialize c --adapter adapter/adapter -o adapted");
        assert!((loss(place, "adapted") - adapted).abs() < 1e-4, "{method}");
    }
}

#[test]
fn every_method_works_with_every_verb() {
    for method in commons_weights::COMPRESSORS {
        let place = shared_by(method.slug());
        written_out(&place, method.slug());
        trained_on(&place, method.slug());
    }
}
