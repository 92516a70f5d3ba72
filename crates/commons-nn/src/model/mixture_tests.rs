use commons_core::Seed;
use commons_ops::{self as ops, DType, Tensor};
use serde_json::json;

use super::experts::{EXPERTS_KEY, MixtureOfExperts, SHARE_LAYERS_KEY};
use super::mixture::MoePhase;
use super::{
    Decoder, DecoderConfig, Family, LayerType, Loaded, MixtureOfRecursions, ParallelStreams,
    SaveFormat, ids_tensor,
};
use crate::bank::{Bank, Share};
use crate::tokenizer::Tokenizer;

const IDS: [u32; 12] = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8];
const OTHER: [u32; 12] = [2, 7, 1, 8, 2, 8, 1, 8, 2, 8, 4, 5];

fn grouped() -> MixtureOfExperts {
    MixtureOfExperts {
        num_experts: 8,
        num_experts_per_tok: 4,
        expert_groups: 2,
        shared_expert_intermediate_size: 8,
        ..MixtureOfExperts::default()
    }
}

fn plain() -> MixtureOfExperts {
    MixtureOfExperts { num_experts: 4, num_experts_per_tok: 2, ..MixtureOfExperts::default() }
}

fn dense() -> DecoderConfig {
    DecoderConfig::llama(24, 16, 3, 4, 2, 24)
}

fn config(mixture: MixtureOfExperts) -> DecoderConfig {
    DecoderConfig { mixture_of_experts: Some(mixture), ..dense() }
}

/// Routers far enough from zero that no rounding turns a decision.
fn model(config: DecoderConfig) -> Decoder {
    let mut model = Decoder::init(config, Seed::new(7)).unwrap();
    let routers: Vec<String> = model
        .bank
        .stored_vars()
        .filter(|(n, _)| n.ends_with("mlp.gate.weight"))
        .map(|(n, _)| n.to_owned())
        .collect();
    for name in routers {
        let w = model.bank.weight(&name).unwrap().affine(40., 0.).unwrap();
        model.bank.insert(name, w).unwrap();
    }
    model
}

fn gemma() -> DecoderConfig {
    DecoderConfig {
        model_type: Family::Gemma3,
        hidden_act: "gelu_pytorch_tanh".into(),
        layer_types: vec![
            LayerType::SlidingAttention,
            LayerType::FullAttention,
            LayerType::SlidingAttention,
        ],
        sliding_window: Some(4),
        rope_local_base_freq: Some(10_000.),
        ..config(grouped())
    }
}

fn every_kind() -> Vec<DecoderConfig> {
    let streams = ParallelStreams { count: 2, prefix_tokens: 3, smoothing: 0.01 };
    vec![
        config(plain()),
        config(grouped()),
        DecoderConfig { share_layers: true, ..config(plain()) },
        DecoderConfig { share_layers: true, ..dense() },
        DecoderConfig { model_type: Family::Qwen2, share_layers: true, ..config(grouped()) },
        DecoderConfig { model_type: Family::Qwen3, share_layers: true, ..config(plain()) },
        DecoderConfig { parallel_streams: Some(streams), share_layers: true, ..config(plain()) },
        gemma(),
        DecoderConfig { share_layers: true, ..gemma() },
    ]
}

fn ids(model: &Decoder) -> Tensor {
    ids_tensor(&[&IDS, &OTHER], &model.bank).unwrap()
}

fn flat(t: &Tensor) -> Vec<f32> {
    t.detach().flatten_all().unwrap().to_vec1().unwrap()
}

fn apart(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    flat(a).iter().zip(flat(b)).map(|(x, y)| (x - y).abs()).fold(0., f32::max)
}

fn number(t: &Tensor) -> f64 {
    f64::from(t.detach().to_scalar::<f32>().unwrap())
}

fn refusal(config: &DecoderConfig) -> String {
    config.check().unwrap_err().to_string()
}

