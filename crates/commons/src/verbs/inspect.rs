//! `inspect`: what a checkpoint holds and how its weights are shared.

mod sharing;

use std::collections::BTreeMap;
use std::path::Path;

use clap::Args;
use commons_nn::bank::{PART, PLAN_KEY, SharingPlan};
use commons_nn::format::folder::CONFIG_FILE;
use commons_nn::format::gguf::Gguf;
use commons_nn::format::safetensors::{Checkpoint, Dtype};
use commons_nn::model::{DecoderConfig, EXPERTS_KEY, GROUPS_KEY, RECURSION_KEY, SHARE_LAYERS_KEY};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::cli::{App, Done};
use crate::error::{During, Result};
use crate::examples;
use crate::model::Sources;
use crate::output::Grid;
use commons_core::format::{bytes, grouped};

pub use sharing::{Line, describe, query_groups};

pub const EXAMPLES: &str = examples![
    "$ commons inspect ./out",
    "$ commons inspect smollm2-135m --tensors",
    "$ commons inspect model.gguf --json",
    "$ commons inspect ./adapter",
];

/// Name of the file that makes a folder a PEFT adapter.
const ADAPTER_CONFIG: &str = "adapter_config.json";

/// Options of `inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Checkpoint: a .safetensors or .gguf file, a Hugging Face or PEFT folder, or a name
    #[arg(value_name = "FILE|FOLDER|NAME")]
    pub checkpoint: String,
    /// List every stored tensor
    #[arg(long)]
    pub tensors: bool,
}

/// A stored tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Tensor {
    name: String,
    dtype: String,
    shape: Vec<usize>,
    bytes: u64,
}

impl Tensor {
    fn parameters(&self) -> u64 {
        self.shape.iter().map(|&d| d as u64).product()
    }
}

