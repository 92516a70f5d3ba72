//! Optimisers over a bank: each stored parameter is stepped once, however many weights it makes.

mod zero_order;

use std::collections::BTreeMap;

use commons_ops::optim::{
    Adafactor, AdafactorState, AdamW, AdamWState, Muon, MuonState, Optimizer as Rule, Sgd, SgdState,
};
use commons_ops::{DType, Device, Grads, Tensor, Var};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use zero_order::ZeroOrder;

use crate::bank::Bank;
use crate::{Error, Result};

/// Which rule, with its constants; the learning rate belongs to the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "name", rename_all = "snake_case", deny_unknown_fields)]
pub enum RuleConfig {
    /// Adam with decoupled weight decay.
    #[serde(rename = "adamw")]
    AdamW {
        /// Decay of the first moment.
        #[serde(default = "beta1")]
        beta1: f64,
        /// Decay of the second moment.
        #[serde(default = "beta2")]
        beta2: f64,
        /// Added to the root of the second moment.
        #[serde(default = "eps")]
        eps: f64,
    },
    /// Gradient descent with momentum.
    Sgd {
        /// Decay of the velocity; zero keeps none.
        #[serde(default)]
        momentum: f64,
        /// Look ahead along the velocity.
        #[serde(default)]
        nesterov: bool,
    },
    /// Orthogonalised momentum for hidden matrices; everything else, embeddings and output head
    /// included, takes AdamW at `adamw_lr_scale` times the rate.
    Muon {
        /// Decay of the momentum.
        #[serde(default = "muon_momentum")]
        momentum: f64,
        /// Rate of the AdamW part relative to Muon's.
        #[serde(default = "adamw_lr_scale")]
        adamw_lr_scale: f64,
    },
    /// Row and column second moments; small state.
    Adafactor {},
    /// Two forward passes along a seeded direction instead of a backward pass (SPSA).
    ZeroOrder {
        /// Length of the step to either side, in standard deviations of the direction.
        #[serde(default = "perturbation")]
        eps: f64,
        /// Directions averaged in one step.
        #[serde(default = "directions")]
        directions: usize,
    },
}

fn beta1() -> f64 {
    0.9
}
fn beta2() -> f64 {
    0.95
}
fn eps() -> f64 {
    1e-8
}
fn muon_momentum() -> f64 {
    0.95
}
fn adamw_lr_scale() -> f64 {
    0.15
}
fn perturbation() -> f64 {
    1e-3
}
fn directions() -> usize {
    1
}

impl Default for RuleConfig {
    fn default() -> Self {
        Self::AdamW { beta1: beta1(), beta2: beta2(), eps: eps() }
    }
}

/// Parameters that deviate from the run's settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ParamGroup {
    /// A stored name belongs to the group if it contains any of these.
    pub names: Vec<String>,
    /// Multiplies the learning rate.
    pub lr_scale: f64,
    /// Replaces the weight decay.
    pub weight_decay: Option<f64>,
}

impl Default for ParamGroup {
    fn default() -> Self {
        Self { names: Vec::new(), lr_scale: 1., weight_decay: None }
    }
}

/// Rule, weight decay and parameter groups.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerConfig {
    /// The rule.
    pub rule: RuleConfig,
    /// Decoupled decay of matrices (vectors such as gains and biases never decay, unless a group
    /// says so), in units of the learning rate.
    pub weight_decay: f64,
    /// Groups in order; the first that matches a name applies.
    pub groups: Vec<ParamGroup>,
}

impl OptimizerConfig {
    /// Rate factor and weight decay of a stored tensor.
    fn settings(&self, name: &str, rank: usize) -> (f64, f64) {
        let plain = if rank > 1 { self.weight_decay } else { 0. };
        match self.groups.iter().find(|g| g.names.iter().any(|n| name.contains(n.as_str()))) {
            Some(group) => (group.lr_scale, group.weight_decay.unwrap_or(plain)),
            None => (1., plain),
        }
    }
}

