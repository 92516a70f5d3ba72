//! All layers, passed by several streams at once; each stream brings a prefix of its own, and a
//! small network mixes what they end in.
//!
//! # Paper
//! *Parallel Scaling Law for Language Models*, 2025,
//! [arXiv 2505.10475](https://arxiv.org/abs/2505.10475).
//!
//! # Problem
//! More parameters make a language model better and need more memory; more tokens of thought need
//! more time. A third way is wanted for machines that read weights slower than they compute.
//!
//! # Method
//! `P` copies of the input pass the same layers. In every layer stream `p` sees `n` learned keys
//! and values before those of the tokens, without rotary positions and open to every token:
//!
//! ```text
//! (1)  K = [K̃_p; k],  V = [Ṽ_p; v],      K̃, Ṽ ∈ R^{P × h_kv × n × d_h} in each layer.
//! ```
//!
//! After the last norm the streams `x_1 … x_P` are mixed token by token, smoothed so that none is
//! left without a gradient:
//!
//! ```text
//! (2)  w = softmax(W₂ silu(W₁ [x_1 … x_P] + b₁) + b₂),   y = Σ_p ((1 − ε) w_p + ε/P) x_p,
//! ```
//!
//! with `ε = 0.01`; one output head reads `y`. A trained model takes streams with its weights
//! frozen. The losses of the paper follow
//!
//! ```text
//! (3)  L(N, P) = E + (A / (N (k ln P + 1)))^α,
//! ```
//!
//! which [`law::fit`] fits, by Huber loss on logarithms as the released fit does.
//!
//! # Shared / kept apart
//! Shared: every weight of the model, among the streams. Kept apart: prefixes and key/value cache of
//! each stream. The method *adds* parameters (`2LPh_kv·n·d_h + Pd² + d + dP + P`) to make a model
//! better, so `compress` with it stores more, not less.
//!
//! # Claim
//! `P` streams are worth `k ln P + 1` times the parameters, `k = 0.39` on code and `0.33` on text;
//! with frozen weights more streams still help; decoding with more streams costs little time, as
//! weights are read once for all.
//!
//! # Here
//!
//! Measured on 2026-11-27T09:48:46Z with the recipe `full` (seed 0) in 43 min 32 s on AMD EPYC (2 threads, avx512, 23.5 GiB of memory,
//! of which 4.36 GiB were used), Commons 0.1.0.
//!
//! | claim                                                                            | paper                                               | measured | baseline | needed           | found (95 % interval)           | verdict             |
//! | -------------------------------------------------------------------------------- | --------------------------------------------------- | -------: | -------: | ---------------- | ------------------------------- | ------------------- |
//! | the released losses on code give k = 0.3935                                      | 0.3935                                              |   0.3935 |          | 0.3885 to 0.3985 | 0.3935                          | holds (one seed)    |
//! | the released losses on text give k = 0.3344                                      | 0.3344                                              |   0.3344 |          | 0.3294 to 0.3394 | 0.3344                          | holds (one seed)    |
//! | from scratch, two streams reach a lower loss than one in the same steps          | 1.1722, 1.1507, 1.1354 at 0.5 B (code, P = 1, 2, 4) |    2.027 |    1.994 | ≤ baseline       | 0.03316 (-0.07608 to 0.1424)    | fails (not settled) |
//! | from scratch, four streams reach a lower loss than two in the same steps         | 1.1722, 1.1507, 1.1354 at 0.5 B (code, P = 1, 2, 4) |    2.053 |    2.027 | ≤ baseline       | 0.02616 (-0.03958 to 0.09191)   | fails (not settled) |
//! | on a frozen model, two streams beat a prefix alone                               | direction (section 4)                               |    3.102 |    3.133 | ≤ baseline       | -0.03142                        | holds (one seed)    |
//! | on a frozen model, four streams beat two                                         | direction (section 4)                               |    3.132 |    3.102 | ≤ baseline       | 0.02973                         | fails (one seed)    |
//! | from scratch, shares of each token's own beat equal shares of four streams       | not given                                           |    2.053 |    2.077 | ≤ baseline       | -0.0238 (-0.04362 to -0.003972) | holds               |
//! | at batch 1, a token takes two streams at most 1.5 times as long as one           | small at small batches (section 3.3)                |  0.01871 |  0.02115 | ≤ 1.5 × baseline | 0.8849                          | holds (one seed)    |
//! | at batch 1, two streams take less time than the layers they are worth by the law | up to 6 times less additional latency (abstract)    |  0.01871 |    0.024 | ≤ 1 × baseline   | 0.7798                          | holds (one seed)    |
//!
//! - 2 streams at width 128 reach the loss of a plain decoder of 0.84 times the parameters (between the widths trained, by their logarithms).
//! - 4 streams at width 128 reach the loss of a plain decoder of 0.73 times the parameters (between the widths trained, by their logarithms).
//! - The fit finds no positive k for 3 of 3 seeds: more streams did not lower the losses of the decoders trained here.
//!
//! # Differs
//! * Prefix values of a model that was trained before start at a tenth of the keys' deviation:
//!   large ones disturb it. The released code leaves the start open.
//! * One prefix and mixture is kept per model; models with different `P` are different folders.
//! * The fit moves by damped Gauss-Newton steps on the logarithms of the constants instead of
//!   L-BFGS-B, from the same grid of starts (an exponent of 0 replaced by 0.1).
//! * Prefixes of 16 tokens unless told otherwise, not 48; `compress` trains them at 3e-3, not 1e-3, and
//!   the mixing network at 0.03 of that: at the rate of the prefixes it becomes a switch.
//! * Shares, entropy and likeness of the streams are measured after training, not on the way; memory
//!   is weights and cache, not what the process holds. From scratch, one stream has no prefix.
//! * Weight decay is the user's (0 unless set) and would reach prefixes too.
//! * With one stream there is a prefix and nothing to mix: prefix tuning, the baseline.
//!
//! # Use
//! ```
//! use commons_core::Seed;
//! use commons_nn::model::{Decoder, DecoderConfig};
//! use commons_weights::parscale::{Config, ParScale, law};
//! use commons_weights::{Compress, Context};
//!
//! let mut context = Context { calibration: &[], seed: 0, stop: Default::default(), progress: &mut |_, _, _| {} };
//! let model = Decoder::init(DecoderConfig::llama(64, 32, 2, 4, 2, 48), Seed::new(0))?;
//! let shared = ParScale.share(&Config { streams: 2, ..Config::default() }, &model, &mut context)?;
//! assert_eq!(shared.model.config.streams(), 2);
//!
//! let fit = law::fit(&law::Released::Stack.points())?;
//! assert!((fit.law.k - 0.3935).abs() < 0.005);
//! # Ok::<(), commons_weights::Error>(())
//! ```

