use super::*;
use crate::testing::{agree, distance, randn, values, var};
use crate::{backward, softmax};
use candle_core::Device;
use proptest::prelude::*;

/// Choices of random scores.
fn dispatch(seed: u64, tokens: usize, s: Selection, capacity: Option<usize>) -> Dispatch {
    let scores = randn(seed, &[tokens, s.experts]).flatten_all().unwrap().to_vec1().unwrap();
    Dispatch::new(s, &scores, capacity, None).unwrap()
}

/// Tensors of `experts` experts as arguments behind `x` and `gates`.
fn tensors(experts: usize, hidden: usize, inner: usize, gated: bool) -> Vec<Tensor> {
    (0..experts as u64)
        .flat_map(|e| {
            let shapes: Vec<Vec<usize>> = if gated {
                vec![vec![inner, hidden], vec![inner, hidden], vec![hidden, inner]]
            } else {
                vec![vec![inner, hidden], vec![inner], vec![hidden, inner], vec![hidden]]
            };
            shapes.into_iter().enumerate().map(move |(i, s)| randn(100 + 10 * e + i as u64, &s))
        })
        .collect()
}

fn experts(args: &[Tensor], gated: bool) -> Vec<Expert> {
    args.chunks_exact(if gated { 3 } else { 4 })
        .map(|t| match gated {
            true => Expert {
                gate: Some(t[0].clone()),
                up: t[1].clone(),
                up_bias: None,
                down: t[2].clone(),
                down_bias: None,
            },
            false => Expert {
                gate: None,
                up: t[0].clone(),
                up_bias: Some(t[1].clone()),
                down: t[2].clone(),
                down_bias: Some(t[3].clone()),
            },
        })
        .collect()
}

#[test]
fn the_mixture_agrees_with_every_expert_on_every_token() {
    let grouped = Selection { experts: 4, active: 2, groups: 2 };
    for (selection, capacity, gated, act) in [
        (Selection::top_k(4, 2), None, false, Activation::Gelu),
        (Selection::top_k(4, 2), Some(3), true, Activation::Silu),
        (grouped, None, true, Activation::Silu),
        (Selection::top_k(3, 1), Some(2), false, Activation::Relu),
    ] {
        let plan = dispatch(1, 7, selection, capacity);
        let (x, gates) = (randn(2, &[7, 5]), randn(3, &[7, selection.active]));
        let weights = tensors(selection.experts, 5, 6, gated);
        let args: Vec<&Tensor> = [&x, &gates].into_iter().chain(&weights).collect();
        let run = |a: &[Tensor]| Ok(moe(&a[0], &a[1], &plan, &experts(&a[2..], gated), act)?.0);
        let want = |a: &[Tensor]| composed::moe(&a[0], &a[1], &plan, &experts(&a[2..], gated), act);
        agree(&args, run, want, 2e-5);
    }
}

#[test]
fn gates_and_balance_agree_with_their_definitions() {
    for s in [Selection::top_k(6, 3), Selection { experts: 6, active: 2, groups: 2 }] {
        let plan = dispatch(4, 9, s, None);
        let p = randn(5, &[9, 6]).abs().unwrap();
        for renormalize in [false, true] {
            let run = |a: &[Tensor]| gates(&a[0], &plan, renormalize);
            agree(&[&p], run, |a| composed::gates(&a[0], &plan, renormalize), 1e-5);
        }
        let run = |a: &[Tensor]| router_balance(&a[0], &plan);
        agree(&[&p], run, run, 1e-5);
    }
}

