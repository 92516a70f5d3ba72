//! The command line: global options, verbs, and what every verb gets to work with.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{
    Args, ColorChoice, Command, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum,
};
use tracing_subscriber::EnvFilter;

use crate::error::{Failure, Result, exit};
use crate::output::Output;
use crate::progress::{LogWriter, Progress};
use crate::signals::Stop;
use crate::verbs;

/// Environment variable with a log filter, such as `commons_nn=debug`.
const LOG_VARIABLE: &str = "COMMONS_LOG";

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

const LONG_ABOUT: &str = "\
Models that share: store each weight once, use it wherever it is needed.

Shrinks, adapts, trains, measures and exports models whose weights are shared, and shows what the \
published ways of sharing are worth on your own model. Reads and writes Hugging Face folders, \
safetensors, GGUF and PEFT adapters.

Wherever a MODEL or data is asked for, give a path or a name (`commons pull --list`).";

const EXIT_CODES: &str = "\
\x1b[1;32mExit codes:\x1b[0m
  0    done
  1    failed
  2    wrong usage or bad input
  3    a claim was measured and not met (`run --strict`)
  130  interrupted; the message says how to go on";

/// Models that share: store each weight once, use it wherever it is needed.
#[derive(Debug, Parser)]
#[command(
    name = "commons",
    version,
    long_about = LONG_ABOUT,
    after_help = EXIT_CODES,
    styles = STYLES,
    max_term_width = 100,
    arg_required_else_help = true,
    subcommand_required = true,
    disable_help_subcommand = true,
    infer_long_args = false
)]
pub struct Cli {
    /// Options of every verb.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Options of every verb.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Write the result as JSON to standard output
    #[arg(long, global = true)]
    pub json: bool,
    /// Seed of every random draw [default: 0]
    #[arg(long, global = true, value_name = "N")]
    pub seed: Option<u64>,
    /// Read settings from a TOML file; options and --set override it
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Override one setting by its dotted name; may be repeated
    #[arg(long, global = true, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Threads to compute with [default: all processors]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
    /// Never touch the network
    #[arg(long, global = true)]
    pub offline: bool,
    /// Say more; -vv says everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// No progress and no warnings
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// When to use colours [default: auto]
    #[arg(long, global = true, value_name = "WHEN", value_enum, hide_possible_values = false)]
    pub color: Option<Color>,
}

/// When to use colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl Color {
    fn forced(self) -> Option<bool> {
        match self {
            Self::Auto => None,
            Self::Always => Some(true),
            Self::Never => Some(false),
        }
    }

    fn choice(self) -> ColorChoice {
        match self {
            Self::Auto => ColorChoice::Auto,
            Self::Always => ColorChoice::Always,
            Self::Never => ColorChoice::Never,
        }
    }
}

