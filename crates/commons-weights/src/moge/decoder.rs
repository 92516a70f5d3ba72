//! A decoder whose feed-forward parts are mixtures of experts.

use commons_core::Seed;
use commons_nn::bank::Bank;
use commons_nn::model::moe::{MoeOutput, MoeRoute, moe};
use commons_nn::model::{Decoder, DecoderConfig, layer_prefix};
use commons_ops::{self as ops, Activation, Selection, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::baseline::scratch::BYTE_VOCABULARY;
use crate::{Error, Result};

/// Shape of a decoder over bytes with mixtures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MoeDecoderConfig {
    /// `d`: width of the residual stream.
    pub hidden_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// `N`: routed experts of a layer.
    pub experts: usize,
    /// `K`: routed experts of a token.
    pub active: usize,
    /// `M`: groups of experts, one per device.
    pub groups: usize,
    /// Width inside an expert.
    pub intermediate_size: usize,
    /// Width inside the expert that every token takes; 0 leaves it out.
    pub shared_intermediate_size: usize,
    /// `α`: factor of the balance loss of every layer.
    pub balance: f64,
    /// Divide the weights of the chosen by their sum. The paper does not.
    pub renormalize: bool,
}

impl Default for MoeDecoderConfig {
    fn default() -> Self {
        Self {
            hidden_size: 128,
            num_hidden_layers: 4,
            num_attention_heads: 4,
            experts: 16,
            active: 4,
            groups: 2,
            intermediate_size: 64,
            shared_intermediate_size: 64,
            balance: 0.01,
            renormalize: false,
        }
    }
}

impl MoeDecoderConfig {
    /// Who is chosen.
    pub fn selection(&self) -> Selection {
        Selection { experts: self.experts, active: self.active, groups: self.groups }
    }

    /// The same shape and parameters with plain top-K: one group, weights divided by their sum
    /// (`softmax(TopK(Wᵀh))`).
    pub fn plain(&self) -> Self {
        Self { groups: 1, renormalize: true, ..self.clone() }
    }

    /// Checks the counts.
    ///
    /// # Errors
    /// Naming the field.
    pub fn check(&self) -> Result<()> {
        self.selection().check()?;
        if self.intermediate_size == 0 {
            return Err(Error::config("intermediate_size", "must be at least 1"));
        }
        if !(self.balance >= 0.) {
            return Err(Error::config("balance", "must not be negative"));
        }
        let (d, heads) = (self.hidden_size, self.num_attention_heads);
        if heads == 0 || !d.is_multiple_of(2 * heads) {
            let reason = format!("{heads} heads must be of even width, of {d} in all");
            return Err(Error::config("num_attention_heads", reason));
        }
        Ok(())
    }

    /// The decoder around the mixtures.
    fn around(&self) -> Result<DecoderConfig> {
        self.check()?;
        let config = DecoderConfig::llama(
            BYTE_VOCABULARY,
            self.hidden_size,
            self.num_hidden_layers,
            self.num_attention_heads,
            self.num_attention_heads,
            self.intermediate_size,
        );
        config.check()?;
        Ok(config)
    }
}

/// A decoder with mixtures. Attention, norms and embeddings are those of [`Decoder`].
#[derive(Debug, Clone)]
pub struct MoeDecoder {
    /// Shape of the mixtures.
    pub config: MoeDecoderConfig,
    /// The rest, and the bank of all weights.
    pub decoder: Decoder,
}

/// What a forward pass gives.
#[derive(Debug, Clone)]
pub struct Passed {
    /// Mean next-token cross-entropy, nats.
    pub loss: Tensor,
    /// What the mixtures did, layer by layer.
    pub layers: Vec<MoeOutput>,
    /// The residual stream before every mixture, `[batch, seq, hidden]`.
    pub residual: Vec<Tensor>,
}

