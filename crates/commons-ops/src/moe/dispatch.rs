//! Which expert does what: choice, capacity, and rows in the order of experts.

use crate::par;
use candle_core::{Result, bail};
use std::ops::Range;

/// How many experts a token takes, and from where.
///
/// With one group a token takes its `active` best experts (top-K). With more, experts are cut into
/// groups of equal size and a token takes the `active / groups` best of each (MoGE, 2025).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Selection {
    /// `N`: experts.
    pub experts: usize,
    /// `K`: experts of a token.
    pub active: usize,
    /// `M`: groups of consecutive experts.
    pub groups: usize,
}

/// The mark of an assignment that no expert takes.
const NOWHERE: u32 = u32::MAX;

impl Selection {
    /// The `active` best of `experts`.
    pub fn top_k(experts: usize, active: usize) -> Self {
        Self { experts, active, groups: 1 }
    }

    /// Experts of a group.
    pub fn group_size(&self) -> usize {
        self.experts / self.groups.max(1)
    }

    /// Checks that groups are equal and large enough.
    ///
    /// # Errors
    /// Naming the count that does not fit.
    pub fn check(&self) -> Result<()> {
        let Self { experts, active, groups } = *self;
        if groups == 0 || !experts.is_multiple_of(groups) {
            bail!("groups: {groups} must divide the {experts} experts")
        }
        if active == 0 || !active.is_multiple_of(groups) {
            bail!("active: {active} must be a multiple of the {groups} groups, and not zero")
        }
        if active > experts {
            bail!("active: {active} is more than the {experts} experts")
        }
        Ok(())
    }

    /// The chosen experts `[tokens, active]` of the rows of `scores [tokens, experts]`: group after
    /// group, the best of a group first; of equal scores the one with the lower index.
    ///
    /// # Errors
    /// As [`Self::check`], and when `scores` is not made of rows.
    pub fn choose(&self, scores: &[f32]) -> Result<Vec<u32>> {
        self.check()?;
        if !scores.len().is_multiple_of(self.experts) {
            bail!("moe: {} scores are not rows of {}", scores.len(), self.experts)
        }
        let tokens = scores.len() / self.experts;
        let mut ids = vec![0u32; tokens * self.active];
        let piece = par::rows_per_piece(self.experts);
        let parts = ids.chunks_mut(piece * self.active).zip(scores.chunks(piece * self.experts));
        par::each(parts, scores.len(), |(ids, scores)| {
            let rows = ids.chunks_exact_mut(self.active).zip(scores.chunks_exact(self.experts));
            rows.for_each(|(ids, row)| self.choose_row(row, ids));
        });
        Ok(ids)
    }

    fn choose_row(&self, row: &[f32], ids: &mut [u32]) {
        let (size, each) = (self.group_size(), self.active / self.groups);
        for (group, ids) in ids.chunks_exact_mut(each).enumerate() {
            for slot in 0..each {
                let mut best: Option<usize> = None;
                for e in group * size..(group + 1) * size {
                    let taken = ids[..slot].contains(&(e as u32));
                    if !taken && best.is_none_or(|b| row[e] > row[b]) {
                        best = Some(e);
                    }
                }
                // There are at least `each` experts in a group, so one is always left.
                ids[slot] = best.unwrap_or(group * size) as u32;
            }
        }
    }
}

/// Assignments of tokens to experts, sorted by expert; groups of consecutive experts are
/// consecutive rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dispatch {
    selection: Selection,
    /// Chosen experts `[tokens, active]`.
    ids: Vec<u32>,
    /// Tokens that count, if not all do.
    mask: Option<Vec<bool>>,
    /// First row of every expert, and the number of rows.
    offsets: Vec<usize>,
    /// The assignment `token · active + slot` of every row.
    places: Vec<u32>,
    /// The row of every assignment, or [`NOWHERE`].
    rows: Vec<u32>,
    /// Assignments an expert had no place for.
    dropped: usize,
}

impl Dispatch {
    /// Lets every token choose by its row of `scores [tokens, experts]`. An expert takes `capacity`
    /// assignments at most: first choices of all tokens in order, then second choices, and so on.
    /// Tokens whose `mask` is false (padding) take no expert and are not counted.
    ///
    /// # Errors
    /// When counts do not fit, or the capacity is zero.
    pub fn new(
        selection: Selection,
        scores: &[f32],
        capacity: Option<usize>,
        mask: Option<&[bool]>,
    ) -> Result<Self> {
        let ids = selection.choose(scores)?;
        Self::of(selection, ids, capacity, mask)
    }

