//! Matrix maps: `y = x Wᵀ + b`, with an activation or a low-rank update folded in.

use crate::elementwise::{Activation, activate, slope_times};
use crate::matmul::{mat, mat_mut, matmul};
use crate::tape::{self, Cx, Op};
use crate::view::{fused, read};
use crate::{check, composed, par, simd};
use candle_core::{Result, Tensor};

/// `x Wᵀ + bias`: `x [.., in]`, `w [out, in]`, `bias [out]` → `[.., out]`.
///
/// Trailing dimensions of `x` are joined until their product is `in`, so attention output
/// `[batch, seq, heads, head_dim]` can be given to a `[out, heads · head_dim]` weight unreshaped.
///
/// # Errors
/// If the shapes do not fit.
pub fn linear(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    linear_act(x, w, bias, Activation::Identity)
}

/// `act(x Wᵀ + bias)`, shapes as in [`linear`].
///
/// # Errors
/// If the shapes do not fit.
pub fn linear_act(
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    act: Activation,
) -> Result<Tensor> {
    let mut args = vec![x, w];
    args.extend(bias);
    if !fused(&args) {
        return composed::linear_act(x, w, bias, act);
    }
    let shape = check::linear("linear", x, w, bias)?;
    let mut y = affine(x, w, bias, &shape)?;
    let before = match act {
        Activation::Identity => None,
        act => {
            let keep = (act.needs_input() && tape::tracking(&args)).then(|| y.clone());
            par::blocks(&mut y, |_, y| activate(act, y));
            keep
        }
    };
    tape::record_f32(Affine { act, before, shape: shape.sizes(w) }, &args, y, shape.out_dims)
}

/// `out[r, o] = bias[o] + Σ x[r, i] w[o, i]`.
fn affine(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, s: &check::Linear) -> Result<Vec<f32>> {
    let sizes = s.sizes(w);
    let mut y = vec![0f32; sizes.rows * sizes.outputs];
    if let Some(bias) = bias {
        read(bias, |bias| {
            y.chunks_exact_mut(sizes.outputs.max(1)).for_each(|row| row.copy_from_slice(bias));
            Ok(())
        })?;
    }
    read(x, |x| {
        read(w, |w| {
            times_weight(&mut y, bias.is_some(), x, w, sizes, 1.0);
            Ok(())
        })
    })?;
    Ok(y)
}

/// Rows, inputs and outputs of a linear map.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub rows: usize,
    pub inputs: usize,
    pub outputs: usize,
}

impl check::Linear {
    fn sizes(&self, w: &Tensor) -> Sizes {
        Sizes { rows: self.rows, inputs: self.inputs, outputs: w.dims()[0] }
    }
}

/// `y (+)= alpha · x Wᵀ`.
pub(crate) fn times_weight(y: &mut [f32], add: bool, x: &[f32], w: &[f32], s: Sizes, alpha: f32) {
    let x = mat(x, s.rows, s.inputs, s.inputs);
    let w = mat(w, s.outputs, s.inputs, s.inputs);
    matmul(mat_mut(y, s.rows, s.outputs), add, x, w.t(), alpha);
}

/// `dx (+)= alpha · dy W`.
pub(crate) fn input_gradient(
    dx: &mut [f32],
    add: bool,
    dy: &[f32],
    w: &[f32],
    s: Sizes,
    alpha: f32,
) {
    let dy = mat(dy, s.rows, s.outputs, s.outputs);
    let w = mat(w, s.outputs, s.inputs, s.inputs);
    matmul(mat_mut(dx, s.rows, s.inputs), add, dy, w, alpha);
}

/// `dw (+)= alpha · dyᵀ x`.
pub(crate) fn weight_gradient(
    dw: &mut [f32],
    add: bool,
    dy: &[f32],
    x: &[f32],
    s: Sizes,
    alpha: f32,
) {
    let dy = mat(dy, s.rows, s.outputs, s.outputs);
    let x = mat(x, s.rows, s.inputs, s.inputs);
    matmul(mat_mut(dw, s.outputs, s.inputs), add, dy.t(), x, alpha);
}

/// Adds the column sums of `rows` to `total`, in pieces of fixed size.
pub(crate) fn add_column_sums(total: &mut [f32], rows: &[f32]) {
    let width = total.len().max(1);
    let piece = par::rows_per_piece(width) * width;
    let parts = par::map(rows.chunks(piece), rows.len(), |rows| {
        let mut sum = vec![0f32; width];
        simd::run(
            #[inline(always)]
            || {
                for row in rows.chunks_exact(width) {
                    for (s, x) in sum.iter_mut().zip(row) {
                        *s += x;
                    }
                }
            },
        );
        sum
    });
    for part in parts {
        for (t, p) in total.iter_mut().zip(part) {
            *t += p;
        }
    }
}

