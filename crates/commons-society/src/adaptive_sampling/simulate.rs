//! Collection simulated: worlds in which samples can be drawn and models scored, and the
//! strategies that spend a budget there.

use std::path::PathBuf;

use commons_core::Seed;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::curve::{Point, PowerLaw, fit};
use super::genome::{ANCESTRIES, Cohort, Genome, GenomeConfig};
use super::plan::{Group, plan};
use super::plink::{self, PlinkConfig, Population};
use super::sampler::{AdaptiveSampler, SamplerConfig, Source};
use super::utility::{Goal, Utility};
use crate::logistic::Logistic;
use crate::tabular::{Encoding, People};
use crate::{Error, Result};

/// Sizes, as shares of what was collected, at which a curve is measured.
const SHARES: [f64; 5] = [0.2, 0.35, 0.5, 0.7, 1.];

/// Subsamples per size.
const SUBSAMPLES: u64 = 2;

/// How a budget is spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// Batch by batch, by curves fitted on the way (the method).
    Adaptive,
    /// The same number from every group.
    Equal,
    /// By shares of the population.
    Proportional,
    /// By curves measured in advance, with samples that cost nothing.
    Oracle,
    /// Batch by batch, always for the group that is worst off.
    Worst,
}

impl Strategy {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Adaptive, Self::Equal, Self::Proportional, Self::Oracle, Self::Worst];

    /// Name in measures and on the command line.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Adaptive => "adaptive",
            Self::Equal => "equal",
            Self::Proportional => "proportional",
            Self::Oracle => "oracle",
            Self::Worst => "worst",
        }
    }
}

/// What is simulated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum WorldConfig {
    /// Polygenic scores on generated genomes; performance is R².
    Prs(GenomeConfig),
    /// Polygenic scores on genotypes from PLINK files, with a simulated trait; performance is R².
    Plink(PlinkConfig),
    /// Income on Adult by sex and race; loss is log loss in nats.
    Adult {
        /// The file `adult.data`.
        path: PathBuf,
    },
    /// Recidivism on COMPAS by race; loss is log loss in nats.
    Compas {
        /// The file `compas-scores-two-years.csv`.
        path: PathBuf,
    },
    /// Generated people of two groups; loss is log loss in nats.
    Generated {
        /// How many.
        rows: usize,
    },
}

impl WorldConfig {
    /// Short name for measures.
    pub fn key(&self) -> &'static str {
        match self {
            Self::Prs(_) => "prs",
            Self::Plink(_) => "plink",
            Self::Adult { .. } => "adult",
            Self::Compas { .. } => "compas",
            Self::Generated { .. } => "generated",
        }
    }
}

/// A population to draw from: training samples in a fixed random order, a validation and a test
/// set per group that are never trained on and not paid for.
#[derive(Debug)]
pub struct World {
    /// Names of the groups.
    pub names: Vec<String>,
    /// Their shares of the population, which sum to 1.
    pub shares: Vec<f64>,
    /// Samples that can be collected, per group.
    pub available: Vec<u64>,
    kind: Kind,
    seed: Seed,
}

#[derive(Debug)]
enum Kind {
    Genomes {
        genome: Box<Genome>,
        train: Vec<Cohort>,
        validate: Vec<Cohort>,
        test: Vec<Cohort>,
    },
    Populations {
        populations: Vec<Population>,
        train: Vec<Vec<usize>>,
        validate: Vec<Vec<usize>>,
        test: Vec<Vec<usize>>,
    },
    Tabular {
        people: Box<People>,
        train: Vec<Vec<usize>>,
        validate: Vec<Vec<usize>>,
        test: Vec<Vec<usize>>,
    },
}

/// Rows kept for validation and for test, per group of a table.
const RESERVED: usize = 250;

