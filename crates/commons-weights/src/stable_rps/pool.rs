//! One pool for many weights: mapping, scales, filling, and the scaler of the pool's gradient.

use commons_core::Seed;
use commons_nn::bank::{Bank, Share};
use commons_ops::{self as ops, FoldedLayout, HashedLayout, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Stored name of the pool `ψ: [m]`.
pub const POOL: &str = "bank.rps.pool";

/// Which slot an element of a weight is read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Mapping {
    /// STABLE-RPS: one circular shift for every `m` consecutive elements.
    #[default]
    Fold,
    /// ROAST and ROBE-Z: every block of consecutive elements somewhere in the pool.
    Blocks {
        /// `Z`: elements of a block; 1 is HashedNet.
        block: usize,
    },
}

/// What the pool holds at first.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fill {
    /// The weights there are, in least squares: `ψ_j = Σ λ g W / Σ λ²` over the elements of slot `j`.
    Weights,
    /// `U(−s, s)`, for training from scratch; `λ_t = std(W_t)·√3/s` keeps the deviation of the
    /// weights there are.
    Uniform(f32),
    /// The same with the `s` at which `λ` has mean 1.
    Drawn,
}

/// What was shared.
#[derive(Debug, Clone)]
pub struct Pooled {
    /// `m`: slots.
    pub slots: usize,
    /// `n`: elements of the weights.
    pub elements: usize,
    /// `λ_t` by weight, in the order of names.
    pub scales: Vec<(String, f32)>,
    /// Share of the weights' variance that the pool keeps, `1 − ‖W − Ŵ‖²/‖W‖²`.
    pub kept: f64,
}

/// Slots of a pool for `elements`.
///
/// # Errors
/// When compression is below 1 or leaves no slot, or a block does not fit the pool, saying what
/// would.
pub(super) fn slots(elements: usize, compression: f64, mapping: Mapping) -> Result<usize> {
    if !(compression.is_finite() && compression >= 1.) {
        let why = format!("{compression} is not a number from 1: a larger pool saves nothing");
        return Err(Error::config("compression", format!("{why}; 1 is the nearest that works")));
    }
    let slots = (elements as f64 / compression + 1e-9).floor() as usize;
    let least = if let Mapping::Blocks { block } = mapping { block.max(1) } else { 1 };
    if slots < least {
        return Err(Error::config(
            "compression",
            format!(
                "{compression} leaves {slots} of {elements} elements, {least} are needed: at most \
                 {} works",
                elements / least
            ),
        ));
    }
    Ok(slots)
}

/// Makes the weights `names` of `bank` from one pool with `compression` times fewer elements.
///
/// Weights stand in the order of their names, so places do not depend on how they are visited.
///
/// # Errors
/// When the compression is impossible, saying which is not, or a weight is constant.
pub fn pool(
    bank: &mut Bank,
    names: &[String],
    compression: f64,
    mapping: Mapping,
    fill: Fill,
    seed: Seed,
) -> Result<Pooled> {
    let mut names: Vec<&String> = names.iter().collect();
    names.sort();
    names.dedup();
    let weights: Vec<Tensor> =
        names.iter().map(|n| Ok(bank.weight(n)?.detach())).collect::<Result<_>>()?;
    let elements: usize = weights.iter().map(Tensor::elem_count).sum();
    let slots = slots(elements, compression, mapping)?;
    let values: Vec<Vec<f32>> =
        weights.iter().map(|w| Ok(w.flatten_all()?.to_vec1()?)).collect::<Result<_>>()?;
    let mean_scale = values.iter().map(|v| deviation(v)).sum::<f64>() / values.len().max(1) as f64;
    let fill = match fill {
        Fill::Drawn => Fill::Uniform((mean_scale * 3f64.sqrt()) as f32),
        other => other,
    };
    let seed_value = seed.fork("rps", 0).to_u64();
    let (mut start, mut entries, mut scales) = (0u64, Vec::new(), Vec::new());
    for ((name, w), v) in names.iter().zip(&weights).zip(&values) {
        let spread = deviation(v);
        if spread == 0. {
            return Err(Error::config(name.as_str(), "is constant: it has no deviation to keep"));
        }
        let scale = match fill {
            // Relative, so that a rate that suits the weights suits the pool.
            Fill::Weights | Fill::Drawn => spread / mean_scale,
            Fill::Uniform(s) => spread * 3f64.sqrt() / f64::from(s),
        } as f32;
        let (block, fold_at, seed) = match mapping {
            Mapping::Fold => (1, Some(start), seed_value),
            Mapping::Blocks { block } => {
                (block, None, Seed::new(seed_value).fork("weight", start).to_u64())
            }
        };
        entries.push(Share::Hashed {
            pool: POOL.into(),
            seed,
            block,
            scale,
            shape: w.dims().to_vec(),
            fold_at,
        });
        scales.push(((*name).clone(), scale));
        start += v.len() as u64;
    }
    let psi = match fill {
        Fill::Uniform(s) => {
            let mut psi = vec![0f32; slots];
            seed.fork("pool", 0).uniform(0, &mut psi);
            psi.iter_mut().for_each(|x| *x = (2. * *x - 1.) * s);
            psi
        }
        Fill::Weights | Fill::Drawn => least_squares(&entries, &values, slots)?,
    };
    bank.insert(POOL, Tensor::from_vec(psi, slots, bank.device())?)?;
    for (name, entry) in names.iter().zip(entries) {
        bank.share(name, entry.into())?;
    }
    let (mut lost, mut whole) = (0f64, 0f64);
    for (name, v) in names.iter().zip(&values) {
        let made = bank.weight(name)?.detach().flatten_all()?.to_vec1::<f32>()?;
        lost += v.iter().zip(&made).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
        whole += v.iter().map(|a| f64::from(*a).powi(2)).sum::<f64>();
    }
    Ok(Pooled { slots, elements, scales, kept: 1. - lost / whole })
}

