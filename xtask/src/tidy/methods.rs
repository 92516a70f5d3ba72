//! One method, one folder: its files and its documentation.

use std::collections::BTreeSet;

use super::Breach;
use crate::source::{find_name, line_of};
use crate::tree::{File, Tree};

/// Files every method's folder holds.
const FILES: &[&str] =
    &["mod.rs", "evidence.rs", "tests.rs", "smoke.toml", "full.toml", "result.json"];

/// Headings of a method's documentation, in order.
pub const HEADINGS: &[&str] =
    &["Paper", "Problem", "Method", "Shared / kept apart", "Claim", "Here", "Differs", "Use"];

/// A method as its crate lists it.
pub struct Listed {
    /// Path of the `lib.rs` that lists it.
    pub library: String,
    /// Line of the entry there.
    pub line: usize,
    /// Name of its module, if the entry names one.
    pub module: Option<String>,
}

impl Listed {
    /// Path of the method's folder, without a closing slash.
    pub fn folder(&self) -> Option<String> {
        let source = self.library.strip_suffix("/lib.rs")?;
        Some(format!("{source}/{}", self.module.as_deref()?))
    }
}

/// The slug of the method in `folder`.
pub fn slug(folder: &str) -> String {
    folder.rsplit('/').next().unwrap_or(folder).replace('_', "-")
}

/// Every entry of every crate's `METHODS`.
pub fn listed(tree: &Tree) -> Vec<Listed> {
    let libraries = tree.libraries();
    libraries.filter(|file| file.path.ends_with("/src/lib.rs")).flat_map(entries).collect()
}

/// Rule `method-folder`.
pub fn folders(tree: &Tree) -> Vec<Breach> {
    let mut breaches = Vec::new();
    let mut known = BTreeSet::new();
    for method in listed(tree) {
        let Some(folder) = method.folder() else {
            let message = "a METHODS entry that names no module of this crate";
            breaches.push(Breach::new(&method.library, method.line, message));
            continue;
        };
        for name in FILES {
            if !tree.paths.contains(&format!("{folder}/{name}")) {
                let message = format!("{folder}/{name} is missing");
                breaches.push(Breach::new(&method.library, method.line, message));
            }
        }
        breaches.extend(golden(tree, &folder));
        breaches.extend(recipes(tree, &folder));
        known.insert(folder);
    }
    for file in tree.libraries() {
        if let Some(folder) = file.path.strip_suffix("/evidence.rs")
            && !known.contains(folder)
        {
            let message = "a method that its crate's METHODS does not list";
            breaches.push(Breach::new(&file.path, 1, message));
        }
    }
    breaches
}

/// Rule `method-docs`.
pub fn docs(tree: &Tree) -> Vec<Breach> {
    let folders = listed(tree).into_iter().filter_map(|method| method.folder());
    folders.filter_map(|folder| tree.file(&format!("{folder}/mod.rs"))).flat_map(docs_of).collect()
}

/// Sections of a module's documentation: line of the heading, heading, lines below it.
pub fn sections(text: &str) -> Vec<(usize, &str, Vec<&str>)> {
    let mut sections: Vec<(usize, &str, Vec<&str>)> = Vec::new();
    let mut fenced = false;
    for (index, line) in text.lines().enumerate() {
        let Some(doc) = line.strip_prefix("//!") else {
            break;
        };
        let doc = doc.strip_prefix(' ').unwrap_or(doc);
        // Inside a fence `# ` hides a line of an example; it is no heading.
        match doc.strip_prefix("# ").filter(|_| !fenced) {
            Some(heading) => sections.push((index + 1, heading.trim(), Vec::new())),
            None => {
                if let Some((_, _, lines)) = sections.last_mut() {
                    lines.push(doc);
                }
            }
        }
        fenced ^= doc.trim_start().starts_with("```");
    }
    sections
}

