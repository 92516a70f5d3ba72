//! Register-tiled inner loops: products with the columns of a panel, and correlations of rows
//! with those columns. Columns are never copied out; column `j` is `panel[bases[j]..]`.

use std::cell::RefCell;
use std::ops::{Add, AddAssign, Mul};

use candle_core::WithDType;
use pulp::{Arch, Simd, WithSimd};

/// Elements by which a panel or an output row may be overrun by the last tile.
pub(super) const SLACK: usize = 128;

/// Vectors of a correlation between two bounds checks; a block stays below [`SLACK`].
const UNROLL: usize = 4;

/// Bytes of packed weights kept hot while all positions of a panel pass by.
const WEIGHT_BLOCK_BYTES: usize = 192 * 1024;

/// Weight rows `[rows][columns]`, regrouped into blocks stored column by column.
#[derive(Clone, Debug)]
pub(super) struct PackedRows<T> {
    data: Vec<T>,
    blocks: Vec<Block>,
    columns: usize,
}

#[derive(Clone, Copy, Debug)]
struct Block {
    row: usize,
    rows: usize,
    /// Rows after padding to a tile height.
    height: usize,
    offset: usize,
}

impl<T: Element> PackedRows<T> {
    /// Packs `rows × columns` weights given by `weight(row, column)`.
    pub fn new(rows: usize, columns: usize, weight: impl Fn(usize, usize) -> T) -> Self {
        let tallest = T::tile_height();
        let mut packed =
            Self { data: Vec::with_capacity(rows * columns), blocks: Vec::new(), columns };
        let mut row = 0;
        while row < rows {
            let left = rows - row;
            let height = left.next_power_of_two().min(tallest);
            let count = left.min(height);
            packed.blocks.push(Block { row, rows: count, height, offset: packed.data.len() });
            for column in 0..columns {
                packed.data.extend(
                    (0..height).map(
                        |r| {
                            if r < count { weight(row + r, column) } else { T::zero() }
                        },
                    ),
                );
            }
            row += count;
        }
        packed
    }

    /// Rows of the first block: how finely rows can be split without a ragged block inside.
    fn block(&self, block: &Block) -> &[T] {
        &self.data[block.offset..][..block.height * self.columns]
    }
}

/// `out[m][p] = Σ_j rows[m][j] · panel[bases[j] + p]` for `p < positions`.
pub(super) struct Product<'a, T> {
    pub rows: &'a PackedRows<T>,
    pub bases: &'a [u32],
    /// Must extend [`SLACK`] beyond the last base plus the last position.
    pub panel: &'a [T],
    pub positions: usize,
    /// `[rows][pitch]`, `pitch ≥ positions + SLACK`; what lies past `positions` is scratch.
    pub out: &'a mut [T],
    pub pitch: usize,
}

/// `out[m][j] += Σ_p rows[m][p] · panel[bases[j] + p]` for `p < positions`.
pub(super) struct Correlation<'a, T> {
    /// `[m][pitch]`, zero from `positions` up to the pitch.
    pub rows: &'a [T],
    pub pitch: usize,
    pub bases: &'a [u32],
    pub panel: &'a [T],
    pub positions: usize,
    /// `[m][stride]`, of which `bases.len()` elements per row.
    pub out: &'a mut [T],
    pub stride: usize,
}

