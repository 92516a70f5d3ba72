//! Decompositions of weight matrices: truncated singular values, eigenvectors of a symmetric
//! matrix, Cholesky factors.

use commons_ops::{DType, Device, Tensor};
use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::solvers::{Llt, Solve};
use faer::linalg::svd::{ComputeSvdVectors, svd, svd_scratch};
use faer::{Mat, MatRef, Par, Scale, Side};

use crate::{Error, Result};

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
        return Err(Error::config(
            "rank",
            format!("{rank} exceeds the smaller side of a {out}x{input} matrix"),
        ));
    }
    let values = matrix.flatten_all()?.to_vec1::<f32>()?;
    let (mut u, mut v) = (Mat::<f32>::zeros(out, size), Mat::<f32>::zeros(input, size));
    let mut s = Diag::<f32>::zeros(size);
    let thin = ComputeSvdVectors::Thin;
    let request = svd_scratch::<f32>(out, input, thin, thin, Par::Seq, Default::default());
    let mut memory = MemBuffer::try_new(request).map_err(|_| {
        Error::config("rank", format!("no memory for decomposing a {out}x{input} matrix"))
    })?;
    svd(
        MatRef::from_row_major_slice(&values, out, input),
        s.as_mut(),
        Some(u.as_mut()),
        Some(v.as_mut()),
        Par::Seq,
        MemStack::new(&mut memory),
        Default::default(),
    )
    .map_err(|_| {
        Error::config("model", "a matrix has no decomposition: check the weights for NaN")
    })?;
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

/// Eigenvalues of the symmetric `matrix: [n, n]` (row-major), falling, and their eigenvectors,
/// one per row.
///
/// # Errors
/// When a value is not finite.
pub fn symmetric_eigen(matrix: &[f64], n: usize) -> Result<(Vec<f64>, Vec<Vec<f64>>)> {
    let m = MatRef::from_row_major_slice(matrix, n, n);
    let eigen = m.self_adjoint_eigen(Side::Lower).map_err(|_| {
        Error::config("model", "a Gram matrix has no decomposition: check the weights for NaN")
    })?;
    let (values, vectors) = (eigen.S().column_vector(), eigen.U());
    let falling = (0..n).rev();
    Ok((
        falling.clone().map(|k| values[k]).collect(),
        falling.map(|k| vectors.col(k).iter().copied().collect()).collect(),
    ))
}

/// `xᵀ x` of `x: [1, tokens, width]`, in f64.
pub(crate) fn outer(x: &Tensor) -> Result<Tensor> {
    let x = x.detach().squeeze(0)?;
    Ok(x.t()?.matmul(&x)?.to_dtype(DType::F64)?)
}

/// Adds `term` to `sum`.
pub(crate) fn add_to(sum: &mut Option<Tensor>, term: Tensor) -> Result<()> {
    *sum = Some(match sum.take() {
        Some(sum) => (sum + term)?,
        None => term,
    });
    Ok(())
}

/// The Cholesky factor of an autocorrelation `R = L Lᵀ`, with which errors of a weight are weighed
/// by the inputs it sees: `E‖ΔW x‖² = ‖ΔW L‖²`.
#[derive(Debug, Clone)]
pub struct Whitening {
    /// `L: [in, in]`, lower triangular.
    factor: Mat<f64>,
}

impl Whitening {
    /// Of `r: [in, in]`, row-major, after `ridge` times its mean diagonal is added to its diagonal.
    ///
    /// # Errors
    /// When the sum is not positive definite.
    pub fn new(r: &[f64], n: usize, ridge: f64) -> Result<Self> {
        let mean = (0..n).map(|i| r[i * n + i]).sum::<f64>() / n.max(1) as f64;
        let m = Mat::from_fn(n, n, |i, j| r[i * n + j] + if i == j { ridge * mean } else { 0. });
        let llt = Llt::new(m.as_ref(), Side::Lower).map_err(|_| {
            Error::config(
                "ridge",
                format!("{ridge} leaves the autocorrelation of the inputs singular: raise it or bring more calibration text"),
            )
        })?;
        Ok(Self { factor: llt.L().to_owned() })
    }

