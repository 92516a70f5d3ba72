//! Activations, gates and table look-up.

use crate::simd::{self, normal_cdf};
use crate::tape::{self, Cx, Op};
use crate::view::{fused, read};
use crate::{check, composed, par};
use candle_core::{Result, Tensor, bail};

/// Functions applied to each element.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Activation {
    /// `x`.
    #[default]
    Identity,
    /// `max(x, 0)`.
    Relu,
    /// `x·Φ(x)` with the exact normal distribution function.
    Gelu,
    /// The tanh approximation of GELU.
    GeluTanh,
    /// `x·σ(x)`.
    Silu,
    /// Hyperbolic tangent.
    Tanh,
    /// `1 / (1 + e^-x)`.
    Sigmoid,
}

impl Activation {
    /// Whether the slope is a function of the input only, not of the output.
    pub(crate) fn needs_input(self) -> bool {
        matches!(self, Self::Gelu | Self::GeluTanh | Self::Silu)
    }
}

/// A scalar function and its slope; `Self::slope` takes the output where the input is not needed.
trait Function {
    fn value(x: f32) -> f32;
    fn slope(x: f32) -> f32;
}

struct Relu;
struct Gelu;
struct GeluTanh;
struct Silu;
struct Tanh;
struct Sigmoid;

impl Function for Relu {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        // In this order a NaN stays one.
        if x < 0.0 { 0.0 } else { x }
    }
    #[inline(always)]
    fn slope(y: f32) -> f32 {
        if y > 0.0 { 1.0 } else { 0.0 }
    }
}

impl Function for Gelu {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        x * normal_cdf(x).0
    }
    #[inline(always)]
    fn slope(x: f32) -> f32 {
        let (cdf, bell) = normal_cdf(x);
        cdf + x * (bell * 0.398_942_3)
    }
}

/// `√(2/π)`.
const GELU_SCALE: f32 = 0.797_884_6;
const GELU_CUBIC: f32 = 0.044_715;

impl Function for GeluTanh {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        let t = simd::tanh(GELU_SCALE * x * (1.0 + GELU_CUBIC * x * x));
        0.5 * x * (1.0 + t)
    }
    #[inline(always)]
    fn slope(x: f32) -> f32 {
        let t = simd::tanh(GELU_SCALE * x * (1.0 + GELU_CUBIC * x * x));
        let inner = GELU_SCALE * (1.0 + 3.0 * GELU_CUBIC * x * x);
        0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner
    }
}

impl Function for Silu {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        x * simd::sigmoid(x)
    }
    #[inline(always)]
    fn slope(x: f32) -> f32 {
        let s = simd::sigmoid(x);
        s * (1.0 + x * (1.0 - s))
    }
}

impl Function for Tanh {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        simd::tanh(x)
    }
    #[inline(always)]
    fn slope(y: f32) -> f32 {
        1.0 - y * y
    }
}

impl Function for Sigmoid {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        simd::sigmoid(x)
    }
    #[inline(always)]
    fn slope(y: f32) -> f32 {
        y * (1.0 - y)
    }
}

macro_rules! with_function {
    ($act:expr, $f:ident => $body:expr) => {
        match $act {
            Activation::Identity => {}
            Activation::Relu => with_function!(@ Relu, $f, $body),
            Activation::Gelu => with_function!(@ Gelu, $f, $body),
            Activation::GeluTanh => with_function!(@ GeluTanh, $f, $body),
            Activation::Silu => with_function!(@ Silu, $f, $body),
            Activation::Tanh => with_function!(@ Tanh, $f, $body),
            Activation::Sigmoid => with_function!(@ Sigmoid, $f, $body),
        }
    };
    (@ $function:ident, $f:ident, $body:expr) => {{
        type $f = $function;
        simd::run(#[inline(always)] || $body)
    }};
}

/// `x ← act(x)`.
pub(crate) fn activate(act: Activation, x: &mut [f32]) {
    with_function!(act, F => {
        for x in x.iter_mut() {
            *x = F::value(*x);
        }
    });
}

/// `grad ← grad · act'`, at the input, or the output if `act` does not need its input.
pub(crate) fn slope_times(act: Activation, grad: &mut [f32], at: &[f32]) {
    with_function!(act, F => {
        for (g, &x) in grad.iter_mut().zip(at) {
            *g *= F::slope(x);
        }
    });
}

/// Applies `act` to every element.
///
/// # Errors
/// Only if candle fails (out of memory, unsupported type).
pub fn activation(x: &Tensor, act: Activation) -> Result<Tensor> {
    if act == Activation::Identity {
        return Ok(x.clone());
    }
    if !fused(&[x]) {
        return composed::activation(x, act);
    }
    let mut y = read(x, |x| Ok(x.to_vec()))?;
    par::blocks(&mut y, |_, y| activate(act, y));
    tape::record_f32(Apply(act), &[x], y, x.shape())
}

struct Apply(Activation);

impl Op for Apply {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn backward(&self, cx: &mut Cx<'_>) -> Result<()> {
        let at = if self.0.needs_input() { &cx.args[0] } else { cx.out };
        let mut dx = read(cx.grad, |g| Ok(g.to_vec()))?;
        read(at, |at| {
            par::zip2(&mut dx, at, |dx, at| slope_times(self.0, dx, at));
            Ok(())
        })?;
        cx.give_vec(0, dx)
    }
}

/// `max(x, 0)`.
///
/// # Errors
/// As [`activation`].
pub fn relu(x: &Tensor) -> Result<Tensor> {
    activation(x, Activation::Relu)
}

/// `x·Φ(x)` with the exact normal distribution function (Hendrycks & Gimpel 2016).
///
/// # Errors
/// As [`activation`].
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    activation(x, Activation::Gelu)
}