impl World {
    /// Draws the population; up to `most` samples per group can be collected.
    ///
    /// # Errors
    /// When a file is missing or a setting out of range.
    pub fn new(config: &WorldConfig, most: u64, seed: Seed) -> Result<Self> {
        match config {
            WorldConfig::Prs(genome) => Self::genomes(genome, most, seed),
            WorldConfig::Plink(config) => Self::populations(config, seed),
            WorldConfig::Adult { path } => {
                let columns = [
                    "age",
                    "education-num",
                    "hours-per-week",
                    "capital-gain",
                    "capital-loss",
                    "marital-status",
                    "relationship",
                    "occupation",
                ];
                let sexes = People::adult(path, "sex", &columns, Encoding::OneHot)?;
                let races = People::adult(path, "race", &["age"], Encoding::OneHot)?;
                Ok(Self::table(crossed(sexes, &races), seed))
            }
            WorldConfig::Compas { path } => {
                let columns = [
                    "sex",
                    "age",
                    "juv_fel_count",
                    "juv_misd_count",
                    "juv_other_count",
                    "priors_count",
                    "c_charge_degree",
                ];
                Ok(Self::table(People::compas(path, "race", &columns, Encoding::OneHot)?, seed))
            }
            WorldConfig::Generated { rows } => {
                Ok(Self::table(People::generated(*rows, seed)?, seed))
            }
        }
    }

    fn genomes(config: &GenomeConfig, most: u64, seed: Seed) -> Result<Self> {
        let genome = Genome::new(config.clone(), seed)?;
        let all = |label: &str, n: u64| -> Vec<Cohort> {
            (0..ANCESTRIES.len()).map(|g| genome.cohort(g, label, 0..n)).collect()
        };
        let (train, validate, test) = (all("train", most), all("validate", 500), all("test", 1000));
        Ok(Self {
            names: ANCESTRIES.iter().map(|a| a.0.to_owned()).collect(),
            shares: ANCESTRIES.iter().map(|a| a.3).collect(),
            available: vec![most; ANCESTRIES.len()],
            kind: Kind::Genomes { genome: Box::new(genome), train, validate, test },
            seed,
        })
    }

    fn populations(config: &PlinkConfig, seed: Seed) -> Result<Self> {
        let populations = plink::populations(config, seed)?;
        let total: usize = populations.iter().map(|p| p.people).sum();
        let share = |p: &Population| match config.shares.get(&p.name) {
            Some(share) => *share,
            None if config.shares.is_empty() => p.people as f64 / total as f64,
            None => f64::NAN,
        };
        let shares: Vec<f64> = populations.iter().map(share).collect();
        let names: Vec<String> = populations.iter().map(|p| p.name.clone()).collect();
        if !shares.iter().all(|s| *s > 0.) || (shares.iter().sum::<f64>() - 1.).abs() > 1e-6 {
            let reason = format!("are not parts of 1 for each of {}", names.join(", "));
            return Err(Error::config("shares", reason));
        }
        let order =
            |(g, p): (usize, &Population)| seed.fork("order", g as u64).permutation(p.people);
        let order: Vec<Vec<usize>> = populations.iter().enumerate().map(order).collect();
        let held = config.held;
        let part = |from: usize, to: usize| -> Vec<Vec<usize>> {
            order.iter().map(|o| o[from..to.min(o.len())].to_vec()).collect()
        };
        let (validate, test, train) =
            (part(0, held), part(held, 2 * held), part(2 * held, usize::MAX));
        let available = train.iter().map(|t| t.len() as u64).collect();
        let kind = Kind::Populations { populations, train, validate, test };
        Ok(Self { names, shares, available, kind, seed })
    }

