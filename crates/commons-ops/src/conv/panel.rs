//! Convolution over panels: a few images (or a band of rows of one) are copied, padded and split
//! into phases, into a buffer that stays in the second-level cache, and all taps read from there.
//! The column matrix of im2col is never formed.

use std::ops::Range;

use rayon::prelude::*;

use super::geometry::{Class, Plan};
use super::kernel::{Correlation, Element, PackedRows, Product, SLACK};
use crate::slices::vectorised;

/// Elements of panel and result that should fit the second-level cache together.
const PANEL_BUDGET: usize = 192 * 1024;
/// Positions of a panel, if the batch has as many: products gain nothing from more, for
/// correlations four rows of them must stay in the first-level cache.
const PRODUCT_POSITIONS: usize = 512;
const CORRELATION_POSITIONS: usize = 2048 + 256;
/// Multiply-adds below which handing work to other threads costs more than it saves.
const SERIAL_WORK: usize = 1 << 20;
/// Number of partial weight gradients, fixed so that sums do not depend on the thread count.
const PARTIALS: usize = 8;
/// Elements of all partial weight gradients together.
const PARTIAL_BUDGET: usize = 1 << 23;

/// Channel structure of a convolution; the weight is `[groups · small, big, taps]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Channels {
    pub groups: usize,
    /// Channels per group on the small side.
    pub small: usize,
    /// Channels per group on the big side.
    pub big: usize,
    /// Taps of one channel pair, `kernel height · kernel width`.
    pub taps: usize,
}

/// Which way a weight is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// big → small: `conv`.
    Gather,
    /// small → big: `conv_transpose`, and the input gradient of `conv`.
    Scatter,
}

/// Images and rows that share one panel.
#[derive(Clone, Copy, Debug)]
struct Tile {
    image: usize,
    images: usize,
    /// Rows of positions.
    row: usize,
    rows: usize,
}

/// Memory layout of a panel.
#[derive(Clone, Copy, Debug)]
struct PanelShape {
    image_rows: usize,
    image_stride: usize,
    positions: usize,
    plane: usize,
    channel: usize,
}

impl PanelShape {
    fn new(plan: &Plan, tile: &Tile) -> Self {
        let pitch = plan.cols.pitch;
        let image_rows =
            if tile.images > 1 { plan.rows.pitch } else { tile.rows + plan.rows.reach };
        let image_stride = image_rows * pitch;
        let positions = (tile.images - 1) * image_stride + tile.rows * pitch;
        let last = plan.rows.reach * pitch + plan.cols.reach;
        let plane = (tile.images * image_stride).max(positions + last + SLACK);
        // An odd number of cache lines keeps the planes of a panel out of each other's sets.
        let plane = (plane.div_ceil(16) | 1) * 16;
        let channel = plan.rows.phases * plan.cols.phases * plane;
        Self { image_rows, image_stride, positions, plane, channel }
    }

    /// Pitch of result rows: positions plus what the last tile overruns.
    fn pitch(&self) -> usize {
        ((self.positions + SLACK).div_ceil(16) | 1) * 16
    }

    /// Panel offsets of every (channel, tap) in weight order.
    fn bases(&self, plan: &Plan, rows: &Class, cols: &Class, channels: usize) -> Vec<u32> {
        let mut bases = Vec::with_capacity(channels * rows.taps.len() * cols.taps.len());
        for channel in 0..channels {
            for row in &rows.taps {
                for col in &cols.taps {
                    let plane = row.phase * plan.cols.phases + col.phase;
                    let base = channel * self.channel
                        + plane * self.plane
                        + row.base * plan.cols.pitch
                        + col.base;
                    bases.push(base as u32);
                }
            }
        }
        bases
    }
}

