//! Read-only memory maps. The only `unsafe` code of this crate is here.
//!
//! A map is sound as long as nobody shortens or rewrites the file while it is mapped. Files that
//! this crate writes are replaced by renaming, never rewritten in place, so a map keeps seeing the
//! old file. Another program that truncates a mapped file stops this process with a bus error; that
//! is the usual price of mapping, and the reason why small files are copied instead.

#![allow(unsafe_code)]

use std::fs::File;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result};

/// Files up to this size are read into memory: mapping buys nothing there.
const COPY_BELOW: u64 = 64 * 1024;

#[derive(Clone)]
enum Storage {
    Mapped(Arc<memmap2::Mmap>),
    Owned(Arc<[u8]>),
    Static(&'static [u8]),
}

/// The bytes of a file, mapped or in memory, with the name to use in messages. Cheap to clone.
#[derive(Clone)]
pub struct Bytes {
    name: PathBuf,
    storage: Storage,
}

impl Bytes {
    /// Maps `path` for reading, or copies it when it is small.
    ///
    /// # Errors
    /// When the file cannot be opened, is not a regular file or cannot be mapped.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
        let status = file.metadata().map_err(|e| Error::io(path, "read the size", e))?;
        if !status.is_file() {
            return Err(Error::malformed(path, "is not a regular file"));
        }
        let storage = if status.len() <= COPY_BELOW {
            Storage::Owned(std::fs::read(path).map_err(|e| Error::io(path, "read", e))?.into())
        } else {
            // SAFETY: the map is private and read-only; see the module documentation for the one
            // assumption, that no other program shortens the file meanwhile.
            let map = unsafe { memmap2::Mmap::map(&file) }
                .map_err(|e| Error::io(path, "map into memory", e))?;
            Storage::Mapped(Arc::new(map))
        };
        Ok(Self { name: path.to_path_buf(), storage })
    }

    /// Wraps bytes that are already in memory; `name` appears in messages.
    pub fn from_vec(name: impl Into<PathBuf>, bytes: Vec<u8>) -> Self {
        Self { name: name.into(), storage: Storage::Owned(bytes.into()) }
    }

    /// Wraps bytes embedded in the program; `name` appears in messages.
    pub fn from_static(name: impl Into<PathBuf>, bytes: &'static [u8]) -> Self {
        Self { name: name.into(), storage: Storage::Static(bytes) }
    }

    /// The file's path, or the name given to the buffer.
    pub fn name(&self) -> &Path {
        &self.name
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.storage {
            Storage::Mapped(map) => map,
            Storage::Owned(bytes) => bytes,
            Storage::Static(bytes) => bytes,
        }
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bytes({}, {} bytes)", self.name.display(), self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_and_copied_files_read_the_same() -> Result<()> {
        let folder = tempfile::tempdir().map_err(|e| Error::io("", "create", e))?;
        for size in [0usize, 10, COPY_BELOW as usize + 1] {
            let path = folder.path().join(format!("{size}"));
            let content: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
            std::fs::write(&path, &content).map_err(|e| Error::io(&path, "write", e))?;
            let bytes = Bytes::open(&path)?;
            assert_eq!(&*bytes, &content[..]);
            assert_eq!(bytes.name(), path);
        }
        assert!(Bytes::open(folder.path()).is_err());
        assert!(Bytes::open(folder.path().join("absent")).is_err());
        Ok(())
    }
}
