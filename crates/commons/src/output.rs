//! Results on standard output: aligned tables for people, JSON for programs.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use crate::error::{Failure, Result};

/// Narrowest width a table is fitted to.
const NARROW: usize = 60;

/// Widest line of running text: longer ones tire the eye.
const WIDE: usize = 120;

/// Where and how results are written.
#[derive(Debug, Clone)]
pub struct Output {
    /// Machine-readable results.
    pub json: bool,
    /// Colours on standard output.
    pub color: bool,
    /// Colours on standard error.
    pub color_err: bool,
    /// Columns of the terminal.
    pub width: usize,
}

impl Output {
    /// Settings for this process; `color` forces colours on or off.
    pub fn new(json: bool, color: Option<bool>) -> Self {
        let wanted = |terminal: bool| {
            color.unwrap_or(terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()))
        };
        let (_, columns) = console::Term::stderr().size();
        let columns = std::env::var("COLUMNS").ok().and_then(|c| c.parse().ok()).unwrap_or(usize::from(columns));
        Self {
            json,
            color: wanted(io::stdout().is_terminal()),
            color_err: wanted(io::stderr().is_terminal()),
            width: columns.clamp(NARROW, WIDE),
        }
    }

    /// Writes `value` as indented JSON.
    pub fn json(&self, value: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string_pretty(value)
            .map_err(|e| Failure::failed(format!("the result cannot be written as JSON: {e}")))?;
        self.text(&text)
    }

    /// Writes a line (or several).
    pub fn text(&self, text: &str) -> Result<()> {
        let mut out = io::stdout().lock();
        let written = out.write_all(text.as_bytes()).and_then(|()| match text.ends_with('\n') {
            true => out.flush(),
            false => out.write_all(b"\n").and_then(|()| out.flush()),
        });
        reader_gone_is_fine(written)
    }

    /// Writes text without a line end, at once: for streams of tokens.
    pub fn stream(&self, text: &str) -> Result<()> {
        let mut out = io::stdout().lock();
        reader_gone_is_fine(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
    }

    /// Writes a table.
    pub fn grid(&self, grid: &Grid) -> Result<()> {
        self.text(&grid.render(self.width, self.color))
    }

    /// A heading.
    pub fn bold(&self, text: &str) -> String {
        paint(text, "1", self.color)
    }

    /// Less important text.
    pub fn dim(&self, text: &str) -> String {
        paint(text, "2", self.color)
    }
}

/// Ends the process quietly when the reader of a pipe went away, as other tools do.
fn reader_gone_is_fine(written: io::Result<()>) -> Result<()> {
    match written {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => Ok(other?),
    }
}

fn paint(text: &str, code: &str, color: bool) -> String {
    if color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

/// How a column stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// A table of text cells. The last left-aligned column wraps when the line is too long.
#[derive(Debug, Clone, Default)]
pub struct Grid {
    head: Vec<(String, Option<Align>)>,
    rows: Vec<Vec<String>>,
}

impl Grid {
    /// A table with the given columns: a leading `>` makes a column right-aligned.
    pub fn new(columns: &[&str]) -> Self {
        let column = |c: &&str| match c.strip_prefix('>') {
            Some(name) => (name.to_owned(), Some(Align::Right)),
            None => ((*c).to_owned(), Some(Align::Left)),
        };
        Self { head: columns.iter().map(column).collect(), rows: Vec::new() }
    }

    /// Adds a row; missing cells are empty.
    pub fn row(&mut self, cells: impl IntoIterator<Item = impl Into<String>>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// The table as text of at most `width` columns where its cells allow it.
    pub fn render(&self, width: usize, color: bool) -> String {
        let count = self.head.len();
        let cell = |row: &[String], c: usize| row.get(c).cloned().unwrap_or_default();
        let mut widths: Vec<usize> = (0..count)
            .map(|c| {
                let cells = self.rows.iter().map(|r| columns_of(&cell(r, c)));
                cells.chain([columns_of(&self.head[c].0)]).max().unwrap_or(0)
            })
            .collect();
        let flexible = (0..count).rev().find(|&c| self.head[c].1 == Some(Align::Left));
        let total: usize = widths.iter().sum::<usize>() + 2 * count.saturating_sub(1);
        if let Some(c) = flexible.filter(|_| total > width) {
            widths[c] = widths[c].saturating_sub(total - width).max(16);
        }
        let mut out = String::new();
        let titles: Vec<String> = self.head.iter().map(|(t, _)| t.clone()).collect();
        if titles.iter().any(|t| !t.is_empty()) {
            self.line(&mut out, &titles, &widths, if color { Some("1") } else { None });
            let rule: usize = widths.iter().sum::<usize>() + 2 * count.saturating_sub(1);
            out.push_str(&paint(&"─".repeat(rule), "2", color));
            out.push('\n');
        }
        for row in &self.rows {
            let wrapped: Vec<Vec<String>> = (0..count)
                .map(|c| if Some(c) == flexible { wrap(&cell(row, c), widths[c]) } else { vec![cell(row, c)] })
                .collect();
            let height = wrapped.iter().map(Vec::len).max().unwrap_or(1);
            for line in 0..height {
                let cells: Vec<String> =
                    wrapped.iter().map(|w| w.get(line).cloned().unwrap_or_default()).collect();
                self.line(&mut out, &cells, &widths, None);
            }
        }
        out
    }

    fn line(&self, out: &mut String, cells: &[String], widths: &[usize], style: Option<&str>) {
        let mut line = String::new();
        for (c, (text, &width)) in cells.iter().zip(widths).enumerate() {
            let pad = " ".repeat(width.saturating_sub(columns_of(text)));
            let gap = if c == 0 { "" } else { "  " };
            let text = style.map_or_else(|| text.clone(), |code| paint(text, code, !text.is_empty()));
            let _ = match self.head[c].1 {
                Some(Align::Right) => write!(line, "{gap}{pad}{text}"),
                _ => write!(line, "{gap}{text}{pad}"),
            };
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
}

/// Columns a text takes on a terminal, colour codes left out.
fn columns_of(text: &str) -> usize {
    console::measure_text_width(text)
}

/// Breaks `text` at spaces (inside a word only if it is longer than `width`).
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let mut word = word.to_owned();
        loop {
            let used = lines.last().map_or(0, |l| columns_of(l));
            let gap = usize::from(used > 0);
            if used + gap + columns_of(&word) <= width {
                if let Some(line) = lines.last_mut() {
                    if gap == 1 {
                        line.push(' ');
                    }
                    line.push_str(&word);
                }
                break;
            }
            if used > 0 {
                lines.push(String::new());
                continue;
            }
            let cut = word.char_indices().nth(width.max(1)).map_or(word.len(), |(i, _)| i);
            let rest = word.split_off(cut);
            if let Some(line) = lines.last_mut() {
                line.push_str(&word);
            }
            lines.push(String::new());
            word = rest;
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_the_last_text_wraps() {
        let mut grid = Grid::new(&["name", ">size", "what"]);
        grid.row(["a", "1", "short"]);
        grid.row(["long-name", "1,000", "many words that do not fit on the line"]);
        let text = grid.render(40, false);
        assert!(text.lines().all(|l| columns_of(l) <= 40), "{text}");
        assert!(text.contains("a              1  short"), "{text}");
        assert_eq!(text.lines().count(), 5, "{text}");
    }

    #[test]
    fn wrapping_keeps_every_character() {
        for width in 1..20 {
            let text = "a bb ccc dddd averyveryverylongword e";
            let joined = wrap(text, width).join("").replace(' ', "");
            assert_eq!(joined, text.replace(' ', ""));
        }
    }
}
