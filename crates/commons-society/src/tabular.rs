//! Tables of people for experiments: the published Adult and COMPAS files, and generated ones of
//! the same kind where no file is at hand.

use std::path::Path;

use commons_core::{Rng, Seed};

use crate::csv_input::CsvTable;
use crate::{Error, Result};

/// Columns of UCI's `adult.data`, which has no header; the label comes last.
pub const ADULT: [&str; 15] = [
    "age",
    "workclass",
    "fnlwgt",
    "education",
    "education-num",
    "marital-status",
    "occupation",
    "relationship",
    "race",
    "sex",
    "capital-gain",
    "capital-loss",
    "hours-per-week",
    "native-country",
    "income",
];

/// Longest data file that is read, bytes.
const LIMIT: u64 = 1 << 28;

/// Where the files come from, for messages.
const ADULT_SOURCE: &str = "get `adult.data` of the UCI data set Adult (Census Income)";
const COMPAS_SOURCE: &str = "get `compas-scores-two-years.csv` of ProPublica's compas-analysis";

/// Numbers `[rows, columns]`, row after row.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Matrix {
    /// Names of the columns.
    pub names: Vec<String>,
    /// Number of rows.
    pub rows: usize,
    /// Values `[rows, columns]`.
    pub x: Vec<f64>,
}

impl Matrix {
    /// Number of columns.
    pub fn width(&self) -> usize {
        self.names.len()
    }

    /// Row `i`.
    pub fn row(&self, i: usize) -> &[f64] {
        &self.x[i * self.width()..(i + 1) * self.width()]
    }

    fn push(&mut self, name: String, column: Vec<f64>) {
        let (old, width) = (std::mem::take(&mut self.x), self.width());
        self.rows = column.len();
        let rows = column.into_iter().enumerate();
        self.x = rows
            .flat_map(|(i, v)| old[i * width..(i + 1) * width].iter().copied().chain([v]))
            .collect();
        self.names.push(name);
    }

    /// Gives every column mean 0 and (sample) standard deviation 1 over all rows; constant columns
    /// become 0. This looks at the whole table.
    pub fn standardise(&mut self) {
        let width = self.width();
        for c in 0..width {
            let column: Vec<f64> = self.x.iter().skip(c).step_by(width).copied().collect();
            let centre = commons_core::stats::mean(&column);
            let spread = commons_core::stats::standard_deviation(&column);
            let scale = if spread > 0. { 1. / spread } else { 0. };
            self.x.iter_mut().skip(c).step_by(width).for_each(|v| *v = (*v - centre) * scale);
        }
    }
}

/// How text becomes numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// One column, the place of the value in alphabetical order.
    Label,
    /// One column per value.
    OneHot,
}

/// Encodes columns of a table. Columns in which every cell is a number stay numbers.
///
/// # Errors
/// When a column is missing or a cell empty.
pub fn encode(table: &CsvTable, columns: &[&str], encoding: Encoding) -> Result<Matrix> {
    let mut matrix = Matrix { rows: table.len(), ..Matrix::default() };
    for &name in columns {
        let cells = table.texts(name)?;
        if cells.iter().all(|c| c.parse::<f64>().is_ok()) {
            matrix.push(name.to_owned(), table.numbers(name)?);
            continue;
        }
        let mut values: Vec<&str> = cells.clone();
        values.sort_unstable();
        values.dedup();
        let place = |cell: &&str| values.binary_search(cell).unwrap_or(0);
        match encoding {
            Encoding::Label => {
                let column = cells.iter().map(|c| place(c) as f64).collect();
                matrix.push(name.to_owned(), column);
            }
            Encoding::OneHot => {
                for (v, value) in values.iter().enumerate() {
                    let column = cells.iter().map(|c| f64::from(place(c) == v)).collect();
                    matrix.push(format!("{name}={value}"), column);
                }
            }
        }
    }
    Ok(matrix)
}

/// People with features, a yes-or-no label, and sensitive attributes.
#[derive(Debug, Clone, PartialEq)]
pub struct People {
    /// Features, standardised.
    pub features: Matrix,
    /// Labels.
    pub label: Vec<bool>,
    /// The group of each person in the first sensitive attribute (sex, or race for COMPAS).
    pub group: Vec<usize>,
    /// Names of those groups.
    pub groups: Vec<String>,
}

/// The published Adult file as text columns.
///
/// # Errors
/// When the file cannot be read or is not that file.
pub fn adult(path: &Path) -> Result<CsvTable> {
    let text = read(path, ADULT_SOURCE)?;
    CsvTable::parse_headerless(path, text.trim_end(), &ADULT)
}

