//! A few matrices per projection of attention, mixed by every layer in its own proportion.
//!
//! # Paper
//! *Share Your Attention: Transformer Weight Sharing via Matrix-based Dictionary Learning*, 2025,
//! [arXiv 2508.04581](https://arxiv.org/abs/2508.04581). Its appendix was not available to us.
//!
//! # Problem
//! The attention projections of all layers together are large and alike. Most of them should go
//! without losing quality, in models trained from scratch and in pretrained ones.
//!
//! # Method
//! For each kind of projection `P ∈ {Q, K, V, O}` the `L` layers share `S` atoms,
//!
//! ```text
//! (1)  Ŵ_l = Σ_s c_{l,s} D_s,       1 − S(dh + L)/(L·dh) ≈ 1 − S/L of the parameters go.
//! ```
//!
//! *From scratch*, atoms and coefficients are learned by back-propagation alone. While training, a
//! network of three linear maps makes `c_l` from an embedding `e_l` of the layer
//! ([`CoefficientNet`]); afterwards only `c` is stored. *For a pretrained model* the atoms are the
//! principal directions of the layers' weights, no mean removed ([`MatrixPca`]):
//!
//! ```text
//! (2)  G_{lm} = ⟨W_l, W_m⟩ = V Λ Vᵀ,   D_s = Σ_l v_{ls} W_l / √λ_s,   c_{l,s} = √λ_s v_{ls},
//!      Σ_l ‖W_l − Ŵ_l‖² = Σ_{s>S} λ_s,
//! ```
//!
//! within groups of blocks between which predictions drift little: with `p_l` the output head's
//! prediction from the mean output of block `l`, cuts are where `KL(p_l ‖ p_{l+1})` is largest
//! ([`cut`]). What the atoms leave gets a low-rank term that is best for the inputs the weight
//! sees, `E[x xᵀ] = L Lᵀ`:
//!
//! ```text
//! (3)  (W_l − Ŵ_l) L = U Σ Vᵀ,   ΔŴ_l = (U_r Σ_r)(V_rᵀ L⁻¹),
//! ```
//!
//! with more rank where the singular values are larger.
//!
//! # Shared / kept apart
//! Shared: the atoms `bank.masa.{q,k,v,o}….atom.{s}`, among the layers of a group. Kept apart: the
//! coefficients of every layer (plan entry `combine`), its low-rank terms, biases, norms, the
//! feed-forward part, and the key/value cache, which this method does not shrink.
//!
//! # Claim
//! With a third of the attention parameters a model trained from scratch is as good as the whole
//! one and better than other ways to that size (table 1); a pretrained model converted at 20 % has
//! a lower perplexity than with whitened SVD per layer (table 5).
//!
//! # Here
//!
//! Measured on 2026-11-27T08:53:42Z with the recipe `full` (seed 0) in 55 min 03 s on AMD EPYC (2 threads, avx512, 23.5 GiB of memory,
//! of which 3.16 GiB were used), Commons 0.1.0.
//!
//! | claim                                                                                  | paper                                         | measured | baseline | needed             | found (95 % interval)         | verdict             |
//! | -------------------------------------------------------------------------------------- | --------------------------------------------- | -------: | -------: | ------------------ | ----------------------------- | ------------------- |
//! | from scratch, a third of the attention parameters is as good as all (MASA-QKVO)        | 72.8 against 76.1 perplexity (table 1, 110 M) |    7.504 |    7.325 | ≤ 1 × baseline     | 1.025 (0.7916 to 1.259)       | fails (not settled) |
//! | from scratch, half of the attention parameters is better than all (MASA-QKV)           | 72.1 against 76.1 (table 1)                   |    7.392 |    7.325 | ≤ 1 × baseline     | 1.01 (0.8647 to 1.155)        | fails (not settled) |
//! | at equal parameters a dictionary beats repeating the first layers all over             | 72.8 against 79.0 (table 1)                   |    7.504 |    7.134 | ≤ 1 × baseline     | 1.052 (0.8542 to 1.25)        | fails (not settled) |
//! | at equal parameters a dictionary beats sharing among neighbours                        | 72.8 against 80.4 (table 1)                   |    7.504 |    7.244 | ≤ 1 × baseline     | 1.036 (0.8525 to 1.219)       | fails (not settled) |
//! | at equal parameters a dictionary beats low-rank projections                            | 72.8 against 83.3 (table 1)                   |    7.504 |    7.893 | ≤ 1 × baseline     | 0.9511 (0.779 to 1.123)       | holds (not settled) |
//! | a training step takes at most a tenth longer than with whole projections               | throughput −8.3 % (section 5)                 |   0.2163 |   0.2231 | ≤ 1.1 × baseline   | 0.9706 (0.793 to 1.148)       | holds (not settled) |
//! | a vision transformer with a third of the attention loses at most half a point          | +2.35 points on CIFAR-100 (d = 64, 12 layers) |    0.316 |   0.3142 | ≥ baseline − 0.005 | 0.001833 (-0.0475 to 0.05116) | holds (not settled) |
//! | converted at 20 % without training, perplexity is below that of whitened SVD per layer | 12.6 against 15.1 (Llama-3.2-1B)              |    33.57 |    28.95 | ≤ 1 × baseline     | 1.159                         | fails (one seed)    |
//! | the whitened low-rank terms lower the perplexity of the atoms alone                    | in every ablation                             |    33.57 |     4174 | ≤ 1 × baseline     | 0.008042                      | holds (one seed)    |
//!
//! # Differs
//! * Embeddings `e ∈ R^64`, hidden width 64, GELU; `c_l` is the network's output plus a constant
//!   start of norm one, 97 % of its energy on the atom of the layer's place in the depth. The body
//!   of the paper gives none of this.
//! * Low-rank baseline at the parameters of MASA-QKVO: rank `dS/(2L)`, not `d/3`, which would keep
//!   two thirds. Grouped-query attention cannot get as small by itself; it has one key/value head.
//! * Atoms of a pretrained model are taken one by one where eigenvalue times mean square input per
//!   parameter is largest, and ranks likewise by squared singular value, until the budget is spent;
//!   coefficients and low-rank terms count in it. [`Config::atoms_share`] splits the budget.
//! * With `atoms_share = 0` nothing is shared and the same code is whitened SVD per layer
//!   (SVD-LLM), with `whiten = false` plain SVD: the baselines.
//! * Healing after conversion is our addition; the paper's conversion needs no training. Atoms are stored
//!   with the scale of the weights, not orthonormal, for the steps of AdamW are as large whatever it is.
//! * The vision transformer has 32 % fewer parameters, not 45 %: attention is about half of it, and
//!   only attention is shared.
//! * The times measured are those of training; the paper's are of inference, where our products are
//!   written out or composed once.
//!
//! # Use
//! `commons train --arch mini --atoms 4 -o masa` trains a decoder whose projections are mixed from
//! four atoms each ([`Dictionaries`]). A finished one is converted by
//! `commons compress --method masa`, or in Rust:
//!
//! ```
//! use commons_core::Seed;
//! use commons_nn::model::{Decoder, DecoderConfig};
//! use commons_weights::masa::{Config, Masa};
//! use commons_weights::{Compress, Context};
//!
//! let text: Vec<u32> = (0..256).map(|i| i * i % 61).collect();
//! let mut context = Context { calibration: &text, seed: 0, stop: Default::default(), progress: &mut |_, _, _| {} };
//! let model = Decoder::init(DecoderConfig::llama(64, 32, 6, 4, 2, 48), Seed::new(0))?;
//! let config = Config { ratio: 0.3, groups: 2, seq_len: 64, ..Config::default() };
//! let shared = Masa.share(&config, &model, &mut context)?;
//! assert!(shared.model.bank.stored() < model.bank.stored());
//! # Ok::<(), commons_weights::Error>(())
//! ```

