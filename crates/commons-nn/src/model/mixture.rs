//! The forward pass of a decoder with mixtures of experts, and the losses that teach its routers.

use std::sync::{Arc, OnceLock};

use commons_core::Seed;
use commons_ops::{self as ops, Tensor};

use super::decoder::{Decoder, inputs_and_targets, layer_prefix};
use super::experts::{EXPERTS_KEY, MixtureOfExperts};
use super::moe::{MoeOutput, MoeRoute, moe};
use crate::{Error, Result};

/// What a pass through mixtures is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MoePhase {
    /// Training: experts have as many places as the capacity factor gives them, and with a seed the
    /// router has its noise.
    Training(Option<Seed>),
    /// Scoring and generation: nothing is dropped, so no token depends on others of the batch.
    Scoring,
}

/// What a forward pass through mixtures gives.
#[derive(Debug, Clone)]
pub struct ExpertsPass {
    /// Hidden states after the final norm, `[batch, seq, hidden]`.
    pub hidden: Tensor,
    /// What the mixtures did, layer by layer.
    pub layers: Vec<MoeOutput>,
    /// The residual stream before every mixture, `[streams · batch, seq, hidden]`.
    pub residual: Vec<Tensor>,
}

/// The loss of a training step.
#[derive(Debug, Clone)]
pub struct ExpertsLoss {
    /// Cross-entropy and `α` times the sum of the balance losses of all layers.
    pub total: Tensor,
    /// Mean next-token cross-entropy, nats.
    pub loss: Tensor,
    /// Mean over layers of the balance loss before its factor; 1 when experts are used evenly.
    pub balance: f64,
    /// Share of the choices that an expert had no place for.
    pub dropped: f64,
    /// The pass; `None` when its inside is recomputed.
    pub pass: Option<ExpertsPass>,
}

/// The loss of a training step of any decoder.
#[derive(Debug, Clone)]
pub struct TrainingLoss {
    /// Scalar to minimise.
    pub total: Tensor,
    /// Named parts for the log.
    pub parts: Vec<(&'static str, f64)>,
}

/// Balance losses of all layers and how many choices were dropped.
#[derive(Default)]
struct Tally {
    balance: Vec<Tensor>,
    dropped: usize,
    choices: usize,
}

impl Tally {
    fn add(&mut self, balance: Tensor, dropped: usize, choices: usize) {
        self.balance.push(balance);
        self.dropped += dropped;
        self.choices += choices;
    }

    /// The loss with `α` times the balance of every layer.
    fn join(self, loss: Tensor, alpha: f64, pass: Option<ExpertsPass>) -> Result<ExpertsLoss> {
        let (mut total, mut balance) = (loss.clone(), 0.);
        for part in &self.balance {
            balance += f64::from(part.detach().to_scalar::<f32>()?) / self.balance.len() as f64;
            if alpha > 0. {
                total = ops::add(&total, &ops::scale(part, alpha as f32)?)?;
            }
        }
        let dropped = self.dropped as f64 / self.choices.max(1) as f64;
        Ok(ExpertsLoss { total, loss, balance, dropped, pass })
    }
}

impl Decoder {
    /// The decoder's mixture of experts.
    ///
    /// # Errors
    /// When it has none.
    pub fn experts(&self) -> Result<&MixtureOfExperts> {
        self.config
            .mixture_of_experts
            .as_ref()
            .ok_or_else(|| Error::config(EXPERTS_KEY, "the model has none"))
    }

    /// How tokens of layer `depth` find their experts.
    ///
    /// # Errors
    /// When the model has none.
    pub fn expert_route(&self, depth: usize, phase: MoePhase) -> Result<MoeRoute> {
        let mixture = self.experts()?;
        let (capacity, seed) = match phase {
            MoePhase::Training(seed) => (mixture.capacity_factor, seed),
            MoePhase::Scoring => (None, None),
        };
        let deviation = mixture.router_noise as f32;
        let seed = seed.filter(|_| deviation > 0.);
        Ok(MoeRoute {
            selection: mixture.selection(),
            capacity,
            renormalize: mixture.renormalizes(),
            noise: seed.map(|s| (s.fork("router", depth as u64), deviation)),
            act: self.config.activation()?,
        })
    }

    /// What the mixture of layer `depth` adds to the residual stream `x: [batch, seq, hidden]`, and
    /// what it did.
    ///
    /// # Errors
    /// When the model has none, a weight is missing, or the capacity rounds to zero.
    pub fn expert_update(&self, depth: usize, x: &Tensor, phase: MoePhase) -> Result<MoeOutput> {
        let route = self.expert_route(depth, phase)?;
        let normed = self.mlp_input(depth, x)?;
        let mut out = moe(&self.bank, &format!("{}mlp", layer_prefix(depth)), &normed, &route)?;
        out.y = self.mlp_added(depth, out.y)?;
        Ok(out)
    }

