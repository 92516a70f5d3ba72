//! The online learner: predict, see label and group, make one step.

use commons_core::Seed;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::fairness::{Averaging, Contrast, Huber, Metric, Statistics};
use super::forest::{Adam, Forest, Trace};
use crate::{Error, Result};

/// Where the fairness term acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Constraint {
    /// On the decision of every node (the paper); leaves get no fairness gradient.
    #[default]
    Node,
    /// On the final probability, with gradients for all parameters (the baseline Leaf).
    Leaf,
}

/// Options of the method. Letters are the paper's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ForestConfig {
    /// Trees T.
    pub trees: usize,
    /// Depth h of each.
    pub depth: u32,
    /// Classes.
    pub classes: usize,
    /// Sensitive groups.
    pub groups: usize,
    /// Weight λ of the fairness term.
    pub lambda: f64,
    /// Zone δ of the Huber function.
    pub delta: f64,
    /// Its derivative outside.
    pub huber: Huber,
    /// Where the fairness term acts.
    pub constraint: Constraint,
    /// Which decisions are compared.
    pub metric: Metric,
    /// Which differences of groups count.
    pub contrast: Contrast,
    /// How gradients are averaged.
    pub averaging: Averaging,
    /// Decay γ of momentum and EMA.
    pub gamma: f64,
    /// Step size of Adam.
    pub learning_rate: f64,
}

impl Default for ForestConfig {
    fn default() -> Self {
        Self {
            trees: 3,
            depth: 4,
            classes: 2,
            groups: 2,
            lambda: 0.1,
            delta: 0.01,
            huber: Huber::Official,
            constraint: Constraint::Node,
            metric: Metric::Dp,
            contrast: Contrast::Pairwise,
            averaging: Averaging::Mean,
            gamma: 0.9,
            learning_rate: 2e-3,
        }
    }
}

impl ForestConfig {
    /// # Errors
    /// Naming the field that is out of range and what would be right.
    pub fn validate(&self) -> Result<()> {
        let range = |field: &str, ok: bool, what: &str| {
            if ok { Ok(()) } else { Err(Error::config(field, format!("is not {what}"))) }
        };
        range("trees", (1..=1000).contains(&self.trees), "1 to 1000")?;
        range("depth", (1..=12).contains(&self.depth), "1 to 12")?;
        range("classes", (2..=1000).contains(&self.classes), "2 to 1000")?;
        range("groups", (2..=100).contains(&self.groups), "2 to 100")?;
        range(
            "lambda",
            self.lambda.is_finite() && self.lambda >= 0.,
            "a finite number of 0 or more",
        )?;
        range("delta", self.delta > 0. && self.delta.is_finite(), "a positive number")?;
        range("gamma", (0. ..1.).contains(&self.gamma), "in 0..1")?;
        let rate = self.learning_rate;
        range("learning_rate", rate > 0. && rate.is_finite(), "a positive number")
    }

    fn conditions(&self) -> usize {
        match self.metric {
            Metric::Dp | Metric::Eopp => 1,
            Metric::Eo => self.classes,
        }
    }
}

/// Class probabilities.
pub type Probabilities = Vec<f64>;

/// A forest that learns from a stream.
#[derive(Debug, Clone, PartialEq)]
pub struct FairForest {
    /// Its options.
    pub config: ForestConfig,
    /// Parameters.
    pub forest: Forest,
    /// Optimiser.
    pub adam: Adam,
    /// Running statistics.
    pub statistics: Statistics,
    trace: Trace,
    splits: Vec<f64>,
    leaves: Vec<f64>,
}

/// What the running statistics say at the moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NodeReport {
    /// Largest gap between groups per node (or of the final decision), one list per condition;
    /// `null` until every group has been seen.
    pub gaps: Vec<Vec<Option<f64>>>,
}

impl FairForest {
    /// A forest for `width` features.
    ///
    /// # Errors
    /// As [`ForestConfig::validate`]; also without features.
    pub fn new(config: ForestConfig, width: usize, seed: Seed) -> Result<Self> {
        config.validate()?;
        if width == 0 {
            return Err(Error::config("features", "there are none; give at least one column"));
        }
        let forest = Forest::init(config.trees, config.depth, width, config.classes, seed);
        let (quantities, stride) = match config.constraint {
            Constraint::Node => (config.trees * forest.nodes(), width + 1),
            Constraint::Leaf => (1, forest.splits.len() + forest.leaves.len()),
        };
        let statistics = Statistics::new(
            config.conditions(),
            config.groups,
            quantities,
            stride,
            config.averaging,
            config.gamma,
        );
        Ok(Self {
            adam: Adam::new(config.learning_rate, forest.splits.len() + forest.leaves.len()),
            trace: Trace::default(),
            splits: vec![0.; forest.splits.len()],
            leaves: vec![0.; forest.leaves.len()],
            statistics,
            forest,
            config,
        })
    }

    /// The forest's probabilities for `x`.
    ///
    /// # Errors
    /// When `x` has not as many features as the forest, or one is not finite.
    pub fn predict(&mut self, x: &[f64]) -> Result<Probabilities> {
        self.check(x, 0, 0)?;
        self.forest.forward(x, &mut self.trace);
        Ok(self.trace.probabilities.clone())
    }

