//! GGUF, the single-file format of llama.cpp: metadata, tokenizer and (quantised) tensors.
//!
//! Versions 2 and 3, little-endian. Every length in a file is checked against what the file can
//! hold before anything is allocated for it. Tensor shapes are given outermost dimension first, the
//! reverse of the order in the file.

mod blocks;
mod config;
mod model;
mod names;
#[cfg(test)]
mod tests;
mod value;
mod write;

use std::collections::BTreeMap;
use std::path::Path;

pub use blocks::{GgmlType, dequantize, quantize};
use candle_core::{DType, Device, Tensor};
pub use config::{config_from_metadata, metadata_from_config};
pub use model::GgufModel;
pub use names::{Architecture, permute_rows, unpermute_rows};
use value::Cursor;
pub use value::{Array, Value};
pub use write::{TensorPlan, export, write};

use super::convert;
use crate::error::{Error, Place, Result};
use crate::mmap::Bytes;

/// First four bytes of every file.
const MAGIC: &[u8; 4] = b"GGUF";
/// Alignment of tensor data unless `general.alignment` says otherwise.
const DEFAULT_ALIGNMENT: u64 = 32;
/// ggml's limit on dimensions of a tensor.
const MAX_DIMS: u32 = 4;

/// Where and how one tensor is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Element type.
    pub kind: GgmlType,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// First byte in the file.
    pub start: usize,
    /// One past the last byte in the file.
    pub end: usize,
}

impl TensorInfo {
    /// Number of weights.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// An open file: metadata decoded, tensors untouched until asked for.
#[derive(Debug, Clone)]
pub struct Gguf {
    bytes: Bytes,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, TensorInfo>,
}

impl Gguf {
    /// Maps and checks the file at `path`.
    ///
    /// # Errors
    /// Names key or tensor and byte offset when the file is malformed, cut short, of another
    /// version or byte order, or holds an element type that cannot be decoded.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::from_bytes(Bytes::open(path)?)
    }

    /// Checks a file that is already mapped or in memory.
    ///
    /// # Errors
    /// As for [`Gguf::open`].
    pub fn from_bytes(bytes: Bytes) -> Result<Self> {
        let mut cursor = Cursor { file: bytes.name(), bytes: &bytes, at: 0 };
        check_version(&mut cursor)?;
        // A tensor needs at least 8 + 4 + 4 + 8 bytes, a key with its value at least 8 + 4 + 1.
        let tensor_count = cursor.count("tensors", 24)?;
        let key_count = cursor.count("metadata keys", 13)?;
        let metadata = read_metadata(&mut cursor, key_count)?;
        let alignment = alignment(&cursor, &metadata)?;
        let tensors = read_tensors(&mut cursor, tensor_count, alignment)?;
        Ok(Self { metadata, tensors, bytes })
    }

    /// The file's path or buffer name.
    pub fn file(&self) -> &Path {
        self.bytes.name()
    }

    /// All metadata.
    pub fn metadata(&self) -> &BTreeMap<String, Value> {
        &self.metadata
    }

    /// All tensors by name.
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// The metadata value `key`.
    ///
    /// # Errors
    /// When the file lacks it.
    pub fn value(&self, key: &str) -> Result<&Value> {
        self.metadata.get(key).ok_or_else(|| {
            Error::malformed(self.file(), "is missing")
                .item(format!("metadata key `{key}`"))
                .remedy("the file was not written as a language model; convert it again")
        })
    }

    /// The error of a metadata value that has the wrong type or makes no sense.
    pub(crate) fn bad_value(&self, key: &str, reason: impl Into<String>) -> Error {
        Error::malformed(self.file(), reason).item(format!("metadata key `{key}`"))
    }

    /// Where and how tensor `name` is stored.
    ///
    /// # Errors
    /// When the file has no such tensor.
    pub fn info(&self, name: &str) -> Result<&TensorInfo> {
        self.tensors.get(name).ok_or_else(|| {
            Error::malformed(self.file(), "is not in the file")
                .item(format!("tensor `{name}`"))
                .remedy("list the names the file has with `inspect`")
        })
    }

