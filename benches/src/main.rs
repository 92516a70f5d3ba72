//! Times one case in one process and prints one line of JSON: `{"case", "ms", "peak_mib", ...}`.
//!
//! `scripts/bench-vs-torch` runs this and `scripts/bench/torch_case.py` in turn, with the same
//! shapes, the same number of threads and the same number of steps.
#![allow(clippy::print_stdout)]

mod cases;
/// The allocator of the program that is measured, set as it sets it.
#[path = "../../crates/commons/src/memory.rs"]
mod memory;

use std::time::Instant;

use clap::Parser;
use serde_json::json;

#[derive(Parser)]
#[command(about = "Times one case of the comparison with PyTorch")]
struct Args {
    /// decoder-5m, decoder-135m, decode-1, decode-4, mlp, resnet-block, noise or load.
    case: String,
    /// Timed repetitions after two that are not counted.
    #[arg(long, default_value_t = 10)]
    steps: usize,
    /// Worker threads.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Checkpoint for `load`.
    #[arg(long)]
    file: Option<std::path::PathBuf>,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    memory::keep_freed_pages();
    let args = Args::parse();
    rayon::ThreadPoolBuilder::new().num_threads(args.threads).build_global()?;
    // As the program does: work runs on a worker thread.
    rayon::join(|| time(&args).map_err(|e| e.to_string()), || ()).0.map_err(Into::into)
}

fn time(args: &Args) -> Result<(), Box<dyn std::error::Error>> {
    let mut case = cases::build(&args.case, args.file.as_deref())?;
    let before = commons_core::machine::peak_memory();
    for _ in 0..2 {
        (case.step)()?;
    }
    let mut times = Vec::with_capacity(args.steps);
    for _ in 0..args.steps {
        let began = Instant::now();
        for _ in 0..case.inner {
            (case.step)()?;
        }
        times.push(began.elapsed().as_secs_f64() * 1e3 / case.inner as f64);
    }
    let peak = commons_core::machine::peak_memory();
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!(
        "{}",
        json!({"case": args.case, "ms": times, "units": case.units, "unit": case.unit,
               "before_mib": mib(before), "peak_mib": mib(peak)})
    );
    Ok(())
}
