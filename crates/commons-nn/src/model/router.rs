//! Routers of a mixture of recursions: which tokens go on, and the losses that teach it.

use commons_core::Seed;
use commons_ops::{self as ops, Device, Tensor};

use super::recursion::MixtureOfRecursions;
use crate::{Error, Result};

/// Tokens of a batch of rows of one length: for each row, positions in ascending order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chosen {
    pub seq: usize,
    pub rows: Vec<Vec<u32>>,
}

impl Chosen {
    pub fn all(batch: usize, seq: usize) -> Self {
        Self { seq, rows: vec![(0..seq as u32).collect(); batch] }
    }

    pub fn count(&self) -> usize {
        self.rows.iter().map(Vec::len).sum()
    }

    pub fn is_all(&self) -> bool {
        self.count() == self.seq * self.rows.len()
    }

    /// Most tokens of a row.
    pub fn width(&self) -> usize {
        self.rows.iter().map(Vec::len).max().unwrap_or(0)
    }

    pub fn is_even(&self) -> bool {
        self.count() == self.width() * self.rows.len()
    }

    /// Positions, row after row.
    pub fn positions(&self) -> Vec<u32> {
        self.rows.concat()
    }

    /// Places in the flattened batch, row after row.
    pub fn places(&self) -> Vec<u32> {
        let seq = self.seq as u32;
        let rows = self.rows.iter().enumerate();
        rows.flat_map(|(b, row)| row.iter().map(move |t| b as u32 * seq + t)).collect()
    }

    /// Where the tokens of each row begin in [`Chosen::places`].
    pub fn offsets(&self) -> Vec<usize> {
        let mut at = 0;
        self.rows
            .iter()
            .map(|row| {
                at += row.len();
                at - row.len()
            })
            .collect()
    }

    /// Places in [`Chosen::places`], every row filled up to the widest with some place; and where
    /// the tokens themselves are in that.
    pub fn padded(&self) -> (Vec<u32>, Vec<u32>) {
        let width = self.width();
        let (mut padded, mut kept) = (Vec::new(), Vec::new());
        let rows = self.rows.iter().zip(self.offsets()).enumerate();
        for (b, (row, offset)) in rows {
            for i in 0..width {
                if i < row.len() {
                    kept.push((b * width + i) as u32);
                    padded.push((offset + i) as u32);
                } else {
                    padded.push(0);
                }
            }
        }
        (padded, kept)
    }

    /// Those for which `keep` says so; it is asked in order. Also their places among all.
    pub fn filter(&self, mut keep: impl FnMut(usize) -> bool) -> (Self, Vec<u32>) {
        let (mut at, mut places) = (0, Vec::new());
        let mut rows = Vec::with_capacity(self.rows.len());
        for row in &self.rows {
            let mut kept = Vec::new();
            for &t in row {
                if keep(at) {
                    kept.push(t);
                    places.push(at as u32);
                }
                at += 1;
            }
            rows.push(kept);
        }
        (Self { seq: self.seq, rows }, places)
    }
}

/// A vector of places as an index.
pub(super) fn index(places: &[u32], device: &Device) -> Result<Tensor> {
    Ok(Tensor::from_vec(places.to_vec(), places.len(), device)?)
}

/// Whether each of `candidates` is among the `k` highest `scores` of its row; of equal ones the
/// earlier is.
pub(super) fn highest(candidates: &Chosen, scores: &[f32], k: usize) -> Vec<bool> {
    let mut chosen = vec![false; scores.len()];
    for (row, offset) in candidates.rows.iter().zip(candidates.offsets()) {
        let mut order: Vec<usize> = (offset..offset + row.len()).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
        order.iter().take(k).for_each(|&i| chosen[i] = true);
    }
    chosen
}

/// A number in `[0, 1)` that is drawn for the token `id` at `position`.
pub(super) fn chance(position: usize, id: u32) -> f64 {
    let seed = Seed::new(0).fork("recursion-depth", position as u64);
    seed.fork("token", u64::from(id)).rng().uniform()
}

/// Mean of `−ln σ(z)` over the chosen and `−ln σ(−z)` over the others, `z: [n, 1]`.
pub(super) fn binary_cross_entropy(z: &Tensor, chosen: &[bool]) -> Result<Tensor> {
    let device = z.device();
    // Softmax over (0, z) is (1 − σ(z), σ(z)).
    let pair = Tensor::from_vec(vec![0f32, 1.], (2, 1), device)?;
    let logits = ops::linear(z, &pair, None)?;
    let targets: Vec<u32> = chosen.iter().map(|&c| u32::from(c)).collect();
    let targets = Tensor::from_vec(targets, chosen.len(), device)?;
    Ok(ops::cross_entropy(&logits, &targets, 0.)?)
}

/// `mean(logsumexp(logits)²)` over rows `[n, classes]`; of a single logit, `mean(z²)`.
pub(super) fn z_loss(logits: &Tensor) -> Result<Tensor> {
    let (_, classes) = logits.dims2()?;
    let sums = if classes == 1 {
        logits.clone()
    } else {
        let rest = ops::scale(&ops::log_softmax(logits)?, -1.)?;
        ops::add(logits, &rest)?
    };
    let zeros = sums.detach().zeros_like()?;
    Ok(ops::mse(&sums, &zeros)?)
}

/// `N Σ_i f_i P_i` of probabilities `[n, N]`: `f_i` the share of tokens that took depth `i`, `P_i`
/// its mean probability. One when both are even.
pub(super) fn balance(probabilities: &Tensor, depths: &[u32]) -> Result<Tensor> {
    let (n, classes) = probabilities.dims2()?;
    let mut shares = vec![0f32; classes];
    for &d in depths {
        let share = shares
            .get_mut(d as usize)
            .ok_or_else(|| Error::config("depth", format!("{d} of {classes}")))?;
        *share += 1. / n.max(1) as f32;
    }
    let shares = Tensor::from_vec(shares, (1, classes), probabilities.device())?;
    let sum = ops::sum(&ops::linear(probabilities, &shares, None)?)?;
    Ok(ops::scale(&sum, classes as f32 / n.max(1) as f32)?)
}

/// `α` times what the gate of expert choice is made of, `[n, 1]`.
pub(super) fn score(mixture: &MixtureOfRecursions, z: &Tensor) -> Result<Tensor> {
    Ok(ops::scale(&ops::sigmoid(z)?, mixture.alpha() as f32)?)
}

/// The values of `[n, 1]` or `[n]`.
pub(super) fn values(x: &Tensor) -> Result<Vec<f32>> {
    Ok(x.detach().flatten_all()?.to_vec1()?)
}
