//! Unique information after Bertschinger, Rauh, Olbrich, Jost and Ay: the convex programme of the
//! decomposition, solved by a barrier method whose optimum is certified by the dual.
//!
//! `Uni(Z:Ŷ|S) = min I_Q(Z; Ŷ | S)` over the `Q` with `Q(z, ŷ) = P(z, ŷ)` and `Q(z, s) = P(z, s)`.
//! As `I_Q(Z; Ŷ | S) = H_P(Z | S) − H_Q(Z | Ŷ, S)` this minimises
//! `F(Q) = Σ q_zys ln(q_zys / q_ys)`. For every `z` the cells `(ŷ, s)` form a table with fixed row
//! and column sums. The dual is `max Σ a_zy P(z, y) + Σ b_zs P(z, s)` subject to
//! `Σ_z exp(a_zy + b_zs) ≤ 1` for every `(y, s)`; any `a`, `b` become feasible by lowering `a`, so
//! every iterate yields a lower bound and the gap is known, not estimated.

use super::joint::{Joint, sum};
use crate::linear::solve_spd;
use crate::{Error, Result};

/// What the minimisation is left to when nothing is said, in bits.
pub const GAP: f64 = 1e-9;

/// Newton steps after which the solver gives up. Problems take about forty.
const STEPS: usize = 600;

/// Unknowns beyond which the dense Newton system would not fit the time or memory of an audit.
const UNKNOWNS: usize = 4000;

/// The decomposition of `I(Z; (Ŷ, S))`, in bits. No term is negative.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Pid {
    /// Unique disparity `Uni(Z:Ŷ|S)`: in the decisions, whatever the client.
    pub unique: f64,
    /// Redundant disparity `Red(Z:Ŷ,S)`: in the decisions because it is in the client.
    pub redundant: f64,
    /// Masked disparity `Syn(Z:Ŷ,S)`: seen only inside clients.
    pub masked: f64,
    /// `Uni(Z:S|Ŷ)`: what only the client says about the attribute.
    pub client_only: f64,
    /// `I(Z; Ŷ)` = unique + redundant.
    pub global: f64,
    /// `I(Z; Ŷ | S)` = unique + masked.
    pub local: f64,
    /// `I(Z; S)` = client_only + redundant.
    pub client: f64,
    /// Upper bound on how far `unique` is above the minimum, from the dual.
    pub gap: f64,
}

/// Decomposes to a duality gap of [`GAP`].
///
/// # Errors
/// As [`pid_broja_to`].
pub fn pid_broja(joint: &Joint) -> Result<Pid> {
    pid_broja_to(joint, GAP)
}

/// Decomposes to a duality gap of `gap` bits.
///
/// # Errors
/// When `gap` is not positive, the problem has too many cells, or rounding stops the solver before
/// the gap is reached (below about 1e-12).
pub fn pid_broja_to(joint: &Joint, gap: f64) -> Result<Pid> {
    if !(gap > 0.) || !gap.is_finite() {
        return Err(Error::config("gap", format!("{gap} is not a positive number of bits")));
    }
    let (global, local, client) = (joint.global(), joint.local(), joint.client());
    let conditional = {
        // H(Z|S) in nats, the constant between F and the information.
        let zs = joint.marginal(joint.nz * joint.ns, |z, _, s| z * joint.ns + s);
        let s = joint.marginal(joint.ns, |_, _, s| s);
        -sum((0..zs.len()).filter(|&i| zs[i] > 0.).map(|i| zs[i] * (zs[i] / s[i % joint.ns]).ln()))
    };
    let mut problem = Problem::new(joint)?;
    let (value, distance) = problem.solve(gap * std::f64::consts::LN_2)?;
    let to_bits = std::f64::consts::LOG2_E;
    // The optimum is bounded by all three informations; F is only known to rounding.
    let ceiling = global.min(local);
    let unique =
        ((conditional + value) * to_bits).clamp((global - client).max(0.).min(ceiling), ceiling);
    let redundant = global - unique;
    Ok(Pid {
        unique,
        redundant,
        masked: local - unique,
        client_only: (client - redundant).max(0.),
        global,
        local,
        client,
        gap: (distance * to_bits).max(0.),
    })
}

/// The table of one `z`: its rows and columns of positive mass, and the cells chosen as basis.
struct Block {
    /// Values of Ŷ and S that occur with this z.
    rows: Vec<usize>,
    columns: Vec<usize>,
    row_sums: Vec<f64>,
    column_sums: Vec<f64>,
    /// `[rows, columns]`.
    q: Vec<f64>,
    /// Cells of the spanning tree of the largest cells; the others are the free ones.
    tree: Vec<bool>,
    /// For each free cell, the cells that move with it and in which direction.
    cycles: Vec<Vec<(usize, f64)>>,
}

