//! Golden numbers are SciPy 1.17's.

use super::{special::*, *};
use crate::Seed;
use proptest::prelude::*;

const X: [f64; 10] = [12.1, 14.3, 9.8, 11.0, 15.2, 13.3, 10.1, 12.9, 14.0, 11.7];
const Y: [f64; 10] = [11.0, 13.9, 10.2, 10.1, 13.0, 12.7, 10.6, 11.1, 12.8, 11.2];
/// Samples with ties, within and between.
const TIED_X: [f64; 12] = [1.0, 2.0, 2.0, 3.0, 4.0, 4.0, 4.0, 5.0, 6.0, 7.0, 7.0, 3.0];
const TIED_Y: [f64; 12] = [2.0, 1.0, 3.0, 3.0, 5.0, 4.0, 4.0, 4.0, 7.0, 6.0, 7.0, 1.0];
/// Differences without ties: 15 4 −5 9 22 6 −7 18 12 3.
const WHOLE_X: [f64; 10] = [125.0, 143.0, 98.0, 110.0, 152.0, 133.0, 101.0, 129.0, 140.0, 117.0];
const WHOLE_Y: [f64; 10] = [110.0, 139.0, 103.0, 101.0, 130.0, 127.0, 108.0, 111.0, 128.0, 114.0];
const SKEWED: [f64; 12] = [0.1, 0.3, 0.2, 0.9, 4.0, 0.5, 0.05, 1.7, 0.8, 9.0, 0.4, 0.6];
const ALTERNATIVES: [Alternative; 3] =
    [Alternative::TwoSided, Alternative::Greater, Alternative::Less];

#[track_caller]
fn close(got: f64, want: f64, relative: f64) {
    assert!((got - want).abs() <= relative * want.abs().max(1e-300), "{got:e} is not {want:e}");
}

#[test]
fn special_functions() {
    for (x, want) in [
        (-8.0, 6.220_960_574_271_74e-16),
        (-2.5, 0.006_209_665_325_776_132),
        (-0.3, 0.382_088_577_811_047_4),
        (0.0, 0.5),
        (1.0, 0.841_344_746_068_542_9),
        (6.0, 0.999_999_999_013_412_3),
    ] {
        close(normal_cdf(x), want, 1e-13);
    }
    for (p, want) in [
        (1e-12, -7.034_483_825_301_131),
        (0.001, -3.090_232_306_167_813),
        (0.02, -2.053_748_910_631_823),
        (0.3, -0.524_400_512_708_040_9),
        (0.5, 0.0),
        (0.975, 1.959_963_984_540_054),
        (0.9999, 3.719_016_485_455_709),
    ] {
        assert!((normal_quantile(p) - want).abs() < 1e-12);
    }
    assert_eq!(normal_quantile(1.0), f64::INFINITY);
    assert!(normal_quantile(1.1).is_nan());
    for (p, df, want) in [
        (0.975, 1.0, 12.706_204_736_174_694),
        (0.975, 4.0, 2.776_445_105_197_793_4),
        (0.9, 2.5, 1.730_250_928_807_176_6),
        (0.9995, 30.0, 3.645_958_635_042_062_7),
        (0.01, 7.0, -2.997_951_566_868_528_6),
    ] {
        close(t_quantile(p, df), want, 1e-12);
    }
    for (t, df, want) in [
        (0.5, 3.0, 0.325_723_982_424_075_5),
        (2.0, 10.0, 0.036_694_017_385_370_18),
        (-1.2, 5.0, 0.858_054_471_646_948_9),
        (12.0, 4.0, 0.000_138_214_274_251_486_5),
        (40.0, 60.0, 2.877_740_243_312_692_6e-45),
    ] {
        close(t_survival(t, df), want, 1e-12);
    }
    for (a, b, x, want) in [
        (2.0, 3.0, 0.4, 0.524_8),
        (0.5, 0.5, 0.1, 0.204_832_764_699_133_45),
        (50.0, 0.5, 0.99, 0.317_304_397_874_197_3),
        (10.0, 200.0, 0.03, 0.100_508_352_371_448_35),
    ] {
        close(incomplete_beta(a, b, x), want, 1e-12);
    }
    for (x, want) in [
        (0.1, 2.252_712_651_734_206),
        (0.5, 0.572_364_942_924_7),
        (3.7, 1.428_072_326_665_388),
        (100.5, 361.435_540_467_777_57),
    ] {
        close(ln_gamma(x), want, 1e-13);
    }
    for (x, want) in [
        (-1.0, 1.842_700_792_949_714_8),
        (0.2, 0.777_297_410_789_521_5),
        (1.3, 0.065_992_055_059_347_58),
        (2.0, 0.004_677_734_981_047_266),
        (5.0, 1.537_459_794_428_034_7e-12),
        (15.0, 7.212_994_172_451_209e-100),
    ] {
        close(erfc(x), want, 1e-12);
    }
}

