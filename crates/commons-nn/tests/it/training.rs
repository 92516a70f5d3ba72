//! The loop: it learns, it resumes to the same bytes, every optimiser lowers the loss.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use commons_core::Seed;
use commons_nn::model::{Decoder, DecoderConfig, Mode, ResNet, ResNetConfig};
use commons_nn::optim::{OptimizerConfig, RuleConfig};
use commons_nn::train::{Loss, Outcome, Resume, TokenStream, TrainConfig, Trainer};
use commons_ops::{self as ops, Device, Tensor};

fn small(seed: u64) -> Decoder {
    Decoder::init(DecoderConfig::llama(17, 16, 2, 2, 1, 24), Seed::new(seed)).unwrap()
}

/// A cycle of period five: learnable to near zero loss.
fn stream() -> TokenStream {
    let tokens = (0..2000u32).map(|i| (i % 5) * 3 + 1).collect();
    TokenStream::new(tokens, 12, 4, Seed::new(5)).unwrap()
}

fn config(rule: RuleConfig, steps: usize, learning_rate: f64) -> TrainConfig {
    TrainConfig {
        steps,
        learning_rate,
        warmup_steps: 2,
        optimizer: OptimizerConfig { rule, weight_decay: 0.01, groups: Vec::new() },
        save_steps: 3,
        ..TrainConfig::default()
    }
}

fn bytes(model: &Decoder) -> Vec<u32> {
    model
        .bank
        .stored_vars()
        .flat_map(|(_, v)| v.flatten_all().unwrap().to_vec1::<f32>().unwrap())
        .map(f32::to_bits)
        .collect()
}

fn rules() -> Vec<(RuleConfig, f64, usize)> {
    vec![
        (RuleConfig::default(), 1e-2, 60),
        (RuleConfig::Sgd { momentum: 0.9, nesterov: true }, 1e-1, 120),
        (RuleConfig::Muon { momentum: 0.95, adamw_lr_scale: 0.15 }, 5e-2, 60),
        (RuleConfig::Adafactor {}, 5e-2, 60),
        (RuleConfig::ZeroOrder { eps: 1e-2, directions: 4 }, 2e-3, 300),
    ]
}

#[test]
fn every_optimiser_lowers_the_loss() {
    for (rule, rate, steps) in rules() {
        let (model, stream) = (small(1), stream());
        let mut trainer = Trainer::new(config(rule.clone(), steps, rate), &model.bank).unwrap();
        let outcome = trainer.run(
            |at| Ok(Loss::new(model.next_token_loss(&stream.batch(at.batch, &Device::Cpu)?)?, 48)),
            |_| {},
        );
        assert_eq!(outcome.unwrap(), Outcome::Finished);
        let losses = trainer.losses();
        let (first, last) = (losses[0], losses[losses.len() - 1]);
        assert!(last < 0.85 * first, "{rule:?}: {first} to {last}");
    }
}

#[test]
fn an_interrupted_run_ends_in_the_same_bytes() {
    for (rule, rate, _) in rules() {
        let run = |stop_at: Option<usize>| -> Vec<u32> {
            let folder = tempfile::tempdir().unwrap();
            let mut resume = Resume::Refuse;
            let mut stop_at = stop_at;
            loop {
                let (model, stream) = (small(1), stream());
                let stop = Arc::new(AtomicBool::new(false));
                let mut trainer = Trainer::new(config(rule.clone(), 10, rate), &model.bank)
                    .unwrap()
                    .checkpoints(folder.path())
                    .stop_flag(stop.clone());
                trainer.resume(resume).unwrap();
                let outcome = trainer
                    .run(
                        |at| {
                            Ok(Loss::new(
                                model.next_token_loss(&stream.batch(at.batch, &Device::Cpu)?)?,
                                48,
                            ))
                        },
                        |report| {
                            if Some(report.step) == stop_at {
                                stop.store(true, Ordering::Relaxed);
                            }
                        },
                    )
                    .unwrap();
                if outcome == Outcome::Finished {
                    return bytes(&model);
                }
                (resume, stop_at) = (Resume::Latest, None);
            }
        };
        assert_eq!(run(None), run(Some(4)), "{rule:?}");
    }
}