    /// The forward pass for `ids: [batch, seq]`, and what the mixtures did.
    ///
    /// # Errors
    /// As [`Decoder::expert_update`].
    pub fn forward_experts(&self, ids: &Tensor, phase: MoePhase) -> Result<ExpertsPass> {
        let rotary = self.rotary(0, ids.dims2()?.1)?;
        let mut x = self.embed(ids)?;
        let (mut layers, mut residual) = (Vec::new(), Vec::new());
        for depth in 0..self.config.num_hidden_layers {
            x = ops::add(&x, &self.attention_update(depth, &x, &rotary, None)?)?;
            let out = self.expert_update(depth, &x, phase)?;
            residual.push(x.clone());
            x = ops::add(&x, &out.y)?;
            layers.push(out);
        }
        Ok(ExpertsPass { hidden: self.final_norm(&x)?, layers, residual })
    }

    /// Mean next-token cross-entropy of `ids: [batch, seq + 1]` with the balance losses.
    ///
    /// # Errors
    /// As [`Decoder::expert_update`], and when there are fewer than two tokens.
    pub fn experts_loss(&self, ids: &Tensor, phase: MoePhase) -> Result<ExpertsLoss> {
        let (inputs, targets) = inputs_and_targets(ids)?;
        let pass = self.forward_experts(&inputs, phase)?;
        let mut tally = Tally::default();
        for layer in &pass.layers {
            let dispatch = &layer.dispatch;
            tally.add(layer.balance.clone(), dispatch.dropped(), dispatch.ids().len());
        }
        let loss = self.loss(&pass.hidden, &targets)?;
        tally.join(loss, self.experts()?.router_aux_loss_coef, Some(pass))
    }

    /// [`Decoder::experts_loss`] that keeps only the input of each layer.
    ///
    /// # Errors
    /// As there.
    pub fn experts_loss_recomputing(&self, ids: &Tensor, phase: MoePhase) -> Result<ExpertsLoss> {
        let (inputs, targets) = inputs_and_targets(ids)?;
        let rotary = self.rotary(0, inputs.dims2()?.1)?;
        let mut x = self.embed(&inputs)?;
        let mut tally = Tally::default();
        let (shape, size) = (x.shape().clone(), x.elem_count());
        for depth in 0..self.config.num_hidden_layers {
            let (model, rotary, counts) = (self.clone(), rotary.clone(), Arc::new(OnceLock::new()));
            let seen = counts.clone();
            // One tensor comes back: the states, and behind them the balance loss.
            let both = ops::checkpoint(&[&x], move |inputs| {
                let x = &inputs[0];
                let update = model.attention_update(depth, x, &rotary, None);
                let x = ops::add(x, &update.map_err(Error::into_tensor_error)?)?;
                let out =
                    model.expert_update(depth, &x, phase).map_err(Error::into_tensor_error)?;
                seen.get_or_init(|| (out.dispatch.dropped(), out.dispatch.ids().len()));
                let x = ops::add(&x, &out.y)?;
                Tensor::cat(&[x.flatten_all()?, out.balance.reshape(1)?], 0)
            })?;
            x = both.narrow(0, 0, size)?.reshape(&shape)?;
            let (dropped, choices) = counts.get().copied().unwrap_or_default();
            tally.add(both.narrow(0, size, 1)?.reshape(())?, dropped, choices);
        }
        let loss = self.loss(&self.final_norm(&x)?, &targets)?;
        tally.join(loss, self.experts()?.router_aux_loss_coef, None)
    }

    /// The loss that trains the model on `ids: [batch, seq + 1]`, whatever its shape, with named
    /// parts where there is more to it than cross-entropy. `seed` is that of the step's noise;
    /// `recompute` keeps only the input of each layer.
    ///
    /// # Errors
    /// When there are fewer than two tokens, or as the shape's own loss.
    pub fn training_loss(&self, ids: &Tensor, seed: Seed, recompute: bool) -> Result<TrainingLoss> {
        let Some(mixture) = &self.config.mixture_of_experts else {
            let total = if recompute {
                self.next_token_loss_recomputing(ids)?
            } else {
                self.next_token_loss(ids)?
            };
            return Ok(TrainingLoss { total, parts: Vec::new() });
        };
        let phase = MoePhase::Training(Some(seed));
        let done = if recompute {
            self.experts_loss_recomputing(ids, phase)?
        } else {
            self.experts_loss(ids, phase)?
        };
        let mut parts = vec![("balance", done.balance)];
        if mixture.capacity_factor.is_some() {
            parts.push(("dropped", done.dropped));
        }
        Ok(TrainingLoss { total: done.total, parts })
    }
}