/// What a checkpoint holds.
#[derive(Debug, Serialize)]
struct Inspection {
    path: String,
    kind: &'static str,
    architecture: BTreeMap<&'static str, Value>,
    /// Parameters per element type.
    dtypes: BTreeMap<String, u64>,
    stored: Count,
    /// As a plain checkpoint would hold it, in the mean bytes per parameter of this one.
    logical: Count,
    /// Parameters that a token multiplies, where it passes some of the experts only.
    #[serde(skip_serializing_if = "Option::is_none")]
    active: Option<u64>,
    sharing: Vec<Line>,
    #[serde(skip_serializing_if = "Option::is_none")]
    adapter: Option<Map<String, Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tensors: Option<Vec<Tensor>>,
    #[serde(skip)]
    count: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
struct Count {
    parameters: u64,
    bytes: u64,
}

/// Shows a checkpoint.
///
/// # Errors
/// When it cannot be found or is malformed.
pub fn run(app: &App, args: &InspectArgs) -> Result<Done> {
    app.no_settings("inspect")?;
    let path = Sources::new(app).model(&args.checkpoint)?;
    let mut inspection = inspect(&path)?;
    if !args.tensors {
        inspection.tensors = None;
    }
    if app.out.json {
        app.out.json(&inspection)?;
    } else {
        show(app, &inspection)?;
    }
    Ok(Done::Well)
}

fn inspect(path: &Path) -> Result<Inspection> {
    let gguf = gguf_of(path)?;
    match gguf {
        Some(gguf) => inspect_gguf(path, &gguf),
        None => inspect_safetensors(path),
    }
}

/// The GGUF file that `path` is, or that stands alone in the folder `path`.
fn gguf_of(path: &Path) -> Result<Option<Gguf>> {
    let is_gguf = |p: &Path| p.extension().is_some_and(|e| e == "gguf");
    if path.is_file() {
        return is_gguf(path).then(|| Ok(Gguf::open(path)?)).transpose();
    }
    if path.join(CONFIG_FILE).is_file() || path.join(ADAPTER_CONFIG).is_file() {
        return Ok(None);
    }
    let entries = std::fs::read_dir(path).map_err(commons_core::Error::io("list", path))?;
    let files: Vec<_> =
        entries.filter_map(|e| Some(e.ok()?.path())).filter(|p| is_gguf(p)).collect();
    match files.as_slice() {
        [only] => Ok(Some(Gguf::open(only)?)),
        _ => Ok(None),
    }
}

fn inspect_gguf(path: &Path, gguf: &Gguf) -> Result<Inspection> {
    let tensors: Vec<Tensor> = gguf
        .tensors()
        .iter()
        .map(|(name, info)| Tensor {
            name: name.clone(),
            dtype: info.kind.name().to_owned(),
            shape: info.shape.clone(),
            bytes: (info.end - info.start) as u64,
        })
        .collect();
    let mut architecture = BTreeMap::new();
    if let Ok(config) = commons_nn::format::gguf::config_from_metadata(gguf) {
        architecture = outline(&config);
    } else if let Ok(name) = gguf.value("general.architecture") {
        architecture.insert("model_type", name.as_str().unwrap_or("unknown").into());
    }
    Ok(Inspection::new(path, "GGUF file", architecture, tensors, &SharingPlan::default(), None))
}

fn inspect_safetensors(path: &Path) -> Result<Inspection> {
    let adapter_path = path.join(ADAPTER_CONFIG);
    let adapter = adapter_path.is_file().then(|| read_object(&adapter_path)).transpose()?;
    let checkpoint = Checkpoint::open(path)?;
    let tensors: Vec<Tensor> = checkpoint
        .tensors()
        .map(|t| Tensor {
            name: t.name().to_owned(),
            dtype: dtype_name(t.dtype()),
            shape: t.shape().to_vec(),
            bytes: t.bytes().len() as u64,
        })
        .collect();
    let plan = match checkpoint.metadata().get(PLAN_KEY) {
        Some(json) => {
            SharingPlan::from_json(json).during(|| format!("{}: {PLAN_KEY}", path.display()))?
        }
        None => SharingPlan::default(),
    };
    let beside =
        if path.is_dir() { path.join(CONFIG_FILE) } else { path.with_file_name(CONFIG_FILE) };
    let config = beside.is_file().then(|| read_object(&beside)).transpose()?;
    let architecture = config.as_ref().map(outline).unwrap_or_default();
    let kind = match (&adapter, path.is_dir()) {
        (Some(_), _) => "PEFT adapter folder",
        (None, true) => "Hugging Face folder",
        (None, false) => "safetensors file",
    };
    let mut inspection = Inspection::new(path, kind, architecture, tensors, &plan, adapter);
    if let Some(config) = config.filter(|c| c.get(EXPERTS_KEY).is_some_and(|v| !v.is_null())) {
        let config = DecoderConfig::from_json(&Value::Object(config))
            .during(|| beside.display().to_string())?;
        inspection.active = Some(config.active_parameters() as u64);
        inspection.sharing.extend(sharing::experts(&config));
    }
    Ok(inspection)
}

fn read_object(path: &Path) -> Result<Map<String, Value>> {
    Ok(commons_nn::format::folder::read_config(path)?)
}

fn dtype_name(dtype: Dtype) -> String {
    format!("{dtype:?}")
}

/// The fields of a `config.json` that say what a model looks like, where it has them.
fn outline(config: &Map<String, Value>) -> BTreeMap<&'static str, Value> {
    const FIELDS: [&str; 12] = [
        "model_type",
        "num_hidden_layers",
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        GROUPS_KEY,
        RECURSION_KEY,
        EXPERTS_KEY,
        SHARE_LAYERS_KEY,
        "vocab_size",
        "max_position_embeddings",
    ];
    FIELDS
        .iter()
        .filter_map(|&f| Some((f, config.get(f).filter(|v| !v.is_null())?.clone())))
        .collect()
}

impl Inspection {
    fn new(
        path: &Path,
        kind: &'static str,
        architecture: BTreeMap<&'static str, Value>,
        tensors: Vec<Tensor>,
        plan: &SharingPlan,
        adapter: Option<Map<String, Value>>,
    ) -> Self {
        let mut dtypes = BTreeMap::new();
        for t in &tensors {
            *dtypes.entry(t.dtype.clone()).or_default() += t.parameters();
        }
        let stored = Count {
            parameters: tensors.iter().map(Tensor::parameters).sum(),
            bytes: tensors.iter().map(|t| t.bytes).sum(),
        };
        let parameters = logical_parameters(&tensors, plan);
        let per_parameter = stored.bytes as f64 / stored.parameters.max(1) as f64;
        let logical =
            Count { parameters, bytes: (parameters as f64 * per_parameter).round() as u64 };
        let shapes = tensors.iter().map(|t| (t.name.as_str(), t.shape.as_slice())).collect();
        let groups: Option<Vec<Vec<usize>>> =
            architecture.get(GROUPS_KEY).and_then(|v| serde_json::from_value(v.clone()).ok());
        let mut sharing = describe(plan, &shapes);
        sharing.extend(groups.and_then(|rows| query_groups(&rows)));
        let routed = architecture.get(RECURSION_KEY).cloned();
        sharing.extend(routed.and_then(|v| sharing::routed(serde_json::from_value(v).ok()?)));
        Self {
            path: path.display().to_string(),
            kind,
            architecture,
            dtypes,
            stored,
            logical,
            active: None,
            sharing,
            adapter,
            count: tensors.len(),
            tensors: Some(tensors),
        }
    }
}

