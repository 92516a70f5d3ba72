//! Early exits: predictions made before the last layer, through the final norm and the head.
//!
//! A looped decoder passes the same layers several times; after each pass the hidden state can be
//! read out. Whoever is confident enough there saves the passes that are left (Bae et al. 2024,
//! *Relaxed Recursive Transformers*, section 2.4; the rule is that of Schuster et al. 2022).

use commons_ops::{self as ops, Tensor};
use serde::{Deserialize, Serialize};

use crate::model::{Decoder, DecoderConfig, Rotary, ids_tensor};
use crate::{Error, Result};

/// Rows whose logits are held at once.
const ROWS: usize = 64;

/// What leaving at one threshold costs and saves.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Exit {
    /// A token leaves after the first loop whose largest probability reaches this.
    pub threshold: f64,
    /// Mean number of loops a token passes.
    pub mean_loops: f64,
    /// Share of tokens whose most likely successor is that of the whole model.
    pub agreement: f64,
    /// Mean negative log-likelihood of the predictions made, nats per token.
    pub loss: f64,
}

/// How a model predicts after each loop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExitProfile {
    /// Mean negative log-likelihood after each loop, nats per token; the last is the whole model's.
    pub losses: Vec<f64>,
    /// By threshold, in the order asked for.
    pub exits: Vec<Exit>,
    /// Tokens scored.
    pub tokens: usize,
}

/// One token after one loop.
#[derive(Clone, Copy)]
struct Reading {
    top: u32,
    confidence: f64,
    loss: f64,
}

impl ExitProfile {
    /// Reads `model` out after each of `loops` equal parts of its depth, over at most `max_tokens`
    /// of `tokens`, in windows of `context` that do not overlap. `tick` is called with the number of
    /// tokens scored so far.
    ///
    /// The hidden state of a token that left early is taken to be computed for the tokens after it
    /// all the same, as when requests at different depths share one batch.
    ///
    /// # Errors
    /// When `loops` does not divide the layers, or there are fewer than two tokens.
    pub fn measure(
        model: &Decoder,
        tokens: &[u32],
        loops: usize,
        (context, max_tokens): (usize, usize),
        thresholds: &[f64],
        mut tick: impl FnMut(usize),
    ) -> Result<Self> {
        check_loops(&model.config, loops)?;
        let limit = max_tokens.min(tokens.len().saturating_sub(1));
        if limit == 0 || context == 0 {
            return Err(Error::config("text", "early exits need at least two tokens"));
        }
        let mut sums = Sums::new(loops, thresholds);
        for start in (0..limit).step_by(context) {
            let end = (start + context).min(limit);
            let (ids, targets) = (&tokens[start..end], &tokens[start + 1..=end]);
            sums.add(&read_out(model, ids, targets, loops)?);
            tick(end);
        }
        Ok(sums.profile(limit))
    }
}

/// Checks that `loops` equal parts make up the layers, and that every token passes them.
///
/// # Errors
/// When they do not, or a router decides.
pub fn check_loops(config: &DecoderConfig, loops: usize) -> Result<()> {
    config.check_every_layer()?;
    let layers = config.num_hidden_layers;
    if loops == 0 || !layers.is_multiple_of(loops) {
        let why = format!("{loops} does not divide the {layers} layers");
        return Err(Error::config("exits", why));
    }
    Ok(())
}

/// Readings `[loops][tokens]` of one window.
fn read_out(
    model: &Decoder,
    ids: &[u32],
    targets: &[u32],
    loops: usize,
) -> Result<Vec<Vec<Reading>>> {
    let part = model.config.num_hidden_layers / loops;
    let rotary: Rotary = model.rotary(0, ids.len())?;
    let mut x = model.embed(&ids_tensor(&[ids], &model.bank)?)?;
    let mut readings = Vec::with_capacity(loops);
    for depth in 0..part * loops {
        x = model.block(depth, &x, &rotary, None)?;
        if (depth + 1).is_multiple_of(part) {
            readings.push(read_state(model, &x, targets)?);
        }
    }
    Ok(readings)
}

fn read_state(model: &Decoder, x: &Tensor, targets: &[u32]) -> Result<Vec<Reading>> {
    let hidden = model.final_norm(x)?;
    let mut readings = Vec::with_capacity(targets.len());
    for (i, targets) in targets.chunks(ROWS).enumerate() {
        let rows = hidden.narrow(1, i * ROWS, targets.len())?.contiguous()?;
        let log_p = ops::log_softmax(&model.logits(&rows)?.squeeze(0)?.contiguous()?)?;
        for (row, &target) in log_p.to_vec2::<f32>()?.iter().zip(targets) {
            let (top, best) = row
                .iter()
                .enumerate()
                .fold((0, f32::NEG_INFINITY), |b, (i, &p)| if p > b.1 { (i, p) } else { b });
            let loss = row.get(target as usize).map_or(f64::INFINITY, |&p| -f64::from(p));
            readings.push(Reading { top: top as u32, confidence: f64::from(best).exp(), loss });
        }
    }
    Ok(readings)
}

