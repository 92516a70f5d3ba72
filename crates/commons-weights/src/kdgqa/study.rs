//! The measurements behind the claims: a vision transformer trained with all its key heads,
//! converted to fewer, and trained on with every scheme; and a decoder converted and healed.

use std::time::Duration;

use commons_core::Seed;
use commons_core::evidence::Run;
use commons_nn::model::{Vit, VitConfig};
use commons_nn::train::{Loss, Outcome, TrainConfig, Trainer};
use commons_ops as ops;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{GroupedVit, KdgqaConfig, Phase, Scheme, convert};
use crate::heal::{HealConfig, HealRun, heal};
use crate::images::ImageSets;
use crate::material::{Material, MaterialConfig};
use crate::{Error, Result};

/// Shape of the vision transformer; images give the rest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Shape {
    /// Height and width of a patch, pixels.
    pub patch_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// `H`: query heads.
    pub num_attention_heads: usize,
}

impl Default for Shape {
    fn default() -> Self {
        Self { patch_size: 4, hidden_size: 96, num_hidden_layers: 6, num_attention_heads: 6 }
    }
}

/// What is trained and compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Study {
    /// The network.
    pub vit: Shape,
    /// Training with all key heads.
    pub base: TrainConfig,
    /// Training after conversion.
    pub up: TrainConfig,
    /// `G`: numbers of key heads converted to, rising.
    pub groups: Vec<usize>,
    /// Steps between two allocations of DGQA.
    pub window: usize,
    /// Score as the released code does, deciding anew in every batch.
    pub paper_eval: bool,
    /// Images on which KDGQA's allocation is frozen for scoring.
    pub calibration_images: usize,
}

impl Default for Study {
    fn default() -> Self {
        let train = |steps, learning_rate| TrainConfig {
            steps,
            batch_size: 32,
            learning_rate,
            warmup_steps: steps / 10,
            ..TrainConfig::default()
        };
        Self {
            vit: Shape::default(),
            base: train(600, 1e-3),
            up: train(100, 3e-4),
            groups: vec![2, 3],
            window: 300,
            paper_eval: false,
            calibration_images: 100,
        }
    }
}

/// One converted network before and after it is trained on.
#[derive(Debug, Clone)]
pub struct Arm {
    /// Scheme; `None` for the network with all its key heads, trained on as long.
    pub scheme: Option<Scheme>,
    /// Key heads.
    pub groups: usize,
    /// Accuracy right after conversion.
    pub before: f64,
    /// Accuracy after up-training.
    pub after: f64,
    /// Key and value bytes of a token.
    pub kv_bytes: usize,
    /// Milliseconds of a training step.
    pub step_ms: f64,
    /// Of these, what deciding on groups takes on the mean; the rest is the network.
    pub allocation_ms: f64,
    /// Query heads of every key head at the end.
    pub allocation: Vec<Vec<usize>>,
}

impl Study {
    /// Checks the numbers of groups.
    ///
    /// # Errors
    /// Naming the field, and the nearest number that works.
    pub fn check(&self) -> Result<()> {
        if self.groups.is_empty() || self.window == 0 || self.calibration_images == 0 {
            return Err(Error::config("groups", "window or calibration_images is empty or zero"));
        }
        if self.up.gradient_accumulation_steps != 1 {
            let why = "must be 1: groups are decided once a step, by the keys of one batch";
            return Err(Error::config("up.gradient_accumulation_steps", why));
        }
        if self.groups.windows(2).any(|w| w[0] >= w[1]) {
            return Err(Error::config("groups", format!("{:?} must rise", self.groups)));
        }
        let heads = self.vit.num_attention_heads;
        self.groups.iter().try_for_each(|&g| super::allocation::check_groups(heads, g))
    }

