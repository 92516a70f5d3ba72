//! The record of a finished run.

use super::{Bound, Claim, Compare, Figure, Paper, Stamp, Verdict};
use crate::{
    error::{Error, Result},
    fs,
    machine::Machine,
    number,
    seed::Seed,
    stats::{Interval, Summary},
    table::{Table, Unit},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::Path};

/// The form of `result.json`; raised when an old reader would misunderstand a new file.
const FORMAT: u32 = 1;
const LARGEST_FILE: u64 = 16 << 20;

/// The content of `result.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunResult {
    /// Version of this form.
    pub format: u32,
    /// The method.
    pub slug: String,
    /// Title of its paper.
    pub title: String,
    /// The recipe, if one was named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipe: Option<String>,
    /// When the run began.
    pub date: Stamp,
    /// Version of the program.
    pub version: String,
    /// The seed of the run.
    pub seed: Seed,
    /// What it ran on.
    pub machine: Machine,
    /// From beginning to end.
    pub wall_seconds: f64,
    /// Most memory the process held, in bytes; 0 if unknown.
    pub peak_memory: u64,
    /// One entry per claim, in the order of the method.
    pub claims: Vec<ClaimResult>,
    /// Everything that was measured, by key.
    pub measures: BTreeMap<String, Measure>,
    /// Tables the experiment made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tables: Vec<Table>,
    /// Remarks of the experiment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// The resolved settings, as TOML.
    pub config: String,
}

/// Values of one measure, one per repeat.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measure {
    /// In the order they were recorded.
    #[serde(with = "number::list")]
    pub values: Vec<f64>,
    /// The same in brief.
    pub summary: Summary,
}

/// A claim and what the run says about it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClaimResult {
    /// Short name.
    pub id: String,
    /// The statement.
    pub sentence: String,
    /// The paper's own figure.
    pub paper: Figure,
    /// Key of the measure.
    pub metric: String,
    /// Mean of the measure; absent if the claim was not comparable and not measured.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "number::option")]
    pub measured: Option<f64>,
    /// The baseline of the same run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Baseline>,
    /// What is held against the bound.
    pub compare: Compare,
    /// Mean over the repeats of the number held against the bound.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "number::option")]
    pub compared: Option<f64>,
    /// 95 % t interval of that mean over the repeats, from two repeats on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Interval>,
    /// Number of repeats.
    pub repeats: usize,
    /// What it takes to hold.
    pub bound: Bound,
    /// Whether it does.
    pub verdict: Verdict,
    /// Whether the whole interval supports the verdict.
    pub settled: bool,
    /// Why it is not comparable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What a measure was compared with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Baseline {
    /// Key of the baseline measure.
    pub metric: String,
    /// Its mean.
    #[serde(with = "number")]
    pub value: f64,
}

impl ClaimResult {
    /// Judges a claim by the measures of a run. `reason` says why the run cannot be compared with
    /// the paper, if it cannot. On failure, the sentence names the measures that are missing.
    pub(super) fn judge(
        claim: &Claim,
        measures: &BTreeMap<String, Vec<f64>>,
        reason: Option<String>,
    ) -> Result<Self, String> {
        let values = |key: &str| measures.get(key).filter(|values| !values.is_empty());
        let measured = values(claim.metric);
        let baseline = claim.baseline.and_then(values);
        let mut result = Self {
            id: claim.id.to_owned(),
            sentence: claim.sentence.to_owned(),
            paper: claim.paper.clone(),
            metric: claim.metric.to_owned(),
            measured: measured.map(|values| crate::stats::mean(values)),
            baseline: claim.baseline.zip(baseline).map(|(metric, values)| Baseline {
                metric: metric.to_owned(),
                value: crate::stats::mean(values),
            }),
            compare: claim.compare,
            compared: None,
            interval: None,
            repeats: measured.map_or(0, Vec::len),
            bound: claim.bound,
            verdict: Verdict::NotComparable,
            settled: false,
            reason,
        };
        let compared = match (measured, claim.baseline, baseline) {
            (None, ..) => Err(format!("`{}` was not measured", claim.metric)),
            (_, Some(metric), None) => Err(format!("its baseline `{metric}` was not measured")),
            (_, None, _) if claim.compare != Compare::Value => {
                Err("it names no baseline to compare with".to_owned())
            }
            (Some(values), ..) => pair(claim, values, baseline),
        };
        match compared {
            Ok(compared) => {
                let summary = Summary::of(&compared).map_err(|error| error.to_string())?;
                result.compared = Some(summary.mean);
                result.interval = summary.interval;
                if result.reason.is_none() {
                    result.verdict = if claim.bound.admits(summary.mean) {
                        Verdict::Holds
                    } else {
                        Verdict::Fails
                    };
                    result.settled =
                        summary.interval.is_some_and(|interval| claim.bound.settles(interval));
                }
            }
            // Excused from evidence, but only with a reason.
            Err(_) if result.reason.is_some() => {}
            Err(missing) => return Err(missing),
        }
        Ok(result)
    }

