//! Mixtures of experts: router → top-K (capacity) → rows sorted by expert → one product per expert
//! and matrix → weighted combination.
//!
//! [`Selection`] says what a token takes, [`Dispatch`] which rows that makes. [`gates`] gives the
//! weights of the chosen experts, [`moe`] runs them, [`router_balance`] measures how evenly they
//! were chosen. The choice itself has no gradient; weights and balance have one through the
//! router's probabilities.

mod dispatch;
mod kernel;
#[cfg(test)]
mod tests;

pub use dispatch::{Dispatch, Selection};

use crate::elementwise::Activation;
use crate::tape::{self, Cx, Op};
use crate::view::{fused, read};
use crate::{composed, par};
use candle_core::{Result, Tensor, bail};
use std::time::Duration;

/// One feed-forward part: `down(act(up(x)))`, or `down(act(gate(x)) ⊙ up(x))` with a gate.
#[derive(Debug, Clone)]
pub struct Expert {
    /// `[inner, hidden]`, for gated experts.
    pub gate: Option<Tensor>,
    /// `[inner, hidden]`.
    pub up: Tensor,
    /// `[inner]`.
    pub up_bias: Option<Tensor>,
    /// `[hidden, inner]`.
    pub down: Tensor,
    /// `[hidden]`.
    pub down_bias: Option<Tensor>,
}

impl Expert {
    /// Tensors in the order in which they are recorded.
    fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let gate = self.gate.iter().chain([&self.up]).chain(&self.up_bias);
        gate.chain([&self.down]).chain(&self.down_bias)
    }

    fn layout(&self) -> Layout {
        Layout {
            gate: self.gate.is_some(),
            up_bias: self.up_bias.is_some(),
            down_bias: self.down_bias.is_some(),
        }
    }
}

/// Which tensors an expert has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    gate: bool,
    up_bias: bool,
    down_bias: bool,
}

/// Wall time of the parts of a forward pass through the experts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MoeTimes {
    /// Gathering rows in the order of experts.
    pub dispatch: Duration,
    /// The experts.
    pub experts: Duration,
    /// Adding up what they give, weighted.
    pub combine: Duration,
}

/// Weights of the chosen experts, `[tokens, active]`: their entries of `probabilities [tokens,
/// experts]`, divided by their sum if `renormalize`.
///
/// # Errors
/// If the shapes do not fit.
pub fn gates(probabilities: &Tensor, dispatch: &Dispatch, renormalize: bool) -> Result<Tensor> {
    let s = dispatch.selection();
    fits(probabilities, dispatch)?;
    if !fused(&[probabilities]) {
        return composed::gates(probabilities, dispatch, renormalize);
    }
    let mut out = vec![0f32; dispatch.tokens() * s.active];
    read(probabilities, |p| {
        let rows = out.chunks_exact_mut(s.active).zip(dispatch.ids().chunks_exact(s.active));
        for ((out, ids), p) in rows.zip(p.chunks_exact(s.experts)) {
            out.iter_mut().zip(ids).for_each(|(o, &e)| *o = p[e as usize]);
            if renormalize {
                let sum: f32 = out.iter().sum();
                out.iter_mut().for_each(|o| *o /= sum);
            }
        }
        Ok(())
    })?;
    let op = Gates { dispatch: dispatch.clone(), renormalize };
    tape::record_f32(op, &[probabilities], out, (dispatch.tokens(), s.active))
}

fn fits(probabilities: &Tensor, dispatch: &Dispatch) -> Result<()> {
    let want = [dispatch.tokens(), dispatch.selection().experts];
    if probabilities.dims() != want {
        bail!("moe: probabilities {:?} must be {want:?}", probabilities.dims())
    }
    Ok(())
}

struct Gates {
    dispatch: Dispatch,
    renormalize: bool,
}

impl Op for Gates {
    fn name(&self) -> &'static str {
        "gates"
    }

    fn backward(&self, cx: &mut Cx<'_>) -> Result<()> {
        let s = self.dispatch.selection();
        let (grad, args) = (cx.grad.clone(), cx.args);
        read(&grad, |dw| {
            read(&args[0], |p| {
                cx.accumulate(0, |dp, _| {
                    let ids = self.dispatch.ids().chunks_exact(s.active);
                    let rows = dp.chunks_exact_mut(s.experts).zip(p.chunks_exact(s.experts));
                    for (((dp, p), ids), dw) in rows.zip(ids).zip(dw.chunks_exact(s.active)) {
                        // w_j = p_j / Σ p: dp_j = (dw_j − Σ_k dw_k w_k) / Σ p.
                        let (mut sum, mut mean) = (1., 0.);
                        if self.renormalize {
                            sum = ids.iter().map(|&e| p[e as usize]).sum::<f32>();
                            let dot = |(&e, d): (&u32, &f32)| p[e as usize] * d;
                            mean = ids.iter().zip(dw).map(dot).sum::<f32>() / sum;
                        }
                        for (&e, d) in ids.iter().zip(dw) {
                            dp[e as usize] += (d - mean) / sum;
                        }
                    }
                    Ok(())
                })
            })
        })
    }
}

