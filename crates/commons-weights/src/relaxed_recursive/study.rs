//! The measurements behind the claims, on any decoder and text: perplexity right after conversion
//! over inits and ranks, and after healing against layer dropping of the same size.

use std::path::Path;

use commons_nn::eval::ExitProfile;
use commons_nn::model::Decoder;
use commons_nn::train::Outcome;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Config, Init, LayerLoss, LoraInit, convert, truncate};
use crate::baseline::{drop_layers, layers_for_budget, spread_layers};
use crate::compress::Context;
use crate::heal::{HealConfig, HealRun, Healed, heal};
use crate::material::Material;
use crate::{Error, Result};

/// What is compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Study {
    /// `B` of the conversions.
    pub loops: usize,
    /// Inits scored right after conversion.
    pub inits: Vec<Init>,
    /// Ranks scored right after conversion, rising. Rank 0 is always scored.
    pub ranks: Vec<usize>,
    /// Rank of the healed relaxed models.
    pub rank: usize,
    /// Init of the healed strict model and of the zero start. The paper found stepwise best for both.
    pub strict_init: Init,
    /// Init of the healed decomposed start. The paper found the average best.
    pub svd_init: Init,
    /// Multiply norm gains into the matrices first.
    pub fold_gains: bool,
    /// Loop norm gains too.
    pub share_norms: bool,
    /// Tokens of the training text that show which inputs matrices see.
    pub calibration_tokens: usize,
    /// Weight of the early predictions' cross-entropy in the variant that is healed with them.
    pub exit_coef: f64,
    /// Probabilities at which a token leaves early.
    pub exit_thresholds: Vec<f64>,
    /// The healing, equal for all; the seed of a repeat replaces the one in it.
    pub heal: HealConfig,
    /// Tokens of context while scoring.
    pub context: usize,
    /// Tokens scored per measurement.
    pub eval_tokens: usize,
}

impl Default for Study {
    fn default() -> Self {
        Self {
            loops: 2,
            inits: vec![Init::Stepwise, Init::Average, Init::Lower],
            ranks: vec![16, 64, 128],
            rank: 64,
            strict_init: Init::Stepwise,
            svd_init: Init::Average,
            fold_gains: false,
            share_norms: false,
            calibration_tokens: 16_384,
            exit_coef: 0.1,
            exit_thresholds: vec![0.5, 0.7, 0.9],
            heal: HealConfig::default(),
            context: 512,
            eval_tokens: 4096,
        }
    }
}

/// A conversion scored without any training.
#[derive(Debug, Clone, PartialEq)]
pub struct Start {
    /// Init of the looped block.
    pub init: Init,
    /// Rank of the decomposed terms.
    pub rank: usize,
    /// Parameters stored.
    pub stored: usize,
    /// Perplexity on the test text.
    pub perplexity: f64,
}

/// A model that is healed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// Looped, no low-rank terms.
    Strict,
    /// Looped, low-rank terms that start at zero.
    RelaxedZero,
    /// Looped, low-rank terms from the decomposition.
    RelaxedSvd,
    /// Looped, low-rank terms from the decomposition weighed by the inputs.
    RelaxedWhitened,
    /// As [`Self::RelaxedWhitened`], the shared matrices fitted together with the terms.
    RelaxedFitted,
    /// As [`Self::RelaxedFitted`], healed with a prediction after every loop.
    RelaxedExits,
    /// Layers dropped down to the strict model's parameters.
    DroppedLikeStrict,
    /// Layers dropped down to the relaxed model's parameters.
    DroppedLikeRelaxed,
}

impl Variant {
    /// All of them, dropping last: it needs the sizes of the others.
    pub const ALL: [Self; 8] = [
        Self::Strict,
        Self::RelaxedZero,
        Self::RelaxedSvd,
        Self::RelaxedWhitened,
        Self::RelaxedFitted,
        Self::RelaxedExits,
        Self::DroppedLikeStrict,
        Self::DroppedLikeRelaxed,
    ];

