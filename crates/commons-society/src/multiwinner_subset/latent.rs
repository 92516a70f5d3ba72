//! Where rankings come from: random elections, and bias against a group.

use std::fmt;
use std::str::FromStr;

use commons_core::{Rng, Seed};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A ranking: items, best first.
pub type Order = Vec<usize>;

/// How unbiased rankings are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "name", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Latent {
    /// Impartial culture: every ranking equally likely.
    Ic,
    /// Pólya–Eggenberger urn: a drawn ranking returns with `alpha · m!` copies.
    Urn {
        /// Copies, as a part of all rankings.
        alpha: f64,
    },
    /// Mallows: probability `∝ phi^(Kendall distance to a centre)`.
    Mallows {
        /// 0 always the centre, 1 impartial culture.
        phi: f64,
    },
    /// Mallows whose `phi` is set so that the expected distance from the centre, in parts of that
    /// of impartial culture, is `norm` (Boehmer et al. 2021).
    NormMallows {
        /// 0 always the centre, 1 impartial culture.
        norm: f64,
    },
    /// Plackett–Luce: items are drawn without replacement in proportion to strengths, uniform on
    /// (0, 1) and common to all voters.
    PlackettLuce,
    /// Single-peaked on a common axis: a random peak, then left or right by lot (Conitzer).
    Conitzer,
    /// Single-peaked on a common axis: every such ranking equally likely (Walsh).
    Walsh,
    /// Utility `w_c · η_vc` with item qualities `w_c` and noise `η_vc`, both uniform on [0, 1].
    Utility,
}

impl Latent {
    /// Names that [`FromStr`] reads.
    pub const NAMES: &'static str = "ic, urn:ALPHA, mallows:PHI, norm-mallows:NORM, \
         plackett-luce, conitzer, walsh, utility";

    /// # Errors
    /// When a parameter is out of range.
    pub fn check(self) -> Result<()> {
        let fail = |field: &str, value: f64, range: &str| {
            Err(Error::config(format!("latent {field}"), format!("{value} is not in {range}")))
        };
        match self {
            Self::Urn { alpha } if !(alpha >= 0. && alpha.is_finite()) => {
                fail("alpha", alpha, "0 or more")
            }
            Self::Mallows { phi } if !(0. ..=1.).contains(&phi) => fail("phi", phi, "0 to 1"),
            Self::NormMallows { norm } if !(0. ..=1.).contains(&norm) => {
                fail("norm", norm, "0 to 1")
            }
            _ => Ok(()),
        }
    }

    /// `n` rankings of `m` items.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn draw(self, m: usize, n: usize, seed: Seed) -> Result<Vec<Order>> {
        Ok(self.utilities(m, n, seed)?.into_iter().map(|u| by_utility(&u)).collect())
    }

    /// `n` vectors of utilities of `m` items, whose order is the ranking: the multiplicative bias
    /// acts on them. Rankings drawn as such have utilities `m − place`, scaled to (0, 1].
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn utilities(self, m: usize, n: usize, seed: Seed) -> Result<Vec<Vec<f64>>> {
        self.utilities_of(m, n, seed, seed)
    }

    /// As [`utilities`](Self::utilities), with a seed of its own for what voters have in common
    /// (qualities, centre, axis), so that several profiles come from one model.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn utilities_of(
        self,
        m: usize,
        n: usize,
        common: Seed,
        seed: Seed,
    ) -> Result<Vec<Vec<f64>>> {
        self.check()?;
        let mut common = common.fork("common", 0).rng();
        let voter = |v: usize| seed.fork("voter", v as u64).rng();
        let quality: Vec<f64> = (0..m).map(|_| common.uniform()).collect();
        let axis = common_order(m, &mut common);
        let phi = match self {
            Self::Mallows { phi } => phi,
            Self::NormMallows { norm } => phi_of_norm(m, norm),
            _ => 1.,
        };
        if self == Self::Utility {
            let noisy = |v: usize| {
                let mut rng = voter(v);
                quality.iter().map(|w| w * rng.uniform()).collect()
            };
            return Ok((0..n).map(noisy).collect());
        }
        let mut orders: Vec<Order> = Vec::with_capacity(n);
        for v in 0..n {
            let rng = &mut voter(v);
            orders.push(match self {
                Self::Urn { alpha } => {
                    // A copy with probability vα / (1 + vα), else a new ranking.
                    let copies = v as f64 * alpha;
                    match rng.chance(copies / (1. + copies)) {
                        true => orders[rng.below(v as u64) as usize].clone(),
                        false => common_order(m, rng),
                    }
                }
                Self::Mallows { .. } | Self::NormMallows { .. } => insertion(&axis, phi, rng),
                Self::PlackettLuce => plackett_luce(&quality, rng),
                Self::Conitzer => conitzer(&axis, rng),
                Self::Walsh => walsh(&axis, rng),
                Self::Ic | Self::Utility => common_order(m, rng),
            });
        }
        Ok(orders.iter().map(|o| place_utility(o)).collect())
    }
}

