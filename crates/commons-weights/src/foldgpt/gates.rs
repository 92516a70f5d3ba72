//! Step 1: a learned gate on each block's update, and the ranking it gives.

use commons_core::Seed;
use commons_nn::model::Decoder;
use commons_nn::train::TokenStream;
use commons_ops::optim::{AdamW, Optimizer};
use commons_ops::{self as ops, Tensor, Var};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::baseline::removal::{Probe, check_removal, least_important};
use crate::{Error, Result};

/// The smoothed L0 gate `g_ε(a) = a² / (a² + ε)`: 0 at `a = 0`, towards 1 for `|a| ≫ √ε`.
pub fn gate(a: f64, epsilon: f64) -> f64 {
    a * a / (a * a + epsilon)
}

/// `dg_ε/da = 2aε / (a² + ε)²`. Zero at `a = 0`: a gate that is exactly off stays off.
pub fn gate_slope(a: f64, epsilon: f64) -> f64 {
    let square = a * a + epsilon;
    2. * a * epsilon / (square * square)
}

/// How gates are learned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct GateConfig {
    /// Optimiser steps.
    pub steps: usize,
    /// Sequences in a batch.
    pub batch_size: usize,
    /// Tokens in a sequence.
    pub seq_len: usize,
    /// Learning rate of Adam on the gate parameters `a` while `ε` has its first value; it falls
    /// with `√ε`, so that a step stays the same part of the gate's width.
    pub learning_rate: f64,
    /// First value of every `a`; with the first `ε` this gives the first gate.
    pub init: f64,
    /// Smoothing at the start.
    pub epsilon_start: f64,
    /// Smoothing at the end.
    pub epsilon_end: f64,
    /// Share of the steps at which `ε` starts to fall; it falls log-linearly from there.
    pub anneal_from: f64,
    /// Share of the steps over which the allowed sum of gates falls from all to the target.
    pub ramp: f64,
    /// Weight `ρ` of the squared violation of the resource constraint.
    pub penalty: f64,
    /// Rate at which the multiplier `λ` of the constraint rises with its violation.
    pub multiplier_rate: f64,
}

impl Default for GateConfig {
    fn default() -> Self {
        Self {
            steps: 200,
            batch_size: 4,
            seq_len: 512,
            learning_rate: 0.03,
            init: 1.,
            epsilon_start: 0.1,
            epsilon_end: 1e-4,
            anneal_from: 0.5,
            ramp: 0.4,
            penalty: 20.,
            multiplier_rate: 1.,
        }
    }
}

impl GateConfig {
    /// Checks ranges.
    ///
    /// # Errors
    /// Naming the field.
    pub fn check(&self) -> Result<()> {
        let positive = [
            ("learning_rate", self.learning_rate),
            ("init", self.init),
            ("epsilon_start", self.epsilon_start),
            ("epsilon_end", self.epsilon_end),
        ];
        for (field, v) in positive {
            if !(v.is_finite() && v > 0.) {
                return Err(Error::config(format!("gates.{field}"), format!("{v} must be positive")));
            }
        }
        if self.epsilon_end > self.epsilon_start {
            return Err(Error::config("gates.epsilon_end", "must not exceed epsilon_start"));
        }
        for (field, v) in [("penalty", self.penalty), ("multiplier_rate", self.multiplier_rate)] {
            if !(v.is_finite() && v >= 0.) {
                return Err(Error::config(format!("gates.{field}"), format!("{v} is negative")));
            }
        }
        for (field, v) in [("anneal_from", self.anneal_from), ("ramp", self.ramp)] {
            if !(0. ..=1.).contains(&v) {
                return Err(Error::config(format!("gates.{field}"), format!("{v} is not in 0..=1")));
            }
        }
        for (field, n) in [("steps", self.steps), ("batch_size", self.batch_size)] {
            if n == 0 {
                return Err(Error::config(format!("gates.{field}"), "must be at least 1"));
            }
        }
        Ok(())
    }

    /// The smoothing at `step` (from 0): constant, then log-linear to its last value.
    pub fn epsilon(&self, step: usize) -> f64 {
        let (from, last) = (self.anneal_from, self.steps.saturating_sub(1).max(1) as f64);
        let at = (step as f64 / last - from) / (1. - from).max(f64::EPSILON);
        self.epsilon_start * (self.epsilon_end / self.epsilon_start).powf(at.clamp(0., 1.))
    }

    /// The allowed mean gate at `step` on the way to `keep`.
    fn allowance(&self, step: usize, keep: f64) -> f64 {
        let ramp = self.ramp * self.steps as f64;
        let done = if ramp > 0. { ((step + 1) as f64 / ramp).min(1.) } else { 1. };
        1. - done * (1. - keep)
    }
}

