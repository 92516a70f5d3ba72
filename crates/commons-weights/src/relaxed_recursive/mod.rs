//! One block of layers passed several times, with a few directions per depth that let the passes
//! differ.
//!
//! # Paper
//! Bae, Fisch, Harutyunyan, Ji, Kim, Schuster: *Relaxed Recursive Transformers: Effective
//! Parameter Sharing with Layer-wise LoRA*, ICLR 2025, [arXiv 2410.20672](https://arxiv.org/abs/2410.20672).
//!
//! # Problem
//! A pretrained decoder of `L` layers shall store half or a third of its layer parameters, without
//! training a smaller one from nothing.
//!
//! # Method
//! The layers are passed as `B` loops through one block of `K = L/B` unique layers,
//! `h^ℓ = f(h^{ℓ−1}; Φ'_{((ℓ−1) mod K)+1})`. The unique layers come from the pretrained ones:
//! *stepwise* takes `K` layers spread evenly, *average* the mean of all layers tied together,
//! *lower* the first `K`, *fitted* is ours ([`Init`]). The tie is then relaxed: every looped matrix gets low-rank
//! terms of its own at every depth,
//!
//! ```text
//! y = W' x + B_ℓ A_ℓ x,   B_ℓ A_ℓ = U_r Σ_r V_rᵀ,   W_ℓ − W' = U Σ Vᵀ
//! ```
//!
//! the best approximation of what the tie lost at rank `r` ([`truncated_svd`]). `r = 0` is strict
//! tying, full rank the original model. Shared matrices and terms are then trained together, with
//! the original as teacher ([`crate::heal`]). With `N` parameters in the layers, `N/B + Σ_ℓ Σ_W r(in +
//! out)` are stored.
//!
//! *Early exits.* With `heal.exit_coef > 0` every loop learns to predict through the final norm and
//! the head, `L + α Σ_{b<B} CE(head(norm(h^{bK})))`, so that a token may leave after the first loop
//! that is sure enough ([`commons_nn::eval::ExitProfile`]; `commons eval --exits B` measures it).
//!
//! # Shared / kept apart
//! Shared: all matrices, biases and norm gains of a layer, once per unique layer, as
//! `bank.loop.{j}.{weight}`. Kept apart: the low-rank terms (one pair per depth and matrix), the
//! key/value cache, what follows the depth (rotary base, window), embeddings, final norm, output
//! head; with `share_norms = false` also gains and biases.
//!
//! # Claim
//! After up-training, the decomposed start beats a zero start, relaxed beats strict, and both beat
//! models of their size that loop nothing (sections 3.2 to 3.4).
//!
//! # Here
//!
//! Measured on 2026-11-27T11:37:58Z with the recipe `full` (seed 0) in 28 min 13 s on AMD EPYC (2 threads, avx512, 23.5 GiB of memory,
//! of which 2.94 GiB were used), Commons 0.1.0.
//!
//! | claim                                                                                  | paper                                                             | measured | baseline | needed            | found (95 % interval) | verdict          |
//! | -------------------------------------------------------------------------------------- | ----------------------------------------------------------------- | -------: | -------: | ----------------- | --------------------- | ---------------- |
//! | at full rank the relaxed model is the original                                         | exact (section 2.3)                                               | 3.606e-6 |          | ≤ 0.001           | 3.606e-6              | holds (one seed) |
//! | right after conversion, perplexity falls with every larger rank                        | monotone (ranks 64 to 512)                                        |      0.8 |          | ≥ 1               | 0.8                   | fails (one seed) |
//! | after healing, terms that start from the decomposition beat terms that start at zero   | +6.5 points few-shot accuracy at rank 512                         |    524.3 |    441.4 | ≤ 1 × baseline    | 1.188                 | fails (one seed) |
//! | after healing, the relaxed model beats the strictly tied one                           | 58.4 % relaxed, 58.6 % original few-shot accuracy                 |    524.3 |    454.5 | ≤ 1 × baseline    | 1.153                 | fails (one seed) |
//! | after healing, the relaxed model beats dropping layers down to its parameters          | above non-recursive models of its size                            |    524.3 |    47.82 | ≤ 1 × baseline    | 10.96                 | fails (one seed) |
//! | after healing, terms that weigh errors by the inputs beat the plain decomposition      | not in the paper                                                  |    78.18 |    524.3 | ≤ 1 × baseline    | 0.1491                | holds (one seed) |
//! | and beat dropping layers down to their parameters                                      | not in the paper                                                  |    78.18 |    47.82 | ≤ 1 × baseline    | 1.635                 | fails (one seed) |
//! | after healing, shared matrices fitted together with such terms beat the mean           | not in the paper                                                  |     48.7 |    78.18 | ≤ 1 × baseline    | 0.6229                | holds (one seed) |
//! | and beat dropping layers down to their parameters                                      | not in the paper                                                  |     48.7 |    47.82 | ≤ 1 × baseline    | 1.018                 | fails (one seed) |
//! | after healing, strict tying beats dropping layers down to its parameters               | up to +13.5 points over a non-recursive model of its size         |    454.5 |    156.8 | ≤ 1 × baseline    | 2.898                 | fails (one seed) |
//! | healing with early exits takes at least 0.1 nats off the loss after the first loop     | exits need training (section 2.4)                                 |    8.267 |    23.65 | ≤ baseline − 0.1  | -15.39                | holds (one seed) |
//! | and costs the whole model at most 5 % of its perplexity                                | small with coefficient 0.1 (section 3.6)                          |    53.64 |     48.7 | ≤ 1.05 × baseline | 1.102                 | fails (one seed) |
//! | leaving early then saves at least a tenth of the loops for at most 5 % more perplexity | 2 to 3 times the throughput, with batching over depths (abstract) |        0 |          | ≥ 0.1             | 0                     | fails (one seed) |
//!
//! # Differs
//! * Up-training is 40 steps of 256 tokens of distillation instead of 15 to 60 billion tokens.
//! * The zero start draws `A` uniform in `±1/√in`, as PEFT does, not Gaussian.
//! * A layer count that `B` does not divide can be thinned first (`thin`).
//! * With calibration text, low-rank terms are decompositions of `ΔW L` with `L Lᵀ` the
//!   autocorrelation of a matrix's inputs (`lora_init = "whitened_svd"`), the shared matrices are
//!   fitted together with the terms (`init = "fitted"`), and norms are kept per depth unless
//!   `share_norms`: our additions, and the defaults of `compress`. The paper's are `average` and `svd`.
//! * `fold_gains` multiplies norm gains into the matrices before averaging. It is our addition;
//!   with it, or without `share_norms`, full rank gives the original function exactly.
//! * Exits are trained together with the up-training, not after it. Intermediate loops learn from the
//!   text alone, not from the last loop as well.
//! * A token leaves by its largest probability; the gap of the two largest and an oracle are not tried,
//!   and `generate` does not leave early.
//! * Batching over depths is a matter of serving and not in this module.
//!
//! # Use
//! ```
//! use commons_core::Seed;
//! use commons_nn::model::{Decoder, DecoderConfig};
//! use commons_weights::relaxed_recursive::{Config, RelaxedRecursive};
//! use commons_weights::{Compress, Context};
//!
//! let mut context = Context { calibration: &[], seed: 0, stop: Default::default(), progress: &mut |_, _, _| {} };
//! let model = Decoder::init(DecoderConfig::llama(64, 32, 4, 4, 2, 48), Seed::new(0))?;
//! let config = Config { loops: 2, rank: 2, ..Config::default() };
//! let shared = RelaxedRecursive.share(&config, &model, &mut context)?;
//! assert!(shared.model.bank.stored() < model.bank.stored());
//! # Ok::<(), commons_weights::Error>(())
//! ```

