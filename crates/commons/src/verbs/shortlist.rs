//! `shortlist`: a few items from many rankings.

mod simulate;
mod smoothness;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use clap::{Args, Subcommand, ValueEnum};
use commons_core::format::{grouped, number};
use commons_society::multiwinner_subset::exact::Limits;
use commons_society::multiwinner_subset::files::{self, Format};
use commons_society::multiwinner_subset::{
    Bounds, Group, Rankings, Score, Shortlist, Solver, report, select_within,
};
use serde::Serialize;

use crate::cli::{App, Done};
use crate::config::nearest;
use crate::error::{Failure, Result};
use crate::examples;
use crate::output::Grid;

pub const EXAMPLES: &str = examples![
    "$ commons shortlist --rankings votes.soc -k 10",
    "# at least three of a group, as item,group lines say",
    "$ commons shortlist --rankings r.csv --groups g.csv -k 10 --score borda --min women=3",
    "# everyone has a favourite on the list, proven best",
    "$ commons shortlist --rankings r.jsonl -k 5 --score cc --solver exact --json",
    "$ commons shortlist --rankings votes.abc.yaml --score pav --solver exact",
    "# does bias hide good items from this score, and how many rankings bring them back?",
    "$ commons shortlist smoothness --score borda --bias swap:0.5,0.9 --latent mallows:0.5 -m 20 -n 20",
    "$ commons shortlist simulate --bias utility:0.2 -m 50 -k 10 --sizes 10,100,1000",
    "# how it changes with the strength of the bias",
    "$ commons shortlist simulate --latent ic --bias swap:0.5,0.9 --lambdas 0,0.3,0.6,0.9 --plot lambda.svg",
];

/// Options of `shortlist`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct ShortlistArgs {
    /// Another question.
    #[command(subcommand)]
    pub mode: Option<Mode>,
    /// Rankings: .csv (voter,item,rank), .soc, .soi, .toc, .toi, .jsonl, .abc.yaml
    #[arg(short, long, value_name = "FILE", required = true)]
    pub rankings: Option<PathBuf>,
    /// Format of the rankings [default: what the file's name says]
    #[arg(long, value_name = "FORMAT", value_enum)]
    pub format: Option<FormatName>,
    /// CSV of groups (item,group); an item may be in several
    #[arg(short, long, value_name = "FILE")]
    pub groups: Option<PathBuf>,
    /// Items to choose [default for .abc.yaml: what the file says]
    #[arg(short, value_name = "N")]
    pub k: Option<usize>,
    /// Score: borda, sntv, bloc, bloc:K, cc, owa:harmonic, owa:W,W,…; approvals: av, approval-cc, pav, approval-owa:W,W,…
    #[arg(short, long, value_name = "NAME", default_value = "borda")]
    pub score: String,
    /// Least number of a group; may be repeated
    #[arg(long, value_name = "GROUP=N", requires = "groups")]
    pub min: Vec<String>,
    /// Greatest number of a group; may be repeated
    #[arg(long, value_name = "GROUP=N", requires = "groups")]
    pub max: Vec<String>,
    /// How to search
    #[arg(long, value_enum, default_value = "auto")]
    pub solver: SolverName,
}

/// Subcommands of `shortlist`.
#[derive(Debug, Subcommand)]
pub enum Mode {
    /// Whether biased rankings can tell good items of a group from bad ones
    Smoothness(smoothness::SmoothnessArgs),
    /// How good shortlists from biased rankings are, with bounds and without
    Simulate(simulate::SimulateArgs),
}

/// Formats of rankings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FormatName {
    /// Columns voter,item,rank.
    Csv,
    /// PrefLib orders, also bare `count,item,item,…` lines.
    Preflib,
    /// A JSON array or object a line.
    Jsonl,
    /// Approval profiles of abcvoting.
    Abc,
}

