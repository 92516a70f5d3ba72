//! Columns of a CSV file, with errors that name file, row, column and remedy.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use commons_core::fs;
use commons_core::lines::Lines;

use crate::{Error, Result};

/// Largest file that is read, bytes.
const LIMIT: u64 = 1 << 30;

/// Cells that mean "no value" in published data sets.
const MISSING: [&str; 4] = ["", "?", "NA", "N/A"];

/// A file of named columns in memory, as trimmed text: CSV, or JSON objects line by line.
///
/// Columns are separated by commas, or by semicolons or tabs where the first line holds no comma.
/// A byte-order mark, CRLF line ends and line breaks within quotes are understood.
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
    /// All cells one after another: two allocations per row would be most of the time of a large
    /// file.
    text: String,
    /// Where each cell ends in `text`, `[rows, columns]`.
    ends: Vec<usize>,
    /// Line on which each row begins; empty for files that are not made of lines.
    lines: Vec<u64>,
}

impl CsvTable {
    /// Reads a file: JSON objects line by line if it is called `.jsonl` or `.ndjson`, otherwise CSV
    /// whose first row names the columns.
    ///
    /// # Errors
    /// When the file cannot be read, is of neither kind, has rows of different lengths, a column
    /// twice or without a name, or no rows.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = fs::read_text(path, LIMIT)?;
        match is_json_lines(path) {
            true => Self::parse_json_lines(path, &text),
            false => Self::parse(path, &text),
        }
    }

    /// As [`read`](Self::read), from the text of a CSV file; `path` stands in messages.
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

    /// A table of columns that something else has read; cells of `None` are empty.
    ///
    /// # Errors
    /// As [`read`](Self::read), and when columns have different lengths.
    pub fn from_columns(
        path: impl AsRef<Path>,
        columns: Vec<(String, Vec<Option<String>>)>,
    ) -> Result<Self> {
        let (header, columns): (Vec<String>, Vec<_>) = columns.into_iter().unzip();
        let mut table = Self::empty(path.as_ref(), header)?;
        let rows = columns.first().map_or(0, Vec::len);
        if columns.iter().any(|c| c.len() != rows) {
            return Err(table.whole("", "has columns of different lengths", "give whole rows"));
        }
        for row in 0..rows {
            for column in &columns {
                table.push(column[row].as_deref().unwrap_or(""));
            }
        }
        table.filled()
    }

    /// Text of one JSON object a line, all with the same keys. Numbers and truth values become
    /// their text, `null` an empty cell.
    ///
    /// # Errors
    /// Naming the line that is no such object, or the key that is missing or new.
    pub fn parse_json_lines(path: impl AsRef<Path>, text: &str) -> Result<Self> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut table = Self::empty(path.as_ref(), Vec::new())?;
        let lines = text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty());
        for (row, (line, text)) in lines.enumerate() {
            let place = format!("row {} (line {})", row + 1, line + 1);
            let header = (row > 0).then_some(&table.header[..]);
            let object = json_row(text, header).map_err(|(column, problem)| {
                table.whole(format!("{place}{column}"), problem, JSON_REMEDY)
            })?;
            if row == 0 {
                table = Self::empty(path.as_ref(), object.iter().map(|o| o.0.clone()).collect())?;
            }
            object.iter().for_each(|(_, cell)| table.push(cell));
            table.lines.push(line as u64 + 1);
        }
        table.filled()
    }

    fn build(path: &Path, text: &str, names: Option<&[&str]>) -> Result<Self> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut reader = csv::ReaderBuilder::new()
            .has_headers(false)
            .delimiter(delimiter(text.as_bytes()))
            .flexible(true)
            .from_reader(text.as_bytes());
        let mut record = csv::StringRecord::new();
        let mut lines = Lines::new(text.as_bytes());
        let mut next = |record: &mut csv::StringRecord| {
            reader.read_record(record).map_err(|e| {
                let line = e.position().map_or(0, csv::Position::line);
                let remedy = "separate columns by commas and put text with commas into quotes";
                let problem = format!("is not CSV: {e}");
                commons_core::Error::file(path, format!("line {line}"), problem, remedy)
            })
        };
        let header = match names {
            Some(names) => names.iter().map(|&n| n.to_owned()).collect(),
            None if next(&mut record)? => record.iter().map(|c| c.trim().to_owned()).collect(),
            None => Vec::new(),
        };
        let mut table = Self::empty(path, header)?;
        table.text.reserve(text.len());
        while next(&mut record)? {
            let columns = table.header.len();
            table.lines.push(lines.at(record.position().map_or(0, csv::Position::byte)));
            if record.len() != columns {
                return Err(table.whole(
                    table.place(table.lines.len() - 1),
                    format!("has {} cells, but there are {columns} columns", record.len()),
                    "give every row as many cells as the header; quote cells that hold commas",
                ));
            }
            record.iter().for_each(|cell| table.push(cell));
        }
        table.filled()
    }

    /// Columns and no rows yet.
    fn empty(path: &Path, header: Vec<String>) -> Result<Self> {
        let (text, ends, lines) = (String::new(), Vec::new(), Vec::new());
        let table = Self { path: path.to_owned(), header, text, ends, lines };
        for (i, name) in table.header.iter().enumerate() {
            if table.header[..i].contains(name) {
                return Err(table.whole(
                    format!("header, column `{name}`"),
                    "stands twice",
                    "give every column a name of its own",
                ));
            }
        }
        Ok(table)
    }

    fn push(&mut self, cell: &str) {
        self.text.push_str(cell.trim());
        self.ends.push(self.text.len());
    }

    fn filled(self) -> Result<Self> {
        if self.ends.is_empty() {
            let remedy = "give a header row and at least one row of values";
            return Err(self.whole("", "holds no rows", remedy));
        }
        Ok(self)
    }

    /// Number of rows below the header.
    pub fn len(&self) -> usize {
        self.ends.len() / self.header.len().max(1)
    }

    /// Whether there are no rows. A table that was read always has some.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
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
                let quote = if known.contains([',', ' ']) { "`" } else { "" };
                let comma = if i == 0 { "" } else { ", " };
                let _ = write!(remedy, "{comma}{quote}{known}{quote}");
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
        let at = row * self.header.len() + column;
        let start = at.checked_sub(1).map_or(Some(0), |before| self.ends.get(before).copied());
        let inside = column < self.header.len();
        let range = start.zip(self.ends.get(at).copied()).filter(|_| inside);
        range.and_then(|(start, end)| self.text.get(start..end)).unwrap_or("")
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
        match self.lines.get(row) {
            Some(line) => format!("row {} (line {line})", row + 1),
            None => format!("row {}", row + 1),
        }
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

