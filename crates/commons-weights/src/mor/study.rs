//! The measurement behind the claims: decoders over bytes that get the same training arithmetic.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use commons_core::Seed;
use commons_nn::model::{
    Decoder, DecoderConfig, MixtureOfRecursions, RecursionCache, RouterKind, Routing,
    ThresholdSource, ids_tensor,
};
use commons_nn::train::{At, Loss, Outcome, StepReport, TokenStream, TrainConfig, Trainer};
use commons_ops::{self as ops, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::training_flops;
use crate::baseline::scratch::{ScratchConfig, byte_perplexity};
use crate::{Error, Result};

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Contender {
    /// All layers stored.
    Vanilla,
    /// As many layers as the recursive models store.
    Small,
    /// The same layers again and again for every token.
    Recursive,
    /// Expert choice.
    Expert,
    /// Expert choice with part of the arithmetic.
    ExpertFewer,
    /// Expert choice with the keys and values of the first recursion.
    ExpertShared,
    /// Expert choice with a second router for the threshold.
    ExpertAuxiliaryRouter,
    /// Expert choice without the auxiliary loss that teaches the threshold.
    ExpertUntaught,
    /// Token choice.
    Token,
    /// Depths by chance.
    Random,
}

impl Contender {
    /// All.
    pub const ALL: [Self; 10] = [
        Self::Vanilla,
        Self::Small,
        Self::Recursive,
        Self::Expert,
        Self::ExpertFewer,
        Self::ExpertShared,
        Self::ExpertAuxiliaryRouter,
        Self::ExpertUntaught,
        Self::Token,
        Self::Random,
    ];

    /// `expert_shared` and the like.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vanilla => "vanilla",
            Self::Small => "small",
            Self::Recursive => "recursive",
            Self::Expert => "expert",
            Self::ExpertFewer => "expert_fewer",
            Self::ExpertShared => "expert_shared",
            Self::ExpertAuxiliaryRouter => "expert_auxiliary_router",
            Self::ExpertUntaught => "expert_untaught",
            Self::Token => "token",
            Self::Random => "random",
        }
    }
}

/// Decoders over bytes with and without routed recursions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Study {
    /// Shape with all layers counted, and the training of the plain model; the others take as many
    /// steps as make the same arithmetic.
    pub scratch: ScratchConfig,
    /// The recursions; router, threshold and cache are set by the contender.
    pub mixture: MixtureOfRecursions,
    /// What is trained.
    pub contenders: Vec<Contender>,
    /// Share of the plain model's training arithmetic that [`Contender::ExpertFewer`] gets.
    pub fewer: f64,
    /// Tokens of context while scoring.
    pub context: usize,
    /// Bytes scored.
    pub eval_tokens: usize,
}

impl Default for Study {
    fn default() -> Self {
        Self {
            scratch: ScratchConfig {
                hidden_size: 192,
                intermediate_size: 512,
                num_hidden_layers: 8,
                num_attention_heads: 4,
                num_key_value_heads: 4,
                train: TrainConfig {
                    steps: 80,
                    learning_rate: 2e-3,
                    warmup_steps: 10,
                    ..TrainConfig::default()
                },
            },
            mixture: MixtureOfRecursions { recursions: 3, ..MixtureOfRecursions::default() },
            contenders: Contender::ALL.to_vec(),
            fewer: 0.8,
            context: 128,
            eval_tokens: 8192,
        }
    }
}

/// A trained contender, scored.
#[derive(Debug, Clone)]
pub struct Trained {
    /// The model.
    pub model: Decoder,
    /// Steps it took.
    pub steps: usize,
    /// Training arithmetic, operations.
    pub flops: f64,
    /// Loss on the test text with threshold routing, nats per byte.
    pub loss: f64,
    /// Seconds of all training steps.
    pub train_seconds: f64,
    /// Seconds of a training step per token, median of the later half.
    pub token_seconds: f64,
    /// Agreement of threshold and top-k over the last tenth of the steps, where they can differ.
    pub agreement: Option<f64>,
    /// Mean seconds of the parts of a forward pass in training, where there is a router.
    pub parts: Option<[f64; 3]>,
}

