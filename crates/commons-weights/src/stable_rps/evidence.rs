//! Measures the claims.

use commons_core::cells;
use commons_core::evidence::{Bound, Claim, Compare, Experiment, Figure, Paper, Recipe, Run};
use commons_core::report::Plot;
use commons_core::stats::{Summary, mean};
use commons_core::table::{Table, Unit};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::prune::Score;
use super::study::{Arm, Repeat, Study, Trained};
use crate::images::ImagesConfig;
use crate::{Error, Result};

/// The evidence for [`super::StableRps`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Evidence;

/// What the evidence is measured on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// What is compared.
    pub study: Study,
    /// Repeats on every data set.
    pub seeds: Vec<u64>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { study: Study::default(), seeds: vec![0, 1, 2] }
    }
}

const ABSTRACT: Figure = Figure::text("direction only (abstract)");

impl Experiment for Evidence {
    const PAPER: Paper = Paper {
        slug: "stable-rps",
        title: "In defense of parameter sharing for model-compression",
        year: 2024,
        shares: "one small pool, from which all weights of a network are read by a hash",
        link: "https://arxiv.org/abs/2310.11611",
    };

    const CLAIMS: &'static [Claim] = &[
        Claim::new(
            "continuity",
            "without compression, twenty steps follow the dense network's losses",
            Figure::text("exact (Pareto-continuity)"),
            "trajectory_gap",
            Bound::AtMost(1e-3),
        ),
        Claim::new(
            "high",
            "at high compression it is no worse than the best of MAG, SNIP, SynFlow and GraSP",
            ABSTRACT,
            "accuracy_stable_high",
            Bound::AtLeast(0.),
        )
        .against("accuracy_pruned_high", Compare::Difference),
        Claim::new(
            "range",
            "below that it is within a point of the best of MAG, SNIP, SynFlow and GraSP",
            ABSTRACT,
            "accuracy_stable_low",
            Bound::AtLeast(-0.01),
        )
        .against("accuracy_pruned_low", Compare::Difference),
        Claim::new(
            "small",
            "in the mean over compressions above 1 it is no worse than a narrower network",
            ABSTRACT,
            "accuracy_stable_mean",
            Bound::AtLeast(0.),
        )
        .against("accuracy_small_mean", Compare::Difference),
        Claim::new(
            "one",
            "at compression 1 it is no worse than ROAST",
            ABSTRACT,
            "accuracy_stable_one",
            Bound::AtLeast(0.),
        )
        .against("accuracy_roast_one", Compare::Difference),
        Claim::new(
            "stability",
            "over scales of the initial pool its accuracy spreads less than ROAST's",
            ABSTRACT,
            "spread_stable",
            Bound::AtMost(0.),
        )
        .against("spread_roast", Compare::Difference),
        Claim::new(
            "rewinding",
            "at low compression iterative pruning with rewinding is no worse",
            Figure::text("reviews of the paper"),
            "accuracy_ltr",
            Bound::AtLeast(0.),
        )
        .against("accuracy_stable_ltr", Compare::Difference),
        Claim::new(
            "time",
            "a training step from the pool takes at most 1.3 times a dense one",
            Figure::text("not in the paper"),
            "step_pooled",
            Bound::AtMost(1.3),
        )
        .against("step_dense", Compare::Ratio),
    ];

    const RECIPES: &'static [Recipe] =
        &[Recipe::smoke(include_str!("smoke.toml")), Recipe::full(include_str!("full.toml"))];

    type Config = Settings;

    fn run(&self, settings: &Settings, run: &mut Run) -> commons_core::Result<()> {
        Ok(measure(settings, run)?)
    }
}

/// One network: data set, what made it smaller, compression.
struct Point {
    seed: u64,
    rate: f64,
    data: String,
    key: &'static str,
    compression: f64,
    trained: Trained,
}

