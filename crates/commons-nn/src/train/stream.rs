//! Batches of fixed-length windows from one long run of tokens.

use commons_core::Seed;
use commons_ops::{Device, Tensor};

use crate::{Error, Result};

/// A token sequence cut into windows of `seq_len + 1`, visited in a fresh seeded order each epoch.
///
/// Batch `i` depends on `i` and the seed alone.
#[derive(Debug, Clone)]
pub struct TokenStream {
    tokens: Vec<u32>,
    seq_len: usize,
    batch_size: usize,
    seed: Seed,
}

impl TokenStream {
    /// Cuts `tokens` into windows.
    ///
    /// # Errors
    /// When there are fewer tokens than one window.
    pub fn new(tokens: Vec<u32>, seq_len: usize, batch_size: usize, seed: Seed) -> Result<Self> {
        if tokens.len() < seq_len + 1 || seq_len == 0 || batch_size == 0 {
            return Err(Error::config(
                "seq_len",
                format!(
                    "{} tokens do not make one window of {seq_len} + 1: bring more text or shorten it",
                    tokens.len()
                ),
            ));
        }
        Ok(Self { tokens, seq_len, batch_size, seed })
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there is no token (never true: construction refuses it).
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Tokens that count in the loss of one batch.
    pub fn tokens_per_batch(&self) -> usize {
        self.seq_len * self.batch_size
    }

    /// Windows in one epoch. Each epoch starts at another offset so that windows differ.
    fn windows(&self) -> usize {
        (self.tokens.len() - 1) / self.seq_len
    }

    /// Batch `index`: `[batch, seq + 1]` token ids.
    pub fn batch(&self, index: u64, device: &Device) -> Result<Tensor> {
        let windows = self.windows();
        let mut ids = Vec::with_capacity(self.batch_size * (self.seq_len + 1));
        let mut order: Option<(u64, Vec<usize>, usize)> = None;
        for row in 0..self.batch_size {
            let at = index * self.batch_size as u64 + row as u64;
            let (epoch, place) = (at / windows as u64, (at % windows as u64) as usize);
            if order.as_ref().is_none_or(|(e, _, _)| *e != epoch) {
                let slack = (self.tokens.len() - 1) % self.seq_len;
                let shift = self.seed.fork("shift", epoch).rng().below(slack as u64 + 1) as usize;
                order = Some((epoch, self.seed.fork("epoch", epoch).permutation(windows), shift));
            }
            if let Some((_, order, shift)) = &order {
                let start = shift + order[place] * self.seq_len;
                ids.extend_from_slice(&self.tokens[start..start + self.seq_len + 1]);
            }
        }
        Ok(Tensor::from_vec(ids, (self.batch_size, self.seq_len + 1), device)?)
    }
}
