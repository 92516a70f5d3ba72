//! The measurements behind the claims: decoders of one shape trained from scratch with their
//! attention shared in different ways, and a pretrained decoder converted in stages.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use commons_core::{Seed, stats};
use commons_nn::bank::Bank;
use commons_nn::model::Decoder;
use commons_nn::train::{At, Loss, Outcome, StepReport, TokenStream, TrainConfig, Trainer};
use commons_ops::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{CoefficientNet, Config, Copying, Dictionaries, NetConfig, Projection, Ranks, Start};
use crate::baseline::scratch::{ScratchConfig, byte_perplexity};
use crate::{Error, Result};

/// Decoders trained from scratch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ScratchStudy {
    /// Shape and training of all of them.
    pub scratch: ScratchConfig,
    /// `S`: atoms per projection.
    pub atoms: usize,
    /// How coefficients start.
    pub start: Start,
    /// The coefficient network.
    pub network: NetConfig,
    /// Tokens of context while scoring.
    pub context: usize,
    /// Bytes scored.
    pub eval_tokens: usize,
}

impl Default for ScratchStudy {
    fn default() -> Self {
        let scratch = ScratchConfig {
            hidden_size: 128,
            intermediate_size: 352,
            num_hidden_layers: 12,
            num_attention_heads: 4,
            num_key_value_heads: 4,
            train: TrainConfig {
                steps: 120,
                batch_size: 16,
                seq_len: 128,
                learning_rate: 2e-3,
                warmup_steps: 20,
                ..TrainConfig::default()
            },
        };
        Self {
            scratch,
            atoms: 4,
            start: Start::default(),
            network: NetConfig::default(),
            context: 256,
            eval_tokens: 16_384,
        }
    }
}

/// A way of making the attention projections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// Every layer has its own.
    Vanilla,
    /// One key/value head for all query heads.
    GroupedQuery,
    /// Factored, at the parameters of MASA-QKVO.
    LowRank,
    /// Neighbours share, at the same parameters.
    Sequential,
    /// The first layers are repeated, at the same parameters.
    RepeatAllOver,
    /// Dictionaries for all four projections.
    MasaQkvo,
    /// Dictionaries for all but the output projection.
    MasaQkv,
    /// As MASA-QKVO, coefficients trained without the network.
    MasaRaw,
}

impl Variant {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Vanilla,
        Self::GroupedQuery,
        Self::LowRank,
        Self::Sequential,
        Self::RepeatAllOver,
        Self::MasaQkvo,
        Self::MasaQkv,
        Self::MasaRaw,
    ];

    /// Name of its measures.
    pub fn key(self) -> &'static str {
        match self {
            Self::Vanilla => "vanilla",
            Self::GroupedQuery => "gqa",
            Self::LowRank => "low_rank",
            Self::Sequential => "sequential",
            Self::RepeatAllOver => "repeat",
            Self::MasaQkvo => "masa_qkvo",
            Self::MasaQkv => "masa_qkv",
            Self::MasaRaw => "masa_raw",
        }
    }

    /// For tables.
    pub fn label(self) -> &'static str {
        match self {
            Self::Vanilla => "vanilla",
            Self::GroupedQuery => "grouped-query, one key/value head",
            Self::LowRank => "low rank",
            Self::Sequential => "sequential sharing",
            Self::RepeatAllOver => "repeat all over",
            Self::MasaQkvo => "MASA-QKVO",
            Self::MasaQkv => "MASA-QKV",
            Self::MasaRaw => "MASA-QKVO, no network",
        }
    }
}

/// A freshly initialised model and the network that makes its coefficients while it trains.
#[derive(Debug)]
pub struct Fresh {
    /// The model.
    pub model: Decoder,
    /// Its coefficient network, if it has one.
    pub network: Option<CoefficientNet>,
}

/// Mean wall time of a step and its parts over the second half of a training, seconds.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct StepTime {
    /// Forward pass, composition of weights included.
    pub forward: f64,
    /// Backward pass.
    pub backward: f64,
    /// Optimiser.
    pub update: f64,
}

