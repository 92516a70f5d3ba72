//! Rotary position embedding (Su et al. 2021) in the half-split layout of Hugging Face Llama.

use crate::composed;
use candle_core::{Device, Result, Tensor, bail};
use std::ops::Range;

/// How frequencies are stretched for contexts longer than those trained on.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum RopeScaling {
    /// Plain frequencies `theta^(-2i/d)`.
    #[default]
    None,
    /// Every frequency divided by `factor` (position interpolation, Chen et al. 2023).
    Linear {
        /// How many times longer the context becomes.
        factor: f64,
    },
    /// Llama 3.1: wavelengths above `original / low_freq_factor` are divided by `factor`, those
    /// below `original / high_freq_factor` kept, and those between interpolated.
    Llama3 {
        /// Divisor of the slow frequencies.
        factor: f64,
        /// Bound of the slow band, in turns over the original context.
        low_freq_factor: f64,
        /// Bound of the fast band, in turns over the original context.
        high_freq_factor: f64,
        /// Context length the model was first trained with.
        original_max_position_embeddings: usize,
    },
}

impl RopeScaling {
    fn apply(self, frequency: f64) -> f64 {
        match self {
            Self::None => frequency,
            Self::Linear { factor } => frequency / factor,
            Self::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => {
                let turns = original_max_position_embeddings as f64 * frequency
                    / (2.0 * std::f64::consts::PI);
                let kept = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                let kept = kept.clamp(0.0, 1.0);
                frequency * (kept + (1.0 - kept) / factor)
            }
        }
    }
}

/// Cosines and sines of `positions` for heads of width `head_dim`, each `[positions, head_dim / 2]`
/// in `f32` on the CPU. Angles are formed in `f64`, so late positions stay exact.
///
/// # Errors
/// If `head_dim` is odd, or `theta` or a factor is not positive.
pub fn rope_tables(
    positions: Range<usize>,
    head_dim: usize,
    theta: f64,
    scaling: RopeScaling,
) -> Result<(Tensor, Tensor)> {
    if head_dim % 2 != 0 {
        bail!("rope_tables: head_dim {head_dim} must be even")
    }
    let factor = match scaling {
        RopeScaling::None => 1.0,
        RopeScaling::Linear { factor } | RopeScaling::Llama3 { factor, .. } => factor,
    };
    if !(theta > 0.0 && factor > 0.0) {
        bail!("rope_tables: theta {theta} and factor {factor} must be positive")
    }
    let half = head_dim / 2;
    let frequencies: Vec<f64> = (0..half)
        .map(|i| scaling.apply(theta.powf(-2.0 * i as f64 / head_dim as f64)))
        .collect();
    let rows = positions.len();
    let mut cos = Vec::with_capacity(rows * half);
    let mut sin = Vec::with_capacity(rows * half);
    for position in positions {
        for frequency in &frequencies {
            let (s, c) = (position as f64 * frequency).sin_cos();
            cos.push(c as f32);
            sin.push(s as f32);
        }
    }
    let table = |data: Vec<f32>| Tensor::from_vec(data, (rows, half), &Device::Cpu);
    Ok((table(cos)?, table(sin)?))
}

/// Rotates each pair `(x[i], x[i + d/2])` of `x [batch, seq, heads, d]` by the angle whose cosine
/// and sine stand in `cos` and `sin` `[seq, d/2]`. No gradient goes to the tables.
///
/// # Errors
/// If the shapes do not fit.
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    composed::rope(x, &cos.detach(), &sin.detach())
}
