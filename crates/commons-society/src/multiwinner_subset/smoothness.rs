//! Smoothness `(α, β, γ)` of a score function under a latent model and a bias: whether few biased
//! rankings can tell which items of a group are good.

use commons_core::{Seed, stats};
use serde::Serialize;

use super::{Bias, Latent, Rankings, Score, numbered};
use crate::{Error, Result};

/// Points of the curve `γ(β)`.
const POINTS: usize = 100;

/// What smoothness is estimated for.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// Unbiased rankings.
    pub latent: Latent,
    /// Their distortion; the first half of the items (rounded down) is the advantaged group.
    pub bias: Bias,
    /// Items.
    pub m: usize,
    /// Rankings of a sample.
    pub n: usize,
    /// Samples.
    pub iterations: usize,
}

/// Estimates.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Smoothness {
    /// `α̂ = min_c min(s_c, ŝ_c) / τ1`: what even the least visible item keeps.
    pub alpha: f64,
    /// Standard error of that, `std / √iterations`.
    pub alpha_error: f64,
    /// `(β, γ̂(β))`: the greatest `ŝ_j / ŝ_i` of two items of a group with `s_j ≤ β s_i`; below 1,
    /// what is clearly worse stays worse.
    pub gamma: Vec<(f64, f64)>,
    /// `s_c = E f_v({c})` without bias, by item.
    pub latent: Vec<f64>,
    /// `ŝ_c` with bias.
    pub biased: Vec<f64>,
    /// `τ1`, the largest value of a single item.
    pub largest: f64,
}

/// Which items are disadvantaged when the first half is not.
pub fn second_half(m: usize) -> Vec<bool> {
    (0..m).map(|c| c >= m / 2).collect()
}

/// Estimates the smoothness of `score`, for single items.
///
/// # Errors
/// When a number is 0 or a parameter is out of range.
pub fn estimate(score: &Score, model: &Model, seed: Seed) -> Result<Smoothness> {
    let Model { latent, bias, m, n, iterations } = *model;
    if m < 2 || n == 0 || iterations < 2 {
        return Err(Error::config(
            "smoothness",
            format!("{m} items, {n} rankings, {iterations} iterations: give 2, 1 and 2 at least"),
        ));
    }
    let group = second_half(m);
    // [iterations][m]
    let (mut plain, mut seen) = (Vec::new(), Vec::new());
    for i in 0..iterations {
        let sample = seed.fork("sample", i as u64);
        let utilities = latent.utilities_of(m, n, seed.fork("model", 0), sample)?;
        let biased = utilities
            .iter()
            .enumerate()
            .map(|(v, u)| bias.apply(u, &group, sample.fork("bias", v as u64)));
        let biased = biased.collect::<Result<Vec<_>>>()?;
        let orders: Vec<_> = utilities.iter().map(|u| super::latent::by_utility(u)).collect();
        plain.push(means(score, &orders, m)?);
        seen.push(means(score, &biased, m)?);
    }
    let column = |of: &[Vec<f64>], c: usize| of.iter().map(|row| row[c]).collect::<Vec<f64>>();
    let expected =
        |of: &[Vec<f64>]| (0..m).map(|c| stats::mean(&column(of, c))).collect::<Vec<f64>>();
    let (s, s_hat) = (expected(&plain), expected(&seen));
    let largest = score.largest(m);
    let least = |of: &[f64]| (0..m).min_by(|&a, &b| of[a].total_cmp(&of[b])).unwrap_or(0);
    let (a, b) = (least(&s), least(&s_hat));
    let worst = if s[a] < s_hat[b] { column(&plain, a) } else { column(&seen, b) };
    let error = stats::standard_deviation(&worst) / (iterations as f64).sqrt();
    Ok(Smoothness {
        alpha: stats::mean(&worst) / largest,
        alpha_error: error / largest,
        gamma: curve(&s, &s_hat, &group),
        latent: s,
        biased: s_hat,
        largest,
    })
}

/// Mean value of each item by itself.
fn means(score: &Score, orders: &[Vec<usize>], m: usize) -> Result<Vec<f64>> {
    let rankings = Rankings::from_orders(numbered(m), orders)?;
    let k = (m / 5).max(1);
    let n = rankings.voters();
    Ok(score.singles(&rankings, k)?.into_iter().map(|t| t / n).collect())
}

fn curve(s: &[f64], s_hat: &[f64], group: &[bool]) -> Vec<(f64, f64)> {
    let (low, high) = s.iter().fold((f64::MAX, 0_f64), |(l, h), &v| (l.min(v), h.max(v)));
    if high <= 0. {
        return Vec::new();
    }
    let from = low / high;
    let at = |p: usize| from + (1. - from) * p as f64 / (POINTS - 1) as f64;
    let gamma = |beta: f64| {
        let mut worst = 0_f64;
        for i in 0..s.len() {
            for j in 0..s.len() {
                if i != j && group[i] == group[j] && s[j] <= beta * s[i] {
                    // Neither is ever seen: they cannot be told apart.
                    let blind = s_hat[i] == 0. && s_hat[j] == 0.;
                    worst = worst.max(if blind { 1. } else { s_hat[j] / s_hat[i] });
                }
            }
        }
        worst
    };
    (0..POINTS).map(|p| (at(p), gamma(at(p)))).collect()
}
