//! Small convex programmes with exponential and power cones, solved by clarabel.

use clarabel::algebra::CscMatrix;
use clarabel::solver::SupportedConeT::{ExponentialConeT, NonnegativeConeT, PowerConeT, ZeroConeT};
use clarabel::solver::{DefaultSettings, DefaultSolver, IPSolver, SolverStatus};

use crate::{Error, Result};

/// An affine expression `Σ coefficient·x[variable] + constant`.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Affine {
    pub terms: Vec<(usize, f64)>,
    pub constant: f64,
}

impl Affine {
    pub fn constant(constant: f64) -> Self {
        Self { terms: Vec::new(), constant }
    }

    pub fn of(terms: impl IntoIterator<Item = (usize, f64)>) -> Self {
        Self { terms: terms.into_iter().collect(), constant: 0. }
    }

    pub fn minus(mut self, other: &Self) -> Self {
        self.terms.extend(other.terms.iter().map(|&(i, c)| (i, -c)));
        self.constant -= other.constant;
        self
    }

    pub fn scaled(mut self, factor: f64) -> Self {
        self.terms.iter_mut().for_each(|t| t.1 *= factor);
        self.constant *= factor;
        self
    }
}

/// `min cost·x` over cones.
#[derive(Debug, Default)]
pub(crate) struct Program {
    cost: Vec<f64>,
    zero: Vec<Affine>,
    nonnegative: Vec<Affine>,
    exponential: Vec<[Affine; 3]>,
    power: Vec<(f64, [Affine; 3])>,
}

impl Program {
    /// A new variable and its cost.
    pub fn variable(&mut self, cost: f64) -> usize {
        self.cost.push(cost);
        self.cost.len() - 1
    }

    /// `e = 0`.
    pub fn zero(&mut self, e: Affine) {
        self.zero.push(e);
    }

    /// `e ≥ 0`.
    pub fn nonnegative(&mut self, e: Affine) {
        self.nonnegative.push(e);
    }

    /// `y·exp(x/y) ≤ z`, `y > 0`.
    pub fn exponential(&mut self, x: Affine, y: Affine, z: Affine) {
        self.exponential.push([x, y, z]);
    }

    /// `x^α · y^(1−α) ≥ |z|`, `x, y ≥ 0`.
    pub fn power(&mut self, alpha: f64, x: Affine, y: Affine, z: Affine) {
        self.power.push((alpha, [x, y, z]));
    }

    /// The optimal `x`.
    ///
    /// # Errors
    /// When there is none, or the solver does not come near it; `what` says what was asked.
    pub fn solve(self, what: &str) -> Result<Vec<f64>> {
        let mut cones = Vec::new();
        if !self.zero.is_empty() {
            cones.push(ZeroConeT(self.zero.len()));
        }
        if !self.nonnegative.is_empty() {
            cones.push(NonnegativeConeT(self.nonnegative.len()));
        }
        cones.extend(self.exponential.iter().map(|_| ExponentialConeT()));
        cones.extend(self.power.iter().map(|(alpha, _)| PowerConeT(*alpha)));
        let rows: Vec<&Affine> = (self.zero.iter())
            .chain(&self.nonnegative)
            .chain(self.exponential.iter().flatten())
            .chain(self.power.iter().flat_map(|(_, e)| e))
            .collect();
        // clarabel wants A x + s = b with s in the cones: s is the expression itself.
        let (mut i, mut j, mut v) = (Vec::new(), Vec::new(), Vec::new());
        for (row, e) in rows.iter().enumerate() {
            for &(variable, coefficient) in e.terms.iter().filter(|t| t.1 != 0.) {
                i.push(row);
                j.push(variable);
                v.push(-coefficient);
            }
        }
        let n = self.cost.len();
        let a = CscMatrix::new_from_triplets(rows.len(), n, i, j, v);
        let b: Vec<f64> = rows.iter().map(|e| e.constant).collect();
        let p = CscMatrix::zeros((n, n));
        let settings = DefaultSettings { verbose: false, ..DefaultSettings::default() };
        let mut solver = DefaultSolver::new(&p, &self.cost, &a, &b, &cones, settings)
            .map_err(|e| Error::config(what, format!("cannot be posed: {e}")))?;
        solver.solve();
        match solver.solution.status {
            SolverStatus::Solved | SolverStatus::AlmostSolved => Ok(solver.solution.x),
            SolverStatus::PrimalInfeasible | SolverStatus::AlmostPrimalInfeasible => {
                Err(Error::config(what, "no point satisfies every bound; loosen one"))
            }
            // Stopped by rounding close to the optimum: callers check what they are given.
            SolverStatus::InsufficientProgress
                if solver.solution.x.iter().all(|x| x.is_finite()) =>
            {
                Ok(solver.solution.x)
            }
            other => Err(Error::config(what, format!("the solver gave up ({other})"))),
        }
    }
}
