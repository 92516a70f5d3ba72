//! JSON lines: one object per line.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, Value};

use super::source;
use super::table::{Column, Records};
use crate::error::{Error, Place, Result};

/// Cells that a table may have whatever the size of its file.
const FREE_CELLS: usize = 1 << 20;
/// Cells that a table may have per byte of its file: a cell takes some six bytes to write, and rows
/// that each name other fields must not make a table of their square.
const CELLS_PER_BYTE: usize = 8;

/// Reads a file of JSON objects, one per line, gzipped or not; blank lines are skipped. Columns are
/// the fields in the order of their first appearance. A field that always holds numbers becomes
/// numbers; other values than text, in a field of text, are kept as their JSON.
///
/// # Errors
/// Names the line that is not a JSON object, or not UTF-8.
pub fn read(path: impl AsRef<Path>) -> Result<Records> {
    let path = path.as_ref();
    parse(path, &source::read(path, source::LIMIT)?)
}

/// Reads lines that are in memory, called `file` in messages.
///
/// # Errors
/// As for [`read`].
pub fn parse(file: &Path, bytes: &[u8]) -> Result<Records> {
    let text = source::utf8(file, bytes)?;
    let mut table = Table::default();
    let mut lines = Vec::new();
    for (i, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
        let fault = |reason: String| {
            Error::malformed(file, reason)
                .at(Place::Line(i as u64 + 1))
                .remedy("every line must be one JSON object, such as {\"text\": \"...\"}")
        };
        let value: Value =
            serde_json::from_str(line).map_err(|e| fault(format!("is not JSON: {e}")))?;
        let Value::Object(fields) = value else {
            return Err(fault("is not an object".into()));
        };
        table.push(lines.len(), fields);
        lines.push(i as u64 + 1);
        if table.cells.len().saturating_mul(lines.len())
            > FREE_CELLS.max(bytes.len().saturating_mul(CELLS_PER_BYTE))
        {
            let reason = format!("has {} different fields up to here", table.cells.len());
            return Err(fault(reason).remedy("rows of one table should have the same fields"));
        }
    }
    let rows = lines.len();
    let columns = table.names.into_iter().zip(table.cells.into_iter().map(|c| column(c, rows)));
    Records::new(file, columns.collect(), lines)
}

/// Columns as they grow. A column is only as long as its last value.
#[derive(Default)]
struct Table {
    names: Vec<String>,
    places: HashMap<String, usize>,
    cells: Vec<Vec<Option<Value>>>,
}

impl Table {
    fn push(&mut self, row: usize, fields: Map<String, Value>) {
        for (name, value) in fields.into_iter().filter(|(_, v)| !v.is_null()) {
            let place = *self.places.entry(name).or_insert_with_key(|name| {
                self.names.push(name.clone());
                self.cells.push(Vec::new());
                self.cells.len() - 1
            });
            self.cells[place].resize(row, None);
            self.cells[place].push(Some(value));
        }
    }
}

fn column(mut cells: Vec<Option<Value>>, rows: usize) -> Column {
    cells.resize(rows, None);
    let integer = |cell: &Option<Value>| match cell {
        Some(Value::Number(n)) => n.as_i64(),
        Some(Value::Bool(b)) => Some(i64::from(*b)),
        _ => None,
    };
    if let Some(integers) = cells.iter().map(integer).collect() {
        return Column::Integers(integers);
    }
    let number = |cell: &Option<Value>| match cell {
        Some(value) => value.as_f64(),
        None => Some(f64::NAN),
    };
    if let Some(numbers) = cells.iter().map(number).collect() {
        return Column::Numbers(numbers);
    }
    let text = |value| match value {
        Value::String(text) => text,
        other => other.to_string(),
    };
    Column::Text(cells.into_iter().map(|cell| cell.map(text)).collect())
}
