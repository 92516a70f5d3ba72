//! Tables as text: comma, tab or otherwise separated values.

use std::path::Path;

use commons_core::lines::Lines;

use super::source;
use super::table::{Records, infer};
use crate::error::{Error, Place, Result};

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dialect {
    /// Byte between two fields.
    pub delimiter: u8,
    /// Whether the first row names the columns; otherwise they are called `1`, `2`, ...
    pub header: bool,
    /// Whether fields may stand between double quotes.
    pub quotes: bool,
}

impl Default for Dialect {
    /// Commas, a header, quotes.
    fn default() -> Self {
        Self { delimiter: b',', header: true, quotes: true }
    }
}

impl Dialect {
    /// What the ending of `path` promises: tabs for `.tsv` and `.tab`, else commas; with a header.
    pub fn of(path: &Path) -> Self {
        let name = path.to_string_lossy().to_lowercase();
        let name = name.strip_suffix(".gz").unwrap_or(&name);
        let tabs = name.ends_with(".tsv") || name.ends_with(".tab");
        Self { delimiter: if tabs { b'\t' } else { b',' }, ..Self::default() }
    }
}

/// Reads a table, gzipped or not. A column in which every cell is a number becomes numbers; an empty
/// cell has no value.
///
/// # Errors
/// When the file cannot be read, a row has more or fewer fields than the first, a field is not
/// UTF-8, or two columns have one name; names line and column.
pub fn read(path: impl AsRef<Path>, dialect: Dialect) -> Result<Records> {
    let path = path.as_ref();
    parse(path, &source::read(path, source::LIMIT)?, dialect)
}

/// Reads a table that is in memory, called `file` in messages.
///
/// # Errors
/// As for [`read`].
pub fn parse(file: &Path, bytes: &[u8], dialect: Dialect) -> Result<Records> {
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(dialect.delimiter)
        .quoting(dialect.quotes)
        .has_headers(dialect.header)
        .from_reader(bytes);
    let names = if dialect.header {
        reader.headers().map_err(|e| fault(file, e, &[]))?.iter().map(str::to_owned).collect()
    } else {
        Vec::new()
    };
    let (mut names, mut lines): (Vec<String>, _) = (names, Vec::new());
    let mut at = Lines::new(bytes);
    let mut cells: Vec<Vec<Option<String>>> = vec![Vec::new(); names.len()];
    let mut record = csv::StringRecord::new();
    while reader.read_record(&mut record).map_err(|e| fault(file, e, &names))? {
        if names.is_empty() {
            names = (1..=record.len()).map(|i| i.to_string()).collect();
            cells = vec![Vec::new(); names.len()];
        }
        lines.push(at.at(record.position().map_or(0, csv::Position::byte)));
        for (column, cell) in cells.iter_mut().zip(&record) {
            column.push((!cell.is_empty()).then(|| cell.to_owned()));
        }
    }
    let columns = names.into_iter().zip(cells.into_iter().map(infer)).collect();
    Records::new(file, columns, lines)
}

fn fault(file: &Path, error: csv::Error, names: &[String]) -> Error {
    let line = |position: &Option<csv::Position>| position.as_ref().map(|p| Place::Line(p.line()));
    let (reason, item, place, remedy) = match error.kind() {
        csv::ErrorKind::UnequalLengths { pos, expected_len, len } => (
            format!("has {len} fields where the first row has {expected_len}"),
            None,
            line(pos),
            "quote a field that holds the separator, or name another separator",
        ),
        csv::ErrorKind::Utf8 { pos, err } => {
            let name = names.get(err.field()).cloned().unwrap_or((err.field() + 1).to_string());
            let reason = format!("is not UTF-8 text from its byte {} on", err.valid_up_to());
            (reason, Some(format!("column `{name}`")), line(pos), "convert the file to UTF-8")
        }
        other => (format!("is not a table of separated values: {other:?}"), None, None, ""),
    };
    let mut fault = Error::malformed(file, reason).remedy(remedy);
    if let Some(item) = item {
        fault = fault.item(item);
    }
    match place {
        Some(place) => fault.at(place),
        None => fault,
    }
}
