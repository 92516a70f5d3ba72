//! Reads joints as JSON lines `{"nz", "ny", "ns", "p": [z, ŷ, s]}` and writes for each its terms
//! and the time the decomposition took: what `scripts/check-dit.py` compares.
#![allow(clippy::print_stdout)]

use std::io::BufRead;
use std::time::Instant;

use commons_society::pid_fairness::{Joint, pid_broja};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    nz: usize,
    ny: usize,
    ns: usize,
    p: Vec<f64>,
}

/// Decompositions per timing: one alone is too short for the clock.
const ROUNDS: u32 = 200;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for line in std::io::stdin().lock().lines() {
        let case: Case = serde_json::from_str(&line?)?;
        let joint = Joint::from_weights(case.nz, case.ny, case.ns, &case.p)?;
        let pid = pid_broja(&joint)?;
        let began = Instant::now();
        for _ in 0..ROUNDS {
            std::hint::black_box(pid_broja(std::hint::black_box(&joint))?);
        }
        let seconds = began.elapsed().as_secs_f64() / f64::from(ROUNDS);
        println!("{}", serde_json::json!({ "pid": pid, "seconds": seconds }));
    }
    Ok(())
}
