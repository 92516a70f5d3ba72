//! Uniform words to standard normals by the Box–Muller transform (Box & Muller 1958), in `f32`.
//!
//! Every step is an integer operation or one of IEEE `+ − × √`, each correctly rounded, in a fixed
//! order and without fused multiply-add, so the result is the same bits on every machine and at
//! every vector width. The logarithm and the sine/cosine polynomials are those of the Cephes
//! library's `logf`, `sinf` and `cosf` (S. Moshier), with range reduction done on the integers,
//! where it is exact.

use super::philox::LANES;
use std::f32::consts::{FRAC_1_SQRT_2, PI};

/// 2⁻³², the weight of one unit of a 32-bit word.
const ULP: f32 = 1.0 / 4_294_967_296.0;
/// The word below which `u < 1/√2`: there the logarithm is taken of `u`, above it of `1 − t`.
const NEAR_ONE: u32 = (FRAC_1_SQRT_2 as f64 * 4_294_967_296.0) as u32;

/// `ln(1 + f)` for `f` in [1/√2 − 1, √2 − 1], relative error below 2⁻²³.
#[inline(always)]
fn ln_1p_reduced(f: f32) -> f32 {
    let z = f * f;
    let mut p = 7.037_683_6e-2_f32;
    p = p * f - 1.151_461e-1;
    p = p * f + 1.167_699_9e-1;
    p = p * f - 1.242_014_1e-1;
    p = p * f + 1.424_932_3e-1;
    p = p * f - 1.666_805_7e-1;
    p = p * f + 2.000_071_5e-1;
    p = p * f - 2.499_999_4e-1;
    p = p * f + 3.333_333e-1;
    f + (f * z * p - 0.5 * z)
}

/// The radius √(−2 ln u) of `u = (word + ½)·2⁻³²`. It reaches 6.76 at word 0; near `u = 1` the
/// distance to one is taken from the integer, so all 32 bits count there too.
#[inline(always)]
fn radius(word: u32) -> f32 {
    let u = (word as f32 + 0.5) * ULP;
    let distance = (!word as f32 + 0.5) * ULP;
    // u = m·2^e with m in [1/√2, √2): shift the exponent so that the split falls at 1/√2.
    let shifted = u.to_bits().wrapping_sub(FRAC_1_SQRT_2.to_bits());
    let exponent = (shifted as i32) >> 23;
    let mantissa = f32::from_bits(u.to_bits().wrapping_sub((exponent as u32) << 23));
    let near_one = word >= NEAR_ONE;
    let f = if near_one { -distance } else { mantissa - 1.0 };
    let e = if near_one { 0.0 } else { exponent as f32 };
    // ln 2 in two parts, the first with few enough bits that e·HIGH is exact.
    let ln = ln_1p_reduced(f) - e * 2.121_944_4e-4 + e * 0.693_359_4;
    (-2.0 * ln).sqrt()
}

/// Sine and cosine of `2π·(word + ½)·2⁻³²`, absolute error below 1.2e-7.
#[inline(always)]
fn sin_cos(word: u32) -> (f32, f32) {
    // Nearest quarter turn, and the signed remainder in [−1/8, 1/8) of a turn.
    let quarter = word.wrapping_add(1 << 29) >> 30;
    let rest = word.wrapping_sub(quarter << 30) as i32;
    let x = (rest as f32 + 0.5) * (2.0 * PI * ULP);
    let z = x * x;
    let sine = ((-1.951_529_6e-4 * z + 8.332_161e-3) * z - 1.666_665_5e-1) * z * x + x;
    let cosine =
        ((2.443_315_7e-5 * z - 1.388_731_6e-3) * z + 4.166_664_6e-2) * z * z - 0.5 * z + 1.0;
    let odd = quarter & 1 == 1;
    let (s, c) = if odd { (cosine, sine) } else { (sine, cosine) };
    // Signs by quadrant: sine is negative in the last two, cosine in the middle two.
    let sine_sign = (quarter & 2) << 30;
    let cosine_sign = (quarter.wrapping_add(1) & 2) << 30;
    (f32::from_bits(s.to_bits() ^ sine_sign), f32::from_bits(c.to_bits() ^ cosine_sign))
}

/// Two independent standard normals from two uniform words.
#[inline(always)]
pub(crate) fn pair(radius_word: u32, angle_word: u32) -> (f32, f32) {
    let r = radius(radius_word);
    let (sine, cosine) = sin_cos(angle_word);
    (r * cosine, r * sine)
}

/// Normals of one tile: words 0 and 1 of a block become its elements 0 and 1, words 2 and 3 its
/// elements 2 and 3.
#[inline(always)]
pub(crate) fn tile(words: &[[u32; LANES]; 4]) -> [[f32; LANES]; 4] {
    let mut out = [[0.0; LANES]; 4];
    for half in 0..2 {
        for lane in 0..LANES {
            let (a, b) = pair(words[2 * half][lane], words[2 * half + 1][lane]);
            out[2 * half][lane] = a;
            out[2 * half + 1][lane] = b;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words that cover both ends, both sides of every branch, and a spread in between.
    fn words() -> impl Iterator<Item = u32> {
        let edges = [0, 1 << 29, 1 << 30, 3 << 29, 1 << 31, 3 << 30, 7 << 29, NEAR_ONE, u32::MAX];
        let near = edges
            .into_iter()
            .flat_map(|edge: u32| (-40..40).map(move |d: i32| edge.wrapping_add(d as u32)));
        near.chain((0..400_000_u32).map(|i| i.wrapping_mul(2_654_435_761)))
    }

    #[test]
    fn radius_follows_the_exact_one() {
        for word in words() {
            let u = (f64::from(word) + 0.5) / 4_294_967_296.0;
            // −ln u from the side that keeps its digits.
            let d = (f64::from(!word) + 0.5) / 4_294_967_296.0;
            let ln = if u > 0.5 { (-d).ln_1p() } else { u.ln() };
            let exact = (-2.0 * ln).sqrt();
            let got = f64::from(radius(word));
            assert!((got - exact).abs() <= 4e-7 * exact.max(1e-9), "{word}: {got} {exact}");
        }
    }

    #[test]
    fn angle_follows_the_exact_one() {
        for word in words() {
            let angle = (f64::from(word) + 0.5) / 4_294_967_296.0 * std::f64::consts::TAU;
            let (s, c) = sin_cos(word);
            assert!((f64::from(s) - angle.sin()).abs() < 1.2e-7, "sin at {word}");
            assert!((f64::from(c) - angle.cos()).abs() < 1.2e-7, "cos at {word}");
        }
    }
}
