//! Count tables: all that an audit needs to know about the data, and all that leaves a client.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::joint::Joint;
use crate::csv_input::CsvTable;
use crate::{Error, Result};

/// Says in the file what it is.
const FORMAT: &str = "commons-audit-counts";

/// Largest table that is built, cells.
const CELLS: usize = 1 << 22;

/// Longest file of counts that is read, bytes.
const FILE: u64 = 1 << 28;

/// How many samples have which group, client, label and prediction.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// Always `commons-audit-counts`.
    pub format: String,
    /// Names of the sensitive columns.
    pub attributes: Vec<String>,
    /// Groups: one value per sensitive column.
    pub groups: Vec<Vec<String>>,
    /// Clients.
    pub clients: Vec<String>,
    /// Classes of labels and predictions.
    pub classes: Vec<String>,
    /// Samples `[group, client, label, prediction]`.
    pub counts: Vec<u64>,
}

/// Which columns of a CSV file mean what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Columns {
    /// Sensitive attributes, at least one.
    pub sensitive: Vec<String>,
    /// The client of a row; all rows are one client without it.
    pub client: Option<String>,
    /// True labels.
    pub label: String,
    /// Predictions; taken to be the labels without it (limits only).
    pub prediction: Option<String>,
}

/// Numbers values in the order they are first met.
#[derive(Default)]
struct Names<'a> {
    index: HashMap<&'a str, usize>,
    names: Vec<&'a str>,
}

impl<'a> Names<'a> {
    fn index(&mut self, name: &'a str) -> usize {
        *self.index.entry(name).or_insert_with(|| {
            self.names.push(name);
            self.names.len() - 1
        })
    }

    /// The names in order, and the place of each old number in it. Numbers sort by value.
    fn sorted(&self) -> (Vec<String>, Vec<usize>) {
        let mut order: Vec<usize> = (0..self.names.len()).collect();
        order.sort_by(|&a, &b| compare(self.names[a], self.names[b]));
        let mut place = vec![0; order.len()];
        order.iter().enumerate().for_each(|(new, &old)| place[old] = new);
        (order.iter().map(|&i| self.names[i].to_owned()).collect(), place)
    }
}

/// As numbers if both are, else as text.
fn compare(a: &str, b: &str) -> std::cmp::Ordering {
    match (a.parse::<f64>(), b.parse::<f64>()) {
        (Ok(x), Ok(y)) => x.total_cmp(&y).then_with(|| a.cmp(b)),
        _ => a.cmp(b),
    }
}

impl Counts {
    /// Counts the rows of a table.
    ///
    /// # Errors
    /// When a column is missing or named twice, a cell is empty, or there are too many different
    /// values for a table.
    pub fn from_table(table: &CsvTable, columns: &Columns) -> Result<Self> {
        columns.check()?;
        let sensitive: Vec<Vec<&str>> =
            columns.sensitive.iter().map(|name| table.texts(name)).collect::<Result<_>>()?;
        let client = columns.client.as_deref().map(|name| table.texts(name)).transpose()?;
        let label = table.texts(&columns.label)?;
        let prediction = match &columns.prediction {
            Some(name) => table.texts(name)?,
            None => label.clone(),
        };
        for name in columns.all() {
            no_gaps(
                table,
                name,
                name == &columns.label || Some(name) == columns.prediction.as_ref(),
            )?;
        }
        let mut values: Vec<Names<'_>> = sensitive.iter().map(|_| Names::default()).collect();
        let (mut clients, mut classes) = (Names::default(), Names::default());
        let mut cells: HashMap<(Vec<usize>, [usize; 3]), u64> = HashMap::new();
        for row in 0..table.len() {
            let group = values.iter_mut().zip(&sensitive).map(|(v, c)| v.index(c[row])).collect();
            let client = clients.index(client.as_ref().map_or("all", |c| c[row]));
            let (y, p) = (classes.index(label[row]), classes.index(prediction[row]));
            *cells.entry((group, [client, y, p])).or_default() += 1;
        }
        let names: Vec<(Vec<String>, Vec<usize>)> = values.iter().map(Names::sorted).collect();
        let (clients, client_place) = clients.sorted();
        let (classes, class_place) = classes.sorted();
        let sorted: BTreeMap<Vec<usize>, Vec<([usize; 3], u64)>> =
            cells.into_iter().fold(BTreeMap::new(), |mut map, ((group, [c, y, p]), n)| {
                let group = group.iter().zip(&names).map(|(&g, (_, place))| place[g]).collect();
                let cell = [client_place[c], class_place[y], class_place[p]];
                map.entry(group).or_insert_with(Vec::new).push((cell, n));
                map
            });
        let group_name = |g: &Vec<usize>| {
            g.iter().zip(&names).map(|(&v, (names, _))| names[v].clone()).collect()
        };
        let groups: Vec<Vec<String>> = sorted.keys().map(group_name).collect();
        let widest = values.iter().map(|v| v.names.len()).zip(&columns.sensitive);
        let widest =
            widest.chain([(classes.len(), &columns.label)]).max().map(|(n, c)| (n, c.clone()));
        let mut counts =
            Self::empty(columns.sensitive.clone(), groups, clients, classes).map_err(|e| {
                match widest {
                    Some((n, column)) => Error::config(
                        format!("{}, column `{column}`", table.path().display()),
                        format!("has {n} different values; {e}"),
                    ),
                    None => e,
                }
            })?;
        for (g, cells) in sorted.values().enumerate() {
            for &([c, y, p], n) in cells {
                let at = counts.place(g, c, y, p);
                counts.counts[at] += n;
            }
        }
        Ok(counts)
    }

