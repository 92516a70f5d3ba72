//! Every op as a plain candle graph.
//!
//! These are the definitions: they run for every float type and device, candle differentiates
//! them, and the fused `f32` CPU kernels are tested against them in `f64`. Half-precision inputs
//! are widened to `f32` inside normalisations, softmax and losses and narrowed at the end.

mod attention;
mod elementwise;
mod linear;
mod loss;
mod moe;
mod norm;
mod rope;

pub use attention::attention;
pub use elementwise::{
    activation, embedding, geglu, gelu, gelu_tanh, relu, sigmoid, silu, swiglu, tanh,
};
pub use linear::{linear, linear_act, lora_linear};
pub use loss::{cross_entropy, linear_cross_entropy, linear_distill, linear_kl};
pub use moe::{gates, moe, router_balance};
pub use norm::{layer_norm, log_softmax, rms_norm, softmax};
pub use rope::rope;

use candle_core::{DType, Result, Tensor};

/// [`crate::weighted_sum`].
pub fn weighted_sum(atoms: &[Tensor], coefficients: &Tensor) -> Result<Tensor> {
    let mut sum: Option<Tensor> = None;
    for (k, atom) in atoms.iter().enumerate() {
        let term = atom.broadcast_mul(&coefficients.get(k)?)?;
        sum = Some(match sum {
            Some(sum) => (sum + term)?,
            None => term,
        });
    }
    match sum {
        Some(sum) => Ok(sum),
        None => candle_core::bail!("weighted_sum: no atoms"),
    }
}

/// Widens half-precision tensors to `f32`; leaves `f32` and `f64` alone.
pub(crate) fn widen(x: &Tensor) -> Result<Tensor> {
    match x.dtype() {
        DType::F16 | DType::BF16 => x.to_dtype(DType::F32),
        _ => Ok(x.clone()),
    }
}
