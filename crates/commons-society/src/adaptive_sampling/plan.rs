//! The best allocation when learning curves are known.

use serde::Serialize;

use super::curve::{LearningCurve, PowerLaw};
use super::utility::{Goal, Utility};
use crate::conic::{Affine, Program};
use crate::{Error, Result};

/// A population group.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Cost of a sample.
    pub cost: f64,
    /// Samples already there; they count against the budget.
    pub owned: f64,
    /// Weight in the utility; weights are scaled to sum 1.
    pub weight: f64,
    /// Its learning curve.
    pub curve: PowerLaw,
}

/// An allocation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// Samples per group, those owned included.
    pub samples: Vec<f64>,
    /// The same in whole samples.
    pub whole: Vec<u64>,
    /// Expected loss per group with whole samples.
    pub loss: Vec<f64>,
    /// Utility of `samples`.
    pub utility: f64,
    /// Utility of `whole`.
    pub whole_utility: f64,
    /// Utility that one more unit of budget would bring.
    pub shadow_price: f64,
}

/// Checks groups and budget; weights scaled to sum 1.
///
/// # Errors
/// Naming the group and field, or what the budget would have to be.
pub(super) fn check(groups: &[Group], budget: f64) -> Result<Vec<f64>> {
    if groups.is_empty() {
        return Err(Error::config("groups", "there are none"));
    }
    for (i, group) in groups.iter().enumerate() {
        let wrong = |field: &str, value: f64, what: &str| {
            let field = format!("group {}: {field}", group.name);
            Err(Error::config(field, format!("{value} is not {what}")))
        };
        if groups[..i].iter().any(|g| g.name == group.name) {
            return Err(Error::config(format!("group {}", group.name), "stands twice"));
        }
        if !(group.cost > 0. && group.cost.is_finite()) {
            return wrong("cost", group.cost, "a positive number");
        }
        if !(group.owned >= 0. && group.owned.is_finite()) {
            return wrong("owned", group.owned, "a number of 0 or more");
        }
        if !(group.weight >= 0. && group.weight.is_finite()) {
            return wrong("weight", group.weight, "a number of 0 or more");
        }
        group.curve.check(&group.name)?;
    }
    let total: f64 = groups.iter().map(|g| g.weight).sum();
    if !(total > 0.) {
        return Err(Error::config("weight", "is 0 for every group"));
    }
    // Every group needs a sample to have a loss at all.
    let least: f64 = groups.iter().map(|g| g.cost * g.owned.max(1.)).sum();
    if !(budget.is_finite() && budget >= least) {
        let reason = format!("{budget} does not pay what is owned, and one sample each ({least})");
        return Err(Error::config("budget", reason));
    }
    Ok(groups.iter().map(|g| g.weight / total).collect())
}

/// The allocation of `budget` that is best for `goal`; performance is `top − loss`.
///
/// # Errors
/// As [`check`]; also when a CES utility would need performances that are not positive.
pub fn plan(groups: &[Group], budget: f64, goal: Goal, top: f64) -> Result<Plan> {
    let weights = check(groups, budget)?;
    let samples = match goal {
        Goal::Utilitarian => utilitarian(groups, &weights, budget),
        Goal::Ces(1.) => utilitarian(groups, &weights, budget),
        Goal::MaxMin => max_min(groups, budget),
        Goal::Gap(1.) => max_min(groups, budget),
        Goal::Ces(_) | Goal::Gap(_) => conic(groups, &weights, budget, goal, top)?,
    };
    let utility = |n: &[f64]| worth(groups, &weights, n, goal, top);
    let whole = integers(groups, &weights, budget, goal, top, &samples);
    let as_numbers: Vec<f64> = whole.iter().map(|&n| n as f64).collect();
    Ok(Plan {
        loss: groups.iter().zip(&as_numbers).map(|(g, n)| g.curve.loss(*n)).collect(),
        utility: utility(&samples),
        whole_utility: utility(&as_numbers),
        shadow_price: shadow(groups, &weights, goal, top, &samples),
        whole,
        samples,
    })
}

/// Utility of an allocation.
pub fn worth(groups: &[Group], weights: &[f64], samples: &[f64], goal: Goal, top: f64) -> f64 {
    let performance: Vec<f64> =
        groups.iter().zip(samples).map(|(g, n)| top - g.curve.loss(*n)).collect();
    goal.value(&performance, weights)
}

