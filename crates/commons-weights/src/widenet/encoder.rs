//! The encoder: blocks whose attention and mixture of experts are shared by groups of layers,
//! while every layer has its norms.

use commons_core::Seed;
use commons_nn::bank::{Bank, Entry};
use commons_nn::model::moe::{MoeOutput, MoeRoute, moe};
use commons_ops::{self as ops, Activation, AttentionOptions, Selection, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Epsilon of every LayerNorm.
const EPS: f32 = 1e-6;

/// Experts of a block.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ExpertsConfig {
    /// `E`: experts.
    pub experts: usize,
    /// `K`: experts of a token.
    pub active: usize,
    /// `c`: how much more than its even share an expert takes while training; what is over is
    /// dropped. Scoring drops nothing.
    pub capacity: f64,
    /// `α`: factor of the balance loss of every layer.
    pub balance: f64,
    /// Noise on the router while training, in units of `1/E`.
    pub noise: f64,
}

impl Default for ExpertsConfig {
    fn default() -> Self {
        Self { experts: 4, active: 2, capacity: 1.2, balance: 0.01, noise: 1. }
    }
}

/// Shape and sharing of an encoder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EncoderConfig {
    /// `d`: width of the residual stream.
    pub hidden_size: usize,
    /// `f`: width inside a feed-forward part or expert.
    pub intermediate_size: usize,
    /// `L`: layers.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// `g`: groups of consecutive layers with a block of their own; 1 shares it among all layers,
    /// as many as there are layers shares nothing.
    pub groups: usize,
    /// Share the LayerNorms of a group as well.
    pub share_norms: bool,
    /// The mixture in place of the feed-forward part.
    pub moe: Option<ExpertsConfig>,
}

impl Default for EncoderConfig {
    fn default() -> Self {
        Self {
            hidden_size: 96,
            intermediate_size: 192,
            num_hidden_layers: 6,
            num_attention_heads: 4,
            groups: 1,
            share_norms: false,
            moe: Some(ExpertsConfig::default()),
        }
    }
}

impl EncoderConfig {
    /// Checks the counts.
    ///
    /// # Errors
    /// Naming the field.
    pub fn check(&self) -> Result<()> {
        let (d, heads) = (self.hidden_size, self.num_attention_heads);
        if heads == 0 || !d.is_multiple_of(heads) {
            return Err(Error::config("num_attention_heads", format!("{heads} must divide {d}")));
        }
        let (layers, groups) = (self.num_hidden_layers, self.groups);
        if layers == 0 || groups == 0 || !layers.is_multiple_of(groups) {
            let reason = format!("{groups} must divide the {layers} layers");
            return Err(Error::config("groups", reason));
        }
        if self.intermediate_size == 0 {
            return Err(Error::config("intermediate_size", "must be at least 1"));
        }
        if let Some(moe) = &self.moe {
            Selection::top_k(moe.experts, moe.active).check()?;
            if !(moe.capacity > 0. && moe.balance >= 0. && moe.noise >= 0.) {
                return Err(Error::config("capacity", "must be positive, balance and noise too"));
            }
        }
        Ok(())
    }

    /// Matrices and biases of one block: name within a layer, shape.
    fn block(&self) -> Vec<(String, Vec<usize>)> {
        let (d, f) = (self.hidden_size, self.intermediate_size);
        let mut all = Vec::new();
        let mut linear = |module: String, out: usize, input: usize| {
            all.push((format!("{module}.weight"), vec![out, input]));
            all.push((format!("{module}.bias"), vec![out]));
        };
        for p in ["q", "k", "v", "o"] {
            linear(format!("attention.{p}_proj"), d, d);
        }
        for module in self.feed_forward() {
            linear(format!("{module}.up_proj"), f, d);
            linear(format!("{module}.down_proj"), d, f);
        }
        if let Some(moe) = &self.moe {
            all.push(("moe.gate.weight".to_owned(), vec![moe.experts, d]));
        }
        all
    }

    /// Feed-forward parts of a block: experts, or the only one.
    fn feed_forward(&self) -> Vec<String> {
        match &self.moe {
            Some(moe) => (0..moe.experts).map(|e| format!("moe.experts.{e}")).collect(),
            None => vec!["mlp".to_owned()],
        }
    }

