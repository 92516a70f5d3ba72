//! The vocabulary of evidence.
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::print_stdout
    )
)]

pub mod error;
pub mod fs;
pub mod seed;

pub use error::{Context, Error, ErrorKind, Result};
pub use seed::{Rng, Seed};