/// Whether a file's name says that it holds JSON objects line by line.
fn is_json_lines(path: &Path) -> bool {
    path.extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("jsonl") || e.eq_ignore_ascii_case("ndjson"))
}

/// What lines of JSON should be.
pub(crate) const JSON_REMEDY: &str =
    "give one object of texts and numbers a line, with the same keys";

/// Keys and cells of a JSON object, in the order of the `header` if there is one already.
///
/// # Errors
/// `, column …` if one is concerned, and what is wrong.
pub(crate) fn json_row(
    text: &str,
    header: Option<&[String]>,
) -> Result<Vec<(String, String)>, (String, String)> {
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text)
        .map_err(|e| (String::new(), format!("is no JSON object: {e}")))?;
    let cell = |(key, value): (&String, &serde_json::Value)| match value {
        serde_json::Value::Null => Ok((key.clone(), String::new())),
        serde_json::Value::Bool(v) => Ok((key.clone(), v.to_string())),
        serde_json::Value::Number(v) => Ok((key.clone(), v.to_string())),
        serde_json::Value::String(v) => Ok((key.clone(), v.clone())),
        _ => Err((format!(", column `{key}`"), "is a list or an object".into())),
    };
    let Some(header) = header else { return object.iter().map(cell).collect() };
    if let Some(new) = object.keys().find(|k| !header.contains(k)) {
        return Err((String::new(), format!("has the key `{new}`, which the first row has not")));
    }
    let get = |key: &String| {
        let missing = || (format!(", column `{key}`"), "is missing".into());
        cell((key, object.get(key).ok_or_else(missing)?))
    };
    header.iter().map(get).collect()
}

