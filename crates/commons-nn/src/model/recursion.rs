//! What a mixture of recursions is made of: which depths share a layer, how often the shared layers
//! are passed, and who decides it.

use std::ops::Range;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::config::{DecoderConfig, LayerType};
use crate::bank::PART;
use crate::{Error, Result};

/// Key of `config.json` under which a mixture of recursions stands.
pub const RECURSION_KEY: &str = "mixture_of_recursions";

/// Most recursions of a model.
const MOST_RECURSIONS: usize = 64;

/// Which depths share a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RecursionSharing {
    /// The whole stack is passed again and again: depth `ℓ` is layer `ℓ mod L/N`.
    Cycle,
    /// Every layer is passed `N` times in a row: depth `ℓ` is layer `⌊ℓ/N⌋`.
    Sequence,
    /// Cycle, with a first and a last layer of their own.
    #[default]
    MiddleCycle,
    /// Sequence, with a first and a last layer of their own.
    MiddleSequence,
}

impl RecursionSharing {
    /// Layers at each end that share nothing.
    pub fn ends(self) -> usize {
        usize::from(matches!(self, Self::MiddleCycle | Self::MiddleSequence))
    }

    /// Whether the same layers are passed in every recursion.
    pub fn is_cycle(self) -> bool {
        matches!(self, Self::Cycle | Self::MiddleCycle)
    }

    /// The shared layer at `depth` of `layers` depths, of `layers − 2·ends` over `recursions`;
    /// `None` at the ends.
    pub fn layer_at(self, depth: usize, layers: usize, recursions: usize) -> Option<usize> {
        let ends = self.ends();
        if depth < ends || depth + ends >= layers {
            return None;
        }
        let (depth, block) = (depth - ends, (layers - 2 * ends) / recursions.max(1));
        Some(if self.is_cycle() { depth % block.max(1) } else { depth / recursions.max(1) })
    }

    /// The depths of each recursion, one after the other.
    pub fn recursions(self, layers: usize, recursions: usize) -> Vec<Range<usize>> {
        let ends = self.ends();
        let block = layers.saturating_sub(2 * ends) / recursions.max(1);
        (0..recursions).map(|r| ends + r * block..ends + (r + 1) * block).collect()
    }

    /// `middle_cycle` and the like.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cycle => "cycle",
            Self::Sequence => "sequence",
            Self::MiddleCycle => "middle_cycle",
            Self::MiddleSequence => "middle_sequence",
        }
    }
}

/// Who decides how often a token passes the shared layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RouterKind {
    /// Before every recursion, those with the highest scores among the tokens of the one before.
    #[default]
    Expert,
    /// The token, once, before the first.
    Token,
    /// Chance, by the token's position: what routing must beat.
    Random,
}

/// How the result of a recursion enters the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RecursionGate {
    /// Times the router's score.
    #[default]
    Weighted,
    /// As it is.
    Additive,
}

/// What tells, from a token alone, whether the highest scores of its sequence would have held it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ThresholdSource {
    /// The router, taught by an auxiliary loss to give those more than one half.
    #[default]
    Router,
    /// A second router that learns the same without a gradient to the model.
    AuxiliaryRouter,
}

/// Whose keys and values a recursion attends to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RecursionCache {
    /// Those of the tokens that took part in it.
    #[default]
    Recursion,
    /// Those that all tokens left in the first.
    Shared,
}

/// A mixture of recursions (Bae et al. 2025): some layers are passed up to `recursions` times, each
/// token as often as a router says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MixtureOfRecursions {
    /// `N`: recursions.
    pub recursions: usize,
    /// Which depths share a layer.
    pub sharing: RecursionSharing,
    /// Who decides.
    pub router: RouterKind,
    /// Share of the tokens in each recursion, falling; empty is `(N − r + 1)/N`.
    pub capacities: Vec<f64>,
    /// `α`: multiplier of the router's score; `null` is 0.1 (expert, random) or 1 (token).
    pub alpha: Option<f64>,
    /// How the result of a recursion enters the residual stream.
    pub gate: RecursionGate,
    /// What decides where the end of the sequence is not known.
    pub threshold: ThresholdSource,
    /// Whose keys and values a recursion attends to.
    pub kv_cache: RecursionCache,
    /// Weight of the auxiliary loss: of the threshold (expert; `null` is 0.001), of the balance of
    /// depths (token; `null` is 0.1).
    pub router_aux_loss_coef: Option<f64>,
    /// Weight of `mean(logsumexp(logits)²)`; `null` is 0 (expert) or 1e-5 (token).
    pub router_z_loss_coef: Option<f64>,
}

