use commons_core::Seed;
use commons_ops::{self as ops, Device, Tensor};

use super::mor::{Routed, Routing};
use super::recursion::{
    MixtureOfRecursions, RECURSION_KEY, RecursionCache, RecursionGate, RecursionSharing,
    RouterKind, ThresholdSource,
};
use super::router::{Chosen, balance, binary_cross_entropy, highest, z_loss};
use super::{Decoder, DecoderConfig, ids_tensor, layer_prefix};

const IDS: [u32; 12] = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8];
const OTHER: [u32; 12] = [2, 7, 1, 8, 2, 8, 1, 8, 2, 8, 4, 5];

fn mixture(router: RouterKind) -> MixtureOfRecursions {
    MixtureOfRecursions { recursions: 3, router, ..MixtureOfRecursions::default() }
}

/// Routers far enough from zero that no rounding turns a decision.
fn model(mixture: MixtureOfRecursions) -> Decoder {
    let mut config = DecoderConfig::llama(24, 16, 8, 4, 2, 24);
    config.mixture_of_recursions = Some(mixture);
    let mut model = Decoder::init(config, Seed::new(7)).unwrap();
    for (name, _) in model.config.router_weights() {
        let w = model.bank.weight(&name).unwrap().affine(40., 0.).unwrap();
        model.bank.insert(name, w).unwrap();
    }
    model
}

fn routed(model: &Decoder, rows: &[&[u32]], routing: Routing) -> Routed {
    model.forward_routed(&ids_tensor(rows, &model.bank).unwrap(), routing, None).unwrap()
}

fn flat(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn apart(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0., f32::max)
}

fn every_kind() -> Vec<MixtureOfRecursions> {
    let mut all = Vec::new();
    for router in [RouterKind::Expert, RouterKind::Token, RouterKind::Random] {
        for kv_cache in [RecursionCache::Recursion, RecursionCache::Shared] {
            all.push(MixtureOfRecursions { kv_cache, ..mixture(router) });
        }
    }
    let threshold = ThresholdSource::AuxiliaryRouter;
    all.push(MixtureOfRecursions { threshold, ..mixture(RouterKind::Expert) });
    all
}

#[test]
fn golden_layers_at_every_depth() {
    let at = |sharing: RecursionSharing, layers| -> Vec<Option<usize>> {
        (0..layers).map(|l| sharing.layer_at(l, layers, 3)).collect()
    };
    let some = |all: [usize; 6]| all.map(Some).to_vec();
    let middle = |all: [usize; 6]| [vec![None], some(all), vec![None]].concat();
    assert_eq!(at(RecursionSharing::Cycle, 6), some([0, 1, 0, 1, 0, 1]));
    assert_eq!(at(RecursionSharing::Sequence, 6), some([0, 0, 0, 1, 1, 1]));
    assert_eq!(at(RecursionSharing::MiddleCycle, 8), middle([0, 1, 0, 1, 0, 1]));
    assert_eq!(at(RecursionSharing::MiddleSequence, 8), middle([0, 0, 0, 1, 1, 1]));
    assert_eq!(RecursionSharing::MiddleCycle.recursions(8, 3), [1..3, 3..5, 5..7]);
    // SmolLM2-135M: 1 + 14 · 2 + 1.
    assert_eq!(RecursionSharing::MiddleCycle.recursions(30, 2), [1..15, 15..29]);
}

#[test]
fn golden_tokens_of_each_recursion() {
    let m = mixture(RouterKind::Expert);
    // A product with 2/3 in floating point would lose a token of some.
    for thirds in 1..400 {
        let got: Vec<usize> = (0..3).map(|r| m.tokens(r, 3 * thirds)).collect();
        assert_eq!(got, [3 * thirds, 2 * thirds, thirds]);
    }
    assert_eq!([m.tokens(1, 1), m.tokens(2, 2)], [1, 1]);
    for (n, ratio) in [(2, 0.75), (3, 2. / 3.), (4, 0.625)] {
        let m = MixtureOfRecursions { recursions: n, ..m.clone() };
        assert!((m.expected_passes() / n as f64 - ratio).abs() < 1e-12);
    }
}

