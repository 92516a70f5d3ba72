//! Generated genomes of several ancestries with a trait, and polygenic scores trained on them.

use commons_core::{Rng, Seed};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::linear::solve_spd;
use crate::{Error, Result};

/// Variants of a block of linkage.
const BLOCK: usize = 20;

/// Ancestries: name, divergence F (Balding and Nichols), linkage r, share of the population.
pub const ANCESTRIES: [(&str, f64, f64, f64); 4] = [
    ("EUR", 0.10, 0.8, 0.78),
    ("AFR", 0.05, 0.5, 0.10),
    ("EAS", 0.12, 0.75, 0.09),
    ("AMR", 0.08, 0.7, 0.03),
];

/// The simulated trait.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct GenomeConfig {
    /// Variants; a multiple of 20, the size of a block.
    pub variants: usize,
    /// Variants with an effect.
    pub causal: usize,
    /// Correlation of effects between ancestries.
    pub effect_correlation: f64,
    /// Share of the trait's variance that is genetic.
    pub heritability: f64,
}

impl Default for GenomeConfig {
    fn default() -> Self {
        Self { variants: 400, causal: 80, effect_correlation: 0.9, heritability: 0.5 }
    }
}

impl GenomeConfig {
    /// # Errors
    /// Naming the field.
    pub fn check(&self) -> Result<()> {
        if self.variants == 0 || !self.variants.is_multiple_of(BLOCK) {
            return Err(Error::config(
                "variants",
                format!("{} is no multiple of {BLOCK}", self.variants),
            ));
        }
        if self.causal == 0 || self.causal > self.variants {
            return Err(Error::config(
                "causal",
                format!("{} is not 1 to {}", self.causal, self.variants),
            ));
        }
        for (name, v) in
            [("effect_correlation", self.effect_correlation), ("heritability", self.heritability)]
        {
            if !(v > 0. && v <= 1.) {
                return Err(Error::config(name, format!("{v} is not above 0 and at most 1")));
            }
        }
        Ok(())
    }
}

/// What an ancestry is, fixed over all people of a simulation.
#[derive(Debug, Clone)]
pub struct Genome {
    config: GenomeConfig,
    /// Allele frequencies `[ancestry, variant]`.
    frequency: Vec<Vec<f64>>,
    /// Effects on the standardised genotype `[ancestry, variant]`.
    effect: Vec<Vec<f64>>,
    /// Mean and deviation of the genetic value per ancestry.
    scale: Vec<(f64, f64)>,
    seed: Seed,
}

/// Genotypes (0, 1, 2 copies, standardised by the frequency) and traits of some people.
#[derive(Debug, Clone, Default)]
pub struct Cohort {
    /// `[people, variants]`.
    pub genotype: Vec<f64>,
    /// Trait, variance 1.
    pub phenotype: Vec<f64>,
}

impl Genome {
    /// Draws frequencies and effects.
    ///
    /// # Errors
    /// As [`GenomeConfig::check`].
    pub fn new(config: GenomeConfig, seed: Seed) -> Result<Self> {
        config.check()?;
        let mut rng = seed.fork("genome", 0).rng();
        let ancestral: Vec<f64> = (0..config.variants).map(|_| rng.range(0.05, 0.5)).collect();
        let chosen = rng.sample(config.variants, config.causal);
        let shared: Vec<f64> = chosen.iter().map(|_| rng.normal()).collect();
        let rho = config.effect_correlation;
        let (mut frequency, mut effect) = (Vec::new(), Vec::new());
        for (_, f, ..) in ANCESTRIES {
            let drift = (1. - f) / f;
            let one = |p: &f64| beta(p * drift, (1. - p) * drift, &mut rng).clamp(0.005, 0.995);
            frequency.push(ancestral.iter().map(one).collect());
            let mut effects = vec![0.; config.variants];
            for (&v, s) in chosen.iter().zip(&shared) {
                effects[v] = rho.sqrt() * s + (1. - rho).sqrt() * rng.normal();
            }
            effect.push(effects);
        }
        let mut genome = Self { config, frequency, effect, scale: Vec::new(), seed };
        for ancestry in 0..ANCESTRIES.len() {
            let values: Vec<f64> =
                (0..1000).map(|i| genome.person(ancestry, "scale", i).1).collect();
            let spread = commons_core::stats::standard_deviation(&values).max(1e-9);
            genome.scale.push((commons_core::stats::mean(&values), spread));
        }
        Ok(genome)
    }

