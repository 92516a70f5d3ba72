//! Scaled dot-product attention over `[batch, seq, heads, head_dim]`, with grouped keys and values.

use crate::composed;
use crate::tape::{self, Cx, Op};
use crate::view::{fused, read};
use candle_core::{Result, Tensor, bail};
use kernel::Call;
use std::ops::Range;

mod kernel;
#[cfg(test)]
mod tests;

/// What a query may see, and how scores are formed.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AttentionOptions {
    /// Query `i` sees keys up to its own position. With fewer queries than keys the queries are
    /// the last positions, as when decoding against a cache.
    pub causal: bool,
    /// Factor on the scores; `1/√head_dim` if `None`.
    pub scale: Option<f32>,
    /// Keys a query sees, counting its own position (sliding window, Mistral 7B section 2). Without
    /// `causal` the window also reaches `window - 1` positions forward.
    pub window: Option<usize>,
    /// Scores become `softcap · tanh(score / softcap)` (Gemma 2, section 2).
    pub softcap: Option<f32>,
    /// Valid keys of each batch row; later keys are padding. A query that sees no key yields zeros.
    pub key_lengths: Option<Vec<usize>>,
    /// The key head that each query head reads, for groups of unequal size. `None` gives every key
    /// head `hq / hkv` consecutive query heads. A key head that nobody reads costs nothing.
    pub key_heads: Option<Vec<usize>>,
    /// The key position at which each query stands, `[b · tq]`, where the queries are not the last
    /// positions in a row: a few of many positions, as when only some tokens go deeper.
    pub positions: Option<Vec<usize>>,
}

impl AttentionOptions {
    /// Causal attention with the default scale.
    #[must_use]
    pub fn causal() -> Self {
        Self { causal: true, ..Self::default() }
    }

    /// The key head that query head `head` reads, with `group` query heads for each if groups are
    /// equal.
    pub(crate) fn key_head(&self, head: usize, group: usize) -> usize {
        match &self.key_heads {
            Some(map) => map[head],
            None => head / group,
        }
    }
}

/// Attention `softmax(scale · q kᵀ) v` per head; returns `[batch, queries, heads, head_dim]`.
///
/// `q` is `[b, tq, hq, d]`, `k` and `v` are `[b, tk, hkv, d]` with `hkv` dividing `hq`: query head
/// `h` reads key head `h / (hq / hkv)` (grouped-query attention, Ainslie et al. 2023), or the one
/// that [`AttentionOptions::key_heads`] names. Scores are
/// never stored for the backward pass, which recomputes them (Dao 2023, section 3).
///
/// # Errors
/// If the shapes do not fit together, `causal` is asked for with more queries than keys, or
/// `key_lengths` does not hold one length of at most `tk` per batch row, or `positions` not one key
/// per query.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, options: &AttentionOptions) -> Result<Tensor> {
    let shape = Shape::check(q, k, v, options)?;
    if !fused(&[q, k, v]) {
        return composed::attention(q, k, v, options);
    }
    let call = Call { shape, options: options.clone() };
    let (out, logs) = read(q, |q| read(k, |k| read(v, |v| Ok(call.forward(q, k, v)))))?;
    let dims = (shape.b, shape.tq, shape.hq, shape.d);
    tape::record_f32(Attention { call, logs }, &[q, k, v], out, dims)
}

struct Attention {
    call: Call,
    /// `log Σ e^score` of every query, `[b, hq, tq]`.
    logs: Vec<f32>,
}

impl Op for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn backward(&self, cx: &mut Cx<'_>) -> Result<()> {
        let [q, k, v] = cx.args else {
            bail!("attention: expected three arguments, got {}", cx.args.len())
        };
        let grads = read(q, |q| {
            read(k, |k| {
                read(v, |v| {
                    read(cx.out, |out| {
                        read(cx.grad, |dout| Ok(self.call.backward(q, k, v, out, dout, &self.logs)))
                    })
                })
            })
        })?;
        for (i, grad) in grads.into_iter().enumerate() {
            if cx.wants(i) {
                cx.give_vec(i, grad)?;
            }
        }
        Ok(())
    }
}

/// Checked sizes of an attention call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub b: usize,
    pub tq: usize,
    pub tk: usize,
    pub hq: usize,
    pub hkv: usize,
    pub d: usize,
    pub scale: f32,
}

impl Shape {
    pub(crate) fn check(
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        options: &AttentionOptions,
    ) -> Result<Self> {
        let (&[b, tq, hq, d], &[kb, tk, hkv, kd]) = (q.dims(), k.dims()) else {
            bail!(
                "attention: queries {:?} and keys {:?} must be [batch, seq, heads, head_dim]",
                q.dims(),
                k.dims()
            )
        };
        let unequal = options.key_heads.is_some();
        if kb != b || kd != d || v.dims() != k.dims() || hkv == 0 || (hq % hkv != 0 && !unequal) {
            bail!(
                "attention: keys {:?} and values {:?} do not fit queries {:?}",
                k.dims(),
                v.dims(),
                q.dims()
            )
        }
        if let Some(positions) = &options.positions
            && (positions.len() != b * tq || positions.iter().any(|&p| p >= tk))
        {
            bail!(
                "attention: positions do not name one of {tk} keys for each of {b} x {tq} queries"
            )
        }
        if options.causal && tq > tk && options.positions.is_none() {
            bail!("attention: causal with {tq} queries but {tk} keys")
        }
        if options.window == Some(0) {
            bail!("attention: a window of 0 hides every key")
        }
        if let Some(lengths) = &options.key_lengths
            && (lengths.len() != b || lengths.iter().any(|&n| n > tk))
        {
            bail!("attention: key_lengths {lengths:?} do not fit keys {:?}", k.dims())
        }
        if let Some(map) = &options.key_heads
            && (map.len() != hq || map.iter().any(|&g| g >= hkv))
        {
            bail!("attention: key_heads {map:?} do not name one of {hkv} for each of {hq} heads")
        }
        let scale = options.scale.unwrap_or_else(|| 1.0 / (d.max(1) as f32).sqrt());
        Ok(Self { b, tq, tk, hq, hkv, d, scale })
    }

    /// The keys that query `i` of batch row `row` may see.
    pub(crate) fn visible(&self, options: &AttentionOptions, row: usize, i: usize) -> Range<usize> {
        // By default positions line up at the end, so query i stands at key position i + (tk - tq).
        let position = match &options.positions {
            Some(positions) => positions[row * self.tq + i],
            None => (i + self.tk).saturating_sub(self.tq),
        };
        let mut end = self.tk;
        let mut start = 0;
        if options.causal {
            end = end.min(position + 1);
        }
        if let Some(window) = options.window {
            start = (position + 1).saturating_sub(window);
            end = end.min(position.saturating_add(window));
        }
        if let Some(lengths) = &options.key_lengths {
            end = end.min(lengths[row]);
        }
        start.min(end)..end
    }
}
