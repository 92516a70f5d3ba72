//! Normalisation over batch and space (BatchNorm, Ioffe & Szegedy 2015, algorithm 1) and over
//! groups of channels (GroupNorm, Wu & He 2018, equations 1–6).
//!
//! Inputs are `[batch, channels, ..]` with any number of trailing dimensions.

mod group;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use candle_core::{DType, Result, Tensor, bail};
use rayon::prelude::*;

use crate::slices::{Real, direct, sum, vectorised, with_elements};
use crate::tape::{Cx, Op, record};
use group::GroupNorm;

/// Elements below which a second thread is not worth waking.
const SMALL: usize = 32 * 1024;
/// Runs of one channel shorter than this are joined by a transposition first.
const SHORT: usize = 16;

/// Normalises each channel by its mean and biased variance over the batch and all positions:
/// `x [batch, channels, ..]`, `gain [channels]`, `bias [channels]` → `(y, mean, variance)`.
///
/// `mean` and `variance`, both `[channels]`, are for running averages; no gradient flows through
/// them.
///
/// # Errors
/// If the shapes or dtypes do not fit, or there is nothing to average over.
pub fn batch_norm(
    x: &Tensor,
    gain: &Tensor,
    bias: &Tensor,
    eps: f32,
) -> Result<(Tensor, Tensor, Tensor)> {
    train("batch_norm", x, gain, bias, None, eps, false)
}

/// `relu(batch_norm(x) + residual)`, the end of a residual block in one pass; otherwise as
/// [`batch_norm`]. `residual` has the shape of `x`.
///
/// # Errors
/// As [`batch_norm`].
pub fn batch_norm_relu(
    x: &Tensor,
    gain: &Tensor,
    bias: &Tensor,
    residual: Option<&Tensor>,
    eps: f32,
) -> Result<(Tensor, Tensor, Tensor)> {
    train("batch_norm_relu", x, gain, bias, residual, eps, true)
}

/// Normalises each channel by given statistics, `mean [channels]` and `variance [channels]`,
/// which are constants; differentiable in `x`, `gain` and `bias`.
///
/// # Errors
/// If the shapes or dtypes do not fit.
pub fn batch_norm_eval(
    x: &Tensor,
    gain: &Tensor,
    bias: &Tensor,
    mean: &Tensor,
    variance: &Tensor,
    eps: f32,
) -> Result<Tensor> {
    const NAME: &str = "batch_norm_eval";
    let dims = check(NAME, x, &[gain, bias, mean, variance])?;
    if !direct(x) {
        let (x32, constants) = (widen(x)?, [mean.detach(), variance.detach()]);
        let [mean, variance] = constants.map(|t| widen(&t).and_then(|t| dims.column(&t)));
        let y = dims.affine(&x32, &mean?, &variance?, gain, bias, eps)?;
        return y.reshape(x.shape())?.to_dtype(x.dtype());
    }
    let op = BatchNorm { name: NAME, dims, eps, relu: false, given: Some((mean.detach(), variance.detach())) };
    match x.dtype() {
        DType::F64 => Ok(op.run::<f64>(x, gain, bias, None)?.0),
        _ => Ok(op.run::<f32>(x, gain, bias, None)?.0),
    }
}

/// Normalises each of `groups` groups of channels of each sample by its own mean and biased
/// variance, then scales and shifts each channel: `x [batch, channels, ..]`,
/// `gain [channels]`, `bias [channels]`.
///
/// # Errors
/// If the shapes or dtypes do not fit or `groups` does not divide the channels.
pub fn group_norm(
    x: &Tensor,
    groups: usize,
    gain: &Tensor,
    bias: &Tensor,
    eps: f32,
) -> Result<Tensor> {
    let dims = check("group_norm", x, &[gain, bias])?;
    if groups == 0 || !dims.channels.is_multiple_of(groups) {
        bail!("group_norm: {groups} groups do not divide {} channels", dims.channels)
    }
    let op = GroupNorm { dims, groups, eps };
    match x.dtype() {
        DType::F32 if direct(x) => op.run::<f32>(x, gain, bias),
        DType::F64 if direct(x) => op.run::<f64>(x, gain, bias),
        dtype => op.composed(x, gain, bias)?.reshape(x.shape())?.to_dtype(dtype),
    }
}

/// `[batch, channels, ..]` with the trailing dimensions joined.
#[derive(Clone, Copy, Debug)]
struct Dims {
    batch: usize,
    channels: usize,
    len: usize,
}

impl Dims {
    fn elements(&self) -> usize {
        self.batch * self.channels * self.len
    }

