//! What a tie loses, given back by a few directions per depth: truncated singular value
//! decompositions of `ΔW = W − W'`.

use commons_ops::Tensor;
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::whiten::LayerInputs;
use crate::Result;
pub use crate::linalg::{TruncatedSvd, truncated_svd};

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

/// One difference `ΔW` to approximate.
#[derive(Debug)]
pub(super) struct Difference {
    /// Name of the weight it belongs to.
    pub name: String,
    /// Its name within a layer.
    pub matrix: String,
    /// `W_ℓ − W': [out, in]`.
    pub delta: Tensor,
    /// Directions to keep.
    pub rank: usize,
}

impl Difference {
    /// Decomposes, with errors weighed by the inputs if they are known.
    fn decompose(&self, inputs: Option<&LayerInputs>) -> Result<TruncatedSvd> {
        let Some(white) = inputs.map(|i| i.of(&self.matrix)) else {
            return truncated_svd(&self.delta, self.rank);
        };
        let mut svd = truncated_svd(&white.apply(&self.delta)?, self.rank)?;
        svd.a = white.undo(&svd.a)?;
        balance(&mut svd)?;
        Ok(svd)
    }
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

/// Decomposes several differences at once, one per thread, in order.
pub(super) fn decompose(
    differences: &[Difference],
    inputs: Option<&LayerInputs>,
) -> Result<Vec<TruncatedSvd>> {
    differences.par_iter().map(|d| d.decompose(inputs)).collect()
}

/// What the tie of one layer loses and its low-rank terms give back, over all its matrices; with
/// [`LoraInit::WhitenedSvd`] all of it in outputs, `W L` for `W`.
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
