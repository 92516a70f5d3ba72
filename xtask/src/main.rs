//! Chores of the repository: `cargo run -p xtask -- tidy` checks what the compiler cannot
//! (layers, folder shape, forbidden names), `-- readme` writes the measured figures into the
//! documentation.
#![allow(clippy::print_stdout, reason = "a command-line tool reports on its standard output")]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

#[cfg(test)]
mod miniature;
mod readme;
mod source;
mod tidy;
mod tree;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};

use crate::tree::Tree;

#[derive(Parser)]
#[command(name = "xtask", about = "Chores of the Commons repository")]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Root of the workspace to work on [default: the workspace this tool was built from].
    #[arg(long, global = true, value_name = "DIR")]
    root: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Check the rules of ARCHITECTURE.md; prints `file:line: rule: message` for every breach.
    Tidy {
        /// Print the rules and what each one asks for, and check nothing.
        #[arg(long)]
        list: bool,
    },
    /// Write the method table of README.md and the "Here" sections from the result.json files.
    Readme {
        /// Change nothing; fail if a file is out of date.
        #[arg(long)]
        check: bool,
    },
}

fn main() -> Result<ExitCode> {
    let cli = Cli::parse();
    let root = match cli.root {
        Some(root) => root,
        None => own_root()?,
    };
    match cli.command {
        Command::Tidy { list: true } => {
            for rule in tidy::RULES {
                println!("{:<18} {}", rule.name, rule.asks);
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Tidy { list: false } => run_tidy(&Tree::load(&root)?),
        Command::Readme { check } => run_readme(&Tree::load(&root)?, check),
    }
}

fn run_tidy(tree: &Tree) -> Result<ExitCode> {
    let findings = tidy::check(tree);
    for finding in &findings {
        println!("{finding}");
    }
    println!(
        "tidy: {} rules, {} files, {} findings",
        tidy::RULES.len(),
        tree.files.len(),
        findings.len()
    );
    Ok(if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run_readme(tree: &Tree, check: bool) -> Result<ExitCode> {
    let stale = readme::outdated(tree)?;
    for edit in &stale {
        if check {
            println!("{}: out of date", edit.path);
        } else {
            edit.write(&tree.root)?;
            println!("{}: rewritten", edit.path);
        }
    }
    if check && !stale.is_empty() {
        bail!("run `cargo run -p xtask -- readme` and commit what it writes");
    }
    println!("readme: {} files out of date", stale.len());
    Ok(ExitCode::SUCCESS)
}

/// The workspace that holds this crate.
fn own_root() -> Result<PathBuf> {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map(PathBuf::from)
        .context("the xtask crate lies in a folder of the workspace")
}
