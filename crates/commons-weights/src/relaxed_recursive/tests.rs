use commons_nn::model::{DecoderConfig, Family, LayerType, ids_tensor};
use commons_ops::{self as ops, Tensor};
use proptest::prelude::*;
use serde_json::Value;

use super::lora::square_norm;
use super::*;

const IDS: [u32; 7] = [3, 1, 4, 1, 5, 9, 2];

fn golden() -> Value {
    serde_json::from_str(include_str!("golden.json")).unwrap()
}

/// A random decoder whose layers and gains differ visibly.
fn decoder(layers: usize) -> Decoder {
    let config = DecoderConfig::llama(24, 16, layers, 4, 2, 24);
    let mut model = Decoder::init(config, Seed::new(7)).unwrap();
    roughen(&mut model);
    model
}

fn roughen(model: &mut Decoder) {
    for (name, shape) in model.config.weights() {
        if name == "lm_head.weight" && model.config.tie_word_embeddings {
            continue;
        }
        let mut z = vec![0f32; shape.iter().product()];
        Seed::new(11).fork(&name, 0).normal(0, &mut z);
        let z = Tensor::from_vec(z, shape, model.bank.device()).unwrap();
        let w = model.bank.weight(&name).unwrap();
        model.bank.insert(name, (w + z.affine(0.2, 0.).unwrap()).unwrap()).unwrap();
    }
}

