//! `train`: a decoder from scratch, a model further, or low-rank adapters on it.

mod adapters;
mod arch;
mod names;
mod shape;

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use commons_core::Seed;
use commons_core::fs::write_json_atomic;
use commons_nn::eval::Perplexity;
use commons_nn::model::{
    Decoder, DecoderConfig, MixtureOfExperts, MixtureOfRecursions, SHARE_LAYERS_KEY, SaveFormat,
};
use commons_nn::train::{At, Loss, Outcome, Resume, TokenStream, TrainConfig, Trainer};
use commons_ops::DType;
use commons_weights::heal::check_rule;
use commons_weights::masa::{CoefficientNet, Dictionaries};
use commons_weights::parscale::freeze_model;
use commons_weights::stable_rps::{self, RpsConfig};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::cli::{App, Done};
use crate::config::{Layer, resolve};
use crate::error::{During, Failure, Result};
use crate::examples;
use crate::model::{self, Loaded, Options, size_on_disk};
use crate::output::Grid;
use crate::progress::Steps;
use crate::signals::resume_command;
use crate::text::{self, CORPUS, Division};
use crate::verbs::eval::{measure, windows};
use crate::work::{Opened, Policy, SETTINGS, Work, read_json};
use adapters::LoraConfig;
use commons_core::format::{bytes, grouped, number};
use names::{CacheName, OptimizerName, RouterName, SharingName};
use shape::{PoolConfig, no_experts, no_recursions};

pub const EXAMPLES: &str = examples![
    "# a small model on the embedded corpus",
    "$ commons train --arch nano --steps 300 -o nano",
    "# one of your own on your text",
    "$ commons train --arch micro --data book.txt --seq-len 256 --lr 2e-3 -o micro",
    "# a pretrained model further, with low-rank adapters",
    "$ commons train --model smollm2-135m --data notes.jsonl --lora-rank 16 -o tuned",
    "# a model whose middle layers each token passes as often as a router says",
    "$ commons train --arch mini --recursions 3 --router expert -o mor",
    "# sixteen experts in each layer, of which a token takes two of each half (grouped routing)",
    "$ commons train --arch mini --experts 16 --active-experts 4 --expert-groups 2 -o moge",
    "# one attention and one mixture of experts for all layers, which keep norms of their own",
    "$ commons train --arch mini --experts 4 --active-experts 2 --share-layers -o widenet",
    "# attention projections of all layers mixed from two matrices of each kind",
    "$ commons train --arch mini --atoms 2 -o masa",
    "# all matrices read from one pool an eighth of their size",
    "$ commons train --arch mini --pool-compression 8 -o pooled",
    "# after an interruption",
    "$ commons train --arch nano --steps 300 -o nano --resume",
    "# any setting by its name",
    "$ commons train --optimizer muon --set train.schedule=linear --set train.gradient_accumulation_steps=4",
];

/// Name of the report in the result.
const FILE: &str = "report.json";

/// Name of the adapter folder in the result.
const ADAPTER: &str = "adapter";

/// Checkpoints over a run whose settings ask for none in between.
const CHECKPOINTS: usize = 10;

/// Tokens measured after training.
const EVAL_TOKENS: usize = 16_384;

