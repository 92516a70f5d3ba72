//! Resampling of count tables: a sample of n rows with replacement is one multinomial draw over
//! cells, so its cost does not depend on n.

use commons_core::{Rng, Seed};
use rayon::prelude::*;

/// One resample of `counts` with replacement (same total).
pub fn resample(counts: &[u64], rng: &mut Rng) -> Vec<u64> {
    let mut left: u64 = counts.iter().sum();
    let mut weight = left;
    let draw = |&count: &u64| {
        // Conditional on the cells before, a cell is binomial; the last one takes the rest.
        let p = if weight == 0 { 0. } else { count as f64 / weight as f64 };
        let drawn = if count == weight { left } else { binomial(left, p, rng) };
        weight -= count;
        left -= drawn;
        drawn
    };
    counts.iter().map(draw).collect()
}

/// `statistic` of `replicates` resamples, in the order of their number whatever the threads.
pub fn replicate<T: Send>(
    counts: &[u64],
    replicates: usize,
    seed: Seed,
    statistic: impl Fn(Vec<u64>) -> T + Sync,
) -> Vec<T> {
    (0..replicates as u64)
        .into_par_iter()
        .map(|i| statistic(resample(counts, &mut seed.fork("bootstrap", i).rng())))
        .collect()
}

/// A binomial draw: inversion for few expected successes, else the transformed rejection of
/// Hörmann 1993 (BTRS), which takes about one and a half uniforms pairs for any n.
pub fn binomial(n: u64, p: f64, rng: &mut Rng) -> u64 {
    if n == 0 || !(p > 0.) {
        return 0;
    }
    if p >= 1. {
        return n;
    }
    if p > 0.5 {
        return n - binomial(n, 1. - p, rng);
    }
    if n as f64 * p < 10. { by_gaps(n, p, rng) } else { by_rejection(n, p, rng) }
}

/// Counts successes by the geometric gaps between them.
fn by_gaps(n: u64, p: f64, rng: &mut Rng) -> u64 {
    let log_q = (-p).ln_1p();
    let (mut at, mut successes) = (0f64, 0);
    loop {
        at += ((1. - rng.uniform()).ln() / log_q).floor() + 1.;
        if at > n as f64 {
            return successes;
        }
        successes += 1;
    }
}

fn by_rejection(n: u64, p: f64, rng: &mut Rng) -> u64 {
    let n = n as f64;
    let deviation = (n * p * (1. - p)).sqrt();
    let b = 1.15 + 2.53 * deviation;
    let a = -0.0873 + 0.0248 * b + 0.01 * p;
    let centre = n * p + 0.5;
    let box_edge = 0.92 - 4.2 / b;
    let odds = p / (1. - p);
    let alpha = (2.83 + 5.1 / b) * deviation;
    let mode = ((n + 1.) * p).floor();
    loop {
        let u = rng.uniform() - 0.5;
        let v = rng.uniform();
        let us = 0.5 - u.abs();
        let k = ((2. * a / us + b) * u + centre).floor();
        if us >= 0.07 && v <= box_edge {
            return k as u64;
        }
        if !(0. ..=n).contains(&k) || v <= 0. {
            continue;
        }
        let v = (v * alpha / (a / (us * us) + b)).ln();
        let bound = (mode + 0.5) * ((mode + 1.) / (odds * (n - mode + 1.))).ln()
            + (n + 1.) * ((n - mode + 1.) / (n - k + 1.)).ln()
            + (k + 0.5) * (odds * (n - k + 1.) / (k + 1.)).ln()
            + stirling(mode)
            + stirling(n - mode)
            - stirling(k)
            - stirling(n - k);
        if v <= bound {
            return k as u64;
        }
    }
}

/// What Stirling's series leaves out of `ln k!`.
fn stirling(k: f64) -> f64 {
    const SMALL: [f64; 10] = [
        0.081_061_466_795_327_26,
        0.041_340_695_955_409_29,
        0.027_677_925_684_998_34,
        0.020_790_672_103_765_09,
        0.016_644_691_189_821_19,
        0.013_876_128_823_070_75,
        0.011_896_709_945_891_77,
        0.010_411_265_261_972_09,
        0.009_255_462_182_712_733,
        0.008_330_563_433_362_87,
    ];
    if k < 10. {
        return SMALL[k as usize];
    }
    let square = (k + 1.) * (k + 1.);
    (1. / 12. - (1. / 360. - 1. / 1260. / square) / square) / (k + 1.)
}
