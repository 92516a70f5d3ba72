//! The solvers: best single items, greedy, exact.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::exact::{self, Limits};
use super::score::State;
use super::{Bounds, Rankings, Score, ScoreFn, Scored};
use super::{continuous, milp};
use crate::{Error, Result};

/// How a subset is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Solver {
    /// Exact for modular scores by sorting, greedy for others.
    #[default]
    Auto,
    /// The best items by themselves: exact for modular scores.
    Top,
    /// The item that adds most, again and again: within `1 − 1/e` of the best without bounds and
    /// within 1/2 with them.
    Greedy,
    /// Branch and bound: the best, and all that are as good.
    Exact,
    /// A mixed-integer linear program: the best, without those that are as good. Slower than
    /// `Exact`, whose result it can confirm.
    Milp,
    /// Greedy on the multilinear extension, then rounded: within `1 − 1/e` of the best with bounds
    /// on disjoint groups too. Only for scores where the best item counts, as Chamberlin–Courant.
    ContinuousGreedy,
}

/// A chosen subset.
#[derive(Debug, Clone, PartialEq)]
pub struct Selection {
    /// Items in increasing order of index.
    pub subset: Vec<usize>,
    /// Items in the order they were chosen: by value, or by what they added.
    pub order: Vec<usize>,
    /// `F(S)`.
    pub score: f64,
    /// What found it.
    pub solver: Solver,
    /// Whether no subset can be better.
    pub optimal: bool,
    /// No subset is better than this; equals the score if it is optimal.
    pub bound: f64,
    /// Where the choice was between equals.
    pub ties: Ties,
}

/// Choices between equals. The lowest index won them all.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Ties {
    /// Steps (from 1) at which other items would have done as well, with all the items that would:
    /// for sorted items the step that passed the cut-off.
    pub steps: Vec<TiedStep>,
    /// All best subsets that were found, if the solver looks for them.
    pub committees: Vec<Vec<usize>>,
    /// Whether those are all.
    pub complete: bool,
}

/// A step at which several items were equal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TiedStep {
    /// Items chosen before it, and this one.
    pub step: usize,
    /// The equal items, the chosen ones first.
    pub items: Vec<usize>,
}

impl Ties {
    /// Whether the choice was open anywhere.
    pub fn any(&self) -> bool {
        !self.steps.is_empty() || self.committees.len() > 1
    }
}

/// Chooses `k` items.
///
/// # Errors
/// When `k` or the bounds cannot be met, the score does not fit the ballots, or the solver does not
/// fit the score.
pub fn select(
    rankings: &Rankings,
    score: &Score,
    k: usize,
    bounds: &Bounds,
    solver: Solver,
) -> Result<Selection> {
    select_within(rankings, score, k, bounds, solver, Limits::default())
}

/// As [`select`], with limits for the exact solver.
///
/// # Errors
/// As [`select`], and on [`Limits::stop`].
pub fn select_within(
    rankings: &Rankings,
    score: &Score,
    k: usize,
    bounds: &Bounds,
    solver: Solver,
    limits: Limits<'_>,
) -> Result<Selection> {
    score.check(rankings)?;
    bounds.check(rankings.items(), k)?;
    match solver {
        Solver::Auto | Solver::Top if score.is_modular() => {
            top(&score.singles(rankings, k)?, k, bounds)
        }
        Solver::Top => Err(Error::config(
            "solver",
            format!("`top` would ignore how items of `{score}` overlap; use greedy or exact"),
        )),
        Solver::Auto | Solver::Greedy => greedy_scored(&score.matrix(rankings, k)?, k, bounds),
        Solver::Exact if score.is_modular() && bounds.groups().is_empty() => {
            exact::sorted(&score.singles(rankings, k)?, k, limits)
        }
        Solver::Exact => exact::solve(&score.matrix(rankings, k)?, k, bounds, limits),
        Solver::Milp => milp::solve(&score.matrix(rankings, k)?, k, bounds),
        Solver::ContinuousGreedy => continuous::solve(&score.matrix(rankings, k)?, k, bounds),
    }
}

/// The `k` items of greatest `values` within the bounds: exact for modular scores.
///
/// # Errors
/// When the bounds cannot be met.
pub fn top(values: &[f64], k: usize, bounds: &Bounds) -> Result<Selection> {
    let all: Vec<usize> = (0..values.len()).collect();
    let Some((score, mut order)) = bounds.best(values, &[], &all, k) else {
        bounds.check(values.len(), k)?;
        return Err(Error::config("bounds", "cannot be met"));
    };
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]).then(a.cmp(&b)));
    let mut subset = order.clone();
    subset.sort_unstable();
    let ties = cut_off(values, &subset, bounds);
    let solver = Solver::Top;
    Ok(Selection { subset, order, score, solver, optimal: true, bound: score, ties })
}

