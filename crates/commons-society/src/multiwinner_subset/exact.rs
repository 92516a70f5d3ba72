//! The best subset by branch and bound, and all subsets that are as good.
//!
//! Two bounds prune. *Marginals*: by submodularity `F(S ∪ T) ≤ F(S) + Σ_{c ∈ T} F(c | S)`, largest
//! over the admissible `T`. *Lagrangian*: on ballot `v` each slot `j` of the OWA (only one for
//! Chamberlin–Courant) is filled by at most one item; with a price `λ_vj ≥ 0` on filling it,
//! `F(S) ≤ Σ_v w_v Σ_j λ_vj + Σ_{c ∈ S} ρ_c`,
//! `ρ_c = Σ_v w_v max(0, max_j(o_j u_vc − λ_vj))`. Subgradient steps lower it to the bound of the
//! linear program, which for this problem (a `k`-median) is mostly tight.

use std::sync::atomic::{AtomicBool, Ordering};

use super::score::State;
use super::select::{Selection, Solver, Ties, greedy_scored, same, top};
use super::{Bounds, ScoreFn, Scored};
use crate::{Error, Result};

/// How much work and how many equals.
#[derive(Debug, Clone, Copy)]
pub struct Limits<'a> {
    /// Nodes looked at before the best so far is returned as not proven.
    pub nodes: u64,
    /// Equally good subsets kept; further ones are not looked for.
    pub ties: usize,
    /// Set when the work should end with [`Error::Interrupted`].
    pub stop: Option<&'a AtomicBool>,
}

impl Default for Limits<'_> {
    fn default() -> Self {
        Self { nodes: 20_000_000, ties: 200, stop: None }
    }
}

/// Subgradient steps at the root and at each later node.
const ROOT_STEPS: usize = 300;
const NODE_STEPS: usize = 12;

/// Fewest items left open for which the Lagrangian bound is worth its price.
const WORTH_PRICES: usize = 12;

/// The best subset of `k` items within the bounds.
///
/// # Errors
/// When `k` or the bounds cannot be met, or on [`Limits::stop`].
pub fn solve(scored: &Scored, k: usize, bounds: &Bounds, limits: Limits<'_>) -> Result<Selection> {
    let m = scored.items();
    bounds.check(m, k)?;
    let start = greedy_scored(scored, k, bounds)?;
    let start = improve(scored, bounds, start.subset);
    let mut search = Search::new(scored, k, bounds, limits, start);
    let mut prices = Prices::new(scored);
    let free: Vec<usize> = (0..m).collect();
    let root = if m > WORTH_PRICES {
        search.tighten(&mut prices, &[], &free, ROOT_STEPS)
    } else {
        f64::INFINITY
    };
    let free = search.fix(&prices, free);
    let state = State::new(scored);
    search.visit(&mut Vec::new(), &state, 0., free, &prices)?;
    Ok(search.finish(root))
}

/// As [`solve`] for a score that is the sum of `values` over the items, without bounds: the items
/// above the cut-off, with every choice among those on it.
///
/// # Errors
/// When `k` cannot be met.
pub fn sorted(values: &[f64], k: usize, limits: Limits<'_>) -> Result<Selection> {
    let chosen = top(values, k, &Bounds::none(values.len()))?;
    let cut = chosen.order.last().map_or(0., |&c| values[c]);
    let tied: Vec<usize> = (0..values.len()).filter(|&c| same(values[c], cut)).collect();
    let above: Vec<usize> =
        chosen.subset.iter().copied().filter(|&c| !same(values[c], cut)).collect();
    let mut committees = Vec::new();
    let complete = combinations(&tied, k - above.len(), limits.ties, |some| {
        let mut subset = [&above[..], some].concat();
        subset.sort_unstable();
        committees.push(subset);
    });
    committees.sort();
    let ties = Ties { steps: Vec::new(), committees, complete };
    Ok(Selection { solver: Solver::Exact, ties, ..chosen })
}

/// Calls `each` with the ways to choose `r` of `items`, in lexicographic order and at most `most`
/// times; whether those were all.
fn combinations(items: &[usize], r: usize, most: usize, mut each: impl FnMut(&[usize])) -> bool {
    let mut at: Vec<usize> = (0..r).collect();
    for _ in 0..most.max(1) {
        each(&at.iter().map(|&i| items[i]).collect::<Vec<_>>());
        let Some(turn) = (0..r).rev().find(|&i| at[i] < items.len() - r + i) else { return true };
        at[turn] += 1;
        (turn + 1..r).for_each(|i| at[i] = at[i - 1] + 1);
    }
    false
}

