//! Keys and values of past tokens, one slot per depth.

use commons_ops::{DType, Device, Tensor};

use crate::{Error, Result};

/// Preallocated keys and values `[batch, capacity, kv_heads, head_dim]` for every depth.
///
/// Slots are per depth, not per stored layer: layers that share weights still see different
/// inputs.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<(Tensor, Tensor)>,
    len: usize,
    capacity: usize,
}

impl KvCache {
    /// An empty cache.
    pub fn new(
        depths: usize,
        batch: usize,
        capacity: usize,
        kv_heads: usize,
        head_dim: usize,
        device: &Device,
    ) -> Result<Self> {
        let zeros = || Tensor::zeros((batch, capacity, kv_heads, head_dim), DType::F32, device);
        let layers = (0..depths).map(|_| Ok((zeros()?, zeros()?))).collect::<Result<_>>()?;
        Ok(Self { layers, len: 0, capacity })
    }

    /// Positions held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no position is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Positions there is room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Writes the keys and values of new positions at `depth` and returns all that are valid.
    ///
    /// # Errors
    /// When the cache is full.
    pub fn append(&mut self, depth: usize, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let new = k.dim(1)?;
        if self.len + new > self.capacity {
            return Err(Error::config(
                "max_tokens",
                format!("{} positions do not fit a cache of {}", self.len + new, self.capacity),
            ));
        }
        let (keys, values) = &self.layers[depth];
        keys.slice_set(&k.contiguous()?.detach(), 1, self.len)?;
        values.slice_set(&v.contiguous()?.detach(), 1, self.len)?;
        let all = self.len + new;
        Ok((keys.narrow(1, 0, all)?, values.narrow(1, 0, all)?))
    }

    /// Counts `n` positions as held, once every depth has appended them.
    pub fn advance(&mut self, n: usize) {
        self.len += n;
    }

    /// Forgets the positions after the first `len`.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
}
