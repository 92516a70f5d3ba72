use commons_core::evidence::{ConfigSource, Method, RunOptions};
use commons_core::{Progress, Task};
use std::sync::Arc;
struct P;
struct T(String, std::time::Instant);
impl Progress for P {
    fn task(&self, l: &str, n: Option<u64>) -> Box<dyn Task> {
        eprintln!("== {l} {n:?}");
        Box::new(T(l.into(), std::time::Instant::now()))
    }
    fn note(&self, t: &str) {
        eprintln!("{t}")
    }
}
impl Task for T {
    fn update(&mut self, d: u64, s: &str) {
        if d % 10 == 0 {
            eprintln!("{} {d} {s} {:.1}s", self.0, self.1.elapsed().as_secs_f64())
        }
    }
}
fn main() {
    let a: Vec<String> = std::env::args().skip(1).collect();
    let mut o = RunOptions::new(&a[1], std::time::SystemTime::now());
    o.progress = Arc::new(P);
    o.tensorboard = false;
    let s = ConfigSource { recipe: Some(a[0].clone()), file: None, sets: a[2..].to_vec() };
    match Method::run(&commons_weights::foldgpt::Evidence, &s, o) {
        Ok(r) => {
            for c in &r.claims {
                println!(
                    "{} {:?} {:?} {:?} {}",
                    c.id,
                    c.measured,
                    c.baseline.as_ref().map(|b| b.value),
                    c.compared,
                    c.verdict
                );
            }
            for t in &r.tables {
                println!("{}\n{}", t.title, t.to_text());
            }
            for n in &r.notes {
                println!("{n}")
            }
            println!("{:.1}s peak {}", r.wall_seconds, r.peak_memory);
        }
        Err(e) => {
            eprintln!("error: {e}");
            std::process::exit(1)
        }
    }
}
