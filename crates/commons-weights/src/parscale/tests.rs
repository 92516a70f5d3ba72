use commons_core::Seed;
use commons_nn::generate::{SamplerConfig, generate};
use commons_nn::model::{Decoder, DecoderConfig, ParallelStreams, ids_tensor};
use commons_ops::{self as ops, Device, Tensor};
use proptest::prelude::*;

use super::evidence::size_of_loss;
use super::law::{Law, Point, Released, fit};
use super::speed::layers_worth;
use super::study::{equalise, mixture};
use super::*;

const IDS: [u32; 9] = [3, 1, 4, 1, 5, 9, 2, 6, 5];

fn decoder() -> Decoder {
    Decoder::init(DecoderConfig::llama(24, 16, 3, 4, 2, 24), Seed::new(7)).unwrap()
}

fn streams(count: usize) -> ParallelStreams {
    ParallelStreams { count, prefix_tokens: 5, smoothing: 0.01 }
}

/// Streams far enough apart that mixing them wrongly shows.
fn wide(count: usize) -> Decoder {
    let draw = Draw { sigma: 0.5, value_sigma: 0.5 };
    add_streams(&decoder(), streams(count), draw, Seed::new(2)).unwrap()
}

fn hidden(model: &Decoder, ids: &[u32]) -> Vec<f32> {
    let ids = ids_tensor(&[ids], &model.bank).unwrap();
    model.forward(&ids, None).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn apart(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0., f32::max)
}

#[test]
fn golden_counts_of_added_parameters() {
    let extra = |p| {
        added_parameters(
            ParallelStreams { count: p, prefix_tokens: 48, smoothing: 0.01 },
            36,
            2,
            56,
            896,
        )
    };
    assert_eq!(extra(2), 2_382_466);
    assert_eq!(extra(4) - extra(2), 2_381_570);
    assert_eq!(extra(8) - extra(4), 4_763_140);
    let column = |i: usize| law::PARAMETERS[i][0] as usize;
    assert_eq!([extra(2), extra(4), extra(8)].map(|e| column(0) + e), [1, 2, 3].map(column));
}

#[test]
fn a_model_stores_what_the_formula_says() {
    for p in [1, 2, 4] {
        let added = wide(p).bank.stored() - decoder().bank.stored();
        assert_eq!(added, added_parameters(streams(p), 3, 2, 4, 16));
    }
}

#[test]
fn golden_smoothing() {
    let w = Tensor::new(&[[0.7f32, 0.2, 0.1]], &Device::Cpu).unwrap();
    let got = commons_nn::model::smooth(&w, 0.01).unwrap().flatten_all().unwrap();
    assert!(apart(&got.to_vec1().unwrap(), &[0.69633, 0.20133, 0.10233]) < 1e-5);
}

#[test]
fn equal_streams_are_one_stream() {
    let mut model = wide(3);
    assert!(apart(&hidden(&model, &IDS), &hidden(&one_of(&model), &IDS)) > 1e-3);
    equalise(&mut model).unwrap();
    assert!(apart(&hidden(&model, &IDS), &hidden(&one_of(&model), &IDS)) < 1e-5);
    let mixed = mixture(&model, &IDS).unwrap();
    assert!((mixed.cosine - 1.).abs() < 1e-6);
    assert!((mixed.shares.iter().sum::<f64>() - 1.).abs() < 1e-5);
}

/// The first stream of `model` by itself: a model with its prefix and nothing to mix.
fn one_of(model: &Decoder) -> Decoder {
    let mut one =
        add_streams(&decoder(), streams(1), Draw { sigma: 0., value_sigma: 0. }, Seed::new(0))
            .unwrap();
    for (name, _) in one.config.stream_weights() {
        let first = model.bank.weight(&name).unwrap().narrow(0, 0, 1).unwrap();
        one.bank.insert(name, first.contiguous().unwrap()).unwrap();
    }
    one
}

#[test]
fn decoding_with_a_cache_is_the_whole_forward_pass() {
    for p in [1, 2, 4] {
        let model = wide(p);
        let whole = hidden(&model, &IDS);
        let mut cache = model.cache(1, IDS.len()).unwrap();
        assert_eq!((cache.len(), cache.capacity()), (0, IDS.len()));
        let mut pieces = Vec::new();
        for part in [&IDS[..4], &IDS[4..5], &IDS[5..]] {
            let ids = ids_tensor(&[part], &model.bank).unwrap();
            let h = model.forward(&ids, Some(&mut cache)).unwrap();
            pieces.extend(h.flatten_all().unwrap().to_vec1::<f32>().unwrap());
        }
        assert!(apart(&whole, &pieces) < 1e-4, "{p} streams");
        assert!(
            model.forward(&ids_tensor(&[&[1]], &model.bank).unwrap(), Some(&mut cache)).is_err()
        );
        let new = generate(&model, &IDS, 5, &SamplerConfig::greedy(), &[], |_| true).unwrap();
        assert_eq!(new.len(), 5);
    }
}

