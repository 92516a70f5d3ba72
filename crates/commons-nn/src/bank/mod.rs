//! The bank: every stored parameter once, and the plan that makes a model's weights from them.
//!
//! A layer never owns a tensor. It asks the bank for a weight by name, and gets it however the
//! [`SharingPlan`] says it is made; gradients add up in the stored tensor over every use. The
//! optimiser steps the bank, so a tensor shared by thirty layers is stepped once.
//!
//! Names that begin with [`PART`] are *parts* (looped blocks, atoms, pools, low-rank factors); all
//! other names are weights of the model.

mod plan;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use commons_core::Seed;
use commons_ops::{self as ops, DType, Device, Tensor, Var};

pub use plan::{Entry, LowRank, PLAN_KEY, PLAN_VERSION, Share, SharingPlan};

use crate::{Error, Result};

/// Prefix of stored tensors that are parts of weights rather than weights of the model.
pub const PART: &str = "bank.";

/// Stored parameters and the plan that makes weights from them.
///
/// Cloning is shallow: both handles step the same parameters. [`Bank::deep_clone`] copies.
#[derive(Debug, Clone)]
pub struct Bank {
    // Behind handles, so that cloning a model (for a recomputed segment, a trainer) costs nothing.
    stored: Arc<BTreeMap<String, Var>>,
    plan: Arc<SharingPlan>,
    frozen: Arc<BTreeSet<String>>,
    substitutes: Arc<BTreeMap<String, Tensor>>,
    device: Device,
}

impl Default for Bank {
    fn default() -> Self {
        Self::new(Device::Cpu)
    }
}

impl Bank {
    /// An empty bank on `device`.
    pub fn new(device: Device) -> Self {
        Self {
            stored: Arc::default(),
            plan: Arc::default(),
            frozen: Arc::default(),
            substitutes: Arc::default(),
            device,
        }
    }

    /// A bank of plainly stored tensors.
    pub fn from_tensors(
        tensors: impl IntoIterator<Item = (String, Tensor)>,
        device: Device,
    ) -> Result<Self> {
        let mut bank = Self::new(device);
        for (name, tensor) in tensors {
            bank.insert(name, tensor)?;
        }
        Ok(bank)
    }

    /// Where the parameters live.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The sharing plan.
    pub fn plan(&self) -> &SharingPlan {
        &self.plan
    }

    /// Replaces the plan after checking it against the stored tensors.
    pub fn set_plan(&mut self, plan: SharingPlan) -> Result<()> {
        plan.validate(|n| self.stored.contains_key(n))?;
        self.plan = Arc::new(plan);
        self.plan.iter().try_for_each(|(name, _)| self.shape(name).map(drop))
    }

    /// Stores `tensor` under `name`, replacing what was stored there.
    pub fn insert(&mut self, name: impl Into<String>, tensor: Tensor) -> Result<()> {
        // Detached, a variable becomes an ordinary tensor, of which `from_tensor` makes a fresh
        // copy: a view into somebody else's storage must never be stepped in place.
        let tensor = tensor.to_device(&self.device)?.detach();
        Arc::make_mut(&mut self.stored).insert(name.into(), Var::from_tensor(&tensor)?);
        Ok(())
    }

    /// Makes `name` as `entry` says; a tensor stored under that name is dropped unless the entry
    /// reads it.
    pub fn share(&mut self, name: &str, entry: Entry) -> Result<()> {
        let reads_itself = entry.reads(name).contains(&name);
        for read in entry.reads(name) {
            if !self.stored.contains_key(read) {
                return Err(Error::plan(name, format!("reads `{read}`, which is not stored")));
            }
        }
        if !reads_itself {
            Arc::make_mut(&mut self.stored).remove(name);
            Arc::make_mut(&mut self.frozen).remove(name);
        }
        Arc::make_mut(&mut self.plan).set(name, entry);
        self.shape(name).map(drop)
    }

