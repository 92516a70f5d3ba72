//! What streams cost while decoding: time and memory of one token at batch 1, beside plain models
//! with as many more layers as the streams are worth by the paper's law.

use commons_core::Seed;
use commons_core::cells;
use commons_core::evidence::Run;
use commons_core::table::{Table, Unit};
use commons_nn::model::{Decoder, KvCache, ids_tensor};
use commons_ops as ops;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::law::{Law, Released, fit};
use super::study::FrozenStudy;
use crate::{Error, Result};

/// What is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SpeedStudy {
    /// Tokens passed at once before the others.
    pub prompt: usize,
    /// Tokens passed one by one.
    pub tokens: usize,
    /// Times each model is timed, in turn; the fastest counts.
    pub rounds: usize,
}

impl Default for SpeedStudy {
    fn default() -> Self {
        Self { prompt: 128, tokens: 32, rounds: 3 }
    }
}

/// A model at work.
#[derive(Debug, Clone, Copy)]
struct Cost {
    /// Seconds of a token of the prompt.
    prefill: f64,
    /// Seconds of a token after it: in the layers, in the final norm and mixture, in the head.
    decode: [f64; 3],
    /// Bytes of keys and values at the end.
    cache: usize,
}

impl Cost {
    /// Seconds of a token.
    fn token(&self) -> f64 {
        self.decode.iter().sum()
    }
}

/// A model and what its measures and its row are called.
struct Timed {
    key: String,
    label: String,
    model: Decoder,
}

/// Layers that make a plain model of `layers` layers as good as `streams` make it, by `law`.
pub fn layers_worth(law: &Law, layers: usize, streams: usize) -> usize {
    (layers as f64 * law.worth(streams as f64)).round() as usize
}

impl SpeedStudy {
    /// Times `model` with the streams of `study`, and deeper models with drawn weights, on `text`.
    ///
    /// # Errors
    /// When the text is too short or the run is stopped.
    pub fn measure(
        &self,
        study: &FrozenStudy,
        model: &Decoder,
        text: &[u32],
        run: &mut Run,
    ) -> Result<()> {
        let length = self.prompt + self.tokens;
        if self.prompt == 0 || self.tokens == 0 || self.rounds == 0 || text.len() < length {
            let why = format!("prompt, tokens and rounds from 1, at most {} tokens", text.len());
            return Err(Error::config("speed", why));
        }
        let timed = contenders(study, model)?;
        let none = Cost { prefill: f64::INFINITY, decode: [f64::INFINITY; 3], cache: 0 };
        let mut best = vec![none; timed.len()];
        for _ in 0..self.rounds {
            for (best, t) in best.iter_mut().zip(&timed) {
                run.check_stop()?;
                let cost = self.pass(&t.model, &text[..length], run)?;
                best.prefill = best.prefill.min(cost.prefill);
                best.cache = cost.cache;
                if cost.token() < best.token() {
                    best.decode = cost.decode;
                }
            }
        }
        let mut table = Table::new("One sequence at a time")
            .column("model", Unit::Plain)
            .column("weights", Unit::Bytes)
            .column("keys and values", Unit::Bytes)
            .column("prompt, tokens per second", Unit::Plain)
            .column("ms per token after it", Unit::Plain)
            .column("in the layers", Unit::Plain)
            .column("mixing", Unit::Plain)
            .column("head", Unit::Plain);
        for (t, c) in timed.iter().zip(&best) {
            run.measure(&format!("decode_seconds_{}", t.key), c.token());
            table.push(cells![
                t.label.clone(),
                t.model.bank.stored() * size_of::<f32>(),
                c.cache,
                1. / c.prefill,
                1e3 * c.token(),
                1e3 * c.decode[0],
                1e3 * c.decode[1],
                1e3 * c.decode[2]
            ]);
        }
        run.table(table);
        Ok(())
    }

    fn pass(&self, model: &Decoder, text: &[u32], run: &Run) -> Result<Cost> {
        ops::no_grad(|| {
            let mut cache = model.cache(1, text.len())?;
            let prompt = parts(model, &text[..self.prompt], &mut cache, run)?;
            let mut decode = [0.; 3];
            for token in text[self.prompt..].chunks(1) {
                let seconds = parts(model, token, &mut cache, run)?;
                decode.iter_mut().zip(seconds).for_each(|(sum, s)| *sum += s);
            }
            Ok(Cost {
                prefill: prompt.iter().sum::<f64>() / self.prompt as f64,
                decode: decode.map(|s| s / self.tokens as f64),
                cache: cache.bytes(),
            })
        })
    }
}

/// Passes `tokens` and the last one's logits: seconds in the layers, in the final norm and mixture,
/// and in the head.
fn parts(model: &Decoder, tokens: &[u32], cache: &mut KvCache, run: &Run) -> Result<[f64; 3]> {
    let began = run.elapsed();
    let ids = ids_tensor(&[tokens], &model.bank)?;
    let rotary = model.rotary(cache.len(), tokens.len())?;
    let mut x = model.embed(&ids)?;
    for depth in 0..model.config.num_hidden_layers {
        x = model.block(depth, &x, &rotary, Some(cache))?;
    }
    cache.advance(tokens.len());
    let passed = run.elapsed();
    let hidden = model.final_norm(&x)?;
    let mixed = run.elapsed();
    let last = hidden.narrow(1, tokens.len() - 1, 1).map_err(commons_nn::Error::from)?;
    model.logits(&last)?;
    let ends = [began, passed, mixed, run.elapsed()];
    Ok([0, 1, 2].map(|i| (ends[i + 1] - ends[i]).as_secs_f64()))
}

/// The model with each number of streams, and for more than one a deeper model of as much worth.
fn contenders(study: &FrozenStudy, model: &Decoder) -> Result<Vec<Timed>> {
    let law = fit(&Released::Pile.points())?.law;
    let (mut wide, mut deep) = (Vec::new(), Vec::new());
    for &streams in &study.streams {
        let plural = if streams == 1 { "" } else { "s" };
        let label = format!("{streams} stream{plural}");
        let made = study.wide(model, streams, 0)?.baked()?;
        wide.push(Timed { key: streams.to_string(), label, model: made });
        if streams > 1 {
            let mut config = model.config.clone();
            config.num_hidden_layers = layers_worth(&law, config.num_hidden_layers, streams);
            let label = format!("1 stream, {} layers", config.num_hidden_layers);
            let made = Decoder::init(config, Seed::new(0))?.baked()?;
            deep.push(Timed { key: format!("deeper_{streams}"), label, model: made });
        }
    }
    wide.extend(deep);
    Ok(wide)
}