    /// The bound in words and signs.
    pub fn requirement(&self) -> String {
        self.bound.requirement(self.compare)
    }

    fn check(&self) -> Result<(), (&'static str, String)> {
        if let Bound::Within { low, high } = self.bound
            && low > high
        {
            return Err(("bound", format!("goes from {low} down to {high}")));
        }
        if let Some(Interval { low, high, level }) = self.interval {
            if low > high {
                return Err(("interval", format!("goes from {low} down to {high}")));
            }
            if !(0.0..1.0).contains(&level) {
                return Err(("interval.level", format!("is {level}, not between 0 and 1")));
            }
        }
        let admitted = self.compared.map(|value| self.bound.admits(value));
        match (self.verdict, admitted) {
            (Verdict::NotComparable, _) if self.reason.is_none() => {
                Err(("verdict", "is not-comparable without a reason".to_owned()))
            }
            (Verdict::NotComparable, _)
            | (Verdict::Holds, Some(true))
            | (Verdict::Fails, Some(false)) => Ok(()),
            (verdict, None) => {
                Err(("verdict", format!("is \"{verdict}\" without a measured value")))
            }
            (verdict, Some(_)) => {
                let problem =
                    format!("is \"{verdict}\", which the numbers of the claim contradict");
                Err(("verdict", problem))
            }
        }
    }
}

/// The number held against the bound, repeat by repeat. A baseline measured once serves all.
fn pair(claim: &Claim, values: &[f64], baseline: Option<&Vec<f64>>) -> Result<Vec<f64>, String> {
    let Some(baseline) = baseline else {
        return Ok(values.to_vec());
    };
    if baseline.len() != 1 && baseline.len() != values.len() && claim.compare != Compare::Value {
        return Err(format!(
            "`{}` has {} values but its baseline {}",
            claim.metric,
            values.len(),
            baseline.len()
        ));
    }
    let pairs = values.iter().zip(baseline.iter().cycle());
    Ok(pairs.map(|(value, base)| claim.compare.apply(*value, *base)).collect())
}

/// What a [`RunResult`] is made of besides the claims.
pub(super) struct Record {
    pub(super) paper: Paper,
    pub(super) recipe: Option<String>,
    pub(super) date: Stamp,
    pub(super) seed: Seed,
    pub(super) wall_seconds: f64,
    pub(super) measures: BTreeMap<String, Vec<f64>>,
    pub(super) tables: Vec<Table>,
    pub(super) notes: Vec<String>,
    pub(super) config: String,
}

impl RunResult {
    pub(super) fn new(record: Record, claims: Vec<ClaimResult>) -> Result<Self> {
        let summarise = |(key, values): (String, Vec<f64>)| {
            let summary = Summary::of(&values)?;
            Ok((key, Measure { values, summary }))
        };
        Ok(Self {
            format: FORMAT,
            slug: record.paper.slug.to_owned(),
            title: record.paper.title.to_owned(),
            recipe: record.recipe,
            date: record.date,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            seed: record.seed,
            machine: Machine::detect(),
            wall_seconds: record.wall_seconds,
            peak_memory: crate::machine::peak_memory(),
            claims,
            measures: record.measures.into_iter().map(summarise).collect::<Result<_>>()?,
            tables: record.tables,
            notes: record.notes,
            config: record.config,
        })
    }

