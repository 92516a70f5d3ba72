//! The vocabulary of evidence: what a method claims, how it is measured, and what came out.
//!
//! Every other crate of the workspace stands on this one. It knows no tensors, reads no clock for a
//! decision, prints nothing and opens no connection; what the time is, where progress goes and when
//! to stop, the program tells it.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`seed`] | [`Seed`]: streams of random bits, uniforms and normals with access to any slice, equal bits on every machine; [`Rng`]: a walk along one |
//! | [`evidence`] | [`Paper`], [`Claim`](evidence::Claim), [`Recipe`](evidence::Recipe), [`Experiment`] and [`Method`], the [`Run`] that measures, the [`RunResult`](evidence::RunResult) it leaves |
//! | [`stats`] | means with t and bootstrap intervals, paired tests, rank correlations |
//! | [`table`], [`mod@format`] | results as text, Markdown, CSV and JSON; numbers as people read them |
//! | [`report`] | plots as SVG, the page `report.html` |
//! | [`tensorboard`] | event files with scalars |
//! | [`fs`] | files and folders that appear whole or not at all |
//! | [`progress`] | [`Progress`] and [`Stop`], how long work is watched and ended |
//! | [`machine`] | what the numbers were measured on |
//! | [`error`] | [`Error`]s that name the place and the remedy |
//!
//! # A method, from claim to verdict
//!
//! `examples/stein.rs` is a whole method in one file: it states the claims of a paper of 1961,
//! measures them with a baseline over several repeats, and writes the folder that
//! [`evidence`] describes:
//!
//! ```text
//! $ cargo run -p commons-core --example stein -- runs repeats=20
//! ```
//!
//! # Randomness
//!
//! One number stands at the beginning of every run, and every use of chance forks its own stream
//! from it by name, so that adding one use never changes another:
//!
//! ```
//! use commons_core::Seed;
//!
//! let run = Seed::new(42);
//! let order = run.fork("epoch", 3).permutation(5);
//! let mut noise = [0.0_f32; 4];
//! run.fork("noise", 0).normal(1_000_000, &mut noise); // any place of the stream, at once
//! assert_eq!(order, run.fork("epoch", 3).permutation(5));
//! ```
#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)
)]

pub mod error;
pub mod evidence;
pub mod format;
pub mod fs;
pub mod lines;
pub mod machine;
mod number;
pub mod progress;
pub mod report;
pub mod seed;
pub mod stats;
pub mod table;
pub mod tensorboard;

pub use error::{Context, Error, ErrorKind, Result};
pub use evidence::{Experiment, Method, Paper, Run};
pub use progress::{Progress, Silent, Stop, Task};
pub use seed::{Rng, Seed};
