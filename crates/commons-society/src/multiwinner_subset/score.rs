//! Score functions: what a subset is worth to a voter.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Rankings;
use crate::{Error, Result};

/// A function of subsets that grows by marginals: what the greedy solver needs of it.
pub trait ScoreFn {
    /// Number of items.
    fn items(&self) -> usize;

    /// `F(S ∪ {c}) − F(S)`.
    fn marginal(&self, subset: &[usize], item: usize) -> f64;
}

/// What one item is worth on a ballot, by its place.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// `m − 1 − place`.
    Borda,
    /// 1 for the first.
    First,
    /// 1 for the first `k`: those of the committee, or a number of one's own.
    Top(Option<usize>),
    /// 1 if approved.
    Approval,
}

/// How the values of a subset add up on a ballot: weights of the best, second best, ….
#[derive(Debug, Clone, PartialEq)]
pub enum Owa {
    /// All count in full.
    Sum,
    /// Only the best counts.
    Best,
    /// 1, 1/2, 1/3, ….
    Harmonic,
    /// Weights of one's own, 0 beyond the last.
    Weights(Vec<f64>),
}

/// A committee scoring function.
///
/// Tied items share their places: each is worth the mean over the places of their block.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Score {
    /// Worth of a single item.
    pub values: Values,
    /// How they add up.
    pub owa: Owa,
}

impl Score {
    /// k-Borda.
    pub const BORDA: Self = Self { values: Values::Borda, owa: Owa::Sum };
    /// Single non-transferable vote.
    pub const SNTV: Self = Self { values: Values::First, owa: Owa::Sum };
    /// k-approval with the committee's k.
    pub const BLOC: Self = Self { values: Values::Top(None), owa: Owa::Sum };
    /// ℓ1 Chamberlin–Courant.
    pub const CC: Self = Self { values: Values::Borda, owa: Owa::Best };

    /// Names that [`FromStr`] reads.
    pub const NAMES: &'static str = "borda, sntv, bloc[:K], cc, owa:harmonic, owa:W,W,…, av, \
         approval-cc, pav, approval-owa:W,W,…";

    /// Whether the score of a subset is the sum over its items.
    pub fn is_modular(&self) -> bool {
        matches!(self.owa, Owa::Sum)
    }

    /// The largest value of a single item, `τ1`, among `m`.
    pub fn largest(&self, m: usize) -> f64 {
        let single = match self.values {
            Values::Borda => m.saturating_sub(1) as f64,
            _ => 1.,
        };
        single * self.slots(1).first().copied().unwrap_or(1.)
    }

    /// Weights of the best `k` values.
    pub fn slots(&self, k: usize) -> Vec<f64> {
        match &self.owa {
            Owa::Sum => vec![1.; k],
            Owa::Best => (0..k).map(|j| f64::from(u8::from(j == 0))).collect(),
            Owa::Harmonic => (0..k).map(|j| 1. / (j + 1) as f64).collect(),
            Owa::Weights(w) => (0..k).map(|j| w.get(j).copied().unwrap_or(0.)).collect(),
        }
    }

    /// `[m]`: sums over place `0..p` of the values, from which a block's mean is taken.
    fn cumulative(&self, m: usize, k: usize) -> Vec<f64> {
        let value = |p: usize| match self.values {
            Values::Borda => (m - 1 - p) as f64,
            Values::First => f64::from(u8::from(p == 0)),
            Values::Top(own) => f64::from(u8::from(p < own.unwrap_or(k))),
            Values::Approval => 0.,
        };
        let mut sums = vec![0.; m + 1];
        for p in 0..m {
            sums[p + 1] = sums[p] + value(p);
        }
        sums
    }

    /// Checks the function against what is to be scored.
    ///
    /// # Errors
    /// When approvals are asked of rankings, or a weight is not usable.
    pub fn check(&self, rankings: &Rankings) -> Result<()> {
        if self.values == Values::Approval && rankings.approved(0).is_none() {
            let reason = format!(
                "`{self}` needs approval ballots; use borda, sntv, bloc, cc or owa for rankings"
            );
            return Err(Error::config("score", reason));
        }
        if let Values::Top(Some(0)) = self.values {
            return Err(Error::config("score", "bloc:0 counts nothing; give 1 or more"));
        }
        if let Owa::Weights(w) = &self.owa {
            let fine = w.first().is_some_and(|&f| f > 0.)
                && w.iter().all(|x| x.is_finite() && *x >= 0.)
                && w.windows(2).all(|p| p[1] <= p[0]);
            if !fine {
                let reason = format!("weights {w:?} do not fall from a first above 0");
                return Err(Error::config("score", reason));
            }
        }
        Ok(())
    }