impl StepTime {
    /// Medians over the second half of `reports`.
    pub fn of(reports: &[StepReport]) -> Self {
        let half = &reports[reports.len() / 2..];
        let median = |pick: &dyn Fn(&StepReport) -> f64| {
            stats::median(&half.iter().map(pick).collect::<Vec<_>>())
        };
        Self {
            forward: median(&|r| r.times.loss),
            backward: median(&|r| r.times.backward),
            update: median(&|r| r.times.update),
        }
    }

    /// All parts.
    pub fn total(self) -> f64 {
        self.forward + self.backward + self.update
    }
}

/// A trained model scored.
#[derive(Debug, Clone, PartialEq)]
pub struct Trained {
    /// Which way.
    pub variant: Variant,
    /// Parameters stored, without the network.
    pub stored: usize,
    /// Of these, in attention projections.
    pub attention: usize,
    /// Perplexity per byte on the test text.
    pub perplexity: f64,
    /// Time of its training steps.
    pub time: StepTime,
}

impl ScratchStudy {
    /// A fresh model of one variant.
    ///
    /// # Errors
    /// When the shape does not allow it.
    pub fn fresh(&self, variant: Variant, seed: Seed) -> Result<Fresh> {
        let mut shape = self.scratch.clone();
        if variant == Variant::GroupedQuery {
            shape.num_key_value_heads = 1;
        }
        let mut model = Decoder::init(shape.decoder()?, seed.fork("scratch", 0))?;
        let layers = model.config.num_hidden_layers;
        let shared: &[Projection] = match variant {
            Variant::Vanilla | Variant::GroupedQuery => &[],
            _ => &Projection::ALL,
        };
        if let Some(dictionaries) = self.dictionaries(variant) {
            let network = dictionaries.attach(&mut model, seed)?;
            return Ok(Fresh { model, network });
        }
        for projection in shared {
            let members = projection.of_decoder(&model.config);
            let (bank, key) = (&mut model.bank, projection.letter());
            match variant {
                Variant::LowRank => {
                    let rank = (self.scratch.hidden_size * self.atoms / (2 * layers)).max(1);
                    members.iter().try_for_each(|name| factored(bank, name, rank, seed))?;
                }
                Variant::Sequential => {
                    Copying::Sequential.tie(bank, key, &members, self.atoms)?;
                }
                Variant::RepeatAllOver => {
                    Copying::RepeatAllOver.tie(bank, key, &members, self.atoms)?;
                }
                _ => {}
            }
        }
        Ok(Fresh { model, network: None })
    }

    /// The dictionaries of a variant that has any.
    fn dictionaries(&self, variant: Variant) -> Option<Dictionaries> {
        let share = match variant {
            Variant::MasaQkvo | Variant::MasaRaw => Projection::ALL.to_vec(),
            Variant::MasaQkv => Projection::QKV.to_vec(),
            _ => return None,
        };
        Some(Dictionaries {
            atoms: self.atoms,
            share,
            start: self.start,
            network: self.network.clone(),
            raw_coefficients: variant == Variant::MasaRaw,
        })
    }

    /// Trains one variant on `tokens` and scores it on `test`.
    ///
    /// # Errors
    /// When the shape does not allow it, training fails or is stopped.
    pub fn train(
        &self,
        variant: Variant,
        tokens: &[u32],
        test: &[u32],
        seed: u64,
        stop: Arc<AtomicBool>,
        observe: &mut dyn FnMut(&StepReport),
    ) -> Result<Trained> {
        let mut config = self.scratch.train.clone();
        config.seed = seed;
        let fresh = self.fresh(variant, Seed::new(seed))?;
        let mut reports = Vec::with_capacity(config.steps);
        let model = train(fresh, tokens, &config, stop, |report| {
            reports.push(report.clone());
            observe(report);
        })?;
        let quality = byte_perplexity(&model, test, self.context, self.eval_tokens)?;
        let all = model.bank.stored_vars();
        let in_attention = |name: &str| name.contains("self_attn") || name.contains("bank.masa");
        let attention = all.filter(|(n, _)| in_attention(n)).map(|(_, v)| v.elem_count()).sum();
        Ok(Trained {
            variant,
            stored: model.bank.stored(),
            attention,
            perplexity: quality.perplexity,
            time: StepTime::of(&reports),
        })
    }
}

