//! `eval`: perplexity and bits per byte of a text, and multiple choice by likelihood.

use std::path::Path;

use clap::Args;
use commons_nn::data::corpus::{self, Kind, Split};
use commons_nn::eval::{
    Choice, ChoiceAccuracy, ExitProfile, Perplexity, Windows, check_loops, multiple_choice,
    perplexity,
};
use serde::{Deserialize, Serialize};

use crate::cli::{App, Done};
use crate::config::{Layer, nearest, resolve};
use crate::error::{During, Failure, Result};
use crate::examples;
use crate::model::{self, EMBEDDED, Loaded, Options};
use crate::output::Grid;
use crate::text::{self, CORPUS};
use commons_core::format::{grouped, number};

pub const EXAMPLES: &str = examples![
    "$ commons eval tiny",
    "$ commons eval smollm2-135m --data shakespeare --max-tokens 20000",
    "$ commons eval ./out --data test.txt --context 1024 --stride 512 --json",
    "# the questions of the embedded corpus, and a file of your own",
    "$ commons eval tiny --task corpus --task questions.jsonl",
    "# what a looped model predicts after each of its two loops, and what leaving early saves",
    "$ commons eval ./out --data test.txt --exits 2 --exit-threshold 0.8",
    "# a line of questions.jsonl",
    "#   {\"prompt\": \"2+2=\", \"options\": [\"3\", \"4\"], \"answer\": 1}",
];

/// Bytes of the embedded corpus that are measured.
const CORPUS_BYTES: usize = 128 << 10;

/// Questions scored between two looks at the stop flag.
const QUESTIONS_AT_ONCE: usize = 8;

/// Options of `eval`.
#[derive(Debug, Args)]
pub struct EvalArgs {
    /// Model: a path or a name
    pub model: String,
    /// Text to measure: a path or a name; FILE:COLUMN is a column of a table (.jsonl, .csv, .tsv, .parquet) [default: the embedded corpus, unless a task is given]
    #[arg(short, long, value_name = "NAME|PATH")]
    pub data: Option<String>,
    /// Multiple choice: `corpus`, one of its kinds, or a .jsonl file; may be repeated
    #[arg(short, long, value_name = "TASK")]
    pub task: Vec<String>,
    /// Questions asked of each kind of the corpus [default: 50]
    #[arg(long, value_name = "N")]
    pub questions: Option<usize>,
    /// Tokens a prediction may look back on [default: 512, or what the model was made for]
    #[arg(long, value_name = "N")]
    pub context: Option<usize>,
    /// Tokens the window moves at a time [default: half the context]
    #[arg(long, value_name = "N")]
    pub stride: Option<usize>,
    /// Stop after this many tokens [default: all]
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<usize>,
    /// Read the model out after each of N equal parts of its layers as well
    #[arg(long, value_name = "N")]
    pub exits: Option<usize>,
    /// Probability at which a token leaves early; may be repeated [default: 0.5, 0.7, 0.9]
    #[arg(long, value_name = "P", requires = "exits")]
    pub exit_threshold: Vec<f64>,
}

/// Settings of `eval`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EvalConfig {
    data: Option<String>,
    tasks: Vec<String>,
    questions: usize,
    context: Option<usize>,
    stride: Option<usize>,
    max_tokens: Option<usize>,
    exits: Option<usize>,
    exit_thresholds: Vec<f64>,
}

/// What `eval` measured.
#[derive(Debug, Serialize)]
struct Evaluation {
    model: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<TextResult>,
    tasks: Vec<TaskResult>,
}

#[derive(Debug, Serialize)]
struct TextResult {
    data: text::Described,
    windows: Windows,
    #[serde(flatten)]
    measured: Perplexity,
    #[serde(skip_serializing_if = "Option::is_none")]
    early: Option<ExitProfile>,
}