    pub(super) fn empty(
        attributes: Vec<String>,
        groups: Vec<Vec<String>>,
        clients: Vec<String>,
        classes: Vec<String>,
    ) -> Result<Self> {
        let sizes = [groups.len(), clients.len(), classes.len(), classes.len()];
        let cells = sizes.iter().try_fold(1usize, |n, &size| n.checked_mul(size));
        let Some(cells) = cells.filter(|&n| n <= CELLS) else {
            let reason = format!(
                "{} groups × {} clients × {} classes² are too many cells; is one of the columns a \
                 continuous number? Bin it, or name another",
                sizes[0], sizes[1], sizes[2]
            );
            return Err(Error::config("table", reason));
        };
        let format = FORMAT.to_owned();
        Ok(Self { format, attributes, groups, clients, classes, counts: vec![0; cells] })
    }

    /// Reads a file written by `commons audit counts`.
    ///
    /// # Errors
    /// When it cannot be read, is not such a file, or contradicts itself.
    pub fn read(path: &Path) -> Result<Self> {
        let text = commons_core::fs::read_text(path, FILE)?;
        let wrong = |field: &str, problem: String| {
            let remedy = "write it again with `commons audit counts`";
            Error::from(commons_core::Error::file(path, field, problem, remedy))
        };
        let counts: Self = serde_json::from_str(&text).map_err(|e| {
            wrong(&format!("line {}", e.line()), format!("is no table of counts: {e}"))
        })?;
        counts.contradiction().map_or(Ok(()), |(field, problem)| Err(wrong(field, problem)))?;
        Ok(counts)
    }

    /// The first field that cannot be, and why.
    fn contradiction(&self) -> Option<(&'static str, String)> {
        let cells = [self.groups.len(), self.clients.len(), self.classes.len(), self.classes.len()]
            .iter()
            .try_fold(1usize, |n, &size| n.checked_mul(size));
        if self.format != FORMAT {
            return Some(("format", format!("is {:?}, not {FORMAT:?}", self.format)));
        }
        if self.attributes.is_empty() {
            return Some(("attributes", "is empty".into()));
        }
        if let Some(group) = self.groups.iter().find(|g| g.len() != self.attributes.len()) {
            return Some(("groups", format!("{group:?} has not one value per attribute")));
        }
        for (field, repeated) in [
            ("groups", repeated(&self.groups)),
            ("clients", repeated(&self.clients)),
            ("classes", repeated(&self.classes)),
        ] {
            if let Some(name) = repeated {
                return Some((field, format!("{name} stands twice")));
            }
        }
        if cells != Some(self.counts.len()) {
            let problem = format!("holds {} cells, the names need {cells:?}", self.counts.len());
            return Some(("counts", problem));
        }
        match self.counts.iter().try_fold(0u64, |sum, &n| sum.checked_add(n)) {
            None => Some(("counts", "add up to more than 2⁶⁴".into())),
            Some(0) => Some(("counts", "are all 0".into())),
            Some(_) => None,
        }
    }

    /// Puts tables of several clients together. What one has not seen counts as 0 there; a client
    /// that is in two tables has the sum of both.
    ///
    /// # Errors
    /// When there are none, or they have different sensitive columns.
    pub fn merge(tables: &[Self]) -> Result<Self> {
        let Some(first) = tables.first() else {
            return Err(Error::config("counts", "no table was given"));
        };
        if let Some(other) = tables.iter().find(|t| t.attributes != first.attributes) {
            let reason = format!(
                "one table is about {}, another about {}; count the same columns at every client",
                first.attributes.join(", "),
                other.attributes.join(", ")
            );
            return Err(Error::config("counts", reason));
        }
        let union = |pick: fn(&Self) -> &Vec<String>| {
            let mut all: Vec<String> = tables.iter().flat_map(|t| pick(t).clone()).collect();
            all.sort_by(|a, b| compare(a, b));
            all.dedup();
            all
        };
        let mut groups: Vec<Vec<String>> = tables.iter().flat_map(|t| t.groups.clone()).collect();
        groups.sort_by(|a, b| {
            a.iter().zip(b).map(|(a, b)| compare(a, b)).find(|o| o.is_ne()).unwrap_or(a.cmp(b))
        });
        groups.dedup();
        let (clients, classes) = (union(|t| &t.clients), union(|t| &t.classes));
        let mut merged = Self::empty(first.attributes.clone(), groups, clients, classes)?;
        for table in tables {
            merged.absorb(table);
        }
        Ok(merged)
    }

