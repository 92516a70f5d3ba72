//! Which experts tokens take at which depth.

use std::collections::BTreeSet;

use commons_nn::model::moe::MoeOutput;

use crate::Result;

/// Counts over everything that was scored.
#[derive(Debug, Clone, Default)]
pub struct Routes {
    /// How often expert `e` was taken at depth `l`: `[l][e]`.
    loads: Vec<Vec<usize>>,
    /// Sum over tokens of the entropy of the router's probabilities, nats, by depth.
    entropy: Vec<f64>,
    /// Tokens, by depth.
    tokens: usize,
    /// Tokens whose first choice is not the same at every depth.
    changing: usize,
}

impl Routes {
    /// Counts a forward pass.
    ///
    /// # Errors
    /// When probabilities cannot be read.
    pub fn add(&mut self, layers: &[MoeOutput]) -> Result<()> {
        let Some(first) = layers.first() else { return Ok(()) };
        let tokens = first.dispatch.tokens();
        self.tokens += tokens;
        self.loads.resize(layers.len(), Vec::new());
        self.entropy.resize(layers.len(), 0.);
        for (l, layer) in layers.iter().enumerate() {
            let counts = layer.dispatch.selected();
            self.loads[l].resize(counts.len(), 0);
            self.loads[l].iter_mut().zip(counts).for_each(|(sum, n)| *sum += n);
            let p = layer.probabilities.flatten_all()?.to_vec1::<f32>()?;
            let terms = p.iter().filter(|p| **p > 0.).map(|&p| f64::from(p));
            self.entropy[l] -= terms.map(|p| p * p.ln()).sum::<f64>();
        }
        let active = first.dispatch.selection().active;
        let choice = |l: &MoeOutput, t: usize| l.dispatch.ids()[t * active];
        let distinct = |t| layers.iter().map(|l| choice(l, t)).collect::<BTreeSet<_>>().len();
        self.changing += (0..tokens).filter(|&t| distinct(t) > 1).count();
        Ok(())
    }

    /// Depths seen.
    pub fn layers(&self) -> usize {
        self.loads.len()
    }

    /// Share of tokens whose first choice is not the same expert at every depth.
    pub fn changing(&self) -> f64 {
        self.changing as f64 / self.tokens.max(1) as f64
    }

    /// Share of the assignments that expert `e` gets at depth `l`: `[l][e]`.
    pub fn shares(&self) -> Vec<Vec<f64>> {
        let share = |row: &Vec<usize>| {
            let total = row.iter().sum::<usize>().max(1) as f64;
            row.iter().map(|&n| n as f64 / total).collect()
        };
        self.loads.iter().map(share).collect()
    }

    /// Mean entropy of the router's probabilities by depth, nats.
    pub fn entropy(&self) -> Vec<f64> {
        self.entropy.iter().map(|h| h / self.tokens.max(1) as f64).collect()
    }
}