#[test]
fn golden_selection_of_six_tokens() {
    let all = Chosen::all(1, 6);
    let take = |from: &Chosen, scores: &[f32], k| {
        let keep = highest(from, scores, k);
        from.filter(|at| keep[at]).0
    };
    let m = mixture(RouterKind::Expert);
    let first = take(&all, &[0.9, 0.1, 0.8, 0.3, 0.7, 0.2], m.tokens(0, 6));
    assert_eq!(first, all);
    let second = take(&first, &[0.5, 0.6, 0.4, 0.9, 0.1, 0.2], m.tokens(1, 6));
    assert_eq!(second.rows, [[0, 1, 2, 3]]);
    let third = take(&second, &[0.1, 0.7, 0.9, 0.2], m.tokens(2, 6));
    assert_eq!(third.rows, [[1, 2]]);
    // Equal scores: the earlier.
    assert_eq!(take(&all, &[0.5; 6], 2).rows, [[0, 1]]);
}

#[test]
fn golden_losses() {
    let column = |v: Vec<f32>| Tensor::from_vec(v.clone(), (v.len(), 1), &Device::Cpu).unwrap();
    let value = |t: Tensor| t.to_scalar::<f32>().unwrap();
    let even = value(binary_cross_entropy(&column(vec![0., 0.]), &[true, false]).unwrap());
    assert!((even - 2f32.ln()).abs() < 1e-6);
    let z = column(vec![1., -2.]);
    let want = ((1. + (-1f32).exp()).ln() + (1. + (-2f32).exp()).ln()) / 2.;
    assert!((value(binary_cross_entropy(&z, &[true, false]).unwrap()) - want).abs() < 1e-6);
    assert!((value(z_loss(&z).unwrap()) - 2.5).abs() < 1e-6);
    let two = Tensor::new(&[[0f32, 0.], [0., 0.]], &Device::Cpu).unwrap();
    assert!((value(z_loss(&two).unwrap()) - 2f32.ln().powi(2)).abs() < 1e-6);
    let p = Tensor::new(&[[0.5f32, 0.5], [0.5, 0.5]], &Device::Cpu).unwrap();
    assert!((value(balance(&p, &[0, 1]).unwrap()) - 1.).abs() < 1e-6);
    let p = Tensor::new(&[[0.75f32, 0.25], [0.75, 0.25]], &Device::Cpu).unwrap();
    assert!((value(balance(&p, &[0, 0]).unwrap()) - 1.5).abs() < 1e-6);
}

#[test]
fn selected_sets_are_nested_sorted_and_as_large_as_they_should_be() {
    let m = model(mixture(RouterKind::Expert));
    let active = routed(&m, &[&IDS, &OTHER], Routing::Training).active;
    for row in 0..2 {
        let sets: Vec<&Vec<u32>> = active.iter().map(|rows| &rows[row]).collect();
        assert_eq!(sets.iter().map(|s| s.len()).collect::<Vec<_>>(), [12, 8, 4]);
        for pair in sets.windows(2) {
            assert!(pair[1].iter().all(|t| pair[0].contains(t)));
            assert!(pair[1].windows(2).all(|w| w[0] < w[1]));
        }
    }
}