    fn absorb(&mut self, table: &Self) {
        fn find<T: PartialEq>(all: &[T], one: &T) -> usize {
            all.iter().position(|a| a == one).unwrap_or(0)
        }
        let groups: Vec<usize> = table.groups.iter().map(|g| find(&self.groups, g)).collect();
        let clients: Vec<usize> = table.clients.iter().map(|c| find(&self.clients, c)).collect();
        let classes: Vec<usize> = table.classes.iter().map(|c| find(&self.classes, c)).collect();
        for (g, &group) in groups.iter().enumerate() {
            for (c, &client) in clients.iter().enumerate() {
                for (y, &label) in classes.iter().enumerate() {
                    for (p, &prediction) in classes.iter().enumerate() {
                        let at = self.place(group, client, label, prediction);
                        self.counts[at] += table.counts[table.place(g, c, y, p)];
                    }
                }
            }
        }
    }

    /// Index of a cell.
    pub fn place(&self, group: usize, client: usize, label: usize, prediction: usize) -> usize {
        let classes = self.classes.len();
        ((group * self.clients.len() + client) * classes + label) * classes + prediction
    }

    /// Group, client, label and prediction of every cell, in order.
    pub(super) fn cells(&self) -> impl Iterator<Item = [usize; 4]> + use<> {
        let (clients, classes) = (self.clients.len(), self.classes.len());
        (0..self.counts.len()).map(move |i| {
            let (rest, p) = (i / classes, i % classes);
            let (rest, y) = (rest / classes, rest % classes);
            [rest / clients, rest % clients, y, p]
        })
    }

    /// Number of samples.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The same samples grouped by one attribute alone.
    ///
    /// # Errors
    /// When there is no attribute of that index.
    pub fn by_attribute(&self, attribute: usize) -> Result<Self> {
        let Some(name) = self.attributes.get(attribute) else {
            return Err(Error::config("attribute", format!("{attribute} is not the index of one")));
        };
        let mut tables = self.clone();
        let mut groups: Vec<Vec<String>> =
            self.groups.iter().map(|g| vec![g[attribute].clone()]).collect();
        groups.sort_by(|a, b| compare(&a[0], &b[0]));
        groups.dedup();
        tables.attributes = vec![name.clone()];
        let mut out = Self::empty(tables.attributes, groups, tables.clients, tables.classes)?;
        for ([g, c, y, p], &n) in self.cells().zip(&self.counts) {
            let group = out.groups.iter().position(|o| o[0] == self.groups[g][attribute]);
            let at = out.place(group.unwrap_or(0), c, y, p);
            out.counts[at] += n;
        }
        Ok(out)
    }

    /// The empirical distribution of (group, prediction, client).
    ///
    /// # Errors
    /// When the table is empty.
    pub fn joint(&self) -> Result<Joint> {
        let (nz, ny, ns) = (self.groups.len(), self.classes.len(), self.clients.len());
        let mut weights = vec![0u64; nz * ny * ns];
        for ([g, c, _, p], &n) in self.cells().zip(&self.counts) {
            weights[(g * ny + p) * ns + c] += n;
        }
        Joint::from_counts(nz, ny, ns, &weights)
    }

    /// `female / black`.
    pub fn group_name(&self, group: usize) -> String {
        self.groups.get(group).map(|g| g.join(" / ")).unwrap_or_default()
    }
}

/// Cells that mean "no value" where a class should be; as a group or a client they may be names.
const MISSING: [&str; 6] = ["na", "n/a", "null", "none", "?", "-"];

/// Refuses cells without a value: they would become a group or a class of their own.
fn no_gaps(table: &CsvTable, name: &str, class: bool) -> Result<()> {
    let column = table.column(name)?;
    for row in 0..table.len() {
        let cell = table.cell(row, column);
        let gap = |word: &&str| cell.eq_ignore_ascii_case(word);
        if cell.eq_ignore_ascii_case("nan") || (class && MISSING.iter().any(gap)) {
            let problem = format!("`{cell}` is no value");
            return Err(table.error(row, name, problem, "fill in a value or remove the row"));
        }
    }
    Ok(())
}

impl Columns {
    /// All columns that are read.
    fn all(&self) -> Vec<&String> {
        let all = self.sensitive.iter().chain(&self.client).chain([&self.label]);
        all.chain(&self.prediction).collect()
    }

    fn check(&self) -> Result<()> {
        if self.sensitive.is_empty() {
            return Err(Error::config("sensitive", "name at least one sensitive column"));
        }
        match repeated(&self.all()) {
            Some(name) => Err(Error::config(
                "columns",
                format!("{name} is given two roles; name a column of its own for each"),
            )),
            None => Ok(()),
        }
    }
}

fn repeated<T: PartialEq + std::fmt::Debug>(items: &[T]) -> Option<String> {
    let twice = items.iter().enumerate().find(|(i, item)| items[..*i].contains(item));
    twice.map(|(_, item)| format!("{item:?}"))
}
