//! Forward and backward passes of [`super::moe`].
//!
//! Experts are independent tasks on disjoint rows and write gradients of their own; tokens gather
//! their rows in the order of their slots. Nothing is added from two threads, so the number of
//! threads does not show.

use super::{Dispatch, Layout, MoeTimes, Widths, by_expert, piece};
use crate::elementwise::{Activation, activate, slope_times};
use crate::linear::{Sizes, add_column_sums, input_gradient, times_weight, weight_gradient};
use crate::tape::{Cx, Op};
use crate::view::{read, read_all};
use crate::{par, simd};
use candle_core::{Result, Tensor};
use std::time::Instant;

/// What both passes need to know.
pub(super) struct Plan {
    pub dispatch: Dispatch,
    pub layout: Layout,
    pub sizes: Widths,
    pub act: Activation,
}

/// What the backward pass reads, `[rows, …]` in the order of experts.
#[derive(Default)]
pub(super) struct Kept {
    /// Inputs of the experts.
    x: Vec<f32>,
    /// Input of the activation.
    before: Vec<f32>,
    /// The factor beside the activation, for gated experts.
    up: Vec<f32>,
    /// What `down` reads.
    inner: Vec<f32>,
    /// What the experts give.
    out: Vec<f32>,
}

/// Slices of one expert's tensors.
struct Weights<'a> {
    gate: Option<&'a [f32]>,
    up: &'a [f32],
    up_bias: Option<&'a [f32]>,
    down: &'a [f32],
    down_bias: Option<&'a [f32]>,
}

impl Layout {
    /// Tensors of an expert.
    fn count(self) -> usize {
        2 + usize::from(self.gate) + usize::from(self.up_bias) + usize::from(self.down_bias)
    }

    /// Places of gate, up, its bias, down, its bias among an expert's tensors.
    fn places(self) -> [Option<usize>; 5] {
        let mut next = 0;
        [self.gate, true, self.up_bias, true, self.down_bias].map(|has| {
            let place = next;
            next += usize::from(has);
            has.then_some(place)
        })
    }

    fn weights<'a>(self, slices: &[&'a [f32]]) -> Weights<'a> {
        let at = |p: Option<usize>| p.map(|p| slices[p]);
        let [gate, up, up_bias, down, down_bias] = self.places().map(at);
        Weights {
            gate,
            up: up.unwrap_or_default(),
            up_bias,
            down: down.unwrap_or_default(),
            down_bias,
        }
    }
}

/// Calls `f` on every row of `dst` with its number, in pieces of fixed size.
fn each_row(dst: &mut [f32], width: usize, f: impl Fn(usize, &mut [f32]) + Sync + Send) {
    let (rows, work) = (piece(width), dst.len());
    par::each(dst.chunks_mut(rows * width.max(1)).enumerate(), work, |(i, part)| {
        let part = part.chunks_exact_mut(width.max(1)).enumerate();
        part.for_each(|(j, row)| f(i * rows + j, row));
    });
}

/// `y += c · x`.
fn add_scaled(y: &mut [f32], c: f32, x: &[f32]) {
    simd::run(
        #[inline(always)]
        || y.iter_mut().zip(x).for_each(|(y, x)| *y += c * x),
    );
}

fn affine(y: &mut [f32], x: &[f32], w: &[f32], bias: Option<&[f32]>, s: Sizes) {
    if let Some(bias) = bias {
        y.chunks_exact_mut(s.outputs.max(1)).for_each(|row| row.copy_from_slice(bias));
    }
    times_weight(y, bias.is_some(), x, w, s, 1.0);
}

impl Plan {
    fn up_sizes(&self, rows: usize) -> Sizes {
        Sizes { rows, inputs: self.sizes.hidden, outputs: self.sizes.inner }
    }

    fn down_sizes(&self, rows: usize) -> Sizes {
        Sizes { rows, inputs: self.sizes.inner, outputs: self.sizes.hidden }
    }