/// Cuts a batch into tiles.
fn tiles(
    plan: &Plan,
    channels_in: usize,
    channels_out: usize,
    batch: usize,
    enough: usize,
) -> Vec<Tile> {
    let result = plan.rows.pitch * plan.cols.pitch;
    let per_image = plan.image_len() * channels_in + result * channels_out;
    let positions = (plan.rows.positions * plan.cols.pitch).max(1);
    let all = plan.rows.positions;
    if per_image > 2 * PANEL_BUDGET {
        let rows = (all * PANEL_BUDGET / per_image).max(1);
        let bands = |image| {
            (0..all).step_by(rows).map(move |row| Tile {
                image,
                images: 1,
                row,
                rows: rows.min(all - row),
            })
        };
        return (0..batch).flat_map(bands).collect();
    }
    let images = (enough / positions)
        .min(PANEL_BUDGET / per_image.max(1))
        .min(batch.div_ceil(PARTIALS))
        .max(1);
    (0..batch)
        .step_by(images)
        .map(|image| Tile { image, images: images.min(batch - image), row: 0, rows: all })
        .collect()
}

/// One convolution in one direction, with packed weights.
struct Direction<'a, T> {
    plan: &'a Plan,
    groups: usize,
    channels_in: usize,
    channels_out: usize,
    /// Output channels of a group are cut into these ranges when images alone would not keep
    /// all threads busy.
    ranges: Vec<Range<usize>>,
    /// `[group][range][row class][column class]`.
    weights: Vec<PackedRows<T>>,
}

/// Applies the weight `[groups·small, big, kh, kw]` to `source` and returns the result
/// `[batch, channels, rows, columns]`.
pub(super) fn apply<T: Element>(
    plan: &Plan,
    channels: &Channels,
    side: Side,
    source: &[T],
    weight: &[T],
    bias: Option<&[T]>,
    batch: usize,
) -> Vec<T> {
    let (channels_in, channels_out) = match side {
        Side::Gather => (channels.big, channels.small),
        Side::Scatter => (channels.small, channels.big),
    };
    let target = plan.target_len();
    let mut out = vec![T::zero(); batch * channels.groups * channels_out * target];
    if out.is_empty() {
        return out;
    }
    let tiles = tiles(plan, channels_in, channels_out, batch, PRODUCT_POSITIONS);
    let split = batch < PARTIALS && channels_out > T::tile_height();
    let step = if split { T::tile_height() * 2 } else { channels_out };
    let ranges: Vec<_> =
        (0..channels_out).step_by(step).map(|c| c..(c + step).min(channels_out)).collect();
    let weights = pack_weights(plan, channels, side, weight, &ranges);
    let direction =
        Direction { plan, groups: channels.groups, channels_in, channels_out, ranges, weights };

    let work = batch * channels.groups * channels_in * channels_out * channels.taps * target;
    let tasks = direction.tasks(&tiles, &mut out, split);
    let run = |task: Task<'_, T>| direction.run(source, bias, task);
    if work < SERIAL_WORK {
        tasks.into_iter().for_each(run);
    } else {
        tasks.into_par_iter().for_each(run);
    }
    out
}

fn pack_weights<T: Element>(
    plan: &Plan,
    channels: &Channels,
    side: Side,
    weight: &[T],
    ranges: &[Range<usize>],
) -> Vec<PackedRows<T>> {
    let Channels { groups, small, big, taps } = *channels;
    let kernel_cols = plan.cols.classes.iter().map(|c| c.taps.len()).sum::<usize>();
    let mut packed = Vec::new();
    for group in 0..groups {
        for range in ranges {
            for rows in &plan.rows.classes {
                for cols in &plan.cols.classes {
                    let per_channel = rows.taps.len() * cols.taps.len();
                    let inputs = if side == Side::Gather { big } else { small };
                    packed.push(PackedRows::new(range.len(), inputs * per_channel, |row, column| {
                        let (input, tap) = (column / per_channel, column % per_channel);
                        let tap = rows.taps[tap / cols.taps.len()].index * kernel_cols
                            + cols.taps[tap % cols.taps.len()].index;
                        let output = range.start + row;
                        let (s, b) = match side {
                            Side::Gather => (output, input),
                            Side::Scatter => (input, output),
                        };
                        weight[((group * small + s) * big + b) * taps + tap]
                    }));
                }
            }
        }
    }
    packed
}

/// Disjoint part of the result computed by one call.
struct Task<'a, T> {
    tiles: &'a [Tile],
    /// Groups × ranges, flattened.
    units: Range<usize>,
    out: &'a mut [T],
}

