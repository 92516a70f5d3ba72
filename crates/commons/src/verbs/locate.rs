//! `locate`: one point for many wishes.

mod compare;
mod wishes;

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use commons_core::format::number;
use commons_core::report::Plot;
use commons_society::facility_location::groups::{GroupShare, group_shares};
use commons_society::facility_location::markets::independent_markets;
use commons_society::facility_location::welfare::welfare;
use commons_society::facility_location::{
    Axiom, Mechanism, Profile, Scalar, Witness, best_deviation,
};
use serde::Serialize;

use crate::cli::{App, Done};
use crate::error::{Failure, Result};
use crate::examples;
use crate::output::Grid;
use wishes::{Exact, Question, WishArgs};

pub const EXAMPLES: &str = examples![
    "$ commons locate --input prefs.csv --column x",
    "$ commons locate --input prefs.csv --column hours --range 0 60 --group team --weight votes",
    "# exactly, in fractions; only what you ask for",
    "$ commons locate --input prefs.csv --column x --exact --report fairness,manipulation",
    "# phantoms of your own; all mechanisms side by side",
    "$ commons locate --input prefs.csv --column x --mechanism phantoms:0.2,0.5",
    "$ commons locate compare --input prefs.csv --column x --group team",
    "# a budget over three columns that add up to 1; made-up wishes",
    "$ commons locate --input budget.csv --column rent --column food --column books --simplex",
    "$ commons locate compare --simulate n=100 dist=bimodal",
];

/// Distinct agents whose misreports are looked for, at most.
const MOST_AGENTS: usize = 500;

/// Misreports and witnesses shown to people, at most.
const SHOWN: usize = 5;

/// Options of `locate`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct LocateArgs {
    /// Another question about the same wishes.
    #[command(subcommand)]
    pub mode: Option<Mode>,
    /// Wishes.
    #[command(flatten)]
    pub wishes: WishArgs,
    /// Rule: uniform-phantom, constrained-median, median, mean, midpoint, nash, dictator:AGENT, constant:POINT, phantoms:P,P,…
    #[arg(long, value_name = "NAME", default_value = "uniform-phantom")]
    pub mechanism: String,
    /// What to say beside the point [default: all]
    #[arg(long, value_name = "PARTS", value_enum, value_delimiter = ',')]
    pub report: Vec<Part>,
    /// Several columns are shares of one budget: their points add up to 1
    #[arg(long, conflicts_with_all = ["exact", "report", "mechanism", "plot"])]
    pub simplex: bool,
    /// Write a number line with agents, phantoms and the point as SVG
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
}

/// Subcommands of `locate`.
#[derive(Debug, Subcommand)]
pub enum Mode {
    /// All mechanisms side by side
    Compare(compare::CompareArgs),
}

/// A part of the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Axioms with witnesses, and groups.
    Fairness,
    /// Social welfare and total cost against the best.
    Welfare,
    /// The best misreport of each agent.
    Manipulation,
}

/// What `locate --json` writes.
///
/// Points and reports are in the unit of the column; distances, welfare and gains are in parts of
/// the range, so that they compare with shares.
#[derive(Debug, Serialize)]
struct Located {
    mechanism: String,
    agents: usize,
    /// Lowest and highest possible wish.
    range: [f64; 2],
    /// Whether nothing was rounded.
    exact: bool,
    /// One for each column.
    points: Vec<Point>,
}

#[derive(Debug, Serialize)]
struct Point {
    column: String,
    point: f64,
    /// The point as a fraction, with `--exact`.
    #[serde(skip_serializing_if = "Option::is_none")]
    fraction: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    welfare: Option<WelfareOut>,
    /// Every axiom, with the group it wrongs most if it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    fairness: Option<Vec<Verdict>>,
    /// How each group fares, with `--group`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    groups: Vec<GroupShare>,
    #[serde(skip_serializing_if = "Option::is_none")]
    manipulation: Option<Manipulation>,
}