    /// Trains the network with all its key heads.
    ///
    /// # Errors
    /// When the shape does not fit the images or the run is stopped.
    pub fn base(&self, sets: &ImageSets, seed: Seed, run: &mut Run) -> Result<Vit> {
        let shape = &self.vit;
        let config = VitConfig {
            image_size: sets.train.height,
            patch_size: shape.patch_size,
            num_channels: sets.train.channels,
            hidden_size: shape.hidden_size,
            num_hidden_layers: shape.num_hidden_layers,
            num_attention_heads: shape.num_attention_heads,
            num_key_value_heads: shape.num_attention_heads,
            intermediate_size: 4 * shape.hidden_size,
            num_labels: sets.classes,
        };
        let vit = Vit::init(config, seed.fork("init", 0))?;
        let forward = |x: &ops::Tensor, _| Ok(vit.forward(x)?);
        train(&self.base, &vit, sets, seed.fork("base", 0), "multi-head", run, forward)?;
        Ok(vit)
    }

    /// Converts `base` to `groups` key heads, scores, trains on and scores again.
    ///
    /// # Errors
    /// When the groups do not fit or the run is stopped.
    pub fn arm(
        &self,
        base: &Vit,
        scheme: Option<Scheme>,
        groups: usize,
        sets: &ImageSets,
        seed: Seed,
        run: &mut Run,
    ) -> Result<Arm> {
        let made = GroupedVit::convert(base, groups, scheme.unwrap_or(Scheme::Gqa), seed)?;
        let model = GroupedVit { window: self.window, paper_eval: self.paper_eval, ..made };
        let chosen: Vec<usize> = (0..self.calibration_images.min(sets.train.len())).collect();
        let (calibration, _) = ImageSets::batch(&sets.train, &chosen)?;
        let score = || sets.accuracy(|x| model.forward(x, Phase::Eval));
        model.calibrate(&calibration)?;
        let before = score()?;
        let label = scheme.map_or("mha", Scheme::key);
        let forward = |x: &ops::Tensor, step| model.forward(x, Phase::Train(step));
        let data = seed.fork("up", 0);
        let began = run.elapsed();
        train(&self.up, &model.vit, sets, data, &format!("{label}-{groups}"), run, forward)?;
        let took = run.elapsed().saturating_sub(began).max(Duration::from_micros(1));
        // KDGQA's groups, and those of the control, follow the keys that were learnt.
        model.calibrate(&calibration)?;
        let clock = || run.elapsed().as_secs_f64();
        let (batch, _) = sets.train_batch(data, 0, self.up.batch_size)?;
        let decided = 1e3 * model.allocation_seconds(&batch, clock)?;
        Ok(Arm {
            scheme,
            groups,
            before,
            after: score()?,
            kv_bytes: model.kv_bytes(),
            step_ms: took.as_secs_f64() * 1e3 / self.up.steps as f64,
            allocation_ms: match scheme {
                Some(Scheme::Kdgqa | Scheme::Random) => decided,
                Some(Scheme::DgqaDiff | Scheme::DgqaEma) => decided / self.window as f64,
                _ => 0.,
            },
            allocation: model.allocation()?,
        })
    }
}

/// Trains the bank of `vit` on cross-entropy of the class scores of `forward(images, step)`.
fn train(
    config: &TrainConfig,
    vit: &Vit,
    sets: &ImageSets,
    seed: Seed,
    label: &str,
    run: &mut Run,
    forward: impl Fn(&ops::Tensor, usize) -> Result<ops::Tensor>,
) -> Result<()> {
    let mut trainer = Trainer::new(config.clone(), &vit.bank)?.stop_flag(run.stop().flag());
    let progress = run.progress();
    let mut task = progress.task(label, Some(config.steps as u64));
    let mut losses = Vec::new();
    let outcome = trainer.run(
        |at| {
            let batch = sets.train_batch(seed, at.batch, config.batch_size);
            let (images, labels) = batch.map_err(commons_nn::Error::from)?;
            let scores = forward(&images, at.step).map_err(commons_nn::Error::from)?;
            Ok(Loss::new(ops::cross_entropy(&scores, &labels, 0.)?, config.batch_size))
        },
        |report| {
            task.update(report.step as u64, &format!("loss {:.3}", report.loss));
            losses.push((report.step as u64, report.loss));
        },
    )?;
    for (step, loss) in losses {
        run.log(step, &format!("{label}/loss"), loss)?;
    }
    if outcome == Outcome::Interrupted { Err(Error::Interrupted) } else { Ok(()) }
}

