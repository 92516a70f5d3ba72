//! Llama-family decoders over a [`Bank`].
//!
//! The decoder is a set of small steps ([`Decoder::embed`], [`Decoder::block`],
//! [`Decoder::final_norm`], [`Decoder::logits`]) so that methods which gate, repeat, skip or watch
//! layers call the steps themselves instead of asking the decoder for hooks.

use commons_core::Seed;
use commons_ops::{
    self as ops, Activation, AttentionOptions, DType, LossOptions, RopeScaling, Tensor,
};
use serde_json::Value;

use super::config::{DecoderConfig, Family, LayerType};
use super::kv::KvCache;
use super::mixture::MoePhase;
use super::mor::Routing;
use crate::bank::{Bank, Entry};
use crate::{Error, Result};

/// A decoder: a configuration and the bank its weights come from.
#[derive(Debug, Clone)]
pub struct Decoder {
    /// Shape and constants.
    pub config: DecoderConfig,
    /// Stored parameters and sharing plan.
    pub bank: Bank,
}

/// Rotary tables for one span of positions, shared by all layers of a forward pass.
#[derive(Debug, Clone)]
pub struct Rotary {
    global: (Tensor, Tensor),
    local: Option<(Tensor, Tensor)>,
}

impl Rotary {
    /// The rows `positions: [n]` (u32) of the tables.
    pub(super) fn at(&self, positions: &Tensor) -> Result<Self> {
        let pick = |(cos, sin): &(Tensor, Tensor)| {
            Ok::<_, Error>((cos.index_select(positions, 0)?, sin.index_select(positions, 0)?))
        };
        Ok(Self { global: pick(&self.global)?, local: self.local.as_ref().map(pick).transpose()? })
    }
}

/// Matrices of one decoder block that multiply activations, relative to `model.layers.{i}.`.
pub const BLOCK_MATRICES: [&str; 7] = [
    "self_attn.q_proj.weight",
    "self_attn.k_proj.weight",
    "self_attn.v_proj.weight",
    "self_attn.o_proj.weight",
    "mlp.gate_proj.weight",
    "mlp.up_proj.weight",
    "mlp.down_proj.weight",
];

/// Prefix of the weights of layer `index`.
pub fn layer_prefix(index: usize) -> String {
    format!("model.layers.{index}.")
}

impl Decoder {
    /// Joins a configuration and a bank, checking that every weight is there with its shape.
    ///
    /// # Errors
    /// Naming the missing or misshapen weight.
    pub fn new(config: DecoderConfig, bank: Bank) -> Result<Self> {
        config.check()?;
        let mut decoder = Self { config, bank };
        let head = "lm_head.weight";
        if decoder.config.tie_word_embeddings && !decoder.bank.contains(head) {
            decoder.bank.share(head, Entry::same("model.embed_tokens.weight"))?;
        }
        for (name, shape) in decoder.config.weights() {
            let found = decoder.bank.shape(&name)?;
            if found != shape {
                return Err(Error::plan(
                    &name,
                    format!("has shape {found:?}, the configuration needs {shape:?}"),
                ));
            }
        }
        Ok(decoder)
    }

    /// A freshly initialised decoder: normal with deviation 0.02, and `0.02/√(2·layers)` for the
    /// matrices that write to the residual stream (GPT-2's rule); gains one.
    pub fn init(config: DecoderConfig, seed: Seed) -> Result<Self> {
        config.check()?;
        let mut bank = Bank::default();
        let residual = 0.02 / (2. * config.num_hidden_layers as f32).sqrt();
        for (name, shape) in config.weights() {
            if name == "lm_head.weight" && config.tie_word_embeddings {
                continue;
            }
            // What several depths share is drawn once, under the name of the part.
            let part = config.shared_part(&name);
            if let Some(part) = &part
                && bank.stored_var(part).is_ok()
            {
                bank.share(&name, Entry::same(part.clone()))?;
                continue;
            }
            let n = shape.iter().product();
            let values = if shape.len() == 2 || super::streams::is_prefix(&name) {
                let writes = name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight");
                let sd = if writes { residual } else { 0.02 };
                let mut v = vec![0f32; n];
                seed.fork(&name, 0).normal(0, &mut v);
                v.iter_mut().for_each(|x| *x *= sd);
                v
            } else if name.ends_with(".bias") || config.model_type == Family::Gemma3 {
                vec![0.; n]
            } else {
                vec![1.; n]
            };
            let values = Tensor::from_vec(values, shape, bank.device())?;
            match part {
                Some(part) => {
                    bank.insert(part.clone(), values)?;
                    bank.share(&name, Entry::same(part))?;
                }
                None => bank.insert(name, values)?,
            }
        }
        Self::new(config, bank)
    }

