//! Decoders from and to files: Hugging Face folders (with or without a plan) and GGUF.

use std::path::{Path, PathBuf};

use commons_core::fs::{AtomicFolder, write_json_atomic};
use commons_ops::{DType, Device, Tensor};
use rayon::prelude::*;
use serde_json::{Map, Value, json};

use super::{Decoder, DecoderConfig};
use crate::bank::{Bank, PLAN_KEY, SharingPlan};
use crate::format::folder::{ModelFiles, ModelWeights};
use crate::format::gguf::{self, GgmlType};
use crate::format::safetensors::{ShardOptions, TensorSpec, save_sharded};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// A decoder with its tokenizer and the description it came with.
pub struct Loaded {
    /// The model.
    pub model: Decoder,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Where it was read from.
    pub path: PathBuf,
}

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loaded")
            .field("path", &self.path)
            .field("config", &self.model.config)
            .finish_non_exhaustive()
    }
}

/// How a decoder is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SaveFormat {
    /// A Hugging Face folder that keeps the sharing plan, tensors in the given type.
    Shared(DType),
    /// A Hugging Face folder with every weight written out, as other libraries load it.
    HuggingFace(DType),
    /// One GGUF file with every weight written out.
    Gguf(GgmlType),
}

impl Loaded {
    /// Reads a Hugging Face folder, a `.gguf` file or a folder with one.
    ///
    /// # Errors
    /// When a file is missing, malformed or holds NaN, or the model is not a known decoder.
    pub fn open(path: &Path) -> Result<Self> {
        let files = ModelFiles::open(path)?;
        let tokenizer = match &files.weights {
            ModelWeights::Gguf(model) => Tokenizer::from_gguf(model.gguf())?,
            ModelWeights::SafeTensors(_) => {
                let folder =
                    if path.is_dir() { path } else { path.parent().unwrap_or(Path::new(".")) };
                Tokenizer::open(folder)?
            }
        };
        Self::new(files, tokenizer)
    }

    /// Joins opened files and a tokenizer.
    ///
    /// # Errors
    /// As [`Loaded::open`].
    pub fn new(files: ModelFiles, tokenizer: Tokenizer) -> Result<Self> {
        let config = DecoderConfig::from_json(&Value::Object(files.config.clone()))
            .map_err(|e| Error::malformed(&files.path, e.to_string()).item("config.json"))?;
        let bank = read_bank(&files)?;
        let model =
            Decoder::new(config, bank).map_err(|e| Error::malformed(&files.path, e.to_string()))?;
        if tokenizer.vocab_size() > model.config.vocab_size {
            return Err(Error::malformed(
                &files.path,
                format!(
                    "the tokenizer has {} tokens, the embedding {} rows",
                    tokenizer.vocab_size(),
                    model.config.vocab_size
                ),
            ));
        }
        Ok(Self { model, tokenizer, path: files.path })
    }

    /// Writes the model and its tokenizer to `path`, whole or not at all.
    ///
    /// # Errors
    /// When something of another kind is in the way or writing fails.
    pub fn save(&self, path: &Path, format: SaveFormat) -> Result<()> {
        if !matches!(format, SaveFormat::Shared(_)) {
            self.model.config.check_plain()?;
        }
        match format {
            SaveFormat::Shared(dtype) => self.save_folder(path, &self.model, dtype),
            SaveFormat::HuggingFace(dtype) => self.save_folder(path, &self.model.plain()?, dtype),
            SaveFormat::Gguf(kind) => {
                let plain = self.model.plain()?;
                let weights = plain
                    .bank
                    .stored_vars()
                    .map(|(n, v)| (n.to_owned(), v.as_detached_tensor()))
                    .collect();
                let weights: std::collections::BTreeMap<String, Tensor> = weights;
                gguf::export(
                    path,
                    &config_json(&plain)?,
                    &self.tokenizer.to_gguf()?,
                    &weights,
                    kind,
                )
            }
        }
    }

