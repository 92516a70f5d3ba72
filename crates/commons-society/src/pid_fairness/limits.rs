//! The accuracy and global–local fairness optimality problem (AGLFOP): the highest accuracy that
//! any predictor can have while both disparities stay below given bounds.
//!
//! `min err(Q)` over `Q(z, s, v, ŷ) = P(z, s, v)·r(ŷ | z, s, v)`, `r` a distribution, subject to
//! `I_Q(Z; Ŷ) ≤ ε_g` and `I_Q(Z; Ŷ | S) ≤ ε_l`. With `v = y` these are all behaviours there are (an
//! oracle: a bound, in general not attained); with `v = ŷ` of a given classifier they are all its
//! post-processings that know group and client. Both informations are sums of relative entropies
//! of linear functions of `r`, so the problem is a programme over exponential cones; a bound of 0
//! is a set of linear equations.

use std::f64::consts::LN_2;

use rayon::prelude::*;
use serde::Serialize;

use super::counts::Counts;
use super::joint::Joint;
use crate::conic::{Affine, Program};
use crate::{Error, Result};

/// Bounds below this, in bits, are treated as 0.
const ZERO: f64 = 1e-9;

/// Which predictors are considered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Predictors {
    /// All: the decision may depend on group, client and the true label.
    #[default]
    Any,
    /// Those made from the given predictions, group and client.
    PostProcessed,
}

/// `P(z, s, v)` and what each decision there gains.
#[derive(Debug, Clone)]
pub struct Behaviour {
    nz: usize,
    ns: usize,
    classes: usize,
    /// Cells of positive mass: z, s, mass, gain per class.
    cells: Vec<Cell>,
    /// `P(z, s)` as `[z, s]`.
    zs: Vec<f64>,
}

#[derive(Debug, Clone)]
struct Cell {
    z: usize,
    s: usize,
    mass: f64,
    gain: Vec<f64>,
}

/// The best there is under two bounds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Limit {
    /// Bound on `I(Z; Ŷ)`, bits; infinite if there was none (`null` in JSON).
    pub epsilon_global: f64,
    /// Bound on `I(Z; Ŷ | S)`, bits; infinite if there was none (`null` in JSON).
    pub epsilon_local: f64,
    /// The highest accuracy.
    pub accuracy: f64,
    /// `I(Z; Ŷ)` of the predictor that attains it, bits.
    pub global: f64,
    /// `I(Z; Ŷ | S)` of the predictor that attains it, bits.
    pub local: f64,
}

impl Behaviour {
    /// From a table of counts.
    ///
    /// # Errors
    /// When the table is empty.
    pub fn new(counts: &Counts, predictors: Predictors) -> Result<Self> {
        let (nz, ns, k) = (counts.groups.len(), counts.clients.len(), counts.classes.len());
        let mut gains = vec![0.; nz * ns * k * k];
        for ([z, s, y, p], &n) in counts.cells().zip(&counts.counts) {
            let v = if predictors == Predictors::Any { y } else { p };
            gains[((z * ns + s) * k + v) * k + y] += n as f64;
        }
        Self::from_gains(nz, ns, k, &gains)
    }

    /// From `P(z, s, y)` as `[z, s, y]`, for all predictors.
    ///
    /// # Errors
    /// When a weight is negative or not finite, or all are 0.
    pub fn from_labels(nz: usize, ns: usize, classes: usize, weights: &[f64]) -> Result<Self> {
        // Checks the weights.
        Joint::from_weights(nz, ns, classes, weights)?;
        let mut gains = vec![0.; weights.len() * classes];
        weights.iter().enumerate().for_each(|(i, &w)| gains[i * classes + i % classes] = w);
        Self::from_gains(nz, ns, classes, &gains)
    }

    /// `gains[z, s, v, y]`: weight of the samples with label y.
    fn from_gains(nz: usize, ns: usize, classes: usize, gains: &[f64]) -> Result<Self> {
        let total: f64 = gains.iter().sum();
        if !(total > 0.) {
            return Err(Error::config("counts", "are all 0: there is nothing to bound"));
        }
        let mut cells = Vec::new();
        let mut zs = vec![0.; nz * ns];
        for (i, gain) in gains.chunks(classes).enumerate() {
            let gain: Vec<f64> = gain.iter().map(|g| g / total).collect();
            let mass: f64 = gain.iter().sum();
            let at = i / classes;
            zs[at] += mass;
            if mass > 0. {
                cells.push(Cell { z: at / ns, s: at % ns, mass, gain });
            }
        }
        Ok(Self { nz, ns, classes, cells, zs })
    }

    /// The accuracy of the best predictor under `epsilon_global` and `epsilon_local` bits; infinity
    /// is no bound.
    ///
    /// # Errors
    /// When a bound is negative or NaN, or the solver fails.
    pub fn limit(&self, epsilon_global: f64, epsilon_local: f64) -> Result<Limit> {
        for (name, epsilon) in [("eps_g", epsilon_global), ("eps_l", epsilon_local)] {
            if epsilon.is_nan() || epsilon < 0. {
                return Err(Error::config(
                    name,
                    format!("{epsilon} is not a bound of 0 bits or more"),
                ));
            }
        }
        let mut program = Program::default();
        let variables: Vec<Vec<usize>> = self
            .cells
            .iter()
            .map(|cell| cell.gain.iter().map(|g| program.variable(-g)).collect())
            .collect();
        for cell in &variables {
            cell.iter().for_each(|&r| program.nonnegative(Affine::of([(r, 1.)])));
            let one = Affine::constant(1.);
            program.zero(Affine::of(cell.iter().map(|&r| (r, 1.))).minus(&one));
        }
        self.bound(&mut program, &variables, epsilon_global, false);
        self.bound(&mut program, &variables, epsilon_local, true);
        let x = program.solve("eps")?;
        let rows = variables.iter().map(|cell| {
            let row: Vec<f64> = cell.iter().map(|&r| x[r].max(0.)).collect();
            let sum: f64 = row.iter().sum();
            row.iter().map(|r| r / sum).collect()
        });
        self.settle(rows.collect(), epsilon_global, epsilon_local)
    }