/// What `commons` can do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Fetch models and data by name, once
    #[command(after_help = verbs::pull::EXAMPLES)]
    Pull(verbs::pull::PullArgs),
    /// Show what a checkpoint holds: shapes, counts and how its weights are shared
    #[command(after_help = verbs::inspect::EXAMPLES)]
    Inspect(verbs::inspect::InspectArgs),
    /// Write a plain checkpoint that other programs load
    #[command(after_help = verbs::materialize::EXAMPLES)]
    Materialize(verbs::materialize::MaterializeArgs),
    /// Measure a model: perplexity, bits per byte, multiple choice
    #[command(after_help = verbs::eval::EXAMPLES)]
    Eval(verbs::eval::EvalArgs),
    /// Continue a prompt
    #[command(after_help = verbs::generate::EXAMPLES)]
    Generate(verbs::generate::GenerateArgs),
    /// Train a model from scratch, on, or with low-rank adapters
    #[command(after_help = verbs::train::EXAMPLES)]
    Train(Box<verbs::train::TrainArgs>),
    /// Store fewer parameters by sharing weights, then heal
    #[command(after_help = verbs::compress::EXAMPLES)]
    Compress(Box<verbs::compress::CompressArgs>),
    /// Spend a budget of samples over groups so that a model serves all of them
    #[command(after_help = verbs::allocate::EXAMPLES)]
    Allocate(verbs::allocate::AllocateArgs),
    /// Audit decisions: groups, clients, and where a disparity comes from
    #[command(after_help = verbs::audit::EXAMPLES)]
    Audit(verbs::audit::AuditArgs),
    /// Fit a scaling law to measured losses
    #[command(after_help = verbs::fit::EXAMPLES)]
    Fit(verbs::fit::FitArgs),
    /// Decide and learn on a stream, with the gap between groups held down
    #[command(after_help = verbs::fair_stream::EXAMPLES)]
    FairStream(verbs::fair_stream::FairStreamArgs),
    /// Choose one point for many wishes: fair, and no one gains by lying
    #[command(after_help = verbs::locate::EXAMPLES)]
    Locate(Box<verbs::locate::LocateArgs>),
    /// Choose a few items from many rankings, with places kept for groups
    #[command(after_help = verbs::shortlist::EXAMPLES)]
    Shortlist(Box<verbs::shortlist::ShortlistArgs>),
    /// List the methods with their recipes and verdicts
    #[command(after_help = verbs::list::EXAMPLES)]
    List(verbs::list::ListArgs),
    /// Run a recipe of a method and judge the claims of its paper
    #[command(after_help = verbs::run::EXAMPLES)]
    Run(verbs::run::RunArgs),
    /// Show papers: what is shared, what is claimed, what was measured
    #[command(after_help = verbs::papers::EXAMPLES)]
    Papers(verbs::papers::PapersArgs),
    /// Write the completion script of a shell
    #[command(after_help = verbs::shell::COMPLETIONS_EXAMPLES)]
    Completions(verbs::shell::CompletionsArgs),
    /// Write the manual pages
    #[command(after_help = verbs::shell::MAN_EXAMPLES)]
    Man(verbs::shell::ManArgs),
}

/// What every verb gets to work with.
#[derive(Debug)]
pub struct App {
    /// Options of every verb.
    pub global: Global,
    /// Results.
    pub out: Output,
    /// What is being done.
    pub progress: Progress,
    /// Whether the user asked to stop.
    pub stop: Stop,
}

impl App {
    /// The seed, if the user gave none.
    pub fn seed(&self) -> u64 {
        self.global.seed.unwrap_or(0)
    }

    /// Refuses settings for a verb that has none.
    ///
    /// # Errors
    /// When `--config` or `--set` was given.
    pub fn no_settings(&self, verb: &str) -> Result<()> {
        crate::config::refuse(verb, self.global.config.as_deref(), &self.global.set)
    }
}

/// How a verb that did its work ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// All is well.
    Well,
    /// A claim was measured and not met.
    ClaimNotMet,
}

/// The command, for completions and manual pages.
pub fn command() -> Command {
    Cli::command()
}

/// Parses the command line, runs the verb and reports what went wrong.
pub fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    let early = early_color(&words);
    let matches = match command().color(early.choice()).try_get_matches_from(&words) {
        Ok(matches) => matches,
        Err(error) => return usage(&error),
    };
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let out = Output::new(cli.global.json, cli.global.color.and_then(Color::forced));
    let (color, width) = (out.color_err, out.width);
    match start(cli, out) {
        Ok(Done::Well) => ExitCode::SUCCESS,
        Ok(Done::ClaimNotMet) => ExitCode::from(exit::CLAIM_NOT_MET),
        Err(failure) => {
            failure.report(color, width);
            ExitCode::from(failure.code())
        }
    }
}

/// `--color` as it stands on the command line, for messages about the command line itself.
fn early_color(words: &[OsString]) -> Color {
    let text: Vec<&str> = words.iter().filter_map(|w| w.to_str()).collect();
    let after = |i: usize| text.get(i + 1).copied();
    let given = text.iter().enumerate().find_map(|(i, w)| match *w {
        "--color" => after(i),
        w => w.strip_prefix("--color="),
    });
    given.and_then(|g| Color::from_str(g, true).ok()).unwrap_or(Color::Auto)
}

fn usage(error: &clap::Error) -> ExitCode {
    // Help and version are results, everything else is a usage error; a closed pipe is neither.
    let _ = error.print();
    if error.use_stderr() { ExitCode::from(exit::USAGE) } else { ExitCode::SUCCESS }
}

