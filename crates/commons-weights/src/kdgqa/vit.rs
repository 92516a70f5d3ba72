//! A vision transformer whose key and value heads are shared by groups of query heads, as it is
//! trained after conversion.

use std::cell::Cell;

use commons_core::Seed;
use commons_nn::model::{Vit, key_heads};
use commons_ops::{self as ops, AttentionOptions, Device, Tensor};

use super::Scheme;
use super::allocation::{Dynamic, key_driven, key_norms, next_cache, uniform};
use super::pool::pool_weights;
use crate::{Error, Result};

/// Stored name of the allocation, `[layers, kv heads]`, whole numbers.
pub const ALLOCATION: &str = "bank.kdgqa.allocation";

/// Stored name of DGQA's cache of norms, `[layers, kv heads]`.
pub const CACHE: &str = "bank.kdgqa.cache";

/// What a forward pass is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Training, at this optimiser step (from 0).
    Train(usize),
    /// Scoring.
    Eval,
}

/// A vision transformer with a scheme of grouping.
///
/// Allocation and cache are stored in the bank (frozen), so a checkpoint holds them, and everything
/// random is a function of seed, step and layer: a run that is resumed in the middle of a window
/// goes on as if it had not stopped.
#[derive(Debug, Clone)]
pub struct GroupedVit {
    /// The network; its bank holds the state.
    pub vit: Vit,
    /// Who decides which query heads a key head serves.
    pub scheme: Scheme,
    /// Steps between two allocations of DGQA.
    pub window: usize,
    /// Decide anew in every scored batch, as the released code does, instead of freezing.
    pub paper_eval: bool,
    /// Seed of repairs, noise and control.
    pub seed: Seed,
}

impl GroupedVit {
    /// Converts `vit` to `groups` key and value heads, equal groups to begin with. The copy shares
    /// no storage with `vit`.
    ///
    /// # Errors
    /// When `groups` does not divide the heads, saying which number does.
    pub fn convert(vit: &Vit, groups: usize, scheme: Scheme, seed: Seed) -> Result<Self> {
        let heads = vit.config.num_key_value_heads;
        let mut config = vit.config.clone();
        let mut bank = vit.bank.deep_clone()?;
        let names: Vec<String> = (0..config.num_hidden_layers)
            .flat_map(|l| {
                ["key.weight", "key.bias", "value.weight", "value.bias"]
                    .map(|m| format!("vit.encoder.layer.{l}.attention.attention.{m}"))
            })
            .collect();
        pool_weights(&mut bank, &names, heads, groups)?;
        config.num_key_value_heads = groups;
        let (layers, all) = (config.num_hidden_layers, config.num_attention_heads);
        let equal: Vec<f32> = uniform(all, groups).into_iter().map(|a| a as f32).collect();
        let allocation = Tensor::from_vec(equal.repeat(layers), (layers, groups), &Device::Cpu)?;
        bank.insert(CACHE, allocation.zeros_like()?)?;
        bank.insert(ALLOCATION, allocation)?;
        bank.freeze(|n| n == ALLOCATION || n == CACHE);
        let vit = Vit::new(config, bank)?;
        Ok(Self { vit, scheme, window: 300, paper_eval: false, seed })
    }

    /// Query heads of every key head, layer by layer.
    ///
    /// # Errors
    /// When the bank does not hold the state.
    pub fn allocation(&self) -> Result<Vec<Vec<usize>>> {
        let rows = self.vit.bank.stored_var(ALLOCATION)?.to_vec2::<f32>()?;
        Ok(rows.into_iter().map(|r| r.into_iter().map(|a| a as usize).collect()).collect())
    }

    /// Makes `sizes` the allocation of `layer`.
    ///
    /// # Errors
    /// When they are not one count for each key head, all query heads together.
    pub fn set_allocation(&self, layer: usize, sizes: &[usize]) -> Result<()> {
        let c = &self.vit.config;
        let fits = sizes.len() == c.num_key_value_heads
            && sizes.iter().sum::<usize>() == c.num_attention_heads;
        if !fits {
            return Err(Error::config("allocation", format!("{sizes:?} does not fit the heads")));
        }
        self.set_row(ALLOCATION, layer, sizes.iter().map(|&a| a as f32))
    }

