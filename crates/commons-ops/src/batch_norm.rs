//! Normalisation over batch and space (BatchNorm, Ioffe & Szegedy 2015, algorithm 1) and over
//! groups of channels (GroupNorm, Wu & He 2018, equations 1–6).
//!
//! Inputs are `[batch, channels, ..]` with any number of trailing dimensions.

use std::borrow::Cow;

use candle_core::{DType, Result, Tensor, bail};
use rayon::prelude::*;

use crate::slices::{Real, direct, sum, vectorised, with_elements};
use crate::tape::{Cx, Op, record};

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

#[derive(Clone, Copy)]
struct GroupNorm {
    dims: Dims,
    groups: usize,
    eps: f32,
}

/// A group normalisation with each group's mean and `1/√(variance + eps)`.
struct GroupNormed<T> {
    options: GroupNorm,
    statistics: Vec<(T, T)>,
}

impl GroupNorm {
    /// Elements of one group of one sample.
    fn group_len(&self) -> usize {
        self.dims.channels / self.groups * self.dims.len
    }

    fn composed(&self, x: &Tensor, gain: &Tensor, bias: &Tensor) -> Result<Tensor> {
        let Dims { batch, channels, len } = self.dims;
        let x = widen(x)?.reshape((batch, self.groups, channels / self.groups * len))?;
        let centred = x.broadcast_sub(&x.mean_keepdim(2)?)?;
        let variance = centred.sqr()?.mean_keepdim(2)?;
        let hat = centred.broadcast_div(&(variance + f64::from(self.eps))?.sqrt()?)?;
        hat.reshape((batch, channels, len))?
            .broadcast_mul(&self.dims.column(&widen(gain)?)?)?
            .broadcast_add(&self.dims.column(&widen(bias)?)?)
    }

    fn run<T: Real>(self, x: &Tensor, gain: &Tensor, bias: &Tensor) -> Result<Tensor> {
        let (gains, biases) = (gain.to_vec1::<T>()?, bias.to_vec1::<T>()?);
        let (y, statistics) =
            with_elements::<T, _>(x, |x| self.forward(x, &gains, &biases))?;
        let op = GroupNormed { options: self, statistics };
        record(op, &[x, gain, bias], T::to_cpu_storage_owned(y), x.shape())
    }

    fn forward<T: Real>(&self, x: &[T], gain: &[T], bias: &[T]) -> (Vec<T>, Vec<(T, T)>) {
        let (size, len) = (self.group_len().max(1), self.dims.len.max(1));
        let mut y = vec![T::zero(); x.len()];
        let group = |(at, (out, x)): (usize, (&mut [T], &[T]))| {
            vectorised(
                #[inline(always)]
                || {
                    let mean = T::narrow(sum(x, |v| v) / size as f64);
                    let variance = sum(x, |v| (v - mean) * (v - mean)) / size as f64;
                    let rstd = T::narrow((variance + f64::from(self.eps)).sqrt().recip());
                    let first = at % self.groups * (size / len);
                    for (c, (out, x)) in out.chunks_mut(len).zip(x.chunks(len)).enumerate() {
                        let c = first + c;
                        affine(out, x, None, mean, rstd * gain[c], bias[c], false);
                    }
                    (mean, rstd)
                },
            )
        };
        let statistics = if x.len() < SMALL {
            y.chunks_mut(size).zip(x.chunks(size)).enumerate().map(group).collect()
        } else {
            y.par_chunks_mut(size).zip(x.par_chunks(size)).enumerate().map(group).collect()
        };
        (y, statistics)
    }
}

impl<T: Real> Op for GroupNormed<T> {
    fn name(&self) -> &'static str {
        "group_norm"
    }

    fn backward(&self, cx: &mut Cx<'_>) -> Result<()> {
        let gains = cx.args[1].to_vec1::<T>()?;
        let (dx, dgain, dbias) = with_elements::<T, _>(&cx.args[0], |x| {
            with_elements::<T, _>(cx.grad, |grad| self.gradients(x, grad, &gains))
        })??;
        let device = cx.grad.device().clone();
        if cx.wants(0) {
            cx.give(0, Tensor::from_vec(dx, cx.args[0].shape(), &device)?)?;
        }
        for (i, vector) in [(1, dgain), (2, dbias)] {
            if cx.wants(i) {
                cx.give(i, Tensor::from_vec(vector, self.options.dims.channels, &device)?)?;
            }
        }
        Ok(())
    }
}

