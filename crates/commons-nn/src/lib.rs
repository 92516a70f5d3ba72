//! Models, checkpoints, tokenizers and data.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod error;
pub mod format;
pub mod mmap;
pub mod tokenizer;

pub use error::{Error, Result};
