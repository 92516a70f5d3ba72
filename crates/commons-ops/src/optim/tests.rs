use super::*;
use crate::testing::{distance, randn, values};
use candle_core::{DType, Device};
use commons_core::Seed;

/// Steps an `f32` and an `f64` copy with the same gradients and compares them.
fn same_in_both_types<O: Optimizer>(rule: &O, dims: &[usize]) -> Tensor {
    let start = randn(1, dims);
    let single = Var::from_tensor(&start).unwrap();
    let double = Var::from_tensor(&start.to_dtype(DType::F64).unwrap()).unwrap();
    let mut s = rule.init(&single).unwrap();
    let mut d = rule.init(&double).unwrap();
    for step in 0..4 {
        let grad = randn(10 + step, dims);
        rule.step(&single, &grad, 0.5, &mut s).unwrap();
        rule.step(&double, &grad.to_dtype(DType::F64).unwrap(), 0.5, &mut d).unwrap();
    }
    let error = distance(&single, &double);
    assert!(error < 1e-5, "{error}");
    assert!(distance(&single, &start) > 1e-4);
    double.as_detached_tensor()
}

#[test]
fn fused_steps_equal_composed() {
    same_in_both_types(&AdamW { lr: 0.1, weight_decay: 0.1, ..AdamW::default() }, &[7, 33]);
    same_in_both_types(&Sgd::default(), &[45]);
    same_in_both_types(&Sgd { momentum: 0.9, weight_decay: 0.1, ..Sgd::default() }, &[5, 9]);
    same_in_both_types(&Sgd { momentum: 0.9, nesterov: true, ..Sgd::default() }, &[5, 9]);
    same_in_both_types(&Muon::default(), &[6, 11]);
    same_in_both_types(&Muon::default(), &[11, 2, 3]);
    same_in_both_types(&Adafactor::default(), &[6, 11]);
    same_in_both_types(&Adafactor::default(), &[13]);
}

#[test]
fn first_adamw_step_by_hand() {
    let p = Var::new(&[1f32, -2.0], &Device::Cpu).unwrap();
    let g = Tensor::new(&[0.5f32, -4.0], &Device::Cpu).unwrap();
    let rule = AdamW { lr: 0.1, weight_decay: 0.5, ..AdamW::default() };
    let mut state = rule.init(&p).unwrap();
    rule.step(&p, &g, 1.0, &mut state).unwrap();
    // The first step is lr·sign(g), after the decay factor 1 - 0.05.
    for (got, want) in values(&p).iter().zip([0.95 - 0.1, -1.9 + 0.1]) {
        assert!((got - want).abs() < 1e-6);
    }
}

#[test]
fn muon_update_is_nearly_orthogonal() {
    let p = Var::zeros((8, 8), DType::F64, &Device::Cpu).unwrap();
    let rule = Muon { lr: 1.0, nesterov: false, ..Muon::default() };
    let mut state = rule.init(&p).unwrap();
    let g = randn(3, &[8, 8]).to_dtype(DType::F64).unwrap();
    rule.step(&p, &g, 1.0, &mut state).unwrap();
    let gram = p.matmul(&p.t().unwrap()).unwrap().to_vec2::<f64>().unwrap();
    let trace: f64 = (0..8).map(|i| gram[i][i]).sum();
    // Eight singular values, each driven towards 1.
    assert!((trace - 8.0).abs() < 3.0, "{trace}");
}

#[test]
fn wrong_gradient_is_refused() {
    let p = Var::zeros((2, 3), DType::F32, &Device::Cpu).unwrap();
    let rule = AdamW::default();
    let mut state = rule.init(&p).unwrap();
    let error = rule.step(&p, &randn(1, &[3, 2]), 1.0, &mut state).unwrap_err().to_string();
    assert!(error.contains("AdamW") && error.contains("[3, 2]") && error.contains("[2, 3]"));
    assert!(Muon::default().init(&randn(1, &[3])).is_err());
}

#[test]
fn noise_is_the_streams_of_its_seeds() {
    let dims = [3, 20_001];
    let var = Var::from_tensor(&randn(1, &dims)).unwrap();
    let before = values(&var);
    let seeds = [(Seed::new(5), 0.25), (Seed::new(6), -2.0)];
    add_noise(&var, &seeds).unwrap();
    let n = before.len();
    let (mut a, mut b) = (vec![0f32; n], vec![0f32; n]);
    seeds[0].0.normal(0, &mut a);
    seeds[1].0.normal(0, &mut b);
    for (i, got) in values(&var).iter().enumerate() {
        let want = before[i] + 0.25 * f64::from(a[i]) - 2.0 * f64::from(b[i]);
        assert!((got - want).abs() < 1e-5);
    }
}