#[derive(Debug, Serialize)]
struct TaskResult {
    task: String,
    /// Share of questions a guesser would get right.
    chance: f64,
    #[serde(flatten)]
    measured: ChoiceAccuracy,
}

/// Measures a model.
///
/// # Errors
/// When the model or the data cannot be read, or a setting is out of range.
pub fn run(app: &App, args: &EvalArgs) -> Result<Done> {
    let defaults = EvalConfig {
        data: None,
        tasks: Vec::new(),
        questions: 50,
        context: None,
        stride: None,
        max_tokens: None,
        exits: None,
        exit_thresholds: vec![0.5, 0.7, 0.9],
    };
    let options = Options::default()
        .put("data", args.data.clone())
        .put("tasks", (!args.task.is_empty()).then(|| args.task.clone()))
        .put("questions", args.questions)
        .put("context", args.context)
        .put("stride", args.stride)
        .put("max_tokens", args.max_tokens)
        .put("exits", args.exits)
        .put("exit_thresholds", (!args.exit_threshold.is_empty()).then_some(&args.exit_threshold));
    let layers = Layer::all(app.global.config.as_deref(), &options, &app.global.set)?;
    let config: EvalConfig = resolve(&defaults, &layers)?;
    check_exits(&config)?;
    // Read questions before the model: a mistake in them should not cost a load.
    let tasks = config
        .tasks
        .iter()
        .map(|t| task(t, config.questions))
        .collect::<Result<Vec<_>>>()?
        .concat();
    let data = match (&config.data, tasks.is_empty()) {
        (Some(name), _) => Some(name.as_str()),
        (None, true) if args.model == EMBEDDED => Some(CORPUS),
        (None, true) => {
            return Err(Failure::usage("--data", "is missing").help(
                "give text to measure, as in --data shakespeare or --data test.txt, or a --task",
            ));
        }
        (None, false) => None,
    };
    let loaded = model::load(app, &args.model)?;
    if let Some(loops) = config.exits {
        check_loops(&loaded.model.config, loops)?;
    }
    let text = data.map(|name| measure_text(app, &loaded, name, &config)).transpose()?;
    let mut results = Vec::new();
    for (name, questions) in tasks {
        let measured = ask(app, &loaded, &name, &questions)?;
        results.push(TaskResult { task: name, chance: chance(&questions), measured });
    }
    show(app, &Evaluation { model: args.model.clone(), text, tasks: results })?;
    Ok(Done::Well)
}

fn measure_text(app: &App, loaded: &Loaded, name: &str, config: &EvalConfig) -> Result<TextResult> {
    let text = text::load(app, name, Split::Test, CORPUS_BYTES)?;
    let windows = windows(loaded, config.context, config.stride, config.max_tokens);
    let measured =
        measure(app, loaded, &text, windows, "measuring", || app.stop.leave(None, &app.out))?;
    let early = config.exits.map(|loops| exits(app, loaded, &text, windows, loops, config));
    Ok(TextResult { data: text.describe(), windows, measured, early: early.transpose()? })
}

fn check_exits(config: &EvalConfig) -> Result<()> {
    match config.exit_thresholds.iter().find(|p| !(0. ..=1.).contains(*p)) {
        Some(p) => Err(Failure::usage(format!("--exit-threshold {p}"), "is not a probability")
            .help("give a number from 0 (leave at once) to 1 (never leave early)")),
        None => Ok(()),
    }
}

/// Reads the model out after each of `loops` parts of its layers.
fn exits(
    app: &App,
    loaded: &Loaded,
    text: &text::Text,
    windows: Windows,
    loops: usize,
    config: &EvalConfig,
) -> Result<ExitProfile> {
    let tokens = loaded.tokenizer.encode(&text.text, false)?;
    let limit = windows.max_tokens.unwrap_or(usize::MAX).min(tokens.len().saturating_sub(1));
    let task = app.progress.task("early exits", limit as u64);
    let sizes = (windows.context, limit);
    let thresholds = &config.exit_thresholds;
    let profile = ExitProfile::measure(&loaded.model, &tokens, loops, sizes, thresholds, |done| {
        if app.stop.raised() {
            app.stop.leave(None, &app.out);
        }
        task.update(done as u64, "tokens");
    });
    let profile = profile.during(|| format!("reading {} out early", text.origin))?;
    task.finish("tokens");
    Ok(profile)
}

