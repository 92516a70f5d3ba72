//! How many items of each group a subset may hold.

use std::collections::{BTreeMap, HashMap};

use crate::{Error, Result};

/// Groups of items, possibly overlapping, with the least and the most of each that a subset holds.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Bounds {
    groups: Vec<Group>,
    /// For each item the groups it belongs to; empty if there are no groups.
    of: Vec<Vec<usize>>,
    disjoint: bool,
}

/// A group with its bounds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Its items, in increasing order.
    pub members: Vec<usize>,
    /// Least number in a subset.
    pub min: usize,
    /// Greatest number in a subset.
    pub max: usize,
}

impl Bounds {
    /// No bounds on a subset of `m` items.
    pub fn none(m: usize) -> Self {
        Self { groups: Vec::new(), of: vec![Vec::new(); m], disjoint: true }
    }

    /// Bounds on groups of `m` items.
    ///
    /// # Errors
    /// Naming a group that is empty, has an item that is not there, or a minimum above its maximum
    /// or its size.
    pub fn new(m: usize, groups: Vec<Group>) -> Result<Self> {
        let mut of = vec![Vec::new(); m];
        for (g, group) in groups.iter().enumerate() {
            let fail =
                |reason: String| Err(Error::config(format!("group `{}`", group.name), reason));
            if group.members.is_empty() {
                return fail("has no items; name at least one or drop its bounds".into());
            }
            if group.min > group.max {
                return fail(format!("needs at least {} and at most {}", group.min, group.max));
            }
            if group.min > group.members.len() {
                let size = group.members.len();
                return fail(format!(
                    "has {size} items, but {} are needed; lower --min",
                    group.min
                ));
            }
            for &c in &group.members {
                match of.get_mut(c) {
                    Some(list) => list.push(g),
                    None => return fail(format!("names item {c} of {m}")),
                }
            }
        }
        let disjoint = of.iter().all(|g: &Vec<usize>| g.len() < 2);
        Ok(Self { groups, of, disjoint })
    }

