//! Golden values, identities (gate 1, gate 0, equal blocks), accounting, optimal placement, and
//! what is refused.

use std::sync::OnceLock;

use commons_core::Seed;
use commons_nn::model::{
    BLOCK_MATRICES, Decoder, DecoderConfig, LayerType, ids_tensor, layer_prefix,
};
use commons_nn::train::{At, Loss, TokenStream, TrainConfig, Trainer};
use commons_ops::{self as ops, Device, Tensor};
use proptest::prelude::*;
use serde_json::Value;

use super::groups::place;
use super::*;
use crate::baseline::removal::{greedy, least_important, random, uniform};

fn golden() -> Value {
    serde_json::from_str(include_str!("golden.json")).unwrap()
}

fn small(layers: usize) -> Decoder {
    Decoder::init(DecoderConfig::llama(24, 16, layers, 4, 2, 24), Seed::new(7)).unwrap()
}

/// Text with structure: the next token follows from the last or, after an even one, from the one
/// before it; one in ten is random.
fn text(len: usize) -> Vec<u32> {
    let mut rng = Seed::new(3).rng();
    let after = Seed::new(4).permutation(16);
    let mut tokens = vec![1u32, 2];
    while tokens.len() < len {
        let (a, b) = (tokens[tokens.len() - 2], tokens[tokens.len() - 1]);
        let from = if b % 2 == 0 { a } else { b };
        let next = if rng.below(10) == 0 { rng.below(16) as usize } else { after[from as usize] };
        tokens.push(next as u32);
    }
    tokens
}

/// Blocks of [`trained`] that add exactly nothing.
const IDLE: [usize; 2] = [2, 4];

/// A six-block decoder that has learnt [`text`] while two of its blocks stayed idle.
fn trained() -> &'static Decoder {
    static MODEL: OnceLock<Decoder> = OnceLock::new();
    MODEL.get_or_init(|| {
        let config = DecoderConfig::llama(16, 32, 6, 4, 2, 48);
        let mut model = Decoder::init(config, Seed::new(1)).unwrap();
        for layer in IDLE {
            for matrix in ["self_attn.o_proj.weight", "mlp.down_proj.weight"] {
                let name = format!("{}{matrix}", layer_prefix(layer));
                let zeros = model.bank.weight(&name).unwrap().zeros_like().unwrap();
                model.bank.insert(name, zeros).unwrap();
            }
        }
        let idle = |name: &str| IDLE.iter().any(|&l| name.starts_with(&layer_prefix(l)));
        model.bank.freeze(idle);
        let config = TrainConfig {
            steps: 150,
            batch_size: 8,
            seq_len: 32,
            learning_rate: 1e-2,
            ..TrainConfig::default()
        };
        let stream = TokenStream::new(text(4000), 32, 8, Seed::new(2)).unwrap();
        let loss = |At { batch, .. }: At| {
            Ok(Loss::new(model.next_token_loss(&stream.batch(batch, &Device::Cpu)?)?, 256))
        };
        let mut trainer = Trainer::new(config, &model.bank).unwrap();
        trainer.run(loss, |_| {}).unwrap();
        assert!(trainer.losses()[149] < 1.2, "{:?}", trainer.losses());
        model.bank.freeze(|_| false);
        model
    })
}

fn ids() -> Tensor {
    ids_tensor(&[&[3, 1, 4, 1, 5, 9, 2, 6], &[5, 3, 5, 8, 9, 7, 9, 3]], &small(1).bank).unwrap()
}

