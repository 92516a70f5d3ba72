//! A decoder's key and value heads, pooled and shared by groups that the norms of its keys decide.

use commons_core::table::{Table, Unit};
use commons_core::{Seed, cells};
use commons_nn::model::{Decoder, ids_tensor, layer_prefix};
use commons_ops as ops;

use super::allocation::{Dynamic, dead, entropy, key_driven, key_norms, next_cache, uniform};
use super::pool::pool_weights;
use super::{KdgqaConfig, Scheme};
use crate::foldgpt::Tick;
use crate::{Error, Result};

/// A converted decoder and why its groups are what they are.
#[derive(Debug)]
pub struct Converted {
    /// The model; unequal groups stand in its configuration.
    pub model: Decoder,
    /// Summed norms of the keys, `[layers][kv heads]`; empty if no text was looked at.
    pub norms: Vec<Vec<f64>>,
    /// Query heads of every key head, `[layers][kv heads]`.
    pub groups: Vec<Vec<usize>>,
}

/// The number of key and value heads that `model` is to have.
///
/// # Errors
/// When the heads do not pool into the number asked for (naming the nearest that does), nothing
/// would change, or the scheme is one of training only.
pub(super) fn check(config: &KdgqaConfig, model: &Decoder) -> Result<usize> {
    let from = model.config.num_key_value_heads;
    let to = config.groups(from)?;
    if !model.config.query_heads_per_kv_head.is_empty() {
        return Err(Error::config(
            "model",
            "has unequal groups already: write it out with `commons materialize` first",
        ));
    }
    if to == from && config.scheme == Scheme::Gqa {
        return Err(Error::config(
            "kv_heads",
            format!("{from} is what the model has: give fewer, or a scheme that shares them anew"),
        ));
    }
    if config.scheme == Scheme::Pgqa {
        return Err(Error::config(
            "scheme",
            "pgqa perturbs a model while it is trained and leaves equal groups: use gqa",
        ));
    }
    Ok(to)
}

/// Pools the heads of `model` and fixes the groups on `calibration`.
///
/// A causal model must not decide by what it reads (its cache holds keys of earlier tokens), so the
/// decision is made once: layer by layer, on windows of text that have passed the layers below as
/// already decided.
///
/// # Errors
/// When the heads do not pool into the number asked for (naming the nearest that does), nothing
/// would change, the scheme needs text and there is none, or the scheme is one of training only.
pub fn convert(
    config: &KdgqaConfig,
    model: &Decoder,
    calibration: &[u32],
    seed: Seed,
    tick: &mut Tick<'_>,
) -> Result<Converted> {
    let (heads, from) = (model.config.num_attention_heads, model.config.num_key_value_heads);
    let to = check(config, model)?;
    let layers = model.config.num_hidden_layers;
    let mut pooled = Decoder { config: model.config.clone(), bank: model.bank.deep_clone()? };
    pooled.config.num_key_value_heads = to;
    let names = (0..layers).flat_map(|l| {
        ["k_proj.weight", "v_proj.weight", "k_proj.bias", "v_proj.bias"]
            .map(|m| format!("{}self_attn.{m}", layer_prefix(l)))
    });
    let names: Vec<String> = names.filter(|n| pooled.bank.contains(n)).collect();
    pool_weights(&mut pooled.bank, &names, from, to)?;
    let equal = vec![uniform(heads, to); layers];
    if config.scheme == Scheme::Gqa || to == 1 {
        let model = Decoder::new(pooled.config, pooled.bank)?;
        return Ok(Converted { model, norms: Vec::new(), groups: equal });
    }
    let (norms, groups) = ops::no_grad(|| decide(config, &mut pooled, calibration, seed, tick))?;
    let config = pooled.config.with_groups(groups.clone())?;
    Ok(Converted { model: Decoder::new(config, pooled.bank)?, norms, groups })
}

type Decision = (Vec<Vec<f64>>, Vec<Vec<usize>>);

fn decide(
    config: &KdgqaConfig,
    model: &mut Decoder,
    calibration: &[u32],
    seed: Seed,
    tick: &mut Tick<'_>,
) -> Result<Decision> {
    let windows: Vec<&[u32]> =
        calibration.chunks_exact(config.seq_len).take(config.calibration_windows).collect();
    if windows.is_empty() {
        return Err(Error::config(
            "calibration",
            format!(
                "has {} tokens, a window of seq_len takes {}: bring text, or use scheme gqa, \
                 which needs none",
                calibration.len(),
                config.seq_len
            ),
        ));
    }
    let (layers, heads) = (model.config.num_hidden_layers, model.config.num_attention_heads);
    let groups = model.config.num_key_value_heads;
    model.config.query_heads_per_kv_head = vec![uniform(heads, groups); layers];
    let rotary = model.rotary(0, config.seq_len)?;
    let mut x = model.embed(&ids_tensor(&windows, &model.bank)?)?;
    let mut all = Vec::with_capacity(layers);
    for layer in 0..layers {
        tick("key norms", layer, layers)?;
        let keys = model.keys(layer, &x)?;
        let norms = key_norms(&keys)?;
        let mut rng = seed.fork("groups", layer as u64).rng();
        let sizes = match config.scheme {
            Scheme::DgqaDiff | Scheme::DgqaEma => {
                let dynamic = match config.scheme {
                    Scheme::DgqaDiff => Dynamic::Difference,
                    _ => Dynamic::Ema,
                };
                let (mut cache, mut sizes) = (vec![0.; groups], Vec::new());
                for window in 0..windows.len() {
                    let n = key_norms(&keys.narrow(0, window, 1)?)?;
                    sizes = dynamic.allocate(heads, &n, &cache, &mut rng);
                    next_cache(&mut cache, &n, config.window);
                }
                sizes
            }
            scheme => {
                let mut sizes = key_driven(heads, &norms);
                if scheme == Scheme::Random {
                    rng.shuffle(&mut sizes);
                }
                sizes
            }
        };
        model.config.query_heads_per_kv_head[layer] = sizes;
        all.push(norms);
        x = model.block(layer, &x, &rotary, None)?;
    }
    Ok((all, std::mem::take(&mut model.config.query_heads_per_kv_head)))
}

impl Converted {
    /// One line per layer: key norms, query heads of each key head, entropy, heads nobody reads.
    pub fn table(&self) -> Table {
        let mut table = Table::new("Query heads per key-value head")
            .column("layer", Unit::Plain)
            .column("query heads", Unit::Plain)
            .column("key norms", Unit::Plain)
            .column("entropy, bits", Unit::Plain)
            .column("unread", Unit::Plain);
        for (layer, sizes) in self.groups.iter().enumerate() {
            let norms = self.norms.get(layer).map(|row| {
                row.iter().map(|n| commons_core::format::number(*n)).collect::<Vec<_>>().join(" ")
            });
            let shown: Vec<String> = sizes.iter().map(ToString::to_string).collect();
            table.push(cells![layer, shown.join("+"), norms, entropy(sizes), dead(sizes)]);
        }
        table
    }
}
