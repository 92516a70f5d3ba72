//! A mixture-of-experts layer over a [`Bank`].
//!
//! Weights are named as in Hugging Face's mixtures: `{module}.gate.weight` is the router,
//! `{module}.experts.{e}.{gate,up,down}_proj.weight` the experts (with biases if the bank has
//! them; without `gate_proj` an expert is a plain feed-forward part), and
//! `{module}.shared_experts.….weight` one that every token takes.

use std::time::{Duration, Instant};

use commons_core::Seed;
use commons_ops::{self as ops, Activation, Dispatch, Expert, MoeTimes, Selection, Tensor};

use crate::bank::Bank;
use crate::{Error, Result};

/// How tokens find their experts.
#[derive(Debug, Clone)]
pub struct MoeRoute {
    /// Experts, how many a token takes and of which groups.
    pub selection: Selection,
    /// `c`: an expert takes at most `⌊c · active · tokens / experts⌋` assignments, the rest is
    /// dropped; without it nothing is.
    pub capacity: Option<f64>,
    /// Divide the weights of the chosen by their sum.
    pub renormalize: bool,
    /// Standard normal noise times this, added to the logits, and its seed.
    pub noise: Option<(Seed, f32)>,
    /// Activation of the experts.
    pub act: Activation,
}

/// What a mixture gives for a batch.
#[derive(Debug, Clone)]
pub struct MoeOutput {
    /// Shape of the input.
    pub y: Tensor,
    /// Balance loss before its factor, see [`ops::router_balance`].
    pub balance: Tensor,
    /// Probabilities of all experts `[tokens, experts]`.
    pub probabilities: Tensor,
    /// Who went where.
    pub dispatch: Dispatch,
    /// Time of the forward pass.
    pub times: MoeLayerTimes,
}

/// Wall time of the parts of a forward pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MoeLayerTimes {
    /// Probabilities, choice and weights.
    pub routing: Duration,
    /// Sorting, gathering, experts, combination.
    pub parts: MoeTimes,
    /// The expert that every token takes.
    pub shared: Duration,
}

impl MoeLayerTimes {
    /// Seconds of routing, dispatch, experts (shared ones too) and combination.
    pub fn seconds(&self) -> [f64; 4] {
        let MoeTimes { dispatch, experts, combine } = self.parts;
        [self.routing, dispatch, experts + self.shared, combine].map(|d| d.as_secs_f64())
    }
}

/// Seconds of routing, dispatch, experts and combination, summed over calls.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct MoeTimeSums {
    sums: [f64; 4],
    calls: usize,
}

