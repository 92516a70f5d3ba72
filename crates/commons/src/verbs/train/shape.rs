//! Settings that shape a new model.

use commons_nn::model::{
    EXPERTS_KEY, MixtureOfExperts, MixtureOfRecursions, RECURSION_KEY, SHARE_LAYERS_KEY,
};
use commons_weights::masa::Dictionaries;
use commons_weights::stable_rps::Mapping;
use serde::{Deserialize, Serialize};

use super::Settings;
use crate::error::{Failure, Result};

/// The pool that the matrices of a new model are read from.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PoolConfig {
    /// 0: none.
    pub compression: f64,
    /// Which slot an element is read from.
    pub mapping: Mapping,
    /// Whether the embedding is read from it as well.
    pub embedding: bool,
}

impl PoolConfig {
    /// Whether there is one.
    pub fn is_used(&self) -> bool {
        self.compression != 0.
    }
}

/// The recursions of a model without any.
pub fn no_recursions() -> MixtureOfRecursions {
    MixtureOfRecursions { recursions: 0, ..MixtureOfRecursions::default() }
}

/// The mixture of a model without one.
pub fn no_experts() -> MixtureOfExperts {
    MixtureOfExperts { num_experts: 0, ..MixtureOfExperts::default() }
}

/// Settings of a new model's shape belong to a new model, and experts to a mixture.
pub fn check(settings: &Settings) -> Result<()> {
    let experts = &settings.mixture_of_experts;
    if experts.num_experts == 0 && *experts != no_experts() {
        return Err(Failure::usage(EXPERTS_KEY, "says how experts are used, but there are none")
            .help("say how many with --experts"));
    }
    let recursions = &settings.mixture_of_recursions;
    if recursions.recursions == 0 && *recursions != no_recursions() {
        let why = "says how recursions are taken, but there are none";
        return Err(Failure::usage(RECURSION_KEY, why).help("say how many with --recursions"));
    }
    let dictionaries = &settings.dictionaries;
    if dictionaries.atoms == 0 && *dictionaries != Dictionaries::default() {
        let why = "says how projections are mixed, but there are no atoms";
        return Err(Failure::usage("dictionaries", why).help("say how many with --atoms"));
    }
    if dictionaries.atoms > 0
        && !dictionaries.raw_coefficients
        && settings.train.gradient_checkpointing
    {
        let why = "recomputes layers, which does not go with a network that makes coefficients";
        return Err(Failure::usage("train.gradient_checkpointing", why)
            .help("train the coefficients themselves: --set dictionaries.raw_coefficients=true"));
    }
    let pool = &settings.pool;
    if !pool.is_used() && *pool != PoolConfig::default() {
        let why = "says how a pool is read, but there is none";
        return Err(Failure::usage("pool", why).help("say how small with --pool-compression"));
    }
    if pool.is_used() && dictionaries.atoms > 0 {
        let why = "and --atoms both make the matrices of attention";
        return Err(Failure::usage("--pool-compression", why).help("take one of them"));
    }
    let given = [
        ("pool", pool.is_used()),
        ("dictionaries", dictionaries.atoms > 0),
        (RECURSION_KEY, recursions.recursions > 0),
        (EXPERTS_KEY, experts.num_experts > 0),
        (SHARE_LAYERS_KEY, settings.share_layers),
    ];
    match given.iter().find(|(_, given)| *given) {
        Some((key, _)) if settings.model.is_some() => {
            Err(Failure::usage(*key, "belongs to a new model; the shape of --model is its own"))
        }
        _ => Ok(()),
    }
}
