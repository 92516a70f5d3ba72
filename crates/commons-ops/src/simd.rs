//! Instruction sets, chosen once at run time.
//!
//! Kernels are plain loops; [`run`] compiles them once per instruction set and calls the best one
//! the machine has. Loops keep their sums in [`LANES`] separate accumulators and use no fused
//! multiply-add, so every level gives the same bits.

use crate::matmul::kernel::{Block, Tiled};
use pulp::{Scalar, Simd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

/// Accumulators of a reduction: one AVX-512 register, two of AVX2, four of SSE2.
pub(crate) const LANES: usize = 16;

/// An instruction set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What the compilation target guarantees.
    Plain,
    /// AVX2.
    Avx2,
    /// AVX-512 F, BW, CD, DQ and VL.
    Avx512,
}

static LIMIT: AtomicU8 = AtomicU8::new(u8::MAX);

/// The best instruction set of this machine.
#[must_use]
pub fn available() -> Level {
    match detected() {
        Isa::Plain => Level::Plain,
        #[cfg(target_arch = "x86_64")]
        Isa::V3(_) => Level::Avx2,
        #[cfg(target_arch = "x86_64")]
        Isa::V4(_, _) => Level::Avx512,
    }
}

/// Uses no instruction set above `level` from now on, in the whole process. Results stay the
/// same; this is for measuring and testing.
pub fn limit(level: Level) {
    LIMIT.store(level as u8, Ordering::Relaxed);
}

#[derive(Clone, Copy)]
enum Isa {
    Plain,
    #[cfg(target_arch = "x86_64")]
    V3(pulp::x86::V3),
    #[cfg(target_arch = "x86_64")]
    V4(pulp::x86::V4, pulp::x86::V3),
}

fn detected() -> Isa {
    static ISA: OnceLock<Isa> = OnceLock::new();
    *ISA.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        if let Some(v3) = pulp::x86::V3::try_new() {
            return match pulp::x86::V4::try_new() {
                Some(v4) => Isa::V4(v4, v3),
                None => Isa::V3(v3),
            };
        }
        Isa::Plain
    })
}

/// The instruction set kernels are to use.
#[derive(Clone, Copy)]
pub(crate) struct Machine(Isa);

/// The best allowed instruction set.
pub(crate) fn machine() -> Machine {
    let limit = LIMIT.load(Ordering::Relaxed);
    Machine(match detected() {
        #[cfg(target_arch = "x86_64")]
        Isa::V4(_, v3) if limit == Level::Avx2 as u8 => Isa::V3(v3),
        _ if limit == Level::Plain as u8 => Isa::Plain,
        isa => isa,
    })
}

impl Machine {
    /// Rows and columns of a tile of the matrix product.
    pub fn tile(self) -> (usize, usize) {
        match self.0 {
            Isa::Plain => (4, 8),
            #[cfg(target_arch = "x86_64")]
            Isa::V3(_) => (4, 16),
            #[cfg(target_arch = "x86_64")]
            Isa::V4(_, _) => (8, 32),
        }
    }

    /// Runs a block of a matrix product, packed for [`Self::tile`].
    pub fn run(self, block: Block<'_, '_>) {
        match self.0 {
            Isa::Plain => Simd::vectorize(Scalar, Tiled::<4, 8>(block)),
            #[cfg(target_arch = "x86_64")]
            Isa::V3(v3) => Simd::vectorize(v3, Tiled::<4, 2>(block)),
            #[cfg(target_arch = "x86_64")]
            Isa::V4(v4, _) => Simd::vectorize(v4, Tiled::<8, 2>(block)),
        }
    }

    /// Runs `f` on a function that swaps the rows and columns of a square.
    #[inline(always)]
    pub fn with_transpose(self, f: impl WithTranspose) {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Isa::V4(v4, _) => v4.vectorize(
                #[inline(always)]
                || {
                    f.call(
                        #[inline(always)]
                        |square| transpose_v4(v4, square),
                    )
                },
            ),
            #[cfg(target_arch = "x86_64")]
            Isa::V3(v3) => v3.vectorize(
                #[inline(always)]
                || f.call(transpose_plain),
            ),
            Isa::Plain => f.call(transpose_plain),
        }
    }
}

/// Rows of a block of a matrix.
pub(crate) type Square = [[f32; LANES]; LANES];

/// Code that needs a transpose.
pub(crate) trait WithTranspose {
    fn call(self, transpose: impl Fn(Square) -> Square);
}

#[inline(always)]
fn transpose_plain(old: Square) -> Square {
    std::array::from_fn(|i| std::array::from_fn(|j| old[j][i]))
}

/// Four rounds in which row `i` is riffled with row `i + 8`.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn transpose_v4(v4: pulp::x86::V4, mut square: Square) -> Square {
    const LOW: [u32; LANES] = [0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23];
    const HIGH: [u32; LANES] = [8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31];
    for _ in 0..4 {
        let old = square;
        for i in 0..LANES / 2 {
            let (a, b) = (pulp::cast(old[i]), pulp::cast(old[i + LANES / 2]));
            let (low, high) = (pulp::cast(LOW), pulp::cast(HIGH));
            square[2 * i] = pulp::cast(v4.avx512f._mm512_permutex2var_ps(a, low, b));
            square[2 * i + 1] = pulp::cast(v4.avx512f._mm512_permutex2var_ps(a, high, b));
        }
    }
    square
}

