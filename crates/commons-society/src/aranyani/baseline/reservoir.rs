//! Aranyani with stored instances instead of running means: a reservoir per group, run through the
//! forest again at every step. It shows what the running means save.

use commons_core::{Rng, Seed};

use crate::Result;
use crate::aranyani::learner::{FairForest, ForestConfig};

/// A forest whose fairness gradient is computed afresh from a reservoir.
#[derive(Debug)]
pub struct Reservoir {
    inner: FairForest,
    size: usize,
    held: Vec<Vec<Vec<f64>>>,
    seen: Vec<u64>,
    rng: Rng,
}

impl Reservoir {
    /// With room for `size` instances per group.
    ///
    /// # Errors
    /// As [`FairForest::new`].
    pub fn new(config: ForestConfig, width: usize, size: usize, seed: Seed) -> Result<Self> {
        let groups = config.groups;
        Ok(Self {
            inner: FairForest::new(config, width, seed)?,
            size,
            held: vec![Vec::new(); groups],
            seen: vec![0; groups],
            rng: seed.fork("reservoir", 0).rng(),
        })
    }

    /// Puts instances in without learning from them.
    pub fn fill<'a>(&mut self, instances: impl Iterator<Item = (&'a [f64], usize)>) {
        instances.for_each(|(x, a)| self.keep(x, a));
    }

    /// Predicts the positive class's probability, then learns.
    ///
    /// # Errors
    /// As [`FairForest::learn`].
    pub fn learn(&mut self, x: &[f64], y: usize, a: usize) -> Result<f64> {
        self.keep(x, a);
        // The statistics are made new at every step, with the parameters as they are now.
        self.inner.statistics.forget();
        for group in 0..self.held.len() {
            for held in &self.held[group] {
                self.inner.look(held, group);
            }
        }
        let p = self.inner.learn_with(x, y)?;
        Ok(p[p.len() - 1])
    }

    /// Vitter's algorithm R.
    fn keep(&mut self, x: &[f64], a: usize) {
        self.seen[a] += 1;
        if self.held[a].len() < self.size {
            self.held[a].push(x.to_vec());
            return;
        }
        let at = self.rng.below(self.seen[a]) as usize;
        if at < self.size {
            self.held[a][at] = x.to_vec();
        }
    }
}
