//! The pretrained decoders and texts that methods and baselines are compared on.

use std::path::Path;

use commons_nn::model::Loaded;

use crate::{Error, Result};

/// Longest text that is read, bytes.
const TEXT_LIMIT: u64 = 1 << 30;

/// The decoder at a path (Hugging Face folder or GGUF file).
///
/// # Errors
/// When nothing is there or it is no decoder.
pub fn open_decoder(source: &str) -> Result<Loaded> {
    let path = Path::new(source);
    if !path.exists() {
        return Err(Error::config("model", format!("`{source}` does not exist: give the path of a decoder")));
    }
    Ok(Loaded::open(path)?)
}

/// The text in the file at a path (UTF-8).
///
/// # Errors
/// When there is no such file or it is not text.
pub fn open_text(source: &str) -> Result<String> {
    if !Path::new(source).is_file() {
        return Err(Error::config("text", format!("`{source}` does not exist: give the path of a text file")));
    }
    Ok(commons_core::fs::read_text(source, TEXT_LIMIT)?)
}
