//! `locate compare`: all mechanisms side by side.

use std::path::PathBuf;

use clap::Args;
use commons_core::format::number;
use commons_core::report::Plot;
use commons_society::facility_location::groups::group_shares;
use commons_society::facility_location::welfare::{random_dictator_cost, welfare};
use commons_society::facility_location::{Axiom, Mechanism, Profile, Scalar};
use serde::Serialize;

use super::wishes::{Exact, Question, WishArgs};
use crate::cli::{App, Done};
use crate::error::Result;
use crate::output::Grid;

/// Options of `locate compare`.
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// Wishes.
    #[command(flatten)]
    pub wishes: WishArgs,
    /// A mechanism beside the usual ones, as in phantoms:0.2,0.5; may be repeated
    #[arg(long, value_name = "NAME")]
    pub mechanism: Vec<String>,
    /// Write the points on a number line as SVG
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
}

/// What `locate compare --json` writes: a list with one such object for each column and mechanism.
#[derive(Debug, Serialize)]
struct Row {
    column: String,
    mechanism: String,
    /// In the unit of the column; null for a lottery.
    point: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fraction: Option<String>,
    social_welfare: f64,
    total_cost: f64,
    welfare_ratio: Option<f64>,
    cost_ratio: Option<f64>,
    individual_fair_share: Option<bool>,
    unanimous_fair_share: Option<bool>,
    proportional_fairness: Option<bool>,
    strategyproof: bool,
    /// Groups farther than `1 − share` from the point, with `--group`.
    #[serde(skip_serializing_if = "Option::is_none")]
    groups_below_fair_share: Option<Vec<String>>,
}

/// Compares.
///
/// # Errors
/// As `locate`.
pub fn run(app: &App, args: &CompareArgs) -> Result<Done> {
    let mut mechanisms = Mechanism::PLAIN.to_vec();
    mechanisms.push(Mechanism::Constant(0.5));
    for name in &args.mechanism {
        mechanisms.push(name.parse()?);
    }
    let seed = app.seed();
    let rounded = args.wishes.ask::<f64>(seed)?;
    let rows = match args.wishes.exact {
        true => compare(&args.wishes.ask::<Exact>(seed)?, &rounded, &mechanisms)?,
        false => compare(&rounded, &rounded, &mechanisms)?,
    };
    if let Some(path) = &args.plot {
        let mut plot = Plot::new("The points of the mechanisms").x("position").y("mechanism");
        for (i, row) in rows.iter().enumerate() {
            let name = format!("{}: {}", row.column, row.mechanism);
            plot = plot.points(name, row.point.map(|p| (p, i as f64 + 1.)));
        }
        commons_core::fs::write_atomic(path, plot.to_svg())?;
    }
    match app.out.json {
        true => app.out.json(&rows)?,
        false => show(app, &rows)?,
    }
    Ok(Done::Well)
}

/// `rounded` is the same question in `f64`: Nash's point is found by bisection, and held against
/// axioms without tolerance it would fail by a rounding error.
fn compare<T: Scalar>(
    question: &Question<T>,
    rounded: &Question<f64>,
    mechanisms: &[Mechanism],
) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for ((column, profile), (_, near)) in question.columns.iter().zip(&rounded.columns) {
        for mechanism in mechanisms {
            rows.push(match mechanism {
                Mechanism::Nash => row(rounded, column, near, mechanism)?,
                _ => row(question, column, profile, mechanism)?,
            });
        }
        rows.push(lottery(column, profile)?);
    }
    Ok(rows)
}

fn row<T: Scalar>(
    question: &Question<T>,
    column: &str,
    profile: &Profile<T>,
    mechanism: &Mechanism,
) -> Result<Row> {
    let y = mechanism.outcome(profile)?;
    let at = question.back(&y);
    let w = welfare(profile, &y)?;
    let holds = |axiom: Axiom| Some(axiom.check(profile, &y).is_ok());
    let below = match &question.groups {
        Some(names) => {
            let groups = group_shares(profile, names, &y)?.into_iter();
            Some(groups.filter(|g| g.below_fair_share).map(|g| g.group).collect())
        }
        None => None,
    };
    Ok(Row {
        column: column.to_owned(),
        mechanism: mechanism.to_string(),
        point: Some(at.to_f64()),
        fraction: T::EXACT.then(|| at.to_string()),
        social_welfare: w.social_welfare.to_f64(),
        total_cost: w.total_cost.to_f64(),
        welfare_ratio: w.welfare_ratio.map(|r| r.to_f64()),
        cost_ratio: w.cost_ratio.map(|r| r.to_f64()),
        individual_fair_share: holds(Axiom::IndividualFairShare),
        unanimous_fair_share: holds(Axiom::UnanimousFairShare),
        proportional_fairness: holds(Axiom::ProportionalFairness),
        strategyproof: mechanism.is_strategyproof(),
        groups_below_fair_share: below,
    })
}

/// One agent drawn by weight decides: expected welfare; fairness of a lottery is another question.
fn lottery<T: Scalar>(column: &str, profile: &Profile<T>) -> Result<Row> {
    let median = Mechanism::Median.outcome(profile)?;
    let best = welfare(profile, &median)?;
    let cost = random_dictator_cost(profile).to_f64();
    let (least, sum) = (best.least_cost.to_f64(), best.best_welfare.to_f64());
    let achieved = profile.total().to_f64() - cost;
    Ok(Row {
        column: column.to_owned(),
        mechanism: "random dictator".into(),
        point: None,
        fraction: None,
        social_welfare: achieved,
        total_cost: cost,
        welfare_ratio: (achieved > 0.).then(|| sum / achieved),
        cost_ratio: (least > 0.).then(|| cost / least),
        individual_fair_share: None,
        unanimous_fair_share: None,
        proportional_fairness: None,
        strategyproof: true,
        groups_below_fair_share: None,
    })
}

fn show(app: &App, rows: &[Row]) -> Result<()> {
    let grouped = rows.iter().any(|r| r.groups_below_fair_share.is_some());
    let several = rows.iter().any(|r| r.column != rows[0].column);
    let mut head = vec![
        "mechanism",
        ">point",
        ">welfare",
        ">ratio",
        ">cost",
        ">ratio",
        "IFS",
        "UFS",
        "PF",
        "SP",
    ];
    if several {
        head.insert(0, "column");
    }
    if grouped {
        head.push("groups below");
    }
    let mut grid = Grid::new(&head);
    let ratio = |r: Option<f64>| r.map(number).unwrap_or_default();
    let yes = |b: Option<bool>| b.map_or("", |b| if b { "yes" } else { "no" }).to_owned();
    for r in rows {
        let point = r.fraction.clone().or_else(|| r.point.map(number)).unwrap_or_default();
        let mut cells = vec![
            r.mechanism.clone(),
            point,
            number(r.social_welfare),
            ratio(r.welfare_ratio),
            number(r.total_cost),
            ratio(r.cost_ratio),
            yes(r.individual_fair_share),
            yes(r.unanimous_fair_share),
            yes(r.proportional_fairness),
            yes(Some(r.strategyproof)),
        ];
        if several {
            cells.insert(0, r.column.clone());
        }
        if let Some(below) = &r.groups_below_fair_share {
            cells.push(below.join(", "));
        }
        grid.row(cells);
    }
    app.out.grid(&grid)
}
