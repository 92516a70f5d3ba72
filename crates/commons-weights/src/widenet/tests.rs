use commons_core::Seed;
use commons_nn::bank::{Bank, Share};
use commons_ops::{self as ops, DType, Device, Tensor};
use proptest::prelude::*;

use super::*;

fn small(groups: usize, share_norms: bool, moe: Option<ExpertsConfig>) -> EncoderConfig {
    EncoderConfig {
        hidden_size: 8,
        intermediate_size: 12,
        num_hidden_layers: 4,
        num_attention_heads: 2,
        groups,
        share_norms,
        moe,
    }
}

fn experts(experts: usize, active: usize) -> ExpertsConfig {
    ExpertsConfig { experts, active, ..ExpertsConfig::default() }
}

fn randn(seed: u64, dims: &[usize]) -> Tensor {
    let mut v = vec![0f32; dims.iter().product()];
    Seed::new(seed).normal(0, &mut v);
    Tensor::from_vec(v, dims, &Device::Cpu).unwrap()
}

fn encoder(config: EncoderConfig) -> Encoder {
    Encoder::init(config, Bank::default(), Seed::new(1)).unwrap()
}

fn run(encoder: &Encoder, x: &Tensor) -> Vec<f32> {
    let out = encoder.forward(x, Phase::Eval).unwrap();
    out.x.flatten_all().unwrap().to_vec1().unwrap()
}

fn gap(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0., f32::max)
}

/// One expert with probability one is the shared feed-forward part.
#[test]
fn one_expert_is_the_block_shared_without_experts() {
    let one = encoder(small(1, true, Some(experts(1, 1))));
    let mut dense = encoder(small(1, true, None));
    for (name, var) in one.bank.stored_vars() {
        let name = name.replace("moe.experts.0.", "mlp.");
        if !name.ends_with("gate.weight") {
            dense.bank.insert(name, var.as_tensor().clone()).unwrap();
        }
    }
    let x = randn(2, &[2, 5, 8]);
    assert!(gap(&run(&one, &x), &run(&dense, &x)) < 1e-6);
}

/// If all experts are the same, and all are taken, routing does not matter.
#[test]
fn equal_experts_make_the_router_meaningless() {
    let mut model = encoder(small(1, false, Some(experts(4, 4))));
    for e in 1..4 {
        for part in ["up_proj.weight", "up_proj.bias", "down_proj.weight", "down_proj.bias"] {
            let of = |e| format!("bank.widenet.0.moe.experts.{e}.{part}");
            let first = model.bank.stored_var(&of(0)).unwrap().as_tensor().clone();
            model.bank.insert(of(e), first).unwrap();
        }
    }
    let x = randn(3, &[2, 5, 8]);
    let before = run(&model, &x);
    model.bank.insert("bank.widenet.0.moe.gate.weight", randn(4, &[4, 8])).unwrap();
    assert!(gap(&before, &run(&model, &x)) < 1e-5);
}

#[test]
fn the_formula_counts_what_is_stored() {
    for (groups, share_norms, moe) in [
        (1, false, Some(experts(4, 2))),
        (2, true, Some(experts(3, 1))),
        (4, false, None),
        (1, true, None),
    ] {
        let model = encoder(small(groups, share_norms, moe));
        assert_eq!(model.bank.stored(), model.config.parameters());
        let parts: usize = model.by_part().iter().map(|(_, n)| n).sum();
        assert_eq!(parts, model.bank.stored());
    }
    // The example of the base network: attention 2.36 M, experts 18.9 M, norms 36.9 k.
    let base = EncoderConfig {
        hidden_size: 768,
        intermediate_size: 3072,
        num_hidden_layers: 12,
        num_attention_heads: 12,
        ..EncoderConfig::default()
    };
    assert_eq!(
        base.parameters(),
        4 * 768 * 768 + 4 * 768 + 4 * (2 * 768 * 3072 + 3840) + 3072 + 36864
    );
}

