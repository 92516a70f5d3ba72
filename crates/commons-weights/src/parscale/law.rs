//! The scaling law `L(N, P) = E + (A / (N (k ln P + 1)))^α` and its fit.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A measured loss.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// `N`: parameters without embeddings.
    pub parameters: f64,
    /// `P`: parallel streams.
    pub streams: f64,
    /// `L`: loss, nats per token.
    pub loss: f64,
}

/// Constants of the law.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Law {
    /// `E`: loss that nothing removes.
    pub e: f64,
    /// `A`: scale, parameters.
    pub a: f64,
    /// `α`: exponent.
    pub alpha: f64,
    /// `k`: what a factor `e` of streams is worth, in models.
    pub k: f64,
}

/// A fitted law.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Fit {
    /// The constants.
    pub law: Law,
    /// Share of the variance of the losses that the law explains.
    pub r_squared: f64,
    /// Mean Huber loss of the logarithms, what was minimised.
    pub objective: f64,
    /// Points it rests on.
    pub points: usize,
    /// Different sizes among them, at the number of streams that has most of them.
    pub sizes: usize,
    /// Different numbers of streams among them.
    pub stream_counts: usize,
    /// Of these, numbers of streams with at least three sizes.
    pub full_counts: usize,
}

/// Below this `k` has run away to its bound 0, which its logarithm never reaches.
const NO_K: f64 = 1e-9;

impl Fit {
    /// Whether there are enough losses to speak of a law: three numbers of streams with three sizes
    /// each.
    pub fn is_law(&self) -> bool {
        self.full_counts >= 3
    }

    /// Whether the losses ask for no positive `k`: more streams did not lower them.
    pub fn k_at_bound(&self) -> bool {
        self.law.k < NO_K
    }
}

impl Law {
    /// `L(N, P)`.
    pub fn loss(&self, parameters: f64, streams: f64) -> f64 {
        self.e + (self.a / (parameters * self.worth(streams))).powf(self.alpha)
    }

    /// `k ln P + 1`: how many times the parameters `streams` streams are worth.
    pub fn worth(&self, streams: f64) -> f64 {
        self.k * streams.ln() + 1.
    }

    /// Logarithms of the constants, in which the fit moves: all constants are positive.
    fn logs(&self) -> [f64; 4] {
        [self.e.ln(), self.a.ln(), self.alpha.ln(), self.k.ln()]
    }

    fn of_logs(logs: [f64; 4]) -> Self {
        let [e, a, alpha, k] = logs.map(f64::exp);
        Self { e, a, alpha, k }
    }

    /// `ln L(point)` minus its measured value, and the derivative by every logarithm.
    fn residual(&self, point: &Point) -> (f64, [f64; 4]) {
        let worth = self.worth(point.streams);
        let z = self.alpha * (self.a.ln() - point.parameters.ln() - worth.ln());
        let power = z.exp();
        let loss = self.e + power;
        let by_k = -power * self.alpha * point.streams.ln() / worth * self.k / loss;
        let slopes = [self.e / loss, power * self.alpha / loss, power * z / loss, by_k];
        (loss.ln() - point.loss.ln(), slopes)
    }
}

/// Width of the quadratic part of the Huber loss.
const DELTA: f64 = 1e-3;
/// Steps of one descent at most.
const STEPS: usize = 2000;

/// `½ r²` near zero, `δ(|r| − δ/2)` beyond `δ`; and the weight that makes it a weighted square.
fn huber(r: f64) -> (f64, f64) {
    if r.abs() <= DELTA {
        (0.5 * r * r, 1.)
    } else {
        (DELTA * (r.abs() - 0.5 * DELTA), DELTA / r.abs())
    }
}

fn objective(law: &Law, points: &[Point]) -> f64 {
    let sum: f64 = points.iter().map(|p| huber(law.residual(p).0).0).sum();
    if sum.is_finite() { sum / points.len() as f64 } else { f64::INFINITY }
}