    /// [`Self::new`] for experts `ids [tokens, active]` chosen elsewhere.
    ///
    /// # Errors
    /// When counts do not fit, an expert does not exist, or the capacity is zero.
    pub fn of(
        selection: Selection,
        ids: Vec<u32>,
        capacity: Option<usize>,
        mask: Option<&[bool]>,
    ) -> Result<Self> {
        selection.check()?;
        let active = selection.active;
        let tokens = ids.len() / active;
        if !ids.len().is_multiple_of(active) || mask.is_some_and(|m| m.len() != tokens) {
            bail!("moe: {} choices of {active} do not fit the mask", ids.len())
        }
        if let Some(e) = ids.iter().find(|e| **e as usize >= selection.experts) {
            bail!("moe: expert {e} is not below {}", selection.experts)
        }
        if capacity == Some(0) {
            bail!("capacity: rounds to 0 places for an expert: raise it or the batch")
        }
        let limit = capacity.unwrap_or(usize::MAX);
        let mut taken: Vec<Vec<u32>> = vec![Vec::new(); selection.experts];
        let mut dropped = 0;
        for slot in 0..active {
            for token in (0..tokens).filter(|&t| mask.is_none_or(|m| m[t])) {
                let place = token * active + slot;
                let list = &mut taken[ids[place] as usize];
                if list.len() < limit { list.push(place as u32) } else { dropped += 1 }
            }
        }
        let mut dispatch = Self {
            selection,
            ids,
            mask: mask.map(<[bool]>::to_vec),
            offsets: Vec::new(),
            places: Vec::new(),
            rows: Vec::new(),
            dropped,
        };
        dispatch.lay_out(taken);
        Ok(dispatch)
    }

    fn lay_out(&mut self, taken: Vec<Vec<u32>>) {
        self.offsets = vec![0];
        self.places.clear();
        for list in taken {
            self.places.extend(list);
            self.offsets.push(self.places.len());
        }
        self.rows = vec![NOWHERE; self.ids.len()];
        for (row, &place) in self.places.iter().enumerate() {
            self.rows[place as usize] = row as u32;
        }
    }

    /// What is left for a device that holds only `experts`.
    pub fn restricted(&self, experts: Range<usize>) -> Self {
        let mut part = self.clone();
        let keep = |e: usize| if experts.contains(&e) { self.expert_places(e) } else { &[] };
        part.lay_out((0..self.selection.experts).map(|e| keep(e).to_vec()).collect());
        part
    }

    /// What a token takes.
    pub fn selection(&self) -> Selection {
        self.selection
    }

    /// Tokens, padding included.
    pub fn tokens(&self) -> usize {
        self.ids.len() / self.selection.active
    }

    /// Tokens that count.
    pub fn counted(&self) -> usize {
        self.mask.as_ref().map_or(self.tokens(), |m| m.iter().filter(|c| **c).count())
    }

    /// Whether `token` counts.
    pub(crate) fn counts(&self, token: usize) -> bool {
        self.mask.as_ref().is_none_or(|m| m[token])
    }

    /// Chosen experts `[tokens, active]`, whether or not they had room.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Assignments that are computed.
    pub fn computed(&self) -> usize {
        self.places.len()
    }

    /// Assignments an expert had no place for.
    pub fn dropped(&self) -> usize {
        self.dropped
    }

    /// Rows of every expert.
    pub fn loads(&self) -> Vec<usize> {
        self.offsets.windows(2).map(|w| w[1] - w[0]).collect()
    }

    /// How often every expert was chosen, whether or not it had room.
    pub fn selected(&self) -> Vec<usize> {
        let mut counts = vec![0; self.selection.experts];
        for (place, &e) in self.ids.iter().enumerate() {
            counts[e as usize] += usize::from(self.counts(place / self.selection.active));
        }
        counts
    }

    /// The rows of `expert`.
    pub fn expert_rows(&self, expert: usize) -> Range<usize> {
        self.offsets[expert]..self.offsets[expert + 1]
    }

    fn expert_places(&self, expert: usize) -> &[u32] {
        &self.places[self.expert_rows(expert)]
    }

    /// The assignment `token · active + slot` of every row.
    pub(crate) fn places(&self) -> &[u32] {
        &self.places
    }

    /// The row of an assignment, if it is computed.
    pub(crate) fn row(&self, place: usize) -> Option<usize> {
        Some(self.rows[place]).filter(|&row| row != NOWHERE).map(|row| row as usize)
    }
}
