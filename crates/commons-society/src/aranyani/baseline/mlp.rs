//! An online network of one hidden layer with the same running estimate of the fairness gradient,
//! on its final probability (the paper's MLP baseline: as many hidden units as a tree has nodes).

use commons_core::Seed;

use crate::aranyani::fairness::{Contrast, Statistics};
use crate::aranyani::forest::Adam;
use crate::aranyani::learner::ForestConfig;
use crate::logistic::sigmoid;

/// `p = sigmoid(v·relu(Wx + b) + c)`.
#[derive(Debug, Clone)]
pub struct Mlp {
    config: ForestConfig,
    width: usize,
    hidden: usize,
    /// `W, b` by row, then `v`, then `c`.
    parameters: Vec<f64>,
    adam: Adam,
    statistics: Statistics,
    active: Vec<f64>,
    gradient: Vec<f64>,
}

impl Mlp {
    /// With `2^depth − 1` hidden units.
    pub fn new(config: ForestConfig, width: usize, seed: Seed) -> Self {
        let hidden = (1usize << config.depth) - 1;
        let count = hidden * (width + 2) + 1;
        let mut rng = seed.fork("mlp", 0).rng();
        let (inner, outer) = ((2. / width as f64).sqrt(), (1. / hidden as f64).sqrt());
        let first = hidden * (width + 1);
        let draw = |i: usize| rng.normal() * if i < first { inner } else { outer };
        let parameters = (0..count).map(draw).collect();
        let averaging = config.averaging;
        Self {
            statistics: Statistics::new(1, config.groups, 1, count, averaging, config.gamma),
            adam: Adam::new(config.learning_rate, count),
            active: vec![0.; hidden],
            gradient: vec![0.; count],
            config,
            width,
            hidden,
            parameters,
        }
    }

    /// Predicts the probability of the positive class, then learns from label and group.
    pub fn learn(&mut self, x: &[f64], y: usize, a: usize) -> f64 {
        let p = self.forward(x);
        let fair = self.config.lambda > 0.;
        if fair {
            self.slopes(x, p * (1. - p));
            let fresh = &self.gradient;
            self.statistics.observe(0, a, &[p], |_, out, keep, scale| {
                out.iter_mut().zip(fresh).for_each(|(g, f)| *g = keep * *g + scale * f);
            });
        }
        if fair && !self.statistics.complete(0) {
            return p;
        }
        self.slopes(x, p - y as f64);
        if fair {
            let (huber, delta) = (self.config.huber, self.config.delta);
            self.statistics.add_penalty(
                self.config.lambda,
                Contrast::Pairwise,
                |gap| huber.slope(gap, delta),
                &mut self.gradient,
            );
        }
        let scale = self.adam.tick();
        self.adam.update(0, &mut self.parameters, &self.gradient, scale);
        p
    }

    fn forward(&mut self, x: &[f64]) -> f64 {
        let (rows, rest) = self.parameters.split_at(self.hidden * (self.width + 1));
        let mut score = rest[self.hidden];
        for ((row, v), active) in rows.chunks_exact(self.width + 1).zip(rest).zip(&mut self.active)
        {
            let sum = x.iter().zip(row).map(|(x, w)| x * w).sum::<f64>() + row[self.width];
            *active = sum.max(0.);
            score += v * *active;
        }
        sigmoid(score)
    }

    /// Derivatives of a function whose derivative by the score is `slope`.
    fn slopes(&mut self, x: &[f64], slope: f64) {
        let first = self.hidden * (self.width + 1);
        let (rows, rest) = self.gradient.split_at_mut(first);
        let outer = &self.parameters[first..];
        for (i, row) in rows.chunks_exact_mut(self.width + 1).enumerate() {
            let d = if self.active[i] > 0. { slope * outer[i] } else { 0. };
            row.iter_mut().zip(x).for_each(|(g, x)| *g = d * x);
            row[self.width] = d;
            rest[i] = slope * self.active[i];
        }
        rest[self.hidden] = slope;
    }
}
