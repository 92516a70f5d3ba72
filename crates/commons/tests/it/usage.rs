//! Bad input: exit code 2, and a message that names the place and what to do.

use std::fs;

use crate::Place;

#[test]
fn a_missing_file_is_named() {
    let place = Place::new();
    place.refused("inspect no/such/model.gguf", &["no/such/model.gguf"]);
    place.refused("eval no-such-model --data x.txt", &["no-such-model"]);
    place.model("m", 2);
    place.refused("eval m --data missing.txt", &["missing.txt"]);
    place.refused("generate m --prompt a --config absent.toml", &["absent.toml"]);
}

#[test]
fn an_unknown_key_is_named_with_near_ones() {
    let place = Place::new();
    place.refused("train --set train.stepz=3", &["train.stepz", "did you mean `train.steps`"]);
    place.refused("compress --set lopos=3", &["lopos", "`options.loops`"]);
    place.refused("eval tiny --set contxt=3", &["contxt", "`context`"]);
    place.refused("eval tiny --set context", &["has no `=`"]);
    fs::write(place.path("c.toml"), "[train]\nsteps = 3\nlearnig_rate = 1\n").unwrap();
    place.refused(
        "train --config c.toml",
        &["c.toml", "train.learnig_rate", "`train.learning_rate`"],
    );
    fs::write(place.path("c.toml"), "a = \nb = 1\n").unwrap();
    place.refused("train --config c.toml", &["c.toml: line 1"]);
    place.refused("train --set train.steps=many", &["`train.steps`", "many"]);
    place.refused("inspect tiny --set a=1", &["`inspect` has no settings"]);
}

#[test]
fn wrong_method_options_say_what_works() {
    let place = Place::new();
    place.refused(
        "compress --method relaxd-recursive",
        &["relaxd-recursive", "did you mean `relaxed-recursive`"],
    );
    place.refused(
        "compress --method foldgpt --loops 2",
        &["--loops", "`foldgpt` has no such option", "--method relaxed-recursive"],
    );
    place.refused(
        "compress --remove 0.2",
        &["--remove", "`relaxed-recursive` has no such option", "--method foldgpt"],
    );
    for (method, train) in [("widenet", "--share-layers"), ("moge", "--expert-groups 2")] {
        let command = format!("compress --method {method}");
        let ran = place.refused(&command, &[method, "before it is trained", train]);
        // What it says to do instead can be done.
        let advice = ran.err.lines().find_map(|l| l.trim().strip_prefix("commons train")).unwrap();
        let small = "--steps 1 --batch-size 1 --seq-len 16";
        let trained = place.run(&format!("train {advice} {small} -o {method}"));
        assert_eq!(trained.code, 0, "{}", trained.err);
    }
    place.model("m", 4);
    place.text("t.txt", 200);
    place.refused("compress --model m --data t.txt --loops 3 -o out", &["loops", "3", "[1, 2, 4]"]);
    assert!(!place.path("out").exists());
    place.refused("compress --model m --data t.txt --init stepwize -o out", &["stepwize"]);
    place.refused("compress --model m", &["--data", "is missing"]);
    let baselines = "compress --model m --data t.txt --method masa --baselines -o out";
    place.refused(baselines, &["--baselines", "`masa` has no rank", "relaxed-recursive"]);
    let recompute =
        "compress --model m --data t.txt --set heal.train.gradient_checkpointing=true -o out";
    place.refused(recompute, &["gradient_checkpointing", "batch_size"]);
}

#[test]
fn damaged_checkpoints_are_named_with_the_tensor() {
    let place = Place::new();
    let weights = place.model("m", 2).join("model.safetensors");
    let good = fs::read(&weights).unwrap();

    fs::write(&weights, &good[..good.len() / 2]).unwrap();
    place.refused("inspect m", &["model.safetensors"]);
    place.refused("generate m --prompt a", &["model.safetensors"]);

    let mut hostile = good.clone();
    hostile[..8].copy_from_slice(&(10u64 << 30).to_le_bytes());
    fs::write(&weights, &hostile).unwrap();
    place.refused("inspect m", &["model.safetensors"]);

    let mut nan = good.clone();
    let last = nan.len() - 4;
    nan[last..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&weights, &nan).unwrap();
    place.refused("eval m --task copy --questions 1", &["tensor `model.norm.weight`", "NaN"]);

    fs::write(place.path("m/config.json"), "{\"model_type\": \"mamba\"}").unwrap();
    fs::write(&weights, &good).unwrap();
    place.refused("generate m --prompt a", &["config.json", "mamba"]);
    fs::write(place.path("x.gguf"), b"GGUF\x03\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff").unwrap();
    place.refused("inspect x.gguf", &["x.gguf"]);
}

#[test]
fn outputs_in_the_way_are_not_replaced() {
    let place = Place::new();
    place.model("m", 2);
    fs::create_dir(place.path("out")).unwrap();
    fs::write(place.path("out/precious.txt"), "x").unwrap();
    place.refused("materialize m -o out", &["out", "exists already", "--force"]);
    place.refused("materialize m -o out --force", &["will not be replaced"]);
    place.refused("train --steps 1 -o out", &["out", "exists already"]);
    assert_eq!(place.list("out"), ["precious.txt"]);
    place.refused("materialize m -o x --dtype q8_0", &["q8_0", "GGUF"]);
}

#[test]
fn questions_and_text_are_checked_before_the_model_is_loaded() {
    let place = Place::new();
    fs::write(place.path("q.jsonl"), "{\"prompt\": \"a\", \"options\": [\"b\"], \"answer\": 1}\n")
        .unwrap();
    place
        .refused("eval nowhere --task q.jsonl", &["q.jsonl: line 1: answer", "1 is not the index"]);
    fs::write(
        place.path("q.jsonl"),
        "\n{\"prompt\": \"a\", \"options\": [\"b\"], \"answer\": \"b\"}\n",
    )
    .unwrap();
    place.refused("eval nowhere --task q.jsonl", &["q.jsonl: line 2: answer"]);
    place.refused("eval nowhere --task sorting", &["sorting", "`sort`"]);
    fs::write(place.path("latin1.txt"), [b'a', 0xe4, b'b']).unwrap();
    place.model("m", 2);
    place.refused("eval m --data latin1.txt", &["latin1.txt", "byte 1"]);
    place.refused("train --data latin1.txt", &["latin1.txt"]);
    place.text("short.txt", 1);
    place.refused("train --data short.txt --seq-len 512 -o o", &["seq_len"]);
    place.refused("eval m --data short.txt --context 8 --stride 8", &["stride"]);
    place.refused("generate m --prompt a --top-p 2", &["top_p"]);
    place.refused("train --target-modules q_prj --lora-rank 2 --model m", &["q_prj", "`q_proj`"]);
    place.refused("train --arch nanoo", &["nanoo", "`nano`"]);
}
