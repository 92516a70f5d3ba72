//! Misreports: what one agent can gain by lying, and where lying ends.

use super::{Mechanism, Profile, Scalar};
use crate::{Error, Result};

/// Reports tried for one agent beside the closed forms, at most.
const CANDIDATES: usize = 256;

/// Steps of the grid of reports.
const GRID: usize = 16;

/// A report that brings an agent nearer to its ideal point than the truth does.
#[derive(Debug, Clone, PartialEq)]
pub struct Deviation<T> {
    /// What the agent says.
    pub report: T,
    /// The point that follows.
    pub outcome: T,
    /// By how much the point is nearer.
    pub gain: T,
}

/// The most profitable misreport of agent `i`, or `None` if no report helps.
///
/// Every mechanism here moves with a report or not at all, so the best reports are the two ends,
/// the reports that a closed form says would bring the point home, and, where the outcome has
/// jumps of slope, the phantoms and the positions of the others; all are tried, and a grid.
///
/// # Errors
/// As [`Mechanism::outcome`], and when there is no agent `i`.
pub fn best_deviation<T: Scalar>(
    mechanism: &Mechanism,
    profile: &Profile<T>,
    i: usize,
) -> Result<Option<Deviation<T>>> {
    let Some(ideal) = profile.positions().get(i) else {
        let reason = format!("there is no agent {i}; there are {}", profile.len());
        return Err(Error::config("agent", reason));
    };
    let truthful = mechanism.outcome(profile)?.distance(ideal);
    let mut best: Option<Deviation<T>> = None;
    if truthful <= T::tolerance() {
        return Ok(None);
    }
    for report in reports(mechanism, profile, i)? {
        let outcome = mechanism.outcome(&profile.with_report(i, report.clone()))?;
        let distance = outcome.distance(ideal);
        if !truthful.exceeds(&distance) {
            continue;
        }
        let gain = truthful.clone() - distance;
        if best.as_ref().is_none_or(|b| gain > b.gain) {
            best = Some(Deviation { report, outcome, gain });
        }
    }
    Ok(best)
}

/// Reports worth trying for agent `i`.
fn reports<T: Scalar>(mechanism: &Mechanism, profile: &Profile<T>, i: usize) -> Result<Vec<T>> {
    let mut candidates: Vec<T> = (0..=GRID).map(|k| T::ratio(k, GRID)).collect();
    candidates.extend(closed_form(mechanism, profile, i));
    let mut points: Vec<T> = profile.clusters().into_iter().map(|c| c.low).collect();
    points.extend(mechanism.phantoms(profile)?);
    points.dedup_by(|a, b| a == b);
    let stride = points.len().div_ceil(CANDIDATES).max(1);
    candidates.extend(points.into_iter().step_by(stride));
    Ok(candidates)
}

/// The report that would put the point at agent `i`'s ideal, where a formula gives it.
fn closed_form<T: Scalar>(mechanism: &Mechanism, profile: &Profile<T>, i: usize) -> Option<T> {
    let ideal = profile.positions()[i].clone();
    let clamp = |v: T| v.larger(T::zero()).smaller(T::one());
    match mechanism {
        Mechanism::Mean => Some(clamp(pull(profile, i, &ideal))),
        Mechanism::Midpoint => {
            let others = profile.order().iter().filter(|&&j| j != i);
            let mut xs = others.map(|&j| profile.positions()[j].clone());
            let low = xs.next()?;
            let high = xs.last().unwrap_or_else(|| low.clone());
            let twice = ideal * T::whole(2);
            let centre = low.clone() + high.clone();
            Some(clamp(if twice < centre { twice - high } else { twice - low }))
        }
        Mechanism::Nash => bisect(mechanism, profile, i),
        _ => None,
    }
}

/// The report of `i` that makes the weighted mean equal `target`; it may lie outside [0, 1].
fn pull<T: Scalar>(profile: &Profile<T>, i: usize, target: &T) -> T {
    let (x, w) = (profile.positions(), profile.weights());
    let all = x.iter().zip(w).fold(T::zero(), |s, (x, w)| s + x.clone() * w.clone());
    let others = all - x[i].clone() * w[i].clone();
    (profile.total().clone() * target.clone() - others) / w[i].clone()
}

