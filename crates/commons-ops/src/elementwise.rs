//! Activations, gates and table look-up.

use crate::composed;
use candle_core::{Result, Tensor};

/// Functions applied to each element.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Activation {
    /// `x`.
    #[default]
    Identity,
    /// `max(x, 0)`.
    Relu,
    /// `x·Φ(x)` with the exact normal distribution function.
    Gelu,
    /// The tanh approximation of GELU.
    GeluTanh,
    /// `x·σ(x)`.
    Silu,
    /// Hyperbolic tangent.
    Tanh,
    /// `1 / (1 + e^-x)`.
    Sigmoid,
}

/// Applies `act` to every element.
///
/// # Errors
/// Only if candle fails (out of memory, unsupported type).
pub fn activation(x: &Tensor, act: Activation) -> Result<Tensor> {
    composed::activation(x, act)
}

/// `max(x, 0)`.
///
/// # Errors
/// As [`activation`].
pub fn relu(x: &Tensor) -> Result<Tensor> {
    activation(x, Activation::Relu)
}

/// `x·Φ(x)` with the exact normal distribution function (Hendrycks & Gimpel 2016).
///
/// # Errors
/// As [`activation`].
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    activation(x, Activation::Gelu)
}

/// `x/2 · (1 + tanh(√(2/π)·(x + 0.044715 x³)))` (Hendrycks & Gimpel 2016, section 2).
///
/// # Errors
/// As [`activation`].
pub fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    activation(x, Activation::GeluTanh)
}

/// `x·σ(x)`.
///
/// # Errors
/// As [`activation`].
pub fn silu(x: &Tensor) -> Result<Tensor> {
    activation(x, Activation::Silu)
}

/// Hyperbolic tangent.
///
/// # Errors
/// As [`activation`].
pub fn tanh(x: &Tensor) -> Result<Tensor> {
    activation(x, Activation::Tanh)
}

/// `1 / (1 + e^-x)`.
///
/// # Errors
/// As [`activation`].
pub fn sigmoid(x: &Tensor) -> Result<Tensor> {
    activation(x, Activation::Sigmoid)
}

/// `silu(gate) · up`, the gated unit of Llama's feed-forward layer (Shazeer 2020).
///
/// # Errors
/// If the shapes differ.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    composed::swiglu(gate, up)
}

/// `gelu_tanh(gate) · up`, the gated unit of Gemma (Shazeer 2020).
///
/// # Errors
/// If the shapes differ.
pub fn geglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    composed::geglu(gate, up)
}

/// Rows of `w [vocab, width]` picked by `ids` (`u32`, any shape) → `[ids.., width]`.
///
/// # Errors
/// If `w` is not a matrix, `ids` is not `u32`, or an id is not below `vocab`.
pub fn embedding(w: &Tensor, ids: &Tensor) -> Result<Tensor> {
    composed::embedding(w, ids)
}