/// Options of `train`.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// Shape of a new model: a preset, or the config.json of any decoder [default: nano]
    #[arg(long, value_name = "PRESET|FILE", conflicts_with = "model")]
    pub arch: Option<String>,
    /// Model to go on from: a path or a name
    #[arg(short, long, value_name = "NAME|PATH")]
    pub model: Option<String>,
    /// Model whose tokenizer a new model takes, or `bytes` [default: bytes]
    #[arg(long, value_name = "NAME|PATH", conflicts_with = "model")]
    pub tokenizer: Option<String>,
    /// Passes of a new model through its middle layers: at most so many, each token as often as a router says (mixture of recursions)
    #[arg(long, value_name = "N", conflicts_with = "model", help_heading = "Recursions")]
    pub recursions: Option<usize>,
    /// Who decides how often [default: expert]
    #[arg(long, value_enum, help_heading = "Recursions", requires = "recursions")]
    pub router: Option<RouterName>,
    /// Which depths share a layer [default: middle_cycle]
    #[arg(long, value_enum, help_heading = "Recursions", requires = "recursions")]
    pub layer_sharing: Option<SharingName>,
    /// Whose keys and values a recursion sees [default: recursion]
    #[arg(long, value_enum, help_heading = "Recursions", requires = "recursions")]
    pub recursion_cache: Option<CacheName>,
    /// Experts of a new model in place of every feed-forward part (mixture of experts)
    #[arg(long, value_name = "N", conflicts_with = "model", help_heading = "Experts")]
    pub experts: Option<usize>,
    /// Experts that a token takes [default: 2]
    #[arg(long, value_name = "K", help_heading = "Experts", requires = "experts")]
    pub active_experts: Option<usize>,
    /// Groups of experts; a token takes as many of one as of any other [default: 1]
    #[arg(long, value_name = "M", help_heading = "Experts", requires = "experts")]
    pub expert_groups: Option<usize>,
    /// All layers of a new model have the same matrices, and norms of their own
    #[arg(long, conflicts_with = "model", help_heading = "Experts")]
    pub share_layers: bool,
    /// Matrices from which every layer of a new model mixes each of its attention projections
    #[arg(long, value_name = "N", conflicts_with = "model", help_heading = "Dictionaries")]
    pub atoms: Option<usize>,
    /// Projections that are mixed [default: q,k,v,o]
    #[arg(
        long,
        value_name = "NAME,…",
        value_delimiter = ',',
        help_heading = "Dictionaries",
        requires = "atoms"
    )]
    pub shared_projections: Vec<String>,
    /// How many times fewer elements than the matrices of a new model the pool holds that all of them are read from
    #[arg(long, value_name = "X", conflicts_with = "model", help_heading = "Pool")]
    pub pool_compression: Option<f64>,
    /// Folder to write [default: ARCH-trained or MODEL-trained]
    #[arg(short, long, value_name = "OUT")]
    pub out: Option<PathBuf>,
    /// Go on with an interrupted run
    #[arg(long, conflicts_with = "force")]
    pub resume: bool,
    /// Start over, and replace what is at OUT
    #[arg(long)]
    pub force: bool,
    /// Text to train on: a path or a name; FILE:COLUMN is a column of a table (.jsonl, .csv, .tsv, .parquet) [default: corpus]
    #[arg(short, long, value_name = "NAME|PATH", help_heading = "Text")]
    pub data: Option<String>,
    /// Text to measure on; lines it has in common with --data are not trained on [default: the last tenth of --data, which is then not trained on]
    #[arg(long, value_name = "NAME|PATH", help_heading = "Text")]
    pub eval_data: Option<String>,
    /// Optimiser steps [default: 200]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub steps: Option<usize>,
    /// Peak learning rate [default: 1e-3]
    #[arg(long, value_name = "X", help_heading = "Training")]
    pub lr: Option<f64>,
    /// Sequences per step [default: 8]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub batch_size: Option<usize>,
    /// Tokens per sequence [default: 128]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub seq_len: Option<usize>,
    /// Optimiser [default: adamw]
    #[arg(long, value_enum, help_heading = "Training")]
    pub optimizer: Option<OptimizerName>,
    /// Decay of matrices, in units of the learning rate [default: 0]
    #[arg(long, value_name = "X", help_heading = "Training")]
    pub weight_decay: Option<f64>,
    /// Write a checkpoint every so many steps [default: a tenth of the run]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub save_steps: Option<usize>,
    /// Train only what was added to --model: prefixes and mixing of its parallel streams
    #[arg(long, requires = "model", conflicts_with = "lora_rank", help_heading = "Training")]
    pub freeze_base: bool,
    /// Train low-rank adapters of this rank and nothing else
    #[arg(long, value_name = "N", help_heading = "Adapters", requires = "model")]
    pub lora_rank: Option<usize>,
    /// Scale of the adapters times their rank [default: twice the rank]
    #[arg(long, value_name = "X", help_heading = "Adapters", requires = "lora_rank")]
    pub lora_alpha: Option<f32>,
    /// Modules that get adapters [default: all seven matrices of a layer]
    #[arg(
        long,
        value_name = "NAME,…",
        value_delimiter = ',',
        help_heading = "Adapters",
        requires = "lora_rank"
    )]
    pub target_modules: Vec<String>,
}

