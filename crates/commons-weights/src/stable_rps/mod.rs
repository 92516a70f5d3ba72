//! All weights read from one small pool by circular shifts, with a gradient that does not feel the
//! pool's scale.
//!
//! # Paper
//! Desai, Shrivastava: *In defense of parameter sharing for model-compression*, ICLR 2024,
//! arXiv:2310.11611; mapping and gradient scaler as in the authors' apd10/FakeRoast.
//!
//! # Problem
//! Randomised parameter sharing (HashedNet, ROBE-Z, ROAST) fits a network into any memory, but ROAST
//! diverges for some scales of initialisation and, given the memory of the whole network, does not
//! recover it.
//!
//! # Method
//! 1. *Mapping* ([`Mapping::Fold`]). Of `n` elements in the order of their tensors' names, partition
//!    `c = ⌊i/m⌋`, offset `o = i mod m`: `W_i = λ_t g(c) ψ[(u(c) + o) mod m]`. Every slot serves
//!    `⌊n/m⌋` or `⌈n/m⌉` elements; at `m = n` it is a rotation, hence the network itself.
//! 2. *Gradient scaler* ([`gradient_scaler`]). `∂L/∂ψ_j` is divided by
//!    `Γ_j = (Σ_{i→j} λ_t)²/c_j`, so a step of SGD moves each element of a slot by the mean of their
//!    gradients, whatever `λ`.
//! 3. *Kernel* ([`commons_ops::folded`]). A gather is `⌈n_t/m⌉ + 1` scaled copies or so, a scatter as many
//!    additions into one gradient buffer; no index is stored and nothing is hashed per element.
//!
//! # Shared / kept apart
//! Shared: every matrix, through the one stored pool `bank.rps.pool`. Apart: biases and norms, which
//! stay dense, and at high compression are most of what is stored.
//!
//! # Claim
//! Better than or equal to smaller models, MAG, SNIP, SynFlow and GraSP over the whole range of
//! compression; better than LTR at high compression only (abstract).
//!
//! # Here
//!
//! Measured on 2026-11-27T05:54:11Z with the recipe `full` (seed 0) in 41 min 20 s on AMD EPYC (2 threads, avx512, 23.5 GiB of memory,
//! of which 796 MiB were used), Commons 0.1.0.
//!
//! | claim                                                                            | paper                     | measured | baseline | needed            | found (95 % interval)            | verdict             |
//! | -------------------------------------------------------------------------------- | ------------------------- | -------: | -------: | ----------------- | -------------------------------- | ------------------- |
//! | without compression, twenty steps follow the dense network's losses              | exact (Pareto-continuity) |  0.07601 |          | ≤ 0.001           | 0.07601 (-0.251 to 0.403)        | fails (not settled) |
//! | at high compression it is no worse than the best of MAG, SNIP, SynFlow and GraSP | direction only (abstract) |   0.6644 |   0.5757 | ≥ baseline        | 0.08865 (0.06972 to 0.1076)      | holds               |
//! | below that it is within a point of the best of MAG, SNIP, SynFlow and GraSP      | direction only (abstract) |   0.6207 |   0.7162 | ≥ baseline − 0.01 | -0.0955 (-0.2834 to 0.09241)     | fails (not settled) |
//! | in the mean over compressions above 1 it is no worse than a narrower network     | direction only (abstract) |   0.6469 |   0.3949 | ≥ baseline        | 0.252 (0.1335 to 0.3706)         | holds               |
//! | at compression 1 it is no worse than ROAST                                       | direction only (abstract) |   0.7098 |   0.7148 | ≥ baseline        | -0.004944 (-0.01778 to 0.007892) | fails (not settled) |
//! | over scales of the initial pool its accuracy spreads less than ROAST's           | direction only (abstract) |        0 |   0.6338 | ≤ baseline        | -0.6338 (-0.9443 to -0.3234)     | holds               |
//! | at low compression iterative pruning with rewinding is no worse                  | reviews of the paper      |   0.7076 |   0.6207 | ≥ baseline        | 0.08692 (-0.09702 to 0.2709)     | holds (not settled) |
//! | a training step from the pool takes at most 1.3 times a dense one                | not in the paper          |    0.012 |  0.01245 | ≤ 1.3 × baseline  | 0.9634                           | holds (one seed)    |
//!
//! # Differs
//! * The sign is one per partition, not per element: any two elements of a slot still have
//!   independent signs, and copies stay contiguous.
//! * `λ = std(W)·√3/s`: the release leaves out `√3`, which makes weights that much too small.
//! * ROAST and ROBE-Z are blocks of consecutive elements anywhere in the pool, without wrapping
//!   around; ROAST's two-dimensional tiles are flattened.
//! * The release adds 10⁻³ to `c` and 10⁻⁶ to `Γ`; here a slot that nothing reads has `Γ = 1`.
//! * Under AdamW, which healing and `commons train` use, a scale of the gradient cancels, so none is
//!   applied; `λ` has mean 1 there and the rate suits weights and pool alike. Plain gradient descent,
//!   for which `Γ` is, is refused there: only the recipe's perceptrons have it ([`scale_gradient`]).
//! * `Γ` is the release's first choice; its other forms are not built. SNIP and GraSP see one batch,
//!   not one with as many images of every class.
//! * Pruning is a baseline of the recipe and no verb.
//! * A pretrained model fills the pool in least squares. Paper and theory are about training from
//!   scratch: a model squeezed this way has to be learnt again.
//! * The recipe gives every method, at every compression, the best of seven peak rates on images held
//!   out, judged by two networks. Rewinding takes the dense network's.
//!
//! # Use
//! `commons train --arch mini --pool-compression 8 -o pooled` trains a decoder from one drawn pool;
//! `commons compress --method stable-rps` fills one with a finished model's matrices, as does
//!
//! ```
//! use commons_core::Seed;
//! use commons_nn::model::{Decoder, DecoderConfig};
//! use commons_weights::stable_rps::{RpsConfig, fold};
//!
//! let model = Decoder::init(DecoderConfig::llama(64, 32, 3, 4, 2, 48), Seed::new(1))?;
//! let config = RpsConfig { compression: 8., ..Default::default() };
//! let (folded, pooled) = fold(&config, &model, Seed::new(2))?;
//! assert_eq!(pooled.slots, pooled.elements / 8);
//! assert!(folded.bank.stored() < model.bank.stored() / 2);
//! # Ok::<(), commons_weights::Error>(())
//! ```

