//! Configuration of decoders in the words of Hugging Face `config.json`.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::experts::{EXPERTS_KEY, MixtureOfExperts, SHARE_LAYERS_KEY};
use super::recursion::{MixtureOfRecursions, RECURSION_KEY};
use crate::{Error, Result};

/// Decoder families this crate computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Llama 2/3, SmolLM2, Mistral-like without window.
    Llama,
    /// Llama with biases on q, k and v.
    Qwen2,
    /// Llama with RMSNorm on queries and keys.
    Qwen3,
    /// Gemma 3 text: four norms per layer with gain `1 + w`, local and global attention layers.
    #[serde(rename = "gemma3_text")]
    Gemma3,
}

impl Family {
    /// `model_type` of `config.json`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Gemma3 => "gemma3_text",
        }
    }

    /// Class name in `architectures`.
    pub fn architecture(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
            Self::Gemma3 => "Gemma3ForCausalLM",
        }
    }
}

/// Which earlier positions a layer attends to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerType {
    /// All earlier positions.
    FullAttention,
    /// The last `sliding_window` positions.
    SlidingAttention,
}

/// Parallel streams through the same layers (ParScale): every stream has its own prefix of keys
/// and values in each layer, and what the streams end in is mixed token by token.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParallelStreams {
    /// Streams; with one there is only a prefix and nothing is mixed.
    pub count: usize,
    /// Prefix tokens of each stream.
    pub prefix_tokens: usize,
    /// Share of the mixture that is spread evenly, so that every stream keeps learning.
    pub smoothing: f64,
}

/// Before the family's name in `model_type` of models that other programs must not take for one of it.
const OWN: &str = "commons_";

/// Most streams and most prefix tokens of a model.
const MOST_STREAMS: usize = 64;
const MOST_PREFIX: usize = 4096;

impl ParallelStreams {
    /// Checks the counts.
    ///
    /// # Errors
    /// Naming the field and what would do.
    pub fn check(&self) -> Result<()> {
        let bad =
            |field: &str, why: String| Err(Error::config(format!("parallel_streams.{field}"), why));
        if !(1..=MOST_STREAMS).contains(&self.count) {
            return bad("count", format!("{} is not in 1..={MOST_STREAMS}", self.count));
        }
        if !(1..=MOST_PREFIX).contains(&self.prefix_tokens) {
            let n = self.prefix_tokens;
            return bad(
                "prefix_tokens",
                format!("{n} is not in 1..={MOST_PREFIX}: without a prefix all streams are equal"),
            );
        }
        if !(0. ..=1.).contains(&self.smoothing) {
            return bad("smoothing", format!("{} is not in 0..=1: use 0.01", self.smoothing));
        }
        Ok(())
    }
}

/// Shape and constants of a decoder; field names are those of `config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DecoderConfig {
    /// Decoder family.
    pub model_type: Family,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the feed-forward part.
    pub intermediate_size: usize,
    /// Number of layers a token passes (repeated ones counted each time).
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Where groups of query heads are not all of one size: for each layer, how many consecutive
    /// query heads read each key and value head. Empty means equal groups.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub query_heads_per_kv_head: Vec<Vec<usize>>,
    /// Width of one head.
    pub head_dim: usize,
    /// Epsilon of every RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies (of global layers).
    pub rope_theta: f64,
    /// Rotary scaling as written in `config.json`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rope_scaling: Option<Value>,
    /// Longest sequence the model was trained for, tokens.
    pub max_position_embeddings: usize,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
    /// Activation of the feed-forward part: `silu` or `gelu_pytorch_tanh`.
    pub hidden_act: String,
    /// Rotary base of sliding-window layers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rope_local_base_freq: Option<f64>,
    /// Window of sliding layers, tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sliding_window: Option<usize>,
    /// Attention kind of each layer; empty means all global.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layer_types: Vec<LayerType>,
    /// Attention scale is `query_pre_attn_scalar^-1/2` instead of `head_dim^-1/2`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub query_pre_attn_scalar: Option<f64>,
    /// `cap · tanh(logits / cap)`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub final_logit_softcapping: Option<f64>,
    /// Parallel streams through the layers; without it there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parallel_streams: Option<ParallelStreams>,
    /// Layers passed again and again, as often as a router says for each token; without it every
    /// token passes every layer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mixture_of_recursions: Option<MixtureOfRecursions>,
    /// Experts in place of every feed-forward part; without it a part is dense.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mixture_of_experts: Option<MixtureOfExperts>,
    /// A new model's layers all have the same matrices and biases, stored once, and norms of their
    /// own (ALBERT's sharing; with experts WideNet's).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub share_layers: bool,
    /// First token of a document.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bos_token_id: Option<u32>,
    /// Token (or first of the tokens) that ends a document.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eos_token_id: Option<u32>,
}

