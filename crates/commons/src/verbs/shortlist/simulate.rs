//! `shortlist simulate`: shortlists from biased rankings, judged by unbiased ones.

use std::path::PathBuf;

use clap::Args;
use commons_core::Seed;
use commons_core::format::{grouped, number};
use commons_core::report::Plot;
use commons_society::multiwinner_subset::simulate::rankings_needed;
use commons_society::multiwinner_subset::{Bias, Latent, Ratios, Score, Simulation};
use serde::Serialize;

use crate::cli::{App, Done};
use crate::error::{Failure, Result};
use crate::output::Grid;

/// Options of `shortlist simulate`.
#[derive(Debug, Args)]
pub struct SimulateArgs {
    /// Score functions [default: borda bloc sntv]
    #[arg(short, long, value_name = "NAME")]
    pub score: Vec<String>,
    /// Bias against a group: none, utility:THETA, swap:PHI,LAMBDA
    #[arg(long, value_name = "NAME", default_value = "utility:0.5")]
    pub bias: String,
    /// Unbiased rankings, as in `smoothness`
    #[arg(long, value_name = "NAME", default_value = "utility")]
    pub latent: String,
    /// Items
    #[arg(short, value_name = "N", default_value_t = 50)]
    pub m: usize,
    /// Items chosen
    #[arg(short, value_name = "N", default_value_t = 10)]
    pub k: usize,
    /// Items of the group [default: half of them]
    #[arg(long, value_name = "N")]
    pub minority: Option<usize>,
    /// Numbers of rankings, rising
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_values_t = [10, 50, 250])]
    pub sizes: Vec<usize>,
    /// Elections for each
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub repetitions: usize,
    /// Part of the best that is asked for when rankings are counted
    #[arg(long, value_name = "X", default_value_t = 0.95)]
    pub target: f64,
    /// Strengths of swap bias to try with the last of those numbers, instead of all numbers
    #[arg(long, value_name = "X,X", value_delimiter = ',')]
    pub lambdas: Vec<f64>,
    /// Write the ratios against the number of rankings, or against λ, as SVG
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
}

/// What `shortlist simulate --json` writes: a list with one such object for each score function.
#[derive(Debug, Serialize)]
struct Simulated {
    score: String,
    /// Fewest rankings of those tried with which the proportional bound reaches the target.
    rankings_needed: Option<usize>,
    target: f64,
    sizes: Vec<AtSize>,
}

#[derive(Debug, Serialize)]
struct AtSize {
    rankings: usize,
    #[serde(flatten)]
    ratios: Ratios,
}

/// Simulates.
///
/// # Errors
/// When a name or number is out of range.
pub fn run(app: &App, args: &SimulateArgs) -> Result<Done> {
    if !(args.target > 0. && args.target <= 1.) {
        return Err(Failure::usage("--target", format!("{} is not in 0 to 1", args.target))
            .help("give the part of the best latent score that is enough, as in 0.95"));
    }
    let (latent, bias): (Latent, Bias) = (args.latent.parse()?, args.bias.parse()?);
    let scores: Vec<Score> = match args.score.is_empty() {
        true => vec![Score::BORDA, Score::BLOC, Score::SNTV],
        false => args.score.iter().map(|s| Ok(s.parse()?)).collect::<Result<_>>()?,
    };
    let simulation = Simulation {
        latent,
        bias,
        m: args.m,
        k: args.k,
        minority: args.minority.unwrap_or(args.m / 2),
        n: 1,
        repetitions: args.repetitions,
    };
    simulation.check()?;
    if !args.lambdas.is_empty() {
        return strengths(app, args, &simulation, &scores);
    }
    let seed = Seed::new(app.seed()).fork("simulate", 0);
    let mut results = Vec::new();
    for score in &scores {
        app.stop.check()?;
        let (needed, curve) = rankings_needed(&simulation, score, &args.sizes, args.target, seed)?;
        let sizes = curve.into_iter().map(|(rankings, ratios)| AtSize { rankings, ratios });
        results.push(Simulated {
            score: score.to_string(),
            rankings_needed: needed,
            target: args.target,
            sizes: sizes.collect(),
        });
    }
    if let Some(path) = &args.plot {
        commons_core::fs::write_atomic(path, plot(&results).to_svg())?;
    }
    match app.out.json {
        true => app.out.json(&results)?,
        false => show(app, &results)?,
    }
    Ok(Done::Well)
}