#[test]
fn weights_have_the_names_and_counts_of_the_field() {
    let m = model(config(grouped()));
    // Wide enough that a token multiplies what it does in a dense decoder: 24 / 4.
    for (name, shape) in [
        ("model.layers.2.mlp.gate.weight", [8, 16]),
        ("model.layers.0.mlp.experts.7.down_proj.weight", [16, 6]),
        ("model.layers.1.mlp.experts.0.gate_proj.weight", [6, 16]),
        ("model.layers.1.mlp.shared_experts.up_proj.weight", [8, 16]),
    ] {
        assert_eq!(m.bank.shape(name).unwrap(), shape, "{name}");
    }
    assert!(!m.bank.contains("model.layers.0.mlp.up_proj.weight"));
    let attention = 2 * 16 * 16 + 2 * 8 * 16;
    let (router, expert, shared) = (8 * 16, 3 * 16 * 6, 3 * 16 * 8);
    let layer = attention + router + 8 * expert + shared;
    assert_eq!(m.bank.stored(), 24 * 16 + 16 + 3 * (layer + 2 * 16));
    let active = attention + router + 4 * expert + shared;
    assert_eq!(m.config.active_parameters(), 3 * active + 24 * 16);

    let m = model(DecoderConfig { share_layers: true, ..config(plain()) });
    // Router, four experts half as wide as the dense part; norms of every layer.
    let layer = attention + 4 * 16 + 4 * 3 * 16 * 12;
    assert_eq!(m.bank.stored(), 24 * 16 + 16 + layer + 3 * 2 * 16);
    let tied = "model.layers.2.mlp.experts.3.up_proj.weight";
    let part = "bank.layer.mlp.experts.3.up_proj.weight";
    let share = &m.bank.plan().get(tied).unwrap().share;
    assert!(matches!(share, Share::Same { owner } if owner == part), "{share:?}");
    assert!(m.bank.stored_var("model.layers.2.post_attention_layernorm.weight").is_ok());
}

#[test]
fn misfits_name_the_field_and_what_would_do() {
    let text = |mixture: MixtureOfExperts| refusal(&config(mixture));
    let of = |experts, active, groups| MixtureOfExperts {
        num_experts: experts,
        num_experts_per_tok: active,
        expert_groups: groups,
        ..MixtureOfExperts::default()
    };
    for (mixture, field, remedy) in [
        (of(0, 1, 1), "num_experts", "1..=4096"),
        (of(16, 4, 3), "expert_groups", "take 1 or 2 or 4"),
        (of(16, 6, 0), "expert_groups", "take 1 or 2"),
        (of(16, 5, 2), "num_experts_per_tok", "take 4"),
        (of(16, 1, 4), "num_experts_per_tok", "take 4"),
        (of(4, 9, 1), "num_experts_per_tok", "take 1 to 4"),
        (of(4, 0, 1), "num_experts_per_tok", "take 1 to 4"),
        (
            MixtureOfExperts { moe_intermediate_size: Some(0), ..plain() },
            "moe_intermediate_size",
            "1",
        ),
        (
            MixtureOfExperts { router_aux_loss_coef: -1., ..plain() },
            "router_aux_loss_coef",
            "negative",
        ),
        (MixtureOfExperts { router_noise: f64::NAN, ..plain() }, "router_noise", "negative"),
        (MixtureOfExperts { capacity_factor: Some(0.), ..plain() }, "capacity_factor", "1.25"),
    ] {
        let message = text(mixture);
        assert!(message.contains(&format!("{EXPERTS_KEY}.{field}")), "{message}");
        assert!(message.contains(remedy), "{message}");
    }
    let recursions = Some(MixtureOfRecursions::default());
    let both = DecoderConfig {
        mixture_of_recursions: recursions.clone(),
        num_hidden_layers: 4,
        ..config(plain())
    };
    assert!(refusal(&both).contains(SHARE_LAYERS_KEY), "{}", refusal(&both));
    let both = DecoderConfig {
        mixture_of_recursions: recursions,
        num_hidden_layers: 4,
        share_layers: true,
        ..dense()
    };
    assert!(refusal(&both).contains("mixture_of_recursions"), "{}", refusal(&both));
    let many = DecoderConfig { num_hidden_layers: 1 << 20, ..config(plain()) };
    assert!(refusal(&many).contains("in all layers"), "{}", refusal(&many));
    let relu = DecoderConfig { hidden_act: "relu".into(), ..config(plain()) };
    assert!(refusal(&relu).contains("hidden_act"), "{}", refusal(&relu));
}

