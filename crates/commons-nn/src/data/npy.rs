//! NumPy's arrays: npy files, and npz archives of them. Arrays of objects are pickles and refused.

use std::collections::BTreeMap;
use std::io::{self, Cursor, Read};
use std::path::Path;

use super::array::{Array, Number, byte_length};
use super::source;
use crate::error::{Error, Place, Result};
use crate::mmap::Bytes;

const MAGIC: &[u8; 6] = b"\x93NUMPY";
/// Longest header that is read: those of arrays of numbers are about a hundred bytes.
const MAX_HEADER: usize = 64 << 10;
/// Reserved before the data of a compressed array begins to arrive.
const RESERVE: usize = 1 << 20;

/// Reads an npy file, gzipped or not.
///
/// # Errors
/// When the file cannot be read, is not npy, holds no plain numbers, or is longer or shorter than
/// its shape says.
pub fn read(path: impl AsRef<Path>) -> Result<Array> {
    let path = path.as_ref();
    parse(path, &source::read(path, source::LIMIT)?)
}

/// Reads an npy file that is in memory, called `file` in messages.
///
/// # Errors
/// As for [`read`].
pub fn parse(file: &Path, bytes: &[u8]) -> Result<Array> {
    array(bytes, bytes.len() as u64).map_err(|fault| fault.in_file(file, None))
}

/// Reads every array of an npz archive, under its name without `.npy`.
///
/// # Errors
/// When the archive is damaged, or one of its arrays; names the array.
pub fn read_npz(path: impl AsRef<Path>) -> Result<BTreeMap<String, Array>> {
    let bytes = Bytes::open(path)?;
    parse_npz(bytes.name(), &bytes)
}

/// Reads an npz archive that is in memory, called `file` in messages.
///
/// # Errors
/// As for [`read_npz`].
pub fn parse_npz(file: &Path, bytes: &[u8]) -> Result<BTreeMap<String, Array>> {
    let damaged = |e: zip::result::ZipError| {
        Error::malformed(file, format!("is not an npz archive: {e}"))
            .remedy("fetch the file again: it is cut short or damaged")
    };
    let mut archive = zip::ZipArchive::new(Cursor::new(bytes)).map_err(damaged)?;
    let mut arrays = BTreeMap::new();
    let mut unpacked = 0u64;
    for i in 0..archive.len() {
        let mut member = archive.by_index(i).map_err(damaged)?;
        let name = member.name().map_err(damaged)?.into_owned();
        let Some(name) = name.strip_suffix(".npy").map(str::to_owned) else { continue };
        // Entries of a hostile archive may claim the same bytes again and again.
        let packed = member.compressed_size().min(bytes.len() as u64);
        let stored = member.compression() == zip::CompressionMethod::Stored;
        let most = packed.saturating_mul(if stored { 1 } else { source::DEFLATE_RATIO });
        let array = array(&mut member, most).map_err(|f| f.in_file(file, Some(&name)))?;
        unpacked += array.len() as u64 * array.number().size() as u64;
        if unpacked > source::LIMIT {
            let reason = format!("unpacks to more than {} bytes", source::LIMIT);
            return Err(Error::malformed(file, reason).item(format!("array `{name}`")));
        }
        arrays.insert(name, array);
    }
    Ok(arrays)
}

/// What is wrong with an array, before it is known where that array lies.
struct Fault {
    at: Option<usize>,
    reason: String,
    remedy: &'static str,
}

impl Fault {
    fn new(at: usize, reason: impl Into<String>) -> Self {
        Self { at: Some(at), reason: reason.into(), remedy: "" }
    }

    fn remedy(self, remedy: &'static str) -> Self {
        Self { remedy, ..self }
    }

    fn in_file(self, file: &Path, name: Option<&str>) -> Error {
        let mut error = Error::malformed(file, self.reason).remedy(self.remedy);
        if let Some(name) = name {
            error = error.item(format!("array `{name}`"));
        }
        match self.at {
            Some(at) => error.at(Place::Byte(at as u64)),
            None => error,
        }
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        let reason = format!("is cut short or damaged: {error}");
        Self { at: None, reason, remedy: "fetch the file again" }
    }
}

