//! A workspace in miniature that obeys every rule, for tests to break.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use commons_core::Seed;
use commons_core::evidence::{
    Baseline, Bound, ClaimResult, Compare, Figure, RunResult, Stamp, Verdict,
};
use commons_core::machine::Machine;
use commons_core::stats::Interval;
use tempfile::TempDir;

use crate::tree::Tree;

/// A workspace in a temporary folder.
pub struct Miniature {
    folder: TempDir,
}

const FOLDER: &str = "crates/commons-weights/src/halving";

const DOCS: &str = "//! Two layers share one weight.
//!
//! # Paper
//! Halving, 2024.
//! # Problem
//! Weights are many.
//! # Method
//! W2 = W1
//! # Shared / kept apart
//! W is shared.
//! # Claim
//! Half the weights.
//! # Here
//! Not measured yet.
//! # Differs
//! Nothing.
//! # Use
//! ```
//! # let hidden = 1;
//! assert_eq!(hidden, 1);
//! ```
";

impl Miniature {
    /// A workspace of five packages and one method, without a breach.
    pub fn new() -> Self {
        let tree = Self { folder: tempfile::tempdir().unwrap() };
        tree.write(
            "Cargo.toml",
            "[workspace]\nresolver = \"3\"\nmembers = [\"crates/*\"]\n[workspace.lints]\n",
        );
        tree.package("commons-core", "");
        tree.package("commons-ops", "candle-core = \"0.11\"\n");
        tree.package("commons-nn", "");
        tree.package("commons-weights", "");
        tree.package("commons", "clap = \"4\"\n");
        tree.write(
            "crates/commons-weights/src/lib.rs",
            "//! Weights.\n\nmod halving;\n\n/// Methods.\npub const METHODS: &[&dyn Method] = &[\n    \
             &Entry::<halving::Halving>::NEW,\n];\n",
        );
        tree.write(&format!("{FOLDER}/mod.rs"), DOCS);
        tree.write(&format!("{FOLDER}/evidence.rs"), "//! Evidence.\n");
        tree.write(&format!("{FOLDER}/tests.rs"), "//! Tests.\n");
        tree.write(&format!("{FOLDER}/smoke.toml"), "steps = 1\n");
        tree.write(&format!("{FOLDER}/full.toml"), "steps = 100\n");
        tree.write(&format!("{FOLDER}/result.json"), &result_json());
        tree.write("README.md", README);
        tree
    }

    /// Adds or replaces the package `name` in `crates/`, with `dependencies` in its manifest.
    pub fn package(&self, name: &str, dependencies: &str) {
        let manifest = format!(
            "[package]\nname = \"{name}\"\nedition = \"2024\"\n\n[dependencies]\n{dependencies}\n\
             [lints]\nworkspace = true\n"
        );
        self.write(&format!("crates/{name}/Cargo.toml"), &manifest);
        self.write(&format!("crates/{name}/src/lib.rs"), "//! A crate.\n");
    }

    /// Path inside the method's folder.
    pub fn method(name: &str) -> String {
        format!("{FOLDER}/{name}")
    }

    /// Writes a file.
    pub fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    /// Contents of a file.
    pub fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.path(path)).unwrap()
    }

    /// Replaces the one occurrence of `from` in a file.
    pub fn replace(&self, path: &str, from: &str, to: &str) {
        let text = self.read(path);
        assert_eq!(text.matches(from).count(), 1, "{from:?} in {path}");
        self.write(path, &text.replace(from, to));
    }

    /// Deletes a file.
    pub fn remove(&self, path: &str) {
        std::fs::remove_file(self.path(path)).unwrap();
    }

    /// Absolute path of a file.
    pub fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    /// The workspace as the rules see it.
    pub fn load(&self) -> Tree {
        Tree::load(self.folder.path()).unwrap()
    }
}

/// The form of README.md that the generator fills in.
pub const README: &str = "# Halving\n\n<!-- begin methods -->\n<!-- end methods -->\n\nEnd.\n";

/// A result of the method's full recipe.
pub fn result() -> RunResult {
    let claim = ClaimResult {
        id: "size".to_owned(),
        sentence: "stores half | not all".to_owned(),
        paper: Figure::Number(0.5),
        metric: "stored".to_owned(),
        measured: Some(12.0),
        baseline: Some(Baseline { metric: "logical".to_owned(), value: 24.0 }),
        compare: Compare::Ratio,
        compared: Some(0.5),
        interval: Some(Interval { low: 0.48, high: 0.52, level: 0.95 }),
        repeats: 3,
        bound: Bound::AtMost(0.5),
        verdict: Verdict::Holds,
        settled: false,
        reason: None,
    };
    RunResult {
        format: 1,
        slug: "halving".to_owned(),
        title: "Half Is Enough".to_owned(),
        recipe: Some("full".to_owned()),
        date: Stamp::from(UNIX_EPOCH + Duration::from_secs(1_795_453_449)),
        version: "0.1.0".to_owned(),
        seed: Seed::new(7),
        machine: Machine { cpu: "Abacus 9".to_owned(), threads: 2, ..Machine::default() },
        wall_seconds: 192.0,
        peak_memory: 1 << 30,
        claims: vec![claim],
        measures: BTreeMap::new(),
        tables: Vec::new(),
        notes: vec!["One note.".to_owned()],
        config: "steps = 100\nrate = 1.0\nruns = [{ size = 2, seed = 0 }]\n".to_owned(),
    }
}

fn result_json() -> String {
    serde_json::to_string_pretty(&result()).unwrap()
}
