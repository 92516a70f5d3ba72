//! A scalar gate on a residual update.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use crate::tape::{self, Cx, Op};
use crate::view;

/// Elements whose products are summed in `f32` before the sum goes to `f64`.
const PIECE: usize = 4096;

/// `x + gate · update`: `x` and `update` of one shape, `gate` a single element.
///
/// The gradient of `x` is the incoming one, that of `update` is it times the gate, and that of the
/// gate is the inner product of the incoming gradient with `update`.
///
/// # Errors
/// If the shapes of `x` and `update` differ, or `gate` is not a single element.
pub fn gated_add(x: &Tensor, update: &Tensor, gate: &Tensor) -> Result<Tensor> {
    if x.dims() != update.dims() {
        bail!("gated_add: input {:?} and update {:?} differ in shape", x.dims(), update.dims())
    }
    if gate.elem_count() != 1 {
        bail!("gated_add: the gate must be one number, got {:?}", gate.dims())
    }
    if !view::fused(&[x, update, gate]) {
        return composed(x, update, gate);
    }
    let value = view::read(gate, |g| {
        view::read(x, |x| {
            view::read(update, |u| {
                let mut y = x.to_vec();
                add_scaled(&mut y, u, g[0]);
                Ok(y)
            })
        })
    })?;
    tape::record_f32(GatedAdd, &[x, update, gate], value, x.shape())
}

/// [`gated_add`] as a candle graph, for other types and devices.
fn composed(x: &Tensor, update: &Tensor, gate: &Tensor) -> Result<Tensor> {
    x + update.broadcast_mul(&gate.reshape(())?)?
}

struct GatedAdd;

impl Op for GatedAdd {
    fn name(&self) -> &'static str {
        "gated-add"
    }

    fn backward(&self, cx: &mut Cx<'_>) -> Result<()> {
        let (update, gate, grad) = (cx.args[1].clone(), cx.args[2].clone(), cx.grad.clone());
        if cx.wants(0) {
            cx.share(0, cx.grad.clone())?;
        }
        if cx.wants(1) {
            let g = view::read(&gate, |g| Ok(g[0]))?;
            cx.accumulate(1, |dst, _| {
                view::read(&grad, |grad| {
                    add_scaled(dst, grad, g);
                    Ok(())
                })
            })?;
        }
        if cx.wants(2) {
            let product = view::read(&grad, |d| view::read(&update, |u| Ok(dot(d, u))))?;
            cx.give_vec(2, vec![product as f32])?;
        }
        Ok(())
    }
}

/// `y += c · x`.
fn add_scaled(y: &mut [f32], x: &[f32], c: f32) {
    y.par_chunks_mut(PIECE).zip(x.par_chunks(PIECE)).for_each(|(y, x)| {
        y.iter_mut().zip(x).for_each(|(y, x)| *y += c * x);
    });
}

