//! Rows of text to instances, one at a time: columns by name, categories as numbers, and running
//! standardisation, all in memory that does not grow with the stream.

use std::io::Read;
use std::path::{Path, PathBuf};

use commons_core::Seed;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::learner::{FairForest, ForestConfig};
use super::prequential::{Prequential, Scores, decide};
use super::rows::Rows;
use crate::{Error, Result};

/// Categories a column may have before further ones become one "unknown".
const CATEGORIES: usize = 64;

/// How features are brought to one scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Normalise {
    /// By mean and deviation of the rows so far: does not look ahead.
    #[default]
    Running,
    /// By those of the whole file, as the paper does: looks ahead.
    File,
    /// Not at all.
    None,
}

/// What the columns of a stream mean.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct StreamConfig {
    /// Column of the label.
    pub target: String,
    /// Column of the sensitive attribute.
    pub sensitive: String,
    /// Label that counts as positive; there is one other.
    pub positive: String,
    /// Values of the sensitive column, if they should not be learnt from the stream.
    pub groups: Vec<String>,
    /// Whether the sensitive column is kept from the model.
    pub drop_sensitive: bool,
    /// How features are scaled.
    pub normalise: Normalise,
    /// The forest.
    pub forest: ForestConfig,
}

impl Default for StreamConfig {
    fn default() -> Self {
        Self {
            target: String::new(),
            sensitive: String::new(),
            positive: "1".into(),
            groups: Vec::new(),
            drop_sensitive: false,
            normalise: Normalise::Running,
            forest: ForestConfig::default(),
        }
    }
}

/// One feature column.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Column {
    pub name: String,
    /// Values in the order met; `None` for a column of numbers.
    pub categories: Option<Vec<String>>,
    pub n: u64,
    #[serde(with = "super::state::bits")]
    pub moments: Vec<f64>,
}

impl Column {
    fn new(name: &str, first: &str) -> Self {
        let categories = first.parse::<f64>().is_err().then(Vec::new);
        Self { name: name.to_owned(), categories, n: 0, moments: vec![0.; 2] }
    }

    /// The cell as a number; `None` if it should be one and is not.
    fn number(&mut self, cell: &str) -> Option<f64> {
        let Some(known) = &mut self.categories else {
            return cell.parse::<f64>().ok().filter(|v| v.is_finite());
        };
        let at = known.iter().position(|k| k == cell).unwrap_or_else(|| {
            if known.len() < CATEGORIES {
                known.push(cell.to_owned());
                known.len() - 1
            } else {
                CATEGORIES
            }
        });
        Some(at as f64)
    }

    fn update(&mut self, x: f64) {
        self.n += 1;
        let before = x - self.moments[0];
        self.moments[0] += before / self.n as f64;
        self.moments[1] += before * (x - self.moments[0]);
    }

    fn scaled(&self, x: f64) -> f64 {
        let spread = (self.moments[1] / (self.n.max(2) - 1) as f64).sqrt();
        if spread > 0. { (x - self.moments[0]) / spread } else { 0. }
    }
}

/// A learner with everything it needs to read rows, to stop and to go on.
#[derive(Debug, Clone, PartialEq)]
pub struct Pipeline {
    /// What the columns mean.
    pub config: StreamConfig,
    /// The learner; absent until the first row says how many features there are.
    pub learner: Option<FairForest>,
    /// Decisions so far.
    pub decisions: Prequential,
    pub(super) columns: Vec<Column>,
    /// The label that is not positive, once met.
    pub(super) other: Option<String>,
    pub(super) groups: Vec<String>,
    pub(super) seed: u64,
    scanned: bool,
}

/// What became of a row.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Decision {
    /// Number of the row in the stream, from 1, resumed rows included.
    pub row: u64,
    /// Whether it was decided positive, before its label was looked at.
    pub positive: bool,
    /// Probability of the positive class.
    pub probability: f64,
}

/// A place in the input, for messages.
struct Place<'a> {
    path: &'a Path,
    row: usize,
    line: u64,
}

