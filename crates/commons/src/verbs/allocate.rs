//! `allocate`: which group to sample, and how much, so that a model serves all of them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use commons_core::format::number;
use commons_core::fs::write_atomic;
use commons_core::report::{Page, Plot};
use commons_core::table::Table;
use commons_core::{Seed, cells};
use commons_society::adaptive_sampling::simulate::{Strategy, World, WorldConfig, utility};
use commons_society::adaptive_sampling::{
    AdaptiveSampler, Batch, GenomeConfig, Goal, Group, LearningCurve, PlinkConfig, Point, PowerLaw,
    Rule, SamplerConfig, Source, fit, plan,
};
use commons_society::csv_input::CsvTable;
use serde::Serialize;

use crate::cli::{App, Done};
use crate::error::{Failure, Result};
use crate::examples;
use crate::output::Grid;
use crate::verbs::tables;

pub const EXAMPLES: &str = examples![
    "# known curves e + a n^-b: columns name,cost,owned,weight,a,b,e",
    "$ commons allocate plan --groups groups.csv --budget 600 --utility maxmin",
    "# curves from measured losses: columns group,n,loss",
    "$ commons allocate fit --curve curve.csv",
    "# step by step, curves learnt on the way",
    "$ commons allocate next --state state.json --groups groups.csv --budget 2000 --batch 100",
    "$ commons allocate next --state state.json --observed batch.csv",
    "# what strategies would bring",
    "$ commons allocate simulate prs --strategy adaptive,equal,proportional --seeds 3 --budget 1000",
];

/// Options of `allocate`.
#[derive(Debug, Args)]
pub struct AllocateArgs {
    /// What to do
    #[command(subcommand)]
    pub what: What,
}

/// What `allocate` can do.
#[derive(Debug, Subcommand)]
pub enum What {
    /// The best allocation for known learning curves
    Plan(PlanArgs),
    /// Fit learning curves to measured losses
    Fit(FitArgs),
    /// The next group and batch, from a saved state and what was observed
    Next(NextArgs),
    /// Compare strategies in a simulated or real population
    Simulate(SimulateArgs),
}

/// Options of `allocate plan`.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// Table (.csv, .jsonl, .parquet) with name,a,b and optionally e,cost,owned,weight
    #[arg(long, value_name = "FILE")]
    pub groups: PathBuf,
    /// What all samples may cost, owned ones included
    #[arg(long, value_name = "COST", allow_negative_numbers = true)]
    pub budget: f64,
    /// utilitarian, maxmin, ces:RHO or gap:KAPPA
    #[arg(long, value_name = "UTILITY", default_value = "utilitarian")]
    pub utility: String,
    /// Performance is this less the loss (ces needs losses below it)
    #[arg(long, value_name = "NUMBER", default_value_t = 1.)]
    pub top: f64,
    /// Write the plan as CSV
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Write curves and utility against budget as a page
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

/// Options of `allocate fit`.
#[derive(Debug, Args)]
pub struct FitArgs {
    /// Table with group,n,loss
    #[arg(long, value_name = "FILE")]
    pub curve: PathBuf,
    /// Write the curves as CSV, for `plan`
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// Options of `allocate next`.
#[derive(Debug, Args)]
pub struct NextArgs {
    /// State; written anew when --groups begins
    #[arg(long, value_name = "FILE")]
    pub state: PathBuf,
    /// Begin: table with name and optionally cost,weight
    #[arg(long, value_name = "FILE", requires = "budget", conflicts_with = "observed")]
    pub groups: Option<PathBuf>,
    /// Table of what came in: group,n,loss (points of the curve) or group,value
    #[arg(long, value_name = "FILE")]
    pub observed: Option<PathBuf>,
    /// What all samples may cost
    #[arg(long, value_name = "COST", allow_negative_numbers = true)]
    pub budget: Option<f64>,
    /// utilitarian, maxmin, ces:RHO or gap:KAPPA
    #[arg(long, value_name = "UTILITY", default_value = "utilitarian")]
    pub utility: String,
    /// Samples per group before curves are looked at
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub warm_up: u64,
    /// Samples of a batch
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub batch: u64,
    /// Performance is this less the loss
    #[arg(long, value_name = "NUMBER", default_value_t = 1.)]
    pub top: f64,
    /// Take the group of largest marginal gain instead of planning anew
    #[arg(long)]
    pub greedy: bool,
}

/// Populations of `allocate simulate`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Population {
    /// Polygenic scores on generated genomes.
    Prs,
    /// Polygenic scores on PLINK genotypes, populations by family.
    Plink,
    /// Income on Adult, by sex and race.
    Adult,
    /// Recidivism on COMPAS, by race.
    Compas,
}

