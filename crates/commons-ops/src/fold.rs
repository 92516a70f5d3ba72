//! Weights read from one circular pool: consecutive elements stay consecutive, so that a gather is
//! a few scaled copies and a scatter a few scaled additions, without an index.

use candle_core::{Result, Tensor, bail};
use commons_core::Seed;

use crate::tape::{self, Cx, Op};
use crate::view::{fused, read};
use crate::{par, simd};

/// Elements of one task.
const PIECE: usize = 16 * 1024;

/// Consecutive elements of a weight that are consecutive in the pool.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Segment {
    /// First element in the flattened weight.
    pub at: usize,
    /// First element in the pool.
    pub from: usize,
    /// Number of elements.
    pub len: usize,
    /// `+1` or `−1`.
    pub sign: f32,
}

/// Where a weight lies in a pool under circular shifts (STABLE-RPS, Desai and Shrivastava 2024).
///
/// All weights of a pool of `m` elements stand one after the other; partition `c` holds the elements
/// `c·m..(c+1)·m` of that row, and its element `o` is read from slot `(u(c) + o) mod m` with the
/// sign `g(c)`. Every slot serves `⌊n/m⌋` or `⌈n/m⌉` of `n` elements.
#[derive(Debug, Clone, PartialEq)]
pub struct FoldedLayout {
    segments: Vec<Segment>,
    pool: usize,
    elements: usize,
}

impl FoldedLayout {
    /// The layout of `elements` elements that begin at place `start` of the row; shifts and signs
    /// come from `seed`.
    ///
    /// # Errors
    /// When the pool is empty or longer than `u32` can count.
    pub fn new(seed: Seed, start: u64, elements: usize, pool: usize) -> Result<Self> {
        if pool as u64 > u64::from(u32::MAX) {
            bail!("folded: a pool of {pool} elements is too long")
        }
        Self::with(start, elements, pool, |c| {
            let mut bits = [0u32; 2];
            seed.bits(2 * c, &mut bits);
            let shift = (u64::from(bits[0]) * pool as u64) >> 32;
            (shift as usize, if bits[1] & 1 == 0 { 1. } else { -1. })
        })
    }

    /// The layout under given `(shift, sign)` of every partition.
    ///
    /// # Errors
    /// When the pool is empty.
    pub fn with(
        start: u64,
        elements: usize,
        pool: usize,
        partition: impl Fn(u64) -> (usize, f32),
    ) -> Result<Self> {
        if pool == 0 {
            bail!("folded: the pool is empty")
        }
        let mut segments = Vec::new();
        let mut at = 0;
        while at < elements {
            let place = start + at as u64;
            let (c, o) = (place / pool as u64, (place % pool as u64) as usize);
            let (shift, sign) = partition(c);
            let from = (shift + o) % pool;
            let len = (pool - o).min(pool - from).min(elements - at);
            segments.push(Segment { at, from, len, sign });
            at += len;
        }
        Ok(Self { segments, pool, elements })
    }

    /// Segments in the order of the weight.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }
}

/// A weight of `shape` read from the flat `pool` by `layout`, times `scale`. The gradient of the
/// pool adds up in place over all weights that read it.
///
/// # Errors
/// When pool or shape are not those of the layout.
pub fn folded(pool: &Tensor, layout: &FoldedLayout, scale: f32, shape: &[usize]) -> Result<Tensor> {
    let (m, n) = (pool.dims1()?, shape.iter().product::<usize>());
    if m != layout.pool || n != layout.elements {
        bail!("folded: layout of {} in {} against {n} in {m}", layout.elements, layout.pool)
    }
    if !fused(&[pool]) {
        let part =
            |s: &Segment| pool.narrow(0, s.from, s.len)?.affine(f64::from(scale * s.sign), 0.);
        let parts = layout.segments.iter().map(part).collect::<Result<Vec<_>>>()?;
        return Tensor::cat(&parts, 0)?.reshape(shape);
    }
    let out = read(pool, |pool| Ok(gather(pool, layout, scale)))?;
    tape::record_f32(Folded { layout: layout.clone(), scale }, &[pool], out, shape)
}

