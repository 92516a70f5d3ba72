//! `config.json` from GGUF metadata, and metadata from `config.json`.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};

use super::{Architecture, Gguf, Value};
use crate::error::{Error, Result};

/// Gemma 3 has one layer of global attention after every five with a sliding window.
const GEMMA3_PATTERN: u64 = 6;
/// Rotary base of Gemma 3's layers with a sliding window.
const GEMMA3_LOCAL_BASE: f64 = 10_000.0;
/// ggml's default rotary base.
const DEFAULT_ROPE_BASE: f64 = 10_000.0;

/// Reads keys of the form `llama.block_count`.
struct Keys<'a> {
    gguf: &'a Gguf,
    prefix: &'static str,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }

    fn count(&self, name: &str) -> Result<u64> {
        let key = self.key(name);
        let value = self.gguf.value(&key)?;
        match value.as_u64() {
            Some(n) if n > 0 => Ok(n),
            _ => Err(self
                .gguf
                .bad_value(&key, format!("is {value:?}, not a positive whole number"))),
        }
    }

    fn optional_count(&self, name: &str) -> Result<Option<u64>> {
        if self.gguf.metadata().contains_key(&self.key(name)) {
            self.count(name).map(Some)
        } else {
            Ok(None)
        }
    }

    fn optional_number(&self, name: &str) -> Result<Option<f64>> {
        let key = self.key(name);
        let Some(value) = self.gguf.metadata().get(&key) else {
            return Ok(None);
        };
        let number = match value {
            // The shortest decimal of the f32, so that 1e-5 does not become 9.99999974e-6.
            Value::F32(v) => v.to_string().parse().ok(),
            other => other.as_f64(),
        };
        match number {
            Some(n) if f64::is_finite(n) => Ok(Some(n)),
            _ => Err(self
                .gguf
                .bad_value(&key, format!("is {value:?}, not a number"))),
        }
    }
}

