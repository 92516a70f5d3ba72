//! The measurements behind the claims: encoders that share more or less, on images and on text.

use commons_core::Seed;
use commons_core::evidence::Run;
use commons_nn::bank::Bank;
use commons_nn::model::moe::{MoeOutput, MoeTimeSums};
use commons_nn::train::{At, Loss, Outcome, TokenStream, TrainConfig, Trainer};
use commons_ops::{self as ops, Device, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::encoder::{Encoded, EncoderConfig, ExpertsConfig, Phase};
use super::routes::Routes;
use super::text::{Hidden, WideBert};
use super::vision::{Input, WideVit};
use crate::images::ImageSets;
use crate::{Error, Result};

/// What a network shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Variant {
    /// Nothing: a plain transformer.
    Plain,
    /// Everything, norms too: ALBERT.
    Albert,
    /// The method: a block with experts, norms apart.
    Widenet,
    /// The method with norms shared.
    SharedNorms,
    /// Experts in every layer, nothing shared.
    PlainMoe,
    /// The method with one feed-forward part as wide as all experts together.
    WideDense,
}

impl Variant {
    /// Name in measures and tables.
    pub fn key(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Albert => "albert",
            Self::Widenet => "widenet",
            Self::SharedNorms => "shared_norms",
            Self::PlainMoe => "plain_moe",
            Self::WideDense => "wide_dense",
        }
    }

    /// The encoder of `shape` that shares what this variant shares.
    pub fn apply(self, shape: &Shape, experts: &ExpertsConfig) -> EncoderConfig {
        let whole = matches!(self, Self::Plain | Self::PlainMoe);
        let moe = matches!(self, Self::Widenet | Self::SharedNorms | Self::PlainMoe);
        let widen = if self == Self::WideDense { experts.experts } else { 1 };
        EncoderConfig {
            hidden_size: shape.hidden_size,
            intermediate_size: widen * shape.intermediate_size,
            num_hidden_layers: shape.num_hidden_layers,
            num_attention_heads: shape.num_attention_heads,
            groups: if whole { shape.num_hidden_layers } else { 1 },
            share_norms: matches!(self, Self::Albert | Self::SharedNorms),
            moe: moe.then(|| experts.clone()),
        }
    }
}

/// Widths and depth, the same for every variant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Shape {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside a feed-forward part or expert.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Height and width of a patch, pixels.
    pub patch_size: usize,
    /// Width of the embedding of text.
    pub embedding_size: usize,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            hidden_size: 96,
            intermediate_size: 192,
            num_hidden_layers: 6,
            num_attention_heads: 4,
            patch_size: 4,
            embedding_size: 48,
        }
    }
}

/// One network, trained.
#[derive(Debug, Clone)]
pub struct Trained {
    /// What it shares.
    pub variant: Variant,
    /// Accuracy on test images, or of hidden bytes.
    pub accuracy: f64,
    /// Parameters by part.
    pub parts: [(&'static str, usize); 5],
    /// Multiply-adds of a token in the layers.
    pub multiply_adds: usize,
    /// Seconds of a training step, median.
    pub step_seconds: f64,
    /// Share of assignments that found no place in the last tenth of training.
    pub dropped: f64,
    /// Which experts test tokens take, if there are any.
    pub routes: Option<Routes>,
    /// Time of the parts of a layer's forward pass while training.
    pub times: MoeTimeSums,
}

impl Trained {
    /// Parameters in all.
    pub fn stored(&self) -> usize {
        self.parts.iter().map(|(_, n)| n).sum()
    }
}

/// Training of one network.
pub struct Repeat<'a> {
    /// The recipe's training.
    pub train: &'a TrainConfig,
    /// Widths and depth.
    pub shape: &'a Shape,
    /// The experts of those that have them.
    pub experts: &'a ExpertsConfig,
    /// Seed of everything.
    pub seed: Seed,
}

/// What was seen while training.
#[derive(Default)]
struct Seen {
    times: MoeTimeSums,
    seconds: Vec<f64>,
    dropped: usize,
    assigned: usize,
}

impl Seen {
    fn add(&mut self, layers: &[MoeOutput], late: bool) {
        for layer in layers {
            self.times.add(&layer.times);
            if late {
                self.dropped += layer.dispatch.dropped();
                self.assigned += layer.dispatch.ids().len();
            }
        }
    }