fn measure(settings: &Settings, run: &mut Run) -> Result<()> {
    settings.study.check()?;
    if settings.seeds.is_empty() {
        return Err(Error::config("seeds", "give at least one"));
    }
    narrow(&settings.study, run)?;
    let mut points = Vec::new();
    let mut gaps = vec![0f64; settings.seeds.len()];
    for data in &settings.study.data {
        let rates = choose(&settings.study, data, run)?;
        for (&number, gap) in settings.seeds.iter().zip(&mut gaps) {
            let seed = run.seed().fork("repeat", number);
            let sets = data.prepare(seed.fork("images", 0))?;
            let at = Repeat { sets: &sets, seed, run };
            let found = repeat(&settings.study, &rates, (&data.data, number), &at)?;
            points.extend(found);
            *gap = gap.max(settings.study.trajectory_gap(20, &at)?);
        }
        run.plot(curve(&data.data, &points));
    }
    for (&seed, &gap) in settings.seeds.iter().zip(&gaps) {
        let of: Vec<&Point> = points.iter().filter(|p| p.seed == seed).collect();
        judge(&settings.study, &of, run);
        run.measure("trajectory_gap", gap);
    }
    run.table(accuracy_table(&points));
    scales(settings, run)?;
    growth(settings, run)?;
    timing(settings, run)
}

/// What is trained at each compression; `None` is the dense network.
fn arms(study: &Study) -> Vec<(Option<Arm>, f64)> {
    let mut all = vec![(None, 1.)];
    for &c in &study.compressions {
        // Pruning or narrowing nothing is the dense network.
        let pooled = |arm: &Arm| matches!(arm, Arm::Stable | Arm::Roast | Arm::Robe);
        all.extend(Arm::ALL.iter().filter(|arm| c > 1. || pooled(arm)).map(|&arm| (Some(arm), c)));
    }
    all
}

fn train(study: &Study, arm: Option<Arm>, compression: f64, at: &Repeat<'_>) -> Result<Trained> {
    match arm {
        None => study.full(at),
        Some(arm) => study.arm(arm, compression, at),
    }
}

/// The peak rate of everything in [`arms`], in its order, chosen on images of `data` that no repeat
/// scores. Every method and compression gets the same tries.
fn choose(study: &Study, data: &ImagesConfig, run: &Run) -> Result<Vec<f64>> {
    let all = arms(study);
    if study.learning_rates.is_empty() {
        return Ok(vec![study.learning_rate; all.len()]);
    }
    let tries = (0..study.choice_seeds)
        .map(|i| {
            let seed = run.seed().fork("choice", i);
            Ok((seed, data.prepare(seed.fork("images", 0))?.hold_out(study.held_out)?))
        })
        .collect::<Result<Vec<_>>>()?;
    let progress = run.progress();
    let mut task = progress.task(&format!("rates for {}", data.data), Some(all.len() as u64));
    let mut rates = Vec::with_capacity(all.len());
    for (arm, c) in all {
        let accuracy = |study: &Study| {
            let reached = tries.iter().map(|(seed, sets)| {
                Ok(train(study, arm, c, &Repeat { sets, seed: *seed, run })?.accuracy)
            });
            Ok(mean(&reached.collect::<Result<Vec<_>>>()?))
        };
        rates.push(study.best_rate(accuracy)?);
        task.update(rates.len() as u64, "");
    }
    Ok(rates)
}

fn repeat(
    study: &Study,
    rates: &[f64],
    (data, number): (&str, u64),
    at: &Repeat<'_>,
) -> Result<Vec<Point>> {
    let mut points = Vec::new();
    let progress = at.run.progress();
    let mut task = progress.task(data, None);
    let mut add = |key: &'static str, (compression, rate): (f64, f64), trained: Trained| {
        task.update(points.len() as u64, &format!("{key} {compression}: {}", trained.accuracy));
        points.push(Point { seed: number, rate, data: data.into(), key, compression, trained });
    };
    for ((arm, c), &rate) in arms(study).into_iter().zip(rates) {
        let key = arm.map_or("dense", Arm::key);
        add(key, (c, rate), train(&study.at_rate(rate), arm, c, at)?);
    }
    // Each round of rewinding trains the network anew: it takes the rate of the dense one.
    let rate = rates.first().copied().unwrap_or(study.learning_rate);
    for &c in &study.rewinding {
        add("ltr", (c, rate), study.at_rate(rate).rewound(c, at)?);
    }
    Ok(points)
}