/// Solvers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SolverName {
    /// Exact for sums by sorting, greedy for others.
    Auto,
    /// The best single items.
    Top,
    /// The item that adds most, again and again.
    Greedy,
    /// Branch and bound: the best, and all that are as good.
    Exact,
    /// A mixed-integer linear program: the best, to confirm `exact`.
    Milp,
    /// Greedy on the multilinear extension, for cc: surer than greedy under bounds.
    ContinuousGreedy,
}

impl From<SolverName> for Solver {
    fn from(name: SolverName) -> Self {
        match name {
            SolverName::Auto => Self::Auto,
            SolverName::Top => Self::Top,
            SolverName::Greedy => Self::Greedy,
            SolverName::Exact => Self::Exact,
            SolverName::Milp => Self::Milp,
            SolverName::ContinuousGreedy => Self::ContinuousGreedy,
        }
    }
}

impl From<FormatName> for Format {
    fn from(name: FormatName) -> Self {
        match name {
            FormatName::Csv => Self::Csv,
            FormatName::Preflib => Self::PrefLib,
            FormatName::Jsonl => Self::Jsonl,
            FormatName::Abc => Self::AbcYaml,
        }
    }
}

/// What `shortlist --json` writes.
#[derive(Debug, Serialize)]
struct Listed {
    items: usize,
    ballots: usize,
    voters: f64,
    k: usize,
    score: String,
    /// `top`, `greedy`, `exact`, `milp` or `continuous-greedy`.
    solver: Solver,
    /// Chosen items in the order they were chosen.
    subset: Vec<String>,
    total: f64,
    /// Whether no subset is better.
    optimal: bool,
    /// No subset is better than this; null if the solver knows none.
    bound: Option<f64>,
    /// Every group of `--groups`.
    groups: Vec<GroupCount>,
    /// What the bounds cost on these rankings; null without bounds.
    price: Option<Price>,
    /// What other functions say about this subset.
    functions: Vec<Judged>,
    /// The closest decision, and how many rankings would settle it; null if nothing can be
    /// exchanged.
    rankings_needed: Option<NeededOut>,
    ties: TiesOut,
    /// Time of the search for the subset, without reading and without this report.
    seconds: f64,
}

#[derive(Debug, Serialize)]
struct GroupCount {
    group: String,
    size: usize,
    chosen: usize,
    min: usize,
    max: usize,
}

#[derive(Debug, Serialize)]
struct Price {
    /// Total without bounds.
    unconstrained: f64,
    subset: Vec<String>,
    /// Part of that total that the bounds cost.
    lost: f64,
}

#[derive(Debug, Serialize)]
struct Judged {
    score: String,
    total: f64,
    /// Total of what that function would choose within the bounds (greedily where that is hard).
    best: f64,
}

#[derive(Debug, Serialize)]
struct NeededOut {
    chosen: String,
    other: String,
    difference_per_voter: f64,
    /// With probability 0.95; null for a tie.
    rankings: Option<u64>,
    enough: bool,
}

#[derive(Debug, Serialize)]
struct TiesOut {
    /// Whether the choice was open anywhere; the first item in order of the file wins.
    any: bool,
    steps: Vec<Step>,
    /// All best subsets, from the exact solver.
    committees: Vec<Vec<String>>,
    /// Whether those are all.
    complete: bool,
}

#[derive(Debug, Serialize)]
struct Step {
    step: usize,
    items: Vec<String>,
}