fn docs_of(file: &File) -> Vec<Breach> {
    let sections = sections(&file.text);
    let mut breaches = Vec::new();
    if !file.text.starts_with("//! ") || file.text.starts_with("//! # ") {
        let message = "begin with a sentence that says what is shared";
        breaches.push(Breach::new(&file.path, 1, message));
    }
    for (index, wanted) in HEADINGS.iter().enumerate() {
        match sections.get(index) {
            Some((_, heading, _)) if heading == wanted => {}
            Some((line, heading, _)) => {
                let message = format!("heading `{wanted}` belongs here, not `{heading}`");
                breaches.push(Breach::new(&file.path, *line, message));
                return breaches;
            }
            None => {
                breaches.push(Breach::new(&file.path, 1, format!("heading `{wanted}` is missing")));
                return breaches;
            }
        }
    }
    if let Some((line, heading, _)) = sections.get(HEADINGS.len()) {
        let message = format!("heading `{heading}` comes after the last one, `Use`");
        breaches.push(Breach::new(&file.path, *line, message));
    }
    for (line, heading, body) in &sections {
        if body.iter().all(|text| text.trim().is_empty()) {
            breaches.push(Breach::new(&file.path, *line, format!("`{heading}` says nothing")));
        }
        if *heading == "Use" && !has_tested_example(body) {
            breaches.push(Breach::new(&file.path, *line, "`Use` needs an example that is tested"));
        }
    }
    breaches
}

/// Whether one of the fenced blocks in `lines` is compiled by `cargo test --doc`.
fn has_tested_example(lines: &[&str]) -> bool {
    let fences = lines.iter().map(|line| line.trim());
    let mut opening = fences.filter(|line| line.starts_with("```")).step_by(2);
    opening.any(|fence| matches!(fence, "```" | "```rust" | "```no_run" | "```rust,no_run"))
}

/// The tests of a method read `golden.json` only if it is there.
fn golden(tree: &Tree, folder: &str) -> Option<Breach> {
    let tests = tree.file(&format!("{folder}/tests.rs"))?;
    let golden = format!("{folder}/golden.json");
    let at = tests.text.find("golden.json")?;
    (!tree.paths.contains(&golden)).then(|| {
        let line = line_of(&tests.text, at);
        Breach::new(&tests.path, line, format!("{golden} is missing"))
    })
}

/// Recipes are valid TOML.
fn recipes(tree: &Tree, folder: &str) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for name in ["smoke.toml", "full.toml"] {
        let Some(file) = tree.file(&format!("{folder}/{name}")) else {
            continue;
        };
        if let Err(error) = file.text.parse::<toml::Table>() {
            let line = error.span().map_or(1, |span| line_of(&file.text, span.start));
            breaches.push(Breach::new(&file.path, line, error.message()));
        }
    }
    breaches
}

/// The entries of `const METHODS: … = &[ … ];` in a crate's root.
fn entries(library: &File) -> Vec<Listed> {
    let code = &library.code;
    let modules: BTreeSet<&str> = code
        .lines()
        .filter_map(|line| {
            let line = line.trim().strip_suffix(';')?;
            line.strip_prefix("pub mod ").or_else(|| line.strip_prefix("mod "))
        })
        .collect();
    let Some(list) = find_name(code, "const METHODS").and_then(|start| {
        let equals = start + code[start..].find('=')?;
        Some(equals + code[equals..].find('[')? + 1)
    }) else {
        return Vec::new();
    };
    split_entries(code, list)
        .into_iter()
        .map(|(start, entry)| Listed {
            library: library.path.clone(),
            line: line_of(code, start),
            module: entry
                .split(|c: char| !c.is_alphanumeric() && c != '_')
                .find(|word| modules.contains(word))
                .map(String::from),
        })
        .collect()
}

/// Splits the list that begins at byte `list` at its commas, up to its closing bracket.
fn split_entries(code: &str, list: usize) -> Vec<(usize, &str)> {
    let mut entries = Vec::new();
    let (mut depth, mut start) = (0usize, list);
    for (offset, c) in code[list..].char_indices() {
        let at = list + offset;
        match c {
            ']' | ',' if depth == 0 => {
                let entry = &code[start..at];
                if !entry.trim().is_empty() {
                    let indent = entry.len() - entry.trim_start().len();
                    entries.push((start + indent, entry));
                }
                start = at + 1;
                if c == ']' {
                    break;
                }
            }
            '(' | '[' | '{' | '<' => depth += 1,
            ')' | ']' | '}' | '>' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    entries
}