/// Strategies of `allocate simulate`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StrategyArg {
    /// By curves fitted on the way.
    Adaptive,
    /// The same from every group.
    Equal,
    /// By population shares.
    Proportional,
    /// By curves known in advance.
    Oracle,
    /// Always the worst-off group.
    Worst,
}

impl From<StrategyArg> for Strategy {
    fn from(arg: StrategyArg) -> Self {
        match arg {
            StrategyArg::Adaptive => Self::Adaptive,
            StrategyArg::Equal => Self::Equal,
            StrategyArg::Proportional => Self::Proportional,
            StrategyArg::Oracle => Self::Oracle,
            StrategyArg::Worst => Self::Worst,
        }
    }
}

/// Options of `allocate simulate`.
#[derive(Debug, Args)]
pub struct SimulateArgs {
    /// Population
    #[arg(value_enum)]
    pub population: Population,
    /// adult.data, compas-scores-two-years.csv, or PLINK files without .bed
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// Strategies, separated by commas
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "adaptive,equal,proportional,oracle"
    )]
    pub strategy: Vec<StrategyArg>,
    /// Repeats
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub seeds: u64,
    /// Samples that can be paid
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub budget: u64,
    /// Samples per group before curves are looked at
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub warm_up: u64,
    /// Samples of a batch
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub batch: u64,
    /// utilitarian, maxmin, ces:RHO or gap:KAPPA
    #[arg(long, value_name = "UTILITY", default_value = "utilitarian")]
    pub utility: String,
    /// Variants of the generated genomes
    #[arg(long, value_name = "N", default_value_t = 400)]
    pub variants: usize,
    /// Variants of the PLINK genotypes that have an effect
    #[arg(long, value_name = "N", default_value_t = 300)]
    pub causal: usize,
}

/// Plans, fits, steps or simulates.
///
/// # Errors
/// Naming the file, row and column, the group and field, or the option that cannot be used.
pub fn run(app: &App, args: &AllocateArgs) -> Result<Done> {
    app.no_settings("allocate")?;
    match &args.what {
        What::Plan(args) => plan_known(app, args),
        What::Fit(args) => fit_curves(app, args),
        What::Next(args) => next(app, args),
        What::Simulate(args) => simulate(app, args),
    }
}

/// A column of numbers that are all above 0.
fn positive(table: &CsvTable, name: &str) -> Result<Vec<f64>> {
    let numbers = table.numbers(name)?;
    match numbers.iter().position(|v| *v <= 0.) {
        None => Ok(numbers),
        Some(row) => {
            let problem = format!("{} is not above 0", numbers[row]);
            Err(table.error(row, name, problem, "give a number above 0 or remove the row").into())
        }
    }
}

/// A column of numbers of 0 or more, or the default in every row if it is not there; a default above
/// 0 says that 0 will not do.
fn optional(table: &CsvTable, name: &str, default: f64) -> Result<Vec<f64>> {
    if !table.header().iter().any(|h| h == name) {
        return Ok(vec![default; table.len()]);
    }
    if default > 0. {
        return positive(table, name);
    }
    let numbers = table.numbers(name)?;
    match numbers.iter().position(|v| *v < 0.) {
        None => Ok(numbers),
        Some(row) => {
            let problem = format!("{} is below 0", numbers[row]);
            Err(table.error(row, name, problem, "give 0 or more, or remove the row").into())
        }
    }
}