struct Affine {
    act: Activation,
    /// Input of the activation, if its slope cannot be told from the output.
    before: Option<Vec<f32>>,
    shape: Sizes,
}

impl Op for Affine {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn backward(&self, cx: &mut Cx<'_>) -> Result<()> {
        let s = self.shape;
        let (grad, args, out) = (cx.grad.clone(), cx.args, cx.out);
        read(&grad, |dy| {
            let sloped;
            let dy = match self.act {
                Activation::Identity => dy,
                act => {
                    let mut dz = dy.to_vec();
                    match &self.before {
                        Some(z) => par::zip2(&mut dz, z, |dz, z| slope_times(act, dz, z)),
                        None => read(out, |y| {
                            par::zip2(&mut dz, y, |dz, y| slope_times(act, dz, y));
                            Ok(())
                        })?,
                    }
                    sloped = dz;
                    &sloped
                }
            };
            if cx.wants(0) {
                cx.accumulate(0, |dx, fresh| {
                    read(&args[1], |w| {
                        input_gradient(dx, !fresh, dy, w, s, 1.0);
                        Ok(())
                    })
                })?;
            }
            if cx.wants(1) {
                cx.accumulate(1, |dw, fresh| {
                    read(&args[0], |x| {
                        weight_gradient(dw, !fresh, dy, x, s, 1.0);
                        Ok(())
                    })
                })?;
            }
            if args.len() > 2 && cx.wants(2) {
                cx.accumulate(2, |db, _| {
                    add_column_sums(db, dy);
                    Ok(())
                })?;
            }
            Ok(())
        })
    }
}

/// `x Wᵀ + bias + scale · (x Aᵀ) Bᵀ` (LoRA, Hu et al. 2021, equation 3) without ever forming
/// `W + scale·BA`. `a` is `[rank, in]`, `b` is `[out, rank]`; the rest as in [`linear`].
///
/// # Errors
/// If the shapes do not fit.
pub fn lora_linear(
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    a: &Tensor,
    b: &Tensor,
    scale: f32,
) -> Result<Tensor> {
    let mut args = vec![x, w, a, b];
    args.extend(bias);
    if !fused(&args) {
        return composed::lora_linear(x, w, bias, a, b, scale);
    }
    let shape = check::linear("lora_linear", x, w, bias)?;
    check::lora("lora_linear", w, a, b)?;
    let full = shape.sizes(w);
    let rank = a.dims()[0];
    let down = Sizes { outputs: rank, ..full };
    let up = Sizes { inputs: rank, ..full };
    let mut y = affine(x, w, bias, &shape)?;
    let mut low = vec![0f32; full.rows * rank];
    read(x, |x| {
        read(a, |a| {
            times_weight(&mut low, false, x, a, down, 1.0);
            Ok(())
        })
    })?;
    read(b, |b| {
        times_weight(&mut y, true, &low, b, up, scale);
        Ok(())
    })?;
    tape::record_f32(Lora { low, scale, full, down, up }, &args, y, shape.out_dims)
}

struct Lora {
    /// `x Aᵀ`.
    low: Vec<f32>,
    scale: f32,
    full: Sizes,
    down: Sizes,
    up: Sizes,
}

