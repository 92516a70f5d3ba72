//! What an experiment of this crate runs on: a decoder and two texts that share nothing.

use std::path::{Path, PathBuf};

use commons_core::Seed;
use commons_core::evidence::Run;
use commons_nn::data::corpus::{self, Split};
use commons_nn::eval::{Perplexity, Windows, perplexity};
use commons_nn::hub;
use commons_nn::model::{Decoder, Loaded};
use commons_nn::train::StepReport;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::baseline::scratch::{ScratchConfig, byte_tokens, train_from_scratch};
use crate::heal::HealRun;
use crate::{Error, Result};

/// Which model and which texts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MaterialConfig {
    /// `scratch` (a decoder over bytes, trained first), or the name or path of a pretrained one.
    pub model: String,
    /// Text of calibration and training: `stories` (generated), or the name or path of a text. Of
    /// data with several files, `name:part` takes the file with `part` in its name.
    pub train_text: String,
    /// Text that is scored, named likewise.
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
        let (train, test) = (
            self.text(&self.train_text, Split::Train, seed)?,
            self.text(&self.test_text, Split::Test, seed)?,
        );
        if self.model != "scratch" {
            let loaded = Loaded::open(&hub::resolve_model(&self.model)?)?;
            let encode = |text: &str| Ok::<_, Error>(loaded.tokenizer.encode(text, false)?);
            let (train, test_tokens) = (encode(&train)?, encode(&test)?);
            return Ok(Material {
                model: loaded.model,
                train,
                test: test_tokens,
                test_bytes: test.len(),
            });
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

    /// Both texts as bytes, for decoders that are trained from scratch.
    ///
    /// # Errors
    /// When a text cannot be read.
    pub fn byte_texts(&self, seed: Seed) -> Result<(Vec<u32>, Vec<u32>)> {
        let train = self.text(&self.train_text, Split::Train, seed)?;
        Ok((byte_tokens(&train), byte_tokens(&self.text(&self.test_text, Split::Test, seed)?)))
    }

    /// The text called `source`, at most `text_bytes` of it.
    fn text(&self, source: &str, split: Split, seed: Seed) -> Result<String> {
        if source == "stories" {
            return Ok(corpus::generate(seed.fork("stories", 0), split, self.text_bytes));
        }
        let mut text = named_text(source)?;
        let mut end = self.text_bytes.min(text.len());
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        Ok(text)
    }
}

/// The text at a path or of a data set, `name:part` if it has several files.
fn named_text(source: &str) -> Result<String> {
    let (name, part) = match source.split_once(':') {
        Some((name, part)) if !Path::new(source).exists() => (name, part),
        _ => (source, ""),
    };
    let mut path = hub::resolve_data(name)?;
    if path.is_dir() {
        let mut files = files_below(&path)?;
        files.retain(|f| f.file_name().is_some_and(|n| n.to_string_lossy().contains(part)));
        let [file] = &files[..] else {
            return Err(Error::config(
                source,
                format!(
                    "{} of the files of `{name}` match: write `name:part` so that one does",
                    files.len()
                ),
            ));
        };
        path = file.clone();
    }
    Ok(commons_nn::data::text::read_any(&path, None)?)
}

/// Files in a folder and the folders in it, in name order.
pub(crate) fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let entries = std::fs::read_dir(folder).map_err(commons_core::Error::io("list", folder))?;
    for entry in entries {
        let path = entry.map_err(commons_core::Error::io("list", folder))?.path();
        if path.is_dir() { found.extend(files_below(&path)?) } else { found.push(path) }
    }
    found.sort();
    Ok(found)
}

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

/// Runs a training that reports to the given function, shows its progress and logs its losses.
pub(crate) fn logged<T>(
    run: &mut Run,
    label: &str,
    train: impl FnOnce(&mut dyn FnMut(&StepReport)) -> Result<T>,
) -> Result<T> {
    run.check_stop()?;
    let mut task = run.progress().task(label, None);
    let mut losses = Vec::new();
    let done = train(&mut |report| {
        task.update(report.step as u64, "");
        losses.push(report.loss);
    })?;
    for (step, loss) in losses.into_iter().enumerate() {
        run.log(step as u64 + 1, &format!("{label}/loss"), loss)?;
    }
    Ok(done)
}
