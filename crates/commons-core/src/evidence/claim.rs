//! Claims and how they are judged.

use crate::{format, number, stats::Interval};
use serde::{Deserialize, Serialize};
use std::{borrow::Cow, fmt};

/// One statement of a paper that a run can confirm or refute.
///
/// ```
/// use commons_core::evidence::{Bound, Claim, Compare, Figure};
///
/// const CLAIMS: &[Claim] = &[
///     Claim::new(
///         "size",
///         "stores at most two thirds of the parameters",
///         Figure::Number(0.667),
///         "stored_share",
///         Bound::AtMost(0.667),
///     ),
///     Claim::new(
///         "quality",
///         "perplexity stays within 10 % of the full model",
///         Figure::text("6 % worse at 110 M parameters"),
///         "perplexity",
///         Bound::AtMost(1.1),
///     )
///     .against("perplexity_full", Compare::Ratio),
/// ];
/// assert_eq!(CLAIMS[1].requirement(), "≤ 1.1 × baseline");
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Claim {
    /// Short name, unique within the method.
    pub id: &'static str,
    /// The statement as a sentence.
    pub sentence: &'static str,
    /// What the paper reports.
    pub paper: Figure,
    /// Key of the measure that decides.
    pub metric: &'static str,
    /// Key of the measure it is compared with, taken in the same run.
    pub baseline: Option<&'static str>,
    /// What of the two is held against the bound.
    pub compare: Compare,
    /// What it takes for the claim to hold.
    pub bound: Bound,
}

impl Claim {
    /// A claim about the value of a metric itself; `paper` is the paper's own figure.
    pub const fn new(
        id: &'static str,
        sentence: &'static str,
        paper: Figure,
        metric: &'static str,
        bound: Bound,
    ) -> Self {
        Self { id, sentence, paper, metric, baseline: None, compare: Compare::Value, bound }
    }

    /// Compares with a baseline measured in the same run.
    #[must_use]
    pub const fn against(mut self, baseline: &'static str, compare: Compare) -> Self {
        self.baseline = Some(baseline);
        self.compare = compare;
        self
    }

    /// The bound in words and signs: `≥ 0.9`, `≤ 1.1 × baseline`.
    pub fn requirement(&self) -> String {
        self.bound.requirement(self.compare)
    }
}

/// A figure of a paper: a number, or words where a number alone would mislead.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Figure {
    /// A number in the unit of the metric.
    Number(#[serde(with = "number")] f64),
    /// Words: `13.9 (7B, 8×A100)`.
    Text(Cow<'static, str>),
}

impl Figure {
    /// A figure in words.
    pub const fn text(text: &'static str) -> Self {
        Self::Text(Cow::Borrowed(text))
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(value) => f.write_str(&format::number(*value)),
            Self::Text(text) => f.write_str(text),
        }
    }
}

/// What is held against the bound, seed by seed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compare {
    /// The metric itself.
    #[default]
    Value,
    /// The metric divided by the baseline.
    Ratio,
    /// The metric minus the baseline.
    Difference,
}

impl Compare {
    /// The number held against the bound.
    pub fn apply(self, measured: f64, baseline: f64) -> f64 {
        match self {
            Self::Value => measured,
            Self::Ratio => measured / baseline,
            Self::Difference => measured - baseline,
        }
    }
}

/// What it takes for a claim to hold. Ends belong to it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bound {
    /// This or more.
    AtLeast(f64),
    /// This or less.
    AtMost(f64),
    /// Between the two.
    Within {
        /// Lower end.
        low: f64,
        /// Upper end.
        high: f64,
    },
}

impl Bound {
    /// Whether a value satisfies the bound; NaN never does.
    pub fn admits(self, value: f64) -> bool {
        match self {
            Self::AtLeast(low) => value >= low,
            Self::AtMost(high) => value <= high,
            Self::Within { low, high } => low <= value && value <= high,
        }
    }

    /// Whether the whole interval lies on one side of the bound, so that the repeats settle it.
    pub fn settles(self, interval: Interval) -> bool {
        match self {
            Self::AtLeast(limit) => interval.low >= limit || interval.high < limit,
            Self::AtMost(limit) => interval.high <= limit || interval.low > limit,
            Self::Within { low, high } => {
                let inside = low <= interval.low && interval.high <= high;
                inside || interval.high < low || interval.low > high
            }
        }
    }

    pub(crate) fn requirement(self, compare: Compare) -> String {
        let show = |limit: f64| match compare {
            Compare::Value => format::number(limit),
            Compare::Ratio => format!("{} × baseline", format::number(limit)),
            Compare::Difference if limit == 0.0 => "baseline".to_owned(),
            Compare::Difference if limit < 0.0 => format!("baseline − {}", format::number(-limit)),
            Compare::Difference => format!("baseline + {}", format::number(limit)),
        };
        match self {
            Self::AtLeast(low) => format!("≥ {}", show(low)),
            Self::AtMost(high) => format!("≤ {}", show(high)),
            Self::Within { low, high } => format!("{} to {}", show(low), show(high)),
        }
    }
}

/// What a run says about a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The mean over the repeats satisfies the bound.
    Holds,
    /// It does not.
    Fails,
    /// The run differs too much from the paper's setting for the number to mean anything.
    NotComparable,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Holds => "holds",
            Self::Fails => "fails",
            Self::NotComparable => "not comparable",
        })
    }
}