mod evidence;
mod init;
mod lora;
pub mod study;
#[cfg(test)]
mod tests;
mod whiten;

use std::collections::BTreeMap;

use commons_core::table::{Table, Unit};
use commons_core::{Seed, cells};
use commons_nn::bank::{Bank, Entry, LowRank, PART};
use commons_nn::model::{BLOCK_MATRICES, Decoder, DecoderConfig, layer_prefix};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use evidence::Evidence;
pub use init::{Init, Looping, fold_gains, loop_part, thinned_layers};
pub use lora::{LayerLoss, LoraInit, TruncatedSvd, truncated_svd};

use crate::baseline::{drop_layers, layer_weight};
use crate::compress::{Compress, Context, Shared};
use crate::heal::HealConfig;
use crate::{Error, Result};
use lora::{Fitted, Tied, fit};
use whiten::Inputs;

/// What healing may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Trainable {
    /// Everything stored.
    #[default]
    All,
    /// The low-rank terms only.
    LowRank,
}

/// Options of [`RelaxedRecursive`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `B`: how often the block is passed. 1 shares nothing.
    pub loops: usize,
    /// How unique layers are initialised.
    pub init: Init,
    /// `r`: rank of the low-rank terms of every matrix, at most the full rank of each; 0 ties
    /// strictly.
    pub rank: usize,
    /// Ranks of some matrices: keys are parts of a name such as `mlp.down_proj` or `self_attn`;
    /// the longest key that occurs in a name counts.
    pub rank_pattern: BTreeMap<String, usize>,
    /// How the low-rank terms start; `null` is `whitened_svd` where there is calibration text, else
    /// `svd`.
    pub lora_init: Option<LoraInit>,
    /// Loop norm gains and biases too, instead of keeping them per depth. They are few, and what one
    /// depth needs hurts another: pretrained models are better off without.
    pub share_norms: bool,
    /// Multiply norm gains into the matrices that follow before layers are averaged.
    pub fold_gains: bool,
    /// Drop layers, evenly spread, until `loops` divides their number.
    pub thin: bool,
    /// What healing trains.
    pub trainable: Trainable,
    /// The training that follows.
    pub heal: HealConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            loops: 2,
            init: Init::default(),
            rank: 64,
            rank_pattern: BTreeMap::new(),
            lora_init: None,
            share_norms: false,
            fold_gains: false,
            thin: false,
            trainable: Trainable::default(),
            heal: HealConfig::default(),
        }
    }
}