    /// Rotary tables for positions `start..start + len`.
    pub fn rotary(&self, start: usize, len: usize) -> Result<Rotary> {
        let c = &self.config;
        let device = self.bank.device();
        let scaling = rope_scaling(c.rope_scaling.as_ref())?;
        let table = |theta, scaling: RopeScaling| {
            let (cos, sin) = ops::rope_tables(start..start + len, c.head_dim, theta, scaling)?;
            Ok::<_, Error>((cos.to_device(device)?, sin.to_device(device)?))
        };
        let local = match c.rope_local_base_freq {
            Some(theta) if c.layer_types.contains(&LayerType::SlidingAttention) => {
                Some(table(theta, RopeScaling::None)?)
            }
            _ => None,
        };
        Ok(Rotary { global: table(c.rope_theta, scaling)?, local })
    }

    /// Token embeddings `[streams · batch, seq, hidden]` of `ids: [batch, seq]` (u32), stream after
    /// stream; there is one unless the configuration has parallel streams.
    pub fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        let ids = self.spread(ids)?;
        let x = ops::embedding(&self.bank.weight("model.embed_tokens.weight")?, &ids)?;
        if self.config.model_type == Family::Gemma3 {
            return Ok(ops::scale(&x, (self.config.hidden_size as f32).sqrt())?);
        }
        Ok(x)
    }

    /// RMSNorm with the gain `{module}.weight` (`1 + weight` for Gemma).
    pub fn rms_norm(&self, module: &str, x: &Tensor) -> Result<Tensor> {
        let mut gain = self.bank.weight(&format!("{module}.weight"))?;
        if self.config.model_type == Family::Gemma3 {
            gain = gain.affine(1., 1.)?;
        }
        Ok(ops::rms_norm(x, &gain, self.config.rms_norm_eps as f32)?)
    }

    /// One layer: `[batch, seq, hidden]` in and out. `depth` names the weights, the attention
    /// kind, the rotary base and the slot of the cache.
    ///
    /// # Errors
    /// When a router decides which tokens pass the layers: a layer by itself does not know.
    pub fn block(
        &self,
        depth: usize,
        x: &Tensor,
        rotary: &Rotary,
        kv: Option<&mut KvCache>,
    ) -> Result<Tensor> {
        self.config.check_every_layer()?;
        let update = self.attention_update(depth, x, rotary, kv)?;
        let x = ops::add(x, &update)?;
        let update = self.mlp_update(depth, &x)?;
        Ok(ops::add(&x, &update)?)
    }

    /// The keys of layer `depth` before rotation, `[batch, seq, kv_heads, head_dim]`, of the
    /// residual stream `x: [batch, seq, hidden]`.
    pub fn keys(&self, depth: usize, x: &Tensor) -> Result<Tensor> {
        let p = layer_prefix(depth);
        let normed = self.rms_norm(&format!("{p}input_layernorm"), x)?;
        let k = self.heads_of(depth, "k", self.config.num_key_value_heads, &normed)?;
        self.head_norm(depth, "k", k)
    }

    /// What the attention half of layer `depth` adds to the residual stream `x`, both
    /// `[batch, seq, hidden]`.
    ///
    /// # Errors
    /// When a weight is missing or has another shape.
    pub fn attention_update(
        &self,
        depth: usize,
        x: &Tensor,
        rotary: &Rotary,
        kv: Option<&mut KvCache>,
    ) -> Result<Tensor> {
        let p = layer_prefix(depth);
        let normed = self.rms_norm(&format!("{p}input_layernorm"), x)?;
        let y = self.attention_heads(depth, &normed, rotary, kv)?;
        self.attention_output(depth, &y)
    }

    /// What the attention half adds to the residual stream, `[batch, seq, hidden]`, of what its heads
    /// read, `[batch, seq, heads · head_dim]`.
    ///
    /// # Errors
    /// When a weight is missing or has another shape.
    pub fn attention_output(&self, depth: usize, heads: &Tensor) -> Result<Tensor> {
        let p = layer_prefix(depth);
        let y = self.bank.linear(&format!("{p}self_attn.o_proj"), heads)?;
        if self.config.model_type == Family::Gemma3 {
            return self.rms_norm(&format!("{p}post_attention_layernorm"), &y);
        }
        Ok(y)
    }

    /// What the heads of layer `depth` read from `normed`, the normed residual stream: the input
    /// `[batch, seq, heads · head_dim]` of the output projection.
    ///
    /// # Errors
    /// When a weight is missing or has another shape.
    pub fn attention_heads(
        &self,
        depth: usize,
        normed: &Tensor,
        rotary: &Rotary,
        kv: Option<&mut KvCache>,
    ) -> Result<Tensor> {
        let (batch, seq, _) = normed.dims3()?;
        let q = self.queries(depth, normed, rotary)?;
        let (k, v) = self.keys_values(depth, normed, rotary)?;
        let (k, v) = match kv {
            Some(cache) => cache.append(depth, &k, &v)?,
            None => self.prefixed(depth, k, v)?,
        };
        let y = ops::attention(&q, &k, &v, &self.attention_options(depth))?;
        let c = &self.config;
        Ok(y.reshape((batch, seq, c.num_attention_heads * c.head_dim))?)
    }

    /// How layer `depth` attends.
    pub(super) fn attention_options(&self, depth: usize) -> AttentionOptions {
        let c = &self.config;
        AttentionOptions {
            causal: true,
            scale: c.query_pre_attn_scalar.map(|s| (1. / s.sqrt()) as f32),
            window: c.sliding_window.filter(|_| c.is_local(depth)),
            key_heads: c.key_heads(depth),
            ..AttentionOptions::default()
        }
    }

    /// Rotated queries `[batch, seq, heads, head_dim]` of layer `depth`.
    pub(super) fn queries(&self, depth: usize, normed: &Tensor, rotary: &Rotary) -> Result<Tensor> {
        let q = self.heads_of(depth, "q", self.config.num_attention_heads, normed)?;
        self.rotated(depth, &self.head_norm(depth, "q", q)?, rotary)
    }

    /// Rotated keys, and values, `[batch, seq, kv_heads, head_dim]` of layer `depth`.
    pub(super) fn keys_values(
        &self,
        depth: usize,
        normed: &Tensor,
        rotary: &Rotary,
    ) -> Result<(Tensor, Tensor)> {
        let heads = self.config.num_key_value_heads;
        let k = self.heads_of(depth, "k", heads, normed)?;
        let k = self.rotated(depth, &self.head_norm(depth, "k", k)?, rotary)?;
        Ok((k, self.heads_of(depth, "v", heads, normed)?))
    }

    fn heads_of(&self, depth: usize, which: &str, heads: usize, normed: &Tensor) -> Result<Tensor> {
        let (batch, seq, _) = normed.dims3()?;
        let module = format!("{}self_attn.{which}_proj", layer_prefix(depth));
        let y = self.bank.linear(&module, normed)?;
        Ok(y.reshape((batch, seq, heads, self.config.head_dim))?)
    }

    fn head_norm(&self, depth: usize, which: &str, x: Tensor) -> Result<Tensor> {
        if matches!(self.config.model_type, Family::Qwen3 | Family::Gemma3) {
            let p = layer_prefix(depth);
            return self.rms_norm(&format!("{p}self_attn.{which}_norm"), &x);
        }
        Ok(x)
    }

    fn rotated(&self, depth: usize, x: &Tensor, rotary: &Rotary) -> Result<Tensor> {
        let local = rotary.local.as_ref().filter(|_| self.config.is_local(depth));
        let (cos, sin) = local.unwrap_or(&rotary.global);
        Ok(ops::rope(x, cos, sin)?)
    }

    /// What the feed-forward half of layer `depth` adds to the residual stream `x`, both
    /// `[batch, seq, hidden]`.
    ///
    /// # Errors
    /// When a weight is missing or has another shape.
    pub fn mlp_update(&self, depth: usize, x: &Tensor) -> Result<Tensor> {
        if self.config.mixture_of_experts.is_some() {
            return Ok(self.expert_update(depth, x, MoePhase::Scoring)?.y);
        }
        self.mlp_output(depth, &self.mlp_inner(depth, &self.mlp_input(depth, x)?)?)
    }

    /// What the feed-forward half of layer `depth` adds, `[batch, seq, hidden]`, of what
    /// [`Self::mlp_inner`] gives.
    ///
    /// # Errors
    /// When a weight is missing or has another shape.
    pub fn mlp_output(&self, depth: usize, inner: &Tensor) -> Result<Tensor> {
        let y = self.bank.linear(&format!("{}mlp.down_proj", layer_prefix(depth)), inner)?;
        self.mlp_added(depth, y)
    }

    /// What the feed-forward half of layer `depth` adds, of what it computed.
    pub(super) fn mlp_added(&self, depth: usize, y: Tensor) -> Result<Tensor> {
        if self.config.model_type == Family::Gemma3 {
            let norm = format!("{}post_feedforward_layernorm", layer_prefix(depth));
            return self.rms_norm(&norm, &y);
        }
        Ok(y)
    }

    /// What the feed-forward half of layer `depth` reads of the residual stream `x`, both
    /// `[batch, seq, hidden]`.
    ///
    /// # Errors
    /// When a weight is missing or has another shape.
    pub fn mlp_input(&self, depth: usize, x: &Tensor) -> Result<Tensor> {
        let gemma = self.config.model_type == Family::Gemma3;
        let norm = if gemma { "pre_feedforward_layernorm" } else { "post_attention_layernorm" };
        self.rms_norm(&format!("{}{norm}", layer_prefix(depth)), x)
    }

    /// The input `[batch, seq, intermediate]` of the down projection of layer `depth`, of what
    /// [`Self::mlp_input`] gives.
    ///
    /// # Errors
    /// When a weight is missing or has another shape.
    pub fn mlp_inner(&self, depth: usize, normed: &Tensor) -> Result<Tensor> {
        let p = layer_prefix(depth);
        let gate = self.bank.linear(&format!("{p}mlp.gate_proj"), normed)?;
        let up = self.bank.linear(&format!("{p}mlp.up_proj"), normed)?;
        Ok(match self.config.activation()? {
            Activation::GeluTanh => ops::geglu(&gate, &up)?,
            _ => ops::swiglu(&gate, &up)?,
        })
    }

    /// The norm before the output head, and the mixture of parallel streams:
    /// `[streams · batch, seq, hidden]` → `[batch, seq, hidden]`.
    pub fn final_norm(&self, x: &Tensor) -> Result<Tensor> {
        self.mixed(self.rms_norm("model.norm", x)?)
    }

    /// Hidden states after the final norm, `[batch, seq, hidden]`, for `ids: [batch, seq]`.
    ///
    /// With a cache, `ids` are the tokens after those already in it. Where a router decides how deep
    /// a token goes, it decides by the token and those before it alone.
    pub fn forward(&self, ids: &Tensor, mut kv: Option<&mut KvCache>) -> Result<Tensor> {
        if self.config.mixture_of_recursions.is_some() {
            return Ok(self.forward_routed(ids, Routing::Threshold, kv)?.hidden);
        }
        let (_, seq) = ids.dims2()?;
        let start = kv.as_ref().map_or(0, |c| c.len());
        let rotary = self.rotary(start, seq)?;
        let mut x = self.embed(ids)?;
        for depth in 0..self.config.num_hidden_layers {
            x = self.block(depth, &x, &rotary, kv.as_deref_mut())?;
        }
        if let Some(cache) = kv {
            cache.advance(seq);
        }
        self.final_norm(&x)
    }

    /// [`Decoder::forward`] without a cache that keeps only the input of each layer and recomputes
    /// the rest in the backward pass: a third more arithmetic, a fraction of the memory.
    pub fn forward_recomputing(&self, ids: &Tensor) -> Result<Tensor> {
        if self.config.mixture_of_recursions.is_some() {
            return Ok(self.forward_routed_recomputing(ids, Routing::Threshold)?.hidden);
        }
        let (_, seq) = ids.dims2()?;
        let rotary = self.rotary(0, seq)?;
        let mut x = self.embed(ids)?;
        for depth in 0..self.config.num_hidden_layers {
            let (model, rotary) = (self.clone(), rotary.clone());
            x = ops::checkpoint(&[&x], move |inputs| {
                model.block(depth, &inputs[0], &rotary, None).map_err(Error::into_tensor_error)
            })?;
        }
        self.final_norm(&x)
    }

    /// Hidden states before every layer and after the last (un-normed): `layers + 1` tensors
    /// `[batch, seq, hidden]`.
    pub fn hidden_states(&self, ids: &Tensor) -> Result<Vec<Tensor>> {
        let (_, seq) = ids.dims2()?;
        let rotary = self.rotary(0, seq)?;
        let mut states = vec![self.embed(ids)?];
        for depth in 0..self.config.num_hidden_layers {
            let next = self.block(depth, &states[depth], &rotary, None)?;
            states.push(next);
        }
        Ok(states)
    }

    /// Logits `[.., vocab]` of normed hidden states `[.., hidden]`.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let logits = self.bank.linear("lm_head", hidden)?;
        match self.config.final_logit_softcapping {
            Some(cap) => Ok(logits.affine(1. / cap, 0.)?.tanh()?.affine(cap, 0.)?),
            None => Ok(logits),
        }
    }

    /// Mean cross-entropy (nats per token) of normed hidden states `[batch, seq, hidden]` against
    /// `targets: [batch, seq]`; `u32::MAX` marks positions that do not count.
    pub fn loss(&self, hidden: &Tensor, targets: &Tensor) -> Result<Tensor> {
        let (batch, seq, width) = hidden.dims3()?;
        let hidden = hidden.reshape((batch * seq, width))?;
        let options = LossOptions {
            softcap: self.config.final_logit_softcapping.map(|c| c as f32),
            ..LossOptions::default()
        };
        let head = self.bank.weight("lm_head.weight")?;
        Ok(ops::linear_cross_entropy(&hidden, &head, &targets.flatten_all()?, &options)?)
    }

    /// Mean next-token cross-entropy of `ids: [batch, seq + 1]`. Where a router decides, it routes as
    /// in training (without noise, which needs a seed: [`Decoder::training_loss`]), and its auxiliary
    /// losses are added.
    pub fn next_token_loss(&self, ids: &Tensor) -> Result<Tensor> {
        if self.config.mixture_of_experts.is_some() {
            return Ok(self.experts_loss(ids, MoePhase::Training(None))?.total);
        }
        if self.config.mixture_of_recursions.is_some() {
            return Ok(self.routed_loss(ids, false)?.total);
        }
        self.next_token_loss_by(ids, |inputs| self.forward(inputs, None))
    }

    /// [`Decoder::next_token_loss`] through [`Decoder::forward_recomputing`].
    pub fn next_token_loss_recomputing(&self, ids: &Tensor) -> Result<Tensor> {
        if self.config.mixture_of_experts.is_some() {
            return Ok(self.experts_loss_recomputing(ids, MoePhase::Training(None))?.total);
        }
        if self.config.mixture_of_recursions.is_some() {
            return Ok(self.routed_loss(ids, true)?.total);
        }
        self.next_token_loss_by(ids, |inputs| self.forward_recomputing(inputs))
    }

    fn next_token_loss_by(
        &self,
        ids: &Tensor,
        forward: impl FnOnce(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let (inputs, targets) = inputs_and_targets(ids)?;
        self.loss(&forward(&inputs)?, &targets)
    }

    /// An empty key/value cache for up to `capacity` positions.
    pub fn cache(&self, batch: usize, capacity: usize) -> Result<KvCache> {
        let c = &self.config;
        if c.mixture_of_recursions.is_some() {
            return Ok(KvCache::growing(c.num_hidden_layers, batch, capacity));
        }
        let (streams, prefix) = c.parallel_streams.map_or((1, 0), |s| (s.count, s.prefix_tokens));
        let mut cache = KvCache::new(
            c.num_hidden_layers,
            streams * batch,
            prefix + capacity,
            c.num_key_value_heads,
            c.head_dim,
            self.bank.device(),
        )?;
        self.fill_prefix(&mut cache, streams * batch)?;
        Ok(cache)
    }

    /// A copy whose weights are plainly stored and cost no gradient: faster to generate with.
    pub fn baked(&self) -> Result<Self> {
        let mut bank = self.bank.materialize()?;
        bank.freeze(|_| true);
        Ok(Self { config: self.config.clone(), bank })
    }
}

