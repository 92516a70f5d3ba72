//! Measures the claims.

use commons_core::cells;
use commons_core::evidence::{Bound, Claim, Compare, Experiment, Figure, Paper, Recipe, Run};
use commons_core::report::Plot;
use commons_core::table::{Table, Unit};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::genome::GenomeConfig;
use super::sampler::SamplerConfig;
use super::simulate::{Strategy, World, WorldConfig, gaussian, utility};
use super::utility::Goal;
use crate::{Error, Result};

/// The evidence for adaptive sampling.
#[derive(Debug, Clone, Copy, Default)]
pub struct Evidence;

/// A world and the budget spent in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Scene {
    /// The population.
    pub world: WorldConfig,
    /// Samples that can be paid.
    pub budget: f64,
    /// Samples per group before curves are looked at.
    pub warm_up: u64,
    /// Samples of a batch.
    pub batch: u64,
}

/// What the evidence is measured on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Repeats, each with its own population or order.
    pub repeats: usize,
    /// Repeats of the estimation of means.
    pub gaussian_repeats: usize,
    /// Where budgets are spent; the first is the world of the claims on scores.
    pub scenes: Vec<Scene>,
}

impl Default for Settings {
    fn default() -> Self {
        let world = WorldConfig::Prs(GenomeConfig::default());
        Self {
            repeats: 3,
            gaussian_repeats: 200,
            scenes: vec![Scene { world, budget: 2000., warm_up: 100, batch: 100 }],
        }
    }
}

const DIRECTION: Figure = Figure::text("direction only (abstract)");

/// Deviations of the groups whose means are estimated.
const DEVIATIONS: [f64; 3] = [0.2, 1., 3.];

impl Experiment for Evidence {
    const PAPER: Paper = Paper {
        slug: "adaptive-sampling",
        title: "Adaptive Sampling Strategies to Construct Equitable Training Datasets",
        year: 2022,
        shares: "a budget of samples among population groups",
        link: "https://arxiv.org/abs/2202.01327",
    };

    const CLAIMS: &'static [Claim] = &[
        Claim::new(
            "optimal",
            "with unknown variances, adaptive sampling comes within 2 % of knowing them",
            Figure::text("attains the optimum (theorem)"),
            "variance_adaptive",
            Bound::AtMost(1.02),
        )
        .against("variance_oracle", Compare::Ratio),
        Claim::new(
            "scores-equal",
            "polygenic scores: mean R² over groups is no lower than by equal sampling",
            DIRECTION,
            "prs_mean_adaptive",
            Bound::AtLeast(0.),
        )
        .against("prs_mean_equal", Compare::Difference),
        Claim::new(
            "scores-proportional",
            "polygenic scores: mean R² over groups is higher than by proportional sampling",
            DIRECTION,
            "prs_mean_adaptive",
            Bound::AtLeast(0.),
        )
        .against("prs_mean_proportional", Compare::Difference),
        Claim::new(
            "worst-equal",
            "polygenic scores: R² of the worst-off group is no lower than by equal sampling",
            DIRECTION,
            "prs_worst_adaptive",
            Bound::AtLeast(0.),
        )
        .against("prs_worst_equal", Compare::Difference),
        Claim::new(
            "worst-proportional",
            "polygenic scores: R² of the worst-off group is higher than by proportional sampling",
            DIRECTION,
            "prs_worst_adaptive",
            Bound::AtLeast(0.),
        )
        .against("prs_worst_proportional", Compare::Difference),
        Claim::new(
            "coalescent-equal",
            "coalescent genomes: R² of the worst-off group is no lower than by equal sampling",
            DIRECTION,
            "plink_worst_adaptive",
            Bound::AtLeast(0.),
        )
        .against("plink_worst_equal", Compare::Difference),
        Claim::new(
            "coalescent-proportional",
            "coalescent genomes: R² of the worst-off group is higher than by proportional sampling",
            DIRECTION,
            "plink_worst_adaptive",
            Bound::AtLeast(0.),
        )
        .against("plink_worst_proportional", Compare::Difference),
    ];

    const RECIPES: &'static [Recipe] =
        &[Recipe::smoke(include_str!("smoke.toml")), Recipe::full(include_str!("full.toml"))];

    type Config = Settings;

    fn run(&self, settings: &Settings, run: &mut Run) -> commons_core::Result<()> {
        Ok(measure(settings, run)?)
    }
}

fn measure(settings: &Settings, run: &mut Run) -> Result<()> {
    if settings.repeats == 0 || settings.gaussian_repeats == 0 || settings.scenes.is_empty() {
        return Err(Error::config("repeats, gaussian_repeats, scenes", "are at least one each"));
    }
    means(settings, run)?;
    for scene in &settings.scenes {
        strategies(settings, scene, run)?;
    }
    if !settings.scenes.iter().any(|s| matches!(s.world, WorldConfig::Plink(_))) {
        for claim in ["coalescent-equal", "coalescent-proportional"] {
            run.not_comparable(claim, "this recipe has no files of genotypes")?;
        }
    }
    Ok(())
}