impl Config {
    /// How the low-rank terms start, the default filled in.
    pub fn lora_init(&self, calibration: &[u32]) -> LoraInit {
        let whiten = if calibration.len() > 1 { LoraInit::WhitenedSvd } else { LoraInit::Svd };
        self.lora_init.unwrap_or(whiten)
    }

    /// Rank of the terms on `matrix`, a name within a layer, of shape `[out, in]`.
    ///
    /// # Errors
    /// When the pattern asks for more than full rank.
    pub fn rank_of(&self, matrix: &str, shape: &[usize]) -> Result<usize> {
        let full = shape.iter().copied().min().unwrap_or(0);
        let matching = self.rank_pattern.iter().filter(|(key, _)| matrix.contains(key.as_str()));
        match matching.max_by_key(|(key, _)| key.len()) {
            None => Ok(self.rank.min(full)),
            Some((_, &rank)) if rank <= full => Ok(rank),
            Some((key, rank)) => Err(Error::config(
                format!("rank_pattern.{key}"),
                format!("{rank} exceeds {full}, the full rank of `{matrix}` {shape:?}"),
            )),
        }
    }

    fn check(&self, config: &DecoderConfig) -> Result<()> {
        self.heal.check()?;
        let matrices = matrices(config);
        for (matrix, shape) in &matrices {
            self.rank_of(matrix, shape)?;
        }
        let largest =
            matrices.iter().filter_map(|(_, s)| s.iter().copied().min()).max().unwrap_or(0);
        if self.rank > largest {
            return Err(Error::config(
                "rank",
                format!("{} exceeds {largest}, the full rank of the largest matrix", self.rank),
            ));
        }
        for key in self.rank_pattern.keys() {
            if !matrices.iter().any(|(matrix, _)| matrix.contains(key.as_str())) {
                return Err(Error::config(
                    format!("rank_pattern.{key}"),
                    format!("names none of {BLOCK_MATRICES:?}"),
                ));
            }
        }
        Ok(())
    }
}

