//! A stream's state on disk: everything needed to go on as if it had not stopped, in a size that
//! depends on the forest and not on the stream.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::learner::FairForest;
use super::prequential::Prequential;
use super::stream::{Column, Pipeline, StreamConfig};
use crate::{Error, Result};
use commons_core::Seed;

/// Says in the file what it is.
const FORMAT: &str = "commons-fair-stream-state-1";

/// Longest state that is read, bytes.
const LIMIT: u64 = 1 << 30;

/// Numbers as the hexadecimal of their bits: equal to the last bit, and of constant length.
pub(super) mod bits {
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(values: &[f64], s: S) -> Result<S::Ok, S::Error> {
        let text: String = values.iter().map(|v| format!("{:016x}", v.to_bits())).collect();
        s.serialize_str(&text)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<f64>, D::Error> {
        let text = String::deserialize(d)?;
        let wrong = || serde::de::Error::custom("is no hexadecimal of 16 digits per number");
        if !text.is_ascii() || text.len() % 16 != 0 {
            return Err(wrong());
        }
        let one = |at: usize| u64::from_str_radix(&text[at..at + 16], 16).map(f64::from_bits);
        (0..text.len()).step_by(16).map(|at| one(at).map_err(|_| wrong())).collect()
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    format: String,
    config: StreamConfig,
    seed: u64,
    columns: Vec<Column>,
    other: Option<String>,
    groups: Vec<String>,
    decisions: Prequential,
    steps: u64,
    #[serde(with = "bits")]
    splits: Vec<f64>,
    #[serde(with = "bits")]
    leaves: Vec<f64>,
    #[serde(with = "bits")]
    first_moments: Vec<f64>,
    #[serde(with = "bits")]
    second_moments: Vec<f64>,
    #[serde(with = "bits")]
    counts: Vec<f64>,
    #[serde(with = "bits")]
    sums: Vec<f64>,
    #[serde(with = "bits")]
    gradients: Vec<f64>,
}

impl Pipeline {
    /// Writes the state, whole or not at all.
    ///
    /// # Errors
    /// When nothing has been read yet, or the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let Some(learner) = &self.learner else {
            return Err(Error::config("state", "there is none before the first row"));
        };
        let state = State {
            format: FORMAT.to_owned(),
            config: self.config.clone(),
            seed: self.seed,
            columns: self.columns.clone(),
            other: self.other.clone(),
            groups: self.groups.clone(),
            decisions: self.decisions.clone(),
            steps: learner.adam.steps,
            splits: learner.forest.splits.clone(),
            leaves: learner.forest.leaves.clone(),
            first_moments: learner.adam.first.clone(),
            second_moments: learner.adam.second.clone(),
            counts: learner.statistics.counts.clone(),
            sums: learner.statistics.sums.clone(),
            gradients: learner.statistics.gradients.clone(),
        };
        Ok(commons_core::fs::write_json_atomic(path, &state)?)
    }

    /// Reads a state.
    ///
    /// # Errors
    /// When the file cannot be read, is no state, or contradicts itself, with the field.
    pub fn load(path: &Path) -> Result<Self> {
        let text = commons_core::fs::read_text(path, LIMIT)?;
        let wrong = |field: &str, problem: String| {
            let remedy = "begin again from the stream, or use a state that was saved whole";
            Error::from(commons_core::Error::file(path, field, problem, remedy))
        };
        let state: State = serde_json::from_str(&text).map_err(|e| {
            wrong(&format!("line {}", e.line()), format!("is no state of a stream: {e}"))
        })?;
        if state.format != FORMAT {
            return Err(wrong("format", format!("is {:?}, not {FORMAT:?}", state.format)));
        }
        let mut pipeline = Self::new(state.config, state.seed)
            .map_err(|e| wrong("config", format!("cannot be used: {e}")))?;
        let mut learner = FairForest::new(
            pipeline.config.forest.clone(),
            state.columns.len(),
            Seed::new(state.seed),
        )
        .map_err(|e| wrong("columns", format!("cannot be used: {e}")))?;
        let parts = [
            ("splits", &mut learner.forest.splits, state.splits),
            ("leaves", &mut learner.forest.leaves, state.leaves),
            ("first_moments", &mut learner.adam.first, state.first_moments),
            ("second_moments", &mut learner.adam.second, state.second_moments),
            ("counts", &mut learner.statistics.counts, state.counts),
            ("sums", &mut learner.statistics.sums, state.sums),
            ("gradients", &mut learner.statistics.gradients, state.gradients),
        ];
        for (field, place, values) in parts {
            if place.len() != values.len() {
                let problem = format!("holds {} numbers, not {}", values.len(), place.len());
                return Err(wrong(field, problem));
            }
            if let Some(i) = values.iter().position(|v| !v.is_finite()) {
                return Err(wrong(field, format!("number {i} is {}", values[i])));
            }
            *place = values;
        }
        for column in &state.columns {
            if column.moments.len() != 2 || !column.moments.iter().all(|m| m.is_finite()) {
                return Err(wrong("columns", format!("`{}` has no mean and spread", column.name)));
            }
        }
        if !state.decisions.fits(pipeline.config.forest.groups, 2) {
            return Err(wrong("decisions", "are not of this many groups and two classes".into()));
        }
        if state.groups.len() > pipeline.config.forest.groups {
            return Err(wrong("groups", format!("are {}, more than planned", state.groups.len())));
        }
        learner.adam.steps = state.steps;
        pipeline.learner = Some(learner);
        pipeline.columns = state.columns;
        pipeline.other = state.other;
        pipeline.groups = state.groups;
        pipeline.decisions = state.decisions;
        Ok(pipeline)
    }
}
