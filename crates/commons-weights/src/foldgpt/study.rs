//! The measurements behind the claims: rankings of blocks to delete, and sharing against deleting
//! at equal stored parameters, before and after healing.

use std::time::Duration;

use commons_core::Seed;
use commons_core::evidence::Run;
use commons_nn::model::Decoder;
use commons_nn::train::Outcome;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{BlockGates, GateConfig, GroupConfig, GroupPlan, Norms, Similarity, Tune};
use crate::baseline::drop_layers;
use crate::baseline::removal::{self, Probe};
use crate::heal::{HealConfig, HealRun, heal};
use crate::material::Material;
use crate::{Error, Result};

/// What is compared, and on how much text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Study {
    /// Shares of the blocks deleted, rising.
    pub rates: Vec<f64>,
    /// Draws of random removal for each rate.
    pub random_draws: usize,
    /// Training of the gates, once for each rate and seed.
    pub gates: GateConfig,
    /// Tokens of a calibration window.
    pub seq_len: usize,
    /// Tokens of the similarity analysis.
    pub analysis_tokens: usize,
    /// Windows on which the greedy baseline scores a candidate.
    pub probe_windows: usize,
    /// Blocks that every compressed model stores fewer of: so many are deleted, or so many pairs
    /// share, or half of each. Must be even.
    pub blocks_saved: usize,
    /// First and last block that may share, counted after removal.
    pub within: Option<(usize, usize)>,
    /// The healing. Its `ce_coef` alone is the arm without a teacher.
    pub heal: HealConfig,
    /// Tokens of context while scoring.
    pub context: usize,
    /// Tokens scored per measurement.
    pub eval_tokens: usize,
}

impl Default for Study {
    fn default() -> Self {
        Self {
            rates: vec![0.1, 0.2, 0.3],
            random_draws: 3,
            gates: GateConfig::default(),
            seq_len: 512,
            analysis_tokens: 32_768,
            probe_windows: 2,
            blocks_saved: 4,
            within: None,
            heal: HealConfig { tail_coef: 1., tail_layers: 3, ..HealConfig::default() },
            context: 512,
            eval_tokens: 4096,
        }
    }
}

/// How the blocks of a removal were chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ranking {
    /// By lot.
    Random,
    /// Evenly over the depth.
    Uniform,
    /// Lowest block influence.
    Influence,
    /// One by one by perplexity.
    Greedy,
    /// Learned gates.
    Gates,
}

impl Ranking {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Random, Self::Uniform, Self::Influence, Self::Greedy, Self::Gates];

    /// Name in measures and tables.
    pub fn key(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Uniform => "uniform",
            Self::Influence => "influence",
            Self::Greedy => "greedy",
            Self::Gates => "gates",
        }
    }
}

/// One removal, scored.
#[derive(Debug, Clone, PartialEq)]
pub struct Removal {
    /// Who chose.
    pub ranking: Ranking,
    /// Share of blocks deleted.
    pub rate: f64,
    /// Deleted blocks, in increasing order; the last draw's for random removal.
    pub removed: Vec<usize>,
    /// Loss on the test text, nats per token; the mean over draws for random removal.
    pub loss: f64,
}

/// Removals of all rates and rankings, and the gates by rate.
#[derive(Debug)]
pub struct Removals {
    /// By rate, then ranking.
    pub points: Vec<Removal>,
    /// Learned gates of every rate.
    pub gates: Vec<BlockGates>,
}

impl Study {
    /// Checks counts.
    ///
    /// # Errors
    /// Naming the field.
    pub fn check(&self) -> Result<()> {
        if self.rates.is_empty() || self.random_draws == 0 {
            return Err(Error::config("rates", "and random_draws must not be empty or zero"));
        }
        if self.blocks_saved == 0 || !self.blocks_saved.is_multiple_of(2) {
            let found = self.blocks_saved;
            return Err(Error::config("blocks_saved", format!("{found} is not an even number")));
        }
        self.gates.check()?;
        self.heal.check()
    }

    /// Similarity of all depths on the training text.
    ///
    /// # Errors
    /// When the text is too short or the run is stopped.
    pub fn similarity(
        &self,
        model: &Decoder,
        material: &Material,
        run: &Run,
    ) -> Result<Similarity> {
        let tokens = &material.train[..material.train.len().min(self.analysis_tokens)];
        let progress = run.progress();
        let mut task = progress.task("similarity", None);
        Similarity::measure(model, tokens, self.seq_len, |done, of| {
            task.update(done as u64, &format!("window {done} of {of}"));
            Ok(run.check_stop()?)
        })
    }

