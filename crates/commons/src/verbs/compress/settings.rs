//! Settings of a compression: the verb's own, and under `options` those of the method.

use commons_nn::model::DecoderConfig;
use commons_weights::heal::HealConfig;
use commons_weights::{AnyCompress, COMPRESSORS};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{CompressArgs, is_embedded};
use crate::cli::App;
use crate::config::{self, Layer, nearest};
use crate::error::{Failure, Result};
use crate::model::{EMBEDDED, Options};
use crate::text::{CORPUS, Division};
use crate::verbs::materialize::Format;

/// Section of the method's options.
const SECTION: &str = "options";

/// A rank is by default at most this fraction of the width, so that narrow models gain at all.
const WIDTHS_PER_RANK: usize = 9;

/// Checkpoints kept over a healing whose settings ask for none in between.
const CHECKPOINTS: usize = 10;

/// Settings of `compress`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CompressConfig {
    /// Model: a path or a name.
    pub model: String,
    /// Slug of the method.
    pub method: String,
    /// Text to calibrate and heal on.
    pub data: Option<String>,
    /// Text to measure on; `None` holds out the end of `data`.
    pub eval_data: Option<String>,
    /// Tokens to measure on.
    pub eval_tokens: usize,
    /// Tokens a measured prediction may look back on; `None` takes what suits the model.
    pub eval_context: Option<usize>,
    /// Tokens the method may look at.
    pub calibration_tokens: usize,
    /// Model whose predictions healing imitates; `None` is the original.
    pub teacher: Option<String>,
    /// Share only.
    pub no_heal: bool,
    /// Also measure the model strictly tied.
    pub baselines: bool,
    /// What to write.
    pub format: Format,
    /// Seed of every draw.
    pub seed: u64,
    /// Options of the method.
    pub options: Value,
}

/// Settings with what they name.
pub struct Resolved {
    /// The settings.
    pub config: CompressConfig,
    /// The method.
    pub compressor: &'static dyn AnyCompress,
    /// The healing part of the method's options.
    pub heal: HealConfig,
}

impl CompressConfig {
    fn defaults(compressor: &dyn AnyCompress, shape: Option<&DecoderConfig>) -> Result<Self> {
        let mut options = compressor.default_config()?;
        if let (Some(shape), Some(rank)) = (shape, options.get_mut("rank")) {
            let usual = rank.as_u64().unwrap_or(0) as usize;
            *rank = usual.min(floor_power_of_two(shape.hidden_size / WIDTHS_PER_RANK)).into();
        }
        Ok(Self {
            model: EMBEDDED.into(),
            method: compressor.slug().into(),
            data: None,
            eval_data: None,
            eval_tokens: 16_384,
            eval_context: None,
            calibration_tokens: 16_384,
            teacher: None,
            no_heal: false,
            baselines: false,
            format: Format::Hf,
            seed: 0,
            options,
        })
    }

    /// What tells one job from another: the settings, and a digest of the text.
    ///
    /// # Errors
    /// When it cannot be written as JSON.
    pub fn record(&self, division: &Division) -> Result<Value> {
        let mut record =
            serde_json::to_value(self).map_err(|e| Failure::failed(format!("settings: {e}")))?;
        record["verb"] = "compress".into();
        record["commons"] = env!("CARGO_PKG_VERSION").into();
        record["train_text"] = division.train.digest().into();
        record["test_text"] = division.test.digest().into();
        Ok(record)
    }
}

fn floor_power_of_two(n: usize) -> usize {
    if n == 0 { 1 } else { 1 << n.ilog2() }
}

/// The text to learn from.
///
/// # Errors
/// When none was given and the model has none of its own.
pub fn data(config: &CompressConfig) -> Result<&str> {
    match &config.data {
        Some(name) => Ok(name),
        None if is_embedded(&config.model) => Ok(CORPUS),
        None => Err(Failure::usage(
            "--data",
            format!("is missing: `{}` needs text to calibrate, heal and measure on", config.model),
        )
        .help("give a text file or a name, as in --data book.txt or --data shakespeare")),
    }
}

/// Methods that shape a model before it is trained, and the command that trains one.
const TRAINED: [(&str, &str); 2] = [
    ("widenet", "commons train --experts 4 --active-experts 2 --share-layers"),
    ("moge", "commons train --experts 16 --active-experts 4 --expert-groups 2"),
];

/// The method called `slug`.
///
/// # Errors
/// Naming the methods there are.
pub fn method(slug: &str) -> Result<&'static dyn AnyCompress> {
    let found = COMPRESSORS.iter().find(|c| c.slug() == slug);
    found.copied().ok_or_else(|| {
        if let Some((_, train)) = TRAINED.iter().find(|(trained, _)| *trained == slug) {
            let why = "shapes a model before it is trained; it does not convert a finished one";
            return Failure::usage(format!("--method {slug}"), why)
                .help(format!("train a new one:\n{train}"));
        }
        let known: Vec<String> = COMPRESSORS.iter().map(|c| c.slug().to_owned()).collect();
        let near = nearest(slug, &known);
        let help = if near.is_empty() {
            let lines: Vec<String> =
                COMPRESSORS.iter().map(|c| format!("{}: {}", c.slug(), c.summary())).collect();
            format!("methods that compress:\n{}", lines.join("\n"))
        } else {
            format!("did you mean {}?", near.join(" or "))
        };
        Failure::usage(format!("--method {slug}"), "is not a method that compresses").help(help)
    })
}

