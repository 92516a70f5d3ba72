//! The distribution functions that intervals and tests need, to about 1e-13.

use std::f64::consts::{PI, SQRT_2};

const EPSILON: f64 = 1e-16;
/// Far more terms than the series and fractions below ever take; a bound, not a tuning knob.
const TERMS: usize = 10_000;

/// ln Γ(x) for x > 0 (Lanczos, g = 7, nine terms).
pub fn ln_gamma(x: f64) -> f64 {
    const C: [f64; 9] = [
        0.999_999_999_999_809_9,
        676.520_368_121_885_1,
        -1_259.139_216_722_402_8,
        771.323_428_777_653_1,
        -176.615_029_162_140_6,
        12.507_343_278_686_905,
        -0.138_571_095_265_720_12,
        9.984_369_578_019_572e-6,
        1.505_632_735_149_311_6e-7,
    ];
    if x < 0.5 {
        return (PI / (PI * x).sin()).ln() - ln_gamma(1.0 - x);
    }
    let x = x - 1.0;
    let t = x + 7.5;
    let series = C.iter().enumerate().skip(1).fold(C[0], |sum, (i, c)| sum + c / (x + i as f64));
    0.5 * (2.0 * PI).ln() + (x + 0.5) * t.ln() - t + series.ln()
}

/// The complementary error function, through the incomplete gamma function of order ½.
pub fn erfc(x: f64) -> f64 {
    if x < 0.0 {
        return 2.0 - erfc(-x);
    }
    let z = x * x;
    if z > 740.0 {
        return 0.0;
    }
    // x·e^(−x²)/√π, the factor both expansions share.
    let front = x * (-z).exp() / PI.sqrt();
    if z < 2.0 {
        let (mut term, mut sum) = (2.0, 2.0);
        for k in 1..TERMS {
            term *= z / (0.5 + k as f64);
            sum += term;
            if term < sum * EPSILON {
                break;
            }
        }
        1.0 - front * sum
    } else {
        front * lentz(z + 0.5, |k| (-k * (k - 0.5), z + 0.5 + 2.0 * k))
    }
}

/// 1/(b₀ + a₁/(b₁ + a₂/(b₂ + …))) by the modified Lentz method; `step(k)` gives (a_k, b_k).
fn lentz(b0: f64, step: impl Fn(f64) -> (f64, f64)) -> f64 {
    let guard = |x: f64| if x.abs() < 1e-300 { 1e-300 } else { x };
    let mut c = 1e300;
    let mut d = 1.0 / guard(b0);
    let mut h = d;
    for k in 1..TERMS {
        let (a, b) = step(k as f64);
        d = 1.0 / guard(a * d + b);
        c = guard(b + a / c);
        let factor = c * d;
        h *= factor;
        if (factor - 1.0).abs() < EPSILON * 4.0 {
            break;
        }
    }
    h
}

/// The standard normal distribution function Φ.
pub fn normal_cdf(x: f64) -> f64 {
    0.5 * erfc(-x / SQRT_2)
}

/// Φ⁻¹(p); ±∞ at 0 and 1, NaN outside. Acklam's rational approximation, refined by one Halley step.
pub fn normal_quantile(p: f64) -> f64 {
    const A: [f64; 6] = [
        -3.969_683_028_665_376e1,
        2.209_460_984_245_205e2,
        -2.759_285_104_469_687e2,
        1.383_577_518_672_69e2,
        -3.066_479_806_614_716e1,
        2.506_628_277_459_239,
    ];
    const B: [f64; 6] = [
        -5.447_609_879_822_406e1,
        1.615_858_368_580_409e2,
        -1.556_989_798_598_866e2,
        6.680_131_188_771_972e1,
        -1.328_068_155_288_572e1,
        1.0,
    ];
    const C: [f64; 6] = [
        -7.784_894_002_430_293e-3,
        -3.223_964_580_411_365e-1,
        -2.400_758_277_161_838,
        -2.549_732_539_343_734,
        4.374_664_141_464_968,
        2.938_163_982_698_783,
    ];
    const D: [f64; 5] = [
        7.784_695_709_041_462e-3,
        3.224_671_290_700_398e-1,
        2.445_134_137_142_996,
        3.754_408_661_907_416,
        1.0,
    ];
    if !(0.0..=1.0).contains(&p) {
        return f64::NAN;
    }
    if p == 0.0 {
        return f64::NEG_INFINITY;
    }
    if p > 0.5 {
        // By symmetry, so that the refinement works with the small tail.
        return -normal_quantile(1.0 - p);
    }
    let horner = |coefficients: &[f64], x: f64| coefficients.iter().fold(0.0, |sum, c| sum * x + c);
    let x = if p < 0.024_25 {
        let q = (-2.0 * p.ln()).sqrt();
        horner(&C, q) / horner(&D, q)
    } else {
        let q = p - 0.5;
        let r = q * q;
        horner(&A, r) * q / horner(&B, r)
    };
    let error = normal_cdf(x) - p;
    let u = error * (2.0 * PI).sqrt() * (0.5 * x * x).exp();
    x - u / (1.0 + 0.5 * x * u)
}

/// The regularised incomplete beta function I_x(a, b).
pub fn incomplete_beta(a: f64, b: f64, x: f64) -> f64 {
    beta_of(a, b, x, 1.0 - x)
}

/// [`incomplete_beta`] of `x`, where `rest = 1 − x` is known better than that difference of doubles.
fn beta_of(a: f64, b: f64, x: f64, rest: f64) -> f64 {
    if x <= 0.0 || rest <= 0.0 {
        return if x > 0.0 { 1.0 } else { 0.0 };
    }
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - beta_of(b, a, rest, x);
    }
    let ln_front = ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b) + a * x.ln() + b * (-x).ln_1p();
    let fraction = lentz(1.0, |k| {
        let m = (k / 2.0).floor();
        let term = if k % 2.0 == 0.0 {
            m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m))
        } else {
            -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0))
        };
        (term, 1.0)
    });
    ln_front.exp() * fraction / a
}

/// Student's t: the probability of a value above `t` with `df` degrees of freedom.
pub fn t_survival(t: f64, df: f64) -> f64 {
    let all = df + t * t;
    let tail = 0.5 * beta_of(0.5 * df, 0.5, df / all, t * t / all);
    if t >= 0.0 { tail } else { 1.0 - tail }
}

/// The quantile of Student's t with `df` degrees of freedom, by bisection of [`t_survival`].
pub fn t_quantile(p: f64, df: f64) -> f64 {
    if p < 0.5 {
        return -t_quantile(1.0 - p, df);
    }
    let above = 1.0 - p;
    if above <= 0.0 {
        return f64::INFINITY;
    }
    let mut high = 1.0;
    while t_survival(high, df) > above {
        high *= 2.0;
    }
    let mut low = 0.0;
    // A double has 53 bits; each step settles one, and `high` may start far from the answer.
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if t_survival(middle, df) > above {
            low = middle;
        } else {
            high = middle;
        }
    }
    0.5 * (low + high)
}
