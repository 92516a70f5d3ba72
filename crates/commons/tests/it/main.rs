//! The binary as users meet it: every verb on small real input, bad input, interruption.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod allocate;
mod audit;
mod compress;
mod evidence;
mod fair_stream;
mod fit;
mod help;
mod interruption;
mod locate;
mod matrix;
mod models;
mod pull;
mod shortlist;
mod tables;
mod texts;
mod train;
mod usage;

use std::path::{Path, PathBuf};
use std::process::Output;

use commons_core::Seed;
use commons_nn::model::{Decoder, DecoderConfig, Loaded, SaveFormat};
use commons_nn::tokenizer::Tokenizer;
use commons_ops::DType;
use serde_json::Value;
use tempfile::TempDir;

/// A folder of its own for one test, with a cache of its own and no network.
struct Place(TempDir);

/// What a command did.
struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The command with `line` split at spaces.
    fn command(&self, line: &str) -> std::process::Command {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_commons"));
        command
            .current_dir(self.0.path())
            .env("COMMONS_HOME", self.path("cache"))
            .env("COLUMNS", "100")
            .env("NO_COLOR", "1")
            .args(["--offline", "--threads", "2"])
            .args(line.split_whitespace());
        command
    }

    fn run(&self, line: &str) -> Ran {
        Ran::from(self.command(line).output().unwrap())
    }

    /// Runs a command that must succeed.
    fn ok(&self, line: &str) -> Ran {
        let ran = self.run(line);
        assert_eq!(ran.code, 0, "commons {line}\n{}\n{}", ran.out, ran.err);
        ran
    }

    /// Runs a command that must succeed with `--json` and parses what it wrote.
    fn json(&self, line: &str) -> Value {
        let ran = self.ok(&format!("{line} --json"));
        serde_json::from_str(&ran.out)
            .unwrap_or_else(|e| panic!("commons {line}: {e}\n{}", ran.out))
    }

    /// Runs a command that must be refused as bad usage, with every one of `words` in the message.
    fn refused(&self, line: &str, words: &[&str]) -> Ran {
        let ran = self.run(line);
        assert_eq!(ran.code, 2, "commons {line}\n{}\n{}", ran.out, ran.err);
        let message = ran.err.split_whitespace().collect::<Vec<_>>().join(" ");
        for word in words {
            assert!(message.contains(word), "commons {line}: no `{word}` in\n{}", ran.err);
        }
        assert!(ran.out.is_empty(), "commons {line} wrote {}", ran.out);
        ran
    }

    /// A decoder of `layers` layers with random weights and a byte tokenizer, as a folder.
    fn model(&self, name: &str, layers: usize) -> PathBuf {
        let tokenizer = Tokenizer::bytes().unwrap();
        let mut config = DecoderConfig::llama(tokenizer.vocab_size(), 32, layers, 4, 2, 48);
        config.max_position_embeddings = 64;
        let model = Decoder::init(config, Seed::new(7)).unwrap();
        let path = self.path(name);
        Loaded { model, tokenizer, path: path.clone() }
            .save(&path, SaveFormat::HuggingFace(DType::F32))
            .unwrap();
        path
    }

    /// A text of `lines` different lines.
    fn text(&self, name: &str, lines: usize) -> PathBuf {
        let mut rng = Seed::new(lines as u64).rng();
        let words =
            ["the", "cup", "was", "red", "and", "Ann", "gave", "it", "to", "Ben", "at", "noon"];
        let line = |i: usize, rng: &mut commons_core::Rng| {
            let picked: Vec<&str> = (0..9).map(|_| *rng.choose(&words).unwrap()).collect();
            format!("line {i}: {}.\n", picked.join(" "))
        };
        let text: String = (0..lines).map(|i| line(i, &mut rng)).collect();
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Names of what is in a folder, in order.
    fn list(&self, folder: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(folder)).unwrap();
        let mut names: Vec<String> =
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Self {
            code: output.status.code().unwrap_or(-1),
            out: text(output.stdout),
            err: text(output.stderr),
        }
    }
}

fn bytes(path: impl AsRef<Path>) -> Vec<u8> {
    std::fs::read(path.as_ref()).unwrap_or_else(|e| panic!("{}: {e}", path.as_ref().display()))
}
