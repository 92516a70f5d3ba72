//! One file per verb.

pub mod allocate;
pub mod audit;
pub mod compress;
pub mod eval;
pub mod fair_stream;
pub mod fit;
pub mod generate;
pub mod inspect;
pub mod list;
pub mod locate;
pub mod materialize;
pub mod papers;
pub mod pull;
pub mod run;
pub mod shell;
pub mod shortlist;
pub mod tables;
pub mod train;

/// A heading for the examples in the help of a verb, in the style of clap's own headings.
#[macro_export]
macro_rules! examples {
    ($($line:literal),+ $(,)?) => {
        concat!("\x1b[1;32mExamples:\x1b[0m", $("\n  ", $line),+)
    };
}
