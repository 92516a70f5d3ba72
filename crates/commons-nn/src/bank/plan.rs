//! The sharing plan: how every named weight of a model is made from stored ones.
//!
//! A plan has depth one by construction: whatever an entry refers to must be *stored*, never made.
//! That keeps reading a weight a single step, and keeps the file format from becoming a compute
//! graph.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Metadata key of the safetensors header under which a plan is stored as JSON.
pub const PLAN_KEY: &str = "commons.sharing";

/// Version of the plan format, written beside the entries and checked on reading.
pub const PLAN_VERSION: u32 = 1;

/// How the base of one weight is found in the bank.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Share {
    /// Stored under its own name.
    #[default]
    Own,
    /// The very tensor of another stored name: tied, folded, recursive or grouped weights.
    Same {
        /// Stored name whose tensor is used.
        owner: String,
    },
    /// `Σ_k coefficients[k] · atoms[k]`: dictionaries of weights, inventories, merges.
    Combine {
        /// Stored names of the atoms, all of the weight's shape.
        atoms: Vec<String>,
        /// Stored name of the coefficient vector `[atoms]`.
        coefficients: String,
    },
    /// All zeros: a weight that is nothing but its low-rank terms (a factored matrix).
    Zero {
        /// Shape of the weight.
        shape: Vec<usize>,
    },
    /// Elements drawn from a flat pool by a hash of their block: random parameter sharing.
    ///
    /// Block `j` of the flattened weight starts at `offset(seed, j)` in the pool and has the sign
    /// `sign(seed, j)`; both come from the seed alone, so that nothing but the pool is stored.
    Hashed {
        /// Stored name of the pool `[size]`.
        pool: String,
        /// Seed of the hash.
        seed: u64,
        /// Consecutive elements that stay together; must not exceed the pool's size.
        block: usize,
        /// Multiplier of the drawn elements.
        scale: f32,
        /// Shape of the weight.
        shape: Vec<usize>,
        /// Instead of by blocks, by circular shifts of the pool (STABLE-RPS): the place of the
        /// weight's first element in the row of all weights of the pool. `block` is then not used.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        fold_at: Option<u64>,
    },
    /// The leading block of a larger stored tensor: entangled supernets.
    Slice {
        /// Stored name of the larger tensor.
        of: String,
        /// `[start, end)` along each axis of the larger tensor.
        ranges: Vec<(usize, usize)>,
    },
    /// `base + Σ_k scalars[k] · z_k`, with `z_k` standard normal from `seed` and `k`: shared
    /// randomness instead of shared weights.
    Noise {
        /// Stored name of the base.
        base: String,
        /// Stored name of the step sizes `[directions]`.
        scalars: String,
        /// Seed from which direction `k` is drawn.
        seed: u64,
    },
}

/// A low-rank term added to a weight: `scale · B·A`, with `A: [rank, in]` and `B: [out, rank]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LowRank {
    /// Stored name of `A: [rank, in]`.
    pub a: String,
    /// Stored name of `B: [out, rank]`.
    pub b: String,
    /// Multiplier of the product (LoRA's `alpha / rank`).
    pub scale: f32,
}

/// One line of a plan: a base and the low-rank terms on top of it.
///
/// The terms are a list beside the base rather than a kind of [`Share`], so that an adapter can be
/// put on a weight however that weight is shared (and on one that already carries an adapter).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Where the base comes from.
    pub share: Share,
    /// Low-rank terms added to the base.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub plus: Vec<LowRank>,
}

impl Entry {
    /// An entry that uses the tensor stored as `owner`.
    pub fn same(owner: impl Into<String>) -> Self {
        Share::Same { owner: owner.into() }.into()
    }

