//! Which layers to drop: the rankings that learned gates are measured against.
//!
//! All of them return the layers to drop in the order in which they would go, and none ever names
//! the first or the last layer: those do the work of entering and leaving the residual stream and
//! every paper on depth pruning keeps them.

use commons_core::Seed;
use commons_nn::model::{Decoder, ids_tensor};
use commons_ops::{self as ops, Tensor};

use crate::{Error, Result};

/// Checks that `count` layers can go while the first and the last stay.
///
/// # Errors
/// Naming the largest possible number.
pub fn check_removal(layers: usize, count: usize) -> Result<()> {
    let most = layers.saturating_sub(2);
    if count > most {
        return Err(Error::config(
            "remove",
            format!(
                "dropping {count} of {layers} blocks would delete all between the first and the \
                 last: drop at most {most} (a rate of {:.3})",
                most as f64 / layers.max(1) as f64
            ),
        ));
    }
    Ok(())
}

/// `count` inner layers drawn without replacement.
///
/// # Errors
/// As [`check_removal`].
pub fn random(layers: usize, count: usize, seed: Seed) -> Result<Vec<usize>> {
    check_removal(layers, count)?;
    let order = seed.fork("random-removal", 0).permutation(layers.saturating_sub(2));
    Ok(order.into_iter().take(count).map(|i| i + 1).collect())
}

/// Every so many layers, so that the kept ones are spread evenly over the depth.
///
/// # Errors
/// As [`check_removal`].
pub fn uniform(layers: usize, count: usize) -> Result<Vec<usize>> {
    check_removal(layers, count)?;
    let kept = super::spread_layers(layers, layers - count);
    Ok((0..layers).filter(|l| !kept.contains(l)).collect())
}

/// The inner layers with the lowest `importance: [layers]`, least important first; the earlier
/// layer goes first where two are equal. With block influence this is ShortGPT.
///
/// # Errors
/// As [`check_removal`].
pub fn least_important(importance: &[f64], count: usize) -> Result<Vec<usize>> {
    let layers = importance.len();
    check_removal(layers, count)?;
    let mut inner: Vec<usize> = (1..layers.saturating_sub(1)).collect();
    inner.sort_by(|&a, &b| importance[a].total_cmp(&importance[b]).then(a.cmp(&b)));
    inner.truncate(count);
    Ok(inner)
}

/// One layer after the other, each time the one whose loss costs the probe least (SLEB).
///
/// The states before each layer are computed once a round, so that a candidate costs only the
/// layers after it. `tick` is called with (layers dropped, candidates scored in this round).
///
/// # Errors
/// As [`check_removal`], and what `tick` returns.
pub fn greedy(
    model: &Decoder,
    probe: &Probe,
    count: usize,
    mut tick: impl FnMut(usize, usize) -> Result<()>,
) -> Result<Vec<usize>> {
    let layers = model.config.num_hidden_layers;
    check_removal(layers, count)?;
    let mut kept: Vec<usize> = (0..layers).collect();
    let mut dropped = Vec::with_capacity(count);
    for round in 0..count {
        let states = probe.states(model, &kept)?;
        let mut best = (f64::INFINITY, 1);
        for place in 1..kept.len() - 1 {
            tick(round, place - 1)?;
            let loss = probe.loss_from(model, &states[place], &kept[place + 1..])?;
            if loss < best.0 {
                best = (loss, place);
            }
        }
        dropped.push(kept.remove(best.1));
    }
    Ok(dropped)
}

/// A few windows of text on which sets of layers are compared without building their models.
#[derive(Debug, Clone)]
pub struct Probe {
    /// `[1, seq + 1]` each.
    windows: Vec<Tensor>,
}

impl Probe {
    /// The first `count` windows of `seq_len` predicted tokens.
    ///
    /// # Errors
    /// When `tokens` do not make one window.
    pub fn new(model: &Decoder, tokens: &[u32], seq_len: usize, count: usize) -> Result<Self> {
        let windows = tokens.windows(seq_len + 1).step_by(seq_len.max(1)).take(count);
        let windows = windows
            .map(|w| Ok(ids_tensor(&[w], &model.bank)?))
            .collect::<Result<Vec<Tensor>>>()?;
        if windows.is_empty() || seq_len == 0 {
            return Err(Error::config(
                "calibration",
                format!(
                    "{} tokens do not make one window of {seq_len} + 1: bring more text",
                    tokens.len()
                ),
            ));
        }
        Ok(Self { windows })
    }

    /// Mean next-token loss (nats per token) with only the layers `kept`, in that order.
    ///
    /// # Errors
    /// When a layer does not exist.
    pub fn loss(&self, model: &Decoder, kept: &[usize]) -> Result<f64> {
        let start = self.embed(model)?;
        self.loss_from(model, &start, kept)
    }

    fn embed(&self, model: &Decoder) -> Result<Vec<Tensor>> {
        let embed = |ids: &Tensor| -> Result<Tensor> {
            let inputs = ids.narrow(1, 0, ids.dim(1)? - 1)?.contiguous()?;
            Ok(model.embed(&inputs)?.detach())
        };
        self.windows.iter().map(embed).collect()
    }

    /// Hidden states before each of the layers `kept`, by place and window.
    fn states(&self, model: &Decoder, kept: &[usize]) -> Result<Vec<Vec<Tensor>>> {
        let mut states = vec![self.embed(model)?];
        for &layer in &kept[..kept.len() - 1] {
            let next = states[states.len() - 1].iter().map(|x| step(model, &[layer], x));
            states.push(next.collect::<Result<_>>()?);
        }
        Ok(states)
    }

    /// Mean loss when `states` (one per window) pass the layers `rest`.
    fn loss_from(&self, model: &Decoder, states: &[Tensor], rest: &[usize]) -> Result<f64> {
        let mut sum = 0.;
        for (x, ids) in states.iter().zip(&self.windows) {
            let targets = ids.narrow(1, 1, ids.dim(1)? - 1)?.contiguous()?;
            let hidden = step(model, rest, x)?;
            let loss = ops::no_grad(|| model.loss(&model.final_norm(&hidden)?, &targets))?;
            sum += f64::from(loss.to_scalar::<f32>()?);
        }
        Ok(sum / self.windows.len() as f64)
    }
}

/// `x` after the layers `layers`, without a graph.
fn step(model: &Decoder, layers: &[usize], x: &Tensor) -> Result<Tensor> {
    ops::no_grad(|| {
        let rotary = model.rotary(0, x.dim(1)?)?;
        let mut x = x.clone();
        for &layer in layers {
            x = model.block(layer, &x, &rotary, None)?;
        }
        Ok(x.detach())
    })
}
