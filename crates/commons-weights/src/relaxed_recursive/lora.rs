//! What a tie loses, given back by a few directions per depth: truncated singular value
//! decompositions of `ΔW = W − W'`.

use commons_ops::Tensor;
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::whiten::LayerInputs;
use crate::Result;
pub use crate::linalg::{TruncatedSvd, truncated_svd};
use crate::linalg::{Whitening, weighted_mean};

/// How the low-rank terms start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LoraInit {
    /// From the singular value decomposition of `W_ℓ − W'`: `B = U_r Σ_r`, `A = V_rᵀ`.
    Svd,
    /// From the decomposition of `(W_ℓ − W') L`, `L Lᵀ` the autocorrelation of the inputs of `W_ℓ` on
    /// calibration text, and `A = V_rᵀ L⁻¹`: the smallest error of the outputs instead of the smallest
    /// error of the weights (our addition; SVD-LLM, 2024, truncates so).
    WhitenedSvd,
    /// `B = 0`: the relaxed model starts as the strict one (the paper's baseline).
    Zero,
}

/// Rounds in which every term of a tied matrix is fitted to what the others leave; two matrices
/// need only two.
const ROUNDS: usize = 4;

/// One matrix of a unique layer and the pretrained ones it stands for.
#[derive(Debug)]
pub(super) struct Tied {
    /// Its name within a layer.
    pub matrix: String,
    /// `W_ℓ: [out, in]` of every loop.
    pub weights: Vec<Tensor>,
    /// `W': [out, in]`, where it is given and not to be fitted.
    pub shared: Option<Tensor>,
    /// Directions to keep per loop.
    pub rank: usize,
}

/// What a [`Tied`] matrix becomes.
#[derive(Debug)]
pub(super) struct Fitted {
    /// `W': [out, in]`.
    pub shared: Tensor,
    /// The low-rank term of every loop; none at rank 0 or if it starts at zero.
    pub terms: Vec<TruncatedSvd>,
    /// What every loop lost and got back.
    pub losses: Vec<LayerLoss>,
}

impl Tied {
    /// Fits terms, and the shared matrix if it is not given, to the weights; `inputs` of every loop
    /// weigh the errors, if they are known.
    fn fit(&self, start: LoraInit, inputs: &[LayerInputs]) -> Result<Fitted> {
        let white: Vec<&Whitening> = inputs.iter().map(|i| i.of(&self.matrix)).collect();
        let weigh = |b: usize, w: &Tensor| match white.get(b) {
            Some(white) => white.apply(w),
            None => Ok(w.clone()),
        };
        let energies = self.weights.iter().enumerate();
        let energies: Vec<f64> =
            energies.map(|(b, w)| square_norm(&weigh(b, w)?)).collect::<Result<_>>()?;
        let rank = if start == LoraInit::Zero { 0 } else { self.rank };
        let shared = match &self.shared {
            Some(shared) => shared.clone(),
            None => self.fit_shared(rank, &white, &energies)?,
        };
        let mut fitted = Fitted { shared, terms: Vec::new(), losses: Vec::new() };
        for (b, (weight, &weight_energy)) in self.weights.iter().zip(&energies).enumerate() {
            let weighed = weigh(b, &(weight - &fitted.shared)?)?;
            let mut loss = LayerLoss { weight_energy, ..LayerLoss::default() };
            if rank == 0 {
                loss.delta_energy = square_norm(&weighed)?;
            } else {
                let mut svd = truncated_svd(&weighed, rank)?;
                (loss.kept_energy, loss.delta_energy) = svd.energies()?;
                if let Some(white) = white.get(b) {
                    svd.a = white.undo(&svd.a)?;
                    balance(&mut svd)?;
                }
                fitted.terms.push(svd);
            }
            fitted.losses.push(loss);
        }
        Ok(fitted)
    }