    /// `W L` of `w: [out, in]`.
    pub fn apply(&self, w: &Tensor) -> Result<Tensor> {
        let (out, input) = w.dims2()?;
        let values = w.flatten_all()?.to_vec1::<f32>()?;
        let w = Mat::from_fn(out, input, |i, j| f64::from(values[i * input + j]));
        let product = &w * &self.factor;
        let flat: Vec<f32> = (0..out)
            .flat_map(|i| (0..input).map(move |j| (i, j)))
            .map(|at| product[at] as f32)
            .collect();
        Ok(Tensor::from_vec(flat, (out, input), &Device::Cpu)?)
    }

    /// `A L⁻¹` of `a: [rank, in]`: takes factors of a whitened matrix back.
    pub fn undo(&self, a: &Tensor) -> Result<Tensor> {
        let (rank, input) = a.dims2()?;
        let values = a.flatten_all()?.to_vec1::<f32>()?;
        // X L = A, hence Lᵀ Xᵀ = Aᵀ.
        let mut x = Mat::from_fn(input, rank, |i, k| f64::from(values[k * input + i]));
        self.factor.transpose().solve_upper_triangular_in_place(&mut x);
        let flat: Vec<f32> = (0..rank)
            .flat_map(|k| (0..input).map(move |i| (i, k)))
            .map(|at| x[at] as f32)
            .collect();
        Ok(Tensor::from_vec(flat, (rank, input), &Device::Cpu)?)
    }
}

/// The matrix `M` with the least `Σ_i s_i ‖(W_i − M) L_i‖²`, `M = (Σ s_i W_i R_i) (Σ s_i R_i)⁻¹` with
/// `R_i = L_i L_iᵀ`, of `weights: [out, in]`, one scale and one `Whitening` each; the identity for
/// all without any.
///
/// # Errors
/// When there are no weights, or the sum of the autocorrelations is singular.
pub(crate) fn weighted_mean(
    weights: &[Tensor],
    white: &[&Whitening],
    scales: &[f64],
) -> Result<Tensor> {
    let (out, input) = match weights {
        [] => return Err(Error::config("loops", "leaves nothing to average")),
        [single] => return Ok(single.clone()),
        [first, ..] => first.dims2()?,
    };
    if white.is_empty() {
        let terms = weights.iter().zip(scales).map(|(w, &s)| w.affine(s, 0.));
        let sum = terms.reduce(|sum, term| sum? + term?);
        let sum = sum.unwrap_or_else(|| weights[0].zeros_like())?;
        return Ok(sum.affine(1. / scales.iter().sum::<f64>(), 0.)?);
    }
    let (mut products, mut sum) = (Mat::<f64>::zeros(out, input), Mat::<f64>::zeros(input, input));
    for ((w, white), &scale) in weights.iter().zip(white).zip(scales) {
        let values = w.flatten_all()?.to_vec1::<f32>()?;
        let w = Mat::from_fn(out, input, |i, j| scale * f64::from(values[i * input + j]));
        products += (w * &white.factor) * white.factor.transpose();
        sum += Scale(scale) * (&white.factor * white.factor.transpose());
    }
    let llt = Llt::new(sum.as_ref(), Side::Lower)
        .map_err(|_| Error::config("ridge", "leaves the inputs of tied matrices singular"))?;
    // M R = P, hence R Mᵀ = Pᵀ.
    let mean = llt.solve(products.transpose().to_owned());
    let flat = (0..out).flat_map(|i| (0..input).map(move |j| (j, i)));
    let flat: Vec<f32> = flat.map(|at| mean[at] as f32).collect();
    Ok(Tensor::from_vec(flat, (out, input), &Device::Cpu)?)
}
