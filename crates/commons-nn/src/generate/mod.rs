//! Text generation from a decoder.

use commons_core::Seed;
use commons_ops::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model::{Decoder, ids_tensor};
use crate::{Error, Result};

/// How the next token is chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SamplerConfig {
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: f32,
    /// Keep the `top_k` most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the smallest set of tokens whose probability reaches `top_p`.
    pub top_p: f32,
    /// Drop tokens less likely than `min_p` times the most likely one.
    pub min_p: f32,
    /// Divides positive (multiplies negative) logits of tokens already present.
    pub repetition_penalty: f32,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for SamplerConfig {
    fn default() -> Self {
        Self {
            temperature: 0.8,
            top_k: 50,
            top_p: 0.95,
            min_p: 0.,
            repetition_penalty: 1.05,
            seed: 0,
        }
    }
}

impl SamplerConfig {
    /// Always the most likely token.
    pub fn greedy() -> Self {
        Self { temperature: 0., repetition_penalty: 1., ..Self::default() }
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// Naming the field that is out of range.
    pub fn check(&self) -> Result<()> {
        let bad = |field: &str, v: f32| Err(Error::config(field, format!("{v} is out of range")));
        if !(self.temperature.is_finite() && self.temperature >= 0.) {
            return bad("temperature", self.temperature);
        }
        if !(self.top_p > 0. && self.top_p <= 1.) {
            return bad("top_p", self.top_p);
        }
        if !(self.min_p >= 0. && self.min_p < 1.) {
            return bad("min_p", self.min_p);
        }
        if !(self.repetition_penalty.is_finite() && self.repetition_penalty > 0.) {
            return bad("repetition_penalty", self.repetition_penalty);
        }
        Ok(())
    }

    /// Chooses a token from `logits: [vocab]` after `past` tokens. Draw `index` of the stream.
    pub fn sample(&self, logits: &mut [f32], past: &[u32], index: u64) -> u32 {
        if self.repetition_penalty != 1. {
            let mut seen = past.to_vec();
            seen.sort_unstable();
            seen.dedup();
            for token in seen {
                if let Some(l) = logits.get_mut(token as usize) {
                    *l = if *l > 0. {
                        *l / self.repetition_penalty
                    } else {
                        *l * self.repetition_penalty
                    };
                }
            }
        }
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        let by_logit =
            |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        if self.temperature == 0. {
            return order.into_iter().min_by(by_logit).unwrap_or(0);
        }
        let keep = if self.top_k == 0 { order.len() } else { self.top_k.min(order.len()) };
        if keep < order.len() {
            order.select_nth_unstable_by(keep, by_logit);
            order.truncate(keep);
        }
        order.sort_unstable_by(by_logit);
        let top = order.first().map_or(0., |&t| logits[t as usize]);
        let weights: Vec<f64> = order
            .iter()
            .map(|&t| f64::from((logits[t as usize] - top) / self.temperature).exp())
            .collect();
        let total: f64 = weights.iter().sum();
        let (mut mass, mut kept) = (0., 0);
        for w in &weights {
            if kept > 0 && (mass >= f64::from(self.top_p) * total || *w < f64::from(self.min_p)) {
                break;
            }
            mass += w;
            kept += 1;
        }
        let choice = Seed::new(self.seed).fork("token", index).rng().weighted(&weights[..kept]);
        order[choice]
    }
}

/// Continues `prompt` by up to `max_new_tokens` tokens, calling `emit` with each; generation ends
/// early when `emit` returns false or a token of `stop` was produced (which is not emitted).
///
/// Returns the new tokens.
///
/// # Errors
/// When the prompt is empty or holds ids outside the vocabulary.
pub fn generate(
    model: &Decoder,
    prompt: &[u32],
    max_new_tokens: usize,
    sampler: &SamplerConfig,
    stop: &[u32],
    mut emit: impl FnMut(u32) -> bool,
) -> Result<Vec<u32>> {
    sampler.check()?;
    if prompt.is_empty() {
        return Err(Error::config("prompt", "is empty: give at least one token"));
    }
    let vocab = model.config.vocab_size;
    if let Some(id) = prompt.iter().find(|&&t| t as usize >= vocab) {
        return Err(Error::config(
            "prompt",
            format!("token {id} is not in a vocabulary of {vocab}"),
        ));
    }
    let mut cache = model.cache(1, prompt.len() + max_new_tokens)?;
    let mut past = prompt.to_vec();
    let mut next = prompt.to_vec();
    for index in 0..max_new_tokens {
        let hidden = model.forward(&ids_tensor(&[&next], &model.bank)?, Some(&mut cache))?;
        let mut logits = last_logits(model, &hidden)?;
        let token = sampler.sample(&mut logits, &past, index as u64);
        if stop.contains(&token) {
            break;
        }
        past.push(token);
        if !emit(token) {
            break;
        }
        next = vec![token];
    }
    Ok(past.split_off(prompt.len()))
}

/// Logits of the last position of `hidden: [1, seq, hidden]`.
fn last_logits(model: &Decoder, hidden: &Tensor) -> Result<Vec<f32>> {
    let last = hidden.dim(1)? - 1;
    let row = hidden.narrow(1, last, 1)?.contiguous()?;
    Ok(model.logits(&row)?.flatten_all()?.to_vec1()?)
}