/// Exchanges one item for another while that helps.
fn improve(scored: &Scored, bounds: &Bounds, mut subset: Vec<usize>) -> Vec<usize> {
    let mut score = scored.of(&subset);
    for _ in 0..20 {
        let mut better = None;
        for at in 0..subset.len() {
            let mut state = State::new(scored);
            let rest: Vec<usize> = subset.iter().copied().filter(|&c| c != subset[at]).collect();
            let base: f64 = rest.iter().map(|&c| state.add(scored, c)).sum();
            for c in (0..scored.items()).filter(|c| !subset.contains(c)) {
                let mut swapped = rest.clone();
                swapped.push(c);
                let value = base + state.marginal(scored, c);
                if value > score + slack(score) && bounds.admits(&swapped) {
                    (score, better) = (value, Some(swapped));
                }
            }
        }
        let Some(found) = better else { break };
        subset = found;
    }
    subset.sort_unstable();
    subset
}

/// What rounding may do to a score.
fn slack(score: f64) -> f64 {
    1e-9 * score.abs().max(1.)
}

struct Search<'a> {
    scored: &'a Scored,
    k: usize,
    bounds: &'a Bounds,
    limits: Limits<'a>,
    best: f64,
    committees: Vec<Vec<usize>>,
    /// Whether all equals were kept.
    complete: bool,
    nodes: u64,
    exhausted: bool,
}

impl<'a> Search<'a> {
    fn new(
        scored: &'a Scored,
        k: usize,
        bounds: &'a Bounds,
        limits: Limits<'a>,
        start: Vec<usize>,
    ) -> Self {
        let best = scored.of(&start);
        Self {
            scored,
            k,
            bounds,
            limits,
            best,
            committees: vec![start],
            complete: true,
            nodes: 0,
            exhausted: false,
        }
    }

    /// Whether a part of the tree that promises at most `bound` need not be looked at.
    fn prunes(&self, bound: f64) -> bool {
        match self.complete {
            // Equals are still wanted.
            true => bound < self.best - slack(self.best),
            false => bound <= self.best + slack(self.best),
        }
    }

    fn offer(&mut self, subset: &[usize], score: f64) {
        let slack = slack(self.best);
        if score < self.best - slack {
            return;
        }
        let mut subset = subset.to_vec();
        subset.sort_unstable();
        if score > self.best + slack {
            self.best = score;
            self.committees.clear();
            self.complete = true;
        }
        if self.committees.contains(&subset) {
            return;
        }
        if self.committees.len() >= self.limits.ties {
            self.complete = false;
            return;
        }
        self.committees.push(subset);
    }

    /// Lowers the Lagrangian bound over subsets that hold `inside` and otherwise items of `free`.
    fn tighten(&self, prices: &mut Prices, inside: &[usize], free: &[usize], steps: usize) -> f64 {
        let mut lowest = f64::INFINITY;
        let mut kept = prices.clone();
        let mut pace = 1.;
        let mut since = 0;
        for _ in 0..steps {
            let worth = prices.worth(self.scored, inside, free);
            let Some((sum, added)) = self.bounds.best(&worth, inside, free, self.k) else {
                return f64::NEG_INFINITY;
            };
            let bound = prices.total(self.scored) + sum;
            if bound < lowest - slack(lowest.min(1e300)) {
                (lowest, since) = (bound, 0);
                kept.clone_from(prices);
            } else {
                since += 1;
                if since >= 6 {
                    (pace, since) = (0.6 * pace, 0);
                    prices.clone_from(&kept);
                }
            }
            if self.prunes(lowest) || pace < 1e-3 {
                break;
            }
            let chosen: Vec<usize> = inside.iter().copied().chain(added).collect();
            if !prices.step(self.scored, &chosen, pace, bound - self.best) {
                break;
            }
        }
        *prices = kept;
        lowest
    }

    /// Drops items that no subset worth looking at holds.
    fn fix(&self, prices: &Prices, free: Vec<usize>) -> Vec<usize> {
        if free.len() <= WORTH_PRICES {
            return free;
        }
        let worth = prices.worth(self.scored, &[], &free);
        let total = prices.total(self.scored);
        let keeps = |&c: &usize| {
            let rest: Vec<usize> = free.iter().copied().filter(|&f| f != c).collect();
            let found = self.bounds.best(&worth, &[c], &rest, self.k);
            found.is_some_and(|(sum, _)| !self.prunes(total + sum))
        };
        free.iter().copied().filter(keeps).collect()
    }

