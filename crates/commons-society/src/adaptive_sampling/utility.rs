//! What a stakeholder makes of the groups' performances.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A utility of performances, increasing in each.
pub trait Utility {
    /// The utility of `performance`, weighed by `weights` that sum to 1.
    fn value(&self, performance: &[f64], weights: &[f64]) -> f64;
}

/// The utilities that plans are made for.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub enum Goal {
    /// `Σ w·perf`.
    #[default]
    Utilitarian,
    /// The worst-off group (Rawls).
    MaxMin,
    /// `(Σ w·perf^ρ)^(1/ρ)`, ρ ≤ 1; 0 is the weighted geometric mean.
    Ces(f64),
    /// Mean less κ times how far the worst-off group is below it, 0 ≤ κ ≤ 1.
    Gap(f64),
}

impl Utility for Goal {
    fn value(&self, performance: &[f64], weights: &[f64]) -> f64 {
        let mean = |of: &dyn Fn(f64) -> f64| {
            performance.iter().zip(weights).map(|(p, w)| w * of(*p)).sum::<f64>()
        };
        let worst = performance.iter().copied().fold(f64::INFINITY, f64::min);
        match *self {
            Self::Utilitarian => mean(&|p| p),
            Self::MaxMin => worst,
            Self::Ces(0.) => mean(&f64::ln).exp(),
            // A group without performance has none to trade.
            Self::Ces(rho) if worst <= 0. && rho < 1. => worst.min(0.),
            Self::Ces(rho) => mean(&|p| p.powf(rho)).powf(1. / rho),
            Self::Gap(kappa) => (1. - kappa) * mean(&|p| p) + kappa * worst,
        }
    }
}

impl FromStr for Goal {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |why: String| Error::config("utility", format!("`{text}` {why}"));
        let (name, number) = match text.split_once(':') {
            None => (text, None),
            Some((name, number)) => {
                let value = number.parse::<f64>().ok().filter(|v| v.is_finite());
                let value =
                    value.ok_or_else(|| wrong("has no finite number after the colon".into()))?;
                (name, Some(value))
            }
        };
        match (name, number) {
            ("utilitarian", None) => Ok(Self::Utilitarian),
            ("maxmin", None) => Ok(Self::MaxMin),
            ("ces", Some(rho)) if rho <= 1. => Ok(Self::Ces(rho)),
            ("ces", Some(_)) => {
                Err(wrong("has ρ above 1, where inequality would be sought".into()))
            }
            ("gap", Some(kappa)) if (0. ..=1.).contains(&kappa) => Ok(Self::Gap(kappa)),
            ("gap", Some(_)) => Err(wrong("has κ outside 0 to 1".into())),
            _ => Err(wrong("is none of utilitarian, maxmin, ces:RHO, gap:KAPPA".into())),
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Utilitarian => f.write_str("utilitarian"),
            Self::MaxMin => f.write_str("maxmin"),
            Self::Ces(rho) => write!(f, "ces:{rho}"),
            Self::Gap(kappa) => write!(f, "gap:{kappa}"),
        }
    }
}

impl TryFrom<String> for Goal {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Goal> for String {
    fn from(goal: Goal) -> Self {
        goal.to_string()
    }
}
