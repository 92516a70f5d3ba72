use super::{Optimizer, check};
use candle_core::{DType, Result, Tensor, Var};

/// Adafactor (Shazeer & Stern 2018, algorithm 4) without momentum: second moments of a matrix are
/// kept as row and column means, so the state is `rows + columns` numbers instead of their product.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Adafactor {
    /// Learning rate; multiplied by the parameter's root mean square if `relative`.
    pub lr: f64,
    /// Exponent of the second moment's decay `1 - t^-decay`.
    pub decay: f64,
    /// Added to squared gradients.
    pub eps: f64,
    /// Smallest root mean square a parameter counts as, if `relative`.
    pub min_rms: f64,
    /// Largest root mean square of an update.
    pub clip: f64,
    /// Whether steps are relative to the parameter's size.
    pub relative: bool,
    /// Decoupled decay, in units of the learning rate.
    pub weight_decay: f64,
}

impl Default for Adafactor {
    fn default() -> Self {
        Self {
            lr: 1e-2,
            decay: 0.8,
            eps: 1e-30,
            min_rms: 1e-3,
            clip: 1.0,
            relative: true,
            weight_decay: 0.0,
        }
    }
}

/// State of one parameter under [`Adafactor`].
#[derive(Debug, Clone)]
pub struct AdafactorState {
    /// Steps taken.
    pub step: u64,
    /// Second moments: means of the rows `[.., rows]` and of the columns `[.., columns]` of a
    /// matrix, or the whole of a vector twice the same.
    pub rows: Tensor,
    /// See `rows`.
    pub columns: Option<Tensor>,
}

impl Optimizer for Adafactor {
    type State = AdafactorState;

    fn init(&self, param: &Tensor) -> Result<AdafactorState> {
        let zeros = |dims: &[usize]| Tensor::zeros(dims, param.dtype(), param.device());
        let dims = param.dims();
        let (rows, columns) = match dims {
            [_, .., width] => {
                let height: usize = dims[..dims.len() - 1].iter().product();
                (zeros(&[height])?, Some(zeros(&[*width])?))
            }
            _ => (zeros(dims)?, None),
        };
        Ok(AdafactorState { step: 0, rows, columns })
    }

    fn step(
        &self,
        param: &Var,
        grad: &Tensor,
        scale: f32,
        state: &mut AdafactorState,
    ) -> Result<()> {
        check("Adafactor", param, grad)?;
        let t = (state.step + 1) as f64;
        let beta2 = 1.0 - t.powf(-self.decay);
        let grad = (grad.detach() * f64::from(scale))?;
        let square = (grad.sqr()? + self.eps)?;
        let blend = |old: &Tensor, new: Tensor| (old * beta2)? + (new * (1.0 - beta2))?;
        let update = match &mut state.columns {
            None => {
                state.rows = blend(&state.rows, square)?;
                (grad / state.rows.sqrt()?)?
            }
            Some(columns) => {
                let matrix = (state.rows.elem_count(), columns.elem_count());
                let square = square.reshape(matrix)?;
                state.rows = blend(&state.rows, square.mean(1)?)?;
                *columns = blend(columns, square.mean(0)?)?;
                let rows = state.rows.broadcast_div(&state.rows.mean_all()?)?;
                grad.reshape(matrix)?
                    .broadcast_div(&rows.sqrt()?.unsqueeze(1)?)?
                    .broadcast_div(&columns.sqrt()?.unsqueeze(0)?)?
                    .reshape(param.shape())?
            }
        };
        let p = param.as_detached_tensor();
        let clip = (rms(&update)? / self.clip).max(1.0);
        let size = if self.relative { rms(&p)?.max(self.min_rms) } else { 1.0 };
        let kept = (p * (1.0 - self.lr * self.weight_decay))?;
        param.set(&(kept - (update * (self.lr * size / clip))?)?)?;
        state.step += 1;
        Ok(())
    }
}

fn rms(x: &Tensor) -> Result<f64> {
    x.to_dtype(DType::F64)?.sqr()?.mean_all()?.sqrt()?.to_scalar()
}
