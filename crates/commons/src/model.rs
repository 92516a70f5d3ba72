//! Models for the verbs: finding, loading, describing and replacing them.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use commons_nn::generate::{SamplerConfig, generate};
use commons_nn::model::Decoder;
use commons_nn::tokenizer::chat::{self, Message};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};

pub use commons_nn::model::Loaded;

use crate::cli::App;
use crate::error::{Failure, Result};
use crate::verbs::generate::speed;

/// Name of the model inside the binary.
pub const EMBEDDED: &str = "tiny";

/// Longest time the speed of generation is measured.
const SPEED_TIME: Duration = Duration::from_secs(4);

/// Tokens generated to measure speed.
const SPEED_TOKENS: usize = 96;

/// Where models and data come from.
pub struct Sources<'a> {
    app: &'a App,
}

impl<'a> Sources<'a> {
    /// The sources this process may use.
    pub fn new(app: &'a App) -> Self {
        Self { app }
    }

    /// The path of the model `name`, fetched if it is a known name that is not in the cache.
    ///
    /// # Errors
    /// Naming every place that was tried.
    pub fn model(&self, name: &str) -> Result<PathBuf> {
        crate::verbs::pull::model(self.app, name)
    }

    /// The path of the data `name`.
    ///
    /// # Errors
    /// Naming every place that was tried.
    pub fn data(&self, name: &str) -> Result<PathBuf> {
        crate::verbs::pull::data(self.app, name)
    }
}

/// Loads a decoder by path or name.
///
/// # Errors
/// When it cannot be found, or is damaged, or is not a decoder.
pub fn load(app: &App, name: &str) -> Result<Loaded> {
    let task = app.progress.task("loading", 0);
    task.update(0, name);
    let path = Sources::new(app).model(name)?;
    Ok(Loaded::open(&path)?)
}

/// Tokens that end an answer.
pub fn stop_tokens(loaded: &Loaded) -> Vec<u32> {
    let special = loaded.tokenizer.special();
    loaded
        .model
        .config
        .eos_token_id
        .into_iter()
        .chain(special.eos)
        .chain(special.stop.iter().copied())
        .collect()
}

/// A chat with one message of the user, as the model was trained to see it.
///
/// # Errors
/// When the model has no chat template or it fails.
pub fn chat_prompt(loaded: &Loaded, system: Option<&str>, prompt: &str) -> Result<String> {
    let mut messages: Vec<Message> =
        system.map(|text| Message::new("system", text)).into_iter().collect();
    messages.push(Message::new("user", prompt));
    let options = chat::Options { add_generation_prompt: true, ..chat::Options::default() };
    Ok(loaded.tokenizer.render_chat(&messages, &options)?)
}

/// What a model costs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Parameters stored.
    pub stored: usize,
    /// Parameters of a plain checkpoint of the same function.
    pub logical: usize,
    /// Bytes of the stored parameters in f32.
    pub bytes: usize,
    /// Floating-point operations of the forward pass of one token, attention scores left out.
    pub flops_per_token: usize,
}

impl Cost {
    /// The cost of `model`.
    ///
    /// # Errors
    /// When the plan does not fit the bank.
    pub fn of(model: &Decoder) -> Result<Self> {
        let stored = model.bank.stored();
        Ok(Self {
            stored,
            logical: model.bank.logical()?,
            bytes: stored * size_of::<f32>(),
            flops_per_token: 2 * model.config.active_parameters(),
        })
    }
}

/// Tokens per second of greedy generation after a short prompt, weights written out.
///
/// # Errors
/// When the model cannot generate.
pub fn generation_speed(loaded: &Loaded, prompt: &[u32]) -> Result<f64> {
    let baked = loaded.model.baked()?;
    let began = Instant::now();
    let mut first = None;
    let new = generate(&baked, prompt, SPEED_TOKENS, &SamplerConfig::greedy(), &[], |_| {
        let seconds = began.elapsed();
        first.get_or_insert(seconds.as_secs_f64());
        seconds < SPEED_TIME
    })?;
    Ok(speed(new.len(), began.elapsed().as_secs_f64(), first))
}

