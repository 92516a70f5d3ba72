//! Experiments, and methods as the rest of the program sees them.

use super::{Claim, ConfigSource, Paper, Recipe, Run, RunOptions, RunResult, config};
use crate::error::{Error, Result};
use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};

/// What the folder of a method implements: the paper, its claims, and how to measure them.
///
/// ```
/// use commons_core::{Result, evidence::*};
/// use schemars::JsonSchema;
/// use serde::{Deserialize, Serialize};
///
/// struct Halving;
///
/// #[derive(Serialize, Deserialize, JsonSchema)]
/// struct Config { parameters: u64 }
///
/// impl Default for Config {
///     fn default() -> Self { Self { parameters: 1000 } }
/// }
///
/// impl Experiment for Halving {
///     const PAPER: Paper = Paper {
///         slug: "halving",
///         title: "Half Is Enough",
///         year: 2024,
///         shares: "every other weight",
///         link: "https://example.org/halving",
///     };
///     const CLAIMS: &'static [Claim] = &[Claim::new(
///         "size",
///         "half of the parameters are stored",
///         Figure::Number(0.5),
///         "stored",
///         Bound::AtMost(0.5),
///     )
///     .against("logical", Compare::Ratio)];
///     const RECIPES: &'static [Recipe] = &[Recipe::smoke("parameters = 10")];
///     type Config = Config;
///
///     fn run(&self, config: &Config, run: &mut Run) -> Result<()> {
///         run.measure("logical", config.parameters as f64);
///         run.measure("stored", (config.parameters / 2) as f64);
///         Ok(())
///     }
/// }
///
/// /// One readable list per crate.
/// pub const METHODS: &[&dyn Method] = &[&Halving];
/// assert_eq!(METHODS[0].paper().slug, "halving");
/// ```
pub trait Experiment: Sync {
    /// The publication.
    const PAPER: Paper;
    /// Its claims, with ids unique among them.
    const CLAIMS: &'static [Claim];
    /// Its recipes, with names unique among them.
    const RECIPES: &'static [Recipe];
    /// The settings. Their defaults are those of the paper where it gives any.
    type Config: Default + Serialize + DeserializeOwned + JsonSchema;

    /// Measures the metric (and baseline) of every claim, logging curves, tables and notes to `run`.
    /// Long work calls [`Run::check_stop`] between steps.
    ///
    /// # Errors
    /// Whatever goes wrong; the run then has no result.
    fn run(&self, config: &Self::Config, run: &mut Run) -> Result<()>;
}

/// An [`Experiment`] behind a pointer. Implemented for every experiment; nothing else should
/// implement it.
pub trait Method: Sync {
    /// The publication.
    fn paper(&self) -> Paper;

    /// Its claims.
    fn claims(&self) -> &'static [Claim];

    /// Its recipes.
    fn recipes(&self) -> &'static [Recipe];

    /// JSON Schema of the settings.
    fn schema(&self) -> serde_json::Value;

    /// The settings that `source` amounts to, every one of them, as TOML.
    ///
    /// # Errors
    /// [`Error::Config`] naming the setting and where it came from, for an unknown key or a wrong
    /// value; [`Error::Argument`] for an unknown recipe; [`Error::Io`] for an unreadable file.
    fn configure(&self, source: &ConfigSource) -> Result<String>;

    /// Runs the experiment and writes its folder.
    ///
    /// # Errors
    /// Those of [`Method::configure`], those of the experiment, [`Error::NoEvidence`] if it left a
    /// claim unmeasured, and [`Error::Io`].
    fn run(&self, source: &ConfigSource, options: RunOptions) -> Result<RunResult>;
}

impl<E: Experiment> Method for E {
    fn paper(&self) -> Paper {
        E::PAPER
    }

    fn claims(&self) -> &'static [Claim] {
        E::CLAIMS
    }

    fn recipes(&self) -> &'static [Recipe] {
        E::RECIPES
    }

    fn schema(&self) -> serde_json::Value {
        schemars::schema_for!(E::Config).to_value()
    }

    fn configure(&self, source: &ConfigSource) -> Result<String> {
        to_toml(&resolve::<E>(source)?)
    }

    fn run(&self, source: &ConfigSource, options: RunOptions) -> Result<RunResult> {
        let config = resolve::<E>(source)?;
        let text = to_toml(&config)?;
        let recipe = source.recipe.as_deref();
        let mut run = Run::create(E::PAPER, E::CLAIMS, recipe, &text, options)?;
        Experiment::run(self, &config, &mut run)?;
        run.finish()
    }
}

fn resolve<E: Experiment>(source: &ConfigSource) -> Result<E::Config> {
    let recipe = source.recipe.as_deref().map(find_recipe::<E>).transpose()?;
    config::resolve(recipe.map(|recipe| (recipe.name, recipe.toml)), source)
}

fn find_recipe<E: Experiment>(name: &str) -> Result<&'static Recipe> {
    let found = E::RECIPES.iter().find(|recipe| recipe.name == name);
    found.ok_or_else(|| {
        let names: Vec<&str> = E::RECIPES.iter().map(|recipe| recipe.name).collect();
        let problem = format!("{} has no recipe {name:?}", E::PAPER.slug);
        Error::argument("recipe", problem, format!("it has: {}", names.join(", ")))
    })
}

fn to_toml(config: &impl Serialize) -> Result<String> {
    toml::to_string_pretty(config).map_err(|error| {
        Error::other(error).context("this configuration cannot be written as TOML")
    })
}