/// Windows that fit the model.
pub fn windows(
    loaded: &Loaded,
    context: Option<usize>,
    stride: Option<usize>,
    max_tokens: Option<usize>,
) -> Windows {
    let longest = loaded.model.config.max_position_embeddings;
    let context = context.unwrap_or_else(|| Windows::default().context.min(longest));
    Windows { context, stride: stride.unwrap_or_else(|| (context / 2).max(1)), max_tokens }
}

/// Perplexity with a bar. Once the stop flag is up, `leave` is called after each window: there is
/// nothing half done that would be worth keeping.
pub fn measure(
    app: &App,
    loaded: &Loaded,
    text: &text::Text,
    windows: Windows,
    what: &str,
    leave: impl Fn(),
) -> Result<Perplexity> {
    let tokens = loaded.tokenizer.encode(&text.text, false)?;
    let total = windows.max_tokens.unwrap_or(usize::MAX).min(tokens.len().saturating_sub(1));
    let task = app.progress.task(what, total as u64);
    let measured = perplexity(&loaded.model, &tokens, text.text.len(), windows, |done| {
        if app.stop.raised() {
            leave();
        }
        task.update(done as u64, "tokens");
    });
    let measured = measured.during(|| format!("measuring {}", text.origin))?;
    task.finish(&format!("tokens, perplexity {}", number(measured.perplexity)));
    Ok(measured)
}

fn ask(app: &App, loaded: &Loaded, name: &str, questions: &[Choice]) -> Result<ChoiceAccuracy> {
    let task = app.progress.task(name, questions.len() as u64);
    let (mut right, mut right_norm, mut done) = (0., 0., 0);
    for some in questions.chunks(QUESTIONS_AT_ONCE) {
        app.stop.check()?;
        let part = multiple_choice(&loaded.model, &loaded.tokenizer, some)
            .during(|| format!("task {name}"))?;
        right += part.accuracy * some.len() as f64;
        right_norm += part.accuracy_norm * some.len() as f64;
        done += some.len();
        task.update(done as u64, "questions");
    }
    let n = questions.len().max(1) as f64;
    task.finish(&format!("questions, {:.1} % right", 100. * right / n));
    Ok(ChoiceAccuracy {
        accuracy: right / n,
        accuracy_norm: right_norm / n,
        questions: questions.len(),
    })
}

fn chance(questions: &[Choice]) -> f64 {
    questions.iter().map(|q| 1. / q.options.len().max(1) as f64).sum::<f64>()
        / questions.len().max(1) as f64
}

/// The questions of a task: the corpus, one of its kinds, or a file.
fn task(name: &str, count: usize) -> Result<Vec<(String, Vec<Choice>)>> {
    let of = |kind: Kind| (kind.name().to_owned(), corpus_questions(kind, count));
    if name == CORPUS {
        return Ok(Kind::ALL.into_iter().map(of).collect());
    }
    if let Some(kind) = Kind::ALL.into_iter().find(|k| k.name() == name) {
        return Ok(vec![of(kind)]);
    }
    let path = Path::new(name);
    if !path.exists() {
        let mut known: Vec<String> = Kind::ALL.iter().map(|k| k.name().to_owned()).collect();
        known.push(CORPUS.to_owned());
        let near = nearest(name, &known);
        let help = if near.is_empty() {
            format!("tasks: {}, or a .jsonl file", known.join(", "))
        } else {
            format!("did you mean {}?", near.join(" or "))
        };
        return Err(Failure::usage(
            format!("--task {name}"),
            "is neither a file nor a task of the corpus",
        )
        .help(help));
    }
    let label =
        path.file_stem().map_or_else(|| name.to_owned(), |s| s.to_string_lossy().into_owned());
    Ok(vec![(label, questions_of(path)?)])
}

