//! The running statistics of the fairness term: per condition, group and quantity, the mean of a
//! quantity and of its gradient, in memory that does not grow with the stream.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which decisions are compared between groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    /// Demographic parity: all decisions.
    #[default]
    Dp,
    /// Equalised odds: decisions of each label by itself.
    Eo,
    /// Equal opportunity: decisions of the positive label.
    Eopp,
}

/// The derivative of the Huber function of a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Huber {
    /// `F` where |F| < δ, else `sign F`, as the official code has it: λ means what it does there.
    #[default]
    Official,
    /// `F` where |F| < δ, else `δ sign F`, the derivative itself.
    Exact,
}

/// How gradients are averaged over the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Averaging {
    /// All instances count the same (the paper).
    #[default]
    Mean,
    /// `G ← γG + g`.
    Momentum,
    /// As momentum, times `(1 − γ)/(1 − γ^c)` when read.
    Ema,
}

/// Which differences between more than two groups are held down. With two groups they agree up to
/// scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Contrast {
    /// Every pair of groups.
    #[default]
    Pairwise,
    /// Each group against the mean over groups.
    Mean,
}

impl Huber {
    /// `H'_δ(gap)`.
    pub fn slope(self, gap: f64, delta: f64) -> f64 {
        if gap.abs() < delta {
            return gap;
        }
        match self {
            Self::Official => gap.signum(),
            Self::Exact => delta * gap.signum(),
        }
    }
}

/// Means of `quantities` values and of their gradients, `stride` numbers each, for every condition
/// and group.
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    /// Groups.
    pub groups: usize,
    /// Quantities: the nodes of all trees, or the one final decision.
    pub quantities: usize,
    /// Parameters a quantity depends on.
    pub stride: usize,
    /// Instances per `[condition, group]`.
    pub counts: Vec<f64>,
    /// Sums of the quantities, `[condition, group, quantity]`.
    pub sums: Vec<f64>,
    /// Averaged gradients, `[condition, group, quantity, parameter]`.
    pub gradients: Vec<f64>,
    averaging: Averaging,
    gamma: f64,
}

impl Statistics {
    /// Nothing seen yet.
    pub fn new(
        conditions: usize,
        groups: usize,
        quantities: usize,
        stride: usize,
        averaging: Averaging,
        gamma: f64,
    ) -> Self {
        let cells = conditions * groups;
        Self {
            groups,
            quantities,
            stride,
            counts: vec![0.; cells],
            sums: vec![0.; cells * quantities],
            gradients: vec![0.; cells * quantities * stride],
            averaging,
            gamma,
        }
    }

    /// Takes in an instance of `group` under `condition`: quantities and, through `gradient(q,
    /// out)`, a function that adds `scale·∂q` to `out` after multiplying it by `keep`.
    pub fn observe(
        &mut self,
        condition: usize,
        group: usize,
        values: &[f64],
        mut blend: impl FnMut(usize, &mut [f64], f64, f64),
    ) {
        let cell = condition * self.groups + group;
        self.counts[cell] += 1.;
        let sums = &mut self.sums[cell * self.quantities..][..self.quantities];
        sums.iter_mut().zip(values).for_each(|(s, v)| *s += v);
        let (keep, scale) = match self.averaging {
            Averaging::Mean => (1. - 1. / self.counts[cell], 1. / self.counts[cell]),
            Averaging::Momentum | Averaging::Ema => (self.gamma, 1.),
        };
        let size = self.quantities * self.stride;
        let gradients = &mut self.gradients[cell * size..][..size];
        for (q, out) in gradients.chunks_exact_mut(self.stride).enumerate() {
            blend(q, out, keep, scale);
        }
    }

    /// Starts over.
    pub fn forget(&mut self) {
        self.counts.fill(0.);
        self.sums.fill(0.);
        self.gradients.fill(0.);
    }

    /// Whether every group has been seen under `condition`.
    pub fn complete(&self, condition: usize) -> bool {
        self.counts[condition * self.groups..][..self.groups].iter().all(|c| *c > 0.)
    }

    /// Mean of quantity `q` in a group.
    pub fn mean(&self, condition: usize, group: usize, q: usize) -> f64 {
        let cell = condition * self.groups + group;
        self.sums[cell * self.quantities + q] / self.counts[cell]
    }

    /// What an averaged gradient is multiplied by when it is read.
    fn correction(&self, cell: usize) -> f64 {
        match self.averaging {
            Averaging::Mean | Averaging::Momentum => 1.,
            Averaging::Ema => {
                (1. - self.gamma) / (1. - self.gamma.powf(self.counts[cell])).max(1e-300)
            }
        }
    }

    /// Adds `λ Σ H'(F)·∂F` of every quantity to `out`, `[quantity, parameter]`, for the conditions
    /// in which all groups have been seen.
    pub fn add_penalty(
        &self,
        lambda: f64,
        contrast: Contrast,
        slope: impl Fn(f64) -> f64,
        out: &mut [f64],
    ) {
        let (k, size) = (self.groups, self.quantities * self.stride);
        let mut weight = vec![0.; k];
        for condition in (0..self.counts.len() / k).filter(|&c| self.complete(c)) {
            let corrections: Vec<f64> =
                (0..k).map(|a| self.correction(condition * k + a)).collect();
            for (q, out) in out.chunks_exact_mut(self.stride).enumerate() {
                weight.fill(0.);
                self.weigh(condition, q, contrast, &slope, &mut weight);
                for (a, w) in weight.iter().enumerate().filter(|(_, w)| **w != 0.) {
                    let at = (condition * k + a) * size + q * self.stride;
                    let scale = lambda * w * corrections[a];
                    let gradient = &self.gradients[at..at + self.stride];
                    out.iter_mut().zip(gradient).for_each(|(o, g)| *o += scale * g);
                }
            }
        }
    }

    /// `∂ΣH/∂(mean of group a)` for each group.
    fn weigh(
        &self,
        condition: usize,
        q: usize,
        contrast: Contrast,
        slope: impl Fn(f64) -> f64,
        weight: &mut [f64],
    ) {
        let k = self.groups;
        let mean = |a: usize| self.mean(condition, a, q);
        match contrast {
            Contrast::Pairwise => {
                for a in 0..k {
                    for b in a + 1..k {
                        let h = slope(mean(b) - mean(a));
                        weight[b] += h;
                        weight[a] -= h;
                    }
                }
            }
            Contrast::Mean => {
                let centre = (0..k).map(mean).sum::<f64>() / k as f64;
                for a in 0..k {
                    let h = slope(mean(a) - centre);
                    weight.iter_mut().for_each(|w| *w -= h / k as f64);
                    weight[a] += h;
                }
            }
        }
    }

    /// The largest difference between groups of quantity `q`; `None` until all have been seen.
    pub fn gap(&self, condition: usize, q: usize) -> Option<f64> {
        if !self.complete(condition) {
            return None;
        }
        let means = (0..self.groups).map(|a| self.mean(condition, a, q));
        let (low, high) =
            means.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), m| (l.min(m), h.max(m)));
        Some(high - low)
    }

    /// Numbers held, whatever the length of the stream.
    pub fn size(&self) -> usize {
        self.counts.len() + self.sums.len() + self.gradients.len()
    }
}