struct Problem {
    ny: usize,
    ns: usize,
    blocks: Vec<Block>,
    /// `Σ_z q` per `(ŷ, s)`.
    p: Vec<f64>,
    cells: usize,
}

impl Problem {
    fn new(joint: &Joint) -> Result<Self> {
        let (ny, ns) = (joint.ny, joint.ns);
        let mut blocks = Vec::with_capacity(joint.nz);
        for z in 0..joint.nz {
            let row = |y| sum((0..ns).map(|s| joint.at(z, y, s)));
            let column = |s| sum((0..ny).map(|y| joint.at(z, y, s)));
            let rows: Vec<usize> = (0..ny).filter(|&y| row(y) > 0.).collect();
            let columns: Vec<usize> = (0..ns).filter(|&s| column(s) > 0.).collect();
            let row_sums: Vec<f64> = rows.iter().map(|&y| row(y)).collect();
            let column_sums: Vec<f64> = columns.iter().map(|&s| column(s)).collect();
            let mass = sum(row_sums.iter().copied());
            // Independence given z is feasible and has no empty cell.
            let q = row_sums.iter().flat_map(|r| column_sums.iter().map(move |c| r * (c / mass)));
            let q: Vec<f64> = q.collect();
            let tree = vec![false; q.len()];
            let block = Block { rows, columns, row_sums, column_sums, q, tree, cycles: Vec::new() };
            blocks.push(block);
        }
        let unknowns: usize = blocks.iter().map(Block::freedom).sum();
        if unknowns > UNKNOWNS {
            return Err(Error::config(
                "joint",
                format!(
                    "{unknowns} unknowns ({} × {ny} × {ns} cells) are more than the {UNKNOWNS} the \
                     decomposition is made for; merge rare groups or clients",
                    joint.nz
                ),
            ));
        }
        let cells = blocks.iter().map(|b| b.q.len()).sum();
        let mut problem = Self { ny, ns, blocks, p: Vec::new(), cells };
        problem.p = problem.mixture(|block, i| block.q[i]);
        Ok(problem)
    }

    /// `Σ_z value` per `(ŷ, s)`.
    fn mixture(&self, value: impl Fn(&Block, usize) -> f64) -> Vec<f64> {
        let mut p = vec![0.; self.ny * self.ns];
        for block in &self.blocks {
            for i in 0..block.q.len() {
                p[block.place(i, self.ns)] += value(block, i);
            }
        }
        p
    }

    /// Follows the central path until primal and dual differ by at most `gap` nats; the value of F
    /// and the difference.
    fn solve(&mut self, gap: f64) -> Result<(f64, f64)> {
        let free: usize = self.blocks.iter().map(Block::freedom).sum();
        if free == 0 {
            return Ok((self.value(), 0.));
        }
        let mut best = f64::INFINITY;
        let mut mu = 0.1 / self.cells as f64;
        let mut rebuild = true;
        for _ in 0..STEPS {
            if rebuild {
                self.blocks.iter_mut().for_each(Block::choose_basis);
            }
            let (step, decrement) = self.newton(mu);
            self.advance(&step, mu, decrement);
            // Centred well enough for the next, or the certificate.
            rebuild = decrement < 0.3 * mu;
            if !rebuild {
                continue;
            }
            let value = self.value();
            let distance = value - self.bound(mu);
            best = best.min(distance);
            if distance <= gap {
                return Ok((value, distance));
            }
            if mu < 1e-19 {
                break;
            }
            mu *= 0.08;
        }
        Err(Error::config(
            "gap",
            format!(
                "a duality gap of {:.1e} bits is out of reach ({:.1e} was attained); ask for less",
                gap * std::f64::consts::LOG2_E,
                best * std::f64::consts::LOG2_E
            ),
        ))
    }

    /// `F(Q)` in nats.
    fn value(&self) -> f64 {
        let terms = self.blocks.iter().flat_map(|block| {
            (0..block.q.len()).map(move |i| {
                let (q, p) = (block.q[i], self.p[block.place(i, self.ns)]);
                if q > 0. { q * (q / p).min(1.).ln() } else { 0. }
            })
        });
        sum(terms)
    }

    fn slope(&self, block: &Block, i: usize, mu: f64) -> f64 {
        let (q, p) = (block.q[i], self.p[block.place(i, self.ns)]);
        (q / p).ln() - mu / q
    }

