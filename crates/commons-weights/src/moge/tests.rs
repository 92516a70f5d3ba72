use commons_core::Seed;
use commons_core::stats::mean;
use commons_nn::model::{Decoder, ExpertsLoss, MixtureOfExperts, MoePhase};
use commons_nn::train::{At, Loss, TrainConfig, Trainer};
use commons_ops::{self as ops, Device, Dispatch, Selection, Tensor};
use proptest::prelude::*;

use super::study::{Router, Study};
use super::*;

fn study() -> Study {
    let mut study = Study::default();
    study.scratch.hidden_size = 16;
    study.scratch.num_hidden_layers = 2;
    study.scratch.num_attention_heads = 2;
    study.scratch.num_key_value_heads = 2;
    study.experts.num_experts = 8;
    study.experts.moe_intermediate_size = Some(12);
    study.experts.shared_expert_intermediate_size = 8;
    study
}

fn model(study: &Study, router: Router) -> Decoder {
    Decoder::init(study.config(router).unwrap(), Seed::new(1)).unwrap()
}

fn loss(model: &Decoder, ids: &Tensor) -> ExpertsLoss {
    model.experts_loss(ids, MoePhase::Training(None)).unwrap()
}

fn ids(rows: usize, width: usize) -> Tensor {
    let ids = (0..rows * width).map(|i| (i * i % 97) as u32).collect::<Vec<_>>();
    Tensor::from_vec(ids, (rows, width), &Device::Cpu).unwrap()
}

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

/// Golden numbers of a fixed trace: T = (5, 1) over three tokens, and (3, 3).
#[test]
fn imbalance_of_known_choices() {
    let plain = Selection::top_k(4, 2);
    let of = |ids: &[u32]| {
        let dispatch = Dispatch::of(plain, ids.to_vec(), None, None).unwrap();
        (device_loads(&dispatch, 2).unwrap(), imbalance(&dispatch, 2).unwrap())
    };
    assert_eq!(of(&[0, 1, 0, 2, 0, 1]), (vec![5, 1], 4. / 3.));
    assert_eq!(of(&[0, 2, 1, 3, 0, 2]), (vec![3, 3], 0.));
}

/// Mean scores of uniform choice with 64 experts, 8 taken, 8 devices, from an independent Monte
/// Carlo of 2000 draws.
#[test]
fn simulated_top_k_has_the_known_scores() {
    let seed = Seed::new(5);
    for (tokens, want) in [(4, 1.33), (8, 0.94), (16, 0.67), (32, 0.48), (64, 0.33)] {
        let seen = simulate(Selection::top_k(64, 8), 8, tokens, 0., 400, seed).unwrap();
        let got = mean(&seen.imbalance);
        assert!((got - want).abs() < 0.06 * want, "{tokens} tokens: {got}, not {want}");
        assert!(seen.imbalance.iter().filter(|i| **i == 0.).count() <= 1);
    }
}

#[test]
fn a_skewed_router_is_worse_unless_it_chooses_by_group() {
    let run = |groups, skew| {
        let selection = Selection { experts: 64, active: 8, groups };
        mean(&simulate(selection, 8, 64, skew, 50, Seed::new(2)).unwrap().imbalance)
    };
    assert!(run(1, 1.) > 2. * run(1, 0.));
    assert_eq!(run(8, 1.), 0.);
}

/// One group with the weights of the global softmax is softmax-then-top-K.
#[test]
fn one_group_is_top_k_and_whole_groups_are_everything() {
    let scores = scores(Seed::new(3), 5, 6, 0.);
    let raw = Tensor::from_vec(scores.clone(), (5, 6), &Device::Cpu).unwrap();
    let p = ops::softmax(&raw).unwrap();
    let dispatch = Dispatch::new(Selection::top_k(6, 2), &values(&p), None, None).unwrap();
    let (best, at) = ops::top_k(&p, 2).unwrap();
    assert_eq!(
        dispatch.ids(),
        at.flatten_all().unwrap().to_dtype(ops::DType::U32).unwrap().to_vec1::<u32>().unwrap()
    );
    assert_eq!(values(&ops::gates(&p, &dispatch, false).unwrap()), values(&best));
    let whole = Selection { experts: 6, active: 6, groups: 3 };
    let dispatch = Dispatch::new(whole, &values(&p), None, None).unwrap();
    let sums = ops::gates(&p, &dispatch, false).unwrap().sum(1).unwrap();
    assert!(values(&sums).iter().all(|s| (s - 1.).abs() < 1e-6));
    assert_eq!(dispatch.selected(), [5; 6]);
}

