//! A model as users have it on disk: a Hugging Face folder, one `.safetensors` or one `.gguf` file.

use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json};

use super::Weights;
use super::gguf::{Gguf, GgufModel};
use super::safetensors::{Checkpoint, SafeTensors};
use crate::error::{Error, Result};
use crate::mmap::Bytes;

/// The model description of a folder.
pub const CONFIG_FILE: &str = "config.json";

/// A model's tensors, description and where it came from; nothing is decoded yet.
pub struct ModelFiles {
    /// File or folder.
    pub path: PathBuf,
    /// `config.json`, or its equivalent from GGUF metadata; empty for a lone `.safetensors` file.
    pub config: Map<String, Json>,
    /// Tensors under Hugging Face names.
    pub weights: ModelWeights,
}

/// The two kinds of storage.
#[allow(clippy::large_enum_variant, reason = "one per model")]
pub enum ModelWeights {
    /// Safetensors, one or many files.
    SafeTensors(Checkpoint),
    /// One GGUF file.
    Gguf(GgufModel),
}

impl ModelWeights {
    /// The tensors, whatever their storage.
    pub fn as_weights(&self) -> &dyn Weights {
        match self {
            Self::SafeTensors(checkpoint) => checkpoint,
            Self::Gguf(model) => model,
        }
    }
}

impl fmt::Debug for ModelFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelFiles").field("path", &self.path).finish_non_exhaustive()
    }
}

impl ModelFiles {
    /// Opens a folder with `config.json` and safetensors, a folder with exactly one `.gguf`, or a
    /// `.gguf` or `.safetensors` file (whose folder may hold `config.json`).
    ///
    /// # Errors
    /// When nothing of that kind is there or a file is malformed.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if path.is_dir() {
            if !path.join(CONFIG_FILE).is_file()
                && let Some(file) = only_gguf(path)?
            {
                return Self::open(file);
            }
            return Ok(Self {
                path: path.to_path_buf(),
                config: read_config(&path.join(CONFIG_FILE))?,
                weights: ModelWeights::SafeTensors(Checkpoint::open(path)?),
            });
        }
        let bytes = Bytes::open(path)?;
        if bytes.starts_with(b"GGUF") {
            return Self::from_bytes(bytes, Map::new());
        }
        let beside = path.with_file_name(CONFIG_FILE);
        let config = if beside.is_file() { read_config(&beside)? } else { Map::new() };
        let weights = if path.extension().is_some_and(|e| e == "json") {
            Checkpoint::open(path)?
        } else {
            Checkpoint::single(path, SafeTensors::from_bytes(bytes)?)
        };
        Ok(Self { path: path.to_path_buf(), config, weights: ModelWeights::SafeTensors(weights) })
    }

    /// Opens a model held in memory, e.g. one embedded in the program. `config` is used for
    /// safetensors; GGUF describes itself.
    ///
    /// # Errors
    /// When the bytes are malformed.
    pub fn from_bytes(bytes: Bytes, config: Map<String, Json>) -> Result<Self> {
        let path = bytes.name().to_path_buf();
        if bytes.starts_with(b"GGUF") {
            let model = GgufModel::new(Gguf::from_bytes(bytes)?)?;
            let config = model.config().clone();
            return Ok(Self { path, config, weights: ModelWeights::Gguf(model) });
        }
        let checkpoint = Checkpoint::single(&path, SafeTensors::from_bytes(bytes)?);
        Ok(Self { path, config, weights: ModelWeights::SafeTensors(checkpoint) })
    }
}

/// Reads a JSON object.
///
/// # Errors
/// When the file cannot be read or is not a JSON object.
pub fn read_config(path: &Path) -> Result<Map<String, Json>> {
    let text = std::fs::read(path).map_err(|e| Error::io(path, "read", e))?;
    serde_json::from_slice(&text)
        .map_err(|e| Error::malformed(path, format!("is not a JSON object: {e}")))
}

fn only_gguf(folder: &Path) -> Result<Option<PathBuf>> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io(folder, "list", e))?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|p| p.extension().is_some_and(|e| e == "gguf"))
        .collect();
    match files.len() {
        0 | 1 => Ok(files.pop()),
        n => Err(Error::malformed(folder, format!("holds {n} .gguf files"))
            .remedy("name the file itself")),
    }
}
