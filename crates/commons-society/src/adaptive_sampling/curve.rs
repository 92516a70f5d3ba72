//! Learning curves: loss against the number of samples, and how they are fitted.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Range of exponents of a fit.
pub const EXPONENTS: (f64, f64) = (0.05, 2.);

/// Exponents tried before refining.
const GRID: usize = 60;

/// Loss as a function of the number of samples.
pub trait LearningCurve {
    /// Expected loss after `n` samples.
    fn loss(&self, n: f64) -> f64;

    /// Derivative of the loss.
    fn slope(&self, n: f64) -> f64;

    /// Samples until the loss is `level`; `None` if it never is.
    fn samples(&self, level: f64) -> Option<f64>;
}

/// `ℓ(n) = e + a n^(−b)`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PowerLaw {
    /// Loss that no number of samples removes.
    pub e: f64,
    /// Loss that one sample leaves above it.
    pub a: f64,
    /// Exponent.
    pub b: f64,
}

impl PowerLaw {
    /// # Errors
    /// When `a` or `b` is not positive, `e` negative, or one is not finite.
    pub fn check(&self, group: &str) -> Result<()> {
        let wrong = |field: &str, v: f64, what: &str| {
            Err(Error::config(format!("group {group}: {field}"), format!("{v} is not {what}")))
        };
        match *self {
            Self { e, .. } if !(e >= 0. && e.is_finite()) => wrong("e", e, "a number of 0 or more"),
            Self { a, .. } if !(a > 0. && a.is_finite()) => wrong("a", a, "a positive number"),
            Self { b, .. } if !(b > 0. && b.is_finite()) => wrong("b", b, "a positive number"),
            _ => Ok(()),
        }
    }
}

impl LearningCurve for PowerLaw {
    fn loss(&self, n: f64) -> f64 {
        self.e + self.a * n.powf(-self.b)
    }

    fn slope(&self, n: f64) -> f64 {
        -self.a * self.b * n.powf(-self.b - 1.)
    }

    fn samples(&self, level: f64) -> Option<f64> {
        (level > self.e).then(|| ((level - self.e) / self.a).powf(-1. / self.b))
    }
}

/// A measured point of a curve.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// Samples trained on.
    pub n: f64,
    /// Held-out loss.
    pub loss: f64,
}

/// A fitted curve.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Fit {
    /// The curve.
    pub curve: PowerLaw,
    /// Root mean square of the residuals.
    pub residual: f64,
    /// Whether the exponent ended at the edge of its range: extrapolation is then unsafe.
    pub at_bound: bool,
}

/// Least squares over the exponent, with `e ≥ 0` and `a > 0` solved for at each; residuals are
/// weighed by n, as the variance of a held-out loss that stems from training falls with it.
///
/// # Errors
/// With fewer than three different sizes, or a point that is not finite or of no samples.
pub fn fit(points: &[Point]) -> Result<Fit> {
    fit_with(points, None)
}

/// As [`fit`], pulled towards the exponent `prior.0` as `prior.1` more points would: for groups
/// with few points, towards the exponent all groups share.
///
/// # Errors
/// As [`fit`].
pub fn fit_with(points: &[Point], prior: Option<(f64, f64)>) -> Result<Fit> {
    if let Some(i) =
        points.iter().position(|p| !(p.n > 0. && p.n.is_finite() && p.loss.is_finite()))
    {
        let reason = format!("n = {}, loss = {} cannot be fitted", points[i].n, points[i].loss);
        return Err(Error::config(format!("point {}", i + 1), reason));
    }
    let mut sizes: Vec<f64> = points.iter().map(|p| p.n).collect();
    sizes.sort_by(f64::total_cmp);
    sizes.dedup();
    if sizes.len() < 3 {
        let reason =
            format!("{} different sizes; a curve has three unknowns, give 3 or more", sizes.len());
        return Err(Error::config("points", reason));
    }
    let spread = {
        let centre = points.iter().map(|p| p.loss).sum::<f64>() / points.len() as f64;
        points.iter().map(|p| (p.loss - centre).powi(2)).sum::<f64>() / points.len() as f64
    };
    let cost = |b: f64| {
        let pull =
            prior.map_or(0., |(centre, weight)| weight * spread * 0.01 * (b / centre).ln().powi(2));
        solve(points, b).1 + pull
    };
    let (low, high) = (EXPONENTS.0.ln(), EXPONENTS.1.ln());
    let at = |k: usize| (low + (high - low) * k as f64 / GRID as f64).exp();
    let best = (0..=GRID).min_by(|&i, &j| cost(at(i)).total_cmp(&cost(at(j)))).unwrap_or(0);
    let b = golden(cost, at(best.saturating_sub(1)), at((best + 1).min(GRID)));
    let (curve, squares) = solve(points, b);
    let edge = |bound: f64| (b / bound).ln().abs() < 0.02;
    Ok(Fit {
        curve,
        residual: squares.max(0.).sqrt(),
        at_bound: edge(EXPONENTS.0) || edge(EXPONENTS.1),
    })
}

/// The best `e ≥ 0` and `a > 0` for an exponent, and the mean square.
fn solve(points: &[Point], b: f64) -> (PowerLaw, f64) {
    let total: f64 = points.iter().map(|p| p.n).sum();
    let mean = |of: &dyn Fn(&Point) -> f64| points.iter().map(|p| p.n / total * of(p)).sum::<f64>();
    let x = |p: &Point| p.n.powf(-b);
    let (mx, my) = (mean(&x), mean(&|p| p.loss));
    let covariance = mean(&|p| (x(p) - mx) * (p.loss - my));
    let variance = mean(&|p| (x(p) - mx).powi(2));
    let mut a = covariance / variance.max(f64::MIN_POSITIVE);
    let mut e = my - a * mx;
    if e < 0. {
        e = 0.;
        a = mean(&|p| x(p) * p.loss) / mean(&|p| x(p).powi(2)).max(f64::MIN_POSITIVE);
    }
    if a <= 0. {
        // Losses that do not fall: a flat curve, as nearly as the form allows.
        a = 1e-12;
        e = my.max(0.);
    }
    let curve = PowerLaw { e, a, b };
    (curve, mean(&|p| (curve.loss(p.n) - p.loss).powi(2)))
}

fn golden(f: impl Fn(f64) -> f64, mut low: f64, mut high: f64) -> f64 {
    const R: f64 = 0.618_033_988_749_894_9;
    for _ in 0..90 {
        let (c, d) = (high - R * (high - low), low + R * (high - low));
        if f(c) < f(d) { high = d } else { low = c }
    }
    0.5 * (low + high)
}
