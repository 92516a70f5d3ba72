//! Fairness axioms, each checked with a witness when it is violated.

use serde::Serialize;

use super::{Profile, Scalar};

/// What a group of agents may ask of a point. Strongest last, except that
/// [`Proportionality`](Axiom::Proportionality) is implied by [`UnanimousFairShare`](Axiom::UnanimousFairShare).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Axiom {
    /// All at one point: that point.
    Unanimity,
    /// `d_i ≤ 1 − 1/n` for everyone.
    IndividualFairShare,
    /// All at 0 or 1: the share at 1.
    Proportionality,
    /// `d_i ≤ 1 − s/n` for `s` agents at one location.
    UnanimousFairShare,
    /// `d_i ≤ 1 − s/n + r` for `s` agents within a range of `r`.
    ProportionalFairness,
}

impl Axiom {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Unanimity,
        Self::IndividualFairShare,
        Self::Proportionality,
        Self::UnanimousFairShare,
        Self::ProportionalFairness,
    ];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unanimity => "unanimity",
            Self::IndividualFairShare => "individual fair share",
            Self::Proportionality => "proportionality",
            Self::UnanimousFairShare => "unanimous fair share",
            Self::ProportionalFairness => "proportional fairness",
        }
    }

    /// Checks the axiom at the point `y`.
    ///
    /// # Errors
    /// The group whose claim is violated most.
    pub fn check<T: Scalar>(self, profile: &Profile<T>, y: &T) -> Result<(), Witness<T>> {
        match self {
            Self::Unanimity => unanimity(profile, y),
            Self::IndividualFairShare => ifs(profile, y),
            Self::Proportionality => proportionality(profile, y),
            Self::UnanimousFairShare => ufs(profile, y),
            Self::ProportionalFairness => pf(profile, y),
        }
    }
}

/// A group that gets less than an axiom grants it.
#[derive(Debug, Clone, PartialEq)]
pub struct Witness<T> {
    /// The axiom.
    pub axiom: Axiom,
    /// The agents of the group, by index from 0, in increasing order of position.
    pub agents: Vec<usize>,
    /// Their lowest and highest position.
    pub span: (T, T),
    /// Their part of the whole weight.
    pub share: T,
    /// How far the worst-off of them is from the point.
    pub distance: T,
    /// How far it may be.
    pub allowed: T,
}

impl<T: Scalar> Witness<T> {
    /// By how much the axiom is violated.
    pub fn excess(&self) -> T {
        self.distance.clone() - self.allowed.clone()
    }
}

/// Keeps the violation that is worst.
struct Worst<'a, T> {
    profile: &'a Profile<T>,
    axiom: Axiom,
    found: Option<(std::ops::Range<usize>, T, T, T)>,
}

impl<'a, T: Scalar> Worst<'a, T> {
    fn new(profile: &'a Profile<T>, axiom: Axiom) -> Self {
        Self { profile, axiom, found: None }
    }

    /// `members` are places in the profile's order.
    fn offer(&mut self, members: std::ops::Range<usize>, share: T, distance: T, allowed: T) {
        let excess = distance.clone() - allowed.clone();
        let worse = self.found.as_ref().is_none_or(|(_, _, d, a)| excess > d.clone() - a.clone());
        if distance.exceeds(&allowed) && worse {
            self.found = Some((members, share, distance, allowed));
        }
    }

    fn verdict(self) -> Result<(), Witness<T>> {
        let Some((members, share, distance, allowed)) = self.found else { return Ok(()) };
        let agents = self.profile.order()[members].to_vec();
        let x =
            |i: Option<&usize>| i.map_or_else(T::zero, |&i| self.profile.positions()[i].clone());
        let span = (x(agents.first()), x(agents.last()));
        Err(Witness { axiom: self.axiom, agents, span, share, distance, allowed })
    }
}