/// What separates columns: commas, unless the first line has none outside quotes but semicolons or
/// tabs.
pub(crate) fn delimiter(text: &[u8]) -> u8 {
    let mut quoted = false;
    let mut counts = [0_usize; 3];
    for byte in text {
        match byte {
            b'"' => quoted = !quoted,
            b'\n' if !quoted => break,
            b',' if !quoted => counts[0] += 1,
            b';' if !quoted => counts[1] += 1,
            b'\t' if !quoted => counts[2] += 1,
            _ => {}
        }
    }
    match counts {
        [0, semicolons, tabs] if semicolons > 0 && semicolons >= tabs => b';',
        [0, _, tabs] if tabs > 0 => b'\t',
        _ => b',',
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
        assert_eq!((table.cell(0, 0), table.cell(0, 1)), ("1", ""));
        assert_eq!((table.cell(0, 2), table.cell(1, 0)), ("", ""));
        assert!(table.texts("b").unwrap_err().to_string().contains("column `b`: is empty"));
        let error = CsvTable::read("no/such.csv").unwrap_err().to_string();
        assert!(error.contains("no/such.csv"), "{error}");
    }

    #[test]
    fn spreadsheets_and_odd_line_ends_are_understood() {
        let text = "\u{feff}a;b\r\n1;\"x\r\ny\"\r\n2;z\r\n";
        let table = CsvTable::parse("t.csv", text).unwrap();
        assert_eq!(table.numbers("a").unwrap(), [1., 2.]);
        assert_eq!(table.texts("b").unwrap(), ["x\r\ny", "z"]);
        assert_eq!(table.place(1), "row 2 (line 4)");
        let table = CsvTable::parse("t.tsv", "a\tb\n1\t2\n").unwrap();
        assert_eq!(table.numbers("b").unwrap(), [2.]);
        // One column, and a comma within quotes in the header.
        let table = CsvTable::parse("t.csv", "a\n1\n").unwrap();
        assert_eq!(table.numbers("a").unwrap(), [1.]);
        let table = CsvTable::parse("t.csv", "\"a,b\";c\n1;2\n").unwrap();
        assert_eq!(table.header(), ["a,b", "c"]);
        let error = message("a;b\n0,5;1\n", "a");
        assert!(
            error.contains("`0,5` is not a number") && error.contains("decimal point"),
            "{error}"
        );
    }

    #[test]
    fn json_lines_are_tables_too() {
        let lines = |text: &str| CsvTable::parse_json_lines("t.jsonl", text);
        let text = "{\"a\": 1, \"b\": \"x\"}\n\n{\"b\": true, \"a\": 0.5}\n";
        let table = lines(text).unwrap();
        assert_eq!(table.numbers("a").unwrap(), [1., 0.5]);
        assert_eq!(table.texts("b").unwrap(), ["x", "true"]);
        assert_eq!(table.place(1), "row 2 (line 3)");
        for (text, words) in [
            ("{\"a\": 1}\n{\"b\": 1}\n", "row 2 (line 2): has the key `b`"),
            ("{\"a\": 1, \"b\": 2}\n{\"a\": 1}\n", "row 2 (line 2), column `b`: is missing"),
            ("{\"a\": [1]}\n", "row 1 (line 1), column `a`: is a list"),
            ("[1]\n", "row 1 (line 1): is no JSON object"),
            ("\n", "holds no rows"),
        ] {
            let error = lines(text).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
        let error = lines("{\"a\": null}\n").unwrap().numbers("a").unwrap_err().to_string();
        assert!(error.contains("has no value"), "{error}");
    }

    #[test]
    fn columns_from_elsewhere_are_checked() {
        let column = |name: &str, cells: &[Option<&str>]| {
            (name.to_owned(), cells.iter().map(|c| c.map(str::to_owned)).collect())
        };
        let table = CsvTable::from_columns(
            "t.parquet",
            vec![column("a", &[Some("1"), None]), column("b", &[Some("x"), Some("y")])],
        )
        .unwrap();
        assert_eq!(table.texts("b").unwrap(), ["x", "y"]);
        let error = table.numbers("a").unwrap_err().to_string();
        assert!(error.contains("row 2, column `a`: has no value"), "{error}");
        let uneven = vec![column("a", &[None]), column("b", &[])];
        assert!(CsvTable::from_columns("t", uneven).is_err());
    }
}
