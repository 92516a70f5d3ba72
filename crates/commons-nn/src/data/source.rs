//! The bytes of a data file, unpacked if it is gzipped, and never more than allowed.

use std::io::Read;
use std::path::Path;

use flate2::read::MultiGzDecoder;

use crate::error::{Error, Place, Result};
use crate::mmap::Bytes;

/// Most bytes of one data file that are read into memory, unpacked.
pub(super) const LIMIT: u64 = 8 << 30;

/// Deflate cannot expand its input by more than this factor: what a header claims is held against
/// this before it is believed.
pub(super) const DEFLATE_RATIO: u64 = 1032;

/// First bytes of a gzip file.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// The content of the file at `path`, of at most `limit` bytes once unpacked.
pub(super) fn read(path: &Path, limit: u64) -> Result<Bytes> {
    let bytes = Bytes::open(path)?;
    if bytes.starts_with(&GZIP) {
        return Ok(Bytes::from_vec(path, unpack(path, &bytes, limit)?));
    }
    if bytes.len() as u64 > limit {
        return Err(too_long(path, limit));
    }
    Ok(bytes)
}

fn unpack(file: &Path, packed: &[u8], limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let unpacked =
        MultiGzDecoder::new(packed).take(limit.saturating_add(1)).read_to_end(&mut bytes);
    unpacked.map_err(|e| {
        Error::malformed(file, format!("its gzip stream is cut short or damaged: {e}"))
            .item("unpacked data")
            .at(Place::Byte(bytes.len() as u64))
            .remedy("fetch the file again")
    })?;
    if bytes.len() as u64 > limit {
        return Err(too_long(file, limit));
    }
    Ok(bytes)
}

fn too_long(file: &Path, limit: u64) -> Error {
    Error::malformed(file, format!("holds more than the {limit} bytes that are read of one file"))
        .remedy("split it into several files")
}

/// `bytes` as text, called `file` in messages, without a byte order mark.
pub(super) fn utf8<'a>(file: &Path, bytes: &'a [u8]) -> Result<&'a str> {
    let text = std::str::from_utf8(bytes).map_err(|e| {
        Error::malformed(file, "is not UTF-8 text")
            .at(Place::Byte(e.valid_up_to() as u64))
            .remedy("give a text file in UTF-8; `iconv -f latin1 -t utf-8` converts an older one")
    })?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}
