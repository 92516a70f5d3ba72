use crate::{Activation, check};
use candle_core::{Result, Tensor};

/// Applies `act` to every element.
///
/// # Errors
/// Only if candle fails (out of memory, unsupported type).
pub fn activation(x: &Tensor, act: Activation) -> Result<Tensor> {
    match act {
        Activation::Identity => Ok(x.clone()),
        Activation::Relu => relu(x),
        Activation::Gelu => gelu(x),
        Activation::GeluTanh => gelu_tanh(x),
        Activation::Silu => silu(x),
        Activation::Tanh => tanh(x),
        Activation::Sigmoid => sigmoid(x),
    }
}

/// `max(x, 0)`.
///
/// # Errors
/// Only if candle fails.
pub fn relu(x: &Tensor) -> Result<Tensor> {
    x.relu()
}

/// `x·Φ(x)` with the exact normal distribution function.
///
/// # Errors
/// Only if candle fails.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    let cdf = ((x * std::f64::consts::FRAC_1_SQRT_2)?.erf()? + 1.0)?;
    (x * 0.5)? * cdf
}

/// The tanh approximation of GELU (Hendrycks & Gimpel 2016, section 2).
///
/// # Errors
/// Only if candle fails.
pub fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    // Written out because candle's own derivative carries its constants to six digits only.
    let c = (2.0 / std::f64::consts::PI).sqrt();
    let inner = ((x * c)? * ((x.sqr()? * 0.044_715)? + 1.0)?)?;
    (x * 0.5)? * (inner.tanh()? + 1.0)?
}

/// `x·σ(x)`.
///
/// # Errors
/// Only if candle fails.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    x * sigmoid(x)?
}

/// Hyperbolic tangent.
///
/// # Errors
/// Only if candle fails.
pub fn tanh(x: &Tensor) -> Result<Tensor> {
    x.tanh()
}

/// `σ(x) = 1 / (1 + e^-x)`.
///
/// # Errors
/// Only if candle fails.
pub fn sigmoid(x: &Tensor) -> Result<Tensor> {
    // By tanh, so that neither side overflows.
    ((x * 0.5)?.tanh()? * 0.5)? + 0.5
}

/// `silu(gate) · up`.
///
/// # Errors
/// If the shapes differ.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    check::same("swiglu", gate, up)?;
    silu(gate)? * up
}

/// `gelu_tanh(gate) · up`.
///
/// # Errors
/// If the shapes differ.
pub fn geglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    check::same("geglu", gate, up)?;
    gelu_tanh(gate)? * up
}

/// [`crate::embedding`] as a candle graph.
///
/// # Errors
/// If `w` is not a matrix, `ids` is not `u32`, or an id is out of range.
pub fn embedding(w: &Tensor, ids: &Tensor) -> Result<Tensor> {
    check::embedding(w, ids)?;
    let mut dims = ids.dims().to_vec();
    dims.push(w.dim(1)?);
    let ids = ids.flatten_all()?.contiguous()?;
    if ids.elem_count() == 0 {
        return Tensor::zeros(dims, w.dtype(), w.device());
    }
    w.index_select(&ids, 0)?.reshape(dims)
}