    /// Forgets a weight: its plan entry and, if it is stored, its tensor.
    pub fn remove(&mut self, name: &str) {
        Arc::make_mut(&mut self.plan).remove(name);
        Arc::make_mut(&mut self.stored).remove(name);
        Arc::make_mut(&mut self.frozen).remove(name);
    }

    /// Drops parts that no entry reads any more, and returns their names.
    pub fn prune(&mut self) -> Vec<String> {
        let read: BTreeSet<String> =
            self.plan.read_names().into_iter().map(str::to_owned).collect();
        let unread = |n: &String| n.starts_with(PART) && !read.contains(n);
        let dropped: Vec<String> = self.stored.keys().filter(|n| unread(n)).cloned().collect();
        for name in &dropped {
            Arc::make_mut(&mut self.stored).remove(name);
            Arc::make_mut(&mut self.frozen).remove(name);
        }
        dropped
    }

    /// The stored tensor of exactly this name.
    pub fn stored_var(&self, name: &str) -> Result<&Var> {
        self.stored.get(name).ok_or_else(|| Error::missing_weight(name))
    }

    /// Stored names and tensors in name order.
    pub fn stored_vars(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.stored.iter().map(|(n, v)| (n.as_str(), v))
    }

    /// Names of the model's weights (stored or made), in order, parts left out.
    pub fn names(&self) -> BTreeSet<&str> {
        let stored = self.stored.keys().map(String::as_str).filter(|n| !n.starts_with(PART));
        stored.chain(self.plan.iter().map(|(n, _)| n)).collect()
    }

