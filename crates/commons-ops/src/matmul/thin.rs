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
            1 => rows::<1>(dst, add, a, b, alpha),
            2 => rows::<2>(dst, add, a, b, alpha),
            3 => rows::<3>(dst, add, a, b, alpha),
            4 => rows::<4>(dst, add, a, b, alpha),
            5 => rows::<5>(dst, add, a, b, alpha),
            6 => rows::<6>(dst, add, a, b, alpha),
            7 => rows::<7>(dst, add, a, b, alpha),
            8 => rows::<8>(dst, add, a, b, alpha),
            _ => {}
        },
    );
}

/// Column after column, so that memory is read in one stream.
#[inline(always)]
fn rows<const R: usize>(dst: &mut [&mut [f32]], add: bool, a: View<'_>, b: View<'_>, alpha: f32) {
    let k = a.columns;
    let rows: [&[f32]; R] = std::array::from_fn(|i| &a.data[i * a.row_stride..][..k]);
    for j in 0..b.columns {
        let sums = sums(rows, &b.data[j * b.column_stride..][..k]);
        for (row, sum) in dst.iter_mut().zip(sums) {
            row[j] = if add { row[j] + alpha * sum } else { alpha * sum };
        }
    }
}

/// Inner products of the rows with `column`, each summed as [`simd::sum2`] does.
#[inline(always)]
fn sums<const R: usize>(rows: [&[f32]; R], column: &[f32]) -> [f32; R] {
    let (ys, y_rest) = column.as_chunks::<LANES>();
    let xs = rows.map(|row| &row.as_chunks::<LANES>().0[..ys.len()]);
    let mut lanes = [[0f32; LANES]; R];
    for (t, y) in ys.iter().enumerate() {
        for r in 0..R {
            lanes[r] = plus(lanes[r], &xs[r][t], y);
        }
    }
    if !y_rest.is_empty() {
        // Zeros change no lane: none is ever negative zero.
        let filled = |rest: &[f32]| {
            let mut all = [0f32; LANES];
            all[..rest.len()].copy_from_slice(rest);
            all
        };
        let y = filled(y_rest);
        for r in 0..R {
            lanes[r] = plus(lanes[r], &filled(&rows[r][column.len() - y_rest.len()..]), &y);
        }
    }
    lanes.map(simd::total)
}

#[inline(always)]
fn plus(sums: [f32; LANES], x: &[f32; LANES], y: &[f32; LANES]) -> [f32; LANES] {
    std::array::from_fn(|i| sums[i] + x[i] * y[i])
}
