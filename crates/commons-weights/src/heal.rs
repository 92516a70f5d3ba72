//! Healing: short training of a model whose weights were just shared, with the original as teacher.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use commons_nn::model::Decoder;
use commons_nn::train::{At, Loss, Outcome, Resume, StepReport, TokenStream, TrainConfig, Trainer};
use commons_ops::{self as ops, DistillOptions, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Weights of the healing loss
/// `ce · CE(tokens) + kl · T² KL(teacher ‖ student) + tail · mean_i MSE(h_i, h_π(i)) / mean(h_π(i)²)`,
/// with `i` over the last [`HealConfig::tail_layers`] layers and `π` counting from the end. The
/// teacher's mean square makes the distance a share: some channels of pretrained models reach
/// thousands, and would drown every other term.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HealConfig {
    /// The training run.
    pub train: TrainConfig,
    /// Weight of the next-token cross-entropy.
    pub ce_coef: f64,
    /// Weight of the divergence from the teacher's predictions; 0 needs no teacher.
    pub kl_coef: f64,
    /// Softmax temperature of both distributions in the divergence.
    pub temperature: f64,
    /// Weight of the relative hidden-state distance of the last layers; 0 leaves it out.
    pub tail_coef: f64,
    /// Layers, counted from the end, whose outputs are matched.
    pub tail_layers: usize,
}

impl Default for HealConfig {
    fn default() -> Self {
        Self {
            train: TrainConfig {
                steps: 200,
                batch_size: 2,
                seq_len: 256,
                learning_rate: 3e-4,
                warmup_steps: 10,
                ..TrainConfig::default()
            },
            ce_coef: 1.,
            kl_coef: 1.,
            temperature: 1.,
            tail_coef: 0.,
            tail_layers: 3,
        }
    }
}

impl HealConfig {
    /// Checks weights and temperature.
    ///
    /// # Errors
    /// Naming the field.
    pub fn check(&self) -> Result<()> {
        for (field, v) in
            [("ce_coef", self.ce_coef), ("kl_coef", self.kl_coef), ("tail_coef", self.tail_coef)]
        {
            if !(v.is_finite() && v >= 0.) {
                return Err(Error::config(field, format!("{v} must not be negative")));
            }
        }
        if self.ce_coef + self.kl_coef + self.tail_coef == 0. {
            return Err(Error::config(
                "ce_coef",
                "kl_coef and tail_coef are all zero: nothing to minimise",
            ));
        }
        if !(self.temperature.is_finite() && self.temperature > 0.) {
            return Err(Error::config(
                "temperature",
                format!("{} must be positive", self.temperature),
            ));
        }
        Ok(())
    }

    fn needs_teacher(&self) -> bool {
        self.kl_coef > 0. || self.tail_coef > 0.
    }
}

/// Where checkpoints go, and how a run is stopped.
#[derive(Debug, Clone, Default)]
pub struct HealRun {
    /// Folder of the checkpoints; `None` keeps none.
    pub folder: Option<PathBuf>,
    /// Go on from the newest checkpoint instead of refusing to run over it.
    pub resume: bool,
    /// Raised to stop after the current step.
    pub stop: Arc<AtomicBool>,
}

/// What healing did.
#[derive(Debug, Clone, PartialEq)]
pub struct Healed {
    /// How it ended.
    pub outcome: Outcome,
    /// Mean loss of every step, resumed ones included.
    pub losses: Vec<f64>,
}

/// Trains what is trainable in `student`'s bank on `tokens`. The teacher costs no gradient.
///
/// # Errors
/// When the configuration is unusable, the teacher is missing or has another vocabulary or width
/// than the terms need, or training fails.
pub fn heal(
    student: &Decoder,
    teacher: Option<&Decoder>,
    tokens: Vec<u32>,
    config: &HealConfig,
    run: &HealRun,
    observe: impl FnMut(&StepReport),
) -> Result<Healed> {
    config.check()?;
    let teacher = match (config.needs_teacher(), teacher) {
        (false, _) => None,
        (true, Some(teacher)) => Some(check_teacher(student, teacher, config)?),
        (true, None) => {
            return Err(Error::config(
                "kl_coef",
                "and tail_coef need a teacher: pass the original model or set both to 0",
            ));
        }
    };
    let t = &config.train;
    let stream = TokenStream::new(tokens, t.seq_len, t.batch_size, t.seed().fork("heal-data", 0))?;
    let mut trainer = Trainer::new(t.clone(), &student.bank)?.stop_flag(run.stop.clone());
    if let Some(folder) = &run.folder {
        trainer = trainer.checkpoints(folder);
        trainer.resume(if run.resume { Resume::Latest } else { Resume::Refuse })?;
    }
    let outcome = trainer.run(
        |At { batch, .. }| {
            let ids = stream.batch(batch, student.bank.device())?;
            let loss = loss(student, teacher, &ids, config).map_err(commons_nn::Error::from)?;
            Ok(Loss { tokens: stream.tokens_per_batch(), ..loss })
        },
        observe,
    )?;
    Ok(Healed { outcome, losses: trainer.losses().to_vec() })
}

