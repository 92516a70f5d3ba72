//! Steps per second of the fair forest: what `scripts/bench-aranyani.py` sets against PyTorch.
//!
//! `forest_speed STEPS WIDTH LAMBDA` writes one JSON line.
#![allow(clippy::print_stdout)]

use std::time::Instant;

use commons_core::Seed;
use commons_society::aranyani::{FairForest, ForestConfig};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [steps, width, lambda] = &words[..] else {
        return Err("give STEPS WIDTH LAMBDA".into());
    };
    let (steps, width): (usize, usize) = (steps.parse()?, width.parse()?);
    let config = ForestConfig { lambda: lambda.parse()?, ..ForestConfig::default() };
    let mut forest = FairForest::new(config, width, Seed::new(0))?;
    let mut rng = Seed::new(1).rng();
    let rows: Vec<Vec<f64>> =
        (0..1000).map(|_| (0..width).map(|_| rng.normal()).collect()).collect();
    let began = Instant::now();
    for i in 0..steps {
        let row = &rows[i % rows.len()];
        forest.learn(row, usize::from(row[0] > 0.), i % 2)?;
    }
    let seconds = began.elapsed().as_secs_f64();
    println!("{}", serde_json::json!({ "steps": steps, "seconds": seconds }));
    Ok(())
}