#[test]
fn the_number_of_threads_does_not_show() {
    let s = Selection { experts: 8, active: 4, groups: 2 };
    let plan = dispatch(6, 500, s, None);
    let (x, g) = (var(7, &[500, 64]), var(8, &[500, 4]));
    let weights: Vec<_> =
        (0..24).map(|i| var(20 + i, &if i % 3 == 2 { [64, 96] } else { [96, 64] })).collect();
    let run = || {
        let args: Vec<Tensor> = weights.iter().map(|w| w.as_tensor().clone()).collect();
        let (y, _) = moe(&x, &g, &plan, &experts(&args, true), Activation::Silu).unwrap();
        let grads = backward(&crate::testing::mix(&y).unwrap()).unwrap();
        let all = [&x, &g].into_iter().chain(&weights);
        let mut bits = values(&y);
        all.for_each(|v| bits.extend(values(grads.get(v).unwrap())));
        bits
    };
    let pool = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
    let one = pool(1).install(run);
    assert_eq!(one, pool(2).install(run));
    assert_eq!(one, pool(5).install(run));
}

/// Golden numbers: `E Σ m P` is 1 for m = [2/3, 1/3] and P = [½, ½], and 1.8 when all tokens agree.
#[test]
fn balance_of_known_rows() {
    let of = |rows: &[f32]| {
        let p = Tensor::from_vec(rows.to_vec(), (rows.len() / 2, 2), &Device::Cpu).unwrap();
        let plan = Dispatch::new(Selection::top_k(2, 1), rows, None, None).unwrap();
        values(&router_balance(&p, &plan).unwrap())[0]
    };
    assert!((of(&[0.7, 0.3, 0.6, 0.4, 0.2, 0.8]) - 1.0).abs() < 1e-6);
    assert!((of(&[0.9, 0.1, 0.9, 0.1, 0.9, 0.1]) - 1.8).abs() < 1e-6);
}

/// Golden numbers of softmax([2, 1, 0, −1]).
#[test]
fn groups_choose_other_experts_than_top_k() {
    let logits = Tensor::new(&[[2f32, 1., 0., -1.]], &Device::Cpu).unwrap();
    let p = softmax(&logits).unwrap();
    let scores: Vec<f32> = p.flatten_all().unwrap().to_vec1().unwrap();
    let near = |got: &Tensor, want: [f64; 2]| {
        let got = values(got);
        assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-4), "{got:?}");
    };
    let grouped = Selection { experts: 4, active: 2, groups: 2 };
    let plan = Dispatch::new(grouped, &scores, None, None).unwrap();
    assert_eq!(plan.ids(), [0, 2]);
    near(&gates(&p, &plan, false).unwrap(), [0.6439, 0.0871]);
    let plan = Dispatch::new(Selection::top_k(4, 2), &scores, None, None).unwrap();
    assert_eq!(plan.ids(), [0, 1]);
    near(&gates(&p, &plan, true).unwrap(), [0.7311, 0.2689]);
}

#[test]
fn first_choices_go_before_second_ones() {
    let s = Selection::top_k(2, 2);
    // Tokens 0 and 1 prefer expert 0, token 2 prefers expert 1.
    let plan = Dispatch::new(s, &[0.9, 0.1, 0.8, 0.2, 0.3, 0.7], Some(2), None).unwrap();
    assert_eq!(plan.loads(), [2, 2]);
    assert_eq!(plan.dropped(), 2);
    // Expert 1: the first choice of token 2, then the second choice of token 0.
    assert_eq!(plan.places()[2..], [4, 1]);
}

#[test]
fn padding_takes_no_expert_and_does_not_count() {
    let s = Selection::top_k(2, 1);
    let scores = [0.9, 0.1, 0.2, 0.8, 0.6, 0.4];
    let all = Dispatch::new(s, &scores[..4], None, None).unwrap();
    let padded = Dispatch::new(s, &scores, None, Some(&[true, true, false])).unwrap();
    assert_eq!((padded.selected(), padded.counted()), (all.selected(), 2));
    let p = |n: usize| Tensor::from_vec(scores[..2 * n].to_vec(), (n, 2), &Device::Cpu).unwrap();
    let balance = |p: &Tensor, d: &Dispatch| values(&router_balance(p, d).unwrap());
    assert_eq!(balance(&p(2), &all), balance(&p(3), &padded));
}

