//! Measures the claims.

use commons_core::evidence::{Bound, Claim, Compare, Experiment, Figure, Paper, Recipe, Run};
use commons_core::report::Plot;
use commons_core::stats::mean;
use commons_core::table::{Table, Unit};
use commons_core::{Seed, cells};
use commons_nn::model::moe::MoeTimeSums;
use commons_ops::Selection;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::imbalance::simulate;
use super::study::{OnDevices, Router, Study, Trained};
use crate::material::MaterialConfig;
use crate::{Error, Result};

/// The evidence for MoGE.
#[derive(Debug, Clone, Copy, Default)]
pub struct Evidence;

/// Batches of routers without a model, sized as the paper's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Simulation {
    /// `N`: experts.
    pub experts: usize,
    /// `M`: groups, one per device.
    pub groups: usize,
    /// `K`: experts of a token.
    pub active: usize,
    /// Tokens of a batch, rising; the claim is about the first that is at least 16.
    pub tokens: Vec<usize>,
    /// Exponent of Zipf's law for the skewed router.
    pub skew: f64,
    /// Batches of each size.
    pub draws: u64,
}

impl Default for Simulation {
    fn default() -> Self {
        let tokens = vec![4, 8, 16, 32, 64, 256];
        Self { experts: 64, groups: 8, active: 8, tokens, skew: 0.5, draws: 1000 }
    }
}

impl Simulation {
    /// Checks what the claim needs.
    ///
    /// # Errors
    /// Naming the field.
    fn check(&self) -> Result<()> {
        if self.draws == 0 {
            return Err(Error::config("simulation.draws", "must be at least 1"));
        }
        if self.tokens.contains(&0) || !self.tokens.iter().any(|&n| n >= CLAIMED_TOKENS) {
            let reason = format!("need positive sizes, one of at least {CLAIMED_TOKENS}");
            return Err(Error::config("simulation.tokens", reason));
        }
        Ok(())
    }
}

/// Tokens of the batch that the claim on uneven batches is about, at least.
const CLAIMED_TOKENS: usize = 16;

/// What the evidence is measured on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Routers without a model.
    pub simulation: Simulation,
    /// The texts; the model is not used.
    pub material: MaterialConfig,
    /// Training and devices.
    pub study: Study,
    /// Repeats.
    pub seeds: Vec<u64>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            simulation: Simulation::default(),
            material: MaterialConfig::default(),
            study: Study::default(),
            seeds: vec![0, 1, 2],
        }
    }
}

impl Experiment for Evidence {
    const PAPER: Paper = Paper {
        slug: "moge",
        title: "Pangu Pro MoE: Mixture of Grouped Experts for Efficient Sparsity",
        year: 2025,
        shares: "the work of a batch in equal parts among groups of experts, one per device",
        link: "https://arxiv.org/abs/2505.21411",
    };

    const CLAIMS: &'static [Claim] = &[
        Claim::new(
            "balanced",
            "in a trained decoder the imbalance score of groups is 0",
            Figure::Number(0.),
            "imbalance_moge",
            Bound::AtMost(0.),
        ),
        Claim::new(
            "uneven",
            "with 64 experts, 8 taken, 8 devices and 16 tokens top-K is practically never balanced",
            Figure::text("probability of IS > 0 close to 1"),
            "simulated_uneven",
            Bound::AtLeast(0.99),
        ),
        Claim::new(
            "quality",
            "test loss is within a hundredth of that of top-K with as many parameters",
            Figure::text("ours; the paper reports whole models"),
            "loss_moge",
            Bound::AtMost(1.01),
        )
        .against("loss_topk", Compare::Ratio),
        Claim::new(
            "groups",
            "test loss is within a hundredth of that of top-K whose weights, as in groups, keep their \
             sum",
            Figure::text("not in the paper"),
            "loss_moge",
            Bound::AtMost(1.01),
        )
        .against("loss_topk_raw", Compare::Ratio),
        Claim::new(
            "wall",
            "one thread per group finishes a batch no later than with top-K",
            Figure::text("direction only"),
            "wall_ms_moge",
            Bound::AtMost(1.),
        )
        .against("wall_ms_topk", Compare::Ratio),
        Claim::new(
            "gap",
            "the time that the first thread waits for the last is at most half of that with top-K",
            Figure::text("largest difference between devices more than halved"),
            "gap_ms_moge",
            Bound::AtMost(0.5),
        )
        .against("gap_ms_topk", Compare::Ratio),
    ];

    const RECIPES: &'static [Recipe] =
        &[Recipe::smoke(include_str!("smoke.toml")), Recipe::full(include_str!("full.toml"))];

    type Config = Settings;

    fn run(&self, settings: &Settings, run: &mut Run) -> commons_core::Result<()> {
        Ok(measure(settings, run)?)
    }
}

