use commons_nn::bank::Share;
use commons_nn::model::{
    Decoder, DecoderConfig, MixtureOfRecursions, RecursionCache, RecursionSharing, RouterKind,
};

use super::study::{Contender, Study, cached, window_loss};
use super::*;
use crate::baseline::scratch::{ScratchConfig, byte_tokens};
use commons_core::Seed;
use commons_nn::model::Routing;
use commons_nn::train::TrainConfig;

fn study() -> Study {
    Study {
        scratch: ScratchConfig {
            hidden_size: 24,
            intermediate_size: 48,
            num_hidden_layers: 8,
            num_attention_heads: 2,
            num_key_value_heads: 2,
            train: TrainConfig {
                steps: 6,
                batch_size: 2,
                seq_len: 30,
                learning_rate: 3e-3,
                warmup_steps: 1,
                ..TrainConfig::default()
            },
        },
        context: 30,
        eval_tokens: 200,
        ..Study::default()
    }
}

#[test]
fn contenders_store_what_they_should() {
    let study = study();
    let stored = |c| study.fresh(c, Seed::new(1)).unwrap().bank.stored();
    let small = stored(Contender::Small);
    // First, last and a block of two layers out of eight.
    assert_eq!(stored(Contender::Recursive), small);
    assert_eq!(stored(Contender::Expert), small + 3 * 24);
    assert_eq!(stored(Contender::Token), small + 3 * 24);
    assert!(stored(Contender::Vanilla) > small);
}

#[test]
fn recursive_and_routed_models_start_from_the_same_weights() {
    let study = study();
    let (a, b) = (Contender::Recursive, Contender::Expert);
    let (a, b) = (study.fresh(a, Seed::new(1)).unwrap(), study.fresh(b, Seed::new(1)).unwrap());
    for (name, var) in a.bank.stored_vars() {
        let other = b.bank.stored_var(name).unwrap().as_detached_tensor();
        let values = |t: &commons_ops::Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values(&var.as_detached_tensor()), values(&other), "{name}");
    }
    let tied = |(_, e): &(&str, &commons_nn::bank::Entry)| matches!(&e.share, Share::Same { owner } if owner.starts_with("bank.recursion."));
    // Six depths of nine weights.
    assert_eq!(b.bank.plan().iter().filter(tied).count(), 6 * 9);
}

/// Middle layers of three recursions with shares 1, 2/3, 1/3 do 2/3 of the work on weights.
#[test]
fn arithmetic_counts_the_tokens_that_take_part() {
    let mut config = DecoderConfig::llama(256, 24, 8, 2, 2, 48);
    let weights = 4. * 24. * 24. + 3. * 24. * 48.;
    let head = 2. * 24. * 256.;
    let layer = |seen: f64| 2. * weights + 4. * seen * 24.;
    let close = |a: f64, b: f64| assert!((a / b - 1.).abs() < 1e-12, "{a} {b}");
    close(training_flops(&config, 29), 3. * (8. * layer(15.) + head));
    let mixture = MixtureOfRecursions { recursions: 3, ..MixtureOfRecursions::default() };
    config.mixture_of_recursions = Some(mixture.clone());
    let routed: f64 = [1., 2. / 3., 1. / 3.].iter().map(|c| c * layer(c * 15.)).sum();
    close(training_flops(&config, 29), 3. * (2. * layer(15.) + 2. * routed + head));
    config.mixture_of_recursions =
        Some(MixtureOfRecursions { kv_cache: RecursionCache::Shared, ..mixture });
    let keys = 2. * 2. * 24. * 24.;
    let shared = 2. * layer(15.) - keys;
    close(training_flops(&config, 29), 3. * (2. * layer(15.) + 2. * shared + head));
}

#[test]
fn steps_spend_the_same_arithmetic() {
    let study = Study {
        scratch: ScratchConfig {
            train: TrainConfig { steps: 1000, ..study().scratch.train },
            ..study().scratch
        },
        ..study()
    };
    let seq = study.scratch.train.seq_len;
    let spent = |c| {
        let model = study.fresh(c, Seed::new(0)).unwrap();
        study.steps(c, &model).unwrap() as f64 * training_flops(&model.config, seq)
    };
    for contender in Contender::ALL {
        let due = if contender == Contender::ExpertFewer { 0.8 } else { 1. };
        let ratio = spent(contender) / spent(Contender::Vanilla);
        assert!((ratio - due).abs() < 1e-3, "{contender:?} {ratio}");
    }
}