impl Place<'_> {
    fn error(&self, column: &str, problem: String, remedy: &'static str) -> Error {
        let field = format!("row {} (line {}), column `{column}`", self.row, self.line);
        commons_core::Error::file(self.path, field, problem, remedy).into()
    }
}

impl Pipeline {
    /// Nothing read yet. Labels are two, so the forest has two classes.
    ///
    /// # Errors
    /// When an option is out of range or a column is not named.
    pub fn new(config: StreamConfig, seed: u64) -> Result<Self> {
        config.forest.validate()?;
        for (name, value) in [("target", &config.target), ("sensitive", &config.sensitive)] {
            if value.is_empty() {
                return Err(Error::config(name, "names no column"));
            }
        }
        if config.forest.classes != 2 {
            return Err(Error::config("classes", "is not 2: a stream has one positive label"));
        }
        let groups = config.groups.clone();
        if !groups.is_empty() && groups.len() != config.forest.groups {
            let reason =
                format!("{} are named where there are {}", groups.len(), config.forest.groups);
            return Err(Error::config("groups", reason));
        }
        if let Some((_, twice)) = groups.iter().enumerate().find(|(i, g)| groups[..*i].contains(g))
        {
            return Err(Error::config("groups", format!("`{twice}` stands twice")));
        }
        Ok(Self {
            decisions: Prequential::new(config.forest.groups, 2),
            config,
            learner: None,
            columns: Vec::new(),
            other: None,
            groups,
            seed,
            scanned: false,
        })
    }

    /// The metrics so far.
    pub fn scores(&self) -> Scores {
        self.decisions.scores()
    }

    /// Reads rows of CSV with a header, or JSON objects line by line, deciding and learning row by row. `path` stands in
    /// messages; `each` is called with every decision.
    ///
    /// # Errors
    /// Naming file, row and column of what cannot be used; rows before it have been learnt from.
    pub fn run(
        &mut self,
        input: impl Read,
        path: &Path,
        mut each: impl FnMut(&Self, &Decision) -> Result<()>,
    ) -> Result<()> {
        self.rows(input, path, |pipeline, instance| {
            let (x, y, a) = instance;
            let Some(learner) = &mut pipeline.learner else { return Ok(()) };
            let p = learner.learn(&x, y, a)?;
            let decided = decide(&p);
            pipeline.decisions.record(a, y, decided);
            let row = pipeline.scores_count();
            each(pipeline, &Decision { row, positive: decided == 1, probability: p[1] })
        })
    }

    /// Takes mean and deviation of every column from a first pass over the file.
    ///
    /// # Errors
    /// As [`Pipeline::run`].
    pub fn scan(&mut self, input: impl Read, path: &Path) -> Result<()> {
        self.rows(input, path, |_, _| Ok(()))?;
        self.scanned = true;
        Ok(())
    }

    fn scores_count(&self) -> u64 {
        self.decisions.scores().count
    }

    fn rows(
        &mut self,
        input: impl Read,
        path: &Path,
        mut each: impl FnMut(&mut Self, (Vec<f64>, usize, usize)) -> Result<()>,
    ) -> Result<()> {
        let mut rows = Rows::open(input, path)?;
        let header = rows.header.clone();
        let roles = self.roles(&header, path)?;
        let mut record = csv::StringRecord::new();
        let mut row = 0;
        while let Some(line) = rows.next(&mut record, row + 1)? {
            row += 1;
            let place = Place { path, row, line };
            if record.len() != header.len() {
                let problem = format!("has {} cells, the header {}", record.len(), header.len());
                let field = format!("row {row} (line {line})");
                let remedy = "give every row as many cells as the header";
                return Err(commons_core::Error::file(path, field, problem, remedy).into());
            }
            let instance = self.instance(&roles, &header, &record, &place)?;
            each(self, instance)?;
        }
        if row == 0 {
            let remedy = "give a header and at least one row";
            return Err(commons_core::Error::file(path, "", "holds no rows", remedy).into());
        }
        Ok(())
    }