#[test]
fn batches_do_not_mix() {
    let model = wide(2);
    let other = [9u32, 8, 7, 6, 5, 4, 3, 2, 1];
    let both = ids_tensor(&[&IDS, &other], &model.bank).unwrap();
    let both = model.forward(&both, None).unwrap();
    for (row, ids) in [&IDS, &other].into_iter().enumerate() {
        let alone = hidden(&model, ids);
        let row = both.get(row).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        assert!(apart(&row, &alone) < 1e-5);
    }
}

#[test]
fn every_token_sees_the_prefix_and_no_later_token() {
    let model = wide(2);
    let short = hidden(&model, &IDS[..4]);
    assert!(apart(&hidden(&model, &IDS)[..short.len()], &short) < 1e-5);
    // The first token sees nothing but itself and the prefix.
    let plain = hidden(&decoder(), &IDS[..1]);
    assert!(apart(&hidden(&model, &IDS[..1]), &plain) > 1e-3);
}

#[test]
fn gradients_reach_every_added_tensor_of_every_stream() {
    let mut model = wide(3);
    freeze_model(&mut model);
    let ids = ids_tensor(&[&IDS], &model.bank).unwrap();
    let grads = ops::backward(&model.next_token_loss(&ids).unwrap()).unwrap();
    let mut seen = 0;
    for (name, var) in model.bank.trainable() {
        let grad = grads.get(var.as_tensor()).unwrap_or_else(|| panic!("{name}"));
        for p in 0..grad.dim(0).unwrap() {
            let norm = grad.get(p).unwrap().sqr().unwrap().sum_all().unwrap();
            assert!(
                norm.to_scalar::<f32>().unwrap() > 0. || name.contains("aggregate_layer.0."),
                "{name} {p}"
            );
        }
        seen += 1;
    }
    assert_eq!(seen, 2 * 3 + 4);
    // One of them against a finite difference.
    let name = "model.layers.1.self_attn.prefix_v";
    let var = model.bank.stored_var(name).unwrap().clone();
    let base = var.as_detached_tensor().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let loss = |at: usize, by: f32| {
        let mut moved = base.clone();
        moved[at] += by;
        let shape = var.dims().to_vec();
        let tensor = Tensor::from_vec(moved, shape, &Device::Cpu).unwrap();
        let bank = model.bank.substituted([(name.to_owned(), tensor)]).unwrap();
        let model = Decoder { config: model.config.clone(), bank };
        f64::from(model.next_token_loss(&ids).unwrap().to_scalar::<f32>().unwrap())
    };
    let grad = grads.get(var.as_tensor()).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for at in [0, 17, 41] {
        let slope = (loss(at, 0.05) - loss(at, -0.05)) / 0.1;
        assert!(
            (slope - f64::from(grad[at])).abs() < 2e-3 * (1. + slope.abs()),
            "{slope} {}",
            grad[at]
        );
    }
}

#[test]
fn the_released_fits_come_out() {
    let stack = fit(&Released::Stack.points()).unwrap();
    let pile = fit(&Released::Pile.points()).unwrap();
    for (got, k, e, alpha, r) in
        [(stack, 0.3935, 0.6912, 0.1894, 0.9978), (pile, 0.3344, 1.2886, 0.1963, 0.9987)]
    {
        assert!((got.law.k - k).abs() < 0.005, "{got:?}");
        assert!((got.law.e - e).abs() < 0.005, "{got:?}");
        assert!((got.law.alpha - alpha).abs() < 0.002, "{got:?}");
        assert!((got.r_squared - r).abs() < 0.0002, "{got:?}");
        assert!(got.is_law() && (got.sizes, got.stream_counts) == (6, 4));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4))]

    /// Losses that follow a law give that law back.
    #[test]
    fn a_law_is_found_again(e in 0.5f64..2., alpha in 0.15f64..0.6, k in 0.1f64..0.9, a in 16f64..19.) {
        let law = Law { e, a: a.exp(), alpha, k };
        let at = |n: f64, p: f64| Point { parameters: n, streams: p, loss: law.loss(n, p) };
        let points: Vec<Point> = [3e7, 1e8, 4e8, 1.5e9]
            .iter()
            .flat_map(|&n| [1., 2., 4., 8.].map(|p| at(n, p)))
            .collect();
        let found = fit(&points).unwrap();
        prop_assert!((found.law.k - k).abs() < 0.01 * (1. + k), "{found:?} {law:?}");
        prop_assert!(found.r_squared > 0.9999);
    }
}

