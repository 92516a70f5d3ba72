//! A GGUF language model seen as a Hugging Face checkpoint: same names, row order and norms.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use serde_json::{Map, Value as Json};

use super::{Architecture, Gguf, config, dequantize, unpermute_rows};
use crate::error::{Error, Result};
use crate::format::Weights;

/// A GGUF file whose tensors appear under Hugging Face names, with Hugging Face values.
#[derive(Debug, Clone)]
pub struct GgufModel {
    gguf: Gguf,
    architecture: Architecture,
    config: Map<String, Json>,
    /// Query heads, key-value heads.
    heads: (usize, usize),
    /// Hugging Face name to GGUF name.
    names: BTreeMap<String, String>,
}

impl GgufModel {
    /// Interprets an open file as a decoder of one of the known architectures.
    ///
    /// # Errors
    /// When the architecture or its metadata are not understood, or the file has a tensor that the
    /// architecture does not explain: ignoring it would silently change the model's output.
    pub fn new(gguf: Gguf) -> Result<Self> {
        let architecture = config::architecture(&gguf)?;
        let config = config::config_from_metadata(&gguf)?;
        let head_count = |key: &str| config.get(key).and_then(Json::as_u64).unwrap_or(0) as usize;
        let heads = (head_count("num_attention_heads"), head_count("num_key_value_heads"));
        let mut names = BTreeMap::new();
        for name in gguf.tensors().keys() {
            let Some(hf) = architecture.to_hf(name) else {
                return Err(Error::malformed(
                    gguf.file(),
                    format!("is not part of a plain {} model", architecture.name()),
                )
                .item(format!("tensor `{name}`"))
                .remedy("mixtures of experts and rescaled rotary frequencies are not supported"));
            };
            names.insert(hf, name.clone());
        }
        Ok(Self { gguf, architecture, config, heads, names })
    }

    /// The file.
    pub fn gguf(&self) -> &Gguf {
        &self.gguf
    }

    /// The family of the model.
    pub fn architecture(&self) -> Architecture {
        self.architecture
    }

    /// `config.json` with Hugging Face keys.
    pub fn config(&self) -> &Map<String, Json> {
        &self.config
    }

    fn gguf_name(&self, name: &str) -> Result<&str> {
        self.names.get(name).map(String::as_str).ok_or_else(|| {
            Error::malformed(self.gguf.file(), "is not in the file")
                .item(format!("tensor `{name}`"))
                .remedy("list the names the file has with `inspect`")
        })
    }

    fn values(&self, name: &str) -> Result<Vec<f32>> {
        let stored = self.gguf_name(name)?;
        let info = self.gguf.info(stored)?;
        let raw = self.gguf.raw(stored)?;
        let mut out = vec![0f32; info.elements()];
        if self.architecture.permutes(name) {
            let heads = if name.contains(".q_proj.") { self.heads.0 } else { self.heads.1 };
            // Rows are whole blocks, so they can be moved while still encoded.
            let rows = unpermute_rows(raw, info.shape[0], heads)
                .map_err(|e| Error::malformed(self.gguf.file(), e.to_string()).item(stored))?;
            dequantize(info.kind, &rows, &mut out)?;
        } else {
            dequantize(info.kind, raw, &mut out)?;
        }
        let offset = self.architecture.offset(name);
        if offset != 0.0 {
            out.iter_mut().for_each(|v| *v -= offset);
        }
        Ok(out)
    }
}

impl Weights for GgufModel {
    fn names(&self) -> Vec<String> {
        self.names.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Result<Vec<usize>> {
        Ok(self.gguf.info(self.gguf_name(name)?)?.shape.clone())
    }

    fn load(&self, name: &str, dtype: DType) -> Result<Tensor> {
        let shape = self.shape(name)?;
        Ok(Tensor::from_vec(self.values(name)?, shape, &Device::Cpu)?.to_dtype(dtype)?)
    }
}
