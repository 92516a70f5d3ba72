//! Settings from defaults, a recipe, a file and `--set key=value`, checked against the schema.

use crate::{
    error::{Error, Result},
    fs,
};
use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value as Json;
use std::{collections::BTreeSet, path::PathBuf};
use toml::{Table, Value};

const LONGEST_FILE: u64 = 1 << 20;

/// Where the settings of a run come from. Later layers win: defaults, recipe, file, assignments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigSource {
    /// Name of a recipe of the method.
    pub recipe: Option<String>,
    /// A TOML file.
    pub file: Option<PathBuf>,
    /// Assignments `path.to.key=value`; the value is TOML, or a text if it is not valid TOML.
    pub sets: Vec<String>,
}

/// Builds a configuration from its layers; `recipe` is the name and text of the chosen one.
pub(super) fn resolve<C>(recipe: Option<(&str, &str)>, source: &ConfigSource) -> Result<C>
where
    C: Default + Serialize + DeserializeOwned + JsonSchema,
{
    let schema = schemars::schema_for!(C).to_value();
    let schema = Schema::new(&schema);
    let defaults = Value::try_from(C::default()).map_err(|error| {
        Error::other(error).context("the defaults of this configuration cannot be written as TOML")
    })?;
    let mut layers = Layers { merged: defaults, origins: Vec::new() };
    if let Some((name, text)) = recipe {
        let name = format!("recipe {name}");
        let table = parse(&name, text)?;
        layers.add_table(name, table, &schema);
    }
    if let Some(path) = &source.file {
        let name = path.display().to_string();
        let table = parse(&name, &fs::read_text(path, LONGEST_FILE)?)?;
        layers.add_table(name, table, &schema);
    }
    for assignment in &source.sets {
        layers.assign(assignment)?;
    }
    schema.check(&layers.merged).map_err(|unknown| {
        let mut path = unknown.path.clone();
        path.push(unknown.key.clone());
        let remedy = match nearest(&unknown.key, &unknown.known) {
            Some(name) => format!("did you mean `{name}`?"),
            None => format!("known here: {}", unknown.known.join(", ")),
        };
        Error::config(layers.origin(&path), join(&path), "no such setting", remedy)
    })?;
    let (merged, origins) = (layers.merged, layers.origins);
    serde_path_to_error::deserialize(merged).map_err(|error| {
        let path: Vec<String> = error
            .path()
            .iter()
            .filter_map(|segment| match segment {
                serde_path_to_error::Segment::Map { key } => Some(key.clone()),
                serde_path_to_error::Segment::Seq { index } => Some(index.to_string()),
                _ => None,
            })
            .collect();
        let problem = error.inner().to_string();
        let problem = problem.trim().replace('\n', " ");
        Error::config(
            origin(&origins, &path),
            join(&path),
            problem,
            "see the schema of this method",
        )
    })
}

/// Splits `path.to.key=value` into the path and the TOML value.
///
/// # Errors
/// [`Error::Config`] if there is no `=` or no key before it.
pub fn parse_assignment(text: &str) -> Result<(Vec<String>, Value)> {
    let wrong = |problem: &str| {
        Error::config("--set", text, problem, "write it as key=value or table.key=value")
    };
    let (key, value) = text.split_once('=').ok_or_else(|| wrong("has no `=`"))?;
    let path: Vec<String> = key.split('.').map(|part| part.trim().to_owned()).collect();
    if path.iter().any(String::is_empty) {
        return Err(wrong("has an empty key"));
    }
    let value = value.trim();
    let parsed = toml::from_str::<Table>(&format!("value = {value}"))
        .ok()
        // A line break could smuggle in further keys; then it is a text like any other.
        .filter(|table| table.len() == 1)
        .and_then(|mut table| table.remove("value"));
    Ok((path, parsed.unwrap_or_else(|| Value::String(value.to_owned()))))
}

fn parse(name: &str, text: &str) -> Result<Table> {
    toml::from_str(text).map_err(|error: toml::de::Error| {
        let before = &text.as_bytes()[..error.span().map_or(0, |span| span.start.min(text.len()))];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        Error::config(name, format!("line {line}"), error.message(), "write valid TOML")
    })
}