/// What `shortlist simulate --lambdas --json` writes: a list with one such object for each score
/// function.
#[derive(Debug, Serialize)]
struct ByStrength {
    score: String,
    rankings: usize,
    strengths: Vec<AtStrength>,
}

#[derive(Debug, Serialize)]
struct AtStrength {
    lambda: f64,
    #[serde(flatten)]
    ratios: Ratios,
}

fn strengths(
    app: &App,
    args: &SimulateArgs,
    simulation: &Simulation,
    scores: &[Score],
) -> Result<Done> {
    let Bias::Swap { phi, .. } = simulation.bias else {
        return Err(Failure::usage("--lambdas", format!("{} has no λ", simulation.bias))
            .help("give --bias swap:PHI,LAMBDA, as in swap:0.5,0.9; its λ is replaced"));
    };
    let n = args.sizes.last().copied().unwrap_or(1);
    let seed = Seed::new(app.seed()).fork("simulate", 0);
    let mut results = Vec::new();
    for score in scores {
        let mut of = ByStrength { score: score.to_string(), rankings: n, strengths: Vec::new() };
        for &lambda in &args.lambdas {
            app.stop.check()?;
            let bias = Bias::Swap { phi, lambda };
            let ratios = Simulation { n, bias, ..simulation.clone() }.run(score, seed)?;
            of.strengths.push(AtStrength { lambda, ratios });
        }
        results.push(of);
    }
    if let Some(path) = &args.plot {
        let plot = Plot::new("Latent score against the strength of swap bias")
            .x("λ, part of the pairs that is swapped")
            .y("part of the best");
        let plot = results.iter().fold(plot, |plot, r| {
            let at = |of: fn(&Ratios) -> f64| {
                r.strengths.iter().map(|s| (s.lambda, of(&s.ratios))).collect::<Vec<_>>()
            };
            plot.line(format!("{}, proportional", r.score), at(|r| r.proportional))
                .line(format!("{}, no bound", r.score), at(|r| r.unconstrained))
        });
        commons_core::fs::write_atomic(path, plot.to_svg())?;
    }
    if app.out.json {
        app.out.json(&results)?;
        return Ok(Done::Well);
    }
    let mut grid = Grid::new(&["score", ">λ", ">no bound", ">proportional", ">best l", ">random"]);
    for r in &results {
        for s in &r.strengths {
            let x = s.ratios;
            let numbers = [s.lambda, x.unconstrained, x.proportional, x.best_l, x.random];
            grid.row([r.score.clone()].into_iter().chain(numbers.map(number)));
        }
    }
    app.out.grid(&grid)?;
    Ok(Done::Well)
}

fn plot(results: &[Simulated]) -> Plot {
    let plot = Plot::new("Latent score against rankings").x("rankings").y("part of the best");
    results.iter().fold(plot.log_x(), |plot, r| {
        let at = |of: fn(&Ratios) -> f64| {
            r.sizes.iter().map(|s| (s.rankings as f64, of(&s.ratios))).collect::<Vec<_>>()
        };
        plot.line(format!("{}, proportional", r.score), at(|r| r.proportional))
            .line(format!("{}, no bound", r.score), at(|r| r.unconstrained))
    })
}

fn show(app: &App, results: &[Simulated]) -> Result<()> {
    let mut grid = Grid::new(&[
        "score",
        ">rankings",
        ">no bound",
        ">proportional",
        ">best l",
        ">random",
        ">Kemeny",
        ">Copeland",
        ">median rank",
        ">RRF",
    ]);
    for r in results {
        for s in &r.sizes {
            let x = s.ratios;
            let numbers = [
                x.unconstrained,
                x.proportional,
                x.best_l,
                x.random,
                x.kemeny,
                x.copeland,
                x.median_rank,
                x.reciprocal_rank,
            ];
            let head = [r.score.clone(), grouped(s.rankings as i64)];
            grid.row(head.into_iter().chain(numbers.map(number)));
        }
    }
    app.out.grid(&grid)?;
    app.out.text("")?;
    for r in results {
        let needed = match r.rankings_needed {
            Some(n) => format!("{} rankings", grouped(n as i64)),
            None => "more rankings than were tried".to_owned(),
        };
        let target = 100. * r.target;
        app.out.text(&format!("{}: {needed} for {target} % with the bound", r.score))?;
    }
    Ok(())
}
