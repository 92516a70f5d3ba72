//! What a mixture of experts is made of, and layers that all have the same matrices.

use commons_ops::{Activation, Selection};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::config::DecoderConfig;
use super::decoder::{Decoder, layer_prefix};
use super::recursion::RECURSION_KEY;
use super::streams::is_prefix;
use crate::bank::{PART, Share};
use crate::{Error, Result};

/// Key of `config.json` under which a mixture of experts stands.
pub const EXPERTS_KEY: &str = "mixture_of_experts";

/// Key of `config.json` that says that all layers have the same matrices.
pub const SHARE_LAYERS_KEY: &str = "share_layers";

/// Most experts of a layer, of all layers, and most units of an expert.
const MOST_EXPERTS: usize = 4096;
const MOST_IN_ALL: usize = 1 << 18;
const WIDEST: usize = 1 << 24;

/// Experts in place of the feed-forward part of every layer: a router gives each token some of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MixtureOfExperts {
    /// `N`: experts of a layer.
    pub num_experts: usize,
    /// `K`: experts that a token takes.
    pub num_experts_per_tok: usize,
    /// `M`: groups of consecutive experts; a token takes `K/M` of each, so that groups are loaded
    /// alike (MoGE). 1 is plain top-K.
    pub expert_groups: usize,
    /// Width inside an expert; `null` is the decoder's `intermediate_size` divided by
    /// `num_experts_per_tok`, so that a token multiplies as many weights as in the dense decoder.
    pub moe_intermediate_size: Option<usize>,
    /// Width inside the expert that every token takes; 0 leaves it out.
    pub shared_expert_intermediate_size: usize,
    /// Divide the weights of a token's experts by their sum, which makes them `softmax(TopK(Wᵀh))`;
    /// `null` does so with one group, unless a token takes a single expert, whose weight would be 1
    /// whatever the router says. Otherwise weights are those of the softmax over all experts.
    pub norm_topk_prob: Option<bool>,
    /// `α`: weight of the balance loss of every layer in training.
    pub router_aux_loss_coef: f64,
    /// `c`: in training an expert takes at most `⌊c K T / N⌋` of the choices of `T` tokens, the rest
    /// is dropped; `null` drops nothing. Scoring and generation never do.
    pub capacity_factor: Option<f64>,
    /// Deviation of the normal noise on the router's logits in training; WideNet has `1/N`.
    pub router_noise: f64,
}

impl Default for MixtureOfExperts {
    fn default() -> Self {
        Self {
            num_experts: 8,
            num_experts_per_tok: 2,
            expert_groups: 1,
            moe_intermediate_size: None,
            shared_expert_intermediate_size: 0,
            norm_topk_prob: None,
            router_aux_loss_coef: 0.01,
            capacity_factor: None,
            router_noise: 0.,
        }
    }
}

impl MixtureOfExperts {
    /// Who is chosen.
    pub fn selection(&self) -> Selection {
        Selection {
            experts: self.num_experts,
            active: self.num_experts_per_tok,
            groups: self.expert_groups,
        }
    }

    /// Whether weights are divided by their sum, the default filled in.
    pub fn renormalizes(&self) -> bool {
        self.norm_topk_prob.unwrap_or(self.expert_groups == 1 && self.num_experts_per_tok > 1)
    }

    /// Width inside an expert of a decoder whose dense feed-forward part is `dense` wide.
    pub fn expert_width(&self, dense: usize) -> usize {
        self.moe_intermediate_size.unwrap_or((dense / self.num_experts_per_tok.max(1)).max(1))
    }

    /// Checks everything that does not depend on the decoder.
    ///
    /// # Errors
    /// Naming the field and what would do.
    pub fn check(&self) -> Result<()> {
        let bad =
            |field: &str, why: String| Err(Error::config(format!("{EXPERTS_KEY}.{field}"), why));
        let Selection { experts, active, groups } = self.selection();
        if !(1..=MOST_EXPERTS).contains(&experts) {
            return bad("num_experts", format!("{experts} is not in 1..={MOST_EXPERTS}"));
        }
        if groups == 0 || !experts.is_multiple_of(groups) {
            let fits: Vec<String> = (1..=experts)
                .filter(|&m| experts.is_multiple_of(m) && active.is_multiple_of(m))
                .map(|m| m.to_string())
                .collect();
            let why = format!(
                "{groups} groups cannot share {experts} experts of which a token takes {active}: \
                 take {}",
                fits.join(" or ")
            );
            return bad("expert_groups", why);
        }
        if active == 0 || active > experts || !active.is_multiple_of(groups) {
            let below = (active.min(experts) / groups * groups).max(groups);
            let why = if groups == 1 {
                format!("{active} of {experts} experts cannot be taken: take 1 to {experts}")
            } else {
                format!(
                    "{active} cannot be taken as evenly as {groups} groups of {experts} experts \
                     need: take {below}, or another multiple of {groups} up to {experts}"
                )
            };
            return bad("num_experts_per_tok", why);
        }
        if let Some(width) = self.moe_intermediate_size
            && !(1..=WIDEST).contains(&width)
        {
            return bad("moe_intermediate_size", format!("{width} is not between 1 and 2^24"));
        }
        let shared = self.shared_expert_intermediate_size;
        if shared > WIDEST {
            return bad("shared_expert_intermediate_size", format!("{shared} is above 2^24"));
        }
        for (field, v) in [
            ("router_aux_loss_coef", self.router_aux_loss_coef),
            ("router_noise", self.router_noise),
        ] {
            if !(v.is_finite() && v >= 0.) {
                return bad(field, format!("{v} must not be negative"));
            }
        }
        if let Some(c) = self.capacity_factor
            && !(c.is_finite() && c > 0.)
        {
            return bad("capacity_factor", format!("{c} must be above 0: 1.25 is usual"));
        }
        Ok(())
    }
}