/// The report at which the monotone outcome passes agent `i`'s ideal point, in `f64`.
fn bisect<T: Scalar>(mechanism: &Mechanism, profile: &Profile<T>, i: usize) -> Option<T> {
    let ideal = profile.positions()[i].to_f64();
    let (mut low, mut high) = (0., 1.);
    for _ in 0..40 {
        let middle: f64 = 0.5 * (low + high);
        let report = T::from_f64(middle)?;
        let outcome = mechanism.outcome(&profile.with_report(i, report)).ok()?;
        if outcome.to_f64() < ideal { low = middle } else { high = middle }
    }
    T::from_f64(0.5 * (low + high))
}

/// Where agents who answer each other's lies come to rest.
#[derive(Debug, Clone, PartialEq)]
pub struct Equilibrium<T> {
    /// The point.
    pub outcome: T,
    /// What the agents say there.
    pub reports: Vec<T>,
    /// Rounds in which every agent had a turn.
    pub rounds: usize,
    /// Whether nobody changed the report in the last round.
    pub converged: bool,
}

/// Best-response dynamics of the average mechanism from truthful reports: in turn, each agent says
/// what would bring the average home, `clamp((W·x_i − Σ_{j≠i} w_j r_j) / w_i, 0, 1)`.
///
/// The pure Nash equilibrium outcome is unique, and is the Uniform Phantom's point at the true
/// positions (Section 6 of the paper).
pub fn average_equilibrium<T: Scalar>(profile: &Profile<T>, rounds: usize) -> Equilibrium<T> {
    let (x, w) = (profile.positions(), profile.weights());
    let mut reports = x.to_vec();
    let weighted = |r: &[T]| r.iter().zip(w).fold(T::zero(), |s, (r, w)| s + r.clone() * w.clone());
    let mut result =
        Equilibrium { outcome: T::zero(), reports: Vec::new(), rounds: 0, converged: false };
    while result.rounds < rounds && !result.converged {
        result.rounds += 1;
        result.converged = true;
        // Summed anew each round: rounding must not pile up.
        let mut sum = weighted(&reports);
        for i in 0..x.len() {
            let others = sum - reports[i].clone() * w[i].clone();
            let wish = (profile.total().clone() * x[i].clone() - others.clone()) / w[i].clone();
            let report = wish.larger(T::zero()).smaller(T::one());
            result.converged &= !report.distance(&reports[i]).exceeds(&T::zero());
            sum = others + report.clone() * w[i].clone();
            reports[i] = report;
        }
    }
    result.outcome = weighted(&reports) / profile.total().clone();
    result.reports = reports;
    result
}

/// Best-response dynamics of any mechanism whose outcome is continuous and increasing in every
/// report, by bisection.
///
/// # Errors
/// Of the mechanism.
pub fn equilibrium(
    mechanism: impl Fn(&[f64]) -> Result<f64>,
    ideal: &[f64],
    rounds: usize,
    tolerance: f64,
) -> Result<Equilibrium<f64>> {
    let mut reports = ideal.to_vec();
    let mut result = Equilibrium { outcome: 0., reports: Vec::new(), rounds: 0, converged: false };
    while result.rounds < rounds && !result.converged {
        result.rounds += 1;
        let mut moved = 0_f64;
        for i in 0..ideal.len() {
            let before = reports[i];
            let (mut low, mut high) = (0., 1.);
            for end in [0., 1.] {
                reports[i] = end;
                let outcome = mechanism(&reports)?;
                // The point stays on one side of the agent even at the end: that end is best.
                if end == 0. && outcome >= ideal[i] {
                    high = 0.;
                }
                if end == 1. && outcome <= ideal[i] {
                    low = 1.;
                    high = 1.;
                }
            }
            while high - low > tolerance {
                let middle = 0.5 * (low + high);
                reports[i] = middle;
                if mechanism(&reports)? < ideal[i] { low = middle } else { high = middle }
            }
            reports[i] = 0.5 * (low + high);
            moved = moved.max((reports[i] - before).abs());
        }
        result.converged = moved <= 4. * tolerance;
    }
    result.outcome = mechanism(&reports)?;
    result.reports = reports;
    Ok(result)
}