/// Name within a layer and shape `[out, in]` of the matrices that get low-rank terms.
fn matrices(config: &DecoderConfig) -> Vec<(String, Vec<usize>)> {
    let mut all = init::layer_weights(config);
    all.retain(|(name, _)| BLOCK_MATRICES.contains(&name.as_str()));
    all
}

/// Parameters the relaxed model of `config` stores in its layers, by the paper's formula
/// `N/B + Σ_ℓ Σ_W r(in + out)`.
///
/// # Errors
/// When the options do not fit the model.
pub fn stored_in_layers(options: &Config, config: &DecoderConfig) -> Result<usize> {
    let layers = if options.thin {
        thinned_layers(config.num_hidden_layers, options.loops)?.len()
    } else {
        config.num_hidden_layers
    };
    let unique = Looping::new(layers, options.loops, options.init, Seed::new(0))?.unique;
    let mut total = 0;
    for (_, shape) in init::layer_weights(config) {
        let looped = options.share_norms || shape.len() == 2;
        total += shape.iter().product::<usize>() * if looped { unique } else { layers };
    }
    for (matrix, shape) in matrices(config) {
        total += layers * options.rank_of(&matrix, &shape)? * (shape[0] + shape[1]);
    }
    Ok(total)
}

/// Recursive sharing of a pretrained decoder with layer-wise low-rank relaxation.
#[derive(Debug, Clone, Copy, Default)]
pub struct RelaxedRecursive;

impl Compress for RelaxedRecursive {
    type Config = Config;

    const SLUG: &'static str = "relaxed-recursive";
    const SUMMARY: &'static str =
        "loop one block of layers, with low-rank terms per depth (ICLR 2025)";

    fn check(&self, config: &Config, model: &Decoder) -> Result<()> {
        config.check(&model.config)?;
        if config.thin {
            return thinned_layers(model.config.num_hidden_layers, config.loops).map(drop);
        }
        let layers = model.config.num_hidden_layers;
        let looping = Looping::new(layers, config.loops, config.init, Seed::new(0))?;
        if config.init == Init::Random {
            // The seed of the run decides on the layers.
            return Ok(());
        }
        looping.check_kinds(&model.config)
    }

    fn share(&self, config: &Config, model: &Decoder, context: &mut Context<'_>) -> Result<Shared> {
        let (model, losses) = convert(config, model, context)?;
        let tables = vec![parameter_table(&model)?, loss_table(config.loops, &losses)];
        Ok(Shared { model, tables })
    }

    fn healing<'a>(&self, config: &'a mut Config) -> &'a mut HealConfig {
        config.heal.exit_loops = config.loops;
        &mut config.heal
    }
}

/// The conversion: the looped model and what each depth lost and got back.
///
/// # Errors
/// As [`RelaxedRecursive`]'s [`Compress::share`].
pub fn convert(
    config: &Config,
    model: &Decoder,
    context: &mut Context<'_>,
) -> Result<(Decoder, Vec<LayerLoss>)> {
    config.check(&model.config)?;
    let seed = Seed::new(context.seed);
    let prepared = prepare(config, model)?;
    let original = prepared.as_ref().unwrap_or(model);
    let looping = Looping::new(original.config.num_hidden_layers, config.loops, config.init, seed)?;
    looping.check_kinds(&original.config)?;
    let bank = loop_bank(original, &looping, config.share_norms)?;
    let mut looped = Decoder::new(original.config.clone(), bank)?;
    let start = config.lora_init(context.calibration);
    let relaxed = config.rank > 0 || config.rank_pattern.values().any(|&rank| rank > 0);
    let weighed = relaxed && start == LoraInit::WhitenedSvd;
    let mut texts = Vec::new();
    for first in (0..looping.loops).map(|b| b * looping.unique).filter(|_| weighed) {
        let mut text = Inputs::new(original, context.calibration)?;
        text.skip(first)?;
        texts.push(text);
    }
    let mut losses = vec![LayerLoss::default(); original.config.num_hidden_layers];
    for j in 0..looping.unique {
        context.tick("relaxing layers", j, looping.unique)?;
        let inputs = texts.iter_mut().map(Inputs::pass).collect::<Result<Vec<_>>>()?;
        let tied = tied_matrices(config, original, &looped.bank, &looping, j)?;
        for (tied, fitted) in tied.iter().zip(fit(&tied, start, &inputs)?) {
            for (b, loss) in fitted.losses.iter().enumerate() {
                let depth = j + b * looping.unique;
                losses[depth] = losses[depth].plus(*loss);
            }
            relax(&mut looped.bank, tied, fitted, (j, start), &looping, seed)?;
        }
    }
    if config.trainable == Trainable::LowRank {
        looped.bank.freeze(|name| !name.starts_with(&format!("{PART}lora.")));
    }
    Ok((looped, losses))
}

