use super::{Optimizer, check};
use crate::{par, simd, view};
use candle_core::{Result, Tensor, Var};

/// Adam with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of squared gradients.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled decay, in units of the learning rate.
    pub weight_decay: f64,
}

impl Default for AdamW {
    fn default() -> Self {
        Self { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 }
    }
}

/// State of one parameter under [`AdamW`].
#[derive(Debug, Clone)]
pub struct AdamWState {
    /// Steps taken.
    pub step: u64,
    /// Running mean of gradients, shaped like the parameter.
    pub mean: Tensor,
    /// Running mean of squared gradients, shaped like the parameter.
    pub square: Tensor,
}

impl Optimizer for AdamW {
    type State = AdamWState;

    fn init(&self, param: &Tensor) -> Result<AdamWState> {
        let zeros = || Tensor::zeros(param.shape(), param.dtype(), param.device());
        Ok(AdamWState { step: 0, mean: zeros()?, square: zeros()? })
    }

    fn step(&self, param: &Var, grad: &Tensor, scale: f32, state: &mut AdamWState) -> Result<()> {
        check("AdamW", param, grad)?;
        let t = (state.step + 1) as f64;
        let first = 1.0 - self.beta1.powf(t);
        let second = 1.0 - self.beta2.powf(t);
        if view::fused(&[param, grad, &state.mean, &state.square]) {
            let step = Step {
                scale,
                beta1: self.beta1 as f32,
                beta2: self.beta2 as f32,
                keep: (1.0 - self.lr * self.weight_decay) as f32,
                rate: (self.lr / first) as f32,
                root: (1.0 / second.sqrt()) as f32,
                eps: self.eps as f32,
            };
            view::read(grad, |g| {
                view::write(param, |p| {
                    view::write(&state.mean, |m| {
                        view::write(&state.square, |v| {
                            par::zip4(p, m, v, g, |p, m, v, g| {
                                simd::run(
                                    #[inline(always)]
                                    || step.run(p, m, v, g),
                                );
                            });
                            Ok(())
                        })
                    })
                })
            })?;
        } else {
            let g = (grad.detach() * f64::from(scale))?;
            state.mean = ((&state.mean * self.beta1)? + (&g * (1.0 - self.beta1))?)?;
            state.square = ((&state.square * self.beta2)? + (g.sqr()? * (1.0 - self.beta2))?)?;
            let root = ((&state.square / second)?.sqrt()? + self.eps)?;
            let update = ((&state.mean * (self.lr / first))? / root)?;
            let kept = (param.as_detached_tensor() * (1.0 - self.lr * self.weight_decay))?;
            param.set(&(kept - update)?)?;
        }
        state.step += 1;
        Ok(())
    }
}

#[derive(Clone, Copy)]
struct Step {
    scale: f32,
    beta1: f32,
    beta2: f32,
    keep: f32,
    rate: f32,
    root: f32,
    eps: f32,
}

impl Step {
    #[inline(always)]
    fn run(self, p: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32]) {
        for (((p, m), v), &g) in p.iter_mut().zip(m).zip(v).zip(g) {
            let g = g * self.scale;
            *m = self.beta1 * *m + (1.0 - self.beta1) * g;
            *v = self.beta2 * *v + (1.0 - self.beta2) * (g * g);
            *p = self.keep * *p - self.rate * *m / (v.sqrt() * self.root + self.eps);
        }
    }
}
