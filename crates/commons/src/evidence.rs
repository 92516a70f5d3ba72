//! Methods and what is known about their claims.

use std::path::{Path, PathBuf};

use commons_core::evidence::{Method, RunResult, Verdict};
use serde::Serialize;

use crate::config::nearest;
use crate::error::{Failure, Result};

/// Folder of runs, below the current one.
pub const RUNS: &str = "runs";

/// `result.json` of every method that has one beside its code.
const PUBLISHED: &[&str] = include!(concat!(env!("OUT_DIR"), "/results.rs"));

/// Every method, crate by crate.
pub fn methods() -> impl Iterator<Item = &'static dyn Method> {
    commons_weights::METHODS.iter().chain(commons_society::METHODS).copied()
}

/// The method called `slug`.
///
/// # Errors
/// Naming methods of a like name.
pub fn find(slug: &str) -> Result<&'static dyn Method> {
    methods().find(|m| m.paper().slug == slug).ok_or_else(|| {
        let known: Vec<String> = methods().map(|m| m.paper().slug.to_owned()).collect();
        let near = nearest(slug, &known);
        let help = if near.is_empty() {
            format!("methods: {}", known.join(", "))
        } else {
            format!("did you mean {}?", near.join(" or "))
        };
        Failure::usage(slug, "is not a method").help(help)
    })
}

/// The published result of a method, if there is one.
pub fn published(slug: &str) -> Option<RunResult> {
    let results = PUBLISHED.iter().filter_map(|text| serde_json::from_str::<RunResult>(text).ok());
    results.into_iter().find(|r| r.slug == slug)
}

/// The folder of the newest finished run of a method below `root`, with its result.
pub fn newest_run(root: &Path, slug: &str) -> Option<(PathBuf, RunResult)> {
    let mut folders: Vec<PathBuf> =
        std::fs::read_dir(root.join(slug)).ok()?.filter_map(|e| Some(e.ok()?.path())).collect();
    folders.sort();
    folders.into_iter().rev().find_map(|folder| {
        let result = RunResult::load(folder.join("result.json")).ok()?;
        Some((folder, result))
    })
}

/// How many claims hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Verdicts {
    /// Claims that hold.
    pub holds: usize,
    /// Claims that fail.
    pub fails: usize,
    /// Claims that cannot be compared.
    pub not_comparable: usize,
}

impl Verdicts {
    /// Those of a result.
    pub fn of(result: &RunResult) -> Self {
        let mut verdicts = Self::default();
        for claim in &result.claims {
            *match claim.verdict {
                Verdict::Holds => &mut verdicts.holds,
                Verdict::Fails => &mut verdicts.fails,
                Verdict::NotComparable => &mut verdicts.not_comparable,
            } += 1;
        }
        verdicts
    }

    /// `2 hold, 1 fails`.
    pub fn text(self) -> String {
        let part = |n: usize, one: &str, many: &str| {
            (n > 0).then(|| format!("{n} {}", if n == 1 { one } else { many }))
        };
        let parts = [
            part(self.holds, "holds", "hold"),
            part(self.fails, "fails", "fail"),
            part(self.not_comparable, "not comparable", "not comparable"),
        ];
        parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_results_are_of_known_methods_and_readable() {
        for text in PUBLISHED {
            let result: RunResult = serde_json::from_str(text).unwrap();
            assert!(find(&result.slug).is_ok(), "{}", result.slug);
        }
    }

    #[test]
    fn verdicts_read_as_a_sentence() {
        let verdicts = Verdicts { holds: 2, fails: 1, not_comparable: 0 };
        assert_eq!(verdicts.text(), "2 hold, 1 fails");
    }
}