/// The same function over all tokens, with masks where the model gathers.
fn masked(model: &Decoder, ids: &[u32], active: &[Vec<u32>]) -> Vec<f32> {
    let mixture = model.config.mixture_of_recursions.clone().unwrap();
    let n = ids.len();
    let rotary = model.rotary(0, n).unwrap();
    let mut shared: Vec<Option<(Tensor, Tensor)>> = vec![None; 8];
    let everyone: Vec<u32> = (0..n as u32).collect();
    let mut block = |depth: usize, keys: usize, x: &Tensor, seen: &[u32]| -> Tensor {
        let normed = model.rms_norm(&format!("{}input_layernorm", layer_prefix(depth)), x).unwrap();
        let q = model.queries(depth, &normed, &rotary).unwrap();
        if depth == keys {
            shared[depth] = Some(model.keys_values(depth, &normed, &rotary).unwrap());
        }
        let (k, v) = shared[keys].clone().unwrap();
        let heads =
            |t: &Tensor| t.squeeze(0).unwrap().transpose(0, 1).unwrap().contiguous().unwrap();
        let twice = |t: &Tensor| {
            heads(t).index_select(&Tensor::new(&[0u32, 0, 1, 1], &Device::Cpu).unwrap(), 0).unwrap()
        };
        let scores = heads(&q).matmul(&twice(&k).transpose(1, 2).unwrap().contiguous().unwrap());
        let scores = scores.unwrap().affine(1. / (4f64).sqrt(), 0.).unwrap();
        let hidden: Vec<f32> = (0..n * n)
            .map(|at| {
                let (i, j) = ((at / n) as u32, (at % n) as u32);
                if j <= i && seen.contains(&j) { 0. } else { -1e9 }
            })
            .collect();
        let mask = Tensor::from_vec(hidden, (1, n, n), &Device::Cpu).unwrap();
        let p = ops::softmax(&scores.broadcast_add(&mask).unwrap()).unwrap();
        let y = p.matmul(&twice(&v)).unwrap().transpose(0, 1).unwrap().contiguous().unwrap();
        let y = model.attention_output(depth, &y.reshape((1, n, 16)).unwrap()).unwrap();
        let x = (x + y).unwrap();
        (&x + model.mlp_update(depth, &x).unwrap()).unwrap()
    };
    let mut x = model.embed(&ids_tensor(&[ids], &model.bank).unwrap()).unwrap();
    x = block(0, 0, &x, &everyone);
    for (r, chosen) in active.iter().enumerate() {
        let depths = [1 + 2 * r, 2 + 2 * r];
        let is_shared = mixture.kv_cache == RecursionCache::Shared;
        let seen = if is_shared { &everyone } else { chosen };
        let z = model.bank.linear(&format!("model.recursion_router.{r}"), &x).unwrap();
        let mut y = x.clone();
        for (i, depth) in depths.into_iter().enumerate() {
            y = block(depth, if is_shared { 1 + i } else { depth }, &y, seen);
        }
        let gate: Vec<f32> = (0..n as u32).map(|t| f32::from(chosen.contains(&t))).collect();
        let gate = Tensor::from_vec(gate, (1, n, 1), &Device::Cpu).unwrap();
        let gate = (gate * ops::sigmoid(&z).unwrap().affine(mixture.alpha(), 0.).unwrap()).unwrap();
        x = (x + y.broadcast_mul(&gate).unwrap()).unwrap();
    }
    x = block(7, 7, &x, &everyone);
    flat(&model.final_norm(&x).unwrap())
}

#[test]
fn gathered_tokens_give_what_masks_give() {
    for kv_cache in [RecursionCache::Recursion, RecursionCache::Shared] {
        let m = model(MixtureOfRecursions { kv_cache, ..mixture(RouterKind::Expert) });
        for routing in [Routing::Training, Routing::Threshold] {
            let got = routed(&m, &[&IDS], routing);
            let active: Vec<Vec<u32>> = got.active.iter().map(|rows| rows[0].clone()).collect();
            assert!(active[1].len() < 12, "nothing is routed: {active:?}");
            let distance = apart(&flat(&got.hidden), &masked(&m, &IDS, &active));
            assert!(distance < 1e-5, "{kv_cache:?} {routing:?} {distance}");
        }
    }
}

#[test]
fn with_every_token_and_no_gate_it_is_plain_recursion_added_up() {
    for recursions in [1, 2, 3, 6] {
        let m = model(MixtureOfRecursions {
            recursions,
            capacities: vec![1.; recursions],
            gate: RecursionGate::Additive,
            ..MixtureOfRecursions::default()
        });
        let mut plain = m.clone();
        plain.config.mixture_of_recursions = None;
        let rotary = plain.rotary(0, 12).unwrap();
        let ids = ids_tensor(&[&IDS], &m.bank).unwrap();
        let layer = |depth, x: &Tensor| plain.block(depth, x, &rotary, None).unwrap();
        let mut x = layer(0, &plain.embed(&ids).unwrap());
        for depths in RecursionSharing::MiddleCycle.recursions(8, recursions) {
            let y = depths.fold(x.clone(), |y, depth| layer(depth, &y));
            x = (x + y).unwrap();
        }
        let want = plain.final_norm(&layer(7, &x)).unwrap();
        let got = routed(&m, &[&IDS], Routing::Training).hidden;
        assert!(apart(&flat(&got), &flat(&want)) < 1e-5, "{recursions}");
    }
}

