//! The socket every method that compresses a pretrained decoder plugs into.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use commons_core::table::Table;
use commons_nn::model::Decoder;
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::heal::HealConfig;
use crate::{Error, Result};

/// What a method may look at while it decides what to share.
pub struct Context<'a> {
    /// Tokens of calibration text.
    pub calibration: &'a [u32],
    /// Seed of every draw.
    pub seed: u64,
    /// Raised to give up; the method returns [`Error::Interrupted`].
    pub stop: Arc<AtomicBool>,
    /// Called with (what is being done, done, of how many).
    pub progress: &'a mut dyn FnMut(&str, usize, usize),
}

impl Context<'_> {
    /// Reports progress and gives up if asked to.
    ///
    /// # Errors
    /// [`Error::Interrupted`] once the stop flag is up.
    pub fn tick(&mut self, what: &str, done: usize, total: usize) -> Result<()> {
        (self.progress)(what, done, total);
        if self.stop.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }
}

/// Refuses weights that are made from others already: a plan has depth one. `or` is appended to the
/// remedy.
///
/// # Errors
/// Naming the first such weight of `names`.
pub(crate) fn check_own(
    model: &Decoder,
    names: impl IntoIterator<Item = String>,
    or: &str,
) -> Result<()> {
    match names.into_iter().find(|name| model.bank.plan().get(name).is_some()) {
        Some(name) => Err(Error::config(
            name,
            format!(
                "is made from others already: write the model out with `commons materialize` \
                 first{or}"
            ),
        )),
        None => Ok(()),
    }
}

/// A model whose weights are shared, before healing.
#[derive(Debug)]
pub struct Shared {
    /// The model; its bank carries the plan and freezes what healing must not touch.
    pub model: Decoder,
    /// What the method has to say about what it did: errors per layer, gates, groups.
    pub tables: Vec<Table>,
}

/// A method that turns a decoder into one that stores fewer parameters.
pub trait Compress: Sync {
    /// Options of the method. Healing has its own field in them so that one file says everything.
    type Config: Default + Serialize + DeserializeOwned + JsonSchema;

    /// Name on the command line.
    const SLUG: &'static str;

    /// One line for lists.
    const SUMMARY: &'static str;

    /// Refuses what cannot work on `model`, as far as that shows before anything is computed; options
    /// of healing are checked by [`AnyCompress::check`].
    ///
    /// # Errors
    /// When the method does not apply to the model (saying why, and the nearest setting that does)
    /// or an option is out of range.
    fn check(&self, config: &Self::Config, model: &Decoder) -> Result<()>;

    /// Shares the weights of `model`.
    ///
    /// # Errors
    /// As [`Self::check`], and when weights or calibration text do not allow it.
    fn share(
        &self,
        config: &Self::Config,
        model: &Decoder,
        context: &mut Context<'_>,
    ) -> Result<Shared>;

    /// The options of the healing that follows.
    fn healing<'a>(&self, config: &'a mut Self::Config) -> &'a mut HealConfig;
}

/// [`Compress`] with the options as JSON, so that methods of different options stand in one list.
pub trait AnyCompress: Sync {
    /// Name on the command line.
    fn slug(&self) -> &'static str;
    /// One line for lists.
    fn summary(&self) -> &'static str;
    /// The default options.
    ///
    /// # Errors
    /// When they cannot be written as JSON.
    fn default_config(&self) -> Result<Value>;
    /// JSON schema of the options.
    fn schema(&self) -> Value;
    /// [`Compress::check`], and that of the options of healing.
    ///
    /// # Errors
    /// As [`Compress::check`] and [`HealConfig::check`], and naming an unknown option.
    fn check(&self, config: &Value, model: &Decoder) -> Result<()>;
    /// [`Compress::share`].
    ///
    /// # Errors
    /// As [`Compress::share`], and naming an unknown option.
    fn share(&self, config: &Value, model: &Decoder, context: &mut Context<'_>) -> Result<Shared>;
    /// The healing part of the options.
    ///
    /// # Errors
    /// Naming an unknown option.
    fn healing(&self, config: &Value) -> Result<HealConfig>;
}

fn parse<T: DeserializeOwned>(config: &Value) -> Result<T> {
    serde_path_to_error::deserialize(config)
        .map_err(|e| Error::config(e.path().to_string(), e.inner().to_string()))
}

impl<C: Compress> AnyCompress for C {
    fn slug(&self) -> &'static str {
        C::SLUG
    }

    fn summary(&self) -> &'static str {
        C::SUMMARY
    }

    fn default_config(&self) -> Result<Value> {
        serde_json::to_value(C::Config::default()).map_err(|e| Error::config("*", e.to_string()))
    }

    fn schema(&self) -> Value {
        schemars::schema_for!(C::Config).to_value()
    }

    fn check(&self, config: &Value, model: &Decoder) -> Result<()> {
        let mut config: C::Config = parse(config)?;
        Compress::healing(self, &mut config).check()?;
        Compress::check(self, &config, model)
    }

    fn share(&self, config: &Value, model: &Decoder, context: &mut Context<'_>) -> Result<Shared> {
        Compress::share(self, &parse(config)?, model, context)
    }

    fn healing(&self, config: &Value) -> Result<HealConfig> {
        let mut config: C::Config = parse(config)?;
        Ok(Compress::healing(self, &mut config).clone())
    }
}