#[test]
fn descriptive() {
    close(mean(&X), 12.44, 1e-14);
    close(standard_deviation(&X), 1.814_876_794_104_155_7, 1e-13);
    close(quantile(&X, 0.37), 11.832, 1e-13);
    assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
    let interval = t_interval(&X, 0.95).unwrap();
    close(interval.low, 11.141_715_351_851_694, 1e-12);
    close(interval.high, 13.738_284_648_148_309, 1e-12);
}

#[test]
fn paired_tests() {
    let t = [0.018_401_038_641_035_063, 0.009_200_519_320_517_532, 0.990_799_480_679_482_4];
    let exact = [0.048_828_125, 0.024_414_062_5, 0.981_445_312_5];
    let approximate = [0.763_024_600_552_995, 0.381_512_300_276_497_5, 0.618_487_699_723_502_5];
    let permuted = [0.037_109_375, 0.018_554_687_5, 0.985_351_562_5];
    for (i, alternative) in ALTERNATIVES.into_iter().enumerate() {
        let test = paired_t(&X, &Y, alternative).unwrap();
        close(test.statistic, 2.872_517_404_420_384_5, 1e-11);
        close(test.p_value, t[i], 1e-11);
        let test = wilcoxon_signed_rank(&WHOLE_X, &WHOLE_Y, alternative).unwrap();
        assert_eq!(test.statistic, if i == 0 { 8.0 } else { 47.0 });
        close(test.p_value, exact[i], 1e-14);
        let test = wilcoxon_signed_rank(&TIED_X, &TIED_Y, alternative).unwrap();
        assert_eq!(test.statistic, if i == 0 { 16.0 } else { 20.0 });
        close(test.p_value, approximate[i], 1e-12);
        let test = permutation_paired(&WHOLE_X, &WHOLE_Y, alternative, 0, Seed::new(0)).unwrap();
        close(test.statistic, 7.7, 1e-14);
        close(test.p_value, permuted[i], 1e-14);
    }
}

/// Above 20 pairs the sign patterns are sampled; the normal limit says what should come out.
#[test]
fn sampled_permutations_agree_with_the_t_test() {
    let mut noise = [0.0_f32; 60];
    Seed::new(3).normal(0, &mut noise);
    let x: Vec<f64> = noise.iter().map(|v| f64::from(*v) + 0.3).collect();
    let y = vec![0.0; 60];
    let sampled = permutation_paired(&x, &y, Alternative::TwoSided, 20_000, Seed::new(1)).unwrap();
    let t = paired_t(&x, &y, Alternative::TwoSided).unwrap();
    assert!((sampled.p_value - t.p_value).abs() < 0.01, "{sampled:?} {t:?}");
    let again = permutation_paired(&x, &y, Alternative::TwoSided, 20_000, Seed::new(1)).unwrap();
    assert_eq!(sampled, again);
}

#[test]
fn correlations() {
    let check = |got: Correlation, coefficient: f64, p_value: f64| {
        close(got.coefficient, coefficient, 1e-13);
        close(got.p_value, p_value, 1e-10);
    };
    check(kendall_tau_b(&X, &Y).unwrap(), 0.777_777_777_777_777_7, 0.001_745_118_699_528_905);
    check(kendall_tau_b(&TIED_X, &TIED_Y).unwrap(), 0.75, 0.001_457_973_564_221_086_3);
    check(spearman(&X, &Y).unwrap(), 0.915_151_515_151_515_2, 0.000_204_472_406_148_832_26);
    check(
        spearman(&TIED_X, &TIED_Y).unwrap(),
        0.890_681_003_584_229_3,
        0.000_102_073_462_882_813_6,
    );
    check(pearson(&X, &Y).unwrap(), 0.896_360_200_823_147_6, 0.000_444_654_221_733_505_9);
    check(pearson(&TIED_X, &TIED_Y).unwrap(), 0.878_570_036_079_871_5, 0.000_169_004_146_146_602_9);
    assert_eq!(
        kendall_tau_b(&[0.0, -0.0, 1.0], &[5.0, 1.0, 7.0]).unwrap().coefficient,
        (2.0_f64 / 3.0).sqrt()
    );
    assert_eq!(ranks(&[2.0, 1.0, 2.0]).unwrap(), [2.5, 1.0, 2.5]);
}