/// The decoder that is converted and healed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DecoderStudy {
    /// Model and texts.
    pub material: MaterialConfig,
    /// Key and value heads left with equal groups; `None` as the method's own default.
    pub kv_heads: Option<usize>,
    /// Tokens of a calibration window.
    pub seq_len: usize,
    /// Windows of calibration.
    pub calibration_windows: usize,
    /// The healing.
    pub heal: HealConfig,
    /// Tokens of context while scoring.
    pub context: usize,
    /// Tokens scored per measurement.
    pub eval_tokens: usize,
}

impl Default for DecoderStudy {
    fn default() -> Self {
        Self {
            material: MaterialConfig::default(),
            kv_heads: None,
            seq_len: 128,
            calibration_windows: 4,
            heal: HealConfig::default(),
            context: 256,
            eval_tokens: 2048,
        }
    }
}

/// A decoder after conversion and after healing.
#[derive(Debug, Clone)]
pub struct Decoded {
    /// What was done.
    pub label: &'static str,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Parameters stored.
    pub stored: usize,
    /// Perplexity before healing.
    pub before: f64,
    /// Perplexity after healing.
    pub after: f64,
}

impl DecoderStudy {
    /// Perplexity of the original, then equal groups of fewer heads and key-driven groups of as
    /// many heads as there were.
    ///
    /// # Errors
    /// When the model does not fit or the run is stopped.
    pub fn measure(&self, run: &mut Run) -> Result<(f64, Vec<Decoded>)> {
        let material = self.material.prepare(run.seed(), run)?;
        let score = |m: &_| -> Result<f64> {
            Ok(material.score(m, self.context, self.eval_tokens)?.perplexity)
        };
        let original = score(&material.model)?;
        let all = material.model.config.num_key_value_heads;
        let arms = [
            ("mean-pooled, equal groups", Scheme::Gqa, self.kv_heads),
            ("key-driven groups", Scheme::Kdgqa, Some(all)),
        ];
        let mut decoded = Vec::new();
        for (label, scheme, kv_heads) in arms {
            let config = KdgqaConfig {
                kv_heads,
                scheme,
                seq_len: self.seq_len,
                calibration_windows: self.calibration_windows,
                ..KdgqaConfig::default()
            };
            let seed = run.seed().fork("decoder", 0);
            let tick = &mut |_: &str, _, _| Ok(run.check_stop()?);
            let model = convert(&config, &material.model, &material.train, seed, tick)?.model;
            let before = score(&model)?;
            self.heal(label, &material, &model, run)?;
            decoded.push(Decoded {
                label,
                kv_heads: model.config.num_key_value_heads,
                stored: model.bank.stored(),
                before,
                after: score(&model)?,
            });
        }
        Ok((original, decoded))
    }

    fn heal(
        &self,
        label: &str,
        material: &Material,
        model: &commons_nn::model::Decoder,
        run: &mut Run,
    ) -> Result<()> {
        let mut teacher = material.model.clone();
        teacher.bank.freeze(|_| true);
        let settings = HealRun { stop: run.stop().flag(), ..HealRun::default() };
        let progress = run.progress();
        let mut task = progress.task(label, Some(self.heal.train.steps as u64));
        let tokens = material.train.clone();
        let healed = heal(model, Some(&teacher), tokens, &self.heal, &settings, |report| {
            task.update(report.step as u64, &format!("loss {:.3}", report.loss));
        })?;
        for (step, loss) in healed.losses.iter().enumerate() {
            run.log(step as u64 + 1, &format!("{label}/healing loss"), *loss)?;
        }
        if healed.outcome == Outcome::Interrupted { Err(Error::Interrupted) } else { Ok(()) }
    }
}
