//! Healing: short training of a model whose weights were just shared, with the original as teacher.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use commons_nn::bank::Share;
use commons_nn::model::{Decoder, Routing};
use commons_nn::optim::RuleConfig;
use commons_nn::train::{At, Loss, Outcome, Resume, StepReport, TokenStream, TrainConfig, Trainer};
use commons_ops::{self as ops, DistillOptions, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Weights of the healing loss
/// `ce · CE(tokens) + kl · T² KL(teacher ‖ student) + tail · mean_i MSE(h_i, h_π(i)) / mean(h_π(i)²)`,
/// with `i` over the last [`HealConfig::tail_layers`] layers and `π` counting from the end. The
/// teacher's mean square makes the distance a share: some channels of pretrained models reach
/// thousands, and would drown every other term. With exits (Bae et al. 2024, section 2.4)
/// `+ exit · Σ_b CE(tokens after loop b)` is added, `b` over all loops but the last. A mixture of
/// recursions is routed as in training, and its routers' losses are added.
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
    /// Weight of the cross-entropy of a prediction made after each loop but the last, through the
    /// final norm and the head; 0 trains no early exits. The paper's aggressive choice is 0.1.
    pub exit_coef: f64,
    /// Loops: equal parts of the depth, after each of which a prediction may be made. A method that
    /// loops layers sets it to its own number.
    pub exit_loops: usize,
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
            exit_coef: 0.,
            exit_loops: 2,
        }
    }
}

impl HealConfig {
    /// Checks weights and temperature.
    ///
    /// # Errors
    /// Naming the field.
    pub fn check(&self) -> Result<()> {
        let coefs = [
            ("ce_coef", self.ce_coef),
            ("kl_coef", self.kl_coef),
            ("tail_coef", self.tail_coef),
            ("exit_coef", self.exit_coef),
        ];
        for (field, v) in coefs {
            if !(v.is_finite() && v >= 0.) {
                return Err(Error::config(field, format!("{v} must not be negative")));
            }
        }
        if self.ce_coef + self.kl_coef + self.tail_coef + self.exit_coef == 0. {
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
        if self.train.gradient_checkpointing {
            return Err(Error::config(
                "gradient_checkpointing",
                "is for `commons train`, healing keeps its activations: lower batch_size or seq_len",
            ));
        }
        Ok(())
    }

    /// Checks that no term looks at single layers, which not every token of a mixture of recursions
    /// passes.
    ///
    /// # Errors
    /// Naming the field.
    pub fn check_routed(&self) -> Result<()> {
        for (field, coef) in [("tail_coef", self.tail_coef), ("exit_coef", self.exit_coef)] {
            if coef > 0. {
                let reason = "looks at single layers, and a router decides which tokens pass \
                              them: set it to 0";
                return Err(Error::config(field, reason));
            }
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
    if student.config.mixture_of_recursions.is_some() {
        config.check_routed()?;
    }
    check_rule(student, &config.train)?;
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

/// Refuses plain gradient descent on a pool: a slot gathers the gradients of all that read it, and
/// nothing would scale its steps down again.
///
/// # Errors
/// When `model` reads weights from a pool and `train` descends by the gradient itself.
pub fn check_rule(model: &Decoder, train: &TrainConfig) -> Result<()> {
    let pooled = model.bank.plan().iter().any(|(_, e)| matches!(e.share, Share::Hashed { .. }));
    if pooled && matches!(train.optimizer.rule, RuleConfig::Sgd { .. }) {
        let why = "sgd on a pool steps as many times too far as a slot has readers: use adamw";
        return Err(Error::config("optimizer.rule", why));
    }
    Ok(())
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
    let layers = student.config.num_hidden_layers;
    let exits = if config.exit_coef > 0. { exits(layers, config.exit_loops)? } else { Vec::new() };
    let mut terms = Terms::default();
    let (hidden, states) = if student.config.mixture_of_recursions.is_some() {
        let routed = student.forward_routed(&inputs, Routing::Training, None)?;
        if let Some(auxiliary) = routed.auxiliary {
            terms.add("router", 1., auxiliary)?;
        }
        (routed.hidden, BTreeMap::new())
    } else {
        forward_keeping(student, &inputs, |depth| depth + tail >= layers || exits.contains(&depth))?
    };
    // With a teacher's predictions both come from one pass over the logits.
    if config.ce_coef > 0. && (teacher.is_none() || config.kl_coef == 0.) {
        terms.add("ce", config.ce_coef, student.loss(&hidden, &targets)?)?;
    }
    for exit in &exits {
        if let Some(state) = states.get(exit) {
            let early = student.loss(&student.final_norm(state)?, &targets)?;
            terms.add("exit", config.exit_coef, early)?;
        }
    }
    if let Some(teacher) = teacher {
        let teacher_layers = teacher.config.num_hidden_layers;
        let (teacher_hidden, teacher_states) =
            ops::no_grad(|| forward_keeping(teacher, &inputs, |d| d + tail >= teacher_layers))?;
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
            if config.ce_coef > 0. {
                terms.parts.push(("ce", both.ce));
            }
            terms.parts.push(("kl", both.kl));
            terms.sum(both.total)?;
        }
        for from_end in 1..=tail {
            let (Some(s), Some(t)) = (
                states.get(&(layers - from_end)),
                teacher_states.get(&(teacher_layers - from_end)),
            ) else {
                continue;
            };
            let size = ops::no_grad(|| ops::mse(t, &t.zeros_like()?))?.to_scalar::<f32>()?;
            let distance =
                ops::scale(&ops::mse(s, &t.detach())?, size.max(f32::MIN_POSITIVE).recip())?;
            terms.add("tail", config.tail_coef / tail as f64, distance)?;
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
        self.sum(ops::scale(&term, coef as f32)?)
    }

    fn sum(&mut self, term: Tensor) -> Result<()> {
        self.total = Some(match self.total.take() {
            Some(sum) => ops::add(&sum, &term)?,
            None => term,
        });
        Ok(())
    }
}

/// Layers (counted from 0) after which a prediction is made early, with `loops` equal parts.
///
/// # Errors
/// When the loops do not divide the layers or there is only one.
pub fn exits(layers: usize, loops: usize) -> Result<Vec<usize>> {
    if loops < 2 || !layers.is_multiple_of(loops) {
        return Err(Error::config(
            "exit_loops",
            format!("{loops} must be at least 2 and divide the {layers} layers"),
        ));
    }
    Ok((1..loops).map(|i| layers / loops * i - 1).collect())
}

/// Normed final hidden states, and the outputs of the layers that `keep` picks.
fn forward_keeping(
    model: &Decoder,
    ids: &Tensor,
    keep: impl Fn(usize) -> bool,
) -> Result<(Tensor, BTreeMap<usize, Tensor>)> {
    let rotary = model.rotary(0, ids.dim(1)?)?;
    let mut x = model.embed(ids)?;
    let mut states = BTreeMap::new();
    for depth in 0..model.config.num_hidden_layers {
        x = model.block(depth, &x, &rotary, None)?;
        if keep(depth) {
            states.insert(depth, x.clone());
        }
    }
    Ok((model.final_norm(&x)?, states))
}
