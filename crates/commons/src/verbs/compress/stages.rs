//! The stages of a compression. Each leaves its result in the working folder, so that a job that
//! was stopped at any moment goes on with the stage it was in.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

use commons_core::fs::{AtomicFolder, write_atomic, write_json_atomic};
use commons_core::table::Table;
use commons_nn::bank::Bank;
use commons_nn::eval::Perplexity;
use commons_nn::format::gguf::GgmlType;
use commons_nn::model::{Decoder, DecoderConfig, SaveFormat};
use commons_nn::train::Outcome;
use commons_ops::DType;
use commons_weights::heal::{HealRun, heal};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::report::{FILE, Healing, Measured, Report};
use super::settings::Resolved;
use super::{calibration, share};
use crate::cli::App;
use crate::error::{During, Failure, Result};
use crate::model::{self, Cost, Loaded};
use crate::progress::Steps;
use crate::signals::resume_command;
use crate::text::Division;
use crate::verbs::eval::{measure, windows};
use crate::verbs::materialize::Format;
use crate::work::{SETTINGS, Work, read_json};

/// Tokens of evaluation text that begin a generation whose speed is measured.
const PROMPT_TOKENS: usize = 8;

/// The bank of a shared model.
const MODEL: &str = "model.safetensors";

/// One compression.
pub struct Job<'a> {
    pub app: &'a App,
    pub settings: &'a Resolved,
    pub division: &'a Division,
    pub record: &'a Value,
    pub out: &'a Path,
}

/// What a shared model is besides its bank.
#[derive(Serialize, Deserialize)]
struct SharedParts {
    config: DecoderConfig,
    frozen: BTreeSet<String>,
    tables: Vec<Table>,
}

/// What healing did, as it is kept.
#[derive(Serialize, Deserialize)]
struct Kept {
    losses: Vec<f64>,
}