/// Chooses a shortlist.
///
/// # Errors
/// When rankings or groups cannot be read, or no subset meets the bounds.
pub fn run(app: &App, args: &ShortlistArgs) -> Result<Done> {
    app.no_settings("shortlist")?;
    match &args.mode {
        Some(Mode::Smoothness(args)) => return smoothness::run(app, args),
        Some(Mode::Simulate(args)) => return simulate::run(app, args),
        None => {}
    }
    let score: Score = args.score.parse()?;
    let (rankings, k) = read(args)?;
    let bounds = bounds(args, &rankings, k)?;
    let began = Instant::now();
    let stop = app.stop.flag();
    let limits = Limits { stop: Some(&stop), ..Limits::default() };
    let solver = args.solver.into();
    let selection = select_within(&rankings, &score, k, &bounds, solver, limits)?;
    let seconds = began.elapsed().as_secs_f64();
    let found = report(&rankings, &score, k, &bounds, solver, limits, selection)?;
    let listed = listed(&rankings, &score, k, &bounds, &found, seconds);
    match app.out.json {
        true => app.out.json(&listed)?,
        false => show(app, &listed)?,
    }
    Ok(Done::Well)
}

fn read(args: &ShortlistArgs) -> Result<(Rankings, usize)> {
    let Some(path) = &args.rankings else {
        return Err(Failure::usage("--rankings", "is missing").help("name a file of rankings"));
    };
    let format = match args.format {
        Some(name) => name.into(),
        None => Format::of(path)?,
    };
    let (rankings, size) = if format == Format::AbcYaml {
        let text = commons_core::fs::read_text(path, 1 << 28)?;
        let abc = files::abc_yaml(path, &text)?;
        (abc.rankings, abc.committee_size)
    } else {
        (files::read_as(path, format)?, None)
    };
    let k = args.k.or(size).ok_or_else(|| {
        Failure::usage("-k", "is missing").help("say how many items to choose, as in -k 10")
    })?;
    Ok((rankings, k))
}

/// Bounds from `--groups`, `--min` and `--max`; groups without a bound are counted only.
fn bounds(args: &ShortlistArgs, rankings: &Rankings, k: usize) -> Result<Bounds> {
    let Some(path) = &args.groups else { return Ok(Bounds::none(rankings.items())) };
    let members = files::groups(path, rankings.names())?;
    let mut limits: BTreeMap<&str, (usize, usize)> =
        members.keys().map(|name| (name.as_str(), (0, k))).collect();
    for (option, list) in [("--min", &args.min), ("--max", &args.max)] {
        for assignment in list {
            let wrong = |problem: String| Failure::usage(format!("{option} {assignment}"), problem);
            let (name, count) = assignment.rsplit_once('=').ok_or_else(|| {
                wrong("has no `=`".into()).help(format!("write {option} GROUP=N"))
            })?;
            let count: usize = count.parse().map_err(|_| {
                wrong(format!("`{count}` is not a number")).help(format!("write {option} GROUP=N"))
            })?;
            let known: Vec<String> = members.keys().cloned().collect();
            let slot = limits.get_mut(name).ok_or_else(|| {
                let near = nearest(name, &known);
                let help = match near.is_empty() {
                    true => format!("groups: {}", known.join(", ")),
                    false => format!("did you mean {}?", near.join(" or ")),
                };
                wrong(format!("{} has no group `{name}`", path.display())).help(help)
            })?;
            if option == "--min" { slot.0 = count } else { slot.1 = count }
        }
    }
    let group = |(name, members): (&String, &Vec<usize>)| {
        let (min, max) = limits[name.as_str()];
        Group { name: name.clone(), members: members.clone(), min, max }
    };
    Ok(Bounds::new(rankings.items(), members.iter().map(group).collect())?)
}

