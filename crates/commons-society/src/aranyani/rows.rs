//! Rows of a stream one at a time: CSV, or JSON objects line by line, whichever comes.

use std::io::{BufRead, BufReader, Chain, Cursor, Read};
use std::path::Path;

use csv::StringRecord;

use crate::csv_input::{JSON_REMEDY, delimiter, json_row};
use crate::{Error, Result};

/// Longest first line, bytes: a stream without line ends should not be read whole into memory.
const HEADER: usize = 1 << 20;

type Input<R> = Chain<Cursor<Vec<u8>>, BufReader<R>>;

/// A stream whose columns are known.
pub(super) struct Rows<'a, R: Read> {
    /// Names of the columns.
    pub header: Vec<String>,
    path: &'a Path,
    kind: Kind<R>,
}

enum Kind<R: Read> {
    Csv(Box<csv::Reader<Input<R>>>),
    /// The rest of the lines, and the number of the last.
    Json(Input<R>, u64),
}

impl<'a, R: Read> Rows<'a, R> {
    /// Reads the header of CSV, or the keys of the first object. `path` stands in messages.
    ///
    /// # Errors
    /// When there is no first line, or it is neither.
    pub fn open(input: R, path: &'a Path) -> Result<Self> {
        let mut input = BufReader::new(input);
        let mut first = Vec::new();
        // A header may hold line ends within quotes.
        loop {
            let before = first.len();
            let mut part = (&mut input).take((HEADER - before) as u64);
            part.read_until(b'\n', &mut first).map_err(commons_core::Error::io("read", path))?;
            let open = first.iter().filter(|b| **b == b'"').count() % 2 == 1;
            let blank = first.iter().all(u8::is_ascii_whitespace);
            if first.len() == before || first.len() >= HEADER || !(open || blank) {
                break;
            }
        }
        let text = first.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&first).to_vec();
        if text.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'{') {
            let line = String::from_utf8_lossy(&text);
            let problem = |(column, problem): (String, String)| {
                let field = format!("row 1 (line 1){column}");
                Error::from(commons_core::Error::file(path, field, problem, JSON_REMEDY))
            };
            let header = json_row(&line, None).map_err(problem)?.into_iter().map(|o| o.0);
            let header = header.collect();
            let kind = Kind::Json(Cursor::new(text).chain(input), 0);
            return Ok(Self { header, path, kind });
        }
        // With `\n` alone as line end lines count right where `\r` stands before it: trimming takes
        // that away.
        let mut reader = csv::ReaderBuilder::new()
            .terminator(csv::Terminator::Any(b'\n'))
            .trim(csv::Trim::All)
            .flexible(true)
            .delimiter(delimiter(&text))
            .from_reader(Cursor::new(text).chain(input));
        let header = reader.headers().map_err(|e| broken(path, &e))?;
        let header = header.iter().map(str::to_owned).collect();
        Ok(Self { header, path, kind: Kind::Csv(Box::new(reader)) })
    }

    /// The next row into `record`, and the line it begins on; `None` at the end. `row` is its
    /// number, for messages.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn next(&mut self, record: &mut StringRecord, row: usize) -> Result<Option<u64>> {
        match &mut self.kind {
            Kind::Csv(reader) => {
                while reader.read_record(record).map_err(|e| broken(self.path, &e))? {
                    // An empty line, of which `\r` was trimmed away.
                    if record.len() > 1 || !record[0].is_empty() {
                        return Ok(Some(record.position().map_or(0, csv::Position::line)));
                    }
                }
                Ok(None)
            }
            Kind::Json(input, line) => {
                let mut text = String::new();
                loop {
                    text.clear();
                    *line += 1;
                    let read = input.read_line(&mut text);
                    if read.map_err(commons_core::Error::io("read", self.path))? == 0 {
                        return Ok(None);
                    }
                    if !text.trim().is_empty() {
                        break;
                    }
                }
                let cells = json_row(&text, Some(&self.header)).map_err(|(column, problem)| {
                    let field = format!("row {row} (line {line}){column}");
                    commons_core::Error::file(self.path, field, problem, JSON_REMEDY)
                })?;
                record.clear();
                cells.iter().for_each(|(_, cell)| record.push_field(cell.trim()));
                Ok(Some(*line))
            }
        }
    }
}

fn broken(path: &Path, e: &csv::Error) -> commons_core::Error {
    let line = e.position().map_or(0, csv::Position::line);
    let remedy = "separate columns by commas and quote text that holds commas";
    commons_core::Error::file(path, format!("line {line}"), format!("is not CSV: {e}"), remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_files_with_crlf_stand_on_their_lines() {
        let text = "a,b\r\n1,\"x, \"\r\n\r\n2,y\r\n";
        let mut rows = Rows::open(text.as_bytes(), Path::new("s.csv")).unwrap();
        assert_eq!(rows.header, ["a", "b"]);
        let (mut record, mut seen) = (StringRecord::new(), Vec::new());
        while let Some(line) = rows.next(&mut record, seen.len() + 1).unwrap() {
            seen.push((line, record.iter().map(str::to_owned).collect::<Vec<_>>()));
        }
        let row = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        assert_eq!(seen, [(2, row(["1", "x,"])), (4, row(["2", "y"]))]);
    }
}