impl MoeTimeSums {
    /// Names of the parts.
    pub const PARTS: [&'static str; 4] = ["routing", "dispatch", "experts", "combine"];

    /// Counts a call.
    pub fn add(&mut self, times: &MoeLayerTimes) {
        self.sums.iter_mut().zip(times.seconds()).for_each(|(sum, s)| *sum += s);
        self.calls += 1;
    }

    /// Mean seconds of the parts of a call; `None` if there was none.
    pub fn means(&self) -> Option<[f64; 4]> {
        (self.calls > 0).then(|| self.sums.map(|s| s / self.calls as f64))
    }
}

/// Places of an expert: `⌊c · active · tokens / experts⌋`.
///
/// # Errors
/// When that is zero.
pub fn capacity(factor: f64, selection: Selection, tokens: usize) -> Result<usize> {
    let places = factor * (selection.active * tokens) as f64 / selection.experts as f64;
    // A product that is whole in decimals may be a hair below in binary.
    let places = (places + 1e-9).floor();
    if !(places >= 1.) {
        return Err(Error::config(
            "capacity",
            format!("{factor} rounds to 0 places for {tokens} tokens: raise it or the batch"),
        ));
    }
    Ok(places as usize)
}

/// The experts `{module}.experts.{e}`.
///
/// # Errors
/// Naming the missing weight.
pub fn experts(bank: &Bank, module: &str, count: usize) -> Result<Vec<Expert>> {
    (0..count).map(|e| expert(bank, &format!("{module}.experts.{e}"))).collect()
}

fn expert(bank: &Bank, module: &str) -> Result<Expert> {
    Ok(Expert {
        gate: bank.optional(&format!("{module}.gate_proj.weight"))?,
        up: bank.weight(&format!("{module}.up_proj.weight"))?,
        up_bias: bank.optional(&format!("{module}.up_proj.bias"))?,
        down: bank.weight(&format!("{module}.down_proj.weight"))?,
        down_bias: bank.optional(&format!("{module}.down_proj.bias"))?,
    })
}

/// The mixture `module` of `x [.., hidden]`.
///
/// # Errors
/// When a weight is missing or counts do not fit.
pub fn moe(bank: &Bank, module: &str, x: &Tensor, route: &MoeRoute) -> Result<MoeOutput> {
    let began = Instant::now();
    let mut logits = ops::linear(x, &bank.weight(&format!("{module}.gate.weight"))?, None)?;
    let tokens = logits.elem_count() / route.selection.experts.max(1);
    logits = logits.reshape((tokens, route.selection.experts))?;
    if let Some((seed, deviation)) = route.noise {
        let mut noise = vec![0f32; logits.elem_count()];
        seed.normal(0, &mut noise);
        noise.iter_mut().for_each(|n| *n *= deviation);
        logits = ops::add(&logits, &Tensor::from_vec(noise, logits.shape(), logits.device())?)?;
    }
    let probabilities = ops::softmax(&logits)?;
    let scores = probabilities.detach().flatten_all()?.to_vec1::<f32>()?;
    let places = route.capacity.map(|c| capacity(c, route.selection, tokens)).transpose()?;
    let ids = route.selection.choose(&scores)?;
    let chosen = Instant::now();
    let dispatch = Dispatch::of(route.selection, ids, places, None)?;
    let sorted = chosen.elapsed();
    let gates = ops::gates(&probabilities, &dispatch, route.renormalize)?;
    let balance = ops::router_balance(&probabilities, &dispatch)?;
    let routing = began.elapsed().saturating_sub(sorted);
    let list = experts(bank, module, route.selection.experts)?;
    let (mut y, mut parts) = ops::moe(x, &gates, &dispatch, &list, route.act)?;
    parts.dispatch += sorted;
    let alone = Instant::now();
    let shared = format!("{module}.shared_experts");
    if bank.contains(&format!("{shared}.up_proj.weight")) {
        y = ops::add(&y, &shared_expert(bank, &shared, x, route.act)?)?;
    }
    let times = MoeLayerTimes { routing, parts, shared: alone.elapsed() };
    Ok(MoeOutput { y, balance, probabilities, dispatch, times })
}

fn shared_expert(bank: &Bank, module: &str, x: &Tensor, act: Activation) -> Result<Tensor> {
    let up = bank.linear(&format!("{module}.up_proj"), x)?;
    let gate = format!("{module}.gate_proj");
    let inner = match bank.contains(&format!("{gate}.weight")) {
        true if act == Activation::Silu => ops::swiglu(&bank.linear(&gate, x)?, &up)?,
        true if act == Activation::GeluTanh => ops::geglu(&bank.linear(&gate, x)?, &up)?,
        true => return Err(Error::config("act", "gated shared experts need silu or tanh-GELU")),
        false => ops::activation(&up, act)?,
    };
    bank.linear(&format!("{module}.down_proj"), &inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capacity_is_that_of_the_paper() {
        assert_eq!(capacity(1.2, Selection::top_k(4, 2), 100).unwrap(), 60);
        let error = capacity(0.1, Selection::top_k(4, 1), 8).unwrap_err().to_string();
        assert!(error.contains("capacity"), "{error}");
    }
}
