use super::{activation, linear};
use crate::Activation;
use crate::moe::{Dispatch, Expert};
use candle_core::{Result, Tensor, bail};

/// [`crate::gates`] as a candle graph.
///
/// # Errors
/// If the shapes do not fit.
pub fn gates(probabilities: &Tensor, dispatch: &Dispatch, renormalize: bool) -> Result<Tensor> {
    let shape = (dispatch.tokens(), dispatch.selection().active);
    let ids = Tensor::from_vec(dispatch.ids().to_vec(), shape, probabilities.device())?;
    let chosen = probabilities.gather(&ids, 1)?;
    if renormalize {
        return chosen.broadcast_div(&chosen.sum_keepdim(1)?);
    }
    Ok(chosen)
}

/// [`crate::router_balance`] with the factor of every expert's probabilities, as a candle graph.
///
/// # Errors
/// If the shapes do not fit.
pub fn router_balance(
    probabilities: &Tensor,
    dispatch: &Dispatch,
    coefficients: &[f32],
) -> Result<Tensor> {
    let row =
        |t| if dispatch.counts(t) { coefficients.to_vec() } else { vec![0.; coefficients.len()] };
    let all: Vec<f32> = (0..dispatch.tokens()).flat_map(row).collect();
    let all = Tensor::from_vec(all, probabilities.shape(), probabilities.device())?;
    (probabilities * all.to_dtype(probabilities.dtype())?)?.sum_all()
}

/// [`crate::moe`] as a candle graph in which every expert sees every token, the weights of those
/// that did not choose it being zero.
///
/// # Errors
/// If the shapes do not fit.
pub fn moe(
    x: &Tensor,
    gates: &Tensor,
    dispatch: &Dispatch,
    experts: &[Expert],
    act: Activation,
) -> Result<Tensor> {
    let tokens = dispatch.tokens();
    let rows = x.reshape((tokens, x.elem_count() / tokens.max(1)))?;
    let mut sum: Option<Tensor> = None;
    for (e, expert) in experts.iter().enumerate() {
        let chosen = dispatch.ids().iter().enumerate().map(|(place, &id)| {
            f64::from(u8::from(id as usize == e && dispatch.row(place).is_some()))
        });
        let chosen = Tensor::from_vec(chosen.collect::<Vec<f64>>(), gates.shape(), x.device())?;
        let weight = (gates * chosen.to_dtype(gates.dtype())?)?.sum_keepdim(1)?;
        let up = linear(&rows, &expert.up, expert.up_bias.as_ref())?;
        let inner = match &expert.gate {
            Some(gate) => (activation(&linear(&rows, gate, None)?, act)? * up)?,
            None => activation(&up, act)?,
        };
        let y = linear(&inner, &expert.down, expert.down_bias.as_ref())?;
        let y = y.broadcast_mul(&weight)?;
        sum = Some(match sum {
            Some(sum) => (sum + y)?,
            None => y,
        });
    }
    match sum {
        Some(sum) => sum.reshape(x.shape()),
        None => bail!("moe: no experts"),
    }
}
