//! BERT encoders (MiniLM and kin) over a [`Bank`], with sentence embeddings.

use commons_core::Seed;
use commons_ops::{self as ops, AttentionOptions, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::bank::Bank;
use crate::{Error, Result};

/// Shape of a BERT encoder; field names are those of `config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BertConfig {
    /// Rows of the word embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Width inside the feed-forward part.
    pub intermediate_size: usize,
    /// Learned positions.
    pub max_position_embeddings: usize,
    /// Segment embeddings.
    pub type_vocab_size: usize,
    /// Epsilon of every LayerNorm.
    pub layer_norm_eps: f64,
    /// Activation of the feed-forward part; `gelu` (exact).
    pub hidden_act: String,
}

impl BertConfig {
    /// Reads the object of a `config.json`.
    ///
    /// # Errors
    /// Naming the field that is missing, unknown or does not fit.
    pub fn from_json(config: &Value) -> Result<Self> {
        let parsed: Self = serde_path_to_error::deserialize(config)
            .map_err(|e| Error::config(e.path().to_string(), e.inner().to_string()))?;
        if parsed.num_attention_heads == 0 || !parsed.hidden_size.is_multiple_of(parsed.num_attention_heads) {
            return Err(Error::config("num_attention_heads", "must divide hidden_size"));
        }
        if parsed.hidden_act != "gelu" {
            return Err(Error::config("hidden_act", format!("`{}` is not gelu", parsed.hidden_act)));
        }
        Ok(parsed)
    }

    /// Name and shape of every weight.
    pub fn weights(&self) -> Vec<(String, Vec<usize>)> {
        let (h, f) = (self.hidden_size, self.intermediate_size);
        let mut all = Vec::new();
        let mut add = |name: String, shape: &[usize]| all.push((name, shape.to_vec()));
        add("embeddings.word_embeddings.weight".into(), &[self.vocab_size, h]);
        add("embeddings.position_embeddings.weight".into(), &[self.max_position_embeddings, h]);
        add("embeddings.token_type_embeddings.weight".into(), &[self.type_vocab_size, h]);
        add("embeddings.LayerNorm.weight".into(), &[h]);
        add("embeddings.LayerNorm.bias".into(), &[h]);
        for layer in 0..self.num_hidden_layers {
            let p = format!("encoder.layer.{layer}");
            let modules = [
                ("attention.self.query", h, h),
                ("attention.self.key", h, h),
                ("attention.self.value", h, h),
                ("attention.output.dense", h, h),
                ("intermediate.dense", f, h),
                ("output.dense", h, f),
            ];
            for (module, out, input) in modules {
                add(format!("{p}.{module}.weight"), &[out, input]);
                add(format!("{p}.{module}.bias"), &[out]);
            }
            for norm in ["attention.output.LayerNorm", "output.LayerNorm"] {
                add(format!("{p}.{norm}.weight"), &[h]);
                add(format!("{p}.{norm}.bias"), &[h]);
            }
        }
        all
    }
}

/// A BERT encoder.
#[derive(Debug, Clone)]
pub struct Bert {
    /// Shape.
    pub config: BertConfig,
    /// Stored parameters and sharing plan.
    pub bank: Bank,
}

impl Bert {
    /// Joins a configuration and a bank; weights may be named with or without the prefix `bert.`.
    ///
    /// # Errors
    /// Naming the missing or misshapen weight.
    pub fn new(config: BertConfig, mut bank: Bank) -> Result<Self> {
        if bank.contains("bert.embeddings.word_embeddings.weight") && bank.plan().is_empty() {
            let mut renamed = Bank::new(bank.device().clone());
            for (name, var) in bank.stored_vars() {
                let name = name.strip_prefix("bert.").unwrap_or(name);
                renamed.insert(name, var.as_tensor().clone())?;
            }
            bank = renamed;
        }
        for (name, shape) in config.weights() {
            let found = bank.shape(&name)?;
            if found != shape {
                return Err(Error::plan(&name, format!("has shape {found:?}, the configuration needs {shape:?}")));
            }
        }
        Ok(Self { config, bank })
    }

