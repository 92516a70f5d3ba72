//! Joint distributions of (Z, Ŷ, S) and the entropies of their marginals, in bits.

use crate::{Error, Result};

/// A joint distribution `P(z, ŷ, s)` of sensitive attribute, decision and client.
#[derive(Debug, Clone, PartialEq)]
pub struct Joint {
    /// Values of Z.
    pub nz: usize,
    /// Values of Ŷ.
    pub ny: usize,
    /// Values of S.
    pub ns: usize,
    /// Probabilities `[z, ŷ, s]`, which sum to 1.
    pub p: Vec<f64>,
}

/// Largest number of cells of a distribution that is looked at.
const CELLS: usize = 1 << 22;

impl Joint {
    /// Normalises weights `[z, ŷ, s]`.
    ///
    /// # Errors
    /// When the number of weights is not `nz·ny·ns`, one is negative or not finite, or all are 0.
    pub fn from_weights(nz: usize, ny: usize, ns: usize, weights: &[f64]) -> Result<Self> {
        let cells = nz.checked_mul(ny).and_then(|n| n.checked_mul(ns)).filter(|&n| n <= CELLS);
        if cells != Some(weights.len()) || weights.is_empty() {
            let reason = format!("{} weights do not fill {nz} × {ny} × {ns} cells", weights.len());
            return Err(Error::config("joint", reason));
        }
        if let Some(i) = weights.iter().position(|w| !w.is_finite() || *w < 0.) {
            let reason =
                format!("weight {i} is {}; weights are finite and not negative", weights[i]);
            return Err(Error::config("joint", reason));
        }
        let total = sum(weights.iter().copied());
        if !(total > 0.) || !total.is_finite() {
            return Err(Error::config("joint", "every cell is empty: there is nothing to audit"));
        }
        Ok(Self { nz, ny, ns, p: weights.iter().map(|w| w / total).collect() })
    }

    /// The empirical distribution of counts `[z, ŷ, s]`.
    ///
    /// # Errors
    /// As [`Joint::from_weights`].
    pub fn from_counts(nz: usize, ny: usize, ns: usize, counts: &[u64]) -> Result<Self> {
        let weights: Vec<f64> = counts.iter().map(|&n| n as f64).collect();
        Self::from_weights(nz, ny, ns, &weights)
    }

    /// `P(z, ŷ, s)`.
    pub fn at(&self, z: usize, y: usize, s: usize) -> f64 {
        self.p[(z * self.ny + y) * self.ns + s]
    }

    /// The marginal whose index is `place(z, ŷ, s)`, of `size` cells.
    pub(super) fn marginal(
        &self,
        size: usize,
        place: impl Fn(usize, usize, usize) -> usize,
    ) -> Vec<f64> {
        let mut parts = vec![Sum::default(); size];
        for z in 0..self.nz {
            for y in 0..self.ny {
                for s in 0..self.ns {
                    parts[place(z, y, s)].add(self.at(z, y, s));
                }
            }
        }
        parts.into_iter().map(Sum::value).collect()
    }

    /// `I(Z; Ŷ)`, the global disparity, in bits.
    pub fn global(&self) -> f64 {
        let zy = self.marginal(self.nz * self.ny, |z, y, _| z * self.ny + y);
        mutual(&zy, self.nz, self.ny)
    }

    /// `I(Z; S)`, how much the client says about the attribute, in bits.
    pub fn client(&self) -> f64 {
        let zs = self.marginal(self.nz * self.ns, |z, _, s| z * self.ns + s);
        mutual(&zs, self.nz, self.ns)
    }

    /// `I(Z; Ŷ | S)`, the local disparity, in bits.
    pub fn local(&self) -> f64 {
        sum((0..self.ns).map(|s| {
            let table = self.client_table(s);
            let share = sum(table.iter().copied());
            if share > 0. { mutual(&table, self.nz, self.ny) } else { 0. }
        }))
    }

    /// `I(Z; Ŷ | S = s)` and `P(s)` for each client; the information is `None` for an empty one.
    pub fn by_client(&self) -> Vec<(f64, Option<f64>)> {
        let one = |s| {
            let table = self.client_table(s);
            let share = sum(table.iter().copied());
            (share, (share > 0.).then(|| mutual(&table, self.nz, self.ny) / share))
        };
        (0..self.ns).map(one).collect()
    }

    /// `I(Z; (Ŷ, S))` in bits.
    pub fn total(&self) -> f64 {
        mutual(&self.p, self.nz, self.ny * self.ns)
    }

    /// `P(z, ŷ, s)` of one client, `[z, ŷ]`, not normalised.
    fn client_table(&self, s: usize) -> Vec<f64> {
        let cells = (0..self.nz).flat_map(|z| (0..self.ny).map(move |y| (z, y)));
        cells.map(|(z, y)| self.at(z, y, s)).collect()
    }
}

/// `Σ p log2(p·Σp / (p_row·p_column))` of a table of `rows × columns` weights: mutual information in
/// bits times the total weight. Never negative.
pub(super) fn mutual(table: &[f64], rows: usize, columns: usize) -> f64 {
    let row: Vec<f64> =
        (0..rows).map(|r| sum(table[r * columns..(r + 1) * columns].iter().copied())).collect();
    let column: Vec<f64> =
        (0..columns).map(|c| sum((0..rows).map(|r| table[r * columns + c]))).collect();
    let total = sum(row.iter().copied());
    let term = |r: usize, c: usize| {
        let p = table[r * columns + c];
        if p > 0. { p * (p / row[r] * (total / column[c])).log2() } else { 0. }
    };
    let cells = (0..rows).flat_map(|r| (0..columns).map(move |c| (r, c)));
    sum(cells.map(|(r, c)| term(r, c))).max(0.)
}

/// A sum with Neumaier's compensation: terms of both signs nearly cancel in informations.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sum {
    sum: f64,
    lost: f64,
}

impl Sum {
    pub fn add(&mut self, value: f64) {
        let total = self.sum + value;
        self.lost += if self.sum.abs() >= value.abs() {
            (self.sum - total) + value
        } else {
            (value - total) + self.sum
        };
        self.sum = total;
    }

    pub fn value(self) -> f64 {
        self.sum + self.lost
    }
}

/// The compensated sum.
pub(super) fn sum(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut total = Sum::default();
    values.into_iter().for_each(|v| total.add(v));
    total.value()
}