    /// Values of all items on ballot `v`, into `out` of length `m`.
    fn fill(&self, rankings: &Rankings, v: usize, sums: &[f64], out: &mut [f64]) {
        let (places, sizes) = (rankings.places(v), rankings.sizes(v));
        if self.values == Values::Approval {
            let approved = rankings.approved(v).unwrap_or(0);
            for (o, &p) in out.iter_mut().zip(places) {
                *o = f64::from(u8::from(p < approved));
            }
            return;
        }
        for ((o, &p), &s) in out.iter_mut().zip(places).zip(sizes) {
            let (p, s) = (p as usize, s as usize);
            *o = (sums[p + s] - sums[p]) / s as f64;
        }
    }

    /// Total value of every item by itself, `[m]`: `Σ_v f_v({c})`, for a committee of `k`.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn singles(&self, rankings: &Rankings, k: usize) -> Result<Vec<f64>> {
        self.check(rankings)?;
        let m = rankings.items();
        let sums = self.cumulative(m, k);
        let first = self.slots(1)[0];
        let mut totals = vec![0.; m];
        if rankings.is_strict() && self.values != Values::Approval {
            // One lookup per place and no division: the path of large profiles.
            let value: Vec<f64> = sums.windows(2).map(|w| first * (w[1] - w[0])).collect();
            for (v, &w) in rankings.weights().iter().enumerate() {
                for (t, &p) in totals.iter_mut().zip(rankings.places(v)) {
                    *t += w * value[p as usize];
                }
            }
            return Ok(totals);
        }
        if self.values == Values::Approval {
            for (v, &w) in rankings.weights().iter().enumerate() {
                let (worth, approved) = (first * w, rankings.approved(v).unwrap_or(0));
                for (t, &p) in totals.iter_mut().zip(rankings.places(v)) {
                    *t += if p < approved { worth } else { 0. };
                }
            }
            return Ok(totals);
        }
        let mut row = vec![0.; m];
        for (v, &w) in rankings.weights().iter().enumerate() {
            self.fill(rankings, v, &sums, &mut row);
            totals.iter_mut().zip(&row).for_each(|(t, r)| *t += first * w * r);
        }
        Ok(totals)
    }

    /// `f_v(S)` on every ballot.
    pub fn per_ballot(&self, rankings: &Rankings, k: usize, subset: &[usize]) -> Vec<f64> {
        let m = rankings.items();
        let (sums, slots) = (self.cumulative(m, k), self.slots(k));
        let mut row = vec![0.; m];
        let mut on_ballot = |v: usize| {
            self.fill(rankings, v, &sums, &mut row);
            let mut values: Vec<f64> = subset.iter().map(|&c| row[c]).collect();
            values.sort_by(|a, b| b.total_cmp(a));
            values.iter().zip(&slots).map(|(u, o)| u * o).sum()
        };
        (0..rankings.ballots()).map(&mut on_ballot).collect()
    }

    /// Values of all items on all ballots; equal ballots are merged.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn matrix(&self, rankings: &Rankings, k: usize) -> Result<Scored> {
        self.check(rankings)?;
        let m = rankings.items();
        let sums = self.cumulative(m, k);
        // `[n, m]`, one row for each different ballot.
        let (mut rows, mut weights): (Vec<f64>, Vec<f64>) = (Vec::new(), Vec::new());
        rows.reserve(rankings.ballots() * m);
        let mut seen: HashMap<u64, usize, BuildHasherDefault<Unhashed>> = HashMap::default();
        for (v, &w) in rankings.weights().iter().enumerate() {
            let start = rows.len();
            rows.resize(start + m, 0.);
            self.fill(rankings, v, &sums, &mut rows[start..]);
            let (before, row) = rows.split_at(start);
            let last = weights.len();
            let at = *seen.entry(fingerprint(row)).or_insert(last);
            // Two ballots of one fingerprint that differ are kept apart: only merging suffers.
            if at < last && before[at * m..(at + 1) * m] == *row {
                weights[at] += w;
                rows.truncate(start);
            } else {
                weights.push(w);
            }
        }
        let mut slots = self.slots(k);
        while slots.len() > 1 && slots.last() == Some(&0.) {
            slots.pop();
        }
        let n = weights.len();
        let mut value = vec![0.; n * m];
        // In tiles, so that neither side is read across the whole memory for every number.
        for from in (0..n).step_by(TILE) {
            let to = n.min(from + TILE);
            for c in 0..m {
                for (v, slot) in (from..to).zip(&mut value[c * n + from..c * n + to]) {
                    *slot = rows[v * m + c];
                }
            }
        }
        Ok(Scored { m, n, value, weights, slots })
    }
}