impl DecoderConfig {
    /// Name and shape of every weight, in model order.
    pub fn weights(&self) -> Vec<(String, Vec<usize>)> {
        let h = self.hidden_size;
        let mut all = vec![("model.embed_tokens.weight".to_owned(), vec![self.vocab_size, h])];
        let layer = self.layer_weights();
        for index in 0..self.num_hidden_layers {
            let p = layer_prefix(index);
            all.extend(layer.iter().map(|(name, shape)| (format!("{p}{name}"), shape.clone())));
        }
        all.extend(self.stream_weights());
        all.extend(self.router_weights());
        all.push(("model.norm.weight".to_owned(), vec![h]));
        all.push(("lm_head.weight".to_owned(), vec![self.vocab_size, h]));
        all
    }
}

impl DecoderConfig {
    /// Name within a layer and shape of the weights that every layer has.
    pub(super) fn layer_weights(&self) -> Vec<(String, Vec<usize>)> {
        let (h, d) = (self.hidden_size, self.head_dim);
        let (q, kv) = (self.num_attention_heads * d, self.num_key_value_heads * d);
        let attention = [[q, h], [kv, h], [kv, h], [h, q]];
        let mut all: Vec<(String, Vec<usize>)> = BLOCK_MATRICES
            .iter()
            .zip(attention)
            .map(|(name, shape)| ((*name).to_owned(), shape.to_vec()))
            .collect();
        all.extend(self.feed_forward_weights());
        let mut add = |name: &str, width: usize| all.push((name.to_owned(), vec![width]));
        add("input_layernorm.weight", h);
        add("post_attention_layernorm.weight", h);
        match self.model_type {
            Family::Llama => {}
            Family::Qwen2 => {
                add("self_attn.q_proj.bias", q);
                add("self_attn.k_proj.bias", kv);
                add("self_attn.v_proj.bias", kv);
            }
            Family::Qwen3 | Family::Gemma3 => {
                add("self_attn.q_norm.weight", d);
                add("self_attn.k_norm.weight", d);
            }
        }
        if self.model_type == Family::Gemma3 {
            add("pre_feedforward_layernorm.weight", h);
            add("post_feedforward_layernorm.weight", h);
        }
        all
    }
}

