//! Writing: sizes are planned first, so each tensor can be made, written and dropped in turn.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use serde_json::{Map, Value, json};

use super::shards::{INDEX_FILE, SINGLE_FILE, shard_name};
use crate::error::{Error, Result};
use crate::format::{atomic, convert};

/// A tensor that will be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name in the file.
    pub name: String,
    /// Element type in the file.
    pub dtype: DType,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// The spec of an existing tensor under `name`.
    pub fn of(name: impl Into<String>, tensor: &Tensor) -> Self {
        Self { name: name.into(), dtype: tensor.dtype(), shape: tensor.dims().to_vec() }
    }

    fn bytes(&self) -> Result<u64> {
        let elements = self.shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d as u64));
        elements.and_then(|n| n.checked_mul(self.dtype.size_in_bytes() as u64)).ok_or_else(|| {
            Error::invalid(format!("tensor `{}`", self.name), "is too large to store")
        })
    }
}

/// How a checkpoint is split into files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardOptions {
    /// No file holds more tensor bytes than this, except for a single tensor that is larger.
    pub max_bytes: u64,
}

impl Default for ShardOptions {
    /// Five gigabytes, as other tools split.
    fn default() -> Self {
        Self { max_bytes: 5_000_000_000 }
    }
}

/// Writes one file, asking `make` for one tensor at a time; the file appears whole or not at all.
///
/// Tensors are laid out by falling element size, then name, so that every one is aligned.
///
/// # Errors
/// A name given twice, a tensor from `make` that does not match its spec, or a refused file
/// operation.
pub fn write_file(
    path: &Path,
    specs: &[TensorSpec],
    metadata: &BTreeMap<String, String>,
    mut make: impl FnMut(&TensorSpec) -> Result<Tensor>,
) -> Result<()> {
    let mut order: Vec<&TensorSpec> = specs.iter().collect();
    order.sort_by(|a, b| {
        (b.dtype.size_in_bytes(), &a.name).cmp(&(a.dtype.size_in_bytes(), &b.name))
    });
    let header = header_json(&order, metadata)?;
    atomic::write_with(path, |out| {
        let failed = |e| Error::io(path, "write", e);
        out.write_all(&(header.len() as u64).to_le_bytes()).map_err(failed)?;
        out.write_all(header.as_bytes()).map_err(failed)?;
        for spec in order {
            let tensor = make(spec)?;
            if tensor.dims() != spec.shape || tensor.dtype() != spec.dtype {
                return Err(Error::invalid(
                    format!("tensor `{}`", spec.name),
                    format!(
                        "was announced as {:?} {:?} but is {:?} {:?}",
                        spec.dtype,
                        spec.shape,
                        tensor.dtype(),
                        tensor.dims()
                    ),
                ));
            }
            out.write_all(&convert::encode(&tensor)?).map_err(failed)?;
        }
        Ok(())
    })
}

/// Writes tensors that are all in memory to one file.
///
/// # Errors
/// As for [`write_file`].
pub fn save<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let tensors: BTreeMap<&str, &Tensor> = tensors.into_iter().collect();
    let specs: Vec<_> = tensors.iter().map(|(name, t)| TensorSpec::of(*name, t)).collect();
    write_file(path, &specs, metadata, |spec| {
        tensors
            .get(spec.name.as_str())
            .map(|t| (*t).clone())
            .ok_or_else(|| Error::invalid(&spec.name, "vanished while writing"))
    })
}

/// Writes a checkpoint folder: `model.safetensors`, or numbered shards with
/// `model.safetensors.index.json` when `options.max_bytes` demands it. Returns the files written.
///
/// Shards are filled in the order of `specs`. The index is written last, and files of an earlier
/// checkpoint that would contradict the new one are removed, so a reader finds the old checkpoint, a
/// clear error, or the new one.
///
/// # Errors
/// As for [`write_file`].
pub fn save_sharded(
    folder: &Path,
    specs: &[TensorSpec],
    metadata: &BTreeMap<String, String>,
    options: ShardOptions,
    mut make: impl FnMut(&TensorSpec) -> Result<Tensor>,
) -> Result<Vec<PathBuf>> {
    let (shards, total) = plan_shards(specs, options.max_bytes)?;
    if let [only] = shards.as_slice() {
        let path = folder.join(SINGLE_FILE);
        write_file(&path, only, metadata, make)?;
        remove(&folder.join(INDEX_FILE))?;
        return Ok(vec![path]);
    }
    let mut files = Vec::with_capacity(shards.len());
    let mut weight_map = Map::new();
    for (i, shard) in shards.iter().enumerate() {
        let name = shard_name(i + 1, shards.len());
        let path = folder.join(&name);
        write_file(&path, shard, metadata, &mut make)?;
        for spec in *shard {
            weight_map.insert(spec.name.clone(), Value::from(name.clone()));
        }
        files.push(path);
    }
    let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
    atomic::write(&folder.join(INDEX_FILE), format!("{index:#}\n").as_bytes())?;
    remove(&folder.join(SINGLE_FILE))?;
    Ok(files)
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path, "remove", e)),
        _ => Ok(()),
    }
}

fn plan_shards(specs: &[TensorSpec], max_bytes: u64) -> Result<(Vec<&[TensorSpec]>, u64)> {
    let (mut shards, mut begin, mut filled, mut total) = (Vec::new(), 0, 0u64, 0u64);
    for (i, spec) in specs.iter().enumerate() {
        let size = spec.bytes()?;
        if i > begin && filled.saturating_add(size) > max_bytes {
            shards.push(&specs[begin..i]);
            (begin, filled) = (i, 0);
        }
        filled = filled.saturating_add(size);
        total = total.saturating_add(size);
    }
    shards.push(&specs[begin..]);
    Ok((shards, total))
}

fn header_json(order: &[&TensorSpec], metadata: &BTreeMap<String, String>) -> Result<String> {
    let mut table = Map::new();
    if !metadata.is_empty() {
        table.insert("__metadata__".into(), json!(metadata));
    }
    let mut offset = 0u64;
    for spec in order {
        let end = offset.saturating_add(spec.bytes()?);
        let entry = json!({
            "dtype": convert::stored(spec.dtype)?,
            "shape": spec.shape,
            "data_offsets": [offset, end],
        });
        if spec.name == "__metadata__" || table.insert(spec.name.clone(), entry).is_some() {
            return Err(Error::invalid(
                format!("tensor `{}`", spec.name),
                "the name is reserved or given twice",
            ));
        }
        offset = end;
    }
    let mut header = Value::Object(table).to_string();
    // Spaces after the JSON align the data to eight bytes.
    let padded = header.len().next_multiple_of(8);
    header.extend(std::iter::repeat_n(' ', padded - header.len()));
    Ok(header)
}
