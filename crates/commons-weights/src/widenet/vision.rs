//! The encoder on images.

use commons_core::Seed;
use commons_nn::bank::Bank;
use commons_ops::{self as ops, Tensor};

use super::encoder::{Encoded, Encoder, EncoderConfig, Phase, initial, layer_norm, positions};
use crate::{Error, Result};

/// What images have to do with the shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Input {
    /// Channels.
    pub channels: usize,
    /// Height and width, pixels.
    pub side: usize,
    /// Height and width of a patch, pixels; divides `side`.
    pub patch: usize,
    /// Classes.
    pub classes: usize,
}

/// A vision transformer of which the layers share a block: patches, learned positions, mean of the
/// patches before the head.
#[derive(Debug, Clone)]
pub struct WideVit {
    /// The layers and all parameters.
    pub encoder: Encoder,
    input: Input,
}

impl WideVit {
    /// A freshly initialised network.
    ///
    /// # Errors
    /// When counts do not divide.
    pub fn init(config: EncoderConfig, input: Input, seed: Seed) -> Result<Self> {
        if input.patch == 0 || !input.side.is_multiple_of(input.patch) {
            let reason = format!("{} must divide the image's {}", input.patch, input.side);
            return Err(Error::config("patch_size", reason));
        }
        let (d, pixels) = (config.hidden_size, input.channels * input.patch * input.patch);
        let mut bank = Bank::default();
        for (name, shape) in [
            ("patch.weight", vec![d, pixels]),
            ("patch.bias", vec![d]),
            ("positions", vec![input.patches(), d]),
            ("norm.weight", vec![d]),
            ("norm.bias", vec![d]),
            ("head.weight", vec![input.classes, d]),
            ("head.bias", vec![input.classes]),
        ] {
            let v = initial(name, &shape, seed.fork(name, 0));
            bank.insert(name, Tensor::from_vec(v, shape, bank.device())?)?;
        }
        Ok(Self { encoder: Encoder::init(config, bank, seed)?, input })
    }

    /// Patches of images `[batch, channels, side, side]` as `[batch, patches, pixels]`.
    fn patches(&self, images: &Tensor) -> Result<Tensor> {
        let Input { channels, side, patch, .. } = self.input;
        let (batch, n) = (images.dim(0)?, side / patch);
        let cut = images.reshape(vec![batch, channels, n, patch, n, patch])?;
        let cut = cut.permute(vec![0, 2, 4, 1, 3, 5])?;
        Ok(cut.reshape((batch, n * n, channels * patch * patch))?)
    }

    /// Class scores `[batch, classes]` of images, and what the layers did.
    ///
    /// # Errors
    /// When images have another shape.
    pub fn forward(&self, images: &Tensor, phase: Phase) -> Result<(Tensor, Encoded)> {
        let bank = &self.encoder.bank;
        let x = bank.linear("patch", &self.patches(images)?)?;
        let x = ops::add(&x, &positions(bank, x.dim(0)?, x.dim(1)?)?)?;
        let encoded = self.encoder.forward(&x, phase)?;
        let normed = layer_norm(bank, "norm", &encoded.x)?;
        let n = normed.dim(1)?;
        let mean = Tensor::full(1. / n as f32, (1, n), bank.device())?;
        let pooled = ops::linear(&normed.transpose(1, 2)?, &mean, None)?.flatten_from(1)?;
        Ok((bank.linear("head", &pooled)?, encoded))
    }
}

impl Input {
    /// Patches of an image.
    pub fn patches(&self) -> usize {
        (self.side / self.patch.max(1)).pow(2)
    }
}
