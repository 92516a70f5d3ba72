//! The measurements behind the claims: small decoders trained with streams from scratch, and
//! streams added to a frozen pretrained decoder.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use commons_core::Seed;
use commons_nn::model::{Decoder, ParallelStreams, ids_tensor, layer_prefix};
use commons_nn::train::{At, Loss, Outcome, StepReport, TokenStream, TrainConfig, Trainer};
use commons_ops as ops;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::speed::SpeedStudy;
use super::{Draw, add_streams, freeze_model};
use crate::baseline::scratch::{ScratchConfig, byte_perplexity};
use crate::{Error, Result};

/// Decoders trained from scratch with different numbers of streams.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ScratchStudy {
    /// Shape and training of the narrowest.
    pub scratch: ScratchConfig,
    /// Widths, each trained with every number of streams; the feed-forward width follows in
    /// proportion.
    pub widths: Vec<usize>,
    /// Numbers of streams.
    pub streams: Vec<usize>,
    /// `n`: prefix tokens.
    pub prefix_tokens: usize,
    /// `ε`.
    pub smoothing: f64,
    /// Tokens of context while scoring.
    pub context: usize,
    /// Bytes scored.
    pub eval_tokens: usize,
}

impl Default for ScratchStudy {
    fn default() -> Self {
        Self {
            scratch: ScratchConfig {
                hidden_size: 128,
                intermediate_size: 352,
                num_hidden_layers: 4,
                num_attention_heads: 4,
                num_key_value_heads: 4,
                train: TrainConfig {
                    steps: 150,
                    batch_size: 8,
                    seq_len: 128,
                    learning_rate: 2e-3,
                    warmup_steps: 20,
                    ..TrainConfig::default()
                },
            },
            widths: vec![64, 128, 192],
            streams: vec![1, 2, 4],
            prefix_tokens: 16,
            smoothing: 0.01,
            context: 256,
            eval_tokens: 16_384,
        }
    }
}

/// A trained model scored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Trained {
    /// Width of the residual stream.
    pub width: usize,
    /// Streams.
    pub streams: usize,
    /// Parameters stored, embeddings left out.
    pub parameters: usize,
    /// Loss on the test text, nats per byte.
    pub loss: f64,
    /// Median seconds of a training step.
    pub step_seconds: f64,
}

impl ScratchStudy {
    /// A fresh decoder of `width` with `streams` streams; one stream is the plain decoder.
    ///
    /// # Errors
    /// When the width does not divide by the heads.
    pub fn fresh(&self, width: usize, streams: usize, seed: Seed) -> Result<Decoder> {
        let mut shape = self.scratch.clone();
        shape.intermediate_size = shape.intermediate_size * width / shape.hidden_size.max(1);
        shape.hidden_size = width;
        let mut config = shape.decoder()?;
        if streams > 1 {
            config.parallel_streams = Some(ParallelStreams {
                count: streams,
                prefix_tokens: self.prefix_tokens,
                smoothing: self.smoothing,
            });
        }
        Ok(Decoder::init(config, seed.fork("scratch", 0))?)
    }

    /// The base width with the most streams, mixed in equal shares whatever the token.
    ///
    /// # Errors
    /// When training fails or is stopped.
    pub fn equal_shares(
        &self,
        tokens: &[u32],
        test: &[u32],
        seed: u64,
        stop: Arc<AtomicBool>,
        observe: &mut dyn FnMut(&StepReport),
    ) -> Result<Trained> {
        let streams = self.streams.iter().copied().max().unwrap_or(1);
        let even = Self { smoothing: 1., ..self.clone() };
        even.train((self.scratch.hidden_size, streams), tokens, test, seed, stop, observe)
    }

    /// Trains and scores one decoder.
    ///
    /// # Errors
    /// When training fails or is stopped.
    pub fn train(
        &self,
        (width, streams): (usize, usize),
        tokens: &[u32],
        test: &[u32],
        seed: u64,
        stop: Arc<AtomicBool>,
        observe: &mut dyn FnMut(&StepReport),
    ) -> Result<Trained> {
        let model = self.fresh(width, streams, Seed::new(seed))?;
        let mut config = self.scratch.train.clone();
        config.seed = seed;
        let mut seconds = Vec::new();
        train(&model, tokens, &config, stop, &mut |report| {
            seconds.push(report.seconds);
            observe(report);
        })?;
        let mut scored = model.clone();
        scored.bank.freeze(|_| true);
        let quality = byte_perplexity(&scored, test, self.context, self.eval_tokens)?;
        let embedding = model.config.vocab_size * model.config.hidden_size;
        Ok(Trained {
            width,
            streams,
            parameters: model.bank.stored() - embedding,
            loss: quality.loss,
            step_seconds: commons_core::stats::median(&seconds[seconds.len() / 2..]),
        })
    }
}

