//! Text: plain, or in the columns of tables.

use std::path::Path;

use super::{Column, Records, csv, jsonl, parquet, source};
use crate::error::{Error, Result};

/// Most bytes of one file of plain text.
const LIMIT: u64 = 4 << 30;

/// Endings of files of text that are read out of a folder.
const ENDINGS: [&str; 6] = ["txt", "jsonl", "ndjson", "csv", "tsv", "parquet"];

/// Reads a text file in UTF-8, gzipped or not, of at most `limit` bytes. A byte order mark is left
/// out.
///
/// # Errors
/// When it cannot be read, is longer, or is not UTF-8: then the error names the offset of the first
/// wrong byte.
pub fn read(path: impl AsRef<Path>, limit: u64) -> Result<String> {
    let path = path.as_ref();
    let bytes = source::read(path, limit)?;
    Ok(source::utf8(path, &bytes)?.to_owned())
}

/// Reads a file of text, by its ending: a table (`.jsonl`, `.csv`, `.tsv`, `.parquet`) gives a line
/// for every row, anything else is plain text. Both may be gzipped. A folder is all its text files.
///
/// `columns` names the column of a table whose values are the text, or several with `+` between them;
/// without it `text` is taken, else `prompt` and `completion`.
///
/// # Errors
/// When a file cannot be read or is malformed, a folder holds no text, or a column is missing or has
/// no text in a row; names file, column and row.
pub fn read_any(path: &Path, columns: Option<&str>) -> Result<String> {
    if path.is_dir() {
        return read_folder(path, columns);
    }
    match ending(path).as_str() {
        "jsonl" | "ndjson" => from_table(&jsonl::read(path)?, columns),
        "csv" | "tsv" => from_table(&csv::read(path, csv::Dialect::of(path))?, columns),
        "parquet" => {
            let names = parquet::columns(path)?;
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            // Columns that are not text are not worth decoding: images, say.
            let wanted: Vec<&str> = candidates(&names, columns).into_iter().flatten().collect();
            let wanted = if wanted.is_empty() { names } else { wanted };
            from_table(&parquet::read(path, Some(&wanted))?, columns)
        }
        _ if columns.is_some() => Err(Error::malformed(path, "has no columns")
            .remedy("columns can be named in .jsonl, .csv, .tsv and .parquet files")),
        _ => read(path, LIMIT),
    }
}

/// The ending of a file name in lower case, before `.gz` if that stands last.
fn ending(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let name = name.strip_suffix(".gz").unwrap_or(&name);
    name.rsplit_once('.').map_or(String::new(), |(_, ending)| ending.to_owned())
}

fn read_folder(folder: &Path, columns: Option<&str>) -> Result<String> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io(folder, "list", e))?;
    let mut files: Vec<_> = entries
        .filter_map(|e| Some(e.ok()?.path()))
        .filter(|p| ENDINGS.contains(&ending(p).as_str()))
        .collect();
    files.sort();
    if files.is_empty() {
        let reason = format!("holds no file of text (.{})", ENDINGS.join(", ."));
        return Err(Error::malformed(folder, reason).remedy("name the file itself"));
    }
    let texts = files.iter().map(|f| read_any(f, columns)).collect::<Result<Vec<_>>>()?;
    Ok(texts.join("\n"))
}

/// The sets of columns that make a row's text, best first: those asked for, or `text`, or `prompt`
/// and `completion`. Only sets that are there in full.
fn candidates<'a>(names: &[&'a str], asked: Option<&'a str>) -> Vec<Vec<&'a str>> {
    let sets = match asked {
        // A column may have a plus in its name.
        Some(one) if names.contains(&one) => vec![vec![one]],
        Some(several) => vec![several.split('+').collect()],
        None => vec![vec!["text"], vec!["prompt", "completion"]],
    };
    sets.into_iter().filter(|set| set.iter().all(|name| names.contains(name))).collect()
}

/// A line for every row: its text, or what its columns hold, one after the other.
fn from_table(table: &Records, asked: Option<&str>) -> Result<String> {
    let names: Vec<&str> = table.names().collect();
    let sets = candidates(&names, asked);
    let file = table.file().display();
    if sets.is_empty() {
        let wanted =
            asked.map_or("`text`, nor `prompt` and `completion`".into(), |a| format!("`{a}`"));
        return Err(Error::malformed(table.file(), format!("has no column {wanted}")).remedy(
            format!(
                "name one of its columns, as in {file}:COLUMN (or :COLUMN+COLUMN); there are {}",
                names.join(", ")
            ),
        ));
    }
    let mut out = String::new();
    for row in 0..table.len() {
        let parts = sets.iter().find_map(|set| {
            set.iter().map(|name| cell(table, name, row)).collect::<Option<Vec<_>>>()
        });
        let parts = parts.ok_or_else(|| {
            let wanted: Vec<String> = sets.iter().map(|set| set.join(" and ")).collect();
            Error::malformed(table.file(), format!("has no text in {}", wanted.join(" or ")))
                .at(table.place(row))
                .remedy("every row needs a value there; name another column with FILE:COLUMN")
        })?;
        out.extend(parts);
        out.push('\n');
    }
    Ok(out)
}

/// What `column` holds in `row`, as text; `None` where it has no value or is not readable as text.
fn cell(table: &Records, column: &str, row: usize) -> Option<String> {
    match table.get(column)? {
        Column::Text(values) => values.get(row)?.clone(),
        Column::Integers(values) => values.get(row).map(ToString::to_string),
        Column::Numbers(values) => values.get(row).filter(|v| !v.is_nan()).map(ToString::to_string),
        Column::Bytes(values) => String::from_utf8(values.get(row)?.clone()?).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str, asked: Option<&str>) -> Result<String> {
        from_table(&jsonl::parse(Path::new("x.jsonl"), text.as_bytes())?, asked)
    }

    #[test]
    fn tables_give_a_line_per_row_and_name_the_bad_one() {
        let mixed = "{\"text\": \"a\"}\n{\"prompt\": \"b\", \"completion\": \"c\"}\n";
        assert_eq!(table(mixed, None).unwrap(), "a\nbc\n");
        let error = table("{\"text\": \"a\"}\n\n{}\n", None).unwrap_err();
        assert!(error.to_string().contains("x.jsonl at line 3"), "{error}");
        let quiz = "{\"question\": \"2+2=\", \"answer\": 4, \"a+b\": \"c\"}";
        assert_eq!(table(quiz, Some("question+answer")).unwrap(), "2+2=4\n");
        assert_eq!(table(quiz, Some("a+b")).unwrap(), "c\n");
        let error = table(quiz, None).unwrap_err();
        assert!(error.to_string().contains("no column `text`"), "{error}");
        let error = table(quiz, Some("query")).unwrap_err();
        assert!(error.to_string().contains("no column `query`"), "{error}");
    }

    #[test]
    fn endings_stand_before_gz() {
        assert_eq!(ending(Path::new("x/A.CSV.gz")), "csv");
    }
}
