//! Tables of results: aligned text, Markdown, CSV and JSON from the same rows.

use crate::{error::Result, format, fs, number};
use comfy_table::{CellAlignment, LineStyle, TableStyle};
use serde::{Deserialize, Serialize};
use std::{path::Path, time::Duration};

/// A rule under the headings and nothing else.
const RULED: TableStyle =
    TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));

/// How the numbers of a column are shown to people. CSV and JSON always hold the full number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// Four significant digits.
    #[default]
    Plain,
    /// With an SI prefix: `135 M`.
    Si,
    /// Bytes with a binary prefix: `4.2 MiB`.
    Bytes,
    /// Seconds, shown as a time span: `3 min 12 s`.
    Seconds,
    /// A share of one, shown as per cent.
    Percent,
}

impl Unit {
    /// The number as text.
    pub fn show(self, value: f64) -> String {
        match self {
            Self::Si => format::si(value),
            Self::Bytes if value >= 0.0 && value.is_finite() => format::bytes(value as u64),
            Self::Seconds => match Duration::try_from_secs_f64(value) {
                Ok(span) => format::duration(span),
                Err(_) => format!("{} s", format::number(value)),
            },
            Self::Percent => format::percent(value),
            Self::Plain | Self::Bytes => format::number(value),
        }
    }
}

/// A column: its heading and how its numbers are shown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Heading.
    pub name: String,
    /// How numbers are shown.
    #[serde(default)]
    pub unit: Unit,
}

/// One entry.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Cell {
    /// Nothing there.
    #[default]
    Empty,
    /// A yes or no.
    Bool(bool),
    /// A number.
    Number(#[serde(with = "number")] f64),
    /// Words.
    Text(String),
}

impl Cell {
    fn show(&self, unit: Unit) -> String {
        match self {
            Self::Empty => String::new(),
            Self::Bool(value) => if *value { "yes" } else { "no" }.to_owned(),
            Self::Number(value) => unit.show(*value),
            Self::Text(text) => text.clone(),
        }
    }

