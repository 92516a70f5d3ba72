//! Genotypes of real or simulated people from PLINK files, with a simulated trait.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use commons_core::{Error as CoreError, Seed, stats};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::genome::squared_correlation;
use crate::linear::solve_spd;
use crate::{Error, Result};

/// Longest text file that is read, bytes.
const LIMIT: u64 = 1 << 28;

/// First bytes of a `.bed` file whose variants follow one another.
const MAGIC: [u8; 3] = [0x6c, 0x1b, 0x01];

/// People of a group beyond which the table of their kinship would not fit.
const MOST: usize = 20_000;

/// Genotypes and the trait simulated on them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PlinkConfig {
    /// Path of the `.bed`, `.bim` and `.fam` files without these endings. The first column of the
    /// `.fam` file, the family, names the population.
    pub path: PathBuf,
    /// Variants with an effect.
    pub causal: usize,
    /// Correlation of effects between populations.
    pub effect_correlation: f64,
    /// Share of the trait's variance that is genetic.
    pub heritability: f64,
    /// People per population kept for validation, and again for test.
    pub held: usize,
    /// Shares of the populations, for proportional sampling; those of the file if empty.
    #[serde(default)]
    pub shares: BTreeMap<String, f64>,
}

/// One population: what a polygenic score needs to know of its people.
#[derive(Debug)]
pub struct Population {
    /// Its name.
    pub name: String,
    /// Number of people.
    pub people: usize,
    /// `[people, people]`: products of standardised genotypes.
    kernel: Vec<f64>,
    /// The trait of each, variance 1.
    phenotype: Vec<f64>,
    /// `L (1 − h²)/h²`.
    penalty: f64,
}