/// The balance loss before its factor α, `N Σ_e m_e P_e` (Switch; Fedus et al. 2021, equation 4):
/// `m_e` the share of choices that fell on expert `e`, without gradient, `P_e` its mean probability.
/// 1 when both are uniform. Padding does not count; with no token that counts it is 0.
///
/// # Errors
/// If the shapes do not fit.
pub fn router_balance(probabilities: &Tensor, dispatch: &Dispatch) -> Result<Tensor> {
    fits(probabilities, dispatch)?;
    let s = dispatch.selection();
    let counted = dispatch.counted().max(1) as f64;
    let factor = s.experts as f64 / (counted * counted * s.active as f64);
    let coefficients: Vec<f32> =
        dispatch.selected().iter().map(|&n| (factor * n as f64) as f32).collect();
    if !fused(&[probabilities]) {
        return composed::router_balance(probabilities, dispatch, &coefficients);
    }
    let total = read(probabilities, |p| {
        let rows = p.chunks_exact(s.experts).enumerate().filter(|(t, _)| dispatch.counts(*t));
        let dot = |row: &[f32]| -> f64 {
            row.iter().zip(&coefficients).map(|(p, c)| f64::from(*p) * f64::from(*c)).sum()
        };
        Ok(rows.map(|(_, row)| dot(row)).sum::<f64>() as f32)
    })?;
    let op = Balance { dispatch: dispatch.clone(), coefficients };
    tape::record_f32(op, &[probabilities], vec![total], ())
}

struct Balance {
    dispatch: Dispatch,
    coefficients: Vec<f32>,
}

impl Op for Balance {
    fn name(&self) -> &'static str {
        "router_balance"
    }

    fn backward(&self, cx: &mut Cx<'_>) -> Result<()> {
        let grad = cx.grad.flatten_all()?.to_vec1::<f32>()?[0];
        cx.accumulate(0, |dp, _| {
            let rows = dp.chunks_exact_mut(self.coefficients.len()).enumerate();
            for (_, row) in rows.filter(|(t, _)| self.dispatch.counts(*t)) {
                row.iter_mut().zip(&self.coefficients).for_each(|(d, c)| *d += grad * c);
            }
            Ok(())
        })
    }
}

/// `y_t = Σ_k gates_{t,k} · expert_{t,k}(x_t)` over the assignments that are computed; a token none
/// of whose choices had room gives zeros. `x [.., hidden]` with as many rows as `dispatch` has
/// tokens, `gates [tokens, active]`. Also says how long the parts took.
///
/// # Errors
/// If the shapes do not fit, or the experts are not alike.
pub fn moe(
    x: &Tensor,
    gates: &Tensor,
    dispatch: &Dispatch,
    experts: &[Expert],
    act: Activation,
) -> Result<(Tensor, MoeTimes)> {
    let sizes = check(x, gates, dispatch, experts)?;
    let args: Vec<&Tensor> =
        [x, gates].into_iter().chain(experts.iter().flat_map(Expert::tensors)).collect();
    if !fused(&args) {
        return Ok((composed::moe(x, gates, dispatch, experts, act)?, MoeTimes::default()));
    }
    let plan = kernel::Plan { dispatch: dispatch.clone(), layout: experts[0].layout(), sizes, act };
    let (y, kept, times) = plan.forward(&args)?;
    let kept = if tape::tracking(&args) { kept } else { kernel::Kept::default() };
    Ok((tape::record_f32(kernel::Moe { plan, kept }, &args, y, x.shape())?, times))
}

/// Widths of a mixture.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Widths {
    pub hidden: usize,
    pub inner: usize,
}

fn check(x: &Tensor, gates: &Tensor, dispatch: &Dispatch, experts: &[Expert]) -> Result<Widths> {
    let s = dispatch.selection();
    let Some(first) = experts.first().filter(|_| experts.len() == s.experts) else {
        bail!("moe: {} experts given, {} chosen from", experts.len(), s.experts)
    };
    let (inner, hidden) = first.up.dims2()?;
    let width = x.dims().last().copied().unwrap_or(0);
    if width != hidden || x.elem_count() != dispatch.tokens() * hidden {
        bail!("moe: x {:?} is not {} tokens of width {hidden}", x.dims(), dispatch.tokens())
    }
    if gates.dims() != [dispatch.tokens(), s.active] {
        bail!("moe: gates {:?} must be [{}, {}]", gates.dims(), dispatch.tokens(), s.active)
    }
    for (e, expert) in experts.iter().enumerate() {
        let is = |t: &Option<Tensor>, dims: &[usize]| t.as_ref().is_none_or(|t| t.dims() == dims);
        let fits = expert.layout() == first.layout()
            && expert.up.dims() == [inner, hidden]
            && expert.down.dims() == [hidden, inner]
            && is(&expert.gate, &[inner, hidden])
            && is(&expert.up_bias, &[inner])
            && is(&expert.down_bias, &[hidden]);
        if !fits {
            bail!("moe: expert {e} does not have the tensors and shapes of expert 0")
        }
    }
    Ok(Widths { hidden, inner })
}

/// Cuts a buffer of rows into those of every expert.
pub(crate) fn by_expert<'a>(
    buffer: &'a mut [f32],
    dispatch: &Dispatch,
    width: usize,
) -> Vec<&'a mut [f32]> {
    let mut rest = buffer;
    let loads = dispatch.loads().into_iter();
    loads.map(|rows| rest.split_off_mut(..rows * width).unwrap_or_default()).collect()
}

/// Rows of a piece of `width` elements each.
pub(crate) fn piece(width: usize) -> usize {
    par::rows_per_piece(width)
}