#[test]
fn the_configuration_is_read_and_written() {
    for config in every_kind() {
        let json = config.to_json().unwrap();
        assert_eq!(DecoderConfig::from_json(&json).unwrap(), config);
        let own = config.mixture_of_experts.is_some();
        let kind = json["model_type"].as_str().unwrap();
        assert_eq!(kind.starts_with("commons_"), own, "{kind}");
        let refused = config.check_plain().is_err();
        assert_eq!(refused, own);
        assert_eq!(config.check_dense().is_err(), own);
        if own {
            let message = config.check_plain().unwrap_err().to_string();
            assert!(message.contains("generate") && message.contains("experts"), "{message}");
        }
    }
    let mut json = config(plain()).to_json().unwrap();
    assert_eq!(json[EXPERTS_KEY]["num_experts_per_tok"], 2);
    json[EXPERTS_KEY]["experts"] = 3.into();
    let message = DecoderConfig::from_json(&json).unwrap_err().to_string();
    assert!(message.contains("unknown field"), "{message}");
    json[EXPERTS_KEY] = json!(null);
    json[SHARE_LAYERS_KEY] = json!("yes");
    let message = DecoderConfig::from_json(&json).unwrap_err().to_string();
    assert!(message.contains(SHARE_LAYERS_KEY), "{message}");
}

#[test]
fn defaults_are_those_of_the_papers() {
    assert!(plain().renormalizes() && !grouped().renormalizes());
    let one = MixtureOfExperts { num_experts_per_tok: 1, ..plain() };
    assert!(!one.renormalizes(), "a router that is not read learns nothing");
    assert!(MixtureOfExperts { norm_topk_prob: Some(true), ..one }.renormalizes());
    assert_eq!([plain().expert_width(24), plain().expert_width(1)], [12, 1]);
    let given = MixtureOfExperts { moe_intermediate_size: Some(5), ..plain() };
    assert_eq!(given.expert_width(24), 5);
}

/// One expert, or equal ones whose weights sum to one, is the dense feed-forward part.
#[test]
fn equal_experts_are_the_dense_part() {
    let dense = Decoder::init(dense(), Seed::new(1)).unwrap();
    let want = dense.forward(&ids(&dense), None).unwrap();
    for (experts, active) in [(1, 1), (4, 2)] {
        let mixture = MixtureOfExperts {
            num_experts: experts,
            num_experts_per_tok: active,
            moe_intermediate_size: Some(24),
            ..MixtureOfExperts::default()
        };
        let mut m = model(config(mixture));
        for (name, var) in dense.bank.stored_vars() {
            let tensor = var.as_detached_tensor();
            match name.split_once("mlp.") {
                None => m.bank.insert(name, tensor).unwrap(),
                Some((layer, rest)) => (0..experts).for_each(|e| {
                    let name = format!("{layer}mlp.experts.{e}.{rest}");
                    m.bank.insert(name, tensor.clone()).unwrap();
                }),
            }
        }
        let got = m.forward(&ids(&m), None).unwrap();
        assert!(apart(&got, &want) < 1e-5, "{experts} {}", apart(&got, &want));
    }
}

#[test]
fn a_cache_gives_the_states_of_the_whole_sequence() {
    for config in every_kind() {
        let m = model(config.clone());
        let whole = m.forward(&ids(&m), None).unwrap();
        let mut cache = m.cache(2, 12).unwrap();
        let mut parts = Vec::new();
        for (from, to) in [(0, 5), (5, 6), (6, 7), (7, 12)] {
            let ids = ids_tensor(&[&IDS[from..to], &OTHER[from..to]], &m.bank).unwrap();
            parts.push(m.forward(&ids, Some(&mut cache)).unwrap());
        }
        let parts = Tensor::cat(&parts, 1).unwrap();
        assert!(apart(&whole, &parts) < 1e-5, "{config:?} {}", apart(&whole, &parts));
        let baked = m.baked().unwrap().forward(&ids(&m), None).unwrap();
        assert!(apart(&whole, &baked) < 1e-6, "{config:?}");
    }
}

#[test]
fn neither_later_tokens_nor_other_rows_matter_in_scoring() {
    let tight = MixtureOfExperts { capacity_factor: Some(0.5), router_noise: 1., ..plain() };
    let m = model(config(tight));
    let alone = m.forward(&ids_tensor(&[&IDS[..9]], &m.bank).unwrap(), None).unwrap();
    let both = m.forward(&ids(&m), None).unwrap();
    let part = both.narrow(0, 0, 1).unwrap().narrow(1, 0, 9).unwrap();
    assert!(apart(&alone, &part) < 1e-5);
}