/// Who set what.
enum Origin {
    Table(String, Value),
    Assignment(String, Vec<String>),
}

struct Layers {
    merged: Value,
    origins: Vec<Origin>,
}

impl Layers {
    fn add_table(&mut self, name: String, table: Table, schema: &Schema<'_>) {
        merge(&mut self.merged, Value::Table(table.clone()), schema, &schema.root());
        self.origins.push(Origin::Table(name, Value::Table(table)));
    }

    fn assign(&mut self, text: &str) -> Result<()> {
        let (path, value) = parse_assignment(text)?;
        let mut place = &mut self.merged;
        for (depth, key) in path.iter().enumerate() {
            place = match place {
                Value::Table(table) => {
                    table.entry(key).or_insert_with(|| Value::Table(Table::new()))
                }
                Value::Array(items) => {
                    let count = items.len();
                    let item = key.parse().ok().and_then(|index: usize| items.get_mut(index));
                    item.ok_or_else(|| {
                        let problem = format!("is not an index of the {count} elements");
                        Error::config(
                            format!("--set {text}"),
                            join(&path[..=depth]),
                            problem,
                            "use 0 for the first",
                        )
                    })?
                }
                _ => {
                    let problem = "is a single value and has no keys";
                    return Err(Error::config(
                        format!("--set {text}"),
                        join(&path[..depth]),
                        problem,
                        "set it as a whole",
                    ));
                }
            };
        }
        *place = value;
        self.origins.push(Origin::Assignment(text.to_owned(), path));
        Ok(())
    }

    fn origin(&self, path: &[String]) -> String {
        origin(&self.origins, path)
    }
}

/// The last layer that set the value at `path`.
fn origin(origins: &[Origin], path: &[String]) -> String {
    let found = origins.iter().rev().find_map(|origin| match origin {
        Origin::Table(name, table) => contains(table, path).then(|| name.clone()),
        Origin::Assignment(text, set) => {
            let common = set.len().min(path.len());
            (set[..common] == path[..common]).then(|| format!("--set {text}"))
        }
    });
    found.unwrap_or_else(|| "defaults".to_owned())
}

fn contains(value: &Value, path: &[String]) -> bool {
    let Some((key, rest)) = path.split_first() else {
        return true;
    };
    let inner = match value {
        Value::Table(table) => table.get(key),
        Value::Array(items) => key.parse().ok().and_then(|index: usize| items.get(index)),
        _ => None,
    };
    inner.is_some_and(|inner| contains(inner, rest))
}

/// Lays `over` on `base`. Tables merge key by key, except where the schema has alternatives: the
/// fields of one variant of an enum make no sense in another.
fn merge(base: &mut Value, over: Value, schema: &Schema<'_>, nodes: &[&Json]) {
    match (base, over) {
        (Value::Table(base), Value::Table(over)) if nodes.len() <= 1 => {
            for (key, value) in over {
                let inner = schema.property(nodes, &key);
                match base.get_mut(&key) {
                    Some(place) => merge(place, value, schema, &inner),
                    None => {
                        base.insert(key, value);
                    }
                }
            }
        }
        (base, over) => *base = over,
    }
}

/// The part of JSON Schema that `schemars` writes, as far as it concerns which keys exist.
struct Schema<'a> {
    root: &'a Json,
}

struct Unknown {
    path: Vec<String>,
    key: String,
    known: Vec<String>,
}

impl<'a> Schema<'a> {
    fn new(root: &'a Json) -> Self {
        Self { root }
    }

