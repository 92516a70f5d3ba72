//! The measurements behind the claims: decoders with either router from the same start, scored,
//! and their experts run on devices.

use commons_core::Seed;
use commons_core::evidence::Run;
use commons_core::stats::mean;
use commons_nn::model::moe::MoeTimeSums;
use commons_nn::train::{At, Loss, Outcome, TokenStream, TrainConfig, Trainer};
use commons_ops::{self as ops, Device, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::decoder::{MoeDecoder, MoeDecoderConfig};
use super::devices::Devices;
use super::imbalance::{busiest, imbalance};
use crate::{Error, Result};

/// Who chooses experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Router {
    /// The best of all.
    TopK,
    /// As many of every group.
    Moge,
}

impl Router {
    /// Both.
    pub const ALL: [Self; 2] = [Self::TopK, Self::Moge];

    /// Name in measures and tables.
    pub fn key(self) -> &'static str {
        match self {
            Self::TopK => "topk",
            Self::Moge => "moge",
        }
    }

    /// The decoder of `config` that chooses so.
    pub fn apply(self, config: &MoeDecoderConfig) -> MoeDecoderConfig {
        match self {
            Self::TopK => config.plain(),
            Self::Moge => config.clone(),
        }
    }
}

/// What is trained and compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Study {
    /// The decoder. Its groups are the devices that imbalance is counted on.
    pub decoder: MoeDecoderConfig,
    /// Training.
    pub train: TrainConfig,
    /// Batches of test text scored.
    pub eval_batches: u64,
    /// Tokens of the batches run on devices, rising.
    pub device_tokens: Vec<usize>,
    /// Batches of each size run on devices.
    pub device_batches: u64,
    /// Times each is run; the fastest counts.
    pub repeats: usize,
}

impl Default for Study {
    fn default() -> Self {
        Self {
            decoder: MoeDecoderConfig::default(),
            train: TrainConfig { steps: 200, batch_size: 8, ..TrainConfig::default() },
            eval_batches: 8,
            device_tokens: vec![16, 128, 1024],
            device_batches: 8,
            repeats: 5,
        }
    }
}

/// A decoder, trained.
#[derive(Debug)]
pub struct Trained {
    /// Who chooses.
    pub router: Router,
    /// The decoder.
    pub model: MoeDecoder,
    /// Test loss, nats per byte.
    pub loss: f64,
    /// Balance loss at the end over its least value 1, mean over layers.
    pub balance: f64,
    /// Load of the busiest expert over the mean inside its group, mean over layers.
    pub busiest_expert: f64,
    /// Seconds of a training step, median.
    pub step_seconds: f64,
    /// Time of the parts of a mixture while training.
    pub times: MoeTimeSums,
}

/// Experts of a model run on devices, per size of the batch.
#[derive(Debug, Clone, Copy)]
pub struct OnDevices {
    /// Tokens of a batch.
    pub tokens: usize,
    /// Mean imbalance score.
    pub imbalance: f64,
    /// Mean load of the busiest device over the mean.
    pub busiest: f64,
    /// Milliseconds until the last device is done, mean over batches of the sum over layers.
    pub wall_ms: f64,
    /// Milliseconds that the first waits for the last, likewise.
    pub gap_ms: f64,
}

impl Study {
    /// Checks counts.
    ///
    /// # Errors
    /// Naming the field.
    pub fn check(&self) -> Result<()> {
        self.decoder.check()?;
        if self.decoder.groups < 2 {
            return Err(Error::config("decoder.groups", "imbalance needs at least two devices"));
        }
        if self.eval_batches == 0 || self.device_batches == 0 || self.repeats == 0 {
            let reason = "eval_batches, device_batches and repeats must be at least 1";
            return Err(Error::config("eval_batches", reason));
        }
        match self
            .device_tokens
            .iter()
            .find(|&&n| n == 0 || (n > self.seq() && n % self.seq() != 0))
        {
            Some(n) => {
                let reason = format!("{n} is not up to, or a multiple of, seq_len {}", self.seq());
                Err(Error::config("device_tokens", reason))
            }
            None if self.device_tokens.is_empty() => {
                Err(Error::config("device_tokens", "give at least one"))
            }
            None => Ok(()),
        }
    }

    fn seq(&self) -> usize {
        self.train.seq_len.max(1)
    }