    /// Writes `model` with this tokenizer.
    fn save_folder(&self, path: &Path, model: &Decoder, dtype: DType) -> Result<()> {
        let bank = &model.bank;
        let folder = AtomicFolder::create(path)?;
        let out = folder.path();
        let mut config = config_json(model)?;
        config.insert("torch_dtype".into(), dtype_name(dtype)?.into());
        write_json_atomic(out.join("config.json"), &config)?;
        let c = &model.config;
        let mut generation = Map::new();
        for (key, id) in [("bos_token_id", c.bos_token_id), ("eos_token_id", c.eos_token_id)] {
            if let Some(id) = id {
                generation.insert(key.into(), json!(id));
            }
        }
        write_json_atomic(out.join("generation_config.json"), &generation)?;
        self.tokenizer.save(out)?;
        let specs: Vec<TensorSpec> = bank
            .stored_vars()
            .map(|(name, var)| TensorSpec {
                name: name.to_owned(),
                dtype,
                shape: var.dims().to_vec(),
            })
            .collect();
        save_sharded(out, &specs, &bank.metadata()?, ShardOptions::default(), |spec| {
            Ok(bank.stored_var(&spec.name)?.as_detached_tensor().to_dtype(dtype)?)
        })?;
        folder.commit_replacing()?;
        Ok(())
    }
}

fn config_json(model: &Decoder) -> Result<Map<String, Value>> {
    // A method may have shared something else since.
    let share_layers = model.shares_layers();
    match (DecoderConfig { share_layers, ..model.config.clone() }).to_json()? {
        Value::Object(map) => Ok(map),
        other => Err(Error::config("config", format!("{other} is not an object"))),
    }
}

fn dtype_name(dtype: DType) -> Result<&'static str> {
    match dtype {
        DType::F32 => Ok("float32"),
        DType::F16 => Ok("float16"),
        DType::BF16 => Ok("bfloat16"),
        other => Err(Error::config("dtype", format!("{other:?} is not f32, f16 or bf16"))),
    }
}

/// All tensors as f32, decoded in parallel, and the plan.
fn read_bank(files: &ModelFiles) -> Result<Bank> {
    let weights = files.weights.as_weights();
    let names = weights.names();
    let tensors: Vec<(String, Tensor)> = names
        .par_iter()
        .map(|name| {
            let tensor = weights.load(name, DType::F32)?;
            check_finite(&files.path, name, &tensor)?;
            Ok((name.clone(), tensor))
        })
        .collect::<Result<_>>()?;
    let mut bank = Bank::new(Device::Cpu);
    for (name, tensor) in tensors {
        bank.insert(name, tensor)?;
    }
    if let ModelWeights::SafeTensors(checkpoint) = &files.weights
        && let Some(json) = checkpoint.metadata().get(PLAN_KEY)
    {
        let plan = SharingPlan::from_json(json)
            .and_then(|plan| bank.set_plan(plan))
            .map_err(|e| Error::malformed(&files.path, e.to_string()).item(PLAN_KEY));
        plan?;
    }
    Ok(bank)
}

fn check_finite(file: &Path, name: &str, tensor: &Tensor) -> Result<()> {
    let values = tensor.flatten_all()?;
    let (storage, layout) = values.storage_and_layout();
    let commons_ops::Storage::Cpu(cpu) = &*storage else { return Ok(()) };
    let all = cpu.as_slice::<f32>()?;
    let all = &all[layout.start_offset()..layout.start_offset() + values.elem_count()];
    // Summing is enough to notice: infinities and NaN do not cancel.
    if all.chunks(4096).all(|c| c.iter().map(|v| v * 0.).sum::<f32>() == 0.) {
        return Ok(());
    }
    let at = all.iter().position(|v| !v.is_finite()).unwrap_or(0);
    Err(Error::malformed(file, format!("element {at} is {}", all[at]))
        .item(format!("tensor `{name}`"))
        .remedy("the checkpoint is damaged or its training diverged; use another"))
}
