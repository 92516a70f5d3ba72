//! Step 0: how much each block changes the residual stream, in one pass over calibration text.

use commons_nn::model::{Decoder, ids_tensor};
use commons_ops::{self as ops, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Mean cosines between the hidden states of a decoder at every depth.
///
/// State `0` is the embedding, state `i + 1` the output of block `i`, the last one taken before
/// the final norm. Means are over tokens; only one window of states is held at a time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Similarity {
    /// Number of states: one more than blocks.
    states: usize,
    /// Mean cosines, `[states, states]` row by row.
    mean: Vec<f64>,
    /// Tokens the means are over.
    tokens: usize,
}

impl Similarity {
    /// Runs `model` over `tokens` in windows of `seq_len` and collects the cosines. `tick` is
    /// called with (windows done, windows in all).
    ///
    /// # Errors
    /// When `tokens` do not fill one window, or what `tick` returns.
    pub fn measure(
        model: &Decoder,
        tokens: &[u32],
        seq_len: usize,
        mut tick: impl FnMut(usize, usize) -> Result<()>,
    ) -> Result<Self> {
        let windows = tokens.len() / seq_len.max(1);
        if windows == 0 || seq_len == 0 {
            return Err(Error::config(
                "calibration",
                format!(
                    "{} tokens do not fill one window of {seq_len}: bring more text",
                    tokens.len()
                ),
            ));
        }
        let states = model.config.num_hidden_layers + 1;
        let mut sums = vec![0f64; states * states];
        for (done, window) in tokens.chunks_exact(seq_len).enumerate() {
            tick(done, windows)?;
            let ids = ids_tensor(&[window], &model.bank)?;
            let hidden = ops::no_grad(|| model.hidden_states(&ids))?;
            add_cosines(&hidden, &mut sums)?;
        }
        let tokens = windows * seq_len;
        let mean = sums.iter().map(|s| s / tokens as f64).collect();
        Ok(Self { states, mean, tokens })
    }

    /// Mean cosine between states `i` and `j`, each below `blocks() + 1`.
    pub fn cosine(&self, i: usize, j: usize) -> f64 {
        self.mean[i * self.states + j]
    }

    /// Tokens the means are over.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        self.states - 1
    }

    /// Block influence `1 − cos(x_ℓ, x_{ℓ+1})` of every block (ShortGPT).
    pub fn influence(&self) -> Vec<f64> {
        (0..self.blocks()).map(|l| 1. - self.cosine(l, l + 1)).collect()
    }

    /// The whole matrix, one row for each state.
    pub fn rows(&self) -> Vec<Vec<f64>> {
        self.mean.chunks(self.states).map(<[f64]>::to_vec).collect()
    }

    /// Mean cosine between the outputs of neighbours among the blocks `start..start + size`.
    pub fn within(&self, start: usize, size: usize) -> f64 {
        let pairs = size.saturating_sub(1).max(1);
        let sum: f64 = (start + 1..start + size).map(|i| self.cosine(i, i + 1)).sum();
        sum / pairs as f64
    }
}

/// Adds the cosines of every token of `states` (`[1, seq, hidden]` each) to `sums`.
fn add_cosines(states: &[Tensor], sums: &mut [f64]) -> Result<()> {
    let (_, seq, width) = states[0].dims3()?;
    let rows = states
        .iter()
        .map(|s| Ok(unit_rows(s.flatten_all()?.to_vec1::<f32>()?, width)))
        .collect::<Result<Vec<Vec<f32>>>>()?;
    // Each cell is one sum in a fixed order, so threads do not change the result.
    sums.par_chunks_mut(states.len()).enumerate().for_each(|(i, row)| {
        for (j, cell) in row.iter_mut().enumerate() {
            let token = |t: usize| {
                let span = t * width..(t + 1) * width;
                dot(&rows[i][span.clone()], &rows[j][span])
            };
            *cell += (0..seq).map(token).sum::<f64>();
        }
    });
    Ok(())
}

/// Scales each row of `width` elements to length one; a zero row stays zero.
fn unit_rows(mut data: Vec<f32>, width: usize) -> Vec<f32> {
    for row in data.chunks_mut(width) {
        let norm = dot(row, row).sqrt();
        let scale = if norm > 0. { (1. / norm) as f32 } else { 0. };
        row.iter_mut().for_each(|v| *v *= scale);
    }
    data
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    let mut lanes = [0f32; 16];
    let (a16, b16) = (a.chunks_exact(16), b.chunks_exact(16));
    let rest: f32 = a16.remainder().iter().zip(b16.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a16.zip(b16) {
        for i in 0..16 {
            lanes[i] += a[i] * b[i];
        }
    }
    lanes.iter().map(|&v| f64::from(v)).sum::<f64>() + f64::from(rest)
}
