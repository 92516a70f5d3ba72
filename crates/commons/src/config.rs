//! Settings of a verb: defaults, then `--config FILE`, then options, then `--set key=value`.
//!
//! Every layer is checked against the tree of defaults, so that a misspelt key is an error that
//! names the key and those most like it, wherever it came from.

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::{Failure, Result};

/// Largest settings file that is read, bytes.
const FILE_LIMIT: u64 = 1 << 20;

/// Suggestions shown for an unknown key.
const SUGGESTIONS: usize = 3;

/// Object keys that say which variant an object is. Setting one replaces the object.
const TAGS: [&str; 2] = ["name", "kind"];

/// One source of settings over the defaults.
#[derive(Debug, Clone)]
pub struct Layer {
    source: String,
    value: Value,
}

impl Layer {
    /// Settings from a TOML file.
    ///
    /// # Errors
    /// When the file cannot be read or is not TOML.
    pub fn file(path: &Path) -> Result<Self> {
        let source = path.display().to_string();
        let text = commons_core::fs::read_text(path, FILE_LIMIT)?;
        let table: toml::Table = text.parse().map_err(|e: toml::de::Error| {
            let line = e.span().map(|s| 1 + text[..s.start].matches('\n').count());
            let place = line.map_or_else(|| source.clone(), |l| format!("{source}: line {l}"));
            Failure::usage(place, e.message())
                .help("settings files are TOML: `key = value` lines and [section] headings")
        })?;
        let value = serde_json::to_value(table).map_err(|e| {
            Failure::usage(&source, format!("holds a value JSON does not know: {e}"))
        })?;
        Ok(Self { source, value })
    }

    /// Settings from a verb's own options; those not given must not be serialised.
    ///
    /// # Errors
    /// When they cannot be written as JSON, which is a fault of the program.
    pub fn options(options: &impl Serialize) -> Result<Self> {
        let value =
            serde_json::to_value(options).map_err(|e| Failure::failed(format!("options: {e}")))?;
        Ok(Self { source: "command line".into(), value })
    }

    /// One `key.path=value`. The value is read as TOML and, failing that, as text.
    ///
    /// # Errors
    /// When there is no `=` or no key.
    pub fn set(assignment: &str) -> Result<Self> {
        let source = format!("--set {assignment}");
        let Some((path, text)) = assignment.split_once('=') else {
            return Err(Failure::usage(source, "has no `=`")
                .help("write --set key=value, as in --set heal.train.steps=100"));
        };
        let segments: Vec<&str> = path.trim().split('.').collect();
        if segments.iter().any(|s| s.is_empty()) {
            return Err(Failure::usage(source, "has an empty key")
                .help("write --set key=value, with dots between nested keys"));
        }
        let mut value = scalar(text.trim());
        for segment in segments.iter().rev() {
            value = Value::Object(Map::from_iter([((*segment).to_owned(), value)]));
        }
        Ok(Self { source, value })
    }

    /// The layers of the global options around those of a verb, weakest first.
    ///
    /// # Errors
    /// As the parts.
    pub fn all(
        file: Option<&Path>,
        options: &impl Serialize,
        sets: &[String],
    ) -> Result<Vec<Self>> {
        let mut layers = Vec::new();
        if let Some(path) = file {
            layers.push(Self::file(path)?);
        }
        layers.push(Self::options(options)?);
        for assignment in sets {
            layers.push(Self::set(assignment)?);
        }
        Ok(layers)
    }

    /// The value at the top-level `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.value.get(key)
    }

    /// Moves top-level keys that `defaults` does not have, but `defaults.{section}` has, into that
    /// section: `--set loops=3` for `--set options.loops=3`.
    pub fn into_section(mut self, defaults: &Value, section: &str) -> Self {
        let inner = &defaults[section];
        let Some(map) = self.value.as_object_mut() else { return self };
        let keys: Vec<String> = map
            .keys()
            .filter(|k| defaults.get(k).is_none() && inner.get(k).is_some())
            .cloned()
            .collect();
        for key in keys {
            if let Some(value) = map.remove(&key) {
                let slot = map.entry(section).or_insert_with(|| Value::Object(Map::new()));
                slot[key] = value;
            }
        }
        self
    }
}

