//! `shortlist smoothness`: the (α, β, γ) of a score function.

use std::path::PathBuf;

use clap::Args;
use commons_core::Seed;
use commons_core::format::number;
use commons_core::report::Plot;
use commons_society::multiwinner_subset::smoothness::{Model, Smoothness, estimate};
use commons_society::multiwinner_subset::{Bias, Latent, Score};
use serde::Serialize;

use crate::cli::{App, Done};
use crate::error::Result;
use crate::output::Grid;

/// Options of `shortlist smoothness`.
#[derive(Debug, Args)]
pub struct SmoothnessArgs {
    /// Score function
    #[arg(short, long, value_name = "NAME", default_value = "borda")]
    pub score: String,
    /// Bias against the second half of the items: none, utility:THETA, swap:PHI,LAMBDA
    #[arg(long, value_name = "NAME", default_value = "swap:0.5,0.9")]
    pub bias: String,
    /// Unbiased rankings: ic, urn:ALPHA, mallows:PHI, norm-mallows:NORM, plackett-luce, conitzer, walsh, utility
    #[arg(long, value_name = "NAME", default_value = "ic")]
    pub latent: String,
    /// Items
    #[arg(short, value_name = "N", default_value_t = 10)]
    pub m: usize,
    /// Rankings of a sample
    #[arg(short, value_name = "N", default_value_t = 10)]
    pub n: usize,
    /// Samples
    #[arg(long, value_name = "N", default_value_t = 500)]
    pub iterations: usize,
    /// Write the curve γ(β) as SVG
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
}

/// What `shortlist smoothness --json` writes.
#[derive(Debug, Serialize)]
struct Estimated {
    score: String,
    bias: String,
    latent: String,
    m: usize,
    n: usize,
    iterations: usize,
    #[serde(flatten)]
    smoothness: Smoothness,
}

/// Estimates smoothness.
///
/// # Errors
/// When a name or number is out of range.
pub fn run(app: &App, args: &SmoothnessArgs) -> Result<Done> {
    let score: Score = args.score.parse()?;
    let (latent, bias): (Latent, Bias) = (args.latent.parse()?, args.bias.parse()?);
    let model = Model { latent, bias, m: args.m, n: args.n, iterations: args.iterations };
    let smoothness = estimate(&score, &model, Seed::new(app.seed()).fork("smoothness", 0))?;
    if let Some(path) = &args.plot {
        let plot = Plot::new(format!("γ(β) of {score}, {latent}, bias {bias}"))
            .x("β")
            .y("γ(β)")
            .line(score.to_string(), smoothness.gamma.iter().copied());
        commons_core::fs::write_atomic(path, plot.to_svg())?;
    }
    let found = Estimated {
        score: score.to_string(),
        bias: bias.to_string(),
        latent: latent.to_string(),
        m: args.m,
        n: args.n,
        iterations: args.iterations,
        smoothness,
    };
    if app.out.json {
        app.out.json(&found)?;
        return Ok(Done::Well);
    }
    let s = &found.smoothness;
    let mut grid = Grid::new(&["", ""]);
    let alpha = format!("{} ± {} (standard error)", number(s.alpha), number(s.alpha_error));
    grid.row(["α, what the least visible item keeps".to_owned(), alpha]);
    for beta in [0.5, 0.75, 0.9] {
        let at = s.gamma.iter().rev().find(|(b, _)| *b <= beta).map(|(_, g)| *g);
        let text = at.map_or("no two items differ so much".to_owned(), |g| match g.is_finite() {
            true => number(g),
            false => "unbounded: a better item is never seen".to_owned(),
        });
        grid.row([format!("γ({beta})"), text]);
    }
    let mean = |of: &[f64]| of.iter().sum::<f64>() / of.len().max(1) as f64;
    let (plain, seen) = (mean(&s.latent[args.m / 2..]), mean(&s.biased[args.m / 2..]));
    grid.row([
        "the group's mean score".to_owned(),
        format!("{} → {}", number(plain), number(seen)),
    ]);
    app.out.grid(&grid)?;
    Ok(Done::Well)
}