    /// Name of its measures and files.
    pub fn key(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::RelaxedZero => "relaxed_zero",
            Self::RelaxedSvd => "relaxed_svd",
            Self::RelaxedWhitened => "relaxed_whitened",
            Self::RelaxedFitted => "relaxed_fitted",
            Self::RelaxedExits => "relaxed_exits",
            Self::DroppedLikeStrict => "dropped_like_strict",
            Self::DroppedLikeRelaxed => "dropped_like_relaxed",
        }
    }

    /// For tables.
    pub fn label(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::RelaxedZero => "relaxed, zero start",
            Self::RelaxedSvd => "relaxed, SVD start",
            Self::RelaxedWhitened => "relaxed, whitened SVD start",
            Self::RelaxedFitted => "relaxed, fitted together",
            Self::RelaxedExits => "relaxed, fitted together, early exits",
            Self::DroppedLikeStrict => "layers dropped, size of strict",
            Self::DroppedLikeRelaxed => "layers dropped, size of relaxed",
        }
    }
}

/// A variant before and after healing.
#[derive(Debug, Clone, PartialEq)]
pub struct Ending {
    /// Which one.
    pub variant: Variant,
    /// Seed of the healing.
    pub seed: u64,
    /// Parameters stored.
    pub stored: usize,
    /// Layers a token passes.
    pub layers: usize,
    /// Perplexity on the test text before healing.
    pub before: f64,
    /// Perplexity on the test text after healing.
    pub after: f64,
    /// What it predicts after each loop; of the fitted models, healed with exits and without.
    pub exits: Option<ExitProfile>,
}

impl Study {
    /// Perplexity of `model` on the test text.
    ///
    /// # Errors
    /// When the text or the windows are too short.
    pub fn score(&self, model: &Decoder, material: &Material) -> Result<f64> {
        Ok(material.score(model, self.context, self.eval_tokens)?.perplexity)
    }

    fn config(&self, init: Init, rank: usize, lora_init: LoraInit) -> Config {
        Config {
            loops: self.loops,
            init,
            rank,
            lora_init: Some(lora_init),
            share_norms: self.share_norms,
            fold_gains: self.fold_gains,
            heal: self.heal.clone(),
            ..Config::default()
        }
    }

    /// Scores every init at every rank. Each init is decomposed once, at the highest rank.
    ///
    /// # Errors
    /// When the study does not fit the model.
    pub fn starts(&self, material: &Material, context: &mut Context<'_>) -> Result<Vec<Start>> {
        let highest = self.ranks.iter().copied().max().unwrap_or(0);
        let total = self.inits.len() * (self.ranks.len() + 1);
        let mut starts = Vec::with_capacity(total);
        for &init in &self.inits {
            let (full, _) =
                convert(&self.config(init, highest, LoraInit::Svd), &material.model, context)?;
            for &rank in std::iter::once(&0).chain(self.ranks.iter().filter(|r| **r > 0)) {
                context.tick("scoring conversions", starts.len(), total)?;
                let model = truncate(&full, rank)?;
                let perplexity = self.score(&model, material)?;
                starts.push(Start { init, rank, stored: model.bank.stored(), perplexity });
            }
        }
        Ok(starts)
    }

    /// Converts at full rank, where nothing should be lost.
    ///
    /// # Errors
    /// When the study does not fit the model.
    pub fn full_rank(&self, material: &Material, context: &mut Context<'_>) -> Result<FullRank> {
        let c = &material.model.config;
        let rank = c.hidden_size.max(c.num_attention_heads * c.head_dim);
        let (model, losses) =
            convert(&self.config(self.svd_init, rank, LoraInit::Svd), &material.model, context)?;
        let ids = &material.test[..self.context.min(material.test.len() - 1)];
        let logits = |model: &Decoder| -> Result<Vec<f32>> {
            let hidden =
                model.forward(&commons_nn::model::ids_tensor(&[ids], &model.bank)?, None)?;
            Ok(model.logits(&hidden)?.flatten_all()?.to_vec1()?)
        };
        let pairs = logits(&model)?.into_iter().zip(logits(&material.model)?);
        let logit_error = pairs.map(|(a, b)| f64::from((a - b).abs())).fold(0., f64::max);
        let kept = losses.into_iter().fold(LayerLoss::default(), LayerLoss::plus).kept();
        Ok(FullRank { logit_error, perplexity: self.score(&model, material)?, kept })
    }