impl<T: Real> GroupNormed<T> {
    /// As for batch normalisation, with `g = gain · dy` and means over the group.
    fn gradients(&self, x: &[T], grad: &[T], gain: &[T]) -> (Vec<T>, Vec<T>, Vec<T>) {
        let options = &self.options;
        let (size, len) = (options.group_len().max(1), options.dims.len.max(1));
        let mut dx = vec![T::zero(); x.len()];
        let group = |(at, ((dx, x), grad)): (usize, ((&mut [T], &[T]), &[T]))| {
            vectorised(
                #[inline(always)]
                || {
                    let (mean, rstd) = self.statistics[at];
                    let first = at % options.groups * (size / len);
                    let sums: Vec<(f64, f64)> = x
                        .chunks(len)
                        .zip(grad.chunks(len))
                        .map(|(x, g)| {
                            let runs = x.chunks(4096).zip(g.chunks(4096));
                            runs.fold((0.0, 0.0), |(total, along), (x, g)| {
                                let (a, b) = gradient_sums(g, None, x, mean);
                                (total + a, along + b)
                            })
                        })
                        .collect();
                    let weigh = |pick: fn(&(f64, f64)) -> f64| {
                        let weighted = sums.iter().zip(&gain[first..]);
                        weighted.map(|(s, &w)| pick(s) * w.wide()).sum::<f64>() / size as f64
                    };
                    let (total, along) = (weigh(|s| s.0), weigh(|s| s.1));
                    let slope = T::narrow(along * (rstd * rstd).wide() * rstd.wide());
                    let offset = T::narrow(total * rstd.wide());
                    let runs = dx.chunks_mut(len).zip(x.chunks(len)).zip(grad.chunks(len));
                    for (c, ((dx, x), grad)) in runs.enumerate() {
                        let scale = gain[first + c] * rstd;
                        for ((d, &x), &g) in dx.iter_mut().zip(x).zip(grad) {
                            *d = scale * g - offset - (x - mean) * slope;
                        }
                    }
                    sums
                },
            )
        };
        let sums: Vec<Vec<(f64, f64)>> = if x.len() < SMALL {
            dx.chunks_mut(size).zip(x.chunks(size)).zip(grad.chunks(size)).enumerate().map(group).collect()
        } else {
            dx.par_chunks_mut(size)
                .zip(x.par_chunks(size))
                .zip(grad.par_chunks(size))
                .enumerate()
                .map(group)
                .collect()
        };
        let mut total = vec![(0.0, 0.0); options.dims.channels];
        for (at, sums) in sums.iter().enumerate() {
            let rstd = self.statistics[at].1.wide();
            let into = &mut total[at % options.groups * (size / len)..];
            for (into, sums) in into.iter_mut().zip(sums) {
                into.0 += sums.0;
                into.1 += sums.1 * rstd;
            }
        }
        let (dbias, dgain) = total.iter().map(|s| (T::narrow(s.0), T::narrow(s.1))).unzip();
        (dx, dgain, dbias)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{agree, distance, mix, randn, var};
    use crate::{Var, backward};

    fn reference(
        t: &[Tensor],
        residual: bool,
        relu: bool,
    ) -> Result<(Tensor, Tensor, Tensor)> {
        let dims = check("reference", &t[0], &[])?;
        composed(&dims, &t[0], &t[1], &t[2], residual.then(|| &t[3]), 1e-3, relu)
    }

    #[test]
    fn batch_norm_matches_the_composed_graph() {
        for (at, shape) in [&[3, 5, 4, 7][..], &[9, 6], &[1, 3, 50], &[4, 2, 3, 3, 2]].iter().enumerate() {
            let at = at as u64;
            let c = shape[1];
            let inputs = [randn(at, shape), randn(10 + at, &[c]), randn(20 + at, &[c]), randn(30 + at, shape)];
            let [x, gain, bias, residual] = &inputs;
            let x = &(x * 2.0).unwrap().affine(1.0, 3.0).unwrap();
            let plain = |t: &[Tensor]| Ok(batch_norm(&t[0], &t[1], &t[2], 1e-3)?.0);
            agree(&[x, gain, bias], plain, |t| Ok(reference(t, false, false)?.0), 1e-4);
            let relu = |t: &[Tensor]| Ok(batch_norm_relu(&t[0], &t[1], &t[2], None, 1e-3)?.0);
            agree(&[x, gain, bias], relu, |t| Ok(reference(t, false, true)?.0), 1e-4);
            let whole =
                |t: &[Tensor]| Ok(batch_norm_relu(&t[0], &t[1], &t[2], Some(&t[3]), 1e-3)?.0);
            agree(&[x, gain, bias, residual], whole, |t| Ok(reference(t, true, true)?.0), 1e-4);
            // The same code in double precision.
            let double = |t: &[Tensor]| {
                let t: Vec<_> = t.iter().map(|t| t.to_dtype(DType::F64)).collect::<Result<_>>()?;
                Ok(batch_norm_relu(&t[0], &t[1], &t[2], Some(&t[3]), 1e-3)?.0)
            };
            agree(&[x, gain, bias, residual], double, |t| Ok(reference(t, true, true)?.0), 1e-6);
            let (_, mean, variance) = batch_norm(x, gain, bias, 1e-3).unwrap();
            let (_, m, v) = reference(&[x.clone(), gain.clone(), bias.clone()], false, false).unwrap();
            assert!(distance(&mean, &m) < 1e-6 && distance(&variance, &v) < 1e-5);
        }
    }

    #[test]
    fn eval_uses_the_given_statistics() {
        let (x, gain, bias) = (randn(1, &[3, 4, 5]), randn(2, &[4]), randn(3, &[4]));
        let (mean, variance) = (randn(4, &[4]), randn(5, &[4]).sqr().unwrap());
        let dims = check("reference", &x, &[]).unwrap();
        agree(
            &[&x, &gain, &bias],
            |t| batch_norm_eval(&t[0], &t[1], &t[2], &mean, &variance, 1e-3),
            |t| {
                let column = |t: &Tensor| dims.column(&t.to_dtype(DType::F64)?);
                dims.affine(&t[0], &column(&mean)?, &column(&variance)?, &t[1], &t[2], 1e-3)
            },
            1e-5,
        );
        // Feeding back the batch's own statistics gives the training result.
        let (y, mean, variance) = batch_norm(&x, &gain, &bias, 1e-3).unwrap();
        let again = batch_norm_eval(&x, &gain, &bias, &mean, &variance, 1e-3).unwrap();
        assert!(distance(&again, &y) < 1e-6);
    }

    #[test]
    fn group_norm_matches_the_composed_graph() {
        for (shape, groups) in [(&[2, 6, 5, 3][..], 3), (&[3, 4], 2), (&[2, 4, 9], 4), (&[2, 6, 35], 1)] {
            let c = shape[1];
            let (x, gain, bias) = (randn(1, shape), randn(2, &[c]), randn(3, &[c]));
            agree(
                &[&x, &gain, &bias],
                |t| group_norm(&t[0], groups, &t[1], &t[2], 1e-3),
                |t| {
                    let dims = check("reference", &t[0], &[])?;
                    let op = GroupNorm { dims, groups, eps: 1e-3 };
                    op.composed(&t[0], &t[1], &t[2])?.reshape(shape)
                },
                1e-4,
            );
        }
    }

    #[test]
    fn strided_input_used_twice() {
        let x = var(1, &[5, 4, 3]);
        let (gain, bias) = (var(2, &[4]), var(3, &[4]));
        let t = x.transpose(0, 2).unwrap();
        let y = batch_norm_relu(&t, &gain, &bias, Some(&t), 1e-3).unwrap().0;
        let grads = backward(&mix(&y).unwrap()).unwrap();
        let plain = Var::from_tensor(&x.to_dtype(DType::F64).unwrap()).unwrap();
        let (gain, bias) = [&gain, &bias].map(|v| v.to_dtype(DType::F64).unwrap()).into();
        let t = plain.transpose(0, 2).unwrap().contiguous().unwrap();
        let want = reference(&[t.clone(), gain, bias, t], true, true).unwrap().0;
        assert!(distance(&y, &want) < 1e-5);
        let want = mix(&want).unwrap().backward().unwrap();
        assert!(distance(grads.get(&x).unwrap(), want.get(&plain).unwrap()) < 1e-4);
    }

    #[test]
    fn threads_do_not_matter_and_offsets_do_not_hurt() {
        let x = (randn(1, &[8, 24, 20, 20]) + 1000.0).unwrap();
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let x = Var::from_tensor(&x).unwrap();
                let (gain, bias) = (var(2, &[24]), var(3, &[24]));
                let y = batch_norm_relu(&x, &gain, &bias, None, 1e-5).unwrap().0;
                let z = group_norm(&y, 3, &gain, &bias, 1e-5).unwrap();
                let grads = backward(&mix(&z).unwrap()).unwrap();
                [&z, grads.get(&x).unwrap(), grads.get(&gain).unwrap()]
                    .map(|t| t.flatten_all().unwrap().to_vec1::<f32>().unwrap())
            })
        };
        let one = run(1);
        assert!(one == run(2) && one == run(4));
        // A large mean must not swamp the variance.
        let ones = Tensor::ones(24, DType::F32, x.device()).unwrap();
        let (_, _, variance) = batch_norm(&x, &ones, &ones, 1e-5).unwrap();
        for v in variance.to_vec1::<f32>().unwrap() {
            assert!((v - 1.0).abs() < 0.1, "{v}");
        }
    }

    #[test]
    fn misuse_is_explained() {
        let x = randn(1, &[2, 3, 4]);
        let (three, four) = (randn(2, &[3]), randn(3, &[4]));
        let message = batch_norm(&x, &four, &three, 1e-5).unwrap_err().to_string();
        assert!(message.contains("needs vectors [3]"), "{message}");
        assert!(batch_norm_relu(&x, &three, &three, Some(&three), 1e-5).is_err());
        assert!(group_norm(&x, 2, &three, &three, 1e-5).is_err());
        assert!(batch_norm(&randn(1, &[3]), &three, &three, 1e-5).is_err());
    }
}
