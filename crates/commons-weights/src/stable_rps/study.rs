//! The measurements behind the claims: accuracy over compression, the trajectory without
//! compression, scales of initialisation, and time.

use commons_core::Seed;
use commons_core::evidence::Run;
use commons_ops as ops;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::mlp::{Masks, Mlp, Training};
use super::pool::{Fill, Mapping, gradient_scaler, pool, scale_gradient};
use super::prune::{self, Score, apply, magnitude_of_kept};
use crate::images::{ImageSets, ImagesConfig};
use crate::{Error, Result};

/// What is trained and compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Study {
    /// Data sets, each trained on by itself.
    pub data: Vec<ImagesConfig>,
    /// Widths of the hidden layers.
    pub hidden: Vec<usize>,
    /// Steps of training.
    pub steps: usize,
    /// Images of a batch.
    pub batch_size: usize,
    /// Peak learning rate where none is chosen.
    pub learning_rate: f64,
    /// Peak learning rates from which every method takes, at each compression, the one that is most
    /// accurate on training images held out. None: `learning_rate` for all.
    pub learning_rates: Vec<f64>,
    /// Networks trained with each of these rates; their mean counts, for one network alone can be
    /// lucky at a rate at which most diverge.
    pub choice_seeds: u64,
    /// Training images held out for that choice.
    pub held_out: usize,
    /// Compressions, rising; 1 is the first.
    pub compressions: Vec<f64>,
    /// From here on compression counts as high.
    pub high: f64,
    /// Elements of a block of ROAST.
    pub roast_block: usize,
    /// Elements of a chunk of ROBE-Z.
    pub robe_block: usize,
    /// Compressions at which iterative pruning with rewinding (LTR) is run.
    pub rewinding: Vec<f64>,
    /// Scales `s` of `ψ ~ U(−s, s)` whose influence is shown.
    pub scales: Vec<f64>,
    /// Hidden widths of the network whose step is timed.
    pub timed_hidden: Vec<usize>,
    /// Steps timed, and compression of the timed network.
    pub timed: (usize, f64),
}

impl Default for Study {
    fn default() -> Self {
        Self {
            data: vec![ImagesConfig::default()],
            hidden: vec![256, 256],
            steps: 200,
            batch_size: 128,
            learning_rate: 0.05,
            learning_rates: Vec::new(),
            choice_seeds: 2,
            held_out: 500,
            compressions: vec![1., 10., 100.],
            high: 100.,
            roast_block: 64,
            robe_block: 16,
            rewinding: vec![10.],
            scales: vec![0.01, 0.1, 1.],
            timed_hidden: vec![1024, 1024],
            timed: (10, 8.),
        }
    }
}

/// What makes a network smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arm {
    /// STABLE-RPS.
    Stable,
    /// Blocks anywhere, gradient as it comes, one scale per tensor.
    Roast,
    /// Chunks anywhere, gradient as it comes.
    Robe,
    /// Weights removed once, before training.
    Pruned(Score),
    /// Narrower hidden layers.
    Small,
}

impl Arm {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Stable,
        Self::Roast,
        Self::Robe,
        Self::Pruned(Score::Random),
        Self::Pruned(Score::Magnitude),
        Self::Pruned(Score::Snip),
        Self::Pruned(Score::SynFlow),
        Self::Pruned(Score::Grasp),
        Self::Small,
    ];

    /// Name in measures and tables.
    pub fn key(self) -> &'static str {
        match self {
            Self::Stable => "stable",
            Self::Roast => "roast",
            Self::Robe => "robe",
            Self::Pruned(Score::Random) => "rand",
            Self::Pruned(Score::Magnitude) => "mag",
            Self::Pruned(Score::Snip) => "snip",
            Self::Pruned(Score::SynFlow) => "synflow",
            Self::Pruned(Score::Grasp) => "grasp",
            Self::Small => "small",
        }
    }
}

/// Scale of `ψ` where it is not what is studied; the release takes 0.04 to 0.05.
const SCALE: f32 = 0.05;

/// A network trained once.
#[derive(Debug, Clone, Copy)]
pub struct Trained {
    /// Accuracy on the test images.
    pub accuracy: f64,
    /// Parameters stored (weights kept, for pruning), biases included.
    pub stored: usize,
    /// Matrices of which nothing was kept.
    pub collapsed: usize,
}

/// Data, seed and run of one repeat.
pub struct Repeat<'a> {
    /// Images.
    pub sets: &'a ImageSets,
    /// Seed of everything.
    pub seed: Seed,
    /// Asked whether to stop.
    pub run: &'a Run,
}