    fn set_row(&self, name: &str, row: usize, values: impl Iterator<Item = f32>) -> Result<()> {
        let var = self.vit.bank.stored_var(name)?;
        let mut rows = var.to_vec2::<f32>()?;
        rows[row] = values.collect();
        let flat = rows.concat();
        Ok(var.set(&Tensor::from_vec(flat, var.dims(), var.device())?)?)
    }

    /// Class scores `[batch, labels]` of images `[batch, channels, height, width]`.
    ///
    /// # Errors
    /// When the images do not fit.
    pub fn forward(&self, images: &Tensor, phase: Phase) -> Result<Tensor> {
        self.forward_by(images, phase, |model, layer, k| model.sizes(layer, k, phase))
    }

    /// The counts that KDGQA gives keys `k`; for the control in a random order that is the layer's
    /// own and stays, so that groups follow norms in number, but not in place.
    fn by_norms(&self, layer: usize, k: &Tensor) -> Result<Vec<usize>> {
        let sizes = key_driven(self.vit.config.num_attention_heads, &key_norms(k)?);
        if self.scheme != Scheme::Random {
            return Ok(sizes);
        }
        let mut sorted = sizes;
        sorted.sort_unstable();
        let order = self.seed.fork("control", layer as u64).permutation(sorted.len());
        Ok(order.into_iter().map(|at| sorted[at]).collect())
    }

    /// Freezes the allocation that is used in scoring, from the keys of `images`: that of KDGQA for
    /// [`Scheme::Kdgqa`], the same counts in random order for [`Scheme::Random`]; other schemes keep
    /// theirs.
    ///
    /// # Errors
    /// When the images do not fit.
    pub fn calibrate(&self, images: &Tensor) -> Result<()> {
        if !matches!(self.scheme, Scheme::Kdgqa | Scheme::Random) {
            return Ok(());
        }
        ops::no_grad(|| {
            self.forward_by(images, Phase::Eval, |model, layer, k| {
                let sizes = model.by_norms(layer, k)?;
                model.set_allocation(layer, &sizes)?;
                Ok(sizes)
            })
        })?;
        Ok(())
    }

    /// Seconds by `clock` that one pass of `images` spends on deciding which heads a key head serves.
    ///
    /// # Errors
    /// When the images do not fit.
    pub fn allocation_seconds(&self, images: &Tensor, clock: impl Fn() -> f64) -> Result<f64> {
        let spent = Cell::new(0.);
        ops::no_grad(|| {
            self.forward_by(images, Phase::Eval, |model, _, k| {
                let began = clock();
                let sizes = key_driven(model.vit.config.num_attention_heads, &key_norms(k)?);
                spent.set(spent.get() + clock() - began);
                Ok(sizes)
            })
        })?;
        Ok(spent.get())
    }

    fn forward_by(
        &self,
        images: &Tensor,
        phase: Phase,
        sizes: impl Fn(&Self, usize, &Tensor) -> Result<Vec<usize>>,
    ) -> Result<Tensor> {
        let mut x = self.vit.embed(images)?;
        for layer in 0..self.vit.config.num_hidden_layers {
            let [q, k, v] = self.vit.attention_heads(layer, &x)?;
            let map = key_heads(&sizes(self, layer, &k)?);
            let options = AttentionOptions { key_heads: Some(map), ..AttentionOptions::default() };
            let mut y = ops::attention(&q, &k, &v, &options)?;
            if self.scheme == Scheme::Pgqa {
                y = self.perturb(layer, &y, phase)?;
            }
            x = ops::add(&x, &self.vit.attention_output(layer, &y)?)?;
            x = ops::add(&x, &self.vit.mlp_update(layer, &x)?)?;
        }
        Ok(self.vit.classify(&x)?)
    }