/// `x/2 · (1 + tanh(√(2/π)·(x + 0.044715 x³)))` (Hendrycks & Gimpel 2016, section 2).
///
/// # Errors
/// As [`activation`].
pub fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    activation(x, Activation::GeluTanh)
}

/// `x·σ(x)`.
///
/// # Errors
/// As [`activation`].
pub fn silu(x: &Tensor) -> Result<Tensor> {
    activation(x, Activation::Silu)
}

/// Hyperbolic tangent.
///
/// # Errors
/// As [`activation`].
pub fn tanh(x: &Tensor) -> Result<Tensor> {
    activation(x, Activation::Tanh)
}

/// `1 / (1 + e^-x)`.
///
/// # Errors
/// As [`activation`].
pub fn sigmoid(x: &Tensor) -> Result<Tensor> {
    activation(x, Activation::Sigmoid)
}

/// `silu(gate) · up`, the gated unit of Llama's feed-forward layer (Shazeer 2020).
///
/// # Errors
/// If the shapes differ.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    check::same("swiglu", gate, up)?;
    match fused(&[gate, up]) {
        true => gated::<Silu>(gate, up),
        false => composed::swiglu(gate, up),
    }
}

/// `gelu_tanh(gate) · up`, the gated unit of Gemma (Shazeer 2020).
///
/// # Errors
/// If the shapes differ.
pub fn geglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    check::same("geglu", gate, up)?;
    match fused(&[gate, up]) {
        true => gated::<GeluTanh>(gate, up),
        false => composed::geglu(gate, up),
    }
}

struct Gated<F>(std::marker::PhantomData<F>);

fn gated<F: Function + Send + Sync + 'static>(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let mut y = vec![0f32; gate.elem_count()];
    let work = y.len();
    read(gate, |gate| {
        read(up, |up| {
            let tasks = y.chunks_mut(par::PIECE).zip(gate.chunks(par::PIECE));
            par::each(tasks.zip(up.chunks(par::PIECE)), work, |((y, gate), up)| {
                simd::run(
                    #[inline(always)]
                    || {
                        for ((y, &g), &u) in y.iter_mut().zip(gate).zip(up) {
                            *y = F::value(g) * u;
                        }
                    },
                );
            });
            Ok(())
        })
    })?;
    tape::record_f32(Gated::<F>(std::marker::PhantomData), &[gate, up], y, gate.shape())
}

impl<F: Function + Send + Sync + 'static> Op for Gated<F> {
    fn name(&self) -> &'static str {
        "gated unit"
    }

    fn backward(&self, cx: &mut Cx<'_>) -> Result<()> {
        let n = cx.grad.elem_count();
        let (mut dgate, mut dup) = (vec![0f32; n], vec![0f32; n]);
        let p = par::PIECE;
        read(cx.grad, |dy| {
            read(&cx.args[0], |gate| {
                read(&cx.args[1], |up| {
                    let inputs = dy.chunks(p).zip(gate.chunks(p)).zip(up.chunks(p));
                    let tasks = dgate.chunks_mut(p).zip(dup.chunks_mut(p)).zip(inputs);
                    par::each(tasks, n, |((dgate, dup), ((dy, gate), up))| {
                        simd::run(
                            #[inline(always)]
                            || gated_slopes::<F>(dgate, dup, dy, gate, up),
                        );
                    });
                    Ok(())
                })
            })
        })?;
        if cx.wants(0) {
            cx.give_vec(0, dgate)?;
        }
        if cx.wants(1) {
            cx.give_vec(1, dup)?;
        }
        Ok(())
    }
}

#[inline(always)]
fn gated_slopes<F: Function>(
    dgate: &mut [f32],
    dup: &mut [f32],
    dy: &[f32],
    gate: &[f32],
    up: &[f32],
) {
    let outputs = dgate.iter_mut().zip(dup);
    for ((dgate, dup), ((&dy, &g), &u)) in outputs.zip(dy.iter().zip(gate).zip(up)) {
        *dgate = dy * u * F::slope(g);
        *dup = dy * F::value(g);
    }
}

