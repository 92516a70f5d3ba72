//! Gradients of a loss, and arithmetic on them.

use crate::{tape, view};
use candle_core::{Result, Tensor, TensorId, bail};
use std::collections::HashMap;

/// The gradients of all parameters ([`candle_core::Var`]) that a loss depends on.
#[derive(Debug, Default, Clone)]
pub struct Grads(HashMap<TensorId, Tensor>);

impl Grads {
    /// The gradient of a parameter, if the loss depends on it.
    #[must_use]
    pub fn get(&self, parameter: &Tensor) -> Option<&Tensor> {
        self.0.get(&parameter.id())
    }

    /// Takes the gradient of a parameter out.
    pub fn remove(&mut self, parameter: &Tensor) -> Option<Tensor> {
        self.0.remove(&parameter.id())
    }

    /// Sets the gradient of a parameter; returns the old one.
    pub fn insert(&mut self, parameter: &Tensor, grad: Tensor) -> Option<Tensor> {
        self.0.insert(parameter.id(), grad)
    }

    /// How many parameters have a gradient.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no parameter has a gradient.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds the gradients of another loss, for instance of the next micro-batch.
    ///
    /// # Errors
    /// If the two hold gradients of different shape for one parameter.
    pub fn accumulate(&mut self, other: Self) -> Result<()> {
        for (id, grad) in other.0 {
            match self.0.get_mut(&id) {
                // Someone may hold a clone of the old gradient, so it is replaced, not written.
                Some(sum) => *sum = (&*sum + &grad)?,
                None => {
                    self.0.insert(id, grad);
                }
            }
        }
        Ok(())
    }

    /// `√Σ g²` over all gradients.
    ///
    /// # Errors
    /// Only if candle fails.
    pub fn global_norm(&self) -> Result<f64> {
        // Sums are added in order of size: the map's own order changes from run to run.
        let mut squares = self.0.values().map(sum_of_squares).collect::<Result<Vec<_>>>()?;
        squares.sort_by(f64::total_cmp);
        Ok(squares.iter().sum::<f64>().sqrt())
    }

    /// Multiplies every gradient by `factor`.
    ///
    /// # Errors
    /// Only if candle fails.
    pub fn scale_(&mut self, factor: f32) -> Result<()> {
        for grad in self.0.values_mut() {
            *grad = (&*grad * f64::from(factor))?;
        }
        Ok(())
    }
}

impl FromIterator<(TensorId, Tensor)> for Grads {
    fn from_iter<I: IntoIterator<Item = (TensorId, Tensor)>>(iter: I) -> Self {
        Self(iter.into_iter().collect())
    }
}

fn sum_of_squares(grad: &Tensor) -> Result<f64> {
    if view::fused(&[grad]) {
        return view::read(grad, |data| {
            Ok(data
                .chunks(4096)
                .map(|chunk| f64::from(chunk.iter().map(|g| g * g).sum::<f32>()))
                .sum())
        });
    }
    grad.to_dtype(candle_core::DType::F64)?.sqr()?.sum_all()?.to_scalar()
}

/// The gradients of `loss` (one element) with respect to every parameter it depends on.
///
/// Ops of this crate are differentiated by an engine of its own; a graph with other candle ops in
/// it takes candle's engine, with equal results and more copying.
///
/// # Errors
/// If `loss` has more than one element, or an op in the graph has no backward pass.
pub fn backward(loss: &Tensor) -> Result<Grads> {
    if loss.elem_count() != 1 {
        bail!("backward: the loss must have one element, got {:?}", loss.dims())
    }
    tape::run(loss, loss.detach().ones_like()?)
}

/// Runs `f` without recording this crate's fused ops, for evaluation with less memory.
pub fn no_grad<T>(f: impl FnOnce() -> T) -> T {
    tape::unrecorded(f).0
}