    /// The allocation of `layer` for keys `k`, which DGQA also keeps.
    fn sizes(&self, layer: usize, k: &Tensor, phase: Phase) -> Result<Vec<usize>> {
        let heads = self.vit.config.num_attention_heads;
        let fresh = match phase {
            Phase::Eval => self.paper_eval,
            // The initial allocation stands for the first window.
            Phase::Train(step) => {
                matches!(self.scheme, Scheme::Kdgqa | Scheme::Random)
                    || (step > 0 && step % self.window.max(1) == 0)
            }
        };
        let kind = match self.scheme {
            Scheme::Kdgqa | Scheme::Random if fresh => return self.by_norms(layer, k),
            Scheme::DgqaDiff if fresh => Dynamic::Difference,
            Scheme::DgqaEma if fresh => Dynamic::Ema,
            _ => {
                let row = self.vit.bank.stored_var(ALLOCATION)?.get(layer)?.to_vec1::<f32>()?;
                return Ok(row.into_iter().map(|a| a as usize).collect());
            }
        };
        let norms = key_norms(k)?;
        let cache = self.vit.bank.stored_var(CACHE)?.get(layer)?.to_vec1::<f32>()?;
        let mut cache: Vec<f64> = cache.into_iter().map(f64::from).collect();
        let step = match phase {
            Phase::Train(step) => step as u64,
            Phase::Eval => u64::MAX,
        };
        let mut rng = self.seed.fork("repair", step).fork("layer", layer as u64).rng();
        let sizes = kind.allocate(heads, &norms, &cache, &mut rng);
        match phase {
            Phase::Train(_) => next_cache(&mut cache, &norms, self.window),
            Phase::Eval => cache = norms,
        }
        self.set_row(CACHE, layer, cache.into_iter().map(|c| c as f32))?;
        self.set_allocation(layer, &sizes)?;
        Ok(sizes)
    }

    /// `A_g − R`: uniform noise with a zero diagonal, standardised per head and scaled to the mean
    /// and deviation of that head's output `[seq · head_dim]` in each batch item.
    pub(super) fn perturb(&self, layer: usize, y: &Tensor, phase: Phase) -> Result<Tensor> {
        let (_, seq, heads, width) = y.dims4()?;
        let step = match phase {
            Phase::Train(step) => step as u64,
            Phase::Eval => u64::MAX,
        };
        let mut z = vec![0f32; heads * seq * width];
        self.seed.fork("noise", step).fork("layer", layer as u64).uniform(0, &mut z);
        let group = heads / self.vit.config.num_key_value_heads;
        for (head, row) in z.chunks_exact_mut(seq * width).enumerate() {
            if let Some(diagonal) = row.get_mut(head % group) {
                *diagonal = 0.;
            }
            let (mean, deviation) = moments(row.iter().copied(), row.len());
            let unit = if deviation > 0. { deviation } else { 1. };
            row.iter_mut().for_each(|x| *x = (*x - mean) / unit);
        }
        let mut noise = y.detach().flatten_all()?.to_vec1::<f32>()?;
        for item in noise.chunks_exact_mut(seq * heads * width) {
            for (head, z) in z.chunks_exact(seq * width).enumerate() {
                let at = |i: usize| (i / width * heads + head) * width + i % width;
                let (mean, deviation) = moments((0..z.len()).map(|i| item[at(i)]), z.len());
                z.iter().enumerate().for_each(|(i, z)| item[at(i)] = -(mean + deviation * z));
            }
        }
        Ok(ops::add(y, &Tensor::from_vec(noise, y.dims(), y.device())?)?)
    }

    /// Bytes of keys and values of one token in all layers, `f32`.
    pub fn kv_bytes(&self) -> usize {
        let c = &self.vit.config;
        2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim() * size_of::<f32>()
    }
}

/// Mean and unbiased deviation.
fn moments(values: impl Iterator<Item = f32> + Clone, n: usize) -> (f32, f32) {
    let mean = values.clone().map(f64::from).sum::<f64>() / n as f64;
    let squares: f64 = values.map(|x| (f64::from(x) - mean).powi(2)).sum();
    let deviation = (squares / n.saturating_sub(1).max(1) as f64).sqrt();
    (mean as f32, deviation as f32)
}