/// Items by falling utility, ties by index.
pub fn by_utility(utility: &[f64]) -> Order {
    let mut order: Order = (0..utility.len()).collect();
    order.sort_by(|&a, &b| utility[b].total_cmp(&utility[a]).then(a.cmp(&b)));
    order
}

fn place_utility(order: &[usize]) -> Vec<f64> {
    let m = order.len();
    let mut utility = vec![0.; m];
    order.iter().enumerate().for_each(|(p, &c)| utility[c] = (m - p) as f64 / m as f64);
    utility
}

fn common_order(m: usize, rng: &mut Rng) -> Order {
    let mut order: Order = (0..m).collect();
    rng.shuffle(&mut order);
    order
}

/// Exact sampling by repeated insertion: the `i`-th item of the centre goes to place `j ≤ i` with
/// probability `∝ phi^(i − j)`.
fn insertion(centre: &[usize], phi: f64, rng: &mut Rng) -> Order {
    let mut order = Vec::with_capacity(centre.len());
    for (i, &c) in centre.iter().enumerate() {
        let weights: Vec<f64> = (0..=i).map(|j| phi.powi((i - j) as i32)).collect();
        order.insert(rng.weighted(&weights), c);
    }
    order
}

/// Expected Kendall distance of Mallows rankings from their centre.
pub fn mallows_distance(m: usize, phi: f64) -> f64 {
    let step = |i: usize| {
        let weights = (0..=i).map(|d| (d as f64, phi.powi(d as i32)));
        let (sum, total) = weights.fold((0., 0.), |(s, t), (d, w)| (s + d * w, t + w));
        sum / total
    };
    (0..m).map(step).sum()
}

fn phi_of_norm(m: usize, norm: f64) -> f64 {
    let target = norm * mallows_distance(m, 1.);
    let (mut low, mut high) = (0., 1.);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if mallows_distance(m, middle) < target { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

/// The order of exponential waiting times with rates `strength`.
fn plackett_luce(strength: &[f64], rng: &mut Rng) -> Order {
    let wait = |s: &f64| (1. - rng.uniform()).ln() / s.max(f64::MIN_POSITIVE);
    by_utility(&strength.iter().map(wait).collect::<Vec<_>>())
}

fn conitzer(axis: &[usize], rng: &mut Rng) -> Order {
    let m = axis.len();
    if m == 0 {
        return Vec::new();
    }
    let peak = rng.below(m as u64) as usize;
    let (mut left, mut right) = (peak, peak + 1);
    let mut order = vec![axis[peak]];
    while order.len() < m {
        let goes_left = right == m || (left > 0 && rng.chance(0.5));
        if goes_left {
            left -= 1;
            order.push(axis[left]);
        } else {
            order.push(axis[right]);
            right += 1;
        }
    }
    order
}

/// From the worst item up: one of the two ends of what is left of the axis.
fn walsh(axis: &[usize], rng: &mut Rng) -> Order {
    let (mut left, mut right) = (0, axis.len());
    let mut order = Vec::with_capacity(axis.len());
    while left < right {
        if right - left > 1 && rng.chance(0.5) {
            order.push(axis[left]);
            left += 1;
        } else {
            right -= 1;
            order.push(axis[right]);
        }
    }
    order.reverse();
    order
}

/// How rankings are distorted against a group.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "name", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Bias {
    /// None.
    None,
    /// The group's utilities are multiplied by `theta`.
    Utility {
        /// 1 no bias, 0 the group comes last.
        theta: f64,
    },
    /// Items of the group that stand above others change places with them.
    Swap {
        /// Base of the probability `∝ phi^distance` of a pair; in (0, 1].
        phi: f64,
        /// Part of the pairs that are in the group's favour which is exchanged, one by one.
        lambda: f64,
    },
}

impl Bias {
    /// Names that [`FromStr`] reads.
    pub const NAMES: &'static str = "none, utility:THETA, swap:PHI,LAMBDA";

    /// # Errors
    /// When a parameter is out of range.
    pub fn check(self) -> Result<()> {
        let fail = |field: &str, value: f64| {
            let reason = format!("{value} is not in 0 to 1");
            Err(Error::config(format!("bias {field}"), reason))
        };
        match self {
            Self::Utility { theta } if !(0. ..=1.).contains(&theta) => fail("theta", theta),
            Self::Swap { phi, .. } if !(phi > 0. && phi <= 1.) => fail("phi", phi),
            Self::Swap { lambda, .. } if !(0. ..=1.).contains(&lambda) => fail("lambda", lambda),
            _ => Ok(()),
        }
    }

    /// The ranking that is seen instead of the one that `utility` gives. `disadvantaged` says of
    /// each item whether it belongs to the group.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn apply(self, utility: &[f64], disadvantaged: &[bool], seed: Seed) -> Result<Order> {
        self.check()?;
        Ok(match self {
            Self::None => by_utility(utility),
            Self::Utility { theta } => {
                let seen = |(u, &d): (&f64, &bool)| if d { theta * u } else { *u };
                by_utility(&utility.iter().zip(disadvantaged).map(seen).collect::<Vec<_>>())
            }
            Self::Swap { phi, lambda } => {
                swap(by_utility(utility), disadvantaged, phi, lambda, &mut seed.rng())
            }
        })
    }
}

