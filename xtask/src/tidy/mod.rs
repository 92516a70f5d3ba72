//! The rules that keep the repository in the shape ARCHITECTURE.md describes.
//!
//! A rule is one function from the [`Tree`] to its breaches, listed in [`RULES`]; its test breaks
//! a miniature workspace and expects the breach at the right line.

mod candle;
mod layers;
pub mod methods;
mod paths;
mod results;
mod sources;
#[cfg(test)]
mod tests;

use std::fmt;

use crate::source::lines_with;
use crate::tree::{File, Tree};

/// A rule of the repository.
pub struct Rule {
    /// Name printed with each breach.
    pub name: &'static str,
    /// What it asks for, in a line.
    pub asks: &'static str,
    find: fn(&Tree) -> Vec<Breach>,
}

/// Every rule, in the order checked.
pub const RULES: &[Rule] = &[
    Rule {
        name: "layers",
        asks: "a crate depends only on the crates of the layers below it",
        find: layers::edges,
    },
    Rule {
        name: "binary-only",
        asks: "terminal, web server and full async runtime are the binary's",
        find: layers::binary_only,
    },
    Rule {
        name: "tensor-free",
        asks: "core, society and knowledge know no tensors",
        find: layers::tensor_free,
    },
    Rule {
        name: "candle-behind-ops",
        asks: "method crates reach candle-core through commons-ops; nobody uses candle-nn",
        find: candle::behind_ops,
    },
    Rule {
        name: "gradients",
        asks: "no tensor function whose gradient candle drops or gets wrong",
        find: candle::gradients,
    },
    Rule { name: "seeded", asks: "all randomness comes from a Seed", find: sources::seeded },
    Rule {
        name: "unsafe-modules",
        asks: "unsafe code stays in the modules made for it",
        find: sources::unsafe_modules,
    },
    Rule {
        name: "silent-libraries",
        asks: "libraries do not print",
        find: sources::silent_libraries,
    },
    Rule { name: "finished", asks: "no todo!, unimplemented! or dbg!", find: sources::finished },
    Rule {
        name: "clock",
        asks: "libraries read the clock only where time is what they measure",
        find: sources::clock,
    },
    Rule {
        name: "network",
        asks: "libraries reach the network only through nn::hub and swarm::transport",
        find: sources::network,
    },
    Rule {
        name: "file-length",
        asks: "a Rust file has at most 600 lines",
        find: sources::file_length,
    },
    Rule { name: "lints", asks: "every package takes the workspace's lints", find: layers::lints },
    Rule {
        name: "method-folder",
        asks: "every method has its folder with all its files, and every such folder is listed",
        find: methods::folders,
    },
    Rule {
        name: "method-docs",
        asks: "a method's documentation has the fixed headings, in order, none empty",
        find: methods::docs,
    },
    Rule {
        name: "fresh-results",
        asks: "result.json was measured with the full.toml beside it",
        find: results::fresh,
    },
    Rule {
        name: "portable",
        asks: "no path or package host of one particular machine in any file",
        find: paths::portable,
    },
];

/// A place where a rule is broken.
pub struct Breach {
    path: String,
    line: usize,
    message: String,
}

impl Breach {
    fn new(path: &str, line: usize, message: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, message: message.into() }
    }
}

/// A breach with the rule it is one of.
pub struct Finding {
    /// Name of the rule.
    pub rule: &'static str,
    /// Where and why.
    pub breach: Breach,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Breach { path, line, message } = &self.breach;
        write!(f, "{path}:{line}: {}: {message}", self.rule)
    }
}

/// All breaches of all rules, by rule.
pub fn check(tree: &Tree) -> Vec<Finding> {
    let findings_of = |rule: &Rule| {
        let name = rule.name;
        let found = (rule.find)(tree).into_iter();
        found.map(move |breach| Finding { rule: name, breach })
    };
    RULES.iter().flat_map(findings_of).collect()
}

/// A breach for each line of `code` that names one of `names`; `why` says what to do instead.
fn named(file: &File, code: &str, names: &[&str], why: &str) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for name in names {
        for line in lines_with(code, name) {
            breaches.push(Breach::new(&file.path, line, format!("`{name}`: {why}")));
        }
    }
    breaches
}