    /// The shared matrix of the least weighed error beside terms of `rank`. Each term in turn takes
    /// the directions that the mean of the other loops, without their own terms, leaves most of.
    fn fit_shared(&self, rank: usize, white: &[&Whitening], energies: &[f64]) -> Result<Tensor> {
        // Outputs grow with depth, and so does the stream they are added to: relative errors count.
        let scale = |e: &f64| if white.is_empty() { 1. } else { 1. / e.max(f64::MIN_POSITIVE) };
        let scales: Vec<f64> = energies.iter().map(scale).collect();
        let mut rest = self.weights.clone();
        let rounds = if rank == 0 { 0 } else { ROUNDS.min(2 * (rest.len() - 1)) };
        for b in (0..rounds).flat_map(|_| (0..self.weights.len()).rev()) {
            let mean = weighted_mean(&but(&rest, b), &but(white, b), &but(&scales, b))?;
            let delta = (&self.weights[b] - mean)?;
            let term = match white.get(b) {
                Some(white) => {
                    let svd = truncated_svd(&white.apply(&delta)?, rank)?;
                    svd.b.matmul(&white.undo(&svd.a)?)?
                }
                None => {
                    let svd = truncated_svd(&delta, rank)?;
                    svd.b.matmul(&svd.a)?
                }
            };
            rest[b] = (&self.weights[b] - term)?;
        }
        weighted_mean(&rest, white, &scales)
    }
}

/// All but the one at `index`.
fn but<T: Clone>(all: &[T], index: usize) -> Vec<T> {
    let others = all.iter().enumerate().filter(|(i, _)| *i != index);
    others.map(|(_, x)| x.clone()).collect()
}

/// `‖t‖²` of an f32 tensor, summed in f64.
pub(super) fn square_norm(t: &Tensor) -> Result<f64> {
    let values = t.flatten_all()?.to_vec1::<f32>()?;
    Ok(values.iter().map(|&v| f64::from(v).powi(2)).sum())
}

/// Fits several matrices at once, one per thread, in order.
pub(super) fn fit(tied: &[Tied], start: LoraInit, inputs: &[LayerInputs]) -> Result<Vec<Fitted>> {
    tied.par_iter().map(|t| t.fit(start, inputs)).collect()
}

/// Gives the row of `A` and the column of `B` of every direction the same norm. Whitening leaves
/// most of it in `B`, and an optimiser that moves every number by as much would then move the product
/// by thousands of times as much through `A`.
fn balance(svd: &mut TruncatedSvd) -> Result<()> {
    let (rows, columns) = (svd.a.sqr()?.sum_keepdim(1)?, svd.b.sqr()?.sum_keepdim(0)?);
    let pairs = rows.flatten_all()?.to_vec1::<f32>()?.into_iter();
    let pairs = pairs.zip(columns.flatten_all()?.to_vec1::<f32>()?);
    let factor = |(a, b): (f32, f32)| if a > 0. && b > 0. { (b / a).sqrt().sqrt() } else { 1. };
    let factors: Vec<f32> = pairs.map(factor).collect();
    let rank = factors.len();
    let factors = Tensor::from_vec(factors, (rank, 1), svd.a.device())?;
    svd.a = svd.a.broadcast_mul(&factors)?;
    svd.b = svd.b.broadcast_div(&factors.t()?)?;
    Ok(())
}

/// What the tie of one layer loses and its low-rank terms give back, over all its matrices; where
/// the inputs are known all of it in outputs, `W L` for `W`.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct LayerLoss {
    /// `Σ‖W‖²` of the layer's matrices.
    pub weight_energy: f64,
    /// `Σ‖W − W'‖²`.
    pub delta_energy: f64,
    /// `Σ_{i≤r} σ_i²` of the differences: what the terms bring back.
    pub kept_energy: f64,
}

impl LayerLoss {
    /// Share of the difference that the terms bring back; one when nothing differs.
    pub fn kept(&self) -> f64 {
        if self.delta_energy > 0. { self.kept_energy / self.delta_energy } else { 1. }
    }

    /// `‖W − W' − BA‖ / ‖W‖`.
    pub fn relative_error(&self) -> f64 {
        ((self.delta_energy - self.kept_energy).max(0.) / self.weight_energy.max(f64::MIN_POSITIVE))
            .sqrt()
    }

    /// Sums both layers.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            weight_energy: self.weight_energy + other.weight_energy,
            delta_energy: self.delta_energy + other.delta_energy,
            kept_energy: self.kept_energy + other.kept_energy,
        }
    }
}