#[test]
fn too_few_points_are_refused() {
    let points = Released::Pile.points();
    let message = |p: &[Point]| fit(p).unwrap_err().to_string();
    assert!(message(&points[..4]).contains("at least 5"));
    assert!(message(&points[..6]).contains("streams"));
    let one_size: Vec<Point> =
        points.iter().step_by(6).chain(points.iter().step_by(6)).copied().collect();
    assert!(message(&one_size).contains("one size"));
    // To a small model streams add more than a tenth; it stays one model.
    let small = |(i, p): (i32, f64)| Point {
        parameters: 2e5 * 1.2f64.powi(i),
        streams: p,
        loss: 2. - 0.01 * f64::from(i),
    };
    let grown: Vec<Point> = (0..).zip([1., 2., 4., 8., 16.]).map(small).collect();
    assert!(message(&grown).contains("one size"));
    let mut bad = points.clone();
    bad[3].loss = -1.;
    assert!(message(&bad).contains("points[3]"));
}

#[test]
fn wrong_options_name_what_works() {
    let mut progress = |_: &str, _: usize, _: usize| {};
    let mut context =
        Context { calibration: &[], seed: 0, stop: Default::default(), progress: &mut progress };
    let mut refusal = |config: Config, model: &Decoder| {
        ParScale.share(&config, model, &mut context).unwrap_err().to_string()
    };
    let plain = decoder();
    for (config, word) in [
        (Config { streams: 0, ..Config::default() }, "1..=64"),
        (Config { prefix_tokens: 0, ..Config::default() }, "prefix"),
        (Config { smoothing: 1.5, ..Config::default() }, "0.01"),
        (Config { sigma: 0., value_sigma: 0., ..Config::default() }, "gradient"),
        (Config { sigma: 0., ..Config::default() }, "gradient"),
    ] {
        let message = refusal(config, &plain);
        assert!(message.contains(word), "{message}");
    }
    assert!(refusal(Config::default(), &wide(2)).contains("already"));
    let e = wide(2).config.check_plain().unwrap_err().to_string();
    assert!(e.contains("transformers") && e.contains("generate"), "{e}");
    let mut config = serde_json::to_value(wide(2).config).unwrap();
    assert_eq!(DecoderConfig::from_json(&config).unwrap().streams(), 2);
    config["parallel_streams"]["count"] = 0.into();
    assert!(DecoderConfig::from_json(&config).unwrap_err().to_string().contains("count"));
    config["parallel_streams"] = serde_json::json!({"count": 2, "prefixes": 3});
    assert!(DecoderConfig::from_json(&config).is_err());
}

#[test]
fn losses_that_streams_do_not_lower_have_no_k() {
    let at = |n: f64, p: f64| Point {
        parameters: n,
        streams: p,
        loss: 1. + (1e7 / n).powf(0.3) + 0.01 * p.ln(),
    };
    let points: Vec<Point> =
        [1e7, 1e8, 1e9].iter().flat_map(|&n| [1., 2., 4.].map(|p| at(n, p))).collect();
    let found = fit(&points).unwrap();
    assert!(found.is_law() && found.k_at_bound(), "{found:?}");
    assert!(!fit(&Released::Stack.points()).unwrap().k_at_bound());
}

#[test]
fn more_streams_are_worth_more() {
    let law = fit(&Released::Stack.points()).unwrap().law;
    assert_eq!(law.worth(1.), 1.);
    assert!(law.loss(1e9, 4.) < law.loss(1e9, 1.));
}

#[test]
fn sizes_of_equal_loss_lie_between_their_neighbours() {
    let plain = [(400., 1.), (100., 2.)];
    let at = |loss| size_of_loss(&plain, loss);
    assert!((at(2f64.sqrt()).unwrap() - 200.).abs() < 1e-9);
    assert_eq!((at(2.).unwrap().round(), at(1.).unwrap().round()), (100., 400.));
    assert_eq!((at(2.1), at(0.9)), (None, None));
    let law = fit(&Released::Pile.points()).unwrap().law;
    assert_eq!([1, 2, 4].map(|p| layers_worth(&law, 30, p)), [30, 37, 44]);
}

#[test]
fn full_smoothing_mixes_in_equal_shares() {
    let even = ParallelStreams { smoothing: 1., ..streams(2) };
    let draw = Draw { sigma: 0.5, value_sigma: 0.5 };
    let model = add_streams(&decoder(), even, draw, Seed::new(2)).unwrap();
    let mixed = mixture(&model, &IDS).unwrap();
    assert!(mixed.shares.iter().all(|s| (s - 0.5).abs() < 1e-6), "{mixed:?}");
    assert!(mixed.cosine < 0.999, "streams differ: {mixed:?}");
}

#[test]
fn the_rate_of_the_mixing_network_is_that_of_all_its_weights_and_no_others() {
    let groups = Config::default().heal.train.optimizer.groups;
    let named = |name: &str| groups.iter().any(|g| g.names.iter().any(|n| name.contains(n)));
    let (mixing, others): (Vec<_>, Vec<_>) =
        wide(2).bank.stored_vars().map(|(n, _)| n.to_owned()).partition(|n| named(n));
    assert_eq!(mixing.len(), 4);
    assert!(others.iter().any(|n| n.ends_with("prefix_k")));
}
