//! Depth folded away: blocks nobody misses are deleted, neighbours share one block's matrices.
//!
//! # Paper
//! Liu, Zeng, Li, Yan, Fu, Mei, Chen: *FoldGPT: Simple and Effective Large Language Model
//! Compression Scheme*, arXiv:2407.00928 (2024). The gate is that of gates with differentiable
//! polarization (a smoothed L0 norm). No official code was found; where the abstract leaves a
//! choice, "Differs" names ours.
//!
//! # Problem
//! On a phone the weights' bytes are the limit, not the arithmetic. Most blocks of a pretrained
//! decoder turn their input only a little, so some can go and others can stand in for their
//! neighbours. Ranking blocks one at a time misses that two of them may cover for each other.
//!
//! # Method
//! 0. *Analysis.* Block influence `BI_ℓ = 1 − cos(x_ℓ, x_{ℓ+1})`, and the matrix of
//!    `cos(x_i, x_j)` over all depths ([`Similarity`]).
//! 1. *Gated removal* ([`BlockGates`]). With frozen weights,
//!    `x_{ℓ+1} = x_ℓ + g_ε(a_ℓ)·F_ℓ(x_ℓ)`, `g_ε(a) = a²/(a² + ε)`, and
//!    `min_a L_LM  s.t.  Σ g_ε(a_ℓ) ≤ (1 − rate)·L`; `ε` falls, so gates end at 0 or 1. The
//!    `⌊rate·L⌋` blocks with the lowest gates are deleted.
//! 2. *Group sharing* ([`GroupPlan`]). Of `s` consecutive blocks one, the parent, lends its seven
//!    matrices to all; every member keeps its own norms. Stored:
//!    `P = P_emb + parents·P_block + blocks·P_norm`.
//! 3. *Healing* ([`crate::heal`]). `L = CE + γ·KL(p_T ‖ p_S) + β·mean_{i ∈ tail} MSE(h_i, h_π(i))/mean(h_π(i)²)`
//!    against the original; `π` counts layers from the end, as early layers no longer correspond.
//!
//! # Shared / kept apart
//! Shared in a group: `q, k, v, o, gate, up, down`, stored once as `bank.group.{i}.{matrix}`, and
//! the LoRA factors on them when healing with LoRA. Apart: norms and biases of every block, and
//! the key/value cache. Sharing saves bytes, not FLOPs; removal saves both.
//!
//! # Claim
//! Better quality than earlier depth pruning at equal compression; sharing adds a large cut in
//! parameters at little cost in quality after healing. (No figure of the paper is quoted: none
//! could be checked.)
//!
//! # Here
//!
//! Measured on 2026-11-26T12:38:28Z with the recipe `full` (seed 0) in 1 h 02 min on AMD EPYC (1 threads, avx512, 23.5 GiB of memory,
//! of which 2.59 GiB were used), Commons 0.1.0.
//!
//! | claim                                                                             | paper                     | measured | baseline | needed           | found (95 % interval)     | verdict             |
//! | --------------------------------------------------------------------------------- | ------------------------- | -------: | -------: | ---------------- | ------------------------- | ------------------- |
//! | blocks chosen by learned gates cost no more loss than those of lowest influence   | direction only (abstract) |    4.172 |    3.998 | ≤ baseline       | 0.1746 (-0.7445 to 1.094) | fails (not settled) |
//! | blocks chosen by learned gates cost at least 0.3 nats less than random ones       | direction only (abstract) |    4.172 |    6.775 | ≤ baseline − 0.3 | -2.603 (-5.827 to 0.6216) | holds (not settled) |
//! | a short healing takes at least 0.1 nats off the loss of a model whose pairs share | direction only (abstract) |    3.433 |      6.2 | ≤ baseline − 0.1 | -2.767                    | holds (one seed)    |
//! | healing with tail distillation ends no worse than with cross-entropy alone        | direction only (abstract) |    3.433 |    3.456 | ≤ baseline       | -0.02319                  | holds (one seed)    |
//! | after healing, members with their own norms end no worse than with the parent's   | direction only (abstract) |    3.433 |    3.396 | ≤ baseline       | 0.03701                   | fails (one seed)    |
//! | at equal stored parameters, removal with sharing ends no worse than removal alone | direction only (abstract) |    3.277 |    3.102 | ≤ baseline       | 0.1751                    | fails (one seed)    |
//!
//! - deleting 10 %: 100 % of the gates ended within 0.05 of 0 or 1
//! - deleting 20 %: 100 % of the gates ended within 0.05 of 0 or 1
//! - deleting 30 %: 100 % of the gates ended within 0.05 of 0 or 1
//!
//! # Differs
//! * The constraint is kept by an augmented Lagrangian whose allowance falls linearly. `ε` is
//!   constant until the gates have chosen and then falls log-linearly, the rate with `√ε`: a gate
//!   whose `ε` falls from the first step on opens by itself faster than it can be closed.
//! * All blocks of a decoder cost the same, so the resource is the number of blocks.
//! * The first and the last block are neither removed nor shared.
//! * Groups are placed so that the *sum* of intra-group similarity is largest (dynamic
//!   programming), not one by one; groups never mix attention kinds.
//! * A model that already shares weights is folded as if it stored them plainly.
//! * LoRA factors belong to the stored matrix, so all members of a group use the same ones;
//!   factors for each member would be the method `relaxed-recursive`.
//!
//! # Use
//! ```
//! use commons_core::Seed;
//! use commons_nn::model::{Decoder, DecoderConfig};
//! use commons_weights::foldgpt::{FoldGptConfig, RankBy, fold};
//!
//! let model = Decoder::init(DecoderConfig::llama(64, 32, 8, 4, 2, 48), Seed::new(1))?;
//! let text: Vec<u32> = (0..600).map(|i| i * i % 61).collect();
//! let config = FoldGptConfig {
//!     remove: 0.2,
//!     rank_by: RankBy::Influence,
//!     seq_len: 64,
//!     ..Default::default()
//! };
//! let folded = fold(&config, &model, &text, Seed::new(2), &mut |_, _, _| Ok(()))?;
//! assert_eq!(folded.kept.len(), 7);
//! assert!(folded.model.bank.stored() < model.bank.stored());
//! # Ok::<(), commons_weights::Error>(())
//! ```

