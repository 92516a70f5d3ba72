//! The inner product of two packed blocks, tile by tile.

use super::pack::Packed;
use pulp::{Simd, WithSimd};
use std::ops::Range;

/// One packed block of `a` times one of `b`.
pub(crate) struct Block<'a, 'r> {
    pub(super) dst: &'a mut [&'r mut [f32]],
    pub(super) columns: Range<usize>,
    pub(super) a: &'a Packed,
    pub(super) b: &'a Packed,
    pub(super) depth: usize,
    pub(super) add: bool,
    pub(super) alpha: f32,
}

/// A [`Block`] to be run in tiles of `HEIGHT` rows by `VECTORS` registers.
pub(crate) struct Tiled<'a, 'r, const HEIGHT: usize, const VECTORS: usize>(pub Block<'a, 'r>);

impl<const HEIGHT: usize, const VECTORS: usize> WithSimd for Tiled<'_, '_, HEIGHT, VECTORS> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Block { dst, columns, a, b, depth, add, alpha } = self.0;
        let width = VECTORS * S::F32_LANES;
        for (j, b) in b.panels(width, depth).enumerate() {
            let start = columns.start + j * width;
            let end = (start + width).min(columns.end);
            for (rows, a) in dst.chunks_mut(HEIGHT).zip(a.panels(HEIGHT, depth)) {
                let sums = tile::<S, HEIGHT, VECTORS>(simd, a, b);
                for (row, sums) in rows.iter_mut().zip(&sums) {
                    store(simd, &mut row[start..end], sums, add, alpha);
                }
            }
        }
    }
}

/// `Σₖ a[k] ⊗ b[k]`, held in registers.
#[inline(always)]
fn tile<S: Simd, const HEIGHT: usize, const VECTORS: usize>(
    simd: S,
    a: &[f32],
    b: &[f32],
) -> [[S::f32s; VECTORS]; HEIGHT] {
    let mut sums = [[simd.splat_f32s(0.0); VECTORS]; HEIGHT];
    let (a, _) = a.as_chunks::<HEIGHT>();
    let (b, _) = S::as_simd_f32s(b);
    let (b, _) = b.as_chunks::<VECTORS>();
    for (a, b) in a.iter().zip(b) {
        for i in 0..HEIGHT {
            let x = simd.splat_f32s(a[i]);
            for v in 0..VECTORS {
                sums[i][v] = simd.mul_add_e_f32s(x, b[v], sums[i][v]);
            }
        }
    }
    sums
}

#[inline(always)]
fn store<S: Simd, const VECTORS: usize>(
    simd: S,
    to: &mut [f32],
    sums: &[S::f32s; VECTORS],
    add: bool,
    alpha: f32,
) {
    let factor = simd.splat_f32s(alpha);
    if to.len() == VECTORS * S::F32_LANES {
        let (to, _) = S::as_mut_simd_f32s(to);
        for (to, &sum) in to.iter_mut().zip(sums) {
            let sum = simd.mul_f32s(sum, factor);
            *to = if add { simd.add_f32s(*to, sum) } else { sum };
        }
        return;
    }
    for (to, &sum) in to.chunks_mut(S::F32_LANES).zip(sums) {
        let sum = simd.mul_f32s(sum, factor);
        let old = simd.partial_load_f32s(to);
        simd.partial_store_f32s(to, if add { simd.add_f32s(old, sum) } else { sum });
    }
}
