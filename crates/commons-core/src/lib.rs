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
pub mod evidence;
pub mod format;
pub mod fs;
pub mod machine;
mod number;
pub mod progress;
pub mod report;
pub mod seed;
pub mod stats;
pub mod table;
pub mod tensorboard;

pub use error::{Context, Error, ErrorKind, Result};
pub use progress::{Progress, Silent, Stop, Task};
pub use seed::{Rng, Seed};
