//! How many query heads each key head serves, from the norms of the keys.

use commons_core::Rng;
use commons_ops::{DType, Tensor};

use crate::{Error, Result};

/// `heads` shared out equally over `groups`; what is left over goes to the first.
pub fn uniform(heads: usize, groups: usize) -> Vec<usize> {
    (0..groups).map(|g| heads / groups + usize::from(g < heads % groups)).collect()
}

/// Norm of each key head, `n_g = Σ_b ‖K_g⁽ᵇ⁾‖_F`, of keys `[batch, seq, kv_heads, head_dim]`. Takes
/// no part in differentiation.
///
/// # Errors
/// When `keys` has another number of dimensions.
pub fn key_norms(keys: &Tensor) -> Result<Vec<f64>> {
    let (batch, seq, groups, width) = keys.dims4()?;
    let values = keys.detach().to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    let mut norms = vec![0f64; groups];
    for item in values.chunks_exact((seq * groups * width).max(1)).take(batch) {
        let mut squares = vec![0f64; groups];
        for token in item.chunks_exact(groups * width) {
            for (square, head) in squares.iter_mut().zip(token.chunks_exact(width)) {
                *square += head.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
            }
        }
        norms.iter_mut().zip(squares).for_each(|(n, s)| *n += s.sqrt());
    }
    Ok(norms)
}

/// `round(H · w / Σ w)`, half to even; `None` where the weights say nothing.
fn shares(heads: usize, weights: &[f64]) -> Option<Vec<usize>> {
    let sum: f64 = weights.iter().sum();
    let usable = sum.is_finite() && sum > 0.;
    let share = |w: &f64| (heads as f64 * w / sum).round_ties_even() as usize;
    usable.then(|| weights.iter().map(share).collect())
}

/// The allocation of KDGQA: norms are min-max scaled to `s`, then `a = round(H · s / Σ s)`; while
/// the sum is too large the first largest count falls, while it is too small the first smallest
/// rises. Equal norms give equal groups.
pub fn key_driven(heads: usize, norms: &[f64]) -> Vec<usize> {
    let low = norms.iter().copied().fold(f64::INFINITY, f64::min);
    let scaled: Vec<f64> = norms.iter().map(|n| n - low).collect();
    let Some(mut a) = shares(heads, &scaled) else { return uniform(heads, norms.len()) };
    loop {
        let sum: usize = a.iter().sum();
        if sum == heads {
            return a;
        }
        // `max_by_key` would take the last of equals.
        let first = |best: usize, i: usize| {
            let better = if sum > heads { a[i] > a[best] } else { a[i] < a[best] };
            if better { i } else { best }
        };
        let at = (1..a.len()).fold(0, first);
        if sum > heads { a[at] -= 1 } else { a[at] += 1 }
    }
}

/// What DGQA takes for a key head's weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dynamic {
    /// `δ = |c − n|`: how far the norm moved from the cache.
    Difference,
    /// `m = β n + (1 − β) c`, `β = 0.9`.
    Ema,
}

/// `β` of [`Dynamic::Ema`].
const BETA: f64 = 0.9;

impl Dynamic {
    /// The allocation from norms `n` and cache `c`: `round(H · w / Σ w)`; the sum is put right by
    /// steps of one at heads drawn by `rng`.
    pub fn allocate(self, heads: usize, norms: &[f64], cache: &[f64], rng: &mut Rng) -> Vec<usize> {
        let weight = |(n, c): (&f64, &f64)| match self {
            Self::Difference => (c - n).abs(),
            Self::Ema => BETA * n + (1. - BETA) * c,
        };
        let weights: Vec<f64> = norms.iter().zip(cache).map(weight).collect();
        let Some(mut a) = shares(heads, &weights) else { return uniform(heads, norms.len()) };
        loop {
            let sum: usize = a.iter().sum();
            if sum == heads {
                return a;
            }
            let at = rng.below(a.len() as u64) as usize;
            if sum < heads {
                a[at] += 1;
            } else {
                a[at] = a[at].saturating_sub(1);
            }
        }
    }
}

/// The cache after an update: `c ← (c + n) / window`.
pub fn next_cache(cache: &mut [f64], norms: &[f64], window: usize) {
    cache.iter_mut().zip(norms).for_each(|(c, n)| *c = (*c + n) / window as f64);
}

/// Entropy of an allocation in bits: `log2 G` for equal groups, 0 when one head serves all.
pub fn entropy(sizes: &[usize]) -> f64 {
    let heads: usize = sizes.iter().sum();
    let part = |&a: &usize| a as f64 / heads as f64;
    sizes.iter().map(part).filter(|p| *p > 0.).map(|p| -p * p.log2()).sum()
}

/// Key heads that no query reads.
pub fn dead(sizes: &[usize]) -> usize {
    sizes.iter().filter(|&&a| a == 0).count()
}

/// Checks that `heads` key heads can be pooled into `groups`.
///
/// # Errors
/// Saying why not, and the nearest number that works.
pub fn check_groups(heads: usize, groups: usize) -> Result<()> {
    if groups >= 1 && groups <= heads && heads.is_multiple_of(groups) {
        return Ok(());
    }
    let divisors = (1..=heads).filter(|g| heads.is_multiple_of(*g));
    let nearest = divisors.min_by_key(|g| (g.abs_diff(groups), *g)).unwrap_or(1);
    let why = match groups {
        0 => "attention needs at least one key and value head".to_owned(),
        g if g > heads => format!("the model has {heads} key and value heads, not {g} to keep"),
        g => format!("{heads} key and value heads do not pool into {g} equal runs"),
    };
    Err(Error::config("kv_heads", format!("{why}: the nearest that works is {nearest}")))
}