pub mod analysis;
mod evidence;
pub mod gates;
pub mod groups;
pub mod study;
mod tables;
#[cfg(test)]
mod tests;

use commons_core::Seed;
use commons_nn::model::{Decoder, layer_prefix};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use analysis::Similarity;
pub use evidence::Evidence;
pub use gates::{BlockGates, GateConfig, gate, gate_slope, gated_forward};
pub use groups::{Accounting, Group, GroupConfig, GroupPlan, Norms, Parent};

use crate::baseline::drop_layers;
use crate::baseline::removal::{self, Probe};
use crate::compress::{Compress, Context, Shared};
use crate::heal::HealConfig;
use crate::{Error, Result};

/// What decides which blocks go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RankBy {
    /// Gates learned together (the paper).
    #[default]
    Gates,
    /// Lowest block influence (ShortGPT).
    Influence,
    /// One after the other, by the perplexity without it (SLEB).
    Greedy,
    /// Evenly over the depth.
    Uniform,
    /// By lot.
    Random,
}

/// What healing may change.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Tune {
    /// Every stored parameter.
    Full,
    /// Everything in the blocks and the final norm; embedding and head stay.
    #[default]
    Blocks,
    /// Low-rank terms on every matrix of the blocks, and all norms. Members of a group share the
    /// terms as they share the matrix.
    Lora {
        /// Rank of the terms.
        rank: usize,
        /// LoRA's numerator of the scale `alpha / rank`.
        alpha: f32,
    },
}

/// Options of the method.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FoldGptConfig {
    /// Share of the blocks that are deleted, rounded down to whole blocks.
    pub remove: f64,
    /// What decides which.
    pub rank_by: RankBy,
    /// Training of the gates.
    pub gates: GateConfig,
    /// Whether the two blocks nearest the cut are exchanged when held-out calibration text says so.
    pub verify: bool,
    /// Which of the remaining blocks share.
    pub groups: GroupConfig,
    /// Tokens of a calibration window.
    pub seq_len: usize,
    /// Tokens of calibration text looked at by the analysis, at most.
    pub analysis_tokens: usize,
    /// Windows on which single sets of blocks are compared (`verify` and `greedy`).
    pub probe_windows: usize,
    /// What healing may change.
    pub tune: Tune,
    /// Healing.
    pub heal: HealConfig,
}

