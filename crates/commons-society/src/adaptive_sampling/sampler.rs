//! Collecting batch by batch while the curves are learnt from what has come in.

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::curve::{EXPONENTS, Fit, LearningCurve, Point, PowerLaw, fit_with};
use super::plan::{Group, check, plan, worth};
use super::utility::Goal;
use crate::{Error, Result};

/// Says in the file what it is.
const FORMAT: &str = "commons-allocate-state-1";

/// Longest state that is read, bytes.
const LIMIT: u64 = 1 << 26;

/// A curve's point counts as this many when exponents are pulled together.
const SHRINKAGE: f64 = 2.;

/// Variance below which a group is not believed to be exact.
const VARIANCE_FLOOR: f64 = 1e-6;

/// How the next batch is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// Plan the whole budget anew, take a batch for the group that is furthest behind its plan.
    #[default]
    Replan,
    /// The group where a batch raises utility most per cost.
    Greedy,
}

/// What is known in advance of a group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Its name.
    pub name: String,
    /// Cost of a sample.
    pub cost: f64,
    /// Weight in the utility.
    pub weight: f64,
}

/// Options of sequential collection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SamplerConfig {
    /// What is to be made large.
    pub utility: Goal,
    /// What all samples may cost.
    pub budget: f64,
    /// Samples per group before curves are looked at.
    pub warm_up: u64,
    /// Samples of a batch.
    pub batch: u64,
    /// Performance is this less the loss.
    pub top: f64,
    /// How the next batch is chosen.
    pub rule: Rule,
}

impl Default for SamplerConfig {
    fn default() -> Self {
        Self {
            utility: Goal::Utilitarian,
            budget: 1000.,
            warm_up: 50,
            batch: 50,
            top: 1.,
            rule: Rule::Replan,
        }
    }
}

/// What was measured of a group.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    /// Samples collected.
    collected: u64,
    /// Points of its learning curve.
    points: Vec<Point>,
    /// Values seen, their mean and sum of squared deviations, where a mean is estimated.
    values: (u64, f64, f64),
}

/// The next batch.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Batch {
    /// Index of the group.
    pub group: usize,
    /// Its name.
    pub name: String,
    /// Samples to collect.
    pub size: u64,
    /// Why: `warm-up`, or `plan` once curves are known.
    pub reason: &'static str,
    /// The curves it rests on, group by group; `null` while there are none.
    pub curves: Option<Vec<PowerLaw>>,
}

/// Sequential collection; its state is constant but for the points of the curves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdaptiveSampler {
    format: String,
    /// Options.
    pub config: SamplerConfig,
    /// Groups.
    pub groups: Vec<Source>,
    records: Vec<Record>,
}

impl AdaptiveSampler {
    /// Nothing collected yet.
    ///
    /// # Errors
    /// When an option is out of range, or the budget does not pay the warm-up.
    pub fn new(config: SamplerConfig, groups: Vec<Source>) -> Result<Self> {
        let records = vec![Record::default(); groups.len()];
        let sampler = Self { format: FORMAT.to_owned(), config, groups, records };
        sampler.validate()?;
        Ok(sampler)
    }

    fn validate(&self) -> Result<()> {
        let flat = vec![PowerLaw { e: 0., a: 1., b: 1. }; self.groups.len()];
        check(&self.as_groups(&flat), self.config.budget)?;
        if self.config.batch == 0 || self.config.warm_up == 0 {
            return Err(Error::config("batch, warm_up", "are 1 or more"));
        }
        let least: f64 = self.groups.iter().map(|g| g.cost * self.config.warm_up as f64).sum();
        if self.config.budget < least {
            let reason = format!("{} does not pay the warm-up ({least})", self.config.budget);
            return Err(Error::config("budget", reason));
        }
        if !self.config.top.is_finite() {
            return Err(Error::config("top", "is not finite"));
        }
        Ok(())
    }

    fn as_groups(&self, curves: &[PowerLaw]) -> Vec<Group> {
        let one = |((source, record), curve): ((&Source, &Record), &PowerLaw)| Group {
            name: source.name.clone(),
            cost: source.cost,
            owned: record.collected as f64,
            weight: source.weight,
            curve: *curve,
        };
        self.groups.iter().zip(&self.records).zip(curves).map(one).collect()
    }