fn check_teacher<'a>(
    student: &Decoder,
    teacher: &'a Decoder,
    config: &HealConfig,
) -> Result<&'a Decoder> {
    if teacher.config.vocab_size != student.config.vocab_size {
        return Err(Error::config("teacher", "has another vocabulary than the student"));
    }
    let capped = |m: &Decoder| m.config.final_logit_softcapping.is_some();
    if config.kl_coef > 0. && (capped(student) || capped(teacher)) {
        return Err(Error::config(
            "kl_coef",
            "is for models whose logits are not capped: set it to 0 to heal by cross-entropy",
        ));
    }
    let layers = student.config.num_hidden_layers.min(teacher.config.num_hidden_layers);
    if config.tail_coef > 0. {
        if teacher.config.hidden_size != student.config.hidden_size {
            return Err(Error::config("tail_coef", "needs a teacher of the student's hidden_size"));
        }
        if config.tail_layers == 0 || config.tail_layers > layers {
            return Err(Error::config(
                "tail_layers",
                format!("{} is not in 1..={layers}", config.tail_layers),
            ));
        }
    }
    Ok(teacher)
}

/// The healing loss of `ids: [batch, seq + 1]`.
pub fn loss(
    student: &Decoder,
    teacher: Option<&Decoder>,
    ids: &Tensor,
    config: &HealConfig,
) -> Result<Loss> {
    let (batch, width) = ids.dims2()?;
    let inputs = ids.narrow(1, 0, width - 1)?.contiguous()?;
    let targets = ids.narrow(1, 1, width - 1)?.contiguous()?;
    let tail = if config.tail_coef > 0. { config.tail_layers } else { 0 };
    let (hidden, states) = forward_tail(student, &inputs, tail)?;
    let mut terms = Terms::default();
    // With a teacher's predictions both come from one pass over the logits.
    if config.ce_coef > 0. && (teacher.is_none() || config.kl_coef == 0.) {
        terms.add("ce", config.ce_coef, student.loss(&hidden, &targets)?)?;
    }
    if let Some(teacher) = teacher {
        let (teacher_hidden, teacher_states) =
            ops::no_grad(|| forward_tail(teacher, &inputs, tail))?;
        if config.kl_coef > 0. {
            let head = student.bank.weight("lm_head.weight")?;
            let teacher_head = teacher.bank.weight("lm_head.weight")?.detach();
            let options = DistillOptions {
                ce_coef: config.ce_coef as f32,
                kl_coef: config.kl_coef as f32,
                temperature: config.temperature as f32,
            };
            let teacher_side = [&teacher_hidden.detach(), &teacher_head];
            let both = ops::linear_distill([&hidden, &head], teacher_side, &targets, options)?;
            terms.parts.extend([("ce", both.ce), ("kl", both.kl)]);
            terms.total = Some(both.total);
        }
        for (s, t) in states.iter().zip(&teacher_states) {
            let size = ops::no_grad(|| ops::mse(t, &t.zeros_like()?))?.to_scalar::<f32>()?;
            let share = config.tail_coef / tail as f64 / f64::from(size).max(f64::MIN_POSITIVE);
            terms.add("tail", share, ops::mse(s, &t.detach())?)?;
        }
    }
    let Terms { total, parts } = terms;
    let total = total.ok_or_else(|| Error::config("ce_coef", "no term of the loss is left"))?;
    Ok(Loss { total, tokens: batch * (width - 1), parts })
}

/// Terms of a loss so far.
#[derive(Default)]
struct Terms {
    total: Option<Tensor>,
    parts: Vec<(&'static str, f64)>,
}

impl Terms {
    fn add(&mut self, name: &'static str, coef: f64, term: Tensor) -> Result<()> {
        self.parts.push((name, f64::from(term.to_scalar::<f32>()?)));
        let term = ops::scale(&term, coef as f32)?;
        self.total = Some(match self.total.take() {
            Some(sum) => ops::add(&sum, &term)?,
            None => term,
        });
        Ok(())
    }
}

/// Normed final hidden states and the outputs of the last `tail` layers, last layer last.
fn forward_tail(model: &Decoder, ids: &Tensor, tail: usize) -> Result<(Tensor, Vec<Tensor>)> {
    let rotary = model.rotary(0, ids.dim(1)?)?;
    let layers = model.config.num_hidden_layers;
    let mut x = model.embed(ids)?;
    let mut states = Vec::with_capacity(tail);
    for depth in 0..layers {
        x = model.block(depth, &x, &rotary, None)?;
        if depth + tail >= layers {
            states.push(x.clone());
        }
    }
    Ok((model.final_norm(&x)?, states))
}
