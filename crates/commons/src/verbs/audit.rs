//! `audit`: who gets what, group by group and client by client, and where a disparity comes from.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use commons_core::format::{grouped, number};
use commons_core::fs::write_atomic;
use commons_core::report::{Page, Plot};
use commons_core::{Seed, cells, table};
use commons_society::pid_fairness::{
    Audit, AuditConfig, Behaviour, Columns, Counts, DISPARITIES, Estimate, Grouping, Limit,
    Predictors, audit,
};
use serde::Serialize;
use serde_json::json;

use crate::cli::{App, Done};
use crate::error::{Failure, Result};
use crate::examples;
use crate::output::Grid;
use crate::verbs::tables;

pub const EXAMPLES: &str = examples![
    "# metrics of groups with intervals, and the kind of disparity, as a page",
    "$ commons audit fairness preds.csv --sensitive sex,race --client site --label y --pred yhat --html report.html",
    "# the same in a federation: only tables of counts leave a client",
    "$ commons audit counts site-a.csv --name site-a --sensitive sex --label y --pred yhat --out a.json",
    "$ commons audit fairness a.json b.json --out report.json",
    "# the best accuracy under bounds on both disparities",
    "$ commons audit limits preds.csv --sensitive sex --client site --label y --eps-grid 0:0.2:20 --out surface.csv",
];

/// Options of `audit`.
#[derive(Debug, Args)]
pub struct AuditArgs {
    /// What to do
    #[command(subcommand)]
    pub what: What,
}

/// What `audit` can do.
#[derive(Debug, Subcommand)]
pub enum What {
    /// Rates of groups, disparities, and their unique, redundant and masked parts
    Fairness(FairnessArgs),
    /// The highest accuracy of any predictor under bounds on global and local disparity
    Limits(LimitsArgs),
    /// Count a client's rows, so that no row need leave it
    Counts(CountsArgs),
}

/// Where the rows are and what their columns mean.
#[derive(Debug, Args)]
pub struct InputArgs {
    /// Tables (.csv, .jsonl, .parquet), or .json files of `audit counts`; several are put together
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// Columns of sensitive attributes, separated by commas
    #[arg(long, value_name = "COLUMNS", value_delimiter = ',')]
    pub sensitive: Vec<String>,
    /// Column of the client; without it every file is one
    #[arg(long, value_name = "COLUMN")]
    pub client: Option<String>,
    /// Column of the true label
    #[arg(long, value_name = "COLUMN")]
    pub label: Option<String>,
    /// Column of the prediction
    #[arg(long, value_name = "COLUMN")]
    pub pred: Option<String>,
}

/// Options of `audit fairness`.
#[derive(Debug, Args)]
pub struct FairnessArgs {
    /// Rows.
    #[command(flatten)]
    pub input: InputArgs,
    /// Class whose share is the selection rate [default: the greatest]
    #[arg(long, value_name = "CLASS")]
    pub positive: Option<String>,
    /// Bootstrap replicates behind every interval; 0 for none
    #[arg(long, value_name = "N", default_value_t = 200)]
    pub bootstrap: usize,
    /// Confidence of the intervals
    #[arg(long, value_name = "SHARE", default_value_t = 0.95)]
    pub level: f64,
    /// Warn about groups with fewer samples
    #[arg(long, value_name = "N", default_value_t = 30)]
    pub min_size: u64,
    /// Write the report as JSON
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Write the report as a page with plots
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

/// Options of `audit limits`.
#[derive(Debug, Args)]
pub struct LimitsArgs {
    /// Rows.
    #[command(flatten)]
    pub input: InputArgs,
    /// Bounds in bits, FROM:TO:COUNT, for both axes
    #[arg(long, value_name = "GRID", default_value = "0:0.2:20")]
    pub eps_grid: String,
    /// Only predictors made from the given predictions, group and client
    #[arg(long)]
    pub post_process: bool,
    /// Write the surface as CSV
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Write the surface as a page
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

/// Options of `audit counts`.
#[derive(Debug, Args)]
pub struct CountsArgs {
    /// Rows.
    #[command(flatten)]
    pub input: InputArgs,
    /// Name of the client [default: the file's]
    #[arg(long, value_name = "NAME", conflicts_with = "client")]
    pub name: Option<String>,
    /// File of counts to write
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

/// Audits.
///
/// # Errors
/// Naming the file, row and column that cannot be used, or the option.
pub fn run(app: &App, args: &AuditArgs) -> Result<Done> {
    app.no_settings("audit")?;
    match &args.what {
        What::Fairness(args) => fairness(app, args),
        What::Limits(args) => limits(app, args),
        What::Counts(args) => counts(app, args),
    }
}

impl InputArgs {
    /// The table of all files; labels stand in for predictions if `prediction` is not needed.
    fn read(&self, prediction: bool, name: Option<&str>) -> Result<Counts> {
        let mut tables = Vec::new();
        for path in &self.files {
            if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json")) {
                tables.push(Counts::read(path)?);
                continue;
            }
            let columns = self.columns(path, prediction)?;
            let mut table = Counts::from_table(&tables::read(path)?, &columns)?;
            if self.client.is_none() {
                let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned());
                table.clients = vec![name.map(str::to_owned).or(stem).unwrap_or_default()];
            }
            tables.push(table);
        }
        Ok(Counts::merge(&tables)?)
    }