impl MoeDecoder {
    /// A freshly initialised decoder. Shapes and values depend neither on the groups nor on how
    /// weights are divided, so two of them can be compared from the same start.
    ///
    /// # Errors
    /// When counts do not fit.
    pub fn init(config: MoeDecoderConfig, seed: Seed) -> Result<Self> {
        let around = config.around()?;
        let mut bank = Decoder::init(around.clone(), seed)?.bank;
        let writes = 0.02 / (2. * config.num_hidden_layers as f32).sqrt();
        for l in 0..config.num_hidden_layers {
            let mlp = format!("{}mlp", layer_prefix(l));
            for p in ["gate_proj", "up_proj", "down_proj"] {
                bank.remove(&format!("{mlp}.{p}.weight"));
            }
            let d = config.hidden_size;
            let router = format!("{mlp}.gate.weight");
            insert(&mut bank, router, [config.experts, d], 0.02, seed)?;
            let mut modules: Vec<(String, usize)> = (0..config.experts)
                .map(|e| (format!("{mlp}.experts.{e}"), config.intermediate_size))
                .collect();
            if config.shared_intermediate_size > 0 {
                let width = config.shared_intermediate_size;
                modules.push((format!("{mlp}.shared_experts"), width));
            }
            for (module, f) in modules {
                insert(&mut bank, format!("{module}.gate_proj.weight"), [f, d], 0.02, seed)?;
                insert(&mut bank, format!("{module}.up_proj.weight"), [f, d], 0.02, seed)?;
                insert(&mut bank, format!("{module}.down_proj.weight"), [d, f], writes, seed)?;
            }
        }
        // Not `Decoder::new`, which would ask for feed-forward parts.
        Ok(Self { config, decoder: Decoder { config: around, bank } })
    }

    /// How tokens find their experts.
    pub fn route(&self) -> MoeRoute {
        MoeRoute {
            selection: self.config.selection(),
            capacity: None,
            renormalize: self.config.renormalize,
            noise: None,
            act: Activation::Silu,
        }
    }

    /// The mixture of layer `l` on the residual stream `x [batch, seq, hidden]`.
    ///
    /// # Errors
    /// When a weight is missing.
    pub fn mixture(&self, l: usize, x: &Tensor) -> Result<MoeOutput> {
        let module = format!("{}mlp", layer_prefix(l));
        Ok(moe(&self.decoder.bank, &module, &self.normed(l, x)?, &self.route())?)
    }

    /// What the mixture of layer `l` reads of the residual stream.
    ///
    /// # Errors
    /// When a weight is missing.
    pub fn normed(&self, l: usize, x: &Tensor) -> Result<Tensor> {
        let module = format!("{}post_attention_layernorm", layer_prefix(l));
        Ok(self.decoder.rms_norm(&module, x)?)
    }

    /// Next-token loss of `ids [batch, seq + 1]`.
    ///
    /// # Errors
    /// When a weight is missing.
    pub fn loss(&self, ids: &Tensor) -> Result<Passed> {
        let (_, width) = ids.dims2()?;
        if width < 2 {
            return Err(Error::config("seq_len", "a next-token loss needs two tokens"));
        }
        let inputs = ids.narrow(1, 0, width - 1)?.contiguous()?;
        let targets = ids.narrow(1, 1, width - 1)?.contiguous()?;
        let rotary = self.decoder.rotary(0, width - 1)?;
        let mut x = self.decoder.embed(&inputs)?;
        let (mut layers, mut residual) = (Vec::new(), Vec::new());
        for l in 0..self.config.num_hidden_layers {
            x = ops::add(&x, &self.decoder.attention_update(l, &x, &rotary, None)?)?;
            residual.push(x.clone());
            let out = self.mixture(l, &x)?;
            x = ops::add(&x, &out.y)?;
            layers.push(out);
        }
        let loss = self.decoder.loss(&self.decoder.final_norm(&x)?, &targets)?;
        Ok(Passed { loss, layers, residual })
    }

    /// The loss with `α` times the balance loss of every layer.
    ///
    /// # Errors
    /// When tensors cannot be added.
    pub fn total(&self, passed: &Passed) -> Result<Tensor> {
        let mut total = passed.loss.clone();
        for layer in passed.layers.iter().filter(|_| self.config.balance > 0.) {
            let balance = ops::scale(&layer.balance, self.config.balance as f32)?;
            total = ops::add(&total, &balance)?;
        }
        Ok(total)
    }
}

fn insert(
    bank: &mut Bank,
    name: String,
    shape: [usize; 2],
    deviation: f32,
    seed: Seed,
) -> Result<()> {
    let mut v = vec![0f32; shape[0] * shape[1]];
    seed.fork(&name, 0).normal(0, &mut v);
    v.iter_mut().for_each(|x| *x *= deviation);
    bank.insert(name, Tensor::from_vec(v, &shape[..], bank.device())?)?;
    Ok(())
}
