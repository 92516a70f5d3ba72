//! Shapes of new models.

use std::path::Path;

use commons_nn::model::DecoderConfig;
use commons_nn::tokenizer::Tokenizer;
use serde_json::Value;

use crate::cli::App;
use crate::config::nearest;
use crate::error::{During, Failure, Result};
use crate::model;

/// The preset taken when none is named.
pub const DEFAULT: &str = "nano";

/// Name, layers, width, heads, key-value heads, feed-forward width.
const PRESETS: [(&str, usize, usize, usize, usize, usize); 5] = [
    ("nano", 4, 64, 4, 2, 176),
    ("micro", 6, 128, 4, 2, 352),
    ("mini", 8, 256, 8, 4, 704),
    ("small", 12, 384, 6, 3, 1024),
    ("base", 30, 576, 9, 3, 1536),
];

/// Name of the tokenizer whose tokens are bytes.
pub const BYTES: &str = "bytes";

/// What a new model takes its vocabulary from.
pub struct Donor {
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    vocab_size: usize,
    bos: Option<u32>,
    eos: Option<u32>,
}

impl Donor {
    /// The byte tokenizer, or that of the model `name`.
    ///
    /// # Errors
    /// When the model cannot be loaded.
    pub fn open(app: &App, name: &str) -> Result<Self> {
        if name == BYTES {
            let tokenizer = Tokenizer::bytes()?;
            let special = tokenizer.special().clone();
            let vocab_size = tokenizer.vocab_size();
            return Ok(Self { tokenizer, vocab_size, bos: special.bos, eos: special.eos });
        }
        let loaded = model::load(app, name).during(|| "loading the tokenizer".into())?;
        let config = loaded.model.config;
        Ok(Self {
            tokenizer: loaded.tokenizer,
            vocab_size: config.vocab_size,
            bos: config.bos_token_id,
            eos: config.eos_token_id,
        })
    }
}

/// The shape called `name`: a preset with the vocabulary of `donor` and a context of `seq_len`
/// tokens, which is what it will be trained on, or the file of that name.
///
/// # Errors
/// When it is neither, or the file does not describe a decoder, or has fewer rows than tokens.
pub fn resolve(name: &str, donor: &Donor, seq_len: usize) -> Result<DecoderConfig> {
    let special = |mut config: DecoderConfig| {
        config.bos_token_id = donor.bos;
        config.eos_token_id = donor.eos;
        config
    };
    let vocab = donor.vocab_size;
    if let Some(&(_, layers, width, heads, kv, ffn)) = PRESETS.iter().find(|p| p.0 == name) {
        let config = DecoderConfig::llama(vocab, width, layers, heads, kv, ffn);
        return Ok(special(DecoderConfig { max_position_embeddings: seq_len, ..config }));
    }
    let path = Path::new(name);
    if !path.exists() {
        let known: Vec<String> = PRESETS.iter().map(|p| p.0.to_owned()).collect();
        let near = nearest(name, &known);
        let help = if near.is_empty() {
            format!("presets: {}; or give a config.json", known.join(", "))
        } else {
            format!("did you mean {}?", near.join(" or "))
        };
        return Err(
            Failure::usage(format!("--arch {name}"), "is neither a preset nor a file").help(help)
        );
    }
    let file = if path.is_dir() { path.join("config.json") } else { path.to_owned() };
    let object = commons_nn::format::folder::read_config(&file)?;
    let config =
        DecoderConfig::from_json(&Value::Object(object)).during(|| file.display().to_string())?;
    if config.vocab_size < vocab {
        return Err(Failure::usage(
            format!("{}: vocab_size", file.display()),
            format!("{} is less than the {vocab} tokens of the tokenizer", config.vocab_size),
        )
        .help("raise vocab_size, or take another --tokenizer"));
    }
    Ok(special(config))
}
