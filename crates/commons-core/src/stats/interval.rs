//! Confidence intervals.

use super::{check, check_level, mean, quantile_sorted, special, standard_deviation};
use crate::{
    error::{Error, Result},
    number,
    seed::Seed,
};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A confidence interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interval {
    /// Lower end.
    #[serde(with = "number")]
    pub low: f64,
    /// Upper end.
    #[serde(with = "number")]
    pub high: f64,
    /// Confidence, e.g. 0.95.
    pub level: f64,
}

impl Interval {
    /// Whether `value` lies inside, ends included.
    pub fn contains(&self, value: f64) -> bool {
        self.low <= value && value <= self.high
    }

    /// Half the width: the number after "±".
    pub fn half_width(&self) -> f64 {
        0.5 * (self.high - self.low)
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {}]", crate::format::number(self.low), crate::format::number(self.high))
    }
}

/// A sample in brief. Fields that need two values are absent with one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Number of values.
    pub n: usize,
    /// Their mean.
    #[serde(with = "number")]
    pub mean: f64,
    /// Their standard deviation (divisor n − 1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sd: Option<f64>,
    /// 95 % t interval of the mean.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Interval>,
}

impl Summary {
    /// Summarises one value per seed (or whatever was repeated). Non-finite values give a
    /// non-finite mean and no interval.
    ///
    /// # Errors
    /// [`Error::Argument`] for an empty sample.
    pub fn of(values: &[f64]) -> Result<Self> {
        if values.is_empty() {
            return Err(Error::argument("values", "is empty", "give at least one value"));
        }
        let interval = t_interval(values, 0.95).ok();
        Ok(Self {
            n: values.len(),
            mean: mean(values),
            sd: interval.map(|_| standard_deviation(values)),
            interval,
        })
    }
}

/// Student's t interval of the mean.
///
/// # Errors
/// [`Error::Argument`] below two values, for a value that is not finite, or a level outside (0, 1).
pub fn t_interval(values: &[f64], level: f64) -> Result<Interval> {
    check("values", values, 2)?;
    check_level(level)?;
    let n = values.len() as f64;
    let t = special::t_quantile(0.5 + 0.5 * level, n - 1.0);
    let half = t * standard_deviation(values) / n.sqrt();
    let centre = mean(values);
    Ok(Interval { low: centre - half, high: centre + half, level })
}

/// Percentile bootstrap interval of any statistic (Efron 1979).
///
/// # Errors
/// [`Error::Argument`] below two values, for a value that is not finite, no resamples, or a level
/// outside (0, 1).
pub fn bootstrap_percentile(
    values: &[f64],
    statistic: impl Fn(&[f64]) -> f64 + Sync,
    level: f64,
    resamples: usize,
    seed: Seed,
) -> Result<Interval> {
    let replicates = replicates(values, &statistic, level, resamples, seed)?;
    Ok(Interval {
        low: quantile_sorted(&replicates, 0.5 - 0.5 * level),
        high: quantile_sorted(&replicates, 0.5 + 0.5 * level),
        level,
    })
}

/// Bias-corrected and accelerated bootstrap interval (Efron 1987), with the acceleration from the
/// jackknife. Better than [`bootstrap_percentile`] for skewed statistics; it needs n more
/// evaluations of the statistic.
///
/// # Errors
/// As [`bootstrap_percentile`]; also if all resamples lie on one side of the estimate (a statistic
/// that hardly varies), where the correction is not defined.
pub fn bootstrap_bca(
    values: &[f64],
    statistic: impl Fn(&[f64]) -> f64 + Sync,
    level: f64,
    resamples: usize,
    seed: Seed,
) -> Result<Interval> {
    let replicates = replicates(values, &statistic, level, resamples, seed)?;
    bca(values, &statistic, level, &replicates)
}

/// The BCa interval from sorted bootstrap replicates.
pub(super) fn bca(
    values: &[f64],
    statistic: impl Fn(&[f64]) -> f64,
    level: f64,
    sorted: &[f64],
) -> Result<Interval> {
    let estimate = statistic(values);
    // Mid-rank of the estimate, so that ties (a discrete statistic) do not bias the correction.
    let below = sorted.partition_point(|r| *r < estimate);
    let ties = sorted.partition_point(|r| *r <= estimate) - below;
    let z0 = special::normal_quantile((below as f64 + 0.5 * ties as f64) / sorted.len() as f64);
    if !z0.is_finite() {
        return Err(Error::argument(
            "statistic",
            "hardly varies between resamples: all lie on one side of the estimate",
            "use the percentile interval",
        ));
    }
    let mut rest = values[1..].to_vec();
    let mut jackknife = vec![statistic(&rest)];
    for i in 0..rest.len() {
        rest[i] = values[i];
        jackknife.push(statistic(&rest));
    }
    let centre = mean(&jackknife);
    let cubes: f64 = jackknife.iter().map(|v| (centre - v).powi(3)).sum();
    let squares: f64 = jackknife.iter().map(|v| (centre - v).powi(2)).sum();
    let a = if squares > 0.0 { cubes / (6.0 * squares.powf(1.5)) } else { 0.0 };
    let adjusted = |p: f64| {
        let z = z0 + special::normal_quantile(p);
        special::normal_cdf(z0 + z / (1.0 - a * z))
    };
    Ok(Interval {
        low: quantile_sorted(sorted, adjusted(0.5 - 0.5 * level)),
        high: quantile_sorted(sorted, adjusted(0.5 + 0.5 * level)),
        level,
    })
}

/// The statistic of `resamples` samples with replacement, sorted. Each resample has its own stream,
/// so that the order in which threads make them does not matter.
fn replicates(
    values: &[f64],
    statistic: &(impl Fn(&[f64]) -> f64 + Sync),
    level: f64,
    resamples: usize,
    seed: Seed,
) -> Result<Vec<f64>> {
    check("values", values, 2)?;
    check_level(level)?;
    if resamples == 0 {
        return Err(Error::argument("resamples", "is 0", "give some thousands"));
    }
    let mut all: Vec<f64> = (0..resamples as u64)
        .into_par_iter()
        .map_init(
            || vec![0.0; values.len()],
            |sample, i| {
                let mut rng = seed.fork("bootstrap", i).rng();
                sample.fill_with(|| values[rng.below(values.len() as u64) as usize]);
                statistic(sample)
            },
        )
        .collect();
    check("statistic", &all, 1)?;
    all.sort_by(f64::total_cmp);
    Ok(all)
}
