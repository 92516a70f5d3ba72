//! Normalisation and softmax over the last dimension.

use crate::composed;
use candle_core::{Result, Tensor};

/// `x / √(mean(x²) + eps) · gain` over the last dimension (Zhang & Sennrich 2019, equation 4).
///
/// # Errors
/// If `gain` is not as wide as the last dimension of `x`.
pub fn rms_norm(x: &Tensor, gain: &Tensor, eps: f32) -> Result<Tensor> {
    composed::rms_norm(x, gain, eps)
}

/// `(x - mean) / √(variance + eps) · gain + bias` over the last dimension (Ba et al. 2016), with
/// the biased variance.
///
/// # Errors
/// If `gain` or `bias` is not as wide as the last dimension of `x`.
pub fn layer_norm(x: &Tensor, gain: &Tensor, bias: Option<&Tensor>, eps: f32) -> Result<Tensor> {
    composed::layer_norm(x, gain, bias, eps)
}

/// `e^x / Σ e^x` over the last dimension.
///
/// # Errors
/// If the last dimension is empty or missing.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    composed::softmax(x)
}

/// `x - log Σ e^x` over the last dimension.
///
/// # Errors
/// If the last dimension is empty or missing.
pub fn log_softmax(x: &Tensor) -> Result<Tensor> {
    composed::log_softmax(x)
}