/// What one step of gate training saw.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GateStep {
    /// Smoothing `ε`.
    pub epsilon: f64,
    /// Next-token loss of the gated model, nats per token.
    pub loss: f64,
    /// Mean gate minus the mean gate allowed at this step.
    pub violation: f64,
    /// Multiplier `λ` of the constraint.
    pub multiplier: f64,
    /// Gate of every block.
    pub gates: Vec<f64>,
}

/// One gate for each block of a decoder. The first and the last block have none (theirs is 1).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BlockGates {
    a: Vec<f64>,
    epsilon: f64,
    trace: Vec<GateStep>,
}

impl BlockGates {
    /// Gates with parameters `a: [blocks]` at smoothing `epsilon`.
    pub fn new(a: Vec<f64>, epsilon: f64) -> Self {
        Self { a, epsilon, trace: Vec::new() }
    }

    /// Gate of every block, 1 for the first and the last.
    pub fn values(&self) -> Vec<f64> {
        values(&self.a, self.epsilon)
    }

    /// What every training step saw.
    pub fn trace(&self) -> &[GateStep] {
        &self.trace
    }

    /// The `count` inner blocks whose gates are lowest, lowest first.
    ///
    /// # Errors
    /// When that would leave none between the first and the last.
    pub fn lowest(&self, count: usize) -> Result<Vec<usize>> {
        // |a| orders as g does and does not saturate where g rounds to 1.
        let size: Vec<f64> = self.a.iter().map(|a| a.abs()).collect();
        least_important(&size, count)
    }

    /// Share of the gates within `margin` of 0 or 1.
    pub fn polarised(&self, margin: f64) -> f64 {
        let values = self.values();
        let ends = values.iter().filter(|g| g.min(1. - **g) <= margin).count();
        ends as f64 / values.len().max(1) as f64
    }

    /// Learns gates on `tokens` such that the blocks' gates sum to at most `keep` blocks.
    ///
    /// Weights stay as they are and get no gradient. Each step takes one Adam step on `a` down the
    /// gradient of the augmented Lagrangian `L + λ·c + ρ/2·c²`, `c = mean(g) − allowed` (only while
    /// the bracket `λ + ρ·c` is positive: the constraint is an inequality), then raises `λ` by
    /// `multiplier_rate · c`. `tick` is called with (step, steps).
    ///
    /// # Errors
    /// When an option is out of range, `tokens` do not make a window, `keep` is not possible, or
    /// the loss stops being finite.
    pub fn learn(
        model: &Decoder,
        tokens: &[u32],
        keep: usize,
        config: &GateConfig,
        seed: Seed,
        mut tick: impl FnMut(usize, usize) -> Result<()>,
    ) -> Result<Self> {
        config.check()?;
        let layers = model.config.num_hidden_layers;
        check_removal(layers, layers.saturating_sub(keep))?;
        let mut model = model.clone();
        model.bank.freeze(|_| true);
        let seed = seed.fork("gates", 0);
        let stream = TokenStream::new(tokens.to_vec(), config.seq_len, config.batch_size, seed)?;
        let a = Var::from_vec(vec![config.init as f32; layers], layers, model.bank.device())?;
        let adam = AdamW { weight_decay: 0., ..AdamW::default() };
        let mut state = adam.init(&a)?;
        let (mut multiplier, mut trace) = (0f64, Vec::with_capacity(config.steps));
        for step in 0..config.steps {
            tick(step, config.steps)?;
            let epsilon = config.epsilon(step);
            let parameters = read(&a)?;
            let gates = values(&parameters, epsilon);
            let mean = gates.iter().sum::<f64>() / layers as f64;
            let violation = mean - config.allowance(step, keep as f64 / layers as f64);
            let ids = stream.batch(step as u64, model.bank.device())?;
            let (loss, slopes) = loss_and_slopes(&model, &ids, &gates)?;
            if !loss.is_finite() {
                return Err(Error::config(
                    "gates.learning_rate",
                    format!("the loss at step {step} is {loss}: choose a smaller rate"),
                ));
            }
            let pressure = (multiplier + config.penalty * violation).max(0.) / layers as f64;
            let grad: Vec<f32> = (0..layers)
                .map(|l| match is_gated(l, layers) {
                    true => ((slopes[l] + pressure) * gate_slope(parameters[l], epsilon)) as f32,
                    false => 0.,
                })
                .collect();
            let rate = config.learning_rate * (epsilon / config.epsilon_start).sqrt();
            let grad = Tensor::from_vec(grad, layers, a.device())?;
            AdamW { lr: rate, ..adam }.step(&a, &grad, 1., &mut state)?;
            trace.push(GateStep { epsilon, loss, violation, multiplier, gates });
            multiplier = (multiplier + config.multiplier_rate * violation).max(0.);
        }
        Ok(Self { a: read(&a)?, epsilon: config.epsilon_end, trace })
    }