    /// Elements that share a channel.
    fn per_channel(&self) -> usize {
        self.batch * self.len
    }

    /// `[channels]` as something that broadcasts over `[batch, channels, len]`.
    fn column(&self, t: &Tensor) -> Result<Tensor> {
        t.reshape((1, self.channels, 1))
    }

    /// `(x − mean)/√(variance + eps) · gain + bias` as candle ops, in at least single precision.
    fn affine(
        &self,
        x: &Tensor,
        mean: &Tensor,
        variance: &Tensor,
        gain: &Tensor,
        bias: &Tensor,
        eps: f32,
    ) -> Result<Tensor> {
        let x = x.reshape((self.batch, self.channels, self.len))?;
        let hat = x.broadcast_sub(mean)?.broadcast_div(&(variance + f64::from(eps))?.sqrt()?)?;
        hat.broadcast_mul(&self.column(&widen(gain)?)?)?
            .broadcast_add(&self.column(&widen(bias)?)?)
    }

    /// The same elements as `[1, channels, batch · len]` if runs are too short to vectorise.
    fn channel_major<'a, T: Real>(&self, x: &'a [T]) -> Cow<'a, [T]> {
        if self.len >= SHORT || self.batch == 1 {
            return Cow::Borrowed(x);
        }
        Cow::Owned(self.exchange(x, self.batch, self.channels))
    }

    /// Undoes [`Dims::channel_major`].
    fn batch_major<T: Real>(&self, x: Vec<T>) -> Vec<T> {
        if self.len >= SHORT || self.batch == 1 {
            return x;
        }
        self.exchange(&x, self.channels, self.batch)
    }

    fn exchange<T: Real>(&self, x: &[T], rows: usize, cols: usize) -> Vec<T> {
        let mut out = vec![T::zero(); x.len()];
        for (at, run) in x.chunks_exact(self.len.max(1)).enumerate() {
            let to = (at % cols) * rows + at / cols;
            out[to * self.len..][..self.len].copy_from_slice(run);
        }
        out
    }

    /// The layout [`Dims::channel_major`] leaves.
    fn joined(&self) -> Self {
        if self.len >= SHORT || self.batch == 1 {
            return *self;
        }
        Self { batch: 1, channels: self.channels, len: self.batch * self.len }
    }

    fn runs<'a, T>(&self, x: &'a [T], channel: usize) -> impl Iterator<Item = &'a [T]> {
        x.chunks_exact(self.len.max(1)).skip(channel).step_by(self.channels.max(1))
    }

    /// Mutable runs, channel by channel.
    fn split<'a, T>(&self, x: &'a mut [T]) -> Vec<Vec<&'a mut [T]>> {
        let mut split: Vec<_> =
            (0..self.channels).map(|_| Vec::with_capacity(self.batch)).collect();
        for (at, run) in x.chunks_exact_mut(self.len.max(1)).enumerate() {
            split[at % self.channels].push(run);
        }
        split
    }
}

fn check(name: &str, x: &Tensor, vectors: &[&Tensor]) -> Result<Dims> {
    let &[batch, channels, ref rest @ ..] = x.dims() else {
        bail!("{name}: expected [batch, channels, ..], got {:?}", x.dims())
    };
    if vectors.iter().any(|v| v.dims() != [channels] || v.dtype() != x.dtype()) {
        let found: Vec<_> = vectors.iter().map(|v| (v.dims(), v.dtype())).collect();
        bail!("{name}: input {:?} {:?} needs vectors [{channels}], got {found:?}", x.dims(), x.dtype())
    }
    Ok(Dims { batch, channels, len: rest.iter().product() })
}

fn widen(x: &Tensor) -> Result<Tensor> {
    if x.dtype() == DType::F64 { Ok(x.clone()) } else { x.to_dtype(DType::F32) }
}

fn train(
    name: &'static str,
    x: &Tensor,
    gain: &Tensor,
    bias: &Tensor,
    residual: Option<&Tensor>,
    eps: f32,
    relu: bool,
) -> Result<(Tensor, Tensor, Tensor)> {
    let dims = check(name, x, &[gain, bias])?;
    if dims.per_channel() == 0 {
        bail!("{name}: nothing to average over in {:?}", x.dims())
    }
    if let Some(r) = residual
        && (r.dims() != x.dims() || r.dtype() != x.dtype())
    {
        bail!("{name}: residual {:?} differs from input {:?}", r.dims(), x.dims())
    }
    if !direct(x) {
        return composed(&dims, x, gain, bias, residual, eps, relu);
    }
    let op = BatchNorm { name, dims, eps, relu, given: None };
    match x.dtype() {
        DType::F64 => op.run::<f64>(x, gain, bias, residual),
        _ => op.run::<f32>(x, gain, bias, residual),
    }
}

