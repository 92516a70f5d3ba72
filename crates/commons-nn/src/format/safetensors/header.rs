//! The header of a safetensors file, checked before a single tensor byte is believed.
//!
//! Layout: an eight-byte little-endian length `n`, `n` bytes of JSON mapping each tensor's name to
//! its `dtype`, `shape` and `data_offsets` (relative to the end of the header), then the data. The
//! ranges must tile the data exactly: no overlap, no gap, nothing after the last one.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorInfo};
use serde::Deserialize;
use serde::de::{self, MapAccess, Visitor};

use crate::error::{Error, Place, Result};

/// No honest header is longer; the reference implementation has the same limit.
const MAX_HEADER: u64 = 100_000_000;
/// Bytes before the JSON.
const PREFIX: usize = 8;

/// One tensor's entry with offsets from the start of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Element type as stored.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// First byte of the data in the file.
    pub start: usize,
    /// One past the last byte of the data in the file.
    pub end: usize,
}

/// A checked header.
#[derive(Debug, Clone, Default)]
pub struct Header {
    /// Tensors by name.
    pub entries: BTreeMap<String, Entry>,
    /// The free-form string map `__metadata__`.
    pub metadata: BTreeMap<String, String>,
}

/// Reads and checks the header of the file `bytes`, called `file` in messages.
///
/// # Errors
/// Names the tensor and the byte offset when the header is too long, is not UTF-8 or JSON, names a
/// tensor twice, has an unknown dtype, a size that does not match dtype and shape, or ranges that
/// overlap, leave a gap or leave the file.
pub fn parse(file: &Path, bytes: &[u8]) -> Result<Header> {
    let data_start = data_start(file, bytes)?;
    let text = std::str::from_utf8(&bytes[PREFIX..data_start]).map_err(|e| {
        Error::malformed(file, "the header is not UTF-8").at(byte(PREFIX + e.valid_up_to()))
    })?;
    let raw: RawHeader = serde_json::from_str(text).map_err(|e| {
        // serde_json counts columns from one within a line; headers are a single line in practice.
        let position = if e.line() == 1 { e.column().saturating_sub(1) } else { 0 };
        Error::malformed(file, format!("the header is not a valid tensor table: {e}"))
            .at(byte(PREFIX + position))
    })?;
    let mut header = Header { metadata: raw.metadata, ..Header::default() };
    for (name, info) in raw.tensors {
        let entry = check_entry(file, &name, info, data_start, bytes.len())?;
        header.entries.insert(name, entry);
    }
    check_tiling(file, &header.entries, data_start, bytes.len())?;
    Ok(header)
}

fn byte(offset: usize) -> Place {
    Place::Byte(offset as u64)
}

fn data_start(file: &Path, bytes: &[u8]) -> Result<usize> {
    let Some(prefix) = bytes.first_chunk::<PREFIX>() else {
        return Err(Error::malformed(
            file,
            format!("has {} bytes, too few for a safetensors file", bytes.len()),
        )
        .at(byte(0))
        .remedy("fetch the file again: it is empty or cut short"));
    };
    let length = u64::from_le_bytes(*prefix);
    let available = (bytes.len() - PREFIX) as u64;
    if length > MAX_HEADER {
        return Err(Error::malformed(
            file,
            format!("claims a header of {length} bytes, more than the allowed {MAX_HEADER}"),
        )
        .at(byte(0))
        .remedy("this is probably not a safetensors file"));
    }
    if length > available {
        return Err(Error::malformed(
            file,
            format!("claims a header of {length} bytes but only {available} follow"),
        )
        .at(byte(0))
        .remedy("fetch the file again: it is cut short"));
    }
    Ok(PREFIX + length as usize)
}

fn check_entry(
    file: &Path,
    name: &str,
    info: TensorInfo,
    data_start: usize,
    file_length: usize,
) -> Result<Entry> {
    let (begin, end) = info.data_offsets;
    let fault = |reason: String| {
        Error::malformed(file, reason)
            .item(format!("tensor `{name}`"))
            .at(byte(data_start.saturating_add(begin)))
    };
    if begin > end {
        return Err(fault(format!("begins at {begin}, after its end {end}")));
    }
    if end > file_length - data_start {
        return Err(fault(format!(
            "ends at {end}, past the {} bytes of data",
            file_length - data_start
        ))
        .remedy("fetch the file again: it is cut short"));
    }
    let bits = info.shape.iter().try_fold(info.dtype.bitsize(), |size, &n| size.checked_mul(n));
    if bits != (end - begin).checked_mul(8) {
        return Err(fault(format!(
            "holds {} bytes, which does not match {:?} values of shape {:?}",
            end - begin,
            info.dtype,
            info.shape
        )));
    }
    Ok(Entry {
        dtype: info.dtype,
        shape: info.shape,
        start: data_start + begin,
        end: data_start + end,
    })
}

fn check_tiling(
    file: &Path,
    entries: &BTreeMap<String, Entry>,
    data_start: usize,
    file_length: usize,
) -> Result<()> {
    let mut order: Vec<_> = entries.iter().collect();
    order.sort_by_key(|(_, entry)| (entry.start, entry.end));
    let mut expected = data_start;
    for (name, entry) in order {
        if entry.start != expected {
            let kind = if entry.start < expected {
                "overlaps the tensor before it"
            } else {
                "leaves a gap before it"
            };
            return Err(Error::malformed(
                file,
                format!("{kind}: begins at byte {} where {expected} was expected", entry.start),
            )
            .item(format!("tensor `{name}`"))
            .at(byte(entry.start)));
        }
        expected = entry.end;
    }
    if expected != file_length {
        return Err(Error::malformed(
            file,
            format!("{} bytes follow the last tensor", file_length - expected),
        )
        .at(byte(expected)));
    }
    Ok(())
}

/// The JSON table as written, with names that occur twice refused.
#[derive(Default)]
struct RawHeader {
    tensors: Vec<(String, TensorInfo)>,
    metadata: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        let mut header = RawHeader::default();
        let mut seen = std::collections::HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            if !seen.insert(name.clone()) {
                return Err(de::Error::custom(format!("tensor `{name}` occurs twice")));
            }
            if name == "__metadata__" {
                header.metadata = map.next_value()?;
            } else {
                // The reference deserialiser's message lacks the name of the tensor.
                let value: serde_json::Value = map.next_value()?;
                let info = TensorInfo::deserialize(value)
                    .map_err(|e| de::Error::custom(format!("tensor `{name}`: {e}")))?;
                header.tensors.push((name, info));
            }
        }
        Ok(header)
    }
}