    /// The `count` blocks with the lowest gates; with the two blocks nearest the cut exchanged if
    /// that lowers the probe's loss. `true` says that they were.
    ///
    /// # Errors
    /// As [`BlockGates::lowest`].
    pub fn verified(
        &self,
        model: &Decoder,
        probe: &Probe,
        count: usize,
    ) -> Result<(Vec<usize>, bool)> {
        let removed = self.lowest(count)?;
        let Ok(next) = self.lowest(count + 1) else { return Ok((removed, false)) };
        if count == 0 {
            return Ok((removed, false));
        }
        let mut swapped = removed.clone();
        swapped[count - 1] = next[count];
        let layers = model.config.num_hidden_layers;
        let loss = |out: &[usize]| {
            let kept: Vec<usize> = (0..layers).filter(|l| !out.contains(l)).collect();
            probe.loss(model, &kept)
        };
        let better = loss(&swapped)? < loss(&removed)?;
        Ok((if better { swapped } else { removed }, better))
    }
}

/// Whether block `layer` has a gate.
fn is_gated(layer: usize, layers: usize) -> bool {
    layer > 0 && layer + 1 < layers
}

fn values(a: &[f64], epsilon: f64) -> Vec<f64> {
    let layers = a.len();
    let one = |(l, &a): (usize, &f64)| if is_gated(l, layers) { gate(a, epsilon) } else { 1. };
    a.iter().enumerate().map(one).collect()
}

fn read(a: &Var) -> Result<Vec<f64>> {
    Ok(a.to_vec1::<f32>()?.into_iter().map(f64::from).collect())
}

/// Normed hidden states of `ids: [batch, seq]` with block `ℓ` adding `gates[ℓ]` times its update;
/// `None` leaves a block as it is.
///
/// # Errors
/// When there is not one entry for each block or a gate is not a single number.
pub fn gated_forward(model: &Decoder, ids: &Tensor, gates: &[Option<Tensor>]) -> Result<Tensor> {
    let layers = model.config.num_hidden_layers;
    if gates.len() != layers {
        return Err(Error::config("gates", format!("{} gates for {layers} blocks", gates.len())));
    }
    let rotary = model.rotary(0, ids.dim(1)?)?;
    let mut x = model.embed(ids)?;
    for (layer, gate) in gates.iter().enumerate() {
        x = match gate {
            None => model.block(layer, &x, &rotary, None)?,
            Some(gate) => {
                let attention = model.attention_update(layer, &x, &rotary, None)?;
                let feed_forward = model.mlp_update(layer, &ops::add(&x, &attention)?)?;
                ops::gated_add(&x, &ops::add(&attention, &feed_forward)?, gate)?
            }
        };
    }
    Ok(model.final_norm(&x)?)
}

/// Next-token loss of `ids: [batch, seq + 1]` under `gates` and its derivative in each gate.
fn loss_and_slopes(model: &Decoder, ids: &Tensor, gates: &[f64]) -> Result<(f64, Vec<f64>)> {
    let width = ids.dim(1)?;
    let inputs = ids.narrow(1, 0, width - 1)?.contiguous()?;
    let targets = ids.narrow(1, 1, width - 1)?.contiguous()?;
    let leaf = |layer: usize| -> Result<Option<Var>> {
        if !is_gated(layer, gates.len()) {
            return Ok(None);
        }
        Ok(Some(Var::from_vec(vec![gates[layer] as f32], 1, model.bank.device())?))
    };
    let leaves = (0..gates.len()).map(leaf).collect::<Result<Vec<_>>>()?;
    let tensors: Vec<_> =
        leaves.iter().map(|v| v.as_ref().map(|v| v.as_tensor().clone())).collect();
    let loss = model.loss(&gated_forward(model, &inputs, &tensors)?, &targets)?;
    let grads = ops::backward(&loss)?;
    let slope = |leaf: &Option<Var>| -> Result<f64> {
        match leaf.as_ref().and_then(|v| grads.get(v)) {
            Some(g) => Ok(f64::from(g.flatten_all()?.to_vec1::<f32>()?[0])),
            None => Ok(0.),
        }
    };
    let slopes = leaves.iter().map(slope).collect::<Result<_>>()?;
    Ok((f64::from(loss.to_scalar::<f32>()?), slopes))
}