/// A scalar with the two inner loops of a convolution.
pub(super) trait Element:
    WithDType + Add<Output = Self> + Mul<Output = Self> + AddAssign + Send + Sync
{
    /// Height of the tallest register tile.
    fn tile_height() -> usize;
    fn product(task: Product<'_, Self>);
    fn correlate(task: Correlation<'_, Self>);
    /// Runs `f` with a reusable buffer of at least `len` elements of unspecified finite content.
    fn with_scratch<R>(len: usize, f: impl FnOnce(&mut [Self]) -> R) -> R;
}

impl Element for f64 {
    fn tile_height() -> usize {
        1
    }

    fn product(task: Product<'_, Self>) {
        for block in &task.rows.blocks {
            let out = &mut task.out[block.row * task.pitch..][..task.positions];
            out.fill(0.0);
            for (&w, &base) in task.rows.block(block).iter().zip(task.bases) {
                for (o, x) in out.iter_mut().zip(&task.panel[base as usize..]) {
                    *o += w * x;
                }
            }
        }
    }

    fn correlate(task: Correlation<'_, Self>) {
        for (row, out) in task.rows.chunks(task.pitch).zip(task.out.chunks_mut(task.stride)) {
            for (o, &base) in out.iter_mut().zip(task.bases) {
                let column = &task.panel[base as usize..];
                *o += row[..task.positions].iter().zip(column).map(|(a, b)| a * b).sum::<f64>();
            }
        }
    }

    fn with_scratch<R>(len: usize, f: impl FnOnce(&mut [Self]) -> R) -> R {
        f(&mut vec![0.0; len])
    }
}

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

impl Element for f32 {
    fn tile_height() -> usize {
        struct Height;
        impl WithSimd for Height {
            type Output = usize;
            fn with_simd<S: Simd>(self, _: S) -> usize {
                if S::REGISTER_COUNT >= 32 { 8 } else { 4 }
            }
        }
        Arch::new().dispatch(Height)
    }

    fn product(task: Product<'_, Self>) {
        Arch::new().dispatch(task);
    }

    fn correlate(task: Correlation<'_, Self>) {
        Arch::new().dispatch(task);
    }

    fn with_scratch<R>(len: usize, f: impl FnOnce(&mut [Self]) -> R) -> R {
        // Taken out of the cell, so that a nested use merely allocates a second buffer.
        let mut buffer = SCRATCH.take();
        if buffer.len() < len {
            buffer.resize(len, 0.0);
        }
        let result = f(&mut buffer[..len]);
        SCRATCH.set(buffer);
        result
    }
}

impl WithSimd for Product<'_, f32> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Product { rows, bases, panel, positions, out, pitch } = self;
        let widest = if S::REGISTER_COUNT >= 32 { 3 } else { 2 };
        let step = widest * S::F32_LANES;
        let per_block = (WEIGHT_BLOCK_BYTES / (rows.columns.max(1) * 4 * 8)).max(1);
        for blocks in rows.blocks.chunks(per_block) {
            for start in (0..positions).step_by(step) {
                for block in blocks {
                    let at = TileAt { bases, panel, start, pitch, rows: block.rows };
                    let weights = rows.block(block);
                    let out = &mut out[block.row * pitch..];
                    match (block.height, widest) {
                        (8, _) => tile::<S, 8, 3>(simd, at, weights, out),
                        (4, 3) => tile::<S, 4, 3>(simd, at, weights, out),
                        (4, _) => tile::<S, 4, 2>(simd, at, weights, out),
                        (2, 3) => tile::<S, 2, 3>(simd, at, weights, out),
                        (2, _) => tile::<S, 2, 2>(simd, at, weights, out),
                        (_, 3) => tile::<S, 1, 3>(simd, at, weights, out),
                        (_, _) => tile::<S, 1, 2>(simd, at, weights, out),
                    }
                }
            }
        }
    }
}

#[derive(Clone, Copy)]
struct TileAt<'a> {
    bases: &'a [u32],
    panel: &'a [f32],
    start: usize,
    pitch: usize,
    rows: usize,
}

