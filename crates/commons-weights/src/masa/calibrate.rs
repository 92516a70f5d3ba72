//! What calibration text says: how predictions drift from block to block, and which inputs the
//! projections see.

use std::ops::Range;

use commons_nn::model::{Decoder, ids_tensor, layer_prefix};
use commons_ops::{self as ops, DType, Tensor};

use crate::compress::Context;
use crate::linalg::{add_to, outer};
use crate::{Error, Result};

/// Statistics of a decoder on calibration text.
#[derive(Debug, Clone)]
pub struct Calibration {
    /// `KL(p_l ‖ p_{l+1})` between the predictions read off consecutive blocks, nats.
    pub drift: Vec<f64>,
    /// `E[x xᵀ]` of the input of the query, key and value projections, by layer, row-major.
    pub inputs: Vec<Vec<f64>>,
    /// The same of the input of the output projection.
    pub heads: Vec<Vec<f64>>,
}

impl Calibration {
    /// Runs the calibration text of `context` through `model` in windows of `seq_len` tokens.
    ///
    /// The prediction `p_l` of block `l` is the output head's on the mean over all tokens of the
    /// block's output, normed (section 4.1, our reading).
    ///
    /// # Errors
    /// When the text is shorter than two tokens.
    pub fn measure(model: &Decoder, seq_len: usize, context: &mut Context<'_>) -> Result<Self> {
        let tokens = context.calibration;
        if seq_len < 2 {
            return Err(Error::config("seq_len", format!("{seq_len} must be at least 2")));
        }
        if tokens.len() < 2 {
            return Err(Error::config(
                "calibration",
                "needs at least two tokens of text: give --data, or set whiten = false and groups = 1",
            ));
        }
        let layers = model.config.num_hidden_layers;
        let mut means: Vec<Option<Tensor>> = vec![None; layers];
        let mut inputs: Vec<Option<Tensor>> = vec![None; layers];
        let mut heads: Vec<Option<Tensor>> = vec![None; layers];
        let windows: Vec<&[u32]> = tokens.chunks(seq_len).filter(|w| w.len() > 1).collect();
        for (done, window) in windows.iter().enumerate() {
            context.tick("calibrating", done, windows.len())?;
            ops::no_grad(|| -> Result<()> {
                let ids = ids_tensor(&[window], &model.bank)?;
                let rotary = model.rotary(0, window.len())?;
                let mut x = model.embed(&ids)?.detach();
                for l in 0..layers {
                    let normed =
                        model.rms_norm(&format!("{}input_layernorm", layer_prefix(l)), &x)?;
                    add_to(&mut inputs[l], outer(&normed)?)?;
                    let read = model.attention_heads(l, &normed, &rotary, None)?;
                    add_to(&mut heads[l], outer(&read)?)?;
                    x = model.block(l, &x, &rotary, None)?.detach();
                    let sum = x.squeeze(0)?.sum(0)?.to_dtype(DType::F64)?;
                    add_to(&mut means[l], sum)?;
                }
                Ok(())
            })?;
        }
        let count: usize = windows.iter().map(|w| w.len()).sum();
        let scaled = |sums: Vec<Option<Tensor>>| -> Result<Vec<Vec<f64>>> {
            let each = sums.into_iter().flatten();
            each.map(|t| Ok(t.affine(1. / count as f64, 0.)?.flatten_all()?.to_vec1()?)).collect()
        };
        let means = scaled(means)?;
        let predictions =
            means.iter().map(|mean| prediction(model, mean)).collect::<Result<Vec<_>>>()?;
        let drift = predictions.windows(2).map(|p| divergence(&p[0], &p[1])).collect();
        Ok(Self { drift, inputs: scaled(inputs)?, heads: scaled(heads)? })
    }
}

/// The log-probabilities that the output head gives a mean state.
fn prediction(model: &Decoder, mean: &[f64]) -> Result<Vec<f64>> {
    let mean: Vec<f32> = mean.iter().map(|&v| v as f32).collect();
    let width = mean.len();
    let state = Tensor::from_vec(mean, (1, 1, width), model.bank.device())?;
    let logits: Vec<f32> =
        ops::no_grad(|| model.logits(&model.final_norm(&state)?))?.flatten_all()?.to_vec1()?;
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let log_sum =
        logits.iter().map(|&v| f64::from(v - top).exp()).sum::<f64>().ln() + f64::from(top);
    Ok(logits.into_iter().map(|v| f64::from(v) - log_sum).collect())
}

/// `Σ p (log p − log q)` of log-probabilities.
fn divergence(p: &[f64], q: &[f64]) -> f64 {
    p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>().max(0.)
}

/// Cuts `drift.len() + 1` blocks into `groups` runs at the largest drifts, the earlier of two that
/// are equal.
///
/// # Errors
/// When there are not that many blocks.
pub fn cut(drift: &[f64], groups: usize) -> Result<Vec<Range<usize>>> {
    let blocks = drift.len() + 1;
    if groups == 0 || groups > blocks {
        return Err(Error::config("groups", format!("{groups} is not in 1..={blocks}")));
    }
    let mut order: Vec<usize> = (0..drift.len()).collect();
    order.sort_by(|&a, &b| drift[b].total_cmp(&drift[a]).then(a.cmp(&b)));
    let mut ends: Vec<usize> = order[..groups - 1].iter().map(|&i| i + 1).chain([blocks]).collect();
    ends.sort_unstable();
    let mut start = 0;
    Ok(ends.into_iter().map(|end| std::mem::replace(&mut start, end)..end).collect())
}
