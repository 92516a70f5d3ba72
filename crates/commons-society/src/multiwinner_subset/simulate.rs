//! Elections with bias, judged by the rankings without: what bounds repair, and from how many
//! rankings on.

use commons_core::{Seed, stats};
use rayon::prelude::*;
use serde::Serialize;

use super::select::{greedy_scored, top};
use super::{Bias, Bounds, Latent, Order, Rankings, Score, Selection, kemeny, numbered};
use crate::{Error, Result};

/// A simulated question.
#[derive(Debug, Clone, PartialEq)]
pub struct Simulation {
    /// Unbiased rankings.
    pub latent: Latent,
    /// Their distortion.
    pub bias: Bias,
    /// Items.
    pub m: usize,
    /// Items chosen.
    pub k: usize,
    /// Items of the disadvantaged group, drawn by lot.
    pub minority: usize,
    /// Rankings.
    pub n: usize,
    /// Repetitions, each with new items, groups and rankings.
    pub repetitions: usize,
}

/// Latent score of a selection as a part of the best possible, by what selected: means over the
/// repetitions.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Ratios {
    /// From biased rankings without bounds.
    pub unconstrained: f64,
    /// With as many of the group as are in its share of the items.
    pub proportional: f64,
    /// With the number of the group that turns out best: it looks at the truth.
    pub best_l: f64,
    /// A random pick with the proportional number.
    pub random: f64,
    /// The first of Kemeny's consensus ranking (exact up to 14 items), without bounds.
    pub kemeny: f64,
    /// The first by Copeland's pairwise majorities, without bounds.
    pub copeland: f64,
    /// The first by median rank, without bounds.
    pub median_rank: f64,
    /// The first by reciprocal-rank fusion (constant 60), without bounds.
    pub reciprocal_rank: f64,
}

impl Simulation {
    /// # Errors
    /// Naming what does not fit.
    pub fn check(&self) -> Result<()> {
        self.latent.check()?;
        self.bias.check()?;
        let fail = |field: &str, reason: String| Err(Error::config(field, reason));
        match self {
            s if s.m == 0 || s.n == 0 => fail("m, n", "are 0; give at least one".into()),
            s if s.k == 0 || s.k > s.m => {
                fail("k", format!("{} of {} items cannot be chosen; give 1 to {}", s.k, s.m, s.m))
            }
            s if s.minority == 0 || s.minority >= s.m => {
                fail("minority", format!("{} is not in 1 to {}", s.minority, s.m - 1))
            }
            s if s.repetitions == 0 => fail("repetitions", "are 0; give at least one".into()),
            _ => Ok(()),
        }
    }

    /// The number of the group's items in a proportional selection, within what is possible.
    pub fn proportional(&self) -> usize {
        let share = self.k as f64 * self.minority as f64 / self.m as f64;
        let most = self.k.min(self.minority);
        (share.round() as usize).clamp(self.k.saturating_sub(self.m - self.minority), most)
    }

    /// One ratio of each kind for each repetition.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn repetitions(&self, score: &Score, seed: Seed) -> Result<Vec<Ratios>> {
        self.check()?;
        let one = |r: usize| self.one(score, seed.fork("repetition", r as u64));
        (0..self.repetitions).into_par_iter().map(one).collect()
    }

    /// Means over the repetitions.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn run(&self, score: &Score, seed: Seed) -> Result<Ratios> {
        Ok(mean_of(&self.repetitions(score, seed)?))
    }

    fn one(&self, score: &Score, seed: Seed) -> Result<Ratios> {
        let mut group = vec![false; self.m];
        let minority = seed.fork("group", 0).rng().sample(self.m, self.minority);
        minority.iter().for_each(|&c| group[c] = true);
        let utilities = self.latent.utilities(self.m, self.n, seed.fork("latent", 0))?;
        let seen =
            |(v, u): (usize, &Vec<f64>)| self.bias.apply(u, &group, seed.fork("bias", v as u64));
        let biased = utilities.iter().enumerate().map(seen).collect::<Result<Vec<_>>>()?;
        let latent: Vec<Order> = utilities.iter().map(|u| super::latent::by_utility(u)).collect();
        let rankings = |orders: &[Order]| Rankings::from_orders(numbered(self.m), orders);
        let (latent, biased) = (rankings(&latent)?, rankings(&biased)?);
        self.judge(score, &latent, &biased, &minority, seed.fork("random", 0))
    }

    /// Ratios of the selections from `biased`, judged by `latent`.
    ///
    /// # Errors
    /// When they do not fit each other.
    pub fn judge(
        &self,
        score: &Score,
        latent: &Rankings,
        biased: &Rankings,
        minority: &[usize],
        seed: Seed,
    ) -> Result<Ratios> {
        let truth = Chooser::new(score, latent, self.k)?;
        let seen = Chooser::new(score, biased, self.k)?;
        let free = Bounds::none(self.m);
        let best = truth.choose(self.k, &free)?.score;
        let worth = |subset: &[usize]| truth.score(subset) / best;
        let with = |l: usize| -> Result<f64> {
            let bounds = Bounds::exactly(self.m, minority, l)?;
            Ok(worth(&seen.choose(self.k, &bounds)?.subset))
        };
        let least = self.k.saturating_sub(self.m - minority.len());
        let mut best_l = 0_f64;
        for l in least..=self.k.min(minority.len()) {
            best_l = best_l.max(with(l)?);
        }
        let margin = margins(biased);
        let first = |merit: Vec<f64>| Ok::<f64, Error>(worth(&top(&merit, self.k, &free)?.subset));
        Ok(Ratios {
            unconstrained: worth(&seen.choose(self.k, &free)?.subset),
            proportional: with(self.proportional())?,
            best_l,
            random: worth(&self.random(minority, seed)),
            kemeny: first(by_place(&kemeny::of_margins(self.m, &margin).0))?,
            copeland: first(wins(self.m, &margin))?,
            median_rank: first(median_rank(biased))?,
            reciprocal_rank: first(reciprocal_rank(biased))?,
        })
    }

    fn random(&self, minority: &[usize], seed: Seed) -> Vec<usize> {
        let l = self.proportional();
        let majority: Vec<usize> = (0..self.m).filter(|c| !minority.contains(c)).collect();
        let mut rng = seed.rng();
        let mut picked: Vec<usize> =
            rng.sample(minority.len(), l).into_iter().map(|i| minority[i]).collect();
        let rest = rng.sample(majority.len(), self.k - l);
        picked.extend(rest.into_iter().map(|i| majority[i]));
        picked
    }
}