    fn plain(&self) -> String {
        match self {
            Self::Bool(value) => value.to_string(),
            Self::Number(value) => value.to_string(),
            Self::Empty | Self::Text(_) => self.show(Unit::Plain),
        }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<bool> for Cell {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl<T: Into<Cell>> From<Option<T>> for Cell {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Empty, Into::into)
    }
}

macro_rules! cell_from_number {
    ($($number:ty)*) => {$(
        impl From<$number> for Cell {
            fn from(value: $number) -> Self {
                Self::Number(value as f64)
            }
        }
    )*};
}

cell_from_number!(f32 f64 i32 i64 u32 u64 usize);

/// Builds a row of [`Cell`]s from values of different types: `cells!["masa", 0.91, 12_u64]`.
#[macro_export]
macro_rules! cells {
    ($($value:expr),* $(,)?) => { ::std::vec![$($crate::table::Cell::from($value)),*] };
}

/// A table with a title.
///
/// ```
/// use commons_core::{cells, table::{Table, Unit}};
///
/// let mut table = Table::new("Sizes").column("model", Unit::Plain).column("parameters", Unit::Si);
/// table.push(cells!["before", 134_515_008_u64]);
/// table.push(cells!["after", 81_000_000_u64]);
/// assert!(table.to_markdown().contains("| before |      135 M |"));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// What it shows.
    pub title: String,
    /// Columns, left to right.
    pub columns: Vec<Column>,
    /// Rows; short ones count as filled up with [`Cell::Empty`], surplus cells are not shown.
    pub rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table without columns or rows.
    pub fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), ..Self::default() }
    }

    /// Adds a column.
    #[must_use]
    pub fn column(mut self, name: impl Into<String>, unit: Unit) -> Self {
        self.columns.push(Column { name: name.into(), unit });
        self
    }

    /// Adds columns of plain numbers or words.
    #[must_use]
    pub fn columns<'a>(self, names: impl IntoIterator<Item = &'a str>) -> Self {
        names.into_iter().fold(self, |table, name| table.column(name, Unit::Plain))
    }

    /// Adds a row.
    pub fn push(&mut self, row: Vec<Cell>) {
        self.rows.push(row);
    }

    /// The entry in a row and column, [`Cell::Empty`] where there is none.
    pub fn cell(&self, row: usize, column: usize) -> &Cell {
        const NOTHING: &Cell = &Cell::Empty;
        self.rows.get(row).and_then(|cells| cells.get(column)).unwrap_or(NOTHING)
    }

    /// Whether a column holds numbers only, and so is set flush right.
    pub fn is_numeric(&self, column: usize) -> bool {
        let mut cells = (0..self.rows.len()).map(|row| self.cell(row, column)).peekable();
        cells.peek().is_some() && cells.all(|cell| matches!(cell, Cell::Number(_) | Cell::Empty))
    }

    /// The text shown in a row and column.
    pub fn shown(&self, row: usize, column: usize) -> String {
        let unit = self.columns.get(column).map(|c| c.unit).unwrap_or_default();
        self.cell(row, column).show(unit)
    }

    /// Aligned text for a terminal, without the title, ending without a newline.
    pub fn to_text(&self) -> String {
        let mut table = comfy_table::Table::new();
        table.load_style(RULED);
        table.set_header(self.columns.iter().map(|column| &column.name));
        for row in 0..self.rows.len() {
            table.add_row((0..self.columns.len()).map(|column| self.shown(row, column)));
        }
        for (index, column) in table.column_iter_mut().enumerate() {
            if self.is_numeric(index) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table.trim_fmt()
    }

    /// A GitHub-flavoured Markdown table, ending with a newline.
    pub fn to_markdown(&self) -> String {
        let escape = |text: String| {
            text.replace('\\', "\\\\").replace('|', "\\|").replace(['\n', '\r'], " ")
        };
        let mut lines: Vec<Vec<String>> =
            vec![self.columns.iter().map(|c| escape(c.name.clone())).collect()];
        for row in 0..self.rows.len() {
            lines.push(
                (0..self.columns.len()).map(|column| escape(self.shown(row, column))).collect(),
            );
        }
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|column| {
                lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0).max(3)
            })
            .collect();
        let mut out = String::new();
        for (number, line) in lines.iter().enumerate() {
            out.push('|');
            for (column, text) in line.iter().enumerate() {
                let padding = " ".repeat(widths[column] - text.chars().count());
                let (left, right) = if self.is_numeric(column) {
                    (padding.as_str(), "")
                } else {
                    ("", padding.as_str())
                };
                out.push_str(&format!(" {left}{text}{right} |"));
            }
            out.push('\n');
            if number == 0 {
                out.push('|');
                for (column, width) in widths.iter().enumerate() {
                    let end = if self.is_numeric(column) { ':' } else { '-' };
                    out.push_str(&format!(" {}{end} |", "-".repeat(width - 1)));
                }
                out.push('\n');
            }
        }
        out
    }

    /// Comma-separated values as RFC 4180 has them (CRLF, quotes where needed), numbers in full.
    pub fn to_csv(&self) -> String {
        let quote = |text: String| {
            if text.contains([',', '"', '\n', '\r']) {
                format!("\"{}\"", text.replace('"', "\"\""))
            } else {
                text
            }
        };
        let mut out = String::new();
        let mut line = |fields: Vec<String>| {
            out.push_str(&fields.join(","));
            out.push_str("\r\n");
        };
        line(self.columns.iter().map(|column| quote(column.name.clone())).collect());
        for row in 0..self.rows.len() {
            line(
                (0..self.columns.len())
                    .map(|column| quote(self.cell(row, column).plain()))
                    .collect(),
            );
        }
        out
    }

    /// An array of objects, one per row, with the headings as keys; empty cells are `null`,
    /// non-finite numbers the texts `"inf"`, `"-inf"` and `"NaN"`.
    pub fn to_json(&self) -> serde_json::Value {
        let object = |row: usize| {
            let fields = self.columns.iter().enumerate().map(|(column, c)| {
                let value = serde_json::to_value(self.cell(row, column)).unwrap_or_default();
                (c.name.clone(), value)
            });
            serde_json::Value::Object(fields.collect())
        };
        (0..self.rows.len()).map(object).collect()
    }

    /// Writes it in the form the file's extension names: `.csv`, `.json`, `.md`, else text.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) if the file cannot be written.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        match path.extension().and_then(|e| e.to_str()) {
            Some("csv") => fs::write_atomic(path, self.to_csv()),
            Some("json") => fs::write_json_atomic(path, &self.to_json()),
            Some("md") => fs::write_atomic(path, self.to_markdown()),
            _ => fs::write_atomic(path, self.to_text() + "\n"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Table {
        let mut table = Table::new("Example")
            .column("name", Unit::Plain)
            .column("size", Unit::Bytes)
            .column("score", Unit::Percent);
        table.push(cells!["a, \"quoted\"", 2048_u64, 0.125]);
        table.push(cells!["b|c", 3_u64 << 20, f64::NAN]);
        table.push(cells!["short"]);
        table
    }

    #[test]
    fn every_form_shows_the_same_rows() {
        let table = example();
        assert_eq!(
            table.to_csv(),
            "name,size,score\r\n\"a, \"\"quoted\"\"\",2048,0.125\r\nb|c,3145728,NaN\r\nshort,,\r\n"
        );
        assert_eq!(
            table.to_markdown(),
            "| name        |  size |  score |\n\
             | ----------- | ----: | -----: |\n\
             | a, \"quoted\" | 2 KiB | 12.5 % |\n\
             | b\\|c        | 3 MiB |  NaN % |\n\
             | short       |       |        |\n"
        );
        assert_eq!(
            table.to_json(),
            serde_json::json!([
                { "name": "a, \"quoted\"", "size": 2048.0, "score": 0.125 },
                { "name": "b|c", "size": 3_145_728.0, "score": "NaN" },
                { "name": "short", "size": null, "score": null },
            ])
        );
        let text = table.to_text();
        assert!(text.contains("a, \"quoted\"   2 KiB   12.5 %"), "{text}");
    }

    #[test]
    fn survives_json() {
        let mut table = example();
        table.rows[1][2] = Cell::Bool(true);
        let text = serde_json::to_string(&table).unwrap();
        assert_eq!(serde_json::from_str::<Table>(&text).unwrap(), table);
    }
}