#[test]
fn the_plan_ties_blocks_and_leaves_norms_alone() {
    let model = encoder(small(2, false, Some(experts(4, 2))));
    let owner = |l: usize, name: &str| match model
        .bank
        .plan()
        .get(&format!("layers.{l}.{name}"))
        .map(|e| e.share.clone())
    {
        Some(Share::Same { owner }) => Some(owner),
        _ => None,
    };
    assert_eq!(owner(0, "moe.gate.weight"), owner(1, "moe.gate.weight"));
    assert_ne!(owner(1, "moe.gate.weight"), owner(2, "moe.gate.weight"));
    assert_eq!(
        owner(3, "attention.q_proj.weight").unwrap(),
        "bank.widenet.1.attention.q_proj.weight"
    );
    assert_eq!(owner(0, "norm1.bias"), None);
    assert!(model.bank.stored_var("layers.0.norm1.bias").is_ok());
}

/// Untie the layers: the gradient of what was shared is the sum of theirs.
#[test]
fn the_gradient_of_a_shared_weight_is_the_sum_over_depth() {
    let shared = encoder(small(1, false, Some(experts(3, 2))));
    let apart = Encoder { bank: shared.bank.materialize().unwrap(), ..shared.clone() };
    let x = randn(5, &[2, 6, 8]);
    let grads = |model: &Encoder| {
        let out = model.forward(&x, Phase::Train(Seed::new(3))).unwrap();
        let task = ops::mse(&out.x, &randn(6, &[2, 6, 8])).unwrap();
        ops::backward(&out.with_balance(&task, &model.config).unwrap()).unwrap()
    };
    let (whole, single) = (grads(&shared), grads(&apart));
    for name in ["attention.v_proj.weight", "moe.gate.weight", "moe.experts.1.up_proj.weight"] {
        let var = shared.bank.stored_var(&format!("bank.widenet.0.{name}")).unwrap();
        let got: Vec<f32> = whole.get(var).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let mut sum = vec![0f32; got.len()];
        for l in 0..4 {
            let var = apart.bank.stored_var(&format!("layers.{l}.{name}")).unwrap();
            if let Some(grad) = single.get(var) {
                let grad: Vec<f32> = grad.flatten_all().unwrap().to_vec1().unwrap();
                sum.iter_mut().zip(grad).for_each(|(s, g)| *s += g);
            }
        }
        let size = sum.iter().fold(0f32, |m, s| m.max(s.abs()));
        assert!(size > 0. && gap(&got, &sum) < 1e-4 * size.max(1e-3), "{name}");
    }
}

#[test]
fn balance_is_one_for_a_router_that_knows_nothing() {
    let mut model = encoder(small(1, false, Some(experts(4, 4))));
    let nothing = Tensor::zeros((4, 8), DType::F32, &Device::Cpu).unwrap();
    model.bank.insert("bank.widenet.0.moe.gate.weight", nothing).unwrap();
    let out = model.forward(&randn(7, &[1, 9, 8]), Phase::Eval).unwrap();
    for layer in &out.layers {
        assert!((layer.balance.to_scalar::<f32>().unwrap() - 1.).abs() < 1e-5);
    }
    let zero = Tensor::zeros((), DType::F32, &Device::Cpu).unwrap();
    let total = out.with_balance(&zero, &model.config).unwrap().to_scalar::<f32>().unwrap();
    assert!((total - 4. * 0.01).abs() < 1e-6);
}

#[test]
fn noise_and_places_belong_to_training() {
    let model = encoder(small(1, false, Some(ExpertsConfig { capacity: 0.5, ..experts(4, 2) })));
    let x = randn(8, &[4, 6, 8]);
    let train = |seed| model.forward(&x, Phase::Train(Seed::new(seed))).unwrap();
    let dropped = |out: &Encoded| out.layers.iter().map(|l| l.dispatch.dropped()).sum::<usize>();
    assert!(dropped(&train(1)) > 0);
    assert!(train(1).layers[0].dispatch.loads().iter().all(|&n| n <= 6));
    assert_eq!(dropped(&model.forward(&x, Phase::Eval).unwrap()), 0);
    let p = |out: Encoded| out.layers[0].probabilities.to_vec2::<f32>().unwrap();
    assert_eq!(p(train(1)), p(train(1)));
    assert_ne!(p(train(1)), p(train(2)));
}

