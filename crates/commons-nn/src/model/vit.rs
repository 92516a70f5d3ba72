//! Vision transformers (pre-norm, class token, learned positions) over a [`Bank`].
//!
//! Weights are named as in Hugging Face's `ViTForImageClassification`.

use commons_core::Seed;
use commons_ops::{self as ops, AttentionOptions, Tensor};
use serde::{Deserialize, Serialize};

use crate::bank::Bank;
use crate::{Error, Result};

/// Shape of a vision transformer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VitConfig {
    /// Height and width of the input image, pixels.
    pub image_size: usize,
    /// Height and width of a patch, pixels; divides `image_size`.
    pub patch_size: usize,
    /// Channels of the input image.
    pub num_channels: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides `num_attention_heads`, and equals it in a plain transformer.
    pub num_key_value_heads: usize,
    /// Width inside the feed-forward part.
    pub intermediate_size: usize,
    /// Classes.
    pub num_labels: usize,
}

/// Epsilon of every LayerNorm.
const EPS: f32 = 1e-6;

impl VitConfig {
    /// Checks the shape.
    ///
    /// # Errors
    /// Naming the field that does not divide.
    pub fn check(&self) -> Result<()> {
        if self.patch_size == 0 || !self.image_size.is_multiple_of(self.patch_size) {
            return Err(Error::config("patch_size", "must divide image_size"));
        }
        if self.num_attention_heads == 0
            || !self.hidden_size.is_multiple_of(self.num_attention_heads)
        {
            return Err(Error::config("num_attention_heads", "must divide hidden_size"));
        }
        if self.num_key_value_heads == 0
            || !self.num_attention_heads.is_multiple_of(self.num_key_value_heads)
        {
            return Err(Error::config("num_key_value_heads", "must divide num_attention_heads"));
        }
        Ok(())
    }

    /// Width of one head.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    fn patches(&self) -> usize {
        (self.image_size / self.patch_size).pow(2)
    }

    /// Name and shape of every weight.
    pub fn weights(&self) -> Vec<(String, Vec<usize>)> {
        let (h, f) = (self.hidden_size, self.intermediate_size);
        let patch = self.num_channels * self.patch_size * self.patch_size;
        let mut all = vec![
            ("vit.embeddings.cls_token".to_owned(), vec![1, 1, h]),
            ("vit.embeddings.position_embeddings".to_owned(), vec![1, self.patches() + 1, h]),
        ];
        let mut linear = |module: &str, out: usize, input: usize| {
            all.push((format!("{module}.weight"), vec![out, input]));
            all.push((format!("{module}.bias"), vec![out]));
        };
        linear("vit.embeddings.patch_embeddings.projection", h, patch);
        for layer in 0..self.num_hidden_layers {
            let p = format!("vit.encoder.layer.{layer}");
            let narrow = self.num_key_value_heads * self.head_dim();
            for (module, out) in [("query", h), ("key", narrow), ("value", narrow)] {
                linear(&format!("{p}.attention.attention.{module}"), out, h);
            }
            linear(&format!("{p}.attention.output.dense"), h, h);
            linear(&format!("{p}.intermediate.dense"), f, h);
            linear(&format!("{p}.output.dense"), h, f);
        }
        linear("classifier", self.num_labels, h);
        let mut norm = |module: String| {
            all.push((format!("{module}.weight"), vec![h]));
            all.push((format!("{module}.bias"), vec![h]));
        };
        for layer in 0..self.num_hidden_layers {
            norm(format!("vit.encoder.layer.{layer}.layernorm_before"));
            norm(format!("vit.encoder.layer.{layer}.layernorm_after"));
        }
        norm("vit.layernorm".to_owned());
        all
    }
}

/// A vision transformer.
#[derive(Debug, Clone)]
pub struct Vit {
    /// Shape.
    pub config: VitConfig,
    /// Stored parameters and sharing plan.
    pub bank: Bank,
}

impl Vit {
    /// Joins a configuration and a bank. The patch projection may have its convolution shape
    /// `[hidden, channels, patch, patch]`.
    ///
    /// # Errors
    /// Naming the missing or misshapen weight.
    pub fn new(config: VitConfig, mut bank: Bank) -> Result<Self> {
        config.check()?;
        let projection = "vit.embeddings.patch_embeddings.projection.weight";
        if bank.shape(projection)?.len() == 4 {
            let flat = bank.weight(projection)?.flatten_from(1)?;
            bank.insert(projection, flat)?;
        }
        for (name, shape) in config.weights() {
            let found = bank.shape(&name)?;
            if found != shape {
                return Err(Error::plan(
                    &name,
                    format!("has shape {found:?}, the configuration needs {shape:?}"),
                ));
            }
        }
        Ok(Self { config, bank })
    }