#[test]
fn groups_are_loaded_alike_in_every_layer() {
    let loads = |mixture: MixtureOfExperts| -> Vec<[usize; 2]> {
        let m = model(config(mixture));
        let pass = m.forward_experts(&ids(&m), MoePhase::Scoring).unwrap();
        let halves = |counts: Vec<usize>| [0..4, 4..8].map(|r| counts[r].iter().sum());
        pass.layers.iter().map(|l| halves(l.dispatch.loads())).collect()
    };
    assert_eq!(loads(grouped()), [[48, 48]; 3]);
    let plain = loads(MixtureOfExperts { expert_groups: 1, ..grouped() });
    assert!(plain.iter().any(|[a, b]| a != b), "{plain:?}");
}

#[test]
fn training_has_places_noise_and_the_balance_loss() {
    let mixture = MixtureOfExperts { capacity_factor: Some(1.), router_noise: 4., ..plain() };
    let m = model(config(mixture.clone()));
    let ids = ids(&m);
    let of = |phase| m.experts_loss(&ids, phase).unwrap();
    let scored = of(MoePhase::Scoring);
    assert_eq!(scored.dropped, 0.);
    let quiet = of(MoePhase::Training(None));
    assert!(quiet.dropped > 0.);
    for layer in &quiet.pass.as_ref().unwrap().layers {
        // ⌊1 · 2 · 22 / 4⌋ places for the choices of 22 tokens.
        assert!(layer.dispatch.loads().iter().all(|&n| n <= 11), "{:?}", layer.dispatch.loads());
        assert_eq!(layer.dispatch.computed() + layer.dispatch.dropped(), 44);
    }
    let noisy = |seed| number(&of(MoePhase::Training(Some(Seed::new(seed)))).total);
    assert_eq!(noisy(1), noisy(1));
    assert!(noisy(1) != noisy(2) && noisy(1) != number(&quiet.total));
    let added = number(&quiet.total) - number(&quiet.loss);
    assert!((added - 0.01 * 3. * quiet.balance).abs() < 1e-5, "{added} {}", quiet.balance);
    assert_eq!(number(&m.next_token_loss(&ids).unwrap()), number(&quiet.total));
    let logged = m.training_loss(&ids, Seed::new(1), false).unwrap();
    assert_eq!(number(&logged.total), noisy(1));
    assert_eq!(logged.parts.iter().map(|p| p.0).collect::<Vec<_>>(), ["balance", "dropped"]);
    let dense = model(dense());
    assert!(dense.training_loss(&ids, Seed::new(1), false).unwrap().parts.is_empty());
}

#[test]
fn recomputing_changes_nothing() {
    for config in every_kind() {
        let mut config = config;
        if let Some(mixture) = &mut config.mixture_of_experts {
            mixture.capacity_factor = Some(1.);
            mixture.router_noise = 0.5;
        }
        let m = model(config.clone());
        let of = |recompute| m.training_loss(&ids(&m), Seed::new(3), recompute).unwrap();
        let (kept, again) = (of(false), of(true));
        assert!(apart(&kept.total, &again.total) < 1e-6, "{config:?}");
        assert_eq!(kept.parts, again.parts);
        let (a, b) = (ops::backward(&kept.total).unwrap(), ops::backward(&again.total).unwrap());
        for (name, var) in m.bank.trainable() {
            let (g, other) = (a.get(var.as_tensor()), b.get(var.as_tensor()));
            let (g, other) = (g.expect(name), other.expect(name));
            assert!(apart(g, other) < 1e-5, "{name} {config:?}");
        }
    }
}

/// The same values, every layer with tensors of its own.
fn untied(m: &Decoder) -> Decoder {
    Decoder { config: m.config.clone(), bank: m.bank.materialize().unwrap() }
}

