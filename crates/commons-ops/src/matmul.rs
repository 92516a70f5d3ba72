//! Matrix products on strided `f32` slices.

use crate::par;
use faer::linalg::matmul::matmul as product;
use faer::{Accum, MatMut, MatRef, Par};

/// Multiply-adds that one thread does in about 0.1 ms: the size of a piece.
const GRAIN: usize = 8 << 20;

/// A row-major matrix, `stride` elements from row to row.
pub(crate) fn mat(data: &[f32], rows: usize, columns: usize, stride: usize) -> MatRef<'_, f32> {
    MatRef::from_row_major_slice_with_stride(data, rows, columns, stride)
}

/// A writable row-major matrix.
pub(crate) fn mat_mut(data: &mut [f32], rows: usize, columns: usize) -> MatMut<'_, f32> {
    MatMut::from_row_major_slice_mut(data, rows, columns)
}

/// `dst = alpha · a b`, or `dst += …` if `add`, on as many threads as there are. The cut into
/// pieces depends on the sizes only, and every element is summed by one thread.
pub(crate) fn matmul(
    dst: MatMut<'_, f32>,
    add: bool,
    a: MatRef<'_, f32>,
    b: MatRef<'_, f32>,
    alpha: f32,
) {
    let (m, n, k) = (dst.nrows(), dst.ncols(), a.ncols());
    let work = m * n * k;
    if work < 2 * GRAIN || (m < 2 * ROWS && n < 2 * COLUMNS) {
        return serial(dst, add, a, b, alpha);
    }
    // The longer side is cut in two, at a multiple of the micro-kernel's width.
    if n >= m && n >= 2 * COLUMNS || m < 2 * ROWS {
        let at = (n / 2).next_multiple_of(COLUMNS);
        let (left, right) = dst.split_at_col_mut(at);
        let (b_left, b_right) = b.split_at_col(at);
        par::join(|| matmul(left, add, a, b_left, alpha), || matmul(right, add, a, b_right, alpha));
    } else {
        let at = (m / 2).next_multiple_of(ROWS);
        let (top, bottom) = dst.split_at_row_mut(at);
        let (a_top, a_bottom) = a.split_at_row(at);
        par::join(|| matmul(top, add, a_top, b, alpha), || matmul(bottom, add, a_bottom, b, alpha));
    }
}

/// Cuts fall on multiples of these.
const ROWS: usize = 16;
const COLUMNS: usize = 96;

/// [`matmul`] on the calling thread.
pub(crate) fn serial(
    dst: MatMut<'_, f32>,
    add: bool,
    a: MatRef<'_, f32>,
    b: MatRef<'_, f32>,
    alpha: f32,
) {
    let accum = if add { Accum::Add } else { Accum::Replace };
    product(dst, accum, a, b, alpha, Par::Seq);
}