/// Questions of one kind of the corpus, from its test split.
pub fn corpus_questions(kind: Kind, count: usize) -> Vec<Choice> {
    let questions = corpus::questions(Split::Test, kind, count);
    questions
        .into_iter()
        .map(|q| Choice { prompt: q.prompt, options: q.choices, answer: q.answer })
        .collect()
}

fn questions_of(path: &Path) -> Result<Vec<Choice>> {
    let text = commons_core::fs::read_text(path, 1 << 30)?;
    let mut questions = Vec::new();
    for (i, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
        let place = || format!("{}: line {}", path.display(), i + 1);
        let mut reader = serde_json::Deserializer::from_str(line);
        let question: Choice = serde_path_to_error::deserialize(&mut reader).map_err(|e| {
            Failure::usage(format!("{}: {}", place(), e.path()), e.inner()).help(
                r#"a line is {"prompt": TEXT, "options": [TEXT, ..], "answer": INDEX FROM 0}"#,
            )
        })?;
        if question.answer >= question.options.len() {
            let n = question.options.len();
            return Err(Failure::usage(
                format!("{}: answer", place()),
                format!("{} is not the index of one of {n} options", question.answer),
            )
            .help("indices count from 0"));
        }
        questions.push(question);
    }
    if questions.is_empty() {
        return Err(Failure::usage(path.display(), "holds no questions"));
    }
    Ok(questions)
}

fn show(app: &App, result: &Evaluation) -> Result<()> {
    if app.out.json {
        return app.out.json(result);
    }
    if let Some(text) = &result.text {
        let mut grid = Grid::new(&["", ""]);
        grid.row(["text", &text.data.origin]);
        grid.row(["tokens", &grouped(text.measured.tokens as i64)]);
        grid.row(["perplexity", &number(text.measured.perplexity)]);
        grid.row(["loss", &format!("{} nats per token", number(text.measured.loss))]);
        grid.row(["bits per byte", &number(text.measured.bits_per_byte)]);
        grid.row([
            "windows",
            &format!("{} tokens, moved by {}", text.windows.context, text.windows.stride),
        ]);
        app.out.grid(&grid)?;
        if let Some(early) = &text.early {
            show_exits(app, early)?;
        }
    }
    if !result.tasks.is_empty() {
        if result.text.is_some() {
            app.out.text("")?;
        }
        let mut grid = Grid::new(&["task", ">right", ">by length", ">chance", ">questions"]);
        let percent = |x: f64| format!("{:.1} %", 100. * x);
        for task in &result.tasks {
            let m = task.measured;
            grid.row([
                task.task.clone(),
                percent(m.accuracy),
                percent(m.accuracy_norm),
                percent(task.chance),
                grouped(m.questions as i64),
            ]);
        }
        app.out.grid(&grid)?;
    }
    Ok(())
}

fn show_exits(app: &App, early: &ExitProfile) -> Result<()> {
    app.out.text("")?;
    let mut grid = Grid::new(&[">after loop", ">loss", ">perplexity"]);
    for (i, loss) in early.losses.iter().enumerate() {
        grid.row([(i + 1).to_string(), number(*loss), number(loss.exp())]);
    }
    app.out.grid(&grid)?;
    app.out.text("")?;
    let mut grid = Grid::new(&[">leave at", ">loops passed", ">same word", ">perplexity"]);
    for exit in &early.exits {
        grid.row([
            number(exit.threshold),
            format!("{:.2} of {}", exit.mean_loops, early.losses.len()),
            format!("{:.1} %", 100. * exit.agreement),
            number(exit.loss.exp()),
        ]);
    }
    app.out.grid(&grid)
}