    /// The model a variant starts from.
    fn start(
        &self,
        variant: Variant,
        material: &Material,
        sizes: (usize, usize),
        context: &mut Context<'_>,
    ) -> Result<Decoder> {
        let original = &material.model;
        let dropped = |budget| {
            let keep = layers_for_budget(original, budget);
            drop_layers(original, &spread_layers(original.config.num_hidden_layers, keep))
        };
        let config = match variant {
            Variant::Strict => self.config(self.strict_init, 0, LoraInit::Zero),
            Variant::RelaxedZero => self.config(self.strict_init, self.rank, LoraInit::Zero),
            Variant::RelaxedSvd => self.config(self.svd_init, self.rank, LoraInit::Svd),
            Variant::RelaxedWhitened => {
                self.config(self.svd_init, self.rank, LoraInit::WhitenedSvd)
            }
            Variant::RelaxedFitted | Variant::RelaxedExits => {
                self.config(Init::Fitted, self.rank, LoraInit::WhitenedSvd)
            }
            Variant::DroppedLikeStrict => return dropped(sizes.0),
            Variant::DroppedLikeRelaxed => return dropped(sizes.1),
        };
        let tokens = self.calibration_tokens.min(material.train.len());
        let mut context = Context {
            calibration: &material.train[..tokens],
            seed: context.seed,
            stop: context.stop.clone(),
            progress: &mut *context.progress,
        };
        Ok(convert(&config, original, &mut context)?.0)
    }

    /// Heals every variant with `seed`, keeping checkpoints under `folder` and
    /// showing each healing to `observe`.
    ///
    /// # Errors
    /// When the study does not fit the model, or it is stopped.
    pub fn endings(
        &self,
        material: &Material,
        seed: u64,
        context: &mut Context<'_>,
        folder: Option<&Path>,
        observe: &mut dyn FnMut(Variant, &Healed),
    ) -> Result<Vec<Ending>> {
        let mut endings: Vec<Ending> = Vec::new();
        let mut sizes = (0, 0);
        for variant in Variant::ALL {
            let model = self.start(variant, material, sizes, context)?;
            let stored = model.bank.stored();
            match variant {
                Variant::Strict => sizes.0 = stored,
                Variant::RelaxedSvd => sizes.1 = stored,
                _ => {}
            }
            let before = self.score(&model, material)?;
            let folder = folder.map(|f| f.join(format!("{}-{seed}", variant.key())));
            let run = HealRun { folder, resume: true, stop: context.stop.clone() };
            observe(variant, &self.heal_one(variant, seed, &model, material, &run, context)?);
            let after = self.score(&model, material)?;
            let layers = model.config.num_hidden_layers;
            let exits = self.exits(variant, &model, material)?;
            endings.push(Ending { variant, seed, stored, layers, before, after, exits });
        }
        Ok(endings)
    }

    /// What the fitted models predict after each loop.
    fn exits(
        &self,
        variant: Variant,
        model: &Decoder,
        material: &Material,
    ) -> Result<Option<ExitProfile>> {
        if !matches!(variant, Variant::RelaxedFitted | Variant::RelaxedExits) || self.loops < 2 {
            return Ok(None);
        }
        let mut model = model.clone();
        model.bank.freeze(|_| true);
        let sizes = (self.context, self.eval_tokens);
        let levels = &self.exit_thresholds;
        Ok(Some(ExitProfile::measure(&model, &material.test, self.loops, sizes, levels, |_| {})?))
    }

    fn heal_one(
        &self,
        variant: Variant,
        seed: u64,
        model: &Decoder,
        material: &Material,
        run: &HealRun,
        context: &mut Context<'_>,
    ) -> Result<Healed> {
        let mut config = self.heal.clone();
        config.train.seed = seed;
        if variant == Variant::RelaxedExits {
            (config.exit_coef, config.exit_loops) = (self.exit_coef, self.loops);
        }
        let progress = &mut *context.progress;
        let label = format!("healing: {} (seed {seed})", variant.label());
        let healed =
            heal(model, Some(&material.model), material.train.clone(), &config, run, |report| {
                progress(&label, report.step, report.steps);
            })?;
        if healed.outcome == Outcome::Interrupted { Err(Error::Interrupted) } else { Ok(healed) }
    }
}

/// How near full rank comes to the original.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct FullRank {
    /// Largest absolute difference of a logit.
    pub logit_error: f64,
    /// Perplexity on the test text.
    pub perplexity: f64,
    /// Share of the difference's energy that the terms hold.
    pub kept: f64,
}