impl<T: Element> Direction<'_, T> {
    fn tasks<'b>(&self, tiles: &'b [Tile], out: &'b mut [T], split: bool) -> Vec<Task<'b, T>> {
        let target = self.plan.target_len();
        let image = self.groups * self.channels_out * target;
        let units = self.groups * self.ranges.len();
        let mut tasks = Vec::new();
        let mut rest = out;
        // Tiles of one image (bands) write the same chunk, so they belong to one task.
        for tiles in tiles.chunk_by(|a, b| a.image == b.image) {
            let (chunk, tail) = rest.split_at_mut(tiles[0].images * image);
            rest = tail;
            if !split || tiles[0].images > 1 {
                tasks.push(Task { tiles, units: 0..units, out: chunk });
                continue;
            }
            let mut chunk = chunk;
            for unit in 0..units {
                let range = &self.ranges[unit % self.ranges.len()];
                let (part, tail) = chunk.split_at_mut(range.len() * target);
                chunk = tail;
                tasks.push(Task { tiles, units: unit..unit + 1, out: part });
            }
        }
        tasks
    }

    fn run(&self, source: &[T], bias: Option<&[T]>, task: Task<'_, T>) {
        let target = self.plan.target_len();
        let image_stride = task.out.len() / task.tiles[0].images;
        for tile in task.tiles {
            let shape = PanelShape::new(self.plan, tile);
            let rows = self.ranges.iter().map(Range::len).max().unwrap_or(0);
            let panel_len = shape.channel * self.channels_in;
            T::with_scratch(panel_len + rows * shape.pitch(), |scratch| {
                let (panel, result) = scratch.split_at_mut(panel_len);
                let mut packed = None;
                let mut offset = 0;
                for unit in task.units.clone() {
                    let group = unit / self.ranges.len();
                    let range = &self.ranges[unit % self.ranges.len()];
                    if packed != Some(group) {
                        pack(self.plan, tile, &shape, self.channels(group), source, panel);
                        packed = Some(group);
                    }
                    let first = group * self.channels_out + range.start;
                    let bias = bias.map(|b| &b[first..][..range.len()]);
                    let emit = Emit { tile, shape: &shape, bias, offset, image_stride };
                    self.classes(unit, range.len(), panel, result, &emit, task.out);
                    offset += range.len() * target;
                }
            });
        }
    }

    /// First input channel of a group, channels per group, and channels of the whole tensor.
    fn channels(&self, group: usize) -> (Range<usize>, usize) {
        let first = group * self.channels_in;
        (first..first + self.channels_in, self.groups * self.channels_in)
    }

    fn classes(
        &self,
        unit: usize,
        rows: usize,
        panel: &[T],
        result: &mut [T],
        emit: &Emit<'_, T>,
        out: &mut [T],
    ) {
        let per_unit = self.plan.rows.classes.len() * self.plan.cols.classes.len();
        let mut weights = self.weights[unit * per_unit..].iter();
        for row_class in &self.plan.rows.classes {
            for col_class in &self.plan.cols.classes {
                let Some(weights) = weights.next() else { return };
                T::product(Product {
                    rows: weights,
                    bases: &emit.shape.bases(self.plan, row_class, col_class, self.channels_in),
                    panel,
                    positions: emit.shape.positions,
                    out: result,
                    pitch: emit.shape.pitch(),
                });
                vectorised(
                    #[inline(always)]
                    || emit.write(self.plan, row_class, col_class, rows, result, out),
                );
            }
        }
    }
}

/// Copies the computed positions of a tile to where they belong.
struct Emit<'a, T> {
    tile: &'a Tile,
    shape: &'a PanelShape,
    bias: Option<&'a [T]>,
    /// Where the first row starts in the task's part of the result.
    offset: usize,
    image_stride: usize,
}