    /// Loss of `model` on the test text, nats per token.
    ///
    /// # Errors
    /// When the text is too short.
    pub fn loss(&self, model: &Decoder, material: &Material) -> Result<f64> {
        Ok(material.score(model, self.context, self.eval_tokens)?.loss)
    }

    fn loss_without(&self, material: &Material, removed: &[usize]) -> Result<f64> {
        let layers = material.model.config.num_hidden_layers;
        let kept: Vec<usize> = (0..layers).filter(|l| !removed.contains(l)).collect();
        self.loss(&drop_layers(&material.model, &kept)?, material)
    }

    /// Deletes blocks at every rate by every ranking.
    ///
    /// # Errors
    /// When a rate is impossible, the text is too short or the run is stopped.
    pub fn removals(
        &self,
        material: &Material,
        similarity: &Similarity,
        seed: Seed,
        run: &Run,
    ) -> Result<Removals> {
        let layers = material.model.config.num_hidden_layers;
        let counts: Vec<usize> =
            self.rates.iter().map(|r| (r * layers as f64 + 1e-9).floor() as usize).collect();
        let probe = self.probe(material)?;
        let most = counts.iter().copied().max().unwrap_or(0);
        let mut model = material.model.clone();
        model.bank.freeze(|_| true);
        let progress = run.progress();
        let mut task = progress.task("greedy ranking", Some(most as u64));
        let greedy = removal::greedy(&model, &probe, most, |done, candidates| {
            task.update(done as u64, &format!("{candidates} candidates tried"));
            Ok(run.check_stop()?)
        })?;
        drop(task);
        let (mut points, mut gates) = (Vec::new(), Vec::new());
        for (&rate, &count) in self.rates.iter().zip(&counts) {
            let learned = self.learn(material, count, seed, run)?;
            for ranking in Ranking::ALL {
                let sets = match ranking {
                    Ranking::Random => (0..self.random_draws as u64)
                        .map(|draw| removal::random(layers, count, seed.fork("draw", draw)))
                        .collect::<Result<Vec<_>>>()?,
                    Ranking::Uniform => vec![removal::uniform(layers, count)?],
                    Ranking::Influence => {
                        vec![removal::least_important(&similarity.influence(), count)?]
                    }
                    Ranking::Greedy => vec![greedy[..count].to_vec()],
                    Ranking::Gates => vec![learned.lowest(count)?],
                };
                let mut loss = 0.;
                for set in &sets {
                    run.check_stop()?;
                    loss += self.loss_without(material, set)? / sets.len() as f64;
                }
                let mut removed = sets.last().cloned().unwrap_or_default();
                removed.sort_unstable();
                points.push(Removal { ranking, rate, removed, loss });
            }
            gates.push(learned);
        }
        Ok(Removals { points, gates })
    }

    fn probe(&self, material: &Material) -> Result<Probe> {
        Probe::new(&material.model, &material.train, self.seq_len, self.probe_windows)
    }

    fn learn(
        &self,
        material: &Material,
        count: usize,
        seed: Seed,
        run: &Run,
    ) -> Result<BlockGates> {
        let progress = run.progress();
        let mut task = progress.task("gates", Some(self.gates.steps as u64));
        let keep = material.model.config.num_hidden_layers - count;
        BlockGates::learn(&material.model, &material.train, keep, &self.gates, seed, |done, _| {
            task.update(done as u64, &format!("keeping {keep}"));
            Ok(run.check_stop()?)
        })
    }
}

/// A compressed model that is healed. All store the same number of block matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arm {
    /// Blocks deleted.
    Removed,
    /// Pairs share matrices, norms apart.
    Shared,
    /// The same without matching the last layers.
    SharedNoTail,
    /// The same without a teacher.
    SharedNoTeacher,
    /// Pairs share matrices and norms.
    SharedNorms,
    /// Half deleted, half shared.
    Both,
}

impl Arm {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Removed,
        Self::Shared,
        Self::SharedNoTail,
        Self::SharedNoTeacher,
        Self::SharedNorms,
        Self::Both,
    ];

    /// Name in measures and curves.
    pub fn key(self) -> &'static str {
        match self {
            Self::Removed => "removed",
            Self::Shared => "shared",
            Self::SharedNoTail => "shared_no_tail",
            Self::SharedNoTeacher => "shared_no_teacher",
            Self::SharedNorms => "shared_norms",
            Self::Both => "both",
        }
    }

    /// For tables.
    pub fn label(self) -> &'static str {
        match self {
            Self::Removed => "blocks deleted",
            Self::Shared => "pairs share, own norms",
            Self::SharedNoTail => "pairs share, own norms, no tail term",
            Self::SharedNoTeacher => "pairs share, own norms, no teacher",
            Self::SharedNorms => "pairs share, norms too",
            Self::Both => "half deleted, half shared",
        }
    }

    /// Blocks deleted and pairs formed to save `blocks` sets of matrices.
    fn split(self, blocks: usize) -> (usize, usize) {
        match self {
            Self::Removed => (blocks, 0),
            Self::Both => (blocks / 2, blocks / 2),
            _ => (0, blocks),
        }
    }

    fn norms(self) -> Norms {
        if self == Self::SharedNorms { Norms::Shared } else { Norms::Own }
    }

    fn healing(self, heal: &HealConfig) -> HealConfig {
        let mut heal = heal.clone();
        if matches!(self, Self::SharedNoTail | Self::SharedNoTeacher) {
            heal.tail_coef = 0.;
        }
        if self == Self::SharedNoTeacher {
            heal.kl_coef = 0.;
        }
        heal
    }
}

