//! Text to train and measure on, and how one text is divided between the two.

use std::collections::HashSet;
use std::path::Path;

use commons_core::Seed;
use commons_nn::data;
use commons_nn::data::corpus::{self, Split};
use serde::Serialize;

use crate::cli::App;
use crate::error::{Failure, Result};
use crate::model::Sources;
use commons_core::format;

/// Name of the corpus that is written by the binary itself.
pub const CORPUS: &str = "corpus";

/// Share of a text that is held out when no evaluation text is given, as `1/HELD_OUT`.
const HELD_OUT: usize = 10;

/// Most bytes held out of one text.
const HELD_OUT_LIMIT: usize = 1 << 20;

/// Lines at least this long count as the same text when they occur twice; shorter ones (names of
/// speakers, headings) repeat in any book.
const TELLING_LINE: usize = 40;

/// Bytes of the embedded corpus used for evaluation.
const CORPUS_TEST_BYTES: usize = 128 << 10;

/// A piece of text and where it is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// Where it is from, for people.
    pub origin: String,
    /// The text.
    pub text: String,
}

/// Text to learn from and text to measure on, which have no line in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Division {
    /// To learn from.
    pub train: Text,
    /// To measure on.
    pub test: Text,
    /// How they were kept apart, for people.
    pub how: String,
}

/// What a text is, for reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Described {
    /// Where it is from.
    pub origin: String,
    /// Length.
    pub bytes: usize,
}

impl Text {
    /// A digest that tells one text from another.
    pub fn digest(&self) -> String {
        format!("crc32:{:08x}", crc32fast::hash(self.text.as_bytes()))
    }

    /// Origin and length.
    pub fn describe(&self) -> Described {
        Described { origin: self.origin.clone(), bytes: self.text.len() }
    }
}

/// Reads the text `name`, which is a path, a name of `commons pull --list`, or `corpus`. After a path
/// or a name may stand `:COLUMN` (or `:COLUMN+COLUMN`) for the column of a table.
///
/// # Errors
/// When it cannot be found or read, or holds no text.
pub fn load(app: &App, name: &str, split: Split, corpus_bytes: usize) -> Result<Text> {
    if name == CORPUS {
        let text = corpus::generate(Seed::new(app.seed()).fork("corpus", 0), split, corpus_bytes);
        return Ok(Text { origin: format!("embedded corpus, {}", split_name(split)), text });
    }
    let (name, columns) = split_columns(name);
    let path = Sources::new(app).data(name)?;
    let text = data::text::read_any(&path, columns)?;
    let origin = match columns {
        Some(columns) => format!("{}:{columns}", path.display()),
        None => path.display().to_string(),
    };
    if text.trim().is_empty() {
        return Err(Failure::usage(origin, "holds no text").help("give a file with text in it"));
    }
    Ok(Text { origin, text })
}

/// Divides `FILE:COLUMN`. A file whose name has a colon, or the drive of a path, is left whole.
fn split_columns(name: &str) -> (&str, Option<&str>) {
    match name.rsplit_once(':') {
        Some((file, columns))
            if file.len() > 1
                && !columns.is_empty()
                && !columns.contains(['/', '\\'])
                && !Path::new(name).exists() =>
        {
            (file, Some(columns))
        }
        _ => (name, None),
    }
}

fn split_name(split: Split) -> &'static str {
    match split {
        Split::Train => "training split",
        Split::Test => "test split",
        _ => "validation split",
    }
}

/// Text to learn from and text to measure on.
///
/// The embedded corpus has splits of its own. One text is divided: its last tenth, cut at a line
/// break, is held out. Two texts are compared line by line, and what both hold is dropped from the
/// one to learn from.
///
/// # Errors
/// When a text cannot be read, or nothing is left to learn from.
pub fn divide(
    app: &App,
    data: &str,
    eval_data: Option<&str>,
    corpus_bytes: usize,
) -> Result<Division> {
    let train = load(app, data, Split::Train, corpus_bytes)?;
    match eval_data {
        None if data == CORPUS => {
            let test = load(app, CORPUS, Split::Test, CORPUS_TEST_BYTES)?;
            let how =
                "the corpus keeps test problems out of its training split by a hash of the problem"
                    .into();
            Ok(Division { train, test, how })
        }
        Some(name) if name != data => {
            apart(train, load(app, name, Split::Test, CORPUS_TEST_BYTES)?)
        }
        _ if data == CORPUS => divide(app, data, None, corpus_bytes),
        _ => hold_out(train),
    }
}

