//! Identities of the plan and finite-difference gradients of every kind of share.

use super::*;

fn tensor(seed: u64, shape: &[usize]) -> Tensor {
    let mut v = vec![0f32; shape.iter().product()];
    Seed::new(seed).normal(0, &mut v);
    Tensor::from_vec(v, shape, &Device::Cpu).unwrap()
}

fn flat(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn close(a: &[f32], b: &[f32], tolerance: f32) {
    assert_eq!(a.len(), b.len());
    for (i, (x, y)) in a.iter().zip(b).enumerate() {
        assert!((x - y).abs() <= tolerance * (1. + y.abs()), "element {i}: {x} against {y}");
    }
}

/// One bank with a weight `w: [6, 8]` of each kind, all under distinct names.
fn every_kind() -> Bank {
    let mut bank = Bank::default();
    for (name, seed, shape) in [
        ("own", 1, vec![6, 8]),
        ("bank.owner", 2, vec![6, 8]),
        ("bank.atom.0", 3, vec![6, 8]),
        ("bank.atom.1", 4, vec![6, 8]),
        ("bank.atom.2", 5, vec![6, 8]),
        ("bank.coefficients", 6, vec![3]),
        ("bank.pool", 7, vec![20]),
        ("bank.whole", 8, vec![9, 12]),
        ("bank.base", 9, vec![6, 8]),
        ("bank.scalars", 10, vec![2]),
    ] {
        bank.insert(name, tensor(seed, &shape)).unwrap();
    }
    bank.share("same", Entry::same("bank.owner")).unwrap();
    let atoms = (0..3).map(|k| format!("bank.atom.{k}")).collect();
    bank.share(
        "combine",
        Share::Combine { atoms, coefficients: "bank.coefficients".into() }.into(),
    )
    .unwrap();
    let hashed = Share::Hashed {
        pool: "bank.pool".into(),
        seed: 11,
        block: 5,
        scale: 0.7,
        shape: vec![6, 8],
        fold_at: None,
    };
    bank.share("hashed", hashed.into()).unwrap();
    let slice = Share::Slice { of: "bank.whole".into(), ranges: vec![(2, 8), (1, 9)] };
    bank.share("slice", slice.into()).unwrap();
    let noise = Share::Noise { base: "bank.base".into(), scalars: "bank.scalars".into(), seed: 12 };
    bank.share("noise", noise.into()).unwrap();
    bank.factor("zero+lora", tensor(13, &[3, 8]), tensor(14, &[6, 3])).unwrap();
    bank.add_low_rank("zero+lora", tensor(15, &[2, 8]), tensor(16, &[6, 2]), 0.3).unwrap();
    for (i, name) in ["own", "same", "combine", "hashed", "slice", "noise"].iter().enumerate() {
        let copy = format!("{name}+lora");
        let entry = bank.plan().get(name).cloned().unwrap_or_else(|| Entry::same("own"));
        bank.share(&copy, entry).unwrap();
        for k in 0..2 {
            let seed = (20 + 4 * i + 2 * k) as u64;
            bank.add_low_rank(&copy, tensor(seed, &[2, 8]), tensor(seed + 1, &[6, 2]), 0.3)
                .unwrap();
        }
    }
    bank
}

const KINDS: [&str; 13] = [
    "own",
    "same",
    "combine",
    "hashed",
    "slice",
    "noise",
    "own+lora",
    "same+lora",
    "combine+lora",
    "hashed+lora",
    "slice+lora",
    "noise+lora",
    "zero+lora",
];

#[test]
fn linear_equals_the_materialised_weight() {
    let bank = every_kind();
    let x = tensor(50, &[2, 3, 8]);
    for name in KINDS {
        let direct = bank.linear_weight(name, &x, None).unwrap();
        let whole = x.broadcast_matmul(&bank.weight(name).unwrap().t().unwrap()).unwrap();
        close(&flat(&direct), &flat(&whole), 1e-4);
    }
}

#[test]
fn gradients_match_finite_differences_for_every_kind() {
    let bank = every_kind();
    let x = tensor(51, &[4, 8]);
    let c = tensor(52, &[4, 6]);
    for name in KINDS {
        let loss = || -> Tensor {
            let y = bank.linear_weight(name, &x, None).unwrap();
            ((&y * &c).unwrap() + y.sqr().unwrap()).unwrap().sum_all().unwrap()
        };
        let grads = ops::backward(&loss()).unwrap();
        let entry = bank.plan().get(name).cloned().unwrap_or_default();
        for stored in entry.reads(name) {
            let var = bank.stored_var(stored).unwrap();
            let grad =
                flat(grads.get(var).unwrap_or_else(|| panic!("{name}: {stored} has no gradient")));
            let values = flat(var);
            for i in (0..values.len()).step_by(7) {
                let at = |delta: f32| -> f64 {
                    let mut moved = values.clone();
                    moved[i] += delta;
                    var.set(&Tensor::from_vec(moved, var.dims(), &Device::Cpu).unwrap()).unwrap();
                    f64::from(loss().to_scalar::<f32>().unwrap())
                };
                let numeric = (at(1e-2) - at(-1e-2)) / 2e-2;
                at(0.);
                let error = (numeric - f64::from(grad[i])).abs();
                assert!(
                    error <= 2e-2 * (1. + numeric.abs()),
                    "{name}/{stored}[{i}]: {numeric} {}",
                    grad[i]
                );
            }
        }
    }
}

#[test]
fn a_tied_weight_is_one_leaf_whose_gradient_adds_up() {
    let mut bank = Bank::default();
    bank.insert("bank.w", tensor(1, &[4, 4])).unwrap();
    for layer in 0..3 {
        bank.share(&format!("l{layer}.weight"), Entry::same("bank.w")).unwrap();
    }
    let mut single = Bank::default();
    for layer in 0..3 {
        single.insert(format!("l{layer}.weight"), tensor(1, &[4, 4])).unwrap();
    }
    let run = |bank: &Bank| {
        let mut x = tensor(2, &[5, 4]);
        for layer in 0..3 {
            x = bank.linear(&format!("l{layer}"), &x).unwrap().tanh().unwrap();
        }
        ops::backward(&x.sqr().unwrap().sum_all().unwrap()).unwrap()
    };
    let tied = run(&bank);
    let apart = run(&single);
    let sum = single
        .stored_vars()
        .map(|(_, v)| apart.get(v).unwrap().clone())
        .reduce(|a, b| (a + b).unwrap())
        .unwrap();
    close(&flat(tied.get(bank.stored_var("bank.w").unwrap()).unwrap()), &flat(&sum), 1e-5);
    assert_eq!((bank.stored(), bank.logical().unwrap()), (16, 48));
}

#[test]
fn frozen_tensors_get_no_gradient_and_clones_are_independent_when_deep() {
    let mut bank = Bank::default();
    bank.insert("l.weight", tensor(1, &[4, 4])).unwrap();
    bank.add_lora("l.weight", 2, 4., Seed::new(3)).unwrap();
    bank.freeze(|n| n == "l.weight");
    let loss = bank.linear("l", &tensor(2, &[5, 4])).unwrap().sqr().unwrap().sum_all().unwrap();
    let grads = ops::backward(&loss).unwrap();
    assert!(grads.get(bank.stored_var("l.weight").unwrap()).is_none());
    assert_eq!(bank.trainable().count(), 2);
    for (_, var) in bank.trainable() {
        assert!(grads.get(var).is_some());
    }
    let copy = bank.deep_clone().unwrap();
    let before = flat(copy.stored_var("l.weight").unwrap());
    bank.stored_var("l.weight").unwrap().set(&tensor(9, &[4, 4])).unwrap();
    assert_eq!(before, flat(copy.stored_var("l.weight").unwrap()));
}

#[test]
fn materialising_keeps_values_and_plan_survives_json() {
    let bank = every_kind();
    let plain = bank.materialize().unwrap();
    assert!(plain.plan().is_empty());
    for name in KINDS {
        close(&flat(&plain.weight(name).unwrap()), &flat(&bank.weight(name).unwrap()), 0.);
    }
    let json = bank.plan().to_json().unwrap();
    assert_eq!(&SharingPlan::from_json(&json).unwrap(), bank.plan());
}

#[test]
fn broken_plans_are_refused_with_the_weight_named() {
    let mut bank = every_kind();
    let unknown = bank.share("x", Entry::same("nowhere")).unwrap_err().to_string();
    assert!(unknown.contains("`x`") && unknown.contains("nowhere"), "{unknown}");
    let deep = SharingPlan::from_iter([("y".to_owned(), Entry::same("same"))]);
    assert!(bank.set_plan(deep).unwrap_err().to_string().contains("depth one"));
    let text = r#"{"version":1,"weights":{"w":{"share":{"kind":"same","ownr":"a"}}}}"#;
    assert!(SharingPlan::from_json(text).unwrap_err().to_string().contains("ownr"));
    let newer = r#"{"version":9,"weights":{}}"#;
    assert!(SharingPlan::from_json(newer).unwrap_err().to_string().contains("version 9"));
    let slice = Share::Slice { of: "bank.whole".into(), ranges: vec![(0, 10), (0, 2)] };
    assert!(bank.share("z", slice.into()).is_err());
}

#[test]
fn a_folded_pool_is_read_back_and_differentiated() {
    let mut bank = Bank::default();
    let pool = Tensor::arange(1f32, 8., &Device::Cpu).unwrap();
    bank.insert("bank.pool", pool).unwrap();
    let entry = |fold_at| Share::Hashed {
        pool: "bank.pool".into(),
        seed: 3,
        block: 1,
        scale: 2.,
        shape: vec![3, 5],
        fold_at: Some(fold_at),
    };
    bank.share("w", entry(4).into()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.safetensors");
    bank.save(&path).unwrap();
    let back = Bank::open(&path).unwrap();
    let values = |b: &Bank| b.weight("w").unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(values(&back), values(&bank));
    assert!(values(&bank).iter().all(|v| v.abs() >= 2. && v.abs() <= 14.));
    let loss = commons_ops::sum(&bank.weight("w").unwrap()).unwrap();
    let grads = commons_ops::backward(&loss).unwrap();
    let grad = grads.get(bank.stored_var("bank.pool").unwrap()).unwrap().to_vec1::<f32>().unwrap();
    // Fifteen elements over seven slots: two or three each.
    assert!(grad.iter().all(|g| g.abs() <= 6.), "{grad:?}");
    assert!(bank.share("w", entry(u64::MAX).into()).is_err());
}

#[test]
fn a_substitute_is_read_and_takes_the_gradient() {
    let bank = every_kind();
    let made = Var::from_tensor(&tensor(60, &[3])).unwrap();
    let doubled = ops::scale(made.as_tensor(), 2.).unwrap();
    let other = bank.substituted([("bank.coefficients".to_owned(), doubled)]).unwrap();
    let mut expected = bank.deep_clone().unwrap();
    expected.insert("bank.coefficients", (made.as_tensor() * 2.).unwrap()).unwrap();
    close(
        &flat(&other.weight("combine").unwrap()),
        &flat(&expected.weight("combine").unwrap()),
        1e-6,
    );
    let grads = ops::backward(&ops::sum(&other.weight("combine").unwrap()).unwrap()).unwrap();
    assert!(grads.get(bank.stored_var("bank.coefficients").unwrap()).is_none());
    for k in 0..3 {
        let atom = flat(bank.stored_var(&format!("bank.atom.{k}")).unwrap());
        let got = flat(grads.get(made.as_tensor()).unwrap())[k];
        close(&[got], &[2. * atom.iter().sum::<f32>()], 1e-4);
    }
    let wrong = tensor(61, &[4]);
    assert!(bank.substituted([("bank.coefficients".to_owned(), wrong)]).is_err());
}
