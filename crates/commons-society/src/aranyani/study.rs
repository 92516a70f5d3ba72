//! The method and its baselines on one stream, over a grid of λ.

use std::path::PathBuf;

use commons_core::Seed;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::baseline::{Hoeffding, Mlp};
use super::learner::{Constraint, FairForest, ForestConfig};
use super::prequential::{Prequential, Scores, decide};
use crate::tabular::{ADULT, Encoding, People};
use crate::{Error, Result};

/// Features of COMPAS.
const COMPAS: [&str; 10] = [
    "sex",
    "age",
    "age_cat",
    "race",
    "juv_fel_count",
    "decile_score",
    "juv_misd_count",
    "juv_other_count",
    "priors_count",
    "c_charge_degree",
];

/// The stream of a study.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Source {
    /// Generated people of two groups.
    Generated {
        /// How many.
        rows: usize,
    },
    /// The file `adult.data`, groups by sex.
    Adult {
        /// The file.
        path: PathBuf,
    },
    /// The file `compas-scores-two-years.csv`, white against all others.
    Compas {
        /// The file.
        path: PathBuf,
    },
}

impl Source {
    /// Short name for measures and plots.
    pub fn key(&self) -> &'static str {
        match self {
            Self::Generated { .. } => "generated",
            Self::Adult { .. } => "adult",
            Self::Compas { .. } => "compas",
        }
    }

    /// The people, standardised over the whole file, in its order.
    ///
    /// # Errors
    /// When a file is missing or is another.
    pub fn people(&self, seed: Seed) -> Result<People> {
        match self {
            Self::Generated { rows } => People::generated(*rows, seed),
            Self::Adult { path } => {
                People::adult(path, "sex", &ADULT[..ADULT.len() - 1], Encoding::Label)
            }
            Self::Compas { path } => {
                let mut people = People::compas(path, "race", &COMPAS, Encoding::Label)?;
                let white = people.groups.iter().position(|g| g == "Caucasian");
                people.group.iter_mut().for_each(|g| *g = usize::from(Some(*g) == white));
                people.groups = vec!["other".into(), "white".into()];
                Ok(people)
            }
        }
    }
}

/// What is compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Study {
    /// Streams.
    pub sources: Vec<Source>,
    /// Repeats, each with its own parameters at the start.
    pub repeats: usize,
    /// Values of λ of the curves.
    pub lambdas: Vec<f64>,
    /// Steps timed with a reservoir.
    pub reservoir_steps: usize,
    /// Instances per group in the reservoir.
    pub reservoir: usize,
    /// The forest; its λ is replaced.
    pub forest: ForestConfig,
}

impl Default for Study {
    fn default() -> Self {
        Self {
            sources: vec![Source::Generated { rows: 6000 }],
            repeats: 3,
            lambdas: vec![0., 0.1, 0.5, 1., 5.],
            reservoir_steps: 300,
            reservoir: 500,
            forest: ForestConfig::default(),
        }
    }
}

/// Who learns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Learner {
    /// The method.
    Aranyani,
    /// The constraint on the final decision.
    Leaf,
    /// A network.
    Mlp,
}

impl Learner {
    /// Those that have a λ.
    pub const ALL: [Self; 3] = [Self::Aranyani, Self::Leaf, Self::Mlp];

    /// Name in measures.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Aranyani => "aranyani",
            Self::Leaf => "leaf",
            Self::Mlp => "mlp",
        }
    }
}

/// Accuracy and demographic parity at the end of a stream.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Parameter of the curve: λ, or the share of majority.
    pub at: f64,
    /// Prequential accuracy.
    pub accuracy: f64,
    /// Demographic parity gap.
    pub dp: f64,
}

impl Point {
    fn new(at: f64, scores: Scores) -> Self {
        let number = |v: Option<f64>| v.unwrap_or(f64::NAN);
        Self { at, accuracy: number(scores.accuracy), dp: number(scores.dp) }
    }
}