fn measure(settings: &Settings, run: &mut Run) -> Result<()> {
    let study = &settings.study;
    study.check()?;
    settings.simulation.check()?;
    if settings.seeds.is_empty() {
        return Err(Error::config("seeds", "give at least one"));
    }
    let (mut all, mut devices) = (Vec::new(), Vec::new());
    for &seed in &settings.seeds {
        let seed = run.seed().fork("repeat", seed);
        simulated(&settings.simulation, seed, devices.is_empty(), run)?;
        let texts = settings.material.byte_texts(seed)?;
        let mut models = Vec::new();
        for router in Router::ALL {
            let trained = study.train(router, &texts, seed, run)?;
            run.measure(&format!("loss_{}", router.key()), trained.loss);
            run.measure(&format!("step_seconds_{}", router.key()), trained.step_seconds);
            models.push(trained);
        }
        let on = study.on_devices(&models, &texts.1, seed, run)?;
        for router in Router::ALL {
            let of = |f: fn(&OnDevices) -> f64| {
                let own = on.iter().filter(|(r, _)| *r == router);
                mean(&own.map(|(_, d)| f(d)).collect::<Vec<_>>())
            };
            let key = router.key();
            run.measure(&format!("imbalance_{key}"), of(|d| d.imbalance));
            run.measure(&format!("wall_ms_{key}"), of(|d| d.wall_ms));
            run.measure(&format!("gap_ms_{key}"), of(|d| d.gap_ms));
        }
        all.extend(models);
        devices.extend(on);
    }
    run.table(model_table(&all));
    run.table(device_table(&devices));
    run.table(time_table(&all));
    Ok(())
}

/// Routes random scores; the first repeat also gives tables and plots.
fn simulated(simulation: &Simulation, seed: Seed, show: bool, run: &mut Run) -> Result<()> {
    let &Simulation { experts, groups, active, skew, draws, .. } = simulation;
    let plain = Selection::top_k(experts, active);
    let grouped = Selection { experts, active, groups };
    let mut table = Table::new("Routers without a model, imbalance score over devices")
        .columns(["router", "scores", "tokens", "mean IS", "busiest device over mean"])
        .column("balanced batches", Unit::Percent);
    let mut plot = Plot::new("Mean imbalance score").x("tokens").y("IS").log_x();
    let at = simulation.tokens.iter().copied().find(|&n| n >= CLAIMED_TOKENS);
    for (name, selection) in [("top-K", plain), ("MoGE", grouped)] {
        for (scores, skew) in [("uniform", 0.), ("Zipf", skew)] {
            let mut line = Vec::new();
            for &tokens in &simulation.tokens {
                run.check_stop()?;
                let seed = seed.fork("simulation", tokens as u64);
                let seen = simulate(selection, groups, tokens, skew, draws, seed)?;
                let zero = seen.imbalance.iter().filter(|i| **i == 0.).count();
                let balanced = zero as f64 / draws.max(1) as f64;
                let score = mean(&seen.imbalance);
                if name == "top-K" && skew == 0. && Some(tokens) == at {
                    run.measure("simulated_uneven", 1. - balanced);
                    if show {
                        run.plot(histogram(tokens, &seen.imbalance));
                    }
                }
                table.push(cells![name, scores, tokens, score, mean(&seen.busiest), balanced]);
                line.push((tokens as f64, score));
            }
            plot = plot.line(format!("{name}, {scores}"), line);
        }
    }
    if show {
        run.table(table);
        run.plot(plot);
    }
    Ok(())
}

/// Bars of the share of batches per tenth of the imbalance score.
fn histogram(tokens: usize, scores: &[f64]) -> Plot {
    let most = scores.iter().copied().fold(0., f64::max);
    let bins = (most * 10.).floor() as usize + 1;
    let mut counts = vec![0usize; bins];
    scores.iter().for_each(|s| counts[((s * 10.).floor() as usize).min(bins - 1)] += 1);
    let plot = Plot::new(format!("Imbalance scores of top-K, {tokens} tokens")).y("share");
    counts.iter().enumerate().fold(plot, |plot, (i, &n)| {
        plot.bar(format!("{:.1}", i as f64 / 10.), n as f64 / scores.len() as f64, None)
    })
}

fn model_table(all: &[Trained]) -> Table {
    let mut table = Table::new("Decoders, repeat by repeat")
        .columns(["router"])
        .column("parameters", Unit::Si)
        .columns([
            "test loss, nats per byte",
            "balance loss (least 1)",
            "busiest expert of a group over mean",
            "ms per step",
        ]);
    for t in all {
        let stored = t.model.bank.stored();
        let ms = 1e3 * t.step_seconds;
        table.push(cells![t.router.key(), stored, t.loss, t.balance, t.busiest_expert, ms]);
    }
    table
}

fn device_table(all: &[(Router, OnDevices)]) -> Table {
    let mut table = Table::new("Experts on one thread per group, repeat by repeat").columns([
        "router",
        "tokens",
        "IS",
        "busiest device over mean",
        "ms until the last is done",
        "ms the first waits",
    ]);
    for (router, d) in all {
        table.push(cells![router.key(), d.tokens, d.imbalance, d.busiest, d.wall_ms, d.gap_ms]);
    }
    table
}

fn time_table(all: &[Trained]) -> Table {
    let mut table = Table::new("Forward pass of a mixture while training, microseconds (means)")
        .columns(["router"])
        .columns(MoeTimeSums::PARTS);
    for t in all {
        let Some(means) = t.times.means() else { continue };
        let mut row = cells![t.router.key()];
        row.extend(means.iter().flat_map(|s| cells![1e6 * s]));
        table.push(row);
    }
    table
}
