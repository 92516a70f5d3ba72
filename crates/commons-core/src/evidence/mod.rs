//! What a method claims, how that is measured, and what came out.
//!
//! A method is a [`Paper`], its [`Claim`]s and an [`Experiment`] that measures them. Running a
//! [`Recipe`] of it gives a [`Run`], which owns a folder:
//!
//! ```text
//! runs/<slug>/<date and time>/
//!   config.toml     every setting, resolved
//!   metrics.jsonl   one line per logged value: step, key, value, seconds since the start
//!   events.out.…    the same for TensorBoard
//!   checkpoints/    what an experiment keeps while it runs; gone when it is finished
//!   result.json     a RunResult: claims with verdicts, measures, tables, machine
//!   report.html     the same for people, with plots
//! ```
//!
//! `result.json` and `report.html` appear last and whole; a folder without them is a run that did
//! not finish. Verdicts come from the measured numbers alone: an experiment records measures, it
//! cannot set a verdict, and a claim without measures is an error rather than a pass.

mod claim;
mod config;
mod method;
mod result;
mod run;
mod series;
mod stamp;

pub use claim::{Bound, Claim, Compare, Figure, Verdict};
pub use config::{ConfigSource, parse_assignment};
pub use method::{Experiment, Method};
pub use result::{Baseline, ClaimResult, Measure, RunResult};
pub use run::{Run, RunOptions};
pub use series::Series;
pub use stamp::Stamp;

use serde::Serialize;

/// The publication a method comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Paper {
    /// Short name in commands and folders: lower-case letters, digits and hyphens.
    pub slug: &'static str,
    /// Title as published.
    pub title: &'static str,
    /// Year of publication.
    pub year: u16,
    /// What the method shares, in a few words.
    pub shares: &'static str,
    /// Where to read it.
    pub link: &'static str,
}

/// A named setting of an experiment, kept as TOML beside the code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Recipe {
    /// Its name: `smoke`, `full`.
    pub name: &'static str,
    /// What it runs and how long that takes.
    pub about: &'static str,
    /// The settings that differ from the defaults, as TOML.
    pub toml: &'static str,
}

impl Recipe {
    /// The recipe run at every change: under a minute.
    pub const fn smoke(toml: &'static str) -> Self {
        Self {
            name: "smoke",
            about: "a small run that shows that everything works (under a minute)",
            toml,
        }
    }

    /// The recipe whose result stands beside the code.
    pub const fn full(toml: &'static str) -> Self {
        Self {
            name: "full",
            about: "the run behind the published result (2 to 40 minutes on two cores)",
            toml,
        }
    }
}

#[cfg(test)]
mod tests;
