//! A whole method in one file: the James–Stein estimator, which estimates several unrelated means
//! better together than each alone. Run it with
//!
//! ```text
//! cargo run -p commons-core --example stein -- runs repeats=20
//! ```
#![allow(clippy::print_stdout)]

use commons_core::{
    Result, Seed, cells,
    evidence::{
        Bound, Claim, Compare, ConfigSource, Experiment, Figure, Method, Paper, Recipe, Run,
        RunOptions,
    },
    report::Plot,
    stats,
    table::{Table, Unit},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::SystemTime;

struct Stein;

#[derive(Serialize, Deserialize, JsonSchema)]
struct Config {
    /// Means estimated together; the theorem needs three.
    dimensions: Vec<usize>,
    /// Standard deviation of the true means.
    spread: f64,
    /// Experiments averaged in one repeat.
    trials: u64,
    /// Independent repeats.
    repeats: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { dimensions: vec![2, 3, 5, 10, 20, 50], spread: 1.0, trials: 2000, repeats: 10 }
    }
}

impl Experiment for Stein {
    const PAPER: Paper = Paper {
        slug: "james-stein",
        title: "Estimation with Quadratic Loss",
        year: 1961,
        shares: "the scale of several independent estimates",
        link: "https://projecteuclid.org/euclid.bsmsp/1200512173",
    };
    const CLAIMS: &'static [Claim] = &[
        Claim::new(
            "dominates",
            "with ten means, the shrunken estimate has a smaller squared error than the observations",
            Figure::text("smaller for every choice of the means"),
            "risk",
            Bound::AtMost(1.0),
        )
        .against("risk_observed", Compare::Ratio),
        Claim::new(
            "half",
            "with signal and noise equally strong, sharing saves about half of the (d − 2)/d that is to be had",
            Figure::Number(0.6),
            "risk",
            Bound::Within { low: 0.55, high: 0.65 },
        )
        .against("risk_observed", Compare::Ratio),
        Claim::new(
            "pairs",
            "with two means nothing is gained",
            Figure::Number(1.0),
            "risk_of_two",
            Bound::Within {
                low: 0.97,
                high: 1.03,
            },
        )
        .against("risk_of_two_observed", Compare::Ratio),
    ];
    const RECIPES: &'static [Recipe] = &[Recipe::smoke("trials = 200\nrepeats = 3")];
    type Config = Config;

    fn run(&self, config: &Config, run: &mut Run) -> Result<()> {
        let mut risks = vec![Vec::new(); config.dimensions.len()];
        for repeat in 0..config.repeats {
            let seed = run.seed().fork("repeat", repeat);
            for (place, &d) in config.dimensions.iter().enumerate() {
                run.check_stop()?;
                let curves = (repeat == 0 && d == 10).then_some(&mut *run);
                let [shrunken, observed] =
                    risk(config, d, seed.fork("dimension", d as u64), curves)?;
                risks[place].push(shrunken / observed);
                let keys = match d {
                    2 => ["risk_of_two", "risk_of_two_observed"],
                    10 => ["risk", "risk_observed"],
                    _ => continue,
                };
                run.measure(keys[0], shrunken);
                run.measure(keys[1], observed);
            }
        }
        self.show(config, &risks, run)
    }
}

impl Stein {
    fn show(&self, config: &Config, risks: &[Vec<f64>], run: &mut Run) -> Result<()> {
        let mut table = Table::new("Risk by dimension")
            .columns(["means", "risk"])
            .column("saved", Unit::Percent)
            .column("trials", Unit::Si);
        let mut band = Vec::new();
        let mut bars = Plot::new("Saved by sharing").x("means").y("share of the error");
        for (&d, values) in config.dimensions.iter().zip(risks) {
            let (mean, interval) = (stats::mean(values), stats::t_interval(values, 0.95)?);
            band.push((d as f64, mean, interval.low, interval.high));
            bars = bars.bar(
                d.to_string(),
                1.0 - mean,
                Some((1.0 - interval.high, 1.0 - interval.low)),
            );
            table.push(cells![d, mean, 1.0 - mean, config.trials * config.repeats]);
        }
        let theory = config.dimensions.iter().map(|&d| {
            let d = d as f64;
            (d, 1.0 - (d - 2.0).max(0.0) / d / (1.0 + config.spread * config.spread))
        });
        run.plot(
            Plot::new("Risk against the number of means")
                .x("means estimated together")
                .y("squared error, relative")
                .log_x()
                .band("shrunken", band)
                .points("theory", theory)
                .mark("observations alone", 1.0),
        );
        run.plot(bars);
        run.table(table);
        run.note("Errors are relative to those of the observations in the same repeat.");
        Ok(())
    }
}

/// Mean squared errors per coordinate of (1 − (d − 2)/‖x‖²)·x and of x itself, with x = θ + noise.
fn risk(config: &Config, d: usize, seed: Seed, mut curves: Option<&mut Run>) -> Result<[f64; 2]> {
    let mut noise = vec![0.0_f32; 2 * d];
    let mut sums = [0.0; 2];
    for trial in 0..config.trials {
        seed.normal(trial * 2 * d as u64, &mut noise);
        let theta: Vec<f64> = noise[..d].iter().map(|z| config.spread * f64::from(*z)).collect();
        let x: Vec<f64> = theta.iter().zip(&noise[d..]).map(|(t, z)| t + f64::from(*z)).collect();
        let norm: f64 = x.iter().map(|v| v * v).sum();
        for (sum, scale) in sums.iter_mut().zip([1.0 - (d as f64 - 2.0) / norm, 1.0]) {
            let error: f64 = x.iter().zip(&theta).map(|(x, t)| (scale * x - t).powi(2)).sum();
            *sum += error / d as f64;
        }
        let done = (trial + 1) as f64;
        if let Some(run) = curves.as_deref_mut()
            && (trial + 1) % (config.trials / 50).max(1) == 0
        {
            run.log(trial + 1, "shrunken/mean error", sums[0] / done)?;
            run.log(trial + 1, "observed/mean error", sums[1] / done)?;
        }
    }
    Ok(sums.map(|sum| sum / config.trials as f64))
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let root = arguments.next().unwrap_or_else(|| "runs".to_owned());
    let source = ConfigSource { sets: arguments.collect(), ..ConfigSource::default() };
    let result = Method::run(&Stein, &source, RunOptions::new(root, SystemTime::now()))?;
    println!("{}", result.claim_table().to_text());
    Ok(())
}
