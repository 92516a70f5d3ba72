use super::{Optimizer, check};
use candle_core::{DType, Result, Tensor, Var, bail};

/// Momentum orthogonalised by Newton–Schulz iterations (Jordan et al. 2024), for matrices.
/// Convolution kernels count as `[out, rest]`; embeddings, heads, gains and biases belong to
/// another rule.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Muon {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the momentum.
    pub momentum: f64,
    /// Whether to look ahead along the momentum.
    pub nesterov: bool,
    /// Decoupled decay, in units of the learning rate.
    pub weight_decay: f64,
    /// Newton–Schulz iterations; five bring singular values to about 0.7–1.2.
    pub iterations: usize,
}

impl Default for Muon {
    fn default() -> Self {
        Self { lr: 0.02, momentum: 0.95, nesterov: true, weight_decay: 0.0, iterations: 5 }
    }
}

/// State of one parameter under [`Muon`].
#[derive(Debug, Clone)]
pub struct MuonState {
    /// Sum of decayed gradients, shaped like the parameter.
    pub momentum: Tensor,
}

impl Optimizer for Muon {
    type State = MuonState;

    fn init(&self, param: &Tensor) -> Result<MuonState> {
        if param.rank() < 2 {
            bail!("Muon: parameter {:?} is not a matrix, give it to AdamW", param.dims())
        }
        let momentum = Tensor::zeros(param.shape(), param.dtype(), param.device())?;
        Ok(MuonState { momentum })
    }

    fn step(&self, param: &Var, grad: &Tensor, scale: f32, state: &mut MuonState) -> Result<()> {
        check("Muon", param, grad)?;
        let grad = (grad.detach() * f64::from(scale))?;
        state.momentum = ((&state.momentum * self.momentum)? + &grad)?;
        let update = match self.nesterov {
            true => (grad + (&state.momentum * self.momentum)?)?,
            false => state.momentum.clone(),
        };
        let matrix = update.flatten_from(1)?;
        let (rows, columns) = matrix.dims2()?;
        // Keeps the size of the update's entries independent of the matrix's shape.
        let stretch = (rows as f64 / columns as f64).max(1.0).sqrt();
        let direction = newton_schulz(&matrix, self.iterations)?.reshape(param.shape())?;
        let kept = (param.as_detached_tensor() * (1.0 - self.lr * self.weight_decay))?;
        param.set(&(kept - (direction * (self.lr * stretch))?)?)
    }
}

/// An approximation of `U Vᵀ` for `matrix = U Σ Vᵀ` by the quintic iteration
/// `X ← aX + (bA + cA²)X`, `A = XXᵀ`.
fn newton_schulz(matrix: &Tensor, iterations: usize) -> Result<Tensor> {
    const A: f64 = 3.4445;
    const B: f64 = -4.7750;
    const C: f64 = 2.0315;
    let wide = matrix.dims()[0] <= matrix.dims()[1];
    let x = if wide { matrix.clone() } else { matrix.t()?.contiguous()? };
    let norm: f64 = x.to_dtype(DType::F64)?.sqr()?.sum_all()?.sqrt()?.to_scalar()?;
    let mut x = (x / (norm + 1e-7))?;
    for _ in 0..iterations {
        let gram = x.matmul(&x.t()?)?;
        let poly = ((&gram * B)? + (gram.matmul(&gram)? * C)?)?;
        x = ((&x * A)? + poly.matmul(&x)?)?;
    }
    if wide { Ok(x) } else { x.t()?.contiguous() }
}