/// Settings of `train`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    arch: Option<String>,
    model: Option<String>,
    tokenizer: String,
    data: String,
    eval_data: Option<String>,
    /// 0 recursions: none.
    mixture_of_recursions: MixtureOfRecursions,
    /// 0 experts: none.
    mixture_of_experts: MixtureOfExperts,
    share_layers: bool,
    /// 0 atoms: none.
    dictionaries: Dictionaries,
    pool: PoolConfig,
    freeze_base: bool,
    lora: LoraConfig,
    train: TrainConfig,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            arch: None,
            model: None,
            tokenizer: arch::BYTES.into(),
            data: CORPUS.into(),
            eval_data: None,
            mixture_of_recursions: no_recursions(),
            mixture_of_experts: no_experts(),
            share_layers: false,
            dictionaries: Dictionaries::default(),
            pool: PoolConfig::default(),
            freeze_base: false,
            lora: LoraConfig::default(),
            train: TrainConfig::default(),
        }
    }
}

/// What a run did.
#[derive(Debug, Serialize)]
struct Report {
    out: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    adapter: Option<String>,
    stored: usize,
    trainable: usize,
    steps: usize,
    tokens: usize,
    first_loss: f64,
    last_loss: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<Perplexity>,
    after: Perplexity,
    text: Value,
    seconds: f64,
}

/// Trains a model.
///
/// # Errors
/// When a setting does not fit, something cannot be read or written, training diverges, or the user
/// stopped it.
pub fn run(app: &App, args: &TrainArgs) -> Result<Done> {
    let settings = settings(app, args)?;
    // What does not fit is refused before anything is written.
    let started = start(app, &settings)?;
    let division = text::divide(
        app,
        &settings.data,
        settings.eval_data.as_deref(),
        corpus_bytes(&settings.train),
    )?;
    let out = args.out.clone().unwrap_or_else(|| default_out(&settings));
    let record = record(&settings, &division)?;
    let policy = Policy { resume: args.resume, force: args.force, folder: true };
    match Work::open(&out, &record, policy)? {
        Opened::Complete => {
            app.progress.note(format!("{} is complete already: nothing to resume", out.display()));
            if app.out.json {
                app.out.json(&read_json::<Value>(&out.join(FILE))?)?;
            }
        }
        Opened::Work(work) => {
            let report = train(app, (&settings, started), &division, &record, &out, work)?;
            show(app, &report)?;
        }
    }
    Ok(Done::Well)
}

fn settings(app: &App, args: &TrainArgs) -> Result<Settings> {
    let options = Options::default()
        .put("arch", args.arch.clone())
        .put("model", args.model.clone())
        .put("tokenizer", args.tokenizer.clone())
        .put("data", args.data.clone())
        .put("eval_data", args.eval_data.clone())
        .put("mixture_of_recursions.recursions", args.recursions)
        .put("mixture_of_recursions.router", args.router)
        .put("mixture_of_recursions.sharing", args.layer_sharing)
        .put("mixture_of_recursions.kv_cache", args.recursion_cache)
        .put("mixture_of_experts.num_experts", args.experts)
        .put("mixture_of_experts.num_experts_per_tok", args.active_experts)
        .put("mixture_of_experts.expert_groups", args.expert_groups)
        .put(SHARE_LAYERS_KEY, args.share_layers.then_some(true))
        .put("dictionaries.atoms", args.atoms)
        .put(
            "dictionaries.share",
            (!args.shared_projections.is_empty()).then(|| args.shared_projections.clone()),
        )
        .put("pool.compression", args.pool_compression)
        .put("freeze_base", args.freeze_base.then_some(true))
        .put("train.steps", args.steps)
        .put("train.learning_rate", args.lr)
        .put("train.batch_size", args.batch_size)
        .put("train.seq_len", args.seq_len)
        .put("train.save_steps", args.save_steps)
        .put("train.seed", app.global.seed)
        .put("train.optimizer.rule.name", args.optimizer)
        .put("train.optimizer.weight_decay", args.weight_decay)
        .put("lora.rank", args.lora_rank)
        .put("lora.alpha", args.lora_alpha)
        .put(
            "lora.target_modules",
            (!args.target_modules.is_empty()).then(|| args.target_modules.clone()),
        );
    let layers = Layer::all(app.global.config.as_deref(), &options, &app.global.set)?;
    let mut settings: Settings = resolve(&Settings::default(), &layers)?;
    settings.train.check()?;
    if settings.train.save_steps == 0 {
        settings.train.save_steps = settings.train.steps.div_ceil(CHECKPOINTS).max(1);
    }
    settings.lora.check()?;
    shape::check(&settings)?;
    if settings.model.is_none() && settings.lora.rank > 0 {
        return Err(Failure::usage("lora.rank", "adapters on a new model train nothing else")
            .help("give the model to adapt with --model"));
    }
    Ok(settings)
}

