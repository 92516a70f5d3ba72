//! `compress`: store fewer parameters by sharing weights, then heal; measured before and after.

mod report;
mod settings;
mod stages;

use std::path::PathBuf;

use clap::Args;
use commons_weights::parscale::ParScale;
use commons_weights::{AnyCompress, Compress, Context};

use crate::cli::{App, Done};
use crate::error::{Failure, Result};
use crate::examples;
use crate::model::{self, Cost, EMBEDDED, Loaded};
use crate::text::{self, Division};
use crate::verbs::materialize::Format;
use crate::work::{Opened, Policy, Work};

use report::Plan;
use settings::{CompressConfig, Resolved};

pub const EXAMPLES: &str = examples![
    "# the embedded model on the embedded corpus: no file, no network, under three minutes",
    "$ commons compress",
    "# half the layers of a real model, healed on your text",
    "$ commons compress --model smollm2-135m --data shakespeare --loops 2 --rank 64 --steps 200 -o out",
    "# remove a tenth of the layers, let pairs of the rest share",
    "$ commons compress --model smollm2-135m --data book.txt --method foldgpt --remove 0.1 -o folded",
    "# one key and value head where there were three, four, …",
    "$ commons compress --model smollm2-135m --data book.txt --method kdgqa --kv-heads 1 -o grouped",
    "# all matrices from a pool of half their size",
    "$ commons compress --model smollm2-135m --data book.txt --method stable-rps --compression 2 -o pooled",
    "# attention projections mixed from a few shared matrices, a fifth of them saved",
    "$ commons compress --model smollm2-135m --data book.txt --method masa --ratio 0.2 -o masa",
    "# four parallel streams through the frozen layers, each with a prefix to train: not smaller",
    "$ commons compress --model smollm2-135m --data book.txt --method parscale --streams 4 -o wide",
    "# a block of the middle layers that each token passes once or twice",
    "$ commons compress --model smollm2-135m --data book.txt --method mor --recursions 2 -o mor",
    "# what would be stored, without doing it",
    "$ commons compress --model smollm2-135m --loops 3 --dry-run",
    "# after an interruption",
    "$ commons compress --model smollm2-135m --data shakespeare -o out --resume",
    "# any option of the method or of the healing by its name",
    "$ commons compress --set heal.train.optimizer.rule.name=muon --set heal.kl_coef=2",
];

/// Options of `compress`.
#[derive(Debug, Args)]
pub struct CompressArgs {
    /// Model to compress: a path or a name [default: tiny]
    #[arg(short, long, value_name = "NAME|PATH")]
    pub model: Option<String>,
    /// Method: a slug of `commons list` [default: relaxed-recursive]
    #[arg(long, value_name = "SLUG")]
    pub method: Option<String>,
    /// Folder (or .gguf file) to write [default: MODEL-METHOD]
    #[arg(short, long, value_name = "OUT")]
    pub out: Option<PathBuf>,
    /// What to write: hf keeps the sharing, gguf writes every weight out [default: hf]
    #[arg(long, value_enum)]
    pub format: Option<Format>,
    /// Go on with an interrupted job
    #[arg(long, conflicts_with = "force")]
    pub resume: bool,
    /// Start over, and replace what is at OUT
    #[arg(long)]
    pub force: bool,
    /// Only show the plan and the parameter counts
    #[arg(long, conflicts_with_all = ["resume", "force"])]
    pub dry_run: bool,
    /// Method and healing.
    #[command(flatten)]
    pub method_options: MethodOptions,
    /// Text.
    #[command(flatten)]
    pub text: TextOptions,
}

