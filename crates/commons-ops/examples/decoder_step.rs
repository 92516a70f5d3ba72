//! Times a training step of a Llama-style decoder built directly on the ops: forward, backward,
//! gradient clipping and AdamW, on random weights and tokens.
//!
//! ```text
//! decoder_step [small | smollm2] [batch] [seq] [steps]
//! ```
#![allow(clippy::print_stdout, reason = "printing the figures is what this program is for")]

use commons_core::Seed;
use commons_ops::optim::{AdamW, AdamWState, Optimizer};
use commons_ops::{
    AttentionOptions, Device, LossOptions, Result, RopeScaling, Tensor, Var, add, attention,
    backward, embedding, linear, linear_cross_entropy, rms_norm, rope, rope_tables, swiglu,
};
use std::time::{Duration, Instant};

#[derive(Clone, Copy)]
struct Config {
    vocab: usize,
    hidden: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    ffn: usize,
    batch: usize,
    seq: usize,
    steps: usize,
}

const SMALL: Config = Config {
    vocab: 2048,
    hidden: 256,
    layers: 6,
    heads: 8,
    kv_heads: 8,
    ffn: 688,
    batch: 8,
    seq: 128,
    steps: 20,
};

const SMOLLM2: Config = Config {
    vocab: 49152,
    hidden: 576,
    layers: 30,
    heads: 9,
    kv_heads: 3,
    ffn: 1536,
    batch: 1,
    seq: 256,
    steps: 5,
};

struct Layer {
    norm1: Var,
    q: Var,
    k: Var,
    v: Var,
    o: Var,
    norm2: Var,
    gate: Var,
    up: Var,
    down: Var,
}

impl Layer {
    fn new(c: &Config, seed: Seed) -> Result<Self> {
        let (h, d) = (c.hidden, c.hidden / c.heads);
        let matrix = |name: &str, out: usize, inputs: usize| {
            normal(seed.fork(name, 0), &[out, inputs], 0.02)
        };
        Ok(Self {
            norm1: ones(h)?,
            q: matrix("q", h, h)?,
            k: matrix("k", c.kv_heads * d, h)?,
            v: matrix("v", c.kv_heads * d, h)?,
            o: matrix("o", h, h)?,
            norm2: ones(h)?,
            gate: matrix("gate", c.ffn, h)?,
            up: matrix("up", c.ffn, h)?,
            down: matrix("down", h, c.ffn)?,
        })
    }

    fn parameters(&self) -> [&Var; 9] {
        let Self { norm1, q, k, v, o, norm2, gate, up, down } = self;
        [norm1, q, k, v, o, norm2, gate, up, down]
    }

    fn forward(&self, x: &Tensor, c: &Config, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
        let d = c.hidden / c.heads;
        let n = rms_norm(x, &self.norm1, 1e-5)?;
        let heads =
            |w: &Var, count: usize| linear(&n, w, None)?.reshape((c.batch, c.seq, count, d));
        let q = rope(&heads(&self.q, c.heads)?, cos, sin)?;
        let k = rope(&heads(&self.k, c.kv_heads)?, cos, sin)?;
        let v = heads(&self.v, c.kv_heads)?;
        let mixed = attention(&q, &k, &v, &AttentionOptions::causal())?;
        let x = add(x, &linear(&mixed, &self.o, None)?)?;
        let n = rms_norm(&x, &self.norm2, 1e-5)?;
        let gated = swiglu(&linear(&n, &self.gate, None)?, &linear(&n, &self.up, None)?)?;
        add(&x, &linear(&gated, &self.down, None)?)
    }
}

struct Model {
    table: Var,
    layers: Vec<Layer>,
    norm: Var,
}

impl Model {
    fn new(c: &Config) -> Result<Self> {
        let seed = Seed::new(0);
        let layers = (0..c.layers).map(|i| Layer::new(c, seed.fork("layer", i as u64)));
        Ok(Self {
            table: normal(seed.fork("table", 0), &[c.vocab, c.hidden], 0.02)?,
            layers: layers.collect::<Result<_>>()?,
            norm: ones(c.hidden)?,
        })
    }

    fn parameters(&self) -> Vec<&Var> {
        let inner = self.layers.iter().flat_map(Layer::parameters);
        [&self.table, &self.norm].into_iter().chain(inner).collect()
    }

    fn loss(&self, c: &Config, ids: &Tensor, targets: &Tensor) -> Result<Tensor> {
        let (cos, sin) = rope_tables(0..c.seq, c.hidden / c.heads, 10_000.0, RopeScaling::None)?;
        let mut x = embedding(&self.table, ids)?;
        for layer in &self.layers {
            x = layer.forward(&x, c, &cos, &sin)?;
        }
        let x = rms_norm(&x, &self.norm, 1e-5)?;
        linear_cross_entropy(&x, &self.table, targets, &LossOptions::default())
    }
}

