//! `commons`: models that share, from the command line.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod cli;
mod config;
mod embedded;
mod error;
mod evidence;
mod memory;
mod model;
mod output;
mod progress;
mod signals;
mod text;
mod verbs;
mod work;

use std::process::ExitCode;

fn main() -> ExitCode {
    memory::keep_freed_pages();
    embedded::register();
    cli::main()
}
