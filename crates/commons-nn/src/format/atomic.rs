//! Files appear under their final name whole or not at all; missing parent folders are created.

use std::io::Write;
use std::path::Path;

use commons_core::fs::{AtomicFile, create_folder};

use crate::error::{Error, Result};

/// Writes `path` through `fill`, in one step that a crash cannot split.
///
/// # Errors
/// Whatever `fill` returns, or a refused file operation; an old file is then untouched.
pub fn write_with(path: &Path, fill: impl FnOnce(&mut AtomicFile) -> Result<()>) -> Result<()> {
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        create_folder(parent)?;
    }
    let mut file = AtomicFile::create(path)?;
    fill(&mut file)?;
    Ok(file.commit()?)
}

/// Writes `bytes` to `path` as [`write_with`] does.
///
/// # Errors
/// A refused file operation.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    write_with(path, |file| file.write_all(bytes).map_err(|e| Error::io(path, "write", e)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_leaves_the_old_file_and_no_rubbish() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/er/file");
        write(&path, b"old").unwrap();
        let failed = write_with(&path, |file| {
            file.write_all(b"half").unwrap();
            Err(Error::invalid("x", "stop"))
        });
        assert!(failed.is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        write(&path, b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
    }
}
