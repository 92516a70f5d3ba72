//! Theorems held against every case of a grid, in exact arithmetic.

use num_rational::Ratio;

use super::welfare::advance;
use super::{Mechanism, Profile, Scalar, axioms};
use crate::Result;

type Exact = Ratio<i64>;

/// Which phantom mechanisms of a grid meet which axioms on every profile of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survivors {
    /// Phantom vectors `α_0 ≤ … ≤ α_n` tried: all anonymous strategyproof mechanisms of the grid.
    pub candidates: usize,
    /// Those that meet unanimous fair share.
    pub ufs: Vec<Vec<Exact>>,
    /// Those that meet proportional fairness.
    pub pf: Vec<Vec<Exact>>,
    /// Those that meet proportionality and unanimity.
    pub proportional: Vec<Vec<Exact>>,
    /// Those that meet individual fair share and unanimity.
    pub ifs: Vec<Vec<Exact>>,
}

/// Tries all phantom vectors on the grid `0, 1/(2n), …, 1` on all profiles of `n` agents on it.
///
/// By Moulin's theorem anonymous strategyproof mechanisms are medians of the reports and `n + 1`
/// phantoms; the paper's Theorems 1 and 2 say which remain.
///
/// # Errors
/// None for `n ≥ 1`.
pub fn survivors(n: usize) -> Result<Survivors> {
    let steps = 2 * n;
    let profiles = grid_profiles(n, steps)?;
    let mut found = Survivors {
        candidates: 0,
        ufs: Vec::new(),
        pf: Vec::new(),
        proportional: Vec::new(),
        ifs: Vec::new(),
    };
    let mut places = vec![0; n + 1];
    loop {
        let alpha: Vec<Exact> = places.iter().map(|&p| Exact::ratio(p, steps)).collect();
        found.candidates += 1;
        let holds = |axiom: fn(&Profile<Exact>, &Exact) -> bool| {
            profiles.iter().all(|p| axiom(p, &median_with(p, &alpha)))
        };
        let unanimous = holds(|p, y| axioms::unanimity(p, y).is_ok());
        if holds(|p, y| axioms::ufs(p, y).is_ok()) {
            found.ufs.push(alpha.clone());
        }
        if holds(|p, y| axioms::pf(p, y).is_ok()) {
            found.pf.push(alpha.clone());
        }
        if unanimous && holds(|p, y| axioms::proportionality(p, y).is_ok()) {
            found.proportional.push(alpha.clone());
        }
        if unanimous && holds(|p, y| axioms::ifs(p, y).is_ok()) {
            found.ifs.push(alpha);
        }
        if !advance(&mut places, steps) {
            return Ok(found);
        }
    }
}

/// The median of the reports and the `n + 1` phantoms `alpha`.
fn median_with(profile: &Profile<Exact>, alpha: &[Exact]) -> Exact {
    let n = profile.len();
    let at = |(k, &i): (usize, &usize)| profile.positions()[i].smaller(alpha[n - k]);
    profile.order().iter().enumerate().map(at).fold(alpha[0], Exact::larger)
}

fn grid_profiles(n: usize, steps: usize) -> Result<Vec<Profile<Exact>>> {
    let mut profiles = Vec::new();
    let mut places = vec![0; n];
    loop {
        profiles.push(Profile::new(places.iter().map(|&p| Exact::ratio(p, steps)).collect())?);
        if !advance(&mut places, steps) {
            return Ok(profiles);
        }
    }
}

/// Every misreport of every agent on the grid `0, 1/steps, …, 1`: (profitable, tried).
///
/// # Errors
/// As [`Mechanism::outcome`].
pub fn strategyproof_on_grid(
    mechanism: &Mechanism,
    n: usize,
    steps: usize,
) -> Result<(usize, usize)> {
    let (mut profitable, mut tried) = (0, 0);
    for profile in grid_profiles(n, steps)? {
        let truthful = mechanism.outcome(&profile)?;
        for i in 0..n {
            let ideal = &profile.positions()[i];
            let cost = truthful.distance(ideal);
            for k in 0..=steps {
                let report = Exact::ratio(k, steps);
                let outcome = mechanism.outcome(&profile.with_report(i, report))?;
                tried += 1;
                profitable += usize::from(outcome.distance(ideal) < cost);
            }
        }
    }
    Ok((profitable, tried))
}