/// Runs `f`, compiled for the best allowed instruction set. `f` and what it calls must be
/// `#[inline(always)]` to profit.
#[inline(always)]
pub(crate) fn run<R>(f: impl FnOnce() -> R) -> R {
    match machine().0 {
        #[cfg(target_arch = "x86_64")]
        Isa::V4(v4, _) => Simd::vectorize(v4, f),
        #[cfg(target_arch = "x86_64")]
        Isa::V3(v3) => Simd::vectorize(v3, f),
        Isa::Plain => Simd::vectorize(Scalar, f),
    }
}

/// Adds the lanes in a fixed tree.
#[inline(always)]
pub(crate) fn total(lanes: [f32; LANES]) -> f32 {
    let mut lanes = lanes;
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// `Σ f(xᵢ)`.
#[inline(always)]
pub(crate) fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += f(x);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane += f(x);
    }
    total(lanes)
}

/// `Σ f(xᵢ, yᵢ)`.
#[inline(always)]
pub(crate) fn sum2(x: &[f32], y: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (xs, x_rest) = x.as_chunks::<LANES>();
    let (ys, y_rest) = y.as_chunks::<LANES>();
    for (x, y) in xs.iter().zip(ys) {
        for i in 0..LANES {
            lanes[i] += f(x[i], y[i]);
        }
    }
    for (i, (&x, &y)) in x_rest.iter().zip(y_rest).enumerate() {
        lanes[i] += f(x, y);
    }
    total(lanes)
}

/// The largest element; NaN if there is one, `-∞` if there is none.
#[inline(always)]
pub(crate) fn max(x: &[f32]) -> f32 {
    let pick = |a: f32, b: f32| if a > b { a } else { b };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = pick(*lane, x);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = pick(*lane, x);
    }
    let top = lanes.into_iter().fold(f32::NEG_INFINITY, pick);
    // `pick` may lose a NaN to a later number; a sum of zero multiples does not.
    top + sum(x, |x| if x.is_nan() { x } else { 0.0 })
}

/// `e^x` to 2 units in the last place; 0 below `e^-87`, where results are no longer normal.
/// Cephes' polynomial on `x - n ln 2`.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0;
    let shifted = x * std::f32::consts::LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    let r = (x - n * 0.693_359_4) - n * -2.121_944_4e-4;
    let mut p = 1.987_569_2e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let y = p * (r * r) + r + 1.0;
    // 2^n is out of range for n = 128, so it is applied as 2 · 2^(n - 1).
    let exponent = shifted.to_bits().wrapping_sub(MAGIC.to_bits()).wrapping_add(126);
    let y = y * f32::from_bits(exponent << 23) * 2.0;
    let y = if x < -87.0 { 0.0 } else { y };
    if x > 88.722_83 { f32::INFINITY } else { y }
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Hyperbolic tangent to 3e-7 relative.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let s = x * x;
    // Taylor's series where 1 - 2/(e^2x + 1) would cancel.
    let mut near = -1_382.0 / 155_925.0;
    near = near * s + 62.0 / 2_835.0;
    near = near * s - 17.0 / 315.0;
    near = near * s + 2.0 / 15.0;
    near = near * s - 1.0 / 3.0;
    let near = x + x * (s * near);
    let far = 1.0 - 2.0 / (exp(2.0 * x) + 1.0);
    if s < 0.09 { near } else { far }
}

/// The normal distribution function `Φ(x)` to 1e-7 and `e^(-x²/2)`, which it computes on the way
/// (Abramowitz & Stegun 7.1.26).
#[inline(always)]
pub(crate) fn normal_cdf(x: f32) -> (f32, f32) {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let mut p = 1.061_405_4;
    p = p * t - 1.453_152;
    p = p * t + 1.421_413_7;
    p = p * t - 0.284_496_74;
    p = p * t + 0.254_829_6;
    let bell = exp(-z * z);
    let tail = 0.5 * (p * t) * bell;
    (if x < 0.0 { tail } else { 1.0 - tail }, bell)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relative(got: f32, want: f64) -> f64 {
        (f64::from(got) - want).abs() / want.abs().max(f64::MIN_POSITIVE)
    }

    #[test]
    fn functions_are_accurate() {
        for i in -8600..8800 {
            let x = i as f32 * 0.01;
            let wide = f64::from(x);
            assert!(relative(exp(x), wide.exp()) < 3e-7, "exp {x}");
            if i != 0 {
                assert!(relative(tanh(x), wide.tanh()) < 4e-7, "tanh {x}");
            }
            assert!((f64::from(sigmoid(x)) - 1.0 / (1.0 + (-wide).exp())).abs() < 2e-7);
        }
        for (x, want) in [(0.0, 0.5), (1.0, 0.841_344_746), (-2.0, 0.022_750_132), (5.0, 1.0)] {
            assert!((f64::from(normal_cdf(x).0) - want).abs() < 3e-7, "{x}");
        }
    }

    #[test]
    fn ends_of_the_range() {
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1e30), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(100.0), f32::INFINITY);
        assert!(exp(88.7).is_finite());
        assert!(exp(f32::NAN).is_nan() && tanh(f32::NAN).is_nan() && sigmoid(f32::NAN).is_nan());
        assert!(normal_cdf(f32::NAN).0.is_nan());
        assert_eq!(tanh(50.0), 1.0);
        assert_eq!(tanh(-50.0), -1.0);
        assert!(max(&[1.0, f32::NAN, 3.0]).is_nan());
        assert_eq!(max(&[-3.0, -1.0, -2.0]), -1.0);
        assert_eq!(max(&[f32::NEG_INFINITY; 3]), f32::NEG_INFINITY);
    }
}