impl DecoderConfig {
    /// A Llama-style configuration with tied embeddings.
    pub fn llama(
        vocab: usize,
        hidden: usize,
        layers: usize,
        heads: usize,
        kv_heads: usize,
        ffn: usize,
    ) -> Self {
        Self {
            model_type: Family::Llama,
            vocab_size: vocab,
            hidden_size: hidden,
            intermediate_size: ffn,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            query_heads_per_kv_head: Vec::new(),
            head_dim: hidden / heads.max(1),
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.,
            rope_scaling: None,
            max_position_embeddings: 2048,
            tie_word_embeddings: true,
            hidden_act: "silu".into(),
            rope_local_base_freq: None,
            sliding_window: None,
            layer_types: Vec::new(),
            query_pre_attn_scalar: None,
            final_logit_softcapping: None,
            parallel_streams: None,
            mixture_of_recursions: None,
            mixture_of_experts: None,
            share_layers: false,
            bos_token_id: None,
            eos_token_id: None,
        }
    }

    /// Reads the object of a `config.json`.
    ///
    /// # Errors
    /// When a field is missing or of the wrong kind, the family is unknown, or head counts do not
    /// divide.
    pub fn from_json(config: &Value) -> Result<Self> {
        let r = Reader(config);
        let named = r.0.get("model_type").and_then(Value::as_str);
        let model_type = match named.map(|n| n.strip_prefix(OWN).unwrap_or(n)) {
            Some("llama" | "mistral" | "smollm") => Family::Llama,
            Some("qwen2") => Family::Qwen2,
            Some("qwen3") => Family::Qwen3,
            Some("gemma3_text" | "gemma3") => Family::Gemma3,
            other => {
                return Err(Error::config(
                    "model_type",
                    format!(
                        "{other:?} is not a decoder of this version: use llama, qwen2, qwen3 or gemma3_text"
                    ),
                ));
            }
        };
        let heads = r.count("num_attention_heads")?;
        let hidden = r.count("hidden_size")?;
        let layers = r.count("num_hidden_layers")?;
        let gemma = model_type == Family::Gemma3;
        let act = r.text("hidden_activation").or(r.text("hidden_act"));
        let rope = Rope::of(config);
        let config = Self {
            model_type,
            vocab_size: r.count("vocab_size")?,
            hidden_size: hidden,
            intermediate_size: r.count("intermediate_size")?,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: r.maybe_count("num_key_value_heads")?.unwrap_or(heads),
            query_heads_per_kv_head: Self::read_groups(r.0)?,
            head_dim: r.maybe_count("head_dim")?.unwrap_or(hidden / heads.max(1)),
            rms_norm_eps: r.number("rms_norm_eps").unwrap_or(1e-6),
            rope_theta: r.number("rope_theta").or(rope.theta).unwrap_or(10_000.),
            rope_scaling: rope.scaling.cloned(),
            max_position_embeddings: r.maybe_count("max_position_embeddings")?.unwrap_or(2048),
            tie_word_embeddings: config
                .get("tie_word_embeddings")
                .and_then(Value::as_bool)
                .unwrap_or(gemma),
            hidden_act: act.unwrap_or(if gemma { "gelu_pytorch_tanh" } else { "silu" }).to_owned(),
            rope_local_base_freq: r
                .number("rope_local_base_freq")
                .or(rope.local_theta)
                .or(gemma.then_some(10_000.)),
            sliding_window: r.maybe_count("sliding_window")?.filter(|_| gemma),
            layer_types: if gemma { r.layer_types(layers)? } else { Vec::new() },
            query_pre_attn_scalar: r.number("query_pre_attn_scalar"),
            final_logit_softcapping: r.number("final_logit_softcapping"),
            parallel_streams: r.maybe("parallel_streams")?,
            mixture_of_recursions: r.maybe(RECURSION_KEY)?,
            mixture_of_experts: r.maybe(EXPERTS_KEY)?,
            share_layers: r.maybe(SHARE_LAYERS_KEY)?.unwrap_or(false),
            bos_token_id: r.token("bos_token_id"),
            eos_token_id: r.token("eos_token_id"),
        };
        config.check()?;
        Ok(config)
    }

