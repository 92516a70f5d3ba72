//! What a tie loses, given back by a few directions per depth: truncated singular value
//! decompositions of `ΔW = W − W'`.

use commons_ops::{Device, Tensor};
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::svd::{ComputeSvdVectors, svd, svd_scratch};
use faer::diag::Diag;
use faer::{Mat, MatRef, Par};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How the low-rank terms start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LoraInit {
    /// From the singular value decomposition of `W_ℓ − W'`: `B = U_r Σ_r`, `A = V_rᵀ`.
    #[default]
    Svd,
    /// `B = 0`: the relaxed model starts as the strict one (the paper's baseline).
    Zero,
}

/// The best approximation of a matrix at a given rank.
#[derive(Debug, Clone)]
pub struct TruncatedSvd {
    /// `V_rᵀ: [rank, in]`, orthonormal rows.
    pub a: Tensor,
    /// `U_r Σ_r: [out, rank]`.
    pub b: Tensor,
    /// All `min(out, in)` singular values, falling.
    pub singular_values: Vec<f32>,
}

impl TruncatedSvd {
    /// `Σ_{i≤r} σ_i²` and `Σ_i σ_i²`.
    pub fn energies(&self) -> Result<(f64, f64)> {
        let rank = self.a.dim(0)?;
        let square = |values: &[f32]| values.iter().map(|&s| f64::from(s).powi(2)).sum::<f64>();
        Ok((square(&self.singular_values[..rank]), square(&self.singular_values)))
    }

    /// Frobenius norm of what is left out, `√(Σ_{i>r} σ_i²)`.
    pub fn error(&self) -> Result<f64> {
        let rest = &self.singular_values[self.a.dim(0)?..];
        Ok(rest.iter().map(|&s| f64::from(s).powi(2)).sum::<f64>().sqrt())
    }
}

/// Decomposes `matrix: [out, in]` (f32) and keeps the leading `rank` directions.
///
/// One thread works on one matrix, so the result does not depend on the number of threads.
///
/// # Errors
/// When `rank` exceeds the smaller side, or a value is not finite.
pub fn truncated_svd(matrix: &Tensor, rank: usize) -> Result<TruncatedSvd> {
    let (out, input) = matrix.dims2()?;
    let size = out.min(input);
    if rank > size {
        return Err(Error::config("rank", format!("{rank} exceeds the smaller side of a {out}x{input} matrix")));
    }
    let values = matrix.flatten_all()?.to_vec1::<f32>()?;
    let (mut u, mut v) = (Mat::<f32>::zeros(out, size), Mat::<f32>::zeros(input, size));
    let mut s = Diag::<f32>::zeros(size);
    let thin = ComputeSvdVectors::Thin;
    let request = svd_scratch::<f32>(out, input, thin, thin, Par::Seq, Default::default());
    let mut memory = MemBuffer::try_new(request)
        .map_err(|_| Error::config("rank", format!("no memory for decomposing a {out}x{input} matrix")))?;
    svd(
        MatRef::from_row_major_slice(&values, out, input),
        s.as_mut(),
        Some(u.as_mut()),
        Some(v.as_mut()),
        Par::Seq,
        MemStack::new(&mut memory),
        Default::default(),
    )
    .map_err(|_| Error::config("model", "a difference of layers has no decomposition: check the weights for NaN"))?;
    let singular_values: Vec<f32> = s.column_vector().iter().copied().collect();
    let mut a = Vec::<f32>::with_capacity(rank * input);
    for k in 0..rank {
        a.extend(v.col(k).iter());
    }
    let mut b = Vec::<f32>::with_capacity(out * rank);
    for row in 0..out {
        b.extend((0..rank).map(|k| u[(row, k)] * singular_values[k]));
    }
    Ok(TruncatedSvd {
        a: Tensor::from_vec(a, (rank, input), &Device::Cpu)?,
        b: Tensor::from_vec(b, (out, rank), &Device::Cpu)?,
        singular_values,
    })
}

/// One difference `ΔW` to approximate.
#[derive(Debug)]
pub(super) struct Difference {
    /// Name of the weight it belongs to.
    pub name: String,
    /// `W_ℓ − W': [out, in]`.
    pub delta: Tensor,
    /// Directions to keep.
    pub rank: usize,
}

/// Decomposes several differences at once, one per thread, in order.
pub(super) fn decompose(differences: &[Difference]) -> Result<Vec<TruncatedSvd>> {
    differences.par_iter().map(|d| truncated_svd(&d.delta, d.rank)).collect()
}

/// What the tie of one layer loses and its low-rank terms give back, over all its matrices.
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
        ((self.delta_energy - self.kept_energy).max(0.) / self.weight_energy.max(f64::MIN_POSITIVE)).sqrt()
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