/// One `MR × (NV·lanes)` tile, accumulated in registers over all columns.
#[inline(always)]
fn tile<S: Simd, const MR: usize, const NV: usize>(
    simd: S,
    at: TileAt<'_>,
    weights: &[f32],
    out: &mut [f32],
) {
    let width = NV * S::F32_LANES;
    let mut sums = [[simd.splat_f32s(0.0); NV]; MR];
    let (weights, _) = weights.as_chunks::<MR>();
    let panel = &at.panel[at.start..];
    for (weight, &base) in weights.iter().zip(at.bases) {
        let (column, _) = S::as_simd_f32s(&panel[base as usize..][..width]);
        let column: [S::f32s; NV] = std::array::from_fn(|v| column[v]);
        for row in 0..MR {
            let weight = simd.splat_f32s(weight[row]);
            for v in 0..NV {
                sums[row][v] = simd.mul_add_e_f32s(weight, column[v], sums[row][v]);
            }
        }
    }
    // All indices into the sums are compile-time constants, else they would live in memory.
    for row in 0..MR {
        if row < at.rows {
            let out = &mut out[row * at.pitch + at.start..][..width];
            let (out, _) = S::as_mut_simd_f32s(out);
            out[..NV].copy_from_slice(&sums[row][..NV]);
        }
    }
}

impl WithSimd for Correlation<'_, f32> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Correlation { rows, pitch, bases, panel, positions, out, stride } = self;
        let count = rows.len() / pitch.max(1);
        let blocks = positions.div_ceil(UNROLL * S::F32_LANES);
        let columns = bases.len();
        let mut row = 0;
        while row < count {
            let height = if S::REGISTER_COUNT >= 32 && count - row >= 4 {
                4
            } else if count - row >= 2 {
                2
            } else {
                1
            };
            let at = DotsAt { rows: &rows[row * pitch..], pitch, panel, blocks, stride };
            let out = &mut out[row * stride..];
            for first in (0..columns).step_by(6) {
                match height {
                    4 => dots::<S, 4, 6>(simd, at, bases, first, out),
                    2 if S::REGISTER_COUNT >= 32 => dots::<S, 2, 6>(simd, at, bases, first, out),
                    2 => {
                        dots::<S, 2, 3>(simd, at, bases, first, out);
                        if first + 3 < columns {
                            dots::<S, 2, 3>(simd, at, bases, first + 3, out);
                        }
                    }
                    _ => dots::<S, 1, 6>(simd, at, bases, first, out),
                }
            }
            row += height;
        }
    }
}

#[derive(Clone, Copy)]
struct DotsAt<'a> {
    rows: &'a [f32],
    pitch: usize,
    panel: &'a [f32],
    blocks: usize,
    stride: usize,
}

/// `MR × NC` dot products accumulated in registers. Columns past the last are computed again
/// and dropped, which keeps one code path.
#[inline(always)]
fn dots<S: Simd, const MR: usize, const NC: usize>(
    simd: S,
    at: DotsAt<'_>,
    bases: &[u32],
    first: usize,
    out: &mut [f32],
) {
    let len = at.blocks * UNROLL * S::F32_LANES;
    let rows: [&[[S::f32s; UNROLL]]; MR] =
        std::array::from_fn(|m| S::as_simd_f32s(&at.rows[m * at.pitch..][..len]).0.as_chunks().0);
    let columns: [&[[S::f32s; UNROLL]]; NC] = std::array::from_fn(|c| {
        let base = bases[(first + c).min(bases.len() - 1)] as usize;
        S::as_simd_f32s(&at.panel[base..][..len]).0.as_chunks().0
    });
    let mut sums = [[simd.splat_f32s(0.0); NC]; MR];
    for block in 0..at.blocks {
        // Bounds are checked once per block.
        let rows: [&[S::f32s; UNROLL]; MR] = std::array::from_fn(|m| &rows[m][block]);
        let columns: [&[S::f32s; UNROLL]; NC] = std::array::from_fn(|c| &columns[c][block]);
        for step in 0..UNROLL {
            for c in 0..NC {
                let column = columns[c][step];
                for m in 0..MR {
                    sums[m][c] = simd.mul_add_e_f32s(rows[m][step], column, sums[m][c]);
                }
            }
        }
    }
    let count = NC.min(bases.len() - first);
    for m in 0..MR {
        let out = &mut out[m * at.stride + first..][..count];
        for c in 0..NC {
            if c < count {
                out[c] += simd.reduce_sum_f32s(sums[m][c]);
            }
        }
    }
}