    /// Standardised genotype and unscaled genetic value of one person.
    fn person(&self, ancestry: usize, label: &str, i: u64) -> (Vec<f64>, f64) {
        let mut rng = self.seed.fork(label, ancestry as u64).fork("person", i).rng();
        let (frequency, linkage) = (&self.frequency[ancestry], ANCESTRIES[ancestry].2);
        let mut copies = vec![0f64; frequency.len()];
        for _ in 0..2 {
            let mut percentile = 0.;
            for (v, copies) in copies.iter_mut().enumerate() {
                if v % BLOCK == 0 || !rng.chance(linkage) {
                    percentile = rng.uniform();
                }
                *copies += f64::from(u8::from(percentile < frequency[v]));
            }
        }
        let scaled = |(c, p): (f64, &f64)| (c - 2. * p) / (2. * p * (1. - p)).sqrt();
        let genotype: Vec<f64> = copies.into_iter().zip(frequency).map(scaled).collect();
        let value = genotype.iter().zip(&self.effect[ancestry]).map(|(g, e)| g * e).sum();
        (genotype, value)
    }

    /// People `range` of a named cohort of an ancestry: any part can be made by itself.
    pub fn cohort(&self, ancestry: usize, label: &str, range: std::ops::Range<u64>) -> Cohort {
        let (centre, spread) = self.scale[ancestry];
        let h2 = self.config.heritability;
        let mut cohort = Cohort::default();
        for i in range {
            let (genotype, value) = self.person(ancestry, label, i);
            let noise = self.seed.fork("noise", ancestry as u64).fork(label, i).rng().normal();
            cohort.genotype.extend(genotype);
            let trait_value = h2.sqrt() * (value - centre) / spread + (1. - h2).sqrt() * noise;
            cohort.phenotype.push(trait_value);
        }
        cohort
    }

    /// Number of variants.
    pub fn variants(&self) -> usize {
        self.config.variants
    }

    /// The weights of a polygenic score: ridge regression (BLUP) on the people `rows` of `cohort`
    /// with penalty `L(1 − h²)/h²`.
    pub fn score(&self, cohort: &Cohort, rows: &[usize]) -> Vec<f64> {
        let width = self.variants();
        let h2 = self.config.heritability.min(0.999);
        let mut hessian = vec![0.; width * width];
        let mut target = vec![0.; width];
        for &i in rows {
            let g = &cohort.genotype[i * width..(i + 1) * width];
            let y = cohort.phenotype[i];
            for (a, &u) in g.iter().enumerate() {
                target[a] += u * y;
                let line = &mut hessian[a * width..a * width + a + 1];
                line.iter_mut().zip(g).for_each(|(h, v)| *h += u * v);
            }
        }
        let penalty = width as f64 * (1. - h2) / h2;
        (0..width).for_each(|a| hessian[a * width + a] += penalty);
        solve_spd(&mut hessian, width, &target)
    }

    /// Squared correlation of score and trait in a cohort; 0 if the score is constant.
    pub fn r_squared(&self, weights: &[f64], cohort: &Cohort) -> f64 {
        let score = |g: &[f64]| g.iter().zip(weights).map(|(g, w)| g * w).sum::<f64>();
        let scores: Vec<f64> = cohort.genotype.chunks(self.variants()).map(score).collect();
        squared_correlation(&scores, &cohort.phenotype)
    }
}

/// Squared correlation of scores and traits; 0 if either is constant or they are opposed.
pub(super) fn squared_correlation(scores: &[f64], phenotype: &[f64]) -> f64 {
    let (mx, my) = (commons_core::stats::mean(scores), commons_core::stats::mean(phenotype));
    let (mut xx, mut xy, mut yy) = (0., 0., 0.);
    for (x, y) in scores.iter().zip(phenotype) {
        xx += (x - mx) * (x - mx);
        xy += (x - mx) * (y - my);
        yy += (y - my) * (y - my);
    }
    // A score against the trait predicts nothing.
    if xx > 0. && yy > 0. && xy > 0. { xy * xy / (xx * yy) } else { 0. }
}

/// A Beta draw from two Gamma draws.
fn beta(a: f64, b: f64, rng: &mut Rng) -> f64 {
    let (x, y) = (gamma(a, rng), gamma(b, rng));
    x / (x + y)
}

/// Marsaglia and Tsang 2000.
fn gamma(shape: f64, rng: &mut Rng) -> f64 {
    if shape < 1. {
        return gamma(shape + 1., rng) * rng.uniform().max(1e-300).powf(1. / shape);
    }
    let d = shape - 1. / 3.;
    let c = 1. / (9. * d).sqrt();
    loop {
        let x = rng.normal();
        let v = (1. + c * x).powi(3);
        if v > 0. && rng.uniform().max(1e-300).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
            return d * v;
        }
    }
}
