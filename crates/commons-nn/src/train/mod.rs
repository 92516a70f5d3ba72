//! Training: one plain loop over `loss(step, micro-batch)`.
//!
//! A batch is a pure function of the step, so the data position *is* the step: a run that was
//! interrupted and resumed ends in the same bytes as one that was not.

mod checkpoint;
mod schedule;
mod stream;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use commons_core::Seed;
use commons_ops::{self as ops, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use checkpoint::{Resume, latest_checkpoint};
pub use schedule::Schedule;
pub use stream::TokenStream;

use crate::bank::Bank;
use crate::optim::{Optimizer, OptimizerConfig};
use crate::{Error, Result};

/// What a training run is made of, besides the model and the data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Optimiser steps.
    pub steps: usize,
    /// Sequences (or samples) per micro-batch.
    pub batch_size: usize,
    /// Tokens per sequence.
    pub seq_len: usize,
    /// Micro-batches whose gradients are averaged into one step.
    pub gradient_accumulation_steps: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Shape of the learning rate over the steps.
    pub schedule: Schedule,
    /// Steps of linear warm-up from zero.
    pub warmup_steps: usize,
    /// Largest gradient norm; larger gradients are scaled down. Zero turns clipping off.
    pub max_grad_norm: f64,
    /// Optimiser and its constants.
    pub optimizer: OptimizerConfig,
    /// Write a checkpoint every so many steps; zero writes only at the end and on interruption.
    pub save_steps: usize,
    /// Checkpoints kept; older ones are removed.
    pub save_total_limit: usize,
    /// Recompute each layer's activations in the backward pass instead of storing them.
    pub gradient_checkpointing: bool,
    /// Seed of data order, initialisation and noise.
    pub seed: u64,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            steps: 200,
            batch_size: 8,
            seq_len: 128,
            gradient_accumulation_steps: 1,
            learning_rate: 1e-3,
            schedule: Schedule::Cosine,
            warmup_steps: 10,
            max_grad_norm: 1.,
            optimizer: OptimizerConfig::default(),
            save_steps: 0,
            save_total_limit: 2,
            gradient_checkpointing: false,
            seed: 0,
        }
    }
}

impl TrainConfig {
    /// The seed as a [`Seed`].
    pub fn seed(&self) -> Seed {
        Seed::new(self.seed)
    }

    /// Checks the counts.
    ///
    /// # Errors
    /// Naming the field.
    pub fn check(&self) -> Result<()> {
        for (field, n) in [
            ("steps", self.steps),
            ("batch_size", self.batch_size),
            ("seq_len", self.seq_len),
            ("gradient_accumulation_steps", self.gradient_accumulation_steps),
        ] {
            if n == 0 {
                return Err(Error::config(field, "must be at least 1"));
            }
        }
        if !(self.learning_rate.is_finite() && self.learning_rate >= 0.) {
            return Err(Error::config(
                "learning_rate",
                format!("{} is not a rate", self.learning_rate),
            ));
        }
        Ok(())
    }
}

/// Which micro-batch a loss is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct At {
    /// Optimiser step, from 0.
    pub step: usize,
    /// Micro-batch within the step.
    pub micro: usize,
    /// Running number of the micro-batch over the whole run.
    pub batch: u64,
}

/// The loss of one micro-batch.
#[derive(Debug)]
pub struct Loss {
    /// Scalar to minimise.
    pub total: Tensor,
    /// Tokens (or samples) it was computed from, for the rate.
    pub tokens: usize,
    /// Named parts for the log.
    pub parts: Vec<(&'static str, f64)>,
}

impl Loss {
    /// A loss without named parts.
    pub fn new(total: Tensor, tokens: usize) -> Self {
        Self { total, tokens, parts: Vec::new() }
    }
}

/// What happened in one step.
#[derive(Debug, Clone, PartialEq)]
pub struct StepReport {
    /// Steps done, from 1.
    pub step: usize,
    /// Steps in all.
    pub steps: usize,
    /// Mean loss of the micro-batches.
    pub loss: f64,
    /// Mean of each named part.
    pub parts: Vec<(&'static str, f64)>,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Gradient norm before clipping.
    pub grad_norm: f64,
    /// Tokens (or samples) of the step.
    pub tokens: usize,
    /// Wall time of the step, seconds.
    pub seconds: f64,
    /// Where that time went.
    pub times: StepTimes,
}

/// Wall time of the parts of a step, seconds. A zeroth-order rule has only losses.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct StepTimes {
    /// Data and forward passes.
    pub loss: f64,
    /// Backward passes.
    pub backward: f64,
    /// The optimiser.
    pub update: f64,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All steps were done.
    Finished,
    /// The stop flag was raised; a checkpoint holds what was done.
    Interrupted,
}

/// The loop. Holds the optimiser's state and the number of steps done.
pub struct Trainer {
    config: TrainConfig,
    bank: Bank,
    optimizer: Optimizer,
    step: usize,
    losses: Vec<f64>,
    folder: Option<PathBuf>,
    stop: Arc<AtomicBool>,
}

impl Trainer {
    /// A trainer of the bank's trainable tensors.
    ///
    /// # Errors
    /// When the configuration is unusable or nothing is trainable.
    pub fn new(config: TrainConfig, bank: &Bank) -> Result<Self> {
        config.check()?;
        if bank.trainable().next().is_none() {
            return Err(Error::config(
                "trainable",
                "every stored tensor is frozen: nothing to train",
            ));
        }
        let optimizer = Optimizer::new(config.optimizer.clone(), bank)?;
        Ok(Self {
            config,
            bank: bank.clone(),
            optimizer,
            step: 0,
            losses: Vec::new(),
            folder: None,
            stop: Arc::default(),
        })
    }