impl Default for FoldGptConfig {
    fn default() -> Self {
        Self {
            remove: 0.15,
            rank_by: RankBy::Gates,
            gates: GateConfig::default(),
            verify: false,
            groups: GroupConfig::default(),
            seq_len: 512,
            analysis_tokens: 32_768,
            probe_windows: 4,
            tune: Tune::default(),
            heal: HealConfig { tail_coef: 1., tail_layers: 3, ..HealConfig::default() },
        }
    }
}

impl FoldGptConfig {
    /// The number of blocks `remove` stands for.
    ///
    /// # Errors
    /// When the rate is not in `0..1` or would delete all between the first and the last.
    pub fn removed_blocks(&self, layers: usize) -> Result<usize> {
        if !(0. ..1.).contains(&self.remove) {
            return Err(Error::config("remove", format!("{} is not in 0..1", self.remove)));
        }
        // The guard keeps 0.3 of 10 from becoming 2.
        let count = (self.remove * layers as f64 + 1e-9).floor() as usize;
        removal::check_removal(layers, count)?;
        Ok(count)
    }
}

/// A folded model and how it came about. Block indices of `removed`, `kept`, `influence` and gates
/// are the original's; those of `groups` and `after` count the blocks that are left.
#[derive(Debug)]
pub struct Folded {
    /// The model, frozen as [`FoldGptConfig::tune`] says.
    pub model: Decoder,
    /// Cosines of the original.
    pub before: Similarity,
    /// Cosines after removal, by which groups were chosen.
    pub after: Similarity,
    /// Deleted blocks, in increasing order.
    pub removed: Vec<usize>,
    /// Remaining blocks, in order.
    pub kept: Vec<usize>,
    /// The gates, if they ranked the blocks.
    pub gates: Option<BlockGates>,
    /// Which blocks share.
    pub groups: GroupPlan,
}

/// Called with (what is being done, done, of how many); an error stops the work.
pub type Tick<'a> = dyn FnMut(&str, usize, usize) -> Result<()> + 'a;

/// Folds `model`: analysis, removal, sharing; healing is the caller's.
///
/// # Errors
/// When an option is out of range, the calibration text is too short, or groups do not fit.
pub fn fold(
    config: &FoldGptConfig,
    model: &Decoder,
    calibration: &[u32],
    seed: Seed,
    tick: &mut Tick<'_>,
) -> Result<Folded> {
    let layers = model.config.num_hidden_layers;
    let count = config.removed_blocks(layers)?;
    let before = analyse(config, model, calibration, tick)?;
    let (mut removed, gates) = rank(config, model, &before, calibration, count, seed, tick)?;
    removed.sort_unstable();
    let kept: Vec<usize> = (0..layers).filter(|l| !removed.contains(l)).collect();
    let reduced = drop_layers(model, &kept)?;
    let after = match count {
        0 => before.clone(),
        _ => analyse(config, &reduced, calibration, tick)?,
    };
    let importance: Vec<f64> = match &gates {
        Some(gates) => {
            let importance = gates.importance();
            kept.iter().map(|&l| importance[l]).collect()
        }
        None => after.influence(),
    };
    let original = model.bank.logical()?;
    let groups = GroupPlan::choose(&after, &importance, &reduced.config, &config.groups, original)?;
    let model = groups.apply(reduced, config.groups.norms)?;
    let model = config.tune.prepare(model, &groups, seed)?;
    Ok(Folded { model, before, after, removed, kept, gates, groups })
}

fn analyse(
    config: &FoldGptConfig,
    model: &Decoder,
    calibration: &[u32],
    tick: &mut Tick<'_>,
) -> Result<Similarity> {
    let tokens = &calibration[..calibration.len().min(config.analysis_tokens)];
    Similarity::measure(model, tokens, config.seq_len, |done, of| tick("similarity", done, of))
}

