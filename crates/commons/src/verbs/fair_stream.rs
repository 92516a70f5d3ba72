//! `fair-stream`: decide and learn on a stream, with the gap between groups held down.

use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use commons_core::format::number;
use commons_core::fs::{AtomicFile, write_atomic};
use commons_core::report::{Page, Plot};
use commons_core::table::Table;
use commons_core::{Error as CoreError, cells};
use commons_society::aranyani::{
    Averaging, Constraint, Contrast, Decision, ForestConfig, Huber, Metric, Normalise, Pipeline,
    Scores, StreamConfig, standard_input,
};
use serde::Serialize;
use serde_json::json;

use crate::cli::{App, Done};
use crate::error::{Failure, Result};
use crate::examples;
use crate::output::Grid;

pub const EXAMPLES: &str = examples![
    "# decide, then learn, row by row; one decision per line before its label is looked at",
    "$ commons fair-stream fit --input stream.csv --target income --sensitive sex --positive >50K --lambda 0.5",
    "# from a pipe, and on from where it stopped",
    "$ commons fair-stream fit --input - --target y --sensitive group --state state.json",
    "$ commons fair-stream fit --input more.csv --resume state.json --state state.json",
    "# the trade-off of accuracy and parity",
    "$ commons fair-stream sweep --input stream.csv --target y --sensitive group --lambdas 0,.1,.5,1,5",
];

/// Rows between two lines of metrics.
const EVERY: u64 = 100;

/// Options of `fair-stream`.
#[derive(Debug, Args)]
pub struct FairStreamArgs {
    /// What to do
    #[command(subcommand)]
    pub what: What,
}

/// What `fair-stream` can do.
#[derive(Debug, Subcommand)]
pub enum What {
    /// One pass over a stream
    Fit(Box<FitArgs>),
    /// One pass for each of several weights of the constraint
    Sweep(Box<SweepArgs>),
}

/// Options of both.
#[derive(Debug, Args)]
pub struct StreamArgs {
    /// CSV with a header or JSON objects line by line; - for standard input
    #[arg(long, value_name = "FILE")]
    pub input: PathBuf,
    /// Column of the label
    #[arg(long, value_name = "COLUMN")]
    pub target: Option<String>,
    /// Column of the sensitive attribute
    #[arg(long, value_name = "COLUMN")]
    pub sensitive: Option<String>,
    /// Label that counts as positive
    #[arg(long, value_name = "LABEL", default_value = "1")]
    pub positive: String,
    /// Values of the sensitive attribute [default: the first two that come]
    #[arg(long, value_name = "VALUES", value_delimiter = ',')]
    pub groups: Vec<String>,
    /// Keep the sensitive column from the model
    #[arg(long)]
    pub drop_sensitive: bool,
    /// How features are scaled
    #[arg(long, value_enum, default_value_t = NormaliseArg::Running)]
    pub normalise: NormaliseArg,
    /// Trees
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub trees: usize,
    /// Depth of a tree
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub depth: u32,
    /// Where the constraint acts
    #[arg(long, value_enum, default_value_t = ConstraintArg::Node)]
    pub constraint: ConstraintArg,
    /// Which decisions are compared: parity, equalised odds, equal opportunity
    #[arg(long, value_enum, default_value_t = MetricArg::Dp)]
    pub metric: MetricArg,
    /// Which differences count with more than two groups
    #[arg(long, value_enum, default_value_t = ContrastArg::Pairwise)]
    pub contrast: ContrastArg,
    /// How gradients are averaged
    #[arg(long, value_enum, default_value_t = AveragingArg::Mean)]
    pub averaging: AveragingArg,
    /// Decay of momentum and ema
    #[arg(long, value_name = "SHARE", default_value_t = 0.9)]
    pub gamma: f64,
    /// Derivative outside the Huber zone
    #[arg(long, value_enum, default_value_t = HuberArg::Official)]
    pub huber: HuberArg,
    /// Step size of Adam
    #[arg(long, value_name = "RATE", default_value_t = 2e-3)]
    pub learning_rate: f64,
}

/// Options of `fair-stream fit`.
#[derive(Debug, Args)]
pub struct FitArgs {
    /// Stream.
    #[command(flatten)]
    pub stream: StreamArgs,
    /// Weight of the constraint; 0 for none
    #[arg(long, value_name = "WEIGHT", default_value_t = 0.1, allow_negative_numbers = true)]
    pub lambda: f64,
    /// Go on from a state; its settings are used
    #[arg(long, value_name = "FILE")]
    pub resume: Option<PathBuf>,
    /// Write the state at the end, to go on from
    #[arg(long, value_name = "FILE")]
    pub state: Option<PathBuf>,
    /// Write metrics as JSON lines, one every hundred rows
    #[arg(long, value_name = "FILE")]
    pub metrics: Option<PathBuf>,
    /// Write the decisions as CSV instead of to standard output
    #[arg(long, value_name = "FILE")]
    pub predictions: Option<PathBuf>,
}

