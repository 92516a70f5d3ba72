//! Speed of the noise streams: `cargo bench -p commons-core --bench noise`.
#![allow(clippy::print_stdout)]

use commons_core::Seed;
use std::{hint::black_box, time::Instant};

/// Elements per call: a buffer that stays in the first-level cache, as fused kernels use it, and
/// one that goes to memory.
const SIZES: [usize; 2] = [1 << 12, 1 << 22];
const ROUNDS: usize = 401;
const ELEMENTS_PER_ROUND: usize = 1 << 17;

fn main() {
    println!("{:<12} {:>10} {:>10} {:>10}", "stream", "elements", "best GB/s", "median");
    for size in SIZES {
        let mut words = vec![0_u32; size];
        let mut values = vec![0.0_f32; size];
        let seed = Seed::new(1);
        measure("bits", size, |at| seed.bits(at, black_box(&mut words)));
        measure("uniform", size, |at| seed.uniform(at, black_box(&mut values)));
        measure("normal", size, |at| seed.normal(at, black_box(&mut values)));
        measure("normal_par", size, |at| seed.normal_par(at, black_box(&mut values)));
    }
}

fn measure(name: &str, size: usize, mut fill: impl FnMut(u64)) {
    let calls = (ELEMENTS_PER_ROUND / size).max(1);
    let mut rates: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            for call in 0..calls {
                fill((call * size) as u64);
            }
            (4 * calls * size) as f64 / start.elapsed().as_secs_f64() / 1e9
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    println!("{name:<12} {size:>10} {:>10.2} {:>10.2}", rates[ROUNDS - 1], rates[ROUNDS / 2]);
}