mod calibrate;
mod convert;
mod dictionary;
mod evidence;
mod fresh;
mod net;
mod pca;
pub mod study;
mod tables;
#[cfg(test)]
mod tests;
pub mod vision;

use commons_nn::model::{Decoder, DecoderConfig};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use calibrate::{Calibration, cut};
pub use convert::{Budget, Converted, Family, Outcome, convert};
pub use dictionary::{Copying, Projection, Start, atom_part, coefficient_part, initialise, share};
pub use evidence::Evidence;
pub use fresh::Dictionaries;
pub use net::{CoefficientNet, Made, NetConfig};
pub use pca::MatrixPca;

use crate::compress::{Compress, Context, Shared};
use crate::heal::HealConfig;
use crate::{Error, Result};

/// How the parameters of low-rank terms are spread over weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Ranks {
    /// Where the next singular value is largest for its cost.
    #[default]
    Adaptive,
    /// The same share of every weight.
    Uniform,
}

/// What healing may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Trainable {
    /// Everything stored.
    #[default]
    All,
    /// Atoms, coefficients and low-rank terms only.
    Shared,
}

/// Options of [`Masa`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Share of the parameters of the shared projections to remove, in 0..1.
    pub ratio: f64,
    /// Projections that share: `["q", "k", "v", "o"]`, or without some.
    pub share: Vec<Projection>,
    /// Groups of consecutive blocks with dictionaries of their own.
    pub groups: usize,
    /// Share of the remaining parameters that are atoms, the rest being low-rank terms. 1 refines
    /// nothing; 0 shares nothing and is a singular value decomposition per layer.
    pub atoms_share: f64,
    /// Choose low-rank terms for the inputs that calibration text gives, not for the weights alone.
    pub whiten: bool,
    /// How ranks are spread.
    pub ranks: Ranks,
    /// Added to the autocorrelation's diagonal, as a share of its mean.
    pub ridge: f64,
    /// Tokens of a calibration window.
    pub seq_len: usize,
    /// What healing trains.
    pub trainable: Trainable,
    /// The training that follows.
    pub heal: HealConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            ratio: 0.2,
            share: Projection::ALL.to_vec(),
            groups: 6,
            atoms_share: 0.7,
            whiten: true,
            ranks: Ranks::default(),
            ridge: 1e-3,
            seq_len: 512,
            trainable: Trainable::default(),
            heal: HealConfig::default(),
        }
    }
}