    /// The limits of every pair of bounds, `[global, local]`.
    ///
    /// # Errors
    /// As [`Behaviour::limit`].
    pub fn surface(&self, global: &[f64], local: &[f64]) -> Result<Vec<Limit>> {
        let pairs: Vec<(f64, f64)> =
            global.iter().flat_map(|&g| local.iter().map(move |&l| (g, l))).collect();
        pairs.into_par_iter().map(|(g, l)| self.limit(g, l)).collect()
    }

    /// Adds `I ≤ epsilon`, of all clients together or given the client.
    fn bound(&self, program: &mut Program, r: &[Vec<usize>], epsilon: f64, given_client: bool) {
        if epsilon.is_infinite() {
            return;
        }
        let parts = if given_client { self.ns } else { 1 };
        let inside = |s: usize, part: usize| !given_client || s == part;
        let mut terms = Vec::new();
        for part in 0..parts {
            let share = |z: usize| -> f64 {
                (0..self.ns).filter(|&s| inside(s, part)).map(|s| self.zs[z * self.ns + s]).sum()
            };
            let shares: Vec<f64> = (0..self.nz).map(share).collect();
            let whole: f64 = shares.iter().sum();
            for k in 0..self.classes {
                let mass = |only: Option<usize>| {
                    let cells = self.cells.iter().zip(r).filter(|(cell, _)| {
                        inside(cell.s, part) && only.is_none_or(|z| z == cell.z)
                    });
                    Affine::of(cells.map(|(cell, r)| (r[k], cell.mass)))
                };
                for z in (0..self.nz).filter(|&z| shares[z] > 0. && shares[z] < whole) {
                    let expected = mass(None).scaled(shares[z] / whole);
                    if epsilon < ZERO {
                        // Both sides over P(z), so that rare groups are held as tightly.
                        let scale = 1. / shares[z];
                        program.zero(mass(Some(z)).scaled(scale).minus(&expected.scaled(scale)));
                    } else {
                        // t ≥ q ln(q/m)  ⇔  q exp(−t/q) ≤ m.
                        let t = program.variable(0.);
                        let x = Affine::of([(t, -1.)]);
                        program.exponential(x, mass(Some(z)), expected);
                        terms.push((t, -1.));
                    }
                }
            }
        }
        if !terms.is_empty() {
            program.nonnegative(Affine { terms, constant: epsilon * LN_2 });
        }
    }

    /// Measures a predictor after moving it, by as little as the solver's tolerance asks for,
    /// towards the constant one: both informations are convex and 0 there.
    fn settle(
        &self,
        mut r: Vec<Vec<f64>>,
        epsilon_global: f64,
        epsilon_local: f64,
    ) -> Result<Limit> {
        let gain = |k: usize| self.cells.iter().map(|c| c.gain[k]).sum::<f64>();
        let best = (0..self.classes).max_by(|&a, &b| gain(a).total_cmp(&gain(b))).unwrap_or(0);
        let (global, local) = self.informations(&r)?;
        let within = |bound: f64, is: f64| if is > bound { bound / is } else { 1. };
        // Below ZERO a bound is met to rounding by the equations.
        let share =
            within(epsilon_global.max(ZERO), global).min(within(epsilon_local.max(ZERO), local));
        if share < 1. {
            for row in &mut r {
                row.iter_mut().enumerate().for_each(|(k, r)| {
                    *r = share * *r + if k == best { 1. - share } else { 0. };
                });
            }
        }
        let (global, local) = self.informations(&r)?;
        let gained = |(cell, row): (&Cell, &Vec<f64>)| {
            cell.gain.iter().zip(row).map(|(g, r)| g * r).sum::<f64>()
        };
        let accuracy = self.cells.iter().zip(&r).map(gained).sum::<f64>().min(1.);
        // What rounding leaves of a term that is 0 would only be looked at.
        let whole = |bits: f64| if bits < 1e-12 { 0. } else { bits };
        let (global, local) = (whole(global), whole(local));
        Ok(Limit { epsilon_global, epsilon_local, accuracy, global, local })
    }

    /// `I(Z; Ŷ)` and `I(Z; Ŷ | S)` in bits.
    fn informations(&self, r: &[Vec<f64>]) -> Result<(f64, f64)> {
        let mut weights = vec![0.; self.nz * self.classes * self.ns];
        for (cell, row) in self.cells.iter().zip(r) {
            for (k, r) in row.iter().enumerate() {
                weights[(cell.z * self.classes + k) * self.ns + cell.s] += cell.mass * r;
            }
        }
        let joint = Joint::from_weights(self.nz, self.classes, self.ns, &weights)?;
        Ok((joint.global(), joint.local()))
    }
}