    /// Reads and checks a `result.json`.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read; [`Error::File`] naming the field, if it is not a result,
    /// is of another version, or contradicts itself (such as a verdict its own numbers refute).
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::parse(&fs::read_text(path, LARGEST_FILE)?).map_err(|(field, problem)| {
            let remedy = "run the recipe again to replace it";
            Error::file(path, field, problem, remedy)
        })
    }

    /// Reads and checks the text of a `result.json`; a failure names the field and the problem.
    pub(super) fn parse(text: &str) -> Result<Self, (String, String)> {
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        if let Ok(Version { format }) = serde_json::from_str(text)
            && format != FORMAT
        {
            let problem = format!("is {format}, but this program reads {FORMAT}");
            return Err(("format".to_owned(), problem));
        }
        let mut reader = serde_json::Deserializer::from_str(text);
        let result: Self = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
            let path = error.path().to_string();
            let field = if path == "." { String::new() } else { path };
            (field, error.into_inner().to_string())
        })?;
        reader.end().map_err(|error| (String::new(), error.to_string()))?;
        result.check()?;
        Ok(result)
    }

    fn check(&self) -> Result<(), (String, String)> {
        if !(self.wall_seconds >= 0.0 && self.wall_seconds.is_finite()) {
            return Err(("wall_seconds".to_owned(), format!("is {}", self.wall_seconds)));
        }
        for (index, claim) in self.claims.iter().enumerate() {
            claim
                .check()
                .map_err(|(field, problem)| (format!("claims[{index}].{field}"), problem))?;
            if self.claims[..index].iter().any(|earlier| earlier.id == claim.id) {
                let problem = format!("repeats {:?}", claim.id);
                return Err((format!("claims[{index}].id"), problem));
            }
        }
        for (key, measure) in &self.measures {
            if measure.values.is_empty() || measure.summary.n != measure.values.len() {
                let problem = format!(
                    "speaks of {} values, but there are {}",
                    measure.summary.n,
                    measure.values.len()
                );
                return Err((format!("measures.{key}.summary.n"), problem));
            }
        }
        Ok(())
    }

    /// Writes it as indented JSON, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        fs::write_json_atomic(path, self)
    }

    /// The claims that did not hold.
    pub fn failed(&self) -> impl Iterator<Item = &ClaimResult> {
        self.claims.iter().filter(|claim| claim.verdict == Verdict::Fails)
    }

    /// The claims as a table: what the paper says, what was measured, whether it holds.
    pub fn claim_table(&self) -> Table {
        let mut table = Table::new("Claims")
            .columns(["claim", "paper"])
            .column("measured", Unit::Plain)
            .column("baseline", Unit::Plain)
            .columns(["needed", "interval", "verdict"]);
        for claim in &self.claims {
            table.push(crate::cells![
                claim.id.as_str(),
                claim.paper.to_string(),
                claim.measured,
                claim.baseline.as_ref().map(|baseline| baseline.value),
                claim.requirement(),
                claim.interval.map(|interval| interval.to_string()),
                claim.verdict.to_string(),
            ]);
        }
        table
    }

    /// Every measure as a table: repeats, mean, standard deviation, interval.
    pub fn measure_table(&self) -> Table {
        let mut table =
            Table::new("Measures").columns(["measure", "repeats", "mean", "sd", "95 % interval"]);
        for (key, measure) in &self.measures {
            table.push(crate::cells![
                key.as_str(),
                measure.summary.n,
                measure.summary.mean,
                measure.summary.sd,
                measure.summary.interval.map(|interval| interval.to_string()),
            ]);
        }
        table
    }
}
