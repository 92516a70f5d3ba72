//! Sums, scaling and distances: the small steps between the large ones.

use crate::tape::{self, Cx, Op};
use crate::{par, view};
use candle_core::{CpuStorage, Result, Tensor, bail};

/// `a + b` of one shape, such as an update on the residual stream.
///
/// # Errors
/// If the shapes differ.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.dims() != b.dims() {
        bail!("add: shapes {:?} and {:?} differ", a.dims(), b.dims())
    }
    if !view::fused(&[a, b]) {
        return a + b;
    }
    let mut sum = vec![0f32; a.elem_count()];
    let work = sum.len();
    view::read(a, |a| {
        view::read(b, |b| {
            let parts = a.chunks(par::PIECE).zip(b.chunks(par::PIECE));
            par::each(sum.chunks_mut(par::PIECE).zip(parts), work, |(sum, (a, b))| {
                for (s, (a, b)) in sum.iter_mut().zip(a.iter().zip(b)) {
                    *s = a + b;
                }
            });
            Ok(())
        })
    })?;
    tape::record(Add, &[a, b], CpuStorage::F32(sum), a.shape())
}

struct Add;

impl Op for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn backward(&self, cx: &mut Cx<'_>) -> Result<()> {
        for i in 0..2 {
            if cx.wants(i) {
                cx.share(i, cx.grad.clone())?;
            }
        }
        Ok(())
    }
}

/// `factor · x`.
///
/// # Errors
/// Only if candle fails.
pub fn scale(x: &Tensor, factor: f32) -> Result<Tensor> {
    if !view::fused(&[x]) {
        return x.affine(f64::from(factor), 0.0);
    }
    let scaled = view::read(x, |x| Ok(x.iter().map(|x| factor * x).collect()))?;
    tape::record(Scale(factor), &[x], CpuStorage::F32(scaled), x.shape())
}

struct Scale(f32);

impl Op for Scale {
    fn name(&self) -> &'static str {
        "scale"
    }

    fn backward(&self, cx: &mut Cx<'_>) -> Result<()> {
        let grad = (cx.grad * f64::from(self.0))?;
        cx.give(0, grad)
    }
}

/// The sum of all elements, a scalar; partial sums are formed in `f64` in a fixed order.
///
/// # Errors
/// Only if candle fails.
pub fn sum(x: &Tensor) -> Result<Tensor> {
    if !view::fused(&[x]) {
        return x.sum_all();
    }
    let total = view::read(x, |x| Ok(total(x.iter().map(|&x| f64::from(x)))))?;
    tape::record(Sum, &[x], CpuStorage::F32(vec![total as f32]), ())
}

fn total(values: impl Iterator<Item = f64>) -> f64 {
    values.sum()
}

struct Sum;

impl Op for Sum {
    fn name(&self) -> &'static str {
        "sum"
    }

    fn backward(&self, cx: &mut Cx<'_>) -> Result<()> {
        let grad = cx.grad.reshape(())?.broadcast_as(cx.args[0].shape())?.contiguous()?;
        cx.give(0, grad)
    }
}

/// Mean squared difference of `a` and `b`, a scalar.
///
/// # Errors
/// If the shapes differ.
pub fn mse(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.dims() != b.dims() {
        bail!("mse: shapes {:?} and {:?} differ", a.dims(), b.dims())
    }
    if !view::fused(&[a, b]) {
        return (a - b)?.sqr()?.mean_all();
    }
    let n = a.elem_count().max(1) as f64;
    let mean = view::read(a, |a| {
        view::read(b, |b| {
            Ok(total(a.iter().zip(b).map(|(a, b)| f64::from(a - b) * f64::from(a - b))) / n)
        })
    })?;
    tape::record(Mse, &[a, b], CpuStorage::F32(vec![mean as f32]), ())
}

struct Mse;

impl Op for Mse {
    fn name(&self) -> &'static str {
        "mse"
    }

    fn backward(&self, cx: &mut Cx<'_>) -> Result<()> {
        let n = cx.args[0].elem_count().max(1) as f64;
        let factor = f64::from(cx.grad.reshape(())?.to_scalar::<f32>()?) * 2.0 / n;
        let difference = (cx.args[0].detach() - cx.args[1].detach())?;
        if cx.wants(0) {
            cx.give(0, (&difference * factor)?)?;
        }
        if cx.wants(1) {
            cx.give(1, (&difference * -factor)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{agree, randn};

    #[test]
    fn each_agrees_with_candle_and_finite_differences() {
        let (a, b) = (randn(1, &[3, 5]), randn(2, &[3, 5]));
        agree(&[&a, &b], |x| add(&x[0], &x[1]), |x| &x[0] + &x[1], 1e-5);
        agree(&[&a], |x| add(&x[0], &x[0]), |x| &x[0] + &x[0], 1e-5);
        agree(&[&a], |x| scale(&x[0], -1.5), |x| &x[0] * -1.5, 1e-5);
        agree(&[&a], |x| sum(&x[0]), |x| x[0].sum_all(), 1e-5);
        agree(&[&a, &b], |x| mse(&x[0], &x[1]), |x| (&x[0] - &x[1])?.sqr()?.mean_all(), 1e-5);
    }

    #[test]
    fn shapes_that_differ_are_refused() {
        let message = add(&randn(1, &[2, 3]), &randn(1, &[3, 2])).unwrap_err().to_string();
        assert!(message.contains("[2, 3]") && message.contains("[3, 2]"), "{message}");
        assert!(mse(&randn(1, &[2]), &randn(1, &[3])).is_err());
    }
}