/// A column of names that are all different.
fn names(table: &CsvTable) -> Result<Vec<&str>> {
    let names = table.texts("name")?;
    for (row, name) in names.iter().enumerate() {
        if let Some(old) = names[..row].iter().position(|n| n == name) {
            let problem = format!("`{name}` stands in {} already", table.place(old));
            let remedy = "give every group one row and a name of its own";
            return Err(table.error(row, "name", problem, remedy).into());
        }
    }
    Ok(names)
}

/// One line of `allocate plan --json`.
#[derive(Debug, Serialize)]
struct Share {
    /// Group.
    group: String,
    /// Whole samples, owned ones included.
    samples: u64,
    /// Before rounding.
    exact: f64,
    /// Expected loss.
    loss: f64,
}

/// The result of `allocate plan --json`.
#[derive(Debug, Serialize)]
struct Planned {
    /// The utility, as `utilitarian` or `ces:-1`.
    utility: String,
    /// One per group.
    groups: Vec<Share>,
    /// Utility of the whole samples.
    value: f64,
    /// Utility that one more unit of budget would bring.
    shadow_price: f64,
}

fn plan_known(app: &App, args: &PlanArgs) -> Result<Done> {
    let goal: Goal = args.utility.parse()?;
    let table = tables::read(&args.groups)?;
    let (names, a, b) = (names(&table)?, positive(&table, "a")?, positive(&table, "b")?);
    let (e, cost) = (optional(&table, "e", 0.)?, optional(&table, "cost", 1.)?);
    let (owned, weight) = (optional(&table, "owned", 0.)?, optional(&table, "weight", 1.)?);
    let groups: Vec<Group> = (0..table.len())
        .map(|i| Group {
            name: names[i].to_owned(),
            cost: cost[i],
            owned: owned[i],
            weight: weight[i],
            curve: PowerLaw { e: e[i], a: a[i], b: b[i] },
        })
        .collect();
    let plan = plan(&groups, args.budget, goal, args.top)?;
    let share = |i: usize| Share {
        group: groups[i].name.clone(),
        samples: plan.whole[i],
        exact: plan.samples[i],
        loss: plan.loss[i],
    };
    let planned = Planned {
        utility: goal.to_string(),
        groups: (0..groups.len()).map(share).collect(),
        value: plan.whole_utility,
        shadow_price: plan.shadow_price,
    };
    let mut csv = Table::new("Plan").columns(["group", "samples", "exact", "loss"]);
    for s in &planned.groups {
        csv.push(cells![s.group.clone(), s.samples, s.exact, s.loss]);
    }
    if let Some(path) = &args.html {
        write_atomic(path, plan_page(&groups, args, goal, csv.clone()))?;
    }
    if let Some(path) = &args.out {
        write_atomic(path, csv.to_csv())?;
    }
    if app.out.json {
        app.out.json(&planned)?;
        return Ok(Done::Well);
    }
    let mut grid = Grid::new(&["group", ">samples", ">loss"]);
    for s in &planned.groups {
        grid.row([s.group.clone(), s.samples.to_string(), number(s.loss)]);
    }
    app.out.grid(&grid)?;
    let price = number(planned.shadow_price);
    app.out.text(&format!("{goal} utility {}, shadow price {price}", number(planned.value)))?;
    Ok(Done::Well)
}

fn plan_page(groups: &[Group], args: &PlanArgs, goal: Goal, csv: Table) -> String {
    let sizes = |from: f64| (0..40).map(move |i| from * 1.15f64.powi(i));
    let mut curves = Plot::new("Learning curves").x("samples").y("loss").log_x();
    for g in groups {
        curves = curves.line(g.name.as_str(), sizes(5.).map(|n| (n, g.curve.loss(n))));
    }
    let at = |budget: f64| Some((budget, plan(groups, budget, goal, args.top).ok()?.utility));
    let budgets = (1..=20).filter_map(|i| at(args.budget * f64::from(i) / 10.));
    let value = Plot::new("Utility against budget").x("budget").y("utility");
    let plots = [curves, value.line("plan", budgets)];
    let (title, lead) = ("Allocation", "Samples per group for the highest utility");
    Page { title, lead, plots: &plots, tables: &[csv], ..Page::default() }.to_html()
}

