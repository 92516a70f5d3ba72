//! Times training steps of a 784–256–10 perceptron on batches of 64: linear + bias + ReLU,
//! cross-entropy, AdamW. `scripts/bench/mlp_step.py` does the same in PyTorch.
//!
//! ```sh
//! RAYON_NUM_THREADS=2 cargo run --release -p commons-ops --example mlp_step -- 2000
//! ```
//! Arguments: steps.
#![allow(clippy::print_stdout)]

use std::time::Instant;

use commons_core::Seed;
use commons_ops::optim::{AdamW, Optimizer};
use commons_ops::{
    Activation, Device, Result, Tensor, Var, backward, cross_entropy, linear, linear_act,
};

const BATCH: usize = 64;

fn main() -> Result<()> {
    rayon::join(run, || ()).0
}

fn run() -> Result<()> {
    let steps = std::env::args().nth(1).and_then(|a| a.parse().ok()).unwrap_or(2000);
    let normal = |name: &str, dims: &[usize], scale: f32| -> Result<Tensor> {
        let mut data = vec![0f32; dims.iter().product()];
        Seed::new(0).fork(name, 0).normal(0, &mut data);
        data.iter_mut().for_each(|v| *v *= scale);
        Tensor::from_vec(data, dims, &Device::Cpu)
    };
    let x = normal("x", &[BATCH, 784], 1.0)?;
    let targets =
        Tensor::from_vec((0..BATCH as u32).map(|i| i % 10).collect(), BATCH, &Device::Cpu)?;
    let parameters = [
        normal("w1", &[256, 784], 0.05)?,
        normal("b1", &[256], 0.0)?,
        normal("w2", &[10, 256], 0.08)?,
        normal("b2", &[10], 0.0)?,
    ];
    let parameters = parameters.iter().map(Var::from_tensor).collect::<Result<Vec<_>>>()?;
    let rule = AdamW { lr: 1e-3, ..AdamW::default() };
    let mut states = parameters.iter().map(|p| rule.init(p)).collect::<Result<Vec<_>>>()?;

    let mut times = Vec::with_capacity(steps);
    let mut loss = 0f32;
    for _ in 0..steps {
        let start = Instant::now();
        let [w1, b1, w2, b2] = [0, 1, 2, 3].map(|i| parameters[i].as_tensor());
        let hidden = linear_act(&x, w1, Some(b1), Activation::Relu)?;
        let mean = cross_entropy(&linear(&hidden, w2, Some(b2))?, &targets, 0.0)?;
        let grads = backward(&mean)?;
        for (parameter, state) in parameters.iter().zip(&mut states) {
            if let Some(grad) = grads.get(parameter) {
                rule.step(parameter, grad, 1.0, state)?;
            }
        }
        times.push(start.elapsed().as_secs_f64() * 1e3);
        loss = mean.to_scalar()?;
    }
    times.sort_by(f64::total_cmp);
    let median = times[times.len() / 2];
    println!(
        "mlp_step: min {:.4} median {median:.4} ms, {:.0} steps/s (best {:.0}), peak {} MiB, loss {loss:.5}",
        times[0],
        1e3 / median,
        1e3 / times[0],
        peak_mib(),
    );
    Ok(())
}

/// Peak resident memory, from Linux' process status; zero elsewhere.
fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap_or(0) / 1024
}