fn logits(model: &Decoder, hidden: &Tensor) -> Vec<f32> {
    model.logits(hidden).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn close(a: &[f32], b: &[f32], tolerance: f32) {
    assert_eq!(a.len(), b.len());
    for (x, y) in a.iter().zip(b) {
        assert!((x - y).abs() <= tolerance * (1. + y.abs()), "{x} against {y}");
    }
}

fn quiet(_: &str, _: usize, _: usize) -> Result<()> {
    Ok(())
}

#[test]
fn gates_and_slopes_are_golden() {
    for row in golden()["gates"].as_array().unwrap() {
        let at = |key: &str| row[key].as_f64().unwrap();
        let (g, slope) = (gate(at("a"), at("epsilon")), gate_slope(at("a"), at("epsilon")));
        assert!((g - at("gate")).abs() < 1e-12, "{row}: {g}");
        assert!((slope - at("slope")).abs() < 1e-12, "{row}: {slope}");
    }
}

proptest! {
    #[test]
    fn slope_is_the_finite_difference(a in -2f64..2., epsilon in 1e-2f64..1.) {
        let h = 1e-6;
        let slope = (gate(a + h, epsilon) - gate(a - h, epsilon)) / (2. * h);
        prop_assert!((slope - gate_slope(a, epsilon)).abs() < 1e-6);
        prop_assert!((0. ..1.).contains(&gate(a, epsilon)));
    }

    #[test]
    fn placement_is_the_best_there_is(
        values in proptest::collection::vec(0f64..1., 4..10),
        size in 2usize..4,
        count in 1usize..4,
        broken in 0usize..10,
    ) {
        let blocks = values.len();
        let fits = |s: usize| s + size <= blocks && s != broken;
        let value = |s: usize| values[s];
        // Every subset of starts, tried one by one.
        let all = (0u32..1 << blocks).filter(|set| set.count_ones() as usize == count);
        let best = all
            .map(|set| (0..blocks).filter(|i| set >> i & 1 == 1).collect::<Vec<_>>())
            .filter(|s| s.iter().all(|&i| fits(i)) && s.windows(2).all(|w| w[1] - w[0] >= size))
            .map(|s| s.iter().map(|&i| values[i]).sum::<f64>())
            .max_by(f64::total_cmp);
        let found = place(0..blocks, size, count, &fits, &value);
        prop_assert_eq!(found.is_some(), best.is_some());
        if let (Some(found), Some(best)) = (found, best) {
            prop_assert!(found.iter().all(|&i| fits(i)));
            prop_assert!(found.windows(2).all(|w| w[1] - w[0] >= size));
            let sum: f64 = found.iter().map(|&i| values[i]).sum();
            prop_assert!((sum - best).abs() < 1e-12, "{sum} against {best}");
        }
    }
}

#[test]
fn gates_of_one_are_the_model_and_of_zero_remove() {
    let model = small(4);
    let gates = |off: &[usize]| -> Vec<Option<Tensor>> {
        let gate =
            |l: &usize| Tensor::new(&[if off.contains(l) { 0f32 } else { 1. }], &Device::Cpu);
        (0..4usize).map(|l| Some(gate(&l).unwrap())).collect()
    };
    let whole = logits(&model, &model.forward(&ids(), None).unwrap());
    let ones = gated_forward(&model, &ids(), &gates(&[])).unwrap();
    close(&logits(&model, &ones), &whole, 1e-5);
    let ungated = gated_forward(&model, &ids(), &[None, None, None, None]).unwrap();
    assert_eq!(logits(&model, &ungated), whole);
    let short = drop_layers(&model, &[0, 3]).unwrap();
    let expected = logits(&short, &short.forward(&ids(), None).unwrap());
    let zeros = gated_forward(&model, &ids(), &gates(&[1, 2])).unwrap();
    close(&logits(&model, &zeros), &expected, 1e-5);
    assert!(gated_forward(&model, &ids(), &[None]).unwrap_err().to_string().contains("4 blocks"));
}

/// `small` with the weights of block 1 in block 2 as well.
fn with_twins() -> Decoder {
    let mut model = small(4);
    for (name, _) in model.config.weights() {
        if let Some(rest) = name.strip_prefix(&layer_prefix(1)) {
            let twin = model.bank.weight(&name).unwrap();
            model.bank.insert(format!("{}{rest}", layer_prefix(2)), twin).unwrap();
        }
    }
    model
}

fn pair(start: usize) -> Group {
    Group { members: start..start + 2, parent: start }
}

#[test]
fn sharing_equal_blocks_changes_nothing() {
    let model = with_twins();
    let whole = logits(&model, &model.forward(&ids(), None).unwrap());
    let plan = GroupPlan::new(vec![pair(1)], &model.config).unwrap();
    for norms in [Norms::Own, Norms::Shared] {
        let copy = drop_layers(&model, &[0, 1, 2, 3]).unwrap();
        let shared = plan.apply(copy, norms).unwrap();
        assert_eq!(logits(&shared, &shared.forward(&ids(), None).unwrap()), whole);
        let saved = Accounting::of(&model.config);
        let saved = saved.matrices + if norms == Norms::Shared { saved.vectors } else { 0 };
        assert_eq!(shared.bank.stored(), model.bank.stored() - saved);
        assert_eq!(shared.bank.logical().unwrap(), model.bank.logical().unwrap());
    }
}

#[test]
fn gradient_of_a_shared_matrix_is_the_sum_over_members() {
    let model = with_twins();
    let plan = GroupPlan::new(vec![pair(1)], &model.config).unwrap();
    let shared = plan.apply(drop_layers(&model, &[0, 1, 2, 3]).unwrap(), Norms::Own).unwrap();
    let grads = ops::backward(&model.next_token_loss(&ids()).unwrap()).unwrap();
    let shared_grads = ops::backward(&shared.next_token_loss(&ids()).unwrap()).unwrap();
    for matrix in BLOCK_MATRICES {
        let of = |l: usize| {
            let name = format!("{}{matrix}", layer_prefix(l));
            grads.get(model.bank.stored_var(&name).unwrap()).unwrap().clone()
        };
        let sum = (of(1) + of(2)).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let part = shared.bank.stored_var(&format!("bank.group.0.{matrix}")).unwrap();
        let found = shared_grads.get(part).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        close(&found, &sum, 1e-5);
    }
}

#[test]
fn accounting_is_that_of_the_paper_example() {
    let mut config = DecoderConfig::llama(49_152, 576, 30, 9, 3, 1536);
    let golden = golden()["smollm2_135m"].clone();
    let number = |key: &str| golden[key].as_u64().unwrap() as usize;
    let a = Accounting::of(&config);
    assert_eq!(a.outside, number("outside"));
    assert_eq!((a.matrices, a.vectors), (number("matrices"), number("vectors")));
    assert_eq!(a.stored(30, 30), number("stored"));
    assert_eq!(a.stored(26, 26), number("without_4_blocks"));
    assert_eq!(a.stored(26, 30), number("with_4_pairs"));
    config.tie_word_embeddings = false;
    assert_eq!(Accounting::of(&config).outside, a.outside + 49_152 * 576);
}

#[test]
fn a_folded_model_stores_what_the_formula_says() {
    let model = small(9);
    let config = FoldGptConfig {
        remove: 0.25,
        rank_by: RankBy::Influence,
        seq_len: 16,
        groups: GroupConfig { count: 2, ..GroupConfig::default() },
        ..FoldGptConfig::default()
    };
    let folded = fold(&config, &model, &text(64), Seed::new(0), &mut quiet).unwrap();
    assert_eq!((folded.removed.len(), folded.groups.groups.len()), (2, 2));
    assert_eq!(folded.model.config.num_hidden_layers, 7);
    let accounting = Accounting::of(&model.config);
    assert_eq!(folded.model.bank.stored(), accounting.stored(5, 7));
    // A target instead of a count ends at the same two groups.
    let share = (accounting.stored(5, 7) as f64 + 1.) / model.bank.logical().unwrap() as f64;
    let groups = GroupConfig { count: 0, stored_share: Some(share), ..GroupConfig::default() };
    let by_share = FoldGptConfig { groups, ..config };
    let again = fold(&by_share, &model, &text(64), Seed::new(0), &mut quiet).unwrap();
    assert_eq!(again.groups, folded.groups);
}

#[test]
fn every_ranking_finds_blocks_that_do_nothing() {
    let model = trained();
    let tokens = text(2000);
    let similarity = Similarity::measure(model, &tokens, 64, |_, _| Ok(())).unwrap();
    for l in 0..6 {
        let idle = similarity.influence()[l] < 1e-6;
        assert_eq!(idle, IDLE.contains(&l), "block {l}: {:?}", similarity.influence());
    }
    let probe = Probe::new(model, &tokens, 64, 8).unwrap();
    let sorted = |mut v: Vec<usize>| {
        v.sort_unstable();
        v
    };
    assert_eq!(sorted(least_important(&similarity.influence(), 2).unwrap()), IDLE);
    assert_eq!(sorted(greedy(model, &probe, 2, |_, _| Ok(())).unwrap()), IDLE);
    let config = GateConfig { steps: 80, batch_size: 4, seq_len: 32, ..GateConfig::default() };
    let gates = BlockGates::learn(model, &tokens, 4, &config, Seed::new(5), |_, _| Ok(())).unwrap();
    assert_eq!(sorted(gates.lowest(2).unwrap()), IDLE, "{:?}", gates.values());
    assert_eq!(gates.polarised(0.05), 1., "{:?}", gates.values());
    let last = gates.trace().last().unwrap();
    assert!(last.violation.abs() < 0.02, "{last:?}");
    assert_eq!(gates.trace().len(), 80);
    let first = gates.trace()[0].gates[1];
    assert!((first - 1. / 1.1).abs() < 1e-6, "a = 1 and ε = 0.1 give {first}");
}

#[test]
fn verify_exchanges_the_blocks_at_the_cut_when_that_is_better() {
    let model = trained();
    let probe = Probe::new(model, &text(2000), 64, 8).unwrap();
    let gates = |idle: f64, busy: f64| {
        let mut a = vec![1.; 6];
        (a[2], a[1]) = (idle, busy);
        BlockGates::new(a, 0.1)
    };
    assert_eq!(gates(0.2, 0.1).verified(model, &probe, 1).unwrap(), (vec![2], true));
    assert_eq!(gates(0.1, 0.2).verified(model, &probe, 1).unwrap(), (vec![2], false));
}

#[test]
fn the_probe_scores_what_the_built_model_would() {
    let model = trained();
    let tokens = text(300);
    let probe = Probe::new(model, &tokens, 64, 2).unwrap();
    let short = drop_layers(model, &[0, 1, 3, 5]).unwrap();
    let windows = [&tokens[..65], &tokens[64..129]];
    let loss = |w: &[u32]| {
        let ids = ids_tensor(&[w], &short.bank).unwrap();
        f64::from(short.next_token_loss(&ids).unwrap().to_scalar::<f32>().unwrap())
    };
    let expected = windows.iter().map(|w| loss(w)).sum::<f64>() / 2.;
    assert!((probe.loss(model, &[0, 1, 3, 5]).unwrap() - expected).abs() < 1e-5);
}

#[test]
fn rankings_keep_the_ends() {
    for seed in 0..20 {
        let mut out = random(8, 5, Seed::new(seed)).unwrap();
        out.sort_unstable();
        assert!(out[0] >= 1 && out[4] <= 6 && out.windows(2).all(|w| w[0] < w[1]), "{out:?}");
    }
    assert_ne!(random(8, 4, Seed::new(0)).unwrap(), random(8, 4, Seed::new(1)).unwrap());
    assert_eq!(uniform(9, 4).unwrap(), [1, 3, 5, 7]);
    assert_eq!(least_important(&[0., 0.3, 0.1, 0.2, 0.], 2).unwrap(), [2, 3]);
}

#[test]
fn lora_terms_belong_to_the_stored_matrix() {
    let model = small(4);
    let plan = GroupPlan::new(vec![pair(1)], &model.config).unwrap();
    let whole = plan.apply(drop_layers(&model, &[0, 1, 2, 3]).unwrap(), Norms::Own).unwrap();
    let before = logits(&whole, &whole.forward(&ids(), None).unwrap());
    let stored = whole.bank.stored();
    let tune = Tune::Lora { rank: 2, alpha: 4. };
    let lora = tune.prepare(whole, &plan, Seed::new(1)).unwrap();
    assert_eq!(logits(&lora, &lora.forward(&ids(), None).unwrap()), before);
    // Three stored sets of matrices, so three sets of factors: rank · (in + out) each.
    let factors: usize = model
        .config
        .weights()
        .iter()
        .filter(|(n, _)| BLOCK_MATRICES.iter().any(|m| *n == format!("{}{m}", layer_prefix(0))))
        .map(|(_, s)| 2 * (s[0] + s[1]))
        .sum();
    assert_eq!(lora.bank.stored(), stored + 3 * factors);
    let entry = |l: usize| lora.bank.plan().get(&format!("{}mlp.up_proj.weight", layer_prefix(l)));
    assert_eq!(entry(1), entry(2));
    let trained: Vec<&str> = lora.bank.trainable().map(|(n, _)| n).collect();
    assert!(trained.iter().all(|n| n.starts_with("bank.lora.") || n.ends_with("norm.weight")));
    assert_eq!(trained.len(), 3 * 7 * 2 + 4 * 2 + 1);
}

#[test]
fn blocks_alone_are_tuned_by_default() {
    let folded = Tune::Blocks.prepare(small(3), &GroupPlan::default(), Seed::new(0)).unwrap();
    let frozen = |n: &str| !folded.bank.trainable().any(|(t, _)| t == n);
    assert!(frozen("model.embed_tokens.weight"));
    assert!(!frozen("model.norm.weight") && !frozen("model.layers.1.mlp.up_proj.weight"));
}

/// A five-block decoder whose blocks alternate between full and sliding attention.
fn alternating() -> Decoder {
    let mut config = DecoderConfig::llama(24, 16, 5, 4, 2, 24);
    let kind = |l: usize| {
        if l.is_multiple_of(2) { LayerType::FullAttention } else { LayerType::SlidingAttention }
    };
    config.layer_types = (0..5).map(kind).collect();
    config.sliding_window = Some(4);
    Decoder::init(config, Seed::new(1)).unwrap()
}

#[test]
fn removal_renumbers_attention_kinds_and_groups_respect_them() {
    let model = alternating();
    let short = drop_layers(&model, &[0, 1, 3, 4]).unwrap();
    let kinds = [false, true, true, false]
        .map(|local| if local { LayerType::SlidingAttention } else { LayerType::FullAttention });
    assert_eq!(short.config.layer_types, kinds);
    assert!(GroupPlan::new(vec![pair(1)], &short.config).is_ok());
    let mixed = GroupPlan::new(vec![pair(1)], &model.config).unwrap_err().to_string();
    assert!(mixed.contains("groups[0]") && mixed.contains("sliding"), "{mixed}");
}

#[test]
fn impossible_requests_are_refused_with_the_limit() {
    let model = small(6);
    let base = FoldGptConfig {
        remove: 0.,
        rank_by: RankBy::Influence,
        seq_len: 16,
        ..FoldGptConfig::default()
    };
    let refuse = |config: &FoldGptConfig, model: &Decoder, tokens: usize| {
        fold(config, model, &text(tokens), Seed::new(0), &mut quiet).unwrap_err().to_string()
    };
    let all = refuse(&FoldGptConfig { remove: 0.9, ..base.clone() }, &model, 64);
    assert!(all.contains("remove") && all.contains("at most 4"), "{all}");
    let one = refuse(&FoldGptConfig { remove: 1., ..base.clone() }, &model, 64);
    assert!(one.contains("not in 0..1"), "{one}");
    let short = refuse(&base, &model, 15);
    assert!(short.contains("calibration") && short.contains("15 tokens"), "{short}");
    let with = |groups: GroupConfig| FoldGptConfig { groups, ..base.clone() };
    let big = refuse(&with(GroupConfig { size: 5, ..GroupConfig::default() }), &model, 64);
    assert!(big.contains("groups.size") && big.contains("4 blocks"), "{big}");
    let many = refuse(&with(GroupConfig { count: 3, ..GroupConfig::default() }), &model, 64);
    assert!(many.contains("groups.count") && many.contains("at most 2"), "{many}");
    let low = GroupConfig { stored_share: Some(0.01), ..GroupConfig::default() };
    assert!(refuse(&with(low), &model, 64).contains("at most 2"));
    let kinds =
        refuse(&with(GroupConfig { count: 1, ..GroupConfig::default() }), &alternating(), 64);
    assert!(kinds.contains("attention kinds") && kinds.contains("at most 0"), "{kinds}");
    let gates = FoldGptConfig {
        remove: 0.2,
        rank_by: RankBy::Gates,
        gates: GateConfig { learning_rate: -1., ..GateConfig::default() },
        ..base.clone()
    };
    assert!(refuse(&gates, &model, 64).contains("gates.learning_rate"));
    let verify = FoldGptConfig { gates: GateConfig::default(), verify: true, ..gates };
    assert!(refuse(&verify, &model, 64).contains("verify"));
}

#[test]
fn smoothing_falls_log_linearly_after_a_pause() {
    let config = GateConfig { steps: 101, anneal_from: 0.5, ..GateConfig::default() };
    for (step, epsilon) in [(0, 0.1), (50, 0.1), (75, 10f64.powf(-2.5)), (100, 1e-4)] {
        assert!(
            (config.epsilon(step) / epsilon - 1.).abs() < 1e-9,
            "{step}: {}",
            config.epsilon(step)
        );
    }
}
