//! Ctrl-C: the first asks the work to stop at the next safe point, the second ends the process.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::error::{Failure, Result, exit};
use crate::output::Output;

/// The flag that long work looks at.
#[derive(Debug, Clone, Default)]
pub struct Stop(commons_core::Stop);

impl Stop {
    /// Installs the handler for interrupt, hang-up and termination.
    pub fn install() -> Self {
        let stop = Self::default();
        let flag = stop.inner();
        let handler = move || {
            if flag.is_requested() {
                std::process::exit(i32::from(exit::INTERRUPTED));
            }
            flag.request();
            tracing::warn!("stopping at the next safe point; press Ctrl-C again to end at once");
        };
        if let Err(error) = ctrlc::set_handler(handler) {
            tracing::debug!("no signal handler: {error}");
        }
        stop
    }

    /// The flag for libraries that take the request itself.
    pub fn inner(&self) -> commons_core::Stop {
        self.0.clone()
    }

    /// The flag for libraries that take a plain one.
    pub fn flag(&self) -> Arc<AtomicBool> {
        self.0.flag()
    }

    /// Whether the user asked to stop.
    pub fn raised(&self) -> bool {
        self.0.is_requested()
    }

    /// Ends the process now, saying how to go on. For work that has nothing half done worth keeping
    /// and cannot be left otherwise: everything on disk is whole at all times.
    pub fn leave(&self, resume: Option<String>, out: &Output) {
        Failure::interrupted(resume).report(out.color_err, out.width);
        std::process::exit(i32::from(exit::INTERRUPTED))
    }

    /// Gives up if the user asked to.
    pub fn check(&self) -> Result<()> {
        if self.raised() { Err(Failure::interrupted(None)) } else { Ok(()) }
    }
}

/// The command line of this process with `--resume`, ready for a shell.
pub fn resume_command() -> String {
    let mut words: Vec<String> = std::env::args().map(|word| quote(&word)).collect();
    words.retain(|word| word != "--force");
    if !words.iter().any(|word| word == "--resume") {
        words.push("--resume".into());
    }
    words.join(" ")
}

fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_a_shell() {
        assert_eq!(quote("a/b-c=1.gguf"), "a/b-c=1.gguf");
        assert_eq!(quote("my model"), "'my model'");
        assert_eq!(quote("it's"), r"'it'\''s'");
        assert_eq!(quote(""), "''");
    }
}