fn scalar(text: &str) -> Value {
    if text == "null" {
        return Value::Null;
    }
    format!("v = {text}")
        .parse::<toml::Table>()
        .ok()
        .filter(|t| t.len() == 1)
        .and_then(|mut t| t.remove("v"))
        .and_then(|v| serde_json::to_value(v).ok())
        .unwrap_or_else(|| Value::String(text.to_owned()))
}

/// Lays `layers` over `defaults`.
///
/// # Errors
/// Naming the source and the key that is unknown, with the nearest known keys.
pub fn merge(mut defaults: Value, layers: &[Layer]) -> Result<Value> {
    let known = defaults.clone();
    for layer in layers {
        overlay(&mut defaults, &layer.value, &known, "", &layer.source)?;
    }
    Ok(defaults)
}

/// [`merge`], read as `T`.
///
/// # Errors
/// As [`merge`], and naming a key whose value is of the wrong kind.
pub fn resolve<T: Serialize + DeserializeOwned>(defaults: &T, layers: &[Layer]) -> Result<T> {
    let tree =
        serde_json::to_value(defaults).map_err(|e| Failure::failed(format!("defaults: {e}")))?;
    read(&merge(tree, layers)?)
}

/// Reads a merged tree as `T`.
///
/// # Errors
/// Naming the key whose value does not fit.
pub fn read<T: DeserializeOwned>(tree: &Value) -> Result<T> {
    serde_path_to_error::deserialize(tree).map_err(|e| {
        Failure::usage(format!("setting `{}`", e.path()), e.inner())
            .help("give a value of that kind; `--help` lists the options")
    })
}

/// Refuses `--config` and `--set` for a verb that has no settings of that kind.
///
/// # Errors
/// When either was given.
pub fn refuse(verb: &str, file: Option<&Path>, sets: &[String]) -> Result<()> {
    let given = match (file, sets.first()) {
        (Some(path), _) => format!("--config {}", path.display()),
        (None, Some(set)) => format!("--set {set}"),
        (None, None) => return Ok(()),
    };
    Err(Failure::usage(given, format!("`{verb}` has no settings beside its options"))
        .help(format!("see `commons {verb} --help`")))
}

fn overlay(into: &mut Value, from: &Value, known: &Value, path: &str, source: &str) -> Result<()> {
    let (Value::Object(base), Value::Object(new)) = (&mut *into, from) else {
        *into = from.clone();
        return Ok(());
    };
    // Another variant has other fields: those of the old one must not remain.
    let retagged = TAGS
        .iter()
        .find(|&&tag| new.get(tag).is_some_and(|v| base.get(tag).is_some_and(|b| b != v)));
    if let Some(tag) = retagged {
        base.retain(|key, _| key == tag);
    }
    let free = TAGS.iter().any(|&tag| {
        base.contains_key(tag) && known_at(known, path).is_some_and(|k| k.get(tag).is_some())
    });
    for (key, value) in new {
        let at = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        match base.get_mut(key) {
            Some(slot) => overlay(slot, value, known, &at, source)?,
            None if free => {
                base.insert(key.clone(), value.clone());
            }
            None => return Err(unknown(&at, known, source)),
        }
    }
    Ok(())
}

fn known_at<'a>(known: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').filter(|s| !s.is_empty()).try_fold(known, |v, key| v.get(key))
}

