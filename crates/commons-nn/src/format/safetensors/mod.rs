//! Safetensors: mapped, checked, lazy reading; streaming, atomic writing; one file or many shards.

mod header;
mod shards;
#[cfg(test)]
mod tests;
mod write;

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Tensor};
pub use header::{Entry, Header, parse as parse_header};
pub use safetensors::tensor::Dtype;
pub use shards::{Checkpoint, INDEX_FILE, SINGLE_FILE};
pub use write::{ShardOptions, TensorSpec, save, save_sharded, write_file};

use super::convert;
use crate::error::{Error, Place, Result};
use crate::mmap::Bytes;

/// One safetensors file: header read and checked, data untouched until asked for.
#[derive(Debug, Clone)]
pub struct SafeTensors {
    bytes: Bytes,
    header: Header,
}

impl SafeTensors {
    /// Maps and checks the file at `path`.
    ///
    /// # Errors
    /// As for [`parse_header`], or when the file cannot be read.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::from_bytes(Bytes::open(path)?)
    }

    /// Checks a file that is already mapped or in memory.
    ///
    /// # Errors
    /// As for [`parse_header`].
    pub fn from_bytes(bytes: Bytes) -> Result<Self> {
        let header = header::parse(bytes.name(), &bytes)?;
        Ok(Self { bytes, header })
    }

    /// The file's path or buffer name.
    pub fn file(&self) -> &Path {
        self.bytes.name()
    }

    /// The free-form string map of the header.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.header.metadata
    }

    /// Tensor names in lexical order.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.header.entries.keys().map(String::as_str)
    }

    /// The tensor called `name`, not yet decoded.
    ///
    /// # Errors
    /// When the file has no such tensor.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>> {
        let Some((name, entry)) = self.header.entries.get_key_value(name) else {
            return Err(Error::malformed(self.file(), "is not in the file")
                .item(format!("tensor `{name}`"))
                .remedy("list the names the file has with `inspect`"));
        };
        Ok(TensorView {
            file: self.file(),
            name,
            entry,
            bytes: &self.bytes[entry.start..entry.end],
        })
    }

    /// Every tensor, not yet decoded, in lexical order of names.
    pub fn tensors(&self) -> impl Iterator<Item = TensorView<'_>> {
        self.header.entries.iter().map(|(name, entry)| TensorView {
            file: self.file(),
            name,
            entry,
            bytes: &self.bytes[entry.start..entry.end],
        })
    }
}

/// One tensor of a file: its header entry and its bytes, decoded on request.
#[derive(Debug, Clone, Copy)]
pub struct TensorView<'a> {
    file: &'a Path,
    name: &'a str,
    entry: &'a Entry,
    bytes: &'a [u8],
}

impl<'a> TensorView<'a> {
    /// Name in the file.
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// Element type as stored.
    pub fn dtype(&self) -> Dtype {
        self.entry.dtype
    }

    /// Dimensions, outermost first.
    pub fn shape(&self) -> &'a [usize] {
        &self.entry.shape
    }

    /// Raw little-endian bytes.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Decodes to a CPU tensor of element type `dtype`, or of the stored type when `None`.
    ///
    /// # Errors
    /// When the stored type has no counterpart in the tensor engine.
    pub fn to_tensor(&self, dtype: Option<DType>) -> Result<Tensor> {
        convert::decode(
            &format!("{}: tensor `{}`", self.file.display(), self.name),
            self.entry.dtype,
            &self.entry.shape,
            self.bytes,
            dtype.unwrap_or_else(|| convert::natural(self.entry.dtype)),
        )
    }

    /// Checks that no value is NaN or infinite; integer tensors always pass.
    ///
    /// # Errors
    /// Names the tensor, the flat index of the first bad value and its byte offset.
    pub fn check_finite(&self) -> Result<()> {
        let Some(values) = convert::floats(self.entry.dtype, self.bytes) else {
            return Ok(());
        };
        let Some((index, value)) = convert::first_not_finite(&values) else {
            return Ok(());
        };
        let offset = self.entry.start + index * (self.entry.dtype.bitsize() / 8);
        Err(Error::malformed(
            self.file,
            format!("value {index} of shape {:?} is {value}", self.entry.shape),
        )
        .item(format!("tensor `{}`", self.name))
        .at(Place::Byte(offset as u64))
        .remedy("the weights diverged or the file is damaged; use an earlier checkpoint"))
    }
}