    fn visit(
        &mut self,
        inside: &mut Vec<usize>,
        state: &State,
        score: f64,
        free: Vec<usize>,
        prices: &Prices,
    ) -> Result<()> {
        self.nodes += 1;
        if self.nodes >= self.limits.nodes {
            self.exhausted = true;
            return Ok(());
        }
        if self.limits.stop.is_some_and(|s| s.load(Ordering::Relaxed)) {
            return Err(Error::Interrupted);
        }
        let left = self.k - inside.len();
        if left == 0 {
            if self.bounds.admits(inside) {
                self.offer(inside, score);
            }
            return Ok(());
        }
        let mut gains = vec![0.; self.scored.items()];
        for &c in &free {
            gains[c] = state.marginal(self.scored, c);
        }
        let mut free = free;
        free.sort_by(|&a, &b| gains[b].total_cmp(&gains[a]).then(a.cmp(&b)));
        let mut prices = prices.clone();
        let priced = left > 1 && free.len() > WORTH_PRICES;
        if priced && !inside.is_empty() {
            let bound = self.tighten(&mut prices, inside, &free, NODE_STEPS);
            if self.prunes(bound) {
                return Ok(());
            }
        }
        for at in 0..free.len() {
            // The items before `at` are excluded from here on.
            let open = &free[at..];
            let Some((sum, _)) = self.bounds.best(&gains, inside, open, self.k) else { break };
            let taken: f64 = inside.iter().map(|&c| gains[c]).sum();
            if self.prunes(score + sum - taken) {
                break;
            }
            if priced && at > 0 && self.prunes(self.tighten(&mut prices, inside, open, NODE_STEPS))
            {
                break;
            }
            let mut state = state.clone();
            let gain = state.add(self.scored, free[at]);
            inside.push(free[at]);
            self.visit(inside, &state, score + gain, free[at + 1..].to_vec(), &prices)?;
            inside.pop();
            if self.exhausted {
                break;
            }
        }
        Ok(())
    }

    fn finish(mut self, root: f64) -> Selection {
        self.committees.sort();
        let subset = self.committees.first().cloned().unwrap_or_default();
        let order = self.scored.order(&subset);
        let optimal = !self.exhausted;
        Selection {
            order,
            score: self.best,
            solver: Solver::Exact,
            optimal,
            bound: if optimal { self.best } else { root },
            ties: Ties {
                steps: Vec::new(),
                complete: optimal && self.complete,
                committees: self.committees,
            },
            subset,
        }
    }
}

/// Prices `λ_vj` of the slots of every ballot.
#[derive(Debug, Clone)]
struct Prices {
    /// `[n, slots]`
    lambda: Vec<f64>,
}

impl Prices {
    fn new(scored: &Scored) -> Self {
        Self { lambda: vec![0.; scored.ballots() * scored.slots().len()] }
    }

    fn total(&self, scored: &Scored) -> f64 {
        let rows = self.lambda.chunks_exact(scored.slots().len());
        rows.zip(scored.weights()).map(|(row, w)| w * row.iter().sum::<f64>()).sum()
    }

    /// `ρ_c` of the items named, 0 for others.
    fn worth(&self, scored: &Scored, inside: &[usize], free: &[usize]) -> Vec<f64> {
        let slots = scored.slots();
        let mut worth = vec![0.; scored.items()];
        for &c in inside.iter().chain(free) {
            let rows = self.lambda.chunks_exact(slots.len());
            let column = scored.column(c).iter().zip(rows).zip(scored.weights());
            worth[c] = column.map(|((u, row), w)| w * gain(slots, row, *u).1).sum();
        }
        worth
    }

    /// A subgradient step towards a bound lower by `gap`; `false` if the prices are optimal.
    fn step(&mut self, scored: &Scored, chosen: &[usize], pace: f64, gap: f64) -> bool {
        let slots = scored.slots();
        let mut slope: Vec<f64> = vec![1.; self.lambda.len()];
        for &c in chosen {
            let rows = self.lambda.chunks_exact(slots.len());
            for (v, (u, row)) in scored.column(c).iter().zip(rows).enumerate() {
                if let (Some(j), _) = gain(slots, row, *u) {
                    slope[v * slots.len() + j] -= 1.;
                }
            }
        }
        // A price of 0 cannot fall.
        for (s, l) in slope.iter_mut().zip(&self.lambda) {
            if *l <= 0. && *s > 0. {
                *s = 0.;
            }
        }
        let weight = |v: usize| scored.weights()[v / slots.len()];
        let norm: f64 = slope.iter().enumerate().map(|(v, s)| weight(v) * s * s).sum();
        if norm <= 0. {
            return false;
        }
        let length = pace * gap.max(1e-6) / norm;
        for (l, s) in self.lambda.iter_mut().zip(&slope) {
            *l = (*l - length * s).max(0.);
        }
        true
    }
}

/// The slot in which an item of value `u` is worth most beyond its price, and how much.
fn gain(slots: &[f64], prices: &[f64], u: f64) -> (Option<usize>, f64) {
    let mut best = (None, 0.);
    for (j, (o, l)) in slots.iter().zip(prices).enumerate() {
        let value = o * u - l;
        if value > best.1 {
            best = (Some(j), value);
        }
    }
    best
}
