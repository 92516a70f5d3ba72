//! Convolutions and their transposes in one and two dimensions.
//!
//! `f32` and `f64` tensors on the CPU use the panel algorithm of [`panel`], in both directions
//! and for all gradients; half precision is computed in `f32`; other devices use candle's ops.

mod geometry;
mod kernel;
mod panel;

use candle_core::{DType, Result, Shape, Tensor, bail};

use crate::slices::with_elements;
use crate::tape::{Cx, Op, record};
use geometry::{Axis, Plan};
use kernel::Element;
use panel::{Channels, Side};

/// Hyper-parameters of a convolution over `D` spatial axes, in the order of those axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvOptions<const D: usize> {
    /// Step between neighbouring outputs (between neighbouring inputs when transposed).
    pub stride: [usize; D],
    /// Zeros added on both sides (removed from both sides when transposed).
    pub padding: [usize; D],
    /// Elements added at the end of the result of a transposed convolution; zero otherwise.
    pub output_padding: [usize; D],
    /// Distance between neighbouring taps of the kernel.
    pub dilation: [usize; D],
    /// Channels are split into this many independent convolutions.
    pub groups: usize,
}

impl<const D: usize> Default for ConvOptions<D> {
    fn default() -> Self {
        Self {
            stride: [1; D],
            padding: [0; D],
            output_padding: [0; D],
            dilation: [1; D],
            groups: 1,
        }
    }
}

impl<const D: usize> ConvOptions<D> {
    /// Stride 1, no dilation, one group and the same padding on every axis.
    pub fn padded(padding: usize) -> Self {
        Self { padding: [padding; D], ..Self::default() }
    }

    /// The same with another stride on every axis.
    pub fn strided(self, stride: usize) -> Self {
        Self { stride: [stride; D], ..self }
    }

    /// The same with another number of groups.
    pub fn grouped(self, groups: usize) -> Self {
        Self { groups, ..self }
    }
}

/// Cross-correlation over the last axis: `x [batch, in, length]`, `weight [out, in/groups, k]`,
/// `bias [out]` → `[batch, out, (length + 2·padding − dilation·(k−1) − 1)/stride + 1]`.
///
/// # Errors
/// If shapes, dtypes or options do not fit; the message names the op and the shapes.
pub fn conv1d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    options: &ConvOptions<1>,
) -> Result<Tensor> {
    convolve("conv1d", x, weight, bias, &widen(options), false)
}

/// Cross-correlation over the last two axes: `x [batch, in, h, w]`,
/// `weight [out, in/groups, kh, kw]`, `bias [out]` → `[batch, out, h', w']`.
///
/// # Errors
/// If shapes, dtypes or options do not fit; the message names the op and the shapes.
pub fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    options: &ConvOptions<2>,
) -> Result<Tensor> {
    convolve("conv2d", x, weight, bias, options, false)
}

/// Transposed convolution over the last axis: `x [batch, in, length]`,
/// `weight [in, out/groups, k]`, `bias [out]` → `[batch, out,
/// (length−1)·stride − 2·padding + dilation·(k−1) + output_padding + 1]`.
///
/// # Errors
/// If shapes, dtypes or options do not fit; the message names the op and the shapes.
pub fn conv_transpose1d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    options: &ConvOptions<1>,
) -> Result<Tensor> {
    convolve("conv_transpose1d", x, weight, bias, &widen(options), true)
}

/// Transposed convolution over the last two axes: `x [batch, in, h, w]`,
/// `weight [in, out/groups, kh, kw]`, `bias [out]` → `[batch, out, h', w']`.
///
/// # Errors
/// If shapes, dtypes or options do not fit; the message names the op and the shapes.
pub fn conv_transpose2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    options: &ConvOptions<2>,
) -> Result<Tensor> {
    convolve("conv_transpose2d", x, weight, bias, options, true)
}

fn widen(o: &ConvOptions<1>) -> ConvOptions<2> {
    ConvOptions {
        stride: [1, o.stride[0]],
        padding: [0, o.padding[0]],
        output_padding: [0, o.output_padding[0]],
        dilation: [1, o.dilation[0]],
        groups: o.groups,
    }
}

