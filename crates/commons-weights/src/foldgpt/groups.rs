//! Step 2: consecutive blocks that use one block's matrices.

use std::ops::Range;

use commons_nn::bank::{Entry, PART};
use commons_nn::model::{BLOCK_MATRICES, Decoder, DecoderConfig, layer_prefix};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::analysis::Similarity;
use crate::{Error, Result};

/// Which member's matrices a group keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Parent {
    /// The first member's.
    #[default]
    First,
    /// The member's of highest importance (largest gate, or largest block influence).
    MostImportant,
}

/// What becomes of the small vectors of a group's members (norm gains, biases).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Norms {
    /// Each member keeps its own: they restore the scale the member's own matrices had.
    #[default]
    Own,
    /// All members use the parent's.
    Shared,
}

/// How many groups of what size, and whose weights they keep.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct GroupConfig {
    /// Blocks in a group; below 2 nothing is shared.
    pub size: usize,
    /// Number of groups; ignored when `stored_share` is given.
    pub count: usize,
    /// Share of the original's parameters to get down to; groups are formed until it is reached.
    pub stored_share: Option<f64>,
    /// First and last block that may be in a group, counted after removal; by default all but the
    /// first and the last.
    pub within: Option<(usize, usize)>,
    /// Whose matrices a group keeps.
    pub parent: Parent,
    /// What becomes of norm gains and biases.
    pub norms: Norms,
}

impl Default for GroupConfig {
    fn default() -> Self {
        Self {
            size: 2,
            count: 2,
            stored_share: None,
            within: None,
            parent: Parent::First,
            norms: Norms::Own,
        }
    }
}

/// Stored parameters of a decoder by the part that sharing touches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accounting {
    /// Embedding, final norm and an untied head.
    pub outside: usize,
    /// The seven matrices of one block.
    pub matrices: usize,
    /// Norm gains and biases of one block.
    pub vectors: usize,
}

impl Accounting {
    /// The counts of a configuration.
    pub fn of(config: &DecoderConfig) -> Self {
        let first = layer_prefix(0);
        let (mut outside, mut matrices, mut vectors) = (0, 0, 0);
        for (name, shape) in config.weights() {
            let size: usize = shape.iter().product();
            match name.strip_prefix(&first) {
                Some(rest) if BLOCK_MATRICES.contains(&rest) => matrices += size,
                Some(_) => vectors += size,
                None if name.starts_with("model.layers.") => {}
                None if name == "lm_head.weight" && config.tie_word_embeddings => {}
                None => outside += size,
            }
        }
        Self { outside, matrices, vectors }
    }

    /// `P = P_outside + parents · P_matrices + blocks · P_vectors`: what `blocks` blocks with
    /// `parents` distinct sets of matrices store when each keeps its own norms.
    pub fn stored(&self, parents: usize, blocks: usize) -> usize {
        self.outside + parents * self.matrices + blocks * self.vectors
    }

    /// The fewest groups of `size` that bring `blocks` blocks to at most `budget` parameters.
    fn groups_for(&self, blocks: usize, size: usize, norms: Norms, budget: f64) -> usize {
        let saved = match norms {
            Norms::Own => self.matrices,
            Norms::Shared => self.matrices + self.vectors,
        } * (size - 1);
        let excess = self.stored(blocks, blocks) as f64 - budget;
        (excess / saved as f64).ceil().max(0.) as usize
    }
}

/// One group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Consecutive block indices.
    pub members: Range<usize>,
    /// The member whose matrices all use.
    pub parent: usize,
}

/// Which blocks of a decoder share matrices.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GroupPlan {
    /// Disjoint groups in order of depth.
    pub groups: Vec<Group>,
}

impl GroupPlan {
    /// Checks groups that were chosen elsewhere.
    ///
    /// # Errors
    /// Naming the group that is too small or too big, has its parent outside, overlaps the one
    /// before, or mixes attention kinds.
    pub fn new(groups: Vec<Group>, config: &DecoderConfig) -> Result<Self> {
        let layers = config.num_hidden_layers;
        let mut free = 0;
        for (i, group) in groups.iter().enumerate() {
            let Range { start, end } = group.members.clone();
            let wrong = |reason: String| Err(Error::config(format!("groups[{i}]"), reason));
            if end < start + 2 || end > layers {
                return wrong(format!("{start}..{end} is not two or more of {layers} blocks"));
            }
            if start < free {
                return wrong(format!("starts at {start}, inside or before the group before it"));
            }
            if !group.members.contains(&group.parent) {
                return wrong(format!("parent {} is not in {start}..{end}", group.parent));
            }
            if !same_kind(config, start, end) {
                return wrong(format!(
                    "blocks {start}..{end} mix sliding and full attention: a shared matrix needs \
                     one kind; shorten or move the group"
                ));
            }
            free = end;
        }
        Ok(Self { groups })
    }

