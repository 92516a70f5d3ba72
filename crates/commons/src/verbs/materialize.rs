//! `materialize`: a plain checkpoint that transformers and llama.cpp load.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use commons_nn::format::gguf::GgmlType;
use commons_nn::format::peft::Adapter;
use commons_nn::model::SaveFormat;
use commons_ops::DType;
use serde_json::json;

use crate::cli::{App, Done};
use crate::error::{During, Failure, Result};
use crate::examples;
use crate::model::{self, Target};
use commons_core::format;

pub const EXAMPLES: &str = examples![
    "# a Hugging Face folder for transformers",
    "$ commons materialize ./out -o ./plain",
    "# one file for llama.cpp",
    "$ commons materialize ./out -o model.gguf --dtype q8_0",
    "$ commons materialize smollm2-135m -o ./smollm2 --dtype bf16",
    "# a model together with a PEFT adapter that was trained on it",
    "$ commons materialize smollm2-135m --adapter ./tuned/adapter -o ./merged",
];

/// Options of `materialize`.
#[derive(Debug, Args)]
pub struct MaterializeArgs {
    /// Model: a path or a name
    #[arg(value_name = "IN")]
    pub model: String,
    /// Folder (hf) or file (gguf) to write
    #[arg(short, long, value_name = "OUT")]
    pub out: PathBuf,
    /// PEFT adapter folder (LoRA) to add to the model
    #[arg(long, value_name = "FOLDER")]
    pub adapter: Option<PathBuf>,
    /// What to write [default: gguf if OUT ends in .gguf, else hf]
    #[arg(long, value_enum)]
    pub format: Option<Format>,
    /// Element type of the matrices [default: f32 for hf, f16 for gguf]
    #[arg(long, value_enum)]
    pub dtype: Option<Dtype>,
    /// Replace OUT if it exists
    #[arg(long)]
    pub force: bool,
}

/// Kinds of checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Hugging Face folder: config.json, safetensors, tokenizer.
    Hf,
    /// One GGUF file.
    Gguf,
}

/// Element types.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Dtype {
    /// 32-bit float.
    F32,
    /// 16-bit float.
    F16,
    /// bfloat16.
    Bf16,
    /// 8-bit blocks (GGUF only).
    #[value(name = "q8_0")]
    Q8_0,
}

impl Dtype {
    fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8_0 => "q8_0",
        }
    }
}

impl MaterializeArgs {
    fn format(&self) -> Format {
        let by_name = || {
            if self.out.extension().is_some_and(|e| e == "gguf") {
                Format::Gguf
            } else {
                Format::Hf
            }
        };
        self.format.unwrap_or_else(by_name)
    }

    fn dtype(&self) -> Dtype {
        self.dtype.unwrap_or(match self.format() {
            Format::Hf => Dtype::F32,
            Format::Gguf => Dtype::F16,
        })
    }

    fn save_format(&self) -> Result<SaveFormat> {
        Ok(match (self.format(), self.dtype()) {
            (Format::Hf, Dtype::F32) => SaveFormat::HuggingFace(DType::F32),
            (Format::Hf, Dtype::F16) => SaveFormat::HuggingFace(DType::F16),
            (Format::Hf, Dtype::Bf16) => SaveFormat::HuggingFace(DType::BF16),
            (Format::Hf, Dtype::Q8_0) => {
                return Err(Failure::usage("--dtype q8_0", "is a type of GGUF files only")
                    .help("pass --format gguf, or --dtype f32, f16 or bf16"));
            }
            (Format::Gguf, Dtype::F32) => SaveFormat::Gguf(GgmlType::F32),
            (Format::Gguf, Dtype::F16) => SaveFormat::Gguf(GgmlType::F16),
            (Format::Gguf, Dtype::Bf16) => SaveFormat::Gguf(GgmlType::BF16),
            (Format::Gguf, Dtype::Q8_0) => SaveFormat::Gguf(GgmlType::Q8_0),
        })
    }
}

/// Writes a plain checkpoint.
///
/// # Errors
/// When the model cannot be loaded or the output cannot be written.
pub fn run(app: &App, args: &MaterializeArgs) -> Result<Done> {
    app.no_settings("materialize")?;
    let format = args.save_format()?;
    let target = Target::free(&args.out, args.format() == Format::Hf, args.force)?;
    let mut loaded = model::load(app, &args.model)?;
    if let Some(folder) = &args.adapter {
        Adapter::open(folder, Some(DType::F32))?
            .apply(&mut loaded.model.bank)
            .during(|| format!("adding {}", folder.display()))?;
    }
    let task = app.progress.task("writing", 0);
    task.update(0, &args.out.display().to_string());
    target
        .write(|path| loaded.save(path, format).during(|| format!("writing {}", path.display())))?;
    drop(task);
    let bytes = model::size_on_disk(&args.out)?;
    let (stored, logical) = (loaded.model.bank.stored(), loaded.model.bank.logical()?);
    if app.out.json {
        app.out.json(&json!({
            "out": args.out,
            "format": args.format(),
            "dtype": args.dtype().name(),
            "parameters": logical,
            "stored_in_source": stored,
            "bytes": bytes,
        }))?;
    } else {
        app.out.text(&format!(
            "{}: {} parameters in {}, {} (the source stored {})",
            args.out.display(),
            format::grouped(logical as i64),
            args.dtype().name(),
            format::bytes(bytes),
            format::grouped(stored as i64),
        ))?;
    }
    Ok(Done::Well)
}
