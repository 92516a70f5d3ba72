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
    prefix: usize,
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
        Ok(Self { layers, prefix: 0, len: 0, capacity })
    }

    /// Puts keys and values that belong to no token before everything at every depth; they do
    /// not count in [`KvCache::len`]. `layers` has `[batch, n, kv_heads, head_dim]` twice a depth.
    ///
    /// # Errors
    /// When the cache is in use, or there is no room.
    pub fn set_prefix(&mut self, layers: &[(Tensor, Tensor)]) -> Result<()> {
        let n = layers.first().map_or(Ok(0), |(k, _)| k.dim(1))?;
        if self.len > 0 || self.prefix > 0 || n > self.capacity || layers.len() != self.layers.len()
        {
            return Err(Error::config("prefix", "goes into a fresh cache with room for it"));
        }
        for ((keys, values), (k, v)) in self.layers.iter().zip(layers) {
            keys.slice_set(&k.contiguous()?.detach(), 1, 0)?;
            values.slice_set(&v.contiguous()?.detach(), 1, 0)?;
        }
        self.prefix = n;
        Ok(())
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
        self.capacity - self.prefix
    }

    /// Writes the keys and values of new positions at `depth` and returns all that are valid.
    ///
    /// # Errors
    /// When the cache is full.
    pub fn append(&mut self, depth: usize, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let new = k.dim(1)?;
        if self.len + new > self.capacity() {
            return Err(Error::config(
                "max_tokens",
                format!("{} positions do not fit a cache of {}", self.len + new, self.capacity()),
            ));
        }
        let (keys, values) = &self.layers[depth];
        let start = self.prefix + self.len;
        keys.slice_set(&k.contiguous()?.detach(), 1, start)?;
        values.slice_set(&v.contiguous()?.detach(), 1, start)?;
        let all = start + new;
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