/// The estimation of three means, where the best allocation is known.
fn means(settings: &Settings, run: &mut Run) -> Result<()> {
    let config = SamplerConfig { budget: 900., warm_up: 10, batch: 10, ..SamplerConfig::default() };
    let objective = |n: &[f64]| -> f64 { DEVIATIONS.iter().zip(n).map(|(s, n)| s * s / n).sum() };
    let total: f64 = DEVIATIONS.iter().sum();
    let oracle: Vec<f64> = DEVIATIONS.iter().map(|s| config.budget * s / total).collect();
    for repeat in 0..settings.gaussian_repeats as u64 {
        let n = gaussian(&DEVIATIONS, &config, run.seed().fork("gaussian", repeat))?;
        let n: Vec<f64> = n.iter().map(|&n| n as f64).collect();
        run.measure("variance_adaptive", objective(&n));
        run.measure("variance_oracle", objective(&oracle));
        run.measure("variance_equal", objective(&[300.; 3]));
        run.measure("variance_proportional", objective(&[720., 135., 45.]));
    }
    Ok(())
}

fn strategies(settings: &Settings, scene: &Scene, run: &mut Run) -> Result<()> {
    let key = scene.world.key();
    let mut outcomes: Vec<Outcome> = GOALS
        .into_iter()
        .flat_map(|(name, goal)| Strategy::ALL.map(|s| Outcome::new(name, goal, s)))
        .collect();
    for repeat in 0..settings.repeats as u64 {
        let seed = run.seed().fork("repeat", repeat);
        let world = World::new(&scene.world, scene.budget as u64, seed)?;
        for outcome in &mut outcomes {
            run.check_stop()?;
            outcome.spend(&world, scene, run)?;
        }
    }
    let mut table = Table::new(format!("Mean over repeats, {key}"))
        .columns(["utility", "strategy", "samples"])
        .column("mean performance", Unit::Plain)
        .column("worst performance", Unit::Plain);
    let mut plot = Plot::new(format!("Worst performance by strategy, {key}")).y("1 − loss");
    for o in &outcomes {
        let average = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
        let shown = o.samples.iter().map(|s| format!("{:.0}", s / settings.repeats as f64));
        let shown = shown.collect::<Vec<_>>().join(", ");
        table.push(cells![o.name, o.strategy.key(), shown, average(&o.mean), average(&o.worst)]);
        if o.goal == Goal::MaxMin {
            let interval = commons_core::stats::t_interval(&o.worst, 0.95).ok();
            let interval = interval.map(|i| (i.low, i.high));
            plot = plot.bar(o.strategy.key(), average(&o.worst), interval);
        }
    }
    run.plot(plot);
    run.table(table);
    Ok(())
}

/// Utilities that strategies are asked for.
const GOALS: [(&str, Goal); 2] = [("mean", Goal::Utilitarian), ("worst", Goal::MaxMin)];

/// What a strategy brought in the repeats so far.
struct Outcome {
    name: &'static str,
    goal: Goal,
    strategy: Strategy,
    mean: Vec<f64>,
    worst: Vec<f64>,
    /// Sums over repeats, by group.
    samples: Vec<f64>,
}

impl Outcome {
    fn new(name: &'static str, goal: Goal, strategy: Strategy) -> Self {
        let (mean, worst, samples) = (Vec::new(), Vec::new(), Vec::new());
        Self { name, goal, strategy, mean, worst, samples }
    }

    fn spend(&mut self, world: &World, scene: &Scene, run: &mut Run) -> Result<()> {
        let config = SamplerConfig {
            utility: self.goal,
            budget: scene.budget,
            warm_up: scene.warm_up,
            batch: scene.batch,
            ..SamplerConfig::default()
        };
        let n = world.spend(self.strategy, &config)?;
        let losses = world.losses(&n);
        let (mean, worst) =
            (utility(Goal::Utilitarian, 1., &losses), utility(Goal::MaxMin, 1., &losses));
        let judged = if self.goal == Goal::MaxMin { worst } else { mean };
        let (key, strategy) = (scene.world.key(), self.strategy.key());
        run.measure(&format!("{key}_{}_{strategy}", self.name), judged);
        self.mean.push(mean);
        self.worst.push(worst);
        self.samples.resize(n.len(), 0.);
        self.samples.iter_mut().zip(&n).for_each(|(s, n)| *s += *n as f64);
        Ok(())
    }
}
