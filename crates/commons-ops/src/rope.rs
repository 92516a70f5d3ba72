//! Rotary position embedding (Su et al. 2021) in the half-split layout of Hugging Face Llama.

use crate::tape::{self, Cx, Op};
use crate::view::{fused, read};
use crate::{check, composed, par, simd};
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
    if !head_dim.is_multiple_of(2) {
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
    let frequencies: Vec<f64> =
        (0..half).map(|i| scaling.apply(theta.powf(-2.0 * i as f64 / head_dim as f64))).collect();
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
    let (cos, sin) = (cos.detach(), sin.detach());
    if !fused(&[x, &cos, &sin]) {
        return composed::rope(x, &cos, &sin);
    }
    let (_, seq, heads, head_dim) = check::rope(x, &cos, &sin)?;
    let turn = Turn {
        cos: read(&cos, |t| Ok(t.to_vec()))?,
        sin: read(&sin, |t| Ok(t.to_vec()))?,
        seq,
        heads,
        head_dim,
    };
    let y = read(x, |x| Ok(turn.apply(x, 1.0)))?;
    tape::record_f32(turn, &[x], y, x.shape())
}

struct Turn {
    cos: Vec<f32>,
    sin: Vec<f32>,
    seq: usize,
    heads: usize,
    head_dim: usize,
}

impl Turn {
    /// Rotates by the angle (`direction` 1) or back (-1).
    fn apply(&self, x: &[f32], direction: f32) -> Vec<f32> {
        let mut y = vec![0f32; x.len()];
        let width = (self.heads * self.head_dim).max(1);
        let positions = par::rows_per_piece(width);
        let half = self.head_dim / 2;
        let work = y.len();
        let tasks = y.chunks_mut(positions * width).zip(x.chunks(positions * width));
        par::each(tasks.enumerate(), work, |(piece, (y, x))| {
            simd::run(
                #[inline(always)]
                || {
                    let rows = y.chunks_exact_mut(width).zip(x.chunks_exact(width));
                    for (i, (y, x)) in rows.enumerate() {
                        let at = (piece * positions + i) % self.seq * half;
                        let (cos, sin) = (&self.cos[at..at + half], &self.sin[at..at + half]);
                        let heads = y.chunks_exact_mut(2 * half).zip(x.chunks_exact(2 * half));
                        for (y, x) in heads {
                            turn_head(y, x, cos, sin, direction);
                        }
                    }
                },
            );
        });
        y
    }
}

#[inline(always)]
fn turn_head(y: &mut [f32], x: &[f32], cos: &[f32], sin: &[f32], direction: f32) {
    let half = cos.len();
    let (ya, yb) = y.split_at_mut(half);
    let (xa, xb) = x.split_at(half);
    let outputs = ya.iter_mut().zip(yb);
    let inputs = xa.iter().zip(xb).zip(cos.iter().zip(sin));
    for ((ya, yb), ((&a, &b), (&c, &s))) in outputs.zip(inputs) {
        let s = s * direction;
        *ya = a * c - b * s;
        *yb = b * c + a * s;
    }
}

impl Op for Turn {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn backward(&self, cx: &mut Cx<'_>) -> Result<()> {
        let dx = read(cx.grad, |dy| Ok(self.apply(dy, -1.0)))?;
        cx.give_vec(0, dx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{agree, distance, randn, values};

    #[test]
    fn rotation_agrees_with_the_definition() {
        let x = randn(1, &[2, 5, 3, 8]);
        let (cos, sin) = rope_tables(3..8, 8, 10_000.0, RopeScaling::None).unwrap();
        agree(
            &[&x],
            |x| rope(&x[0], &cos, &sin),
            |x| {
                let kind = x[0].dtype();
                composed::rope(&x[0], &cos.to_dtype(kind)?, &sin.to_dtype(kind)?)
            },
            1e-5,
        );
    }

    #[test]
    fn rotation_keeps_lengths_and_relative_angles() {
        let (q, k) = (randn(1, &[1, 1, 1, 64]), randn(2, &[1, 1, 1, 64]));
        let at = |x: &Tensor, p: usize| {
            let (cos, sin) = rope_tables(p..p + 1, 64, 10_000.0, RopeScaling::None).unwrap();
            rope(x, &cos, &sin).unwrap()
        };
        let dot = |a: &Tensor, b: &Tensor| -> f64 {
            values(a).iter().zip(values(b)).map(|(a, b)| a * b).sum()
        };
        assert!((dot(&at(&q, 77), &at(&q, 77)) - dot(&q, &q)).abs() < 1e-3);
        assert!((dot(&at(&q, 9), &at(&k, 2)) - dot(&at(&q, 107), &at(&k, 100))).abs() < 1e-3);
    }

    #[test]
    fn scaling_of_llama3_keeps_fast_and_slows_slow_frequencies() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        let angle = |scaling| {
            let (cos, sin) = rope_tables(1..2, 128, 500_000.0, scaling).unwrap();
            let pairs = values(&cos).into_iter().zip(values(&sin));
            pairs.map(|(c, s)| s.atan2(c)).collect::<Vec<_>>()
        };
        let (plain, scaled) = (angle(RopeScaling::None), angle(scaling));
        assert!((scaled[0] - plain[0]).abs() < 1e-7);
        assert!((scaled[63] / plain[63] - 0.125).abs() < 1e-4);
        let linear = angle(RopeScaling::Linear { factor: 2.0 });
        assert!((linear[5] / plain[5] - 0.5).abs() < 1e-6);
        assert!(scaled[32] < plain[32] && scaled[32] > plain[32] / 8.0);
    }

    #[test]
    fn long_sequences_on_many_threads() {
        let x = randn(1, &[3, 300, 4, 16]);
        let (cos, sin) = rope_tables(0..300, 16, 10_000.0, RopeScaling::None).unwrap();
        let want = composed::rope(&x, &cos, &sin).unwrap();
        assert!(distance(&rope(&x, &cos, &sin).unwrap(), &want) < 1e-6);
    }

    #[test]
    fn misfits_are_refused() {
        let (cos, sin) = rope_tables(0..4, 8, 1e4, RopeScaling::None).unwrap();
        let text = rope(&randn(1, &[1, 5, 2, 8]), &cos, &sin).unwrap_err().to_string();
        assert!(text.contains("rope") && text.contains("[4, 4]") && text.contains("[1, 5, 2, 8]"));
        assert!(rope_tables(0..4, 7, 1e4, RopeScaling::None).is_err());
        assert!(rope_tables(0..4, 8, 1e4, RopeScaling::Linear { factor: 0.0 }).is_err());
    }
}