/// `⌊lambda · pairs⌋` times: among the pairs of an advantaged item below one of the group, one with
/// probability `∝ phi^distance` changes places.
///
/// Pairs of one distance are equally likely, so a distance is drawn first: the weights need one
/// count per distance, not one per pair.
fn swap(mut order: Order, group: &[bool], phi: f64, lambda: f64, rng: &mut Rng) -> Order {
    let m = order.len();
    let mut flags: Vec<bool> = order.iter().map(|&c| group[c]).collect();
    let mut counts = vec![0_u64; m];
    for high in 0..m {
        for low in high + 1..m {
            counts[low - high] += u64::from(flags[high] && !flags[low]);
        }
    }
    let pairs: u64 = counts.iter().sum();
    let times = (lambda * pairs as f64 + 1e-9).floor() as u64;
    for _ in 0..times {
        // Relative to the nearest pair there is: phi^distance alone may underflow.
        let Some(nearest) = counts.iter().position(|&c| c > 0) else { break };
        let weight = |d: usize| match d.checked_sub(nearest) {
            Some(extra) => counts[d] as f64 * phi.powi(extra as i32),
            None => 0.,
        };
        let d = rng.weighted(&(0..m).map(weight).collect::<Vec<_>>());
        let mut which = rng.below(counts[d]);
        let hit = (0..m - d).find(|&high| {
            let pair = flags[high] && !flags[high + d];
            let found = pair && which == 0;
            which -= u64::from(pair && !found);
            found
        });
        let Some(high) = hit else { break };
        for place in [high, high + d] {
            recount(&flags, place, &mut counts, false);
            flags[place] = !flags[place];
            recount(&flags, place, &mut counts, true);
        }
        order.swap(high, high + d);
    }
    order
}

/// Adds or takes away the pairs that the item at `place` is one of.
fn recount(flags: &[bool], place: usize, counts: &mut [u64], add: bool) {
    for (other, &flag) in flags.iter().enumerate() {
        let pair = match other.cmp(&place) {
            std::cmp::Ordering::Less => flag && !flags[place],
            std::cmp::Ordering::Greater => flags[place] && !flag,
            std::cmp::Ordering::Equal => false,
        };
        if pair {
            let slot = &mut counts[place.abs_diff(other)];
            *slot = if add { *slot + 1 } else { slot.saturating_sub(1) };
        }
    }
}

/// `name`, `name:1` or `name:1,2`.
fn words(text: &str) -> Option<(&str, Vec<f64>)> {
    let (name, list) = text.split_once(':').map_or((text, None), |(n, l)| (n, Some(l)));
    let numbers = list.into_iter().flat_map(|l| l.split(','));
    Some((name, numbers.map(|n| n.trim().parse().ok()).collect::<Option<_>>()?))
}

impl FromStr for Latent {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let latent = match words(text).as_ref().map(|(n, v)| (*n, &v[..])) {
            Some(("ic", [])) => Self::Ic,
            Some(("urn", &[alpha])) => Self::Urn { alpha },
            Some(("mallows", &[phi])) => Self::Mallows { phi },
            Some(("norm-mallows", &[norm])) => Self::NormMallows { norm },
            Some(("plackett-luce", [])) => Self::PlackettLuce,
            Some(("conitzer", [])) => Self::Conitzer,
            Some(("walsh", [])) => Self::Walsh,
            Some(("utility", [])) => Self::Utility,
            _ => {
                let reason = format!("`{text}` is no generator; there are {}", Self::NAMES);
                return Err(Error::config("latent", reason));
            }
        };
        latent.check()?;
        Ok(latent)
    }
}

impl FromStr for Bias {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bias = match words(text).as_ref().map(|(n, v)| (*n, &v[..])) {
            Some(("none", [])) => Self::None,
            Some(("utility", &[theta])) => Self::Utility { theta },
            Some(("swap", &[phi, lambda])) => Self::Swap { phi, lambda },
            _ => {
                let reason = format!("`{text}` is no bias; there are {}", Self::NAMES);
                return Err(Error::config("bias", reason));
            }
        };
        bias.check()?;
        Ok(bias)
    }
}

impl fmt::Display for Latent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ic => f.write_str("ic"),
            Self::Urn { alpha } => write!(f, "urn:{alpha}"),
            Self::Mallows { phi } => write!(f, "mallows:{phi}"),
            Self::NormMallows { norm } => write!(f, "norm-mallows:{norm}"),
            Self::PlackettLuce => f.write_str("plackett-luce"),
            Self::Conitzer => f.write_str("conitzer"),
            Self::Walsh => f.write_str("walsh"),
            Self::Utility => f.write_str("utility"),
        }
    }
}

impl fmt::Display for Bias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Utility { theta } => write!(f, "utility:{theta}"),
            Self::Swap { phi, lambda } => write!(f, "swap:{phi},{lambda}"),
        }
    }
}
