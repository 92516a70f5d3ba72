//! Measures the claims.

use commons_core::evidence::{Bound, Claim, Compare, Experiment, Figure, Paper, Recipe, Run};
use commons_core::progress::Task;
use commons_core::table::{Table, Unit};
use commons_core::{Seed, cells};
use commons_nn::eval::ExitProfile;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::study::{Ending, Start, Study, Variant};
use crate::compress::Context;
use crate::material::{Material, MaterialConfig};
use crate::{Error, Result};

/// Perplexity that leaving early may cost, as a factor.
const AFFORDABLE: f64 = 1.05;

/// The evidence for [`super::RelaxedRecursive`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Evidence;

/// What the evidence is measured on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Model and texts.
    pub material: MaterialConfig,
    /// What is compared.
    pub study: Study,
    /// Repeats: a decoder from scratch is trained again for each, a pretrained one healed again.
    pub seeds: Vec<u64>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { material: MaterialConfig::default(), study: Study::default(), seeds: vec![0] }
    }
}

impl Experiment for Evidence {
    const PAPER: Paper = Paper {
        slug: "relaxed-recursive",
        title: "Relaxed Recursive Transformers: Effective Parameter Sharing with Layer-wise LoRA",
        year: 2024,
        shares: "one looped block of layers, relaxed by low-rank terms per depth",
        link: "https://arxiv.org/abs/2410.20672",
    };

    const CLAIMS: &'static [Claim] = &[
        Claim::new(
            "full-rank",
            "at full rank the relaxed model is the original",
            Figure::text("exact (section 2.3)"),
            "full_rank_loss_gap",
            Bound::AtMost(1e-3),
        ),
        Claim::new(
            "rank",
            "right after conversion, perplexity falls with every larger rank",
            Figure::text("monotone (ranks 64 to 512)"),
            "falling_share",
            Bound::AtLeast(1.),
        ),
        Claim::new(
            "svd-start",
            "after healing, terms that start from the decomposition beat terms that start at zero",
            Figure::text("+6.5 points few-shot accuracy at rank 512"),
            "perplexity_relaxed_svd",
            Bound::AtMost(1.),
        )
        .against("perplexity_relaxed_zero", Compare::Ratio),
        Claim::new(
            "relaxed",
            "after healing, the relaxed model beats the strictly tied one",
            Figure::text("58.4 % relaxed, 58.6 % original few-shot accuracy"),
            "perplexity_relaxed_svd",
            Bound::AtMost(1.),
        )
        .against("perplexity_strict", Compare::Ratio),
        Claim::new(
            "relaxed-over-dropping",
            "after healing, the relaxed model beats dropping layers down to its parameters",
            Figure::text("above non-recursive models of its size"),
            "perplexity_relaxed_svd",
            Bound::AtMost(1.),
        )
        .against("perplexity_dropped_like_relaxed", Compare::Ratio),
        Claim::new(
            "whitened",
            "after healing, terms that weigh errors by the inputs beat the plain decomposition",
            Figure::text("not in the paper"),
            "perplexity_relaxed_whitened",
            Bound::AtMost(1.),
        )
        .against("perplexity_relaxed_svd", Compare::Ratio),
        Claim::new(
            "whitened-over-dropping",
            "and beat dropping layers down to their parameters",
            Figure::text("not in the paper"),
            "perplexity_relaxed_whitened",
            Bound::AtMost(1.),
        )
        .against("perplexity_dropped_like_relaxed", Compare::Ratio),
        Claim::new(
            "fitted",
            "after healing, shared matrices fitted together with such terms beat the mean",
            Figure::text("not in the paper"),
            "perplexity_relaxed_fitted",
            Bound::AtMost(1.),
        )
        .against("perplexity_relaxed_whitened", Compare::Ratio),
        Claim::new(
            "fitted-over-dropping",
            "and beat dropping layers down to their parameters",
            Figure::text("not in the paper"),
            "perplexity_relaxed_fitted",
            Bound::AtMost(1.),
        )
        .against("perplexity_dropped_like_relaxed", Compare::Ratio),
        Claim::new(
            "strict-over-dropping",
            "after healing, strict tying beats dropping layers down to its parameters",
            Figure::text("up to +13.5 points over a non-recursive model of its size"),
            "perplexity_strict",
            Bound::AtMost(1.),
        )
        .against("perplexity_dropped_like_strict", Compare::Ratio),
        Claim::new(
            "exits",
            "healing with early exits takes at least 0.1 nats off the loss after the first loop",
            Figure::text("exits need training (section 2.4)"),
            "loss_first_loop_exits",
            Bound::AtMost(-0.1),
        )
        .against("loss_first_loop", Compare::Difference),
        Claim::new(
            "exits-cost",
            "and costs the whole model at most 5 % of its perplexity",
            Figure::text("small with coefficient 0.1 (section 3.6)"),
            "perplexity_relaxed_exits",
            Bound::AtMost(1.05),
        )
        .against("perplexity_relaxed_fitted", Compare::Ratio),
        Claim::new(
            "exits-save",
            "leaving early then saves at least a tenth of the loops for at most 5 % more perplexity",
            Figure::text("2 to 3 times the throughput, with batching over depths (abstract)"),
            "loops_saved",
            Bound::AtLeast(0.1),
        ),
    ];

    const RECIPES: &'static [Recipe] = &[
        Recipe::smoke(include_str!("smoke.toml")),
        Recipe::full(include_str!("full.toml")),
        Recipe {
            name: "scratch",
            about: "decoders of ten million parameters trained from scratch, three seeds (about 15 minutes)",
            toml: include_str!("scratch.toml"),
        },
    ];

    type Config = Settings;

    fn run(&self, settings: &Settings, run: &mut Run) -> commons_core::Result<()> {
        Ok(measure(settings, run)?)
    }
}