/// Fits the law by Huber loss (δ = 10⁻³) on the logarithms of the losses, from the grid of starts
/// of the released fit, each followed by damped Gauss-Newton steps.
///
/// # Errors
/// When there are fewer than five points, a value is not positive, or all points have one size or
/// one number of streams.
pub fn fit(points: &[Point]) -> Result<Fit> {
    check(points)?;
    let mut best: Option<(f64, Law)> = None;
    for start in starts() {
        let (value, law) = descend(start, points);
        if best.as_ref().is_none_or(|(b, _)| value < *b) {
            best = Some((value, law));
        }
    }
    let Some((objective, law)) = best.filter(|(v, _)| v.is_finite()) else {
        return Err(Error::config("points", "no start led to a fit: check the losses"));
    };
    let mean = points.iter().map(|p| p.loss).sum::<f64>() / points.len() as f64;
    let square = |f: &dyn Fn(&Point) -> f64| points.iter().map(|p| f(p).powi(2)).sum::<f64>();
    let left = square(&|p| law.loss(p.parameters, p.streams) - p.loss);
    let total = square(&|p| p.loss - mean);
    let sizes = sizes_by_streams(points);
    Ok(Fit {
        law,
        r_squared: 1. - left / total.max(f64::MIN_POSITIVE),
        objective,
        points: points.len(),
        sizes: sizes.iter().copied().max().unwrap_or(0),
        stream_counts: sizes.len(),
        full_counts: sizes.iter().filter(|&&n| n >= 3).count(),
    })
}

fn different(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut all: Vec<f64> = values.collect();
    all.sort_by(f64::total_cmp);
    all.dedup();
    all
}

/// Sizes at every number of streams. Counted for each by itself: to a small model, streams add so
/// much that one model with different numbers of them would pass for several.
fn sizes_by_streams(points: &[Point]) -> Vec<usize> {
    let sizes = |streams: f64| {
        let same = points.iter().filter(|p| p.streams == streams);
        different(same.map(|p| p.parameters)).len()
    };
    different(points.iter().map(|p| p.streams)).into_iter().map(sizes).collect()
}

fn check(points: &[Point]) -> Result<()> {
    if points.len() < 5 {
        return Err(Error::config(
            "points",
            format!("{} are too few for four constants: give at least 5", points.len()),
        ));
    }
    for (i, p) in points.iter().enumerate() {
        let good = |v: f64| v.is_finite() && v > 0.;
        if !good(p.parameters) || !good(p.loss) || !(p.streams.is_finite() && p.streams >= 1.) {
            return Err(Error::config(
                format!("points[{i}]"),
                format!("{p:?}: parameters and loss must be positive, streams at least 1"),
            ));
        }
    }
    let sizes = sizes_by_streams(points);
    if sizes.iter().all(|&n| n < 2) {
        return Err(Error::config(
            "points",
            "all have one size (at each number of streams): losses of at least two sizes are \
             needed to tell E from A",
        ));
    }
    if sizes.len() < 2 {
        return Err(Error::config(
            "points",
            "all have the same number of streams: k needs at least two numbers",
        ));
    }
    Ok(())
}

/// The released grid; an exponent of zero has no logarithm and is left out.
fn starts() -> impl Iterator<Item = Law> {
    let es = [-1., -0.5, 0.];
    let a_s = [-4., -2., 0., 2., 4.];
    let alphas = [0.1, 0.5, 1., 1.5, 2.];
    let ks = [0.2, 0.4, 0.6, 0.8];
    let at = move |i: usize| Law {
        e: f64::exp(es[i % 3]),
        a: 1e9 * f64::exp(a_s[i / 3 % 5]),
        alpha: alphas[i / 15 % 5],
        k: ks[i / 75],
    };
    (0..300).map(at)
}