/// Unanimity: when all are at one location, the point is there.
///
/// # Errors
/// With everyone as the witness.
pub fn unanimity<T: Scalar>(profile: &Profile<T>, y: &T) -> Result<(), Witness<T>> {
    let mut worst = Worst::new(profile, Axiom::Unanimity);
    let (low, high) = profile.ends();
    if !high.exceeds(&low) {
        worst.offer(0..profile.len(), T::one(), low.distance(y), T::zero());
    }
    worst.verdict()
}

/// Individual fair share: `d_i ≤ 1 − w_i/W` (`1 − 1/n` with equal weights).
///
/// # Errors
/// With the agent that misses it by most.
pub fn ifs<T: Scalar>(profile: &Profile<T>, y: &T) -> Result<(), Witness<T>> {
    let mut worst = Worst::new(profile, Axiom::IndividualFairShare);
    for (k, &i) in profile.order().iter().enumerate() {
        let share = profile.share(i);
        let distance = profile.positions()[i].distance(y);
        worst.offer(k..k + 1, share.clone(), distance, T::one() - share);
    }
    worst.verdict()
}

/// Proportionality: when all are at 0 or 1, the point is the share at 1.
///
/// # Errors
/// With the larger loser: the agents at the end that got less than its share.
pub fn proportionality<T: Scalar>(profile: &Profile<T>, y: &T) -> Result<(), Witness<T>> {
    let mut worst = Worst::new(profile, Axiom::Proportionality);
    let clusters = profile.clusters();
    let at_end = |v: &T| !v.exceeds(&T::zero()) || !T::one().exceeds(v);
    if clusters.iter().all(|c| at_end(&c.low)) {
        for cluster in clusters {
            let allowed = T::one() - cluster.share.clone();
            worst.offer(cluster.members, cluster.share, cluster.low.distance(y), allowed);
        }
    }
    worst.verdict()
}

/// Unanimous fair share: `d_i ≤ 1 − s/n` for the agents at each location.
///
/// # Errors
/// With the location that misses it by most.
pub fn ufs<T: Scalar>(profile: &Profile<T>, y: &T) -> Result<(), Witness<T>> {
    let mut worst = Worst::new(profile, Axiom::UnanimousFairShare);
    for cluster in profile.clusters() {
        let distance = cluster.low.distance(y).larger(cluster.high.distance(y));
        let allowed = T::one() - cluster.share.clone();
        worst.offer(cluster.members, cluster.share, distance, allowed);
    }
    worst.verdict()
}

/// Proportional fairness: `d_i ≤ 1 − s/n + r(S)` for every set `S`.
///
/// Only two kinds of sets can violate it. A set on both sides of `y` cannot: its farthest agent is
/// within `r`. Among those from `b ≤ y` downwards the condition reads `y − b ≤ 1 − s/n` whatever
/// the lowest is, so the largest, everyone up to `b`, is the strictest; likewise above.
///
/// # Errors
/// With the set that misses it by most.
pub fn pf<T: Scalar>(profile: &Profile<T>, y: &T) -> Result<(), Witness<T>> {
    let mut worst = Worst::new(profile, Axiom::ProportionalFairness);
    let clusters = profile.clusters();
    let n = profile.len();
    let (lowest, highest) = profile.ends();
    let mut below = T::zero();
    for c in clusters.iter().take_while(|c| c.high <= *y) {
        below = below + c.share.clone();
        let range = c.high.clone() - lowest.clone();
        let allowed = T::one() - below.clone() + range;
        worst.offer(0..c.members.end, below.clone(), y.clone() - lowest.clone(), allowed);
    }
    let mut above = T::zero();
    for c in clusters.iter().rev().take_while(|c| c.low >= *y) {
        above = above + c.share.clone();
        let range = highest.clone() - c.low.clone();
        let allowed = T::one() - above.clone() + range;
        worst.offer(c.members.start..n, above.clone(), highest.clone() - y.clone(), allowed);
    }
    worst.verdict()
}