impl Study {
    /// # Errors
    /// Naming the field.
    pub fn check(&self) -> Result<()> {
        self.forest.validate()?;
        if self.sources.is_empty() || self.repeats == 0 || self.lambdas.len() < 2 {
            return Err(Error::config(
                "study",
                "needs at least one source, one repeat and two values of lambda",
            ));
        }
        match self.lambdas.iter().find(|l| !l.is_finite() || **l < 0.) {
            Some(l) => Err(Error::config("lambdas", format!("{l} is not 0 or more"))),
            None => Ok(()),
        }
    }

    /// One pass of a learner over the stream. Decisions are returned as well.
    ///
    /// # Errors
    /// As [`FairForest::new`].
    pub fn pass(
        &self,
        learner: Learner,
        people: &People,
        lambda: f64,
        seed: Seed,
    ) -> Result<(Point, Vec<bool>)> {
        let constraint = if learner == Learner::Leaf { Constraint::Leaf } else { Constraint::Node };
        let config = ForestConfig { lambda, constraint, ..self.forest.clone() };
        let width = people.features.width();
        let mut scores = Prequential::new(config.groups, 2);
        let mut decisions = Vec::with_capacity(people.len());
        let mut forest = FairForest::new(config.clone(), width, seed)?;
        let mut mlp = Mlp::new(config, width, seed);
        for i in 0..people.len() {
            let (x, y, a) = (people.features.row(i), usize::from(people.label[i]), people.group[i]);
            let decided = match learner {
                Learner::Mlp => usize::from(mlp.learn(x, y, a) > 0.5),
                _ => decide(&forest.learn(x, y, a)?),
            };
            scores.record(a, y, decided);
            decisions.push(decided == 1);
        }
        Ok((Point::new(lambda, scores.scores()), decisions))
    }

    /// A Hoeffding tree on the stream.
    pub fn hoeffding(&self, people: &People) -> Point {
        let mut tree = Hoeffding::new(people.features.width());
        let decide =
            |i: usize| tree.learn(people.features.row(i), usize::from(people.label[i])) > 0.5;
        let decisions: Vec<bool> = (0..people.len()).map(decide).collect();
        Point::new(0., score(people, &decisions))
    }

    /// Decisions of an unconstrained learner, replaced with probability `share` by the majority
    /// label so far.
    pub fn majority(&self, people: &People, decisions: &[bool], share: f64, seed: Seed) -> Point {
        let mut rng = seed.fork("majority", (share * 1e6) as u64).rng();
        let (mut seen, mut positive) = (0u64, 0u64);
        let mix = |i: usize| {
            let majority = 2 * positive > seen;
            seen += 1;
            positive += u64::from(people.label[i]);
            if rng.chance(share) { majority } else { decisions[i] }
        };
        let mixed: Vec<bool> = (0..people.len()).map(mix).collect();
        Point::new(share, score(people, &mixed))
    }
}

fn score(people: &People, decisions: &[bool]) -> Scores {
    let mut scores = Prequential::new(2, 2);
    for (i, d) in decisions.iter().enumerate() {
        scores.record(people.group[i], usize::from(people.label[i]), usize::from(*d));
    }
    scores.scores()
}

/// The mean accuracy of a curve over demographic parities from 0 to `until`: at each, the best
/// accuracy of its points at most as unfair, where a curve that has none there counts with
/// `otherwise` (always the majority label, which is fair).
pub fn trade_off(curve: &[Point], until: f64, otherwise: f64) -> f64 {
    const STEPS: usize = 200;
    let best = |dp: f64| {
        let fair = curve.iter().filter(|p| p.dp <= dp).map(|p| p.accuracy);
        fair.fold(otherwise, f64::max)
    };
    (1..=STEPS).map(|k| best(until * k as f64 / STEPS as f64)).sum::<f64>() / STEPS as f64
}
