//! `train` end to end.

use crate::{Place, bytes};

const SMALL: &str = "--steps 4 --batch-size 2 --seq-len 16 --set train.save_steps=2";

#[test]
fn a_new_model_learns_and_is_usable() {
    let place = Place::new();
    place.text("t.txt", 300);
    let json = place.json("train --arch nano --data t.txt --steps 30 --batch-size 4 --seq-len 32 --lr 3e-3 -o m");
    assert!(json["last_loss"].as_f64().unwrap() < json["first_loss"].as_f64().unwrap() - 0.5, "{json}");
    assert_eq!(json["steps"], 30);
    assert!(json["text"]["apart"].as_str().unwrap().contains("held out"), "{json}");
    assert!(!place.path("m.work").exists());
    place.ok("generate m --prompt line --max-tokens 4");
    assert_eq!(place.json("inspect m")["kind"], "Hugging Face folder");
    // The same run again gives the same bytes, and may replace them unasked.
    let first = bytes(place.path("m/model.safetensors"));
    place.ok("train --arch nano --data t.txt --steps 30 --batch-size 4 --seq-len 32 --lr 3e-3 -o m");
    assert_eq!(first, bytes(place.path("m/model.safetensors")));
    place.refused("train --arch nano --data t.txt --steps 3 -o m", &["exists already"]);
}

#[test]
fn adapters_leave_the_model_alone_and_are_written_for_peft() {
    let place = Place::new();
    place.model("m", 2);
    place.text("t.txt", 100);
    let json = place.json(&format!("train --model m --data t.txt --lora-rank 2 --target-modules q_proj,v_proj -o a {SMALL}"));
    // Rank 2 on 32 → 32 and 32 → 16, in two layers.
    assert_eq!(json["trainable"], 2 * 2 * ((32 + 32) + (32 + 16)));
    let adapter = place.json("inspect a/adapter");
    assert_eq!(adapter["kind"], "PEFT adapter folder");
    assert_eq!((&adapter["adapter"]["r"], &adapter["adapter"]["peft_type"]), (&2.into(), &"LORA".into()));
    let plan = place.json("inspect a");
    assert_eq!(plan["sharing"].as_array().unwrap().iter().filter(|l| l["kind"] == "low-rank").count(), 1);
}

#[test]
fn every_optimizer_takes_a_step() {
    let place = Place::new();
    place.text("t.txt", 60);
    for optimizer in ["adamw", "sgd", "muon", "adafactor", "zero_order"] {
        let out = format!("m-{optimizer}");
        place.ok(&format!("train --arch nano --data t.txt --optimizer {optimizer} --lr 1e-3 {SMALL} -o {out}"));
        assert!(place.path(&out).join("model.safetensors").is_file());
    }
}