/// An array out of `source`, which can give at most `most` bytes.
fn array(mut source: impl Read, most: u64) -> Result<Array, Fault> {
    let mut prefix = [0; 8];
    source.read_exact(&mut prefix)?;
    if &prefix[..6] != MAGIC {
        return Err(Fault::new(0, "does not begin as an npy file"));
    }
    // Version 1 has a header of at most 64 KiB, later ones of any length.
    let width = if prefix[6] == 1 { 2 } else { 4 };
    let mut length = [0; 4];
    source.read_exact(&mut length[..width])?;
    let length = u32::from_le_bytes(length) as usize;
    if !(1..=3).contains(&prefix[6]) || length > MAX_HEADER {
        let reason = format!("has version {} and a header of {length} bytes", prefix[6]);
        return Err(Fault::new(6, reason).remedy("save the array again with numpy.save"));
    }
    let mut text = vec![0; length];
    source.read_exact(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    let start = 8 + width + length;
    let header = Header::parse(&text).ok_or_else(|| {
        Fault::new(8 + width, format!("has a header that is not understood: {}", text.trim()))
    })?;
    let (number, big) = header.number().map_err(|reason| {
        Fault::new(8 + width, reason)
            .remedy("save plain numbers, as in numpy.asarray(x, dtype=float)")
    })?;
    let impossible = |size: &str| {
        let reason =
            format!("shape {:?} of {number:?} takes {size}, beyond its file", header.shape);
        Fault::new(start, reason).remedy("fetch the file again: it is cut short or damaged")
    };
    let size = byte_length(number, &header.shape).ok_or_else(|| impossible("endless bytes"))?;
    if size as u64 > most.min(source::LIMIT) {
        return Err(impossible(&format!("{size} bytes")));
    }
    let bytes = data(source, size, start)?;
    let array = Array::new(number, header.shape, bytes, big);
    Ok(if header.fortran_order { array.into_rows() } else { array })
}

/// The `size` bytes of data, and nothing after them.
fn data(mut source: impl Read, size: usize, start: usize) -> Result<Vec<u8>, Fault> {
    let mut bytes = Vec::with_capacity(size.min(RESERVE));
    source.by_ref().take(size as u64).read_to_end(&mut bytes)?;
    if bytes.len() < size {
        let reason = format!("ends after {} of {size} bytes of data", bytes.len());
        return Err(Fault::new(start + bytes.len(), reason).remedy("fetch the file again"));
    }
    // At the end of an archive's member its checksum is compared.
    if source.read(&mut [0])? > 0 {
        return Err(Fault::new(start + size, "goes on after its data"));
    }
    Ok(bytes)
}

/// The dictionary before the data, written as Python.
#[derive(Debug, PartialEq)]
struct Header {
    descr: String,
    fortran_order: bool,
    shape: Vec<usize>,
}

impl Header {
    fn parse(text: &str) -> Option<Self> {
        let value = |key: &str| {
            let (_, rest) = text.split_once(&format!("'{key}'"))?;
            Some(rest.trim_start().strip_prefix(':')?.trim_start())
        };
        let descr = value("descr")?;
        let descr = match descr.strip_prefix('\'') {
            Some(rest) => rest.split_once('\'')?.0,
            None => descr.split_once("'fortran_order'").map_or(descr, |(d, _)| d),
        };
        let fortran_order = value("fortran_order")?.starts_with("True");
        let (shape, _) = value("shape")?.strip_prefix('(')?.split_once(')')?;
        let dims = shape.split(',').map(str::trim).filter(|d| !d.is_empty());
        let shape = dims.map(|d| d.parse().ok()).collect::<Option<_>>()?;
        Some(Self { descr: descr.trim().to_owned(), fortran_order, shape })
    }

    /// Element type, and whether it is big-endian.
    fn number(&self) -> Result<(Number, bool), String> {
        let (order, code) =
            self.descr.split_at(self.descr.chars().next().map_or(0, char::len_utf8));
        let number = match code {
            "b1" => Number::Bool,
            "u1" => Number::U8,
            "i1" => Number::I8,
            "u2" => Number::U16,
            "i2" => Number::I16,
            "u4" => Number::U32,
            "i4" => Number::I32,
            "u8" => Number::U64,
            "i8" => Number::I64,
            "f2" => Number::F16,
            "f4" => Number::F32,
            "f8" => Number::F64,
            _ if code.starts_with('O') => {
                return Err("holds Python objects, which are pickled and never read".into());
            }
            _ => return Err(format!("holds elements of type {}", self.descr)),
        };
        match order {
            "<" | "|" | "=" => Ok((number, false)),
            ">" => Ok((number, true)),
            _ => Err(format!("holds elements of type {}", self.descr)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_numpy_are_understood() {
        let text = "{'descr': '<f8', 'fortran_order': False, 'shape': (3, 4), }   \n";
        let header = Header::parse(text).unwrap();
        assert_eq!(
            (header.number(), header.shape.as_slice()),
            (Ok((Number::F64, false)), &[3, 4][..])
        );
        let header =
            Header::parse("{'descr': '|O', 'fortran_order': True, 'shape': (3,), }").unwrap();
        assert!(header.fortran_order && header.number().unwrap_err().contains("pickled"));
        let text = "{'descr': [('a', '<f8'), ('b', '<i4')], 'fortran_order': False, 'shape': (), }";
        let header = Header::parse(text).unwrap();
        assert!(header.shape.is_empty() && header.number().unwrap_err().contains("('a', '<f8')"));
        assert_eq!(Header::parse("{'descr': '<f8', 'shape': (-1,)}"), None);
    }
}
