//! A Hoeffding tree (Domingos and Hulten 2000) on numeric features with Gaussian observers: the
//! usual online tree, with no notion of fairness.

/// Instances between two looks for a split.
const GRACE: f64 = 200.;

/// One minus the confidence of the Hoeffding bound.
const DELTA: f64 = 1e-7;

/// Bound below which equal candidates are split all the same.
const TIE: f64 = 0.05;

/// Thresholds tried per feature.
const THRESHOLDS: usize = 10;

/// Running mean and variance (Welford) with the range.
#[derive(Debug, Clone, Copy)]
struct Gaussian {
    n: f64,
    mean: f64,
    squares: f64,
    low: f64,
    high: f64,
}

impl Gaussian {
    const EMPTY: Self =
        Self { n: 0., mean: 0., squares: 0., low: f64::INFINITY, high: f64::NEG_INFINITY };

    fn add(&mut self, x: f64) {
        self.n += 1.;
        let before = x - self.mean;
        self.mean += before / self.n;
        self.squares += before * (x - self.mean);
        self.low = self.low.min(x);
        self.high = self.high.max(x);
    }

    /// Expected number of values at most `t`.
    fn below(&self, t: f64) -> f64 {
        if self.n == 0. || t < self.low {
            return 0.;
        }
        if t >= self.high {
            return self.n;
        }
        let spread = (self.squares / (self.n - 1.).max(1.)).sqrt().max(1e-9);
        self.n * commons_core::stats::special::normal_cdf((t - self.mean) / spread)
    }
}

#[derive(Debug, Clone)]
enum Node {
    Leaf { counts: [f64; 2], observers: Vec<[Gaussian; 2]>, looked: f64 },
    Split { feature: usize, threshold: f64, left: usize, right: usize },
}

/// The tree, for two classes.
#[derive(Debug, Clone)]
pub struct Hoeffding {
    nodes: Vec<Node>,
    width: usize,
}

fn leaf(width: usize, counts: [f64; 2]) -> Node {
    let looked = counts[0] + counts[1];
    Node::Leaf { counts, observers: vec![[Gaussian::EMPTY; 2]; width], looked }
}

fn entropy(counts: [f64; 2]) -> f64 {
    let total = counts[0] + counts[1];
    let term = |c: f64| if c > 0. { -(c / total) * (c / total).log2() } else { 0. };
    term(counts[0]) + term(counts[1])
}

impl Hoeffding {
    /// A single leaf.
    pub fn new(width: usize) -> Self {
        Self { nodes: vec![leaf(width, [0.; 2])], width }
    }

    /// Predicts the positive class's share at the leaf, then learns.
    pub fn learn(&mut self, x: &[f64], y: usize) -> f64 {
        let mut at = 0;
        while let Node::Split { feature, threshold, left, right } = self.nodes[at] {
            at = if x[feature] <= threshold { left } else { right };
        }
        let Node::Leaf { counts, observers, looked } = &mut self.nodes[at] else { return 0.5 };
        let before = counts[0] + counts[1];
        let p = if before > 0. { counts[1] / before } else { 0.5 };
        counts[y.min(1)] += 1.;
        observers.iter_mut().zip(x).for_each(|(o, x)| o[y.min(1)].add(*x));
        if before + 1. - *looked >= GRACE {
            *looked = before + 1.;
            self.try_split(at);
        }
        p
    }

    fn try_split(&mut self, at: usize) {
        let Node::Leaf { counts, observers, .. } = &self.nodes[at] else { return };
        let total = counts[0] + counts[1];
        let mut best = [(0., 0, 0., [0.; 2], [0.; 2]); 2];
        for (feature, o) in observers.iter().enumerate() {
            let (low, high) = (o[0].low.min(o[1].low), o[0].high.max(o[1].high));
            for k in 1..=THRESHOLDS {
                let t = low + (high - low) * k as f64 / (THRESHOLDS + 1) as f64;
                let left = [o[0].below(t), o[1].below(t)];
                let right = [(o[0].n - left[0]).max(0.), (o[1].n - left[1]).max(0.)];
                let (l, r) = (left[0] + left[1], right[0] + right[1]);
                if l < 1. || r < 1. {
                    continue;
                }
                let rest = (l * entropy(left) + r * entropy(right)) / (l + r);
                let gain = entropy([o[0].n, o[1].n]) - rest;
                if gain > best[0].0 {
                    // The runner-up is the best of another feature.
                    if best[0].1 != feature {
                        best[1] = best[0];
                    }
                    best[0] = (gain, feature, t, left, right);
                } else if gain > best[1].0 && feature != best[0].1 {
                    best[1] = (gain, feature, t, left, right);
                }
            }
        }
        let bound = ((1. / DELTA).ln() / (2. * total)).sqrt();
        let [(gain, feature, threshold, left, right), (second, ..)] = best;
        if gain > 0. && (gain - second > bound || bound < TIE) {
            let next = self.nodes.len();
            self.nodes.push(leaf(self.width, left));
            self.nodes.push(leaf(self.width, right));
            self.nodes[at] = Node::Split { feature, threshold, left: next, right: next + 1 };
        }
    }

    /// Nodes, leaves included.
    pub fn size(&self) -> usize {
        self.nodes.len()
    }
}