    /// Stored names this entry of weight `name` reads, base first.
    pub fn reads<'a>(&'a self, name: &'a str) -> Vec<&'a str> {
        let mut names: Vec<&str> = match &self.share {
            Share::Own => vec![name],
            Share::Zero { .. } => Vec::new(),
            Share::Same { owner } => vec![owner],
            Share::Combine { atoms, coefficients } => {
                atoms.iter().chain([coefficients]).map(String::as_str).collect()
            }
            Share::Hashed { pool, .. } => vec![pool],
            Share::Slice { of, .. } => vec![of],
            Share::Noise { base, scalars, .. } => vec![base, scalars],
        };
        names.extend(self.plus.iter().flat_map(|p| [p.a.as_str(), p.b.as_str()]));
        names
    }
}

impl From<Share> for Entry {
    fn from(share: Share) -> Self {
        Self { share, plus: Vec::new() }
    }
}

/// How every named weight of a model is made. A name without an entry is [`Share::Own`].
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SharingPlan(BTreeMap<String, Entry>);

#[derive(Serialize, Deserialize)]
struct PlanFile {
    version: u32,
    weights: BTreeMap<String, Entry>,
}

impl SharingPlan {
    /// The entry of `name`, if it is more than plainly stored.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.0.get(name)
    }

    /// Sets the entry of `name`; a plain [`Share::Own`] removes the line.
    pub fn set(&mut self, name: impl Into<String>, entry: Entry) {
        let name = name.into();
        if entry == Entry::default() {
            self.0.remove(&name);
        } else {
            self.0.insert(name, entry);
        }
    }

    /// Forgets `name` and returns what it was made of.
    pub fn remove(&mut self, name: &str) -> Option<Entry> {
        self.0.remove(name)
    }

    /// The entry of `name`, made plain if there was none.
    pub fn entry(&mut self, name: &str) -> &mut Entry {
        self.0.entry(name.to_owned()).or_default()
    }

    /// Entries in name order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.0.iter().map(|(n, e)| (n.as_str(), e))
    }

    /// Number of weights that are more than plainly stored.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether every weight is plainly stored.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Every stored name that an entry reads.
    pub fn read_names(&self) -> BTreeSet<&str> {
        self.0.iter().flat_map(|(n, e)| e.reads(n)).collect()
    }

    /// The JSON text stored under [`PLAN_KEY`].
    pub fn to_json(&self) -> Result<String> {
        let file = PlanFile { version: PLAN_VERSION, weights: self.0.clone() };
        serde_json::to_string(&file).map_err(|e| Error::plan("*", e.to_string()))
    }

    /// Reads the JSON text stored under [`PLAN_KEY`].
    ///
    /// # Errors
    /// When the text is not a plan, has a newer version, or names an unknown kind or field.
    pub fn from_json(text: &str) -> Result<Self> {
        let mut de = serde_json::Deserializer::from_str(text);
        let file: PlanFile = serde_path_to_error::deserialize(&mut de)
            .map_err(|e| Error::plan(e.path().to_string(), e.inner().to_string()))?;
        if file.version != PLAN_VERSION {
            return Err(Error::plan(
                "version",
                format!(
                    "plan version {} is not {PLAN_VERSION}: use a matching commons",
                    file.version
                ),
            ));
        }
        Ok(Self(file.weights))
    }

    /// Checks that everything an entry reads is among the `stored` names and that no entry reads a
    /// name that is itself made (depth one).
    pub fn validate(&self, is_stored: impl Fn(&str) -> bool) -> Result<()> {
        for (name, entry) in &self.0 {
            let own = entry.share == Share::Own;
            if !own && is_stored(name) {
                return Err(Error::plan(
                    name,
                    "is both stored and made from other tensors: remove one of the two",
                ));
            }
            for read in entry.reads(name) {
                if !is_stored(read) {
                    return Err(Error::plan(
                        name,
                        format!("reads `{read}`, which is not stored (plans have depth one)"),
                    ));
                }
            }
        }
        Ok(())
    }
}

impl FromIterator<(String, Entry)> for SharingPlan {
    fn from_iter<T: IntoIterator<Item = (String, Entry)>>(iter: T) -> Self {
        let mut plan = Self::default();
        for (name, entry) in iter {
            plan.set(name, entry);
        }
        plan
    }
}