impl Study {
    /// Checks the share of arithmetic and the numbers of the scoring.
    ///
    /// # Errors
    /// Naming the field.
    pub fn check(&self) -> Result<()> {
        if !(self.fewer > 0. && self.fewer <= 1.) {
            return Err(Error::config("study.fewer", format!("{} is not in 0..1", self.fewer)));
        }
        if self.context == 0 || self.eval_tokens == 0 {
            return Err(Error::config("study.eval_tokens", "and context must be at least 1"));
        }
        Ok(())
    }

    /// The configuration of a contender.
    ///
    /// # Errors
    /// When counts do not divide.
    pub fn config(&self, contender: Contender) -> Result<DecoderConfig> {
        let mut config = self.scratch.decoder()?;
        let mut mixture = MixtureOfRecursions {
            router: RouterKind::Expert,
            kv_cache: RecursionCache::Recursion,
            threshold: ThresholdSource::Router,
            ..self.mixture.clone()
        };
        match contender {
            Contender::Vanilla => return Ok(config),
            Contender::Small => {
                let ends = 2 * mixture.sharing.ends();
                let middle = config.num_hidden_layers.saturating_sub(ends);
                config.num_hidden_layers = ends + middle / mixture.recursions.max(1);
                config.check()?;
                return Ok(config);
            }
            Contender::Recursive | Contender::Expert | Contender::ExpertFewer => {}
            Contender::ExpertShared => mixture.kv_cache = RecursionCache::Shared,
            Contender::ExpertAuxiliaryRouter => {
                mixture.threshold = ThresholdSource::AuxiliaryRouter;
            }
            Contender::ExpertUntaught => mixture.router_aux_loss_coef = Some(0.),
            Contender::Token => {
                mixture.router = RouterKind::Token;
                mixture.capacities.clear();
            }
            Contender::Random => mixture.router = RouterKind::Random,
        }
        config.mixture_of_recursions = Some(mixture);
        config.check()?;
        Ok(config)
    }

    /// A contender before training. Plain recursion is the routed model with every token passing
    /// every layer, and no router.
    ///
    /// # Errors
    /// When counts do not divide.
    pub fn fresh(&self, contender: Contender, seed: Seed) -> Result<Decoder> {
        let config = self.config(contender)?;
        let mut model = Decoder::init(config, seed.fork("mor", 0))?;
        if contender == Contender::Recursive {
            for (name, _) in model.config.router_weights() {
                model.bank.remove(&name);
            }
            model.config.mixture_of_recursions = None;
            model = Decoder::new(model.config, model.bank)?;
        }
        Ok(model)
    }

    /// Steps that take the arithmetic of the plain model's, or the part of it that is due.
    ///
    /// # Errors
    /// When counts do not divide.
    pub fn steps(&self, contender: Contender, model: &Decoder) -> Result<usize> {
        let train = &self.scratch.train;
        let due = if contender == Contender::ExpertFewer { self.fewer } else { 1. };
        let budget = training_flops(&self.config(Contender::Vanilla)?, train.seq_len);
        let own = training_flops(&model.config, train.seq_len);
        Ok((due * train.steps as f64 * budget / own).round().max(1.) as usize)
    }