fn floor_of(group: &Group) -> f64 {
    group.owned.max(1e-9)
}

/// KKT: `n = (w a b/(λ c))^(1/(1+b))` where that is more than owned; λ by bisection.
fn utilitarian(groups: &[Group], weights: &[f64], budget: f64) -> Vec<f64> {
    let at = |log_price: f64| -> Vec<f64> {
        let one = |(g, w): (&Group, &f64)| {
            let PowerLaw { a, b, .. } = g.curve;
            (w * a * b / (log_price.exp() * g.cost)).powf(1. / (1. + b)).max(floor_of(g))
        };
        groups.iter().zip(weights).map(one).collect()
    };
    let (mut low, mut high) = (-200f64, 200f64);
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if cost(groups, &at(middle)) > budget { low = middle } else { high = middle }
    }
    at(high)
}

/// Equalises losses: every group takes what brings it to the level the budget can afford.
fn max_min(groups: &[Group], budget: f64) -> Vec<f64> {
    // The floor of the worst group bounds the level from below, one sample each from above.
    let irreducible = groups.iter().map(|g| g.curve.e).fold(0., f64::max);
    let at = |level: f64| -> Vec<f64> {
        let one = |g: &Group| g.curve.samples(level).unwrap_or(f64::INFINITY).max(floor_of(g));
        groups.iter().map(one).collect()
    };
    let (mut low, mut high) = (-60f64, 60f64);
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if cost(groups, &at(irreducible + middle.exp())) > budget {
            low = middle
        } else {
            high = middle
        }
    }
    at(irreducible + high.exp())
}

fn cost(groups: &[Group], samples: &[f64]) -> f64 {
    groups.iter().zip(samples).map(|(g, n)| g.cost * n).sum()
}

/// CES and gap utilities as a cone programme. Samples are measured in units of what an equal
/// spending would buy, so that every number is near 1.
fn conic(groups: &[Group], weights: &[f64], budget: f64, goal: Goal, top: f64) -> Result<Vec<f64>> {
    let mut program = Program::default();
    let unit: Vec<f64> = groups.iter().map(|g| budget / (groups.len() as f64 * g.cost)).collect();
    let mut spent = Affine::constant(budget);
    let (mut samples, mut performance) = (Vec::new(), Vec::new());
    for (g, unit) in groups.iter().zip(&unit) {
        let PowerLaw { e, a, b } = g.curve;
        let (n, s) = (program.variable(0.), program.variable(0.));
        program.nonnegative(Affine { terms: vec![(n, 1.)], constant: -floor_of(g) / unit });
        // s ≥ n^(−b)  ⇔  n^(b/(1+b)) s^(1/(1+b)) ≥ 1.
        let one = Affine::constant(1.);
        program.power(b / (1. + b), Affine::of([(n, 1.)]), Affine::of([(s, 1.)]), one);
        let scale = a * unit.powf(-b);
        performance.push(Affine { terms: vec![(s, -scale)], constant: top - e });
        spent.terms.push((n, -g.cost * unit));
        samples.push(n);
    }
    program.nonnegative(spent.scaled(1. / budget));
    match goal {
        Goal::Ces(rho) => {
            // Measured in what the worst-off can get, powers of any exponent stay near 1.
            let fair = max_min(groups, budget);
            let worst = groups.iter().zip(&fair).map(|(g, n)| top - g.curve.loss(*n));
            let scale = worst.fold(f64::INFINITY, f64::min);
            if !(scale > 0.) {
                let g = groups.iter().max_by(|a, b| a.curve.e.total_cmp(&b.curve.e));
                let name = g.map_or("", |g| g.name.as_str());
                let reason = format!(
                    "{top} is not above the loss every group can get to (group {name} has the \
                     highest floor); raise it"
                );
                return Err(Error::config("top", reason));
            }
            for (p, w) in performance.into_iter().zip(weights).filter(|(_, w)| **w > 0.) {
                ces(&mut program, p.scaled(1. / scale), *w, rho);
            }
        }
        Goal::Gap(kappa) => {
            let worst = program.variable(-kappa);
            for (p, w) in performance.into_iter().zip(weights) {
                program.nonnegative(p.clone().minus(&Affine::of([(worst, 1.)])));
                // The variable part of the mean, as cost.
                let u = program.variable(-(1. - kappa) * w);
                program.nonnegative(p.minus(&Affine::of([(u, 1.)])));
            }
        }
        Goal::Utilitarian | Goal::MaxMin => {}
    }
    let x = program.solve("plan")?;
    let mut n: Vec<f64> = samples
        .iter()
        .zip(groups)
        .zip(&unit)
        .map(|((&i, g), unit)| (x[i] * unit).max(floor_of(g)))
        .collect();
    // The solver's tolerance must not overspend.
    let over = cost(groups, &n) / budget;
    if over > 1. {
        n.iter_mut().zip(groups).for_each(|(n, g)| *n = (*n / over).max(floor_of(g)));
    }
    Ok(n)
}