impl Study {
    /// Checks counts.
    ///
    /// # Errors
    /// Naming the field.
    pub fn check(&self) -> Result<()> {
        let rising = self.compressions.windows(2).all(|w| w[0] < w[1]);
        if self.compressions.first() != Some(&1.) || !rising {
            return Err(Error::config("compressions", "must rise from 1"));
        }
        if !self.compressions.iter().any(|&c| c >= self.high) {
            return Err(Error::config("high", "no compression is that high"));
        }
        if let Some(c) = self.rewinding.iter().find(|c| !self.compressions.contains(c)) {
            return Err(Error::config("rewinding", format!("{c} is not among compressions")));
        }
        if self.choice_seeds == 0 {
            return Err(Error::config("choice_seeds", "must be at least 1"));
        }
        let tried = self.learning_rates.iter().map(|&rate| ("learning_rates", rate));
        let mut rates = tried.chain([("learning_rate", self.learning_rate)]);
        if let Some((field, rate)) = rates.find(|(_, rate)| !(rate.is_finite() && *rate > 0.)) {
            return Err(Error::config(field, format!("{rate} is no positive number")));
        }
        if self.data.is_empty() || self.steps == 0 || self.batch_size == 0 {
            return Err(Error::config("data", "steps or batch_size is empty or zero"));
        }
        if let Some(s) = self.scales.iter().find(|s| !(s.is_finite() && **s > 0.)) {
            return Err(Error::config("scales", format!("{s} is no positive number")));
        }
        if self.timed.0 == 0 || !(self.timed.1.is_finite() && self.timed.1 >= 1.) {
            let why = "takes a number of steps above 0 and a compression of at least 1";
            return Err(Error::config("timed", why));
        }
        Ok(())
    }

    /// The study with another peak rate.
    pub fn at_rate(&self, rate: f64) -> Self {
        Self { learning_rate: rate, ..self.clone() }
    }

    /// The peak rate with which `accuracy(study)` is highest; of equals, the first.
    ///
    /// # Errors
    /// Those of `accuracy`.
    pub fn best_rate(&self, mut accuracy: impl FnMut(&Self) -> Result<f64>) -> Result<f64> {
        let mut best = (self.learning_rate, f64::NEG_INFINITY);
        for &rate in &self.learning_rates {
            let reached = accuracy(&self.at_rate(rate))?;
            if reached > best.1 {
                best = (rate, reached);
            }
        }
        Ok(best.0)
    }

    fn widths(&self, sets: &ImageSets, hidden: &[usize]) -> Vec<usize> {
        let input = sets.train.channels * sets.train.height * sets.train.width;
        [input].into_iter().chain(hidden.iter().copied()).chain([sets.classes]).collect()
    }

    fn dense(&self, at: &Repeat<'_>) -> Result<Mlp> {
        Mlp::init(&self.widths(at.sets, &self.hidden), at.seed.fork("init", 0))
    }

