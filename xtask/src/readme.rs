//! Writes what was measured into the documentation: the method table of README.md and the section
//! "Here" of every method, both from the `result.json` files.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use commons_core::cells;
use commons_core::evidence::{ClaimResult, RunResult};
use commons_core::format;
use commons_core::table::{Table, Unit};

use crate::tidy::methods;
use crate::tree::Tree;

const README: &str = "README.md";
const BEGIN: &str = "<!-- begin methods";
const END: &str = "<!-- end methods -->";
const NOT_MEASURED: &str = "Not measured yet.";

/// A file whose text is not what its results say.
pub struct Edit {
    /// Path from the root.
    pub path: String,
    /// What it should hold.
    pub text: String,
}

impl Edit {
    /// Writes the file.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, root: &Path) -> Result<()> {
        Ok(commons_core::fs::write_atomic(root.join(&self.path), &self.text)?)
    }
}

/// The files that are out of date, with their new text.
///
/// # Errors
/// If a result cannot be read, or README.md or a method's documentation lacks the place to fill.
pub fn outdated(tree: &Tree) -> Result<Vec<Edit>> {
    let mut edits = Vec::new();
    let mut rows = Vec::new();
    for folder in methods::listed(tree).iter().filter_map(methods::Listed::folder) {
        let result = load(tree, &folder)?;
        if let Some(module) = tree.file(&format!("{folder}/mod.rs")) {
            let body = result.as_ref().map_or(NOT_MEASURED.to_owned(), here);
            let text = with_section(&module.text, &body)
                .with_context(|| format!("{}: no section \"Here\" to write to", module.path))?;
            edits.push(Edit { path: module.path.clone(), text });
        }
        rows.push((folder, result));
    }
    let readme = tree.file(README).with_context(|| format!("{README} is missing"))?;
    let text = between_markers(&readme.text, &method_table(&rows))?;
    edits.push(Edit { path: README.to_owned(), text });
    edits.retain(|edit| tree.file(&edit.path).is_none_or(|file| file.text != edit.text));
    Ok(edits)
}

fn load(tree: &Tree, folder: &str) -> Result<Option<RunResult>> {
    let path = format!("{folder}/result.json");
    if !tree.paths.contains(&path) {
        return Ok(None);
    }
    let result = RunResult::load(tree.root.join(&path));
    Ok(Some(result.with_context(|| path.clone())?))
}

/// One row per claim; the first of a method names it.
fn method_table(methods: &[(String, Option<RunResult>)]) -> String {
    let mut table = Table::new("Methods")
        .columns(["method", "claim", "paper"])
        .column("measured", Unit::Plain)
        .column("baseline", Unit::Plain)
        .columns(["needed", "found (95 % interval)", "verdict", "date"]);
    for (folder, result) in methods {
        let link = format!("[{}]({folder})", methods::slug(folder));
        let Some(result) = result else {
            table.push(cells![link, NOT_MEASURED]);
            continue;
        };
        let date = result.date.to_string();
        let day = date.split('T').next().unwrap_or_default();
        for (index, claim) in result.claims.iter().enumerate() {
            let first = index == 0;
            let mut row = cells![if first { link.as_str() } else { "" }];
            row.extend(claim_cells(claim));
            row.extend(cells![if first { day } else { "" }]);
            table.push(row);
        }
    }
    if table.rows.is_empty() { String::new() } else { table.to_markdown() }
}

/// The section "Here" of a method: when, how and on what it was measured; the claims; the notes.
fn here(result: &RunResult) -> String {
    let machine = &result.machine;
    let mut text = format!(
        "Measured on {} with the recipe `{}` (seed {}) in {} on {} ({} threads, {}, {} of memory,\n\
         of which {} were used), Commons {}.\n\n",
        result.date,
        result.recipe.as_deref().unwrap_or("none"),
        result.seed,
        format::duration(Duration::try_from_secs_f64(result.wall_seconds).unwrap_or_default()),
        if machine.cpu.is_empty() { "an unnamed processor" } else { &machine.cpu },
        machine.threads,
        machine.simd,
        format::bytes(machine.memory),
        format::bytes(result.peak_memory),
        result.version,
    );
    let mut table = Table::new("Claims")
        .columns(["claim", "paper"])
        .column("measured", Unit::Plain)
        .column("baseline", Unit::Plain)
        .columns(["needed", "found (95 % interval)", "verdict"]);
    for claim in &result.claims {
        table.push(claim_cells(claim));
    }
    text.push_str(&table.to_markdown());
    if !result.notes.is_empty() {
        text.push('\n');
    }
    for note in &result.notes {
        text.push_str(&format!("- {}\n", note.replace('\n', " ")));
    }
    text
}

fn claim_cells(claim: &ClaimResult) -> Vec<commons_core::table::Cell> {
    let found = match (claim.compared, claim.interval) {
        (Some(mean), Some(interval)) => format!(
            "{} ({} to {})",
            format::number(mean),
            format::number(interval.low),
            format::number(interval.high)
        ),
        (Some(mean), None) => format::number(mean),
        (None, _) => String::new(),
    };
    let verdict = match (claim.settled, claim.repeats) {
        (true, _) | (_, 0) => claim.verdict.to_string(),
        (false, 1) => format!("{} (one seed)", claim.verdict),
        (false, _) => format!("{} (not settled)", claim.verdict),
    };
    cells![
        claim.sentence.as_str(),
        claim.paper.to_string(),
        claim.measured,
        claim.baseline.as_ref().map(|baseline| baseline.value),
        claim.requirement(),
        found,
        verdict,
    ]
}

