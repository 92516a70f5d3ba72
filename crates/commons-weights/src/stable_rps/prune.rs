//! Pruning baselines: which weights are kept.
//!
//! Scores are those of the papers: magnitude; SNIP `|w ∂L/∂w|` (Lee et al. 2019); GraSP
//! `−w ⊙ Hg`, where the highest go (Wang et al. 2020); SynFlow `|θ ∂R/∂θ|` without data, in 100
//! rounds (Tanaka et al. 2020). Kept is the top share over all matrices together.

use commons_core::Seed;
use commons_ops::{self as ops, Tensor};

use super::mlp::{Masks, Mlp};
use crate::Result;

/// What decides which weights stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Score {
    /// By lot.
    Random,
    /// Magnitude.
    Magnitude,
    /// Sensitivity of the loss.
    Snip,
    /// Preserved gradient flow.
    Grasp,
    /// Synaptic flow.
    SynFlow,
}

/// Rounds of SynFlow.
const ROUNDS: usize = 100;

/// GraSP divides logits by this.
const TEMPERATURE: f32 = 200.;

impl Score {
    /// Masks that keep the share `kept` of the matrices of `mlp`.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn masks(
        self,
        mlp: &Mlp,
        images: &Tensor,
        labels: &Tensor,
        kept: f64,
        seed: Seed,
    ) -> Result<Masks> {
        let names = mlp.matrices();
        let scores = match self {
            Self::Random => {
                let draw = |name: &String| {
                    let mut v = vec![0f32; mlp.bank.stored_var(name)?.elem_count()];
                    seed.fork(name, 0).uniform(0, &mut v);
                    Ok(v)
                };
                names.iter().map(draw).collect::<Result<Vec<_>>>()?
            }
            Self::Magnitude => values(mlp, &names, |w| w.abs())?,
            Self::Snip => {
                let grads = gradients(mlp, &names, |m| m.loss(images, labels))?;
                products(mlp, &names, &grads, f32::abs)?
            }
            Self::Grasp => {
                let flow = hessian_gradient(mlp, &names, images, labels)?;
                // Removed are the highest −w·Hg, so kept are the highest w·Hg.
                products(mlp, &names, &flow, |x| x)?
            }
            Self::SynFlow => return synflow(mlp, images, kept),
        };
        top(mlp, &names, &scores, kept)
    }
}

fn values(mlp: &Mlp, names: &[String], f: impl Fn(f32) -> f32) -> Result<Vec<Vec<f32>>> {
    let of = |name: &String| {
        let v = mlp.bank.stored_var(name)?.flatten_all()?.to_vec1::<f32>()?;
        Ok(v.into_iter().map(&f).collect())
    };
    names.iter().map(of).collect()
}

fn gradients(
    mlp: &Mlp,
    names: &[String],
    loss: impl Fn(&Mlp) -> Result<Tensor>,
) -> Result<Vec<Vec<f32>>> {
    let grads = ops::backward(&loss(mlp)?)?;
    let of = |name: &String| {
        let var = mlp.bank.stored_var(name)?;
        match grads.get(var) {
            Some(g) => Ok(g.flatten_all()?.to_vec1()?),
            None => Ok(vec![0.; var.elem_count()]),
        }
    };
    names.iter().map(of).collect()
}

fn products(
    mlp: &Mlp,
    names: &[String],
    other: &[Vec<f32>],
    f: impl Fn(f32) -> f32,
) -> Result<Vec<Vec<f32>>> {
    let weights = values(mlp, names, |w| w)?;
    let of = |(w, g): (&Vec<f32>, &Vec<f32>)| w.iter().zip(g).map(|(w, g)| f(w * g)).collect();
    Ok(weights.iter().zip(other).map(of).collect())
}

/// `H g` as a central difference of gradients along the gradient.
fn hessian_gradient(
    mlp: &Mlp,
    names: &[String],
    images: &Tensor,
    labels: &Tensor,
) -> Result<Vec<Vec<f32>>> {
    let loss = |m: &Mlp| {
        let cooled = ops::scale(&m.forward(images)?, 1. / TEMPERATURE)?;
        Ok(ops::cross_entropy(&cooled, labels, 0.)?)
    };
    let g = gradients(mlp, names, loss)?;
    let norm = g.iter().flatten().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt().max(1e-30);
    let size = 1e-2 / norm;
    let at = |step: f64| -> Result<Vec<Vec<f32>>> {
        let moved = mlp.copy()?;
        for (name, g) in names.iter().zip(&g) {
            let var = moved.bank.stored_var(name)?;
            let shift: Vec<f32> = g.iter().map(|x| (f64::from(*x) * step) as f32).collect();
            let shift = Tensor::from_vec(shift, var.dims(), var.device())?;
            var.set(&(var.as_tensor() + shift)?.detach())?;
        }
        gradients(&moved, names, loss)
    };
    let (up, down) = (at(size)?, at(-size)?);
    let slope = |(a, b): (&Vec<f32>, &Vec<f32>)| {
        a.iter().zip(b).map(|(a, b)| ((f64::from(a - b)) / (2. * size)) as f32).collect()
    };
    Ok(up.iter().zip(&down).map(slope).collect())
}