#[test]
fn a_run_refuses_to_start_over_anothers_checkpoints() {
    let folder = tempfile::tempdir().unwrap();
    let (model, stream) = (small(1), stream());
    let start = |config: TrainConfig| Trainer::new(config, &model.bank).unwrap().checkpoints(folder.path());
    let first = config(RuleConfig::default(), 3, 1e-2);
    let mut trainer = start(first.clone());
    trainer
        .run(|at| Ok(Loss::new(model.next_token_loss(&stream.batch(at.batch, &Device::Cpu)?)?, 48)), |_| {})
        .unwrap();
    let message = start(first.clone()).resume(Resume::Refuse).unwrap_err().to_string();
    assert!(message.contains("--resume"), "{message}");
    let other = TrainConfig { learning_rate: 5e-3, ..first };
    let message = start(other).resume(Resume::Latest).unwrap_err().to_string();
    assert!(message.contains("another configuration"), "{message}");
}

#[test]
fn gradient_accumulation_equals_a_larger_batch() {
    let after = |batch: usize, micros: usize| {
        let model = small(1);
        let tokens: Vec<u32> = (0..2000u32).map(|i| (i % 7) * 2).collect();
        let stream = TokenStream::new(tokens, 12, batch, Seed::new(5)).unwrap();
        let config = TrainConfig {
            gradient_accumulation_steps: micros,
            ..config(RuleConfig::default(), 3, 1e-2)
        };
        let mut trainer = Trainer::new(config, &model.bank).unwrap();
        trainer
            .run(|at| Ok(Loss::new(model.next_token_loss(&stream.batch(at.batch, &Device::Cpu)?)?, 1)), |_| {})
            .unwrap();
        trainer.losses().to_vec()
    };
    for (a, b) in after(4, 1).iter().zip(after(2, 2)) {
        assert!((a - b).abs() < 1e-4, "{a} {b}");
    }
}

#[test]
fn a_resnet_learns_a_constant_split_and_evaluates_with_running_statistics() {
    let config = ResNetConfig { blocks: 1, width: 4, num_channels: 1, num_labels: 2 };
    let model = ResNet::init(config, Seed::new(3)).unwrap();
    // Class 1 is bright in the left half, class 0 in the right half.
    let mut pixels = vec![0f32; 16 * 64];
    Seed::new(4).normal(0, &mut pixels);
    let labels: Vec<u32> = (0..16).map(|i| i % 2).collect();
    for (i, pixel) in pixels.iter_mut().enumerate() {
        let left = i % 8 < 4;
        *pixel = *pixel * 0.3 + if left == (labels[i / 64] == 1) { 1. } else { 0. };
    }
    let images = Tensor::from_vec(pixels, (16, 1, 8, 8), &Device::Cpu).unwrap();
    let targets = Tensor::from_vec(labels.clone(), 16, &Device::Cpu).unwrap();
    let mut trainer = Trainer::new(
        TrainConfig {
            steps: 60,
            learning_rate: 1e-2,
            ..TrainConfig::default()
        },
        &model.bank,
    )
    .unwrap();
    trainer
        .run(
            |_| {
                let logits = model.forward(&images, Mode::Train)?;
                Ok(Loss::new(ops::cross_entropy(&logits, &targets, 0.)?, 16))
            },
            |_| {},
        )
        .unwrap();
    let scores = model.forward(&images, Mode::Eval).unwrap().to_vec2::<f32>().unwrap();
    let right = scores.iter().zip(&labels).filter(|(s, l)| u32::from(s[1] > s[0]) == **l).count();
    assert!(right >= 14, "{right} of 16");
}
