use super::activation;
use crate::{Activation, check};
use candle_core::{Result, Tensor};

/// [`crate::linear`] as a candle graph.
///
/// # Errors
/// If the shapes do not fit.
pub fn linear(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let shape = check::linear("linear", x, w, bias)?;
    let y = x.reshape((shape.rows, shape.inputs))?.matmul(&w.t()?)?.reshape(shape.out_dims)?;
    match bias {
        Some(bias) => y.broadcast_add(bias),
        None => Ok(y),
    }
}

/// [`crate::linear_act`] as a candle graph.
///
/// # Errors
/// If the shapes do not fit.
pub fn linear_act(
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    act: Activation,
) -> Result<Tensor> {
    activation(&linear(x, w, bias)?, act)
}

/// [`crate::lora_linear`] as a candle graph.
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
    check::lora("lora_linear", w, a, b)?;
    let low = linear(&linear(x, a, None)?, b, None)?;
    linear(x, w, bias)? + (low * f64::from(scale))?
}