    /// Whether the model has a weight of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.plan.get(name).is_some() || self.stored.contains_key(name)
    }

    /// The shape of the weight `name`.
    ///
    /// # Errors
    /// When the weight is missing or its entry cannot have one shape.
    pub fn shape(&self, name: &str) -> Result<Vec<usize>> {
        let entry = self.plan.get(name).cloned().unwrap_or_default();
        let dims = |n: &str| self.stored_var(n).map(|v| v.dims().to_vec());
        let shape = match &entry.share {
            Share::Own => dims(name)?,
            Share::Same { owner } => dims(owner)?,
            Share::Noise { base, scalars, .. } => {
                if dims(scalars)?.len() != 1 {
                    return Err(Error::plan(name, format!("`{scalars}` must be a vector")));
                }
                dims(base)?
            }
            Share::Combine { atoms, coefficients } => {
                let first = atoms.first().ok_or_else(|| Error::plan(name, "has no atoms"))?;
                for atom in atoms {
                    if dims(atom)? != dims(first)? {
                        return Err(Error::plan(
                            name,
                            format!("`{atom}` and `{first}` differ in shape"),
                        ));
                    }
                }
                if dims(coefficients)? != [atoms.len()] {
                    return Err(Error::plan(
                        name,
                        format!("`{coefficients}` must be [{}]", atoms.len()),
                    ));
                }
                dims(first)?
            }
            // Without a term nothing stored would bound the shape that a file claims.
            Share::Zero { .. } if entry.plus.is_empty() => {
                return Err(Error::plan(name, "is zero and has no low-rank term: add one"));
            }
            Share::Zero { shape } => shape.clone(),
            Share::Hashed { pool, block, shape, fold_at, .. } => {
                let pool_dims = dims(pool)?;
                let size = shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d as u64));
                let end = size.and_then(|n| fold_at.unwrap_or(0).checked_add(n));
                if end.is_none_or(|end| end > 1 << 48) {
                    return Err(Error::plan(name, format!("{shape:?} does not fit any pool")));
                }
                if pool_dims.len() != 1 || *block == 0 || *block > pool_dims[0] {
                    return Err(Error::plan(
                        name,
                        format!("block {block} does not fit the pool `{pool}` {pool_dims:?}"),
                    ));
                }
                shape.clone()
            }
            Share::Slice { of, ranges } => {
                let whole = dims(of)?;
                let fits = ranges.len() == whole.len()
                    && ranges.iter().zip(&whole).all(|(&(s, e), &d)| s < e && e <= d);
                if !fits {
                    return Err(Error::plan(
                        name,
                        format!("{ranges:?} is not inside `{of}` {whole:?}"),
                    ));
                }
                ranges.iter().map(|(s, e)| e - s).collect()
            }
        };
        for LowRank { a, b, .. } in &entry.plus {
            let (a_dims, b_dims) = (dims(a)?, dims(b)?);
            let matches = shape.len() == 2
                && a_dims.len() == 2
                && b_dims.len() == 2
                && a_dims[0] == b_dims[1]
                && [b_dims[0], a_dims[1]] == shape[..];
            if !matches {
                return Err(Error::plan(
                    name,
                    format!("{shape:?} does not take `{b}` {b_dims:?} x `{a}` {a_dims:?}"),
                ));
            }
        }
        Ok(shape)
    }

    /// A handle on the same parameters in which each of `tensors` is read in place of the stored
    /// tensor of that name: for parameters that a network makes while it is trained. Gradients
    /// reach what the substitutes were computed from; the stored tensors stay as they are.
    ///
    /// # Errors
    /// When nothing is stored under a name, or it has another shape.
    pub fn substituted(&self, tensors: impl IntoIterator<Item = (String, Tensor)>) -> Result<Self> {
        let mut substitutes = BTreeMap::clone(&self.substitutes);
        for (name, tensor) in tensors {
            let stored = self.stored_var(&name)?;
            if stored.dims() != tensor.dims() {
                let (is, needs) = (tensor.dims(), stored.dims());
                return Err(Error::plan(
                    &name,
                    format!("the substitute is {is:?}, what is stored {needs:?}"),
                ));
            }
            substitutes.insert(name, tensor);
        }
        Ok(Self { substitutes: Arc::new(substitutes), ..self.clone() })
    }

    /// A stored tensor as it enters a graph: tracked unless frozen.
    fn leaf(&self, name: &str) -> Result<Tensor> {
        if let Some(tensor) = self.substitutes.get(name) {
            return Ok(tensor.clone());
        }
        let var = self.stored_var(name)?;
        if self.frozen.contains(name) {
            Ok(var.as_detached_tensor())
        } else {
            Ok(var.as_tensor().clone())
        }
    }

    /// The base of a weight, low-rank terms left out.
    fn base(&self, name: &str, share: &Share) -> Result<Tensor> {
        Ok(match share {
            Share::Own => self.leaf(name)?,
            Share::Same { owner } => self.leaf(owner)?,
            Share::Combine { atoms, coefficients } => {
                let atoms = atoms.iter().map(|a| self.leaf(a)).collect::<Result<Vec<_>>>()?;
                ops::weighted_sum(&atoms, &self.leaf(coefficients)?)?
            }
            Share::Zero { shape } => Tensor::zeros(shape.as_slice(), DType::F32, &self.device)?,
            Share::Hashed { pool, seed, block, scale, shape, fold_at } => {
                let pool = self.leaf(pool)?;
                let elements = shape.iter().product();
                if let Some(start) = fold_at {
                    let (seed, size) = (Seed::new(*seed), pool.dims1()?);
                    let layout = ops::FoldedLayout::new(seed, *start, elements, size)?;
                    return Ok(ops::folded(&pool, &layout, *scale, shape)?);
                }
                let layout =
                    ops::HashedLayout::new(Seed::new(*seed), elements, pool.dims1()?, *block)?;
                ops::hashed(&pool, layout, *scale, shape)?
            }
            Share::Slice { of, ranges } => {
                let mut t = self.leaf(of)?;
                for (axis, &(start, end)) in ranges.iter().enumerate() {
                    t = t.narrow(axis, start, end - start)?;
                }
                t
            }
            Share::Noise { base, scalars, seed } => {
                ops::noise_sum(&self.leaf(base)?, &self.leaf(scalars)?, Seed::new(*seed))?
            }
        })
    }

    /// The weight `name` as one tensor, differentiable in everything stored that it is made of.
    ///
    /// Prefer [`Bank::linear`] where the weight multiplies activations: it never forms `B·A`.
    pub fn weight(&self, name: &str) -> Result<Tensor> {
        let Some(entry) = self.plan.get(name) else { return self.leaf(name) };
        let mut w = self.base(name, &entry.share)?;
        for p in &entry.plus {
            let ba = self.leaf(&p.b)?.matmul(&self.leaf(&p.a)?)?;
            w = ops::add(&w, &ops::scale(&ba, p.scale)?)?;
        }
        Ok(w)
    }

    /// The weight `name` if the model has it.
    pub fn optional(&self, name: &str) -> Result<Option<Tensor>> {
        self.contains(name).then(|| self.weight(name)).transpose()
    }

    /// `x · Wᵀ (+ bias)` with the weight `{module}.weight: [out, in]` and, if the model has it,
    /// `{module}.bias: [out]`. `x` is `[.., in]`.
    pub fn linear(&self, module: &str, x: &Tensor) -> Result<Tensor> {
        let bias = self.optional(&format!("{module}.bias"))?;
        self.linear_weight(&format!("{module}.weight"), x, bias.as_ref())
    }

    /// [`Bank::linear`] with the full name of the weight and an explicit bias.
    pub fn linear_weight(&self, name: &str, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let Some(entry) = self.plan.get(name) else {
            return Ok(ops::linear(x, &self.leaf(name)?, bias)?);
        };
        if matches!(entry.share, Share::Zero { .. }) && !entry.plus.is_empty() {
            return self.factored(x, &entry.plus, bias);
        }
        let base = self.base(name, &entry.share)?;
        let Some((first, rest)) = entry.plus.split_first() else {
            return Ok(ops::linear(x, &base, bias)?);
        };
        let (a, b) = (self.leaf(&first.a)?, self.leaf(&first.b)?);
        let mut y = ops::lora_linear(x, &base, bias, &a, &b, first.scale)?;
        for p in rest {
            let low = ops::scale(&ops::linear(x, &self.leaf(&p.a)?, None)?, p.scale)?;
            y = ops::add(&y, &ops::linear(&low, &self.leaf(&p.b)?, None)?)?;
        }
        Ok(y)
    }

    /// `Σ scale · (x Aᵀ) Bᵀ (+ bias)`.
    fn factored(&self, x: &Tensor, terms: &[LowRank], bias: Option<&Tensor>) -> Result<Tensor> {
        let mut sum: Option<Tensor> = None;
        for p in terms {
            let mut low = ops::linear(x, &self.leaf(&p.a)?, None)?;
            if p.scale != 1. {
                low = ops::scale(&low, p.scale)?;
            }
            let bias = bias.filter(|_| sum.is_none());
            let y = ops::linear(&low, &self.leaf(&p.b)?, bias)?;
            sum = Some(match sum {
                Some(sum) => ops::add(&sum, &y)?,
                None => y,
            });
        }
        sum.ok_or_else(|| Error::plan("*", "a factored weight needs a low-rank term"))
    }

    /// Adds a trainable low-rank term of `rank` to the weight `name`: `A` uniform in
    /// `±1/√in` (Kaiming with `a = √5`, as PEFT), `B` zero, scaled by `alpha / rank`.
    pub fn add_lora(&mut self, name: &str, rank: usize, alpha: f32, seed: Seed) -> Result<()> {
        let shape = self.shape(name)?;
        let [out, input] = shape[..] else {
            return Err(Error::plan(name, format!("low-rank terms need a matrix, not {shape:?}")));
        };
        if rank == 0 || rank > out.min(input) {
            return Err(Error::plan(name, format!("rank {rank} is not in 1..={}", out.min(input))));
        }
        let mut a = vec![0f32; rank * input];
        seed.fork(name, 0).uniform(0, &mut a);
        let bound = 1. / (input as f32).sqrt();
        a.iter_mut().for_each(|v| *v = (2. * *v - 1.) * bound);
        let a = Tensor::from_vec(a, (rank, input), &self.device)?;
        let b = Tensor::zeros((out, rank), DType::F32, &self.device)?;
        self.add_low_rank(name, a, b, alpha / rank as f32)
    }

    /// Makes the weight `name` the product `B·A` of `a: [rank, in]` and `b: [out, rank]`, and
    /// nothing else.
    pub fn factor(&mut self, name: &str, a: Tensor, b: Tensor) -> Result<()> {
        let shape = vec![b.dim(0)?, a.dim(1)?];
        let part = |half| format!("{PART}lora.{name}.0.{half}");
        self.insert(part("a"), a)?;
        self.insert(part("b"), b)?;
        let term = LowRank { a: part("a"), b: part("b"), scale: 1. };
        self.share(name, Entry { share: Share::Zero { shape }, plus: vec![term] })
    }

    /// Adds the low-rank term `scale · B·A` to the weight `name`.
    pub fn add_low_rank(&mut self, name: &str, a: Tensor, b: Tensor, scale: f32) -> Result<()> {
        let k = self.plan.get(name).map_or(0, |e| e.plus.len());
        let (a_name, b_name) =
            (format!("{PART}lora.{name}.{k}.a"), format!("{PART}lora.{name}.{k}.b"));
        self.insert(&a_name, a)?;
        self.insert(&b_name, b)?;
        Arc::make_mut(&mut self.plan).entry(name).plus.push(LowRank {
            a: a_name,
            b: b_name,
            scale,
        });
        self.shape(name).map(drop)
    }

    /// Freezes the stored tensors for which `pick` is true and unfreezes the others; a frozen
    /// tensor gets no gradient and costs none.
    pub fn freeze(&mut self, pick: impl Fn(&str) -> bool) {
        self.frozen = Arc::new(self.stored.keys().filter(|n| pick(n)).cloned().collect());
    }

    /// Stored tensors that are not frozen, in name order: what an optimiser steps.
    pub fn trainable(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.stored_vars().filter(|(n, _)| !self.frozen.contains(*n))
    }

    /// Number of stored parameters.
    pub fn stored(&self) -> usize {
        self.stored.values().map(|v| v.elem_count()).sum()
    }

    /// Number of parameters of the model's weights as a plain checkpoint would hold them.
    ///
    /// A weight that is exactly another weight of the model (a tied output head) counts once, as
    /// plain checkpoints store it once; low-rank terms are folded in and so add nothing.
    pub fn logical(&self) -> Result<usize> {
        let mut total = 0;
        for name in self.names() {
            if !self.is_alias(name) {
                total += self.shape(name)?.iter().product::<usize>();
            }
        }
        Ok(total)
    }

    /// Whether `name` is the same tensor as another *weight* (not a part) and so needs no copy in
    /// a plain checkpoint of a format that knows tying, such as a tied output head.
    fn is_alias(&self, name: &str) -> bool {
        name.ends_with("lm_head.weight")
            && matches!(
                self.plan.get(name),
                Some(Entry { share: Share::Same { owner }, plus })
                    if plus.is_empty() && !owner.starts_with(PART)
            )
    }

    /// A bank in which every weight is plainly stored, with equal values; a tied output head
    /// stays tied.
    pub fn materialize(&self) -> Result<Self> {
        let mut plain = Self::new(self.device.clone());
        let (aliases, own): (Vec<&str>, Vec<&str>) =
            self.names().into_iter().partition(|n| self.is_alias(n));
        for name in own {
            plain.insert(name, self.weight(name)?)?;
        }
        for name in aliases {
            if let Some(entry) = self.plan.get(name) {
                plain.share(name, entry.clone())?;
            }
        }
        Ok(plain)
    }

    /// A copy that shares no storage with this bank.
    pub fn deep_clone(&self) -> Result<Self> {
        let mut copy = Self::new(self.device.clone());
        for (name, var) in self.stored.iter() {
            copy.insert(name, var.as_tensor().clone())?;
        }
        copy.plan = self.plan.clone();
        copy.frozen = self.frozen.clone();
        Ok(copy)
    }
}