fn convolve(
    name: &'static str,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    options: &ConvOptions<2>,
    transposed: bool,
) -> Result<Tensor> {
    let dtype = x.dtype();
    if weight.dtype() != dtype || bias.is_some_and(|b| b.dtype() != dtype) {
        bail!("{name}: input is {dtype:?} but the weight is {:?}", weight.dtype());
    }
    let op = Convolution::new(name, x.dims(), weight.dims(), options, transposed)?;
    if let Some(bias) = bias
        && bias.dims() != [op.output_channels()]
    {
        bail!("{name}: bias {:?} does not match {} channels", bias.dims(), op.output_channels());
    }
    if !x.device().is_cpu() {
        return op.composed(x, weight, bias, options);
    }
    match dtype {
        DType::F32 => op.forward::<f32>(x, weight, bias),
        DType::F64 => op.forward::<f64>(x, weight, bias),
        DType::F16 | DType::BF16 => {
            let bias = bias.map(|b| b.to_dtype(DType::F32)).transpose()?;
            let (x, weight) = (x.to_dtype(DType::F32)?, weight.to_dtype(DType::F32)?);
            convolve(name, &x, &weight, bias.as_ref(), options, transposed)?.to_dtype(dtype)
        }
        other => bail!("{name}: {other:?} is not a floating-point dtype"),
    }
}

/// A convolution with all sizes resolved, as an op of the graph.
#[derive(Clone, Debug)]
struct Convolution {
    name: &'static str,
    transposed: bool,
    batch: usize,
    channels: Channels,
    rows: Axis,
    cols: Axis,
    /// Number of dimensions of input and output, 3 or 4.
    rank: usize,
}

impl Convolution {
    fn new(
        name: &'static str,
        x: &[usize],
        weight: &[usize],
        options: &ConvOptions<2>,
        transposed: bool,
    ) -> Result<Self> {
        let rank = if name.ends_with("1d") { 3 } else { 4 };
        if x.len() != rank || weight.len() != rank {
            bail!("{name}: expected {rank} dimensions, got input {x:?} and weight {weight:?}");
        }
        let groups = options.groups;
        if groups == 0 || !weight[0].is_multiple_of(groups) {
            bail!("{name}: {groups} groups do not divide the weight {weight:?}");
        }
        let expected = if transposed { weight[0] } else { weight[1] * groups };
        if x[1] != expected {
            bail!(
                "{name}: input {x:?} has {} channels, weight {weight:?} with {groups} groups \
                 needs {expected}",
                x[1]
            );
        }
        let axis = |at: usize, option: usize| {
            axis(name, x[at], weight[at], option, options, transposed)
        };
        let unit = Axis { big: 1, small: 1, kernel: 1, stride: 1, padding: 0, dilation: 1 };
        let rows = if rank == 4 { axis(2, 0)? } else { unit };
        let cols = axis(rank - 1, 1)?;
        let channels = Channels {
            groups,
            small: weight[0] / groups,
            big: weight[1],
            taps: rows.kernel * cols.kernel,
        };
        Ok(Self { name, transposed, batch: x[0], channels, rows, cols, rank })
    }

    fn output_channels(&self) -> usize {
        let per_group = if self.transposed { self.channels.big } else { self.channels.small };
        per_group * self.channels.groups
    }

    fn output_shape(&self) -> Shape {
        let size = |axis: &Axis| if self.transposed { axis.big } else { axis.small };
        let mut dims = vec![self.batch, self.output_channels()];
        if self.rank == 4 {
            dims.push(size(&self.rows));
        }
        dims.push(size(&self.cols));
        dims.into()
    }

    fn apply<T: Element>(&self, side: Side, x: &[T], weight: &[T], bias: Option<&[T]>) -> Vec<T> {
        let plan = match side {
            Side::Gather => Plan::gather(&self.rows, &self.cols),
            Side::Scatter => Plan::scatter(&self.rows, &self.cols),
        };
        panel::apply(&plan, &self.channels, side, x, weight, bias, self.batch)
    }

    fn forward<T: Element>(
        self,
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
    ) -> Result<Tensor> {
        let side = if self.transposed { Side::Scatter } else { Side::Gather };
        let y = with_elements::<T, _>(x, |x| {
            with_elements::<T, _>(weight, |w| match bias {
                Some(bias) => with_elements::<T, _>(bias, |b| self.apply(side, x, w, Some(b))),
                None => Ok(self.apply(side, x, w, None)),
            })
        })???;
        let shape = self.output_shape();
        let args: Vec<&Tensor> = [x, weight].into_iter().chain(bias).collect();
        record(self, &args, T::to_cpu_storage_owned(y), shape)
    }