#[test]
fn the_gradient_of_a_shared_weight_is_the_sum_over_depth() {
    let m = model(DecoderConfig { share_layers: true, ..config(grouped()) });
    let ids = ids(&m);
    let loss = || m.experts_loss(&ids, MoePhase::Training(None)).unwrap().total;
    let grads = ops::backward(&loss()).unwrap();
    let apart_model = untied(&m);
    let own = apart_model.next_token_loss(&ids).unwrap();
    let own_grads = ops::backward(&own).unwrap();
    for rest in [
        "mlp.gate.weight",
        "mlp.experts.5.up_proj.weight",
        "mlp.shared_experts.down_proj.weight",
        "self_attn.k_proj.weight",
    ] {
        let var = m.bank.stored_var(&format!("bank.layer.{rest}")).unwrap();
        let g = grads.get(var.as_tensor()).unwrap().clone();
        let mut sum: Option<Tensor> = None;
        for layer in 0..3 {
            let own = apart_model.bank.stored_var(&format!("model.layers.{layer}.{rest}"));
            let part = own_grads.get(own.unwrap().as_tensor()).unwrap().clone();
            sum = Some(match sum {
                Some(sum) => (sum + part).unwrap(),
                None => part,
            });
        }
        assert!(apart(&g, &sum.unwrap()) < 1e-5, "{rest}");
        slope_is_the_norm(rest, &g, var, &loss);
    }
}

/// Along the gradient the loss rises by its norm.
fn slope_is_the_norm(name: &str, g: &Tensor, var: &ops::Var, loss: &dyn Fn() -> Tensor) {
    let norm = flat(g).iter().map(|x| x * x).sum::<f32>().sqrt();
    let start = var.as_detached_tensor().copy().unwrap();
    let step = 4e-3;
    let at = |s: f64| {
        let moved = (&start + g.affine(s / f64::from(norm), 0.).unwrap()).unwrap();
        var.set(&moved).unwrap();
        let value = number(&loss());
        var.set(&start).unwrap();
        value
    };
    let slope = (at(step) - at(-step)) / (2. * step);
    let (got, tolerance) = (f64::from(norm), 2e-4 + 0.03 * slope.abs());
    assert!((got - slope).abs() < tolerance, "{name}: {got} {slope}");
}

fn stored(bank: &Bank) -> Vec<(String, Vec<f32>)> {
    bank.stored_vars().map(|(n, v)| (n.to_owned(), flat(v.as_tensor()))).collect()
}

#[test]
fn what_is_saved_is_read_back_to_the_bit() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = || Tokenizer::bytes().unwrap();
    let open = |path: &std::path::Path| Loaded::open(path).unwrap();
    for (i, config) in every_kind().into_iter().enumerate() {
        let config = DecoderConfig { vocab_size: tokenizer().vocab_size(), ..config };
        let m = model(config.clone());
        let path = folder.path().join(format!("m{i}"));
        let loaded = Loaded { model: m.clone(), tokenizer: tokenizer(), path: path.clone() };
        loaded.save(&path, SaveFormat::Shared(DType::F32)).unwrap();
        let back = open(&path).model;
        assert_eq!(back.config, config);
        assert_eq!(stored(&back.bank), stored(&m.bank));
        let (a, b) = (m.forward(&ids(&m), None), back.forward(&ids(&m), None));
        assert_eq!(flat(&a.unwrap()), flat(&b.unwrap()));
        let plain = path.with_extension("plain");
        let written = back_to(&back, &plain);
        if config.mixture_of_experts.is_some() {
            assert!(written.unwrap_err().to_string().contains("experts"));
            assert!(!plain.exists());
            continue;
        }
        // Shared layers of dense parts are a plain model when written out.
        written.unwrap();
        let out = open(&plain).model;
        assert!(!out.config.share_layers && out.bank.stored() == out.bank.logical().unwrap());
        let same = out.forward(&ids(&m), None).unwrap();
        assert!(apart(&same, &m.forward(&ids(&m), None).unwrap()) < 1e-6);
        // What no longer shares does not say so.
        let loose = Loaded { model: untied(&m), tokenizer: tokenizer(), path: path.clone() };
        loose.save(&path, SaveFormat::Shared(DType::F32)).unwrap();
        assert!(!open(&path).model.config.share_layers);
    }
}

fn back_to(model: &Decoder, path: &std::path::Path) -> crate::Result<()> {
    let tokenizer = Tokenizer::bytes().unwrap();
    let loaded = Loaded { model: model.clone(), tokenizer, path: path.to_owned() };
    loaded.save(path, SaveFormat::HuggingFace(DType::F32))
}