    /// Samples collected per group.
    pub fn collected(&self) -> Vec<u64> {
        self.records.iter().map(|r| r.collected).collect()
    }

    /// What they cost.
    pub fn spent(&self) -> f64 {
        self.groups.iter().zip(&self.records).map(|(g, r)| g.cost * r.collected as f64).sum()
    }

    /// Index of a group by name.
    ///
    /// # Errors
    /// Naming the groups there are.
    pub fn find(&self, name: &str) -> Result<usize> {
        self.groups.iter().position(|g| g.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.groups.iter().map(|g| g.name.as_str()).collect();
            Error::config(format!("group {name}"), format!("is not one of {}", names.join(", ")))
        })
    }

    /// `count` samples of `group` have come in.
    ///
    /// # Errors
    /// When there is no such group.
    pub fn collect(&mut self, group: usize, count: u64) -> Result<()> {
        self.record(group)?.collected += count;
        Ok(())
    }

    /// Takes in measured points of a group's curve, in place of those it had.
    ///
    /// # Errors
    /// When there is no such group or a point is not finite.
    pub fn observe(&mut self, group: usize, points: &[Point]) -> Result<()> {
        if let Some(p) =
            points.iter().find(|p| !(p.n >= 1. && p.n.is_finite() && p.loss.is_finite()))
        {
            let reason = format!("n = {}, loss = {} is no point of a curve", p.n, p.loss);
            return Err(Error::config(format!("group {group}"), reason));
        }
        self.record(group)?.points = points.to_vec();
        Ok(())
    }

    /// Takes in values of a group whose mean is to be estimated; they count as collected. The
    /// curve is then `σ̂²/n`.
    ///
    /// # Errors
    /// When there is no such group or a value is not finite.
    pub fn observe_values(&mut self, group: usize, values: &[f64]) -> Result<()> {
        if let Some(v) = values.iter().find(|v| !v.is_finite()) {
            return Err(Error::config(
                format!("group {group}"),
                format!("the value {v} is not finite"),
            ));
        }
        let record = self.record(group)?;
        record.collected += values.len() as u64;
        for &v in values {
            let (n, mean, squares) = &mut record.values;
            *n += 1;
            let before = v - *mean;
            *mean += before / *n as f64;
            *squares += before * (v - *mean);
        }
        Ok(())
    }

    fn record(&mut self, group: usize) -> Result<&mut Record> {
        let count = self.records.len();
        self.records
            .get_mut(group)
            .ok_or_else(|| Error::config("group", format!("{group} is not one of {count}")))
    }

    /// The curves as far as they are known: from variances where values came in, else fitted, with
    /// exponents pulled towards the one all groups share.
    ///
    /// # Errors
    /// When a group has neither two values nor three sizes.
    pub fn curves(&self) -> Result<Vec<PowerLaw>> {
        let pooled = self.pooled_exponent();
        let one = |(source, record): (&Source, &Record)| {
            if record.values.0 > 1 {
                let variance = record.values.2 / (record.values.0 - 1) as f64;
                return Ok(PowerLaw { e: 0., a: variance.max(VARIANCE_FLOOR), b: 1. });
            }
            let prior = pooled.map(|b| (b, SHRINKAGE));
            let fit: Fit = fit_with(&record.points, prior)
                .map_err(|e| Error::config(format!("group {}", source.name), e.to_string()))?;
            Ok(fit.curve)
        };
        self.groups.iter().zip(&self.records).map(one).collect()
    }

    fn pooled_exponent(&self) -> Option<f64> {
        let fits = self.records.iter().filter_map(|r| fit_with(&r.points, None).ok());
        let logs: Vec<f64> = fits.filter(|f| !f.at_bound).map(|f| f.curve.b.ln()).collect();
        let mean = logs.iter().sum::<f64>() / logs.len().max(1) as f64;
        (!logs.is_empty()).then(|| mean.exp().clamp(EXPONENTS.0, EXPONENTS.1))
    }

    /// The next batch; `None` when the budget is spent or nothing raises the utility.
    ///
    /// # Errors
    /// When curves cannot be made of what was observed.
    pub fn next_batch(&self) -> Result<Option<Batch>> {
        let left = self.config.budget - self.spent();
        let affordable = |g: usize| (left / self.groups[g].cost + 1e-9).floor() as u64;
        let cold =
            (0..self.groups.len()).find(|&g| self.records[g].collected < self.config.warm_up);
        let batch = |group: usize, size: u64, reason, curves| {
            let size = size.min(affordable(group));
            let name = self.groups[group].name.clone();
            (size > 0).then_some(Batch { group, name, size, reason, curves })
        };
        if let Some(group) = cold {
            let size = self.config.warm_up - self.records[group].collected;
            return Ok(batch(group, size, "warm-up", None));
        }
        let open: Vec<usize> = (0..self.groups.len()).filter(|&g| affordable(g) > 0).collect();
        if open.is_empty() {
            return Ok(None);
        }
        let curves = self.curves()?;
        let groups = self.as_groups(&curves);
        let (goal, size) = (self.config.utility, self.config.batch);
        let chosen = match self.config.rule {
            Rule::Replan => {
                let plan = plan(&groups, self.config.budget, goal, self.config.top)?;
                let behind = |g: usize| groups[g].cost * (plan.samples[g] - groups[g].owned);
                open.into_iter().max_by(|&a, &b| behind(a).total_cmp(&behind(b)))
            }
            Rule::Greedy => {
                let weights = check(&groups, self.config.budget)?;
                let now: Vec<f64> = groups.iter().map(|g| g.owned).collect();
                let value = worth(&groups, &weights, &now, goal, self.config.top);
                let gain = |g: usize| {
                    let m = size.min(affordable(g)) as f64;
                    let mut more = now.clone();
                    more[g] += m;
                    let after = worth(&groups, &weights, &more, goal, self.config.top);
                    (after - value) / (m * groups[g].cost)
                };
                let best =
                    open.into_iter().map(|g| (g, gain(g))).max_by(|a, b| a.1.total_cmp(&b.1));
                best.filter(|(_, gain)| *gain > 0.).map(|(g, _)| g)
            }
        };
        Ok(chosen.and_then(|g| batch(g, size, "plan", Some(curves))))
    }

    /// Expected losses if collection ended now.
    ///
    /// # Errors
    /// As [`AdaptiveSampler::curves`].
    pub fn losses(&self) -> Result<Vec<f64>> {
        let curves = self.curves()?;
        Ok(curves.iter().zip(&self.records).map(|(c, r)| c.loss(r.collected as f64)).collect())
    }

    /// Writes the state, whole or not at all.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        Ok(commons_core::fs::write_json_atomic(path, self)?)
    }

    /// Reads a state.
    ///
    /// # Errors
    /// When the file cannot be read, is no state, or contradicts itself.
    pub fn load(path: &Path) -> Result<Self> {
        let text = commons_core::fs::read_text(path, LIMIT)?;
        let wrong = |field: &str, problem: String| {
            let remedy = "begin again with `commons allocate next --groups`, or use a whole state";
            Error::from(commons_core::Error::file(path, field, problem, remedy))
        };
        let state: Self = serde_json::from_str(&text)
            .map_err(|e| wrong(&format!("line {}", e.line()), format!("is no state: {e}")))?;
        if state.format != FORMAT {
            return Err(wrong("format", format!("is {:?}, not {FORMAT:?}", state.format)));
        }
        if state.records.len() != state.groups.len() {
            let problem = format!("are {}, the groups {}", state.records.len(), state.groups.len());
            return Err(wrong("records", problem));
        }
        state.validate().map_err(|e| wrong("config", e.to_string()))?;
        for (i, record) in state.records.iter().enumerate() {
            let points =
                record.points.iter().all(|p| p.n >= 1. && p.n.is_finite() && p.loss.is_finite());
            let (n, mean, squares) = record.values;
            if !points
                || !mean.is_finite()
                || !(squares >= 0. && squares.is_finite())
                || n > record.collected
            {
                return Err(wrong(&format!("records[{i}]"), "holds what no group can have".into()));
            }
        }
        Ok(state)
    }
}