/// Excuses the claims on compressions that the study leaves out.
fn narrow(study: &Study, run: &mut Run) -> Result<()> {
    if !study.compressions.iter().any(|&c| c > 1. && c < study.high) {
        run.not_comparable("range", "no compression lies between 1 and `high`")?;
    }
    if study.rewinding.is_empty() {
        run.not_comparable("rewinding", "`rewinding` is empty")?;
    }
    Ok(())
}

/// Measures of one repeat.
fn judge(study: &Study, points: &[&Point], run: &mut Run) {
    let of = |keys: &[&str], data: &str, c: f64| {
        let same = points.iter().filter(|p| p.data == data && p.compression == c);
        let found = same.filter(|p| keys.contains(&p.key)).map(|p| p.trained.accuracy);
        found.fold(f64::NAN, f64::max)
    };
    // The best of `keys` at every compression and data set, in the mean.
    let over = |keys: &[&str], at: &dyn Fn(f64) -> bool| {
        let data = study.data.iter().flat_map(|d| study.compressions.iter().map(move |c| (d, *c)));
        let all = data.filter(|(_, c)| at(*c)).map(|(d, c)| of(keys, &d.data, c));
        mean(&all.collect::<Vec<_>>())
    };
    let pruned = ["mag", "snip", "synflow", "grasp"];
    let (high, low) = (|c| c >= study.high, |c| c > 1. && c < study.high);
    let (above, rewound) = (|c| c > 1., |c| study.rewinding.contains(&c));
    // Not a number is the mean over nothing: see `narrow`.
    let mut record = |key: &str, value: f64| {
        if !value.is_nan() {
            run.measure(key, value);
        }
    };
    record("accuracy_stable_high", over(&["stable"], &high));
    record("accuracy_pruned_high", over(&pruned, &high));
    record("accuracy_stable_low", over(&["stable"], &low));
    record("accuracy_pruned_low", over(&pruned, &low));
    record("accuracy_stable_mean", over(&["stable"], &above));
    record("accuracy_small_mean", over(&["small"], &above));
    record("accuracy_stable_one", over(&["stable"], &|c| c == 1.));
    record("accuracy_roast_one", over(&["roast"], &|c| c == 1.));
    record("accuracy_dense", over(&["dense"], &|c| c == 1.));
    record("accuracy_ltr", over(&["ltr"], &rewound));
    record("accuracy_stable_ltr", over(&["stable"], &rewound));
}

/// Points of one data set, method and compression together.
fn gathered(points: &[Point]) -> Vec<Vec<&Point>> {
    let mut all: Vec<Vec<&Point>> = Vec::new();
    for p in points {
        let like = |of: &&mut Vec<&Point>| {
            of[0].data == p.data && of[0].key == p.key && of[0].compression == p.compression
        };
        match all.iter_mut().find(like) {
            Some(of) => of.push(p),
            None => all.push(vec![p]),
        }
    }
    all
}

fn accuracies(of: &[&Point]) -> Vec<f64> {
    of.iter().map(|p| p.trained.accuracy).collect()
}

fn accuracy_table(points: &[Point]) -> Table {
    let mut table = Table::new("Accuracy, mean over seeds")
        .columns(["data", "method", "compression", "peak rate"])
        .column("stored", Unit::Si)
        .column("accuracy", Unit::Percent)
        .column("95 % ±", Unit::Percent)
        .columns(["collapsed layers, at most"]);
    for of in gathered(points) {
        let values = accuracies(&of);
        let spread = Summary::of(&values).ok().and_then(|s| s.interval).map(|i| i.half_width());
        let p = of[0];
        table.push(cells![
            p.data.as_str(),
            p.key,
            p.compression,
            p.rate,
            p.trained.stored,
            mean(&values),
            spread,
            of.iter().map(|p| p.trained.collapsed).max()
        ]);
    }
    table
}