/// Parameters of the weights as a plain checkpoint holds them; see
/// [`Bank::logical`](commons_nn::bank::Bank::logical), which needs the tensors themselves.
fn logical_parameters(tensors: &[Tensor], plan: &SharingPlan) -> u64 {
    let size: BTreeMap<&str, u64> =
        tensors.iter().map(|t| (t.name.as_str(), t.parameters())).collect();
    let own =
        tensors.iter().filter(|t| !t.name.starts_with(PART)).map(Tensor::parameters).sum::<u64>();
    let made: u64 = plan
        .iter()
        .filter(|(name, _)| !size.contains_key(name))
        .filter(|(name, entry)| !sharing::is_tied_head(name, entry))
        .map(|(_, entry)| sharing::elements(entry, &size))
        .sum();
    own + made
}

fn show(app: &App, i: &Inspection) -> Result<()> {
    let mut grid = Grid::new(&["", ""]);
    grid.row(["path", &i.path]);
    grid.row(["kind", i.kind]);
    let field = |key: &str| {
        i.architecture.get(key).map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned))
    };
    if let Some(model_type) = field("model_type") {
        grid.row(["architecture", &model_type]);
    }
    let shape: Vec<String> = [
        ("num_hidden_layers", "layers"),
        ("hidden_size", "wide"),
        ("intermediate_size", "feed-forward"),
        ("num_attention_heads", "heads"),
        ("num_key_value_heads", "key-value heads"),
        ("vocab_size", "tokens in the vocabulary"),
        ("max_position_embeddings", "tokens of context"),
    ]
    .iter()
    .filter_map(|(key, noun)| Some(format!("{} {noun}", field(key)?)))
    .collect();
    if !shape.is_empty() {
        grid.row(["shape", &shape.join(", ")]);
    }
    if let Some(adapter) = &i.adapter {
        for key in ["peft_type", "r", "lora_alpha", "target_modules", "base_model_name_or_path"] {
            if let Some(value) = adapter.get(key).filter(|v| !v.is_null()) {
                grid.row([key.to_owned(), plain(value)]);
            }
        }
    }
    let share = |n: &u64| 100. * *n as f64 / i.stored.parameters.max(1) as f64;
    let dtypes: Vec<String> = match i.dtypes.len() {
        1 => i.dtypes.keys().cloned().collect(),
        _ => i.dtypes.iter().map(|(d, n)| format!("{d} {:.1} %", share(n))).collect(),
    };
    grid.row(["dtype", &dtypes.join(", ")]);
    grid.row(["tensors", &grouped(i.count as i64)]);
    let count =
        |c: Count| format!("{} parameters, {}", grouped(c.parameters as i64), bytes(c.bytes));
    grid.row(["stored", &count(i.stored)]);
    let ratio = i.stored.parameters as f64 / i.logical.parameters.max(1) as f64;
    let saved = if i.sharing.is_empty() {
        String::new()
    } else {
        format!(" ({:.1} % of it stored)", 100. * ratio)
    };
    grid.row(["logical", &format!("{}{saved}", count(i.logical))]);
    if let Some(active) = i.active {
        grid.row(["active", &format!("{} parameters multiply a token", grouped(active as i64))]);
    }
    app.out.grid(&grid)?;
    show_sharing(app, &i.sharing)?;
    show_tensors(app, i.tensors.as_deref())
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

/// The lines of a sharing plan as a table; also shown by `compress`.
///
/// # Errors
/// When standard output cannot be written.
pub fn show_sharing(app: &App, lines: &[Line]) -> Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    app.out.text("")?;
    let mut grid = Grid::new(&["sharing", ">weights", "which", "how"]);
    for line in lines {
        grid.row([
            line.kind.to_owned(),
            grouped(line.weights as i64),
            line.which.clone(),
            line.how.clone(),
        ]);
    }
    app.out.grid(&grid)
}

fn show_tensors(app: &App, tensors: Option<&[Tensor]>) -> Result<()> {
    let Some(tensors) = tensors else { return Ok(()) };
    app.out.text("")?;
    let mut grid = Grid::new(&["tensor", "dtype", ">shape", ">bytes"]);
    for t in tensors {
        let shape: Vec<String> = t.shape.iter().map(ToString::to_string).collect();
        grid.row([t.name.clone(), t.dtype.clone(), shape.join(" × "), grouped(t.bytes as i64)]);
    }
    app.out.grid(&grid)
}