fn default_out(settings: &Settings) -> PathBuf {
    let from = settings.model.as_deref().or(settings.arch.as_deref()).unwrap_or(arch::DEFAULT);
    let stem = Path::new(from)
        .file_stem()
        .map_or_else(|| from.to_owned(), |s| s.to_string_lossy().into_owned());
    PathBuf::from(format!("{stem}-trained"))
}

/// Bytes of the embedded corpus for one pass, a token being about two bytes.
fn corpus_bytes(t: &TrainConfig) -> usize {
    let tokens = t.steps * t.batch_size * t.seq_len * t.gradient_accumulation_steps;
    (3 * tokens).clamp(256 << 10, 16 << 20)
}

fn record(settings: &Settings, division: &Division) -> Result<Value> {
    let mut record =
        serde_json::to_value(settings).map_err(|e| Failure::failed(format!("settings: {e}")))?;
    record["verb"] = "train".into();
    record["commons"] = env!("CARGO_PKG_VERSION").into();
    record["train_text"] = division.train.digest().into();
    record["test_text"] = division.test.digest().into();
    Ok(record)
}

/// The shape of a new model, and what it takes its vocabulary from.
fn new_shape(app: &App, settings: &Settings) -> Result<(arch::Donor, DecoderConfig)> {
    let donor = arch::Donor::open(app, &settings.tokenizer)?;
    let name = settings.arch.as_deref().unwrap_or(arch::DEFAULT);
    let mut config = arch::resolve(name, &donor, settings.train.seq_len)?;
    if settings.mixture_of_recursions.recursions > 0 {
        config.mixture_of_recursions = Some(settings.mixture_of_recursions.clone());
    }
    if settings.mixture_of_experts.num_experts > 0 {
        config.mixture_of_experts = Some(settings.mixture_of_experts.clone());
    }
    config.share_layers |= settings.share_layers;
    config.check()?;
    Ok((donor, config))
}

/// The model before the first step and the network that makes its coefficients.
fn start(app: &App, settings: &Settings) -> Result<(Loaded, Option<CoefficientNet>)> {
    let seed = Seed::new(settings.train.seed);
    let mut network = None;
    let mut loaded = match &settings.model {
        Some(name) => model::load(app, name)?,
        None => {
            let (donor, config) = new_shape(app, settings)?;
            let mut model = Decoder::init(config, seed.fork("init", 0))?;
            if settings.dictionaries.atoms > 0 {
                network = settings.dictionaries.attach(&mut model, seed.fork("masa", 0))?;
            }
            if settings.pool.is_used() {
                let PoolConfig { compression, mapping, embedding } = settings.pool;
                let config = RpsConfig { compression, mapping, embedding, ..RpsConfig::default() };
                (model, _) = stable_rps::fresh(&config, &model, seed.fork("pool", 0))?;
            }
            Loaded { model, tokenizer: donor.tokenizer, path: PathBuf::new() }
        }
    };
    if settings.lora.rank > 0 {
        settings.lora.add(&mut loaded.model, seed.fork("lora", 0))?;
    }
    if settings.freeze_base {
        if loaded.model.config.parallel_streams.is_none() {
            let why = "leaves nothing to train: the model has no parallel streams";
            return Err(Failure::usage("--freeze-base", why).help(
                "add some with `commons compress --method parscale`, or adapters with --lora-rank",
            ));
        }
        freeze_model(&mut loaded.model);
    }
    check_rule(&loaded.model, &settings.train)?;
    Ok((loaded, network))
}