/// The `config.json` of the model in `gguf`, with Hugging Face keys.
///
/// # Errors
/// When the architecture is not supported, or a needed key is missing or makes no sense.
pub fn config_from_metadata(gguf: &Gguf) -> Result<Map<String, Json>> {
    let arch = architecture(gguf)?;
    let keys = Keys {
        gguf,
        prefix: arch.name(),
    };
    let hidden = keys.count("embedding_length")?;
    let heads = keys.count("attention.head_count")?;
    let kv_heads = keys
        .optional_count("attention.head_count_kv")?
        .unwrap_or(heads);
    if heads % kv_heads != 0 {
        return Err(gguf.bad_value(
            &keys.key("attention.head_count_kv"),
            format!("is {kv_heads}, which does not divide the {heads} query heads"),
        ));
    }
    let head_dim = match keys.optional_count("attention.key_length")? {
        Some(n) => n,
        None if hidden % heads == 0 => hidden / heads,
        None => {
            return Err(gguf.bad_value(
                &keys.key("embedding_length"),
                format!("is {hidden}, not a multiple of the {heads} heads"),
            ));
        }
    };
    check_rotary_width(&keys, head_dim)?;
    check_layers(&keys)?;
    let vocab = gguf.info("token_embd.weight")?.shape[0];
    let epsilon = keys.optional_number("attention.layer_norm_rms_epsilon")?;
    let epsilon = epsilon.ok_or_else(|| {
        gguf.bad_value(&keys.key("attention.layer_norm_rms_epsilon"), "is missing")
    })?;
    let rope_base = keys
        .optional_number("rope.freq_base")?
        .unwrap_or(DEFAULT_ROPE_BASE);
    let mut config = object(json!({
        "architectures": [arch.class()],
        "model_type": arch.model_type(),
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": keys.count("feed_forward_length")?,
        "num_hidden_layers": keys.count("block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": keys.count("context_length")?,
        "rms_norm_eps": epsilon,
        "rope_theta": rope_base,
        "tie_word_embeddings": !gguf.tensors().contains_key("output.weight"),
        "attention_bias": gguf.tensors().contains_key("blk.0.attn_q.bias"),
    }));
    if let Some(scaling) = rope_scaling(&keys)? {
        config.insert("rope_scaling".into(), scaling);
    }
    match arch {
        Architecture::Gemma3 => gemma3_keys(&keys, head_dim, &mut config)?,
        _ => {
            config.insert("hidden_act".into(), json!("silu"));
        }
    }
    for (hf, key) in TOKEN_IDS {
        if let Some(id) = gguf.metadata().get(key).and_then(Value::as_u64) {
            config.insert(hf.into(), json!(id));
        }
    }
    Ok(config)
}

/// (key of `config.json`, key of the metadata)
const TOKEN_IDS: [(&str, &str); 3] = [
    ("bos_token_id", "tokenizer.ggml.bos_token_id"),
    ("eos_token_id", "tokenizer.ggml.eos_token_id"),
    ("pad_token_id", "tokenizer.ggml.padding_token_id"),
];

/// The architecture of a file.
pub(super) fn architecture(gguf: &Gguf) -> Result<Architecture> {
    let key = "general.architecture";
    let name = gguf
        .value(key)?
        .as_str()
        .ok_or_else(|| gguf.bad_value(key, "is not text"))?;
    Architecture::parse(name).map_err(|_| {
        gguf.bad_value(key, format!("`{name}` is not supported"))
            .remedy("supported: llama, qwen2, qwen3, gemma3")
    })
}

fn object(value: Json) -> Map<String, Json> {
    match value {
        Json::Object(map) => map,
        _ => Map::new(),
    }
}

/// The promised layers must be there, so that nothing is built for a number alone.
fn check_layers(keys: &Keys<'_>) -> Result<()> {
    let promised = keys.count("block_count")?;
    let layer = |name: &String| {
        name.strip_prefix("blk.")?
            .split_once('.')?
            .0
            .parse::<u64>()
            .ok()
    };
    let found = keys
        .gguf
        .tensors()
        .keys()
        .filter_map(layer)
        .max()
        .map_or(0, |last| last.saturating_add(1));
    if found != promised {
        return Err(keys.gguf.bad_value(
            &keys.key("block_count"),
            format!("is {promised} but the tensors make {found} layers"),
        ));
    }
    Ok(())
}

fn check_rotary_width(keys: &Keys<'_>, head_dim: u64) -> Result<()> {
    match keys.optional_count("rope.dimension_count")? {
        Some(n) if n != head_dim => Err(keys.gguf.bad_value(
            &keys.key("rope.dimension_count"),
            format!(
                "is {n} but heads are {head_dim} wide; partial rotary embedding is not supported"
            ),
        )),
        _ => Ok(()),
    }
}

fn rope_scaling(keys: &Keys<'_>) -> Result<Option<Json>> {
    let key = keys.key("rope.scaling.type");
    let kind = keys
        .gguf
        .metadata()
        .get(&key)
        .and_then(Value::as_str)
        .unwrap_or("none");
    let factor = keys.optional_number("rope.scaling.factor")?.unwrap_or(1.0);
    match kind {
        "none" => Ok(None),
        "linear" => Ok(Some(json!({ "rope_type": "linear", "factor": factor }))),
        "yarn" => Ok(Some(json!({
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": keys.count("rope.scaling.original_context_length")?,
        }))),
        other => Err(keys
            .gguf
            .bad_value(&key, format!("`{other}` is not supported"))),
    }
}

fn gemma3_keys(keys: &Keys<'_>, head_dim: u64, config: &mut Map<String, Json>) -> Result<()> {
    let layers = keys.count("block_count")?;
    let kinds: Vec<_> = (1..=layers)
        .map(|i| {
            if i % GEMMA3_PATTERN == 0 {
                "full_attention"
            } else {
                "sliding_attention"
            }
        })
        .collect();
    config.extend(object(json!({
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": head_dim,
        "sliding_window": keys.count("attention.sliding_window")?,
        "sliding_window_pattern": GEMMA3_PATTERN,
        "layer_types": kinds,
        "rope_local_base_freq": GEMMA3_LOCAL_BASE,
        "attn_logit_softcapping": null,
        "final_logit_softcapping": keys.optional_number("final_logit_softcapping")?,
    })));
    Ok(())
}

/// GGUF metadata (without the tokenizer) for a model described by a Hugging Face `config.json`.
///
/// # Errors
/// When the architecture is not supported, a needed key is missing, or GGUF cannot express a value.
pub fn metadata_from_config(config: &Map<String, Json>) -> Result<BTreeMap<String, Value>> {
    let text = config
        .get("model_type")
        .and_then(Json::as_str)
        .unwrap_or("");
    let arch = Architecture::parse(text)?;
    let count = |key: &str| -> Result<u32> {
        let value = config
            .get(key)
            .and_then(Json::as_u64)
            .and_then(|n| u32::try_from(n).ok());
        value.ok_or_else(|| Error::invalid(format!("config.json: {key}"), "is not a whole number"))
    };
    let number = |key: &str| config.get(key).and_then(Json::as_f64);
    let heads = count("num_attention_heads")?;
    let head_dim = match config.get("head_dim") {
        Some(value) if !value.is_null() => count("head_dim")?,
        _ => count("hidden_size")? / heads.max(1),
    };
    let kv_heads = match config.get("num_key_value_heads") {
        Some(value) if !value.is_null() => count("num_key_value_heads")?,
        _ => heads,
    };
    let rope_base = number("rope_theta")
        .or_else(|| config.get("rope_parameters")?.get("rope_theta")?.as_f64())
        .unwrap_or(DEFAULT_ROPE_BASE);
    let epsilon = number("rms_norm_eps")
        .ok_or_else(|| Error::invalid("config.json: rms_norm_eps", "is missing"))?;
    let entries = [
        ("block_count", Value::U32(count("num_hidden_layers")?)),
        (
            "context_length",
            Value::U32(count("max_position_embeddings")?),
        ),
        ("embedding_length", Value::U32(count("hidden_size")?)),
        (
            "feed_forward_length",
            Value::U32(count("intermediate_size")?),
        ),
        ("attention.head_count", Value::U32(heads)),
        ("attention.head_count_kv", Value::U32(kv_heads)),
        ("attention.key_length", Value::U32(head_dim)),
        ("attention.value_length", Value::U32(head_dim)),
        (
            "attention.layer_norm_rms_epsilon",
            Value::F32(epsilon as f32),
        ),
        ("rope.dimension_count", Value::U32(head_dim)),
        ("rope.freq_base", Value::F32(rope_base as f32)),
        ("vocab_size", Value::U32(count("vocab_size")?)),
    ];
    let prefix = arch.name();
    let mut metadata: BTreeMap<_, _> = entries
        .into_iter()
        .map(|(key, value)| (format!("{prefix}.{key}"), value))
        .collect();
    metadata.insert("general.architecture".into(), Value::String(prefix.into()));
    metadata.insert("general.type".into(), Value::String("model".into()));
    if arch == Architecture::Gemma3 {
        check_gemma3(config)?;
        let window = Value::U32(count("sliding_window")?);
        metadata.insert("gemma3.attention.sliding_window".into(), window);
    }
    put_rope_scaling(config, prefix, &mut metadata)?;
    Ok(metadata)
}

/// Constants of Gemma 3 that readers of GGUF assume must have their usual values.
fn check_gemma3(config: &Map<String, Json>) -> Result<()> {
    let pattern = config.get("sliding_window_pattern").and_then(Json::as_u64);
    let local = config.get("rope_local_base_freq").and_then(Json::as_f64);
    if pattern.is_some_and(|p| p != GEMMA3_PATTERN) || local.is_some_and(|b| b != GEMMA3_LOCAL_BASE)
    {
        return Err(Error::invalid(
            "config.json",
            "its sliding_window_pattern or rope_local_base_freq cannot be expressed in GGUF",
        )
        .remedy("write a Hugging Face folder instead"));
    }
    Ok(())
}

fn put_rope_scaling(
    config: &Map<String, Json>,
    prefix: &str,
    metadata: &mut BTreeMap<String, Value>,
) -> Result<()> {
    let scaling = ["rope_scaling", "rope_parameters"]
        .iter()
        .find_map(|k| config.get(*k)?.as_object());
    let Some(scaling) = scaling else {
        return Ok(());
    };
    let kind = ["rope_type", "type"]
        .iter()
        .find_map(|k| scaling.get(*k)?.as_str());
    let kind = match kind {
        None | Some("default") => return Ok(()),
        Some(kind @ ("linear" | "yarn")) => kind,
        Some(other) => {
            return Err(Error::invalid(
                "config.json: rope_scaling",
                format!("`{other}` cannot be expressed in GGUF metadata"),
            )
            .remedy("write a Hugging Face folder instead"));
        }
    };
    let mut put = |key: &str, value| metadata.insert(format!("{prefix}.rope.scaling.{key}"), value);
    put("type", Value::String(kind.into()));
    if let Some(factor) = scaling.get("factor").and_then(Json::as_f64) {
        put("factor", Value::F32(factor as f32));
    }
    let original = scaling
        .get("original_max_position_embeddings")
        .and_then(Json::as_u64);
    if let Some(original) = original.and_then(|n| u32::try_from(n).ok()) {
        put("original_context_length", Value::U32(original));
    }
    Ok(())
}