impl Job<'_> {
    /// Runs what is not done yet and gives the result its name.
    ///
    /// # Errors
    /// When a stage fails or the user stops it.
    pub fn run(&self, work: Work, original: Loaded) -> Result<Report> {
        let began = Instant::now();
        let before = work.stage("original", || self.measure(&original, "original"))?;
        let tied = self.tied(&work, &original)?;
        let (mut shared, tables) = self.shared(&work, &original)?;
        let after = work.stage("shared-measured", || self.measure(&shared, "shared"))?;
        let mut healing = None;
        let mut healed = None;
        if !self.settings.config.no_heal {
            let (done, report) = self.heal(&work, shared, original)?;
            shared = done;
            healing = Some(report);
            healed = Some(work.stage("healed-measured", || self.measure(&shared, "healed"))?);
        }
        let report = Report {
            model: self.settings.config.model.clone(),
            method: self.settings.config.method.clone(),
            out: self.out.display().to_string(),
            settings: self.record.clone(),
            text: json!({
                "train": self.division.train.describe(),
                "test": self.division.test.describe(),
                "apart": self.division.how,
            }),
            original: before,
            tied,
            shared: after,
            healed,
            healing,
            sharing: super::report::lines(&shared.model)?,
            tables,
            seconds: began.elapsed().as_secs_f64(),
        };
        self.write(work, &shared, &report)?;
        Ok(report)
    }

    fn measure(&self, loaded: &Loaded, what: &str) -> Result<Measured> {
        let config = &self.settings.config;
        let windows = windows(loaded, config.eval_context, None, Some(config.eval_tokens));
        let stop = || self.app.stop.leave(Some(resume_command()), &self.app.out);
        let quality: Perplexity = measure(self.app, loaded, &self.division.test, windows, what, stop)?;
        let tokens = loaded.tokenizer.encode(&self.division.test.text[..self.prompt_end()], false)?;
        let prompt = &tokens[..tokens.len().clamp(1, PROMPT_TOKENS).min(tokens.len())];
        Ok(Measured {
            cost: Cost::of(&loaded.model)?,
            quality,
            tokens_per_second: model::generation_speed(loaded, prompt)?,
        })
    }

    /// Enough text for a prompt, cut between characters.
    fn prompt_end(&self) -> usize {
        let text = &self.division.test.text;
        let mut end = (16 * PROMPT_TOKENS).min(text.len());
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        end
    }

    /// The original tied without any relaxation, if it was asked for and the method knows a rank.
    fn tied(&self, work: &Work, original: &Loaded) -> Result<Option<Measured>> {
        let config = &self.settings.config;
        if !config.baselines || config.options.get("rank").is_none() {
            return Ok(None);
        }
        let make = || {
            let mut options = config.options.clone();
            options["rank"] = 0.into();
            if let Some(pattern) = options.get_mut("rank_pattern") {
                *pattern = json!({});
            }
            let tokens = calibration(self.app, config, original, self.division)?;
            let shared = share(self.app, config, self.settings.compressor, original, &tokens, &options)?;
            self.measure(&with_model(original, shared.model), "tied")
        };
        work.stage("tied-measured", make).map(Some)
    }

    /// The shared model: read if this stage was finished, else made and kept.
    fn shared(&self, work: &Work, original: &Loaded) -> Result<(Loaded, Vec<Table>)> {
        let folder = work.path("shared");
        if !folder.is_dir() {
            let config = &self.settings.config;
            let tokens = calibration(self.app, config, original, self.division)?;
            let shared = share(self.app, config, self.settings.compressor, original, &tokens, &config.options)
                .map_err(|f| if f.is_interrupted() { Failure::interrupted(Some(resume_command())) } else { f })?;
            let bank = &shared.model.bank;
            let trainable: BTreeSet<&str> = bank.trainable().map(|(n, _)| n).collect();
            let frozen = bank.stored_vars().map(|(n, _)| n).filter(|n| !trainable.contains(n));
            let parts = SharedParts {
                config: shared.model.config.clone(),
                frozen: frozen.map(str::to_owned).collect(),
                tables: shared.tables,
            };
            let atomic = AtomicFolder::create(&folder)?;
            bank.save(&atomic.path().join(MODEL))?;
            write_json_atomic(atomic.path().join("parts.json"), &parts)?;
            atomic.commit()?;
        }
        // Read back even when just made: a resumed job then works on the very same bytes.
        let parts: SharedParts = read_json(&folder.join("parts.json"))?;
        let mut bank = Bank::open(&folder.join(MODEL))?;
        bank.freeze(|name| parts.frozen.contains(name));
        let model = Decoder::new(parts.config, bank)?;
        Ok((with_model(original, model), parts.tables))
    }

    /// Heals, going on from the newest checkpoint.
    fn heal(&self, work: &Work, shared: Loaded, original: Loaded) -> Result<(Loaded, Healing)> {
        let settings = &self.settings.heal;
        let began = Instant::now();
        let teacher = match &self.settings.config.teacher {
            Some(name) => model::load(self.app, name).during(|| "loading the teacher".into())?.model,
            None => original.model,
        };
        let tokens = shared.tokenizer.encode(&self.division.train.text, false)?;
        let run = HealRun { folder: Some(work.path("healing")), resume: true, stop: self.app.stop.flag() };
        let mut steps = Steps::new(&self.app.progress, "healing", settings.train.steps);
        let teacher = teacher.baked()?;
        let healed = heal(&shared.model, Some(&teacher), tokens, settings, &run, |step| steps.observe(step))
            .during(|| "healing".into())?;
        drop(steps);
        if healed.outcome == Outcome::Interrupted {
            return Err(Failure::interrupted(Some(resume_command())));
        }
        let kept: Kept = work.stage("healed", || Ok(Kept { losses: healed.losses }))?;
        let report = Healing {
            steps: kept.losses.len(),
            first_loss: kept.losses.first().copied().unwrap_or(f64::NAN),
            last_loss: kept.losses.last().copied().unwrap_or(f64::NAN),
            tokens: kept.losses.len() * settings.train.batch_size * settings.train.seq_len * settings.train.gradient_accumulation_steps,
            seconds: began.elapsed().as_secs_f64(),
        };
        Ok((shared, report))
    }

    /// Puts the result together and gives it its name.
    fn write(&self, work: Work, shared: &Loaded, report: &Report) -> Result<()> {
        let result = work.result();
        match self.settings.config.format {
            Format::Hf => {
                shared.save(&result, SaveFormat::Shared(DType::F32)).during(|| "writing the result".into())?;
                write_json_atomic(result.join(SETTINGS), self.record)?;
                write_json_atomic(result.join(FILE), report)?;
                write_atomic(result.join("README.md"), report.card())?;
            }
            Format::Gguf => {
                shared.save(&result, SaveFormat::Gguf(GgmlType::F16)).during(|| "writing the result".into())?;
            }
        }
        work.publish()
    }
}

/// `model` with the tokenizer of `like`.
fn with_model(like: &Loaded, model: Decoder) -> Loaded {
    Loaded { model, tokenizer: like.tokenizer.clone(), path: like.path.clone() }
}