fn deviation(values: &[f32]) -> f64 {
    let n = values.len().max(1) as f64;
    let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    (values.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n).sqrt()
}

/// Calls `f(element, slot, sign)` for every element of an entry of a pool with `slots` slots.
fn each_slot(entry: &Share, slots: usize, mut f: impl FnMut(usize, usize, f32)) -> Result<f32> {
    let Share::Hashed { seed, block, scale, shape, fold_at, .. } = entry else {
        return Err(Error::config("plan", "the weight is not made from a pool"));
    };
    let n = shape.iter().product();
    if let Some(start) = fold_at {
        let layout = FoldedLayout::new(Seed::new(*seed), *start, n, slots)?;
        for s in layout.segments() {
            (0..s.len).for_each(|i| f(s.at + i, s.from + i, s.sign));
        }
    } else {
        let layout = HashedLayout::new(Seed::new(*seed), n, slots, *block)?;
        for i in 0..n {
            let (b, o) = (i / block, i % block);
            f(i, layout.offsets[b] as usize + o, f32::from(layout.signs[b]));
        }
    }
    Ok(*scale)
}

fn least_squares(entries: &[Share], values: &[Vec<f32>], slots: usize) -> Result<Vec<f32>> {
    let (mut sum, mut weight) = (vec![0f64; slots], vec![0f64; slots]);
    for (entry, v) in entries.iter().zip(values) {
        let Share::Hashed { scale, .. } = entry else { continue };
        let scale = f64::from(*scale);
        each_slot(entry, slots, |i, j, sign| {
            sum[j] += scale * f64::from(sign) * f64::from(v[i]);
            weight[j] += scale * scale;
        })?;
    }
    // A slot that nothing reads stays zero.
    Ok(sum.iter().zip(&weight).map(|(s, w)| if *w > 0. { (s / w) as f32 } else { 0. }).collect())
}

/// Number of elements each slot serves, `c_j`.
///
/// # Errors
/// When the bank has no pool.
pub fn loads(bank: &Bank) -> Result<Vec<usize>> {
    let mut loads = vec![0; bank.stored_var(POOL)?.elem_count()];
    for (_, entry) in pooled_entries(bank) {
        let slots = loads.len();
        each_slot(entry, slots, |_, j, _| loads[j] += 1)?;
    }
    Ok(loads)
}

fn pooled_entries(bank: &Bank) -> impl Iterator<Item = (&str, &Share)> {
    let entries = bank.plan().iter().map(|(n, e)| (n, &e.share));
    entries.filter(|(_, s)| matches!(s, Share::Hashed { pool, .. } if pool == POOL))
}

/// `Γ_j = (Σ_{i→j} λ_t)² / c_j`, by which the pool's gradient is divided before a rule that feels
/// its scale: a step of `ψ_j` then moves each of its elements by the mean of their gradients,
/// whatever the scale of the pool. Slots that nothing reads get 1.
///
/// # Errors
/// When the bank has no pool.
pub fn gradient_scaler(bank: &Bank) -> Result<Tensor> {
    let slots = bank.stored_var(POOL)?.elem_count();
    let (mut sum, mut count) = (vec![0f64; slots], vec![0f64; slots]);
    for (_, entry) in pooled_entries(bank) {
        let Share::Hashed { scale, .. } = entry else { continue };
        each_slot(entry, slots, |_, j, _| {
            sum[j] += f64::from(*scale);
            count[j] += 1.;
        })?;
    }
    let gamma = sum.iter().zip(&count).map(|(s, c)| scaler(*s, *c));
    Ok(Tensor::from_vec(gamma.collect::<Vec<f32>>(), slots, bank.device())?)
}

/// `Γ` of a slot with `count` elements whose scales add up to `sum`.
pub fn scaler(sum: f64, count: f64) -> f32 {
    if count == 0. || sum == 0. { 1. } else { (sum * sum / count) as f32 }
}

/// Divides the pool's gradient by `gamma`.
///
/// # Errors
/// When shapes differ.
pub fn scale_gradient(bank: &Bank, grads: &mut ops::Grads, gamma: &Tensor) -> Result<()> {
    let var = bank.stored_var(POOL)?;
    if let Some(grad) = grads.remove(var) {
        grads.insert(var, (grad / gamma)?);
    }
    Ok(())
}