/// Points by group, in order of names.
fn points(table: &CsvTable) -> Result<BTreeMap<String, Vec<Point>>> {
    let (names, n, loss) = (table.texts("group")?, table.numbers("n")?, table.numbers("loss")?);
    let mut groups: BTreeMap<String, Vec<Point>> = BTreeMap::new();
    for row in 0..table.len() {
        if n[row] < 1. {
            let remedy = "give the number of samples the loss was measured after";
            return Err(table.error(row, "n", format!("{} is below 1", n[row]), remedy).into());
        }
        groups.entry(names[row].to_owned()).or_default().push(Point { n: n[row], loss: loss[row] });
    }
    Ok(groups)
}

/// One line of `allocate fit --json`.
#[derive(Debug, Serialize)]
struct Fitted {
    /// Group.
    group: String,
    /// Its curve `e + a n^(−b)`.
    #[serde(flatten)]
    curve: PowerLaw,
    /// Root mean square of the residuals.
    residual: f64,
    /// What to be careful about.
    warning: Option<&'static str>,
}

const AT_BOUND: &str = "the exponent is at the edge of its range: do not extrapolate";

fn fit_curves(app: &App, args: &FitArgs) -> Result<Done> {
    let mut all = Vec::new();
    for (group, points) in points(&tables::read(&args.curve)?)? {
        let fit = fit(&points)
            .map_err(|e| Failure::usage(format!("{}: group {group}", args.curve.display()), e))?;
        let warning = fit.at_bound.then_some(AT_BOUND);
        all.push(Fitted { group, curve: fit.curve, residual: fit.residual, warning });
    }
    if let Some(path) = &args.out {
        let mut csv = Table::new("Curves").columns(["name", "e", "a", "b"]);
        for f in &all {
            csv.push(cells![f.group.clone(), f.curve.e, f.curve.a, f.curve.b]);
        }
        write_atomic(path, csv.to_csv())?;
    }
    if app.out.json {
        app.out.json(&all)?;
        return Ok(Done::Well);
    }
    let mut grid = Grid::new(&["group", ">e", ">a", ">b", ">residual", "warning"]);
    for f in &all {
        let numbers = [f.curve.e, f.curve.a, f.curve.b, f.residual].map(number);
        let cells = [f.group.clone()].into_iter().chain(numbers);
        grid.row(cells.chain([f.warning.unwrap_or_default().to_owned()]));
    }
    app.out.grid(&grid)?;
    Ok(Done::Well)
}

/// The result of `allocate next --json`.
#[derive(Debug, Serialize)]
struct Step {
    /// The next batch; `null` when the budget is spent.
    next: Option<Batch>,
    /// Samples so far, by group.
    collected: BTreeMap<String, u64>,
    /// What they cost.
    spent: f64,
}

fn next(app: &App, args: &NextArgs) -> Result<Done> {
    let mut sampler = match &args.groups {
        Some(path) => begin(args, &tables::read(path)?)?,
        None => AdaptiveSampler::load(&args.state)?,
    };
    if let Some(path) = &args.observed {
        observe(&mut sampler, &tables::read(path)?)?;
    }
    let next = sampler.next_batch()?;
    sampler.save(&args.state)?;
    let names = sampler.groups.iter().map(|g| g.name.clone());
    let step =
        Step { collected: names.zip(sampler.collected()).collect(), spent: sampler.spent(), next };
    if app.out.json {
        app.out.json(&step)?;
        return Ok(Done::Well);
    }
    app.out.text(&match &step.next {
        Some(batch) => format!("{} from {} ({})", batch.size, batch.name, batch.reason),
        None => format!("done: {} spent", number(step.spent)),
    })?;
    Ok(Done::Well)
}

fn begin(args: &NextArgs, table: &CsvTable) -> Result<AdaptiveSampler> {
    let names = names(table)?;
    let (cost, weight) = (optional(table, "cost", 1.)?, optional(table, "weight", 1.)?);
    let source = |i: usize| Source { name: names[i].to_owned(), cost: cost[i], weight: weight[i] };
    let config = SamplerConfig {
        utility: args.utility.parse()?,
        budget: args.budget.unwrap_or_default(),
        warm_up: args.warm_up,
        batch: args.batch,
        top: args.top,
        rule: if args.greedy { Rule::Greedy } else { Rule::Replan },
    };
    Ok(AdaptiveSampler::new(config, (0..table.len()).map(source).collect())?)
}