/// Options that methods have in common; each is refused by a method that does not have it.
#[derive(Debug, Args)]
#[command(next_help_heading = "Method and healing")]
pub struct MethodOptions {
    /// Times the stored block of layers is passed [relaxed-recursive; default: 2]
    #[arg(long, value_name = "N")]
    pub loops: Option<usize>,
    /// Rank of the low-rank terms; 0 ties strictly [relaxed-recursive; default: 64, less for narrow models]
    #[arg(long, value_name = "N")]
    pub rank: Option<usize>,
    /// How shared layers start: fitted, stepwise, average, lower … [relaxed-recursive, default: fitted; mor, default: stepwise]
    #[arg(long, value_name = "NAME")]
    pub init: Option<String>,
    /// How low-rank terms start: whitened_svd, svd, zero [relaxed-recursive; default: whitened_svd]
    #[arg(long, value_name = "NAME")]
    pub lora_init: Option<String>,
    /// Share of the layers to remove [foldgpt]
    #[arg(long, value_name = "FRACTION")]
    pub remove: Option<f64>,
    /// Consecutive layers that share one set of matrices [foldgpt]
    #[arg(long, value_name = "N")]
    pub share_group: Option<usize>,
    /// Key and value heads to keep [kdgqa; default: half]
    #[arg(long, value_name = "N")]
    pub kv_heads: Option<usize>,
    /// Who decides which query heads share one: gqa, kdgqa, dgqa-diff, dgqa-ema, random [kdgqa; default: kdgqa]
    #[arg(long, value_name = "NAME")]
    pub scheme: Option<String>,
    /// How many times fewer elements the pool holds than the matrices read from it [stable-rps; default: 2]
    #[arg(long, value_name = "X")]
    pub compression: Option<f64>,
    /// Share of the attention parameters to remove [masa; default: 0.2]
    #[arg(long, value_name = "FRACTION")]
    pub ratio: Option<f64>,
    /// Parallel streams through the layers [parscale; default: 2]
    #[arg(long, value_name = "N")]
    pub streams: Option<usize>,
    /// Prefix tokens of a stream [parscale; default: 16]
    #[arg(long, value_name = "N")]
    pub prefix_tokens: Option<usize>,
    /// Most passes of a token through the shared middle layers [mor; default: 2]
    #[arg(long, value_name = "N")]
    pub recursions: Option<usize>,
    /// Who decides how often: expert, token, random [mor; default: expert]
    #[arg(long, value_name = "NAME")]
    pub router: Option<String>,
    /// Steps of healing [default: 200]
    #[arg(long, value_name = "N")]
    pub steps: Option<usize>,
    /// Peak learning rate of healing
    #[arg(long, value_name = "X")]
    pub lr: Option<f64>,
    /// Sequences per step of healing
    #[arg(long, value_name = "N")]
    pub batch_size: Option<usize>,
    /// Tokens per sequence of healing
    #[arg(long, value_name = "N")]
    pub seq_len: Option<usize>,
    /// Model whose predictions healing imitates [default: the original]
    #[arg(long, value_name = "NAME|PATH")]
    pub teacher: Option<String>,
    /// Share only
    #[arg(long, conflicts_with_all = ["steps", "lr", "batch_size", "seq_len", "teacher"])]
    pub no_heal: bool,
}

/// Text to heal and to measure on.
#[derive(Debug, Args)]
#[command(next_help_heading = "Text")]
pub struct TextOptions {
    /// Text to calibrate and heal on: a path or a name; FILE:COLUMN is a column of a table (.jsonl, .csv, .tsv, .parquet) [default: corpus for tiny]
    #[arg(short, long, value_name = "NAME|PATH")]
    pub data: Option<String>,
    /// Text to measure on; lines it has in common with --data are not trained on [default: the last tenth of --data, which is then not trained on]
    #[arg(long, value_name = "NAME|PATH")]
    pub eval_data: Option<String>,
    /// Tokens to measure on [default: 16384]
    #[arg(long, value_name = "N")]
    pub eval_tokens: Option<usize>,
    /// Also measure the model strictly tied (rank 0), before any healing
    #[arg(long)]
    pub baselines: bool,
}

/// Compresses a model.
///
/// # Errors
/// When an option does not fit the method or the model, something cannot be read or written, or the
/// user stopped it.
pub fn run(app: &App, args: &CompressArgs) -> Result<Done> {
    let mut settings = settings::resolve(app, args, None)?;
    let original = model::load(app, &settings.config.model)?;
    original.model.config.check_every_layer()?;
    original.model.config.check_dense()?;
    settings = settings::resolve(app, args, Some(&original.model.config))?;
    let Resolved { config, compressor, heal } = &settings;
    if config.baselines && config.options.get("rank").is_none() {
        let what = format!("measures a model tied at rank 0, and `{}` has no rank", config.method);
        return Err(
            Failure::usage("--baselines", what).help("use it with --method relaxed-recursive")
        );
    }
    if let (Some(had), false) =
        (original.model.config.parallel_streams, config.method == ParScale::SLUG)
    {
        let what =
            format!("has {} parallel streams, which `{}` cannot carry", had.count, config.method);
        return Err(Failure::usage(&config.model, what)
            .help("compress the model they were added to, and add streams to the result"));
    }
    compressor.check(&config.options, &original.model)?;
    if args.dry_run {
        return dry_run(app, config, *compressor, &original);
    }
    let out = args.out.clone().unwrap_or_else(|| default_out(config));
    let bytes = corpus_bytes(config, heal);
    let division = text::divide(app, settings::data(config)?, config.eval_data.as_deref(), bytes)?;
    let record = config.record(&division)?;
    let policy =
        Policy { resume: args.resume, force: args.force, folder: config.format == Format::Hf };
    match Work::open(&out, &record, policy)? {
        Opened::Complete => {
            app.progress.note(format!("{} is complete already: nothing to resume", out.display()));
            if app.out.json {
                app.out
                    .json(&crate::work::read_json::<serde_json::Value>(&out.join(report::FILE))?)?;
            }
        }
        Opened::Work(work) => {
            let job = stages::Job {
                app,
                settings: &settings,
                division: &division,
                record: &record,
                out: &out,
            };
            let report = job.run(work, original)?;
            report.show(app)?;
        }
    }
    Ok(Done::Well)
}