/// Thinning and gain folding, if asked for.
fn prepare(config: &Config, model: &Decoder) -> Result<Option<Decoder>> {
    let layers = model.config.num_hidden_layers;
    let keep = thinned_layers(layers, config.loops)?;
    let thinned =
        (config.thin && keep.len() < layers).then(|| drop_layers(model, &keep)).transpose()?;
    if config.fold_gains {
        return fold_gains(thinned.as_ref().unwrap_or(model)).map(Some);
    }
    Ok(thinned)
}

/// A bank that stores each unique layer once, everything outside the layers as it was.
fn loop_bank(model: &Decoder, looping: &Looping, share_norms: bool) -> Result<Bank> {
    let config = &model.config;
    let mut bank = Bank::new(model.bank.device().clone());
    for (name, _) in config.weights() {
        if layer_weight(&name).is_none()
            && !(config.tie_word_embeddings && name == "lm_head.weight")
        {
            bank.insert(name.clone(), model.bank.weight(&name)?)?;
        }
    }
    for (weight, shape) in init::layer_weights(config) {
        if shape.len() < 2 && !share_norms {
            for depth in 0..config.num_hidden_layers {
                let name = format!("{}{weight}", layer_prefix(depth));
                bank.insert(name.clone(), model.bank.weight(&name)?)?;
            }
            continue;
        }
        for j in 0..looping.unique {
            bank.insert(loop_part(j, &weight), looping.initial(model, j, &weight)?)?;
        }
        for depth in 0..config.num_hidden_layers {
            let owner = loop_part(looping.unique_at(depth), &weight);
            bank.share(&format!("{}{weight}", layer_prefix(depth)), Entry::same(owner))?;
        }
    }
    Ok(bank)
}

/// The matrices of unique layer `j` with the pretrained ones they stand for.
fn tied_matrices(
    config: &Config,
    original: &Decoder,
    bank: &Bank,
    looping: &Looping,
    j: usize,
) -> Result<Vec<Tied>> {
    let tied = |(matrix, shape): (String, Vec<usize>)| {
        let weight = |b: usize| {
            original.bank.weight(&format!("{}{matrix}", layer_prefix(j + b * looping.unique)))
        };
        let weights = (0..looping.loops).map(|b| Ok(weight(b)?.detach()));
        Ok(Tied {
            weights: weights.collect::<Result<_>>()?,
            shared: match config.init {
                Init::Fitted => None,
                _ => Some(bank.stored_var(&loop_part(j, &matrix))?.as_detached_tensor()),
            },
            rank: config.rank_of(&matrix, &shape)?,
            matrix,
        })
    };
    matrices(&original.config).into_iter().map(tied).collect()
}