/// All tokens of `ids: [batch, seq + 1]` but the last, and all but the first.
pub(super) fn inputs_and_targets(ids: &Tensor) -> Result<(Tensor, Tensor)> {
    let (_, width) = ids.dims2()?;
    if width < 2 {
        return Err(Error::config("seq", "a next-token loss needs at least two tokens"));
    }
    let part = |start| Ok::<_, Error>(ids.narrow(1, start, width - 1)?.contiguous()?);
    Ok((part(0)?, part(1)?))
}

/// Reads `rope_scaling` of `config.json`.
fn rope_scaling(value: Option<&Value>) -> Result<RopeScaling> {
    let Some(v) = value else { return Ok(RopeScaling::None) };
    let number = |key: &str| {
        v.get(key)
            .and_then(Value::as_f64)
            .ok_or_else(|| Error::config(format!("rope_scaling.{key}"), "is missing"))
    };
    match v.get("rope_type").or(v.get("type")).and_then(Value::as_str) {
        None | Some("default") => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear { factor: number("factor")? }),
        Some("llama3") => Ok(RopeScaling::Llama3 {
            factor: number("factor")?,
            low_freq_factor: number("low_freq_factor")?,
            high_freq_factor: number("high_freq_factor")?,
            original_max_position_embeddings: number("original_max_position_embeddings")? as usize,
        }),
        Some(other) => Err(Error::config(
            "rope_scaling",
            format!("`{other}` is not default, linear or llama3"),
        )),
    }
}

/// A `[batch, seq]` tensor of token ids.
pub fn ids_tensor(rows: &[&[u32]], bank: &Bank) -> Result<Tensor> {
    let width = rows.first().map_or(0, |r| r.len());
    if width == 0 || rows.iter().any(|r| r.len() != width) {
        return Err(Error::config("ids", "rows must be non-empty and of one length"));
    }
    let flat: Vec<u32> = rows.concat();
    Ok(Tensor::from_vec(flat, (rows.len(), width), bank.device())?.to_dtype(DType::U32)?)
}