    /// Places of target, sensitive column and features.
    fn roles(&self, header: &[String], path: &Path) -> Result<(usize, usize, Vec<usize>)> {
        let find = |name: &str| {
            header.iter().position(|h| h == name).ok_or_else(|| {
                let remedy = format!("columns: {}", header.join(", "));
                commons_core::Error::file(path, format!("column `{name}`"), "is missing", remedy)
            })
        };
        let (target, sensitive) = (find(&self.config.target)?, find(&self.config.sensitive)?);
        if target == sensitive {
            return Err(Error::config("sensitive", "is the column of the label"));
        }
        let used = |&c: &usize| c != target && !(self.config.drop_sensitive && c == sensitive);
        let features: Vec<usize> = (0..header.len()).filter(used).collect();
        let names: Vec<&String> = features.iter().map(|&c| &header[c]).collect();
        if let Some((_, twice)) = names.iter().enumerate().find(|(i, n)| names[..*i].contains(n)) {
            let remedy = "give every column a name of its own";
            let field = format!("header, column `{twice}`");
            return Err(commons_core::Error::file(path, field, "stands twice", remedy).into());
        }
        let known: Vec<&String> = self.columns.iter().map(|c| &c.name).collect();
        if !known.is_empty() && known != names {
            let problem = "has other columns than the stream so far".to_owned();
            let remedy = "resume with the columns, in the order, it began with";
            return Err(commons_core::Error::file(path, "header", problem, remedy).into());
        }
        Ok((target, sensitive, features))
    }

    fn instance(
        &mut self,
        (target, sensitive, features): &(usize, usize, Vec<usize>),
        header: &[String],
        record: &csv::StringRecord,
        place: &Place<'_>,
    ) -> Result<(Vec<f64>, usize, usize)> {
        let cell = |c: usize| record.get(c).unwrap_or("");
        for (c, name) in header.iter().enumerate() {
            if cell(c).is_empty() {
                let remedy = "fill in a value or leave the row out";
                return Err(place.error(name, "is empty".into(), remedy));
            }
        }
        if self.columns.is_empty() {
            self.columns = features.iter().map(|&c| Column::new(&header[c], cell(c))).collect();
            let (forest, seed) = (self.config.forest.clone(), Seed::new(self.seed));
            self.learner = Some(FairForest::new(forest, features.len(), seed)?);
        }
        let mut x = Vec::with_capacity(features.len());
        for (column, &c) in self.columns.iter_mut().zip(features) {
            let value = column.number(cell(c)).ok_or_else(|| {
                let problem = format!("`{}` is not a finite number, as the first row had", cell(c));
                place.error(&header[c], problem, "give a number or leave the row out")
            })?;
            let frozen = self.scanned && self.config.normalise == Normalise::File;
            if !frozen {
                column.update(value);
            }
            x.push(if self.config.normalise == Normalise::None {
                value
            } else {
                column.scaled(value)
            });
        }
        let y = self.label(cell(*target), &header[*target], place)?;
        let a = self.group(cell(*sensitive), &header[*sensitive], place)?;
        Ok((x, y, a))
    }

    fn label(&mut self, cell: &str, name: &str, place: &Place<'_>) -> Result<usize> {
        if cell == self.config.positive {
            return Ok(1);
        }
        let other = self.other.get_or_insert_with(|| cell.to_owned());
        if other == cell {
            return Ok(0);
        }
        let problem = format!(
            "`{cell}` is neither `{}` (positive) nor `{other}`, the labels so far",
            self.config.positive
        );
        Err(place.error(
            name,
            problem,
            "say with --positive which label is positive; there are two",
        ))
    }

    fn group(&mut self, cell: &str, name: &str, place: &Place<'_>) -> Result<usize> {
        if let Some(at) = self.groups.iter().position(|g| g == cell) {
            return Ok(at);
        }
        if self.config.groups.is_empty() && self.groups.len() < self.config.forest.groups {
            self.groups.push(cell.to_owned());
            return Ok(self.groups.len() - 1);
        }
        let problem = format!("`{cell}` is another group than {}", self.groups.join(", "));
        Err(place.error(name, problem, "name all groups with --groups a,b,c"))
    }
}

/// A path for messages about standard input.
pub fn standard_input() -> PathBuf {
    PathBuf::from("standard input")
}