struct Sums {
    losses: Vec<f64>,
    exits: Vec<Exit>,
}

impl Sums {
    fn new(loops: usize, thresholds: &[f64]) -> Self {
        let exit = |&threshold: &f64| Exit { threshold, mean_loops: 0., agreement: 0., loss: 0. };
        Self { losses: vec![0.; loops], exits: thresholds.iter().map(exit).collect() }
    }

    fn add(&mut self, readings: &[Vec<Reading>]) {
        for (sum, loop_) in self.losses.iter_mut().zip(readings) {
            *sum += loop_.iter().map(|r| r.loss).sum::<f64>();
        }
        let Some(last) = readings.last() else { return };
        for exit in &mut self.exits {
            for (token, whole) in last.iter().enumerate() {
                let early = readings.iter().map(|r| r[token]).enumerate();
                // A probability rounds to 1, and at 1 no token is to leave.
                let mut sure =
                    early.filter(|(_, r)| exit.threshold < 1. && r.confidence >= exit.threshold);
                let (at, taken) = sure.next().unwrap_or((readings.len() - 1, *whole));
                exit.mean_loops += (at + 1) as f64;
                exit.agreement += f64::from(u8::from(taken.top == whole.top));
                exit.loss += taken.loss;
            }
        }
    }

    fn profile(mut self, tokens: usize) -> ExitProfile {
        let n = tokens as f64;
        self.losses.iter_mut().for_each(|l| *l /= n);
        for exit in &mut self.exits {
            exit.mean_loops /= n;
            exit.agreement /= n;
            exit.loss /= n;
        }
        ExitProfile { losses: self.losses, exits: self.exits, tokens }
    }
}

#[cfg(test)]
mod tests {
    use commons_core::Seed;

    use super::*;
    use crate::eval::{Windows, perplexity};

    fn model() -> Decoder {
        Decoder::init(DecoderConfig::llama(23, 16, 4, 2, 1, 24), Seed::new(5)).unwrap()
    }

    #[test]
    fn the_last_exit_is_the_whole_model() {
        let model = model();
        let tokens: Vec<u32> = (0..65).map(|i| i * i % 23).collect();
        let profile =
            ExitProfile::measure(&model, &tokens, 2, (64, 64), &[0., 1.], |_| {}).unwrap();
        let windows = Windows { context: 64, stride: 63, max_tokens: Some(64) };
        let whole = perplexity(&model, &tokens, 65, windows, |_| {}).unwrap();
        assert!((profile.losses[1] - whole.loss).abs() < 1e-5);
        let [first, never] = profile.exits[..] else { panic!("two thresholds") };
        assert_eq!((first.mean_loops, never.mean_loops, never.agreement), (1., 2., 1.));
        assert!((first.loss - profile.losses[0]).abs() < 1e-12);
        assert!((never.loss - profile.losses[1]).abs() < 1e-12);
    }

    #[test]
    fn a_higher_threshold_never_leaves_earlier() {
        let tokens: Vec<u32> = (0..100).map(|i| i * 7 % 23).collect();
        let levels = [0.02, 0.04, 0.045, 0.05, 0.055, 0.06, 0.1];
        let profile =
            ExitProfile::measure(&model(), &tokens, 4, (32, 90), &levels, |_| {}).unwrap();
        assert!(profile.exits.windows(2).all(|w| w[0].mean_loops <= w[1].mean_loops));
        assert_eq!(profile.tokens, 90);
    }

    #[test]
    fn nobody_leaves_at_threshold_one() {
        let whole = Reading { top: 1, confidence: 1., loss: 0.5 };
        let early = Reading { top: 2, confidence: 1., loss: 0.1 };
        let mut sums = Sums::new(2, &[1., 0.99]);
        sums.add(&[vec![early], vec![whole]]);
        let profile = sums.profile(1);
        assert_eq!(profile.exits.iter().map(|e| e.loss).collect::<Vec<_>>(), [0.5, 0.1]);
    }

    #[test]
    fn loops_must_divide_the_layers() {
        let error = ExitProfile::measure(&model(), &[1, 2, 3], 3, (8, 8), &[0.5], |_| {});
        assert!(error.unwrap_err().to_string().contains("3 does not divide the 4 layers"));
    }
}
