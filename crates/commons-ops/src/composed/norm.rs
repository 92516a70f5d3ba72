use super::widen;
use crate::check;
use candle_core::{D, Result, Tensor};

/// [`crate::rms_norm`] as a candle graph.
///
/// # Errors
/// If the shapes do not fit.
pub fn rms_norm(x: &Tensor, gain: &Tensor, eps: f32) -> Result<Tensor> {
    check::norm("rms_norm", x, gain, None)?;
    let wide = widen(x)?;
    let mean = wide.sqr()?.mean_keepdim(D::Minus1)?;
    let y = wide.broadcast_div(&(mean + f64::from(eps))?.sqrt()?)?;
    y.to_dtype(x.dtype())?.broadcast_mul(gain)
}

/// [`crate::layer_norm`] as a candle graph.
///
/// # Errors
/// If the shapes do not fit.
pub fn layer_norm(x: &Tensor, gain: &Tensor, bias: Option<&Tensor>, eps: f32) -> Result<Tensor> {
    check::norm("layer_norm", x, gain, bias)?;
    let wide = widen(x)?;
    let centred = wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?;
    let var = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let y = centred
        .broadcast_div(&(var + f64::from(eps))?.sqrt()?)?
        .to_dtype(x.dtype())?
        .broadcast_mul(gain)?;
    match bias {
        Some(bias) => y.broadcast_add(bias),
        None => Ok(y),
    }
}

/// [`crate::softmax`] as a candle graph.
///
/// # Errors
/// Only if candle fails.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    let wide = widen(x)?;
    let max = wide.max_keepdim(D::Minus1)?.detach();
    let e = wide.broadcast_sub(&max)?.exp()?;
    e.broadcast_div(&e.sum_keepdim(D::Minus1)?)?.to_dtype(x.dtype())
}

/// [`crate::log_softmax`] as a candle graph.
///
/// # Errors
/// Only if candle fails.
pub fn log_softmax(x: &Tensor) -> Result<Tensor> {
    let wide = widen(x)?;
    let max = wide.max_keepdim(D::Minus1)?.detach();
    let shifted = wide.broadcast_sub(&max)?;
    let log_sum = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    shifted.broadcast_sub(&log_sum)?.to_dtype(x.dtype())
}