    /// The Newton direction of `F − μ Σ ln q`, cell by cell and block by block, and the decrement.
    fn newton(&self, mu: f64) -> (Vec<Vec<f64>>, f64) {
        let sizes: Vec<usize> = self.blocks.iter().map(|b| b.cycles.len()).collect();
        let n: usize = sizes.iter().sum();
        let mut gradient = vec![0.; n];
        let mut hessian = vec![0.; n * n];
        // Which unknowns move a cell of the mixture, and how far.
        let mut touching: Vec<Vec<(usize, f64)>> = vec![Vec::new(); self.ny * self.ns];
        let mut first = 0;
        for block in &self.blocks {
            let slopes: Vec<f64> = (0..block.q.len()).map(|i| self.slope(block, i, mu)).collect();
            let mut moved: Vec<Vec<(usize, f64)>> = vec![Vec::new(); block.q.len()];
            for (k, cycle) in block.cycles.iter().enumerate() {
                gradient[first + k] = cycle.iter().map(|&(i, sign)| sign * slopes[i]).sum();
                cycle.iter().for_each(|&(i, sign)| moved[i].push((first + k, sign)));
            }
            for (i, list) in moved.iter().enumerate() {
                let curvature = 1. / block.q[i] + mu / (block.q[i] * block.q[i]);
                add_outer(&mut hessian, n, list, curvature);
                touching[block.place(i, self.ns)].extend(list);
            }
            first += block.cycles.len();
        }
        for (list, &p) in touching.iter().zip(&self.p).filter(|(list, _)| !list.is_empty()) {
            add_outer(&mut hessian, n, list, -1. / p);
        }
        let step: Vec<f64> = solve_spd(&mut hessian, n, &gradient).iter().map(|s| -s).collect();
        let decrement = -gradient.iter().zip(&step).map(|(g, d)| g * d).sum::<f64>();
        let mut rest = step.as_slice();
        let cells = self.blocks.iter().zip(sizes).map(|(block, size)| {
            let (own, later) = rest.split_at(size);
            rest = later;
            let mut moves = vec![0.; block.q.len()];
            for (cycle, d) in block.cycles.iter().zip(own) {
                cycle.iter().for_each(|&(i, sign)| moves[i] += sign * d);
            }
            moves
        });
        (cells.collect(), decrement)
    }

    /// Takes the step, shortened until it stays inside and lowers the barrier function.
    fn advance(&mut self, step: &[Vec<f64>], mu: f64, decrement: f64) {
        let mut longest = 1f64;
        for (block, moves) in self.blocks.iter().zip(step) {
            for (q, d) in block.q.iter().zip(moves).filter(|(_, d)| **d < 0.) {
                longest = longest.min(-0.95 * q / d);
            }
        }
        let before: Vec<Vec<f64>> = self.blocks.iter().map(|b| b.q.clone()).collect();
        let start = self.barrier(mu);
        for _ in 0..40 {
            for ((block, old), moves) in self.blocks.iter_mut().zip(&before).zip(step) {
                for ((q, old), d) in block.q.iter_mut().zip(old).zip(moves) {
                    *q = old + longest * d;
                }
            }
            self.p = self.mixture(|block, i| block.q[i]);
            // The slack is rounding: near the centre differences drown in it.
            if self.barrier(mu) <= start - 0.1 * longest * decrement + 1e-15 {
                return;
            }
            longest *= 0.5;
        }
    }

    fn barrier(&self, mu: f64) -> f64 {
        let logs = self.blocks.iter().flat_map(|b| b.q.iter()).map(|q| q.ln());
        self.value() - mu * sum(logs)
    }

    /// The dual bound on F from the slopes at the current point.
    fn bound(&self, mu: f64) -> f64 {
        let mut excess = vec![0.; self.ny * self.ns];
        let mut prices = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            let (a, b) = block.prices(|i| self.slope(block, i, mu));
            for i in 0..block.q.len() {
                let (r, c) = (i / block.columns.len(), i % block.columns.len());
                excess[block.place(i, self.ns)] += (a[r] + b[c]).exp();
            }
            prices.push((a, b));
        }
        // Lowering a_zy by ln of the worst excess of its row makes the row feasible; equally for
        // columns. Take whichever costs less over all.
        let worst = |row: bool, k: usize| {
            let cells = (0..excess.len())
                .filter(|&i| if row { i / self.ns == k } else { i % self.ns == k });
            cells.map(|i| excess[i]).filter(|e| *e > 0.).fold(f64::NEG_INFINITY, f64::max).ln()
        };
        let by_row: Vec<f64> = (0..self.ny).map(|y| worst(true, y)).collect();
        let by_column: Vec<f64> = (0..self.ns).map(|s| worst(false, s)).collect();
        let (mut rows, mut columns) = (0., 0.);
        for (block, (a, b)) in self.blocks.iter().zip(&prices) {
            let plain = sum(a.iter().zip(&block.row_sums).map(|(a, w)| a * w))
                + sum(b.iter().zip(&block.column_sums).map(|(b, w)| b * w));
            rows +=
                plain - sum(block.rows.iter().zip(&block.row_sums).map(|(&y, w)| by_row[y] * w));
            columns += plain
                - sum(block.columns.iter().zip(&block.column_sums).map(|(&s, w)| by_column[s] * w));
        }
        rows.max(columns)
    }
}