/// Rows that are turned into columns at a time.
const TILE: usize = 64;

/// A number that equal rows share and others hardly ever do.
fn fingerprint(row: &[f64]) -> u64 {
    let mix = |h: u64, x: &f64| {
        let h = (h.rotate_left(23) ^ x.to_bits()).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        h ^ (h >> 29)
    };
    row.iter().fold(0x51_7C_C1_B7_27_22_0A_95, mix)
}

/// Keys that are fingerprints already.
#[derive(Default)]
struct Unhashed(u64);

impl Hasher for Unhashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|b| self.0 = self.0.rotate_left(8) ^ u64::from(*b));
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}

/// Values of all items on all (different) ballots, ready for subsets.
#[derive(Debug, Clone)]
pub struct Scored {
    m: usize,
    n: usize,
    /// `[m, n]`
    value: Vec<f64>,
    weights: Vec<f64>,
    slots: Vec<f64>,
}

impl Scored {
    /// Different ballots.
    pub fn ballots(&self) -> usize {
        self.n
    }

    /// Weight of each ballot.
    pub fn weights(&self) -> &[f64] {
        &self.weights
    }

    /// Weights of the best values, without the zeros at the end.
    pub fn slots(&self) -> &[f64] {
        &self.slots
    }

    /// Value of item `c` on all ballots.
    pub fn column(&self, c: usize) -> &[f64] {
        &self.value[c * self.n..(c + 1) * self.n]
    }

    /// The items of a subset in the order in which the greatest marginal comes first.
    pub fn order(&self, subset: &[usize]) -> Vec<usize> {
        let (mut order, mut state) = (Vec::with_capacity(subset.len()), State::new(self));
        let mut rest = subset.to_vec();
        while !rest.is_empty() {
            let gain = |&c: &usize| state.marginal(self, c);
            let most = rest.iter().map(gain).fold(f64::NEG_INFINITY, f64::max);
            let at = rest.iter().position(|c| gain(c) >= most).unwrap_or(0);
            let next = rest.remove(at);
            state.take(self, next);
            order.push(next);
        }
        order
    }

    /// `F(S)`.
    pub fn of(&self, subset: &[usize]) -> f64 {
        let mut state = State::new(self);
        subset.iter().map(|&c| state.add(self, c)).sum()
    }
}

impl ScoreFn for Scored {
    fn items(&self) -> usize {
        self.m
    }

    fn marginal(&self, subset: &[usize], item: usize) -> f64 {
        let mut state = State::new(self);
        for &c in subset {
            state.add(self, c);
        }
        state.marginal(self, item)
    }
}

/// The best values so far of every ballot: what makes marginals cheap.
#[derive(Debug, Clone)]
pub struct State {
    /// `[n, slots]`, falling along slots.
    best: Vec<f64>,
}

impl State {
    /// Of the empty subset.
    pub fn new(scored: &Scored) -> Self {
        Self { best: vec![0.; scored.n * scored.slots.len()] }
    }

    /// What item `c` would add.
    pub fn marginal(&self, scored: &Scored, c: usize) -> f64 {
        let (slots, column) = (&scored.slots, scored.column(c));
        if let [first] = slots[..] {
            return first * rises(column, &self.best, &scored.weights);
        }
        let rows = self.best.chunks_exact(slots.len());
        let gain = |((u, row), w): ((&f64, &[f64]), &f64)| w * insertion(slots, row, *u);
        column.iter().zip(rows).zip(&scored.weights).map(gain).sum()
    }

    /// Adds item `c`; returns what it added.
    pub fn add(&mut self, scored: &Scored, c: usize) -> f64 {
        let gain = self.marginal(scored, c);
        self.take(scored, c);
        gain
    }

    /// Adds item `c` whose gain is known.
    pub fn take(&mut self, scored: &Scored, c: usize) {
        if scored.slots.len() == 1 {
            self.best.iter_mut().zip(scored.column(c)).for_each(|(b, u)| *b = b.max(*u));
            return;
        }
        let rows = self.best.chunks_exact_mut(scored.slots.len());
        for (row, &u) in rows.zip(scored.column(c)) {
            let at = row.partition_point(|&b| b >= u);
            if at < row.len() {
                row[at..].rotate_right(1);
                row[at] = u;
            }
        }
    }
}

