//! More than one number: independent coordinates, and shares that add up to one.

use super::{Mechanism, Profile};
use crate::{Error, Result};

/// Halvings of the phantoms' speed.
const HALVINGS: usize = 200;

/// Largest difference from 1 of an agent's shares.
const SUM_TOLERANCE: f64 = 1e-6;

/// One mechanism on each coordinate by itself: strategyproof and fair in each if it is in one.
///
/// # Errors
/// As [`Mechanism::outcome`].
pub fn coordinatewise(mechanism: &Mechanism, profiles: &[Profile<f64>]) -> Result<Vec<f64>> {
    profiles.iter().map(|p| mechanism.outcome(p)).collect()
}

/// The independent-markets mechanism (Freeman, Pennock, Peters, Vaughan 2021) for budgets over `m`
/// alternatives: in each, the median of the wishes and of phantoms `min(1, τ·s)` at every share `s`
/// of the electorate; `τ` is where the medians add up to 1. With two alternatives it is the Uniform
/// Phantom.
///
/// `wishes` holds one vector of `m` shares for each agent, `weights` one weight each.
///
/// # Errors
/// Naming the agent whose shares are not in [0, 1], do not add up to 1, or are not `m`.
pub fn independent_markets(wishes: &[Vec<f64>], weights: &[f64]) -> Result<Vec<f64>> {
    let m = wishes.first().map_or(0, Vec::len);
    if m == 0 {
        return Err(Error::config("alternatives", "there are none; give two or more"));
    }
    for (i, wish) in wishes.iter().enumerate() {
        let sum: f64 = wish.iter().sum();
        if wish.len() != m || !((sum - 1.).abs() <= SUM_TOLERANCE) {
            return Err(Error::config(
                format!("agent {}", i + 1),
                format!("shares {wish:?} do not add up to 1; divide them by their sum"),
            ));
        }
    }
    let shares = (0..m)
        .map(|j| {
            let x = wishes.iter().map(|wish| wish[j]).collect();
            Ok(Profile::weighted(x, weights.to_vec())?.upper_shares())
        })
        .collect::<Result<Vec<_>>>()?;
    let at = |tau: f64| -> Vec<f64> {
        let median = |s: &Vec<(f64, f64)>| {
            s.iter().map(|&(x, s)| x.min((tau * s).min(1.))).fold(0., f64::max)
        };
        shares.iter().map(median).collect()
    };
    // At τ = W / min w every positive share reaches 1 and each median is the highest wish, so the
    // sum is at least 1; it grows continuously with τ.
    let (total, least) =
        (weights.iter().sum::<f64>(), weights.iter().copied().fold(f64::MAX, f64::min));
    let (mut low, mut high) = (0., total / least);
    for _ in 0..HALVINGS {
        let middle = 0.5 * (low + high);
        if at(middle).iter().sum::<f64>() < 1. { low = middle } else { high = middle }
    }
    Ok(at(high))
}
