//! `commons`: models that share, from the command line.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod cli;
mod config;
mod embedded;
mod error;
mod evidence;
mod model;
mod output;
mod progress;
mod signals;
mod text;
mod verbs;
mod work;

use std::process::ExitCode;

/// Tensors come and go by the hundred megabytes: this allocator keeps their pages, where the system's
/// gives them back and takes them again at every step.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    embedded::register();
    cli::main()
}
