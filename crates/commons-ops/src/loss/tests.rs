use super::*;
use crate::testing::{agree, distance, ids, randn, values};
use crate::{Var, backward};
use candle_core::Device;

const SKIP: u32 = u32::MAX;

#[test]
fn cross_entropy_agrees_with_the_definition() {
    let logits = randn(1, &[5, 7]);
    let targets = ids(&[0, 6, SKIP, 3, 3]);
    for smoothing in [0.0, 0.2] {
        agree(
            &[&logits],
            |x| cross_entropy(&x[0], &targets, smoothing),
            |x| composed::cross_entropy(&x[0], &targets, smoothing),
            1e-5,
        );
    }
}

#[test]
fn linear_cross_entropy_agrees_with_the_definition() {
    let (h, w) = (randn(1, &[2, 3, 5]), randn(2, &[9, 5]));
    let targets = ids(&[0, 8, SKIP, 3, 3, 1]).reshape((2, 3)).unwrap();
    for options in
        [LossOptions::default(), LossOptions { label_smoothing: 0.1, softcap: Some(2.0) }]
    {
        agree(
            &[&h, &w],
            |x| linear_cross_entropy(&x[0], &x[1], &targets, &options),
            |x| {
                let h = x[0].reshape((6, 5))?;
                composed::linear_cross_entropy(&h, &x[1], &targets, &options)
            },
            1e-5,
        );
    }
}

#[test]
fn blocks_of_logits_join_up() {
    // 300 rows of 60 000 logits take two blocks.
    let (h, w) = (randn(1, &[300, 4]), Var::from_tensor(&randn(2, &[60_000, 4])).unwrap());
    let h = Var::from_tensor(&h).unwrap();
    let targets: Vec<u32> = (0..300).map(|i| i * 199).collect();
    let targets = ids(&targets);
    let run = |loss: Tensor| (loss.to_scalar::<f32>().unwrap(), backward(&loss).unwrap());
    let options = LossOptions::default();
    let (got, grads) = run(linear_cross_entropy(&h, &w, &targets, &options).unwrap());
    let (want, want_grads) =
        run(composed::linear_cross_entropy(&h, &w, &targets, &options).unwrap());
    assert!((got - want).abs() < 1e-4, "{got} {want}");
    for var in [&h, &w] {
        let error = distance(grads.get(var).unwrap(), want_grads.get(var).unwrap());
        assert!(error < 1e-4, "{error}");
    }
}

#[test]
fn distillation_agrees_with_the_definition() {
    let (hs, ws) = (randn(1, &[4, 3]), randn(2, &[6, 3]));
    let (ht, wt) = (randn(3, &[4, 5]), randn(4, &[6, 5]));
    let targets = ids(&[0, SKIP, 2, 1]);
    for targets in [None, Some(&targets)] {
        agree(
            &[&hs, &ws],
            |x| linear_kl(&x[0], &x[1], &ht, &wt, 2.5, targets),
            |x| {
                let (ht, wt) = (ht.to_dtype(x[0].dtype())?, wt.to_dtype(x[0].dtype())?);
                composed::linear_kl(&x[0], &x[1], &ht, &wt, 2.5, targets)
            },
            1e-5,
        );
    }
    let same = linear_kl(&ht, &wt, &ht, &wt, 1.0, None).unwrap().to_scalar::<f32>().unwrap();
    assert!(same.abs() < 1e-6);
}