/// Copies (0, 1, 2; NaN if not known) of one allele, variant by variant.
struct Genotypes {
    /// Population of each person.
    family: Vec<String>,
    /// `[variants][people]`
    copies: Vec<Vec<f32>>,
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

fn read(path: &Path) -> Result<Genotypes> {
    let text = |ending: &str| -> Result<String> {
        let path = with_ending(path, ending);
        if !path.is_file() {
            let remedy = "give PLINK files .bed, .bim and .fam by their common name; any genotypes \
                          with the population as family will do";
            return Err(CoreError::file(path, "", "is not there", remedy).into());
        }
        Ok(commons_core::fs::read_text(path, LIMIT)?)
    };
    let (fam, bim) = (text(".fam")?, text(".bim")?);
    let family = |(i, line): (usize, &str)| {
        line.split_whitespace().next().map(str::to_owned).ok_or_else(|| {
            let place = format!("line {}", i + 1);
            let remedy = "begin every line with the population";
            CoreError::file(with_ending(path, ".fam"), place, "is empty", remedy)
        })
    };
    let family = fam.lines().enumerate().map(family).collect::<Result<Vec<_>, _>>()?;
    let (people, variants) = (family.len(), bim.lines().count());
    let bed = with_ending(path, ".bed");
    let bytes = std::fs::read(&bed).map_err(CoreError::io("read", &bed))?;
    let width = people.div_ceil(4);
    if bytes.len() != MAGIC.len() + variants * width || bytes[..MAGIC.len()] != MAGIC {
        let problem = format!(
            "holds {} bytes; {variants} variants of {people} people, variant by variant, take {}",
            bytes.len(),
            MAGIC.len() + variants * width
        );
        let remedy = "write it again with `plink --make-bed`";
        return Err(CoreError::file(bed, "", problem, remedy).into());
    }
    let one = |byte: u8, i: usize| match byte >> (2 * (i % 4)) & 3 {
        0 => 2.,
        2 => 1.,
        3 => 0.,
        _ => f32::NAN,
    };
    let variant = |row: &[u8]| (0..people).map(|i| one(row[i / 4], i)).collect();
    let copies = bytes[MAGIC.len()..].chunks(width.max(1)).map(variant).collect();
    Ok(Genotypes { family, copies })
}

/// Reads the populations and simulates a trait.
///
/// # Errors
/// When a file is missing or damaged, or a setting out of range.
pub fn populations(config: &PlinkConfig, seed: Seed) -> Result<Vec<Population>> {
    let genotypes = read(&config.path)?;
    let variants = genotypes.copies.len();
    if config.causal == 0 || config.causal > variants {
        let reason = format!("{} is not 1 to {variants}, the variants there are", config.causal);
        return Err(Error::config("causal", reason));
    }
    for (name, v) in
        [("effect_correlation", config.effect_correlation), ("heritability", config.heritability)]
    {
        if !(v > 0. && v < 1.) {
            return Err(Error::config(name, format!("{v} is not between 0 and 1")));
        }
    }
    let mut rng = seed.fork("plink", 0).rng();
    let chosen = rng.sample(variants, config.causal);
    let shared: Vec<f64> = chosen.iter().map(|_| rng.normal()).collect();
    let mut names: Vec<&String> = genotypes.family.iter().collect();
    names.sort();
    names.dedup();
    let mut populations = Vec::with_capacity(names.len());
    for name in names {
        let people: Vec<usize> =
            (0..genotypes.family.len()).filter(|&i| genotypes.family[i] == *name).collect();
        if people.len() < 4 * config.held || people.len() > MOST {
            let reason = format!(
                "`{name}` has {} people; {} to {MOST} are needed with held = {}",
                people.len(),
                4 * config.held,
                config.held
            );
            return Err(Error::config("population", reason));
        }
        let rho = config.effect_correlation;
        let effects: Vec<f64> =
            shared.iter().map(|s| rho.sqrt() * s + (1. - rho).sqrt() * rng.normal()).collect();
        let rows = standardised(&genotypes.copies, &people);
        let value = |row: &Vec<f32>| {
            chosen.iter().zip(&effects).map(|(&v, e)| f64::from(row[v]) * e).sum::<f64>()
        };
        let values: Vec<f64> = rows.iter().map(value).collect();
        let (centre, spread) = (stats::mean(&values), stats::standard_deviation(&values));
        let h2 = config.heritability;
        let mut trait_of = |v: &f64| {
            h2.sqrt() * (v - centre) / spread.max(1e-12) + (1. - h2).sqrt() * rng.normal()
        };
        populations.push(Population {
            name: name.clone(),
            people: people.len(),
            phenotype: values.iter().map(&mut trait_of).collect(),
            kernel: kernel(&rows),
            penalty: variants as f64 * (1. - h2) / h2,
        });
    }
    Ok(populations)
}

/// `[people][variants]`, mean 0 and variance 1 over the people; 0 where nobody differs or nothing
/// is known.
fn standardised(copies: &[Vec<f32>], people: &[usize]) -> Vec<Vec<f32>> {
    let mut rows = vec![vec![0_f32; copies.len()]; people.len()];
    for (v, all) in copies.iter().enumerate() {
        let known: Vec<f64> =
            people.iter().map(|&i| f64::from(all[i])).filter(|c| c.is_finite()).collect();
        let (centre, spread) = match known.len() {
            0 | 1 => continue,
            _ => (stats::mean(&known), stats::standard_deviation(&known)),
        };
        if spread <= 0. {
            continue;
        }
        for (row, &i) in rows.iter_mut().zip(people) {
            let c = f64::from(all[i]);
            row[v] = if c.is_finite() { ((c - centre) / spread) as f32 } else { 0. };
        }
    }
    rows
}

fn kernel(rows: &[Vec<f32>]) -> Vec<f64> {
    const LANES: usize = 16;
    let dot = |a: &[f32], b: &[f32]| {
        let mut sums = [0_f32; LANES];
        let (x, y) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
        let rest: f32 = x.remainder().iter().zip(y.remainder()).map(|(a, b)| a * b).sum();
        for (x, y) in x.zip(y) {
            for i in 0..LANES {
                sums[i] += x[i] * y[i];
            }
        }
        f64::from(sums.iter().sum::<f32>() + rest)
    };
    let line = |a: &Vec<f32>| rows.iter().map(|b| dot(a, b)).collect::<Vec<f64>>();
    rows.par_iter().map(line).collect::<Vec<_>>().concat()
}

impl Population {
    /// R² in the people `held` of a polygenic score trained on `trained`: ridge regression (BLUP)
    /// on all variants with penalty `L(1 − h²)/h²`, in its dual form.
    pub fn r_squared(&self, trained: &[usize], held: &[usize]) -> f64 {
        let n = trained.len();
        let mut hessian = vec![0.; n * n];
        for (a, &i) in trained.iter().enumerate() {
            let row = &self.kernel[i * self.people..(i + 1) * self.people];
            for (slot, &j) in hessian[a * n..].iter_mut().zip(&trained[..=a]) {
                *slot = row[j];
            }
            hessian[a * n + a] += self.penalty;
        }
        let pick = |people: &[usize]| people.iter().map(|&i| self.phenotype[i]).collect::<Vec<_>>();
        let dual = solve_spd(&mut hessian, n, &pick(trained));
        let score = |&t: &usize| {
            let row = &self.kernel[t * self.people..(t + 1) * self.people];
            trained.iter().zip(&dual).map(|(&i, d)| row[i] * d).sum::<f64>()
        };
        squared_correlation(&held.iter().map(score).collect::<Vec<_>>(), &pick(held))
    }
}