impl Config {
    /// Checks the options against a model.
    ///
    /// # Errors
    /// Naming the option and what would work.
    pub fn check(&self, model: &DecoderConfig) -> Result<()> {
        self.heal.check()?;
        let unit = |v: f64| v.is_finite() && (0. ..=1.).contains(&v);
        if !(unit(self.ratio) && self.ratio > 0. && self.ratio < 1.) {
            return Err(Error::config(
                "ratio",
                format!("{} is not between 0 and 1: 0.2 removes a fifth", self.ratio),
            ));
        }
        if !unit(self.atoms_share) {
            return Err(Error::config(
                "atoms_share",
                format!("{} is not in 0..=1: try 0.7", self.atoms_share),
            ));
        }
        if !(self.ridge.is_finite() && self.ridge >= 0.) {
            return Err(Error::config("ridge", format!("{} must not be negative", self.ridge)));
        }
        let mut sorted = self.share.clone();
        sorted.sort_unstable();
        sorted.dedup();
        if sorted.is_empty() || sorted.len() != self.share.len() {
            return Err(Error::config(
                "share",
                "must name at least one of q, k, v, o, each once: [\"q\", \"k\", \"v\", \"o\"]",
            ));
        }
        let layers = model.num_hidden_layers;
        if self.groups == 0 || self.groups > layers {
            return Err(Error::config(
                "groups",
                format!(
                    "{} is not in 1..={layers}: the model has {layers} blocks, {} would do",
                    self.groups,
                    layers.div_ceil(5)
                ),
            ));
        }
        Ok(())
    }
}

/// Dictionaries for the attention projections of a pretrained decoder.
#[derive(Debug, Clone, Copy, Default)]
pub struct Masa;

impl Compress for Masa {
    type Config = Config;

    const SLUG: &'static str = "masa";
    const SUMMARY: &'static str =
        "mix attention projections from a few shared matrices, by matrix PCA (2025)";

    fn check(&self, config: &Config, model: &Decoder) -> Result<()> {
        convert::check(config, model)
    }

    fn share(&self, config: &Config, model: &Decoder, context: &mut Context<'_>) -> Result<Shared> {
        let converted = convert(config, model, context)?;
        let tables = tables::tables(&converted);
        Ok(Shared { model: converted.model, tables })
    }

    fn healing<'a>(&self, config: &'a mut Config) -> &'a mut HealConfig {
        &mut config.heal
    }
}