    /// Trains and scores a decoder with `router`.
    ///
    /// # Errors
    /// When texts are too short or the run is stopped.
    pub fn train(
        &self,
        router: Router,
        texts: &(Vec<u32>, Vec<u32>),
        seed: Seed,
        run: &mut Run,
    ) -> Result<Trained> {
        let model = MoeDecoder::init(router.apply(&self.decoder), seed.fork("init", 0))?;
        let t = &self.train;
        let stream =
            TokenStream::new(texts.0.clone(), t.seq_len, t.batch_size, seed.fork("data", 0))?;
        let mut trainer =
            Trainer::new(t.clone(), &model.decoder.bank)?.stop_flag(run.stop().flag());
        let progress = run.progress();
        let mut task = progress.task(router.key(), Some(t.steps as u64));
        let (mut times, mut logged) = (MoeTimeSums::default(), Vec::new());
        let outcome = trainer.run(
            |At { batch, .. }| {
                let passed = model.loss(&stream.batch(batch, &Device::Cpu)?)?;
                passed.layers.iter().for_each(|l| times.add(&l.times));
                Ok(Loss::new(model.total(&passed)?, stream.tokens_per_batch()))
            },
            |report| {
                task.update(report.step as u64, &format!("loss {:.3}", report.loss));
                logged.push((report.step as u64, report.loss, report.seconds));
            },
        )?;
        for (step, loss, _) in &logged {
            run.log(*step, &format!("{}/loss", router.key()), *loss)?;
        }
        if outcome == Outcome::Interrupted {
            return Err(Error::Interrupted);
        }
        let mut seconds: Vec<f64> = logged.iter().map(|(_, _, s)| *s).collect();
        seconds.sort_by(f64::total_cmp);
        let step_seconds = seconds.get(seconds.len() / 2).copied().unwrap_or(0.);
        let [loss, balance, busiest_expert] = self.score(&model, &texts.1, seed)?;
        Ok(Trained { router, model, loss, balance, busiest_expert, step_seconds, times })
    }

    /// Test loss, balance loss, and load of the busiest expert of a group over the mean.
    fn score(&self, model: &MoeDecoder, test: &[u32], seed: Seed) -> Result<[f64; 3]> {
        let (mut losses, mut balance, mut uneven) = (Vec::new(), Vec::new(), Vec::new());
        let seed = seed.fork("test", 0);
        let stream = TokenStream::new(test.to_vec(), self.seq(), self.train.batch_size, seed)?;
        let group = self.decoder.selection().group_size();
        for batch in 0..self.eval_batches {
            let ids = stream.batch(batch, &Device::Cpu)?;
            let passed = ops::no_grad(|| model.loss(&ids))?;
            losses.push(f64::from(passed.loss.to_scalar::<f32>()?));
            for layer in &passed.layers {
                balance.push(f64::from(layer.balance.to_scalar::<f32>()?));
                for counts in layer.dispatch.selected().chunks_exact(group) {
                    let total = counts.iter().sum::<usize>().max(1) as f64;
                    let most = counts.iter().max().copied().unwrap_or(0) as f64;
                    uneven.push(most * group as f64 / total);
                }
            }
        }
        Ok([mean(&losses), mean(&balance), mean(&uneven)])
    }

    /// Runs the experts of both models, in turn, on one thread per group.
    ///
    /// # Errors
    /// When texts are too short or the run is stopped.
    pub fn on_devices(
        &self,
        models: &[Trained],
        test: &[u32],
        seed: Seed,
        run: &Run,
    ) -> Result<Vec<(Router, OnDevices)>> {
        let mut results = Vec::new();
        for &tokens in &self.device_tokens {
            run.check_stop()?;
            let (rows, seq) = (tokens.div_ceil(self.seq()), tokens.min(self.seq()));
            let stream = TokenStream::new(test.to_vec(), seq, rows, seed.fork("devices", 0))?;
            let mut seen: Vec<Vec<[f64; 4]>> = vec![Vec::new(); models.len()];
            for batch in 0..self.device_batches {
                let ids = stream.batch(batch, &Device::Cpu)?;
                for (model, seen) in models.iter().zip(&mut seen) {
                    seen.push(self.step(&model.model, &ids)?);
                }
            }
            for (model, seen) in models.iter().zip(seen) {
                let of = |i: usize| mean(&seen.iter().map(|s| s[i]).collect::<Vec<_>>());
                let (imbalance, busiest) = (of(0), of(1));
                let (wall_ms, gap_ms) = (1e3 * of(2), 1e3 * of(3));
                let done = OnDevices { tokens, imbalance, busiest, wall_ms, gap_ms };
                results.push((model.router, done));
            }
        }
        Ok(results)
    }

    /// Imbalance score and busiest device (means over layers), wall time and gap (sums over
    /// layers) of one batch.
    fn step(&self, model: &MoeDecoder, ids: &Tensor) -> Result<[f64; 4]> {
        let devices = self.decoder.groups;
        let passed = ops::no_grad(|| model.loss(ids))?;
        let (mut uneven, mut most, mut wall, mut gap) = (Vec::new(), Vec::new(), 0., 0.);
        for (l, layer) in passed.layers.iter().enumerate() {
            uneven.push(imbalance(&layer.dispatch, devices)?);
            most.push(busiest(&layer.dispatch, devices)?);
            let x = model.normed(l, &passed.residual[l])?.detach();
            let (p, renormalize) = (layer.probabilities.detach(), model.config.renormalize);
            let gates = ops::gates(&p, &layer.dispatch, renormalize)?;
            let on = Devices::new(model, l, devices)?;
            let mut best: Option<super::devices::Step> = None;
            for _ in 0..self.repeats {
                let (_, step) = on.run(&x, &gates, &layer.dispatch)?;
                best = Some(best.filter(|b| b.wall <= step.wall).unwrap_or(step));
            }
            if let Some(best) = best {
                wall += best.wall;
                gap += best.gap();
            }
        }
        Ok([mean(&uneven), mean(&most), wall, gap])
    }
}
