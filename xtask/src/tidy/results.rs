//! A published result belongs to the recipe beside it.

use commons_core::evidence::RunResult;
use toml::{Table, Value};

use super::{Breach, methods};
use crate::source::line_of;
use crate::tree::Tree;

/// Rule `fresh-results`.
pub fn fresh(tree: &Tree) -> Vec<Breach> {
    let folders = methods::listed(tree).into_iter().filter_map(|method| method.folder());
    folders.flat_map(|folder| stale(tree, &folder)).collect()
}

/// What in a method's result contradicts its folder.
fn stale(tree: &Tree, folder: &str) -> Vec<Breach> {
    let path = format!("{folder}/result.json");
    let Some(file) = tree.file(&path) else {
        // Another rule asks for the file.
        return Vec::new();
    };
    let at = |name: &str, message: String| {
        let line = file.text.find(&format!("\"{name}\"")).map_or(1, |at| line_of(&file.text, at));
        vec![Breach::new(&path, line, message)]
    };
    let result = match RunResult::load(tree.root.join(&path)) {
        Ok(result) => result,
        Err(error) => return vec![Breach::new(&path, 1, error.to_string())],
    };
    let slug = methods::slug(folder);
    if result.slug != slug {
        return at("slug", format!("a result of `{}`, in the folder of `{slug}`", result.slug));
    }
    if result.recipe.as_deref() != Some("full") {
        return at("recipe", "a published result comes from the recipe `full`".to_owned());
    }
    match result.config.parse::<Table>() {
        Ok(config) => changed(tree, folder, &config),
        Err(error) => at("config", error.message().to_owned()),
    }
}

/// The settings of `full.toml` that the result was not measured with.
fn changed(tree: &Tree, folder: &str, config: &Table) -> Vec<Breach> {
    let path = format!("{folder}/full.toml");
    let Some(recipe) = tree.file(&path) else {
        return Vec::new();
    };
    let mut breaches = Vec::new();
    for (key, wanted) in leaves(recipe.text.parse().unwrap_or_default()) {
        let measured = lookup(config, &key);
        if !measured.is_some_and(|measured| equal(measured, &wanted)) {
            let was = measured.map_or("nothing".to_owned(), ToString::to_string);
            let message = format!(
                "`{key}` is {wanted}, but result.json was measured with {was}: run the recipe again"
            );
            breaches.push(Breach::new(&path, line_of_key(&recipe.text, &key), message));
        }
    }
    breaches
}

/// Every setting of a table that is not a table itself, with its dotted key.
fn leaves(table: Table) -> Vec<(String, Value)> {
    let mut found = Vec::new();
    for (key, value) in table {
        match value {
            Value::Table(inner) => {
                let below = leaves(inner).into_iter();
                found.extend(below.map(|(rest, value)| (format!("{key}.{rest}"), value)));
            }
            value => found.push((key, value)),
        }
    }
    found
}

fn lookup<'a>(table: &'a Table, key: &str) -> Option<&'a Value> {
    match key.split_once('.') {
        Some((first, rest)) => lookup(table.get(first)?.as_table()?, rest),
        None => table.get(key),
    }
}

/// Whether `a`, measured, is what a recipe asks for by `b`. Takes `1` for `1.0`: a recipe may write
/// a whole number where the settings hold a float.
fn equal(a: &Value, b: &Value) -> bool {
    let number = |value: &Value| value.as_float().or_else(|| value.as_integer().map(|i| i as f64));
    match (a, b) {
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b))
        }
        // What a recipe leaves out of an entry of a list was filled with defaults.
        (Value::Table(measured), Value::Table(wanted)) => {
            wanted.iter().all(|(key, b)| measured.get(key).is_some_and(|a| equal(a, b)))
        }
        _ => a == b || number(a).is_some_and(|a| Some(a) == number(b)),
    }
}

/// Line of a recipe that sets the last part of `key`.
fn line_of_key(text: &str, key: &str) -> usize {
    let name = key.rsplit('.').next().unwrap_or(key);
    let sets = |line: &str| {
        let rest = line.trim_start().strip_prefix(name);
        rest.is_some_and(|rest| rest.trim_start().starts_with('='))
    };
    text.lines().position(sets).map_or(1, |index| index + 1)
}
