//! The best subset as a mixed-integer linear program, for an independent solver.
//!
//! `max Σ_v w_v Σ_j o_j Σ_c u_vc y_vjc` over `x_c ∈ {0, 1}`, `y ≥ 0`, subject to `Σ_c x_c = k`,
//! `L_ℓ ≤ Σ_{c ∈ G_ℓ} x_c ≤ U_ℓ`, `Σ_c y_vjc ≤ 1` (a slot of a ballot holds one item) and
//! `Σ_j y_vjc ≤ x_c` (only chosen items, each in one slot). As the `o_j` fall, the best items go to
//! the first slots by themselves, and `y` needs no integrality.

use microlp::{ComparisonOp, OptimizationDirection, Problem, Variable};

use super::select::{Selection, Solver, Ties};
use super::{Bounds, ScoreFn, Scored};
use crate::{Error, Result};

/// Most variables of a program that is tried.
const MOST: usize = 100_000;

/// The best subset of `k` items within the bounds; other subsets that are as good are not looked
/// for.
///
/// # Errors
/// When `k` or the bounds cannot be met, the program is too large, or its solver fails.
pub fn solve(scored: &Scored, k: usize, bounds: &Bounds) -> Result<Selection> {
    let m = scored.items();
    bounds.check(m, k)?;
    let variables = m * (1 + scored.ballots() * scored.slots().len());
    if variables > MOST {
        let reason =
            format!("`milp` would need {variables} variables, {MOST} are tried; use exact");
        return Err(Error::config("solver", reason));
    }
    let mut problem = Problem::new(OptimizationDirection::Maximize);
    let chosen: Vec<Variable> = (0..m).map(|_| problem.add_binary_var(0.)).collect();
    let all: Vec<(Variable, f64)> = chosen.iter().map(|&x| (x, 1.)).collect();
    problem.add_constraint(&all[..], ComparisonOp::Eq, k as f64);
    for group in bounds.groups() {
        let members: Vec<(Variable, f64)> =
            group.members.iter().map(|&c| (chosen[c], 1.)).collect();
        problem.add_constraint(&members[..], ComparisonOp::Ge, group.min as f64);
        problem.add_constraint(&members[..], ComparisonOp::Le, group.max.min(k) as f64);
    }
    for v in 0..scored.ballots() {
        ballot(&mut problem, scored, v, &chosen);
    }
    let failed = |e: String| Error::config("solver", format!("`milp` failed ({e}); use exact"));
    let solution = problem
        .solve()
        .map_err(|e| failed(e.to_string()))?
        .into_solution()
        .map_err(|_| failed("it stopped early".into()))?;
    let subset: Vec<usize> = (0..m).filter(|&c| solution.var_value(chosen[c]) > 0.5).collect();
    if subset.len() != k || !bounds.admits(&subset) {
        return Err(failed("its subset breaks a bound".into()));
    }
    let score = scored.of(&subset);
    Ok(Selection {
        order: scored.order(&subset),
        score,
        solver: Solver::Milp,
        optimal: true,
        bound: score,
        ties: Ties { steps: Vec::new(), committees: vec![subset.clone()], complete: false },
        subset,
    })
}

/// Adds the slots of one ballot.
fn ballot(problem: &mut Problem, scored: &Scored, v: usize, chosen: &[Variable]) {
    let weight = scored.weights()[v];
    let mut slots: Vec<Vec<(Variable, f64)>> = vec![Vec::new(); scored.slots().len()];
    for (c, &x) in chosen.iter().enumerate() {
        let value = scored.column(c)[v];
        if value <= 0. {
            continue;
        }
        let mut places = vec![(x, -1.)];
        for (slot, o) in slots.iter_mut().zip(scored.slots()) {
            let y = problem.add_var(weight * o * value, (0., 1.));
            slot.push((y, 1.));
            places.push((y, 1.));
        }
        problem.add_constraint(&places[..], ComparisonOp::Le, 0.);
    }
    for slot in slots.iter().filter(|s| !s.is_empty()) {
        problem.add_constraint(&slot[..], ComparisonOp::Le, 1.);
    }
}
