//! Tables that verbs take: CSV, JSON lines, Parquet.

use std::path::Path;

use commons_nn::data::{Column, parquet};
use commons_society::csv_input::CsvTable;

use crate::error::Result;

/// Reads a table by what its name says: `.parquet`, `.jsonl` and `.ndjson`, or else CSV.
///
/// # Errors
/// Naming file, row, column and remedy.
pub fn read(path: &Path) -> Result<CsvTable> {
    if !path.extension().is_some_and(|e| e.eq_ignore_ascii_case("parquet")) {
        return Ok(CsvTable::read(path)?);
    }
    let records = parquet::read(path, None)?;
    let names: Vec<String> = records.names().map(str::to_owned).collect();
    let mut columns = Vec::new();
    for name in names {
        if let Some(cells) = cells(records.column(&name)?) {
            columns.push((name, cells));
        }
    }
    Ok(CsvTable::from_columns(path, columns)?)
}

/// Cells as text; `None` for bytes, which have none.
fn cells(column: &Column) -> Option<Vec<Option<String>>> {
    Some(match column {
        Column::Text(values) => values.clone(),
        Column::Integers(values) => values.iter().map(|v| Some(v.to_string())).collect(),
        Column::Numbers(values) => {
            values.iter().map(|v| (!v.is_nan()).then(|| v.to_string())).collect()
        }
        Column::Bytes(_) => return None,
    })
}