    /// Gives gradients of input, weight and bias, each only where it is wanted.
    fn backward_as<T: Element>(&self, cx: &mut Cx<'_>) -> Result<()> {
        let (x, weight, grad) = (&cx.args[0], &cx.args[1], cx.grad);
        let device = grad.device();
        let side = if self.transposed { Side::Gather } else { Side::Scatter };
        if cx.wants(0) {
            let dx = with_elements::<T, _>(grad, |grad| {
                with_elements::<T, _>(weight, |w| self.apply(side, grad, w, None))
            })??;
            cx.give(0, Tensor::from_vec(dx, x.shape(), device)?)?;
        }
        if cx.wants(1) {
            let (big, small) = if self.transposed { (grad, x) } else { (x, grad) };
            let plan = Plan::gather(&self.rows, &self.cols);
            let dw = with_elements::<T, _>(big, |big| {
                with_elements::<T, _>(small, |small| {
                    panel::correlate(&plan, &self.channels, big, small, self.batch)
                })
            })??;
            cx.give(1, Tensor::from_vec(dw, weight.shape(), device)?)?;
        }
        if cx.args.len() > 2 && cx.wants(2) {
            let db = with_elements::<T, _>(grad, |grad| self.sum_positions(grad))?;
            cx.give(2, Tensor::from_vec(db, cx.args[2].shape(), device)?)?;
        }
        Ok(())
    }

    /// Gradient of the bias: the sum over batch and positions.
    fn sum_positions<T: Element>(&self, grad: &[T]) -> Vec<T> {
        let channels = self.output_channels();
        let len = grad.len() / (self.batch * channels).max(1);
        let mut sums = vec![0.0f64; channels];
        for image in grad.chunks((channels * len).max(1)) {
            for (sum, row) in sums.iter_mut().zip(image.chunks(len.max(1))) {
                *sum += row.iter().map(|v| v.to_f64()).sum::<f64>();
            }
        }
        sums.into_iter().map(T::from_f64).collect()
    }

    /// The same by candle's ops, for devices without kernels of ours.
    fn composed(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        o: &ConvOptions<2>,
    ) -> Result<Tensor> {
        if o.stride[0] != o.stride[1] && self.rank == 4
            || o.padding[0] != o.padding[1] && self.rank == 4
            || o.dilation[0] != o.dilation[1] && self.rank == 4
        {
            bail!("{}: options that differ between axes need the CPU", self.name);
        }
        let (p, s, d, g) = (o.padding[1], o.stride[1], o.dilation[1], o.groups);
        let y = match (self.rank, self.transposed) {
            (3, false) => x.conv1d(weight, p, s, d, g)?,
            (3, true) => x.conv_transpose1d(weight, p, o.output_padding[1], s, d, g)?,
            (_, false) => x.conv2d(weight, p, s, d, g)?,
            (_, true) if g == 1 => x.conv_transpose2d(weight, p, o.output_padding[1], s, d)?,
            (_, true) => bail!("{}: groups need the CPU", self.name),
        };
        let Some(bias) = bias else { return Ok(y) };
        let mut shape = vec![1; self.rank];
        shape[1] = bias.elem_count();
        y.broadcast_add(&bias.reshape(shape)?)
    }
}

fn axis(
    name: &str,
    input: usize,
    kernel: usize,
    at: usize,
    options: &ConvOptions<2>,
    transposed: bool,
) -> Result<Axis> {
    let (stride, padding) = (options.stride[at], options.padding[at]);
    let (dilation, extra) = (options.dilation[at], options.output_padding[at]);
    if stride == 0 || dilation == 0 || kernel == 0 || input == 0 {
        bail!("{name}: input, kernel, stride and dilation must be positive, got {options:?}");
    }
    let span = dilation * (kernel - 1) + 1;
    let (big, small) = if transposed {
        if extra >= stride.max(dilation) {
            bail!("{name}: output_padding {extra} must be below stride or dilation");
        }
        let full = (input - 1) * stride + span + extra;
        match full.checked_sub(2 * padding) {
            Some(big) if big > 0 => (big, input),
            _ => bail!("{name}: padding {padding} leaves nothing of {full} outputs"),
        }
    } else {
        if extra != 0 {
            bail!("{name}: output_padding is for transposed convolutions, got {extra}");
        }
        if input + 2 * padding < span {
            bail!("{name}: kernel spans {span}, the padded input only {}", input + 2 * padding);
        }
        (input, (input + 2 * padding - span) / stride + 1)
    };
    Ok(Axis { big, small, kernel, stride, padding, dilation })
}

impl Op for Convolution {
    fn name(&self) -> &'static str {
        self.name
    }

    fn backward(&self, cx: &mut Cx<'_>) -> Result<()> {
        match cx.grad.dtype() {
            DType::F64 => self.backward_as::<f64>(cx),
            _ => self.backward_as::<f32>(cx),
        }
    }
}

#[cfg(test)]
mod tests;