impl Default for MixtureOfRecursions {
    fn default() -> Self {
        Self {
            recursions: 2,
            sharing: RecursionSharing::default(),
            router: RouterKind::default(),
            capacities: Vec::new(),
            alpha: None,
            gate: RecursionGate::default(),
            threshold: ThresholdSource::default(),
            kv_cache: RecursionCache::default(),
            router_aux_loss_coef: None,
            router_z_loss_coef: None,
        }
    }
}

impl MixtureOfRecursions {
    /// `α`, the default filled in.
    pub fn alpha(&self) -> f64 {
        self.alpha.unwrap_or(if self.router == RouterKind::Token { 1. } else { 0.1 })
    }

    /// Weight of the auxiliary loss, the default filled in.
    pub fn aux_loss_coef(&self) -> f64 {
        let default = if self.router == RouterKind::Token { 0.1 } else { 0.001 };
        self.router_aux_loss_coef.unwrap_or(default)
    }

    /// Weight of the z-loss, the default filled in.
    pub fn z_loss_coef(&self) -> f64 {
        let default = if self.router == RouterKind::Token { 1e-5 } else { 0. };
        self.router_z_loss_coef.unwrap_or(default)
    }

    /// Share of the tokens in recursion `r`, from 0.
    pub fn capacity(&self, r: usize) -> f64 {
        let n = self.recursions.max(1);
        self.capacities.get(r).copied().unwrap_or((n - r.min(n - 1)) as f64 / n as f64)
    }

    /// Tokens of a sequence of `seq` in recursion `r`, from 0: `max(1, ⌊c_r seq⌋)`, counted in whole
    /// numbers where capacities are the default.
    pub fn tokens(&self, r: usize, seq: usize) -> usize {
        let n = self.recursions.max(1);
        let k = match self.capacities.get(r) {
            Some(c) => (c * seq as f64 + 1e-9).floor() as usize,
            None => (n - r.min(n - 1)) * seq / n,
        };
        k.clamp(1, seq.max(1))
    }

    /// Whether all tokens take part in recursion `r`.
    pub fn takes_all(&self, r: usize) -> bool {
        self.router == RouterKind::Token && r == 0 || self.capacity(r) >= 1.
    }

    /// Passes of a token through the shared layers that are to be expected: `Σ c_r`, which is also
    /// what balanced depths come to.
    pub fn expected_passes(&self) -> f64 {
        (0..self.recursions).map(|r| self.capacity(r)).sum()
    }

    /// Checks everything that does not depend on the decoder.
    ///
    /// # Errors
    /// Naming the field and what would do.
    pub fn check(&self) -> Result<()> {
        let bad =
            |field: &str, why: String| Err(Error::config(format!("{RECURSION_KEY}.{field}"), why));
        let n = self.recursions;
        if !(1..=MOST_RECURSIONS).contains(&n) {
            return bad("recursions", format!("{n} is not in 1..={MOST_RECURSIONS}"));
        }
        let c = &self.capacities;
        if !c.is_empty() && self.router == RouterKind::Token {
            return bad("capacities", "belong to expert choice: leave them out".into());
        }
        if !c.is_empty() && c.len() != n {
            return bad("capacities", format!("{} shares for {n} recursions", c.len()));
        }
        if c.iter().any(|&x| !(x > 0. && x <= 1.)) {
            return bad("capacities", format!("{c:?}: each must be above 0 and at most 1"));
        }
        if c.windows(2).any(|w| w[1] > w[0]) {
            return bad(
                "capacities",
                format!("{c:?} rise: a recursion chooses among the tokens of the one before"),
            );
        }
        if self.kv_cache == RecursionCache::Shared {
            if !self.sharing.is_cycle() {
                let name = self.sharing.name();
                return bad(
                    "kv_cache",
                    format!(
                        "keys are shared between passes of the same layer, and under {name} the \
                         recursions have other layers: use sharing middle_cycle, or kv_cache \
                         recursion"
                    ),
                );
            }
            if !self.takes_all(0) {
                return bad(
                    "kv_cache",
                    "shared needs every token in recursion 1: let the first \
                                        capacity be 1"
                        .into(),
                );
            }
        }
        let coefs = [
            ("alpha", self.alpha()),
            ("router_aux_loss_coef", self.aux_loss_coef()),
            ("router_z_loss_coef", self.z_loss_coef()),
        ];
        for (field, v) in coefs {
            if !(v.is_finite() && v >= 0.) {
                return bad(field, format!("{v} must not be negative"));
            }
        }
        Ok(())
    }
}