#[derive(Debug, Serialize)]
struct WelfareOut {
    social_welfare: f64,
    total_cost: f64,
    best_welfare: f64,
    least_cost: f64,
    /// Best over achieved welfare; null if none is achieved.
    welfare_ratio: Option<f64>,
    /// Achieved over least cost; null if the least is 0.
    cost_ratio: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Verdict {
    axiom: Axiom,
    holds: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    witness: Option<WitnessOut>,
}

#[derive(Debug, Serialize)]
struct WitnessOut {
    /// Rows of the wronged agents, from 1 below the header.
    rows: Vec<usize>,
    lowest: f64,
    highest: f64,
    share: f64,
    distance: f64,
    allowed: f64,
}

#[derive(Debug, Serialize)]
struct Manipulation {
    /// Whether the mechanism is strategyproof by theorem.
    strategyproof: bool,
    /// Distinct agents looked at, and how many there are.
    checked: usize,
    distinct: usize,
    /// Those who gain, greatest gain first.
    misreports: Vec<Misreport>,
}

#[derive(Debug, Serialize)]
struct Misreport {
    /// Row of the first such agent, from 1 below the header.
    row: usize,
    wish: f64,
    report: f64,
    point: f64,
    gain: f64,
}

/// Locates a point.
///
/// # Errors
/// When the wishes cannot be read or are out of range, naming row and column.
pub fn run(app: &App, args: &LocateArgs) -> Result<Done> {
    app.no_settings("locate")?;
    if let Some(Mode::Compare(compare)) = &args.mode {
        return compare::run(app, compare);
    }
    if args.simplex {
        return budget(app, args);
    }
    let mechanism: Mechanism = args.mechanism.parse()?;
    let parts = |part: Part| args.report.is_empty() || args.report.contains(&part);
    // Nash's point is found by bisection: held against axioms without tolerance it would fail by a
    // rounding error.
    let located = if args.wishes.exact && mechanism != Mechanism::Nash {
        locate(&args.wishes.ask::<Exact>(app.seed())?, &mechanism, &parts)?
    } else {
        locate(&args.wishes.ask::<f64>(app.seed())?, &mechanism, &parts)?
    };
    if let Some(path) = &args.plot {
        let question = args.wishes.ask::<f64>(app.seed())?;
        let plot = number_line(&question, &mechanism)?;
        commons_core::fs::write_atomic(path, plot.to_svg())?;
    }
    match app.out.json {
        true => app.out.json(&located)?,
        false => show(app, &located)?,
    }
    Ok(Done::Well)
}

fn locate<T: Scalar>(
    question: &Question<T>,
    mechanism: &Mechanism,
    parts: &dyn Fn(Part) -> bool,
) -> Result<Located> {
    let mut points = Vec::new();
    for (column, profile) in &question.columns {
        points.push(point(question, column, profile, mechanism, parts)?);
    }
    Ok(Located {
        mechanism: mechanism.to_string(),
        agents: question.agents(),
        range: [question.low.to_f64(), question.high.to_f64()],
        exact: T::EXACT,
        points,
    })
}

fn point<T: Scalar>(
    question: &Question<T>,
    column: &str,
    profile: &Profile<T>,
    mechanism: &Mechanism,
    parts: &dyn Fn(Part) -> bool,
) -> Result<Point> {
    let y = mechanism.outcome(profile)?;
    let at = question.back(&y);
    let verdict = |axiom: Axiom| {
        let witness = axiom.check(profile, &y).err().map(|w| witness(question, &w));
        Verdict { axiom, holds: witness.is_none(), witness }
    };
    let groups = match (&question.groups, parts(Part::Fairness)) {
        (Some(names), true) => group_shares(profile, names, &y)?,
        _ => Vec::new(),
    };
    Ok(Point {
        column: column.to_owned(),
        point: at.to_f64(),
        fraction: T::EXACT.then(|| at.to_string()),
        welfare: parts(Part::Welfare).then(|| welfare_of(profile, &y)).transpose()?,
        fairness: parts(Part::Fairness).then(|| Axiom::ALL.map(verdict).into()),
        groups,
        manipulation: parts(Part::Manipulation)
            .then(|| manipulation(question, profile, mechanism))
            .transpose()?,
    })
}

fn witness<T: Scalar>(question: &Question<T>, w: &Witness<T>) -> WitnessOut {
    WitnessOut {
        rows: w.agents.iter().map(|i| i + 1).collect(),
        lowest: question.back(&w.span.0).to_f64(),
        highest: question.back(&w.span.1).to_f64(),
        share: w.share.to_f64(),
        distance: w.distance.to_f64(),
        allowed: w.allowed.to_f64(),
    }
}

fn welfare_of<T: Scalar>(profile: &Profile<T>, y: &T) -> Result<WelfareOut> {
    let w = welfare(profile, y)?;
    Ok(WelfareOut {
        social_welfare: w.social_welfare.to_f64(),
        total_cost: w.total_cost.to_f64(),
        best_welfare: w.best_welfare.to_f64(),
        least_cost: w.least_cost.to_f64(),
        welfare_ratio: w.welfare_ratio.map(|r| r.to_f64()),
        cost_ratio: w.cost_ratio.map(|r| r.to_f64()),
    })
}

/// Agents of one wish and weight are alike: one of them speaks for all.
fn manipulation<T: Scalar>(
    question: &Question<T>,
    profile: &Profile<T>,
    mechanism: &Mechanism,
) -> Result<Manipulation> {
    let (x, w) = (profile.positions(), profile.weights());
    let mut order: Vec<usize> = (0..profile.len()).collect();
    order.sort_by(|&a, &b| x[a].order(&x[b]).then(w[a].order(&w[b])).then(a.cmp(&b)));
    order.dedup_by(|a, b| x[*a] == x[*b] && w[*a] == w[*b]);
    let distinct = order.len();
    let stride = distinct.div_ceil(MOST_AGENTS).max(1);
    let looked: Vec<usize> = order.into_iter().step_by(stride).collect();
    let mut misreports = Vec::new();
    for &i in &looked {
        if let Some(found) = best_deviation(mechanism, profile, i)? {
            misreports.push(Misreport {
                row: i + 1,
                wish: question.back(&x[i]).to_f64(),
                report: question.back(&found.report).to_f64(),
                point: question.back(&found.outcome).to_f64(),
                gain: found.gain.to_f64(),
            });
        }
    }
    misreports.sort_by(|a, b| b.gain.total_cmp(&a.gain).then(a.row.cmp(&b.row)));
    let strategyproof = mechanism.is_strategyproof();
    Ok(Manipulation { strategyproof, checked: looked.len(), distinct, misreports })
}

/// Points of several columns that add up to 1.
fn budget(app: &App, args: &LocateArgs) -> Result<Done> {
    let question = args.wishes.ask::<f64>(app.seed())?;
    if question.columns.len() < 2 {
        return Err(Failure::usage("--simplex", "needs two columns or more")
            .help("name each share with --column, as in --column rent --column food"));
    }
    let columns: Vec<&[f64]> = question.columns.iter().map(|(_, p)| p.positions()).collect();
    let wishes: Vec<Vec<f64>> =
        (0..question.agents()).map(|i| columns.iter().map(|c| c[i]).collect()).collect();
    let shares = independent_markets(&wishes, question.columns[0].1.weights())?;
    let named = question.columns.iter().map(|(name, _)| name.clone()).zip(shares);
    if app.out.json {
        let shares: serde_json::Map<String, serde_json::Value> =
            named.map(|(name, share)| (name, share.into())).collect();
        app.out.json(&serde_json::json!({
            "mechanism": "independent-markets",
            "agents": question.agents(),
            "shares": shares,
        }))?;
        return Ok(Done::Well);
    }
    let mut grid = Grid::new(&["column", ">share"]);
    named.for_each(|(name, share)| grid.row([name, number(share)]));
    app.out.grid(&grid)?;
    Ok(Done::Well)
}

fn number_line(question: &Question<f64>, mechanism: &Mechanism) -> Result<Plot> {
    let mut plot = Plot::new(format!("{mechanism}: wishes, phantoms, point"))
        .x("position")
        .y("1 wishes, 2 phantoms, 3 point");
    for (column, profile) in &question.columns {
        let line = |at: Vec<f64>, y: f64| {
            at.into_iter().map(|x| (question.back(&x), y)).collect::<Vec<_>>()
        };
        let point = mechanism.outcome(profile)?;
        plot = plot
            .points(format!("{column}: wishes"), line(profile.positions().to_vec(), 1.))
            .points(format!("{column}: phantoms"), line(mechanism.phantoms(profile)?, 2.))
            .points(format!("{column}: point"), line(vec![point], 3.));
    }
    Ok(plot)
}

fn show(app: &App, located: &Located) -> Result<()> {
    for (i, point) in located.points.iter().enumerate() {
        if i > 0 {
            app.out.text("")?;
        }
        let mut grid = Grid::new(&["", ""]);
        let at = point.fraction.clone().unwrap_or_else(|| number(point.point));
        grid.row([point.column.clone(), app.out.bold(&at)]);
        grid.row(["mechanism", &located.mechanism]);
        grid.row(["agents", &located.agents.to_string()]);
        if let Some(w) = &point.welfare {
            let ratio = |r: Option<f64>| r.map_or("undefined".to_owned(), number);
            let best = |value: f64, best: f64, r| {
                format!("{} (best {}, ratio {})", number(value), number(best), ratio(r))
            };
            grid.row(["welfare", &best(w.social_welfare, w.best_welfare, w.welfare_ratio)]);
            grid.row(["total cost", &best(w.total_cost, w.least_cost, w.cost_ratio)]);
        }
        app.out.grid(&grid)?;
        show_fairness(app, point)?;
        show_manipulation(app, point)?;
    }
    Ok(())
}

fn show_fairness(app: &App, point: &Point) -> Result<()> {
    if let Some(verdicts) = &point.fairness {
        app.out.text("")?;
        let mut grid = Grid::new(&["axiom", "holds", "wronged most"]);
        for v in verdicts {
            let wronged = v.witness.as_ref().map(|w| {
                let rows: Vec<String> = w.rows.iter().take(SHOWN).map(usize::to_string).collect();
                let more = if w.rows.len() > SHOWN { ", …" } else { "" };
                format!(
                    "{} agents (rows {}{more}): {} away, {} allowed",
                    w.rows.len(),
                    rows.join(", "),
                    number(w.distance),
                    number(w.allowed)
                )
            });
            let holds = if v.holds { "yes" } else { "no" };
            grid.row([v.axiom.name().to_owned(), holds.into(), wronged.unwrap_or_default()]);
        }
        app.out.grid(&grid)?;
    }
    if !point.groups.is_empty() {
        app.out.text("")?;
        app.out.grid(&group_grid(&point.groups))?;
    }
    Ok(())
}

fn group_grid(groups: &[GroupShare]) -> Grid {
    let mut grid = Grid::new(&[
        "group",
        ">agents",
        ">share",
        ">mean distance",
        ">farthest",
        ">allowed",
        "fair share",
    ]);
    for g in groups {
        grid.row([
            g.group.clone(),
            g.agents.to_string(),
            number(g.share),
            number(g.mean_distance),
            number(g.max_distance),
            number(g.allowed),
            if g.below_fair_share { "below" } else { "met" }.to_owned(),
        ]);
    }
    grid
}

fn show_manipulation(app: &App, point: &Point) -> Result<()> {
    let Some(m) = &point.manipulation else { return Ok(()) };
    app.out.text("")?;
    let looked = match m.checked == m.distinct {
        true => format!("{} distinct agents", m.distinct),
        false => format!("{} of {} distinct agents", m.checked, m.distinct),
    };
    if m.misreports.is_empty() {
        return app.out.text(&format!("no misreport helps any of {looked}"));
    }
    app.out.text(&format!("{} of {looked} gain by a misreport", m.misreports.len()))?;
    let mut grid = Grid::new(&[">row", ">wish", ">says", ">point then", ">gain"]);
    for r in m.misreports.iter().take(SHOWN) {
        grid.row([
            r.row.to_string(),
            number(r.wish),
            number(r.report),
            number(r.point),
            number(r.gain),
        ]);
    }
    app.out.grid(&grid)
}
