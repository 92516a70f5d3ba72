//! Tests of paired samples: the same seeds, tasks or items under two methods.

use super::{check_pair, mean, rank, special, standard_deviation};
use crate::{
    error::{Error, Result},
    seed::Seed,
};
use serde::{Deserialize, Serialize};

/// What the test looks for in the differences x − y.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Alternative {
    /// x and y differ.
    #[default]
    TwoSided,
    /// x is greater.
    Greater,
    /// x is less.
    Less,
}

/// The outcome of a test.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Test {
    /// The test statistic.
    pub statistic: f64,
    /// Probability of one at least as extreme if x and y do not differ.
    pub p_value: f64,
}

/// Pairs up to which every sign pattern is tried rather than a sample of them.
const EXACT_PERMUTATION: usize = 20;
/// Pairs up to which the distribution of the Wilcoxon statistic is counted out.
const EXACT_WILCOXON: usize = 50;

/// Student's t-test of paired samples; the statistic is t.
///
/// # Errors
/// [`Error::Argument`] below two pairs, for unequal lengths or values that are not finite, and if
/// all differences are equal, where t is not defined.
pub fn paired_t(x: &[f64], y: &[f64], alternative: Alternative) -> Result<Test> {
    let differences = differences(x, y, 2)?;
    let n = differences.len() as f64;
    let spread = standard_deviation(&differences);
    if spread == 0.0 {
        return Err(Error::argument(
            "x and y",
            "differ by the same amount in every pair",
            "compare them without a test",
        ));
    }
    let t = mean(&differences) / (spread / n.sqrt());
    let above = special::t_survival(t, n - 1.0);
    let below = special::t_survival(-t, n - 1.0);
    Ok(Test { statistic: t, p_value: p_value(alternative, above, below) })
}

/// Wilcoxon's signed-rank test. Pairs without a difference are dropped. The statistic is the
/// smaller of the two rank sums, or the positive one for a one-sided test. The p-value is exact up
/// to 50 pairs without ties; else a normal approximation with the variance corrected for ties.
///
/// # Errors
/// [`Error::Argument`] for unequal lengths, values that are not finite, or no pair that differs.
pub fn wilcoxon_signed_rank(x: &[f64], y: &[f64], alternative: Alternative) -> Result<Test> {
    let mut differences = differences(x, y, 1)?;
    let all = differences.len();
    differences.retain(|d| *d != 0.0);
    if differences.is_empty() {
        return Err(Error::argument(
            "x and y",
            "are equal in every pair",
            "compare them without a test",
        ));
    }
    let sizes: Vec<f64> = differences.iter().map(|d| d.abs()).collect();
    let ranks = rank::average_ranks(&sizes);
    let positive: f64 =
        ranks.iter().zip(&differences).filter(|(_, d)| **d > 0.0).map(|(r, _)| r).sum();
    let n = differences.len() as f64;
    let total = n * (n + 1.0) / 2.0;
    let negative = total - positive;
    let ties: f64 = rank::tie_sizes(&sizes).map(|t| t * t * t - t).sum();
    let (above, below) = if ties == 0.0 && differences.len() == all && all <= EXACT_WILCOXON {
        let counts = signed_rank_counts(all);
        let upto =
            |sum: f64| counts[..=sum as usize].iter().sum::<f64>() / counts.iter().sum::<f64>();
        // By symmetry, P(W ≥ w) = P(W ≤ total − w).
        (upto(negative), upto(positive))
    } else {
        let variance = (n * (n + 1.0) * (2.0 * n + 1.0) - 0.5 * ties) / 24.0;
        let z = (positive - total / 2.0) / variance.sqrt();
        (special::normal_cdf(-z), special::normal_cdf(z))
    };
    let statistic = match alternative {
        Alternative::TwoSided => positive.min(negative),
        Alternative::Greater | Alternative::Less => positive,
    };
    Ok(Test { statistic, p_value: p_value(alternative, above, below) })
}

/// Paired permutation test of the mean difference, which flips the sign of each difference: exactly,
/// over all patterns, up to 20 pairs, else over `resamples` random ones. Assumes nothing about the
/// distribution. The statistic is the mean difference.
///
/// # Errors
/// [`Error::Argument`] without pairs, for unequal lengths or values that are not finite.
pub fn permutation_paired(
    x: &[f64],
    y: &[f64],
    alternative: Alternative,
    resamples: usize,
    seed: Seed,
) -> Result<Test> {
    let differences = differences(x, y, 1)?;
    let observed: f64 = differences.iter().sum();
    // Sums of the same numbers in another order differ by rounding; that is not "more extreme".
    let scale: f64 = differences.iter().map(|d| d.abs()).sum();
    let slack = 1e-12 * scale;
    let (mut above, mut below) = (0_u64, 0_u64);
    let mut count = |sum: f64| {
        above += u64::from(sum >= observed - slack);
        below += u64::from(sum <= observed + slack);
    };
    let (extra, tried) = if differences.len() <= EXACT_PERMUTATION {
        let patterns = 1_u64 << differences.len();
        for pattern in 0..patterns {
            count(flipped_sum(&differences, |i| pattern >> i & 1 == 1));
        }
        (0, patterns)
    } else {
        let mut rng = seed.rng();
        for _ in 0..resamples {
            let mut bits = 0;
            count(flipped_sum(&differences, |i| {
                if i % 32 == 0 {
                    bits = rng.next_u32();
                }
                bits >> (i % 32) & 1 == 1
            }));
        }
        // The observed pattern is one of the patterns (Phipson & Smyth 2010).
        (1, resamples as u64 + 1)
    };
    let share = |hits: u64| (hits + extra) as f64 / tried as f64;
    Ok(Test {
        statistic: observed / differences.len() as f64,
        p_value: p_value(alternative, share(above), share(below)),
    })
}

fn flipped_sum(differences: &[f64], mut flip: impl FnMut(usize) -> bool) -> f64 {
    let signed = differences.iter().enumerate().map(|(i, d)| if flip(i) { -d } else { *d });
    signed.sum()
}

fn differences(x: &[f64], y: &[f64], least: usize) -> Result<Vec<f64>> {
    check_pair(x, y, least)?;
    Ok(x.iter().zip(y).map(|(a, b)| a - b).collect())
}

fn p_value(alternative: Alternative, above: f64, below: f64) -> f64 {
    match alternative {
        Alternative::TwoSided => (2.0 * above.min(below)).min(1.0),
        Alternative::Greater => above,
        Alternative::Less => below,
    }
}

/// How many of the 2ⁿ sign patterns give each sum of positive ranks.
fn signed_rank_counts(n: usize) -> Vec<f64> {
    let mut counts = vec![0.0; n * (n + 1) / 2 + 1];
    counts[0] = 1.0;
    for rank in 1..=n {
        for sum in (rank..counts.len()).rev() {
            counts[sum] += counts[sum - rank];
        }
    }
    counts
}
