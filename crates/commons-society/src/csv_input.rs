//! Columns of a CSV file, with errors that name file, row, column and remedy.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use commons_core::fs;

use crate::{Error, Result};

/// Largest file that is read, bytes.
const LIMIT: u64 = 1 << 30;

/// Cells that mean "no value" in published data sets.
const MISSING: [&str; 4] = ["", "?", "NA", "N/A"];

/// A CSV file in memory: named columns of trimmed text.
///
/// ```
/// use commons_society::csv_input::CsvTable;
///
/// let table = CsvTable::parse("prefs.csv", "x,group\n0.2,a\n0.7,b\n")?;
/// assert_eq!(table.numbers("x")?, [0.2, 0.7]);
/// let error = table.numbers("group").unwrap_err().to_string();
/// assert!(error.contains("prefs.csv: row 1 (line 2), column `group`"));
/// # Ok::<(), commons_society::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct CsvTable {
    path: PathBuf,
    header: Vec<String>,
    records: Vec<csv::StringRecord>,
}

impl CsvTable {
    /// Reads a file whose first row names the columns.
    ///
    /// # Errors
    /// When the file cannot be read, is no CSV, has rows of different lengths, a column twice, or
    /// no rows.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::parse(path, &fs::read_text(path, LIMIT)?)
    }

    /// As [`read`](Self::read), from text; `path` stands in messages.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn parse(path: impl AsRef<Path>, text: &str) -> Result<Self> {
        Self::build(path.as_ref(), text, None)
    }

    /// Text without a header row, whose columns are called `names`.
    ///
    /// # Errors
    /// As [`read`](Self::read), and when a row has another number of columns than there are names.
    pub fn parse_headerless(path: impl AsRef<Path>, text: &str, names: &[&str]) -> Result<Self> {
        Self::build(path.as_ref(), text, Some(names))
    }

    fn build(path: &Path, text: &str, names: Option<&[&str]>) -> Result<Self> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut reader = csv::ReaderBuilder::new()
            .has_headers(false)
            .trim(csv::Trim::All)
            .flexible(true)
            .from_reader(text.as_bytes());
        let mut records = Vec::new();
        for record in reader.records() {
            let record = record.map_err(|e| {
                let line = e.position().map_or(0, csv::Position::line);
                let field = format!("line {line}");
                Error::from(commons_core::Error::file(
                    path,
                    field,
                    format!("is not CSV: {e}"),
                    "separate columns by commas and put text with commas into double quotes",
                ))
            })?;
            records.push(record);
        }
        let header: Vec<String> = match names {
            Some(names) => names.iter().map(|&n| n.to_owned()).collect(),
            None if records.is_empty() => Vec::new(),
            None => records.remove(0).iter().map(str::to_owned).collect(),
        };
        let table = Self { path: path.to_owned(), header, records };
        table.check()?;
        Ok(table)
    }

    fn check(&self) -> Result<()> {
        for (i, name) in self.header.iter().enumerate() {
            if self.header[..i].contains(name) {
                return Err(self.whole(
                    format!("header, column `{name}`"),
                    "stands twice",
                    "give every column a name of its own",
                ));
            }
        }
        if self.records.is_empty() {
            return Err(self.whole(
                String::new(),
                "holds no rows",
                "give a header row and at least one row of values",
            ));
        }
        let columns = self.header.len();
        for (row, record) in self.records.iter().enumerate() {
            if record.len() != columns {
                return Err(self.whole(
                    self.place(row),
                    format!("has {} cells, but there are {columns} columns", record.len()),
                    "give every row as many cells as the header; quote cells that hold commas",
                ));
            }
        }
        Ok(())
    }

    /// Number of rows below the header.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there are no rows. A table that was read always has some.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Names of the columns, left to right.
    pub fn header(&self) -> &[String] {
        &self.header
    }

    /// The file it came from, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Index of the column `name`.
    ///
    /// # Errors
    /// Naming the columns there are.
    pub fn column(&self, name: &str) -> Result<usize> {
        self.header.iter().position(|h| h == name).ok_or_else(|| {
            let mut remedy = "columns: ".to_owned();
            for (i, known) in self.header.iter().take(30).enumerate() {
                let _ = write!(remedy, "{}{known}", if i == 0 { "" } else { ", " });
            }
            self.whole(format!("column `{name}`"), "is missing", remedy)
        })
    }

    /// The cells of a column as text, never empty.
    ///
    /// # Errors
    /// When there is no such column, or a cell is empty.
    pub fn texts(&self, name: &str) -> Result<Vec<&str>> {
        let column = self.column(name)?;
        let cell = |row: usize| {
            let text = self.cell(row, column);
            if text.is_empty() {
                return Err(self.error(row, name, "is empty", "fill in a value or remove the row"));
            }
            Ok(text)
        };
        (0..self.len()).map(cell).collect()
    }

    /// The cells of a column as finite numbers.
    ///
    /// # Errors
    /// When there is no such column, or a cell is not a finite number.
    pub fn numbers(&self, name: &str) -> Result<Vec<f64>> {
        let column = self.column(name)?;
        (0..self.len()).map(|row| self.number(row, column)).collect()
    }

    fn number(&self, row: usize, column: usize) -> Result<f64> {
        let (text, name) = (self.cell(row, column), &self.header[column]);
        match text.parse::<f64>() {
            Ok(value) if value.is_finite() => Ok(value),
            Ok(_) => Err(self.error(
                row,
                name,
                format!("`{text}` is not finite"),
                "give a finite number or remove the row",
            )),
            Err(_) if MISSING.contains(&text) => {
                Err(self.error(row, name, "has no value", "fill in a number or remove the row"))
            }
            Err(_) => Err(self.error(
                row,
                name,
                format!("`{text}` is not a number"),
                "give a number with a decimal point, as in 0.25, or name another column",
            )),
        }
    }

    /// A cell as text; empty where there is none.
    pub fn cell(&self, row: usize, column: usize) -> &str {
        self.records.get(row).and_then(|r| r.get(column)).unwrap_or("")
    }

    /// An error about one cell: file, row, column, problem and remedy.
    pub fn error(
        &self,
        row: usize,
        column: &str,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Error {
        self.whole(format!("{}, column `{column}`", self.place(row)), problem, remedy)
    }

    /// `row 3 (line 4)`: rows count from 1 below the header, lines from 1 at the top of the file.
    pub fn place(&self, row: usize) -> String {
        let line = self.records.get(row).and_then(|r| r.position()).map_or(0, csv::Position::line);
        format!("row {} (line {line})", row + 1)
    }

    fn whole(
        &self,
        field: impl Into<String>,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Error {
        commons_core::Error::file(&self.path, field, problem, remedy.into()).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str, column: &str) -> String {
        match CsvTable::parse("t.csv", text) {
            Ok(table) => table.numbers(column).unwrap_err().to_string(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn columns_are_found_by_name_and_trimmed() {
        let table = CsvTable::parse("t.csv", "a, b\n1 , x\n 2.5,\"y, z\"\n").unwrap();
        assert_eq!(table.numbers("a").unwrap(), [1., 2.5]);
        assert_eq!(table.texts("b").unwrap(), ["x", "y, z"]);
        assert_eq!((table.len(), table.is_empty()), (2, false));
        let table = CsvTable::parse_headerless("t.csv", "1,x\n2,y\n", &["n", "c"]).unwrap();
        assert_eq!(table.numbers("n").unwrap(), [1., 2.]);
        assert_eq!(table.place(1), "row 2 (line 2)");
    }

    #[test]
    fn errors_name_file_row_column_and_remedy() {
        for (text, column, words) in [
            ("a,b\n1,2\n", "c", vec!["t.csv", "column `c`", "is missing", "columns: a, b"]),
            ("a,b\n1,2\nx,2\n", "a", vec!["row 2 (line 3), column `a`", "`x` is not a number"]),
            ("a\n1\nNaN\n", "a", vec!["row 2 (line 3), column `a`", "`NaN` is not finite"]),
            ("a,b\n1,2\n?,1\n", "a", vec!["row 2", "has no value", "remove the row"]),
            ("a,b\n1,2\n1\n", "a", vec!["row 2 (line 3)", "1 cells", "2 columns"]),
            ("a,a\n1,2\n", "a", vec!["column `a`", "twice"]),
            ("a,b\n", "a", vec!["t.csv", "holds no rows"]),
            ("", "a", vec!["t.csv", "holds no rows"]),
        ] {
            let error = message(text, column);
            for word in words {
                assert!(error.contains(word), "{text:?}: no `{word}` in {error}");
            }
        }
        let table = CsvTable::parse("t.csv", "a,b\n1,\n").unwrap();
        assert!(table.texts("b").unwrap_err().to_string().contains("column `b`: is empty"));
        let error = CsvTable::read("no/such.csv").unwrap_err().to_string();
        assert!(error.contains("no/such.csv"), "{error}");
    }
}