    /// The weights of every expert, of the slices of all arguments.
    fn experts<'a>(&self, slices: &[&'a [f32]]) -> Vec<Weights<'a>> {
        slices[2..].chunks_exact(self.layout.count()).map(|s| self.layout.weights(s)).collect()
    }

    pub fn forward(&self, args: &[&Tensor]) -> Result<(Vec<f32>, Kept, MoeTimes)> {
        let args: Vec<Tensor> = args.iter().map(|&a| a.clone()).collect();
        read_all(&args, |slices| {
            let (hidden, rows) = (self.sizes.hidden, self.dispatch.computed());
            let active = self.dispatch.selection().active;
            let (places, began) = (self.dispatch.places(), Instant::now());
            let mut x = vec![0f32; rows * hidden];
            each_row(&mut x, hidden, |row, dst| {
                let token = places[row] as usize / active;
                dst.copy_from_slice(&slices[0][token * hidden..][..hidden]);
            });
            let dispatched = Instant::now();
            let kept = self.run(x, &self.experts(slices));
            let computed = Instant::now();
            let mut y = vec![0f32; self.dispatch.tokens() * hidden];
            each_row(&mut y, hidden, |token, dst| {
                for place in token * active..(token + 1) * active {
                    if let Some(row) = self.dispatch.row(place) {
                        add_scaled(dst, slices[1][place], &kept.out[row * hidden..][..hidden]);
                    }
                }
            });
            let times = MoeTimes {
                dispatch: dispatched - began,
                experts: computed - dispatched,
                combine: computed.elapsed(),
            };
            Ok((y, kept, times))
        })
    }

    /// Runs every expert on its rows.
    fn run(&self, x: Vec<f32>, experts: &[Weights<'_>]) -> Kept {
        let Widths { hidden, inner: width } = self.sizes;
        let rows = self.dispatch.computed();
        let buffer = |w: usize| vec![0f32; rows * w];
        let (mut before, mut inner, mut out) = (buffer(width), buffer(width), buffer(hidden));
        let up_width = if self.layout.gate { width } else { 0 };
        let mut up = buffer(up_width);
        {
            let parts = by_expert(&mut before, &self.dispatch, width)
                .into_iter()
                .zip(by_expert(&mut up, &self.dispatch, up_width))
                .zip(by_expert(&mut inner, &self.dispatch, width))
                .zip(by_expert(&mut out, &self.dispatch, hidden));
            let tasks = parts.zip(experts).enumerate();
            par::each(tasks, rows * width, |(e, ((((before, up), inner), out), w))| {
                let range = self.dispatch.expert_rows(e);
                let x = &x[range.start * hidden..range.end * hidden];
                let (wide, narrow) = (self.up_sizes(range.len()), self.down_sizes(range.len()));
                match w.gate {
                    Some(gate) => {
                        affine(before, x, gate, None, wide);
                        affine(up, x, w.up, w.up_bias, wide);
                    }
                    None => affine(before, x, w.up, w.up_bias, wide),
                }
                inner.copy_from_slice(before);
                activate(self.act, inner);
                inner.iter_mut().zip(up.iter()).for_each(|(a, u)| *a *= u);
                affine(out, inner, w.down, w.down_bias, narrow);
            });
        }
        Kept { x, before, up, inner, out }
    }

    /// Gradients of an expert that no token took: zeros, so that optimisers treat it as any other.
    fn nothing(&self, wants: &[bool]) -> Vec<Option<Vec<f32>>> {
        let Widths { hidden, inner } = self.sizes;
        let sizes = [hidden * inner, hidden * inner, inner, hidden * inner, hidden];
        let mut grads = vec![None; wants.len()];
        for (place, size) in self.layout.places().into_iter().zip(sizes) {
            if let Some(place) = place.filter(|&p| wants[p]) {
                grads[place] = Some(vec![0f32; size]);
            }
        }
        grads
    }

    /// Gradients of one expert: its tensors in order (those not wanted empty), `dx` written.
    fn expert_backward(
        &self,
        e: usize,
        w: &Weights<'_>,
        kept: &Kept,
        dout: &[f32],
        dx: &mut [f32],
        wants: &[bool],
    ) -> Vec<Option<Vec<f32>>> {
        let Widths { hidden, inner: width } = self.sizes;
        let range = self.dispatch.expert_rows(e);
        let rows = range.len();
        if rows == 0 {
            return self.nothing(wants);
        }
        let mut grads = vec![None; wants.len()];
        let of = |buffer: &[f32], w: usize| range.start * w..(range.end * w).min(buffer.len());
        let (wide, narrow) = (self.up_sizes(rows), self.down_sizes(rows));
        let x = &kept.x[of(&kept.x, hidden)];
        let before = &kept.before[of(&kept.before, width)];
        let inner = &kept.inner[of(&kept.inner, width)];
        let dout = &dout[of(dout, hidden)];
        let mut dinner = vec![0f32; rows * width];
        input_gradient(&mut dinner, false, dout, w.down, narrow, 1.0);
        let mut active = before.to_vec();
        activate(self.act, &mut active);
        // dz: gradient of the activation's input; dup: of the factor beside it.
        let (mut dz, mut dup) = (dinner, Vec::new());
        if w.gate.is_some() {
            let up = &kept.up[of(&kept.up, width)];
            dup = dz.iter().zip(&active).map(|(d, a)| d * a).collect();
            dz.iter_mut().zip(up).for_each(|(d, u)| *d *= u);
        }
        let at = if self.act.needs_input() { before } else { &active };
        slope_times(self.act, &mut dz, at);
        let weight = |dy: &[f32], x: &[f32], s: Sizes| {
            let mut dw = vec![0f32; s.inputs * s.outputs];
            weight_gradient(&mut dw, false, dy, x, s, 1.0);
            dw
        };
        let bias = |dy: &[f32], width: usize| {
            let mut db = vec![0f32; width];
            add_column_sums(&mut db, dy);
            db
        };
        let [gate, up, up_bias, down, down_bias] =
            self.layout.places().map(|p| p.filter(|&p| wants[p]));
        let of_up = if w.gate.is_some() { &dup } else { &dz };
        if let Some(p) = gate {
            grads[p] = Some(weight(&dz, x, wide));
        }
        if let Some(p) = up {
            grads[p] = Some(weight(of_up, x, wide));
        }
        if let Some(p) = up_bias {
            grads[p] = Some(bias(of_up, width));
        }
        if let Some(p) = down {
            grads[p] = Some(weight(dout, inner, narrow));
        }
        if let Some(p) = down_bias {
            grads[p] = Some(bias(dout, hidden));
        }
        input_gradient(dx, false, of_up, w.up, wide, 1.0);
        if let Some(gate) = w.gate {
            input_gradient(dx, true, &dz, gate, wide, 1.0);
        }
        grads
    }
}