impl DecoderConfig {
    /// Checks the mixture of recursions against the layers.
    pub(super) fn check_recursions(&self) -> Result<()> {
        let Some(mixture) = &self.mixture_of_recursions else { return Ok(()) };
        mixture.check()?;
        if self.parallel_streams.is_some() {
            return Err(Error::config(RECURSION_KEY, "does not go with parallel_streams"));
        }
        if self.layer_types.contains(&LayerType::SlidingAttention) {
            return Err(Error::config(
                RECURSION_KEY,
                "needs layers that see all earlier tokens, not a sliding window",
            ));
        }
        let (layers, n) = (self.num_hidden_layers, mixture.recursions);
        let ends = 2 * mixture.sharing.ends();
        if layers < ends + n || !(layers - ends).is_multiple_of(n) {
            let middle = layers.saturating_sub(ends);
            let below = ends + (middle / n).max(1) * n;
            let above = below + n;
            let name = mixture.sharing.name();
            let others: Vec<_> = (2..=middle).filter(|n| middle.is_multiple_of(*n)).collect();
            let instead = match &others[..] {
                [] => String::new(),
                [only] => format!(", or {only} recursions"),
                _ => format!(", or recursions out of {others:?}"),
            };
            return Err(Error::config(
                "num_hidden_layers",
                format!(
                    "{layers} layers do not make {n} recursions under {name}: take {below} or \
                     {above} layers{instead}"
                ),
            ));
        }
        Ok(())
    }

    /// Name of the stored part that the weight `name` of a layer is, where layers are passed again.
    pub fn recursion_part(&self, name: &str) -> Option<String> {
        let mixture = self.mixture_of_recursions.as_ref().filter(|m| m.recursions > 1)?;
        let (depth, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
        let (layers, n) = (self.num_hidden_layers, mixture.recursions);
        let layer = mixture.sharing.layer_at(depth.parse().ok()?, layers, n)?;
        Some(format!("{PART}recursion.{layer}.{rest}"))
    }

    /// Name and shape of the weights that decide.
    pub fn router_weights(&self) -> Vec<(String, Vec<usize>)> {
        let Some(mixture) = &self.mixture_of_recursions else { return Vec::new() };
        let h = self.hidden_size;
        if mixture.router == RouterKind::Token {
            return vec![("model.recursion_router.weight".into(), vec![mixture.recursions, h])];
        }
        let mut all = Vec::new();
        for r in 0..mixture.recursions {
            all.push((format!("model.recursion_router.{r}.weight"), vec![1, h]));
            if mixture.threshold == ThresholdSource::AuxiliaryRouter && !mixture.takes_all(r) {
                all.push((format!("model.recursion_router.{r}.auxiliary.weight"), vec![1, h]));
            }
        }
        all
    }

    /// Layers that a token passes, as far as can be expected where a router decides.
    pub fn expected_layers(&self) -> f64 {
        let layers = self.num_hidden_layers as f64;
        self.mixture_of_recursions.as_ref().map_or(layers, |m| {
            let ends = (2 * m.sharing.ends()) as f64;
            ends + (layers - ends) / m.recursions.max(1) as f64 * m.expected_passes()
        })
    }

    /// Checks that every token passes every layer.
    ///
    /// # Errors
    /// When a router decides.
    pub fn check_every_layer(&self) -> Result<()> {
        if self.mixture_of_recursions.is_none() {
            return Ok(());
        }
        Err(Error::config(
            RECURSION_KEY,
            "a router decides which tokens pass a layer: the layers cannot be used one by one; use \
             the model as a whole (generate, eval, train)",
        ))
    }

    /// Checks that a program which knows no routers computes the same.
    pub(super) fn check_unrouted(&self) -> Result<()> {
        let Some(mixture) = &self.mixture_of_recursions else { return Ok(()) };
        Err(Error::config(
            RECURSION_KEY,
            format!(
                "{} recursions with a depth of its own for every token have no form that \
                 transformers or llama.cpp load: use the model as it is with commons (generate, \
                 eval, train)",
                mixture.recursions
            ),
        ))
    }
}