mod evidence;
pub mod mlp;
mod pool;
pub mod prune;
pub mod study;
#[cfg(test)]
mod tests;

use commons_core::table::{Table, Unit};
use commons_core::{Seed, cells};
use commons_nn::model::{BLOCK_MATRICES, Decoder, layer_prefix};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use evidence::Evidence;
pub use pool::{Fill, Mapping, POOL, Pooled, gradient_scaler, loads, pool, scale_gradient, scaler};

use crate::Result;
use crate::compress::{Compress, Context, Shared, check_own};
use crate::heal::HealConfig;

/// Options of the method for decoders.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RpsConfig {
    /// `n/m`: how many times fewer elements the pool holds than the weights made from it.
    pub compression: f64,
    /// Which slot an element is read from.
    pub mapping: Mapping,
    /// Whether the embedding (and a head of its own) is made from the pool as well.
    pub embedding: bool,
    /// Healing.
    pub heal: HealConfig,
}

impl Default for RpsConfig {
    fn default() -> Self {
        Self {
            compression: 2.,
            mapping: Mapping::Fold,
            embedding: false,
            heal: HealConfig::default(),
        }
    }
}

/// Makes the matrices of `model` from one pool filled with them.
///
/// # Errors
/// When the compression is impossible (saying which would do) or a matrix is shared already.
pub fn fold(config: &RpsConfig, model: &Decoder, seed: Seed) -> Result<(Decoder, Pooled)> {
    config.heal.check()?;
    folded(config, model, false, seed)
}

/// Makes the matrices of the freshly initialised `model` from one freshly drawn pool, with their
/// deviations; `λ` has mean 1, so that a rate that suits the matrices suits the pool.
///
/// # Errors
/// As [`fold`].
pub fn fresh(config: &RpsConfig, model: &Decoder, seed: Seed) -> Result<(Decoder, Pooled)> {
    folded(config, model, true, seed)
}

/// Names of the weights that are to be made from the pool.
///
/// # Errors
/// When one of them is made from others.
fn pooled_weights(config: &RpsConfig, model: &Decoder) -> Result<Vec<String>> {
    let mut names: Vec<String> = (0..model.config.num_hidden_layers)
        .flat_map(|l| BLOCK_MATRICES.map(|m| format!("{}{m}", layer_prefix(l))))
        .collect();
    if config.embedding {
        names.push("model.embed_tokens.weight".into());
        if model.bank.plan().get("lm_head.weight").is_none() {
            names.push("lm_head.weight".into());
        }
    }
    check_own(model, names.iter().cloned(), "")?;
    Ok(names)
}

fn folded(
    config: &RpsConfig,
    model: &Decoder,
    draw: bool,
    seed: Seed,
) -> Result<(Decoder, Pooled)> {
    let names = pooled_weights(config, model)?;
    let mut bank = model.bank.deep_clone()?;
    if config.embedding && bank.plan().get("lm_head.weight").is_some() {
        // A plan has depth one: a head tied to the embedding reads the same slots itself.
        bank.remove("lm_head.weight");
        let head = bank.weight("model.embed_tokens.weight")?.detach();
        bank.insert("lm_head.weight", head)?;
    }
    let fill = if draw { Fill::Drawn } else { Fill::Weights };
    let pooled = pool(&mut bank, &names, config.compression, config.mapping, fill, seed)?;
    if let (true, Some(entry)) = (config.embedding, bank.plan().get("model.embed_tokens.weight"))
        && bank.plan().get("lm_head.weight").is_none()
    {
        let entry = entry.clone();
        bank.share("lm_head.weight", entry)?;
    }
    Ok((Decoder::new(model.config.clone(), bank)?, pooled))
}

/// The method as the command line sees it.
#[derive(Debug, Clone, Copy, Default)]
pub struct StableRps;

impl Compress for StableRps {
    type Config = RpsConfig;
    const SLUG: &'static str = "stable-rps";
    const SUMMARY: &'static str = "read all matrices from one small pool by circular shifts";

    fn check(&self, config: &RpsConfig, model: &Decoder) -> Result<()> {
        let names = pooled_weights(config, model)?;
        let mut elements = 0;
        for name in &names {
            elements += model.bank.shape(name)?.iter().product::<usize>();
        }
        pool::slots(elements, config.compression, config.mapping).map(drop)
    }

    fn share(
        &self,
        config: &RpsConfig,
        model: &Decoder,
        context: &mut Context<'_>,
    ) -> Result<Shared> {
        context.tick("pool", 0, 1)?;
        let (model, pooled) = fold(config, model, Seed::new(context.seed))?;
        let mut table = Table::new("Pool")
            .column("elements", Unit::Si)
            .column("slots", Unit::Si)
            .column("variance kept", Unit::Percent);
        table.push(cells![pooled.elements, pooled.slots, pooled.kept]);
        Ok(Shared { model, tables: vec![table] })
    }

    fn healing<'a>(&self, config: &'a mut RpsConfig) -> &'a mut HealConfig {
        &mut config.heal
    }
}
