//! Welfare: how much a point costs all agents together, and how bad a mechanism can get.

use super::{Mechanism, Profile, Scalar};
use crate::{Error, Result};

/// Profiles enumerated at most: a few seconds' work.
const MOST_PROFILES: u128 = 5_000_000;

/// What a point is worth to everyone together.
#[derive(Debug, Clone, PartialEq)]
pub struct Welfare<T> {
    /// `SW = Σ w_i (1 − |x_i − y|)`.
    pub social_welfare: T,
    /// `TC = Σ w_i |x_i − y|`.
    pub total_cost: T,
    /// Greatest social welfare of any point, that of a median.
    pub best_welfare: T,
    /// Least total cost of any point.
    pub least_cost: T,
    /// `best_welfare / social_welfare`, at least 1; `None` if the welfare is 0.
    pub welfare_ratio: Option<T>,
    /// `total_cost / least_cost`, at least 1; `None` if the least cost is 0 and this is not.
    pub cost_ratio: Option<T>,
}

/// Welfare of the point `y`.
///
/// # Errors
/// None that a profile can cause; those of [`Mechanism::outcome`].
pub fn welfare<T: Scalar>(profile: &Profile<T>, y: &T) -> Result<Welfare<T>> {
    let median = Mechanism::Median.outcome(profile)?;
    let (total_cost, least_cost) = (profile.total_cost(y), profile.total_cost(&median));
    let social_welfare = profile.total().clone() - total_cost.clone();
    let best_welfare = profile.total().clone() - least_cost.clone();
    let welfare_ratio =
        (social_welfare > T::zero()).then(|| best_welfare.clone() / social_welfare.clone());
    let cost_ratio = if least_cost > T::zero() {
        Some(total_cost.clone() / least_cost.clone())
    } else {
        (total_cost == T::zero()).then(T::one)
    };
    Ok(Welfare { social_welfare, total_cost, best_welfare, least_cost, welfare_ratio, cost_ratio })
}

/// Expected total cost when an agent drawn with probability `w_i / W` decides:
/// `Σ_i Σ_j w_i w_j |x_i − x_j| / W`.
pub fn random_dictator_cost<T: Scalar>(profile: &Profile<T>) -> T {
    let (mut weight, mut moment, mut sum) = (T::zero(), T::zero(), T::zero());
    for &i in profile.order() {
        let (x, w) = (&profile.positions()[i], &profile.weights()[i]);
        sum = sum + w.clone() * (x.clone() * weight.clone() - moment.clone());
        weight = weight + w.clone();
        moment = moment + w.clone() * x.clone();
    }
    T::whole(2) * sum / profile.total().clone()
}

/// The worst a mechanism does over all profiles of a grid.
#[derive(Debug, Clone, PartialEq)]
pub struct WorstCase<T> {
    /// Greatest ratio of social welfare, best to achieved.
    pub welfare_ratio: T,
    /// Where.
    pub welfare_profile: Vec<T>,
    /// Greatest ratio of total cost, achieved to best, where the best is not 0.
    pub cost_ratio: T,
    /// Where.
    pub cost_profile: Vec<T>,
    /// Profiles looked at.
    pub profiles: usize,
}

/// Tries every multiset of `n` positions on the grid `0, 1/steps, …, 1`.
///
/// # Errors
/// When there are too many profiles, and those of [`Mechanism::outcome`].
pub fn worst_case<T: Scalar>(
    mechanism: &Mechanism,
    n: usize,
    steps: usize,
) -> Result<WorstCase<T>> {
    if n == 0 || steps == 0 {
        return Err(Error::config("grid", "give at least one agent and one step"));
    }
    let count = multisets(n, steps);
    if count > MOST_PROFILES {
        let reason = format!("{n} agents on {steps} steps are {count} profiles; take fewer");
        return Err(Error::config("grid", reason));
    }
    let mut worst = WorstCase {
        welfare_ratio: T::one(),
        welfare_profile: Vec::new(),
        cost_ratio: T::one(),
        cost_profile: Vec::new(),
        profiles: 0,
    };
    let mut places = vec![0; n];
    loop {
        let x: Vec<T> = places.iter().map(|&p| T::ratio(p, steps)).collect();
        let profile = Profile::new(x)?;
        let found = welfare(&profile, &mechanism.outcome(&profile)?)?;
        if let Some(ratio) = found.welfare_ratio.filter(|r| *r > worst.welfare_ratio) {
            worst.welfare_ratio = ratio;
            worst.welfare_profile = profile.positions().to_vec();
        }
        if let Some(ratio) = found.cost_ratio.filter(|r| *r > worst.cost_ratio) {
            worst.cost_ratio = ratio;
            worst.cost_profile = profile.positions().to_vec();
        }
        worst.profiles += 1;
        if !advance(&mut places, steps) {
            return Ok(worst);
        }
    }
}

/// The next non-decreasing sequence over `0..=top`, or `false` after the last.
pub fn advance(places: &mut [usize], top: usize) -> bool {
    let Some(k) = places.iter().rposition(|&p| p < top) else { return false };
    let value = places[k] + 1;
    places[k..].fill(value);
    true
}

/// `C(n + steps, n)`, without overflow for what is ever enumerated.
fn multisets(n: usize, steps: usize) -> u128 {
    (1..=n as u128).fold(1_u128, |c, i| c.saturating_mul(steps as u128 + i) / i)
}

/// The paper's bound on the Uniform Phantom's welfare ratio,
/// `max_k kn / (k² + (n−k)²)`, which tends to `(1+√2)/2`.
pub fn uniform_phantom_bound<T: Scalar>(n: usize) -> T {
    let at = |k: usize| T::ratio(k * n, k * k + (n - k) * (n - k));
    (0..=n).map(at).fold(T::one(), T::larger)
}

/// The bound on the constrained median's welfare ratio, `1 + (n−2)/(n²−2n+2)`.
pub fn constrained_median_bound<T: Scalar>(n: usize) -> T {
    if n < 2 {
        return T::one();
    }
    T::one() + T::ratio(n - 2, n * n - 2 * n + 2)
}