fn unknown(path: &str, known: &Value, source: &str) -> Failure {
    let mut all = Vec::new();
    paths(known, "", &mut all);
    let near = nearest(path, &all);
    let help = if near.is_empty() {
        let top: Vec<&str> =
            known.as_object().map(|m| m.keys().map(String::as_str).collect()).unwrap_or_default();
        format!("known keys: {}", top.join(", "))
    } else {
        format!("did you mean {}?", near.join(" or "))
    };
    Failure::usage(source, format!("unknown key `{path}`")).help(help)
}

/// Every dotted path of an object, inner ones included.
fn paths(tree: &Value, prefix: &str, out: &mut Vec<String>) {
    for (key, value) in tree.as_object().into_iter().flatten() {
        let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        paths(value, &path, out);
        out.push(path);
    }
}

/// The candidates most like `word`, as a whole or in their last segment, best first.
pub fn nearest(word: &str, candidates: &[String]) -> Vec<String> {
    let last = |s: &str| s.rsplit('.').next().unwrap_or(s).to_owned();
    let word_last = last(word);
    let score = |c: &String| {
        let whole = strsim::osa_distance(word, c) as f64 / word.len().max(c.len()).max(1) as f64;
        let end = last(c);
        let tail = strsim::osa_distance(&word_last, &end) as f64
            / word_last.len().max(end.len()).max(1) as f64;
        whole.min(tail + 0.01)
    };
    let mut scored: Vec<(f64, &String)> =
        candidates.iter().map(|c| (score(c), c)).filter(|(s, _)| *s < 0.45).collect();
    scored.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(b.1)));
    scored.into_iter().take(SUGGESTIONS).map(|(_, c)| format!("`{c}`")).collect()
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Demo {
        steps: usize,
        rate: f64,
        title: Option<String>,
        rule: commons_nn::optim::RuleConfig,
    }

    fn demo() -> Demo {
        Demo { steps: 5, rate: 0.1, title: None, rule: Default::default() }
    }

    fn set(text: &[&str]) -> Result<Demo> {
        let layers: Vec<Layer> = text.iter().map(|t| Layer::set(t)).collect::<Result<_>>()?;
        resolve(&demo(), &layers)
    }

    #[test]
    fn later_layers_win() {
        let got = set(&["steps=7", "steps=9", "title=plain words"]).unwrap();
        assert_eq!((got.steps, got.title.as_deref()), (9, Some("plain words")));
    }

    #[test]
    fn another_variant_drops_the_fields_of_the_old_one() {
        let got = set(&["rule.name=sgd", "rule.momentum=0.9"]).unwrap();
        assert_eq!(
            serde_json::to_value(got.rule).unwrap(),
            json!({"name": "sgd", "momentum": 0.9, "nesterov": false})
        );
    }

    #[test]
    fn unknown_keys_name_near_ones() {
        let text = format!("{:?}", set(&["setps=7"]).unwrap_err());
        assert!(text.contains("unknown key `setps`") && text.contains("`steps`"), "{text}");
        let text = format!("{:?}", set(&["rule.momentom=1"]).unwrap_err());
        assert!(text.contains("momentom"), "{text}");
        let text = format!("{:?}", set(&["zzz=1"]).unwrap_err());
        assert!(text.contains("known keys: steps, rate, title, rule"), "{text}");
    }

    #[test]
    fn a_wrong_kind_of_value_is_named() {
        let error = set(&["steps=many"]).unwrap_err();
        assert_eq!(error.code(), 2);
        assert!(error.to_string().contains("`steps`"), "{error}");
    }

    #[test]
    fn keys_of_a_section_need_no_prefix() {
        let defaults = json!({"model": "tiny", "options": {"loops": 2, "model": 1}});
        let layer = Layer::set("loops=3").unwrap().into_section(&defaults, "options");
        let merged = merge(defaults.clone(), &[layer]).unwrap();
        assert_eq!(merged["options"]["loops"], 3);
        let layer = Layer::set("model=x").unwrap().into_section(&defaults, "options");
        assert_eq!(merge(defaults, &[layer]).unwrap()["model"], "x");
    }
}
