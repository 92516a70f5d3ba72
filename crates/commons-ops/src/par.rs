//! Threads. Work is cut into pieces whose size never depends on the number of threads, and inputs
//! too small to pay for waking a second thread stay on the caller's.

use crate::tape::isolated;
use rayon::prelude::*;

/// Elements of one piece of an elementwise pass: 64 KiB of `f32`.
pub(crate) const PIECE: usize = 16 * 1024;

/// Below this many elements an elementwise pass is not worth a second thread.
pub(crate) const SMALL: usize = 2 * PIECE;

/// Rows of `width` elements that make up a piece.
pub(crate) fn rows_per_piece(width: usize) -> usize {
    (PIECE / width.max(1)).max(1)
}

/// Runs every task; on several threads if there are more than [`SMALL`] elements of work in all.
pub(crate) fn each<T: Send>(
    tasks: impl Iterator<Item = T>,
    work: usize,
    f: impl Fn(T) + Sync + Send,
) {
    if work <= SMALL {
        return tasks.for_each(f);
    }
    let tasks: Vec<T> = tasks.collect();
    isolated(|| tasks.into_par_iter().with_max_len(1).for_each(f));
}

/// As [`each`], returning the results in the order of the tasks.
pub(crate) fn map<T: Send, R: Send>(
    tasks: impl Iterator<Item = T>,
    work: usize,
    f: impl Fn(T) -> R + Sync + Send,
) -> Vec<R> {
    if work <= SMALL {
        return tasks.map(f).collect();
    }
    let tasks: Vec<T> = tasks.collect();
    isolated(|| tasks.into_par_iter().with_max_len(1).map(f).collect())
}

/// Runs both, on two threads if there is one free.
pub(crate) fn join(a: impl FnOnce() + Send, b: impl FnOnce() + Send) {
    isolated(|| rayon::join(a, b));
}

/// Calls `f(start, piece)` for consecutive pieces of `data`.
pub(crate) fn blocks(data: &mut [f32], f: impl Fn(usize, &mut [f32]) + Sync + Send) {
    let work = data.len();
    each(data.chunks_mut(PIECE).enumerate(), work, |(i, d)| f(i * PIECE, d));
}

/// Calls `f` on matching pieces of `a` and `b`.
pub(crate) fn zip2(a: &mut [f32], b: &[f32], f: impl Fn(&mut [f32], &[f32]) + Sync + Send) {
    let work = a.len();
    each(a.chunks_mut(PIECE).zip(b.chunks(PIECE)), work, |(a, b)| f(a, b));
}

/// Calls `f` on matching pieces of `a`, `b` and `c`.
pub(crate) fn zip3(
    a: &mut [f32],
    b: &mut [f32],
    c: &[f32],
    f: impl Fn(&mut [f32], &mut [f32], &[f32]) + Sync + Send,
) {
    let work = a.len();
    let tasks = a.chunks_mut(PIECE).zip(b.chunks_mut(PIECE)).zip(c.chunks(PIECE));
    each(tasks, work, |((a, b), c)| f(a, b, c));
}

/// Calls `f` on matching pieces of `a`, `b`, `c` and `d`.
pub(crate) fn zip4(
    a: &mut [f32],
    b: &mut [f32],
    c: &mut [f32],
    d: &[f32],
    f: impl Fn(&mut [f32], &mut [f32], &mut [f32], &[f32]) + Sync + Send,
) {
    let work = a.len();
    let tasks =
        a.chunks_mut(PIECE).zip(b.chunks_mut(PIECE)).zip(c.chunks_mut(PIECE)).zip(d.chunks(PIECE));
    each(tasks, work, |(((a, b), c), d)| f(a, b, c, d));
}