    /// The family `S_l` of the paper: exactly `l` items of `minority`, the rest from the others.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn exactly(m: usize, minority: &[usize], l: usize) -> Result<Self> {
        let group = Group { name: "minority".into(), members: minority.to_vec(), min: l, max: l };
        Self::new(m, vec![group])
    }

    /// The groups.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// Whether no item belongs to two groups.
    pub fn is_disjoint(&self) -> bool {
        self.disjoint
    }

    /// Items of each group in a subset.
    pub fn counts(&self, subset: &[usize]) -> Vec<usize> {
        let mut counts = vec![0; self.groups.len()];
        for &c in subset {
            for &g in self.of.get(c).map_or(&[][..], Vec::as_slice) {
                counts[g] += 1;
            }
        }
        counts
    }

    /// Whether a whole subset satisfies them.
    pub fn admits(&self, subset: &[usize]) -> bool {
        let counts = self.counts(subset);
        self.groups.iter().zip(counts).all(|(g, c)| g.min <= c && c <= g.max)
    }

    /// Refuses a size that cannot be met.
    ///
    /// # Errors
    /// Naming `k` and the bounds.
    pub fn check(&self, m: usize, k: usize) -> Result<()> {
        if k == 0 {
            return Err(Error::config("k", "is 0; choose at least one item"));
        }
        if k > m {
            let reason = format!("{k} items cannot be chosen from {m}; lower k");
            return Err(Error::config("k", reason));
        }
        let all: Vec<usize> = (0..m).collect();
        if self.best(&vec![0.; m], &[], &all, k).is_some() {
            return Ok(());
        }
        let list: Vec<String> = self
            .groups
            .iter()
            .map(|g| format!("{} to {} of {} in `{}`", g.min, g.max, g.members.len(), g.name))
            .collect();
        let reason = format!(
            "no {k} of {m} items meet them ({}); lower a minimum, raise a maximum, or change k",
            list.join(", ")
        );
        Err(Error::config("bounds", reason))
    }

    /// The subset of `k` items with the greatest sum of `values` that holds all of `inside`, apart
    /// from them only items of `free`, and meets the bounds: (sum, items added to `inside`). `None`
    /// if there is none. Equal values go to the lower index.
    pub fn best(
        &self,
        values: &[f64],
        inside: &[usize],
        free: &[usize],
        k: usize,
    ) -> Option<(f64, Vec<usize>)> {
        let picks = k.checked_sub(inside.len())?;
        let mut sorted = free.to_vec();
        sorted.sort_by(|&a, &b| values[b].total_cmp(&values[a]).then(a.cmp(&b)));
        let base: f64 = inside.iter().map(|&c| values[c]).sum();
        let added = if self.groups.is_empty() {
            sorted.truncate(picks);
            (sorted.len() == picks).then_some(sorted)?
        } else if self.disjoint {
            self.best_disjoint(inside, &sorted, picks)?
        } else {
            self.best_overlapping(values, inside, &sorted, picks)?
        };
        Some((base + added.iter().map(|&c| values[c]).sum::<f64>(), added))
    }

    /// With disjoint groups: first the best of every group up to its minimum, then the best of what
    /// is left below the maxima.
    fn best_disjoint(
        &self,
        inside: &[usize],
        sorted: &[usize],
        picks: usize,
    ) -> Option<Vec<usize>> {
        let mut counts = self.counts(inside);
        let mut taken = vec![false; sorted.len()];
        let mut added = Vec::with_capacity(picks);
        for (slot, &c) in taken.iter_mut().zip(sorted) {
            let needed = self.of[c].first().is_some_and(|&g| counts[g] < self.groups[g].min);
            if needed {
                counts[self.of[c][0]] += 1;
                *slot = true;
                added.push(c);
            }
        }
        let short = self.groups.iter().zip(&counts).any(|(g, &c)| c < g.min || c > g.max);
        if short || added.len() > picks {
            return None;
        }
        for (&slot, &c) in taken.iter().zip(sorted) {
            if added.len() == picks {
                break;
            }
            let room = self.of[c].first().is_none_or(|&g| counts[g] < self.groups[g].max);
            if !slot && room {
                if let Some(&g) = self.of[c].first() {
                    counts[g] += 1;
                }
                added.push(c);
            }
        }
        (added.len() == picks).then_some(added)
    }

    /// With overlapping groups: items of the same groups differ in value only, so a table over
    /// kinds of items and counts (capped at what matters) finds the best.
    fn best_overlapping(
        &self,
        values: &[f64],
        inside: &[usize],
        sorted: &[usize],
        picks: usize,
    ) -> Option<Vec<usize>> {
        // Groups whose bounds cannot bind at this size do not tell items apart.
        let k = inside.len() + picks;
        let binds = |g: &usize| {
            let group = &self.groups[*g];
            group.min > 0 || group.max < k.min(group.members.len())
        };
        let mut kinds: BTreeMap<Vec<usize>, Vec<usize>> = BTreeMap::new();
        for &c in sorted {
            let groups = self.of[c].iter().copied().filter(binds).collect();
            kinds.entry(groups).or_default().push(c);
        }
        // Of a group without a maximum it only matters whether the minimum is reached.
        let cap = |g: usize| match &self.groups[g] {
            group if group.max >= k => group.min,
            group => group.max,
        };
        let start = self.counts(inside);
        if self.groups.iter().zip(&start).any(|(g, &c)| c > g.max) {
            return None;
        }
        let start: Vec<usize> = start.iter().enumerate().map(|(g, &c)| c.min(cap(g))).collect();
        // (counts of the groups, picks) -> (sum, items taken of each kind so far)
        let mut table: HashMap<(Vec<usize>, usize), (f64, Vec<usize>)> = HashMap::new();
        table.insert((start, 0), (0., Vec::new()));
        for (groups, items) in &kinds {
            let mut next: HashMap<(Vec<usize>, usize), (f64, Vec<usize>)> = HashMap::new();
            for ((counts, used), (sum, taken)) in table {
                let room = |&g: &usize| match self.groups[g].max {
                    max if max >= k => usize::MAX,
                    max => max.saturating_sub(counts[g]),
                };
                let most = groups.iter().map(room).min().unwrap_or(usize::MAX);
                let most = most.min(items.len()).min(picks - used);
                let mut sum = sum;
                for count in 0..=most {
                    if count > 0 {
                        sum += values[items[count - 1]];
                    }
                    let mut counts = counts.clone();
                    groups.iter().for_each(|&g| counts[g] = cap(g).min(counts[g] + count));
                    let mut taken = taken.clone();
                    taken.push(count);
                    let slot = next.entry((counts, used + count));
                    let found = (sum, taken);
                    slot.and_modify(|old| {
                        // Ties by what was taken, so that the result does not hang on hash order.
                        if (found.0, &found.1) > (old.0, &old.1) {
                            *old = found.clone();
                        }
                    })
                    .or_insert(found);
                }
            }
            table = next;
        }
        let meets = |counts: &[usize]| self.groups.iter().zip(counts).all(|(g, &c)| c >= g.min);
        let whole = table.into_iter().filter(|((counts, used), _)| *used == picks && meets(counts));
        let best = whole
            .map(|(_, found)| found)
            .max_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.cmp(&b.1)))?;
        let items = kinds.values().zip(best.1);
        Some(items.flat_map(|(items, count)| items[..count].iter().copied()).collect())
    }

    /// Whether `inside` can be completed to `k` items with items of `free`.
    pub fn completable(&self, inside: &[usize], free: &[usize], k: usize) -> bool {
        let zeros = vec![0.; self.of.len()];
        self.best(&zeros, inside, free, k).is_some()
    }
}