    /// Writes checkpoints under `folder`.
    pub fn checkpoints(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = Some(folder.into());
        self
    }

    /// Ends after the current step, with a checkpoint, once `stop` is true.
    pub fn stop_flag(mut self, stop: Arc<AtomicBool>) -> Self {
        self.stop = stop;
        self
    }

    /// Steps done.
    pub fn step(&self) -> usize {
        self.step
    }

    /// Mean loss of every step done, resumed ones included.
    pub fn losses(&self) -> &[f64] {
        &self.losses
    }

    /// Runs the remaining steps, reporting each to `observe`.
    ///
    /// # Errors
    /// What `loss` returns, a loss or gradient that is not finite, or a checkpoint that cannot be
    /// written.
    pub fn run(
        &mut self,
        mut loss: impl FnMut(At) -> Result<Loss>,
        mut observe: impl FnMut(&StepReport),
    ) -> Result<Outcome> {
        while self.step < self.config.steps {
            let report = self.one_step(&mut loss)?;
            self.losses.push(report.loss);
            self.step += 1;
            observe(&report);
            let stopped = self.stop.load(Ordering::Relaxed);
            let last = self.step == self.config.steps;
            let due =
                self.config.save_steps > 0 && self.step.is_multiple_of(self.config.save_steps);
            if stopped || last || due {
                self.save()?;
            }
            if stopped && !last {
                return Ok(Outcome::Interrupted);
            }
        }
        Ok(Outcome::Finished)
    }

    fn one_step(&mut self, loss: &mut impl FnMut(At) -> Result<Loss>) -> Result<StepReport> {
        let began = Instant::now();
        let step = self.step;
        let c = &self.config;
        let rate = c.learning_rate * c.schedule.factor(step, c.steps, c.warmup_steps);
        let micros = c.gradient_accumulation_steps;
        let at = |micro| At { step, micro, batch: (step * micros + micro) as u64 };
        let mut seen = Seen::new(micros);
        let mut grad_norm = 0.;
        let mut times = StepTimes::default();
        let mut lap = began;
        // Seconds since the last call.
        let mut since = || {
            let before = std::mem::replace(&mut lap, Instant::now());
            lap.duration_since(before).as_secs_f64()
        };
        if let Some(zero_order) = self.optimizer.zero_order() {
            let seed = c.seed().fork("directions", step as u64);
            let mut value = || -> Result<f64> {
                (0..micros).try_fold(0., |sum, m| Ok(sum + seen.add(loss(at(m))?)? / micros as f64))
            };
            grad_norm = zero_order.step(&self.bank, rate, seed, &mut value)?;
            times.loss += since();
        } else {
            let mut grads: Option<ops::Grads> = None;
            for micro in 0..micros {
                let part = loss(at(micro))?;
                let total = part.total.clone();
                seen.add(part)?;
                times.loss += since();
                let new = ops::backward(&total)?;
                match &mut grads {
                    Some(sum) => sum.accumulate(new)?,
                    None => grads = Some(new),
                }
                times.backward += since();
            }
            if let Some(grads) = grads {
                grad_norm = self.optimizer.step(
                    &self.bank,
                    &grads,
                    rate,
                    1. / micros as f64,
                    c.max_grad_norm,
                )?;
                times.update += since();
            }
        }
        if !grad_norm.is_finite() {
            return Err(Error::config(
                "learning_rate",
                format!("the gradient is not finite at step {}: lower the rate or clip", step + 1),
            ));
        }
        let (loss, parts, tokens) = seen.means();
        Ok(StepReport {
            step: step + 1,
            steps: c.steps,
            loss,
            parts,
            learning_rate: rate,
            grad_norm,
            tokens,
            seconds: began.elapsed().as_secs_f64(),
            times,
        })
    }
}

/// Running means of the losses of a step.
struct Seen {
    count: usize,
    micros: usize,
    loss: f64,
    parts: Vec<(&'static str, f64)>,
    tokens: usize,
}

impl Seen {
    fn new(micros: usize) -> Self {
        Self { count: 0, micros, loss: 0., parts: Vec::new(), tokens: 0 }
    }

    fn add(&mut self, loss: Loss) -> Result<f64> {
        let value = f64::from(loss.total.to_dtype(ops::DType::F32)?.to_scalar::<f32>()?);
        if !value.is_finite() {
            return Err(Error::config(
                "loss",
                format!("is {value}: lower the learning rate or check the data"),
            ));
        }
        self.count += 1;
        self.loss += value;
        self.tokens += loss.tokens;
        for (name, part) in loss.parts {
            match self.parts.iter_mut().find(|(n, _)| *n == name) {
                Some((_, sum)) => *sum += part,
                None => self.parts.push((name, part)),
            }
        }
        Ok(value)
    }

    /// Means over evaluations; tokens are those of one pass over the micro-batches.
    fn means(mut self) -> (f64, Vec<(&'static str, f64)>, usize) {
        let n = self.count.max(1) as f64;
        self.parts.iter_mut().for_each(|(_, v)| *v /= n);
        (self.loss / n, self.parts, self.tokens * self.micros / self.count.max(1))
    }
}
