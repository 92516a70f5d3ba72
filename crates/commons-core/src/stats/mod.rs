//! Statistics for evidence: means with intervals, paired tests, rank correlations.
//!
//! Everything that draws random numbers takes a [`Seed`](crate::Seed). Inputs with NaN or too few
//! values are errors: a silent NaN in a table of results is worse than no table.

mod interval;
mod paired;
mod rank;
pub mod special;

pub use interval::{Interval, Summary, bootstrap_bca, bootstrap_percentile, t_interval};
pub use paired::{Alternative, Test, paired_t, permutation_paired, wilcoxon_signed_rank};
pub use rank::{Correlation, kendall_tau_b, pearson, ranks, spearman};

use crate::error::{Error, Result};

/// Arithmetic mean; NaN of an empty slice.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Unbiased variance (divisor n − 1); NaN below two values.
pub fn variance(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return f64::NAN;
    }
    let centre = mean(values);
    let squares: f64 = values.iter().map(|v| (v - centre).powi(2)).sum();
    squares / (values.len() - 1) as f64
}

/// Standard deviation, the root of [`variance`].
pub fn standard_deviation(values: &[f64]) -> f64 {
    variance(values).sqrt()
}

/// The `p` quantile (0 ≤ p ≤ 1) with linear interpolation between order statistics (type 7 of
/// Hyndman & Fan 1996, the default of NumPy and R); NaN of an empty slice.
pub fn quantile(values: &[f64], p: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    quantile_sorted(&sorted, p)
}

/// The middle value; NaN of an empty slice.
pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

fn quantile_sorted(sorted: &[f64], p: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else {
        return f64::NAN;
    };
    let position = p.clamp(0.0, 1.0) * last as f64;
    let below = position.floor() as usize;
    let fraction = position - below as f64;
    let (a, b) = (sorted[below], sorted[(below + 1).min(last)]);
    if fraction == 0.0 { a } else { a + (b - a) * fraction }
}

/// Checks a sample: at least `least` values, all of them finite.
fn check(name: &'static str, values: &[f64], least: usize) -> Result<()> {
    if values.len() < least {
        let problem = format!("has {} values", values.len());
        return Err(Error::argument(name, problem, format!("give at least {least}")));
    }
    match values.iter().position(|v| !v.is_finite()) {
        Some(i) => Err(Error::argument(
            name,
            format!("value {i} is {}", values[i]),
            "give finite numbers only",
        )),
        None => Ok(()),
    }
}

/// Checks two samples that belong together value by value.
fn check_pair(x: &[f64], y: &[f64], least: usize) -> Result<()> {
    check("x", x, least)?;
    check("y", y, least)?;
    if x.len() == y.len() {
        return Ok(());
    }
    let problem = format!("has {} values where x has {}", y.len(), x.len());
    Err(Error::argument("y", problem, "give one value of each per pair"))
}

fn check_level(level: f64) -> Result<()> {
    if level > 0.0 && level < 1.0 {
        return Ok(());
    }
    let problem = format!("is {level}");
    Err(Error::argument("level", problem, "give a number between 0 and 1, such as 0.95"))
}

#[cfg(test)]
mod tests;