    /// Parameters of the blocks and norms by the paper's formula: per group
    /// `4d² + 4d + E (2df + f + d) + dE`, and `4d` of norms for every layer that has its own.
    pub fn parameters(&self) -> usize {
        let (d, f) = (self.hidden_size, self.intermediate_size);
        let (parts, router) = self.moe.as_ref().map_or((1, 0), |m| (m.experts, m.experts * d));
        let block = 4 * d * d + 4 * d + parts * (2 * d * f + f + d) + router;
        let norms = if self.share_norms { self.groups } else { self.num_hidden_layers };
        self.groups * block + norms * 4 * d
    }

    /// Multiply-adds of a token in all layers, attention between `seq` tokens included.
    pub fn multiply_adds(&self, seq: usize) -> usize {
        let (d, f) = (self.hidden_size, self.intermediate_size);
        let parts = self.moe.as_ref().map_or(1, |m| m.active);
        self.num_hidden_layers * (4 * d * d + 2 * seq * d + parts * 2 * d * f)
    }
}

/// What a forward pass is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Training: noise from this seed, and experts have places.
    Train(Seed),
    /// Scoring.
    Eval,
}

/// The blocks over a bank. Weights are `layers.{l}.…`; those that are shared are plan entries that
/// point to `bank.widenet.{group}.…`.
#[derive(Debug, Clone)]
pub struct Encoder {
    /// Shape and sharing.
    pub config: EncoderConfig,
    /// Parameters, those of the embeddings included.
    pub bank: Bank,
}

/// What the layers give.
#[derive(Debug, Clone)]
pub struct Encoded {
    /// `[batch, seq, hidden]`, after the last layer.
    pub x: Tensor,
    /// What the mixtures did, layer by layer.
    pub layers: Vec<MoeOutput>,
}

impl Encoded {
    /// `task + α Σ_ℓ balance_ℓ`.
    ///
    /// # Errors
    /// When tensors cannot be added.
    pub fn with_balance(&self, task: &Tensor, config: &EncoderConfig) -> Result<Tensor> {
        let alpha = config.moe.as_ref().map_or(0., |m| m.balance);
        let mut total = task.clone();
        for layer in self.layers.iter().filter(|_| alpha > 0.) {
            total = ops::add(&total, &ops::scale(&layer.balance, alpha as f32)?)?;
        }
        Ok(total)
    }
}

impl Encoder {
    /// A freshly initialised encoder in `bank`: attention and router normal with deviation 0.02,
    /// feed-forward parts Glorot-uniform with biases of deviation 1e-6, gains one.
    ///
    /// # Errors
    /// When the configuration is unusable.
    pub fn init(config: EncoderConfig, mut bank: Bank, seed: Seed) -> Result<Self> {
        config.check()?;
        let each = config.num_hidden_layers / config.groups;
        let d = config.hidden_size;
        let norms = ["norm1", "norm2"]
            .into_iter()
            .flat_map(|n| [(format!("{n}.weight"), vec![d]), (format!("{n}.bias"), vec![d])]);
        let norms: Vec<_> = norms.collect();
        for group in 0..config.groups {
            let layers = group * each..(group + 1) * each;
            let block = config.block();
            let shared = block.iter().map(|w| (w, each > 1));
            let shared = shared.chain(norms.iter().map(|w| (w, each > 1 && config.share_norms)));
            for ((name, shape), shared) in shared {
                let mut owner = |stored: String| -> Result<String> {
                    let v = initial(name, shape, seed.fork(&stored, 0));
                    bank.insert(&stored, Tensor::from_vec(v, shape.as_slice(), bank.device())?)?;
                    Ok(stored)
                };
                if !shared {
                    for l in layers.clone() {
                        owner(format!("layers.{l}.{name}"))?;
                    }
                    continue;
                }
                let part = owner(format!("bank.widenet.{group}.{name}"))?;
                for l in layers.clone() {
                    bank.share(&format!("layers.{l}.{name}"), Entry::same(&part))?;
                }
            }
        }
        Ok(Self { config, bank })
    }

    fn norm(&self, module: &str, x: &Tensor) -> Result<Tensor> {
        layer_norm(&self.bank, module, x)
    }

    /// What attention of layer `l` adds to `x [batch, seq, hidden]`.
    fn attention(&self, l: usize, x: &Tensor) -> Result<Tensor> {
        let (batch, seq, width) = x.dims3()?;
        let heads = self.config.num_attention_heads;
        let x = self.norm(&format!("layers.{l}.norm1"), x)?;
        let project = |p: &str| -> Result<Tensor> {
            let y = self.bank.linear(&format!("layers.{l}.attention.{p}_proj"), &x)?;
            Ok(y.reshape((batch, seq, heads, width / heads))?)
        };
        let (q, k, v) = (project("q")?, project("k")?, project("v")?);
        let y = ops::attention(&q, &k, &v, &AttentionOptions::default())?;
        Ok(self.bank.linear(&format!("layers.{l}.attention.o_proj"), &y.flatten_from(2)?)?)
    }

