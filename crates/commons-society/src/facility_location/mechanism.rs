//! Mechanisms: from ideal points to one point.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::profile::{Profile, in_unit};
use super::{Scalar, nash};
use crate::{Error, Result};

/// A rule that chooses one point of [0, 1].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Mechanism {
    /// Median of the reports and `1/n, …, (n−1)/n`: strategyproof and proportionally fair.
    UniformPhantom,
    /// Phantoms split between `1/n` and `1 − 1/n`: strategyproof, individual fair share.
    ConstrainedMedian,
    /// The lower median: strategyproof, least total cost, not fair.
    Median,
    /// The weighted average: proportionally fair, not strategyproof.
    Mean,
    /// Half-way between the extremes: not strategyproof.
    Midpoint,
    /// `argmax Σ log u_i`: not strategyproof.
    Nash,
    /// The point of one agent, by index from 0.
    Dictator(usize),
    /// A fixed point.
    Constant(f64),
    /// Interior phantoms of one's own, in increasing order; between them the ends 0 and 1 stand as
    /// well. `n − 1` of them are Moulin's; `m` of them stand for `m` equal parts of the electorate.
    Phantoms(Vec<f64>),
}

impl Mechanism {
    /// Those that need no parameter, in the order of comparisons.
    pub const PLAIN: [Self; 6] = [
        Self::UniformPhantom,
        Self::ConstrainedMedian,
        Self::Median,
        Self::Mean,
        Self::Midpoint,
        Self::Nash,
    ];

    /// Names that [`FromStr`] reads.
    pub const NAMES: &'static str = "uniform-phantom, constrained-median, median, mean, midpoint, \
         nash, dictator:AGENT, constant:POINT, phantoms:P,P,…";

    /// The chosen point.
    ///
    /// [`Mechanism::Nash`] is found by bisection in `f64` whatever `T` is.
    ///
    /// # Errors
    /// When a parameter does not fit the profile: a dictator that is not there, a phantom outside
    /// [0, 1].
    pub fn outcome<T: Scalar>(&self, profile: &Profile<T>) -> Result<T> {
        self.check(profile.len())?;
        Ok(match self {
            Self::Mean => {
                let weighted = profile.positions().iter().zip(profile.weights());
                let sum = weighted.fold(T::zero(), |s, (x, w)| s + x.clone() * w.clone());
                // Rounding must not leave the range of the reports: unanimity would break.
                let (low, high) = profile.ends();
                (sum / profile.total().clone()).larger(low).smaller(high)
            }
            Self::Midpoint => {
                let (low, high) = profile.ends();
                (low + high) / T::whole(2)
            }
            Self::Nash => number(nash::maximiser(profile))?,
            Self::Dictator(i) => profile.positions()[*i].clone(),
            Self::Constant(c) => number(*c)?,
            Self::UniformPhantom | Self::ConstrainedMedian | Self::Median | Self::Phantoms(_) => {
                self.phantom_outcome(profile)?
            }
        })
    }

    /// `y = max(α(0), max_k min(x_(k), α(s_k)))`, where `s_k` is the share of the agents at `x_(k)`
    /// or above: the median of reports and phantoms `α(0/n), …, α(n/n)`, for any weights.
    fn phantom_outcome<T: Scalar>(&self, profile: &Profile<T>) -> Result<T> {
        let alpha = self.levels(profile)?;
        let shares = profile.upper_shares();
        Ok(shares.into_iter().fold(T::zero(), |y, (x, s)| y.larger(x.smaller(alpha(&s)))))
    }

    /// The level `α(s)` that a coalition of share `s` can force the point up to.
    fn levels<T: Scalar>(&self, profile: &Profile<T>) -> Result<Box<dyn Fn(&T) -> T>> {
        let half = T::ratio(1, 2);
        let full = |s: &T| !T::one().exceeds(s);
        Ok(match self {
            Self::ConstrainedMedian => {
                let mut shares = (0..profile.len()).map(|i| profile.share(i));
                let first = shares.next().unwrap_or_else(T::one);
                let heaviest = shares.fold(first, T::larger);
                let band = heaviest.clone().smaller(T::one() - heaviest);
                Box::new(move |s| match () {
                    () if full(s) => T::one(),
                    () if s.exceeds(&half) => T::one() - band.clone(),
                    () => band.clone(),
                })
            }
            Self::Median => Box::new(move |s| if s.exceeds(&half) { T::one() } else { T::zero() }),
            Self::Phantoms(given) => {
                let points = given.iter().map(|&p| number(p)).collect::<Result<Vec<T>>>()?;
                let parts = T::whole(points.len() + 1);
                Box::new(move |s| {
                    if full(s) {
                        return T::one();
                    }
                    // Phantom j is what more than (j − 1) of the parts can force.
                    let forced = s.clone() * parts.clone();
                    let below = |j: usize| forced.exceeds(&T::whole(j));
                    let j = (0..points.len()).take_while(|&j| below(j)).count();
                    j.checked_sub(1).map_or_else(T::zero, |j| points[j].clone())
                })
            }
            _ => Box::new(T::clone),
        })
    }