/// Batch normalisation as candle ops.
fn composed(
    dims: &Dims,
    x: &Tensor,
    gain: &Tensor,
    bias: &Tensor,
    residual: Option<&Tensor>,
    eps: f32,
    relu: bool,
) -> Result<(Tensor, Tensor, Tensor)> {
    let x32 = widen(x)?.reshape((dims.batch, dims.channels, dims.len))?;
    let mean = x32.mean_keepdim(2)?.mean_keepdim(0)?;
    let variance = x32.broadcast_sub(&mean)?.sqr()?.mean_keepdim(2)?.mean_keepdim(0)?;
    let mut y = dims.affine(&x32, &mean, &variance, gain, bias, eps)?.reshape(x.shape())?;
    if let Some(r) = residual {
        y = (y + widen(r)?)?;
    }
    if relu {
        y = y.relu()?;
    }
    let flat = |t: &Tensor| t.detach().flatten_all()?.to_dtype(x.dtype());
    Ok((y.to_dtype(x.dtype())?, flat(&mean)?, flat(&variance)?))
}

/// Options and sizes of one batch normalisation.
#[derive(Clone)]
struct BatchNorm {
    name: &'static str,
    dims: Dims,
    eps: f32,
    relu: bool,
    /// Mean and variance when they are constants.
    given: Option<(Tensor, Tensor)>,
}

/// What the backward pass needs of the forward pass.
struct BatchNormed<T> {
    options: BatchNorm,
    mean: Vec<T>,
    /// `1/√(variance + eps)`.
    rstd: Vec<T>,
}

impl BatchNorm {
    fn run<T: Real>(
        self,
        x: &Tensor,
        gain: &Tensor,
        bias: &Tensor,
        residual: Option<&Tensor>,
    ) -> Result<(Tensor, Tensor, Tensor)> {
        let given = match &self.given {
            Some((mean, variance)) => Some((mean.to_vec1::<T>()?, variance.to_vec1::<T>()?)),
            None => None,
        };
        let (gains, biases) = (gain.to_vec1::<T>()?, bias.to_vec1::<T>()?);
        let (y, mean, variance) = with_elements::<T, _>(x, |x| match residual {
            None => Ok(self.forward(x, None, &gains, &biases, given)),
            Some(r) => with_elements(r, |r| self.forward(x, Some(r), &gains, &biases, given)),
        })??;
        let eps = T::narrow(f64::from(self.eps));
        let rstd = variance.iter().map(|&v| (v + eps).sqrt().recip()).collect();
        let channels = self.dims.channels;
        let statistics = [&mean, &variance]
            .map(|t| Tensor::from_slice(t, channels, x.device()));
        let op = BatchNormed { options: self, mean, rstd };
        let args: Vec<&Tensor> = [x, gain, bias].into_iter().chain(residual).collect();
        let y = record(op, &args, T::to_cpu_storage_owned(y), x.shape())?;
        let [mean, variance] = statistics;
        Ok((y, mean?, variance?))
    }

    fn forward<T: Real>(
        &self,
        x: &[T],
        residual: Option<&[T]>,
        gain: &[T],
        bias: &[T],
        given: Option<(Vec<T>, Vec<T>)>,
    ) -> (Vec<T>, Vec<T>, Vec<T>) {
        let dims = self.dims.joined();
        let x = &*self.dims.channel_major(x);
        let residual = residual.map(|r| self.dims.channel_major(r));
        let count = dims.per_channel().max(1) as f64;
        let eps = T::narrow(f64::from(self.eps));
        let mut y = vec![T::zero(); x.len()];
        let channel = |(c, out): (usize, Vec<&mut [T]>)| {
            vectorised(
                #[inline(always)]
                || {
                    let (mean, variance) = match &given {
                        Some((mean, variance)) => (mean[c], variance[c]),
                        None => {
                            let total: f64 = dims.runs(x, c).map(|run| sum(run, |v| v)).sum();
                            let mean = T::narrow(total / count);
                            let spread = |run| sum(run, |v: T| (v - mean) * (v - mean));
                            let total: f64 = dims.runs(x, c).map(spread).sum();
                            (mean, T::narrow(total / count))
                        }
                    };
                    let scale = gain[c] / (variance + eps).sqrt();
                    let mut others = residual.as_deref().map(|r| dims.runs(r, c));
                    for (out, x) in out.into_iter().zip(dims.runs(x, c)) {
                        let other = others.as_mut().and_then(Iterator::next);
                        affine(out, x, other, mean, scale, bias[c], self.relu);
                    }
                    (mean, variance)
                },
            )
        };
        let tasks: Vec<_> = dims.split(&mut y).into_iter().enumerate().collect();
        let (mean, variance) = if dims.elements() < SMALL {
            tasks.into_iter().map(channel).unzip()
        } else {
            tasks.into_par_iter().map(channel).unzip()
        };
        (self.dims.batch_major(y), mean, variance)
    }
}