fn curve(data: &str, points: &[Point]) -> Plot {
    let mut plot =
        Plot::new(format!("Accuracy over compression, {data}")).x("compression").y("accuracy");
    plot = plot.log_x();
    let all = gathered(points);
    let keys = Arm::ALL.iter().map(|a| a.key()).chain(["ltr"]);
    for key in keys {
        let of = all.iter().filter(|of| of[0].key == key && of[0].data == data);
        let line = of.map(|of| {
            let values = accuracies(of);
            let (m, i) = (mean(&values), Summary::of(&values).ok().and_then(|s| s.interval));
            let (low, high) = i.map_or((m, m), |i| (i.low.max(0.), i.high.min(1.)));
            (of[0].compression, m, low, high)
        });
        plot = plot.band(key, line);
    }
    plot
}

/// Accuracy over the scale of the initial pool, on the first data set.
fn scales(settings: &Settings, run: &mut Run) -> Result<()> {
    let study = &settings.study;
    let Some(data) = study.data.first() else { return Ok(()) };
    let mut table = Table::new("Accuracy by scale of the initial pool, compression 10")
        .columns(["scale", "seed"])
        .column("STABLE-RPS", Unit::Percent)
        .column("ROAST", Unit::Percent);
    for &seed in &settings.seeds {
        let forked = run.seed().fork("repeat", seed);
        let sets = data.prepare(forked.fork("images", 0))?;
        let mut seen = [Vec::new(), Vec::new()];
        for &scale in &study.scales {
            let at = Repeat { sets: &sets, seed: forked, run };
            let stable = study.at_scale(scale, true, &at)?;
            let roast = study.at_scale(scale, false, &at)?;
            table.push(cells![scale, seed, stable, roast]);
            seen[0].push(stable);
            seen[1].push(roast);
        }
        let spread =
            |v: &[f64]| v.iter().copied().fold(0., f64::max) - v.iter().copied().fold(1., f64::min);
        run.measure("spread_stable", spread(&seen[0]));
        run.measure("spread_roast", spread(&seen[1]));
    }
    run.table(table);
    Ok(())
}

/// What pruning does to the gradient before training, on the first data set: a score that raises it
/// many times over makes the first steps as many times too large.
fn growth(settings: &Settings, run: &mut Run) -> Result<()> {
    let study = &settings.study;
    let Some(data) = study.data.first() else { return Ok(()) };
    let scores = [Score::Random, Score::Magnitude, Score::Snip, Score::SynFlow, Score::Grasp];
    let keys = scores.map(|score| Arm::Pruned(score).key());
    let mut table = Table::new("Norm of the first gradient after pruning, of the dense network's")
        .columns(["compression"])
        .columns(keys);
    let seed = run.seed().fork("repeat", settings.seeds.first().copied().unwrap_or(0));
    let sets = data.prepare(seed.fork("images", 0))?;
    for &compression in study.compressions.iter().filter(|&&c| c > 1.) {
        let at = Repeat { sets: &sets, seed, run };
        let mut row = cells![compression];
        for score in scores {
            row.extend(cells![study.gradient_growth(score, compression, &at)?]);
        }
        table.push(row);
    }
    run.table(table);
    Ok(())
}

fn timing(settings: &Settings, run: &mut Run) -> Result<()> {
    let Some(data) = settings.study.data.first() else { return Ok(()) };
    let sets = data.prepare(run.seed().fork("images", 0))?;
    let at = Repeat { sets: &sets, seed: run.seed(), run };
    let t = settings.study.timing(&at)?;
    let mut table = Table::new("Time of a training step").columns(["part", "ms"]);
    for (part, seconds) in [
        ("dense step", t.dense),
        ("pooled step", t.pooled),
        ("of it: gather", t.gather),
        ("of it: scaling the gradient", t.scaler),
    ] {
        table.push(cells![part, 1e3 * seconds]);
    }
    run.table(table);
    run.measure("step_dense", t.dense);
    run.measure("step_pooled", t.pooled);
    Ok(())
}