fn gather(pool: &[f32], layout: &FoldedLayout, scale: f32) -> Vec<f32> {
    let mut out = vec![0f32; layout.elements];
    let mut rest = &mut out[..];
    let mut tasks = Vec::new();
    for s in &layout.segments {
        let (part, tail) = rest.split_at_mut(s.len);
        rest = tail;
        let from = pool[s.from..s.from + s.len].chunks(PIECE);
        tasks.extend(part.chunks_mut(PIECE).zip(from).map(|(y, x)| (y, x, scale * s.sign)));
    }
    par::each(tasks.into_iter(), layout.elements, |(y, x, c)| {
        simd::run(
            #[inline(always)]
            || y.iter_mut().zip(x).for_each(|(y, x)| *y = c * x),
        );
    });
    out
}

/// `pool += scale · sign · grad`, segment by segment: within one, pieces write different slots, so
/// threads change neither what is added nor in which order.
fn scatter(pool: &mut [f32], grad: &[f32], layout: &FoldedLayout, scale: f32) {
    for s in &layout.segments {
        let c = scale * s.sign;
        let to = pool[s.from..s.from + s.len].chunks_mut(PIECE);
        let tasks = to.zip(grad[s.at..s.at + s.len].chunks(PIECE));
        par::each(tasks, s.len, |(y, x)| {
            simd::run(
                #[inline(always)]
                || y.iter_mut().zip(x).for_each(|(y, x)| *y += c * x),
            );
        });
    }
}

struct Folded {
    layout: FoldedLayout,
    scale: f32,
}

impl Op for Folded {
    fn name(&self) -> &'static str {
        "folded"
    }

    fn backward(&self, cx: &mut Cx<'_>) -> Result<()> {
        if !cx.wants(0) {
            return Ok(());
        }
        let grad = cx.grad;
        cx.accumulate(0, |pool, _| {
            read(grad, |grad| {
                scatter(pool, grad, &self.layout, self.scale);
                Ok(())
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{agree, randn, var};

    #[test]
    fn shifts_are_golden() {
        let shifts = [1usize, 3, 2];
        let layout = FoldedLayout::with(0, 10, 4, |c| (shifts[c as usize], 1.)).unwrap();
        let slots: Vec<usize> =
            layout.segments.iter().flat_map(|s| s.from..s.from + s.len).collect();
        assert_eq!(slots, [1, 2, 3, 0, 3, 0, 1, 2, 2, 3]);
    }

    #[test]
    fn it_agrees_with_its_definition_and_adds_up_over_weights() {
        for (start, n, m) in [(0u64, 12usize, 5usize), (7, 30, 12), (3, 6, 100), (0, 9, 9)] {
            let layout = FoldedLayout::new(Seed::new(4), start, n, m).unwrap();
            let f = |x: &[Tensor]| folded(&x[0], &layout, 0.7, &[n / 3, 3]);
            agree(&[&randn(1, &[m])], f, f, 1e-6);
        }
        let pool = var(2, &[40_000]);
        let layouts =
            [0u64, 50_000].map(|s| FoldedLayout::new(Seed::new(1), s, 50_000, 40_000).unwrap());
        let sum = |l: &FoldedLayout| {
            crate::sum(&folded(pool.as_tensor(), l, 2., &[50_000]).unwrap()).unwrap()
        };
        let both = crate::add(&sum(&layouts[0]), &sum(&layouts[1])).unwrap();
        let grads = crate::backward(&both).unwrap();
        let got = grads.get(&pool).unwrap().to_vec1::<f32>().unwrap();
        let mut want = vec![0f32; 40_000];
        for s in layouts.iter().flat_map(|l| l.segments()) {
            want[s.from..s.from + s.len].iter_mut().for_each(|w| *w += 2. * s.sign);
        }
        assert_eq!(got, want);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let layout = FoldedLayout::new(Seed::new(4), 0, 6, 3).unwrap();
        assert!(folded(&randn(1, &[4]), &layout, 1., &[6]).is_err());
        assert!(folded(&randn(1, &[3]), &layout, 1., &[5]).is_err());
        assert!(FoldedLayout::new(Seed::new(4), 0, 6, 0).is_err());
    }
}