#[test]
fn both_routers_have_the_same_parameters_and_start() {
    let (moge, plain) = (model(&study(), Router::Moge), model(&study(), Router::TopK));
    let weighs = |m: &Decoder| m.experts().unwrap().renormalizes();
    assert!(weighs(&plain) && !weighs(&moge));
    let bank = |m: &Decoder| {
        let all = m.bank.stored_vars();
        all.map(|(n, v)| (n.to_owned(), values(v.as_tensor()))).collect::<Vec<_>>()
    };
    assert_eq!(bank(&moge), bank(&plain));
    let names: Vec<String> = bank(&moge).into_iter().map(|(n, _)| n).collect();
    assert!(names.contains(&"model.layers.1.mlp.experts.7.down_proj.weight".to_owned()));
    assert!(names.contains(&"model.layers.0.mlp.gate.weight".to_owned()));
    assert!(!names.iter().any(|n| n.contains("mlp.up_proj")));
}

/// Groups are balanced in every layer of a whole decoder, whatever it reads.
#[test]
fn a_decoder_of_groups_is_balanced() {
    let layers = |router| loss(&model(&study(), router), &ids(3, 10)).pass.unwrap().layers;
    for layer in layers(Router::Moge) {
        assert_eq!(device_loads(&layer.dispatch, 2).unwrap(), [54, 54]);
    }
    assert!(layers(Router::TopK).iter().any(|l| imbalance(&l.dispatch, 2).unwrap() > 0.));
}

#[test]
fn everything_gets_a_gradient() {
    let model = model(&study(), Router::Moge);
    let grads = ops::backward(&loss(&model, &ids(4, 33)).total).unwrap();
    let bank = &model.bank;
    let missing: Vec<&str> =
        bank.trainable().filter(|(_, v)| grads.get(v).is_none()).map(|(n, _)| n).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn training_lowers_the_loss() {
    let model = model(&study(), Router::Moge);
    let (ids, bank) = (ids(4, 17), &model.bank);
    let train = TrainConfig { steps: 40, learning_rate: 1e-2, ..TrainConfig::default() };
    let mut losses = Vec::new();
    let mut trainer = Trainer::new(train, bank).unwrap();
    let step = |_: At| Ok(Loss::new(loss(&model, &ids).total, 64));
    trainer.run(step, |report| losses.push(report.loss)).unwrap();
    assert!(losses[39] < 0.8 * losses[0], "{losses:?}");
}

#[test]
fn devices_compute_what_the_layer_does() {
    let mut study = study();
    study.experts.shared_expert_intermediate_size = 0;
    let model = model(&study, Router::Moge);
    let pass = loss(&model, &ids(2, 8)).pass.unwrap();
    for (l, layer) in pass.layers.iter().enumerate() {
        let x = model.mlp_input(l, &pass.residual[l]).unwrap();
        let gates = ops::gates(&layer.probabilities, &layer.dispatch, false).unwrap();
        let (y, step) =
            Devices::new(&model, l, 2).unwrap().run(&x, &gates, &layer.dispatch).unwrap();
        let gap =
            values(&y).iter().zip(values(&layer.y)).map(|(a, b)| (a - b).abs()).fold(0., f32::max);
        assert!(gap < 1e-6, "{gap}");
        assert!(step.busy.len() == 2 && step.wall > 0. && step.gap() <= step.wall);
    }
    assert!(Devices::new(&model, 0, 3).is_err());
}

#[test]
fn misfits_name_the_field() {
    let text = |change: fn(&mut Study)| {
        let mut study = study();
        change(&mut study);
        study.check().unwrap_err().to_string()
    };
    study().check().unwrap();
    assert!(text(|s| s.experts.expert_groups = 3).contains("expert_groups"));
    assert!(text(|s| s.experts.expert_groups = 1).contains("two devices"));
    assert!(text(|s| s.experts.num_experts_per_tok = 3).contains("num_experts_per_tok"));
    assert!(text(|s| s.scratch.num_attention_heads = 3).contains("heads"));
    assert!(text(|s| s.device_tokens = vec![200]).contains("device_tokens"));
    let default = Study::default().experts;
    let plain = Router::TopK.apply(&default);
    assert_eq!(MixtureOfExperts { expert_groups: 2, norm_topk_prob: None, ..plain }, default);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    /// Any batch, ties and skew included: the score is exactly zero.
    #[test]
    fn groups_are_always_balanced(
        groups in 1usize..5, size in 1usize..6, each in 1usize..6, tokens in 1usize..20, seed in 0u64..99,
    ) {
        let each = each.min(size);
        let selection = Selection { experts: groups * size, active: groups * each, groups };
        let rough: Vec<f32> =
            scores(Seed::new(seed), tokens, groups * size, 2.).iter().map(|s| s.round()).collect();
        let dispatch = Dispatch::new(selection, &rough, None, None).unwrap();
        prop_assert_eq!(imbalance(&dispatch, groups).unwrap(), 0.);
        prop_assert!(device_loads(&dispatch, groups).unwrap().iter().all(|&t| t == tokens * each));
        // The shares of choices sum to N.
        let f = selection.experts as f64 / (selection.active * tokens) as f64;
        let sum: f64 = dispatch.selected().iter().map(|&n| f * n as f64).sum();
        prop_assert!((sum - selection.experts as f64).abs() < 1e-9);
    }
}
