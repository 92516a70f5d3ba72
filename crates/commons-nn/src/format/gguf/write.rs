//! Writing GGUF: plan all sizes, then encode and write one tensor at a time.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use candle_core::{DType, Tensor};
use serde_json::{Map, Value as Json};

use super::value::{put_string, put_value};
use super::{
    Architecture, Array, DEFAULT_ALIGNMENT, GgmlType, MAGIC, Value, metadata_from_config,
    permute_rows, quantize,
};
use crate::error::{Error, Result};
use crate::format::{Weights, atomic};

/// A tensor that will be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorPlan {
    /// Name in the file.
    pub name: String,
    /// Element type in the file: F32, F16, BF16 or Q8_0.
    pub kind: GgmlType,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
}

impl TensorPlan {
    fn bytes(&self) -> Result<usize> {
        let fault = |reason: &str| Error::invalid(format!("tensor `{}`", self.name), reason);
        let row = self.shape.last().copied().unwrap_or(0);
        if self.shape.is_empty()
            || self.shape.len() > 4
            || !row.is_multiple_of(self.kind.block_len())
        {
            return Err(fault("has a shape that its element type cannot hold"));
        }
        let elements = self.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        elements
            .and_then(|n| self.kind.bytes_of(n))
            .ok_or_else(|| fault("is too large to store"))
    }
}

/// Writes a version 3 file, asking `make` for the row-major weights of one tensor at a time.
///
/// # Errors
/// A name given twice, weights that do not match their plan, an element type that cannot be
/// written, or a refused file operation; the file appears whole or not at all.
pub fn write(
    path: &Path,
    metadata: &BTreeMap<String, Value>,
    plans: &[TensorPlan],
    mut make: impl FnMut(&TensorPlan) -> Result<Vec<f32>>,
) -> Result<()> {
    let head = header(metadata, plans)?;
    atomic::write_with(path, |out| {
        let failed = |e| Error::io(path, "write", e);
        let align = DEFAULT_ALIGNMENT as usize;
        out.write_all(&head).map_err(failed)?;
        for plan in plans {
            let values = make(plan)?;
            if values.len() != plan.shape.iter().product::<usize>() {
                return Err(Error::invalid(
                    format!("tensor `{}`", plan.name),
                    format!("has {} weights, not shape {:?}", values.len(), plan.shape),
                ));
            }
            let bytes = quantize(plan.kind, &values).map_err(|e| match e {
                Error::Invalid { reason, remedy, .. } => Error::Invalid {
                    subject: format!("tensor `{}`", plan.name),
                    reason,
                    remedy,
                },
                other => other,
            })?;
            out.write_all(&bytes).map_err(failed)?;
            let padding = bytes.len().next_multiple_of(align) - bytes.len();
            out.write_all(&vec![0; padding]).map_err(failed)?;
        }
        Ok(())
    })
}

/// Everything before the tensor data, padded to the alignment.
fn header(metadata: &BTreeMap<String, Value>, plans: &[TensorPlan]) -> Result<Vec<u8>> {
    let mut out = MAGIC.to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((plans.len() as u64).to_le_bytes());
    let keys = metadata
        .iter()
        .filter(|(key, _)| *key != "general.alignment");
    out.extend((keys.clone().count() as u64).to_le_bytes());
    for (key, value) in keys {
        put_string(&mut out, key);
        put_value(&mut out, value);
    }
    let align = DEFAULT_ALIGNMENT as usize;
    let mut offset = 0usize;
    let mut seen = std::collections::HashSet::new();
    for plan in plans {
        if !seen.insert(&plan.name) {
            return Err(Error::invalid(
                format!("tensor `{}`", plan.name),
                "is given twice",
            ));
        }
        put_string(&mut out, &plan.name);
        out.extend((plan.shape.len() as u32).to_le_bytes());
        for &dim in plan.shape.iter().rev() {
            out.extend((dim as u64).to_le_bytes());
        }
        out.extend(plan.kind.id().to_le_bytes());
        out.extend((offset as u64).to_le_bytes());
        offset = offset.saturating_add(plan.bytes()?.next_multiple_of(align));
    }
    out.resize(out.len().next_multiple_of(align), 0);
    Ok(out)
}

