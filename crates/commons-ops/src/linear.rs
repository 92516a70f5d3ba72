//! Matrix maps: `y = x Wᵀ + b`, with an activation or a low-rank update folded in.

use crate::{Activation, composed};
use candle_core::{Result, Tensor};

/// `x Wᵀ + bias`: `x [.., in]`, `w [out, in]`, `bias [out]` → `[.., out]`.
///
/// Trailing dimensions of `x` are joined until their product is `in`, so attention output
/// `[batch, seq, heads, head_dim]` can be given to a `[out, heads · head_dim]` weight unreshaped.
///
/// # Errors
/// If the shapes do not fit.
pub fn linear(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    composed::linear(x, w, bias)
}

/// `act(x Wᵀ + bias)`, shapes as in [`linear`].
///
/// # Errors
/// If the shapes do not fit.
pub fn linear_act(
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    act: Activation,
) -> Result<Tensor> {
    composed::linear_act(x, w, bias, act)
}

/// `x Wᵀ + bias + scale · (x Aᵀ) Bᵀ` (LoRA, Hu et al. 2021, equation 3) without ever forming
/// `W + scale·BA`. `a` is `[rank, in]`, `b` is `[out, rank]`; the rest as in [`linear`].
///
/// # Errors
/// If the shapes do not fit.
pub fn lora_linear(
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    a: &Tensor,
    b: &Tensor,
    scale: f32,
) -> Result<Tensor> {
    composed::lora_linear(x, w, bias, a, b, scale)
}
