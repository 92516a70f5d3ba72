//! Shared by the tests: random tensors and gradients by finite differences.

use crate::{Grads, backward};
use candle_core::{DType, Device, Result, Tensor, Var};
use commons_core::Seed;

/// Standard normal numbers.
pub fn randn(seed: u64, dims: &[usize]) -> Tensor {
    let mut data = vec![0f32; dims.iter().product()];
    Seed::new(seed).normal(0, &mut data);
    Tensor::from_vec(data, dims, &Device::Cpu).unwrap()
}

pub fn var(seed: u64, dims: &[usize]) -> Var {
    Var::from_tensor(&randn(seed, dims)).unwrap()
}

pub fn ids(data: &[u32]) -> Tensor {
    Tensor::new(data, &Device::Cpu).unwrap()
}

pub fn values(x: &Tensor) -> Vec<f64> {
    x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Largest difference in units of the largest reference value.
pub fn distance(got: &Tensor, want: &Tensor) -> f64 {
    assert_eq!(got.dims(), want.dims());
    let (got, want) = (values(got), values(want));
    let size = want.iter().fold(1e-3f64, |m, w| m.max(w.abs()));
    let differ = |(g, w): (&f64, &f64)| if g.is_nan() { f64::INFINITY } else { (g - w).abs() };
    got.iter().zip(&want).map(differ).fold(0.0, f64::max) / size
}

/// A scalar that weighs every element differently.
pub fn mix(y: &Tensor) -> Result<Tensor> {
    let weight: Vec<f64> = (0..y.elem_count()).map(|i| (i as f64 * 0.7).sin() + 0.3).collect();
    let weight = Tensor::from_vec(weight, y.shape(), &Device::Cpu)?.to_dtype(y.dtype())?;
    (y * weight)?.sum_all()
}

/// Checks `fused` (`f32`) against `composed` (`f64`), values and gradients, and the composed
/// gradient against central differences.
pub fn agree(
    inputs: &[&Tensor],
    fused: impl Fn(&[Tensor]) -> Result<Tensor>,
    composed: impl Fn(&[Tensor]) -> Result<Tensor>,
    tolerance: f64,
) {
    let single: Vec<Var> = inputs.iter().map(|x| Var::from_tensor(x).unwrap()).collect();
    let double: Vec<Var> = inputs
        .iter()
        .map(|x| Var::from_tensor(&x.to_dtype(DType::F64).unwrap()).unwrap())
        .collect();
    let run = |vars: &[Var], f: &dyn Fn(&[Tensor]) -> Result<Tensor>| -> (Tensor, Grads) {
        let args: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        let y = f(&args).unwrap();
        let grads = backward(&mix(&y).unwrap()).unwrap();
        (y, grads)
    };
    let (y, grads) = run(&single, &fused);
    let (want, want_grads) = run(&double, &composed);
    assert!(distance(&y, &want) < tolerance, "value differs by {}", distance(&y, &want));
    for (i, (s, d)) in single.iter().zip(&double).enumerate() {
        let want = want_grads.get(d).unwrap();
        let error = distance(grads.get(s).unwrap(), want);
        assert!(error < tolerance, "gradient {i} differs by {error}");
        let error = distance(&differences(&double, i, &composed), want);
        assert!(error < 1e-5, "gradient {i} is {error} off the finite difference");
    }
}

fn differences(vars: &[Var], i: usize, f: &dyn Fn(&[Tensor]) -> Result<Tensor>) -> Tensor {
    let base = values(&vars[i]);
    let shape = vars[i].shape();
    let at = |j: usize, step: f64| -> f64 {
        let mut moved = base.clone();
        moved[j] += step;
        let moved = Tensor::from_vec(moved, shape, &Device::Cpu).unwrap();
        let mut args: Vec<Tensor> = vars.iter().map(|v| v.as_detached_tensor()).collect();
        args[i] = moved;
        mix(&f(&args).unwrap()).unwrap().to_scalar().unwrap()
    };
    let step = 1e-5;
    let slopes: Vec<f64> =
        (0..base.len()).map(|j| (at(j, step) - at(j, -step)) / (2.0 * step)).collect();
    Tensor::from_vec(slopes, shape, &Device::Cpu).unwrap()
}
