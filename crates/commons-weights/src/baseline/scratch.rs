//! A small decoder trained from scratch on bytes: the scale at which methods can be compared over
//! several seeds in minutes, and where what is shared was really learned by the model.

use std::path::Path;

use commons_core::Seed;
use commons_nn::bank::Bank;
use commons_nn::eval::{Perplexity, Windows, perplexity};
use commons_nn::model::{Decoder, DecoderConfig};
use commons_nn::train::{At, Loss, Outcome, Resume, StepReport, TokenStream, TrainConfig, Trainer};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::heal::HealRun;
use crate::{Error, Result};

/// Tokens are bytes.
pub const BYTE_VOCABULARY: usize = 256;

/// The tokens of `text`, one per byte.
pub fn byte_tokens(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

/// Shape and training of a decoder over bytes; the default has about ten million parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ScratchConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the feed-forward part.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// The training run; its seed also draws the initial weights.
    pub train: TrainConfig,
}

impl Default for ScratchConfig {
    fn default() -> Self {
        Self {
            hidden_size: 256,
            intermediate_size: 704,
            num_hidden_layers: 12,
            num_attention_heads: 4,
            num_key_value_heads: 4,
            train: TrainConfig { steps: 500, warmup_steps: 30, ..TrainConfig::default() },
        }
    }
}

impl ScratchConfig {
    /// The decoder's configuration, tied embeddings, Llama-style.
    ///
    /// # Errors
    /// When counts do not divide.
    pub fn decoder(&self) -> Result<DecoderConfig> {
        if self.num_attention_heads == 0 || !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return Err(Error::config(
                "num_attention_heads",
                format!("{} does not divide hidden_size {}", self.num_attention_heads, self.hidden_size),
            ));
        }
        let config = DecoderConfig::llama(
            BYTE_VOCABULARY,
            self.hidden_size,
            self.num_hidden_layers,
            self.num_attention_heads,
            self.num_key_value_heads,
            self.intermediate_size,
        );
        config.check()?;
        Ok(config)
    }
}

/// Trains a decoder on `tokens` ([`byte_tokens`]) by next-token cross-entropy.
///
/// With a folder in `run`, a finished model is kept there as `model.safetensors` together with the
/// configuration that made it, and read back instead of trained again if both agree. Unfinished
/// training goes on from its newest checkpoint when `run.resume` is set.
///
/// # Errors
/// When the configuration is unusable, training fails or is stopped, or files cannot be written.
pub fn train_from_scratch(
    config: &ScratchConfig,
    tokens: &[u32],
    run: &HealRun,
    observe: impl FnMut(&StepReport),
) -> Result<Decoder> {
    let shape = config.decoder()?;
    if let Some(folder) = &run.folder
        && let Some(bank) = cached(config, tokens, folder)?
    {
        return Ok(Decoder::new(shape, bank)?);
    }
    let t = &config.train;
    let model = Decoder::init(shape, Seed::new(t.seed).fork("scratch", 0))?;
    let stream = TokenStream::new(tokens.to_vec(), t.seq_len, t.batch_size, t.seed().fork("scratch-data", 0))?;
    let mut trainer = Trainer::new(t.clone(), &model.bank)?.stop_flag(run.stop.clone());
    if let Some(folder) = &run.folder {
        trainer = trainer.checkpoints(folder);
        trainer.resume(if run.resume { Resume::Latest } else { Resume::Refuse })?;
    }
    let outcome = trainer.run(
        |At { batch, .. }| {
            let ids = stream.batch(batch, model.bank.device())?;
            let total = model.next_token_loss(&ids)?;
            Ok(Loss { total, tokens: stream.tokens_per_batch(), parts: Vec::new() })
        },
        observe,
    )?;
    if outcome == Outcome::Interrupted {
        return Err(Error::Interrupted);
    }
    if let Some(folder) = &run.folder {
        keep(config, tokens, &model.bank, folder)?;
    }
    Ok(model)
}

const MODEL: &str = "model.safetensors";
const MADE_BY: &str = "scratch.json";

/// What a kept model was made from: configuration, and number and checksum of the tokens.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct MadeBy {
    config: ScratchConfig,
    tokens: usize,
    checksum: u64,
}

impl MadeBy {
    fn new(config: &ScratchConfig, tokens: &[u32]) -> Self {
        // FNV-1a: it tells texts apart, it does not withstand anybody.
        let checksum = tokens.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, &t| {
            (hash ^ u64::from(t)).wrapping_mul(0x0100_0000_01b3)
        });
        Self { config: config.clone(), tokens: tokens.len(), checksum }
    }
}

fn cached(config: &ScratchConfig, tokens: &[u32], folder: &Path) -> Result<Option<Bank>> {
    let (note, model) = (folder.join(MADE_BY), folder.join(MODEL));
    if !note.is_file() || !model.is_file() {
        return Ok(None);
    }
    let text = commons_core::fs::read_text(&note, NOTE_LIMIT)?;
    let same = serde_json::from_str::<MadeBy>(&text).is_ok_and(|made| made == MadeBy::new(config, tokens));
    Ok(if same { Some(Bank::open(&model)?) } else { None })
}

/// Largest note that is read, bytes.
const NOTE_LIMIT: u64 = 1 << 20;

fn keep(config: &ScratchConfig, tokens: &[u32], bank: &Bank, folder: &Path) -> Result<()> {
    bank.save(&folder.join(MODEL))?;
    // The note comes last: without it the model does not count.
    commons_core::fs::write_json_atomic(folder.join(MADE_BY), &MadeBy::new(config, tokens))?;
    Ok(())
}

/// Perplexity per byte over the first `max_tokens` bytes of `tokens`, in windows of `context`.
///
/// # Errors
/// As [`perplexity`].
pub fn byte_perplexity(model: &Decoder, tokens: &[u32], context: usize, max_tokens: usize) -> Result<Perplexity> {
    let windows = Windows { context, stride: context / 2, max_tokens: Some(max_tokens) };
    Ok(perplexity(model, tokens, tokens.len(), windows, |_| {})?)
}