/// The BCa arithmetic on replicates that SciPy was given as well.
#[test]
fn bca_follows_scipy_on_given_replicates() {
    let given = |shift: f64| {
        let mut all: Vec<f64> =
            (0..1000).map(|i| f64::from(i * 7919 % 1000) / 1000.0 * 1.6 + 11.6 + shift).collect();
        all.sort_by(f64::total_cmp);
        all
    };
    let interval = interval::bca(&X, mean, 0.95, &given(0.0)).unwrap();
    close(interval.low, 11.652_630_434_391_659, 1e-10);
    close(interval.high, 13.168_352_610_570_194, 1e-10);
    let interval = interval::bca(&SKEWED, variance, 0.95, &given(-5.5)).unwrap();
    close(interval.low, 6.131_242_993_715_46, 1e-10);
    close(interval.high, 7.638_604_291_478_897, 1e-10);
}

#[test]
fn bootstrap_agrees_with_scipys() {
    let percentile = bootstrap_percentile(&SKEWED, mean, 0.95, 40_000, Seed::new(5)).unwrap();
    close(percentile.low, 0.45, 0.02);
    close(percentile.high, 3.162_5, 0.02);
    let bca = bootstrap_bca(&SKEWED, mean, 0.95, 40_000, Seed::new(5)).unwrap();
    close(bca.low, 0.616_666_7, 0.02);
    close(bca.high, 4.054_166_7, 0.03);
    assert_eq!(bca, bootstrap_bca(&SKEWED, mean, 0.95, 40_000, Seed::new(5)).unwrap());
}

#[test]
fn bad_samples_are_refused() {
    assert!(t_interval(&[1.0], 0.95).is_err());
    assert!(t_interval(&[1.0, 2.0], 1.0).is_err());
    assert!(kendall_tau_b(&[1.0, 2.0, f64::NAN], &[1.0, 2.0, 3.0]).is_err());
    assert!(spearman(&[1.0, 2.0, 3.0], &[4.0, 4.0, 4.0]).is_err());
    assert!(pearson(&[1.0, 2.0, 3.0], &[1.0, 2.0]).is_err());
    assert!(paired_t(&[1.0, 2.0], &[0.0, 1.0], Alternative::TwoSided).is_err());
    assert!(wilcoxon_signed_rank(&[1.0], &[1.0], Alternative::TwoSided).is_err());
    let constant = bootstrap_bca(&[1.0, 2.0, 3.0], |_| 1.0, 0.95, 100, Seed::new(1)).unwrap();
    assert_eq!((constant.low, constant.high), (1.0, 1.0));
    assert!(bootstrap_percentile(&[1.0, 2.0], mean, 0.95, 0, Seed::new(1)).is_err());
}

fn tau_by_definition(x: &[f64], y: &[f64]) -> f64 {
    let (mut score, mut free_x, mut free_y) = (0.0, 0.0, 0.0);
    let sign = |d: f64| {
        if d > 0.0 {
            1.0
        } else if d < 0.0 {
            -1.0
        } else {
            0.0
        }
    };
    for i in 0..x.len() {
        for j in 0..i {
            let (a, b) = (sign(x[i] - x[j]), sign(y[i] - y[j]));
            score += a * b;
            free_x += a * a;
            free_y += b * b;
        }
    }
    score / f64::sqrt(free_x * free_y)
}

/// Close to the median `df / (df + t²)` is nearly one; what is left of it counts.
#[test]
fn the_middle_of_students_t_is_exact() {
    for (p, df) in [(0.499_952_313_984_097_2, 76.042_971_159_366_8), (0.5 + 1e-9, 3.0), (0.5, 9.0)]
    {
        let back = 1.0 - t_survival(t_quantile(p, df), df);
        assert!((back - p).abs() < 1e-14, "{p} {back}");
    }
    // With two degrees of freedom the distribution is t / (2 √(2 + t²)) + 1/2.
    let t = 1e-5_f64;
    let above = 0.5 - t / (2.0 * (2.0 + t * t).sqrt());
    assert!((t_survival(t, 2.0) - above).abs() < 1e-16);
}

proptest! {
    #[test]
    fn kendall_equals_its_definition(
        pairs in prop::collection::vec((0_i32..8, 0_i32..8), 3..60)
    ) {
        let x: Vec<f64> = pairs.iter().map(|p| f64::from(p.0)).collect();
        let y: Vec<f64> = pairs.iter().map(|p| f64::from(p.1)).collect();
        if let Ok(tau) = kendall_tau_b(&x, &y) {
            prop_assert!((tau.coefficient - tau_by_definition(&x, &y)).abs() < 1e-12);
            prop_assert!((0.0..=1.0).contains(&tau.p_value));
        }
    }

    #[test]
    fn quantiles_undo_the_distribution(p in 1e-9_f64..0.999_999, df in 1.0_f64..200.0) {
        prop_assert!((normal_cdf(normal_quantile(p)) - p).abs() < 1e-12);
        let back = 1.0 - t_survival(t_quantile(p, df), df);
        prop_assert!((back - p).abs() < 1e-11);
    }
}