/// `MODEL-METHOD`, with the last name of a path.
fn default_out(config: &CompressConfig) -> PathBuf {
    let model = PathBuf::from(&config.model);
    let stem = model
        .file_stem()
        .map_or_else(|| config.model.clone(), |s| s.to_string_lossy().into_owned());
    let ending = if config.format == Format::Gguf { ".gguf" } else { "" };
    PathBuf::from(format!("{stem}-{}{ending}", config.method))
}

/// Bytes of the embedded corpus for one pass of healing, a token being about two bytes.
fn corpus_bytes(config: &CompressConfig, heal: &commons_weights::heal::HealConfig) -> usize {
    let t = &heal.train;
    let tokens = t.steps * t.batch_size * t.seq_len * t.gradient_accumulation_steps;
    (3 * tokens.max(config.calibration_tokens)).clamp(256 << 10, 16 << 20)
}

fn dry_run(
    app: &App,
    config: &CompressConfig,
    compressor: &dyn AnyCompress,
    original: &Loaded,
) -> Result<Done> {
    let calibration = match settings::data(config) {
        Ok(data) => calibration(
            app,
            config,
            original,
            &text::divide(app, data, config.eval_data.as_deref(), 256 << 10)?,
        )?,
        // Methods that look at no text need none for a plan.
        Err(_) => Vec::new(),
    };
    let shared = share(app, config, compressor, original, &calibration, &config.options)?;
    let plan = Plan::new(config, Cost::of(&original.model)?, &shared)?;
    plan.show(app)?;
    Ok(Done::Well)
}

/// Pieces the calibration text is taken from, spread evenly: a text often begins with a title page.
const CALIBRATION_PIECES: usize = 16;

/// Tokens the method may look at.
fn calibration(
    app: &App,
    config: &CompressConfig,
    original: &Loaded,
    division: &Division,
) -> Result<Vec<u32>> {
    app.stop.check()?;
    let text = &division.train.text;
    let wanted = config.calibration_tokens.div_ceil(CALIBRATION_PIECES);
    let mut tokens = Vec::with_capacity(config.calibration_tokens);
    for piece in 0..CALIBRATION_PIECES {
        let start = text.floor_char_boundary(text.len() * piece / CALIBRATION_PIECES);
        // Eight bytes a token are plenty, and long texts need not be encoded whole.
        let room = (8 * wanted).min(text.len() / CALIBRATION_PIECES);
        let end = text.floor_char_boundary(start + room);
        let mut encoded = original.tokenizer.encode(&text[start..end], false)?;
        encoded.truncate(wanted.min(config.calibration_tokens - tokens.len()));
        tokens.append(&mut encoded);
    }
    Ok(tokens)
}

/// Shares the weights of `original` under a bar.
fn share(
    app: &App,
    config: &CompressConfig,
    compressor: &dyn AnyCompress,
    original: &Loaded,
    calibration: &[u32],
    options: &serde_json::Value,
) -> Result<commons_weights::Shared> {
    let mut task: Option<(String, crate::progress::Task)> = None;
    let mut progress = |what: &str, done: usize, total: usize| {
        if task.as_ref().is_none_or(|(name, _)| name != what) {
            task = Some((what.to_owned(), app.progress.task("sharing", total as u64)));
        }
        if let Some((_, task)) = &task {
            task.update(done as u64, what);
        }
    };
    let mut context =
        Context { calibration, seed: config.seed, stop: app.stop.flag(), progress: &mut progress };
    let shared = compressor.share(options, &original.model, &mut context)?;
    if config.format == Format::Gguf {
        // Rather now than after hours of healing.
        shared.model.config.check_plain()?;
    }
    Ok(shared)
}

/// Whether `model` is the one inside the binary.
fn is_embedded(model: &str) -> bool {
    model == EMBEDDED
}
