//! The measurement of a conversion: a pretrained decoder folded, then trained on and scored on the
//! way.

use commons_core::evidence::Run;
use commons_nn::eval::Perplexity;
use commons_nn::model::Decoder;
use commons_nn::train::Outcome;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::convert::{Config, convert};
use crate::heal::{HealRun, heal};
use crate::material::MaterialConfig;
use crate::{Error, Result};

/// What is converted, and how long it is trained on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Conversion {
    /// Model and texts.
    pub material: MaterialConfig,
    /// The conversion and the training that follows.
    pub convert: Config,
    /// Times the model is scored while it trains, evenly spread, the end included.
    pub parts: usize,
    /// Tokens of context while scoring.
    pub context: usize,
    /// Tokens scored each time.
    pub eval_tokens: usize,
}

impl Default for Conversion {
    fn default() -> Self {
        Self {
            material: MaterialConfig::default(),
            convert: Config::default(),
            parts: 4,
            context: 256,
            eval_tokens: 2048,
        }
    }
}

/// A conversion, scored.
#[derive(Debug, Clone)]
pub struct Converted {
    /// Parameters stored before and after.
    pub stored: [usize; 2],
    /// Score of the original.
    pub original: Perplexity,
    /// Steps trained on, and the score with threshold routing after them, from 0.
    pub on_the_way: Vec<(usize, Perplexity)>,
}

impl Converted {
    /// The largest ratio of a loss to the one before it: below 1 if every part of the training
    /// lowered it.
    pub fn worst_part(&self) -> f64 {
        let ratios = self.on_the_way.windows(2).map(|w| w[1].1.loss / w[0].1.loss);
        ratios.fold(f64::NEG_INFINITY, f64::max)
    }
}

impl Conversion {
    /// Converts, trains on and scores.
    ///
    /// # Errors
    /// When the model does not fit, training fails or the run is stopped.
    pub fn measure(&self, run: &mut Run) -> Result<Converted> {
        let steps = self.convert.heal.train.steps;
        if self.parts == 0 || !steps.is_multiple_of(self.parts) {
            let reason = format!("{} must be at least 1 and divide the {steps} steps", self.parts);
            return Err(Error::config("conversion.parts", reason));
        }
        let material = self.material.prepare(run.seed(), run)?;
        let score = |m: &Decoder| material.score(m, self.context, self.eval_tokens);
        let original = score(&material.model)?;
        let model = convert(&self.convert, &material.model, run.seed().fork("convert", 0))?;
        let mut scores = vec![(0, score(&model))];
        let mut teacher = material.model.clone();
        teacher.bank.freeze(|_| true);
        let settings = HealRun { stop: run.stop().flag(), ..HealRun::default() };
        let progress = run.progress();
        let mut task = progress.task("converted", Some(steps as u64));
        let tokens = material.train.clone();
        let config = &self.convert.heal;
        let healed = heal(&model, Some(&teacher), tokens, config, &settings, |report| {
            task.update(report.step as u64, &format!("loss {:.3}", report.loss));
            if report.step.is_multiple_of(steps / self.parts) {
                scores.push((report.step, score(&model)));
            }
        })?;
        for (step, loss) in healed.losses.iter().enumerate() {
            run.log(step as u64 + 1, "converted/healing loss", *loss)?;
        }
        if healed.outcome == Outcome::Interrupted {
            return Err(Error::Interrupted);
        }
        let on_the_way =
            scores.into_iter().map(|(step, s)| Ok((step, s?))).collect::<Result<_>>()?;
        let stored = [material.model.bank.stored(), model.bank.stored()];
        Ok(Converted { stored, original, on_the_way })
    }
}
