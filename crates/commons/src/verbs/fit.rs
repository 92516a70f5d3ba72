//! `fit`: the constants of a scaling law from measured losses.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use commons_core::format::{number, si};
use commons_core::fs::write_atomic;
use commons_core::report::Plot;
use commons_nn::data::csv::{self, Dialect};
use commons_weights::parscale::law::{self, Fit, Point, Released};
use serde_json::json;

use crate::cli::{App, Done};
use crate::error::{Failure, Result};
use crate::examples;
use crate::output::Grid;

pub const EXAMPLES: &str = examples![
    "# your losses: columns parameters,streams,loss",
    "$ commons fit parscale losses.csv",
    "# the losses published with the method",
    "$ commons fit parscale stack",
    "# what other sizes would reach, and a picture of the law",
    "$ commons fit parscale pile --predict 1e9x4 --predict 3e9x1 --plot law.svg",
];

/// Options of `fit`.
#[derive(Debug, Args)]
pub struct FitArgs {
    /// Which law
    #[command(subcommand)]
    pub law: LawArgs,
}

/// The laws that are known.
#[derive(Debug, Subcommand)]
pub enum LawArgs {
    /// L(N, P) = E + (A / (N (k ln P + 1)))^alpha: loss by parameters and parallel streams
    #[command(after_help = EXAMPLES)]
    Parscale(ParscaleArgs),
}

/// Options of `fit parscale`.
#[derive(Debug, Args)]
pub struct ParscaleArgs {
    /// CSV file with parameters,streams,loss, or published losses: stack, pile
    #[arg(value_name = "FILE|NAME")]
    pub losses: String,
    /// Also say what a size with some streams would reach, as in 1e9x4
    #[arg(long, value_name = "NxP", value_parser = parse_size)]
    pub predict: Vec<Size>,
    /// Write losses and fitted curves as an SVG picture
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
}

/// A size and a number of streams.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Size {
    parameters: f64,
    streams: f64,
}

/// Reads `1e9x4`.
fn parse_size(text: &str) -> std::result::Result<Size, String> {
    let wrong = || format!("`{text}` is not PARAMETERSxSTREAMS, such as 1e9x4");
    let (n, p) = text.split_once('x').ok_or_else(wrong)?;
    let parse = |t: &str| t.parse::<f64>().ok().filter(|v| v.is_finite() && *v >= 1.);
    Ok(Size { parameters: parse(n).ok_or_else(wrong)?, streams: parse(p).ok_or_else(wrong)? })
}

/// Fits a law.
///
/// # Errors
/// When the losses cannot be read or do not suffice for a fit.
pub fn run(app: &App, args: &FitArgs) -> Result<Done> {
    app.no_settings("fit")?;
    let LawArgs::Parscale(args) = &args.law;
    let points = points(&args.losses)?;
    let fit = law::fit(&points)?;
    if let Some(path) = &args.plot {
        write_atomic(path, plot(&points, &fit).to_svg())?;
    }
    show(app, args, &points, &fit)?;
    Ok(Done::Well)
}

fn points(source: &str) -> Result<Vec<Point>> {
    if let Some(known) = Released::ALL.into_iter().find(|r| r.name() == source)
        && !Path::new(source).exists()
    {
        return Ok(known.points());
    }
    let path = Path::new(source);
    if !path.exists() {
        let names: Vec<&str> = Released::ALL.iter().map(|r| r.name()).collect();
        return Err(Failure::usage(source, "no such file").help(format!(
            "give a CSV file with the columns parameters,streams,loss, or one of {}",
            names.join(", ")
        )));
    }
    let table = csv::read(path, Dialect::of(path))?;
    let column = |name: &str| table.numbers(name);
    let (n, p, l) = (column("parameters")?, column("streams")?, column("loss")?);
    let rows = n.into_iter().zip(p).zip(l);
    Ok(rows.map(|((parameters, streams), loss)| Point { parameters, streams, loss }).collect())
}

/// What keeps a fit from being a law, if anything does.
fn caution(fit: &Fit) -> Option<String> {
    (!fit.is_law()).then(|| {
        format!(
            "{} sizes and {} numbers of streams: a law needs at least three numbers of streams with \
             three sizes each, so take k as a description of these losses only",
            fit.sizes, fit.stream_counts
        )
    })
}

fn show(app: &App, args: &ParscaleArgs, points: &[Point], fit: &Fit) -> Result<()> {
    let law = fit.law;
    let predicted = |s: &Size| law.loss(s.parameters, s.streams);
    if app.out.json {
        let predictions: Vec<_> = args
            .predict
            .iter()
            .map(
                |s| json!({"parameters": s.parameters, "streams": s.streams, "loss": predicted(s)}),
            )
            .collect();
        return app.out.json(&json!({
            "law": "parscale",
            "losses": args.losses,
            "fit": fit,
            "is_law": fit.is_law(),
            "predictions": predictions,
        }));
    }
    let mut grid = Grid::new(&["", ""]);
    grid.row(["k", &format!("{:.4}", law.k)]);
    grid.row(["E", &format!("{:.4}", law.e)]);
    grid.row(["alpha", &format!("{:.4}", law.alpha)]);
    grid.row(["A", &format!("{:.4e}", law.a)]);
    grid.row(["R²", &format!("{:.4}", fit.r_squared)]);
    grid.row(["losses", &format!("{} of {} sizes", points.len(), fit.sizes)]);
    app.out.grid(&grid)?;
    app.out.text("")?;
    if fit.k_at_bound() {
        app.out.text("no positive k: in these losses more streams are worth no parameters")?;
    }
    for streams in [2., 4., 8.].into_iter().filter(|_| !fit.k_at_bound()) {
        app.out.text(&format!(
            "{streams} streams are worth {} times the parameters",
            number(law.worth(streams))
        ))?;
    }
    for s in &args.predict {
        let (n, p) = (si(s.parameters), s.streams);
        app.out.text(&format!("{n} parameters, {p} streams: loss {:.4}", predicted(s)))?;
    }
    if let Some(caution) = caution(fit) {
        app.progress.note(caution);
    }
    Ok(())
}

/// Losses and the fitted curve of every number of streams over the parameters.
fn plot(points: &[Point], fit: &Fit) -> Plot {
    let mut streams: Vec<f64> = points.iter().map(|p| p.streams).collect();
    streams.sort_by(f64::total_cmp);
    streams.dedup();
    let sizes = points.iter().map(|p| p.parameters.ln());
    let low = sizes.clone().fold(f64::INFINITY, f64::min);
    let high = sizes.fold(f64::NEG_INFINITY, f64::max);
    let start = Plot::new("Loss by parameters and parallel streams")
        .x("parameters")
        .y("loss, nats")
        .log_x();
    streams.into_iter().fold(start, |plot, p| {
        let measured = points.iter().filter(|q| q.streams == p).map(|q| (q.parameters, q.loss));
        let curve = (0..=40).map(|i| {
            let n = (low + (high - low) * f64::from(i) / 40.).exp();
            (n, fit.law.loss(n, p))
        });
        plot.line(format!("P = {p}, fitted"), curve).points(format!("P = {p}"), measured)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        assert_eq!(parse_size("1e9x4"), Ok(Size { parameters: 1e9, streams: 4. }));
        for wrong in ["1e9", "x4", "1e9x0", "-1x2", "nanx2", "1e9x4x2"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }
}