fn logits(model: &Decoder) -> Vec<f32> {
    let ids = ids_tensor(&[&IDS], &model.bank).unwrap();
    let hidden = model.forward(&ids, None).unwrap();
    model.logits(&hidden).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn distance(a: &Decoder, b: &Decoder) -> f32 {
    logits(a).iter().zip(logits(b)).map(|(x, y)| (x - y).abs()).fold(0., f32::max)
}

fn convert_with(config: &Config, model: &Decoder) -> Result<(Decoder, Vec<LayerLoss>)> {
    convert_on(&[], config, model)
}

fn convert_on(
    calibration: &[u32],
    config: &Config,
    model: &Decoder,
) -> Result<(Decoder, Vec<LayerLoss>)> {
    let mut progress = |_: &str, _: usize, _: usize| {};
    let mut context =
        Context { calibration, seed: 3, stop: Default::default(), progress: &mut progress };
    convert(config, model, &mut context)
}

fn looped(config: &Config, model: &Decoder) -> Decoder {
    convert_with(config, model).unwrap().0
}

fn refusal(config: &Config, model: &Decoder) -> String {
    convert_with(config, model).unwrap_err().to_string()
}

#[test]
fn stepwise_takes_evenly_spaced_layers() {
    for case in golden()["stepwise"].as_array().unwrap() {
        let count = |key: &str| case[key].as_u64().unwrap() as usize;
        let looping =
            Looping::new(count("layers"), count("loops"), Init::Stepwise, Seed::new(0)).unwrap();
        let picked: Vec<usize> = serde_json::from_value(case["picked"].clone()).unwrap();
        assert_eq!(looping.sources.concat(), picked);
    }
}

#[test]
fn every_init_names_its_layers() {
    let sources = |init| Looping::new(6, 2, init, Seed::new(0)).unwrap().sources;
    assert_eq!(sources(Init::Average), [[0, 3], [1, 4], [2, 5]]);
    assert_eq!(sources(Init::Lower).concat(), [0, 1, 2]);
    assert_eq!(sources(Init::Upper).concat(), [3, 4, 5]);
    let random = sources(Init::Random).concat();
    assert!(
        random.windows(2).all(|w| w[0] < w[1]) && random.len() == 3 && random[2] < 6,
        "{random:?}"
    );
}

#[test]
fn svd_matches_numpy() {
    let golden = golden();
    let m: Vec<f32> = (0..5)
        .flat_map(|i| (0..7).map(move |j| ((1 + 7 * i + 3 * j * j) as f64).sin() as f32))
        .collect();
    let m = Tensor::from_vec(m, (5, 7), &ops::Device::Cpu).unwrap();
    let svd = truncated_svd(&m, 2).unwrap();
    let values: Vec<f32> = serde_json::from_value(golden["singular_values"].clone()).unwrap();
    for (a, b) in svd.singular_values.iter().zip(&values) {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }
    let product = svd.b.matmul(&svd.a).unwrap().to_vec2::<f32>().unwrap();
    let wanted: Vec<Vec<f32>> = serde_json::from_value(golden["rank_two"].clone()).unwrap();
    for (a, b) in product.concat().iter().zip(wanted.concat()) {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }
}

#[test]
fn a_difference_of_zero_has_a_decomposition() {
    let svd = truncated_svd(&Tensor::zeros((6, 4), ops::DType::F32, &ops::Device::Cpu).unwrap(), 3)
        .unwrap();
    assert_eq!(square_norm(&svd.b).unwrap(), 0.);
    assert!(square_norm(&svd.a).unwrap().is_finite());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The error of rank `r` is `√(Σ_{i>r} σ_i²)`, and `A` has orthonormal rows.
    #[test]
    fn truncation_error_is_the_tail(out in 1usize..20, input in 1usize..20, cut in 0.0f64..=1.0, seed in any::<u64>()) {
        let mut m = vec![0f32; out * input];
        Seed::new(seed).normal(0, &mut m);
        let m = Tensor::from_vec(m, (out, input), &ops::Device::Cpu).unwrap();
        let rank = (cut * out.min(input) as f64) as usize;
        let svd = truncated_svd(&m, rank).unwrap();
        let left = if rank == 0 { m.clone() } else { (&m - svd.b.matmul(&svd.a).unwrap()).unwrap() };
        let error = square_norm(&left).unwrap().sqrt();
        prop_assert!((error - svd.error().unwrap()).abs() < 1e-4);
        let (kept, total) = svd.energies().unwrap();
        prop_assert!((total - square_norm(&m).unwrap()).abs() < 1e-3 * total);
        prop_assert!((total - kept - error * error).abs() < 1e-3 * total);
        if rank > 0 {
            let gram = svd.a.matmul(&svd.a.t().unwrap()).unwrap().to_vec2::<f32>().unwrap();
            for (i, row) in gram.iter().enumerate() {
                for (j, value) in row.iter().enumerate() {
                    let wanted = f32::from(u8::from(i == j));
                    prop_assert!((value - wanted).abs() < 1e-5, "{} at {}, {}", value, i, j);
                }
            }
        }
    }

    /// No other shared matrix is nearer to the tied ones than their mean.
    #[test]
    fn the_mean_is_nearest(loops in 2usize..4, step in 0.01f32..1.0, seed in any::<u64>()) {
        let model = decoder(6);
        let looping = Looping::new(6, loops, Init::Average, Seed::new(0)).unwrap();
        let matrix = "mlp.up_proj.weight";
        let mean = looping.initial(&model, 1, matrix).unwrap();
        let mut z = vec![0f32; mean.elem_count()];
        Seed::new(seed).normal(0, &mut z);
        let other = (&mean + Tensor::from_vec(z, mean.dims(), mean.device()).unwrap().affine(f64::from(step), 0.).unwrap()).unwrap();
        let cost = |shared: &Tensor| -> f64 {
            (0..loops).map(|b| {
                let w = model.bank.weight(&format!("{}{matrix}", layer_prefix(1 + b * looping.unique))).unwrap();
                square_norm(&(&w - shared).unwrap()).unwrap()
            }).sum()
        };
        prop_assert!(cost(&mean) < cost(&other));
    }
}

#[test]
fn one_loop_is_the_identity() {
    let model = decoder(3);
    for init in [Init::Stepwise, Init::Average, Init::Lower, Init::Upper, Init::Random] {
        let same = looped(&Config { loops: 1, rank: 0, init, ..Config::default() }, &model);
        assert_eq!(logits(&same), logits(&model));
        assert_eq!(same.bank.stored(), model.bank.stored());
    }
}

#[test]
fn full_rank_recovers_the_original() {
    let model = decoder(6);
    for init in [Init::Stepwise, Init::Average, Init::Lower] {
        let strict = Config { loops: 3, rank: 0, init, ..Config::default() };
        assert!(distance(&looped(&strict, &model), &model) > 0.1, "strict tying must not be free");
        for (share_norms, fold_gains) in [(false, false), (true, true)] {
            let full = Config { rank: 16, share_norms, fold_gains, ..strict.clone() };
            let (back, losses) = convert_with(&full, &model).unwrap();
            assert!(distance(&back, &model) < 1e-3, "{init:?}: {}", distance(&back, &model));
            assert!(
                losses.iter().all(|l| (l.kept() - 1.).abs() < 1e-4 && l.relative_error() < 1e-2)
            );
        }
    }
}

#[test]
fn folding_gains_keeps_the_function() {
    let model = decoder(2);
    assert!(distance(&fold_gains(&model).unwrap(), &model) < 1e-4);
    let gemma = gemma(&[LayerType::FullAttention; 2]);
    assert!(distance(&fold_gains(&gemma).unwrap(), &gemma) < 1e-4);
}

#[test]
fn more_rank_loses_less() {
    let model = decoder(4);
    let error = |rank| {
        let (_, losses) = convert_with(&Config { rank, ..Config::default() }, &model).unwrap();
        losses.into_iter().fold(LayerLoss::default(), LayerLoss::plus).relative_error()
    };
    let errors: Vec<f64> = [0, 1, 2, 4, 8, 16].map(error).to_vec();
    assert!(errors.windows(2).all(|w| w[0] > w[1]), "{errors:?}");
}

/// Weighed by the inputs, the terms lose less of what the inputs become, and more of the weights.
#[test]
fn whitened_terms_lose_less_of_the_outputs() {
    let model = decoder(4);
    let text: Vec<u32> = (0..60u32).map(|i| (i * i + 5 * i) % 24).collect();
    let base = Config {
        rank: 4,
        init: Init::Average,
        lora_init: Some(LoraInit::WhitenedSvd),
        ..Config::default()
    };
    let plain = Config { lora_init: Some(LoraInit::Svd), ..base.clone() };
    let (white, reported) = convert_on(&text, &base, &model).unwrap();
    let (plain, _) = convert_on(&text, &plain, &model).unwrap();
    let ids = ids_tensor(&[&text], &model.bank).unwrap();
    let states = model.hidden_states(&ids).unwrap();
    for layer in 0..4 {
        let inputs = model.mlp_input(layer, &attended(&model, layer, &states[layer])).unwrap();
        let inner = model.mlp_inner(layer, &inputs).unwrap();
        for (matrix, x) in [("mlp.gate_proj", &inputs), ("mlp.down_proj", &inner)] {
            let name = format!("{}{matrix}.weight", layer_prefix(layer));
            let lost = |of: &Decoder, x: Option<&Tensor>| {
                let w = model.bank.weight(&name).unwrap();
                let left = (w - of.bank.weight(&name).unwrap()).unwrap();
                let left = x.map_or(left.clone(), |x| ops::linear(x, &left, None).unwrap());
                square_norm(&left).unwrap()
            };
            assert!(lost(&white, Some(x)) < lost(&plain, Some(x)), "{name}");
            assert!(lost(&white, None) > lost(&plain, None), "{name}");
        }
    }
    assert!(reported.iter().all(|l| l.kept() > 0. && l.kept() < 1.));
    // Full rank gives everything back either way.
    let full = Config { rank: 16, ..base.clone() };
    assert!(distance(&convert_on(&text, &full, &model).unwrap().0, &model) < 2e-2);
    // Without text there is nothing to weigh by.
    assert_eq!(Config::default().lora_init(&[]), LoraInit::Svd);
    assert!(refusal(&base, &model).contains("--data"));
}

proptest! {
    #[test]
    fn a_fitted_matrix_leaves_less_than_the_mean(
        loops in 2usize..6, rank in 1usize..4, seed in any::<u64>(),
    ) {
        let matrix = |b: usize| {
            let mut z = vec![0f32; 12 * 10];
            Seed::new(seed).fork("matrix", b as u64).normal(0, &mut z);
            Tensor::from_vec(z, (12, 10), &commons_ops::Device::Cpu).unwrap()
        };
        let weights: Vec<Tensor> = (0..loops).map(matrix).collect();
        let mean = weights.iter().skip(1).fold(weights[0].clone(), |sum, w| (sum + w).unwrap());
        let mean = (mean / loops as f64).unwrap();
        let left = |shared| {
            let matrix = "mlp.up_proj".into();
            let tied = Tied { matrix, weights: weights.clone(), shared, rank };
            let fitted = fit(&[tied], LoraInit::Svd, &[]).unwrap().remove(0);
            fitted.losses.iter().map(|l| l.delta_energy - l.kept_energy).sum::<f64>()
        };
        prop_assert!(left(None) < left(Some(mean)));
    }
}

/// Fitted together with its terms, a shared matrix leaves less unexplained, of the outputs where
/// there is text and of the weights where there is none.
#[test]
fn fitting_together_loses_less_than_fitting_to_the_mean() {
    let text: Vec<u32> = (0..60u32).map(|i| (i * i + 5 * i) % 24).collect();
    let model = decoder(6);
    for text in [&text[..], &[]] {
        for (loops, rank) in [(2, 1), (2, 6), (3, 3), (6, 1)] {
            let lost = |init| {
                let config = Config { loops, rank, init, ..Config::default() };
                let (_, losses) = convert_on(text, &config, &model).unwrap();
                losses.into_iter().map(|l| l.relative_error().powi(2)).sum::<f64>()
            };
            let (fitted, mean) = (lost(Init::Fitted), lost(Init::Average));
            assert!(fitted < mean, "{loops} loops, rank {rank}: {fitted} against {mean}");
        }
        // Two loops at half the full rank lose nothing: both terms together span every direction.
        let half = Config { rank: 8, ..Config::default() };
        let (fitted, _) = convert_on(text, &half, &model).unwrap();
        assert!(distance(&fitted, &model) < 2e-2, "{}", distance(&fitted, &model));
        let mean = looped(&Config { init: Init::Average, ..half }, &model);
        assert_eq!(fitted.bank.plan(), mean.bank.plan());
        assert!(distance(&mean, &model) > 0.1);
    }
}

/// Without text the fit of two matrices is the closed form: half of what lies beyond the first `2r`
/// directions of their difference.
#[test]
fn fitting_two_matrices_reaches_the_closed_form() {
    let matrix = |seed| {
        let mut z = vec![0f32; 12 * 10];
        Seed::new(seed).normal(0, &mut z);
        Tensor::from_vec(z, (12, 10), &commons_ops::Device::Cpu).unwrap()
    };
    let (first, second) = (matrix(1), matrix(2));
    let tied = Tied {
        matrix: "mlp.up_proj".into(),
        weights: vec![first.clone(), second.clone()],
        shared: None,
        rank: 2,
    };
    let fitted = fit(&[tied], LoraInit::Svd, &[]).unwrap().remove(0);
    let left: f64 = fitted.losses.iter().map(|l| l.delta_energy - l.kept_energy).sum();
    let difference = truncated_svd(&(&first - &second).unwrap(), 4).unwrap();
    let expected = difference.error().unwrap().powi(2) / 2.;
    assert!((left - expected).abs() < 1e-3 * expected, "{left} against {expected}");
}

/// The residual stream `x` after the attention half of `layer`.
fn attended(model: &Decoder, layer: usize, x: &Tensor) -> Tensor {
    let rotary = model.rotary(0, x.dim(1).unwrap()).unwrap();
    (x + model.attention_update(layer, x, &rotary, None).unwrap()).unwrap()
}

#[test]
fn zero_start_equals_strict_tying() {
    let model = decoder(4);
    let strict = looped(&Config { rank: 0, ..Config::default() }, &model);
    let zero =
        looped(&Config { rank: 4, lora_init: Some(LoraInit::Zero), ..Config::default() }, &model);
    assert!(distance(&strict, &zero) < 1e-6);
    assert!(zero.bank.stored() > strict.bank.stored());
}

#[test]
fn truncating_equals_converting_again() {
    let model = decoder(4);
    let mean = Config { init: Init::Average, ..Config::default() };
    let high = looped(&Config { rank: 8, ..mean.clone() }, &model);
    for rank in [0, 1, 5] {
        let low = looped(&Config { rank, ..mean.clone() }, &model);
        let cut = truncate(&high, rank).unwrap();
        assert!(distance(&cut, &low) < 1e-5);
        assert_eq!(cut.bank.stored(), low.bank.stored());
        assert_eq!(cut.bank.plan(), low.bank.plan());
    }
}

/// The gradient of a shared matrix is the sum of the gradients its copies would get.
#[test]
fn shared_gradient_sums_over_loops() {
    let tied = Config { loops: 3, rank: 0, share_norms: true, ..Config::default() };
    let shared = looped(&tied, &decoder(6));
    let plain = Decoder::new(shared.config.clone(), shared.bank.materialize().unwrap()).unwrap();
    let ids = ids_tensor(&[&IDS], &shared.bank).unwrap();
    let gradient = |model: &Decoder| ops::backward(&model.next_token_loss(&ids).unwrap()).unwrap();
    let (tied, untied) = (gradient(&shared), gradient(&plain));
    for (weight, _) in init::layer_weights(&shared.config) {
        for j in 0..2 {
            let whole = tied.get(shared.bank.stored_var(&loop_part(j, &weight)).unwrap()).unwrap();
            let mut sum = whole.zeros_like().unwrap();
            for depth in [j, j + 2, j + 4] {
                let name = format!("{}{weight}", layer_prefix(depth));
                sum = (sum + untied.get(plain.bank.stored_var(&name).unwrap()).unwrap()).unwrap();
            }
            let scale = square_norm(&sum).unwrap().sqrt();
            let error = square_norm(&(sum - whole).unwrap()).unwrap().sqrt();
            assert!(scale > 0. && error < 1e-4 * scale, "{weight}: {error} of {scale}");
        }
    }
}

#[test]
fn stored_parameters_follow_the_formula() {
    let model = decoder(6);
    let outside = 24 * 16 + 16;
    let pattern = BTreeMap::from([("self_attn".to_owned(), 2), ("self_attn.v_proj".to_owned(), 0)]);
    for share_norms in [true, false] {
        for (loops, rank, rank_pattern) in
            [(1, 0, BTreeMap::new()), (2, 3, BTreeMap::new()), (3, 5, pattern.clone())]
        {
            let config = Config { loops, rank, rank_pattern, share_norms, ..Config::default() };
            let stored = looped(&config, &model).bank.stored();
            assert_eq!(stored, outside + stored_in_layers(&config, &model.config).unwrap());
        }
    }
    // By hand: 3 of 6 layers, and rank 3 on 16x16 q and o, 8x16 k and v, 24x16 gate, up, down.
    let layer = 2 * 16 * 16 + 2 * 8 * 16 + 3 * 24 * 16 + 2 * 16;
    let terms = 3 * (2 * 32 + 2 * 24 + 3 * 40);
    let config = Config { loops: 2, rank: 3, share_norms: true, ..Config::default() };
    assert_eq!(stored_in_layers(&config, &model.config).unwrap(), 3 * layer + 6 * terms);
}

#[test]
fn the_cache_follows_the_depth() {
    let model = looped(&Config { rank: 2, ..Config::default() }, &decoder(4));
    let ids = ids_tensor(&[&IDS], &model.bank).unwrap();
    let whole = model.forward(&ids, None).unwrap();
    let mut cache = model.cache(1, IDS.len()).unwrap();
    let mut last = whole.clone();
    for id in IDS {
        last =
            model.forward(&ids_tensor(&[&[id]], &model.bank).unwrap(), Some(&mut cache)).unwrap();
    }
    let wanted = whole.narrow(1, IDS.len() - 1, 1).unwrap();
    assert!(square_norm(&(last - wanted).unwrap()).unwrap() < 1e-8);
}

#[test]
fn low_rank_training_freezes_the_rest() {
    let config = Config { rank: 2, trainable: Trainable::LowRank, ..Config::default() };
    let model = looped(&config, &decoder(4));
    assert_eq!(model.bank.trainable().count(), 4 * 7 * 2);
    assert!(model.bank.trainable().all(|(name, _)| name.starts_with("bank.lora.")));
}

#[test]
fn uneven_layers_need_thinning() {
    let model = decoder(5);
    let config = Config { rank: 0, ..Config::default() };
    let message = refusal(&config, &model);
    assert!(message.contains("[1, 5]") && message.contains("thin"), "{message}");
    let thin = Config { thin: true, ..config };
    let four = looped(&thin, &model);
    assert_eq!(four.config.num_hidden_layers, 4);
    let direct = drop_layers(&model, &[0, 1, 3, 4]).unwrap();
    assert_eq!(distance(&four, &looped(&Config { thin: false, ..thin }, &direct)), 0.);
}

#[test]
fn bad_ranks_are_refused() {
    let model = decoder(4);
    let pattern = |key: &str, rank| Config {
        rank_pattern: [(key.to_owned(), rank)].into(),
        ..Config::default()
    };
    assert!(
        refusal(&Config { rank: 17, ..Config::default() }, &model)
            .starts_with("rank: 17 exceeds 16")
    );
    let base = |config: Config| Config { rank: 4, ..config };
    assert!(refusal(&base(pattern("self_attn.k_proj", 9)), &model).contains("9 exceeds 8"));
    assert!(refusal(&base(pattern("experts", 1)), &model).contains("names none of"));
}

fn gemma(kinds: &[LayerType]) -> Decoder {
    let mut config = DecoderConfig::llama(24, 16, kinds.len(), 4, 1, 24);
    config.model_type = Family::Gemma3;
    config.layer_types = kinds.to_vec();
    config.sliding_window = Some(3);
    config.rope_local_base_freq = Some(1000.);
    config.hidden_act = "gelu_pytorch_tanh".into();
    let mut model = Decoder::init(config, Seed::new(5)).unwrap();
    roughen(&mut model);
    model
}

#[test]
fn attention_kinds_are_not_mixed() {
    use LayerType::{FullAttention as Full, SlidingAttention as Local};
    let model = gemma(&[Local, Full, Local, Full]);
    let full = Config { loops: 2, rank: 16, share_norms: false, ..Config::default() };
    assert!(distance(&looped(&full, &model), &model) < 1e-3);
    let message = refusal(&Config { loops: 4, ..full.clone() }, &model);
    assert!(message.contains("layers 0 and 1"), "{message}");
    assert!(
        refusal(&Config { init: Init::Stepwise, ..full }, &gemma(&[Local, Full, Local, Local]))
            .contains("attention kinds")
    );
}

#[test]
fn stopping_is_obeyed() {
    let mut progress = |_: &str, _: usize, _: usize| {};
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let mut context = Context { calibration: &[], seed: 0, stop, progress: &mut progress };
    let config = Config { rank: 1, ..Config::default() };
    assert!(matches!(convert(&config, &decoder(2), &mut context), Err(Error::Interrupted)));
}

#[test]
fn exits_add_the_loss_of_every_loop_but_the_last() {
    use crate::heal::{HealConfig, exits, loss};
    let student = decoder(4);
    let ids = ids_tensor(&[&[1, 5, 2, 9, 4]], &student.bank).unwrap();
    let plain = HealConfig { kl_coef: 0., ..HealConfig::default() };
    let early = HealConfig { exit_coef: 0.1, exit_loops: 4, ..plain.clone() };
    let value = |config: &HealConfig| {
        let loss = loss(&student, None, &ids, config).unwrap();
        (f64::from(loss.total.to_scalar::<f32>().unwrap()), loss.parts)
    };
    let ((without, _), (with, parts)) = (value(&plain), value(&early));
    let terms: Vec<f64> = parts.iter().filter(|p| p.0 == "exit").map(|p| p.1).collect();
    assert_eq!(terms.len(), 3);
    assert!((with - without - 0.1 * terms.iter().sum::<f64>()).abs() < 1e-5);
    // The first term is the loss of the model cut after its first loop.
    let cut = drop_layers(&student, &[0]).unwrap();
    let first = loss(&cut, None, &ids, &plain).unwrap();
    assert!((f64::from(first.total.to_scalar::<f32>().unwrap()) - terms[0]).abs() < 1e-5);
    assert_eq!(exits(6, 3).unwrap(), [1, 3]);
    assert!(exits(6, 4).unwrap_err().to_string().contains("divide the 6 layers"));
}
