//! Correlations.

use super::{check, check_pair, mean, special};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// A correlation coefficient and the two-sided p-value of "no association".
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Correlation {
    /// Between −1 and 1.
    pub coefficient: f64,
    /// From Student's t (Pearson, Spearman) or the normal approximation (Kendall).
    pub p_value: f64,
}

/// Ranks from 1, ties sharing their average.
///
/// # Errors
/// [`Error::Argument`] for values that are not finite.
pub fn ranks(values: &[f64]) -> Result<Vec<f64>> {
    check("values", values, 0)?;
    Ok(average_ranks(values))
}

/// Pearson's product-moment correlation.
///
/// # Errors
/// [`Error::Argument`] below three pairs, for unequal lengths, values that are not finite, or a
/// constant sample, where it is not defined.
pub fn pearson(x: &[f64], y: &[f64]) -> Result<Correlation> {
    check_pair(x, y, 3)?;
    check_varies(x, y)?;
    let (mx, my) = (mean(x), mean(y));
    let (mut xx, mut yy, mut xy) = (0.0, 0.0, 0.0);
    for (a, b) in x.iter().zip(y) {
        xx += (a - mx).powi(2);
        yy += (b - my).powi(2);
        xy += (a - mx) * (b - my);
    }
    let coefficient = (xy / (xx.sqrt() * yy.sqrt())).clamp(-1.0, 1.0);
    let df = x.len() as f64 - 2.0;
    // t² = r²·df/(1 − r²); infinite, hence p = 0, for a perfect correlation.
    let t = coefficient.abs() * (df / (1.0 - coefficient * coefficient)).sqrt();
    let p_value = if t.is_finite() { 2.0 * special::t_survival(t, df) } else { 0.0 };
    Ok(Correlation { coefficient, p_value })
}

/// Spearman's rank correlation: Pearson's of the average ranks.
///
/// # Errors
/// As [`pearson`].
pub fn spearman(x: &[f64], y: &[f64]) -> Result<Correlation> {
    check_pair(x, y, 3)?;
    pearson(&average_ranks(x), &average_ranks(y))
}

/// Kendall's τ-b, which allows for ties, in O(n log n) by counting the exchanges of a merge sort
/// (Knight 1966). The p-value is the normal approximation with the variance corrected for ties.
///
/// # Errors
/// As [`pearson`].
pub fn kendall_tau_b(x: &[f64], y: &[f64]) -> Result<Correlation> {
    check_pair(x, y, 3)?;
    check_varies(x, y)?;
    // Adding zero makes −0 into 0, which the total order below would set apart.
    let mut pairs: Vec<(f64, f64)> = x.iter().zip(y).map(|(a, b)| (a + 0.0, b + 0.0)).collect();
    pairs.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
    let both: f64 = pairs.chunk_by(|a, b| a == b).map(|group| choose2(group.len() as f64)).sum();
    let mut second: Vec<f64> = pairs.into_iter().map(|pair| pair.1).collect();
    let discordant = inversions(&mut second, &mut vec![0.0; y.len()]) as f64;

    let n = x.len() as f64;
    let total = choose2(n);
    let x_ties: f64 = tie_sizes(x).map(choose2).sum();
    let y_ties: f64 = tie_sizes(y).map(choose2).sum();
    let difference = total - x_ties - y_ties + both - 2.0 * discordant;
    let coefficient =
        (difference / (total - x_ties).sqrt() / (total - y_ties).sqrt()).clamp(-1.0, 1.0);

    let triple = |values: &[f64]| tie_sizes(values).map(|t| t * (t - 1.0) * (t - 2.0)).sum::<f64>();
    let weight =
        |values: &[f64]| tie_sizes(values).map(|t| t * (t - 1.0) * (2.0 * t + 5.0)).sum::<f64>();
    let m = n * (n - 1.0);
    let variance = (m * (2.0 * n + 5.0) - weight(x) - weight(y)) / 18.0
        + 2.0 * x_ties * y_ties / m
        + triple(x) * triple(y) / (9.0 * m * (n - 2.0));
    let z = difference / variance.sqrt();
    Ok(Correlation { coefficient, p_value: special::erfc(z.abs() / std::f64::consts::SQRT_2) })
}

pub(super) fn average_ranks(values: &[f64]) -> Vec<f64> {
    let order = order(values);
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    for group in order.chunk_by(|a, b| values[*a] == values[*b]) {
        let shared = start as f64 + (group.len() + 1) as f64 / 2.0;
        for index in group {
            ranks[*index] = shared;
        }
        start += group.len();
    }
    ranks
}

/// Sizes of the groups of equal values.
pub(super) fn tie_sizes(values: &[f64]) -> impl Iterator<Item = f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let sizes: Vec<f64> = sorted.chunk_by(|a, b| a == b).map(|group| group.len() as f64).collect();
    sizes.into_iter()
}

fn order(values: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    order
}

fn choose2(n: f64) -> f64 {
    n * (n - 1.0) / 2.0
}

/// Sorts `values` and returns how many pairs stood in strictly wrong order.
fn inversions(values: &mut [f64], scratch: &mut [f64]) -> u64 {
    let n = values.len();
    if n < 2 {
        return 0;
    }
    let middle = n / 2;
    let (left, right) = values.split_at_mut(middle);
    let mut count =
        inversions(left, &mut scratch[..middle]) + inversions(right, &mut scratch[middle..]);
    let (mut i, mut j) = (0, 0);
    for slot in scratch[..n].iter_mut() {
        let take_right = i == left.len() || (j < right.len() && right[j] < left[i]);
        if take_right {
            count += (left.len() - i) as u64;
            *slot = right[j];
            j += 1;
        } else {
            *slot = left[i];
            i += 1;
        }
    }
    values.copy_from_slice(&scratch[..n]);
    count
}

fn check_varies(x: &[f64], y: &[f64]) -> Result<()> {
    for (name, values) in [("x", x), ("y", y)] {
        if values.iter().all(|v| *v == values[0]) {
            let problem = format!("is {} throughout", values[0]);
            return Err(Error::argument(name, problem, "a correlation needs values that differ"));
        }
    }
    Ok(())
}
