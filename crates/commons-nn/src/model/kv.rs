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
    growing: Option<GrowingKv>,
}

/// Keys and values where every depth and row holds other positions, and no more than it was given.
#[derive(Debug)]
pub(super) struct GrowingKv {
    depths: Vec<Vec<Held>>,
}

/// Keys and values of one depth and row, `[1, room, kv_heads, head_dim]`.
#[derive(Debug, Default)]
struct Held {
    positions: Vec<usize>,
    tensors: Option<(Tensor, Tensor)>,
}

/// Fewest positions that room is made for.
const ROOM: usize = 16;

impl Held {
    fn room(&self) -> Result<usize> {
        Ok(self.tensors.as_ref().map(|(k, _)| k.dim(1)).transpose()?.unwrap_or(0))
    }

    fn append(&mut self, positions: &[usize], k: &Tensor, v: &Tensor) -> Result<()> {
        let (held, all) = (self.positions.len(), self.positions.len() + positions.len());
        let room = self.room()?;
        if all > room {
            let (_, _, heads, width) = k.dims4()?;
            let shape = (1, all.max(2 * room).max(ROOM), heads, width);
            let grown = (
                Tensor::zeros(shape, DType::F32, k.device())?,
                Tensor::zeros(shape, DType::F32, k.device())?,
            );
            if let Some((keys, values)) = &self.tensors
                && held > 0
            {
                grown.0.slice_set(&keys.narrow(1, 0, held)?.contiguous()?, 1, 0)?;
                grown.1.slice_set(&values.narrow(1, 0, held)?.contiguous()?, 1, 0)?;
            }
            self.tensors = Some(grown);
        }
        if let Some((keys, values)) = &self.tensors {
            keys.slice_set(&k.contiguous()?.detach(), 1, held)?;
            values.slice_set(&v.contiguous()?.detach(), 1, held)?;
        }
        self.positions.extend(positions);
        Ok(())
    }
}

impl GrowingKv {
    /// Adds the keys and values `[1, n, kv_heads, head_dim]` of `positions`, which come after those
    /// held.
    pub(super) fn append(
        &mut self,
        (depth, row): (usize, usize),
        positions: &[usize],
        k: &Tensor,
        v: &Tensor,
    ) -> Result<()> {
        match self.depths.get_mut(depth).and_then(|rows| rows.get_mut(row)) {
            Some(held) if !positions.is_empty() => held.append(positions, k, v),
            Some(_) => Ok(()),
            None => Err(Error::config("batch", format!("the cache has no row {row}"))),
        }
    }

    /// Keys and values held of a depth and row, `None` if there are none.
    pub(super) fn held(&self, (depth, row): (usize, usize)) -> Result<Option<(Tensor, Tensor)>> {
        let Some(held) = self.depths.get(depth).and_then(|rows| rows.get(row)) else {
            return Ok(None);
        };
        let n = held.positions.len();
        match &held.tensors {
            Some((k, v)) if n > 0 => Ok(Some((k.narrow(1, 0, n)?, v.narrow(1, 0, n)?))),
            _ => Ok(None),
        }
    }
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
        Ok(Self { layers, prefix: 0, len: 0, capacity, growing: None })
    }

    /// An empty cache whose depths hold only what they are given, for up to `capacity` positions.
    pub(super) fn growing(depths: usize, batch: usize, capacity: usize) -> Self {
        let rows = || (0..batch).map(|_| Held::default()).collect();
        let growing = GrowingKv { depths: (0..depths).map(|_| rows()).collect() };
        Self { layers: Vec::new(), prefix: 0, len: 0, capacity, growing: Some(growing) }
    }

    /// The depths of a cache that grows, once it is known that `new` more positions fit.
    ///
    /// # Errors
    /// When the cache is full, or made for a model of another kind.
    pub(super) fn grow(&mut self, new: usize) -> Result<&mut GrowingKv> {
        self.check_room(new)?;
        self.growing
            .as_mut()
            .ok_or_else(|| Error::config("cache", "belongs to a model without a router"))
    }

    fn check_room(&self, new: usize) -> Result<()> {
        if self.len + new > self.capacity() {
            return Err(Error::config(
                "max_tokens",
                format!("{} positions do not fit a cache of {}", self.len + new, self.capacity()),
            ));
        }
        Ok(())
    }

    /// Bytes of the keys and values held, prefixes included, room for more left out.
    pub fn bytes(&self) -> usize {
        let row = |t: &Tensor| t.dims().iter().skip(2).product::<usize>() * size_of::<f32>();
        let fixed: usize = self
            .layers
            .iter()
            .map(|(k, _)| 2 * k.dims().first().copied().unwrap_or(0) * row(k))
            .sum();
        let grown = self.growing.iter().flat_map(|g| g.depths.iter().flatten());
        let grown: usize = grown
            .filter_map(|held| Some(2 * held.positions.len() * row(&held.tensors.as_ref()?.0)))
            .sum();
        fixed * (self.prefix + self.len) + grown
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
        self.check_room(new)?;
        let Some((keys, values)) = self.layers.get(depth) else {
            return Err(Error::config("cache", format!("has no depth {depth}")));
        };
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
        let grown = self.growing.iter_mut().flat_map(|g| g.depths.iter_mut().flatten());
        for held in grown {
            let kept = held.positions.partition_point(|&p| p < len);
            held.positions.truncate(kept);
        }
    }
}
