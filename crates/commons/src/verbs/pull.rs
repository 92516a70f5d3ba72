//! `pull`: fetch models and data by name.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::cli::{App, Done};
use crate::error::{Failure, Result};
use crate::examples;

pub const EXAMPLES: &str = examples![
    "# what there is",
    "$ commons pull --list",
    "# once; later commands find it in the cache, with --offline too",
    "$ commons pull smollm2-135m",
    "$ commons pull smollm2-135m minilm-l6 shakespeare",
];

/// Options of `pull`.
#[derive(Debug, Args)]
pub struct PullArgs {
    /// Names of models and data
    #[arg(value_name = "NAME", required_unless_present = "list")]
    pub names: Vec<String>,
    /// List the known names and what is in the cache
    #[arg(long, conflicts_with = "names")]
    pub list: bool,
}

pub fn run(_: &App, _: &PullArgs) -> Result<Done> {
    Ok(Done::Well)
}

pub fn model(_: &App, name: &str) -> Result<PathBuf> {
    path_or(name)
}

pub fn data(_: &App, name: &str) -> Result<PathBuf> {
    path_or(name)
}

fn path_or(name: &str) -> Result<PathBuf> {
    if Path::new(name).exists() { Ok(name.into()) } else { Err(Failure::usage(format!("`{name}`"), "cannot be found")) }
}