#[test]
fn hidden_bytes_are_where_the_targets_are() {
    let ids = Tensor::from_vec(vec![65u32; 4000], (40, 100), &Device::Cpu).unwrap();
    let text = Hidden::of(&ids, Seed::new(9)).unwrap();
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<u32>().unwrap();
    let (input, targets) = (flat(&text.input), flat(&text.targets));
    assert!(input.iter().zip(&targets).all(|(i, t)| *t == 65 || (*t == u32::MAX && *i == 65)));
    let share = text.count().unwrap() as f64 / 4000.;
    assert!((share - 0.15).abs() < 0.03, "{share}");
    let masks = input.iter().filter(|i| **i == 256).count() as f64 / text.count().unwrap() as f64;
    assert!((masks - 0.8).abs() < 0.06, "{masks}");
}

#[test]
fn misfits_name_the_field() {
    let text = |config: EncoderConfig| config.check().unwrap_err().to_string();
    assert!(text(small(3, false, None)).contains("groups"));
    assert!(text(small(1, false, Some(experts(2, 3)))).contains("active"));
    let heads = EncoderConfig { num_attention_heads: 3, ..small(1, false, None) };
    assert!(text(heads).contains("num_attention_heads"));
    let model = encoder(small(1, false, Some(ExpertsConfig { capacity: 0.1, ..experts(4, 1) })));
    let error = model.forward(&randn(1, &[1, 4, 8]), Phase::Train(Seed::new(0))).unwrap_err();
    assert!(error.to_string().contains("capacity"), "{error}");
}

#[test]
fn images_and_text_can_be_learnt() {
    let input = Input { channels: 1, side: 8, patch: 4, classes: 3 };
    let vit = WideVit::init(small(1, false, Some(experts(4, 2))), input, Seed::new(2)).unwrap();
    let labels = Tensor::new(&[0u32, 1, 2, 0], &Device::Cpu).unwrap();
    let (scores, _) = vit.forward(&randn(3, &[4, 1, 8, 8]), Phase::Eval).unwrap();
    let grads = ops::backward(&ops::cross_entropy(&scores, &labels, 0.).unwrap()).unwrap();
    let all = |bank: &Bank, grads: &ops::Grads| {
        let missing: Vec<String> = bank
            .trainable()
            .filter(|(_, v)| grads.get(v).is_none())
            .map(|(n, _)| n.to_owned())
            .collect();
        assert!(missing.is_empty(), "{missing:?}");
    };
    all(&vit.encoder.bank, &grads);
    let bert = WideBert::init(small(1, false, Some(experts(2, 2))), 4, 16, Seed::new(4)).unwrap();
    let ids = Tensor::from_vec((0..64u32).collect(), (4, 16), &Device::Cpu).unwrap();
    let text = Hidden::of(&ids, Seed::new(5)).unwrap();
    let (loss, _) = bert.loss(&text, Phase::Eval).unwrap();
    all(&bert.encoder.bank, &ops::backward(&loss).unwrap());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]
    /// The more groups, the more is stored, and sharing nothing needs no plan.
    #[test]
    fn groups_trade_parameters(experts_count in 1usize..5, share_norms: bool) {
        let stored = |groups| {
            encoder(small(groups, share_norms, Some(experts(experts_count, 1)))).bank.stored()
        };
        prop_assert!(stored(1) < stored(2) && stored(2) < stored(4));
        let whole = encoder(small(4, share_norms, None));
        prop_assert_eq!(whole.bank.plan().iter().count(), 0);
    }
}