fn normal(seed: Seed, dims: &[usize], deviation: f32) -> Result<Var> {
    let mut data = vec![0f32; dims.iter().product()];
    seed.normal(0, &mut data);
    data.iter_mut().for_each(|x| *x *= deviation);
    Var::from_vec(data, dims, &Device::Cpu)
}

fn ones(width: usize) -> Result<Var> {
    Var::from_vec(vec![1f32; width], width, &Device::Cpu)
}

fn tokens(seed: Seed, c: &Config) -> Result<Tensor> {
    let mut bits = vec![0u32; c.batch * c.seq];
    seed.bits(0, &mut bits);
    let ids: Vec<u32> = bits.iter().map(|b| b % c.vocab as u32).collect();
    Tensor::from_vec(ids, (c.batch, c.seq), &Device::Cpu)
}

/// Forward, backward, optimiser.
type Times = [Duration; 3];

fn step(
    model: &Model,
    c: &Config,
    states: &mut [AdamWState],
    ids: &Tensor,
    targets: &Tensor,
) -> Result<(f32, Times)> {
    let start = Instant::now();
    let loss = model.loss(c, ids, targets)?;
    let forward = start.elapsed();
    let grads = backward(&loss)?;
    let both = start.elapsed();
    let clip = (1.0 / grads.global_norm()?).min(1.0) as f32;
    let rule = AdamW { lr: 1e-3, ..AdamW::default() };
    for (parameter, state) in model.parameters().into_iter().zip(states) {
        if let Some(grad) = grads.get(parameter) {
            rule.step(parameter, grad, clip, state)?;
        }
    }
    Ok((loss.to_scalar()?, [forward, both - forward, start.elapsed() - both]))
}

/// Processor time of all threads so far, ms: unlike wall time it hardly suffers from neighbours.
fn processor_ms() -> Option<f64> {
    let mut total = 0.0;
    for thread in std::fs::read_dir("/proc/self/task").ok()? {
        let stat = std::fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        total += stat.split_whitespace().next()?.parse::<f64>().ok()? / 1e6;
    }
    Some(total)
}

/// The largest resident size so far, MiB.
fn peak() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM"))?;
    line.split_whitespace().nth(1)?.parse::<f64>().ok().map(|kib| kib / 1024.0)
}

fn main() -> Result<()> {
    // On a worker thread: from outside the pool every product would first have to wake one.
    rayon::join(run, || ()).0
}

fn run() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let mut c = if args.first().is_some_and(|name| name == "smollm2") { SMOLLM2 } else { SMALL };
    let number = |i: usize, default: usize| -> usize {
        args.get(i).and_then(|arg| arg.parse().ok()).unwrap_or(default)
    };
    c = Config { batch: number(1, c.batch), seq: number(2, c.seq), steps: number(3, c.steps), ..c };
    let model = Model::new(&c)?;
    let stored: usize = model.parameters().iter().map(|p| p.elem_count()).sum();
    let rule = AdamW::default();
    let mut states =
        model.parameters().into_iter().map(|p| rule.init(p)).collect::<Result<Vec<_>>>()?;
    let (ids, targets) = (tokens(Seed::new(1), &c)?, tokens(Seed::new(2), &c)?);
    let mut times = Vec::new();
    let mut last = 0.0;
    let mut after_first = 0.0;
    for i in 0..c.steps {
        if i == 1 {
            after_first = processor_ms().unwrap_or(f64::NAN);
        }
        let (loss, time) = step(&model, &c, &mut states, &ids, &targets)?;
        times.push(time);
        last = loss;
    }
    let processor = processor_ms().unwrap_or(f64::NAN) - after_first;
    let processor = processor / c.steps.saturating_sub(1).max(1) as f64;
    times.sort_by_key(|t| t.iter().sum::<Duration>());
    let ms = |t: &Times| t.iter().sum::<Duration>().as_secs_f64() * 1e3;
    let (min, median) = (ms(&times[0]), ms(&times[times.len() / 2]));
    let [forward, back, optimiser] = times[0].map(|t| t.as_secs_f64() * 1e3);
    println!(
        "ours: {:.2} M parameters, {} x {}: min {min:.1} ms, median {median:.1} ms, \
         processor {processor:.1} ms, {:.0} tokens/s (forward {forward:.1}, backward {back:.1}, optimiser {optimiser:.1}), \
         peak {:.0} MiB, loss {last:.4}",
        stored as f64 / 1e6,
        c.batch,
        c.seq,
        (c.batch * c.seq) as f64 / min * 1e3,
        peak().unwrap_or(f64::NAN),
    );
    Ok(())
}
