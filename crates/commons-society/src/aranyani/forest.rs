//! Soft oblique trees: forward pass, gradients, and the mask form of the leaf probabilities.

use commons_core::Seed;

use crate::logistic::sigmoid;

/// The parameters of a forest. Node `i` of a tree (from 0) has children `2i + 1` and `2i + 2`; an
/// instance goes left with probability `n_i = sigmoid(W_i·x + B_i)`.
#[derive(Debug, Clone, PartialEq)]
pub struct Forest {
    /// Trees T.
    pub trees: usize,
    /// Depth h: `2^h − 1` nodes and `2^h` leaves per tree.
    pub depth: u32,
    /// Features d.
    pub width: usize,
    /// Classes C.
    pub classes: usize,
    /// `W_i, B_i` as `[trees, nodes, width + 1]`, the bias last.
    pub splits: Vec<f64>,
    /// `Θ` as `[trees, leaves, classes]`.
    pub leaves: Vec<f64>,
}

/// What a forward pass found, kept for the gradients.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Trace {
    /// Decisions `n` as `[trees, nodes]`.
    pub nodes: Vec<f64>,
    /// Leaf probabilities as `[trees, leaves]`.
    pub reach: Vec<f64>,
    /// `softmax(Θ)` as `[trees, leaves, classes]`.
    pub votes: Vec<f64>,
    /// The forest's class probabilities.
    pub probabilities: Vec<f64>,
}

impl Forest {
    /// `W, B ~ N(0, 1)`, `Θ ~ U(0, 1)`.
    pub fn init(trees: usize, depth: u32, width: usize, classes: usize, seed: Seed) -> Self {
        let (nodes, leaves) = ((1usize << depth) - 1, 1usize << depth);
        let mut rng = seed.fork("splits", 0).rng();
        let splits = (0..trees * nodes * (width + 1)).map(|_| rng.normal()).collect();
        let mut rng = seed.fork("leaves", 0).rng();
        let leaves = (0..trees * leaves * classes).map(|_| rng.uniform()).collect();
        Self { trees, depth, width, classes, splits, leaves }
    }

    /// Internal nodes of a tree.
    pub fn nodes(&self) -> usize {
        (1 << self.depth) - 1
    }

    /// Runs `x`, `[width]`, down every tree.
    pub fn forward(&self, x: &[f64], trace: &mut Trace) {
        let (nodes, classes) = (self.nodes(), self.classes);
        trace.nodes.clear();
        trace.nodes.extend(self.splits.chunks_exact(self.width + 1).map(|split| {
            sigmoid(x.iter().zip(split).map(|(x, w)| x * w).sum::<f64>() + split[self.width])
        }));
        trace.reach.clear();
        let mut reach = vec![1.; 2 * nodes + 1];
        for decisions in trace.nodes.chunks_exact(nodes) {
            for (i, n) in decisions.iter().enumerate() {
                reach[2 * i + 1] = reach[i] * n;
                reach[2 * i + 2] = reach[i] * (1. - n);
            }
            trace.reach.extend_from_slice(&reach[nodes..]);
        }
        trace.votes.clear();
        for theta in self.leaves.chunks_exact(classes) {
            softmax(theta, &mut trace.votes);
        }
        trace.probabilities.clear();
        trace.probabilities.resize(classes, 0.);
        let share = 1. / self.trees as f64;
        for (votes, reach) in trace.votes.chunks_exact(classes).zip(&trace.reach) {
            for (f, vote) in trace.probabilities.iter_mut().zip(votes) {
                *f += share * reach * vote;
            }
        }
    }