/// An arm before and after healing.
#[derive(Debug)]
pub struct Healing {
    /// Which one.
    pub arm: Arm,
    /// Parameters stored.
    pub stored: usize,
    /// Blocks a token passes.
    pub blocks: usize,
    /// Parameters a token multiplies.
    pub active: usize,
    /// Original blocks that were deleted.
    pub removed: Vec<usize>,
    /// Which of the rest share.
    pub groups: GroupPlan,
    /// Loss on the test text before healing, nats per token.
    pub before: f64,
    /// Loss on the test text after healing, nats per token.
    pub after: f64,
    /// Scored tokens per second.
    pub speed: f64,
}

impl Study {
    /// The model of an arm: deleted blocks, groups, and the model ready to be healed.
    fn build(
        &self,
        arm: Arm,
        material: &Material,
        similarity: &Similarity,
        gates: &BlockGates,
        run: &Run,
    ) -> Result<(Vec<usize>, GroupPlan, Decoder)> {
        let original = &material.model;
        let layers = original.config.num_hidden_layers;
        let (deleted, pairs) = arm.split(self.blocks_saved);
        let mut removed = gates.lowest(deleted)?;
        removed.sort_unstable();
        let kept: Vec<usize> = (0..layers).filter(|l| !removed.contains(l)).collect();
        let reduced = drop_layers(original, &kept)?;
        let groups = if pairs == 0 {
            GroupPlan::default()
        } else {
            let after = match deleted {
                0 => similarity.clone(),
                _ => self.similarity(&reduced, material, run)?,
            };
            let options =
                GroupConfig { count: pairs, within: self.within, ..GroupConfig::default() };
            let stored = original.bank.logical()?;
            GroupPlan::choose(&after, &after.influence(), &reduced.config, &options, stored)?
        };
        let model = groups.apply(reduced, arm.norms())?;
        let model = Tune::Blocks.prepare(model, &groups, run.seed())?;
        Ok((removed, groups, model))
    }

    /// Compresses, scores, heals and scores again. The curve of the loss is logged.
    ///
    /// # Errors
    /// When the study does not fit the model, or the run is stopped.
    pub fn heal(
        &self,
        arm: Arm,
        material: &Material,
        similarity: &Similarity,
        gates: &BlockGates,
        run: &mut Run,
    ) -> Result<Healing> {
        let (removed, groups, model) = self.build(arm, material, similarity, gates, run)?;
        let began = run.elapsed();
        let before = self.loss(&model, material)?;
        let took = run.elapsed().saturating_sub(began).max(Duration::from_micros(1));
        let mut teacher = material.model.clone();
        teacher.bank.freeze(|_| true);
        let config = arm.healing(&self.heal);
        let settings = HealRun { stop: run.stop().flag(), ..HealRun::default() };
        let progress = run.progress();
        let mut task = progress.task(arm.label(), Some(config.train.steps as u64));
        let mut logged = Ok(());
        let mut log = |step: u64, parts: &[(&'static str, f64)]| -> Result<()> {
            for (part, value) in parts {
                run.log(step, &format!("{}/{part}", arm.key()), *value)?;
            }
            Ok(())
        };
        let tokens = material.train.clone();
        let healed = heal(&model, Some(&teacher), tokens, &config, &settings, |report| {
            task.update(report.step as u64, &format!("loss {:.3}", report.loss));
            if logged.is_ok() {
                logged = log(report.step as u64, &report.parts);
            }
        })?;
        logged?;
        if healed.outcome == Outcome::Interrupted {
            return Err(Error::Interrupted);
        }
        let after = self.loss(&model, material)?;
        Ok(Healing {
            arm,
            stored: model.bank.stored(),
            blocks: model.config.num_hidden_layers,
            active: model.config.active_parameters(),
            removed,
            groups,
            before,
            after,
            speed: self.eval_tokens as f64 / took.as_secs_f64(),
        })
    }
}