    fn root(&self) -> Vec<&'a Json> {
        let mut nodes = Vec::new();
        self.expand(self.root, &mut nodes);
        nodes
    }

    /// Follows references and alternatives to plain nodes; "null" alternatives are dropped.
    fn expand(&self, node: &'a Json, out: &mut Vec<&'a Json>) {
        if let Some(reference) = node.get("$ref").and_then(Json::as_str) {
            let target = reference.strip_prefix('#').and_then(|pointer| self.root.pointer(pointer));
            if let Some(target) = target.filter(|target| !std::ptr::eq(*target, node)) {
                self.expand(target, out);
            }
        }
        for word in ["anyOf", "oneOf", "allOf"] {
            for alternative in node.get(word).and_then(Json::as_array).into_iter().flatten() {
                self.expand(alternative, out);
            }
        }
        let plain = ["$ref", "anyOf", "oneOf", "allOf"].iter().all(|word| node.get(word).is_none());
        let null = node.get("type").and_then(Json::as_str) == Some("null");
        if (plain || node.get("properties").is_some()) && !null {
            out.push(node);
        }
    }

    /// The schemas of a key under any of `nodes`.
    fn property(&self, nodes: &[&'a Json], key: &str) -> Vec<&'a Json> {
        let mut out = Vec::new();
        for node in nodes {
            let named = node.get("properties").and_then(|properties| properties.get(key));
            if let Some(inner) = named.or_else(|| node.get("additionalProperties")) {
                self.expand(inner, &mut out);
            }
        }
        out
    }

    fn check(&self, value: &Value) -> Result<(), Unknown> {
        self.check_at(value, &self.root(), &mut Vec::new())
    }

    fn check_at(
        &self,
        value: &Value,
        nodes: &[&'a Json],
        path: &mut Vec<String>,
    ) -> Result<(), Unknown> {
        match value {
            Value::Table(table) => {
                let known: BTreeSet<&String> = nodes
                    .iter()
                    .filter_map(|node| node.get("properties")?.as_object())
                    .flat_map(|properties| properties.keys())
                    .collect();
                // A node that lists no properties says nothing about them; a wrong type is found
                // when the value is read.
                let open = known.is_empty()
                    || nodes.iter().any(|node| {
                        node.get("additionalProperties")
                            .is_some_and(|extra| *extra != Json::Bool(false))
                    });
                for (key, inner) in table {
                    if !open && !known.contains(key) {
                        return Err(Unknown {
                            path: path.clone(),
                            key: key.clone(),
                            known: known.into_iter().cloned().collect(),
                        });
                    }
                    path.push(key.clone());
                    self.check_at(inner, &self.property(nodes, key), path)?;
                    path.pop();
                }
                Ok(())
            }
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    let mut inner = Vec::new();
                    for node in nodes {
                        let tuple = node.get("prefixItems").and_then(|items| items.get(index));
                        if let Some(item) = tuple.or_else(|| node.get("items")) {
                            self.expand(item, &mut inner);
                        }
                    }
                    path.push(index.to_string());
                    self.check_at(item, &inner, path)?;
                    path.pop();
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// `["model", "layers", "0", "rank"]` as `model.layers[0].rank`.
fn join(path: &[String]) -> String {
    let mut out = String::new();
    for part in path {
        if part.bytes().all(|byte| byte.is_ascii_digit()) {
            out.push_str(&format!("[{part}]"));
        } else {
            out.push_str(if out.is_empty() { "" } else { "." });
            out.push_str(part);
        }
    }
    if out.is_empty() { "configuration".to_owned() } else { out }
}

/// The known name closest to a misspelt one, if it is close at all.
fn nearest<'a>(name: &str, known: &'a [String]) -> Option<&'a String> {
    let limit = (name.chars().count() / 3).max(1);
    let distances = known.iter().map(|candidate| (edit_distance(name, candidate), candidate));
    let (distance, candidate) = distances.min_by_key(|(distance, _)| *distance)?;
    (distance <= limit).then_some(candidate)
}

/// Levenshtein distance.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemars::JsonSchema;
    use serde::Deserialize;
    use std::collections::BTreeMap;

    #[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
    #[serde(rename_all = "kebab-case", tag = "kind")]
    enum Schedule {
        Constant,
        Cosine { warmup: u32 },
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
    struct Model {
        rank: usize,
        name: String,
        bias: Option<f64>,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
    struct Config {
        learning_rate: f64,
        model: Model,
        layers: Vec<Model>,
        schedule: Schedule,
        extra: Option<Model>,
        labels: BTreeMap<String, u32>,
        seed: crate::Seed,
    }

    fn model(rank: usize) -> Model {
        Model { rank, name: "m".into(), bias: None }
    }

    impl Default for Config {
        fn default() -> Self {
            Self {
                learning_rate: 0.1,
                model: model(4),
                layers: vec![model(1), model(2)],
                schedule: Schedule::Cosine { warmup: 10 },
                extra: None,
                labels: BTreeMap::new(),
                seed: crate::Seed::new(0),
            }
        }
    }

    fn sets(sets: &[&str]) -> Result<Config> {
        resolve(
            None,
            &ConfigSource {
                sets: sets.iter().map(ToString::to_string).collect(),
                ..ConfigSource::default()
            },
        )
    }

    #[test]
    fn layers_override_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("my.toml");
        std::fs::write(&file, "learning_rate = 0.3\nmodel.rank = 16\n").unwrap();
        let source = ConfigSource {
            recipe: Some("smoke".into()),
            file: Some(file),
            sets: vec![
                "model.rank=32".into(),
                "model.name=big model".into(),
                "layers.1.bias=0.5".into(),
            ],
        };
        let recipe = "learning_rate = 0.2\nschedule = { kind = \"constant\" }\nlabels.a = 3\n[model]\nbias = 1";
        let config: Config = resolve(Some(("smoke", recipe)), &source).unwrap();
        assert_eq!(config.learning_rate, 0.3);
        assert_eq!((config.model.rank, config.model.bias), (32, Some(1.0)));
        assert_eq!(config.model.name, "big model");
        assert_eq!(config.schedule, Schedule::Constant);
        assert_eq!(config.labels["a"], 3);
        assert_eq!(config.layers[1].bias, Some(0.5));
    }

    #[test]
    fn unknown_keys_are_named_with_a_suggestion() {
        let error = sets(&["learning_rat=1"]).unwrap_err().to_string();
        assert_eq!(
            error,
            "--set learning_rat=1: learning_rat: no such setting; did you mean `learning_rate`?"
        );
        let error = sets(&["layers.0.colour=1"]).unwrap_err().to_string();
        assert_eq!(
            error,
            "--set layers.0.colour=1: layers[0].colour: no such setting; known here: bias, name, rank"
        );
        let error = sets(&["extra={ rank = 1, name = \"x\", sise = 2 }"]).unwrap_err().to_string();
        assert!(error.contains("extra.sise: no such setting"), "{error}");
        let error = resolve::<Config>(Some(("full", "[model]\nrnk = 2")), &ConfigSource::default());
        assert_eq!(
            error.unwrap_err().to_string(),
            "recipe full: model.rnk: no such setting; did you mean `rank`?"
        );
    }

    #[test]
    fn wrong_types_are_named_with_their_path_and_origin() {
        let error = sets(&["model.rank=many"]).unwrap_err().to_string();
        assert!(
            error.starts_with("--set model.rank=many: model.rank: invalid type: string"),
            "{error}"
        );
        let error = sets(&["layers.1.rank=-1"]).unwrap_err().to_string();
        assert!(
            error.starts_with("--set layers.1.rank=-1: layers[1].rank: invalid value"),
            "{error}"
        );
        let error = sets(&["seed=-1"]).unwrap_err().to_string();
        assert!(error.contains("seed: invalid value"), "{error}");
    }

    #[test]
    fn bad_assignments_are_refused() {
        for bad in ["rank", "=1", "model..rank=1", "layers.7.rank=1", "learning_rate.x=1"] {
            assert!(matches!(sets(&[bad]), Err(Error::Config { .. })), "{bad}");
        }
        let error = resolve::<Config>(Some(("smoke", "a = 1\nb = = 2")), &ConfigSource::default());
        assert!(error.unwrap_err().to_string().starts_with("recipe smoke: line 2: "));
        // Not TOML, hence a text; and one key only, whatever it holds.
        let (_, value) = parse_assignment("a=1\nb = 2").unwrap();
        assert_eq!(value, Value::String("1\nb = 2".into()));
    }
}
