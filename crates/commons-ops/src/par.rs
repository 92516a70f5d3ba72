//! Threads. Work is cut into pieces whose size never depends on the number of threads, and inputs
//! too small to pay for waking a second thread stay on the caller's.

use rayon::prelude::*;

/// Elements of one piece of an elementwise pass: 64 KiB of `f32`.
pub(crate) const PIECE: usize = 16 * 1024;

/// Below this many elements an elementwise pass is not worth a second thread.
const SMALL: usize = 2 * PIECE;

/// Calls `f(start, piece)` for consecutive pieces of `data`.
pub(crate) fn blocks(data: &mut [f32], f: impl Fn(usize, &mut [f32]) + Sync) {
    if data.len() <= SMALL {
        return data.chunks_mut(PIECE).enumerate().for_each(|(i, d)| f(i * PIECE, d));
    }
    data.par_chunks_mut(PIECE).enumerate().for_each(|(i, d)| f(i * PIECE, d));
}

/// Calls `f` on matching pieces of `a` and `b`.
pub(crate) fn zip2(a: &mut [f32], b: &[f32], f: impl Fn(&mut [f32], &[f32]) + Sync) {
    if a.len() <= SMALL {
        return f(a, b);
    }
    a.par_chunks_mut(PIECE).zip(b.par_chunks(PIECE)).for_each(|(a, b)| f(a, b));
}

/// Calls `f` on matching pieces of `a`, `b` and `c`.
pub(crate) fn zip3(
    a: &mut [f32],
    b: &mut [f32],
    c: &[f32],
    f: impl Fn(&mut [f32], &mut [f32], &[f32]) + Sync,
) {
    if a.len() <= SMALL {
        return f(a, b, c);
    }
    a.par_chunks_mut(PIECE)
        .zip(b.par_chunks_mut(PIECE))
        .zip(c.par_chunks(PIECE))
        .for_each(|((a, b), c)| f(a, b, c));
}

/// Calls `f` on matching pieces of `a`, `b`, `c` and `d`.
pub(crate) fn zip4(
    a: &mut [f32],
    b: &mut [f32],
    c: &mut [f32],
    d: &[f32],
    f: impl Fn(&mut [f32], &mut [f32], &mut [f32], &[f32]) + Sync,
) {
    if a.len() <= SMALL {
        return f(a, b, c, d);
    }
    a.par_chunks_mut(PIECE)
        .zip(b.par_chunks_mut(PIECE))
        .zip(c.par_chunks_mut(PIECE))
        .zip(d.par_chunks(PIECE))
        .for_each(|(((a, b), c), d)| f(a, b, c, d));
}
