//! Group metrics in the words of fairlearn: rates of every group, and differences and ratios
//! between the extreme groups.

use serde::Serialize;

use super::counts::Counts;

/// Outcomes of a group for one class taken as positive.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Confusion {
    /// Positive, predicted positive.
    pub tp: u64,
    /// Negative, predicted positive.
    pub fp: u64,
    /// Negative, predicted negative.
    pub tn: u64,
    /// Positive, predicted negative.
    pub fneg: u64,
    /// Label and prediction are the same class.
    pub correct: u64,
}

/// Names of the rates of [`Confusion::rates`], as fairlearn calls them.
pub const RATES: [&str; 8] = [
    "selection_rate",
    "accuracy",
    "true_positive_rate",
    "false_positive_rate",
    "true_negative_rate",
    "false_negative_rate",
    "precision",
    "base_rate",
];

/// Names of the numbers of [`disparities`], as fairlearn calls them.
pub const DISPARITIES: [&str; 8] = [
    "demographic_parity_difference",
    "demographic_parity_ratio",
    "equalized_odds_difference",
    "equalized_odds_ratio",
    "equal_opportunity_difference",
    "equal_opportunity_ratio",
    "accuracy_difference",
    "accuracy_ratio",
];

impl Confusion {
    /// Number of samples.
    pub fn count(&self) -> u64 {
        self.tp + self.fp + self.tn + self.fneg
    }

    /// The rates in the order of [`RATES`]; NaN where the denominator is 0.
    pub fn rates(&self) -> [f64; 8] {
        let rate = |part: u64, whole: u64| part as f64 / whole as f64;
        let (positive, negative) = (self.tp + self.fneg, self.fp + self.tn);
        let all = positive + negative;
        [
            rate(self.tp + self.fp, all),
            rate(self.correct, all),
            rate(self.tp, positive),
            rate(self.fp, negative),
            rate(self.tn, negative),
            rate(self.fneg, positive),
            rate(self.tp, self.tp + self.fp),
            rate(positive, all),
        ]
    }

    fn add(&mut self, is: bool, said: bool, same: bool, n: u64) {
        *match (is, said) {
            (true, true) => &mut self.tp,
            (false, true) => &mut self.fp,
            (false, false) => &mut self.tn,
            (true, false) => &mut self.fneg,
        } += n;
        self.correct += if same { n } else { 0 };
    }
}

/// The outcomes of every group, of all clients or of one.
pub fn by_group(counts: &Counts, positive: usize, client: Option<usize>) -> Vec<Confusion> {
    let mut groups = vec![Confusion::default(); counts.groups.len()];
    for ([g, c, y, p], &n) in counts.cells().zip(&counts.counts) {
        if client.is_none_or(|only| only == c) {
            groups[g].add(y == positive, p == positive, y == p, n);
        }
    }
    groups
}

/// The outcomes of all groups together.
pub fn overall(groups: &[Confusion]) -> Confusion {
    groups.iter().fold(Confusion::default(), |sum, g| Confusion {
        tp: sum.tp + g.tp,
        fp: sum.fp + g.fp,
        tn: sum.tn + g.tn,
        fneg: sum.fneg + g.fneg,
        correct: sum.correct + g.correct,
    })
}

/// Largest minus smallest, and smallest over largest, of the values that are defined; NaN with
/// fewer than two of them.
fn extremes(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let defined: Vec<f64> = values.filter(|v| !v.is_nan()).collect();
    if defined.len() < 2 {
        return (f64::NAN, f64::NAN);
    }
    let low = defined.iter().copied().fold(f64::INFINITY, f64::min);
    let high = defined.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    (high - low, low / high)
}

/// Differences and ratios between groups in the order of [`DISPARITIES`] (fairlearn's
/// `between_groups`; equalised odds by the worse of the two rates). NaN where not defined.
pub fn disparities(groups: &[Confusion]) -> [f64; 8] {
    let rates: Vec<[f64; 8]> = groups.iter().map(Confusion::rates).collect();
    let of = |k: usize| extremes(rates.iter().map(move |r| r[k]));
    let ((dp, dp_ratio), (accuracy, accuracy_ratio)) = (of(0), of(1));
    let ((tpr, tpr_ratio), (fpr, fpr_ratio)) = (of(2), of(3));
    [
        dp,
        dp_ratio,
        worse(tpr, fpr, f64::max),
        worse(tpr_ratio, fpr_ratio, f64::min),
        tpr,
        tpr_ratio,
        accuracy,
        accuracy_ratio,
    ]
}

/// NaN if either is: half of equalised odds is no statement about it.
fn worse(a: f64, b: f64, pick: fn(f64, f64) -> f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { pick(a, b) }
}

/// A number with its bootstrap interval. `null` where it is not defined (0 / 0).
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    /// The number itself.
    pub value: Option<f64>,
    /// Lower end of the interval.
    pub low: Option<f64>,
    /// Upper end of the interval.
    pub high: Option<f64>,
}

impl Estimate {
    /// From the value and its replicates; the interval is the percentile one. Replicates in which
    /// the number is not defined are left out.
    pub fn new(value: f64, replicates: &[f64], level: f64) -> Self {
        let defined: Vec<f64> = replicates.iter().copied().filter(|v| v.is_finite()).collect();
        let finite = |v: f64| v.is_finite().then_some(v);
        if defined.is_empty() || !value.is_finite() {
            return Self { value: finite(value), low: None, high: None };
        }
        let end = |p: f64| finite(commons_core::stats::quantile(&defined, p));
        Self { value: finite(value), low: end(0.5 - 0.5 * level), high: end(0.5 + 0.5 * level) }
    }
}