#[inline(always)]
fn affine<T: Real>(
    out: &mut [T],
    x: &[T],
    residual: Option<&[T]>,
    mean: T,
    scale: T,
    bias: T,
    relu: bool,
) {
    let floor = if relu { T::zero() } else { T::neg_infinity() };
    // `NaN` must survive, hence no `max`.
    let clip = |v: T| if v < floor { floor } else { v };
    match residual {
        None => {
            for (o, &x) in out.iter_mut().zip(x) {
                *o = clip((x - mean) * scale + bias);
            }
        }
        Some(r) => {
            for ((o, &x), &r) in out.iter_mut().zip(x).zip(r) {
                *o = clip((x - mean) * scale + bias + r);
            }
        }
    }
}

impl<T: Real> Op for BatchNormed<T> {
    fn name(&self) -> &'static str {
        self.options.name
    }

    fn backward(&self, cx: &mut Cx<'_>) -> Result<()> {
        let gains = cx.args[1].to_vec1::<T>()?;
        let want_residual = cx.args.len() > 3 && cx.wants(3) && self.options.relu;
        let result = with_elements::<T, _>(&cx.args[0], |x| {
            with_elements::<T, _>(cx.grad, |grad| {
                if self.options.relu {
                    let gates = |y: &[T]| self.gradients(x, Some(y), grad, &gains, want_residual);
                    with_elements::<T, _>(cx.out, gates)
                } else {
                    Ok(self.gradients(x, None, grad, &gains, false))
                }
            })
        })???;
        let (shape, device) = (cx.out.shape().clone(), cx.grad.device().clone());
        let channels = self.options.dims.channels;
        if cx.wants(0) {
            cx.give(0, Tensor::from_vec(result.input, shape.clone(), &device)?)?;
        }
        if cx.wants(1) {
            cx.give(1, Tensor::from_vec(result.gain, channels, &device)?)?;
        }
        if cx.wants(2) {
            cx.give(2, Tensor::from_vec(result.bias, channels, &device)?)?;
        }
        if want_residual {
            cx.give(3, Tensor::from_vec(result.residual, shape, &device)?)?;
        } else if cx.args.len() > 3 && cx.wants(3) {
            cx.share(3, cx.grad.clone())?;
        }
        Ok(())
    }
}

struct Gradients<T> {
    input: Vec<T>,
    residual: Vec<T>,
    gain: Vec<T>,
    bias: Vec<T>,
}