#[test]
fn contenders_train_and_are_scored_alike() {
    let study = study();
    let tokens = byte_tokens(&"the cat sat on the mat and the dog saw it. ".repeat(20));
    for contender in [Contender::Small, Contender::Expert, Contender::Token, Contender::Random] {
        let run = || {
            let texts = (&tokens[..], &tokens[..]);
            study.train(contender, texts, 3, Default::default(), &mut |_| {}).unwrap()
        };
        let (once, again) = (run(), run());
        assert_eq!(once.loss.to_bits(), again.loss.to_bits(), "{contender:?}");
        assert!(once.loss < 256f64.ln(), "{contender:?} {}", once.loss);
        assert_eq!(once.agreement.is_some(), contender == Contender::Expert);
        let parts = once.parts.map_or(0., |p| p.iter().sum());
        assert_eq!(parts > 0., contender != Contender::Small);
        assert!(once.train_seconds > parts * once.steps as f64, "{contender:?}");
    }
}

#[test]
fn a_window_scored_by_threshold_is_what_perplexity_scores() {
    let study = study();
    let model = study.fresh(Contender::Expert, Seed::new(5)).unwrap();
    let tokens = byte_tokens("a window of thirty-one bytes long");
    let by = |routing| window_loss(&model, &tokens, (30, 31), routing).unwrap();
    let scored = crate::baseline::scratch::byte_perplexity(&model, &tokens[..31], 30, 30).unwrap();
    assert!((by(Routing::Threshold) - scored.loss).abs() < 1e-5);
    assert!((by(Routing::Training) - scored.loss).abs() > 1e-5);
}

#[test]
fn a_cache_tells_depths_and_its_bytes() {
    let study = study();
    let window = byte_tokens("thirty bytes of text, no less.");
    let layer = 2 * 30 * 24 * 4;
    for contender in [Contender::Vanilla, Contender::Expert, Contender::Token] {
        let model = study.fresh(contender, Seed::new(5)).unwrap();
        let pass = cached(&model, &window, 2).unwrap();
        assert_eq!(pass.depths.len(), 30);
        if contender == Contender::Vanilla {
            assert_eq!((pass.whole, pass.bytes), (8 * layer, 6 * layer));
        } else {
            let passes: usize = pass.depths.iter().sum();
            assert_eq!(pass.bytes, 2 * passes * layer / 30, "{contender:?}");
        }
    }
    let shared = study.fresh(Contender::ExpertShared, Seed::new(5)).unwrap();
    assert_eq!(cached(&shared, &window, 2).unwrap().bytes, 2 * layer);
}

#[test]
fn token_choice_takes_no_capacities() {
    let mixture = MixtureOfRecursions {
        recursions: 3,
        capacities: vec![1., 0.7, 0.2],
        ..MixtureOfRecursions::default()
    };
    let study = Study { mixture, ..study() };
    let config = study.config(Contender::Token).unwrap().mixture_of_recursions.unwrap();
    assert_eq!(config.router, RouterKind::Token);
    assert!(config.capacities.is_empty());
    assert_eq!(
        study.config(Contender::Expert).unwrap().mixture_of_recursions.unwrap().tokens(1, 10),
        7
    );
}

#[test]
fn shared_layers_start_from_the_layers_their_init_names() {
    let sources = |init: Init, sharing, layers| {
        let mixture = MixtureOfRecursions { sharing, ..MixtureOfRecursions::default() };
        init.sources(&mixture, layers)
    };
    let cycle = RecursionSharing::MiddleCycle;
    // The thirty layers of SmolLM2-135M: one, fourteen passed twice, one.
    let stepwise = sources(Init::Stepwise, cycle, 30);
    assert_eq!(stepwise.len(), 14);
    assert_eq!((stepwise[0].as_slice(), stepwise[13].as_slice()), (&[1][..], &[28][..]));
    assert!(stepwise.windows(2).all(|w| w[0][0] < w[1][0]));
    assert_eq!(sources(Init::Average, cycle, 6), [[1, 3], [2, 4]]);
    assert_eq!(sources(Init::Average, RecursionSharing::MiddleSequence, 6), [[1, 2], [3, 4]]);
    assert_eq!(sources(Init::Average, RecursionSharing::Cycle, 6), [[0, 3], [1, 4], [2, 5]]);
    assert_eq!(sources(Init::Lower, cycle, 6), [[1], [2]]);
    assert_eq!(sources(Init::Upper, cycle, 6), [[3], [4]]);
}