/// Means of every kind of ratio.
pub fn mean_of(ratios: &[Ratios]) -> Ratios {
    let mean = |f: fn(&Ratios) -> f64| stats::mean(&ratios.iter().map(f).collect::<Vec<_>>());
    Ratios {
        unconstrained: mean(|r| r.unconstrained),
        proportional: mean(|r| r.proportional),
        best_l: mean(|r| r.best_l),
        random: mean(|r| r.random),
        kemeny: mean(|r| r.kemeny),
        copeland: mean(|r| r.copeland),
        median_rank: mean(|r| r.median_rank),
        reciprocal_rank: mean(|r| r.reciprocal_rank),
    }
}

/// The smallest number of rankings in `sizes` at which the proportional selection is worth `target`
/// of the best, and all the means on the way.
///
/// # Errors
/// As [`Simulation::check`].
pub fn rankings_needed(
    simulation: &Simulation,
    score: &Score,
    sizes: &[usize],
    target: f64,
    seed: Seed,
) -> Result<(Option<usize>, Vec<(usize, Ratios)>)> {
    let mut curve = Vec::with_capacity(sizes.len());
    for &n in sizes {
        let ratios = Simulation { n, ..simulation.clone() }.run(score, seed)?;
        curve.push((n, ratios));
    }
    let needed = curve.iter().find(|(_, r)| r.proportional >= target).map(|(n, _)| *n);
    Ok((needed, curve))
}

/// Selections under one score: sorted for modular ones, greedy for others.
enum Chooser {
    Modular(Vec<f64>),
    Submodular(Box<super::Scored>),
}

impl Chooser {
    fn new(score: &Score, rankings: &Rankings, k: usize) -> Result<Self> {
        Ok(match score.is_modular() {
            true => Self::Modular(score.singles(rankings, k)?),
            false => Self::Submodular(Box::new(score.matrix(rankings, k)?)),
        })
    }

    fn choose(&self, k: usize, bounds: &Bounds) -> Result<Selection> {
        match self {
            Self::Modular(values) => top(values, k, bounds),
            Self::Submodular(scored) => greedy_scored(scored, k, bounds),
        }
    }

    fn score(&self, subset: &[usize]) -> f64 {
        match self {
            Self::Modular(values) => subset.iter().map(|&c| values[c]).sum(),
            Self::Submodular(scored) => scored.of(subset),
        }
    }
}

/// Merit of every item that falls along an order.
fn by_place(order: &[usize]) -> Vec<f64> {
    let mut merit = vec![0.; order.len()];
    order.iter().enumerate().for_each(|(p, &c)| merit[c] = -(p as f64));
    merit
}

/// `[m, m]`: voters that place the first item above the second, less those that do the contrary.
pub fn margins(rankings: &Rankings) -> Vec<f64> {
    let m = rankings.items();
    let mut margin = vec![0.; m * m];
    for (v, w) in rankings.weights().iter().enumerate() {
        let places = rankings.places(v);
        for a in 0..m {
            for b in a + 1..m {
                let above = f64::from(u8::from(places[a] < places[b]));
                let below = f64::from(u8::from(places[a] > places[b]));
                margin[a * m + b] += w * (above - below);
            }
        }
    }
    for a in 0..m {
        for b in a + 1..m {
            margin[b * m + a] = -margin[a * m + b];
        }
    }
    margin
}

/// Majority wins minus losses of every item.
pub fn copeland(rankings: &Rankings) -> Vec<f64> {
    wins(rankings.items(), &margins(rankings))
}

fn wins(m: usize, margin: &[f64]) -> Vec<f64> {
    let sign = |x: &f64| if *x == 0. { 0. } else { x.signum() };
    (0..m).map(|a| margin[a * m..(a + 1) * m].iter().map(sign).sum()).collect()
}

/// The negative median place of every item.
pub fn median_rank(rankings: &Rankings) -> Vec<f64> {
    let median = |c: usize| {
        let mut places: Vec<(u32, f64)> = rankings
            .weights()
            .iter()
            .enumerate()
            .map(|(v, w)| (rankings.places(v)[c], *w))
            .collect();
        places.sort_by_key(|p| p.0);
        let half = rankings.voters() / 2.;
        let mut sum = 0.;
        let at = places.iter().find(|(_, w)| {
            sum += w;
            sum >= half
        });
        -at.map_or(0., |(p, _)| f64::from(*p))
    };
    (0..rankings.items()).map(median).collect()
}

/// `Σ_v 1 / (60 + rank)` of every item (Cormack, Clarke, Büttcher 2009).
pub fn reciprocal_rank(rankings: &Rankings) -> Vec<f64> {
    let mut merit = vec![0.; rankings.items()];
    for (v, w) in rankings.weights().iter().enumerate() {
        for (slot, p) in merit.iter_mut().zip(rankings.places(v)) {
            *slot += w / (61. + f64::from(*p));
        }
    }
    merit
}