/// The blocks to delete, and the gates if they said so.
fn rank(
    config: &FoldGptConfig,
    model: &Decoder,
    before: &Similarity,
    calibration: &[u32],
    count: usize,
    seed: Seed,
    tick: &mut Tick<'_>,
) -> Result<(Vec<usize>, Option<BlockGates>)> {
    let layers = model.config.num_hidden_layers;
    if count == 0 {
        return Ok((Vec::new(), None));
    }
    let removed = match config.rank_by {
        RankBy::Influence => removal::least_important(&before.influence(), count)?,
        RankBy::Uniform => removal::uniform(layers, count)?,
        RankBy::Random => removal::random(layers, count, seed)?,
        RankBy::Greedy => {
            let probe = Probe::new(model, calibration, config.seq_len, config.probe_windows)?;
            removal::greedy(model, &probe, count, |done, _| tick("greedy removal", done, count))?
        }
        RankBy::Gates => {
            let held_out =
                if config.verify { config.probe_windows * config.seq_len + 1 } else { 0 };
            let Some(train) = calibration.len().checked_sub(held_out) else {
                return Err(Error::config(
                    "calibration",
                    format!(
                        "{} tokens are fewer than the {held_out} that `verify` keeps apart: bring \
                         more text or lower probe_windows",
                        calibration.len()
                    ),
                ));
            };
            let (train, rest) = calibration.split_at(train);
            let learning = |done, of| tick("gates", done, of);
            let gates =
                BlockGates::learn(model, train, layers - count, &config.gates, seed, learning)?;
            let removed = if config.verify {
                let probe = Probe::new(model, rest, config.seq_len, config.probe_windows)?;
                gates.verified(model, &probe, count)?.0
            } else {
                gates.lowest(count)?
            };
            return Ok((removed, Some(gates)));
        }
    };
    Ok((removed, None))
}

impl Tune {
    /// Adds what is to be trained to `model` and freezes the rest.
    ///
    /// # Errors
    /// When the rank does not fit a matrix.
    pub fn prepare(&self, mut model: Decoder, groups: &GroupPlan, seed: Seed) -> Result<Decoder> {
        let outside = |name: &str| !name.starts_with("model.layers.") && !name.starts_with("bank.");
        match self {
            Self::Full => model.bank.freeze(|_| false),
            Self::Blocks => model.bank.freeze(|n| outside(n) && n != "model.norm.weight"),
            Self::Lora { rank, alpha } => {
                for layer in 0..model.config.num_hidden_layers {
                    let lead = groups.group_of(layer).map(|g| groups.groups[g].members.start);
                    add_lora(&mut model, layer, lead.unwrap_or(layer), *rank, *alpha, seed)?;
                }
                let trained = |n: &str| n.starts_with("bank.lora.") || n.ends_with("norm.weight");
                model.bank.freeze(|n| !trained(n));
            }
        }
        Ok(model)
    }
}

/// Gives the matrices of `layer` low-rank terms: its own, or those of `lead`, the first of its
/// group.
fn add_lora(
    model: &mut Decoder,
    layer: usize,
    lead: usize,
    rank: usize,
    alpha: f32,
    seed: Seed,
) -> Result<()> {
    let bank = &mut model.bank;
    for matrix in commons_nn::model::BLOCK_MATRICES {
        let name = format!("{}{matrix}", layer_prefix(layer));
        if layer == lead {
            bank.add_lora(&name, rank, alpha, seed.fork("lora", 0))?;
        } else if let Some(entry) = bank.plan().get(&format!("{}{matrix}", layer_prefix(lead))) {
            let entry = entry.clone();
            bank.share(&name, entry)?;
        }
    }
    Ok(())
}

/// The method as the command line sees it.
#[derive(Debug, Clone, Copy, Default)]
pub struct FoldGpt;

impl Compress for FoldGpt {
    type Config = FoldGptConfig;
    const SLUG: &'static str = "foldgpt";
    const SUMMARY: &'static str =
        "delete blocks by learned gates, let neighbours share one block's matrices";

    fn check(&self, config: &FoldGptConfig, model: &Decoder) -> Result<()> {
        config.removed_blocks(model.config.num_hidden_layers).map(drop)
    }

    fn share(
        &self,
        config: &FoldGptConfig,
        model: &Decoder,
        context: &mut Context<'_>,
    ) -> Result<Shared> {
        let (calibration, seed) = (context.calibration, Seed::new(context.seed));
        let tick = &mut |what: &str, done, of| context.tick(what, done, of);
        let folded = fold(config, model, calibration, seed, tick)?;
        let tables = folded.tables();
        Ok(Shared { model: folded.model, tables })
    }

    fn healing<'a>(&self, config: &'a mut FoldGptConfig) -> &'a mut HealConfig {
        &mut config.heal
    }
}