/// Points of curves stand for the largest size they name; values count one by one.
fn observe(sampler: &mut AdaptiveSampler, table: &CsvTable) -> Result<()> {
    let unknown = |row: usize, e: commons_society::Error| {
        table.error(row, "group", e.to_string(), "use the names the state began with")
    };
    let names = table.texts("group")?;
    for (row, name) in names.iter().enumerate() {
        sampler.find(name).map_err(|e| unknown(row, e))?;
    }
    if table.header().iter().any(|h| h == "value") {
        let values = table.numbers("value")?;
        for (name, value) in names.iter().zip(values) {
            let group = sampler.find(name)?;
            sampler.observe_values(group, &[value])?;
        }
        return Ok(());
    }
    for (name, points) in points(table)? {
        let group = sampler.find(&name)?;
        let largest = points.iter().map(|p| p.n).fold(0., f64::max) as u64;
        let have = sampler.collected()[group];
        sampler.collect(group, largest.saturating_sub(have))?;
        sampler.observe(group, &points)?;
    }
    Ok(())
}

/// One line of `allocate simulate --json`.
#[derive(Debug, Serialize)]
struct Outcome {
    /// Strategy.
    strategy: &'static str,
    /// Repeat, from 0.
    repeat: u64,
    /// Samples and test loss by group.
    groups: BTreeMap<String, (u64, f64)>,
    /// Utility of the test losses.
    utility: f64,
}

fn simulate(app: &App, args: &SimulateArgs) -> Result<Done> {
    let goal: Goal = args.utility.parse()?;
    let file = || {
        args.data.clone().ok_or_else(|| {
            Failure::usage("--data", "this population is read from a file")
                .help("give adult.data, compas-scores-two-years.csv, or PLINK files without .bed")
        })
    };
    let world = match args.population {
        Population::Prs => {
            let causal = (args.variants / 5).max(1);
            WorldConfig::Prs(GenomeConfig {
                variants: args.variants,
                causal,
                ..GenomeConfig::default()
            })
        }
        Population::Plink => WorldConfig::Plink(PlinkConfig {
            path: file()?,
            causal: args.causal,
            effect_correlation: 0.9,
            heritability: 0.5,
            held: 250,
            shares: BTreeMap::new(),
        }),
        Population::Adult => WorldConfig::Adult { path: file()? },
        Population::Compas => WorldConfig::Compas { path: file()? },
    };
    let config = SamplerConfig {
        utility: goal,
        budget: args.budget as f64,
        warm_up: args.warm_up,
        batch: args.batch,
        ..SamplerConfig::default()
    };
    let mut outcomes = Vec::new();
    for repeat in 0..args.seeds {
        let seed = Seed::new(app.seed()).fork("repeat", repeat);
        let population = World::new(&world, args.budget, seed)?;
        for &strategy in &args.strategy {
            app.stop.check()?;
            let strategy = Strategy::from(strategy);
            let samples = population.spend(strategy, &config)?;
            let losses = population.losses(&samples);
            let pairs = samples.iter().copied().zip(losses.iter().copied());
            outcomes.push(Outcome {
                strategy: strategy.key(),
                repeat,
                groups: population.names.iter().cloned().zip(pairs).collect(),
                utility: utility(goal, config.top, &losses),
            });
        }
    }
    if app.out.json {
        app.out.json(&outcomes)?;
        return Ok(Done::Well);
    }
    let mut grid = Grid::new(&["strategy", ">repeat", ">utility", "samples and loss by group"]);
    for o in &outcomes {
        let groups = o.groups.iter().map(|(g, (n, loss))| format!("{g} {n} ({})", number(*loss)));
        let groups = groups.collect::<Vec<_>>().join(", ");
        grid.row([o.strategy.to_owned(), o.repeat.to_string(), number(o.utility), groups]);
    }
    app.out.grid(&grid)?;
    Ok(Done::Well)
}