/// `source` with `body` as the section "Here" of its module documentation.
fn with_section(source: &str, body: &str) -> Option<String> {
    let sections = methods::sections(source);
    let at = sections.iter().position(|(_, heading, _)| *heading == "Here")?;
    // The heading is on line `start`, the next one (in the same comment) on line `end`.
    let (start, _, below) = &sections[at];
    let end = start + below.len() + 1;
    let mut text = String::with_capacity(source.len() + body.len());
    for line in source.lines().take(*start) {
        text.push_str(line);
        text.push('\n');
    }
    text.push_str("//!\n");
    for line in body.lines() {
        // Brackets would be read as links to items.
        let line = line.replace('[', "\\[").replace(']', "\\]");
        text.push_str(format!("//! {line}").trim_end());
        text.push('\n');
    }
    text.push_str("//!\n");
    for line in source.lines().skip(end - 1) {
        text.push_str(line);
        text.push('\n');
    }
    Some(text)
}

/// `text` with `body` between the markers.
fn between_markers(text: &str, body: &str) -> Result<String> {
    let Some(begin) = text.find(BEGIN) else {
        bail!("{README}: no line begins with `{BEGIN}`");
    };
    let Some(line) = text[begin..].find('\n').map(|length| begin + length + 1) else {
        bail!("{README}: nothing follows the line `{BEGIN}`");
    };
    let Some(end) = text[line..].find(END).map(|length| line + length) else {
        bail!("{README}: no line `{END}` after `{BEGIN}`");
    };
    let gap = if body.is_empty() { "" } else { "\n" };
    Ok(format!("{}{gap}{body}{gap}{}", &text[..line], &text[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::miniature::{self, Miniature};

    fn apply(tree: &Miniature) -> Vec<String> {
        let loaded = tree.load();
        let edits = outdated(&loaded).unwrap();
        for edit in &edits {
            edit.write(&loaded.root).unwrap();
        }
        edits.into_iter().map(|edit| edit.path).collect()
    }

    #[test]
    fn results_reach_readme_and_documentation_once() {
        let tree = Miniature::new();
        let module = Miniature::method("mod.rs");
        assert_eq!(apply(&tree), [module.as_str(), README]);
        assert!(apply(&tree).is_empty(), "a second pass finds nothing to do");

        let readme = tree.read(README);
        let row = readme.lines().find(|line| line.contains("[halving]")).unwrap();
        let cells: Vec<&str> = row.split(" | ").map(str::trim).collect();
        assert_eq!(cells[0], "| [halving](crates/commons-weights/src/halving)");
        assert_eq!(cells[1], "stores half \\| not all");
        assert_eq!(cells[3..6], ["12", "24", "≤ 0.5 × baseline"]);
        assert_eq!(cells[6..8], ["0.5 (0.48 to 0.52)", "holds (not settled)"]);
        assert_eq!(cells[8], "2026-11-23 |");
        assert!(readme.ends_with("<!-- end methods -->\n\nEnd.\n"), "{readme}");

        let docs = tree.read(&module);
        for part in ["2026-11-23T", "seed 7", "3 min 12 s", "Abacus 9", "1 GiB", "//! - One note."]
        {
            assert!(docs.contains(part), "no {part:?} in\n{docs}");
        }
        assert!(docs.contains("//! # Here\n//!\n//! Measured on"));
        assert!(docs.contains("//! - One note.\n//!\n//! # Differs\n//! Nothing.\n"), "{docs}");
        assert!(docs.ends_with("//! assert_eq!(hidden, 1);\n//! ```\n"));
    }

    #[test]
    fn a_new_result_makes_both_out_of_date() {
        let tree = Miniature::new();
        apply(&tree);
        let mut result = miniature::result();
        result.claims[0].measured = Some(13.0);
        let text = serde_json::to_string(&result).unwrap();
        tree.write(&Miniature::method("result.json"), &text);
        assert_eq!(apply(&tree).len(), 2);
    }

    #[test]
    fn a_method_without_a_result_says_so() {
        let tree = Miniature::new();
        tree.remove(&Miniature::method("result.json"));
        apply(&tree);
        assert!(tree.read(&Miniature::method("mod.rs")).contains(NOT_MEASURED));
        assert!(tree.read(README).contains(NOT_MEASURED));
    }

    #[test]
    fn missing_places_are_errors_that_name_the_file() {
        let tree = Miniature::new();
        tree.write(README, "# Halving\n");
        let error = outdated(&tree.load()).err().unwrap();
        assert!(format!("{error:#}").contains("README.md"), "{error:#}");
        let tree = Miniature::new();
        let module = Miniature::method("mod.rs");
        tree.replace(&module, "# Here", "# Nowhere");
        let error = outdated(&tree.load()).err().unwrap();
        assert!(format!("{error:#}").contains(&module), "{error:#}");
    }
}
