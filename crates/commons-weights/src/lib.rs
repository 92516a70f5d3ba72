//! Sharing inside one model: looped blocks, folded layers, dictionaries, hashes.
//!
//! One folder per method, each with its paper, its mathematics, its code, its recipe and what was
//! measured; [`METHODS`] lists them, [`COMPRESSORS`] those that take a pretrained decoder.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod baseline;
pub mod compress;
mod error;
pub mod foldgpt;
pub mod heal;
pub mod images;
pub mod kdgqa;
pub mod linalg;
pub mod masa;
pub mod material;
pub mod moge;
pub mod mor;
pub mod parscale;
pub mod relaxed_recursive;
pub mod stable_rps;
pub mod widenet;

pub use compress::{AnyCompress, Compress, Context, Shared};
pub use error::{Error, Result};

use commons_core::evidence::Method;

/// Every method of this crate, by slug.
pub const METHODS: &[&dyn Method] = &[
    &foldgpt::Evidence,
    &kdgqa::Evidence,
    &masa::Evidence,
    &moge::Evidence,
    &mor::Evidence,
    &parscale::Evidence,
    &relaxed_recursive::Evidence,
    &stable_rps::Evidence,
    &widenet::Evidence,
];

/// Methods that compress a pretrained decoder.
pub const COMPRESSORS: &[&dyn AnyCompress] = &[
    &foldgpt::FoldGpt,
    &kdgqa::Kdgqa,
    &masa::Masa,
    &mor::Mor,
    &parscale::ParScale,
    &relaxed_recursive::RelaxedRecursive,
    &stable_rps::StableRps,
];