/// Trains what is trainable by next-token cross-entropy.
///
/// # Errors
/// When training fails or is stopped.
pub fn train(
    model: &Decoder,
    tokens: &[u32],
    config: &TrainConfig,
    stop: Arc<AtomicBool>,
    observe: &mut dyn FnMut(&StepReport),
) -> Result<()> {
    let data = config.seed().fork("scratch-data", 0);
    let stream = TokenStream::new(tokens.to_vec(), config.seq_len, config.batch_size, data)?;
    let mut trainer = Trainer::new(config.clone(), &model.bank)?.stop_flag(stop);
    let outcome = trainer.run(
        |At { batch, .. }| {
            let ids = stream.batch(batch, model.bank.device())?;
            Ok(Loss::new(model.next_token_loss(&ids)?, stream.tokens_per_batch()))
        },
        observe,
    )?;
    if outcome == Outcome::Interrupted { Err(Error::Interrupted) } else { Ok(()) }
}

/// Streams added to a frozen decoder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FrozenStudy {
    /// Numbers of streams; 1 is a prefix alone.
    pub streams: Vec<usize>,
    /// `n`: prefix tokens.
    pub prefix_tokens: usize,
    /// `ε`.
    pub smoothing: f64,
    /// Deviation of the drawn prefix keys and of the mixing network.
    pub sigma: f64,
    /// Deviation of the drawn prefix values.
    pub value_sigma: f64,
    /// The training run.
    pub train: TrainConfig,
    /// Tokens of context while scoring.
    pub context: usize,
    /// Tokens scored.
    pub eval_tokens: usize,
    /// What is timed.
    pub speed: SpeedStudy,
}

impl Default for FrozenStudy {
    fn default() -> Self {
        Self {
            streams: vec![1, 2, 4],
            prefix_tokens: 16,
            smoothing: 0.01,
            sigma: 0.02,
            value_sigma: 0.002,
            train: TrainConfig {
                steps: 40,
                batch_size: 1,
                seq_len: 128,
                learning_rate: 3e-3,
                warmup_steps: 5,
                ..TrainConfig::default()
            },
            context: 512,
            eval_tokens: 2048,
            speed: SpeedStudy::default(),
        }
    }
}

impl FrozenStudy {
    /// `model` with `streams` streams, its own weights frozen.
    ///
    /// # Errors
    /// As [`add_streams`].
    pub fn wide(&self, model: &Decoder, streams: usize, seed: u64) -> Result<Decoder> {
        let added = ParallelStreams {
            count: streams,
            prefix_tokens: self.prefix_tokens,
            smoothing: self.smoothing,
        };
        let draw = Draw { sigma: self.sigma, value_sigma: self.value_sigma };
        let mut wide = add_streams(model, added, draw, Seed::new(seed))?;
        freeze_model(&mut wide);
        Ok(wide)
    }
}

/// How the streams of a model behave on a text.
#[derive(Debug, Clone, PartialEq)]
pub struct Mixture {
    /// Mean share of each stream in the output.
    pub shares: Vec<f64>,
    /// Mean entropy of the shares, nats; `ln P` when they are equal.
    pub entropy: f64,
    /// Mean cosine between the final states of two streams; 1 when they are equal.
    pub cosine: f64,
}

/// Measures the mixture on one window of tokens.
///
/// # Errors
/// When the model has one stream.
pub fn mixture(model: &Decoder, window: &[u32]) -> Result<Mixture> {
    let ids = ids_tensor(&[window], &model.bank)?;
    let streams = model.config.streams();
    ops::no_grad(|| {
        let rotary = model.rotary(0, window.len())?;
        let mut x = model.embed(&ids)?;
        for depth in 0..model.config.num_hidden_layers {
            x = model.block(depth, &x, &rotary, None)?;
        }
        let x = model.rms_norm("model.norm", &x)?;
        let rows = model.stream_shares(&x)?.squeeze(0)?.to_vec2::<f32>()?;
        let n = rows.len().max(1) as f64;
        let mean = |p: usize| rows.iter().map(|r| f64::from(r[p])).sum::<f64>() / n;
        let entropy = |row: &Vec<f32>| -> f64 {
            row.iter().map(|&w| f64::from(w)).filter(|w| *w > 0.).map(|w| -w * w.ln()).sum()
        };
        let states = x.to_vec3::<f32>()?;
        let mut cosines = Vec::new();
        for a in 0..streams {
            for b in 0..a {
                let pairs = states[a].iter().zip(&states[b]);
                cosines.extend(pairs.map(|(a, b)| cosine(a, b)));
            }
        }
        Ok(Mixture {
            shares: (0..streams).map(mean).collect(),
            entropy: rows.iter().map(entropy).sum::<f64>() / n,
            cosine: commons_core::stats::mean(&cosines),
        })
    })
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |x: &[f32], y: &[f32]| {
        x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt().max(f64::MIN_POSITIVE)
}

/// Makes all streams of `model` alike: those of stream 0.
///
/// # Errors
/// When the model has no streams.
pub fn equalise(model: &mut Decoder) -> Result<()> {
    for layer in 0..model.config.num_hidden_layers {
        for half in ["k", "v"] {
            let name = format!("{}self_attn.prefix_{half}", layer_prefix(layer));
            let prefix = model.bank.stored_var(&name)?.as_detached_tensor();
            let first = prefix.narrow(0, 0, 1)?;
            model.bank.insert(name, first.broadcast_as(prefix.shape())?.contiguous()?)?;
        }
    }
    Ok(())
}
