//! Low-rank adapters on a model that is trained further.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use commons_core::Seed;
use commons_core::fs::create_folder;
use commons_nn::format::peft::{Adapter, LoraConfig as PeftConfig, LoraPair};
use commons_nn::model::{BLOCK_MATRICES, Decoder, DecoderConfig, EXPERTS_KEY, layer_prefix};
use serde::{Deserialize, Serialize};

use crate::config::nearest;
use crate::error::{Failure, Result};
use crate::model::Loaded;

/// Low-rank adapters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraConfig {
    /// 0 trains the whole model.
    pub rank: usize,
    /// `None` is twice the rank.
    alpha: Option<f32>,
    /// Last parts of module names.
    target_modules: Vec<String>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self { rank: 0, alpha: None, target_modules: modules_of(|_| true) }
    }
}

/// `q_proj` of `self_attn.q_proj.weight`.
fn module_of(matrix: &str) -> Option<&str> {
    matrix.strip_suffix(".weight")?.rsplit('.').next()
}

/// Modules of the matrices of a layer that `pick` takes.
fn modules_of(pick: impl Fn(&str) -> bool) -> Vec<String> {
    let picked = BLOCK_MATRICES.iter().filter(|m| pick(m));
    picked.filter_map(|m| module_of(m)).map(str::to_owned).collect()
}

impl LoraConfig {
    fn alpha(&self) -> f32 {
        self.alpha.unwrap_or(2. * self.rank as f32)
    }

    fn targets(&self, matrix: &str) -> bool {
        module_of(matrix).is_some_and(|m| self.target_modules.iter().any(|t| t == m))
    }

    /// Checks the names of modules.
    ///
    /// # Errors
    /// Naming the one that is unknown.
    pub fn check(&self) -> Result<()> {
        let modules = modules_of(|_| true);
        let Some(unknown) = self.target_modules.iter().find(|m| !modules.contains(m)) else {
            return Ok(());
        };
        let near = nearest(unknown, &modules);
        let help = if near.is_empty() {
            format!("modules: {}", modules.join(", "))
        } else {
            format!("did you mean {}?", near.join(" or "))
        };
        Err(Failure::usage("--target-modules", format!("`{unknown}` is not a module of a layer"))
            .help(help))
    }

    fn check_shape(&self, config: &DecoderConfig) -> Result<()> {
        let Some(mixture) = &config.mixture_of_experts else { return Ok(()) };
        let inside = BLOCK_MATRICES.iter().find(|m| m.starts_with("mlp.") && self.targets(m));
        let Some(module) = inside.and_then(|m| module_of(m)) else { return Ok(()) };
        let attention = modules_of(|m| m.starts_with("self_attn."));
        let problem = format!(
            "`{module}` is a matrix of {} experts in this model ({EXPERTS_KEY}), each of which few \
             tokens pass; adapters go on attention only",
            mixture.num_experts
        );
        Err(Failure::usage("--target-modules", problem).help(format!(
            "pass --target-modules {}, or train all of it without --lora-rank",
            attention.join(",")
        )))
    }

    /// Puts a low-rank term on every target and freezes everything else.
    ///
    /// # Errors
    /// When the rank does not fit a matrix, or the model has no such matrices.
    pub fn add(&self, model: &mut Decoder, seed: Seed) -> Result<()> {
        self.check_shape(&model.config)?;
        let before: BTreeSet<String> =
            model.bank.stored_vars().map(|(n, _)| n.to_owned()).collect();
        for layer in 0..model.config.num_hidden_layers {
            for matrix in BLOCK_MATRICES.iter().filter(|m| self.targets(m)) {
                let name = format!("{}{matrix}", layer_prefix(layer));
                model.bank.add_lora(&name, self.rank, self.alpha(), seed)?;
            }
        }
        model.bank.freeze(|name| before.contains(name));
        Ok(())
    }

    /// Writes the trained terms as a PEFT adapter of the model `base` they were put on.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn write(&self, base: Option<&str>, loaded: &Loaded, folder: &Path) -> Result<()> {
        let bank = &loaded.model.bank;
        let trained: BTreeSet<&str> = bank.trainable().map(|(name, _)| name).collect();
        let mut pairs = BTreeMap::new();
        for (name, entry) in bank.plan().iter() {
            let Some(module) = name.strip_suffix(".weight") else { continue };
            for term in entry.plus.iter().filter(|term| trained.contains(term.a.as_str())) {
                let factor = |n: &str| Ok::<_, Failure>(bank.stored_var(n)?.as_detached_tensor());
                let pair = LoraPair { a: factor(&term.a)?, b: factor(&term.b)? };
                pairs.insert(module.to_owned(), pair);
            }
        }
        let mut config =
            PeftConfig::new(self.rank, f64::from(self.alpha()), self.target_modules.clone());
        config.base_model_name_or_path = base.map(str::to_owned);
        create_folder(folder)?;
        Ok(Adapter { config, pairs, saved: BTreeMap::new() }.save(folder)?)
    }
}