    /// Gradients of a loss whose derivative by the forest's probabilities is `slope`, `[classes]`;
    /// written over `splits` and `leaves`, which have the shapes of the parameters.
    pub fn gradients_of(
        &self,
        x: &[f64],
        trace: &Trace,
        slope: &[f64],
        splits: &mut [f64],
        leaves: &mut [f64],
    ) {
        let (nodes, classes, share) = (self.nodes(), self.classes, 1. / self.trees as f64);
        // Below node i: Σ_l P_l ∂loss/∂P_l. Heap order, leaves last.
        let mut below = vec![0.; 2 * nodes + 1];
        let width = self.width + 1;
        for tree in 0..self.trees {
            let first = tree * (nodes + 1);
            for leaf in 0..=nodes {
                let at = (first + leaf) * classes;
                let (votes, reach) = (&trace.votes[at..at + classes], trace.reach[first + leaf]);
                let dot: f64 = votes.iter().zip(slope).map(|(v, s)| v * s).sum();
                below[nodes + leaf] = share * reach * dot;
                let out = &mut leaves[at..at + classes];
                for ((out, v), s) in out.iter_mut().zip(votes).zip(slope) {
                    *out = share * reach * v * (s - dot);
                }
            }
            for i in (0..nodes).rev() {
                let (left, right) = (below[2 * i + 1], below[2 * i + 2]);
                below[i] = left + right;
                let n = trace.nodes[tree * nodes + i];
                // ∂loss/∂n · n(1 − n) without a division by n or 1 − n.
                let d = left * (1. - n) - right * n;
                let out = &mut splits[(tree * nodes + i) * width..][..width];
                out.iter_mut().zip(x).for_each(|(o, x)| *o = d * x);
                out[self.width] = d;
            }
        }
    }
}

fn softmax(theta: &[f64], out: &mut Vec<f64>) {
    let top = theta.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let at = out.len();
    out.extend(theta.iter().map(|t| (t - top).exp()));
    let total: f64 = out[at..].iter().sum();
    out[at..].iter_mut().for_each(|v| *v /= total);
}

/// The constant mask of a tree, `[nodes, leaves]`: 1 where the leaf is in the left subtree of the
/// node, −1 in the right one, 0 elsewhere.
pub fn mask(depth: u32) -> Vec<f64> {
    let (nodes, leaves) = ((1usize << depth) - 1, 1usize << depth);
    let mut mask = vec![0.; nodes * leaves];
    for leaf in 0..leaves {
        let mut at = nodes + leaf;
        while at > 0 {
            let parent = (at - 1) / 2;
            mask[parent * leaves + leaf] = if at == 2 * parent + 1 { 1. } else { -1. };
            at = parent;
        }
    }
    mask
}

/// Leaf probabilities in the vectorised form of the official code:
/// `Π_i [relu(n_i M) + (relu(−M) − relu(−n_i M)) + (1 − |M|)]`, without its constant 1e-8.
pub fn masked_reach(depth: u32, decisions: &[f64]) -> Vec<f64> {
    let leaves = 1usize << depth;
    let mask = mask(depth);
    let relu = |v: f64| v.max(0.);
    let factor = |n: f64, m: f64| relu(n * m) + (relu(-m) - relu(-n * m)) + (1. - m.abs());
    (0..leaves)
        .map(|l| {
            decisions.iter().enumerate().map(|(i, &n)| factor(n, mask[i * leaves + l])).product()
        })
        .collect()
}

/// Adam with the usual decay rates.
#[derive(Debug, Clone, PartialEq)]
pub struct Adam {
    /// Step size.
    pub rate: f64,
    /// Steps made.
    pub steps: u64,
    /// First moments.
    pub first: Vec<f64>,
    /// Second moments.
    pub second: Vec<f64>,
}

impl Adam {
    /// For `count` parameters.
    pub fn new(rate: f64, count: usize) -> Self {
        Self { rate, steps: 0, first: vec![0.; count], second: vec![0.; count] }
    }

    /// The scale of this step's first moments and the root of that of its second; call once per
    /// step, before [`Adam::update`] of each part.
    pub fn tick(&mut self) -> (f64, f64) {
        self.steps += 1;
        let t = self.steps.min(i32::MAX as u64) as i32;
        (1. / (1. - 0.9f64.powi(t)), (1. / (1. - 0.999f64.powi(t))).sqrt())
    }

    /// Steps the parameters whose moments begin at `from`.
    pub fn update(&mut self, from: usize, p: &mut [f64], g: &[f64], (c1, c2): (f64, f64)) {
        let rate = self.rate;
        let first = &mut self.first[from..from + p.len()];
        let second = &mut self.second[from..from + p.len()];
        for (((p, g), m), v) in p.iter_mut().zip(g).zip(first).zip(second) {
            *m = 0.9 * *m + 0.1 * g;
            *v = 0.999 * *v + 0.001 * g * g;
            *p -= rate * (*m * c1) / (v.sqrt() * c2 + 1e-8);
        }
    }
}
