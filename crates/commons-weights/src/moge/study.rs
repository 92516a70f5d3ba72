//! The measurements behind the claims: decoders with either router from the same start, scored,
//! and their experts run on devices.

use commons_core::Seed;
use commons_core::evidence::Run;
use commons_core::stats::mean;
use commons_nn::model::moe::MoeTimeSums;
use commons_nn::model::{Decoder, DecoderConfig, ExpertsPass, MixtureOfExperts, MoePhase};
use commons_nn::train::{At, Loss, Outcome, TokenStream, TrainConfig, Trainer};
use commons_ops::{self as ops, Device, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::devices::Devices;
use super::imbalance::{busiest, imbalance};
use crate::baseline::scratch::ScratchConfig;
use crate::{Error, Result};

/// Who chooses experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Router {
    /// The best of all.
    TopK,
    /// As many of every group.
    Moge,
    /// The `K` largest, weights not divided by their sum: what is left of MoGE without groups.
    TopKRaw,
}

impl Router {
    /// All.
    pub const ALL: [Self; 3] = [Self::TopK, Self::Moge, Self::TopKRaw];

    /// Name in measures and tables.
    pub fn key(self) -> &'static str {
        match self {
            Self::TopK => "topk",
            Self::Moge => "moge",
            Self::TopKRaw => "topk_raw",
        }
    }

    /// The experts of `mixture`, chosen so: top-K has one group, and weights divided by their sum.
    pub fn apply(self, mixture: &MixtureOfExperts) -> MixtureOfExperts {
        let plain = MixtureOfExperts { expert_groups: 1, norm_topk_prob: None, ..mixture.clone() };
        match self {
            Self::TopK => MixtureOfExperts { norm_topk_prob: Some(true), ..plain },
            Self::TopKRaw => MixtureOfExperts { norm_topk_prob: Some(false), ..plain },
            Self::Moge => mixture.clone(),
        }
    }
}

/// What is trained and compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Study {
    /// The decoder around the experts, and its training.
    pub scratch: ScratchConfig,
    /// The experts. Their groups are the devices that imbalance is counted on.
    pub experts: MixtureOfExperts,
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
            scratch: ScratchConfig {
                hidden_size: 128,
                intermediate_size: 256,
                num_hidden_layers: 4,
                num_attention_heads: 4,
                num_key_value_heads: 4,
                train: TrainConfig { steps: 200, batch_size: 8, ..TrainConfig::default() },
            },
            experts: MixtureOfExperts {
                num_experts: 16,
                num_experts_per_tok: 4,
                expert_groups: 2,
                moe_intermediate_size: Some(64),
                shared_expert_intermediate_size: 64,
                ..MixtureOfExperts::default()
            },
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
    pub model: Decoder,
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
    /// The decoder with experts chosen by `router`. Shapes and first values do not depend on it, so
    /// all start from the same weights.
    ///
    /// # Errors
    /// When counts do not fit.
    pub fn config(&self, router: Router) -> Result<DecoderConfig> {
        let mixture_of_experts = Some(router.apply(&self.experts));
        let config = DecoderConfig { mixture_of_experts, ..self.scratch.decoder()? };
        config.check()?;
        Ok(config)
    }

    /// Checks counts.
    ///
    /// # Errors
    /// Naming the field.
    pub fn check(&self) -> Result<()> {
        self.config(Router::Moge)?;
        if self.experts.expert_groups < 2 {
            return Err(Error::config(
                "experts.expert_groups",
                "imbalance needs at least two devices",
            ));
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
        self.scratch.train.seq_len.max(1)
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
        let model = Decoder::init(self.config(router)?, seed.fork("init", 0))?;
        let t = &self.scratch.train;
        let stream =
            TokenStream::new(texts.0.clone(), t.seq_len, t.batch_size, seed.fork("data", 0))?;
        let mut trainer = Trainer::new(t.clone(), &model.bank)?.stop_flag(run.stop().flag());
        let progress = run.progress();
        let mut task = progress.task(router.key(), Some(t.steps as u64));
        let (mut times, mut logged) = (MoeTimeSums::default(), Vec::new());
        let outcome = trainer.run(
            |At { batch, .. }| {
                let ids = stream.batch(batch, &Device::Cpu)?;
                let phase = MoePhase::Training(Some(seed.fork("noise", batch)));
                let done = model.experts_loss(&ids, phase)?;
                done.pass.iter().flat_map(|p| &p.layers).for_each(|l| times.add(&l.times));
                Ok(Loss::new(done.total, stream.tokens_per_batch()))
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
    fn score(&self, model: &Decoder, test: &[u32], seed: Seed) -> Result<[f64; 3]> {
        let (mut losses, mut balance, mut uneven) = (Vec::new(), Vec::new(), Vec::new());
        let seed = seed.fork("test", 0);
        let stream =
            TokenStream::new(test.to_vec(), self.seq(), self.scratch.train.batch_size, seed)?;
        let group = self.experts.selection().group_size();
        for batch in 0..self.eval_batches {
            let ids = stream.batch(batch, &Device::Cpu)?;
            let (loss, pass) = scored(model, &ids)?;
            losses.push(loss);
            for layer in &pass.layers {
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

    /// Runs the experts of all models, in turn, on one thread per group.
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
    fn step(&self, model: &Decoder, ids: &Tensor) -> Result<[f64; 4]> {
        let devices = self.experts.expert_groups;
        let renormalize = model.experts()?.renormalizes();
        let (_, pass) = scored(model, ids)?;
        let (mut uneven, mut most, mut wall, mut gap) = (Vec::new(), Vec::new(), 0., 0.);
        for (l, layer) in pass.layers.iter().enumerate() {
            uneven.push(imbalance(&layer.dispatch, devices)?);
            most.push(busiest(&layer.dispatch, devices)?);
            let x = model.mlp_input(l, &pass.residual[l])?.detach();
            let gates = ops::gates(&layer.probabilities.detach(), &layer.dispatch, renormalize)?;
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

/// Next-token loss of `ids [batch, seq + 1]`, nats, and what the mixtures did.
fn scored(model: &Decoder, ids: &Tensor) -> Result<(f64, ExpertsPass)> {
    let done = ops::no_grad(|| model.experts_loss(ids, MoePhase::Scoring))?;
    let pass = done.pass.ok_or_else(|| Error::config("experts", "nothing was passed"))?;
    Ok((f64::from(done.loss.to_scalar::<f32>()?), pass))
}