impl<T: Element> Emit<'_, T> {
    #[inline(always)]
    fn write(
        &self,
        plan: &Plan,
        row_class: &Class,
        col_class: &Class,
        rows: usize,
        result: &[T],
        out: &mut [T],
    ) {
        let Tile { images, row, rows: count, .. } = *self.tile;
        let (height, width) = (plan.rows.target, plan.cols.target);
        let (top, bottom, first_row) = row_class.valid(row, row + count, height);
        let (left, right, first_col) = col_class.valid(0, plan.cols.positions, width);
        if top >= bottom || left >= right {
            return;
        }
        for image in 0..images {
            for m in 0..rows {
                let bias = self.bias.map_or(T::zero(), |b| b[m]);
                let plane = self.offset + image * self.image_stride + m * height * width;
                let from = m * self.shape.pitch() + image * self.shape.image_stride;
                for t in top..bottom {
                    let from = from + (t - row) * plan.cols.pitch;
                    let y = first_row + (t - top) * row_class.step;
                    let values = &result[from + left..from + right];
                    let out = &mut out[plane + y * width..][..width][first_col..];
                    if col_class.step == 1 {
                        for (o, &v) in out.iter_mut().zip(values) {
                            *o = v + bias;
                        }
                    } else {
                        for (o, &v) in out.iter_mut().step_by(col_class.step).zip(values) {
                            *o = v + bias;
                        }
                    }
                }
            }
        }
    }
}

/// Fills a panel from `source` `[batch, channels, rows, columns]`; every element is written.
fn pack<T: Element>(
    plan: &Plan,
    tile: &Tile,
    shape: &PanelShape,
    (channels, total): (Range<usize>, usize),
    source: &[T],
    panel: &mut [T],
) {
    vectorised(
        #[inline(always)]
        || pack_planes(plan, tile, shape, (channels, total), source, panel),
    );
}

#[inline(always)]
fn pack_planes<T: Element>(
    plan: &Plan,
    tile: &Tile,
    shape: &PanelShape,
    (channels, total): (Range<usize>, usize),
    source: &[T],
    panel: &mut [T],
) {
    let (image_len, width) = (plan.source_len(), plan.cols.source);
    let pitch = plan.cols.pitch;
    let mut planes = panel.chunks_mut(shape.plane);
    for channel in channels {
        for row_phase in 0..plan.rows.phases {
            for col_phase in 0..plan.cols.phases {
                let Some(plane) = planes.next() else { return };
                let extent = plan.cols.extent(col_phase);
                let first = (extent.0 * plan.cols.phases + col_phase) - plan.cols.lead;
                let (body, slack) = plane.split_at_mut(tile.images * shape.image_stride);
                slack.fill(T::zero());
                for (index, rows) in body.chunks_mut(shape.image_stride).enumerate() {
                    let start = ((tile.image + index) * total + channel) * image_len;
                    let image = &source[start..start + image_len];
                    for (at, row) in rows.chunks_mut(pitch).enumerate() {
                        match plan.rows.source_index(row_phase, tile.row + at) {
                            Some(i) if extent.0 < extent.1 => {
                                let from = &image[i * width..][..width][first..];
                                pack_row(row, from, extent, plan.cols.phases);
                            }
                            _ => row.fill(T::zero()),
                        }
                    }
                }
            }
        }
    }
    debug_assert!(shape.image_rows * pitch == shape.image_stride);
}

/// Writes zeros, every `step`-th element of `from`, and zeros.
#[inline(always)]
fn pack_row<T: Element>(row: &mut [T], from: &[T], (low, high): (usize, usize), step: usize) {
    clear(&mut row[..low]);
    clear(&mut row[high..]);
    let body = &mut row[low..high];
    if step == 1 {
        copy(body, from);
    } else {
        for (o, &v) in body.iter_mut().zip(from.iter().step_by(step)) {
            *o = v;
        }
    }
}

/// Copies as many elements as `to` has. Rows are short: a call of `memcpy` would cost more than
/// the copy.
#[inline(always)]
fn copy<T: Element>(to: &mut [T], from: &[T]) {
    let from = &from[..to.len()];
    let (to, to_tail) = to.as_chunks_mut::<16>();
    let (from, from_tail) = from.as_chunks::<16>();
    for (t, f) in to.iter_mut().zip(from) {
        *t = *f;
    }
    for (t, f) in to_tail.iter_mut().zip(from_tail) {
        *t = *f;
    }
}

/// Zeros a slice that mostly has no or one element.
#[inline(always)]
fn clear<T: Element>(slice: &mut [T]) {
    match slice {
        [] => {}
        [a] => *a = T::zero(),
        [a, b] => (*a, *b) = (T::zero(), T::zero()),
        all => all.fill(T::zero()),
    }
}

