//! Models whose weights come from a bank: stored once, made as a sharing plan says.
//!
//! - [`bank`]: stored parameters and the plan.
//! - [`model`]: Llama-family decoders, BERT encoders, ViT and ResNet over a bank, and their files.
//! - [`format`](mod@format), [`tokenizer`], [`hub`], [`data`]: checkpoints, tokenizers, where models
//!   and data come from, and readers for data.
//! - [`optim`], [`train`], [`eval`], [`generate`]: stepping a bank, the training loop, measuring and
//!   using a language model.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod bank;
pub mod data;
pub mod error;
pub mod eval;
pub mod format;
pub mod generate;
#[cfg(test)]
mod hostile;
pub mod hub;
pub mod mmap;
pub mod model;
pub mod optim;
pub mod tokenizer;
pub mod train;

pub use error::{Error, Result};