    /// Groups of too few rows are left out: nothing reliable could be said of them.
    fn table(people: People, seed: Seed) -> Self {
        let order = seed.fork("order", 0).permutation(people.len());
        let mut rows: Vec<Vec<usize>> = vec![Vec::new(); people.groups.len()];
        order.into_iter().for_each(|i| rows[people.group[i]].push(i));
        let kept: Vec<usize> = (0..rows.len()).filter(|&g| rows[g].len() >= 4 * RESERVED).collect();
        let total: usize = kept.iter().map(|&g| rows[g].len()).sum();
        let part = |from: usize, to: usize| -> Vec<Vec<usize>> {
            kept.iter().map(|&g| rows[g][from..to.min(rows[g].len())].to_vec()).collect()
        };
        let train = part(2 * RESERVED, usize::MAX);
        Self {
            names: kept.iter().map(|&g| people.groups[g].clone()).collect(),
            shares: kept.iter().map(|&g| rows[g].len() as f64 / total as f64).collect(),
            available: train.iter().map(|t| t.len() as u64).collect(),
            kind: Kind::Tabular {
                train,
                validate: part(0, RESERVED),
                test: part(RESERVED, 2 * RESERVED),
                people: Box::new(people),
            },
            seed,
        }
    }

    /// Loss of a model trained on the given ones of the collected samples of a group.
    fn loss(&self, group: usize, picked: &[usize], on_test: bool) -> f64 {
        match &self.kind {
            Kind::Genomes { genome, train, validate, test } => {
                let weights = genome.score(&train[group], picked);
                let held = if on_test { &test[group] } else { &validate[group] };
                1. - genome.r_squared(&weights, held)
            }
            Kind::Populations { populations, train, validate, test } => {
                let trained: Vec<usize> = picked.iter().map(|&i| train[group][i]).collect();
                let held = if on_test { &test[group] } else { &validate[group] };
                1. - populations[group].r_squared(&trained, held)
            }
            Kind::Tabular { people, train, validate, test } => {
                let rows: Vec<usize> = picked.iter().map(|&i| train[group][i]).collect();
                let model = Logistic::fit(&people.features, &people.label, &rows, 1.);
                let held = if on_test { &test[group] } else { &validate[group] };
                model.log_loss(&people.features, &people.label, held)
            }
        }
    }

    /// Test loss of a group's model after `n` samples.
    pub fn test_loss(&self, group: usize, n: u64) -> f64 {
        let picked: Vec<usize> = (0..n.min(self.available[group]) as usize).collect();
        self.loss(group, &picked, true)
    }

    /// Points of a group's curve from its first `n` samples: random subsamples of several sizes,
    /// scored on the validation set.
    pub fn curve(&self, group: usize, n: u64) -> Vec<Point> {
        let n = n.min(self.available[group]) as usize;
        let mut points = Vec::new();
        for (s, share) in SHARES.iter().enumerate() {
            let size = ((n as f64 * share).round() as usize).max(2);
            let repeats = if *share < 1. { SUBSAMPLES } else { 1 };
            for repeat in 0..repeats {
                let label = SUBSAMPLES * s as u64 + repeat;
                let seed = self.seed.fork("subsample", group as u64).fork("of", n as u64);
                let picked = seed.fork("size", label).rng().sample(n, size);
                points.push(Point { n: size as f64, loss: self.loss(group, &picked, false) });
            }
        }
        points
    }

    /// Spends the budget by a strategy; samples per group.
    ///
    /// # Errors
    /// As [`AdaptiveSampler::new`] and [`plan`].
    pub fn spend(&self, strategy: Strategy, config: &SamplerConfig) -> Result<Vec<u64>> {
        let count = self.names.len();
        if count < 2 {
            return Err(Error::config("groups", "fewer than two are large enough to simulate"));
        }
        let samples = match strategy {
            Strategy::Equal => vec![config.budget / count as f64; count],
            Strategy::Proportional => self.shares.iter().map(|s| s * config.budget).collect(),
            Strategy::Oracle => {
                let curves: Vec<PowerLaw> = (0..count)
                    .map(|g| {
                        Ok(fit(&self.curve(g, self.available[g].min(config.budget as u64)))?.curve)
                    })
                    .collect::<Result<_>>()?;
                plan(&self.groups(&curves), config.budget, config.utility, config.top)?.samples
            }
            Strategy::Adaptive => return self.adapt(config),
            Strategy::Worst => return self.worst_first(config),
        };
        let whole =
            samples.iter().zip(&self.available).map(|(n, a)| (n.round() as u64).clamp(2, *a));
        Ok(whole.collect())
    }

