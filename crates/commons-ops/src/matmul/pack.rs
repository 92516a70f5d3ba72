//! Copies of operands in the order in which the kernel reads them.

use super::View;
use crate::simd::{LANES, Machine, Square, WithTranspose};

/// Panels of `lines` rows each; within a panel, column by column. The last panel is filled up
/// with zeros.
#[derive(Default)]
pub(super) struct Packed {
    data: Vec<f32>,
}

impl Packed {
    pub fn panels(&self, lines: usize, depth: usize) -> impl Iterator<Item = &[f32]> {
        self.data.chunks_exact((lines * depth).max(1))
    }

    /// Packs `x`, `lines` rows to a panel.
    pub fn fill(&mut self, machine: Machine, x: View<'_>, lines: usize) {
        let depth = x.columns;
        // What is left of the last use is overwritten, but for the rows that fill up.
        self.data.resize(x.rows.div_ceil(lines) * lines * depth, 0.0);
        let whole = x.rows / lines * lines;
        self.data[whole * depth..].fill(0.0);
        if x.column_stride == 1 && x.row_stride != 1 {
            return match lines {
                4 => machine.with_transpose(Turn::<4> { data: &mut self.data, x }),
                8 => machine.with_transpose(Turn::<8> { data: &mut self.data, x }),
                16 => machine.with_transpose(Turn::<16> { data: &mut self.data, x }),
                _ => machine.with_transpose(Turn::<32> { data: &mut self.data, x }),
            };
        }
        if x.row_stride == 1 {
            return match lines {
                4 => copy_columns::<4>(&mut self.data, x),
                8 => copy_columns::<8>(&mut self.data, x),
                16 => copy_columns::<16>(&mut self.data, x),
                _ => copy_columns::<32>(&mut self.data, x),
            };
        }
        for (p, panel) in self.data.chunks_exact_mut((lines * depth).max(1)).enumerate() {
            gather(panel, x.rows(p * lines..((p + 1) * lines).min(x.rows)), lines);
        }
    }
}

/// Columns of `x` are contiguous. A whole line of a panel is a few registers: its length is known
/// to the compiler, so that copying it is no call.
fn copy_columns<const LINES: usize>(data: &mut [f32], x: View<'_>) {
    for (p, panel) in data.chunks_exact_mut((LINES * x.columns).max(1)).enumerate() {
        let part = x.rows(p * LINES..((p + 1) * LINES).min(x.rows));
        let (panel, _) = panel.as_chunks_mut::<LINES>();
        if part.rows == LINES {
            for (k, to) in panel.iter_mut().enumerate() {
                if let Some(from) = part.data[k * part.column_stride..].first_chunk::<LINES>() {
                    *to = *from;
                }
            }
            continue;
        }
        for (k, to) in panel.iter_mut().enumerate() {
            let start = k * part.column_stride;
            to[..part.rows].copy_from_slice(&part.data[start..start + part.rows]);
        }
    }
}

/// Neither rows nor columns are contiguous.
fn gather(panel: &mut [f32], x: View<'_>, lines: usize) {
    for (k, to) in panel.chunks_exact_mut(lines).enumerate() {
        for (r, to) in to.iter_mut().take(x.rows).enumerate() {
            *to = x.data[r * x.row_stride + k * x.column_stride];
        }
    }
}

/// Rows of `x` are contiguous: they are turned in squares.
struct Turn<'a, const LINES: usize> {
    data: &'a mut [f32],
    x: View<'a>,
}

impl<const LINES: usize> WithTranspose for Turn<'_, LINES> {
    #[inline(always)]
    fn call(self, transpose: impl Fn(Square) -> Square) {
        let Self { data, x } = self;
        let depth = x.columns;
        for top in (0..x.rows).step_by(LANES) {
            let mut rows = [&[][..]; LANES];
            for (r, row) in rows.iter_mut().enumerate().take(x.rows - top) {
                let start = (top + r) * x.row_stride;
                *row = &x.data[start..start + depth];
            }
            for k in (0..depth).step_by(LANES) {
                let width = LANES.min(depth - k);
                let mut square = [[0f32; LANES]; LANES];
                for (line, row) in square.iter_mut().zip(rows) {
                    // Of a length known to the compiler, so that copying is no call.
                    match row.get(k..).and_then(<[f32]>::first_chunk::<LANES>) {
                        Some(part) => *line = *part,
                        None if row.is_empty() => {}
                        None => line[..width].copy_from_slice(&row[k..]),
                    }
                }
                let square = transpose(square);
                if LINES < LANES {
                    for (part, at) in (top..x.rows.min(top + LANES)).step_by(LINES).enumerate() {
                        let panel = &mut data[at * depth + k * LINES..][..width * LINES];
                        for (to, line) in panel.as_chunks_mut::<LINES>().0.iter_mut().zip(&square) {
                            if let Some(from) = line[part * LINES..].first_chunk::<LINES>() {
                                *to = *from;
                            }
                        }
                    }
                } else {
                    let panel = &mut data[top / LINES * LINES * depth + k * LINES..];
                    let panel = &mut panel[..width * LINES];
                    for (to, line) in panel.as_chunks_mut::<LINES>().0.iter_mut().zip(&square) {
                        if let Some(to) = to[top % LINES..].first_chunk_mut::<LANES>() {
                            *to = *line;
                        }
                    }
                }
            }
        }
    }
}
