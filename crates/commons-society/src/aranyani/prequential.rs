//! Prequential evaluation: every decision is scored before its label is learnt from.

use serde::{Deserialize, Serialize};

/// Counts of decisions so far.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prequential {
    classes: usize,
    /// Decisions `[group, label, prediction]`.
    counts: Vec<u64>,
}

/// The metrics so far; `null` until they are defined.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Scores {
    /// Decisions.
    pub count: u64,
    /// Share that was right.
    pub accuracy: Option<f64>,
    /// Demographic parity: largest difference of selection rates.
    pub dp: Option<f64>,
    /// Equalised odds: the larger of the differences of true and false positive rates.
    pub eo: Option<f64>,
    /// Equal opportunity: largest difference of true positive rates.
    pub eopp: Option<f64>,
}

impl Prequential {
    /// Nothing decided yet.
    pub fn new(groups: usize, classes: usize) -> Self {
        Self { classes, counts: vec![0; groups * classes * classes] }
    }

    /// Takes in a decision. The last class is the positive one.
    pub fn record(&mut self, group: usize, label: usize, prediction: usize) {
        let at = (group * self.classes + label) * self.classes + prediction;
        if let Some(count) = self.counts.get_mut(at) {
            *count += 1;
        }
    }

    /// Whether the counts can be of these many groups and classes.
    pub fn fits(&self, groups: usize, classes: usize) -> bool {
        self.classes == classes && self.counts.len() == groups * classes * classes
    }

    /// The metrics so far.
    pub fn scores(&self) -> Scores {
        let (k, positive) = (self.classes, self.classes - 1);
        let groups: Vec<&[u64]> = self.counts.chunks(k * k).collect();
        let count: u64 = self.counts.iter().sum();
        let right: u64 = groups.iter().flat_map(|g| (0..k).map(move |c| g[c * k + c])).sum();
        let rate = |wanted: &dyn Fn(usize) -> bool| -> Vec<Option<f64>> {
            let one = |g: &&[u64]| {
                let labels = || (0..k).filter(|&y| wanted(y));
                let whole: u64 = labels().map(|y| g[y * k..(y + 1) * k].iter().sum::<u64>()).sum();
                let part: u64 = labels().map(|y| g[y * k + positive]).sum();
                (whole > 0).then(|| part as f64 / whole as f64)
            };
            groups.iter().map(one).collect()
        };
        let eopp = gap(&rate(&|y| y == positive));
        let false_positive = gap(&rate(&|y| y != positive));
        Scores {
            count,
            accuracy: (count > 0).then(|| right as f64 / count as f64),
            dp: gap(&rate(&|_| true)),
            eo: eopp.zip(false_positive).map(|(a, b)| a.max(b)),
            eopp,
        }
    }
}

/// Largest difference; `None` until every group has a rate.
fn gap(rates: &[Option<f64>]) -> Option<f64> {
    let all: Vec<f64> = rates.iter().copied().collect::<Option<_>>()?;
    let high = all.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let low = all.iter().copied().fold(f64::INFINITY, f64::min);
    (all.len() > 1).then_some(high - low)
}

/// The class of highest probability, the first of equals.
pub fn decide(probabilities: &[f64]) -> usize {
    let mut best = 0;
    for (i, p) in probabilities.iter().enumerate() {
        if *p > probabilities[best] {
            best = i;
        }
    }
    best
}