    /// How tokens of layer `l` find their experts.
    fn route(&self, moe: &ExpertsConfig, l: usize, phase: Phase) -> MoeRoute {
        let (capacity, noise) = match phase {
            Phase::Train(seed) => {
                let deviation = (moe.noise / moe.experts as f64) as f32;
                (Some(moe.capacity), Some((seed.fork("router", l as u64), deviation)))
            }
            Phase::Eval => (None, None),
        };
        MoeRoute {
            selection: Selection::top_k(moe.experts, moe.active),
            capacity,
            renormalize: false,
            noise: noise.filter(|(_, deviation)| *deviation > 0.),
            act: Activation::Gelu,
        }
    }

    /// Runs all layers on `x [batch, seq, hidden]`.
    ///
    /// # Errors
    /// When a weight is missing or the capacity rounds to zero.
    pub fn forward(&self, x: &Tensor, phase: Phase) -> Result<Encoded> {
        let (mut x, mut layers) = (x.clone(), Vec::new());
        for l in 0..self.config.num_hidden_layers {
            x = ops::add(&x, &self.attention(l, &x)?)?;
            let normed = self.norm(&format!("layers.{l}.norm2"), &x)?;
            let y = match &self.config.moe {
                Some(config) => {
                    let route = self.route(config, l, phase);
                    let out = moe(&self.bank, &format!("layers.{l}.moe"), &normed, &route)?;
                    layers.push(out);
                    layers[layers.len() - 1].y.clone()
                }
                None => {
                    let up = self.bank.linear(&format!("layers.{l}.mlp.up_proj"), &normed)?;
                    self.bank.linear(&format!("layers.{l}.mlp.down_proj"), &ops::gelu(&up)?)?
                }
            };
            x = ops::add(&x, &y)?;
        }
        Ok(Encoded { x, layers })
    }

    /// Parameters by part: attention, feed-forward parts or experts, routers, norms, and the rest
    /// (embeddings and heads).
    pub fn by_part(&self) -> [(&'static str, usize); 5] {
        let mut parts =
            [("attention", 0), ("experts", 0), ("router", 0), ("norms", 0), ("embeddings", 0)];
        for (name, var) in self.bank.stored_vars() {
            let inner = name.starts_with("layers.") || name.starts_with("bank.widenet.");
            let part = match () {
                () if inner && name.contains(".attention.") => 0,
                () if inner && name.ends_with("moe.gate.weight") => 2,
                () if inner && name.contains(".norm") => 3,
                () if inner => 1,
                () => 4,
            };
            parts[part].1 += var.elem_count();
        }
        parts
    }
}

/// LayerNorm with gain `{module}.weight` and bias `{module}.bias`.
///
/// # Errors
/// Naming the missing weight.
pub fn layer_norm(bank: &Bank, module: &str, x: &Tensor) -> Result<Tensor> {
    let gain = bank.weight(&format!("{module}.weight"))?;
    let bias = bank.weight(&format!("{module}.bias"))?;
    Ok(ops::layer_norm(x, &gain, Some(&bias), EPS)?)
}

/// The learned positions of `seq` tokens for every sample, `[batch, seq, width]`.
pub(super) fn positions(bank: &Bank, batch: usize, seq: usize) -> Result<Tensor> {
    let ids: Vec<u32> = (0..seq as u32).collect();
    let ids = Tensor::from_vec(ids.repeat(batch), (batch, seq), bank.device())?;
    Ok(ops::embedding(&bank.weight("positions")?, &ids)?)
}

/// Initial values of the weight `name`.
pub(super) fn initial(name: &str, shape: &[usize], seed: Seed) -> Vec<f32> {
    let mut v = vec![0f32; shape.iter().product()];
    let feed_forward = name.contains("up_proj") || name.contains("down_proj");
    if name.contains("norm") {
        v.fill(if name.ends_with("weight") { 1. } else { 0. });
    } else if let ([out, input], true) = (shape, feed_forward) {
        seed.uniform(0, &mut v);
        let bound = (6. / (out + input) as f32).sqrt();
        v.iter_mut().for_each(|x| *x = (2. * *x - 1.) * bound);
    } else if shape.len() > 1 || feed_forward {
        seed.normal(0, &mut v);
        let deviation = if shape.len() > 1 { 0.02 } else { 1e-6 };
        v.iter_mut().for_each(|x| *x *= deviation);
    }
    v
}