#[test]
fn an_expert_that_nobody_takes_has_a_gradient_of_zeros() {
    let plan = Dispatch::of(Selection::top_k(3, 1), vec![0, 2, 0], None, None).unwrap();
    let (x, g) = (randn(1, &[3, 4]), randn(2, &[3, 1]));
    let vars: Vec<_> =
        tensors(3, 4, 5, false).iter().map(|t| candle_core::Var::from_tensor(t).unwrap()).collect();
    let args: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let (y, _) = moe(&x, &g, &plan, &experts(&args, false), Activation::Gelu).unwrap();
    let grads = backward(&crate::testing::mix(&y).unwrap()).unwrap();
    for (i, v) in vars.iter().enumerate() {
        let zero = values(grads.get(v).unwrap()).iter().all(|g| *g == 0.);
        assert_eq!(zero, i / 4 == 1, "tensor {i}");
    }
}

#[test]
fn misfits_say_what_is_wrong() {
    let s = |experts, active, groups| Selection { experts, active, groups }.check();
    assert!(s(6, 4, 4).unwrap_err().to_string().contains("groups"));
    assert!(s(8, 3, 2).unwrap_err().to_string().contains("active"));
    assert!(s(4, 8, 2).unwrap_err().to_string().contains("more than"));
    let none = Dispatch::new(Selection::top_k(2, 1), &[0.5, 0.5], Some(0), None);
    assert!(none.unwrap_err().to_string().contains("capacity"));
}

proptest! {
    /// Exactly `K / M` experts of every group; those left out are not better; ties to the lower.
    /// (`+ 0.` makes zeros of either sign the same to `total_cmp` too.)
    #[test]
    fn every_group_gives_its_best(
        groups in 1usize..4, size in 1usize..5, each in 1usize..5, coarse in 1u32..4, seed in 0u64..99,
    ) {
        let each = each.min(size);
        let s = Selection { experts: groups * size, active: groups * each, groups };
        let scores: Vec<f32> = values(&randn(seed, &[6, s.experts]))
            .iter().map(|v| (v * f64::from(coarse)).round() as f32 + 0.).collect();
        let ids = s.choose(&scores).unwrap();
        for (ids, row) in ids.chunks(s.active).zip(scores.chunks(s.experts)) {
            for (g, ids) in ids.chunks(each).enumerate() {
                let mut order: Vec<usize> = (g * size..(g + 1) * size).collect();
                order.sort_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
                let want: Vec<u32> = order[..each].iter().map(|&e| e as u32).collect();
                prop_assert_eq!(ids, &want[..]);
            }
        }
    }

    #[test]
    fn no_expert_takes_more_than_its_capacity_and_nothing_is_lost_uncounted(
        capacity in 1usize..9, tokens in 1usize..20, seed in 0u64..99,
    ) {
        let plan = dispatch(seed, tokens, Selection::top_k(4, 2), Some(capacity));
        prop_assert!(plan.loads().iter().all(|&n| n <= capacity));
        prop_assert_eq!(plan.computed() + plan.dropped(), 2 * tokens);
    }

    /// What devices compute adds up to the whole.
    #[test]
    fn devices_add_up(tokens in 1usize..12, seed in 0u64..99) {
        let plan = dispatch(seed, tokens, Selection::top_k(4, 2), None);
        let (x, g) = (randn(1, &[tokens, 3]), randn(2, &[tokens, 2]));
        let experts = experts(&tensors(4, 3, 4, true), true);
        let run = |d: &Dispatch| moe(&x, &g, d, &experts, Activation::Silu).unwrap().0;
        let sum = (run(&plan.restricted(0..2)) + run(&plan.restricted(2..4))).unwrap();
        prop_assert!(distance(&sum, &run(&plan)) < 1e-5);
    }
}