    /// A freshly initialised model (normal, deviation 0.02; gains one, biases zero).
    pub fn init(config: VitConfig, seed: Seed) -> Result<Self> {
        let mut bank = Bank::default();
        for (name, shape) in config.weights() {
            let mut v = vec![0f32; shape.iter().product()];
            if name.contains("layernorm") && name.ends_with("weight") {
                v.fill(1.);
            } else if shape.len() > 1 {
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
        Ok(ops::layer_norm(x, &gain, Some(&bias), EPS)?)
    }

    /// Patch and position embeddings with the class token first, `[batch, 1 + patches, hidden]`,
    /// of images `[batch, channels, height, width]`.
    pub fn embed(&self, images: &Tensor) -> Result<Tensor> {
        let c = &self.config;
        let (batch, channels, height, width) = images.dims4()?;
        if [channels, height, width] != [c.num_channels, c.image_size, c.image_size] {
            return Err(Error::config(
                "images",
                format!(
                    "[{channels}, {height}, {width}] is not [{}, {1}, {1}]",
                    c.num_channels, c.image_size
                ),
            ));
        }
        let (side, p) = (c.image_size / c.patch_size, c.patch_size);
        let patches = images
            .reshape(vec![batch, channels, side, p, side, p])?
            .permute(vec![0, 2, 4, 1, 3, 5])?
            .reshape((batch, side * side, channels * p * p))?;
        let x = self.bank.linear("vit.embeddings.patch_embeddings.projection", &patches)?;
        let class = self.bank.weight("vit.embeddings.cls_token")?.broadcast_as((
            batch,
            1,
            c.hidden_size,
        ))?;
        let x = Tensor::cat(&[&class.contiguous()?, &x], 1)?;
        Ok(x.broadcast_add(&self.bank.weight("vit.embeddings.position_embeddings")?)?)
    }

    /// Queries, keys and values of `layer`, `[batch, seq, heads, head_dim]` each, of the residual
    /// stream `x: [batch, seq, hidden]`.
    pub fn attention_heads(&self, layer: usize, x: &Tensor) -> Result<[Tensor; 3]> {
        let p = format!("vit.encoder.layer.{layer}");
        let (batch, seq, _) = x.dims3()?;
        let d = self.config.head_dim();
        let normed = self.norm(&format!("{p}.layernorm_before"), x)?;
        let head = |module: &str| -> Result<Tensor> {
            let y = self.bank.linear(&format!("{p}.attention.attention.{module}"), &normed)?;
            let heads = y.dim(2)? / d;
            Ok(y.reshape((batch, seq, heads, d))?)
        };
        Ok([head("query")?, head("key")?, head("value")?])
    }

    /// What `layer` makes of the outputs of its heads, `[batch, seq, heads, head_dim]`.
    pub fn attention_output(&self, layer: usize, y: &Tensor) -> Result<Tensor> {
        let module = format!("vit.encoder.layer.{layer}.attention.output.dense");
        self.bank.linear(&module, &y.flatten_from(2)?)
    }

    /// What the attention half of `layer` adds.
    pub fn attention_update(&self, layer: usize, x: &Tensor) -> Result<Tensor> {
        let [q, k, v] = self.attention_heads(layer, x)?;
        let y = ops::attention(&q, &k, &v, &AttentionOptions::default())?;
        self.attention_output(layer, &y)
    }

    /// What the feed-forward half of `layer` adds.
    pub fn mlp_update(&self, layer: usize, x: &Tensor) -> Result<Tensor> {
        let p = format!("vit.encoder.layer.{layer}");
        let y = self.bank.linear(
            &format!("{p}.intermediate.dense"),
            &self.norm(&format!("{p}.layernorm_after"), x)?,
        )?;
        self.bank.linear(&format!("{p}.output.dense"), &ops::gelu(&y)?)
    }

    /// Class scores `[batch, num_labels]` of images `[batch, channels, height, width]`.
    pub fn forward(&self, images: &Tensor) -> Result<Tensor> {
        let mut x = self.embed(images)?;
        for layer in 0..self.config.num_hidden_layers {
            x = ops::add(&x, &self.attention_update(layer, &x)?)?;
            x = ops::add(&x, &self.mlp_update(layer, &x)?)?;
        }
        self.classify(&x)
    }

    /// Class scores `[batch, num_labels]` of the last layer's output `[batch, seq, hidden]`.
    pub fn classify(&self, x: &Tensor) -> Result<Tensor> {
        let class = x.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?;
        self.bank.linear("classifier", &self.norm("vit.layernorm", &class)?)
    }
}