/// The term of one group in a CES utility, as something to minimise.
fn ces(program: &mut Program, performance: Affine, w: f64, rho: f64) {
    let one = Affine::constant(1.);
    if rho == 0. {
        // t ≤ ln p.
        let t = program.variable(-w);
        program.exponential(Affine::of([(t, 1.)]), one, performance);
    } else if rho > 0. {
        // t ≤ p^ρ.
        let t = program.variable(-w);
        program.power(rho, performance, one, Affine::of([(t, 1.)]));
    } else {
        // t ≥ p^ρ  ⇔  p^(r/(1+r)) t^(1/(1+r)) ≥ 1 with r = −ρ.
        let t = program.variable(w);
        program.power(-rho / (1. - rho), performance, Affine::of([(t, 1.)]), one);
    }
}

/// Whole samples: the plan rounded down, then sample by sample to the group where utility per cost
/// rises most, as long as the budget lasts.
fn integers(
    groups: &[Group],
    weights: &[f64],
    budget: f64,
    goal: Goal,
    top: f64,
    samples: &[f64],
) -> Vec<u64> {
    let least = |g: &Group| (g.owned.ceil() as u64).max(1);
    let start = |(n, g): (&f64, &Group)| ((n.floor() as u64).saturating_sub(2)).max(least(g));
    let mut whole: Vec<u64> = samples.iter().zip(groups).map(start).collect();
    let as_numbers = |w: &[u64]| w.iter().map(|&n| n as f64).collect::<Vec<f64>>();
    // The one sample each that every group gets may have to come from the others.
    while cost(groups, &as_numbers(&whole)) > budget * (1. + 1e-12) {
        let spare = (0..groups.len()).filter(|&i| whole[i] > least(&groups[i]));
        match spare.max_by_key(|&i| whole[i]) {
            Some(i) => whole[i] -= 1,
            None => break,
        }
    }
    // Ties of the worst group must not end the search: the smooth CES stands in for max-min.
    let smooth = |n: &[f64]| match goal {
        Goal::MaxMin => {
            let loss = groups.iter().zip(n).map(|(g, n)| g.curve.loss(*n));
            -loss.map(|l| l.powi(40)).sum::<f64>().powf(1. / 40.)
        }
        _ => worth(groups, weights, n, goal, top),
    };
    let mut current = as_numbers(&whole);
    let mut spent = cost(groups, &current);
    loop {
        let value = smooth(&current);
        let gain = |i: usize| {
            let mut more = current.clone();
            more[i] += 1.;
            (smooth(&more) - value) / groups[i].cost
        };
        let affordable = (0..groups.len()).filter(|&i| spent + groups[i].cost <= budget + 1e-9);
        let best = affordable.map(|i| (i, gain(i))).max_by(|a, b| a.1.total_cmp(&b.1));
        match best {
            Some((i, gain)) if gain > 0. => {
                current[i] += 1.;
                whole[i] += 1;
                spent += groups[i].cost;
            }
            _ => return whole,
        }
    }
}

/// The slope of utility along the best direction of spending, by a difference.
fn shadow(groups: &[Group], weights: &[f64], goal: Goal, top: f64, samples: &[f64]) -> f64 {
    let spent = cost(groups, samples);
    let value = worth(groups, weights, samples, goal, top);
    let step = 1e-5 * spent;
    let one = |i: usize| {
        let mut more = samples.to_vec();
        more[i] += step / groups[i].cost;
        (worth(groups, weights, &more, goal, top) - value) / step
    };
    match goal {
        // Every group that holds the minimum has to rise together.
        Goal::MaxMin => {
            let more = max_min(groups, spent + step);
            (worth(groups, weights, &more, goal, top) - value) / step
        }
        _ => (0..groups.len()).map(one).fold(f64::NEG_INFINITY, f64::max),
    }
}
