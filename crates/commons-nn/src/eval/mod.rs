//! Evaluation of language models: perplexity, bits per byte, multiple choice by likelihood.

mod exits;

use commons_ops::{self as ops, Tensor};
use serde::{Deserialize, Serialize};

pub use exits::{Exit, ExitProfile, check_loops};

use crate::model::{Decoder, ids_tensor};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// How a text is cut for perplexity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Windows {
    /// Tokens a prediction may look back on.
    pub context: usize,
    /// Tokens the window moves; only the last `stride` of a window are scored (all of the first).
    pub stride: usize,
    /// Stop after so many scored tokens; `None` scores everything.
    pub max_tokens: Option<usize>,
}

impl Default for Windows {
    fn default() -> Self {
        Self { context: 512, stride: 256, max_tokens: None }
    }
}

/// What scoring a text gave.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Perplexity {
    /// `exp` of the mean negative log-likelihood per token.
    pub perplexity: f64,
    /// Mean negative log-likelihood, nats per token.
    pub loss: f64,
    /// Bits per byte of text.
    pub bits_per_byte: f64,
    /// Tokens scored.
    pub tokens: usize,
}

/// Scores `tokens` in strided windows. `bytes` is the length of the text the tokens came from, for
/// bits per byte. `tick` is called with the number of tokens scored so far.
///
/// # Errors
/// When there are fewer than two tokens or the windows are empty.
pub fn perplexity(
    model: &Decoder,
    tokens: &[u32],
    bytes: usize,
    windows: Windows,
    mut tick: impl FnMut(usize),
) -> Result<Perplexity> {
    let Windows { context, stride, max_tokens } = windows;
    if context < 2 || stride == 0 || stride >= context {
        return Err(Error::config(
            "stride",
            format!("needs 0 < stride < context, got {stride} and {context}"),
        ));
    }
    if tokens.len() < 2 {
        return Err(Error::config("text", "perplexity needs at least two tokens"));
    }
    if max_tokens == Some(0) {
        return Err(Error::config("max_tokens", "must be at least 1"));
    }
    let limit = max_tokens.unwrap_or(usize::MAX).min(tokens.len() - 1);
    let (mut sum, mut scored, mut start) = (0f64, 0usize, 0usize);
    while scored < limit {
        let end = (start + context).min(tokens.len() - 1);
        // Targets start..end are shifted by one; those before `scored` were scored already.
        let first = scored;
        let last = end.min(limit);
        let targets: Vec<u32> = (start..end)
            .map(|i| if i >= first && i < last { tokens[i + 1] } else { u32::MAX })
            .collect();
        let ids = ids_tensor(&[&tokens[start..end]], &model.bank)?;
        let hidden = model.forward(&ids, None)?;
        let targets = Tensor::from_vec(targets, (1, end - start), hidden.device())?;
        let mean = model.loss(&hidden, &targets)?.to_scalar::<f32>()?;
        sum += f64::from(mean) * (last - first) as f64;
        scored = last;
        start += stride;
        tick(scored);
    }
    let loss = sum / scored as f64;
    let share = scored as f64 / (tokens.len() - 1) as f64;
    Ok(Perplexity {
        perplexity: loss.exp(),
        loss,
        bits_per_byte: sum / std::f64::consts::LN_2 / (bytes as f64 * share).max(1.),
        tokens: scored,
    })
}

/// One question with its options; `answer` is the index of the right one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// Text before the option.
    pub prompt: String,
    /// Possible continuations.
    pub options: Vec<String>,
    /// Index of the right option.
    pub answer: usize,
}

/// Result of a multiple-choice evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ChoiceAccuracy {
    /// Share of questions whose most likely option is right.
    pub accuracy: f64,
    /// The same with log-likelihood divided by the option's bytes.
    pub accuracy_norm: f64,
    /// Number of questions.
    pub questions: usize,
}

/// Accuracy by likelihood: the option with the largest total log-probability is the model's answer.
///
/// # Errors
/// When a question has no options or its answer is out of range.
pub fn multiple_choice(
    model: &Decoder,
    tokenizer: &Tokenizer,
    items: &[Choice],
) -> Result<ChoiceAccuracy> {
    let (mut right, mut right_norm) = (0usize, 0usize);
    for item in items {
        if item.answer >= item.options.len() {
            return Err(Error::config(
                "answer",
                format!("{} of {} options", item.answer, item.options.len()),
            ));
        }
        let scores = option_scores(model, tokenizer, item)?;
        let norm: Vec<f64> =
            scores.iter().zip(&item.options).map(|(s, o)| s / o.len().max(1) as f64).collect();
        right += usize::from(argmax(&scores) == item.answer);
        right_norm += usize::from(argmax(&norm) == item.answer);
    }
    let n = items.len().max(1) as f64;
    Ok(ChoiceAccuracy {
        accuracy: right as f64 / n,
        accuracy_norm: right_norm as f64 / n,
        questions: items.len(),
    })
}

/// Total log-probability of each option after the prompt.
fn option_scores(model: &Decoder, tokenizer: &Tokenizer, item: &Choice) -> Result<Vec<f64>> {
    let prompt = tokenizer.encode(&item.prompt, true)?;
    item.options
        .iter()
        .map(|option| {
            let whole = tokenizer.encode(&format!("{}{option}", item.prompt), true)?;
            // Tokens may merge across the border; score from the first that differs.
            let shared = prompt.iter().zip(&whole).take_while(|(a, b)| a == b).count().max(1);
            if whole.len() <= shared {
                return Err(Error::config("options", "an option is empty"));
            }
            let ids = ids_tensor(&[&whole[..whole.len() - 1]], &model.bank)?;
            let hidden = model.forward(&ids, None)?;
            let scored = whole.len() - shared;
            let hidden = hidden.narrow(1, shared - 1, scored)?;
            let log_p = ops::log_softmax(&model.logits(&hidden)?.squeeze(0)?.contiguous()?)?;
            let rows = log_p.to_vec2::<f32>()?;
            Ok(rows.iter().zip(&whole[shared..]).map(|(row, &t)| f64::from(row[t as usize])).sum())
        })
        .collect()
}

fn argmax(values: &[f64]) -> usize {
    (0..values.len()).max_by(|&a, &b| values[a].total_cmp(&values[b]).then(b.cmp(&a))).unwrap_or(0)
}