impl DecoderConfig {
    /// Checks experts and shared layers against the rest.
    pub(super) fn check_experts(&self) -> Result<()> {
        if self.share_layers && self.mixture_of_recursions.is_some() {
            return Err(Error::config(
                SHARE_LAYERS_KEY,
                format!("{RECURSION_KEY} says already which layers are shared: leave out one"),
            ));
        }
        let Some(mixture) = &self.mixture_of_experts else { return Ok(()) };
        mixture.check()?;
        if self.mixture_of_recursions.is_some() {
            return Err(Error::config(
                EXPERTS_KEY,
                format!(
                    "does not go with {RECURSION_KEY}, whose routers teach themselves other losses: \
                     share all layers ({SHARE_LAYERS_KEY}) instead"
                ),
            ));
        }
        let all = mixture.num_experts.saturating_mul(self.num_hidden_layers);
        if all > MOST_IN_ALL {
            return Err(Error::config(
                format!("{EXPERTS_KEY}.num_experts"),
                format!("{all} experts in all layers are more than {MOST_IN_ALL}: take fewer"),
            ));
        }
        self.activation().map(drop)
    }

    /// Activation of the feed-forward part.
    pub(super) fn activation(&self) -> Result<Activation> {
        match self.hidden_act.as_str() {
            "silu" => Ok(Activation::Silu),
            "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
            other => Err(Error::config(
                "hidden_act",
                format!("`{other}` is not silu or gelu_pytorch_tanh"),
            )),
        }
    }

    /// Name within a layer and shape of the matrices of its feed-forward part.
    pub(super) fn feed_forward_weights(&self) -> Vec<(String, Vec<usize>)> {
        let h = self.hidden_size;
        let gated = |module: &str, f: usize| {
            [("gate", [f, h]), ("up", [f, h]), ("down", [h, f])]
                .map(|(half, shape)| (format!("{module}.{half}_proj.weight"), shape.to_vec()))
        };
        let Some(mixture) = &self.mixture_of_experts else {
            return gated("mlp", self.intermediate_size).to_vec();
        };
        let width = mixture.expert_width(self.intermediate_size);
        let mut all = vec![("mlp.gate.weight".to_owned(), vec![mixture.num_experts, h])];
        let experts = 0..mixture.num_experts;
        all.extend(experts.flat_map(|e| gated(&format!("mlp.experts.{e}"), width)));
        if mixture.shared_expert_intermediate_size > 0 {
            all.extend(gated("mlp.shared_experts", mixture.shared_expert_intermediate_size));
        }
        all
    }

    /// Parameters of a feed-forward part that a token multiplies.
    pub(super) fn feed_forward_parameters(&self) -> usize {
        let h = self.hidden_size;
        self.mixture_of_experts.as_ref().map_or(3 * h * self.intermediate_size, |m| {
            let routed = m.num_experts_per_tok * m.expert_width(self.intermediate_size);
            h * m.num_experts + 3 * h * (routed + m.shared_expert_intermediate_size)
        })
    }

    /// Name of the stored part that the weight `name` of a layer is, where layers share.
    pub(super) fn shared_part(&self, name: &str) -> Option<String> {
        self.recursion_part(name).or_else(|| self.layer_part(name))
    }

    /// Name of the stored part that the weight `name` is of every layer. Norms and the prefixes of
    /// parallel streams are each layer's own.
    fn layer_part(&self, name: &str) -> Option<String> {
        let (_, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
        let own = rest.contains("norm") || is_prefix(rest);
        let shared = self.share_layers && self.num_hidden_layers > 1 && !own;
        shared.then(|| format!("{PART}layer.{rest}"))
    }

    /// Checks that every layer has one feed-forward part.
    ///
    /// # Errors
    /// When there are experts.
    pub fn check_dense(&self) -> Result<()> {
        let Some(mixture) = &self.mixture_of_experts else { return Ok(()) };
        Err(Error::config(
            EXPERTS_KEY,
            format!(
                "a feed-forward part is {} experts behind a router, not the three matrices that \
                 methods of sharing know: take a dense model, or train one whose layers share \
                 from the start ({SHARE_LAYERS_KEY})",
                mixture.num_experts
            ),
        ))
    }

    /// Checks that a program which knows no mixtures of ours computes the same.
    pub(super) fn check_without_experts(&self) -> Result<()> {
        let Some(mixture) = &self.mixture_of_experts else { return Ok(()) };
        Err(Error::config(
            EXPERTS_KEY,
            format!(
                "{} experts behind this router have no form that transformers or llama.cpp load: \
                 use the model as it is with commons (generate, eval, train)",
                mixture.num_experts
            ),
        ))
    }
}

impl Decoder {
    /// Whether the plan makes all layers the same parts, low-rank terms aside.
    pub(super) fn shares_layers(&self) -> bool {
        let is_part = |layer: usize, rest: &str| {
            let name = format!("{}{rest}", layer_prefix(layer));
            let Some(part) = self.config.layer_part(&name) else { return true };
            let entry = self.bank.plan().get(&name);
            matches!(entry.map(|e| &e.share), Some(Share::Same { owner }) if *owner == part)
        };
        let weights = self.config.layer_weights();
        self.config.share_layers
            && (0..self.config.num_hidden_layers)
                .all(|layer| weights.iter().all(|(rest, _)| is_part(layer, rest)))
    }
}