impl Block {
    /// Index of cell `i` in the mixture.
    fn place(&self, i: usize, ns: usize) -> usize {
        let width = self.columns.len();
        self.rows[i / width] * ns + self.columns[i % width]
    }

    fn freedom(&self) -> usize {
        self.rows.len().saturating_sub(1) * self.columns.len().saturating_sub(1)
    }

    /// Makes the spanning tree of the largest cells the basis. Small cells are then unknowns of
    /// their own and keep their relative precision however close to 0 they come.
    fn choose_basis(&mut self) {
        let (height, width) = (self.rows.len(), self.columns.len());
        let mut order: Vec<usize> = (0..self.q.len()).collect();
        order.sort_by(|&i, &j| self.q[j].total_cmp(&self.q[i]));
        let mut component: Vec<usize> = (0..height + width).collect();
        self.tree.iter_mut().for_each(|t| *t = false);
        for i in order {
            let (one, other) = (component[i / width], component[height + i % width]);
            if one != other {
                component.iter_mut().filter(|c| **c == other).for_each(|c| *c = one);
                self.tree[i] = true;
            }
        }
        let free: Vec<usize> = (0..self.q.len()).filter(|&i| !self.tree[i]).collect();
        self.cycles = free.into_iter().map(|i| self.cycle(i)).collect();
    }

    /// The free cell `i` and the path through the tree that balances it: signs alternate.
    fn cycle(&self, i: usize) -> Vec<(usize, f64)> {
        let width = self.columns.len();
        let (from, to) = (i / width, self.rows.len() + i % width);
        let parents = self.walk(from);
        let (mut cycle, mut node, mut sign) = (vec![(i, 1.)], to, -1.);
        while let Some((cell, parent)) = parents[node] {
            cycle.push((cell, sign));
            sign = -sign;
            node = parent;
        }
        cycle
    }

    /// For each node of the tree reached from `from`, the cell and node through which.
    fn walk(&self, from: usize) -> Vec<Option<(usize, usize)>> {
        let (height, width) = (self.rows.len(), self.columns.len());
        let mut parents = vec![None; height + width];
        let (mut queue, mut seen) = (vec![from], vec![false; height + width]);
        seen[from] = true;
        while let Some(node) = queue.pop() {
            let cells: Vec<(usize, usize)> = if node < height {
                (0..width).map(|c| (node * width + c, height + c)).collect()
            } else {
                (0..height).map(|r| (r * width + node - height, r)).collect()
            };
            for (cell, next) in cells {
                if self.tree[cell] && !seen[next] {
                    seen[next] = true;
                    parents[next] = Some((cell, node));
                    queue.push(next);
                }
            }
        }
        parents
    }

    /// Multipliers `a` of the rows and `b` of the columns with `a + b = slope` on the tree.
    fn prices(&self, slope: impl Fn(usize) -> f64) -> (Vec<f64>, Vec<f64>) {
        let height = self.rows.len();
        let mut value = vec![None; height + self.columns.len()];
        if height == 0 {
            return (Vec::new(), Vec::new());
        }
        let parents = self.walk(0);
        value[0] = Some(0.);
        for node in 0..value.len() {
            // Climbs to a node whose value is known, then comes down.
            let (mut path, mut at) = (Vec::new(), node);
            while let (None, Some((cell, parent))) = (value[at], parents[at]) {
                path.push((at, cell));
                at = parent;
            }
            let mut known = value[at].unwrap_or(0.);
            for (at, cell) in path.into_iter().rev() {
                known = slope(cell) - known;
                value[at] = Some(known);
            }
        }
        let mut all: Vec<f64> = value.into_iter().map(|v| v.unwrap_or(0.)).collect();
        let b = all.split_off(height);
        (all, b)
    }
}

/// Adds `weight · v vᵀ` for the sparse `v`.
fn add_outer(matrix: &mut [f64], n: usize, v: &[(usize, f64)], weight: f64) {
    for &(i, x) in v {
        for &(j, y) in v {
            matrix[i * n + j] += weight * x * y;
        }
    }
}