/// Gradient of the weight `[groups·small, big, taps]`: `Σ small[p] · big[shifted by tap + p]`.
pub(super) fn correlate<T: Element>(
    plan: &Plan,
    channels: &Channels,
    big: &[T],
    small: &[T],
    batch: usize,
) -> Vec<T> {
    let len = channels.groups * channels.small * channels.big * channels.taps;
    let mut sum = vec![T::zero(); len];
    if len == 0 || batch == 0 {
        return sum;
    }
    // Channels of the big side are packed in blocks, so only one block counts.
    let block = (PANEL_BUDGET / 2 / (plan.image_len() * 2)).clamp(1, channels.big.max(1));
    let tiles = tiles(plan, block, 1, batch, CORRELATION_POSITIONS);
    let partials = (PARTIAL_BUDGET / len).clamp(2, PARTIALS);
    let chunk = tiles.len().div_ceil(partials).max(1);
    let run = |tiles: &[Tile]| {
        let mut partial = vec![T::zero(); len];
        for tile in tiles {
            correlate_tile(plan, channels, tile, block, big, small, &mut partial);
        }
        partial
    };
    let work = batch * len * plan.target_len();
    let partials: Vec<Vec<T>> = if work < SERIAL_WORK {
        tiles.chunks(chunk).map(run).collect()
    } else {
        tiles.par_chunks(chunk).map(run).collect()
    };
    for partial in partials {
        for (s, p) in sum.iter_mut().zip(partial) {
            *s += p;
        }
    }
    sum
}

fn correlate_tile<T: Element>(
    plan: &Plan,
    channels: &Channels,
    tile: &Tile,
    block: usize,
    big: &[T],
    small: &[T],
    out: &mut [T],
) {
    let shape = PanelShape::new(plan, tile);
    let panel_len = shape.channel * block;
    let pitch = shape.pitch();
    let (Some(rows), Some(cols)) = (plan.rows.classes.first(), plan.cols.classes.first()) else {
        return;
    };
    let bases = shape.bases(plan, rows, cols, block);
    let columns = channels.big * channels.taps;
    let group_len = channels.small * columns;
    T::with_scratch(panel_len + channels.small * pitch, |scratch| {
        let (panel, positions) = scratch.split_at_mut(panel_len);
        for (group, out) in out.chunks_mut(group_len).enumerate() {
            let range = group * channels.small..(group + 1) * channels.small;
            let total = channels.groups * channels.small;
            lay_out(plan, tile, &shape, (range, total), small, positions);
            for first in (0..channels.big).step_by(block) {
                let count = block.min(channels.big - first);
                let start = group * channels.big + first;
                let total = channels.groups * channels.big;
                pack(plan, tile, &shape, (start..start + count, total), big, panel);
                T::correlate(Correlation {
                    rows: positions,
                    pitch,
                    bases: &bases[..count * channels.taps],
                    panel,
                    positions: shape.positions,
                    out: &mut out[first * channels.taps..],
                    stride: columns,
                });
            }
        }
    });
}

/// Copies the small side to its positions, with zeros in between.
fn lay_out<T: Element>(
    plan: &Plan,
    tile: &Tile,
    shape: &PanelShape,
    (channels, total): (Range<usize>, usize),
    small: &[T],
    positions: &mut [T],
) {
    let (height, width) = (plan.rows.target, plan.cols.target);
    vectorised(
        #[inline(always)]
        || {
            for (row, channel) in positions.chunks_mut(shape.pitch()).zip(channels) {
                let mut images = row.chunks_mut(shape.image_stride);
                for index in 0..tile.images {
                    let Some(image) = images.next() else { return };
                    let start = ((tile.image + index) * total + channel) * height * width;
                    let from = &small[start + tile.row * width..][..tile.rows * width];
                    let (body, below) = image.split_at_mut(tile.rows * plan.cols.pitch);
                    below.fill(T::zero());
                    let rows = body.chunks_mut(plan.cols.pitch);
                    for (into, from) in rows.zip(from.chunks(width)) {
                        copy(&mut into[..width], from);
                        clear(&mut into[width..]);
                    }
                }
                images.for_each(|rest| rest.fill(T::zero()));
            }
        },
    );
}