/// Options of `fair-stream sweep`.
#[derive(Debug, Args)]
pub struct SweepArgs {
    /// Stream.
    #[command(flatten)]
    pub stream: StreamArgs,
    /// Weights of the constraint
    #[arg(long, value_name = "WEIGHTS", value_delimiter = ',', default_value = "0,0.1,0.5,1,5")]
    pub lambdas: Vec<f64>,
    /// Write the curve as a page
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

macro_rules! choice {
    ($(#[$doc:meta])* $name:ident for $target:ident { $($(#[$inner:meta])* $variant:ident),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
        pub enum $name { $($(#[$inner])* $variant),+ }

        impl From<$name> for $target {
            fn from(value: $name) -> Self {
                match value { $($name::$variant => Self::$variant),+ }
            }
        }
    };
}

choice!(
    /// Values of `--normalise`.
    NormaliseArg for Normalise {
        /// By the rows so far.
        Running,
        /// By the whole file: looks ahead.
        File,
        /// Not at all.
        None,
    }
);
choice!(
    /// Values of `--constraint`.
    ConstraintArg for Constraint {
        /// On every node.
        Node,
        /// On the final decision.
        Leaf,
    }
);
choice!(
    /// Values of `--metric`.
    MetricArg for Metric {
        /// Demographic parity.
        Dp,
        /// Equalised odds.
        Eo,
        /// Equal opportunity.
        Eopp,
    }
);
choice!(
    /// Values of `--contrast`.
    ContrastArg for Contrast {
        /// Every pair.
        Pairwise,
        /// Each against the mean.
        Mean,
    }
);
choice!(
    /// Values of `--averaging`.
    AveragingArg for Averaging {
        /// All instances count the same.
        Mean,
        /// Decaying sum.
        Momentum,
        /// Decaying mean.
        Ema,
    }
);
choice!(
    /// Values of `--huber`.
    HuberArg for Huber {
        /// The sign, as the official code has it.
        Official,
        /// The zone times the sign.
        Exact,
    }
);

impl StreamArgs {
    fn config(&self, lambda: f64) -> StreamConfig {
        StreamConfig {
            target: self.target.clone().unwrap_or_default(),
            sensitive: self.sensitive.clone().unwrap_or_default(),
            positive: self.positive.clone(),
            groups: self.groups.clone(),
            drop_sensitive: self.drop_sensitive,
            normalise: self.normalise.into(),
            forest: ForestConfig {
                trees: self.trees,
                depth: self.depth,
                groups: self.groups.len().max(2),
                lambda,
                huber: self.huber.into(),
                constraint: self.constraint.into(),
                metric: self.metric.into(),
                contrast: self.contrast.into(),
                averaging: self.averaging.into(),
                gamma: self.gamma,
                learning_rate: self.learning_rate,
                ..ForestConfig::default()
            },
        }
    }

    fn is_piped(&self) -> bool {
        self.input == Path::new("-")
    }

    fn open(&self) -> Result<(Box<dyn Read>, PathBuf)> {
        if self.is_piped() {
            return Ok((Box::new(std::io::stdin().lock()), standard_input()));
        }
        let file = File::open(&self.input).map_err(CoreError::io("read", &self.input))?;
        Ok((Box::new(BufReader::new(file)), self.input.clone()))
    }

    /// A pipeline ready for the stream: with `--normalise file`, one that has seen it once.
    fn pipeline(&self, lambda: f64, seed: u64) -> Result<Pipeline> {
        let mut pipeline = Pipeline::new(self.config(lambda), seed)?;
        if self.normalise == NormaliseArg::File {
            if self.is_piped() {
                return Err(Failure::usage("--normalise file", "needs a file, not standard input")
                    .help("use --normalise running"));
            }
            let (input, path) = self.open()?;
            pipeline.scan(input, &path)?;
        }
        Ok(pipeline)
    }
}

/// Runs the learner.
///
/// # Errors
/// Naming the file, row and column that cannot be used, or the option.
pub fn run(app: &App, args: &FairStreamArgs) -> Result<Done> {
    app.no_settings("fair-stream")?;
    match &args.what {
        What::Fit(args) => fit(app, args),
        What::Sweep(args) => sweep(app, args),
    }
}

/// The result of `fair-stream fit --json`.
#[derive(Debug, Serialize)]
struct Fitted {
    /// Metrics over all rows of the stream, resumed ones included.
    scores: Scores,
    /// Largest gap between groups at each node, per condition.
    nodes: Vec<Vec<Option<f64>>>,
    /// The state that was written.
    state: Option<PathBuf>,
}

fn fit(app: &App, args: &FitArgs) -> Result<Done> {
    let mut pipeline = match &args.resume {
        Some(path) => Pipeline::load(path)?,
        None => args.stream.pipeline(args.lambda, app.seed())?,
    };
    let create = |path: &Option<PathBuf>| path.as_ref().map(AtomicFile::create).transpose();
    let (mut predictions, mut metrics) = (create(&args.predictions)?, create(&args.metrics)?);
    let write = |file: &mut AtomicFile, path: &Option<PathBuf>, text: String| {
        let path = path.clone().unwrap_or_default();
        file.write_all(text.as_bytes()).map_err(CoreError::io("write", path))
    };
    if let Some(file) = &mut predictions {
        write(file, &args.predictions, "row,positive,probability\n".into())?;
    }
    let (input, path) = args.stream.open()?;
    let silent = app.out.json || args.predictions.is_some();
    let each = |pipeline: &Pipeline, d: &Decision| {
        if app.stop.inner().is_requested() {
            return Err(CoreError::Interrupted.into());
        }
        let line = format!("{},{},{:.6}\n", d.row, u8::from(d.positive), d.probability);
        if let Some(file) = &mut predictions {
            write(file, &args.predictions, line)?;
        } else if !silent {
            // Unbuffered: whoever feeds the pipe may wait for the answer.
            app.out.stream(&line).map_err(|e| CoreError::other(e.to_string()))?;
        }
        if let Some(file) = metrics.as_mut().filter(|_| d.row.is_multiple_of(EVERY)) {
            let scores = json!({ "row": d.row, "scores": pipeline.scores() });
            write(file, &args.metrics, format!("{scores}\n"))?;
        }
        Ok(())
    };
    pipeline.run(input, &path, each)?;
    predictions.map_or(Ok(()), AtomicFile::commit)?;
    metrics.map_or(Ok(()), AtomicFile::commit)?;
    if let Some(path) = &args.state {
        pipeline.save(path)?;
    }
    let nodes = pipeline.learner.as_ref().map(|l| l.fairness().gaps).unwrap_or_default();
    let fitted = Fitted { scores: pipeline.scores(), nodes, state: args.state.clone() };
    if app.out.json {
        app.out.json(&fitted)?;
    } else if args.predictions.is_some() {
        app.out.grid(&scores(&[(None, fitted.scores)]))?;
    }
    Ok(Done::Well)
}

fn scores(all: &[(Option<f64>, Scores)]) -> Grid {
    let mut grid = Grid::new(&[">lambda", ">rows", ">accuracy", ">DP", ">EO", ">EOpp"]);
    let show = |v: Option<f64>| v.map_or("–".to_owned(), number);
    for (lambda, s) in all {
        let lambda = lambda.map(number).unwrap_or_default();
        let rows = s.count.to_string();
        grid.row([lambda, rows, show(s.accuracy), show(s.dp), show(s.eo), show(s.eopp)]);
    }
    grid
}

/// One point of `fair-stream sweep --json`.
#[derive(Debug, Serialize)]
struct SweepPoint {
    /// Weight of the constraint.
    lambda: f64,
    /// Metrics at the end of the stream.
    scores: Scores,
}

fn sweep(app: &App, args: &SweepArgs) -> Result<Done> {
    if args.stream.is_piped() {
        return Err(Failure::usage("--input -", "a sweep reads the stream once per weight")
            .help("save the stream to a file first"));
    }
    let mut points = Vec::new();
    for &lambda in &args.lambdas {
        let mut pipeline = args.stream.pipeline(lambda, app.seed())?;
        let (input, path) = args.stream.open()?;
        pipeline.run(input, &path, |_, _| match app.stop.inner().is_requested() {
            true => Err(CoreError::Interrupted.into()),
            false => Ok(()),
        })?;
        points.push(SweepPoint { lambda, scores: pipeline.scores() });
    }
    if let Some(path) = &args.html {
        write_atomic(path, page(&points))?;
    }
    if app.out.json {
        app.out.json(&points)?;
    } else {
        let rows: Vec<_> = points.iter().map(|p| (Some(p.lambda), p.scores)).collect();
        app.out.grid(&scores(&rows))?;
    }
    Ok(Done::Well)
}

fn page(points: &[SweepPoint]) -> String {
    let at = |p: &SweepPoint| Some((p.scores.dp?, p.scores.accuracy?));
    let plot = Plot::new("Accuracy against demographic parity")
        .x("DP gap")
        .y("prequential accuracy")
        .line("forest", points.iter().filter_map(at));
    let mut table = Table::new("Points").columns(["lambda", "accuracy", "DP", "EO", "EOpp"]);
    for p in points {
        let s = p.scores;
        table.push(cells![p.lambda, s.accuracy, s.dp, s.eo, s.eopp]);
    }
    let (title, lead) = ("Fair stream", "Every decision was scored before its label was learnt");
    Page { title, lead, plots: &[plot], tables: &[table], ..Page::default() }.to_html()
}
