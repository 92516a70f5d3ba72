//! Matrix PCA: the dictionary that rebuilds given weights with the least squared error.

use commons_ops::Tensor;
use rayon::prelude::*;

use crate::Result;
use crate::linalg::symmetric_eigen;

/// Eigenvalues below this share of the largest count as zero: their atoms would be noise.
const NULL: f64 = 1e-10;

/// The principal directions of a list of matrices of one shape, as vectors, no mean removed.
#[derive(Debug, Clone)]
pub struct MatrixPca {
    /// `λ_s`, falling: what atom `s` takes off the squared error.
    pub eigenvalues: Vec<f64>,
    /// `v_s`, one row per eigenvalue.
    vectors: Vec<Vec<f64>>,
}

impl MatrixPca {
    /// Decomposes the Gram matrix `G_{lm} = ⟨W_l, W_m⟩`, which is small: `[L, L]`.
    ///
    /// # Errors
    /// When shapes differ or a value is not finite.
    pub fn new(weights: &[Tensor]) -> Result<Self> {
        let n = weights.len();
        let flat = weights
            .iter()
            .map(|w| Ok(w.detach().flatten_all()?.to_vec1::<f32>()?))
            .collect::<Result<Vec<_>>>()?;
        let pairs: Vec<(usize, usize)> =
            (0..n).flat_map(|i| (0..=i).map(move |j| (i, j))).collect();
        let products: Vec<f64> =
            pairs.par_iter().map(|&(i, j)| inner(&flat[i], &flat[j])).collect();
        let mut gram = vec![0f64; n * n];
        for ((i, j), product) in pairs.into_iter().zip(products) {
            gram[i * n + j] = product;
            gram[j * n + i] = product;
        }
        let (eigenvalues, vectors) = symmetric_eigen(&gram, n)?;
        Ok(Self { eigenvalues: eigenvalues.into_iter().map(|v| v.max(0.)).collect(), vectors })
    }

    /// Directions that carry anything.
    pub fn rank(&self) -> usize {
        let least = NULL * self.eigenvalues.first().copied().unwrap_or(0.);
        self.eigenvalues.iter().filter(|&&v| v > least).count()
    }

    /// `Σ_{s>S} λ_s`: the squared error that `atoms` atoms leave.
    pub fn error(&self, atoms: usize) -> f64 {
        self.eigenvalues.iter().skip(atoms).sum()
    }

    /// The first `atoms` atoms `D_s = Σ_l v_{sl} W_l / √λ_s`, orthonormal, and the coefficients
    /// `c_{ls} = √λ_s v_{sl} = ⟨D_s, W_l⟩` of every matrix. At most [`MatrixPca::rank`] of them.
    ///
    /// # Errors
    /// When `weights` are not those that were decomposed.
    pub fn dictionary(
        &self,
        weights: &[Tensor],
        atoms: usize,
    ) -> Result<(Vec<Tensor>, Vec<Vec<f32>>)> {
        let atoms = atoms.min(self.rank());
        let atom = |s: usize| -> Result<Tensor> {
            let scale = 1. / self.eigenvalues[s].sqrt();
            let mut sum: Option<Tensor> = None;
            for (w, v) in weights.iter().zip(&self.vectors[s]) {
                let term = w.detach().affine(v * scale, 0.)?;
                sum = Some(match sum {
                    Some(sum) => (sum + term)?,
                    None => term,
                });
            }
            sum.ok_or_else(|| crate::Error::config("share", "a dictionary needs a weight"))
        };
        let coefficient =
            |s: usize, l: usize| (self.eigenvalues[s].sqrt() * self.vectors[s][l]) as f32;
        let rows = (0..weights.len()).map(|l| (0..atoms).map(|s| coefficient(s, l)).collect());
        Ok(((0..atoms).map(atom).collect::<Result<_>>()?, rows.collect()))
    }
}

/// `⟨a, b⟩`, runs of 4096 in f32, summed in f64.
fn inner(a: &[f32], b: &[f32]) -> f64 {
    let runs = a.chunks(4096).zip(b.chunks(4096));
    runs.map(|(a, b)| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>())
        .sum()
}
