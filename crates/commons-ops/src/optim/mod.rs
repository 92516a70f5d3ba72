//! Optimiser steps in place on a parameter's storage.
//!
//! A struct holds the hyperparameters, so a schedule is an assignment to `lr`; the state of each
//! parameter is a value of its own with public tensors, so it can be saved and restored.

mod adafactor;
mod adamw;
mod muon;
mod noise;
mod sgd;

pub use adafactor::{Adafactor, AdafactorState};
pub use adamw::{AdamW, AdamWState};
pub use muon::{Muon, MuonState};
pub use noise::add_noise;
pub use sgd::{Sgd, SgdState};

use candle_core::{Result, Tensor, Var, bail};

/// One optimiser rule.
pub trait Optimizer {
    /// What the rule remembers about a parameter.
    type State;

    /// The state before the first step of `param`.
    ///
    /// # Errors
    /// If the rule does not serve the parameter's shape, or out of memory.
    fn init(&self, param: &Tensor) -> Result<Self::State>;

    /// Steps `param` with `grad_scale · grad`. Gradient clipping is a factor here and costs no
    /// pass of its own.
    ///
    /// # Errors
    /// If shapes differ.
    fn step(
        &self,
        param: &Var,
        grad: &Tensor,
        grad_scale: f32,
        state: &mut Self::State,
    ) -> Result<()>;
}

fn check(op: &'static str, param: &Tensor, grad: &Tensor) -> Result<()> {
    if param.dims() != grad.dims() {
        bail!("{op}: gradient {:?} does not fit parameter {:?}", grad.dims(), param.dims())
    }
    Ok(())
}

#[cfg(test)]
mod tests;