/// Items outside that could take the place of an equal one inside: the tied cut-off.
fn cut_off(values: &[f64], subset: &[usize], bounds: &Bounds) -> Ties {
    let inside = |c: usize| subset.binary_search(&c).is_ok();
    let mut ties = Ties { complete: true, ..Ties::default() };
    let mut levels: Vec<f64> = subset.iter().map(|&c| values[c]).collect();
    levels.sort_by(|a, b| b.total_cmp(a));
    levels.dedup();
    for level in levels {
        let equal = |&c: &usize| same(values[c], level);
        let chosen: Vec<usize> = subset.iter().copied().filter(equal).collect();
        let swaps = |out: usize| {
            chosen.iter().any(|&c| {
                let swapped: Vec<usize> =
                    subset.iter().map(|&s| if s == c { out } else { s }).collect();
                bounds.admits(&swapped)
            })
        };
        let others: Vec<usize> =
            (0..values.len()).filter(|c| equal(c) && !inside(*c) && swaps(*c)).collect();
        if !others.is_empty() {
            let above = subset.iter().filter(|&&c| values[c] > level && !same(values[c], level));
            let step = above.count() + chosen.len();
            ties.steps.push(TiedStep { step, items: [chosen, others].concat() });
        }
    }
    ties
}

/// Equal but for rounding.
pub(super) fn same(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * a.abs().max(b.abs()).max(1.)
}

/// As [`greedy`], for functions whose marginals only fall: one that was computed for a smaller
/// subset is a bound, and is computed anew only where it could still be the greatest.
///
/// # Errors
/// As [`greedy`].
pub fn greedy_scored(scored: &Scored, k: usize, bounds: &Bounds) -> Result<Selection> {
    let mut state = State::new(scored);
    let mut steps = Steps::new(scored.items(), k, bounds)?;
    // Gain of every item, and the size of the subset it was computed for.
    let mut gains: Vec<(f64, usize)> =
        (0..scored.items()).map(|c| (state.marginal(scored, c), 0)).collect();
    while steps.order.len() < k {
        let size = steps.order.len();
        let fresh = |c: usize, gains: &mut Vec<(f64, usize)>| {
            if gains[c].1 < size {
                gains[c] = (state.marginal(scored, c), size);
            }
            gains[c].0
        };
        let mut barred: Vec<usize> = Vec::new();
        let best = loop {
            let open = steps.free.iter().copied().filter(|c| !barred.contains(c));
            let Some(c) = open.reduce(|a, b| if gains[b].0 > gains[a].0 { b } else { a }) else {
                return Err(Error::config("bounds", "cannot be met"));
            };
            if gains[c].1 < size {
                fresh(c, &mut gains);
            } else if steps.fits(c) {
                break gains[c].0;
            } else {
                barred.push(c);
            }
        };
        let near = |c: &usize| gains[*c].0 >= best || same(gains[*c].0, best);
        let near: Vec<usize> = steps.free.iter().copied().filter(near).collect();
        let equal = |c: &usize| same(fresh(*c, &mut gains), best) && steps.fits(*c);
        let equal: Vec<usize> = near.into_iter().filter(equal).collect();
        state.take(scored, steps.take(best, equal));
    }
    Ok(steps.finish())
}

/// Greedy selection by any score function.
///
/// An item is taken only if the bounds can still be met after it, which for overlapping groups a
/// partition matroid could not say.
///
/// # Errors
/// When `k` or the bounds cannot be met.
pub fn greedy(score: &impl ScoreFn, k: usize, bounds: &Bounds) -> Result<Selection> {
    let mut steps = Steps::new(score.items(), k, bounds)?;
    while steps.order.len() < k {
        let gain = |&c: &usize| (score.marginal(&steps.order, c), c);
        let mut gains: Vec<(f64, usize)> = steps.free.iter().map(gain).collect();
        gains.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let Some(&(best, _)) = gains.iter().find(|(_, c)| steps.fits(*c)) else {
            return Err(Error::config("bounds", "cannot be met"));
        };
        let equal = gains.iter().filter(|(g, c)| same(*g, best) && steps.fits(*c));
        let mut equal: Vec<usize> = equal.map(|&(_, c)| c).collect();
        // Rounding may have put a later item before an earlier one of the same gain.
        equal.sort_unstable();
        steps.take(best, equal);
    }
    Ok(steps.finish())
}

/// What a greedy selection has chosen so far.
struct Steps<'a> {
    k: usize,
    bounds: &'a Bounds,
    order: Vec<usize>,
    /// In increasing order.
    free: Vec<usize>,
    score: f64,
    ties: Ties,
}

impl<'a> Steps<'a> {
    fn new(m: usize, k: usize, bounds: &'a Bounds) -> Result<Self> {
        bounds.check(m, k)?;
        let (order, free, ties) = (Vec::with_capacity(k), (0..m).collect(), Ties::default());
        Ok(Self { k, bounds, order, free, score: 0., ties })
    }

    /// Whether the bounds can still be met after `c`.
    fn fits(&self, c: usize) -> bool {
        if self.bounds.groups().is_empty() {
            return true;
        }
        let inside = [&self.order[..], &[c]].concat();
        let rest: Vec<usize> = self.free.iter().copied().filter(|&f| f != c).collect();
        self.bounds.completable(&inside, &rest, self.k)
    }

    /// Takes the first of the `equal` items, each of which gains `gain`.
    fn take(&mut self, gain: f64, equal: Vec<usize>) -> usize {
        let chosen = equal[0];
        self.score += gain;
        self.free.retain(|&c| c != chosen);
        self.order.push(chosen);
        if equal.len() > 1 {
            self.ties.steps.push(TiedStep { step: self.order.len(), items: equal });
        }
        chosen
    }

    fn finish(self) -> Selection {
        let Self { order, score, ties, .. } = self;
        let mut subset = order.clone();
        subset.sort_unstable();
        let bound = f64::INFINITY;
        Selection { subset, order, score, solver: Solver::Greedy, optimal: false, bound, ties }
    }
}