    /// The phantoms that stand beside `n` equal agents, without 0 and 1; empty for a mechanism that
    /// has none.
    ///
    /// # Errors
    /// As [`outcome`](Self::outcome).
    pub fn phantoms<T: Scalar>(&self, profile: &Profile<T>) -> Result<Vec<T>> {
        self.check(profile.len())?;
        if !self.is_strategyproof() || matches!(self, Self::Dictator(_) | Self::Constant(_)) {
            return Ok(Vec::new());
        }
        let alpha = self.levels(profile)?;
        let n = profile.len();
        Ok((1..n).map(|j| alpha(&T::ratio(j, n))).collect())
    }

    /// Whether no agent can ever gain by a false report. (Those here that are not are manipulable.)
    pub fn is_strategyproof(&self) -> bool {
        !matches!(self, Self::Mean | Self::Midpoint | Self::Nash)
    }

    /// Whether the parameters fit a profile of `n` agents.
    fn check(&self, n: usize) -> Result<()> {
        let outside = |name: String, p: f64| {
            Err(Error::config(name, format!("{p} is not in 0 to 1; give a point of the range")))
        };
        match self {
            Self::Dictator(i) if *i >= n => Err(Error::config(
                "dictator",
                format!("there is no agent {i}; agents are 0 to {}", n.saturating_sub(1)),
            )),
            Self::Constant(c) if !in_unit(c) => outside("constant".into(), *c),
            Self::Phantoms(p) => {
                if let Some(bad) = p.iter().find(|p| !in_unit(*p)) {
                    return outside("phantoms".into(), *bad);
                }
                if let Some(pair) = p.windows(2).find(|pair| pair[1] < pair[0]) {
                    let reason = format!("{} stands after {}; sort them", pair[1], pair[0]);
                    return Err(Error::config("phantoms", reason));
                }
                if p.is_empty() {
                    return Err(Error::config("phantoms", "there are none; give at least one"));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

fn number<T: Scalar>(value: f64) -> Result<T> {
    // What a person wrote as 0.2 is meant as 1/5, not as the double next to it.
    T::parse(&value.to_string())
        .or_else(|| T::from_f64(value))
        .ok_or_else(|| Error::config("mechanism", format!("{value} is not a finite number")))
}

impl fmt::Display for Mechanism {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UniformPhantom => f.write_str("uniform-phantom"),
            Self::ConstrainedMedian => f.write_str("constrained-median"),
            Self::Median => f.write_str("median"),
            Self::Mean => f.write_str("mean"),
            Self::Midpoint => f.write_str("midpoint"),
            Self::Nash => f.write_str("nash"),
            Self::Dictator(i) => write!(f, "dictator:{i}"),
            Self::Constant(c) => write!(f, "constant:{c}"),
            Self::Phantoms(p) => {
                let words: Vec<String> = p.iter().map(f64::to_string).collect();
                write!(f, "phantoms:{}", words.join(","))
            }
        }
    }
}

impl FromStr for Mechanism {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            let reason = format!("`{text}` is no mechanism; there are {}", Self::NAMES);
            Error::config("mechanism", reason)
        };
        let (name, rest) = text.split_once(':').map_or((text, None), |(n, r)| (n, Some(r)));
        let number = |t: &str| <f64 as Scalar>::parse(t).ok_or_else(wrong);
        match (name, rest) {
            ("phantoms", Some(list)) => {
                Ok(Self::Phantoms(list.split(',').map(number).collect::<Result<_>>()?))
            }
            ("constant", Some(point)) => Ok(Self::Constant(number(point)?)),
            ("constant", None) => Ok(Self::Constant(0.5)),
            ("dictator", Some(agent)) => Ok(Self::Dictator(agent.parse().map_err(|_| wrong())?)),
            ("average", None) => Ok(Self::Mean),
            (name, None) => {
                let known = Self::PLAIN.into_iter().find(|m| m.to_string() == name);
                known.ok_or_else(wrong)
            }
            _ => Err(wrong()),
        }
    }
}

impl TryFrom<String> for Mechanism {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Mechanism> for String {
    fn from(mechanism: Mechanism) -> Self {
        mechanism.to_string()
    }
}