enum State {
    AdamW(AdamWState),
    Sgd(SgdState),
    Muon(MuonState),
    Adafactor(AdafactorState),
}

/// A rule and its state for every trainable tensor of a bank.
pub struct Optimizer {
    config: OptimizerConfig,
    states: BTreeMap<String, State>,
    zero_order: Option<ZeroOrder>,
}

/// Whether Muon serves a tensor: a hidden matrix, not an embedding, head or vector.
fn is_hidden_matrix(name: &str, var: &Var) -> bool {
    let table = ["embed", "lm_head", "classifier", "position"];
    var.rank() >= 2 && !table.iter().any(|t| name.contains(t))
}

impl Optimizer {
    /// The state before the first step.
    ///
    /// # Errors
    /// When a constant is out of range.
    pub fn new(config: OptimizerConfig, bank: &Bank) -> Result<Self> {
        let mut optimizer = Self { config, states: BTreeMap::new(), zero_order: None };
        if let RuleConfig::ZeroOrder { eps, directions } = optimizer.config.rule {
            optimizer.zero_order = Some(ZeroOrder::new(eps, directions)?);
            return Ok(optimizer);
        }
        for (name, var) in bank.trainable() {
            let state = optimizer.init(name, var)?;
            optimizer.states.insert(name.to_owned(), state);
        }
        Ok(optimizer)
    }

    /// The zeroth-order rule, if that is what this optimiser is.
    pub fn zero_order(&self) -> Option<ZeroOrder> {
        self.zero_order
    }

    fn init(&self, name: &str, var: &Var) -> Result<State> {
        Ok(match &self.config.rule {
            RuleConfig::Muon { momentum, .. } if is_hidden_matrix(name, var) => {
                State::Muon(Muon { momentum: *momentum, ..Muon::default() }.init(var)?)
            }
            RuleConfig::AdamW { .. } | RuleConfig::Muon { .. } => {
                State::AdamW(AdamW::default().init(var)?)
            }
            RuleConfig::Sgd { momentum, .. } => {
                State::Sgd(Sgd { momentum: *momentum, ..Sgd::default() }.init(var)?)
            }
            RuleConfig::Adafactor {} => State::Adafactor(Adafactor::default().init(var)?),
            RuleConfig::ZeroOrder { .. } => {
                return Err(Error::config("rule", "a zeroth-order rule has no gradient state"));
            }
        })
    }

    /// Steps every trainable tensor that has a gradient with `grad_scale` times it, clipped to
    /// `max_grad_norm` (0 = not clipped). Returns the norm of the scaled gradient before clipping.
    ///
    /// Nothing is stepped when the norm is not finite.
    pub fn step(
        &mut self,
        bank: &Bank,
        grads: &Grads,
        rate: f64,
        grad_scale: f64,
        max_grad_norm: f64,
    ) -> Result<f64> {
        let norm = grads.global_norm()? * grad_scale;
        if !norm.is_finite() {
            return Ok(norm);
        }
        let clip =
            if max_grad_norm > 0. && norm > max_grad_norm { max_grad_norm / norm } else { 1. };
        let factor = (grad_scale * clip) as f32;
        for (name, var) in bank.trainable() {
            let Some(grad) = grads.get(var) else { continue };
            let (lr_scale, decay) = self.config.settings(name, var.rank());
            let state = match self.states.get_mut(name) {
                Some(state) => state,
                None => {
                    let fresh = self.init(name, var)?;
                    self.states.entry(name.to_owned()).or_insert(fresh)
                }
            };
            step_one(&self.config.rule, state, var, grad, factor, rate * lr_scale, decay)?;
        }
        Ok(norm)
    }

