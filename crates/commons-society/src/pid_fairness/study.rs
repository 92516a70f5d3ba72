//! Federated averaging under three splits of the same people, and its audit.

use std::path::PathBuf;

use commons_core::Seed;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::counts::Counts;
use crate::logistic::Logistic;
use crate::tabular::{Encoding, People};
use crate::{Error, Result};

/// Columns of Adult that a model sees: race and sex are left out.
const FEATURES: [&str; 11] = [
    "age",
    "workclass",
    "education",
    "marital-status",
    "occupation",
    "relationship",
    "capital-gain",
    "capital-loss",
    "hours-per-week",
    "education-num",
    "native-country",
];

/// How people are spread over two clients (the paper's scenarios).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// By lot.
    Iid,
    /// The first client has most of one group and few of the other.
    Heterogeneity,
    /// The first client has the people whose group and label agree.
    Synergy,
}

impl Split {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Iid, Self::Heterogeneity, Self::Synergy];

    /// Its name in measures.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Iid => "iid",
            Self::Heterogeneity => "heterogeneity",
            Self::Synergy => "synergy",
        }
    }
}

/// What is trained, and on what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Study {
    /// The file `adult.data`; generated people without it.
    pub adult: Option<PathBuf>,
    /// People to generate.
    pub rows: usize,
    /// Repeats, each with its own split, order of batches and test set.
    pub repeats: usize,
    /// Share of a group that the first client has under heterogeneity; of the other, 1 − it.
    pub heterogeneity: f64,
    /// Share of people who change client after the split.
    pub swapped: f64,
    /// Share of people that are not trained on.
    pub test: f64,
    /// Rounds of averaging.
    pub rounds: usize,
    /// Passes over a client's people in a round.
    pub epochs: usize,
    /// People in a batch.
    pub batch: usize,
    /// Step size of Adam.
    pub learning_rate: f64,
    /// Points along each axis of the accuracy surface.
    pub grid: usize,
}

impl Default for Study {
    fn default() -> Self {
        Self {
            adult: None,
            rows: 4000,
            repeats: 3,
            heterogeneity: 0.92,
            swapped: 0.01,
            test: 0.3,
            rounds: 20,
            epochs: 2,
            batch: 1000,
            learning_rate: 0.01,
            grid: 8,
        }
    }
}

impl Study {
    /// # Errors
    /// Naming the field that is out of range.
    pub fn check(&self) -> Result<()> {
        for (name, share) in
            [("heterogeneity", self.heterogeneity), ("swapped", self.swapped), ("test", self.test)]
        {
            if !(0. ..1.).contains(&share) {
                return Err(Error::config(name, format!("{share} is not in 0..1")));
            }
        }
        for (name, n) in [
            ("rows", self.rows),
            ("repeats", self.repeats),
            ("rounds", self.rounds),
            ("batch", self.batch),
            ("grid", self.grid),
        ] {
            if n == 0 {
                return Err(Error::config(name, "is 0; use 1 or more"));
            }
        }
        Ok(())
    }

    /// The people.
    ///
    /// # Errors
    /// When the file is not there or not Adult.
    pub fn people(&self, seed: Seed) -> Result<People> {
        match &self.adult {
            Some(path) => People::adult(path, "sex", &FEATURES, Encoding::OneHot),
            None => People::generated(self.rows, seed),
        }
    }

    /// The client, 0 or 1, of each person.
    pub fn split(&self, people: &People, split: Split, seed: Seed) -> Vec<usize> {
        let mut rng = seed.fork("split", split as u64).rng();
        let last = people.groups.len().saturating_sub(1);
        let one = |i: usize| {
            let second = people.group[i] == last;
            let first_client = match split {
                Split::Iid => rng.chance(0.5),
                Split::Heterogeneity => {
                    rng.chance(if second { self.heterogeneity } else { 1. - self.heterogeneity })
                }
                Split::Synergy => second == people.label[i],
            };
            let swap = rng.chance(self.swapped);
            usize::from(first_client == swap)
        };
        (0..people.len()).map(one).collect()
    }

    /// Trains by federated averaging and predicts for the people that were held out. With
    /// `reweigh` every client weighs its people so that group and label are independent in it
    /// (Kamiran and Calders), a remedy at the clients.
    ///
    /// # Errors
    /// When a table cannot be made of the predictions.
    pub fn train(
        &self,
        people: &People,
        clients: &[usize],
        reweigh: bool,
        seed: Seed,
    ) -> Result<Counts> {
        let order = seed.fork("test", 0).permutation(people.len());
        let held_out = ((people.len() as f64) * self.test).round() as usize;
        let (test, train) =
            order.split_at(held_out.clamp(1, people.len().saturating_sub(1).max(1)));
        let members: Vec<Vec<usize>> =
            (0..2).map(|c| train.iter().copied().filter(|&i| clients[i] == c).collect()).collect();
        let mut weight = vec![1.; people.len()];
        if reweigh {
            members.iter().for_each(|rows| independent(people, rows, &mut weight));
        }
        let mut model = Logistic::zeros(people.features.width());
        for round in 0..self.rounds {
            let mut next = Logistic::zeros(people.features.width());
            for (c, rows) in members.iter().enumerate().filter(|(_, rows)| !rows.is_empty()) {
                let mut local = model.clone();
                for epoch in 0..self.epochs {
                    let at = (round * self.epochs + epoch) as u64;
                    let shuffled = seed.fork("round", 2 * at + c as u64).permutation(rows.len());
                    let order: Vec<usize> = shuffled.into_iter().map(|i| rows[i]).collect();
                    let (x, y) = (&people.features, &people.label);
                    local.train(x, y, &weight, &order, self.batch, self.learning_rate);
                }
                let share = rows.len() as f64 / train.len() as f64;
                next.weights.iter_mut().zip(&local.weights).for_each(|(n, l)| *n += share * l);
                next.intercept += share * local.intercept;
            }
            model = next;
        }
        self.table(people, clients, test, |i| model.score(people.features.row(i)) > 0.)
    }

    fn table(
        &self,
        people: &People,
        clients: &[usize],
        rows: &[usize],
        predict: impl Fn(usize) -> bool,
    ) -> Result<Counts> {
        let groups = people.groups.iter().map(|g| vec![g.clone()]).collect();
        let names = |n: usize| (0..n).map(|i| i.to_string()).collect::<Vec<_>>();
        let mut counts = Counts::empty(vec!["group".into()], groups, names(2), names(2))?;
        for &i in rows {
            let (y, p) = (usize::from(people.label[i]), usize::from(predict(i)));
            let at = counts.place(people.group[i], clients[i], y, p);
            counts.counts[at] += 1;
        }
        Ok(counts)
    }
}

/// Sets `weight = P(z)·P(y)/P(z, y)` for the given people.
fn independent(people: &People, rows: &[usize], weight: &mut [f64]) {
    let groups = people.groups.len();
    let mut counts = vec![[0f64; 2]; groups];
    rows.iter().for_each(|&i| counts[people.group[i]][usize::from(people.label[i])] += 1.);
    let total = rows.len() as f64;
    for &i in rows {
        let (z, y) = (people.group[i], usize::from(people.label[i]));
        let (group, label) =
            (counts[z][0] + counts[z][1], counts.iter().map(|c| c[y]).sum::<f64>());
        weight[i] = group * label / (total * counts[z][y]);
    }
}