impl<T: Real> BatchNormed<T> {
    /// With `g` the gradient behind the ReLU and `x̂` the normalised input:
    /// `dx = gain · rstd · (g − mean(g) − x̂ · mean(g·x̂))`; without the means when the statistics
    /// are constants.
    fn gradients(
        &self,
        x: &[T],
        y: Option<&[T]>,
        grad: &[T],
        gain: &[T],
        want_residual: bool,
    ) -> Gradients<T> {
        let outer = self.options.dims;
        let dims = outer.joined();
        let (x, grad) = (&*outer.channel_major(x), &*outer.channel_major(grad));
        // Without a ReLU the gate is a slice that is never closed: the input itself is not read.
        let y = y.map(|y| outer.channel_major(y));
        let count = dims.per_channel().max(1) as f64;
        let constant = self.options.given.is_some();
        let mut input = vec![T::zero(); x.len()];
        let mut residual = vec![T::zero(); if want_residual { x.len() } else { 0 }];
        let channel = |(c, (dx, dr)): (usize, (Vec<&mut [T]>, Vec<&mut [T]>))| {
            vectorised(
                #[inline(always)]
                || {
                    let (mean, rstd) = (self.mean[c], self.rstd[c]);
                    let (mut total, mut along) = (0.0, 0.0);
                    let mut gates = y.as_deref().map(|y| dims.runs(y, c));
                    for (g, x) in dims.runs(grad, c).zip(dims.runs(x, c)) {
                        let gate = gates.as_mut().and_then(Iterator::next);
                        let (a, b) = gradient_sums(g, gate, x, mean);
                        total += a;
                        along += b;
                    }
                    let scale = gain[c] * rstd;
                    let (offset, slope) = if constant {
                        (T::zero(), T::zero())
                    } else {
                        let slope = along / count * (rstd * rstd).wide();
                        (T::narrow(total / count), T::narrow(slope))
                    };
                    let line = Line { mean, scale, offset, slope };
                    let mut gates = y.as_deref().map(|y| dims.runs(y, c));
                    let mut residuals = dr.into_iter();
                    for ((dx, g), x) in dx.into_iter().zip(dims.runs(grad, c)).zip(dims.runs(x, c)) {
                        match gates.as_mut().and_then(Iterator::next) {
                            None => line.plain(dx, g, x),
                            Some(y) => match residuals.next() {
                                None => line.gated(dx, g, x, y),
                                Some(dr) => {
                                    gated(dr, g, y);
                                    line.plain(dx, dr, x);
                                }
                            },
                        }
                    }
                    (T::narrow(along * rstd.wide()), T::narrow(total))
                },
            )
        };
        let mut residuals = dims.split(&mut residual);
        residuals.resize_with(dims.channels, Vec::new);
        let tasks: Vec<_> = dims.split(&mut input).into_iter().zip(residuals).enumerate().collect();
        let (gain, bias) = if dims.elements() < SMALL {
            tasks.into_iter().map(channel).unzip()
        } else {
            tasks.into_par_iter().map(channel).unzip()
        };
        let [input, residual] = [input, residual].map(|t| outer.batch_major(t));
        Gradients { input, residual, gain, bias }
    }
}

/// `dx = scale · (g − offset − (x − mean) · slope)`.
#[derive(Clone, Copy)]
struct Line<T> {
    mean: T,
    scale: T,
    offset: T,
    slope: T,
}

impl<T: Real> Line<T> {
    #[inline(always)]
    fn at(self, g: T, x: T) -> T {
        self.scale * (g - self.offset - (x - self.mean) * self.slope)
    }

    #[inline(always)]
    fn plain(self, dx: &mut [T], grad: &[T], x: &[T]) {
        for ((d, &g), &x) in dx.iter_mut().zip(grad).zip(x) {
            *d = self.at(g, x);
        }
    }

    #[inline(always)]
    fn gated(self, dx: &mut [T], grad: &[T], x: &[T], y: &[T]) {
        for (((d, &g), &x), &y) in dx.iter_mut().zip(grad).zip(x).zip(y) {
            *d = self.at(if y > T::zero() { g } else { T::zero() }, x);
        }
    }
}

/// The gradient where the ReLU was open.
#[inline(always)]
fn gated<T: Real>(out: &mut [T], grad: &[T], y: &[T]) {
    for ((o, &g), &y) in out.iter_mut().zip(grad).zip(y) {
        *o = if y > T::zero() { g } else { T::zero() };
    }
}

/// `(Σ g, Σ g·(x − mean))` over the elements whose gate is open.
#[inline(always)]
fn gradient_sums<T: Real>(grad: &[T], gate: Option<&[T]>, x: &[T], mean: T) -> (f64, f64) {
    const LANES: usize = 32;
    let mut total = [T::zero(); LANES];
    let mut along = [T::zero(); LANES];
    let mut add = |grad: &[T], gate: Option<&[T]>, x: &[T]| match gate {
        None => {
            for (l, (&g, &x)) in grad.iter().zip(x).enumerate() {
                total[l] += g;
                along[l] += g * (x - mean);
            }
        }
        Some(gate) => {
            for (l, ((&g, &x), &y)) in grad.iter().zip(x).zip(gate).enumerate() {
                let g = if y > T::zero() { g } else { T::zero() };
                total[l] += g;
                along[l] += g * (x - mean);
            }
        }
    };
    let gates = gate.map(|gate| gate.as_chunks::<LANES>());
    let ((grads, grad_tail), (xs, x_tail)) = (grad.as_chunks::<LANES>(), x.as_chunks::<LANES>());
    match gates {
        None => {
            for (g, x) in grads.iter().zip(xs) {
                add(g, None, x);
            }
            add(grad_tail, None, x_tail);
        }
        Some((gates, gate_tail)) => {
            for ((g, x), y) in grads.iter().zip(xs).zip(gates) {
                add(g, Some(y), x);
            }
            add(grad_tail, Some(gate_tail), x_tail);
        }
    }
    let wide = |lanes: [T; LANES]| lanes.iter().map(|v| v.wide()).sum::<f64>();
    (wide(total), wide(along))
}
