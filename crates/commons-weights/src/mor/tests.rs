use commons_nn::bank::Share;
use commons_nn::model::{DecoderConfig, MixtureOfRecursions, RecursionCache, RouterKind};

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
    assert!((by(Routing::Training) - scored.loss).abs() > 0.);
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
            assert_eq!(pass.bytes, 6 * layer);
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
