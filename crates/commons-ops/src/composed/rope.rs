use crate::check;
use candle_core::{Result, Tensor};

/// [`crate::rope`] as a candle graph.
///
/// # Errors
/// If the shapes do not fit.
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let (_, t, _, d) = check::rope(x, cos, sin)?;
    let half = d / 2;
    let to_heads = |table: &Tensor| table.reshape((1, t, 1, half))?.to_dtype(x.dtype());
    let (cos, sin) = (to_heads(cos)?, to_heads(sin)?);
    let (a, b) = (x.narrow(3, 0, half)?, x.narrow(3, half, half)?);
    let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
    Tensor::cat(&[first, second], 3)
}