/// `Σ a·b`, pieces added in order so that the result does not depend on the threads.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    let piece = |(a, b): (&[f32], &[f32])| -> f64 {
        let mut lanes = [0f32; 16];
        let (a16, b16) = (a.chunks_exact(16), b.chunks_exact(16));
        let rest: f32 = a16.remainder().iter().zip(b16.remainder()).map(|(a, b)| a * b).sum();
        for (a, b) in a16.zip(b16) {
            for i in 0..16 {
                lanes[i] += a[i] * b[i];
            }
        }
        lanes.iter().map(|&v| f64::from(v)).sum::<f64>() + f64::from(rest)
    };
    let sums: Vec<f64> = a.par_chunks(PIECE).zip(b.par_chunks(PIECE)).map(piece).collect();
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};
    use commons_core::Seed;

    use super::*;
    use crate::backward;

    fn normal(seed: u64, shape: &[usize]) -> Tensor {
        let mut v = vec![0f32; shape.iter().product()];
        Seed::new(seed).normal(0, &mut v);
        Tensor::from_vec(v, shape, &Device::Cpu).unwrap()
    }

    fn flat(t: &Tensor) -> Vec<f64> {
        t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    /// Gradients of `Σ w · gated_add(x, u, g)` in the given type.
    fn gradients(dtype: DType, shape: &[usize]) -> Vec<Vec<f64>> {
        let var = |seed, shape: &[usize]| {
            Var::from_tensor(&normal(seed, shape).to_dtype(dtype).unwrap()).unwrap()
        };
        let (x, u, g) = (var(1, shape), var(2, shape), var(3, &[1]));
        let w = normal(4, shape).to_dtype(dtype).unwrap();
        let y = gated_add(&x, &u, &g).unwrap();
        let loss = (y * w).unwrap().sum_all().unwrap();
        let grads = backward(&loss).unwrap();
        [&x, &u, &g].iter().map(|v| flat(grads.get(v).unwrap())).collect()
    }

    #[test]
    fn fused_equals_composed_in_f64() {
        for shape in [&[2, 3, 5][..], &[3, 41, 77]] {
            let (fused, exact) = (gradients(DType::F32, shape), gradients(DType::F64, shape));
            for (a, b) in fused.iter().zip(&exact) {
                assert_eq!(a.len(), b.len());
                for (a, b) in a.iter().zip(b) {
                    assert!((a - b).abs() <= 1e-4 * (1. + b.abs()), "{a} against {b}");
                }
            }
        }
    }

    #[test]
    fn gate_gradient_is_the_finite_difference() {
        let (x, u, w) = (normal(5, &[7, 9]), normal(6, &[7, 9]), normal(7, &[7, 9]));
        let (x, u, w) = [x, u, w].map(|t| t.to_dtype(DType::F64).unwrap()).into();
        let value = |g: f64| -> Tensor {
            let gate = Tensor::new(&[g], &Device::Cpu).unwrap();
            (gated_add(&x, &u, &gate).unwrap() * &w).unwrap().sum_all().unwrap()
        };
        let step = 1e-5;
        let at = |g| value(g).to_scalar::<f64>().unwrap();
        let slope = (at(0.3 + step) - at(0.3 - step)) / (2. * step);
        let gate = Var::new(&[0.3f64], &Device::Cpu).unwrap();
        let loss = (gated_add(&x, &u, &gate).unwrap() * &w).unwrap().sum_all().unwrap();
        let grad = flat(backward(&loss).unwrap().get(&gate).unwrap())[0];
        assert!((grad - slope).abs() < 1e-7 * (1. + slope.abs()), "{grad} against {slope}");
    }

    #[test]
    fn gates_of_zero_and_one_are_exact() {
        let (x, u) = (normal(8, &[4, 6]), normal(9, &[4, 6]));
        let gate = |g: f32| Tensor::new(&[g], &Device::Cpu).unwrap();
        assert_eq!(flat(&gated_add(&x, &u, &gate(0.)).unwrap()), flat(&x));
        assert_eq!(flat(&gated_add(&x, &u, &gate(1.)).unwrap()), flat(&(&x + &u).unwrap()));
    }

    #[test]
    fn a_chain_of_gates_adds_up_the_gradient_of_the_input() {
        let x = Var::from_tensor(&normal(10, &[2, 8])).unwrap();
        let gate = Var::new(&[0.5f32], &Device::Cpu).unwrap();
        let once = gated_add(&x, &x, &gate).unwrap();
        let twice = gated_add(&once, &once, &gate).unwrap();
        let one = Tensor::new(&[1f32], &Device::Cpu).unwrap();
        let total = gated_add(&one, &twice.sum_all().unwrap().reshape(1).unwrap(), &one).unwrap();
        let grads = backward(&total).unwrap();
        // (1 + g)² x: derivative 2.25 in each element, 2(1 + g) Σx in the gate.
        assert!(flat(grads.get(&x).unwrap()).iter().all(|d| (d - 2.25).abs() < 1e-6));
        let sum: f64 = flat(&x).iter().sum();
        assert!((flat(grads.get(&gate).unwrap())[0] - 3. * sum).abs() < 1e-4);
    }

    #[test]
    fn mismatched_shapes_are_refused() {
        let gate = Tensor::new(&[1f32], &Device::Cpu).unwrap();
        let two = Tensor::new(&[1f32, 2.], &Device::Cpu).unwrap();
        assert!(gated_add(&normal(1, &[2, 3]), &normal(1, &[3, 2]), &gate).is_err());
        assert!(gated_add(&normal(1, &[2]), &normal(1, &[2]), &two).is_err());
    }
}