/// Puts a fitted matrix of unique layer `j` and its low-rank terms into the looped bank.
fn relax(
    bank: &mut Bank,
    tied: &Tied,
    fitted: Fitted,
    (j, start): (usize, LoraInit),
    looping: &Looping,
    seed: Seed,
) -> Result<()> {
    let name = |b: usize| format!("{}{}", layer_prefix(j + b * looping.unique), tied.matrix);
    if start == LoraInit::Zero && tied.rank > 0 {
        for b in 0..looping.loops {
            // alpha = rank: the terms are not scaled, as with the decomposed start.
            bank.add_lora(&name(b), tied.rank, tied.rank as f32, seed.fork("lora", 0))?;
        }
    }
    if tied.shared.is_none() {
        bank.insert(loop_part(j, &tied.matrix), fitted.shared)?;
    }
    for (b, svd) in fitted.terms.into_iter().enumerate() {
        bank.add_low_rank(&name(b), svd.a, svd.b, 1.)?;
    }
    Ok(())
}

/// The relaxed model with only the leading `rank` directions of every low-rank term.
///
/// The terms of a decomposition are ordered by what they bring, so for every init but
/// [`Init::Fitted`] this equals converting again with the lower rank, without decomposing again.
/// `rank` 0 gives the strictly tied model.
///
/// # Errors
/// When a term cannot be cut.
pub fn truncate(model: &Decoder, rank: usize) -> Result<Decoder> {
    let mut copy = Decoder { config: model.config.clone(), bank: model.bank.deep_clone()? };
    for (name, entry) in model.bank.plan().iter() {
        if entry.plus.is_empty() {
            continue;
        }
        let mut kept = Entry { share: entry.share.clone(), plus: Vec::new() };
        for LowRank { a, b, scale } in &entry.plus {
            if rank == 0 {
                continue;
            }
            let (a_full, b_full) = (model.bank.stored_var(a)?, model.bank.stored_var(b)?);
            let r = rank.min(a_full.dim(0)?);
            copy.bank.insert(a.clone(), a_full.narrow(0, 0, r)?)?;
            copy.bank.insert(b.clone(), b_full.narrow(1, 0, r)?)?;
            kept.plus.push(LowRank { a: a.clone(), b: b.clone(), scale: *scale });
        }
        copy.bank.share(name, kept)?;
    }
    copy.bank.prune();
    Ok(copy)
}

/// What is stored where.
fn parameter_table(model: &Decoder) -> Result<Table> {
    let bank = &model.bank;
    let mut groups = [
        ("outside the layers", 0),
        ("looped layers", 0),
        ("kept per depth", 0),
        ("low-rank terms", 0),
    ];
    for (name, var) in bank.stored_vars() {
        let group = match name.strip_prefix(PART) {
            Some(part) if part.starts_with("lora.") => 3,
            Some(_) => 1,
            None if layer_weight(name).is_some() => 2,
            None => 0,
        };
        groups[group].1 += var.elem_count();
    }
    let mut table =
        Table::new("Stored parameters").column("part", Unit::Plain).column("parameters", Unit::Si);
    for (group, count) in groups {
        table.push(cells![group, count]);
    }
    table.push(cells!["stored in all", bank.stored()]);
    table.push(cells!["of a plain checkpoint", bank.logical()?]);
    Ok(table)
}

/// What each depth lost to the tie and got back.
fn loss_table(loops: usize, losses: &[LayerLoss]) -> Table {
    let unique = losses.len() / loops.max(1);
    let mut table = Table::new("What the tie loses")
        .column("layer", Unit::Plain)
        .column("unique layer", Unit::Plain)
        .column("|W - W'| / |W|", Unit::Percent)
        .column("energy kept", Unit::Percent)
        .column("error left", Unit::Percent);
    let mut total = LayerLoss::default();
    for (depth, loss) in losses.iter().enumerate() {
        total = total.plus(*loss);
        let tied = LayerLoss { kept_energy: 0., ..*loss }.relative_error();
        table.push(cells![depth, depth % unique.max(1), tied, loss.kept(), loss.relative_error()]);
    }
    let tied = LayerLoss { kept_energy: 0., ..total }.relative_error();
    table.push(cells!["all", "", tied, total.kept(), total.relative_error()]);
    table
}
