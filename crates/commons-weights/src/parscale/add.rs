//! Adding streams to a decoder.

use commons_core::Seed;
use commons_nn::model::{Decoder, DecoderConfig, ParallelStreams};
use commons_ops::Tensor;

use crate::{Error, Result};

/// How the added parameters are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draw {
    /// Deviation of prefix keys and of the mixing network.
    pub sigma: f64,
    /// Deviation of prefix values: small, so that a trained model is hardly disturbed.
    pub value_sigma: f64,
}

/// The configuration of a decoder of `config` with `streams`.
///
/// # Errors
/// As [`add_streams`].
pub(super) fn with_streams(
    config: &DecoderConfig,
    streams: ParallelStreams,
) -> Result<DecoderConfig> {
    if let Some(had) = config.parallel_streams {
        return Err(Error::config(
            "streams",
            format!(
                "the model has {} streams already: start from the model they were added to",
                had.count
            ),
        ));
    }
    let mut config = config.clone();
    config.parallel_streams = Some(streams);
    config.check()?;
    Ok(config)
}

/// `model` with `streams`; its own weights are copied, the added ones drawn from `seed`.
///
/// # Errors
/// When the model has streams already, or cannot have any.
pub fn add_streams(
    model: &Decoder,
    streams: ParallelStreams,
    draw: Draw,
    seed: Seed,
) -> Result<Decoder> {
    let config = with_streams(&model.config, streams)?;
    let mut bank = model.bank.deep_clone()?;
    for (name, shape) in config.stream_weights() {
        let mut v = vec![0f32; shape.iter().product()];
        if !name.ends_with(".bias") {
            let sigma = if name.ends_with("prefix_v") { draw.value_sigma } else { draw.sigma };
            seed.fork(&name, 0).normal(0, &mut v);
            v.iter_mut().for_each(|x| *x *= sigma as f32);
        }
        bank.insert(name, Tensor::from_vec(v, shape, bank.device())?)?;
    }
    Ok(Decoder::new(config, bank)?)
}

/// Parameters that `streams` add to a decoder of `layers` layers:
/// `2·L·P·h_kv·n·d_h`, and for more than one stream `P·d² + d + d·P + P`.
pub fn added_parameters(
    streams: ParallelStreams,
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
    hidden: usize,
) -> usize {
    let p = streams.count;
    let prefix = 2 * layers * p * kv_heads * streams.prefix_tokens * head_dim;
    let mixing = if p > 1 { p * hidden * hidden + hidden + hidden * p + p } else { 0 };
    prefix + mixing
}