    fn groups(&self, curves: &[PowerLaw]) -> Vec<Group> {
        let one = |(name, curve): (&String, &PowerLaw)| Group {
            name: name.clone(),
            cost: 1.,
            owned: 0.,
            weight: 1.,
            curve: *curve,
        };
        self.names.iter().zip(curves).map(one).collect()
    }

    fn adapt(&self, config: &SamplerConfig) -> Result<Vec<u64>> {
        let source = |name: &String| Source { name: name.clone(), cost: 1., weight: 1. };
        let mut sampler =
            AdaptiveSampler::new(config.clone(), self.names.iter().map(source).collect())?;
        while let Some(batch) = sampler.next_batch()? {
            let have = sampler.collected()[batch.group];
            let size = batch.size.min(self.available[batch.group].saturating_sub(have));
            if size == 0 {
                // The group is used up; the rest of the budget stays unspent.
                break;
            }
            sampler.collect(batch.group, size)?;
            sampler.observe(batch.group, &self.curve(batch.group, have + size))?;
        }
        Ok(sampler.collected())
    }

    fn worst_first(&self, config: &SamplerConfig) -> Result<Vec<u64>> {
        let mut n = vec![config.warm_up; self.names.len()];
        let loss = |g: usize, n: u64| {
            let picked: Vec<usize> = (0..n as usize).collect();
            self.loss(g, &picked, false)
        };
        let mut losses: Vec<f64> = (0..n.len()).map(|g| loss(g, n[g])).collect();
        while (n.iter().sum::<u64>() + config.batch) as f64 <= config.budget {
            let open = (0..n.len()).filter(|&g| n[g] + config.batch <= self.available[g]);
            let Some(g) = open.max_by(|&a, &b| losses[a].total_cmp(&losses[b])) else { break };
            n[g] += config.batch;
            losses[g] = loss(g, n[g]);
        }
        Ok(n)
    }

    /// Test losses of an allocation.
    pub fn losses(&self, samples: &[u64]) -> Vec<f64> {
        samples.iter().enumerate().map(|(g, &n)| self.test_loss(g, n)).collect()
    }
}

/// Utility of losses with equal weights.
pub fn utility(goal: Goal, top: f64, losses: &[f64]) -> f64 {
    let performance: Vec<f64> = losses.iter().map(|l| top - l).collect();
    let weights = vec![1. / losses.len() as f64; losses.len()];
    goal.value(&performance, &weights)
}

/// People grouped by the first grouping and the two largest groups of the second.
fn crossed(mut people: People, other: &People) -> People {
    let second = other.groups.len();
    let names =
        people.groups.iter().flat_map(|a| other.groups.iter().map(move |b| format!("{a} {b}")));
    let names: Vec<String> = names.collect();
    people.group.iter_mut().zip(&other.group).for_each(|(g, o)| *g = *g * second + o);
    people.groups = names;
    people
}

/// The mean of a Gaussian in each of several groups, to be estimated: the case in which rates are
/// variances. Returns samples per group.
///
/// # Errors
/// As [`AdaptiveSampler::new`].
pub fn gaussian(deviations: &[f64], config: &SamplerConfig, seed: Seed) -> Result<Vec<u64>> {
    let source = |i: usize| Source { name: format!("group {i}"), cost: 1., weight: 1. };
    let groups = (0..deviations.len()).map(source).collect();
    let mut sampler = AdaptiveSampler::new(config.clone(), groups)?;
    let mut rngs: Vec<_> =
        (0..deviations.len()).map(|g| seed.fork("group", g as u64).rng()).collect();
    while let Some(batch) = sampler.next_batch()? {
        let draw = |_| deviations[batch.group] * rngs[batch.group].normal();
        let values: Vec<f64> = (0..batch.size).map(draw).collect();
        sampler.observe_values(batch.group, &values)?;
    }
    Ok(sampler.collected())
}