    /// The state as named tensors, for a checkpoint.
    pub fn state(&self) -> BTreeMap<String, Tensor> {
        let mut all = BTreeMap::new();
        for (name, state) in &self.states {
            let mut put = |part: &str, t: &Tensor| all.insert(format!("{name}#{part}"), t.clone());
            let count = |n: u64| Tensor::new(&[n as i64], &Device::Cpu);
            match state {
                State::AdamW(s) => {
                    put("mean", &s.mean);
                    put("square", &s.square);
                    count(s.step).map(|t| put("step", &t)).ok();
                }
                State::Sgd(SgdState { velocity }) => {
                    velocity.as_ref().map(|v| put("velocity", v));
                }
                State::Muon(s) => {
                    put("momentum", &s.momentum);
                }
                State::Adafactor(s) => {
                    put("rows", &s.rows);
                    s.columns.as_ref().map(|c| put("columns", c));
                    count(s.step).map(|t| put("step", &t)).ok();
                }
            }
        }
        all
    }

    /// Restores what [`Optimizer::state`] gave.
    ///
    /// # Errors
    /// Naming a tensor that is missing or misshapen.
    pub fn load_state(&mut self, bank: &Bank, mut tensors: BTreeMap<String, Tensor>) -> Result<()> {
        for (name, state) in &mut self.states {
            let var = bank.stored_var(name)?;
            let mut take = |part: &str, like: Option<&Tensor>| -> Result<Tensor> {
                let key = format!("{name}#{part}");
                let t = tensors.remove(&key).ok_or_else(|| Error::missing_weight(&key))?;
                if like.is_some_and(|l| l.dims() != t.dims()) {
                    return Err(Error::plan(&key, format!("has shape {:?}", t.dims())));
                }
                // Steps write in place: never into a buffer mapped from the file.
                Ok(t.to_device(var.device())?.copy()?)
            };
            let count = |t: Tensor| {
                Ok::<u64, Error>(t.to_dtype(DType::I64)?.get(0)?.to_scalar::<i64>()? as u64)
            };
            match state {
                State::AdamW(s) => {
                    s.mean = take("mean", Some(&s.mean))?;
                    s.square = take("square", Some(&s.square))?;
                    s.step = count(take("step", None)?)?;
                }
                State::Sgd(s) => {
                    if let Some(v) = &s.velocity {
                        s.velocity = Some(take("velocity", Some(v))?);
                    }
                }
                State::Muon(s) => s.momentum = take("momentum", Some(&s.momentum))?,
                State::Adafactor(s) => {
                    s.rows = take("rows", Some(&s.rows))?;
                    if let Some(c) = &s.columns {
                        s.columns = Some(take("columns", Some(c))?);
                    }
                    s.step = count(take("step", None)?)?;
                }
            }
        }
        Ok(())
    }
}

fn step_one(
    rule: &RuleConfig,
    state: &mut State,
    var: &Var,
    grad: &Tensor,
    factor: f32,
    lr: f64,
    weight_decay: f64,
) -> Result<()> {
    match (state, rule) {
        (State::AdamW(s), RuleConfig::AdamW { beta1, beta2, eps }) => {
            let rule = AdamW { lr, beta1: *beta1, beta2: *beta2, eps: *eps, weight_decay };
            rule.step(var, grad, factor, s)?;
        }
        (State::AdamW(s), RuleConfig::Muon { adamw_lr_scale, .. }) => {
            let rule = AdamW {
                lr: lr * adamw_lr_scale,
                beta1: beta1(),
                beta2: beta2(),
                eps: eps(),
                weight_decay,
            };
            rule.step(var, grad, factor, s)?;
        }
        (State::Muon(s), RuleConfig::Muon { momentum, .. }) => {
            let rule = Muon { lr, momentum: *momentum, weight_decay, ..Muon::default() };
            rule.step(var, grad, factor, s)?;
        }
        (State::Sgd(s), RuleConfig::Sgd { momentum, nesterov }) => {
            let rule = Sgd { lr, momentum: *momentum, nesterov: *nesterov, weight_decay };
            rule.step(var, grad, factor, s)?;
        }
        (State::Adafactor(s), RuleConfig::Adafactor {}) => {
            let rule = Adafactor { lr, weight_decay, ..Adafactor::default() };
            rule.step(var, grad, factor, s)?;
        }
        _ => return Err(Error::config("rule", "does not match the optimiser's state")),
    }
    Ok(())
}
