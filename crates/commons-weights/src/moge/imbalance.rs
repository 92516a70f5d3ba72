//! How unevenly devices are loaded, and batches of routers that need no model.

use commons_core::Seed;
use commons_ops::{Dispatch, Selection};

use crate::{Error, Result};

/// Assignments on every device: `T_i`, where device `i` of `devices` holds as many consecutive
/// experts as any other.
///
/// # Errors
/// When devices do not divide the experts.
pub fn device_loads(dispatch: &Dispatch, devices: usize) -> Result<Vec<usize>> {
    let experts = dispatch.selection().experts;
    if devices == 0 || !experts.is_multiple_of(devices) {
        let reason = format!("{devices} must divide the {experts} experts");
        return Err(Error::config("devices", reason));
    }
    let counts = dispatch.selected();
    Ok(counts.chunks_exact(experts / devices).map(|c| c.iter().sum()).collect())
}

/// The imbalance score `IS = (max_i T_i − min_i T_i) / |X|` of a batch of `|X|` tokens.
///
/// # Errors
/// As [`device_loads`].
pub fn imbalance(dispatch: &Dispatch, devices: usize) -> Result<f64> {
    let loads = device_loads(dispatch, devices)?;
    let most = loads.iter().max().copied().unwrap_or(0);
    let least = loads.iter().min().copied().unwrap_or(0);
    Ok((most - least) as f64 / dispatch.counted().max(1) as f64)
}

/// Load of the busiest device over the mean: how much longer a step takes than it must.
///
/// # Errors
/// As [`device_loads`].
pub fn busiest(dispatch: &Dispatch, devices: usize) -> Result<f64> {
    let loads = device_loads(dispatch, devices)?;
    let mean = loads.iter().sum::<usize>() as f64 / loads.len() as f64;
    Ok(loads.iter().max().copied().unwrap_or(0) as f64 / mean.max(f64::MIN_POSITIVE))
}

/// Router scores `[tokens, experts]` without a model: independent Gumbel numbers, so that every set
/// of experts is as likely, plus `−skew · ln(1 + e)` for expert `e` (Zipf's law; 0 is uniform).
pub fn scores(seed: Seed, tokens: usize, experts: usize, skew: f64) -> Vec<f32> {
    let mut rng = seed.rng();
    let mut scores = Vec::with_capacity(tokens * experts);
    for _ in 0..tokens {
        for e in 0..experts {
            let gumbel = -(-rng.uniform().max(f64::MIN_POSITIVE).ln()).ln();
            scores.push((gumbel - skew * (1. + e as f64).ln()) as f32);
        }
    }
    scores
}

/// Imbalance scores and busiest devices of many batches.
#[derive(Debug, Clone, Default)]
pub struct Simulated {
    /// Imbalance score of every batch.
    pub imbalance: Vec<f64>,
    /// Load of the busiest device over the mean, of every batch.
    pub busiest: Vec<f64>,
}

/// Routes `draws` batches of `tokens` tokens by `selection` and scores them on `devices`.
///
/// # Errors
/// When counts do not divide.
pub fn simulate(
    selection: Selection,
    devices: usize,
    tokens: usize,
    skew: f64,
    draws: u64,
    seed: Seed,
) -> Result<Simulated> {
    let mut all = Simulated::default();
    for draw in 0..draws {
        let scores = scores(seed.fork("draw", draw), tokens, selection.experts, skew);
        let dispatch = Dispatch::new(selection, &scores, None, None)?;
        all.imbalance.push(imbalance(&dispatch, devices)?);
        all.busiest.push(busiest(&dispatch, devices)?);
    }
    Ok(all)
}