/// The published COMPAS file as text columns. The second of two columns of one name is called
/// `name.1`.
///
/// # Errors
/// When the file cannot be read or is no CSV.
pub fn compas(path: &Path) -> Result<CsvTable> {
    let text = read(path, COMPAS_SOURCE)?;
    let (head, body) = text.split_once('\n').unwrap_or((&text, ""));
    let mut names: Vec<String> = Vec::new();
    for name in head.trim_end().split(',') {
        let twice = names.iter().any(|n| n == name);
        names.push(if twice { format!("{name}.1") } else { name.to_owned() });
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    CsvTable::parse_headerless(path, body, &names)
}

fn read(path: &Path, source: &'static str) -> Result<String> {
    if !path.is_file() {
        let error = commons_core::Error::file(path, "", "is not there", source);
        return Err(error.into());
    }
    Ok(commons_core::fs::read_text(path, LIMIT)?)
}

impl People {
    /// Adult: label income over 50 K, groups by `by` ("sex" or "race"), features `features`.
    ///
    /// # Errors
    /// As [`adult`] and [`encode`].
    pub fn adult(path: &Path, by: &str, features: &[&str], encoding: Encoding) -> Result<Self> {
        let table = adult(path)?;
        let label = table.texts("income")?.iter().map(|v| v.contains('>')).collect();
        let mut matrix = encode(&table, features, encoding)?;
        // As published preparations do: married or not, in place of seven numbered states.
        if let Some(c) = matrix.names.iter().position(|n| n == "marital-status") {
            let width = matrix.width();
            let married = table.texts("marital-status")?;
            let column = matrix.x.iter_mut().skip(c).step_by(width);
            column.zip(married).for_each(|(x, m)| *x = f64::from(m.starts_with("Married")));
        }
        Self::build(&table, label, by, matrix)
    }

    /// COMPAS: label recidivism within two years, groups by `by` ("race" or "sex").
    ///
    /// # Errors
    /// As [`compas`] and [`encode`].
    pub fn compas(path: &Path, by: &str, features: &[&str], encoding: Encoding) -> Result<Self> {
        let table = compas(path)?;
        let label = table.texts("two_year_recid")?.iter().map(|v| *v == "1").collect();
        Self::build(&table, label, by, encode(&table, features, encoding)?)
    }

    fn build(table: &CsvTable, label: Vec<bool>, by: &str, mut features: Matrix) -> Result<Self> {
        features.standardise();
        let cells = table.texts(by)?;
        let mut groups: Vec<String> = cells.iter().map(|c| (*c).to_owned()).collect();
        groups.sort();
        groups.dedup();
        let place = |c: &&str| groups.iter().position(|g| g == c).unwrap_or(0);
        let group = cells.iter().map(place).collect();
        Ok(Self { features, label, group, groups })
    }

    /// Generated people of two groups: six features, two of them shifted by group, and a label
    /// that is likelier in the second group. The generator is stationary: order means nothing.
    ///
    /// # Errors
    /// When there are no rows.
    pub fn generated(rows: usize, seed: Seed) -> Result<Self> {
        if rows == 0 {
            return Err(Error::config("rows", "is 0; generate at least one"));
        }
        const WIDTH: usize = 6;
        let mut rng = seed.fork("people", 0).rng();
        let names = (0..WIDTH).map(|c| format!("x{c}")).collect();
        let mut people = Self {
            features: Matrix { names, rows, x: Vec::with_capacity(rows * WIDTH) },
            label: Vec::with_capacity(rows),
            group: Vec::with_capacity(rows),
            groups: vec!["a".into(), "b".into()],
        };
        for _ in 0..rows {
            let group = usize::from(rng.chance(0.6));
            let (x, label) = person::<WIDTH>(group, &mut rng);
            people.features.x.extend(x);
            people.label.push(label);
            people.group.push(group);
        }
        people.features.standardise();
        Ok(people)
    }

    /// Number of people.
    pub fn len(&self) -> usize {
        self.label.len()
    }

    /// Whether there is nobody.
    pub fn is_empty(&self) -> bool {
        self.label.is_empty()
    }
}

/// Features and label of one generated person.
fn person<const WIDTH: usize>(group: usize, rng: &mut Rng) -> ([f64; WIDTH], bool) {
    let shift = if group == 1 { 0.8 } else { -0.8 };
    let mut x = [0.; WIDTH];
    x.iter_mut().for_each(|v| *v = rng.normal());
    x[0] += shift;
    x[1] += 0.5 * shift;
    let score = 0.6 * x[0] + 1.2 * x[2] - 0.8 * x[3] * x[4] + 0.3 * shift - 0.4;
    (x, rng.chance(1. / (1. + (-2. * score).exp())))
}
