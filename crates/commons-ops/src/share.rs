//! Differentiable ways to make one weight out of stored ones: hashed pools and seeded noise.
//!
//! Each is one custom op with its own backward, so that the graph never holds index tensors, signs
//! or noise; they are made again from the seed where they are needed.

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, WithDType, bail,
};
use commons_core::Seed;

/// Where a hashed weight finds its elements: block `j` starts at `offsets[j]` with sign `signs[j]`.
#[derive(Debug, Clone, PartialEq)]
pub struct HashedLayout {
    /// First pool element of each block.
    pub offsets: Vec<u32>,
    /// `+1` or `-1` for each block.
    pub signs: Vec<i8>,
    /// Consecutive elements in a block; the last block of a weight may be cut short.
    pub block: usize,
}

impl HashedLayout {
    /// Draws the layout of `elements` elements over a pool of `pool` elements.
    ///
    /// Offsets are uniform over the positions from which a whole block fits.
    ///
    /// # Errors
    /// When `block` is zero or longer than the pool.
    pub fn new(seed: Seed, elements: usize, pool: usize, block: usize) -> Result<Self> {
        if block == 0 || block > pool {
            bail!("hashed: block of {block} elements does not fit a pool of {pool}")
        }
        let blocks = elements.div_ceil(block);
        let mut bits = vec![0u32; 2 * blocks];
        seed.bits(0, &mut bits);
        let positions = (pool - block + 1) as u64;
        let (mut offsets, mut signs) = (Vec::with_capacity(blocks), Vec::with_capacity(blocks));
        for pair in bits.chunks_exact(2) {
            offsets.push(((u64::from(pair[0]) * positions) >> 32) as u32);
            signs.push(if pair[1] & 1 == 0 { 1 } else { -1 });
        }
        Ok(Self { offsets, signs, block })
    }
}

/// A weight of `shape` whose elements are drawn from the flat `pool` by `layout`, times `scale`.
///
/// The gradient of the pool is the sum over all places that drew from it.
///
/// # Errors
/// When the pool is not flat or the layout points outside it or covers another number of elements.
pub fn hashed(pool: &Tensor, layout: HashedLayout, scale: f32, shape: &[usize]) -> Result<Tensor> {
    let size = pool.dims1()?;
    let elements: usize = shape.iter().product();
    let fits = layout.offsets.iter().all(|&o| o as usize + layout.block <= size);
    if !fits || layout.offsets.len() != elements.div_ceil(layout.block.max(1)) {
        bail!("hashed: layout does not match a pool of {size} and a weight of {shape:?}")
    }
    let op = Hashed { layout, scale: f64::from(scale), shape: Shape::from(shape), size };
    pool.contiguous()?.apply_op1(op)
}

/// `base + Σ_k scalars[k] · z_k`, where `z_k` is standard normal from `seed.fork("direction", k)`.
///
/// Gradients reach both the base (unchanged) and the scalars (`⟨grad, z_k⟩`).
///
/// # Errors
/// When `scalars` is not a vector.
pub fn noise_sum(base: &Tensor, scalars: &Tensor, seed: Seed) -> Result<Tensor> {
    scalars.dims1()?;
    base.contiguous()?.apply_op2(&scalars.contiguous()?, NoiseSum { seed })
}

fn slice<'a, T: WithDType>(s: &'a CpuStorage, l: &Layout) -> Result<&'a [T]> {
    match l.contiguous_offsets() {
        Some((start, end)) => Ok(&s.as_slice::<T>()?[start..end]),
        None => bail!("share ops need contiguous tensors"),
    }
}

/// Runs `$body` with `$t` bound to the float type of `$storage`.
macro_rules! for_float {
    ($storage:expr, $name:expr, $t:ident => $body:expr) => {
        match $storage {
            CpuStorage::F32(_) => {
                type $t = f32;
                $body
            }
            CpuStorage::F64(_) => {
                type $t = f64;
                $body
            }
            _ => bail!("{}: only f32 and f64 tensors are supported", $name),
        }
    };
}

fn owned<T: WithDType>(v: Vec<T>) -> CpuStorage {
    T::to_cpu_storage_owned(v)
}

struct Hashed {
    layout: HashedLayout,
    scale: f64,
    shape: Shape,
    size: usize,
}

impl CustomOp1 for Hashed {
    fn name(&self) -> &'static str {
        "hashed"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let out = for_float!(s, self.name(), T => {
            let pool = slice::<T>(s, l)?;
            let mut out = vec![0 as T; self.shape.elem_count()];
            let blocks = out.chunks_mut(self.layout.block);
            for ((chunk, &o), &sign) in blocks.zip(&self.layout.offsets).zip(&self.layout.signs) {
                let c = (self.scale * f64::from(sign)) as T;
                let from = &pool[o as usize..o as usize + chunk.len()];
                chunk.iter_mut().zip(from).for_each(|(y, x)| *y = c * x);
            }
            owned(out)
        });
        Ok((out, self.shape.clone()))
    }

    fn bwd(&self, _pool: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let back = HashedBack { layout: self.layout.clone(), scale: self.scale, size: self.size };
        grad.contiguous()?.apply_op1_no_bwd(&back).map(Some)
    }
}

struct HashedBack {
    layout: HashedLayout,
    scale: f64,
    size: usize,
}

impl CustomOp1 for HashedBack {
    fn name(&self) -> &'static str {
        "hashed-backward"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let out = for_float!(s, self.name(), T => {
            let grad = slice::<T>(s, l)?;
            let mut pool = vec![0 as T; self.size];
            let blocks = grad.chunks(self.layout.block);
            for ((chunk, &o), &sign) in blocks.zip(&self.layout.offsets).zip(&self.layout.signs) {
                let c = (self.scale * f64::from(sign)) as T;
                let to = &mut pool[o as usize..o as usize + chunk.len()];
                to.iter_mut().zip(chunk).for_each(|(y, x)| *y += c * x);
            }
            owned(pool)
        });
        Ok((out, Shape::from(self.size)))
    }
}

struct NoiseSum {
    seed: Seed,
}

impl NoiseSum {
    fn direction(&self, k: usize, elements: usize) -> Vec<f32> {
        let mut z = vec![0f32; elements];
        self.seed.fork("direction", k as u64).normal(0, &mut z);
        z
    }
}

impl CustomOp2 for NoiseSum {
    fn name(&self) -> &'static str {
        "noise-sum"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let out = for_float!(s1, self.name(), T => {
            let mut out = slice::<T>(s1, l1)?.to_vec();
            for (k, &alpha) in slice::<T>(s2, l2)?.iter().enumerate() {
                let z = self.direction(k, out.len());
                out.iter_mut().zip(&z).for_each(|(y, &z)| *y += alpha * T::from(z));
            }
            owned(out)
        });
        Ok((out, l1.shape().clone()))
    }

    fn bwd(
        &self,
        _base: &Tensor,
        scalars: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let flat = grad.flatten_all()?;
        let mut dots = Vec::with_capacity(scalars.dims1()?);
        for k in 0..scalars.dims1()? {
            let z =
                Tensor::from_vec(self.direction(k, flat.elem_count()), flat.dims(), flat.device())?;
            dots.push((&flat * z.to_dtype(flat.dtype())?)?.sum_all()?);
        }
        Ok((Some(grad.clone()), Some(Tensor::stack(&dots, 0)?)))
    }
}