impl Op for Lora {
    fn name(&self) -> &'static str {
        "lora_linear"
    }

    fn backward(&self, cx: &mut Cx<'_>) -> Result<()> {
        let (grad, args) = (cx.grad.clone(), cx.args);
        let (x, w, a, b) = (&args[0], &args[1], &args[2], &args[3]);
        read(&grad, |dy| {
            let mut dlow = vec![0f32; self.low.len()];
            read(b, |b| {
                input_gradient(&mut dlow, false, dy, b, self.up, self.scale);
                Ok(())
            })?;
            if cx.wants(0) {
                cx.accumulate(0, |dx, fresh| {
                    read(w, |w| {
                        input_gradient(dx, !fresh, dy, w, self.full, 1.0);
                        Ok(())
                    })?;
                    read(a, |a| {
                        input_gradient(dx, true, &dlow, a, self.down, 1.0);
                        Ok(())
                    })
                })?;
            }
            if cx.wants(1) {
                cx.accumulate(1, |dw, fresh| {
                    read(x, |x| {
                        weight_gradient(dw, !fresh, dy, x, self.full, 1.0);
                        Ok(())
                    })
                })?;
            }
            if cx.wants(2) {
                cx.accumulate(2, |da, fresh| {
                    read(x, |x| {
                        weight_gradient(da, !fresh, &dlow, x, self.down, 1.0);
                        Ok(())
                    })
                })?;
            }
            if cx.wants(3) {
                cx.accumulate(3, |db, fresh| {
                    weight_gradient(db, !fresh, dy, &self.low, self.up, self.scale);
                    Ok(())
                })?;
            }
            if args.len() > 4 && cx.wants(4) {
                cx.accumulate(4, |db, _| {
                    add_column_sums(db, dy);
                    Ok(())
                })?;
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{agree, distance, randn};

    const ALL: [Activation; 7] = [
        Activation::Identity,
        Activation::Relu,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Silu,
        Activation::Tanh,
        Activation::Sigmoid,
    ];

    #[test]
    fn every_activation_agrees_with_the_definition() {
        let (x, w, b) = (randn(1, &[2, 3, 5]), randn(2, &[7, 5]), randn(3, &[7]));
        for act in ALL {
            agree(
                &[&x, &w, &b],
                |x| linear_act(&x[0], &x[1], Some(&x[2]), act),
                |x| composed::linear_act(&x[0], &x[1], Some(&x[2]), act),
                1e-5,
            );
        }
        agree(
            &[&x, &w],
            |x| linear(&x[0], &x[1], None),
            |x| composed::linear(&x[0], &x[1], None),
            1e-5,
        );
    }

    #[test]
    fn lora_agrees_with_the_definition() {
        let (x, w, bias) = (randn(1, &[4, 6]), randn(2, &[5, 6]), randn(3, &[5]));
        let (a, b) = (randn(4, &[2, 6]), randn(5, &[5, 2]));
        agree(
            &[&x, &w, &a, &b, &bias],
            |x| lora_linear(&x[0], &x[1], Some(&x[4]), &x[2], &x[3], 0.5),
            |x| composed::lora_linear(&x[0], &x[1], Some(&x[4]), &x[2], &x[3], 0.5),
            1e-5,
        );
        agree(
            &[&x, &w, &a, &b],
            |x| lora_linear(&x[0], &x[1], None, &x[2], &x[3], -2.0),
            |x| composed::lora_linear(&x[0], &x[1], None, &x[2], &x[3], -2.0),
            1e-5,
        );
    }

    #[test]
    fn trailing_dimensions_are_joined_and_strides_read() {
        let (x, w) = (randn(1, &[2, 3, 4, 5]), randn(2, &[7, 20]));
        let joined = x.reshape((2, 3, 20)).unwrap();
        let got = linear(&x, &w, None).unwrap();
        assert_eq!(got.dims(), [2, 3, 7]);
        assert_eq!(distance(&got, &linear(&joined, &w, None).unwrap()), 0.0);
        let turned = joined.t().unwrap().contiguous().unwrap().t().unwrap();
        assert_eq!(distance(&linear(&turned, &w, None).unwrap(), &got), 0.0);
    }

    #[test]
    fn large_products_agree_too() {
        let (x, w) = (randn(1, &[130, 300]), randn(2, &[270, 300]));
        agree_values(&x, &w);
        let (x, w) = (randn(1, &[1, 300]), randn(2, &[1, 300]));
        agree_values(&x, &w);
    }

    fn agree_values(x: &Tensor, w: &Tensor) {
        let wide = |x: &Tensor| x.to_dtype(candle_core::DType::F64).unwrap();
        let want = composed::linear(&wide(x), &wide(w), None).unwrap();
        assert!(distance(&linear(x, w, None).unwrap(), &want) < 1e-5);
    }

    #[test]
    fn misfits_name_the_op_and_both_shapes() {
        let (x, w) = (randn(1, &[2, 4]), randn(2, &[3, 5]));
        let text = linear(&x, &w, None).unwrap_err().to_string();
        assert!(text.contains("linear") && text.contains("[2, 4]") && text.contains("[3, 5]"));
        let text = linear(&randn(1, &[2, 5]), &w, Some(&randn(3, &[4]))).unwrap_err().to_string();
        assert!(text.contains("bias [4]"));
        let bad = lora_linear(&randn(1, &[2, 5]), &w, None, &randn(1, &[2, 5]), &w, 1.0);
        assert!(bad.unwrap_err().to_string().contains("adapters"));
    }
}