    /// The object of a `config.json` that other libraries load.
    pub fn to_json(&self) -> Result<Value> {
        let mut value =
            serde_json::to_value(self).map_err(|e| Error::config("*", e.to_string()))?;
        if let Value::Object(map) = &mut value {
            let (mut kind, mut class) = (
                self.model_type.model_type().to_owned(),
                self.model_type.architecture().to_owned(),
            );
            if self.is_own() {
                (kind, class) = (format!("{OWN}{kind}"), format!("Commons{class}"));
            }
            map.insert("model_type".into(), kind.into());
            map.insert("architectures".into(), vec![class].into());
            map.insert("torch_dtype".into(), "float32".into());
            map.insert("attention_bias".into(), false.into());
            if self.model_type == Family::Gemma3 {
                map.insert("hidden_activation".into(), self.hidden_act.clone().into());
            }
        }
        Ok(value)
    }

    /// Checks counts against each other.
    ///
    /// # Errors
    /// Naming the field that does not fit.
    pub fn check(&self) -> Result<()> {
        let counts = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
        ];
        for (field, n) in counts {
            if n == 0 || n > 1 << 24 {
                return Err(Error::config(field, format!("{n} is not between 1 and 2^24")));
            }
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            return Err(Error::config(
                "num_key_value_heads",
                format!(
                    "{} does not divide {} heads",
                    self.num_key_value_heads, self.num_attention_heads
                ),
            ));
        }
        self.check_groups()?;
        if !self.head_dim.is_multiple_of(2) {
            return Err(Error::config(
                "head_dim",
                format!("{} is odd: rotary needs pairs", self.head_dim),
            ));
        }
        if let Some(streams) = &self.parallel_streams {
            streams.check()?;
            if self.layer_types.contains(&LayerType::SlidingAttention) {
                return Err(Error::config(
                    "parallel_streams",
                    "needs layers that see the whole prefix, not a sliding window: use a model \
                     with full attention",
                ));
            }
        }
        self.check_recursions()?;
        self.check_experts()?;
        if !self.layer_types.is_empty() && self.layer_types.len() != self.num_hidden_layers {
            return Err(Error::config(
                "layer_types",
                format!("{} entries for {} layers", self.layer_types.len(), self.num_hidden_layers),
            ));
        }
        Ok(())
    }

    /// Whether programs that know the family would compute something else without noticing.
    fn is_own(&self) -> bool {
        self.parallel_streams.is_some()
            || self.mixture_of_recursions.is_some()
            || self.mixture_of_experts.is_some()
            || !self.query_heads_per_kv_head.is_empty()
    }

    /// Whether `layer` attends through the sliding window.
    pub fn is_local(&self, layer: usize) -> bool {
        self.layer_types.get(layer) == Some(&LayerType::SlidingAttention)
    }

    /// Streams a token takes through the layers.
    pub fn streams(&self) -> usize {
        self.parallel_streams.map_or(1, |s| s.count)
    }

    /// Parameters that every token multiplies in one forward pass (once per stream), embedding lookup left out:
    /// twice this many FLOPs per token, plus attention. Of routed layers the expected number counts, of
    /// experts those that a token takes.
    pub fn active_parameters(&self) -> usize {
        let (h, d) = (self.hidden_size, self.head_dim);
        let attention = 2 * h * d * (self.num_attention_heads + self.num_key_value_heads);
        let block = attention + self.feed_forward_parameters();
        let streams = self.streams();
        let mixing = if streams > 1 { streams * h * (h + 1) } else { 0 };
        let layers = (streams * block) as f64 * self.expected_layers();
        layers.round() as usize + mixing + self.vocab_size * h
    }
}