fn listed(
    rankings: &Rankings,
    score: &Score,
    k: usize,
    bounds: &Bounds,
    found: &Shortlist,
    seconds: f64,
) -> Listed {
    let names = |items: &[usize]| -> Vec<String> {
        items.iter().filter_map(|&c| rankings.names().get(c).cloned()).collect()
    };
    let name = |c: usize| names(&[c]).concat();
    let chosen = &found.selection;
    let counts = bounds.counts(&chosen.subset);
    let group = |(g, chosen): (&Group, usize)| GroupCount {
        group: g.name.clone(),
        size: g.members.len(),
        chosen,
        min: g.min,
        max: g.max,
    };
    Listed {
        items: rankings.items(),
        ballots: rankings.ballots(),
        voters: rankings.voters(),
        k,
        score: score.to_string(),
        solver: chosen.solver,
        subset: names(&chosen.order),
        total: chosen.score,
        optimal: chosen.optimal,
        bound: chosen.bound.is_finite().then_some(chosen.bound),
        groups: bounds.groups().iter().zip(counts).map(group).collect(),
        price: found.unconstrained.as_ref().map(|free| Price {
            unconstrained: free.score,
            subset: names(&free.order),
            lost: if free.score > 0. { 1. - chosen.score / free.score } else { 0. },
        }),
        functions: found
            .judged
            .iter()
            .map(|(s, total, best)| Judged { score: s.to_string(), total: *total, best: *best })
            .collect(),
        rankings_needed: found.needed.map(|n| NeededOut {
            chosen: name(n.chosen),
            other: name(n.other),
            difference_per_voter: n.difference,
            rankings: n.rankings,
            enough: n.enough,
        }),
        ties: TiesOut {
            any: chosen.ties.any(),
            steps: chosen
                .ties
                .steps
                .iter()
                .map(|s| Step { step: s.step, items: names(&s.items) })
                .collect(),
            committees: chosen.ties.committees.iter().map(|c| names(c)).collect(),
            complete: chosen.ties.complete,
        },
        seconds,
    }
}

fn show(app: &App, l: &Listed) -> Result<()> {
    let mut grid = Grid::new(&["", ""]);
    grid.row([format!("{} of {}", l.k, l.items), app.out.bold(&l.subset.join(", "))]);
    grid.row(["voters", &grouped(l.voters as i64)]);
    let proof = match (l.optimal, l.bound) {
        (true, _) => "no subset is better".to_owned(),
        (false, Some(bound)) => format!("at most {} is possible", number(bound)),
        (false, None) => "greedy: a better subset may exist".to_owned(),
    };
    grid.row([l.score.clone(), format!("{} ({proof})", number(l.total))]);
    if let Some(price) = &l.price {
        let lost = format!(
            "{:.2} % of {}, which {} would have",
            100. * price.lost,
            number(price.unconstrained),
            price.subset.join(", ")
        );
        grid.row(["price of bounds".to_owned(), lost]);
    }
    if let Some(n) = &l.rankings_needed {
        let needed = n.rankings.map_or("no number of rankings would settle it".to_owned(), |r| {
            let verdict = if n.enough { "there are as many" } else { "more than there are" };
            format!("{} rankings settle it, {verdict}", grouped(r as i64))
        });
        grid.row(["closest".to_owned(), format!("{} before {}: {needed}", n.chosen, n.other)]);
    }
    for step in &l.ties.steps {
        grid.row(["tie".to_owned(), format!("place {}: {}", step.step, step.items.join(", "))]);
    }
    if l.ties.committees.len() > 1 {
        let more = if l.ties.complete { "" } else { " or more" };
        let lists: Vec<String> =
            l.ties.committees.iter().take(5).map(|c| format!("{{{}}}", c.join(", "))).collect();
        let text = format!("{}{more} best subsets: {}", l.ties.committees.len(), lists.join(" "));
        grid.row(["tie".to_owned(), text]);
    }
    app.out.grid(&grid)?;
    if !l.groups.is_empty() {
        app.out.text("")?;
        let mut grid = Grid::new(&["group", ">items", ">chosen", ">min", ">max"]);
        for g in &l.groups {
            let numbers = [g.size, g.chosen, g.min, g.max].map(|n| n.to_string());
            grid.row([vec![g.group.clone()], numbers.to_vec()].concat());
        }
        app.out.grid(&grid)?;
    }
    app.out.text("")?;
    let mut grid = Grid::new(&["function", ">this subset", ">its own choice"]);
    for f in &l.functions {
        grid.row([f.score.clone(), number(f.total), number(f.best)]);
    }
    app.out.grid(&grid)
}