#[test]
fn a_cache_gives_the_states_of_the_whole_sequence() {
    for kind in every_kind() {
        let m = model(kind.clone());
        let whole = m.forward(&ids_tensor(&[&IDS, &OTHER], &m.bank).unwrap(), None).unwrap();
        let mut cache = m.cache(2, 12).unwrap();
        let mut parts = Vec::new();
        for (from, to) in [(0, 5), (5, 6), (6, 7), (7, 12)] {
            let ids = ids_tensor(&[&IDS[from..to], &OTHER[from..to]], &m.bank).unwrap();
            parts.push(m.forward(&ids, Some(&mut cache)).unwrap());
        }
        let parts = Tensor::cat(&parts, 1).unwrap();
        let distance = apart(&flat(&whole), &flat(&parts));
        assert!(distance < 1e-5, "{kind:?} {distance}");
        // What was taken back is computed again.
        cache.truncate(7);
        let ids = ids_tensor(&[&IDS[7..], &OTHER[7..]], &m.bank).unwrap();
        let again = m.forward(&ids, Some(&mut cache)).unwrap();
        let tail = whole.narrow(1, 7, 5).unwrap();
        assert!(apart(&flat(&tail), &flat(&again)) < 1e-5, "{kind:?}");
        assert!(m.forward(&ids, Some(&mut cache)).is_err(), "the cache is full");
    }
}

#[test]
fn a_cache_holds_no_more_than_what_took_part() {
    for kind in every_kind() {
        let m = model(kind.clone());
        let mut cache = m.cache(1, 12).unwrap();
        let ids = ids_tensor(&[&IDS], &m.bank).unwrap();
        let done = m.forward_routed(&ids, Routing::Threshold, Some(&mut cache)).unwrap();
        let taken: usize = done.active.iter().map(|rows| rows[0].len()).sum();
        let passes = if kind.kv_cache == RecursionCache::Shared { 12 } else { taken };
        // Two layers at the ends, two in a recursion; keys and values of two heads four wide.
        assert_eq!(cache.bytes(), (2 * 12 + 2 * passes) * 2 * 2 * 4 * 4, "{kind:?}");
    }
}

#[test]
fn no_token_sees_a_later_one_but_in_training() {
    for kind in every_kind() {
        let m = model(kind.clone());
        let mut changed = IDS;
        changed[11] = 20;
        let head = |ids: &[u32]| {
            let hidden = m.forward(&ids_tensor(&[ids], &m.bank).unwrap(), None).unwrap();
            flat(&hidden.narrow(1, 0, 11).unwrap())
        };
        assert!(apart(&head(&IDS), &head(&changed)) < 1e-6, "{kind:?}");
    }
}

#[test]
fn rows_do_not_see_each_other() {
    for kind in every_kind() {
        let m = model(kind.clone());
        for routing in [Routing::Training, Routing::Threshold] {
            let both = flat(&routed(&m, &[&IDS, &OTHER], routing).hidden);
            let each = [&IDS, &OTHER].map(|ids| flat(&routed(&m, &[ids], routing).hidden)).concat();
            assert!(apart(&both, &each) < 1e-5, "{kind:?} {routing:?}");
        }
    }
}

#[test]
fn gradients_are_those_of_the_loss() {
    for kind in every_kind() {
        let m = model(MixtureOfRecursions {
            router_aux_loss_coef: Some(0.1),
            router_z_loss_coef: Some(0.01),
            ..kind.clone()
        });
        let ids = ids_tensor(&[&IDS, &OTHER], &m.bank).unwrap();
        let loss = || m.routed_loss(&ids, false).unwrap().total;
        let grads = ops::backward(&loss()).unwrap();
        let router = m.config.router_weights().pop().unwrap().0;
        for name in [
            router.as_str(),
            "bank.recursion.0.mlp.up_proj.weight",
            "bank.recursion.1.self_attn.k_proj.weight",
            "model.layers.7.self_attn.v_proj.weight",
        ] {
            let var = m.bank.stored_var(name).unwrap();
            let g = grads.get(var.as_tensor()).unwrap().clone();
            let norm = flat(&g).iter().map(|x| x * x).sum::<f32>().sqrt();
            let start = var.as_detached_tensor().copy().unwrap();
            let step = 4e-3;
            let at = |s: f64| {
                let moved = (&start + g.affine(s / f64::from(norm), 0.).unwrap()).unwrap();
                var.set(&moved).unwrap();
                let value = f64::from(loss().to_scalar::<f32>().unwrap());
                var.set(&start).unwrap();
                value
            };
            let slope = (at(step) - at(-step)) / (2. * step);
            let (got, tolerance) = (f64::from(norm), 2e-4 + 0.03 * slope.abs());
            assert!((got - slope).abs() < tolerance, "{kind:?} {name}: {got} {slope}");
        }
    }
}