mod add;
mod evidence;
pub mod law;
pub mod speed;
pub mod study;
#[cfg(test)]
mod tests;

use commons_core::table::{Table, Unit};
use commons_core::{Seed, cells};
use commons_nn::model::{Decoder, ParallelStreams};
use commons_nn::optim::ParamGroup;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use add::{Draw, add_streams, added_parameters};
pub use evidence::Evidence;

use crate::compress::{Compress, Context, Shared};
use crate::heal::HealConfig;
use crate::{Error, Result};

/// What training may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Trainable {
    /// Prefixes and the mixing network; the model stays as it is.
    #[default]
    Added,
    /// Everything stored.
    All,
}

/// Options of [`ParScale`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `P`: streams.
    pub streams: usize,
    /// `n`: prefix tokens of a stream.
    pub prefix_tokens: usize,
    /// `ε`: share of the mixture that is spread evenly.
    pub smoothing: f64,
    /// Deviation of the drawn prefix keys and of the mixing network.
    pub sigma: f64,
    /// Deviation of the drawn prefix values.
    pub value_sigma: f64,
    /// What training changes.
    pub trainable: Trainable,
    /// The training that follows.
    pub heal: HealConfig,
}

impl Default for Config {
    fn default() -> Self {
        let mut heal = HealConfig { kl_coef: 0., ..HealConfig::default() };
        // Of two rates tried on SmolLM2, a third of this undoes in 300 steps little more than the
        // harm of fresh prefixes (DIARY.md).
        heal.train.learning_rate = 3e-3;
        heal.train.optimizer.groups.push(mixing_group());
        Self {
            streams: 2,
            prefix_tokens: 16,
            smoothing: 0.01,
            sigma: 0.02,
            value_sigma: 0.002,
            trainable: Trainable::default(),
            heal,
        }
    }
}