    fn median(&mut self) -> f64 {
        self.seconds.sort_by(f64::total_cmp);
        self.seconds.get(self.seconds.len() / 2).copied().unwrap_or(0.)
    }
}

impl Repeat<'_> {
    /// Trains `bank` on `loss(batch number, phase)`: the task's loss and what the layers did.
    fn fit(
        &self,
        label: &str,
        config: &EncoderConfig,
        bank: &Bank,
        run: &mut Run,
        loss: impl Fn(u64, Phase) -> Result<(Tensor, Encoded)>,
    ) -> Result<Seen> {
        let mut trainer = Trainer::new(self.train.clone(), bank)?.stop_flag(run.stop().flag());
        let progress = run.progress();
        let mut task = progress.task(label, Some(self.train.steps as u64));
        let (mut seen, mut logged, mut seconds) = (Seen::default(), Vec::new(), Vec::new());
        let late = self.train.steps - self.train.steps / 10;
        let outcome = trainer.run(
            |At { step, batch, .. }| {
                let phase = Phase::Train(self.seed.fork("noise", batch));
                let (task, encoded) = loss(batch, phase)?;
                seen.add(&encoded.layers, step >= late);
                let total = encoded.with_balance(&task, config)?;
                let mut loss = Loss::new(total, self.train.batch_size);
                let layers = encoded.layers.len().max(1) as f64;
                let mut balance = 0.;
                for layer in &encoded.layers {
                    balance += f64::from(layer.balance.to_scalar::<f32>()?) / layers;
                }
                loss.parts.push(("balance", balance));
                Ok(loss)
            },
            |report| {
                task.update(report.step as u64, &format!("loss {:.3}", report.loss));
                let balance = report.parts.first().map_or(0., |(_, v)| *v);
                logged.push((report.step as u64, report.loss, balance));
                seconds.push(report.seconds);
            },
        )?;
        for (step, loss, balance) in logged {
            run.log(step, &format!("{label}/loss"), loss)?;
            if config.moe.is_some() {
                run.log(step, &format!("{label}/balance"), balance)?;
            }
        }
        seen.seconds = seconds;
        if outcome == Outcome::Interrupted { Err(Error::Interrupted) } else { Ok(seen) }
    }

    /// Trains and scores `variant` on images.
    ///
    /// # Errors
    /// When the shape does not fit the images or the run is stopped.
    pub fn images(&self, variant: Variant, sets: &ImageSets, run: &mut Run) -> Result<Trained> {
        let config = variant.apply(self.shape, self.experts);
        let input = Input {
            channels: sets.train.channels,
            side: sets.train.height,
            patch: self.shape.patch_size,
            classes: sets.classes,
        };
        let vit = WideVit::init(config.clone(), input, self.seed.fork("init", 0))?;
        let label = format!("{}-images", variant.key());
        let data = self.seed.fork("data", 0);
        let seen = self.fit(&label, &config, &vit.encoder.bank, run, |batch, phase| {
            let (images, labels) = sets.train_batch(data, batch, self.train.batch_size)?;
            let (scores, encoded) = vit.forward(&images, phase)?;
            Ok((ops::cross_entropy(&scores, &labels, 0.)?, encoded))
        })?;
        let mut routes = Routes::default();
        let accuracy = sets.accuracy(|images| {
            let (scores, encoded) = vit.forward(images, Phase::Eval)?;
            routes.add(&encoded.layers)?;
            Ok(scores)
        })?;
        let (parts, seq) = (vit.encoder.by_part(), input.patches());
        Ok(finish(variant, accuracy, parts, config.multiply_adds(seq), seen, routes))
    }

    /// Trains and scores `variant` on hidden bytes of text.
    ///
    /// # Errors
    /// When the text is too short or the run is stopped.
    pub fn text(
        &self,
        variant: Variant,
        texts: &(Vec<u32>, Vec<u32>),
        eval_batches: u64,
        run: &mut Run,
    ) -> Result<(Trained, f64)> {
        let config = variant.apply(self.shape, self.experts);
        let (t, seq) = (self.train, self.train.seq_len);
        let init = self.seed.fork("init", 1);
        let bert = WideBert::init(config.clone(), self.shape.embedding_size, seq, init)?;
        let stream = |tokens: &Vec<u32>, what| {
            TokenStream::new(tokens.clone(), seq, t.batch_size, self.seed.fork(what, 0))
        };
        let (train, test) = (stream(&texts.0, "text")?, stream(&texts.1, "test")?);
        let hidden = |stream: &TokenStream, batch, what| -> Result<Hidden> {
            let ids = stream.batch(batch, &Device::Cpu)?.narrow(1, 0, seq)?;
            Hidden::of(&ids, self.seed.fork(what, batch))
        };
        let label = format!("{}-text", variant.key());
        let seen = self.fit(&label, &config, &bert.encoder.bank, run, |batch, phase| {
            bert.loss(&hidden(&train, batch, "hide")?, phase)
        })?;
        let mut routes = Routes::default();
        let (mut nats, mut count) = (0., 0usize);
        for batch in 0..eval_batches {
            let text = hidden(&test, batch, "hide-test")?;
            let (loss, encoded) = ops::no_grad(|| bert.loss(&text, Phase::Eval))?;
            routes.add(&encoded.layers)?;
            let n = text.count()?;
            nats += f64::from(loss.to_scalar::<f32>()?) * n as f64;
            count += n;
        }
        let loss = nats / count.max(1) as f64;
        let parts = bert.encoder.by_part();
        let mut done = finish(variant, f64::NAN, parts, config.multiply_adds(seq), seen, routes);
        done.accuracy = (-loss).exp();
        Ok((done, loss))
    }
}

fn finish(
    variant: Variant,
    accuracy: f64,
    parts: [(&'static str, usize); 5],
    multiply_adds: usize,
    mut seen: Seen,
    routes: Routes,
) -> Trained {
    Trained {
        variant,
        accuracy,
        parts,
        multiply_adds,
        step_seconds: seen.median(),
        dropped: seen.dropped as f64 / seen.assigned.max(1) as f64,
        routes: (routes.layers() > 0).then_some(routes),
        times: seen.times,
    }
}
