//! Residual networks for small images (He et al. 2016, section 4.2: depth `6n + 2`) over a
//! [`Bank`]. Weights are named as in the common CIFAR-10 implementation.

use commons_core::Seed;
use commons_ops::{self as ops, ConvOptions, Tensor};
use serde::{Deserialize, Serialize};

use crate::bank::Bank;
use crate::{Error, Result};

/// Shape of a small-image residual network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResNetConfig {
    /// Basic blocks in each of the three stages; depth is `6·blocks + 2`.
    pub blocks: usize,
    /// Channels of the first stage; doubled twice.
    pub width: usize,
    /// Channels of the input image.
    pub num_channels: usize,
    /// Classes.
    pub num_labels: usize,
}

/// Whether BatchNorm uses the batch's statistics (and updates the running ones) or the running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Batch statistics; running ones move by a tenth.
    Train,
    /// Running statistics.
    Eval,
}

const EPS: f32 = 1e-5;
const MOMENTUM: f64 = 0.1;

/// A small-image residual network with parameter-free (padding) shortcuts.
#[derive(Debug, Clone)]
pub struct ResNet {
    /// Shape.
    pub config: ResNetConfig,
    /// Stored parameters, running statistics included, and sharing plan.
    pub bank: Bank,
}

/// Whether a stored tensor is a running statistic: saved, never stepped by an optimiser.
pub fn is_running_statistic(name: &str) -> bool {
    name.ends_with(".running_mean") || name.ends_with(".running_var")
}

impl ResNetConfig {
    /// Stage, block, input channels, output channels and stride of every block.
    fn plan(&self) -> Vec<(usize, usize, usize, usize, usize)> {
        let mut plan = Vec::new();
        let mut input = self.width;
        for stage in 0..3 {
            let out = self.width << stage;
            for block in 0..self.blocks {
                plan.push((stage, block, input, out, if stage > 0 && block == 0 { 2 } else { 1 }));
                input = out;
            }
        }
        plan
    }

    /// Name and shape of every weight and running statistic.
    pub fn weights(&self) -> Vec<(String, Vec<usize>)> {
        let mut all = Vec::new();
        let mut conv = |prefix: &str, index: usize, out: usize, input: usize| {
            all.push((format!("{prefix}conv{index}.weight"), vec![out, input, 3, 3]));
            for part in ["weight", "bias", "running_mean", "running_var"] {
                all.push((format!("{prefix}bn{index}.{part}"), vec![out]));
            }
        };
        conv("", 1, self.width, self.num_channels);
        for (stage, block, input, out, _) in self.plan() {
            let p = format!("layer{}.{block}.", stage + 1);
            conv(&p, 1, out, input);
            conv(&p, 2, out, out);
        }
        all.push(("linear.weight".into(), vec![self.num_labels, self.width << 2]));
        all.push(("linear.bias".into(), vec![self.num_labels]));
        all
    }
}

impl ResNet {
    /// Joins a configuration and a bank; running statistics are frozen.
    ///
    /// # Errors
    /// Naming the missing or misshapen weight.
    pub fn new(config: ResNetConfig, mut bank: Bank) -> Result<Self> {
        if config.blocks == 0 || config.width == 0 {
            return Err(Error::config("blocks", "and width must be at least 1"));
        }
        for (name, shape) in config.weights() {
            let found = bank.shape(&name)?;
            if found != shape {
                return Err(Error::plan(&name, format!("has shape {found:?}, the configuration needs {shape:?}")));
            }
        }
        bank.freeze(is_running_statistic);
        Ok(Self { config, bank })
    }

    /// A freshly initialised network (He normal; gains and running variances one).
    pub fn init(config: ResNetConfig, seed: Seed) -> Result<Self> {
        let mut bank = Bank::default();
        for (name, shape) in config.weights() {
            let mut v = vec![0f32; shape.iter().product()];
            if shape.len() > 1 {
                let fan_in: usize = shape[1..].iter().product();
                let sd = (2. / fan_in as f32).sqrt();
                seed.fork(&name, 0).normal(0, &mut v);
                v.iter_mut().for_each(|x| *x *= sd);
            } else if name.ends_with("running_var") || (name.contains("bn") && name.ends_with("weight")) {
                v.fill(1.);
            }
            bank.insert(name, Tensor::from_vec(v, shape, bank.device())?)?;
        }
        Self::new(config, bank)
    }

    /// Convolution `{prefix}conv{index}` and BatchNorm `{prefix}bn{index}`.
    fn conv_norm(&self, prefix: &str, index: usize, x: &Tensor, stride: usize, mode: Mode) -> Result<Tensor> {
        let options = ConvOptions { stride: [stride; 2], padding: [1; 2], ..ConvOptions::default() };
        let w = self.bank.weight(&format!("{prefix}conv{index}.weight"))?;
        let x = ops::conv2d(x, &w, None, &options)?;
        let part = |p: &str| self.bank.weight(&format!("{prefix}bn{index}.{p}"));
        let (gain, bias) = (part("weight")?, part("bias")?);
        if mode == Mode::Eval {
            return Ok(ops::batch_norm_eval(&x, &gain, &bias, &part("running_mean")?, &part("running_var")?, EPS)?);
        }
        let (y, mean, var) = ops::batch_norm(&x, &gain, &bias, EPS)?;
        let n = (x.elem_count() / x.dim(1)?) as f64;
        let unbiased = var.affine(n / (n - 1.).max(1.), 0.)?;
        for (name, batch) in [("running_mean", mean), ("running_var", unbiased)] {
            let running = self.bank.stored_var(&format!("{prefix}bn{index}.{name}"))?;
            let moved = (running.affine(1. - MOMENTUM, 0.)? + batch.detach().affine(MOMENTUM, 0.)?)?;
            running.set(&moved)?;
        }
        Ok(y)
    }

    /// Class scores `[batch, num_labels]` of images `[batch, channels, height, width]`.
    pub fn forward(&self, images: &Tensor, mode: Mode) -> Result<Tensor> {
        let mut x = ops::relu(&self.conv_norm("", 1, images, 1, mode)?)?;
        for (stage, block, input, out, stride) in self.config.plan() {
            let p = format!("layer{}.{block}.", stage + 1);
            let y = ops::relu(&self.conv_norm(&p, 1, &x, stride, mode)?)?;
            let y = self.conv_norm(&p, 2, &y, 1, mode)?;
            x = ops::relu(&(y + shortcut(&x, input, out, stride)?)?)?;
        }
        let pooled = x.flatten_from(2)?.mean(2)?;
        self.bank.linear("linear", &pooled)
    }
}

/// Option A of the paper: every `stride`-th position, channels padded with zeros on both sides.
fn shortcut(x: &Tensor, input: usize, out: usize, stride: usize) -> Result<Tensor> {
    if input == out && stride == 1 {
        return Ok(x.clone());
    }
    let (_, _, height, width) = x.dims4()?;
    let index = |n: usize| {
        let at: Vec<u32> = (0..n).step_by(stride).map(|i| i as u32).collect();
        let len = at.len();
        Tensor::from_vec(at, len, x.device())
    };
    let x = x.index_select(&index(height)?, 2)?.index_select(&index(width)?, 3)?;
    let side = (out - input) / 2;
    Ok(x.pad_with_zeros(1, side, out - input - side)?)
}