/// Short options and the options of methods they stand for.
fn shortcuts(args: &CompressArgs) -> [(&'static str, &'static str, Option<Value>); 18] {
    let m = &args.method_options;
    [
        ("--loops", "loops", m.loops.map(Into::into)),
        ("--rank", "rank", m.rank.map(Into::into)),
        ("--init", "init", m.init.clone().map(Into::into)),
        ("--lora-init", "lora_init", m.lora_init.clone().map(Into::into)),
        ("--remove", "remove", m.remove.map(Into::into)),
        ("--share-group", "groups.size", m.share_group.map(Into::into)),
        ("--kv-heads", "kv_heads", m.kv_heads.map(Into::into)),
        ("--compression", "compression", m.compression.map(Into::into)),
        ("--scheme", "scheme", m.scheme.clone().map(Into::into)),
        ("--ratio", "ratio", m.ratio.map(Into::into)),
        ("--streams", "streams", m.streams.map(Into::into)),
        ("--prefix-tokens", "prefix_tokens", m.prefix_tokens.map(Into::into)),
        ("--recursions", "mixture.recursions", m.recursions.map(Into::into)),
        ("--router", "mixture.router", m.router.clone().map(Into::into)),
        ("--steps", "heal.train.steps", m.steps.map(Into::into)),
        ("--lr", "heal.train.learning_rate", m.lr.map(Into::into)),
        ("--batch-size", "heal.train.batch_size", m.batch_size.map(Into::into)),
        ("--seq-len", "heal.train.seq_len", m.seq_len.map(Into::into)),
    ]
}

fn has(options: &Value, key: &str) -> bool {
    key.split('.').try_fold(options, |v, k| v.get(k)).is_some()
}

/// The option of `compressor` that `flag` stands for, or why there is none.
fn check_shortcut(
    flag: &str,
    key: &str,
    compressor: &dyn AnyCompress,
    options: &Value,
) -> Result<()> {
    if has(options, key) {
        return Ok(());
    }
    let mut others = Vec::new();
    for other in COMPRESSORS {
        if has(&other.default_config()?, key) {
            others.push(format!("--method {}", other.slug()));
        }
    }
    let own: Vec<&str> =
        options.as_object().map(|m| m.keys().map(String::as_str).collect()).unwrap_or_default();
    let elsewhere = if others.is_empty() {
        String::new()
    } else {
        format!("use it with {}; ", others.join(" or "))
    };
    Err(Failure::usage(flag, format!("`{}` has no such option", compressor.slug())).help(format!(
        "{elsewhere}options of {}: {}",
        compressor.slug(),
        own.join(", ")
    )))
}

/// Lays file, options and `--set` over the defaults of the method they name. Defaults that depend
/// on the model need its `shape`.
///
/// # Errors
/// Naming an unknown method or key, or an option the method does not have.
pub fn resolve(app: &App, args: &CompressArgs, shape: Option<&DecoderConfig>) -> Result<Resolved> {
    let m = &args.method_options;
    let mut options = Options::default()
        .put("model", args.model.clone())
        .put("method", args.method.clone())
        .put("data", args.text.data.clone())
        .put("eval_data", args.text.eval_data.clone())
        .put("eval_tokens", args.text.eval_tokens)
        .put("teacher", m.teacher.clone())
        .put("no_heal", m.no_heal.then_some(true))
        .put("baselines", args.text.baselines.then_some(true))
        .put("format", args.format)
        .put("seed", app.global.seed);
    for (_, key, value) in shortcuts(args) {
        options = options.put(&format!("{SECTION}.{key}"), value);
    }
    let layers = Layer::all(app.global.config.as_deref(), &options, &app.global.set)?;
    let slug = layers
        .iter()
        .rev()
        .find_map(|l| l.get("method"))
        .and_then(Value::as_str)
        .map(str::to_owned);
    let compressor = method(slug.as_deref().unwrap_or("relaxed-recursive"))?;
    let defaults = CompressConfig::defaults(compressor, shape)?;
    for (flag, key, value) in shortcuts(args) {
        if value.is_some() {
            check_shortcut(flag, key, compressor, &defaults.options)?;
        }
    }
    let tree =
        serde_json::to_value(&defaults).map_err(|e| Failure::failed(format!("defaults: {e}")))?;
    let layers: Vec<Layer> = layers.into_iter().map(|l| l.into_section(&tree, SECTION)).collect();
    let config: CompressConfig = config::read(&config::merge(tree, &layers)?)?;
    let mut heal = compressor.healing(&config.options)?;
    heal.train.seed ^= config.seed;
    if heal.train.save_steps == 0 {
        heal.train.save_steps = heal.train.steps.div_ceil(CHECKPOINTS).max(1);
    }
    Ok(Resolved { config, compressor, heal })
}
