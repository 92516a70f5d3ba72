//! Measures the claims.

use commons_core::cells;
use commons_core::evidence::{Bound, Claim, Compare, Experiment, Figure, Paper, Recipe, Run};
use commons_core::report::Plot;
use commons_core::table::{Table, Unit};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::baseline::Reservoir;
use super::learner::{FairForest, ForestConfig};
use super::study::{Learner, Point, Source, Study, trade_off};
use crate::Result;
use crate::tabular::People;

/// The evidence for the fair forest.
#[derive(Debug, Clone, Copy, Default)]
pub struct Evidence;

/// What the evidence is measured on.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// What is compared.
    pub study: Study,
}

const CURVE: Figure = Figure::text("better trade-off (curves)");

impl Experiment for Evidence {
    const PAPER: Paper = Paper {
        slug: "aranyani",
        title: "Enhancing Group Fairness in Online Settings Using Oblique Decision Forests",
        year: 2024,
        shares: "decisions of one online model fairly among groups, without storing anyone",
        link: "https://arxiv.org/abs/2310.11401",
    };

    const CLAIMS: &'static [Claim] = &[
        Claim::new(
            "leaf",
            "over the range of parity, accuracy is no lower than with a constraint on the decision",
            CURVE,
            "trade_off_aranyani",
            Bound::AtLeast(0.),
        )
        .against("trade_off_leaf", Compare::Difference),
        Claim::new(
            "mlp",
            "over the range of parity, accuracy is no lower than an online network's",
            CURVE,
            "trade_off_aranyani",
            Bound::AtLeast(0.),
        )
        .against("trade_off_mlp", Compare::Difference),
        Claim::new(
            "majority",
            "over the range of parity, accuracy is higher than from mixing in the majority label",
            CURVE,
            "trade_off_aranyani",
            Bound::AtLeast(0.),
        )
        .against("trade_off_majority", Compare::Difference),
        Claim::new(
            "parity",
            "at λ = 0.1 the gap is at most half of the unconstrained forest's",
            CURVE,
            "dp_constrained",
            Bound::AtMost(0.5),
        )
        .against("dp_free", Compare::Ratio),
        Claim::new(
            "cost",
            "a step costs at most a tenth of one with a reservoir of stored instances",
            Figure::text("no stored instances, no further passes (abstract)"),
            "microseconds",
            Bound::AtMost(0.1),
        )
        .against("microseconds_reservoir", Compare::Ratio),
    ];

    const RECIPES: &'static [Recipe] =
        &[Recipe::smoke(include_str!("smoke.toml")), Recipe::full(include_str!("full.toml"))];

    type Config = Settings;

    fn run(&self, settings: &Settings, run: &mut Run) -> commons_core::Result<()> {
        Ok(measure(&settings.study, run)?)
    }
}

/// Curves of one repeat, by name.
type Curves = Vec<(&'static str, Vec<Point>)>;

fn measure(study: &Study, run: &mut Run) -> Result<()> {
    study.check()?;
    for source in &study.sources {
        let people = source.people(run.seed())?;
        let mut all = Vec::new();
        for repeat in 0..study.repeats as u64 {
            run.check_stop()?;
            let seed = run.seed().fork("repeat", repeat);
            let curves = curves(study, &people, seed)?;
            judge(run, &people, &curves);
            cost(run, study, &people, seed)?;
            all.push(curves);
        }
        report(run, source, &all);
    }
    Ok(())
}

fn curves(study: &Study, people: &People, seed: commons_core::Seed) -> Result<Curves> {
    let mut curves: Curves = Vec::new();
    let mut free = Vec::new();
    for learner in Learner::ALL {
        let mut points = Vec::new();
        for (i, &lambda) in study.lambdas.iter().enumerate() {
            let (point, decisions) = study.pass(learner, people, lambda, seed)?;
            points.push(point);
            if i == 0 && learner == Learner::Aranyani {
                free = decisions;
            }
        }
        curves.push((learner.key(), points));
    }
    curves.push(("hoeffding", vec![study.hoeffding(people)]));
    let shares = (0..=10).map(|k| f64::from(k) / 10.);
    let majority = shares.map(|s| study.majority(people, &free, s, seed)).collect();
    curves.push(("majority", majority));
    Ok(curves)
}

fn judge(run: &mut Run, people: &People, curves: &Curves) {
    let positive = people.label.iter().filter(|l| **l).count() as f64 / people.len() as f64;
    let otherwise = positive.max(1. - positive);
    let of = |name: &str| curves.iter().find(|(n, _)| *n == name).map_or(&[][..], |(_, c)| c);
    let free = of("aranyani").first().map_or(f64::NAN, |p| p.dp);
    for name in ["aranyani", "leaf", "mlp", "majority"] {
        run.measure(&format!("trade_off_{name}"), trade_off(of(name), free, otherwise));
    }
    let constrained = of("aranyani").iter().find(|p| p.at >= 0.1).map_or(f64::NAN, |p| p.dp);
    run.measure("dp_free", free);
    run.measure("dp_constrained", constrained);
}

/// Microseconds per step with running means and with a reservoir.
fn cost(run: &mut Run, study: &Study, people: &People, seed: commons_core::Seed) -> Result<()> {
    let config = ForestConfig { lambda: 0.5, ..study.forest.clone() };
    let width = people.features.width();
    let instance = |i: usize| {
        let i = i % people.len();
        (people.features.row(i), usize::from(people.label[i]), people.group[i])
    };
    let steps = study.reservoir_steps.max(1);
    let mut reservoir = Reservoir::new(config.clone(), width, study.reservoir, seed)?;
    // Filled first, so that every timed step runs the whole of it.
    reservoir.fill((0..4 * study.reservoir).map(|i| {
        let (x, _, a) = instance(i);
        (x, a)
    }));
    let began = run.elapsed();
    for i in 0..steps {
        let (x, y, a) = instance(i);
        reservoir.learn(x, y, a)?;
    }
    let stored = run.elapsed().saturating_sub(began).as_secs_f64() / steps as f64;
    let mut forest = FairForest::new(config, width, seed)?;
    let began = run.elapsed();
    for i in 0..10 * steps {
        let (x, y, a) = instance(i);
        forest.learn(x, y, a)?;
    }
    let running = run.elapsed().saturating_sub(began).as_secs_f64() / (10 * steps) as f64;
    run.measure("microseconds", 1e6 * running);
    run.measure("microseconds_reservoir", 1e6 * stored);
    Ok(())
}

fn report(run: &mut Run, source: &Source, all: &[Curves]) {
    let Some(first) = all.first() else { return };
    let mut table = Table::new(format!("Mean over repeats, {}", source.key()))
        .columns(["learner", "λ or share"])
        .column("accuracy", Unit::Percent)
        .column("DP", Unit::Plain);
    let mut plot = Plot::new(format!("Accuracy against demographic parity, {}", source.key()))
        .x("DP gap")
        .y("prequential accuracy");
    for (c, (name, points)) in first.iter().enumerate() {
        let mean = |i: usize, of: fn(&Point) -> f64| {
            all.iter().map(|curves| of(&curves[c].1[i])).sum::<f64>() / all.len() as f64
        };
        let means: Vec<(f64, f64, f64)> = (0..points.len())
            .map(|i| (points[i].at, mean(i, |p| p.accuracy), mean(i, |p| p.dp)))
            .collect();
        for &(at, accuracy, dp) in &means {
            table.push(cells![*name, at, accuracy, dp]);
        }
        plot = plot.line(*name, means.iter().map(|&(_, accuracy, dp)| (dp, accuracy)));
    }
    run.plot(plot);
    run.table(table);
}
