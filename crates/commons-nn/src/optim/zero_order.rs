//! Simultaneous perturbation (SPSA; Spall 1992): a gradient estimate from two forward passes along
//! a direction that is a seed, so it never takes memory and can be named in eight bytes.

use commons_core::Seed;
use commons_ops::optim::add_noise;

use crate::bank::Bank;
use crate::{Error, Result};

/// Zeroth-order gradient descent with in-place perturbation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ZeroOrder {
    eps: f64,
    directions: usize,
}

impl ZeroOrder {
    /// A rule that looks `eps` to either side along each of `directions` directions per step.
    ///
    /// # Errors
    /// When either is not positive.
    pub fn new(eps: f64, directions: usize) -> Result<Self> {
        if !(eps.is_finite() && eps > 0.) {
            return Err(Error::config("eps", format!("{eps} is not a positive step")));
        }
        if directions == 0 {
            return Err(Error::config("directions", "must be at least 1"));
        }
        Ok(Self { eps, directions })
    }

    /// Moves the trainable tensors by `alpha · z(seed)`.
    ///
    /// Tensor `i` in name order takes the stream `seed.fork("tensor", i)`.
    pub fn perturb(bank: &Bank, seed: Seed, alpha: f32) -> Result<()> {
        for (i, (_, var)) in bank.trainable().enumerate() {
            add_noise(var, &[(seed.fork("tensor", i as u64), alpha)])?;
        }
        Ok(())
    }

    /// The directional derivative `(L(θ + εz) - L(θ - εz)) / 2ε` along `z(seed)`; the parameters
    /// are back where they were, up to rounding.
    pub fn derivative(
        &self,
        bank: &Bank,
        seed: Seed,
        loss: &mut dyn FnMut() -> Result<f64>,
    ) -> Result<f64> {
        let eps = self.eps as f32;
        Self::perturb(bank, seed, eps)?;
        let above = loss()?;
        Self::perturb(bank, seed, -2. * eps)?;
        let below = loss()?;
        Self::perturb(bank, seed, eps)?;
        Ok((above - below) / (2. * self.eps))
    }

    /// One step of rate `rate`; returns the mean absolute derivative.
    pub fn step(
        &self,
        bank: &Bank,
        rate: f64,
        seed: Seed,
        loss: &mut dyn FnMut() -> Result<f64>,
    ) -> Result<f64> {
        let mut steps = Vec::with_capacity(self.directions);
        for k in 0..self.directions {
            let direction = seed.fork("direction", k as u64);
            steps.push((direction, self.derivative(bank, direction, loss)?));
        }
        for (direction, derivative) in &steps {
            let alpha = -rate * derivative / self.directions as f64;
            Self::perturb(bank, *direction, alpha as f32)?;
        }
        Ok(steps.iter().map(|(_, d)| d.abs()).sum::<f64>() / self.directions as f64)
    }
}