fn pretrained() -> Decoder {
    Decoder::init(DecoderConfig::llama(61, 24, 6, 4, 2, 32), Seed::new(3)).unwrap()
}

#[test]
fn a_converted_decoder_stores_the_mean_of_the_layers_it_folds() {
    let model = pretrained();
    let config = Config { init: Init::Average, ..Default::default() };
    let made = convert(&config, &model, Seed::new(4)).unwrap();
    let values = |m: &Decoder, l: usize| {
        let name = format!("model.layers.{l}.mlp.up_proj.weight");
        m.bank.weight(&name).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    for (depth, of) in
        [(0, [0, 0]), (1, [1, 3]), (2, [2, 4]), (3, [1, 3]), (4, [2, 4]), (5, [5, 5])]
    {
        let (a, b) = (values(&model, of[0]), values(&model, of[1]));
        for ((x, a), b) in values(&made, depth).iter().zip(a).zip(b) {
            assert!((x - (a + b) / 2.).abs() < 1e-7, "depth {depth}");
        }
    }
    let first = |n: &str| n.starts_with("model.layers.0.");
    let sizes = model.bank.stored_vars().filter(|(n, _)| first(n)).map(|(_, v)| v.elem_count());
    let layer: usize = sizes.sum();
    // Two layers of six are stored once less; two routers of one row are new.
    assert_eq!(made.bank.stored(), model.bank.stored() - 2 * layer + 2 * 24);
    assert_eq!(made.config.mixture_of_recursions.as_ref().unwrap().recursions, 2);
}

#[test]
fn a_conversion_is_trained_on_through_its_routers() {
    let model = pretrained();
    let text: Vec<u32> = (0..400).map(|i| i * i % 61).collect();
    let mut config = Config::default();
    config.heal.train = TrainConfig {
        steps: 30,
        batch_size: 2,
        seq_len: 24,
        learning_rate: 3e-3,
        ..config.heal.train
    };
    let made = convert(&config, &model, Seed::new(4)).unwrap();
    let before = made.bank.deep_clone().unwrap();
    let healed =
        crate::heal::heal(&made, Some(&model), text, &config.heal, &Default::default(), |report| {
            assert!(report.parts.iter().any(|(name, _)| *name == "router"));
        })
        .unwrap();
    assert!(healed.losses.last() < healed.losses.first(), "{:?}", healed.losses);
    for (name, _) in made.config.router_weights() {
        let at = |bank: &commons_nn::bank::Bank| {
            bank.weight(&name).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        assert_ne!(at(&before), at(&made.bank), "{name} has learnt nothing");
    }
}

#[test]
fn what_cannot_be_converted_is_refused_by_name() {
    let model = pretrained();
    let refused = |config: &Config, model: &Decoder| {
        convert(config, model, Seed::new(0)).unwrap_err().to_string()
    };
    let of = |recursions| Config {
        mixture: MixtureOfRecursions { recursions, ..MixtureOfRecursions::default() },
        ..Default::default()
    };
    assert!(refused(&of(1), &model).contains("2 or more"));
    assert!(refused(&of(3), &model).contains("take 5 or 8 layers, or recursions out of [2, 4]"));
    let mut tail = of(2);
    tail.heal.tail_coef = 1.;
    assert!(refused(&tail, &model).contains("tail_coef"));
    let shared = convert(&of(2), &model, Seed::new(0)).unwrap();
    let shared = Decoder { config: model.config.clone(), bank: shared.bank };
    assert!(refused(&of(2), &shared).contains("materialize"));
    let mut uneven = model.clone();
    uneven.config.query_heads_per_kv_head = (0..6).map(|l| vec![1 + l % 2, 3 - l % 2]).collect();
    assert!(refused(&of(2), &uneven).contains("query_heads_per_kv_head"));
}