    /// Chooses groups among the blocks of a decoder with configuration `config`: of all ways to
    /// place the wanted number of disjoint groups, the one with the highest sum of intra-group
    /// similarity. `importance: [blocks]` decides the parent where the options say so, and
    /// `original` is the number of parameters that `stored_share` refers to.
    ///
    /// # Errors
    /// When the groups do not fit (saying how many would) or an option is out of range.
    pub fn choose(
        similarity: &Similarity,
        importance: &[f64],
        config: &DecoderConfig,
        options: &GroupConfig,
        original: usize,
    ) -> Result<Self> {
        let layers = config.num_hidden_layers;
        if options.size < 2 {
            return Ok(Self::default());
        }
        let (first, last) = options.within.unwrap_or((1, layers.saturating_sub(2)));
        if first > last || last >= layers {
            return Err(Error::config(
                "groups.within",
                format!("{first}..={last} is not a span of the {layers} blocks left"),
            ));
        }
        let span = last + 1 - first;
        if options.size > span {
            return Err(Error::config(
                "groups.size",
                format!("{} is more than the {span} blocks that may share", options.size),
            ));
        }
        let count = Self::wanted(config, options, original)?;
        let fits = |start: usize| {
            start + options.size <= last + 1 && same_kind(config, start, start + options.size)
        };
        let value = |start: usize| similarity.within(start, options.size);
        let Some(starts) = place(first..last + 1, options.size, count, &fits, &value) else {
            let most = (0..count)
                .rev()
                .find(|&n| place(first..last + 1, options.size, n, &fits, &value).is_some())
                .unwrap_or(0);
            return Err(Error::config(
                "groups.count",
                format!(
                    "{count} groups of {} do not fit in blocks {first}..={last} (groups may not \
                     mix attention kinds): at most {most} do",
                    options.size
                ),
            ));
        };
        let group = |start: usize| {
            let members = start..start + options.size;
            let parent = match options.parent {
                Parent::First => start,
                Parent::MostImportant => members
                    .clone()
                    .max_by(|&a, &b| importance[a].total_cmp(&importance[b]).then(b.cmp(&a)))
                    .unwrap_or(start),
            };
            Group { members, parent }
        };
        Self::new(starts.into_iter().map(group).collect(), config)
    }

    /// The number of groups the options ask for.
    fn wanted(config: &DecoderConfig, options: &GroupConfig, original: usize) -> Result<usize> {
        let Some(share) = options.stored_share else { return Ok(options.count) };
        if !(share > 0. && share <= 1.) {
            return Err(Error::config("groups.stored_share", format!("{share} is not in 0..=1")));
        }
        let budget = share * original as f64;
        let accounting = Accounting::of(config);
        Ok(accounting.groups_for(config.num_hidden_layers, options.size, options.norms, budget))
    }

    /// Blocks that use another block's matrices.
    pub fn folded(&self) -> usize {
        self.groups.iter().map(|g| g.members.len() - 1).sum()
    }

    /// The group `layer` is in.
    pub fn group_of(&self, layer: usize) -> Option<usize> {
        self.groups.iter().position(|g| g.members.contains(&layer))
    }

    /// Makes every member use its group's matrices, stored once as `bank.group.{i}.{matrix}`.
    ///
    /// # Errors
    /// When a group does not fit the model.
    pub fn apply(&self, model: Decoder, norms: Norms) -> Result<Decoder> {
        let plan = Self::new(self.groups.clone(), &model.config)?;
        let Decoder { config, mut bank } = model;
        let first = layer_prefix(0);
        let shared: Vec<String> = config
            .weights()
            .into_iter()
            .filter_map(|(name, _)| Some(name.strip_prefix(&first)?.to_owned()))
            .filter(|name| norms == Norms::Shared || BLOCK_MATRICES.contains(&name.as_str()))
            .collect();
        for (i, group) in plan.groups.iter().enumerate() {
            for name in &shared {
                let part = format!("{PART}group.{i}.{name}");
                let parent = format!("{}{name}", layer_prefix(group.parent));
                bank.insert(&part, bank.weight(&parent)?)?;
                for member in group.members.clone() {
                    bank.share(&format!("{}{name}", layer_prefix(member)), Entry::same(&part))?;
                }
            }
        }
        Ok(Decoder::new(config, bank)?)
    }
}

fn same_kind(config: &DecoderConfig, start: usize, end: usize) -> bool {
    (start..end).all(|l| config.is_local(l) == config.is_local(start))
}

/// The starts of `count` disjoint windows of `size` inside `span` with the largest sum of `value`,
/// among those for which `fits` holds; `None` if so many do not fit.
pub(super) fn place(
    span: Range<usize>,
    size: usize,
    count: usize,
    fits: &dyn Fn(usize) -> bool,
    value: &dyn Fn(usize) -> f64,
) -> Option<Vec<usize>> {
    // best[n][end]: largest sum of n windows that end at or before `end`, and the last one's start.
    let width = span.len() + 1;
    let mut best = vec![vec![(f64::NEG_INFINITY, None); width]; count + 1];
    best[0] = vec![(0., None); width];
    for n in 1..=count {
        for end in 1..width {
            best[n][end] = best[n][end - 1];
            let Some(from) = end.checked_sub(size) else { continue };
            let start = span.start + from;
            let sum = best[n - 1][from].0;
            if sum.is_finite() && fits(start) && sum + value(start) > best[n][end].0 {
                best[n][end] = (sum + value(start), Some(start));
            }
        }
    }
    let mut starts = Vec::with_capacity(count);
    let mut end = width - 1;
    for n in (1..=count).rev() {
        let start = best[n][end].1?;
        starts.push(start);
        end = start - span.start;
    }
    starts.reverse();
    Some(starts)
}
