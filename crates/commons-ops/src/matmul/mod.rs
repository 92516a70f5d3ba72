//! Matrix products on strided `f32` slices, by packed panels (Goto & van de Geijn 2008).
//!
//! Every element is summed over `k` in one order, in blocks of fixed size and by one thread, so
//! results depend neither on the number of threads nor on how the product was cut into pieces.

pub(crate) mod kernel;
mod pack;
#[cfg(test)]
mod tests;
mod thin;

use crate::{par, simd};
use kernel::Block;
use pack::Packed;
use std::cell::RefCell;
use std::ops::Range;

/// Multiply-adds that one thread does in about 0.2 ms: the size of a piece.
const GRAIN: usize = 16 << 20;
/// Pieces for each thread when the product is large.
const PIECES: usize = 4;
/// Multiply-adds worth waking a second thread for.
const LEAST: usize = 4 << 20;

/// Cuts fall on multiples of these: the height and width of the largest tile.
const ROWS: usize = 8;
const COLUMNS: usize = 32;

/// Depth of a block: a panel of `b` of this depth stays in the first-level cache.
const DEPTH: usize = 256;
/// Rows of a block of `a`, which stays in the second-level cache.
const HEIGHT: usize = 512;
/// Columns of a block of `b`, likewise.
const WIDTH: usize = 512;

/// A strided matrix to read.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

/// A row-major matrix, `stride` elements from row to row.
pub(crate) fn mat(data: &[f32], rows: usize, columns: usize, stride: usize) -> View<'_> {
    View { data, rows, columns, row_stride: stride, column_stride: 1 }
}

impl<'a> View<'a> {
    /// The transpose.
    pub fn t(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    /// Some of the rows.
    pub fn rows(self, range: Range<usize>) -> Self {
        let start = (range.start * self.row_stride).min(self.data.len());
        Self { data: &self.data[start..], rows: range.len(), ..self }
    }

    /// Some of the columns.
    pub fn columns(self, range: Range<usize>) -> Self {
        let start = (range.start * self.column_stride).min(self.data.len());
        Self { data: &self.data[start..], columns: range.len(), ..self }
    }
}

/// A matrix to write: its rows. Rows can be split anywhere, so disjoint parts of one matrix can
/// go to different threads.
pub(crate) type Rows<'a> = Vec<&'a mut [f32]>;

/// The rows of a contiguous matrix.
pub(crate) fn mat_mut(data: &mut [f32], rows: usize, columns: usize) -> Rows<'_> {
    if columns == 0 {
        return Vec::new();
    }
    data.chunks_exact_mut(columns).take(rows).collect()
}

/// `dst = alpha · a b`, or `dst += …` if `add`, on as many threads as there are.
pub(crate) fn matmul(dst: Rows<'_>, add: bool, a: View<'_>, b: View<'_>, alpha: f32) {
    // Decided before anything is cut: a piece must not be summed otherwise than the whole.
    if thin::fits(a, b) {
        return thin::pieces(dst, add, a, b, alpha);
    }
    let threads = rayon::current_num_threads().max(1);
    let work = a.rows * b.columns * a.columns;
    // Large products: a few pieces a thread, so that none waits long and operands are not packed
    // more often than needed. Small ones: a piece a thread.
    let grain = (work / (PIECES * threads)).max(GRAIN.min(work / threads)).max(LEAST);
    pieces(dst, add, a, b, alpha, grain);
}

/// [`matmul`] in pieces of about `grain` multiply-adds.
fn pieces(mut dst: Rows<'_>, add: bool, a: View<'_>, b: View<'_>, alpha: f32, grain: usize) {
    let (m, n, k) = (a.rows, b.columns, a.columns);
    // A few rows cost as much as a tile: what takes the time then is reading `b`.
    if m.max(ROWS) * n * k < 2 * grain || (m < 2 * ROWS && n < 2 * COLUMNS) {
        return packed(&mut dst, add, a, b, alpha);
    }
    // The side is cut whose other operand is cheaper to pack twice.
    if n >= 2 * COLUMNS && (n > m || m < 2 * ROWS) {
        let at = (n / 2).next_multiple_of(COLUMNS);
        let (left, right): (Rows<'_>, Rows<'_>) =
            dst.into_iter().map(|row| row.split_at_mut(at)).unzip();
        par::join(
            || pieces(left, add, a, b.columns(0..at), alpha, grain),
            || pieces(right, add, a, b.columns(at..n), alpha, grain),
        );
    } else {
        let at = (m / 2).next_multiple_of(ROWS);
        let bottom = dst.split_off(at);
        par::join(
            || pieces(dst, add, a.rows(0..at), b, alpha, grain),
            || pieces(bottom, add, a.rows(at..m), b, alpha, grain),
        );
    }
}

/// [`matmul`] on the calling thread; `dst` may have more columns than `b`, which are left alone.
pub(crate) fn serial(dst: &mut [&mut [f32]], add: bool, a: View<'_>, b: View<'_>, alpha: f32) {
    if thin::fits(a, b) {
        return thin::serial(dst, add, a, b, alpha);
    }
    packed(dst, add, a, b, alpha);
}

fn packed(dst: &mut [&mut [f32]], add: bool, a: View<'_>, b: View<'_>, alpha: f32) {
    thread_local! {
        static SCRATCH: RefCell<[Packed; 2]> = RefCell::default();
    }
    let (m, n, k) = (a.rows, b.columns, a.columns);
    if k == 0 && !add {
        dst.iter_mut().for_each(|row| row[..n].fill(0.0));
    }
    let machine = simd::machine();
    let (height, width) = machine.tile();
    SCRATCH.with_borrow_mut(|[pa, pb]| {
        for depth in blocks(k, DEPTH) {
            let add = add || depth.start > 0;
            for columns in blocks(n, WIDTH) {
                pb.fill(machine, b.columns(columns.clone()).rows(depth.clone()).t(), width);
                for rows in blocks(m, HEIGHT) {
                    pa.fill(machine, a.rows(rows.clone()).columns(depth.clone()), height);
                    machine.run(Block {
                        dst: &mut dst[rows],
                        columns: columns.clone(),
                        a: pa,
                        b: pb,
                        depth: depth.len(),
                        add,
                        alpha,
                    });
                }
            }
        }
    });
}

fn blocks(total: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    (0..total).step_by(size).map(move |start| start..(start + size).min(total))
}