/// `Σ_v weight_v max(0, value_v − best_v)`, in eight partial sums that a processor can form at once.
fn rises(values: &[f64], best: &[f64], weights: &[f64]) -> f64 {
    const LANES: usize = 8;
    let mut sums = [0.; LANES];
    let (u, b, w) =
        (values.chunks_exact(LANES), best.chunks_exact(LANES), weights.chunks_exact(LANES));
    let rest = u.remainder().iter().zip(b.remainder()).zip(w.remainder());
    let rest: f64 = rest.map(|((u, b), w)| w * (u - b).max(0.)).sum();
    for ((u, b), w) in u.zip(b).zip(w) {
        for i in 0..LANES {
            sums[i] += w[i] * (u[i] - b[i]).max(0.);
        }
    }
    sums.iter().sum::<f64>() + rest
}

/// Change of `Σ_j slots_j row_j` when `u` is inserted into the falling `row`.
fn insertion(slots: &[f64], row: &[f64], u: f64) -> f64 {
    let at = row.partition_point(|&b| b >= u);
    let Some(weight) = slots.get(at) else { return 0. };
    let next = |j: usize| slots.get(j + 1).copied().unwrap_or(0.);
    let pushed: f64 = (at..row.len()).map(|j| (next(j) - slots[j]) * row[j]).sum();
    weight * u + pushed
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let weights = |w: &Vec<f64>| w.iter().map(f64::to_string).collect::<Vec<_>>().join(",");
        match (&self.values, &self.owa) {
            (Values::Borda, Owa::Sum) => f.write_str("borda"),
            (Values::Borda, Owa::Best) => f.write_str("cc"),
            (Values::Borda, Owa::Harmonic) => f.write_str("owa:harmonic"),
            (Values::Approval, Owa::Sum) => f.write_str("av"),
            (Values::Approval, Owa::Best) => f.write_str("approval-cc"),
            (Values::Approval, Owa::Harmonic) => f.write_str("pav"),
            (Values::Approval, Owa::Weights(w)) => write!(f, "approval-owa:{}", weights(w)),
            (_, Owa::Weights(w)) => write!(f, "owa:{}", weights(w)),
            (Values::First, _) => f.write_str("sntv"),
            (Values::Top(Some(k)), _) => write!(f, "bloc:{k}"),
            (Values::Top(None), _) => f.write_str("bloc"),
        }
    }
}

impl FromStr for Score {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            let reason = format!("`{text}` is no score function; there are {}", Self::NAMES);
            Error::config("score", reason)
        };
        let owa = |list: &str| -> Result<Owa> {
            if list == "harmonic" {
                return Ok(Owa::Harmonic);
            }
            let weights = list.split(',').map(|w| weight(w).ok_or_else(wrong));
            Ok(Owa::Weights(weights.collect::<Result<_>>()?))
        };
        let made = |values, owa| Ok(Self { values, owa });
        match text.split_once(':').map_or((text, None), |(n, r)| (n, Some(r))) {
            ("borda", None) => Ok(Self::BORDA),
            ("sntv", None) => Ok(Self::SNTV),
            ("bloc", None) => Ok(Self::BLOC),
            ("bloc", Some(k)) => made(Values::Top(Some(k.parse().map_err(|_| wrong())?)), Owa::Sum),
            ("cc", None) => Ok(Self::CC),
            ("owa", Some(list)) => made(Values::Borda, owa(list)?),
            ("av", None) => made(Values::Approval, Owa::Sum),
            ("approval-cc", None) => made(Values::Approval, Owa::Best),
            ("pav", None) => made(Values::Approval, Owa::Harmonic),
            ("approval-owa", Some(list)) => made(Values::Approval, owa(list)?),
            _ => Err(wrong()),
        }
    }
}

/// A finite number, or a fraction such as `1/3`.
fn weight(text: &str) -> Option<f64> {
    let number = |t: &str| t.trim().parse::<f64>().ok();
    let value = match text.split_once('/') {
        Some((a, b)) => number(a)? / number(b)?,
        None => number(text)?,
    };
    value.is_finite().then_some(value)
}

impl TryFrom<String> for Score {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Score> for String {
    fn from(score: Score) -> Self {
        score.to_string()
    }
}
