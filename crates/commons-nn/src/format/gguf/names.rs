//! Tensor names, row orders and norm offsets: how GGUF stores what Hugging Face calls otherwise.

use crate::error::{Error, Result};

/// Decoder families whose GGUF files are understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// Llama, SmolLM2 and everything converted as `llama`.
    Llama,
    /// Qwen2 and Qwen2.5: biases on the q, k and v projections.
    Qwen2,
    /// Qwen3: norms on q and k.
    Qwen3,
    /// Gemma 3, text part.
    Gemma3,
}

/// (name in GGUF, name in Hugging Face checkpoints) outside the layers.
const GLOBAL: [(&str, &str); 3] =
    [("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

/// The same inside a layer, for all architectures.
const LAYER: [(&str, &str); 8] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// Norms of queries and keys, where the architecture has them.
const HEAD_NORMS: [(&str, &str); 2] =
    [("attn_q_norm", "self_attn.q_norm"), ("attn_k_norm", "self_attn.k_norm")];

/// Norm before the feed-forward part, under its two names.
const PRE_NORM_ONLY: [(&str, &str); 1] = [("ffn_norm", "post_attention_layernorm")];
const PRE_AND_POST_NORM: [(&str, &str); 3] = [
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_attention_norm", "post_attention_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];

impl Architecture {
    /// All architectures.
    pub const ALL: [Self; 4] = [Self::Llama, Self::Qwen2, Self::Qwen3, Self::Gemma3];

    /// The value of `general.architecture`, also the prefix of its metadata keys.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Gemma3 => "gemma3",
        }
    }

    /// The `model_type` of `config.json`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Gemma3 => "gemma3_text",
            other => other.name(),
        }
    }

    /// The entry of `architectures` in `config.json`.
    pub fn class(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
            Self::Gemma3 => "Gemma3ForCausalLM",
        }
    }

    /// Finds the architecture by its GGUF name or its `model_type`.
    ///
    /// # Errors
    /// For any other architecture.
    pub fn parse(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|a| a.name() == name || a.model_type() == name).ok_or_else(
            || {
                Error::invalid("model architecture", format!("`{name}` is not supported"))
                    .remedy("supported: llama, qwen2, qwen3, gemma3")
            },
        )
    }

    fn layer_names(self) -> impl Iterator<Item = &'static (&'static str, &'static str)> {
        let (norms, heads): (&[_], &[_]) = match self {
            Self::Llama | Self::Qwen2 => (&PRE_NORM_ONLY, &[]),
            Self::Qwen3 => (&PRE_NORM_ONLY, &HEAD_NORMS),
            Self::Gemma3 => (&PRE_AND_POST_NORM, &HEAD_NORMS),
        };
        LAYER.iter().chain(norms).chain(heads)
    }

    /// The Hugging Face name of GGUF tensor `name`, e.g. `blk.3.attn_q.weight` →
    /// `model.layers.3.self_attn.q_proj.weight`.
    pub fn to_hf(self, name: &str) -> Option<String> {
        let (stem, suffix) = split_suffix(name)?;
        if let Some((_, hf)) = GLOBAL.iter().find(|(gguf, _)| *gguf == stem) {
            return Some(format!("{hf}.{suffix}"));
        }
        let (layer, part) = stem.strip_prefix("blk.")?.split_once('.')?;
        let layer: usize = layer.parse().ok()?;
        let (_, hf) = self.layer_names().find(|(gguf, _)| *gguf == part)?;
        Some(format!("model.layers.{layer}.{hf}.{suffix}"))
    }

    /// The GGUF name of Hugging Face tensor `name`, the inverse of [`Architecture::to_hf`].
    pub fn to_gguf(self, name: &str) -> Option<String> {
        let (stem, suffix) = split_suffix(name)?;
        if let Some((gguf, _)) = GLOBAL.iter().find(|(_, hf)| *hf == stem) {
            return Some(format!("{gguf}.{suffix}"));
        }
        let (layer, part) = stem.strip_prefix("model.layers.")?.split_once('.')?;
        let layer: usize = layer.parse().ok()?;
        let (gguf, _) = self.layer_names().find(|(_, hf)| *hf == part)?;
        Some(format!("blk.{layer}.{gguf}.{suffix}"))
    }

    /// Whether rows of this tensor (Hugging Face name) are reordered in GGUF: queries and keys of
    /// `llama`, whose rotary pairs are neighbours there and half a head apart in Hugging Face.
    pub fn permutes(self, hf_name: &str) -> bool {
        self == Self::Llama
            && [".self_attn.q_proj.", ".self_attn.k_proj."].iter().any(|p| hf_name.contains(p))
    }

    /// What GGUF adds to this tensor (Hugging Face name): Gemma multiplies by `1 + gain`, and GGUF
    /// stores the sum.
    pub fn offset(self, hf_name: &str) -> f32 {
        if self == Self::Gemma3 && hf_name.ends_with("norm.weight") { 1.0 } else { 0.0 }
    }
}

fn split_suffix(name: &str) -> Option<(&str, &str)> {
    name.rsplit_once('.').filter(|(_, suffix)| matches!(*suffix, "weight" | "bias"))
}

fn check_rows<T>(data: &[T], rows: usize, heads: usize) -> Result<()> {
    if rows == 0
        || heads == 0
        || !rows.is_multiple_of(2 * heads)
        || !data.len().is_multiple_of(rows)
    {
        return Err(Error::invalid(
            "rotary rows",
            format!("{rows} rows of {} values do not split into {heads} heads", data.len()),
        ));
    }
    Ok(())
}

/// Moves row `(head, half, pair)` to `(head, pair, half)`: Hugging Face order to GGUF order.
///
/// `data` is row-major `[rows, ..]`; a row may be values or encoded bytes.
///
/// # Errors
/// When `rows` is not a multiple of `2 · heads`, or `data` not one of `rows`.
pub fn permute_rows<T: Copy>(data: &[T], rows: usize, heads: usize) -> Result<Vec<T>> {
    check_rows(data, rows, heads)?;
    let (width, pairs) = (data.len() / rows, rows / heads / 2);
    let order = (0..rows).map(|r| {
        let (head, within) = (r / (2 * pairs), r % (2 * pairs));
        head * 2 * pairs + (within % 2) * pairs + within / 2
    });
    Ok(gather(data, width, order))
}

/// Moves row `(head, pair, half)` to `(head, half, pair)`: the inverse of [`permute_rows`].
///
/// # Errors
/// As for [`permute_rows`].
pub fn unpermute_rows<T: Copy>(data: &[T], rows: usize, heads: usize) -> Result<Vec<T>> {
    check_rows(data, rows, heads)?;
    let (width, pairs) = (data.len() / rows, rows / heads / 2);
    let order = (0..rows).map(|r| {
        let (head, within) = (r / (2 * pairs), r % (2 * pairs));
        head * 2 * pairs + 2 * (within % pairs) + within / pairs
    });
    Ok(gather(data, width, order))
}

fn gather<T: Copy>(data: &[T], width: usize, order: impl Iterator<Item = usize>) -> Vec<T> {
    let mut out = Vec::with_capacity(data.len());
    for source in order {
        out.extend_from_slice(&data[source * width..(source + 1) * width]);
    }
    out
}
