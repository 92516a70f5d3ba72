//! Products with a few rows, as when a model writes one token after another: inner products straight
//! from the operands, since packing would take longer than the work. What takes the time is reading
//! `b`, so each of its columns is read once for all rows, and by as many threads as there are.

use super::{Rows, View};
use crate::par;
use crate::simd::{self, LANES};

/// Up to this many rows a product is a few inner products per column.
pub(super) const THIN: usize = 8;

/// Elements of `b` that take a thread several times as long as waking it.
const PIECE: usize = 96 << 10;

/// Cuts fall on multiples of this many columns.
const CUT: usize = 16;

/// Whether a product is done here.
pub(super) fn fits(a: View<'_>, b: View<'_>) -> bool {
    a.rows <= THIN && a.column_stride == 1 && b.row_stride == 1
}

/// A product with at most [`THIN`] rows, on as many threads as there are.
pub(super) fn pieces(mut dst: Rows<'_>, add: bool, a: View<'_>, b: View<'_>, alpha: f32) {
    let (n, k) = (b.columns, a.columns);
    if n < 2 * CUT || n * k < 2 * PIECE || rayon::current_num_threads() == 1 {
        return serial(&mut dst, add, a, b, alpha);
    }
    let at = (n / 2).next_multiple_of(CUT);
    let (left, right): (Rows<'_>, Rows<'_>) =
        dst.into_iter().map(|row| row.split_at_mut(at)).unzip();
    par::join(
        || pieces(left, add, a, b.columns(0..at), alpha),
        || pieces(right, add, a, b.columns(at..n), alpha),
    );
}

/// [`pieces`] on the calling thread.
pub(super) fn serial(dst: &mut [&mut [f32]], add: bool, a: View<'_>, b: View<'_>, alpha: f32) {
    simd::run(
        #[inline(always)]
        || match a.rows {
            1 => some::<1, 4>(dst, add, a, b, alpha),
            2 => some::<2, 4>(dst, add, a, b, alpha),
            3 => some::<3, 2>(dst, add, a, b, alpha),
            4 => some::<4, 2>(dst, add, a, b, alpha),
            5 => some::<5, 1>(dst, add, a, b, alpha),
            6 => some::<6, 1>(dst, add, a, b, alpha),
            7 => some::<7, 1>(dst, add, a, b, alpha),
            8 => some::<8, 1>(dst, add, a, b, alpha),
            _ => {}
        },
    );
}

/// `R` rows, `C` columns at a time: sums of `R · C` chains do not wait for each other.
#[inline(always)]
fn some<const R: usize, const C: usize>(
    dst: &mut [&mut [f32]],
    add: bool,
    a: View<'_>,
    b: View<'_>,
    alpha: f32,
) {
    let k = a.columns;
    let rows: [&[f32]; R] = std::array::from_fn(|i| &a.data[i * a.row_stride..][..k]);
    let column = |j: usize| &b.data[j * b.column_stride..][..k];
    let whole = b.columns - b.columns % C;
    for j in (0..whole).step_by(C) {
        let sums = sums::<R, C>(rows, std::array::from_fn(|c| column(j + c)));
        store(dst, j, sums, add, alpha);
    }
    for j in whole..b.columns {
        store(dst, j, sums::<R, 1>(rows, [column(j)]), add, alpha);
    }
}

/// Inner products of all rows and columns, each summed as [`simd::sum2`] does.
#[inline(always)]
fn sums<const R: usize, const C: usize>(rows: [&[f32]; R], columns: [&[f32]; C]) -> [[f32; C]; R] {
    let mut lanes = [[[0f32; LANES]; C]; R];
    let xs = rows.map(|row| row.as_chunks::<LANES>());
    let ys = columns.map(|column| column.as_chunks::<LANES>());
    let chunks = columns.first().map_or(0, |column| column.len() / LANES);
    for t in 0..chunks {
        for c in 0..C {
            let y = ys[c].0[t];
            for r in 0..R {
                let x = xs[r].0[t];
                for i in 0..LANES {
                    lanes[r][c][i] += x[i] * y[i];
                }
            }
        }
    }
    for c in 0..C {
        for r in 0..R {
            for (i, (&x, &y)) in xs[r].1.iter().zip(ys[c].1).enumerate() {
                lanes[r][c][i] += x * y;
            }
        }
    }
    lanes.map(|row| row.map(simd::total))
}

#[inline(always)]
fn store<const R: usize, const C: usize>(
    dst: &mut [&mut [f32]],
    start: usize,
    sums: [[f32; C]; R],
    add: bool,
    alpha: f32,
) {
    for (row, sums) in dst.iter_mut().zip(sums) {
        for (to, sum) in row[start..start + C].iter_mut().zip(sums) {
            *to = if add { *to + alpha * sum } else { alpha * sum };
        }
    }
}
