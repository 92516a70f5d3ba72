//! Where the wishes come from: columns of a file, or made up.

use std::path::PathBuf;

use clap::Args;
use commons_core::Seed;
use commons_society::csv_input::CsvTable;
use commons_society::facility_location::{BigRational, Profile, Scalar, Spread};

use crate::error::{Failure, Result};

/// Exact arithmetic.
pub type Exact = BigRational;

/// Options about the wishes.
#[derive(Debug, Args)]
pub struct WishArgs {
    /// Table (.csv, .jsonl, .parquet) with named columns, one agent a row
    #[arg(short, long, value_name = "FILE", required_unless_present = "simulate")]
    pub input: Option<PathBuf>,
    /// Column of the wishes; may be repeated for independent numbers
    #[arg(short, long, value_name = "NAME", requires = "input")]
    pub column: Vec<String>,
    /// Column of the agents' groups
    #[arg(short, long, value_name = "NAME", requires = "input")]
    pub group: Option<String>,
    /// Column of the agents' weights, above 0
    #[arg(short, long, value_name = "NAME", requires = "input")]
    pub weight: Option<String>,
    /// Lowest and highest possible wish [default: 0 1]
    #[arg(long, value_names = ["LOW", "HIGH"], num_args = 2, allow_negative_numbers = true)]
    pub range: Vec<String>,
    /// Wishes made up instead: n=AGENTS dist=uniform|bimodal|polarised|central|skewed
    #[arg(long, value_name = "KEY=VALUE", num_args = 1..=2, conflicts_with = "input")]
    pub simulate: Vec<String>,
    /// Compute in fractions: nothing is rounded
    #[arg(long)]
    pub exact: bool,
}

/// What is asked: positions on [0, 1] for every column, and the way back.
#[derive(Debug)]
pub struct Question<T> {
    /// Name and profile of each column.
    pub columns: Vec<(String, Profile<T>)>,
    /// Group of each agent.
    pub groups: Option<Vec<String>>,
    /// Lowest possible wish.
    pub low: T,
    /// Highest possible wish.
    pub high: T,
}

impl<T: Scalar> Question<T> {
    /// Number of agents.
    pub fn agents(&self) -> usize {
        self.columns.first().map_or(0, |(_, p)| p.len())
    }

    /// A point of [0, 1] in the unit of the column.
    pub fn back(&self, y: &T) -> T {
        self.low.clone() + y.clone() * (self.high.clone() - self.low.clone())
    }
}

impl WishArgs {
    /// Reads or makes the wishes.
    ///
    /// # Errors
    /// Naming file, row, column and remedy.
    pub fn ask<T: Scalar>(&self, seed: u64) -> Result<Question<T>> {
        let (low, high) = self.ends::<T>()?;
        let Some(path) = &self.input else { return self.made_up(seed, low, high) };
        if self.column.is_empty() {
            return Err(Failure::usage("--column", "is missing")
                .help("name the column of the wishes, as in --column x"));
        }
        let table = crate::verbs::tables::read(path)?;
        let weights = match &self.weight {
            Some(name) => {
                let weights = cells::<T>(&table, name)?;
                if let Some(row) = weights.iter().position(|w| !(*w > T::zero())) {
                    let problem = format!("{} is not above 0", weights[row]);
                    let remedy = "give the agent a weight above 0 or remove the row";
                    return Err(table.error(row, name, problem, remedy).into());
                }
                weights
            }
            None => vec![T::one(); table.len()],
        };
        let groups = match &self.group {
            Some(name) => Some(table.texts(name)?.into_iter().map(str::to_owned).collect()),
            None => None,
        };
        let mut columns = Vec::new();
        for name in &self.column {
            let wishes = cells::<T>(&table, name)?;
            let outside = |v: &T| *v < low || *v > high;
            if let Some(row) = wishes.iter().position(outside) {
                let problem = format!("{} is not in {low} to {high}", wishes[row]);
                let remedy = "correct the value, or give the possible values with --range LOW HIGH";
                return Err(table.error(row, name, problem, remedy).into());
            }
            let width = high.clone() - low.clone();
            let scaled = wishes.into_iter().map(|v| (v - low.clone()) / width.clone()).collect();
            columns.push((name.clone(), Profile::weighted(scaled, weights.clone())?));
        }
        Ok(Question { columns, groups, low, high })
    }

    fn ends<T: Scalar>(&self) -> Result<(T, T)> {
        let [low, high] = &self.range[..] else { return Ok((T::zero(), T::one())) };
        let read = |text: &String| {
            T::parse(text).ok_or_else(|| {
                Failure::usage("--range", format!("`{text}` is not a number"))
                    .help("give two numbers, as in --range 0 60")
            })
        };
        let (low, high) = (read(low)?, read(high)?);
        if !(low < high) {
            return Err(Failure::usage("--range", format!("{low} is not below {high}"))
                .help("give the lowest possible value first, as in --range 0 60"));
        }
        Ok((low, high))
    }

    fn made_up<T: Scalar>(&self, seed: u64, low: T, high: T) -> Result<Question<T>> {
        let (mut n, mut spread) = (100_usize, Spread::Uniform);
        for assignment in &self.simulate {
            let wrong = |problem: &str| {
                Failure::usage(format!("--simulate {assignment}"), problem).help(
                    "write --simulate n=100 dist=bimodal; distributions: uniform, bimodal, \
                     polarised, central, skewed",
                )
            };
            match assignment.split_once('=') {
                Some(("n", count)) => {
                    n = count
                        .parse()
                        .ok()
                        .filter(|n| *n > 0)
                        .ok_or_else(|| wrong("is not a number of agents above 0"))?;
                }
                Some(("dist", name)) => {
                    let known = Spread::ALL.into_iter().find(|s| s.name() == name);
                    spread = known.ok_or_else(|| wrong("is no known distribution"))?;
                }
                _ => return Err(wrong("is neither n=… nor dist=…")),
            }
        }
        let drawn = spread.draw(n, Seed::new(seed).fork("locate", 0));
        let number = |v: f64| T::from_f64(v).unwrap_or_else(T::zero);
        let profile = Profile::new(drawn.into_iter().map(number).collect())?;
        let columns = vec![(spread.name().to_owned(), profile)];
        Ok(Question { columns, groups: None, low, high })
    }
}

/// The numbers of a column, read as exactly as `T` can.
fn cells<T: Scalar>(table: &CsvTable, name: &str) -> Result<Vec<T>> {
    let column = table.column(name)?;
    if !T::EXACT {
        let numbers = table.numbers(name)?.into_iter();
        return Ok(numbers.map(|v| T::from_f64(v).unwrap_or_else(T::zero)).collect());
    }
    let read = |row: usize| {
        let text = table.cell(row, column);
        T::parse(text).ok_or_else(|| {
            let problem = format!("`{text}` is not a number");
            let remedy = "give a decimal or a fraction, as in 0.25 or 1/4, or remove the row";
            table.error(row, name, problem, remedy).into()
        })
    };
    (0..table.len()).map(read).collect()
}
