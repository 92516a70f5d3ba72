//! The looped block: which pretrained layers each unique layer is made from.

use commons_core::Seed;
use commons_nn::bank::Bank;
use commons_nn::model::{Decoder, DecoderConfig, Family, layer_prefix};
use commons_ops::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::baseline::{layer_weight, mean_weight, spread_layers};
use crate::{Error, Result};

/// How a unique layer is initialised from the pretrained ones (section 2.2 of the paper).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Init {
    /// Unique layer `j` is pretrained layer `round(linspace(0, L−1, K)[j])`.
    Stepwise,
    /// The mean of all layers tied to it: `Φ'_j = (1/B) Σ_b Φ_{j+bK}`.
    Average,
    /// The first `K` layers.
    Lower,
    /// The last `K` layers.
    Upper,
    /// `K` layers drawn without replacement, in their order.
    Random,
    /// Matrices fitted together with their low-rank terms: the least `Σ_ℓ ‖W_ℓ − W' − B_ℓ A_ℓ‖²` found by
    /// taking turns, or with [`super::LoraInit::WhitenedSvd`] the least `Σ_ℓ ‖(W_ℓ − W' − B_ℓ A_ℓ) L_ℓ‖² /
    /// ‖W_ℓ L_ℓ‖²`; the mean where there are no terms (our addition). Beside the mean of two matrices
    /// both terms correct the same `r` directions of their difference, one up, one down; fitted
    /// together they correct `2r`.
    #[default]
    Fitted,
}

/// A stack of `layers = loops · unique` layers in which depth `ℓ` uses unique layer `ℓ mod K`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Looping {
    /// `B`, how often the block is passed.
    pub loops: usize,
    /// `K`, layers stored.
    pub unique: usize,
    /// Pretrained layers whose mean initialises each unique layer.
    pub sources: Vec<Vec<usize>>,
}

impl Looping {
    /// Lays `layers` pretrained layers out as `loops` passes through one block.
    ///
    /// # Errors
    /// When `loops` is zero or does not divide `layers`.
    pub fn new(layers: usize, loops: usize, init: Init, seed: Seed) -> Result<Self> {
        if loops == 0 || !layers.is_multiple_of(loops) {
            let divisors: Vec<usize> = (1..=layers).filter(|b| layers.is_multiple_of(*b)).collect();
            return Err(Error::config(
                "loops",
                format!(
                    "{loops} does not divide {layers} layers: take one of {divisors:?}, or set `thin` to drop layers first"
                ),
            ));
        }
        let unique = layers / loops;
        let single = |picked: Vec<usize>| picked.into_iter().map(|l| vec![l]).collect();
        let sources = match init {
            Init::Stepwise => single(spread_layers(layers, unique)),
            // Norms that are shared are averaged where matrices are fitted.
            Init::Average | Init::Fitted => {
                (0..unique).map(|j| (0..loops).map(|b| j + b * unique).collect()).collect()
            }
            Init::Lower => single((0..unique).collect()),
            Init::Upper => single((layers - unique..layers).collect()),
            Init::Random => {
                let mut picked = seed.fork("looped-layers", 0).permutation(layers);
                picked.truncate(unique);
                picked.sort_unstable();
                single(picked)
            }
        };
        Ok(Self { loops, unique, sources })
    }

    /// The unique layer used at `depth` (CYCLE sharing).
    pub fn unique_at(&self, depth: usize) -> usize {
        depth % self.unique
    }

    /// Refuses to tie layers of different attention kinds: a layer that learned to look through a
    /// window does not stand in for one that sees everything.
    pub(super) fn check_kinds(&self, config: &DecoderConfig) -> Result<()> {
        for (j, sources) in self.sources.iter().enumerate() {
            let depths = (0..self.loops).map(|b| j + b * self.unique);
            let all: Vec<usize> = sources.iter().copied().chain(depths).collect();
            if let Some(&other) =
                all.iter().find(|&&l| config.is_local(l) != config.is_local(all[0]))
            {
                return Err(Error::config(
                    "loops",
                    format!(
                        "would put layers {} and {other}, of different attention kinds, into one: \
                         let the layers of a loop be a multiple of the pattern, and take init fitted, average or lower",
                        all[0]
                    ),
                ));
            }
        }
        Ok(())
    }

    /// The initial value of weight `matrix` (relative to its layer) of unique layer `j`.
    pub(super) fn initial(&self, model: &Decoder, j: usize, matrix: &str) -> Result<Tensor> {
        mean_weight(model, &self.sources[j], matrix)
    }
}

/// Layers to keep so that `loops` divides their number, spread evenly.
pub fn thinned_layers(layers: usize, loops: usize) -> Result<Vec<usize>> {
    if loops == 0 || loops > layers {
        return Err(Error::config("loops", format!("{loops} is not in 1..={layers}")));
    }
    Ok(spread_layers(layers, layers / loops * loops))
}

/// The same function with the gains of the norms before attention and feed-forward multiplied into
/// the columns of the matrices that read them, and the gains set to one.
///
/// Averaging a gain and a matrix separately is not averaging their product; this removes the
/// difference, and makes tied gains equal.
pub fn fold_gains(model: &Decoder) -> Result<Decoder> {
    let config = &model.config;
    let gemma = config.model_type == Family::Gemma3;
    let feed_forward = if gemma { "pre_feedforward_layernorm" } else { "post_attention_layernorm" };
    let readers: [(&str, &[&str]); 2] = [
        ("input_layernorm", &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
        (feed_forward, &["mlp.gate_proj", "mlp.up_proj"]),
    ];
    let mut bank: Bank = model.bank.materialize()?;
    for layer in 0..config.num_hidden_layers {
        let p = layer_prefix(layer);
        for (norm, modules) in readers {
            let name = format!("{p}{norm}.weight");
            let stored = model.bank.weight(&name)?.detach();
            // Gemma stores the gain minus one.
            let offset = if gemma { 1. } else { 0. };
            let gain = stored.affine(1., offset)?;
            for module in modules {
                let matrix = format!("{p}{module}.weight");
                let folded = model.bank.weight(&matrix)?.detach().broadcast_mul(&gain)?;
                bank.insert(matrix, folded)?;
            }
            bank.insert(name, gain.affine(0., 1. - offset)?)?;
        }
    }
    Ok(Decoder::new(config.clone(), bank)?)
}

/// Name of a stored weight of unique layer `j`.
pub fn loop_part(j: usize, weight: &str) -> String {
    format!("{}loop.{j}.{weight}", commons_nn::bank::PART)
}

/// Names within a layer of all its weights, in model order.
pub(super) fn layer_weights(config: &DecoderConfig) -> Vec<(String, Vec<usize>)> {
    config
        .weights()
        .into_iter()
        .filter_map(|(name, shape)| match layer_weight(&name) {
            Some((0, rest)) => Some((rest.to_owned(), shape)),
            _ => None,
        })
        .collect()
}
