//! Named columns: what CSV, JSON lines and Parquet files hold.

use std::path::{Path, PathBuf};

use crate::error::{Error, Place, Result};

/// The values of one column, one per row.
#[derive(Debug, Clone, PartialEq)]
pub enum Column {
    /// Text; `None` where there is no value.
    Text(Vec<Option<String>>),
    /// Whole numbers, none missing. Truth values are 0 and 1.
    Integers(Vec<i64>),
    /// Numbers; NaN where there is no value.
    Numbers(Vec<f64>),
    /// Raw bytes, such as encoded images; `None` where there is no value.
    Bytes(Vec<Option<Vec<u8>>>),
}

impl Column {
    /// Number of rows.
    pub fn len(&self) -> usize {
        match self {
            Self::Text(v) => v.len(),
            Self::Integers(v) => v.len(),
            Self::Numbers(v) => v.len(),
            Self::Bytes(v) => v.len(),
        }
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What it holds, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "text",
            Self::Integers(_) => "whole numbers",
            Self::Numbers(_) => "numbers",
            Self::Bytes(_) => "bytes",
        }
    }
}

/// A table: columns of equal length under names that differ.
#[derive(Debug, Clone, PartialEq)]
pub struct Records {
    file: PathBuf,
    columns: Vec<(String, Column)>,
    rows: usize,
    /// Line on which each row begins, for formats made of lines.
    lines: Vec<u64>,
}

impl Records {
    /// A table of `columns`, said to come from `file`; `lines` is the line on which each row begins,
    /// or empty.
    ///
    /// # Errors
    /// When two columns have one name or different lengths.
    pub(super) fn new(
        file: &Path,
        columns: Vec<(String, Column)>,
        lines: Vec<u64>,
    ) -> Result<Self> {
        let rows = columns.first().map_or(0, |(_, c)| c.len());
        let mut names: Vec<&str> = columns.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::malformed(file, "is the name of two columns")
                .item(format!("column `{}`", twice[0]))
                .remedy("rename one of them"));
        }
        if let Some((name, column)) = columns.iter().find(|(_, c)| c.len() != rows) {
            let reason = format!("has {} rows where others have {rows}", column.len());
            return Err(Error::malformed(file, reason).item(format!("column `{name}`")));
        }
        Ok(Self { file: file.to_path_buf(), columns, rows, lines })
    }

    /// The file it was read from.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Names of the columns, in the order of the file.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.columns.iter().map(|(name, _)| name.as_str())
    }

    /// The column `name`, if there is one.
    pub fn get(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|(n, _)| n == name).map(|(_, column)| column)
    }

    /// The column `name`.
    ///
    /// # Errors
    /// When there is none; lists those there are.
    pub fn column(&self, name: &str) -> Result<&Column> {
        self.get(name).ok_or_else(|| {
            let names: Vec<&str> = self.names().collect();
            Error::malformed(&self.file, "is not there")
                .item(format!("column `{name}`"))
                .remedy(format!("its columns are: {}", names.join(", ")))
        })
    }

    /// Where row `row`, counted from zero, stands in the file.
    pub fn place(&self, row: usize) -> Place {
        self.lines.get(row).map_or(Place::Row(row as u64 + 1), |&line| Place::Line(line))
    }

    /// The fault `reason` of row `row` (counted from zero) in column `name`.
    pub(super) fn fault(&self, name: &str, row: usize, reason: impl Into<String>) -> Error {
        Error::malformed(&self.file, reason).item(format!("column `{name}`")).at(self.place(row))
    }

    /// The column `name` as text, none missing.
    ///
    /// # Errors
    /// When there is no such column, it holds something else, or a row has no value.
    pub fn text(&self, name: &str) -> Result<Vec<&str>> {
        let Column::Text(values) = self.column(name)? else {
            return Err(self.other_kind(name, "text"));
        };
        let value = |(row, v): (usize, &'_ Option<String>)| match v {
            Some(_) => Ok(()),
            None => Err(self.fault(name, row, "has no value")),
        };
        values.iter().enumerate().try_for_each(value)?;
        Ok(values.iter().flatten().map(String::as_str).collect())
    }

    /// The column `name` as numbers; NaN where there is no value.
    ///
    /// # Errors
    /// When there is no such column or it holds something else.
    pub fn numbers(&self, name: &str) -> Result<Vec<f64>> {
        match self.column(name)? {
            Column::Integers(values) => Ok(values.iter().map(|&v| v as f64).collect()),
            Column::Numbers(values) => Ok(values.clone()),
            _ => Err(self.other_kind(name, "numbers")),
        }
    }

    /// The column `name` as classes, which are whole numbers from zero on.
    ///
    /// # Errors
    /// When there is no such column, it holds something else, or a value is negative or too large.
    pub fn labels(&self, name: &str) -> Result<Vec<u32>> {
        let Column::Integers(values) = self.column(name)? else {
            return Err(self.other_kind(name, "whole numbers"));
        };
        let label = |(row, &v): (usize, &i64)| {
            u32::try_from(v).map_err(|_| self.fault(name, row, format!("{v} is not a class")))
        };
        values.iter().enumerate().map(label).collect()
    }

    /// The column `name` as raw bytes, none missing.
    ///
    /// # Errors
    /// When there is no such column, it holds something else, or a row has no value.
    pub fn bytes(&self, name: &str) -> Result<Vec<&[u8]>> {
        let Column::Bytes(values) = self.column(name)? else {
            return Err(self.other_kind(name, "bytes"));
        };
        if let Some(row) = values.iter().position(Option::is_none) {
            return Err(self.fault(name, row, "has no value"));
        }
        Ok(values.iter().flatten().map(Vec::as_slice).collect())
    }

    fn other_kind(&self, name: &str, wanted: &str) -> Error {
        let kind = self.get(name).map_or("nothing", Column::kind);
        Error::malformed(&self.file, format!("holds {kind}, not {wanted}"))
            .item(format!("column `{name}`"))
    }
}

/// The narrowest column that holds every one of `cells` as it is written: whole numbers, numbers,
/// or text. An empty cell has no value.
pub(super) fn infer(cells: Vec<Option<String>>) -> Column {
    let integers: Option<Vec<i64>> =
        cells.iter().map(|c| c.as_deref()?.trim().parse().ok()).collect();
    if let Some(integers) = integers {
        return Column::Integers(integers);
    }
    let number = |cell: &Option<String>| match cell {
        Some(text) => text.trim().parse::<f64>().ok(),
        None => Some(f64::NAN),
    };
    // A column without any value is text: nothing says that it holds numbers.
    if cells.iter().any(Option::is_some)
        && let Some(numbers) = cells.iter().map(number).collect()
    {
        return Column::Numbers(numbers);
    }
    Column::Text(cells)
}
