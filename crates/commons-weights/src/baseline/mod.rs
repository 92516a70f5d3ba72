//! What every method of this crate is measured against: dropping layers, and a small decoder
//! trained from scratch.
//!
//! Dropping is depth pruning in its plainest form (ShortGPT, LaCo and mergekit's `passthrough`
//! are its relatives): `K` of the `L` pretrained layers stay as they are, nothing is repeated.
//! A method that shares layers has to beat it at the same number of stored parameters.

pub mod removal;
pub mod scratch;
#[cfg(test)]
mod tests;

use commons_nn::bank::Bank;
use commons_nn::model::{Decoder, layer_prefix};
use commons_ops::Tensor;

use crate::{Error, Result};

/// `keep` layer indices spread evenly over `0..layers`, first and last included: the entries of
/// `linspace(0, layers - 1, keep)` rounded half to even.
///
/// Computed on integers, so that a half is a half on every machine. `keep == 1` gives layer 0 and
/// `keep >= layers` gives all of them.
pub fn spread_layers(layers: usize, keep: usize) -> Vec<usize> {
    if keep >= layers {
        return (0..layers).collect();
    }
    let Some(gaps) = keep.checked_sub(1).filter(|g| *g > 0) else {
        return (0..keep).collect();
    };
    let place = |i: usize| {
        let (whole, rest) = (i * (layers - 1) / gaps, i * (layers - 1) % gaps);
        let up = 2 * rest > gaps || (2 * rest == gaps && whole % 2 == 1);
        whole + usize::from(up)
    };
    (0..keep).map(place).collect()
}

/// The decoder with only the layers `keep` (strictly increasing), weights copied, no loop.
///
/// The result is plainly stored whatever the plan of `model`, shares no storage with it, and
/// keeps each layer's attention kind.
///
/// # Errors
/// When `keep` is empty, not strictly increasing or names a layer the model does not have.
pub fn drop_layers(model: &Decoder, keep: &[usize]) -> Result<Decoder> {
    let layers = model.config.num_hidden_layers;
    let increasing = keep.windows(2).all(|w| w[0] < w[1]);
    if keep.is_empty() || !increasing || keep.last().is_some_and(|&k| k >= layers) {
        return Err(Error::config(
            "keep",
            format!("{keep:?} must be increasing layer indices below {layers}, at least one"),
        ));
    }
    let mut config = model.config.clone();
    config.num_hidden_layers = keep.len();
    if !config.layer_types.is_empty() {
        config.layer_types = keep.iter().map(|&k| model.config.layer_types[k]).collect();
    }
    if !config.query_heads_per_kv_head.is_empty() {
        let groups = |&k: &usize| model.config.query_heads_per_kv_head[k].clone();
        config.query_heads_per_kv_head = keep.iter().map(groups).collect();
    }
    let mut bank = Bank::new(model.bank.device().clone());
    for (name, _) in config.weights() {
        if name == "lm_head.weight" && config.tie_word_embeddings {
            continue;
        }
        let source = match layer_weight(&name) {
            Some((at, matrix)) => format!("{}{matrix}", layer_prefix(keep[at])),
            None => name.clone(),
        };
        bank.insert(name, model.bank.weight(&source)?)?;
    }
    Ok(Decoder::new(config, bank)?)
}

/// Layer index and the name within the layer of `model.layers.{i}.{rest}`.
pub(crate) fn layer_weight(name: &str) -> Option<(usize, &str)> {
    let (index, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    Some((index.parse().ok()?, rest))
}

/// The number of layers at which a plain decoder, layers dropped evenly, stores nearest to `budget`
/// parameters; the larger of two that are equally near, at least one.
pub fn layers_for_budget(model: &Decoder, budget: usize) -> usize {
    let sizes = model.config.weights();
    let count = |pick: &dyn Fn(&str) -> bool| -> usize {
        sizes.iter().filter(|(n, _)| pick(n)).map(|(_, s)| s.iter().product::<usize>()).sum()
    };
    let tied = model.config.tie_word_embeddings;
    let outside = count(&|n| layer_weight(n).is_none() && !(tied && n == "lm_head.weight"));
    let layer = count(&|n| matches!(layer_weight(n), Some((0, _))));
    let layer = layer.max(1);
    let nearest = (budget.saturating_sub(outside) + layer / 2) / layer;
    nearest.clamp(1, model.config.num_hidden_layers)
}

/// The mean of weight `rest` over `layers`, of which there is at least one.
pub(crate) fn mean_weight(model: &Decoder, layers: &[usize], rest: &str) -> Result<Tensor> {
    let weight = |layer: usize| model.bank.weight(&format!("{}{rest}", layer_prefix(layer)));
    let mut sum = weight(layers[0])?.detach();
    for &layer in &layers[1..] {
        sum = (sum + weight(layer)?.detach())?;
    }
    Ok(if layers.len() == 1 { sum } else { sum.affine(1. / layers.len() as f64, 0.)? })
}
