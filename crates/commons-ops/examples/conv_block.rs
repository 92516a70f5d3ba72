//! Times forward and backward of a residual block, conv–bn–relu–conv–bn–add–relu with 3×3
//! kernels, behind it global pooling and a ten-way classifier. `scripts/bench/conv_block.py`
//! does the same in PyTorch.
//!
//! ```sh
//! RAYON_NUM_THREADS=2 cargo run --release -p commons-ops --example conv_block -- 64 64 32 20
//! ```
//! Arguments: batch, channels, height = width, steps.
#![allow(clippy::print_stdout)]

use std::time::Instant;

use commons_core::Seed;
use commons_ops::{
    ConvOptions, Device, Result, Tensor, Var, backward, batch_norm_relu, conv2d, cross_entropy,
    global_avg_pool2d, linear,
};

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1).map(|a| a.parse::<usize>());
    let mut next = |default| args.next().and_then(|a| a.ok()).unwrap_or(default);
    let (batch, channels, size, steps) = (next(64), next(64), next(32), next(20));

    let normal = |name: &str, dims: &[usize], scale: f32| -> Result<Var> {
        let mut data = vec![0f32; dims.iter().product()];
        Seed::new(0).fork(name, 0).normal(0, &mut data);
        data.iter_mut().for_each(|v| *v *= scale);
        Var::from_vec(data, dims, &Device::Cpu)
    };
    let deviation = (2.0 / (9 * channels) as f32).sqrt();
    let x = normal("x", &[batch, channels, size, size], 1.0)?;
    let w1 = normal("w1", &[channels, channels, 3, 3], deviation)?;
    let w2 = normal("w2", &[channels, channels, 3, 3], deviation)?;
    let head = normal("head", &[10, channels], 0.1)?;
    let ones = Tensor::ones(channels, candle_core::DType::F32, &Device::Cpu)?;
    let (gain1, gain2) = (Var::from_tensor(&ones)?, Var::from_tensor(&ones)?);
    let (bias1, bias2) = (Var::from_tensor(&ones.zeros_like()?)?, Var::from_tensor(&ones.zeros_like()?)?);
    let targets = Tensor::from_vec((0..batch as u32).map(|i| i % 10).collect(), batch, &Device::Cpu)?;
    let options = ConvOptions::padded(1);

    let mut forward = Vec::new();
    let mut total = Vec::new();
    let mut loss = 0f32;
    for _ in 0..steps.max(1) {
        let start = Instant::now();
        let h = conv2d(&x, &w1, None, &options)?;
        let h = batch_norm_relu(&h, &gain1, &bias1, None, 1e-5)?.0;
        let h = conv2d(&h, &w2, None, &options)?;
        let y = batch_norm_relu(&h, &gain2, &bias2, Some(&x), 1e-5)?.0;
        let logits = linear(&global_avg_pool2d(&y)?, &head, None)?;
        let mean = cross_entropy(&logits, &targets, 0.0)?;
        forward.push(start.elapsed().as_secs_f64() * 1e3);
        let grads = backward(&mean)?;
        total.push(start.elapsed().as_secs_f64() * 1e3);
        assert_eq!(grads.len(), 8);
        loss = mean.to_scalar()?;
    }
    forward.sort_by(f64::total_cmp);
    total.sort_by(f64::total_cmp);
    let median = |times: &[f64]| times[times.len() / 2];
    println!(
        "conv_block {batch}x{channels}x{size}x{size}: forward min {:.2} median {:.2} ms, step min {:.2} \
         median {:.2} ms, {:.2} steps/s, peak {} MiB, loss {loss:.5}",
        forward[0],
        median(&forward),
        total[0],
        median(&total),
        1e3 / median(&total),
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
