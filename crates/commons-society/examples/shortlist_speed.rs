//! Times searches for shortlists, warm and without reading files: what `scripts/check-abcvoting.py`
//! compares. Reads jobs as JSON lines `{"path", "score", "solver"}` and answers each with the
//! seconds of one search, the median of several.
#![allow(clippy::print_stdout)]

use std::io::BufRead;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use commons_society::multiwinner_subset::{Bounds, Score, Solver, files, select};
use serde::Deserialize;

#[derive(Deserialize)]
struct Job {
    path: PathBuf,
    score: Score,
    solver: Solver,
}

/// Fewest and most searches of a timing, which otherwise lasts so long.
const FEWEST: usize = 3;
const MOST: usize = 1000;
const LASTS: Duration = Duration::from_millis(20);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for line in std::io::stdin().lock().lines() {
        let job: Job = serde_json::from_str(&line?)?;
        let abc = files::abc_yaml(&job.path, &std::fs::read_to_string(&job.path)?)?;
        let k = abc.committee_size.ok_or("no committeesize")?;
        let bounds = Bounds::none(abc.rankings.items());
        let search = || select(&abc.rankings, &job.score, k, &bounds, job.solver);
        std::hint::black_box(search()?);
        let mut times = Vec::new();
        let began = Instant::now();
        while times.len() < FEWEST || (times.len() < MOST && began.elapsed() < LASTS) {
            let began = Instant::now();
            std::hint::black_box(search()?);
            times.push(began.elapsed().as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        println!("{}", serde_json::json!({ "seconds": times[times.len() / 2] }));
    }
    Ok(())
}