/// Exports a decoder as a GGUF file that llama.cpp loads.
///
/// `config` is the Hugging Face `config.json`, `tokenizer` the `tokenizer.*` metadata (see
/// [`crate::tokenizer::Tokenizer::to_gguf`]), `kind` the type of the matrices: vectors stay F32, and
/// matrices whose rows are not whole blocks fall back to F16. An `lm_head` equal to the embedding by
/// `tie_word_embeddings` is left out.
///
/// # Errors
/// When the architecture is not supported, a tensor has no GGUF name, or writing fails.
pub fn export(
    path: &Path,
    config: &Map<String, Json>,
    tokenizer: &BTreeMap<String, Value>,
    weights: &dyn Weights,
    kind: GgmlType,
) -> Result<()> {
    let mut metadata = metadata_from_config(config)?;
    let architecture = Architecture::parse(
        config
            .get("model_type")
            .and_then(Json::as_str)
            .unwrap_or_default(),
    )?;
    metadata.extend(tokenizer.clone());
    let rows = config.get("vocab_size").and_then(Json::as_u64).unwrap_or(0) as usize;
    pad_vocabulary(&mut metadata, rows)?;
    metadata.insert("general.quantization_version".into(), Value::U32(2));
    metadata.insert("general.file_type".into(), Value::U32(file_type(kind)?));
    let tied = config
        .get("tie_word_embeddings")
        .and_then(Json::as_bool)
        .unwrap_or(false);
    let mut plans = Vec::new();
    let mut sources = BTreeMap::new();
    for name in weights.names() {
        if tied && name == "lm_head.weight" {
            continue;
        }
        let gguf_name = architecture.to_gguf(&name).ok_or_else(|| {
            Error::invalid(format!("tensor `{name}`"), "has no place in a GGUF file")
                .remedy("materialise shared and adapted weights first, or write a folder instead")
        })?;
        let shape = weights.shape(&name)?;
        let row = shape.last().copied().unwrap_or(0);
        let kind = match kind {
            _ if shape.len() < 2 => GgmlType::F32,
            kind if row.is_multiple_of(kind.block_len()) => kind,
            _ => GgmlType::F16,
        };
        plans.push(TensorPlan {
            name: gguf_name.clone(),
            kind,
            shape,
        });
        sources.insert(gguf_name, name);
    }
    let head_count = |key: &str| config.get(key).and_then(Json::as_u64).map(|n| n as usize);
    let heads = head_count("num_attention_heads").unwrap_or(0);
    let kv_heads = head_count("num_key_value_heads").unwrap_or(heads);
    write(path, &metadata, &plans, |plan| {
        let source = &sources[&plan.name];
        let mut values = flat(&weights.load(source, DType::F32)?)?;
        if architecture.permutes(source) {
            let heads = if source.contains(".q_proj.") {
                heads
            } else {
                kv_heads
            };
            values = permute_rows(&values, plan.shape[0], heads)?;
        }
        let offset = architecture.offset(source);
        if offset != 0.0 {
            values.iter_mut().for_each(|v| *v += offset);
        }
        Ok(values)
    })
}

/// llama.cpp wants one token per embedding row: rows beyond the vocabulary become unused tokens.
fn pad_vocabulary(metadata: &mut BTreeMap<String, Value>, rows: usize) -> Result<()> {
    const UNUSED: i32 = 5;
    let tokens = match metadata.get_mut("tokenizer.ggml.tokens") {
        Some(Value::Array(Array::String(tokens))) => tokens,
        _ => return Ok(()),
    };
    let count = tokens.len();
    if count > rows {
        return Err(Error::invalid(
            "tokenizer",
            format!("has {count} tokens but the model has only {rows} rows"),
        ));
    }
    tokens.extend((count..rows).map(|id| format!("[PAD{id}]")));
    if let Some(Value::Array(Array::I32(kinds))) = metadata.get_mut("tokenizer.ggml.token_type") {
        kinds.resize(rows, UNUSED);
    }
    if let Some(Value::Array(Array::F32(scores))) = metadata.get_mut("tokenizer.ggml.scores") {
        scores.resize(rows, 0.0);
    }
    Ok(())
}

fn flat(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.flatten_all()?.to_vec1()?)
}

/// llama.cpp's number for "mostly" this type.
fn file_type(kind: GgmlType) -> Result<u32> {
    match kind {
        GgmlType::F32 => Ok(0),
        GgmlType::F16 => Ok(1),
        GgmlType::Q8_0 => Ok(7),
        GgmlType::BF16 => Ok(32),
        other => Err(Error::invalid(other.name(), "cannot be written")
            .remedy("choose F32, F16, BF16 or Q8_0")),
    }
}