    fn training<'a>(&self, at: &Repeat<'a>, stable: bool) -> Training<'a> {
        Training {
            sets: at.sets,
            steps: self.steps,
            batch_size: self.batch_size,
            rate: self.learning_rate,
            seed: at.seed.fork("order", 0),
            stable,
        }
    }

    /// The uncompressed network.
    ///
    /// # Errors
    /// When the run is stopped.
    pub fn full(&self, at: &Repeat<'_>) -> Result<Trained> {
        self.finish(at, &self.dense(at)?, None, false)
    }

    /// Compresses by `arm` and trains.
    ///
    /// # Errors
    /// When the compression is impossible or the run is stopped.
    pub fn arm(&self, arm: Arm, compression: f64, at: &Repeat<'_>) -> Result<Trained> {
        let mut mlp = self.dense(at)?;
        let mapping = match arm {
            Arm::Stable => Some(Mapping::Fold),
            Arm::Roast => Some(Mapping::Blocks { block: self.roast_block }),
            Arm::Robe => Some(Mapping::Blocks { block: self.robe_block }),
            _ => None,
        };
        if let Some(mapping) = mapping {
            let names = mlp.matrices();
            let seed = at.seed.fork("hash", 0);
            pool(&mut mlp.bank, &names, compression, mapping, Fill::Uniform(SCALE), seed)?;
            return self.finish(at, &mlp, None, arm == Arm::Stable);
        }
        if let Arm::Pruned(score) = arm {
            let training = self.training(at, false);
            let (images, labels) = at.sets.train_batch(training.seed, 0, self.batch_size)?;
            let masks =
                score.masks(&mlp, &images, &labels, 1. / compression, at.seed.fork("lot", 0))?;
            return self.finish(at, &mlp, Some(&masks), false);
        }
        let budget = mlp.matrices().iter().try_fold(0, |sum, n| {
            Ok::<usize, Error>(sum + mlp.bank.shape(n)?.iter().product::<usize>())
        })?;
        let widths = self.narrowed(at.sets, (budget as f64 / compression) as usize);
        self.finish(at, &Mlp::init(&widths, at.seed.fork("init", 0))?, None, false)
    }

    /// Hidden widths scaled by one factor so that matrices hold `budget` elements at most, at least
    /// one unit each.
    fn narrowed(&self, sets: &ImageSets, budget: usize) -> Vec<usize> {
        let most = self.hidden.iter().copied().max().unwrap_or(1).max(1);
        let scaled = |unit: usize| -> Vec<usize> {
            let hidden: Vec<usize> = self.hidden.iter().map(|h| (h * unit / most).max(1)).collect();
            self.widths(sets, &hidden)
        };
        let size = |w: &[usize]| w.windows(2).map(|p| p[0] * p[1]).sum::<usize>();
        let fitting = (1..=most).rev().map(scaled).find(|w| size(w) <= budget);
        fitting.unwrap_or_else(|| scaled(1))
    }

    fn finish(
        &self,
        at: &Repeat<'_>,
        mlp: &Mlp,
        masks: Option<&Masks>,
        stable: bool,
    ) -> Result<Trained> {
        let mut stored = mlp.bank.stored();
        let mut collapsed = 0;
        if let Some(masks) = masks {
            apply(mlp, masks)?;
            for (name, density) in masks.keys().zip(prune::densities(masks)?) {
                let whole = mlp.bank.stored_var(name)?.elem_count();
                stored -= whole - (density * whole as f64).round() as usize;
                collapsed += usize::from(density == 0.);
            }
        }
        let tick = &mut || Ok(at.run.check_stop()?);
        self.training(at, stable).run(mlp, masks, 0..self.steps, tick)?;
        let accuracy = at.sets.accuracy(|x| mlp.forward(x))?;
        Ok(Trained { accuracy, stored, collapsed })
    }

    /// Norm of the first gradient after `score` left 1/`compression` of the weights, over that of
    /// the whole network.
    ///
    /// # Errors
    /// When the images do not fit.
    pub fn gradient_growth(&self, score: Score, compression: f64, at: &Repeat<'_>) -> Result<f64> {
        let mlp = self.dense(at)?;
        let (data, lot) = (self.training(at, false).seed, at.seed.fork("lot", 0));
        let (images, labels) = at.sets.train_batch(data, 0, self.batch_size)?;
        let masks = score.masks(&mlp, &images, &labels, 1. / compression, lot)?;
        let whole = prune::gradient_norm(&mlp, None, &images, &labels)?;
        let left = prune::gradient_norm(&mlp, Some(&masks), &images, &labels)?;
        Ok(left / whole.max(f64::MIN_POSITIVE))
    }

    /// Pruning with rewinding of weights and rate: train, drop a fifth of what is left, go back to the
    /// weights of an early step, until 1/`compression` is left; then train to the end.
    ///
    /// # Errors
    /// When the run is stopped.
    pub fn rewound(&self, compression: f64, at: &Repeat<'_>) -> Result<Trained> {
        let training = self.training(at, false);
        let early = self.steps / 10;
        let mlp = self.dense(at)?;
        let tick = &mut || Ok(at.run.check_stop()?);
        training.run(&mlp, None, 0..early, tick)?;
        let start = mlp.copy()?;
        let (mut left, mut masks) = (1f64, Masks::new());
        loop {
            let round = start.copy()?;
            apply(&round, &masks)?;
            training.run(&round, Some(&masks), early..self.steps, tick)?;
            if left <= 1. / compression + 1e-12 {
                let stored = masks.iter().try_fold(round.bank.stored(), |sum, (name, mask)| {
                    let kept = f64::from(mask.sum_all()?.to_scalar::<f32>()?) as usize;
                    Ok::<usize, Error>(sum - round.bank.stored_var(name)?.elem_count() + kept)
                })?;
                let accuracy = at.sets.accuracy(|x| round.forward(x))?;
                let collapsed = prune::densities(&masks)?.iter().filter(|d| **d == 0.).count();
                return Ok(Trained { accuracy, stored, collapsed });
            }
            left = (left * 0.8).max(1. / compression);
            masks = magnitude_of_kept(&round, &masks, left)?;
        }
    }

    /// Largest difference of losses over `steps` between the dense network and the same weights in a
    /// pool of their own size.
    ///
    /// # Errors
    /// When the run is stopped.
    pub fn trajectory_gap(&self, steps: usize, at: &Repeat<'_>) -> Result<f64> {
        let dense = self.dense(at)?;
        let mut folded = dense.copy()?;
        let names = folded.matrices();
        let seed = at.seed.fork("hash", 0);
        pool(&mut folded.bank, &names, 1., Mapping::Fold, Fill::Weights, seed)?;
        let steps = steps.min(self.steps);
        let tick = &mut || Ok(at.run.check_stop()?);
        let a = self.training(at, false).run(&dense, None, 0..steps, tick)?;
        let b = self.training(at, true).run(&folded, None, 0..steps, tick)?;
        if a.len() != b.len() {
            return Ok(f64::INFINITY);
        }
        // `f64::max` would pass over what is not a number.
        let apart = |(a, b): (&f64, &f64)| {
            let gap = (a - b).abs();
            if gap.is_nan() { f64::INFINITY } else { gap }
        };
        Ok(a.iter().zip(&b).map(apart).fold(0., f64::max))
    }

    /// Accuracy of a network compressed ten times whose pool starts in `±scale`.
    ///
    /// # Errors
    /// When the run is stopped.
    pub fn at_scale(&self, scale: f64, stable: bool, at: &Repeat<'_>) -> Result<f64> {
        let mut mlp = self.dense(at)?;
        let names = mlp.matrices();
        let mapping =
            if stable { Mapping::Fold } else { Mapping::Blocks { block: self.roast_block } };
        let fill = Fill::Uniform(scale as f32);
        pool(&mut mlp.bank, &names, 10., mapping, fill, at.seed.fork("hash", 0))?;
        Ok(self.finish(at, &mlp, None, stable)?.accuracy)
    }

    /// Seconds per step, `[dense, pooled]`, and of a pooled step's parts, `[gather, scaler]`.
    ///
    /// # Errors
    /// When the run is stopped.
    pub fn timing(&self, at: &Repeat<'_>) -> Result<Timing> {
        let widths = self.widths(at.sets, &self.timed_hidden);
        let dense = Mlp::init(&widths, at.seed.fork("init", 0))?;
        let mut pooled = dense.copy()?;
        let names = pooled.matrices();
        let (steps, compression) = self.timed;
        let fill = Fill::Uniform(SCALE);
        pool(&mut pooled.bank, &names, compression, Mapping::Fold, fill, at.seed)?;
        let clock = || at.run.elapsed().as_secs_f64();
        let tick = &mut || Ok(at.run.check_stop()?);
        let mut best = [f64::INFINITY; 4];
        // The faster of interleaved rounds: what else the machine does only ever adds.
        for _ in 0..3 {
            for (i, mlp) in [&dense, &pooled].into_iter().enumerate() {
                let training = Training { steps, ..self.training(at, i == 1) };
                let began = clock();
                training.run(mlp, None, 0..steps, tick)?;
                best[i] = best[i].min((clock() - began) / steps as f64);
            }
            let began = clock();
            for name in (0..steps).flat_map(|_| &names) {
                ops::no_grad(|| pooled.bank.weight(name))?;
            }
            best[2] = best[2].min((clock() - began) / steps as f64);
            let gamma = gradient_scaler(&pooled.bank)?;
            let (images, labels) = at.sets.train_batch(at.seed, 0, self.batch_size)?;
            let mut grads = ops::backward(&pooled.loss(&images, &labels)?)?;
            let began = clock();
            for _ in 0..steps {
                scale_gradient(&pooled.bank, &mut grads, &gamma)?;
            }
            best[3] = best[3].min((clock() - began) / steps as f64);
        }
        let [dense, pooled, gather, scaler] = best;
        Ok(Timing { dense, pooled, gather, scaler })
    }
}

/// Seconds of a training step and of its parts.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Dense network.
    pub dense: f64,
    /// The same from a pool.
    pub pooled: f64,
    /// Reading all weights from the pool.
    pub gather: f64,
    /// Dividing the pool's gradient.
    pub scaler: f64,
}