/// The mixing network trains at a smaller rate than prefixes. It reads all streams at once, `P·d`
/// inputs, and Adam moves each of its weights by the rate whatever the size of its gradient: at the
/// rate that prefixes want it becomes a switch that takes one stream whole (DIARY.md).
fn mixing_group() -> ParamGroup {
    ParamGroup { names: vec!["aggregate_layer".to_owned()], lr_scale: 0.03, weight_decay: None }
}

impl Config {
    /// The key of the decoder's configuration.
    ///
    /// # Errors
    /// Naming a field that is out of range.
    pub fn parallel_streams(&self) -> Result<ParallelStreams> {
        let streams = ParallelStreams {
            count: self.streams,
            prefix_tokens: self.prefix_tokens,
            smoothing: self.smoothing,
        };
        streams.check()?;
        for (field, v) in [("sigma", self.sigma), ("value_sigma", self.value_sigma)] {
            if !(v.is_finite() && v >= 0.) {
                return Err(Error::config(field, format!("{v} must not be negative")));
            }
        }
        if self.streams > 1 && self.sigma == 0. {
            return Err(Error::config(
                "sigma",
                "0 leaves the mixing network without a gradient: use 0.02",
            ));
        }
        Ok(streams)
    }
}

/// Parallel streams for a pretrained decoder.
#[derive(Debug, Clone, Copy, Default)]
pub struct ParScale;

impl Compress for ParScale {
    type Config = Config;

    const SLUG: &'static str = "parscale";
    const SUMMARY: &'static str =
        "pass the layers in parallel streams; adds few parameters, removes none (2025)";

    fn check(&self, config: &Config, model: &Decoder) -> Result<()> {
        add::with_streams(&model.config, config.parallel_streams()?).map(drop)
    }

    fn share(&self, config: &Config, model: &Decoder, context: &mut Context<'_>) -> Result<Shared> {
        config.heal.check()?;
        let streams = config.parallel_streams()?;
        let draw = Draw { sigma: config.sigma, value_sigma: config.value_sigma };
        let mut wide = add_streams(model, streams, draw, Seed::new(context.seed))?;
        if config.trainable == Trainable::Added {
            freeze_model(&mut wide);
        }
        let tables = vec![added_table(&wide)?];
        Ok(Shared { model: wide, tables })
    }

    fn healing<'a>(&self, config: &'a mut Config) -> &'a mut HealConfig {
        &mut config.heal
    }
}

/// Freezes all but what streams added.
pub fn freeze_model(model: &mut Decoder) {
    let added: std::collections::BTreeSet<String> =
        model.config.stream_weights().into_iter().map(|(name, _)| name).collect();
    model.bank.freeze(|name| !added.contains(name));
}

/// What the streams cost: parameters added (none are removed) and bytes of key/value cache.
fn added_table(model: &Decoder) -> Result<Table> {
    let c = &model.config;
    let mut table = Table::new("Streams add parameters, none are removed")
        .column("", Unit::Plain)
        .column("number", Unit::Si)
        .column("of the model", Unit::Percent);
    let added: usize = c.stream_weights().iter().map(|(_, s)| s.iter().product::<usize>()).sum();
    let before = model.bank.stored() - added;
    let share = |n: usize| n as f64 / before.max(1) as f64;
    table.push(cells!["parameters before", before, 1.]);
    table.push(cells!["parameters added", added, share(added)]);
    table.push(cells!["parameters stored", before + added, share(before + added)]);
    let token = 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim * size_of::<f32>();
    table.push(cells!["cache bytes of a token", c.streams() * token, ""]);
    Ok(table)
}
