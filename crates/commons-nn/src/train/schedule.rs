//! Shapes of the learning rate over a run.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Learning rate over the steps, as a factor of the peak rate, after linear warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// The peak rate throughout.
    Constant,
    /// Falls linearly to zero.
    Linear,
    /// Falls along half a cosine to a tenth of the peak.
    #[default]
    Cosine,
    /// Constant, then a linear fall to zero over the last fifth.
    WarmupStableDecay,
}

impl Schedule {
    /// The factor at `step` (from 0) of `steps`, with `warmup` steps of linear rise.
    pub fn factor(self, step: usize, steps: usize, warmup: usize) -> f64 {
        if step < warmup {
            return (step + 1) as f64 / warmup as f64;
        }
        let span = steps.saturating_sub(warmup).max(1) as f64;
        let done = ((step - warmup) as f64 / span).min(1.);
        match self {
            Self::Constant => 1.,
            Self::Linear => 1. - done,
            Self::Cosine => 0.1 + 0.9 * 0.5 * (1. + (std::f64::consts::PI * done).cos()),
            Self::WarmupStableDecay => ((1. - done) / 0.2).min(1.),
        }
    }
}