    /// Trains and scores a contender.
    ///
    /// # Errors
    /// When training fails or is stopped.
    pub fn train(
        &self,
        contender: Contender,
        (tokens, test): (&[u32], &[u32]),
        seed: u64,
        stop: Arc<AtomicBool>,
        observe: &mut dyn FnMut(&StepReport),
    ) -> Result<Trained> {
        let model = self.fresh(contender, Seed::new(seed))?;
        let mut config = self.scratch.train.clone();
        config.steps = self.steps(contender, &model)?;
        config.seed = seed;
        let data = config.seed().fork("scratch-data", 0);
        let stream = TokenStream::new(tokens.to_vec(), config.seq_len, config.batch_size, data)?;
        let mut trainer = Trainer::new(config.clone(), &model.bank)?.stop_flag(stop);
        let (mut seconds, mut agreements, mut parts) = (Vec::new(), Vec::new(), Vec::new());
        let outcome = trainer.run(
            |At { batch, .. }| {
                let ids = stream.batch(batch, model.bank.device())?;
                let total = if model.config.mixture_of_recursions.is_some() {
                    let step = model.routed_loss(&ids, false)?;
                    agreements.push(step.routed.agreement);
                    parts.push(step.routed.times.seconds());
                    step.total
                } else {
                    model.next_token_loss(&ids)?
                };
                Ok(Loss::new(total, stream.tokens_per_batch()))
            },
            |report| {
                seconds.push(report.seconds / report.tokens as f64);
                observe(report);
            },
        )?;
        if outcome == Outcome::Interrupted {
            return Err(Error::Interrupted);
        }
        let mut scored = model.clone();
        scored.bank.freeze(|_| true);
        let last: Vec<f64> = agreements[agreements.len() - agreements.len().div_ceil(10)..]
            .iter()
            .flatten()
            .copied()
            .collect();
        let tokens = (config.steps * stream.tokens_per_batch()) as f64;
        let part =
            |i: usize| commons_core::stats::mean(&parts.iter().map(|p| p[i]).collect::<Vec<_>>());
        Ok(Trained {
            loss: byte_perplexity(&scored, test, self.context, self.eval_tokens)?.loss,
            flops: tokens * training_flops(&model.config, config.seq_len),
            steps: config.steps,
            train_seconds: seconds.iter().sum::<f64>() * stream.tokens_per_batch() as f64,
            token_seconds: commons_core::stats::median(&seconds[seconds.len() / 2..]),
            agreement: (!last.is_empty()).then(|| commons_core::stats::mean(&last)),
            parts: (!parts.is_empty()).then(|| [part(0), part(1), part(2)]),
            model: scored,
        })
    }
}

/// Mean loss, nats per token, over windows of `context` side by side, routed either way. The highest
/// scores of a window know its later tokens: with [`Routing::Training`] this is no test loss.
///
/// # Errors
/// When the model has no router or the text is shorter than a window.
pub fn window_loss(
    model: &Decoder,
    tokens: &[u32],
    (context, most): (usize, usize),
    routing: Routing,
) -> Result<f64> {
    let mut losses = Vec::new();
    for window in tokens[..most.min(tokens.len())].chunks_exact(context + 1) {
        let ids = ids_tensor(&[&window[..context]], &model.bank)?;
        let targets = Tensor::from_vec(window[1..].to_vec(), (1, context), model.bank.device())
            .map_err(commons_nn::Error::from)?;
        let routed = ops::no_grad(|| model.forward_routed(&ids, routing, None))?;
        let loss = ops::no_grad(|| model.loss(&routed.hidden, &targets))?;
        losses.push(f64::from(loss.to_scalar::<f32>()?));
    }
    if losses.is_empty() {
        return Err(Error::config("context", format!("no window of {context} tokens in the text")));
    }
    Ok(commons_core::stats::mean(&losses))
}

/// How a window is passed with a cache.
#[derive(Debug, Clone)]
pub struct Cached {
    /// Recursions of every token.
    pub depths: Vec<usize>,
    /// Bytes of keys and values of all layers.
    pub whole: usize,
    /// Of these, those of the layers between first and last.
    pub bytes: usize,
    /// For every recursion, the router's score of each of its candidates.
    pub scores: Vec<Vec<f32>>,
}

/// Passes `window` with threshold routing into a fresh cache.
///
/// # Errors
/// When the window is empty.
pub fn cached(model: &Decoder, window: &[u32], ends: usize) -> Result<Cached> {
    let ids = ids_tensor(&[window], &model.bank)?;
    let mut cache = model.cache(1, window.len())?;
    let mut scores = Vec::new();
    let depths = ops::no_grad(|| -> Result<Vec<usize>> {
        if model.config.mixture_of_recursions.is_none() {
            model.forward(&ids, Some(&mut cache))?;
            return Ok(vec![1; window.len()]);
        }
        let routed = model.forward_routed(&ids, Routing::Threshold, Some(&mut cache))?;
        let mut depths = vec![0; window.len()];
        for row in &routed.active {
            row[0].iter().for_each(|&t| depths[t as usize] += 1);
        }
        scores = routed.scores;
        Ok(depths)
    })?;
    let c = &model.config;
    let layer = 2 * window.len() * c.num_key_value_heads * c.head_dim * size_of::<f32>();
    let whole = cache.bytes();
    Ok(Cached { depths, whole, bytes: whole - ends * layer, scores })
}
