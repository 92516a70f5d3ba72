//! Continuous greedy with pipage rounding (Calinescu, Chekuri, Pál, Vondrák 2011): `1 − 1/e` of the
//! best under bounds, where the plain greedy is sure of one half.
//!
//! The multilinear extension `F(x) = E f(R)`, `R` holding item `c` with probability `x_c`, has a
//! closed form where only the best item of a ballot counts: with the items from best to worst,
//! `F_v(x) = Σ_c u_vc x_c Π_{b better}(1 − x_b)`, so nothing is sampled.

use super::select::{Selection, Solver, Ties};
use super::{Bounds, ScoreFn, Scored};
use crate::{Error, Result};

/// Steps from 0 to a point of the polytope of bounds.
const STEPS: usize = 100;

/// Closer to 0 or 1 than this is there.
const EDGE: f64 = 1e-9;

/// Chooses `k` items within bounds on disjoint groups.
///
/// # Errors
/// When `k` or the bounds cannot be met, groups overlap, or more than the best item of a ballot
/// counts.
pub fn solve(scored: &Scored, k: usize, bounds: &Bounds) -> Result<Selection> {
    let m = scored.items();
    bounds.check(m, k)?;
    let refuse = |why: &str| {
        Err(Error::config("solver", format!("`continuous-greedy` {why}; use greedy or exact")))
    };
    if scored.slots().len() != 1 {
        return refuse("needs a score in which only the best item counts, such as cc");
    }
    if !bounds.is_disjoint() {
        return refuse("needs groups that do not overlap");
    }
    let extension = Extension::new(scored);
    let all: Vec<usize> = (0..m).collect();
    let mut x = vec![0.; m];
    for _ in 0..STEPS {
        let Some((_, direction)) = bounds.best(&extension.gradient(&x), &[], &all, k) else {
            return Err(Error::config("bounds", "cannot be met"));
        };
        direction.into_iter().for_each(|c| x[c] += 1. / STEPS as f64);
    }
    extension.round(&mut x, bounds);
    let subset: Vec<usize> = (0..m).filter(|&c| x[c] > 0.5).collect();
    if subset.len() != k || !bounds.admits(&subset) {
        return Err(Error::config("bounds", "were lost in rounding; use greedy or exact"));
    }
    Ok(Selection {
        order: scored.order(&subset),
        score: scored.of(&subset),
        solver: Solver::ContinuousGreedy,
        optimal: false,
        bound: f64::INFINITY,
        ties: Ties::default(),
        subset,
    })
}

/// The multilinear extension of a score.
struct Extension<'a> {
    scored: &'a Scored,
    /// Items of each ballot, best first.
    orders: Vec<Vec<usize>>,
}

impl<'a> Extension<'a> {
    fn new(scored: &'a Scored) -> Self {
        let order = |v: usize| {
            let mut order: Vec<usize> = (0..scored.items()).collect();
            let value = |c: usize| scored.column(c)[v];
            order.sort_by(|&a, &b| value(b).total_cmp(&value(a)).then(a.cmp(&b)));
            order
        };
        Self { scored, orders: (0..scored.ballots()).map(order).collect() }
    }

    fn value(&self, x: &[f64]) -> f64 {
        let ballot = |(v, order): (usize, &Vec<usize>)| {
            let best =
                |below: f64, &c: &usize| x[c] * self.scored.column(c)[v] + (1. - x[c]) * below;
            self.scored.weights()[v] * order.iter().rev().fold(0., best)
        };
        self.scored.slots()[0] * self.orders.iter().enumerate().map(ballot).sum::<f64>()
    }

    /// `∂F/∂x_c = F(x with x_c = 1) − F(x with x_c = 0)`.
    fn gradient(&self, x: &[f64]) -> Vec<f64> {
        let mut gradient = vec![0.; x.len()];
        let mut below = vec![0.; x.len()];
        for (v, order) in self.orders.iter().enumerate() {
            let mut worth = 0.;
            for (p, &c) in order.iter().enumerate().rev() {
                below[p] = worth;
                worth = x[c] * self.scored.column(c)[v] + (1. - x[c]) * worth;
            }
            let mut none_better = self.scored.weights()[v];
            for (p, &c) in order.iter().enumerate() {
                gradient[c] += none_better * (self.scored.column(c)[v] - below[p]);
                none_better *= 1. - x[c];
            }
        }
        gradient
    }

    /// Shifts weight between two fractional items, of one group while there are two, to the end
    /// where `F` is larger: it is convex along such a line, so it never falls.
    fn round(&self, x: &mut [f64], bounds: &Bounds) {
        let mut group = vec![usize::MAX; x.len()];
        for (g, members) in bounds.groups().iter().enumerate() {
            members.members.iter().for_each(|&c| group[c] = g);
        }
        // Every shift makes one item whole.
        for _ in 0..x.len() {
            let open: Vec<usize> =
                (0..x.len()).filter(|&c| x[c] > EDGE && x[c] < 1. - EDGE).collect();
            let pairs = open
                .iter()
                .enumerate()
                .flat_map(|(p, &i)| open[p + 1..].iter().map(move |&j| (i, j)));
            let mut pairs = pairs.peekable();
            let first = pairs.peek().copied();
            let Some((i, j)) = pairs.find(|&(i, j)| group[i] == group[j]).or(first) else { break };
            let shifted = |to_i: f64| {
                let mut moved = x.to_vec();
                (moved[i], moved[j]) = (x[i] + to_i, x[j] - to_i);
                moved
            };
            let up = shifted((1. - x[i]).min(x[j]));
            let down = shifted(-x[i].min(1. - x[j]));
            x.copy_from_slice(if self.value(&up) >= self.value(&down) { &up } else { &down });
        }
    }
}