fn measure(settings: &Settings, run: &mut Run) -> Result<()> {
    if settings.seeds.is_empty() {
        return Err(Error::config("seeds", "give at least one"));
    }
    let mut material: Option<Material> = None;
    let mut endings = Vec::new();
    for &seed in &settings.seeds {
        let current = match material.take().filter(|_| settings.material.model != "scratch") {
            Some(same) => same,
            None => {
                let mut config = settings.material.clone();
                config.scratch.train.seed = seed;
                let fresh = config.prepare(Seed::new(seed), run)?;
                starts(settings, &fresh, seed, run)?;
                fresh
            }
        };
        endings.extend(healed(settings, &current, seed, run)?);
        material = Some(current);
    }
    run.table(ending_table(&endings));
    run.table(exit_table(&endings));
    Ok(())
}

/// Calls `work` with a context that shows the progress of `run` and obeys its stop flag.
fn with_context<T>(
    seed: u64,
    run: &Run,
    work: impl FnOnce(&mut Context<'_>) -> Result<T>,
) -> Result<T> {
    let shown = run.progress();
    let mut current: Option<(String, Box<dyn Task>)> = None;
    let mut progress = |what: &str, done: usize, total: usize| {
        if current.as_ref().is_none_or(|(label, _)| label != what) {
            current = Some((what.to_owned(), shown.task(what, Some(total as u64))));
        }
        if let Some((_, task)) = &mut current {
            task.update(done as u64, "");
        }
    };
    work(&mut Context { calibration: &[], seed, stop: run.stop().flag(), progress: &mut progress })
}

/// Scores conversions before any healing.
fn starts(settings: &Settings, material: &Material, seed: u64, run: &mut Run) -> Result<()> {
    let study = &settings.study;
    let original = study.score(&material.model, material)?;
    run.measure("perplexity_original", original);
    let (starts, full) = with_context(seed, run, |context| {
        Ok((study.starts(material, context)?, study.full_rank(material, context)?))
    })?;
    run.measure("full_rank_loss_gap", (full.perplexity / original).ln().abs());
    run.measure("full_rank_logit_error", full.logit_error);
    run.measure("falling_share", falling_share(&starts));
    let mut table =
        Table::new(format!("Right after conversion, original {original:.2} (seed {seed})"))
            .column("init", Unit::Plain)
            .column("rank", Unit::Plain)
            .column("stored", Unit::Si)
            .column("perplexity", Unit::Plain);
    for start in &starts {
        let init = format!("{:?}", start.init).to_lowercase();
        run.log(start.rank as u64, &format!("{init}-{seed}/perplexity by rank"), start.perplexity)?;
        table.push(cells![init, start.rank, start.stored, start.perplexity]);
    }
    run.table(table);
    Ok(())
}

/// Share of the steps to a larger rank, over all inits, that lower the perplexity.
fn falling_share(starts: &[Start]) -> f64 {
    let steps: Vec<bool> = starts
        .windows(2)
        .filter(|w| w[0].init == w[1].init)
        .map(|w| w[1].perplexity < w[0].perplexity)
        .collect();
    steps.iter().filter(|fell| **fell).count() as f64 / steps.len().max(1) as f64
}

fn healed(
    settings: &Settings,
    material: &Material,
    seed: u64,
    run: &mut Run,
) -> Result<Vec<Ending>> {
    let folder = run.checkpoints()?;
    let mut losses = Vec::new();
    let endings = with_context(seed, run, |context| {
        settings.study.endings(material, seed, context, Some(&folder), &mut |variant, healed| {
            losses.push((variant, healed.losses.clone()));
        })
    })?;
    for (variant, losses) in losses {
        for (step, loss) in losses.into_iter().enumerate() {
            run.log(step as u64 + 1, &format!("{}-{seed}/healing loss", variant.key()), loss)?;
        }
    }
    for ending in &endings {
        let key = ending.variant.key();
        run.measure(&format!("perplexity_{key}"), ending.after);
        run.measure(&format!("stored_{key}"), ending.stored as f64);
        let Some(profile) = &ending.exits else { continue };
        let Some(&first) = profile.losses.first() else { continue };
        if ending.variant == Variant::RelaxedExits {
            run.measure("loss_first_loop_exits", first);
            run.measure("loops_saved", loops_saved(profile));
        } else {
            run.measure("loss_first_loop", first);
        }
    }
    Ok(endings)
}

/// Largest share of the loops that any threshold saves for at most [`AFFORDABLE`] of the perplexity
/// of the whole model.
fn loops_saved(profile: &ExitProfile) -> f64 {
    let loops = profile.losses.len() as f64;
    let whole = profile.losses.last().copied().unwrap_or(f64::NAN);
    let affordable = profile.exits.iter().filter(|e| e.loss - whole <= AFFORDABLE.ln());
    affordable.map(|e| 1. - e.mean_loops / loops).fold(0., f64::max)
}

fn ending_table(endings: &[Ending]) -> Table {
    let mut table = Table::new("Healed")
        .column("model", Unit::Plain)
        .column("seed", Unit::Plain)
        .column("stored", Unit::Si)
        .column("layers passed", Unit::Plain)
        .column("perplexity before", Unit::Plain)
        .column("after", Unit::Plain);
    for variant in Variant::ALL {
        for e in endings.iter().filter(|e| e.variant == variant) {
            table.push(cells![variant.label(), e.seed, e.stored, e.layers, e.before, e.after]);
        }
    }
    table
}

/// What leaving early costs and saves.
fn exit_table(endings: &[Ending]) -> Table {
    let mut table = Table::new("Leaving early")
        .column("model", Unit::Plain)
        .column("seed", Unit::Plain)
        .column("leave at", Unit::Plain)
        .column("loops passed", Unit::Plain)
        .column("same word as the whole model", Unit::Percent)
        .column("perplexity", Unit::Plain);
    for ending in endings {
        let Some(profile) = &ending.exits else { continue };
        let label = ending.variant.label();
        if let Some(whole) = profile.losses.last() {
            let loops = profile.losses.len() as f64;
            table.push(cells![label, ending.seed, "never", loops, 1., whole.exp()]);
        }
        for exit in &profile.exits {
            table.push(cells![
                label,
                ending.seed,
                exit.threshold,
                exit.mean_loops,
                exit.agreement,
                exit.loss.exp(),
            ]);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use commons_nn::eval::Exit;

    use super::*;

    #[test]
    fn only_affordable_thresholds_save_loops() {
        let exit =
            |threshold, mean_loops, loss| Exit { threshold, mean_loops, agreement: 1., loss };
        let exits = vec![exit(0.3, 1., 3.2), exit(0.5, 1.5, 3.04), exit(0.9, 1.9, 3.01)];
        let mut profile = ExitProfile { losses: vec![5., 3.], exits, tokens: 10 };
        assert!((loops_saved(&profile) - 0.25).abs() < 1e-12);
        profile.exits.truncate(1);
        assert_eq!(loops_saved(&profile), 0.);
    }
}