    /// A freshly initialised encoder (normal, deviation 0.02; gains one, biases zero).
    pub fn init(config: BertConfig, seed: Seed) -> Result<Self> {
        let mut bank = Bank::default();
        for (name, shape) in config.weights() {
            let mut v = vec![0f32; shape.iter().product()];
            if name.ends_with("LayerNorm.weight") {
                v.fill(1.);
            } else if shape.len() == 2 {
                seed.fork(&name, 0).normal(0, &mut v);
                v.iter_mut().for_each(|x| *x *= 0.02);
            }
            bank.insert(name, Tensor::from_vec(v, shape, bank.device())?)?;
        }
        Self::new(config, bank)
    }

    fn norm(&self, module: &str, x: &Tensor) -> Result<Tensor> {
        let gain = self.bank.weight(&format!("{module}.weight"))?;
        let bias = self.bank.weight(&format!("{module}.bias"))?;
        Ok(ops::layer_norm(x, &gain, Some(&bias), self.config.layer_norm_eps as f32)?)
    }

    /// Word, position and segment (zero) embeddings, normed: `[batch, seq, hidden]`.
    pub fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        let (_, seq) = ids.dims2()?;
        if seq > self.config.max_position_embeddings {
            return Err(Error::config(
                "ids",
                format!("{seq} tokens exceed the model's {} positions: truncate", self.config.max_position_embeddings),
            ));
        }
        let words = ops::embedding(&self.bank.weight("embeddings.word_embeddings.weight")?, ids)?;
        let positions = self.bank.weight("embeddings.position_embeddings.weight")?.narrow(0, 0, seq)?;
        let segment = self.bank.weight("embeddings.token_type_embeddings.weight")?.narrow(0, 0, 1)?;
        let x = words.broadcast_add(&positions.broadcast_add(&segment)?)?;
        self.norm("embeddings.LayerNorm", &x)
    }

    /// One layer, `[batch, seq, hidden]` in and out; `lengths` are the valid tokens of each row.
    pub fn block(&self, layer: usize, x: &Tensor, lengths: &[usize]) -> Result<Tensor> {
        let c = &self.config;
        let p = format!("encoder.layer.{layer}");
        let (batch, seq, hidden) = x.dims3()?;
        let head = |module: &str| -> Result<Tensor> {
            let y = self.bank.linear(&format!("{p}.attention.self.{module}"), x)?;
            Ok(y.reshape((batch, seq, c.num_attention_heads, hidden / c.num_attention_heads))?)
        };
        let options = AttentionOptions {
            causal: false,
            key_lengths: Some(lengths.to_vec()),
            ..AttentionOptions::default()
        };
        let y = ops::attention(&head("query")?, &head("key")?, &head("value")?, &options)?;
        let y = self.bank.linear(&format!("{p}.attention.output.dense"), &y.reshape((batch, seq, hidden))?)?;
        let x = self.norm(&format!("{p}.attention.output.LayerNorm"), &ops::add(x, &y)?)?;
        let y = self.bank.linear(&format!("{p}.intermediate.dense"), &x)?;
        let y = self.bank.linear(&format!("{p}.output.dense"), &ops::gelu(&y)?)?;
        self.norm(&format!("{p}.output.LayerNorm"), &ops::add(&x, &y)?)
    }

    /// Hidden states `[batch, seq, hidden]` of `ids: [batch, seq]`.
    pub fn forward(&self, ids: &Tensor, lengths: &[usize]) -> Result<Tensor> {
        let mut x = self.embed(ids)?;
        for layer in 0..self.config.num_hidden_layers {
            x = self.block(layer, &x, lengths)?;
        }
        Ok(x)
    }

    /// Mean-pooled, length-one sentence embeddings `[batch, hidden]`.
    pub fn sentence_embeddings(&self, ids: &Tensor, lengths: &[usize]) -> Result<Tensor> {
        let hidden = self.forward(ids, lengths)?;
        let (batch, seq, _) = hidden.dims3()?;
        let weights = (0..batch * seq).map(|i| {
            let n = lengths.get(i / seq).copied().unwrap_or(seq).max(1);
            if i % seq < n { 1. / n as f32 } else { 0. }
        });
        let weights = Tensor::from_vec(weights.collect::<Vec<f32>>(), (batch, seq, 1), hidden.device())?;
        let mean = hidden.broadcast_mul(&weights)?.sum(1)?;
        let norm = mean.sqr()?.sum_keepdim(1)?.sqrt()?;
        Ok(mean.broadcast_div(&norm)?)
    }
}
