//! A sequential generator over a [`Seed`]'s stream.

use super::{Seed, TILE, normal};
use serde::{Deserialize, Serialize};

/// Walks the stream of a [`Seed`] word by word. Serialises as the seed and the position, so a
/// resumed run goes on with the next number.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(from = "State", into = "State")]
pub struct Rng {
    seed: Seed,
    position: u64,
    /// Words of the tile that `position` lies in, made when first needed.
    words: [u32; TILE],
    /// The tile that `words` holds, if any.
    held: Option<u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    seed: Seed,
    position: u64,
}

impl From<State> for Rng {
    fn from(state: State) -> Self {
        let mut rng = Self::new(state.seed);
        rng.position = state.position;
        rng
    }
}

impl From<Rng> for State {
    fn from(rng: Rng) -> Self {
        Self { seed: rng.seed, position: rng.position }
    }
}

impl PartialEq for Rng {
    fn eq(&self, other: &Self) -> bool {
        (self.seed, self.position) == (other.seed, other.position)
    }
}

impl Eq for Rng {}

impl Rng {
    pub(super) fn new(seed: Seed) -> Self {
        Self { seed, position: 0, words: [0; TILE], held: None }
    }

    /// Words consumed so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next 32 random bits.
    pub fn next_u32(&mut self) -> u32 {
        let tile = self.position / TILE as u64;
        if self.held != Some(tile) {
            self.seed.bits(tile * TILE as u64, &mut self.words);
            self.held = Some(tile);
        }
        let word = self.words[(self.position % TILE as u64) as usize];
        self.position = self.position.wrapping_add(1);
        word
    }

    /// The next 64 random bits (two words, the first the low half).
    pub fn next_u64(&mut self) -> u64 {
        let low = u64::from(self.next_u32());
        low | u64::from(self.next_u32()) << 32
    }

    /// Uniform in [0, 1), a multiple of 2⁻⁵³.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / 9_007_199_254_740_992.0)
    }

    /// Uniform in `[low, high)`.
    pub fn range(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.uniform()
    }

    /// `true` with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        self.uniform() < p
    }

    /// A standard normal. It has `f32` resolution, so that it is bit-equal on every machine: the
    /// platform's `f64` logarithm and sine are not.
    pub fn normal(&mut self) -> f64 {
        let (radius, angle) = (self.next_u32(), self.next_u32());
        f64::from(normal::pair(radius, angle).0)
    }

    /// Uniform in `0..bound` without bias (Lemire 2019); 0 when `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 {
            return 0;
        }
        let mut product = u128::from(self.next_u64()) * u128::from(bound);
        if (product as u64) < bound {
            let threshold = bound.wrapping_neg() % bound;
            while (product as u64) < threshold {
                product = u128::from(self.next_u64()) * u128::from(bound);
            }
        }
        (product >> 64) as u64
    }

    /// A random element, or `None` of an empty slice.
    pub fn choose<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        let index = self.below(items.len() as u64) as usize;
        items.get(index)
    }

    /// Puts the slice into random order (Fisher–Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u64 + 1) as usize);
        }
    }

    /// `count` distinct numbers of `0..n` in random order; all of them if `count ≥ n`.
    pub fn sample(&mut self, n: usize, count: usize) -> Vec<usize> {
        let count = count.min(n);
        // Fisher–Yates on a sparse array: only moved places are stored.
        let mut moved = std::collections::HashMap::new();
        (0..count)
            .map(|i| {
                let j = i + self.below((n - i) as u64) as usize;
                let at = |k: usize, moved: &std::collections::HashMap<usize, usize>| {
                    moved.get(&k).copied().unwrap_or(k)
                };
                let (chosen, here) = (at(j, &moved), at(i, &moved));
                moved.insert(j, here);
                chosen
            })
            .collect()
    }

    /// An index drawn with probability proportional to its weight. Negative and NaN weights count
    /// as zero; if no weight is positive the draw is uniform. 0 for an empty slice.
    pub fn weighted(&mut self, weights: &[f64]) -> usize {
        let clean = |w: f64| if w > 0.0 { w } else { 0.0 };
        let infinite = weights.iter().filter(|w| **w == f64::INFINITY).count();
        if infinite > 0 {
            let mut skip = self.below(infinite as u64);
            return weights
                .iter()
                .position(|w| {
                    let hit = *w == f64::INFINITY && skip == 0;
                    skip -= u64::from(*w == f64::INFINITY && !hit);
                    hit
                })
                .unwrap_or(0);
        }
        let total: f64 = weights.iter().copied().map(clean).sum();
        if total <= 0.0 {
            return self.below(weights.len() as u64) as usize;
        }
        let mut target = self.uniform() * total;
        let mut last = 0;
        for (i, weight) in weights.iter().copied().map(clean).enumerate() {
            if weight > 0.0 {
                if target < weight {
                    return i;
                }
                target -= weight;
                last = i;
            }
        }
        // Rounding left a crumb of `target`: it belongs to the last index with any weight.
        last
    }
}