fn synflow(mlp: &Mlp, images: &Tensor, kept: f64) -> Result<Masks> {
    let names = mlp.matrices();
    let linear = mlp.copy()?;
    for (_, var) in linear.bank.stored_vars() {
        // Biases are zero and weights positive, so relu passes everything.
        var.set(&var.abs()?.detach())?;
    }
    let ones = images.narrow(0, 0, 1)?.ones_like()?;
    let mut masks = top(mlp, &names, &values(&linear, &names, |_| 1.)?, 1.)?;
    for round in 1..=ROUNDS {
        let now = linear.copy()?;
        for (name, mask) in &masks {
            let var = now.bank.stored_var(name)?;
            var.set(&(var.as_tensor() * mask)?.detach())?;
        }
        let flow = gradients(&now, &names, |m| Ok(ops::sum(&m.forward(&ones)?)?))?;
        // Scores span many orders of magnitude: logarithms are added, for products would underflow.
        let weights = values(&now, &names, |w| w.abs().ln())?;
        let sum = |(w, g): (&Vec<f32>, &Vec<f32>)| -> Vec<f32> {
            w.iter().zip(g).map(|(w, g)| w + g.abs().ln()).collect()
        };
        let scores: Vec<Vec<f32>> = weights.iter().zip(&flow).map(sum).collect();
        masks = top(mlp, &names, &scores, kept.powf(round as f64 / ROUNDS as f64))?;
    }
    Ok(masks)
}

/// Masks of the `kept` share with the highest scores; of equals, the first in order.
fn top(mlp: &Mlp, names: &[String], scores: &[Vec<f32>], kept: f64) -> Result<Masks> {
    let mut order: Vec<(usize, usize)> =
        scores.iter().enumerate().flat_map(|(t, s)| (0..s.len()).map(move |i| (t, i))).collect();
    let keep = (kept * order.len() as f64 + 1e-9).floor() as usize;
    order.sort_by(|a, b| scores[b.0][b.1].total_cmp(&scores[a.0][a.1]).then(a.cmp(b)));
    let mut flat: Vec<Vec<f32>> = scores.iter().map(|s| vec![0.; s.len()]).collect();
    order.iter().take(keep).for_each(|&(t, i)| flat[t][i] = 1.);
    let mut masks = Masks::new();
    for (name, mask) in names.iter().zip(flat) {
        let var = mlp.bank.stored_var(name)?;
        masks.insert(name.clone(), Tensor::from_vec(mask, var.dims(), var.device())?);
    }
    Ok(masks)
}

/// Norm of the gradient that the weights kept by `masks` get, all weights without masks.
///
/// # Errors
/// When a mask is of another shape.
pub fn gradient_norm(
    mlp: &Mlp,
    masks: Option<&Masks>,
    images: &Tensor,
    labels: &Tensor,
) -> Result<f64> {
    let names = mlp.matrices();
    let masked = mlp.copy()?;
    if let Some(masks) = masks {
        apply(&masked, masks)?;
    }
    let grads = gradients(&masked, &names, |m| m.loss(images, labels))?;
    let mut sum = 0.;
    for (name, grad) in names.iter().zip(&grads) {
        let kept = match masks.and_then(|m| m.get(name)) {
            Some(mask) => mask.flatten_all()?.to_vec1::<f32>()?,
            None => vec![1.; grad.len()],
        };
        sum += grad.iter().zip(&kept).map(|(g, k)| f64::from(g * k).powi(2)).sum::<f64>();
    }
    Ok(sum.sqrt())
}

/// Sets masked weights to zero.
///
/// # Errors
/// When a mask is of another shape.
pub fn apply(mlp: &Mlp, masks: &Masks) -> Result<()> {
    for (name, mask) in masks {
        let var = mlp.bank.stored_var(name)?;
        var.set(&(var.as_tensor() * mask)?.detach())?;
    }
    Ok(())
}

/// The share of each matrix that its mask keeps; a zero is a collapsed layer.
///
/// # Errors
/// When a mask cannot be read.
pub fn densities(masks: &Masks) -> Result<Vec<f64>> {
    masks.values().map(|m| Ok(f64::from(m.mean_all()?.to_scalar::<f32>()?))).collect()
}

/// Of what `masks` keep, the share `fraction` with the largest trained weights.
///
/// # Errors
/// When shapes do not fit.
pub fn magnitude_of_kept(mlp: &Mlp, masks: &Masks, kept: f64) -> Result<Masks> {
    let names = mlp.matrices();
    let sizes = values(mlp, &names, f32::abs)?;
    let masked = |(name, s): (&String, &Vec<f32>)| {
        let Some(mask) = masks.get(name) else { return Ok(s.clone()) };
        let mask = mask.flatten_all()?.to_vec1::<f32>()?;
        Ok(s.iter().zip(mask).map(|(s, m)| if m > 0. { *s } else { -1. }).collect())
    };
    let scores = names.iter().zip(&sizes).map(masked).collect::<Result<Vec<_>>>()?;
    top(mlp, &names, &scores, kept)
}