/// The recorded op; arguments are `x`, `gates` and the tensors of the experts.
pub(super) struct Moe {
    pub plan: Plan,
    pub kept: Kept,
}

impl Op for Moe {
    fn name(&self) -> &'static str {
        "moe"
    }

    fn backward(&self, cx: &mut Cx<'_>) -> Result<()> {
        let (plan, kept) = (&self.plan, &self.kept);
        let dispatch = &plan.dispatch;
        let (hidden, active) = (plan.sizes.hidden, dispatch.selection().active);
        let (grad, args) = (cx.grad.clone(), cx.args);
        let wants: Vec<bool> = (0..args.len()).map(|i| cx.wants(i)).collect();
        let rows = dispatch.computed();
        let (mut dx_rows, mut grads) = (vec![0f32; rows * hidden], Vec::new());
        read(&grad, |dy| {
            let dy_of = |place: usize| &dy[place / active * hidden..][..hidden];
            if wants[1] {
                cx.accumulate(1, |dgates, _| {
                    each_row(dgates, active, |token, dst| {
                        for (slot, d) in dst.iter_mut().enumerate() {
                            let place = token * active + slot;
                            if let Some(row) = dispatch.row(place) {
                                let out = &kept.out[row * hidden..][..hidden];
                                *d += simd::sum2(out, dy_of(place), |a, b| a * b);
                            }
                        }
                    });
                    Ok(())
                })?;
            }
            read_all(args, |slices| {
                let mut dout = vec![0f32; rows * hidden];
                each_row(&mut dout, hidden, |row, dst| {
                    let place = dispatch.places()[row] as usize;
                    add_scaled(dst, slices[1][place], dy_of(place));
                });
                let experts = plan.experts(slices);
                let parts = by_expert(&mut dx_rows, dispatch, hidden).into_iter();
                let wanted = wants[2..].chunks_exact(plan.layout.count());
                let tasks = parts.zip(&experts).zip(wanted).enumerate();
                grads = par::map(tasks, rows * plan.sizes.inner, |(e, ((dx, w), wants))| {
                    plan.expert_backward(e, w, kept, &dout, dx, wants)
                });
                Ok(())
            })
        })?;
        if wants[0] {
            cx.accumulate(0, |dx, _| {
                each_row(dx, hidden, |token, dst| {
                    for place in token * active..(token + 1) * active {
                        if let Some(row) = dispatch.row(place) {
                            add_scaled(dst, 1.0, &dx_rows[row * hidden..][..hidden]);
                        }
                    }
                });
                Ok(())
            })?;
        }
        for (i, grad) in grads.into_iter().flatten().enumerate() {
            if let Some(grad) = grad {
                cx.give_vec(2 + i, grad)?;
            }
        }
        Ok(())
    }
}
