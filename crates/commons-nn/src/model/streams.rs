//! Parallel streams of a decoder: prefixes, and the mixture before the output head.
//!
//! Names are those of the released ParScale models: `self_attn.prefix_k`, `self_attn.prefix_v`
//! `[streams, kv_heads, prefix, head_dim]` in every layer, and for more than one stream
//! `model.aggregate_layer.{0,2}.{weight,bias}`.

use commons_ops::{self as ops, Activation, Tensor};

use super::config::DecoderConfig;
use super::decoder::{Decoder, layer_prefix};
use super::kv::KvCache;
use crate::{Error, Result};

/// Whether a weight of this name is a prefix.
pub(super) fn is_prefix(name: &str) -> bool {
    name.ends_with("self_attn.prefix_k") || name.ends_with("self_attn.prefix_v")
}

impl DecoderConfig {
    /// Name and shape of the weights that parallel streams add.
    pub fn stream_weights(&self) -> Vec<(String, Vec<usize>)> {
        let Some(streams) = self.parallel_streams else { return Vec::new() };
        let (p, h) = (streams.count, self.hidden_size);
        let prefix = [p, self.num_key_value_heads, streams.prefix_tokens, self.head_dim];
        let mut all = Vec::new();
        for layer in 0..self.num_hidden_layers {
            for half in ["k", "v"] {
                let name = format!("{}self_attn.prefix_{half}", layer_prefix(layer));
                all.push((name, prefix.to_vec()));
            }
        }
        if p > 1 {
            let part = |rest: &str| format!("model.aggregate_layer.{rest}");
            all.push((part("0.weight"), vec![h, p * h]));
            all.push((part("0.bias"), vec![h]));
            all.push((part("2.weight"), vec![p, h]));
            all.push((part("2.bias"), vec![p]));
        }
        all
    }

    /// Checks that a program which knows nothing of parallel streams and routers computes the same.
    ///
    /// # Errors
    /// When there are streams, a prefix, a router or experts.
    pub fn check_plain(&self) -> Result<()> {
        self.check_unrouted()?;
        self.check_without_experts()?;
        let Some(streams) = self.parallel_streams else { return Ok(()) };
        Err(Error::config(
            "parallel_streams",
            format!(
                "{} streams with prefixes have no form that transformers or llama.cpp load: use \
                 the model as it is with commons (generate, eval, train), or write out the model \
                 that the streams were added to",
                streams.count
            ),
        ))
    }
}

impl Decoder {
    /// `ids: [batch, seq]` once for each stream.
    pub(super) fn spread(&self, ids: &Tensor) -> Result<Tensor> {
        match self.config.streams() {
            1 => Ok(ids.clone()),
            streams => Ok(Tensor::cat(&vec![ids; streams], 0)?),
        }
    }

    fn prefix(&self, depth: usize, half: &str) -> Result<Tensor> {
        self.bank.weight(&format!("{}self_attn.prefix_{half}", layer_prefix(depth)))
    }

    /// Keys and values of layer `depth` behind the prefixes of their streams.
    pub(super) fn prefixed(&self, depth: usize, k: Tensor, v: Tensor) -> Result<(Tensor, Tensor)> {
        if self.config.parallel_streams.is_none() {
            return Ok((k, v));
        }
        let (before_k, before_v) = (self.prefix(depth, "k")?, self.prefix(depth, "v")?);
        Ok((ops::prepend(&before_k, &k)?, ops::prepend(&before_v, &v)?))
    }

    /// Puts the prefixes into a fresh cache of `rows` rows.
    pub(super) fn fill_prefix(&self, cache: &mut KvCache, rows: usize) -> Result<()> {
        let c = &self.config;
        if c.parallel_streams.is_none() {
            return Ok(());
        }
        let none = Tensor::zeros(
            (rows, 0, c.num_key_value_heads, c.head_dim),
            ops::DType::F32,
            self.bank.device(),
        )?;
        let layers = (0..c.num_hidden_layers)
            .map(|depth| self.prefixed(depth, none.clone(), none.clone()))
            .collect::<Result<Vec<_>>>()?;
        cache.set_prefix(&layers)
    }

    /// The share `[batch, seq, streams]` that each stream has in the output, for normed states
    /// `x: [streams · batch, seq, hidden]`: `softmax(W₂ silu(W₁ [x] + b₁) + b₂)`, smoothed.
    ///
    /// # Errors
    /// When the model has a single stream.
    pub fn stream_shares(&self, x: &Tensor) -> Result<Tensor> {
        let Some(streams) = self.config.parallel_streams.filter(|s| s.count > 1) else {
            return Err(Error::config("parallel_streams", "there is one stream: nothing is mixed"));
        };
        let read = |rest: &str| self.bank.weight(&format!("model.aggregate_layer.{rest}"));
        let all = ops::interleave(x, streams.count)?;
        let (w, b) = (read("0.weight")?, read("0.bias")?);
        let inner = ops::linear_act(&all, &w, Some(&b), Activation::Silu)?;
        let scores = ops::linear(&inner, &read("2.weight")?, Some(&read("2.bias")?))?;
        smooth(&ops::softmax(&scores)?, streams.smoothing)
    }

    /// Normed states of all streams mixed into one.
    pub(super) fn mixed(&self, x: Tensor) -> Result<Tensor> {
        if self.config.streams() == 1 {
            return Ok(x);
        }
        Ok(ops::mix(&x, &self.stream_shares(&x)?)?)
    }
}

/// `(1 − ε) w + ε / P` of shares `w: [.., P]`.
///
/// # Errors
/// Only if the tensor engine fails.
pub fn smooth(w: &Tensor, epsilon: f64) -> Result<Tensor> {
    if epsilon == 0. {
        return Ok(w.clone());
    }
    let even = w.detach().ones_like()?.affine(epsilon / w.dim(w.rank() - 1)? as f64, 0.)?;
    Ok(ops::add(&ops::scale(w, (1. - epsilon) as f32)?, &even)?)
}