/// Rows of `w [vocab, width]` picked by `ids` (`u32`, any shape) → `[ids.., width]`.
///
/// # Errors
/// If `w` is not a matrix, `ids` is not `u32`, or an id is not below `vocab`.
pub fn embedding(w: &Tensor, ids: &Tensor) -> Result<Tensor> {
    check::embedding(w, ids)?;
    let (vocab, width) = w.dims2()?;
    let picked = ids.flatten_all()?.to_vec1::<u32>()?;
    if let Some(id) = picked.iter().find(|&&id| id as usize >= vocab) {
        bail!("embedding: id {id} of ids {:?} is outside the table {:?}", ids.dims(), w.dims())
    }
    if !fused(&[w]) {
        return composed::embedding(w, ids);
    }
    let mut y = Vec::with_capacity(picked.len() * width);
    read(w, |w| {
        for &id in &picked {
            let start = id as usize * width;
            y.extend_from_slice(&w[start..start + width]);
        }
        Ok(())
    })?;
    let mut dims = ids.dims().to_vec();
    dims.push(width);
    tape::record_f32(Pick { picked, width }, &[w], y, dims)
}

struct Pick {
    picked: Vec<u32>,
    width: usize,
}

impl Op for Pick {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn backward(&self, cx: &mut Cx<'_>) -> Result<()> {
        let (grad, width) = (cx.grad.clone(), self.width.max(1));
        cx.accumulate(0, |dw, _| {
            read(&grad, |dy| {
                for (&id, dy) in self.picked.iter().zip(dy.chunks_exact(width)) {
                    let start = id as usize * width;
                    for (dw, dy) in dw[start..start + width].iter_mut().zip(dy) {
                        *dw += dy;
                    }
                }
                Ok(())
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{agree, distance, ids, randn, values};
    use candle_core::Device;

    #[test]
    fn activations_and_gates_agree_with_the_definition() {
        let (x, u) = (randn(1, &[3, 17]), randn(2, &[3, 17]));
        for act in [
            Activation::Relu,
            Activation::Gelu,
            Activation::GeluTanh,
            Activation::Silu,
            Activation::Tanh,
            Activation::Sigmoid,
        ] {
            agree(&[&x], |x| activation(&x[0], act), |x| composed::activation(&x[0], act), 1e-5);
        }
        agree(&[&x, &u], |x| swiglu(&x[0], &x[1]), |x| composed::swiglu(&x[0], &x[1]), 1e-5);
        agree(&[&x, &u], |x| geglu(&x[0], &x[1]), |x| composed::geglu(&x[0], &x[1]), 1e-5);
    }

    #[test]
    fn golden_values() {
        let x = Tensor::new(&[-2f32, -0.5, 0.0, 1.0, 3.0], &Device::Cpu).unwrap();
        let near = |y: Tensor, want: [f64; 5]| {
            for (y, want) in values(&y).iter().zip(want) {
                assert!((y - want).abs() < 1e-6, "{y} {want}");
            }
        };
        // PyTorch 2.15: F.gelu(x), F.gelu(x, approximate="tanh"), F.silu(x).
        near(gelu(&x).unwrap(), [-0.0455003, -0.1542688, 0.0, 0.8413447, 2.9959502]);
        near(gelu_tanh(&x).unwrap(), [-0.0454023, -0.1542860, 0.0, 0.8411920, 2.9963627]);
        near(silu(&x).unwrap(), [-0.2384058, -0.1887703, 0.0, 0.7310586, 2.8577224]);
    }

    #[test]
    fn embedding_adds_up_repeated_rows() {
        let w = randn(1, &[5, 3]);
        let picked = ids(&[4, 0, 4, 2]).reshape((2, 2)).unwrap();
        agree(&[&w], |x| embedding(&x[0], &picked), |x| composed::embedding(&x[0], &picked), 1e-6);
        let text = embedding(&w, &ids(&[5])).unwrap_err().to_string();
        assert!(text.contains("id 5") && text.contains("[5, 3]"), "{text}");
        assert!(embedding(&w, &w).is_err());
    }

    #[test]
    fn nan_is_kept_by_every_activation() {
        let x = Tensor::new(&[f32::NAN, 1.0], &Device::Cpu).unwrap();
        for act in [Activation::Relu, Activation::Gelu, Activation::Silu, Activation::Tanh] {
            assert!(values(&activation(&x, act).unwrap())[0].is_nan(), "{act:?}");
        }
    }

    #[test]
    fn strided_input() {
        let x = randn(1, &[40, 50]);
        let turned = x.t().unwrap();
        let want = silu(&turned.contiguous().unwrap()).unwrap();
        assert_eq!(distance(&silu(&turned).unwrap(), &want), 0.0);
    }
}