    /// The stored bytes of tensor `name`.
    ///
    /// # Errors
    /// When the file has no such tensor.
    pub fn raw(&self, name: &str) -> Result<&[u8]> {
        let info = self.info(name)?;
        Ok(&self.bytes[info.start..info.end])
    }

    /// Decodes tensor `name` to row-major weights.
    ///
    /// # Errors
    /// When the file has no such tensor.
    pub fn weights(&self, name: &str) -> Result<Vec<f32>> {
        let info = self.info(name)?;
        let mut out = vec![0f32; info.elements()];
        dequantize(info.kind, &self.bytes[info.start..info.end], &mut out)?;
        Ok(out)
    }

    /// Decodes tensor `name` under its own name and row order to a CPU tensor of type `dtype`.
    ///
    /// # Errors
    /// When the file has no such tensor, or the engine fails.
    pub fn tensor(&self, name: &str, dtype: DType) -> Result<Tensor> {
        let shape = self.info(name)?.shape.as_slice();
        Ok(Tensor::from_vec(self.weights(name)?, shape, &Device::Cpu)?.to_dtype(dtype)?)
    }

    /// Scans every tensor for NaN and infinity.
    ///
    /// # Errors
    /// Names the tensor, the flat index of the first bad weight and the offset of its block.
    pub fn check_finite(&self) -> Result<()> {
        for (name, info) in &self.tensors {
            let weights = self.weights(name)?;
            if let Some((index, value)) = convert::first_not_finite(&weights) {
                let offset = info.start + index / info.kind.block_len() * info.kind.block_bytes();
                return Err(Error::malformed(
                    self.file(),
                    format!("weight {index} of shape {:?} is {value}", info.shape),
                )
                .item(format!("tensor `{name}`"))
                .at(Place::Byte(offset as u64))
                .remedy("the weights diverged or the file is damaged"));
            }
        }
        Ok(())
    }
}

fn check_version(cursor: &mut Cursor<'_>) -> Result<()> {
    if cursor.bytes.get(..4) != Some(MAGIC) {
        return Err(cursor
            .fault("does not begin with the GGUF magic")
            .remedy("this is not a GGUF file, or it is cut short"));
    }
    cursor.at = 4;
    let version = cursor.u32()?;
    match version {
        2 | 3 => Ok(()),
        1 => Err(cursor
            .fault("is GGUF version 1, which is not supported")
            .remedy("convert the model again with a current converter")),
        _ if matches!(version.swap_bytes(), 1..=3) => Err(cursor
            .fault("is big-endian, which is not supported")
            .remedy("convert the model again for little-endian machines")),
        _ => Err(cursor.fault(format!("has the unknown GGUF version {version}"))),
    }
}

fn read_metadata(cursor: &mut Cursor<'_>, count: usize) -> Result<BTreeMap<String, Value>> {
    let mut metadata = BTreeMap::new();
    for _ in 0..count {
        let key = cursor.string()?;
        let value = cursor.value().map_err(|e| e.item(format!("metadata key `{key}`")))?;
        if metadata.contains_key(&key) {
            return Err(cursor.fault("is given twice").item(format!("metadata key `{key}`")));
        }
        metadata.insert(key, value);
    }
    Ok(metadata)
}

fn alignment(cursor: &Cursor<'_>, metadata: &BTreeMap<String, Value>) -> Result<u64> {
    let Some(value) = metadata.get("general.alignment") else {
        return Ok(DEFAULT_ALIGNMENT);
    };
    match value.as_u64() {
        Some(n) if n.is_power_of_two() && (8..=1 << 20).contains(&n) => Ok(n),
        _ => Err(cursor
            .fault(format!("is {value:?}, not a power of two from 8 to 1048576"))
            .item("metadata key `general.alignment`")),
    }
}