fn start(cli: Cli, out: Output) -> Result<Done> {
    let Cli { global, verb } = cli;
    if let Some(color) = global.color.and_then(Color::forced) {
        console::set_colors_enabled_stderr(color);
    }
    let progress = Progress::new(global.quiet);
    log_to(&progress, &global, out.color_err);
    let threads = global.threads.map_or(0, usize::from);
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .stack_size(WORKER_STACK)
        .build_global()
        .map_err(|e| Failure::failed(format!("cannot start threads: {e}")))?;
    let app = App { global, out, progress, stop: Stop::install() };
    // On a worker thread: from outside the pool, every operation would first have to wake one.
    rayon::join(|| dispatch(&app, verb), || ()).0
}

/// Bytes of stack of a worker thread: as much as a main thread has.
const WORKER_STACK: usize = 8 << 20;

fn dispatch(app: &App, verb: Verb) -> Result<Done> {
    match verb {
        Verb::Pull(args) => verbs::pull::run(app, &args),
        Verb::Inspect(args) => verbs::inspect::run(app, &args),
        Verb::Materialize(args) => verbs::materialize::run(app, &args),
        Verb::Eval(args) => verbs::eval::run(app, &args),
        Verb::Generate(args) => verbs::generate::run(app, &args),
        Verb::Train(args) => verbs::train::run(app, &args),
        Verb::Compress(args) => verbs::compress::run(app, &args),
        Verb::Locate(args) => verbs::locate::run(app, &args),
        Verb::Shortlist(args) => verbs::shortlist::run(app, &args),
        Verb::Allocate(args) => verbs::allocate::run(app, &args),
        Verb::Audit(args) => verbs::audit::run(app, &args),
        Verb::Fit(args) => verbs::fit::run(app, &args),
        Verb::FairStream(args) => verbs::fair_stream::run(app, &args),
        Verb::List(args) => verbs::list::run(app, &args),
        Verb::Run(args) => verbs::run::run(app, &args),
        Verb::Papers(args) => verbs::papers::run(app, &args),
        Verb::Completions(args) => verbs::shell::completions(app, &args),
        Verb::Man(args) => verbs::shell::man(app, &args),
    }
}

fn log_to(progress: &Progress, global: &Global, color: bool) {
    let level = match (global.quiet, global.verbose) {
        (true, _) => "error",
        (false, 0) => "warn",
        (false, 1) => "info",
        (false, _) => "debug",
    };
    let filter = EnvFilter::try_from_env(LOG_VARIABLE).unwrap_or_else(|_| EnvFilter::new(level));
    let writer = LogWriter(progress.clone());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(color)
        .with_target(global.verbose > 1)
        .without_time()
        .with_writer(move || writer.clone())
        .init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn every_verb_shows_examples_that_parse() {
        for verb in command().get_subcommands() {
            let help = verb.get_after_help().map(ToString::to_string).unwrap_or_default();
            let examples: Vec<&str> = help
                .lines()
                .filter_map(|l| l.trim().strip_prefix("$ "))
                .filter(|l| l.starts_with("commons "))
                .collect();
            assert!(!examples.is_empty(), "{} shows no example", verb.get_name());
            for example in examples {
                let words = example.split(" > ").next().unwrap().split(" | ").next().unwrap();
                let words = shell_words(words);
                assert_eq!(words[1], verb.get_name(), "{example}");
                if let Err(error) = command().try_get_matches_from(&words) {
                    panic!("{example}: {error}");
                }
            }
        }
    }

    /// Splits at spaces outside quotes.
    fn shell_words(line: &str) -> Vec<String> {
        let (mut words, mut quote) = (vec![String::new()], None);
        for c in line.chars() {
            match (quote, c) {
                (None, '"' | '\'') => quote = Some(c),
                (Some(q), c) if q == c => quote = None,
                (None, ' ') => words.push(String::new()),
                (_, c) => words.last_mut().unwrap().push(c),
            }
        }
        words.retain(|w| !w.is_empty());
        words
    }

    #[test]
    fn colour_is_known_before_parsing() {
        let words = |w: &[&str]| w.iter().map(OsString::from).collect::<Vec<_>>();
        assert_eq!(early_color(&words(&["commons", "--color", "never"])), Color::Never);
        assert_eq!(early_color(&words(&["commons", "list", "--color=always"])), Color::Always);
        assert_eq!(early_color(&words(&["commons", "list"])), Color::Auto);
    }
}