/// Levenberg and Marquardt's descent with Huber weights.
fn descend(start: Law, points: &[Point]) -> (f64, Law) {
    let (mut law, mut value, mut damping) = (start, objective(&start, points), 1e-2);
    for _ in 0..STEPS {
        let (mut normal, mut gradient) = ([[0f64; 4]; 4], [0f64; 4]);
        for point in points {
            let (r, slopes) = law.residual(point);
            let weight = huber(r).1;
            for i in 0..4 {
                gradient[i] += weight * r * slopes[i];
                for j in 0..4 {
                    normal[i][j] += weight * slopes[i] * slopes[j];
                }
            }
        }
        let mut improved = false;
        while damping < 1e12 {
            let step = solve(normal, gradient, damping);
            let logs = law.logs();
            let moved = Law::of_logs(std::array::from_fn(|i| logs[i] - step[i].clamp(-2., 2.)));
            let new = objective(&moved, points);
            if new < value {
                improved = value - new > 1e-14 * value;
                (law, value) = (moved, new);
                damping = (damping / 3.).max(1e-12);
                break;
            }
            damping *= 4.;
        }
        if !improved {
            break;
        }
    }
    (value, law)
}

/// Solves `(M + damping · diag M) x = g` by elimination with pivots.
fn solve(mut m: [[f64; 4]; 4], mut g: [f64; 4], damping: f64) -> [f64; 4] {
    for (i, row) in m.iter_mut().enumerate() {
        row[i] += damping * row[i] + 1e-300;
    }
    for column in 0..4 {
        let pivot = (column..4)
            .max_by(|&a, &b| m[a][column].abs().total_cmp(&m[b][column].abs()))
            .unwrap_or(column);
        m.swap(column, pivot);
        g.swap(column, pivot);
        for row in column + 1..4 {
            let factor = m[row][column] / m[column][column];
            let above = m[column];
            m[row].iter_mut().zip(above).for_each(|(v, a)| *v -= factor * a);
            g[row] -= factor * g[column];
        }
    }
    let mut x = [0f64; 4];
    for i in (0..4).rev() {
        let known: f64 = (i + 1..4).map(|j| m[i][j] * x[j]).sum();
        x[i] = (g[i] - known) / m[i][i];
        if !x[i].is_finite() {
            x[i] = 0.;
        }
    }
    x
}

/// Losses that were published with the method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Released {
    /// Python code (Stack-V2).
    Stack,
    /// General text (the Pile).
    Pile,
}

impl Released {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Stack, Self::Pile];

    /// Name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stack => "stack",
            Self::Pile => "pile",
        }
    }

    /// The points: six sizes with 1, 2, 4 and 8 streams each.
    pub fn points(self) -> Vec<Point> {
        let losses = match self {
            Self::Stack => &STACK,
            Self::Pile => &PILE,
        };
        let row = |(i, losses): (usize, &[f64; 6])| {
            let point = move |(n, &loss): (&u64, &f64)| Point {
                parameters: *n as f64,
                streams: f64::from(1u32 << i),
                loss,
            };
            PARAMETERS[i].iter().zip(losses).map(point).collect::<Vec<_>>()
        };
        losses.iter().enumerate().flat_map(row).collect()
    }
}

/// Parameters without embeddings, by streams (1, 2, 4, 8) and size.
pub const PARAMETERS: [[u64; 6]; 4] = [
    [535813376, 693753856, 1088376320, 1571472384, 2774773760, 4353203200],
    [538195842, 696738818, 1092762882, 1577522690, 2784937986, 4368529922],
    [540577412, 699722756, 1097148164, 1583571460, 2795100164, 4383854084],
    [545340552, 705690632, 1105918728, 1595669000, 2815424520, 4414502408],
];

const STACK: [[f64; 6]; 4] = [
    [1.1722, 1.1496, 1.1131, 1.0817, 1.0451, 1.0213],
    [1.1507, 1.1262, 1.0940, 1.0623, 1.0244, 1.0025],
    [1.1354, 1.1124, 1.0808, 1.0490, 1.0126, 0.9906],
    [1.1231, 1.0997, 1.0688, 1.0383, 1.0016, 0.9794],
];

const PILE: [[f64; 6]; 4] = [
    [2.1113, 2.0671, 2.0027, 1.9539, 1.8876, 1.8451],
    [2.0772, 2.0363, 1.9730, 1.9266, 1.8610, 1.8137],
    [2.0544, 2.0128, 1.9509, 1.9040, 1.8394, 1.7938],
    [2.0364, 1.9933, 1.9318, 1.8856, 1.8218, 1.7772],
];