    /// Predicts, then learns from label `y` and group `a`; returns the prediction made before.
    ///
    /// # Errors
    /// As [`FairForest::predict`]; also for a label or group that does not exist.
    pub fn learn(&mut self, x: &[f64], y: usize, a: usize) -> Result<Probabilities> {
        self.check(x, y, a)?;
        self.forest.forward(x, &mut self.trace);
        let probabilities = self.trace.probabilities.clone();
        let fair = self.config.lambda > 0.;
        if fair {
            self.observe(x, y, a);
        }
        let ready = (0..self.config.conditions()).any(|c| self.statistics.complete(c));
        // As in the official loop: no step before there is a gap to speak of.
        if !fair || ready {
            self.step(x, y, fair);
        }
        Ok(probabilities)
    }

    /// Learns from label `y` with the running statistics as they are.
    pub(super) fn learn_with(&mut self, x: &[f64], y: usize) -> Result<Probabilities> {
        self.check(x, y, 0)?;
        self.forest.forward(x, &mut self.trace);
        let probabilities = self.trace.probabilities.clone();
        if self.statistics.complete(0) {
            self.step(x, y, true);
        }
        Ok(probabilities)
    }

    /// Takes `x` of group `a` into the running statistics and does not learn.
    pub(super) fn look(&mut self, x: &[f64], a: usize) {
        self.forest.forward(x, &mut self.trace);
        self.observe(x, self.config.classes - 1, a);
    }

    /// What the running statistics say.
    pub fn fairness(&self) -> NodeReport {
        let gaps = |c| (0..self.statistics.quantities).map(|q| self.statistics.gap(c, q)).collect();
        NodeReport { gaps: (0..self.config.conditions()).map(gaps).collect() }
    }

    fn check(&self, x: &[f64], y: usize, a: usize) -> Result<()> {
        if x.len() != self.forest.width {
            let reason = format!("{} features where there are {}", x.len(), self.forest.width);
            return Err(Error::config("x", reason));
        }
        if let Some(i) = x.iter().position(|v| !v.is_finite()) {
            return Err(Error::config(format!("x[{i}]"), format!("is {}, not finite", x[i])));
        }
        if y >= self.config.classes || a >= self.config.groups {
            let reason = format!(
                "label {y} or group {a} is not among {} classes and {} groups",
                self.config.classes, self.config.groups
            );
            return Err(Error::config("y, a", reason));
        }
        Ok(())
    }

    /// Takes the instance into the running statistics.
    fn observe(&mut self, x: &[f64], y: usize, a: usize) {
        let positive = self.config.classes - 1;
        let condition = match self.config.metric {
            Metric::Dp => 0,
            Metric::Eo => y,
            Metric::Eopp if y == positive => 0,
            Metric::Eopp => return,
        };
        match self.config.constraint {
            Constraint::Node => {
                let (nodes, width) = (&self.trace.nodes, self.forest.width);
                self.statistics.observe(condition, a, nodes, |q, out, keep, scale| {
                    let d = scale * nodes[q] * (1. - nodes[q]);
                    out.iter_mut().zip(x).for_each(|(g, x)| *g = keep * *g + d * x);
                    out[width] = keep * out[width] + d;
                });
            }
            Constraint::Leaf => {
                let mut slope = vec![0.; self.config.classes];
                slope[positive] = 1.;
                let (splits, leaves) = (&mut self.splits, &mut self.leaves);
                self.forest.gradients_of(x, &self.trace, &slope, splits, leaves);
                let value = [self.trace.probabilities[positive]];
                self.statistics.observe(condition, a, &value, |_, out, keep, scale| {
                    let fresh = splits.iter().chain(leaves.iter());
                    out.iter_mut().zip(fresh).for_each(|(g, f)| *g = keep * *g + scale * f);
                });
            }
        }
    }

    fn step(&mut self, x: &[f64], y: usize, fair: bool) {
        let mut slope = vec![0.; self.config.classes];
        slope[y] = -1. / self.trace.probabilities[y].max(1e-8);
        self.forest.gradients_of(x, &self.trace, &slope, &mut self.splits, &mut self.leaves);
        if fair {
            let (huber, delta) = (self.config.huber, self.config.delta);
            let (lambda, contrast) = (self.config.lambda, self.config.contrast);
            let bend = |gap| huber.slope(gap, delta);
            match self.config.constraint {
                Constraint::Node => {
                    self.statistics.add_penalty(lambda, contrast, bend, &mut self.splits);
                }
                Constraint::Leaf => {
                    let mut all = vec![0.; self.statistics.stride];
                    self.statistics.add_penalty(lambda, contrast, bend, &mut all);
                    let parts = self.splits.iter_mut().chain(&mut self.leaves);
                    parts.zip(&all).for_each(|(g, f)| *g += f);
                }
            }
        }
        let scale = self.adam.tick();
        let from = self.splits.len();
        self.adam.update(0, &mut self.forest.splits, &self.splits, scale);
        self.adam.update(from, &mut self.forest.leaves, &self.leaves, scale);
    }
}