#[test]
fn both_terms_at_once_are_their_weighted_sum() {
    let (hs, ws) = (randn(1, &[4, 3]), randn(2, &[6, 3]));
    let (ht, wt) = (randn(3, &[4, 5]), randn(4, &[6, 5]));
    let targets = ids(&[5, SKIP, 2, 1]);
    for (ce_coef, kl_coef, temperature) in [(1.0, 1.0, 1.0), (0.3, 2.0, 2.5), (1.5, 0.0, 2.0)] {
        let options = DistillOptions { ce_coef, kl_coef, temperature };
        agree(
            &[&hs, &ws],
            |x| Ok(linear_distill([&x[0], &x[1]], [&ht, &wt], &targets, options)?.total),
            |x| {
                let (ht, wt) = (ht.to_dtype(x[0].dtype())?, wt.to_dtype(x[0].dtype())?);
                let all = [&x[0], &x[1], &ht, &wt];
                Ok(composed::linear_distill(all, &targets, options)?.total)
            },
            1e-5,
        );
        let both = linear_distill([&hs, &ws], [&ht, &wt], &targets, options).unwrap();
        let ce = linear_cross_entropy(&hs, &ws, &targets, &LossOptions::default()).unwrap();
        let kl = linear_kl(&hs, &ws, &ht, &wt, temperature, Some(&targets)).unwrap();
        assert!((both.ce - values(&ce)[0]).abs() < 1e-5);
        assert!((both.kl - values(&kl)[0]).abs() < 1e-5);
    }
}

#[test]
fn teacher_gets_no_gradient() {
    let vars: Vec<Var> = (0..4).map(|i| Var::from_tensor(&randn(i, &[3, 3])).unwrap()).collect();
    let loss = linear_kl(&vars[0], &vars[1], &vars[2], &vars[3], 1.0, None).unwrap();
    let grads = backward(&loss).unwrap();
    assert!(grads.get(&vars[1]).is_some() && grads.get(&vars[3]).is_none());
}

#[test]
fn uniform_logits_cost_the_log_of_the_vocabulary() {
    let logits = Tensor::zeros((2, 10), DType::F32, &Device::Cpu).unwrap();
    let loss = cross_entropy(&logits, &ids(&[1, 2]), 0.0).unwrap();
    assert!((values(&loss)[0] - 10f64.ln()).abs() < 1e-6);
    let none = cross_entropy(&logits, &ids(&[SKIP, SKIP]), 0.0).unwrap();
    assert_eq!(values(&none)[0], 0.0);
}

#[test]
fn bad_input_is_refused_and_nan_shows() {
    let logits = randn(1, &[2, 4]);
    let error = |t: &[u32], s: f32| cross_entropy(&logits, &ids(t), s).unwrap_err().to_string();
    assert!(error(&[0, 4], 0.0).contains("target 4 in row 1"));
    assert!(error(&[0], 0.0).contains("2 rows"));
    assert!(error(&[0, 1], 1.5).contains("1.5"));
    let bad = (&logits / 0.0).unwrap();
    let bad = (&bad - &bad).unwrap();
    assert!(values(&cross_entropy(&bad, &ids(&[0, 1]), 0.0).unwrap())[0].is_nan());
}

#[test]
fn a_scaled_loss_has_scaled_gradients() {
    let w = Var::from_tensor(&randn(1, &[4, 3])).unwrap();
    let h = randn(2, &[2, 3]);
    let loss = || linear_cross_entropy(&h, &w, &ids(&[1, 2]), &LossOptions::default()).unwrap();
    let once = backward(&loss()).unwrap();
    let thrice = backward(&crate::scale(&loss(), 3.0).unwrap()).unwrap();
    let want = (once.get(&w).unwrap() * 3.0).unwrap();
    assert!(distance(thrice.get(&w).unwrap(), &want) < 1e-6);
}

#[test]
fn a_second_backward_pass_gives_the_same() {
    let w = Var::from_tensor(&randn(1, &[4, 3])).unwrap();
    let loss = linear_cross_entropy(&randn(2, &[2, 3]), &w, &ids(&[1, 2]), &LossOptions::default());
    let loss = loss.unwrap();
    let (once, twice) = (backward(&loss).unwrap(), backward(&loss).unwrap());
    assert_eq!(distance(twice.get(&w).unwrap(), once.get(&w).unwrap()), 0.0);
}