/// What `rope_scaling` (older files) or `rope_parameters` (newer ones) say about rotary positions.
struct Rope<'a> {
    theta: Option<f64>,
    local_theta: Option<f64>,
    scaling: Option<&'a Value>,
}

impl<'a> Rope<'a> {
    fn of(config: &'a Value) -> Self {
        let parameters = config.get("rope_parameters").filter(|v| v.is_object());
        // Families with two kinds of layers write one object for each.
        let kind = |name: &str| parameters.and_then(|p| p.get(name));
        let global = kind("full_attention").or(parameters);
        let theta = |v: Option<&Value>| v.and_then(|v| v.get("rope_theta")).and_then(Value::as_f64);
        let scaled = |v: &&Value| v.get("rope_type").is_some_and(|t| t != "default");
        Self {
            theta: theta(global),
            local_theta: theta(kind("sliding_attention")),
            scaling: config.get("rope_scaling").filter(|v| !v.is_null()).or(global.filter(scaled)),
        }
    }
}

struct Reader<'a>(&'a Value);

impl<'a> Reader<'a> {
    fn number(&self, key: &str) -> Option<f64> {
        self.0.get(key).and_then(Value::as_f64)
    }

    fn text(&self, key: &str) -> Option<&'a str> {
        self.0.get(key).and_then(Value::as_str)
    }

    fn maybe_count(&self, key: &str) -> Result<Option<usize>> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(v) => match v.as_u64() {
                Some(n) => Ok(Some(n as usize)),
                None => Err(Error::config(key, format!("must be a whole number, got {v}"))),
            },
        }
    }

    fn count(&self, key: &str) -> Result<usize> {
        self.maybe_count(key)?.ok_or_else(|| Error::config(key, "is missing"))
    }

    fn token(&self, key: &str) -> Option<u32> {
        let value = self.0.get(key)?;
        let id = value.as_array().and_then(|a| a.first()).unwrap_or(value).as_u64()?;
        u32::try_from(id).ok()
    }

    /// What stands under `key`, unknown fields refused where the type does.
    fn maybe<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>> {
        match self.0.get(key).filter(|v| !v.is_null()) {
            None => Ok(None),
            Some(v) => serde_json::from_value(v.clone())
                .map(Some)
                .map_err(|e| Error::config(key, e.to_string())),
        }
    }

    /// Explicit `layer_types`, else every `sliding_window_pattern`-th layer (6 by default) global.
    fn layer_types(&self, layers: usize) -> Result<Vec<LayerType>> {
        if let Some(v) = self.0.get("layer_types").filter(|v| !v.is_null()) {
            return serde_json::from_value(v.clone())
                .map_err(|e| Error::config("layer_types", e.to_string()));
        }
        let pattern = self
            .maybe_count("sliding_window_pattern")?
            .or(self.maybe_count("_sliding_window_pattern")?)
            .unwrap_or(6)
            .max(1);
        let kind = |i: usize| {
            if (i + 1).is_multiple_of(pattern) {
                LayerType::FullAttention
            } else {
                LayerType::SlidingAttention
            }
        };
        Ok((0..layers).map(kind).collect())
    }
}
