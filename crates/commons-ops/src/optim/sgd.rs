use super::{Optimizer, check};
use crate::{par, view};
use candle_core::{Result, Tensor, Var};

/// Gradient descent with momentum (Sutskever et al. 2013, in the form of PyTorch's `SGD`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sgd {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the velocity; 0 keeps none.
    pub momentum: f64,
    /// Whether to look ahead along the velocity.
    pub nesterov: bool,
    /// L2 penalty added to the gradient.
    pub weight_decay: f64,
}

impl Default for Sgd {
    fn default() -> Self {
        Self { lr: 1e-2, momentum: 0.0, nesterov: false, weight_decay: 0.0 }
    }
}

/// State of one parameter under [`Sgd`].
#[derive(Debug, Clone)]
pub struct SgdState {
    /// Velocity, shaped like the parameter; `None` without momentum.
    pub velocity: Option<Tensor>,
}

impl Optimizer for Sgd {
    type State = SgdState;

    fn init(&self, param: &Tensor) -> Result<SgdState> {
        let velocity = match self.momentum > 0.0 {
            true => Some(Tensor::zeros(param.shape(), param.dtype(), param.device())?),
            false => None,
        };
        Ok(SgdState { velocity })
    }

    fn step(&self, param: &Var, grad: &Tensor, scale: f32, state: &mut SgdState) -> Result<()> {
        check("Sgd", param, grad)?;
        if !view::fused(&[param, grad]) {
            return self.composed(param, grad, scale, state);
        }
        let (rate, decay) = (self.lr as f32, self.weight_decay as f32);
        let momentum = self.momentum as f32;
        let nesterov = self.nesterov;
        view::read(grad, |g| {
            view::write(param, |p| match &state.velocity {
                None => {
                    par::zip2(p, g, |p, g| {
                        for (p, g) in p.iter_mut().zip(g) {
                            *p -= rate * (g * scale + decay * *p);
                        }
                    });
                    Ok(())
                }
                Some(velocity) => view::write(velocity, |v| {
                    par::zip3(p, v, g, |p, v, g| {
                        for ((p, v), g) in p.iter_mut().zip(v).zip(g) {
                            let g = g * scale + decay * *p;
                            *v = momentum * *v + g;
                            let step = if nesterov { g + momentum * *v } else { *v };
                            *p -= rate * step;
                        }
                    });
                    Ok(())
                }),
            })
        })
    }
}

impl Sgd {
    fn composed(&self, param: &Var, grad: &Tensor, scale: f32, state: &mut SgdState) -> Result<()> {
        let p = param.as_detached_tensor();
        let g = ((grad.detach() * f64::from(scale))? + (&p * self.weight_decay)?)?;
        let step = match &mut state.velocity {
            None => g,
            Some(velocity) => {
                *velocity = ((&*velocity * self.momentum)? + &g)?;
                match self.nesterov {
                    true => (g + (&*velocity * self.momentum)?)?,
                    false => velocity.clone(),
                }
            }
        };
        param.set(&(p - (step * self.lr)?)?)
    }
}