/// Makes `name` a product of rank `rank` whose elements have the variance `name` had.
fn factored(bank: &mut Bank, name: &str, rank: usize, seed: Seed) -> Result<()> {
    let shape = bank.shape(name)?;
    let values = bank.weight(name)?.detach().flatten_all()?.to_vec1::<f32>()?;
    let square = values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>();
    let variance = square / values.len().max(1) as f64;
    // An element is a sum of `rank` products: its variance is rank · s⁴.
    let s = (variance / rank as f64).powf(0.25) as f32;
    let draw = |half: u64, rows: usize, columns: usize| -> Result<Tensor> {
        let mut v = vec![0f32; rows * columns];
        seed.fork(name, half).normal(0, &mut v);
        v.iter_mut().for_each(|x| *x *= s);
        Ok(Tensor::from_vec(v, (rows, columns), bank.device())?)
    };
    let (a, b) = (draw(0, rank, shape[1])?, draw(1, shape[0], rank)?);
    Ok(bank.factor(name, a, b)?)
}

/// Trains a fresh model by next-token cross-entropy; the network, if there is one, is gone
/// afterwards.
///
/// # Errors
/// When training fails or is stopped.
pub fn train(
    fresh: Fresh,
    tokens: &[u32],
    config: &TrainConfig,
    stop: Arc<AtomicBool>,
    observe: impl FnMut(&StepReport),
) -> Result<Decoder> {
    let Fresh { mut model, network } = fresh;
    let data = config.seed().fork("scratch-data", 0);
    let stream = TokenStream::new(tokens.to_vec(), config.seq_len, config.batch_size, data)?;
    let mut trainer = Trainer::new(config.clone(), &model.bank)?.stop_flag(stop);
    let outcome = trainer.run(
        |At { batch, .. }| {
            let ids = stream.batch(batch, model.bank.device())?;
            let total = match &network {
                Some(network) => {
                    let bank = network.applied(&model.bank)?;
                    Decoder { config: model.config.clone(), bank }.next_token_loss(&ids)?
                }
                None => model.next_token_loss(&ids)?,
            };
            Ok(Loss::new(total, stream.tokens_per_batch()))
        },
        observe,
    )?;
    if outcome == Outcome::Interrupted {
        return Err(Error::Interrupted);
    }
    if let Some(network) = network {
        network.finish(&mut model.bank)?;
    }
    Ok(model)
}

/// A way to convert a pretrained decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Singular value decomposition per layer.
    Svd,
    /// The same for the inputs of calibration text (SVD-LLM).
    WhitenedSvd,
    /// The same with ranks where they help most.
    AdaptiveSvd,
    /// Matrix PCA over all blocks.
    Pca,
    /// Matrix PCA within groups.
    Grouped,
    /// With whitened low-rank terms: the method.
    Refined,
}

impl Stage {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Svd, Self::WhitenedSvd, Self::AdaptiveSvd, Self::Pca, Self::Grouped, Self::Refined];

    /// Name of its measures.
    pub fn key(self) -> &'static str {
        match self {
            Self::Svd => "svd",
            Self::WhitenedSvd => "whitened_svd",
            Self::AdaptiveSvd => "adaptive_svd",
            Self::Pca => "pca",
            Self::Grouped => "grouped",
            Self::Refined => "refined",
        }
    }

    /// For tables.
    pub fn label(self) -> &'static str {
        match self {
            Self::Svd => "SVD per layer",
            Self::WhitenedSvd => "whitened SVD per layer",
            Self::AdaptiveSvd => "whitened SVD per layer, adaptive ranks",
            Self::Pca => "matrix PCA",
            Self::Grouped => "matrix PCA in groups",
            Self::Refined => "matrix PCA in groups, refined (MASA)",
        }
    }

    /// The options of this stage when those of the method are `config`.
    pub fn config(self, config: &Config) -> Config {
        let base = config.clone();
        match self {
            Self::Svd => {
                Config { atoms_share: 0., groups: 1, whiten: false, ranks: Ranks::Uniform, ..base }
            }
            Self::WhitenedSvd => {
                Config { atoms_share: 0., groups: 1, whiten: true, ranks: Ranks::Uniform, ..base }
            }
            Self::AdaptiveSvd => Config { atoms_share: 0., groups: 1, whiten: true, ..base },
            Self::Pca => Config { atoms_share: 1., groups: 1, ..base },
            Self::Grouped => Config { atoms_share: 1., ..base },
            Self::Refined => base,
        }
    }
}
