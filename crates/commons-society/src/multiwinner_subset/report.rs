//! What there is to say about a shortlist.

use commons_core::stats::special::normal_quantile;
use serde::Serialize;

use super::exact::Limits;
use super::score::State;
use super::select::{Selection, greedy_scored, select_within, top};
use super::{Bounds, Rankings, Score, Solver};
use crate::Result;

/// Probability with which the estimate of rankings needed may be wrong.
pub const DELTA: f64 = 0.05;

/// A chosen subset, and what stands around it.
#[derive(Debug, Clone, PartialEq)]
pub struct Shortlist {
    /// The subset.
    pub selection: Selection,
    /// The best subset without bounds by the same solver; `None` if there are no bounds.
    pub unconstrained: Option<Selection>,
    /// What other score functions say about it: name, its score, and the score of what that
    /// function itself would choose within the bounds (greedily where that is hard).
    pub judged: Vec<(Score, f64, f64)>,
    /// How far the choice hangs on the number of rankings.
    pub needed: Option<Needed>,
}

/// How many rankings make the closest decision certain.
///
/// Voters count as independent draws from one population. Among all exchanges of a chosen item for
/// another within the bounds, the one that costs least per voter decides; a normal approximation
/// with a correction for the number of exchanges says how many rankings show its sign.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Needed {
    /// The chosen item.
    pub chosen: usize,
    /// The one that would replace it.
    pub other: usize,
    /// Mean difference of the score per voter; 0 is a tie.
    pub difference: f64,
    /// Rankings needed with probability `1 − δ`, δ = 0.05; `None` for a tie.
    pub rankings: Option<u64>,
    /// Whether there are as many.
    pub enough: bool,
}

/// Chooses, and reports.
///
/// # Errors
/// As [`select_within`].
pub fn shortlist(
    rankings: &Rankings,
    score: &Score,
    k: usize,
    bounds: &Bounds,
    solver: Solver,
    limits: Limits<'_>,
) -> Result<Shortlist> {
    let selection = select_within(rankings, score, k, bounds, solver, limits)?;
    report(rankings, score, k, bounds, solver, limits, selection)
}

/// Reports on a `selection` that `solver` made.
///
/// # Errors
/// As [`select_within`].
pub fn report(
    rankings: &Rankings,
    score: &Score,
    k: usize,
    bounds: &Bounds,
    solver: Solver,
    limits: Limits<'_>,
    selection: Selection,
) -> Result<Shortlist> {
    let free = Bounds::none(rankings.items());
    let unconstrained = match bounds.groups().is_empty() {
        true => None,
        false => Some(select_within(rankings, score, k, &free, solver, limits)?),
    };
    let mut judged = Vec::new();
    let others: Vec<Score> = match rankings.approved(0) {
        Some(_) => ["av", "approval-cc", "pav"].iter().flat_map(|s| s.parse()).collect(),
        None => vec![Score::BORDA, Score::SNTV, Score::BLOC, Score::CC],
    };
    for other in others {
        let (own, best) = match other.is_modular() {
            true => {
                let singles = other.singles(rankings, k)?;
                let own = selection.subset.iter().map(|&c| singles[c]).sum();
                (own, top(&singles, k, bounds)?.score)
            }
            false => {
                let scored = other.matrix(rankings, k)?;
                (scored.of(&selection.subset), greedy_scored(&scored, k, bounds)?.score)
            }
        };
        judged.push((other, own, best));
    }
    let needed = closest(rankings, score, k, bounds, &selection)?;
    Ok(Shortlist { selection, unconstrained, judged, needed })
}

fn closest(
    rankings: &Rankings,
    score: &Score,
    k: usize,
    bounds: &Bounds,
    selection: &Selection,
) -> Result<Option<Needed>> {
    let subset = &selection.subset;
    let singles = score.singles(rankings, k)?;
    let scored = match score.is_modular() {
        true => None,
        false => Some(score.matrix(rankings, k)?),
    };
    let mut exchanges = 0_usize;
    let mut least: Option<(f64, usize, usize)> = None;
    for &i in subset {
        // What is left of the subset without i, to which each j is added in turn.
        let rest = scored.as_ref().map(|scored| {
            let mut state = State::new(scored);
            let kept = subset.iter().filter(|&&c| c != i);
            let sum: f64 = kept.map(|&c| state.add(scored, c)).sum();
            (scored, state, sum)
        });
        for j in (0..rankings.items()).filter(|j| subset.binary_search(j).is_err()) {
            let swapped: Vec<usize> = subset.iter().map(|&c| if c == i { j } else { c }).collect();
            if !bounds.admits(&swapped) {
                continue;
            }
            exchanges += 1;
            let loss = match &rest {
                None => singles[i] - singles[j],
                Some((scored, state, sum)) => selection.score - sum - state.marginal(scored, j),
            };
            if least.is_none_or(|(l, _, _)| loss.abs() < l) {
                least = Some((loss.abs(), i, j));
            }
        }
    }
    let Some((loss, chosen, other)) = least else { return Ok(None) };
    let voters = rankings.voters();
    let swapped: Vec<usize> = subset.iter().map(|&c| if c == chosen { other } else { c }).collect();
    let (own, exchanged) =
        (score.per_ballot(rankings, k, subset), score.per_ballot(rankings, k, &swapped));
    let differences = own.iter().zip(&exchanged).map(|(a, b)| a - b);
    let squares: f64 =
        differences.zip(rankings.weights()).map(|(d, w)| w * d * d).sum::<f64>() / voters;
    let difference = loss / voters;
    let variance = (squares - difference * difference).max(0.);
    let z = normal_quantile(1. - DELTA / exchanges as f64);
    let tie = difference <= 1e-12;
    let needed =
        (!tie).then(|| ((z * z * variance / (difference * difference)).ceil() as u64).max(1));
    Ok(Some(Needed {
        chosen,
        other,
        difference: if tie { 0. } else { difference },
        rankings: needed,
        enough: needed.is_some_and(|n| voters >= n as f64),
    }))
}