fn train(
    app: &App,
    (settings, started): (&Settings, (Loaded, Option<CoefficientNet>)),
    division: &Division,
    record: &Value,
    out: &Path,
    work: Work,
) -> Result<Report> {
    let began = Instant::now();
    let (mut loaded, network) = started;
    let leave = || app.stop.leave(Some(resume_command()), &app.out);
    let score = |loaded: &Loaded, what: &str| {
        let windows = windows(loaded, None, None, Some(EVAL_TOKENS));
        measure(app, loaded, &division.test, windows, what, leave)
    };
    let before = match settings.model {
        Some(_) => Some(work.stage("before", || score(&loaded, "before"))?),
        None => None,
    };
    let losses = steps(app, settings, division, (&loaded, network.as_ref()), &work)?;
    if let Some(network) = network {
        network.finish(&mut loaded.model.bank)?;
    }
    let after = work.stage("after", || score(&loaded, "measuring"))?;
    let bank = &loaded.model.bank;
    let t = &settings.train;
    let report = Report {
        out: out.display().to_string(),
        adapter: (settings.lora.rank > 0).then(|| out.join(ADAPTER).display().to_string()),
        stored: bank.stored(),
        trainable: bank.trainable().map(|(_, v)| v.elem_count()).sum(),
        steps: losses.len(),
        tokens: losses.len() * t.batch_size * t.seq_len * t.gradient_accumulation_steps,
        first_loss: losses.first().copied().unwrap_or(f64::NAN),
        last_loss: losses.last().copied().unwrap_or(f64::NAN),
        before,
        after,
        text: json!({
            "train": division.train.describe(),
            "test": division.test.describe(),
            "apart": division.how,
        }),
        seconds: began.elapsed().as_secs_f64(),
    };
    let result = work.result();
    loaded.save(&result, SaveFormat::Shared(DType::F32)).during(|| "writing the result".into())?;
    if settings.lora.rank > 0 {
        settings.lora.write(settings.model.as_deref(), &loaded, &result.join(ADAPTER))?;
    }
    write_json_atomic(result.join(SETTINGS), record)?;
    write_json_atomic(result.join(FILE), &report)?;
    work.publish()?;
    Ok(report)
}

/// Trains, going on from the newest checkpoint. Returns the loss of every step.
fn steps(
    app: &App,
    settings: &Settings,
    division: &Division,
    (loaded, network): (&Loaded, Option<&CoefficientNet>),
    work: &Work,
) -> Result<Vec<f64>> {
    let t = &settings.train;
    let tokens = loaded.tokenizer.encode(&division.train.text, false)?;
    let stream = TokenStream::new(tokens, t.seq_len, t.batch_size, t.seed().fork("data", 0))
        .during(|| format!("cutting {} into sequences", division.train.origin))?;
    let bank = &loaded.model.bank;
    let mut trainer = Trainer::new(t.clone(), bank)?
        .checkpoints(work.path("checkpoints"))
        .stop_flag(app.stop.flag());
    let done = trainer.resume(Resume::Latest)?;
    if done > 0 {
        app.progress.note(format!("going on after step {done} of {}", t.steps));
    }
    let mut line = Steps::new(&app.progress, "training", t.steps);
    let outcome = trainer.run(
        |At { batch, .. }| {
            let ids = stream.batch(batch, bank.device())?;
            let noise = t.seed().fork("noise", batch);
            let made = match network {
                Some(network) => {
                    let bank = network.applied(bank).map_err(commons_nn::Error::from)?;
                    Some(Decoder { config: loaded.model.config.clone(), bank })
                }
                None => None,
            };
            let model = made.as_ref().unwrap_or(&loaded.model);
            let loss = model.training_loss(&ids, noise, t.gradient_checkpointing)?;
            let tokens = stream.tokens_per_batch();
            Ok(Loss { total: loss.total, tokens, parts: loss.parts })
        },
        |step| line.observe(step),
    );
    drop(line);
    match outcome.during(|| "training".into())? {
        Outcome::Finished => Ok(trainer.losses().to_vec()),
        Outcome::Interrupted => Err(Failure::interrupted(Some(resume_command()))),
    }
}

fn show(app: &App, r: &Report) -> Result<()> {
    if app.out.json {
        return app.out.json(r);
    }
    let mut grid = Grid::new(&["", ""]);
    grid.row([
        "parameters",
        &format!("{} stored, {} trained", grouped(r.stored as i64), grouped(r.trainable as i64)),
    ]);
    grid.row([
        "steps",
        &format!("{}, {} tokens", grouped(r.steps as i64), grouped(r.tokens as i64)),
    ]);
    grid.row(["loss", &format!("{} → {}", number(r.first_loss), number(r.last_loss))]);
    let before = r.before.map_or_else(String::new, |b| format!("{} → ", number(b.perplexity)));
    grid.row(["held-out perplexity", &format!("{before}{}", number(r.after.perplexity))]);
    grid.row(["bits per byte", &number(r.after.bits_per_byte)]);
    grid.row(["text", r.text["apart"].as_str().unwrap_or_default()]);
    grid.row(["wrote", &format!("{} ({})", r.out, bytes(size_on_disk(Path::new(&r.out))?))]);
    if let Some(adapter) = &r.adapter {
        grid.row(["adapter", adapter]);
    }
    app.out.grid(&grid)
}