    fn columns(&self, path: &Path, prediction: bool) -> Result<Columns> {
        let missing = |option: &str| {
            Failure::usage(path.display(), format!("needs {option} to know what its columns mean"))
                .help(format!("add {option} with the name of a column"))
        };
        if self.sensitive.is_empty() {
            return Err(missing("--sensitive"));
        }
        if prediction && self.pred.is_none() {
            return Err(missing("--pred"));
        }
        Ok(Columns {
            sensitive: self.sensitive.clone(),
            client: self.client.clone(),
            label: self.label.clone().ok_or_else(|| missing("--label"))?,
            prediction: self.pred.clone(),
        })
    }
}

fn fairness(app: &App, args: &FairnessArgs) -> Result<Done> {
    let counts = args.input.read(true, None)?;
    let config = AuditConfig {
        positive: args.positive.clone(),
        bootstrap: args.bootstrap,
        level: args.level,
        min_size: args.min_size,
    };
    let report = audit(&counts, &config, Seed::new(app.seed()))?;
    if let Some(path) = &args.out {
        commons_core::fs::write_json_atomic(path, &report)?;
    }
    if let Some(path) = &args.html {
        write_atomic(path, report.to_html(env!("CARGO_PKG_VERSION")))?;
    }
    if app.out.json {
        app.out.json(&report)?
    } else {
        show(app, &report, args.positive.is_none())?
    }
    Ok(Done::Well)
}

fn show(app: &App, report: &Audit, chosen: bool) -> Result<()> {
    let why = if chosen { " (the greatest of the labels; --positive says another)" } else { "" };
    let samples = grouped(report.rows as i64);
    app.out.text(&format!("{samples} samples, positive class `{}`{why}\n", report.positive))?;
    for grouping in &report.groupings {
        let by = grouping.attributes.join(" × ");
        app.out.text(&app.out.bold(&format!("by {by}")))?;
        for sentence in &grouping.sentences {
            app.out.text(&format!("  {sentence}"))?;
        }
        app.out.text("")?;
        app.out.grid(&groups(grouping))?;
        app.out.text("")?;
        app.out.grid(&numbers(grouping, report.level))?;
        app.out.text("")?;
    }
    for warning in &report.warnings {
        app.out.text(&format!("warning: {warning}"))?;
    }
    Ok(())
}

fn groups(grouping: &Grouping) -> Grid {
    let mut grid =
        Grid::new(&["group", ">samples", ">selected", ">interval", ">accuracy", ">TPR", ">FPR"]);
    for group in &grouping.groups {
        let value = |key: &str| group.metrics[key].value.map_or("–".to_owned(), number);
        grid.row([
            group.name.clone(),
            grouped(group.count as i64),
            value("selection_rate"),
            interval(&group.metrics["selection_rate"]),
            value("accuracy"),
            value("true_positive_rate"),
            value("false_positive_rate"),
        ]);
    }
    grid
}

fn numbers(grouping: &Grouping, level: f64) -> Grid {
    let head = format!(">{} interval", commons_core::format::percent(level));
    let mut grid = Grid::new(&["disparity", ">value", &head]);
    let mut row = |name: &str, e: &Estimate, unit: &str| {
        let value = e.value.map_or("–".to_owned(), |v| number(v) + unit);
        grid.row([name.to_owned(), value, interval(e)]);
    };
    for name in DISPARITIES {
        row(name, &grouping.disparities[name], "");
    }
    for name in ["unique", "redundant", "masked", "global", "local"] {
        if let Some(terms) = &grouping.information {
            row(name, &terms[name], " bit");
        }
    }
    grid
}

fn interval(e: &Estimate) -> String {
    match e.low.zip(e.high) {
        Some((low, high)) => format!("{} … {}", number(low), number(high)),
        None => String::new(),
    }
}

/// `FROM:TO:COUNT` as numbers.
fn grid(text: &str) -> Result<Vec<f64>> {
    let wrong = |why: &str| {
        Failure::usage(format!("--eps-grid {text}"), why)
            .help("write FROM:TO:COUNT, as in 0:0.2:20")
    };
    let parts: Vec<&str> = text.split(':').collect();
    let [from, to, count] = parts[..] else { return Err(wrong("has not three parts")) };
    let number = |t: &str| t.parse::<f64>().ok().filter(|v| v.is_finite() && *v >= 0.);
    let (Some(from), Some(to)) = (number(from), number(to)) else {
        return Err(wrong("has a bound that is no number of 0 bits or more"));
    };
    let count = count.parse::<usize>().ok().filter(|n| (1..=200).contains(n));
    let count = count.ok_or_else(|| wrong("has a count that is not 1 to 200"))?;
    if to < from {
        return Err(wrong("ends before it begins"));
    }
    let step = if count > 1 { (to - from) / (count - 1) as f64 } else { 0. };
    Ok((0..count).map(|i| from + step * i as f64).collect())
}

/// The result of `audit limits --json`.
#[derive(Debug, Serialize)]
struct Surface {
    /// `any` or `post-processed`.
    predictors: &'static str,
    /// Samples behind it.
    rows: u64,
    /// One per pair of bounds, the local one moving first.
    limits: Vec<Limit>,
    /// What the numbers are bounds of.
    note: &'static str,
}

const ORACLE: &str =
    "bounds over behaviours that know group, client and label: in general no model attains them";
const POST: &str = "attained by changing the given predictions at random, knowing group and client";

fn limits(app: &App, args: &LimitsArgs) -> Result<Done> {
    let bounds = grid(&args.eps_grid)?;
    let counts = args.input.read(args.post_process, None)?;
    let (predictors, name, note) = if args.post_process {
        (Predictors::PostProcessed, "post-processed", POST)
    } else {
        (Predictors::Any, "any", ORACLE)
    };
    let limits = Behaviour::new(&counts, predictors)?.surface(&bounds, &bounds)?;
    let mut csv = table::Table::new("Limits").columns([
        "epsilon_global",
        "epsilon_local",
        "accuracy",
        "global",
        "local",
    ]);
    for l in &limits {
        csv.push(cells![l.epsilon_global, l.epsilon_local, l.accuracy, l.global, l.local]);
    }
    if let Some(path) = &args.out {
        write_atomic(path, csv.to_csv())?;
    }
    if let Some(path) = &args.html {
        write_atomic(path, page(&bounds, &limits, csv, note))?;
    }
    let surface = Surface { predictors: name, rows: counts.total(), limits, note };
    if app.out.json {
        app.out.json(&surface)?;
        return Ok(Done::Well);
    }
    let mut shown = Grid::new(&[">global bound", ">local bound", ">accuracy", ">global", ">local"]);
    for l in &surface.limits {
        shown.row([l.epsilon_global, l.epsilon_local, l.accuracy, l.global, l.local].map(number));
    }
    app.out.grid(&shown)?;
    app.out.text(&app.out.dim(note))?;
    Ok(Done::Well)
}

fn page(bounds: &[f64], limits: &[Limit], csv: table::Table, note: &str) -> String {
    let rows = |of: fn(&Limit) -> f64| {
        limits.chunks(bounds.len()).map(|r| r.iter().map(of).collect()).collect::<Vec<_>>()
    };
    let plot = |title: &str, of: fn(&Limit) -> f64| {
        Plot::new(format!("{title} (rows: global bound, columns: local bound)"))
            .heat(rows(of), bounds.iter().map(|b| number((1e4 * b).round() / 1e4)))
    };
    let plots = [
        plot("Highest accuracy", |l| l.accuracy),
        plot("Global disparity used", |l| l.global),
        plot("Local disparity used", |l| l.local),
    ];
    let title = "Limits of accuracy and fairness";
    Page { title, lead: note, plots: &plots, tables: &[csv], ..Page::default() }.to_html()
}

fn counts(app: &App, args: &CountsArgs) -> Result<Done> {
    let table = args.input.read(true, args.name.as_deref())?;
    commons_core::fs::write_json_atomic(&args.out, &table)?;
    let filled = table.counts.iter().filter(|n| **n > 0).count();
    if app.out.json {
        let (cells, rows) = (table.counts.len(), table.total());
        app.out
            .json(&json!({ "path": args.out, "rows": rows, "cells": cells, "filled": filled }))?;
    } else {
        app.out.text(&format!(
            "{}: {} rows in {} cells, {filled} of them not empty",
            args.out.display(),
            grouped(table.total() as i64),
            table.counts.len()
        ))?;
    }
    Ok(Done::Well)
}