fn read_tensors(
    cursor: &mut Cursor<'_>,
    count: usize,
    alignment: u64,
) -> Result<BTreeMap<String, TensorInfo>> {
    let mut pending = Vec::with_capacity(count);
    for _ in 0..count {
        let name = cursor.string()?;
        let entry =
            read_tensor(cursor, alignment).map_err(|e| e.item(format!("tensor `{name}`")))?;
        pending.push((name, entry));
    }
    let data_start = (cursor.at as u64).next_multiple_of(alignment);
    let mut tensors = BTreeMap::new();
    for (name, (kind, shape, offset, size, at)) in pending {
        let start = data_start.saturating_add(offset);
        let end = start.saturating_add(size as u64);
        let fault = |reason: String| {
            Error::malformed(cursor.file, reason)
                .item(format!("tensor `{name}`"))
                .at(Place::Byte(at as u64))
        };
        if end > cursor.bytes.len() as u64 {
            return Err(fault(format!(
                "its data ends at byte {end}, past the file's {} bytes",
                cursor.bytes.len()
            ))
            .remedy("fetch the file again: it is cut short"));
        }
        if tensors.contains_key(&name) {
            return Err(fault("is given twice".into()));
        }
        let info = TensorInfo { kind, shape, start: start as usize, end: end as usize };
        tensors.insert(name, info);
    }
    check_overlap(cursor.file, &tensors)?;
    Ok(tensors)
}

type RawTensor = (GgmlType, Vec<usize>, u64, usize, usize);

/// Reads one entry of the tensor table: type, shape, offset, size and the entry's own position.
fn read_tensor(cursor: &mut Cursor<'_>, alignment: u64) -> Result<RawTensor> {
    let at = cursor.at;
    let dims = cursor.u32()?;
    if dims == 0 || dims > MAX_DIMS {
        return Err(cursor.fault(format!("has {dims} dimensions, not 1 to {MAX_DIMS}")));
    }
    let mut shape = Vec::with_capacity(dims as usize);
    let mut elements = 1usize;
    for _ in 0..dims {
        let dim = cursor.u64()?;
        // Zero would hide an overflow of the others.
        let size = usize::try_from(dim).ok().filter(|&size| size > 0);
        let product = size.and_then(|size| elements.checked_mul(size));
        elements =
            product.ok_or_else(|| cursor.fault(format!("has the impossible dimension {dim}")))?;
        shape.push(dim as usize);
    }
    let id = cursor.u32()?;
    let kind = GgmlType::from_id(id).ok_or_else(|| {
        cursor
            .fault(format!("has the element type {id}, which cannot be decoded"))
            .remedy("use a file quantised as Q8_0, Q4_K_M, Q5_K_M or Q6_K, or unquantised")
    })?;
    let row = shape[0];
    if !row.is_multiple_of(kind.block_len()) {
        return Err(cursor.fault(format!(
            "has rows of {row}, not whole {} blocks of {}",
            kind.name(),
            kind.block_len()
        )));
    }
    let size =
        kind.bytes_of(elements).filter(|&size| size <= cursor.bytes.len()).ok_or_else(|| {
            cursor.fault(format!("has {elements} weights, more than the file can hold"))
        })?;
    let offset = cursor.u64()?;
    if !offset.is_multiple_of(alignment) {
        return Err(cursor.fault(format!("its offset {offset} is not a multiple of {alignment}")));
    }
    shape.reverse();
    Ok((kind, shape, offset, size, at))
}

fn check_overlap(file: &Path, tensors: &BTreeMap<String, TensorInfo>) -> Result<()> {
    let mut order: Vec<_> = tensors.iter().filter(|(_, t)| t.end > t.start).collect();
    order.sort_by_key(|(_, t)| t.start);
    for pair in order.windows(2) {
        let ((first, a), (second, b)) = (pair[0], pair[1]);
        if b.start < a.end {
            return Err(Error::malformed(file, format!("overlaps tensor `{first}`"))
                .item(format!("tensor `{second}`"))
                .at(Place::Byte(b.start as u64)));
        }
    }
    Ok(())
}
