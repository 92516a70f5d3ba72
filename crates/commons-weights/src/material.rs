//! What an experiment of this crate runs on: a decoder and two texts that share nothing.

use commons_core::Seed;
use commons_core::evidence::Run;
use commons_nn::data::corpus::{self, Split};
use commons_nn::eval::{Perplexity, Windows, perplexity};
use commons_nn::model::{Decoder, Loaded};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::baseline::scratch::{ScratchConfig, byte_tokens, train_from_scratch};
use crate::heal::HealRun;
use crate::{Error, Result};

/// Which model and which texts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MaterialConfig {
    /// `scratch` (a decoder over bytes, trained first) or the path of a pretrained decoder.
    pub model: String,
    /// Text of calibration and training: `stories` (generated) or a path.
    pub train_text: String,
    /// Text that is scored: `stories` or a path.
    pub test_text: String,
    /// Bytes of each text that are used, at most.
    pub text_bytes: usize,
    /// The decoder trained from scratch.
    pub scratch: ScratchConfig,
}

impl Default for MaterialConfig {
    fn default() -> Self {
        Self {
            model: "scratch".into(),
            train_text: "stories".into(),
            test_text: "stories".into(),
            text_bytes: 2 << 20,
            scratch: ScratchConfig::default(),
        }
    }
}

/// A model and the text it is studied on.
#[derive(Debug)]
pub struct Material {
    /// The original.
    pub model: Decoder,
    /// Tokens of the text a method may look at.
    pub train: Vec<u32>,
    /// Tokens of the text that is scored.
    pub test: Vec<u32>,
    /// Bytes of the text that is scored.
    pub test_bytes: usize,
}

impl MaterialConfig {
    /// Loads or trains the model and reads the texts.
    ///
    /// # Errors
    /// When a file cannot be read, or training fails or is stopped.
    pub fn prepare(&self, seed: Seed, run: &mut Run) -> Result<Material> {
        let (train, test) =
            (self.text(&self.train_text, Split::Train, seed)?, self.text(&self.test_text, Split::Test, seed)?);
        if self.model != "scratch" {
            let loaded = Loaded::open(self.model.as_ref())?;
            let encode = |text: &str| Ok::<_, Error>(loaded.tokenizer.encode(text, false)?);
            let (train, test_tokens) = (encode(&train)?, encode(&test)?);
            return Ok(Material { model: loaded.model, train, test: test_tokens, test_bytes: test.len() });
        }
        let tokens = byte_tokens(&train);
        let stop = HealRun { stop: run.stop().flag(), ..HealRun::default() };
        let mut losses = Vec::new();
        let model = train_from_scratch(&self.scratch, &tokens, &stop, |r| losses.push(r.loss))?;
        for (step, loss) in losses.into_iter().enumerate() {
            run.log(step as u64 + 1, "scratch/loss", loss)?;
        }
        Ok(Material { model, train: tokens, test: byte_tokens(&test), test_bytes: test.len() })
    }

    /// The text called `source`, at most `text_bytes` of it.
    fn text(&self, source: &str, split: Split, seed: Seed) -> Result<String> {
        if source == "stories" {
            return Ok(corpus::generate(seed.fork("stories", 0), split, self.text_bytes));
        }
        let mut text = commons_core::fs::read_text(source, TEXT_LIMIT)?;
        let mut end = self.text_bytes.min(text.len());
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        Ok(text)
    }
}

/// Largest text file that is read, bytes.
const TEXT_LIMIT: u64 = 1 << 30;

impl Material {
    /// Scores `model` on the first `tokens` of the test text with up to `context` tokens of
    /// context. Costs no gradient.
    ///
    /// # Errors
    /// When the text is too short for the windows.
    pub fn score(&self, model: &Decoder, context: usize, tokens: usize) -> Result<Perplexity> {
        let mut model = model.clone();
        model.bank.freeze(|_| true);
        let stride = (context - context / 8).max(1);
        let windows = Windows { context, stride, max_tokens: Some(tokens) };
        Ok(perplexity(&model, &self.test, self.test_bytes, windows, |_| {})?)
    }
}
