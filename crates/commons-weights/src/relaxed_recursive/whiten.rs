//! Which inputs the matrices of each layer see, so that low-rank terms give back what these inputs
//! lose and not what the weights lose.

use commons_nn::model::{Decoder, Rotary, ids_tensor, layer_prefix};
use commons_ops::{self as ops, Tensor};

use crate::linalg::{Whitening, add_to, outer};
use crate::{Error, Result};

/// Tokens of a window of calibration text.
const WINDOW: usize = 512;

/// Share of the mean diagonal added to the diagonal of an autocorrelation.
const RIDGE: f64 = 1e-4;

/// Calibration text on its way through the layers of a model.
pub(super) struct Inputs<'a> {
    model: &'a Decoder,
    /// The next layer.
    depth: usize,
    /// The residual stream before the next layer, and its rotations, window by window.
    windows: Vec<(Tensor, Rotary)>,
}

/// Weights of the errors of one layer's matrices by the inputs they see.
pub(super) struct LayerInputs {
    attention: Whitening,
    heads: Whitening,
    feed_forward: Whitening,
    inner: Whitening,
}

impl<'a> Inputs<'a> {
    /// `tokens` before the first layer of `model`.
    ///
    /// # Errors
    /// When there are fewer than two.
    pub fn new(model: &'a Decoder, tokens: &[u32]) -> Result<Self> {
        if tokens.len() < 2 {
            return Err(Error::config(
                "lora_init",
                "whitened_svd needs calibration text: give --data, or take svd",
            ));
        }
        let start = |window: &[u32]| -> Result<(Tensor, Rotary)> {
            let ids = ids_tensor(&[window], &model.bank)?;
            Ok((model.embed(&ids)?.detach(), model.rotary(0, window.len())?))
        };
        let windows = tokens.chunks(WINDOW).map(start).collect::<Result<_>>()?;
        Ok(Self { model, depth: 0, windows })
    }

    /// Takes the text through `layers` layers.
    ///
    /// # Errors
    /// When a weight is missing.
    pub fn skip(&mut self, layers: usize) -> Result<()> {
        let (model, depths) = (self.model, self.depth..self.depth + layers);
        self.depth = depths.end;
        ops::no_grad(|| {
            for (x, rotary) in &mut self.windows {
                for depth in depths.clone() {
                    *x = model.block(depth, x, rotary, None)?.detach();
                }
            }
            Ok(())
        })
    }

    /// What the matrices of the next layer see; the text is behind that layer afterwards.
    ///
    /// # Errors
    /// When a weight is missing or an input is not finite.
    pub fn pass(&mut self) -> Result<LayerInputs> {
        let (model, depth) = (self.model, self.depth);
        self.depth += 1;
        let mut sums: [Option<Tensor>; 4] = [None, None, None, None];
        ops::no_grad(|| -> Result<()> {
            for (x, rotary) in &mut self.windows {
                let norm = format!("{}input_layernorm", layer_prefix(depth));
                let normed = model.rms_norm(&norm, x)?;
                let heads = model.attention_heads(depth, &normed, rotary, None)?;
                let middle = ops::add(x, &model.attention_output(depth, &heads)?)?;
                let fed = model.mlp_input(depth, &middle)?;
                let inner = model.mlp_inner(depth, &fed)?;
                for (sum, seen) in sums.iter_mut().zip([&normed, &heads, &fed, &inner]) {
                    add_to(sum, outer(seen)?)?;
                }
                *x = ops::add(&middle, &model.mlp_output(depth, &inner)?)?.detach();
            }
            Ok(())
        })?;
        let whitening = |sum: Option<Tensor>| -> Result<Whitening> {
            let sum = sum.ok_or_else(|| Error::config("calibration", "is empty"))?;
            let width = sum.dim(0)?;
            Whitening::new(&sum.flatten_all()?.to_vec1::<f64>()?, width, RIDGE)
        };
        let [attention, heads, feed_forward, inner] = sums.map(whitening);
        Ok(LayerInputs {
            attention: attention?,
            heads: heads?,
            feed_forward: feed_forward?,
            inner: inner?,
        })
    }
}

impl LayerInputs {
    /// Of the inputs of `matrix`, a name within a layer.
    pub fn of(&self, matrix: &str) -> &Whitening {
        match matrix {
            m if m.contains("o_proj") => &self.heads,
            m if m.contains("down_proj") => &self.inner,
            m if m.starts_with("mlp.") => &self.feed_forward,
            _ => &self.attention,
        }
    }
}