fn hold_out(whole: Text) -> Result<Division> {
    let Text { origin, text } = whole;
    let want = (text.len() / HELD_OUT).min(HELD_OUT_LIMIT);
    let mut cut = text.len() - want;
    while !text.is_char_boundary(cut) {
        cut -= 1;
    }
    if let Some(i) = text[cut..].find('\n').filter(|i| cut + i + 1 < text.len()) {
        cut += i + 1;
    }
    let held = text.len() - cut;
    let division = Division {
        how: format!(
            "the last {} of {} bytes of {origin} are held out for measuring",
            format::grouped(held as i64),
            format::grouped(text.len() as i64),
        ),
        test: Text { origin: format!("{origin}, held-out end"), text: text[cut..].to_owned() },
        train: Text {
            origin: format!("{origin}, without the held-out end"),
            text: text[..cut].to_owned(),
        },
    };
    drop_common(division)
}

fn apart(train: Text, test: Text) -> Result<Division> {
    let how = "training and evaluation text are different files".to_owned();
    drop_common(Division { train, test, how })
}

/// Drops from the text to learn from every telling line that the other text holds as well.
fn drop_common(mut division: Division) -> Result<Division> {
    let telling = |l: &&str| l.len() >= TELLING_LINE;
    let measured: HashSet<&str> =
        division.test.text.lines().map(str::trim).filter(telling).collect();
    let common =
        division.train.text.lines().map(str::trim).filter(|l| measured.contains(l)).count();
    if common == 0 {
        return Ok(division);
    }
    let kept: String = division
        .train
        .text
        .split_inclusive('\n')
        .filter(|l| !measured.contains(l.trim()))
        .collect();
    if kept.trim().is_empty() {
        return Err(Failure::usage(
            &division.train.origin,
            "holds nothing that the evaluation text does not hold",
        )
        .help("give other text with --eval-data, or none: then the end of --data is held out"));
    }
    division.how = format!(
        "{}; {} lines found in both were dropped from training",
        division.how,
        format::grouped(common as i64)
    );
    division.train.text = kept;
    Ok(division)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(lines: std::ops::Range<usize>) -> Text {
        let text = lines
            .map(|i| format!("line {i} of a book that has rather long lines in it\n"))
            .collect();
        Text { origin: "book".into(), text }
    }

    #[test]
    fn the_end_of_one_text_is_held_out_at_a_line_break() {
        let whole = text(0..100);
        let d = hold_out(whole.clone()).unwrap();
        assert_eq!(format!("{}{}", d.train.text, d.test.text), whole.text);
        assert!(d.test.text.starts_with("line "));
        let share = d.test.text.len() as f64 / whole.text.len() as f64;
        assert!((0.05..=0.1).contains(&share), "{share}");
    }

    #[test]
    fn common_lines_leave_the_training_text() {
        let d = apart(text(0..20), text(15..30)).unwrap();
        assert_eq!(d.train.text, text(0..15).text);
        assert_eq!(d.test.text, text(15..30).text);
        assert!(d.how.contains("5 lines"), "{}", d.how);
        assert_eq!(apart(text(0..5), text(0..9)).unwrap_err().code(), 2);
    }

    #[test]
    fn repeated_lines_are_not_held_out_and_learnt() {
        let mut whole = text(0..100);
        whole.text = whole.text.replace("line 3 of", "line 99 of");
        let d = hold_out(whole).unwrap();
        assert!(!d.train.text.contains("line 99 of"));
        assert!(d.test.text.contains("line 99 of"));
    }

    #[test]
    fn columns_stand_behind_a_colon() {
        assert_eq!(split_columns("a/b.csv:title"), ("a/b.csv", Some("title")));
        assert_eq!(split_columns("gsm8k:question+answer"), ("gsm8k", Some("question+answer")));
        assert_eq!(split_columns("a/b.csv"), ("a/b.csv", None));
        assert_eq!(split_columns("C:\\texts\\b.csv"), ("C:\\texts\\b.csv", None));
        assert_eq!(split_columns("C:/texts/b.csv"), ("C:/texts/b.csv", None));
    }
}
