//! The cases: each builds its inputs once and returns a step to be timed.

use std::path::Path;

use commons_core::Seed;
use commons_nn::bank::Bank;
use commons_nn::model::{Decoder, DecoderConfig, Loaded};
use commons_nn::optim::{Optimizer, OptimizerConfig};
use commons_ops::{self as ops, Activation, ConvOptions, Device, Tensor};

/// Tokens in the cache before the first is decoded.
const PROMPT: usize = 128;

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

/// A step to time, and how much it does.
pub struct Case {
    /// One repetition.
    pub step: Box<dyn FnMut() -> Fallible<()>>,
    /// Repetitions per measurement, for steps far below a millisecond.
    pub inner: usize,
    /// Work of one repetition, in `unit`.
    pub units: f64,
    /// What is counted: tokens, samples, bytes.
    pub unit: &'static str,
}

/// Builds the case of this name.
pub fn build(name: &str, file: Option<&Path>) -> Fallible<Case> {
    match name {
        "decoder-5m" => decoder(DecoderConfig::llama(4096, 256, 6, 8, 8, 688), 8, 128),
        "decoder-135m" => decoder(DecoderConfig::llama(49_152, 576, 30, 9, 3, 1536), 1, 256),
        "decode-1" => decode(1),
        "decode-4" => decode(4),
        "mlp" => mlp(),
        "resnet-block" => resnet_block(),
        "noise" => noise(),
        "load" => load(file.ok_or("load needs --file")?),
        other => Err(format!("unknown case `{other}`").into()),
    }
}

fn normal(seed: u64, shape: &[usize], scale: f32) -> Fallible<Tensor> {
    let mut v = vec![0f32; shape.iter().product()];
    Seed::new(seed).normal(0, &mut v);
    v.iter_mut().for_each(|x| *x *= scale);
    Ok(Tensor::from_vec(v, shape, &Device::Cpu)?)
}

fn labels(n: usize, classes: u64) -> Fallible<Tensor> {
    let mut rng = Seed::new(9).rng();
    let v: Vec<u32> = (0..n).map(|_| rng.below(classes) as u32).collect();
    Ok(Tensor::from_vec(v, n, &Device::Cpu)?)
}

/// A training step of a Llama-style decoder: loss, gradients, AdamW.
fn decoder(config: DecoderConfig, batch: usize, seq: usize) -> Fallible<Case> {
    let vocab = config.vocab_size as u64;
    let model = Decoder::init(config, Seed::new(1))?;
    let mut optimizer = Optimizer::new(OptimizerConfig::default(), &model.bank)?;
    let ids = labels(batch * (seq + 1), vocab)?.reshape((batch, seq + 1))?;
    let step = move || {
        let grads = ops::backward(&model.next_token_loss(&ids)?)?;
        optimizer.step(&model.bank, &grads, 1e-4, 1., 1.)?;
        Ok(())
    };
    Ok(Case { step: Box::new(step), inner: 1, units: (batch * seq) as f64, unit: "tokens" })
}

/// One more token for each of `batch` sequences of 128 tokens and more, 135 M parameters.
fn decode(batch: usize) -> Fallible<Case> {
    let config = DecoderConfig::llama(49_152, 576, 30, 9, 3, 1536);
    let vocab = config.vocab_size as u64;
    let model = Decoder::init(config, Seed::new(1))?.baked()?;
    let mut cache = model.cache(batch, PROMPT + 1024)?;
    let prompt = labels(batch * PROMPT, vocab)?.reshape((batch, PROMPT))?;
    ops::no_grad(|| model.forward(&prompt, Some(&mut cache)))?;
    let ids = labels(batch, vocab)?.reshape((batch, 1))?;
    let step = move || {
        let hidden = ops::no_grad(|| model.forward(&ids, Some(&mut cache)))?;
        ops::no_grad(|| model.logits(&hidden))?;
        Ok(())
    };
    Ok(Case { step: Box::new(step), inner: 10, units: batch as f64, unit: "tokens" })
}

/// A training step of a 784-256-10 perceptron, batch 64.
fn mlp() -> Fallible<Case> {
    let mut bank = Bank::default();
    bank.insert("a.weight", normal(1, &[256, 784], 0.05)?)?;
    bank.insert("a.bias", normal(2, &[256], 0.)?)?;
    bank.insert("b.weight", normal(3, &[10, 256], 0.05)?)?;
    bank.insert("b.bias", normal(4, &[10], 0.)?)?;
    let mut optimizer = Optimizer::new(OptimizerConfig::default(), &bank)?;
    let (x, y) = (normal(5, &[64, 784], 1.)?, labels(64, 10)?);
    let step = move || {
        let (w, b) = (bank.weight("a.weight")?, bank.weight("a.bias")?);
        let h = ops::linear_act(&x, &w, Some(&b), Activation::Relu)?;
        let loss = ops::cross_entropy(&bank.linear("b", &h)?, &y, 0.)?;
        optimizer.step(&bank, &ops::backward(&loss)?, 1e-3, 1., 0.)?;
        Ok(())
    };
    Ok(Case { step: Box::new(step), inner: 50, units: 64., unit: "samples" })
}

/// Forward and backward of a residual block, 32 channels, 32 x 32, batch 64.
fn resnet_block() -> Fallible<Case> {
    let mut bank = Bank::default();
    for i in 1..=2u64 {
        bank.insert(format!("conv{i}.weight"), normal(i, &[32, 32, 3, 3], 0.08)?)?;
        bank.insert(format!("bn{i}.weight"), normal(9, &[32], 0.)?.affine(1., 1.)?)?;
        bank.insert(format!("bn{i}.bias"), normal(9, &[32], 0.)?)?;
    }
    let x = ops::Var::from_tensor(&normal(7, &[64, 32, 32, 32], 1.)?)?;
    let step = move || {
        let options = ConvOptions { padding: [1; 2], ..ConvOptions::default() };
        let layer = |i: usize, x: &Tensor| -> Fallible<Tensor> {
            let x = ops::conv2d(x, &bank.weight(&format!("conv{i}.weight"))?, None, &options)?;
            let (gain, bias) =
                (bank.weight(&format!("bn{i}.weight"))?, bank.weight(&format!("bn{i}.bias"))?);
            Ok(ops::batch_norm(&x, &gain, &bias, 1e-5)?.0)
        };
        let y = ops::relu(&layer(1, &x)?)?;
        let y = ops::relu(&ops::add(&layer(2, &y)?, &x)?)?;
        ops::backward(&ops::sum(&y)?)?;
        Ok(())
    };
    Ok(Case { step: Box::new(step), inner: 1, units: 64., unit: "samples" })
}

/// A hundred million standard normal floats.
fn noise() -> Fallible<Case> {
    let mut out = vec![0f32; 100_000_000];
    let step = move || {
        Seed::new(3).normal_par(0, &mut out);
        Ok(())
    };
    Ok(Case { step: Box::new(step), inner: 1, units: 4e8, unit: "bytes" })
}

/// A checkpoint file to a model that is ready to run in f32.
fn load(file: &Path) -> Fallible<Case> {
    let path = file.to_path_buf();
    let bytes = std::fs::metadata(file)?.len() as f64;
    let step = move || {
        std::hint::black_box(Loaded::open(&path)?);
        Ok(())
    };
    Ok(Case { step: Box::new(step), inner: 1, units: bytes, unit: "bytes" })
}