#[test]
fn recomputing_changes_nothing() {
    for router in [RouterKind::Expert, RouterKind::Token] {
        let m = model(mixture(router));
        let ids = ids_tensor(&[&IDS, &OTHER], &m.bank).unwrap();
        let (kept, again) =
            (m.next_token_loss(&ids).unwrap(), m.next_token_loss_recomputing(&ids).unwrap());
        assert!(apart(&flat(&kept), &flat(&again)) < 1e-6);
        let (a, b) = (ops::backward(&kept).unwrap(), ops::backward(&again).unwrap());
        for (name, var) in m.bank.trainable() {
            if let Some(g) = a.get(var.as_tensor()) {
                let other = b.get(var.as_tensor()).unwrap();
                assert!(apart(&flat(g), &flat(other)) < 1e-5, "{name}");
            }
        }
    }
    let shared =
        MixtureOfRecursions { kv_cache: RecursionCache::Shared, ..mixture(RouterKind::Expert) };
    let m = model(shared);
    let ids = ids_tensor(&[&IDS], &m.bank).unwrap();
    let message = m.next_token_loss_recomputing(&ids).unwrap_err().to_string();
    assert!(message.contains("gradient_checkpointing"), "{message}");
}

#[test]
fn layers_by_themselves_are_refused() {
    let m = model(mixture(RouterKind::Expert));
    let message = m.hidden_states(&ids_tensor(&[&IDS], &m.bank).unwrap()).unwrap_err().to_string();
    assert!(message.contains(RECURSION_KEY) && message.contains("one by one"), "{message}");
    let message = m.config.check_plain().unwrap_err().to_string();
    assert!(message.contains("transformers") && message.contains("3 recursions"), "{message}");
}

#[test]
fn the_configuration_is_read_checked_and_written() {
    let m = model(mixture(RouterKind::Expert));
    let json = m.config.to_json().unwrap();
    assert_eq!(DecoderConfig::from_json(&json).unwrap(), m.config);
    assert_eq!(json["model_type"], "commons_llama");
    for (field, value, says) in [
        ("recursions", serde_json::json!(0), "1..=64"),
        ("recursions", serde_json::json!(4), "take 6 or 10 layers"),
        ("capacities", serde_json::json!([1., 0.5]), "2 shares for 3"),
        ("capacities", serde_json::json!([1., 0.3, 0.6]), "rise"),
        ("capacities", serde_json::json!([1., 0.3, 0.]), "above 0"),
        ("alpha", serde_json::json!(-1.), "alpha"),
        ("router", serde_json::json!("oracle"), "oracle"),
        ("depth", serde_json::json!(3), "unknown field"),
    ] {
        let mut json = json.clone();
        json[RECURSION_KEY][field] = value;
        let message = DecoderConfig::from_json(&json).unwrap_err().to_string();
        assert!(message.contains(says), "{message}");
    }
    let mut json = json;
    json[RECURSION_KEY]["kv_cache"] = "shared".into();
    json[RECURSION_KEY]["capacities"] = serde_json::json!([0.9, 0.5, 0.5]);
    assert!(DecoderConfig::from_json(&json).unwrap_err().to_string().contains("recursion 1"));
    json[RECURSION_KEY]["capacities"] = serde_json::json!([]);
    json[RECURSION_KEY]["sharing"] = "middle_sequence".into();
    assert!(DecoderConfig::from_json(&json).unwrap_err().to_string().contains("middle_cycle"));
}

#[test]
fn every_sharing_has_a_model() {
    use RecursionSharing::{Cycle, MiddleCycle, MiddleSequence, Sequence};
    for (sharing, recursions, unique) in
        [(Cycle, 4, 2), (Sequence, 4, 2), (MiddleCycle, 3, 4), (MiddleSequence, 3, 4)]
    {
        let m =
            model(MixtureOfRecursions { sharing, recursions, ..MixtureOfRecursions::default() });
        let layer = 2 * 16 * 16 + 2 * 8 * 16 + 3 * 16 * 24 + 2 * 16;
        assert_eq!(m.bank.stored(), 24 * 16 + 16 + unique * layer + recursions * 16);
        let loss = m.next_token_loss(&ids_tensor(&[&IDS], &m.bank).unwrap()).unwrap();
        assert!((loss.to_scalar::<f32>().unwrap() - 24f32.ln()).abs() < 1.);
    }
}
