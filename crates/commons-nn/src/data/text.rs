//! Plain text.

use std::path::Path;

use super::source;
use crate::error::Result;

/// Reads a text file in UTF-8, gzipped or not, of at most `limit` bytes. A byte order mark is left
/// out.
///
/// # Errors
/// When it cannot be read, is longer, or is not UTF-8: then the error names the offset of the first
/// wrong byte.
pub fn read(path: impl AsRef<Path>, limit: u64) -> Result<String> {
    let path = path.as_ref();
    let bytes = source::read(path, limit)?;
    Ok(source::utf8(path, &bytes)?.to_owned())
}
