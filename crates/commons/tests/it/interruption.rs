//! Work that is killed goes on with `--resume` and ends in the same bytes.

use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::{Place, Ran, bytes};

/// Longest wait for a checkpoint.
const PATIENCE: Duration = Duration::from_secs(60);

/// Starts `line` and kills it as soon as `checkpoint` exists. Panics if it ends before.
pub fn killed_at(place: &Place, line: &str, checkpoint: &str) {
    let mut child =
        place.command(line).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let began = Instant::now();
    while !place.path(checkpoint).exists() {
        assert!(
            child.try_wait().unwrap().is_none(),
            "commons {line} ended before {checkpoint} appeared"
        );
        assert!(began.elapsed() < PATIENCE, "no {checkpoint}");
        sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn training_goes_on_after_a_kill() {
    training_goes_on("");
}

#[test]
fn training_of_routed_recursions_goes_on_after_a_kill() {
    training_goes_on("--recursions 2");
}

#[test]
fn training_of_shared_experts_goes_on_after_a_kill() {
    training_goes_on(
        "--experts 4 --share-layers --set mixture_of_experts.router_noise=0.25 \
         --set mixture_of_experts.capacity_factor=1.2",
    );
}

#[test]
fn training_of_dictionaries_goes_on_after_a_kill() {
    training_goes_on("--atoms 2 --shared-projections q,k,v");
}

fn training_goes_on(options: &str) {
    let place = Place::new();
    place.text("t.txt", 300);
    let line = |out: &str| {
        format!(
            "train --arch nano {options} --data t.txt --steps 400 --save-steps 10 --batch-size 2 --seq-len 32 -o {out}"
        )
    };
    killed_at(&place, &line("m"), "m.work/checkpoints/step-000010");
    assert!(!place.path("m").exists(), "nothing stands under the name of the result");
    place.refused(&line("m"), &["interrupted job", "--resume"]);
    place.refused(&format!("{} --resume --lr 0.5", line("m")), &["learning_rate"]);
    place.ok(&format!("{} --resume", line("m")));
    place.ok(&line("whole"));
    assert_eq!(
        bytes(place.path("m/model.safetensors")),
        bytes(place.path("whole/model.safetensors"))
    );
    assert_eq!(bytes(place.path("m/commons.json")), bytes(place.path("whole/commons.json")));
    assert!(!place.path("m.work").exists());
    assert!(place.ok(&format!("{} --resume", line("m"))).err.contains("complete already"));
}

#[test]
fn compression_goes_on_after_kills_in_different_stages() {
    let place = Place::new();
    place.model("m", 4);
    place.text("t.txt", 300);
    let line = |out: &str| {
        format!(
            "compress --model m --data t.txt --loops 2 --rank 2 --steps 300 --batch-size 2 --seq-len 32 \
             --eval-tokens 300 --set heal.train.save_steps=20 -o {out}"
        )
    };
    killed_at(&place, &line("c"), "c.work/shared");
    killed_at(&place, &format!("{} --resume", line("c")), "c.work/healing/step-000020");
    assert!(!place.path("c").exists());
    place.ok(&format!("{} --resume", line("c")));
    place.ok(&line("whole"));
    for file in ["model.safetensors", "config.json", "commons.json", "tokenizer.json"] {
        assert_eq!(
            bytes(place.path("c").join(file)),
            bytes(place.path("whole").join(file)),
            "{file}"
        );
    }
    assert!(!place.path("c.work").exists());
}

#[cfg(unix)]
#[test]
fn an_interrupt_ends_with_a_checkpoint_and_the_command_that_goes_on() {
    let place = Place::new();
    place.text("t.txt", 300);
    let line = "train --arch nano --data t.txt --steps 100000 --save-steps 5 --batch-size 2 --seq-len 32 -o m";
    let child = place.command(line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let began = Instant::now();
    while !place.path("m.work/checkpoints/step-000005").exists() {
        assert!(began.elapsed() < PATIENCE);
        sleep(Duration::from_millis(2));
    }
    let pid = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let ran = Ran::from(child.wait_with_output().unwrap());
    assert_eq!(ran.code, 130, "{}", ran.err);
    let message = ran.err.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(message.contains("--resume") && message.contains("--steps 100000"), "{}", ran.err);
}
