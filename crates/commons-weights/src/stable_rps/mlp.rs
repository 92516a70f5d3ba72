//! A multilayer perceptron over a bank, and the plain loop that trains it: dense, from a pool, or
//! under a mask.

use std::collections::BTreeMap;

use commons_core::Seed;
use commons_nn::bank::Bank;
use commons_nn::optim::{Optimizer, OptimizerConfig, RuleConfig};
use commons_ops::{self as ops, Tensor};

use super::pool::{gradient_scaler, scale_gradient};
use crate::Result;
use crate::images::ImageSets;

/// `relu` layers `fc0, fc1, …` with biases; the last gives class scores.
#[derive(Debug, Clone)]
pub struct Mlp {
    /// Weights `fc{i}.weight: [out, in]` and biases.
    pub bank: Bank,
    layers: usize,
}

/// Masks of weights, ones and zeros, by name.
pub type Masks = BTreeMap<String, Tensor>;

impl Mlp {
    /// He-initialised layers of the given widths, input first.
    ///
    /// # Errors
    /// When a tensor cannot be made.
    pub fn init(widths: &[usize], seed: Seed) -> Result<Self> {
        let mut bank = Bank::default();
        for (i, pair) in widths.windows(2).enumerate() {
            let (input, out) = (pair[0], pair[1]);
            let mut w = vec![0f32; input * out];
            seed.fork("fc", i as u64).normal(0, &mut w);
            let scale = (2. / input as f32).sqrt();
            w.iter_mut().for_each(|x| *x *= scale);
            bank.insert(
                format!("fc{i}.weight"),
                Tensor::from_vec(w, (out, input), bank.device())?,
            )?;
            let zeros = Tensor::zeros(out, ops::DType::F32, bank.device())?;
            bank.insert(format!("fc{i}.bias"), zeros)?;
        }
        Ok(Self { bank, layers: widths.len().saturating_sub(1) })
    }

    /// Names of the matrices.
    pub fn matrices(&self) -> Vec<String> {
        (0..self.layers).map(|i| format!("fc{i}.weight")).collect()
    }

    /// Class scores `[batch, classes]` of `x: [batch, ..]`.
    ///
    /// # Errors
    /// When widths do not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = x.flatten_from(1)?;
        for i in 0..self.layers {
            x = self.bank.linear(&format!("fc{i}"), &x)?;
            if i + 1 < self.layers {
                x = ops::relu(&x)?;
            }
        }
        Ok(x)
    }

    /// Mean cross-entropy of a batch.
    ///
    /// # Errors
    /// When widths do not fit.
    pub fn loss(&self, images: &Tensor, labels: &Tensor) -> Result<Tensor> {
        Ok(ops::cross_entropy(&self.forward(images)?, labels, 0.)?)
    }

    /// A copy that shares no storage.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn copy(&self) -> Result<Self> {
        Ok(Self { bank: self.bank.deep_clone()?, layers: self.layers })
    }
}

/// How a network is trained: SGD with momentum, cosine decay.
#[derive(Debug, Clone, Copy)]
pub struct Training<'a> {
    /// Images.
    pub sets: &'a ImageSets,
    /// Steps in all.
    pub steps: usize,
    /// Images of a batch.
    pub batch_size: usize,
    /// Peak rate.
    pub rate: f64,
    /// Order of the images.
    pub seed: Seed,
    /// Whether the pool's gradient is divided by `Γ`.
    pub stable: bool,
}

impl Training<'_> {
    /// Trains `mlp` over `range` of the steps; masked weights stay zero. Returns the losses; they
    /// end early if one is not finite.
    ///
    /// # Errors
    /// When shapes do not fit or `tick` asks to stop.
    pub fn run(
        &self,
        mlp: &Mlp,
        masks: Option<&Masks>,
        range: std::ops::Range<usize>,
        tick: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Vec<f64>> {
        let rule = RuleConfig::Sgd { momentum: 0.9, nesterov: false };
        let config = OptimizerConfig { rule, ..OptimizerConfig::default() };
        let mut optimizer = Optimizer::new(config, &mlp.bank)?;
        let gamma = if self.stable { Some(gradient_scaler(&mlp.bank)?) } else { None };
        let mut losses = Vec::new();
        for step in range {
            tick()?;
            let (images, labels) =
                self.sets.train_batch(self.seed, step as u64, self.batch_size)?;
            let loss = mlp.loss(&images, &labels)?;
            let value = f64::from(loss.to_scalar::<f32>()?);
            losses.push(value);
            if !value.is_finite() {
                break;
            }
            let mut grads = ops::backward(&loss)?;
            if let Some(gamma) = &gamma {
                scale_gradient(&mlp.bank, &mut grads, gamma)?;
            }
            for (name, mask) in masks.into_iter().flatten() {
                let var = mlp.bank.stored_var(name)?;
                if let Some(grad) = grads.remove(var) {
                    grads.insert(var, (grad * mask)?);
                }
            }
            let done = step as f64 / self.steps as f64;
            let rate = self.rate * 0.5 * (1. + (std::f64::consts::PI * done).cos());
            if !optimizer.step(&mlp.bank, &grads, rate, 1., 0.)?.is_finite() {
                losses.push(f64::INFINITY);
                break;
            }
        }
        Ok(losses)
    }
}
