//! Who wants what: ideal points on [0, 1] with weights.

use super::Scalar;
use crate::{Error, Result};

/// Ideal points of agents on [0, 1], with weights.
///
/// Agents keep the order they came in; a sorted index stands beside them, so that mechanisms and
/// axioms need one pass.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile<T> {
    x: Vec<T>,
    w: Vec<T>,
    /// Agents by position, ties by index.
    order: Vec<usize>,
    total: T,
    equal: bool,
}

/// All agents at one location.
#[derive(Debug, Clone, PartialEq)]
pub struct Cluster<T> {
    /// Lowest position in it.
    pub low: T,
    /// Highest position in it: [`low`](Self::low), but for rounding.
    pub high: T,
    /// Their part of the whole weight.
    pub share: T,
    /// Places in [`Profile::order`].
    pub members: std::ops::Range<usize>,
}

impl<T: Scalar> Profile<T> {
    /// Agents with equal weights.
    ///
    /// # Errors
    /// When there are none, or a position is not in [0, 1].
    pub fn new(x: Vec<T>) -> Result<Self> {
        let w = vec![T::one(); x.len()];
        Self::weighted(x, w)
    }

    /// Agents with weights of their own; only their ratios matter.
    ///
    /// # Errors
    /// As [`new`](Self::new), and when a weight is not above 0 or there is not one for each agent.
    pub fn weighted(x: Vec<T>, w: Vec<T>) -> Result<Self> {
        if x.is_empty() {
            return Err(Error::config("positions", "there are none; give at least one agent"));
        }
        if x.len() != w.len() {
            return Err(Error::config(
                "weights",
                format!("there are {} for {} agents; give one for each", w.len(), x.len()),
            ));
        }
        if let Some((i, v)) = x.iter().enumerate().find(|(_, v)| !in_unit(*v)) {
            return Err(Error::config(
                format!("position of agent {}", i + 1),
                format!("{v} is not in 0 to 1; map your range onto it first"),
            ));
        }
        if let Some((i, v)) = w.iter().enumerate().find(|(_, v)| !(**v > T::zero())) {
            return Err(Error::config(
                format!("weight of agent {}", i + 1),
                format!("{v} is not above 0; remove the agent or give it a weight"),
            ));
        }
        let mut order: Vec<usize> = (0..x.len()).collect();
        order.sort_by(|&a, &b| x[a].order(&x[b]));
        let total = w.iter().cloned().fold(T::zero(), |a, b| a + b);
        let equal = w.iter().all(|v| *v == w[0]);
        Ok(Self { x, w, order, total, equal })
    }

    /// Number of agents, at least 1.
    pub fn len(&self) -> usize {
        self.x.len()
    }

    /// Whether there are no agents: never.
    pub fn is_empty(&self) -> bool {
        self.x.is_empty()
    }

    /// Ideal points, in the order given.
    pub fn positions(&self) -> &[T] {
        &self.x
    }

    /// Weights, in the order given.
    pub fn weights(&self) -> &[T] {
        &self.w
    }

    /// Sum of the weights.
    pub fn total(&self) -> &T {
        &self.total
    }

    /// Whether all weights are the same.
    pub fn is_unweighted(&self) -> bool {
        self.equal
    }

    /// Agents by position.
    pub fn order(&self) -> &[usize] {
        &self.order
    }

    /// Weight of agent `i` as a part of the whole.
    pub fn share(&self, i: usize) -> T {
        if self.equal { T::ratio(1, self.len()) } else { self.w[i].clone() / self.total.clone() }
    }

    /// Part of the whole weight held by a set of `count` agents that together weigh `weight`. With
    /// equal weights it is counted, which does not round.
    fn share_of(&self, count: usize, weight: &T) -> T {
        if self.equal { T::ratio(count, self.len()) } else { weight.clone() / self.total.clone() }
    }

    /// The lowest position, and the highest.
    pub fn ends(&self) -> (T, T) {
        let at = |k: Option<&usize>| k.map_or_else(T::zero, |&i| self.x[i].clone());
        (at(self.order.first()), at(self.order.last()))
    }

    /// For each agent in sorted order: its position, and the share of the agents from there on.
    pub fn upper_shares(&self) -> Vec<(T, T)> {
        let n = self.len();
        let mut weight = T::zero();
        let mut shares: Vec<(T, T)> = Vec::with_capacity(n);
        for (k, &i) in self.order.iter().enumerate().rev() {
            weight = weight + self.w[i].clone();
            shares.push((self.x[i].clone(), self.share_of(n - k, &weight)));
        }
        shares.reverse();
        shares
    }

    /// Agents that share a location (within the tolerance), by position.
    pub fn clusters(&self) -> Vec<Cluster<T>> {
        let mut clusters: Vec<Cluster<T>> = Vec::new();
        let mut weight = T::zero();
        for (k, &i) in self.order.iter().enumerate() {
            let x = &self.x[i];
            let joins = clusters.last().is_some_and(|c| !x.exceeds(&c.high));
            weight = if joins { weight + self.w[i].clone() } else { self.w[i].clone() };
            if !joins {
                clusters.push(Cluster {
                    low: x.clone(),
                    high: x.clone(),
                    share: T::zero(),
                    members: k..k,
                });
            }
            if let Some(last) = clusters.last_mut() {
                last.high = x.clone();
                last.members.end = k + 1;
                last.share = self.share_of(last.members.len(), &weight);
            }
        }
        clusters
    }

    /// The same agents, but agent `i` reports `report`.
    pub fn with_report(&self, i: usize, report: T) -> Self {
        let mut changed = self.clone();
        changed.order.retain(|&j| j != i);
        let at = changed.order.partition_point(|&j| self.x[j] < report);
        changed.order.insert(at, i);
        changed.x[i] = report;
        changed
    }

    /// Weighted sum of the distances to `y`: `TC = Σ w_i |x_i − y|`.
    pub fn total_cost(&self, y: &T) -> T {
        let cost = |i: usize| self.w[i].clone() * self.x[i].distance(y);
        (0..self.len()).fold(T::zero(), |sum, i| sum + cost(i))
    }

    /// Weighted sum of the utilities `1 − |x_i − y|`.
    pub fn social_welfare(&self, y: &T) -> T {
        self.total.clone() - self.total_cost(y)
    }
}

/// Whether a number lies in [0, 1]; NaN does not.
pub fn in_unit<T: Scalar>(v: &T) -> bool {
    *v >= T::zero() && *v <= T::one()
}