/// Bytes of a file, or of the files of a folder.
///
/// # Errors
/// When it cannot be read.
pub fn size_on_disk(path: &Path) -> Result<u64> {
    let metadata = std::fs::metadata(path).map_err(commons_core::Error::io("read", path))?;
    if metadata.is_file() {
        return Ok(metadata.len());
    }
    let entries = std::fs::read_dir(path).map_err(commons_core::Error::io("list", path))?;
    let mut total = 0;
    for entry in entries {
        let entry = entry.map_err(commons_core::Error::io("list", path))?;
        total += size_on_disk(&entry.path())?;
    }
    Ok(total)
}

/// A file or folder that is to be written, whole or not at all.
#[derive(Debug)]
pub struct Target(PathBuf);

impl Target {
    /// Checks that `path` may be written: it is free, or `force` is given and what is there is of
    /// the kind that would be written.
    ///
    /// # Errors
    /// Saying what is in the way.
    pub fn free(path: &Path, folder: bool, force: bool) -> Result<Self> {
        let shown = path.display();
        if path.file_name().is_none() {
            return Err(Failure::usage(format!("--out {shown}"), "has no last name")
                .help("give the name of a new file or folder"));
        }
        let Ok(there) = path.symlink_metadata() else { return Ok(Self(path.to_owned())) };
        if !force {
            return Err(Failure::usage(shown, "exists already")
                .help("pass --force to replace it, or choose another --out"));
        }
        let is_model = if folder { path.join("config.json").is_file() } else { there.is_file() };
        if !is_model {
            let kind = if folder { "a model folder" } else { "a file" };
            return Err(Failure::usage(shown, format!("is not {kind} and will not be replaced"))
                .help("remove it yourself, or choose another --out"));
        }
        Ok(Self(path.to_owned()))
    }

    /// Writes it through `write`.
    ///
    /// # Errors
    /// Those of `write`.
    pub fn write(self, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        if let Some(parent) = self.0.parent().filter(|p| !p.as_os_str().is_empty()) {
            commons_core::fs::create_folder(parent)?;
        }
        write(&self.0)
    }
}

/// Options of a verb as dotted settings; those not given leave no trace.
#[derive(Debug, Clone, Default)]
pub struct Options(Map<String, Value>);

impl Options {
    /// Sets the dotted `key` if there is a value.
    pub fn put<T: Serialize>(mut self, key: &str, value: Option<T>) -> Self {
        let Some(value) = value.and_then(|v| serde_json::to_value(v).ok()) else { return self };
        let mut segments: Vec<&str> = key.split('.').collect();
        let Some(last) = segments.pop() else { return self };
        let mut map = &mut self.0;
        for segment in segments {
            let slot = map.entry(segment).or_insert_with(|| Value::Object(Map::new()));
            if !slot.is_object() {
                *slot = Value::Object(Map::new());
            }
            let Some(inner) = slot.as_object_mut() else { return self };
            map = inner;
        }
        map.insert(last.to_owned(), value);
        self
    }
}

impl Serialize for Options {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn options_nest_by_their_dots() {
        let options =
            Options::default().put("a.b.c", Some(1)).put("a.b.d", Some("x")).put("e", None::<u8>);
        assert_eq!(serde_json::to_value(options).unwrap(), json!({"a": {"b": {"c": 1, "d": "x"}}}));
    }

    #[test]
    fn only_a_model_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        assert!(Target::free(&path, true, false).is_ok());
        std::fs::create_dir(&path).unwrap();
        assert!(
            Target::free(&path, true, false).unwrap_err().to_string().contains("exists already")
        );
        assert!(
            Target::free(&path, true, true)
                .unwrap_err()
                .to_string()
                .contains("will not be replaced")
        );
        std::fs::write(path.join("config.json"), "{}").unwrap();
        assert!(Target::free(&path, true, true).is_ok());
        assert!(Target::free(&path, false, true).is_err());
    }
}
