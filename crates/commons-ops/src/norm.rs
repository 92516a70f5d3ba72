//! Normalisation and softmax over the last dimension.

use crate::simd::{self, sum, sum2};
use crate::tape::{self, Cx, Op};
use crate::view::{fused, read};
use crate::{check, composed, par};
use candle_core::{Result, Tensor};

/// `x / √(mean(x²) + eps) · gain` over the last dimension (Zhang & Sennrich 2019, equation 4).
///
/// # Errors
/// If `gain` is not as wide as the last dimension of `x`.
pub fn rms_norm(x: &Tensor, gain: &Tensor, eps: f32) -> Result<Tensor> {
    if !fused(&[x, gain]) {
        return composed::rms_norm(x, gain, eps);
    }
    let (_, width) = check::norm("rms_norm", x, gain, None)?;
    let (y, stats) = normalise(x, gain, None, false, width, eps)?;
    tape::record_f32(Norm { centred: false, width, stats }, &[x, gain], y, x.shape())
}

/// `(x - mean) / √(variance + eps) · gain + bias` over the last dimension (Ba et al. 2016), with
/// the biased variance.
///
/// # Errors
/// If `gain` or `bias` is not as wide as the last dimension of `x`.
pub fn layer_norm(x: &Tensor, gain: &Tensor, bias: Option<&Tensor>, eps: f32) -> Result<Tensor> {
    let mut args = vec![x, gain];
    args.extend(bias);
    if !fused(&args) {
        return composed::layer_norm(x, gain, bias, eps);
    }
    let (_, width) = check::norm("layer_norm", x, gain, bias)?;
    let (y, stats) = normalise(x, gain, bias, true, width, eps)?;
    tape::record_f32(Norm { centred: true, width, stats }, &args, y, x.shape())
}

/// Mean and inverse deviation of a row.
#[derive(Clone, Copy, Default)]
struct Stats {
    mean: f32,
    inverse: f32,
}

fn normalise(
    x: &Tensor,
    gain: &Tensor,
    bias: Option<&Tensor>,
    centred: bool,
    width: usize,
    eps: f32,
) -> Result<(Vec<f32>, Vec<Stats>)> {
    let mut y = vec![0f32; x.elem_count()];
    let rows = y.len() / width.max(1);
    let mut stats = vec![Stats::default(); rows];
    let bias = match bias {
        Some(bias) => read(bias, |b| Ok(b.to_vec()))?,
        None => Vec::new(),
    };
    let piece = par::rows_per_piece(width);
    let cells = (piece * width).max(1);
    let work = y.len();
    read(x, |x| {
        read(gain, |gain| {
            let tasks = y.chunks_mut(cells).zip(x.chunks(cells)).zip(stats.chunks_mut(piece));
            par::each(tasks, work, |((y, x), stats)| {
                simd::run(
                    #[inline(always)]
                    || {
                        let rows = y.chunks_exact_mut(width).zip(x.chunks_exact(width));
                        for ((y, x), s) in rows.zip(stats) {
                            *s = normalise_row(y, x, gain, &bias, centred, eps);
                        }
                    },
                );
            });
            Ok(())
        })
    })?;
    Ok((y, stats))
}

#[inline(always)]
fn normalise_row(
    y: &mut [f32],
    x: &[f32],
    gain: &[f32],
    bias: &[f32],
    centred: bool,
    eps: f32,
) -> Stats {
    let n = x.len() as f32;
    let mean = if centred { sum(x, |x| x) / n } else { 0.0 };
    let square = sum(x, |x| (x - mean) * (x - mean)) / n;
    let inverse = 1.0 / (square + eps).sqrt();
    for ((y, &x), &g) in y.iter_mut().zip(x).zip(gain) {
        *y = (x - mean) * inverse * g;
    }
    for (y, &b) in y.iter_mut().zip(bias) {
        *y += b;
    }
    Stats { mean, inverse }
}

struct Norm {
    centred: bool,
    width: usize,
    stats: Vec<Stats>,
}

impl Op for Norm {
    fn name(&self) -> &'static str {
        if self.centred { "layer_norm" } else { "rms_norm" }
    }

    fn backward(&self, cx: &mut Cx<'_>) -> Result<()> {
        let (grad, args) = (cx.grad.clone(), cx.args);
        let mut dgain = vec![0f32; self.width];
        let mut dbias = vec![0f32; self.width];
        let mut run = |dx: &mut [f32]| {
            read(&grad, |dy| {
                read(&args[0], |x| {
                    read(&args[1], |gain| {
                        self.rows_backward(dx, &mut dgain, &mut dbias, dy, x, gain);
                        Ok(())
                    })
                })
            })
        };
        if cx.wants(0) {
            cx.accumulate(0, |dx, _| run(dx))?;
        } else {
            run(&mut vec![0f32; grad.elem_count()])?;
        }
        if cx.wants(1) {
            cx.give_vec(1, dgain)?;
        }
        if args.len() > 2 && cx.wants(2) {
            cx.give_vec(2, dbias)?;
        }
        Ok(())
    }
}

impl Norm {
    /// Adds the gradients of all rows to `dx`, `dgain` and `dbias`.
    fn rows_backward(
        &self,
        dx: &mut [f32],
        dgain: &mut [f32],
        dbias: &mut [f32],
        dy: &[f32],
        x: &[f32],
        gain: &[f32],
    ) {
        let width = self.width.max(1);
        let piece = par::rows_per_piece(width);
        let cells = piece * width;
        let work = dx.len();
        let tasks = dx
            .chunks_mut(cells)
            .zip(dy.chunks(cells))
            .zip(x.chunks(cells))
            .zip(self.stats.chunks(piece));
        let parts = par::map(tasks, work, |(((dx, dy), x), stats)| {
            let (mut dg, mut db) = (vec![0f32; width], vec![0f32; width]);
            simd::run(
                #[inline(always)]
                || {
                    let rows = dx.chunks_exact_mut(width).zip(dy.chunks_exact(width));
                    for (((dx, dy), x), &s) in rows.zip(x.chunks_exact(width)).zip(stats) {
                        norm_row_backward(dx, &mut dg, &mut db, dy, x, gain, s, self.centred);
                    }
                },
            );
            (dg, db)
        });
        for (dg, db) in parts {
            dgain.iter_mut().zip(dg).for_each(|(t, p)| *t += p);
            dbias.iter_mut().zip(db).for_each(|(t, p)| *t += p);
        }
    }
}

/// With `z = (x - mean)/σ` and `e = dy·gain`: `dx += (e - mean(e) - z·mean(e·z)) / σ`, the second
/// term for a centred norm only.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn norm_row_backward(
    dx: &mut [f32],
    dgain: &mut [f32],
    dbias: &mut [f32],
    dy: &[f32],
    x: &[f32],
    gain: &[f32],
    s: Stats,
    centred: bool,
) {
    let n = x.len() as f32;
    let mut lanes = [0f32; simd::LANES];
    let (xs, x_rest) = x.as_chunks::<{ simd::LANES }>();
    let (ys, y_rest) = dy.as_chunks::<{ simd::LANES }>();
    let (gs, g_rest) = gain.as_chunks::<{ simd::LANES }>();
    for ((x, y), g) in xs.iter().zip(ys).zip(gs) {
        for i in 0..simd::LANES {
            lanes[i] += y[i] * g[i] * ((x[i] - s.mean) * s.inverse);
        }
    }
    for (i, ((x, y), g)) in x_rest.iter().zip(y_rest).zip(g_rest).enumerate() {
        lanes[i] += y * g * ((x - s.mean) * s.inverse);
    }
    let along = simd::total(lanes) / n;
    let shift = if centred { sum2(dy, gain, |dy, g| dy * g) / n } else { 0.0 };
    let outputs = dx.iter_mut().zip(dgain).zip(dbias);
    for (((dx, dg), db), ((&dy, &x), &g)) in outputs.zip(dy.iter().zip(x).zip(gain)) {
        let z = (x - s.mean) * s.inverse;
        *dx += (dy * g - shift - z * along) * s.inverse;
        *dg += dy * z;
        *db += dy;
    }
}

/// `e^x / Σ e^x` over the last dimension.
///
/// # Errors
/// If the last dimension is empty or missing.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    let (_, width) = check::last_dim("softmax", x)?;
    if !fused(&[x]) {
        return composed::softmax(x);
    }
    let y = by_rows(x, width, softmax_row)?;
    tape::record_f32(Softmax { log: false, width }, &[x], y, x.shape())
}

/// `x - log Σ e^x` over the last dimension.
///
/// # Errors
/// If the last dimension is empty or missing.
pub fn log_softmax(x: &Tensor) -> Result<Tensor> {
    let (_, width) = check::last_dim("log_softmax", x)?;
    if !fused(&[x]) {
        return composed::log_softmax(x);
    }
    let y = by_rows(x, width, log_softmax_row)?;
    tape::record_f32(Softmax { log: true, width }, &[x], y, x.shape())
}

/// A copy of `x` with `f` applied to each row.
fn by_rows(x: &Tensor, width: usize, f: fn(&mut [f32])) -> Result<Vec<f32>> {
    let mut y = read(x, |x| Ok(x.to_vec()))?;
    let work = y.len();
    let cells = par::rows_per_piece(width) * width;
    par::each(y.chunks_mut(cells), work, |y| y.chunks_exact_mut(width).for_each(f));
    Ok(y)
}

/// Softmax in place; returns `log Σ e^x`.
#[inline(always)]
pub(crate) fn softmax_in_place(x: &mut [f32]) -> f32 {
    let top = simd::max(x);
    // A row of -∞ has no distribution: candle and PyTorch give NaN there as well.
    for x in x.iter_mut() {
        *x = simd::exp(*x - top);
    }
    let total = sum(x, |x| x);
    let inverse = 1.0 / total;
    for x in x.iter_mut() {
        *x *= inverse;
    }
    top + total.ln()
}

/// `log Σ e^x`.
#[inline(always)]
pub(crate) fn log_total(x: &[f32]) -> f32 {
    let top = simd::max(x);
    top + sum(x, |x| simd::exp(x - top)).ln()
}

fn softmax_row(x: &mut [f32]) {
    simd::run(
        #[inline(always)]
        || softmax_in_place(x),
    );
}

fn log_softmax_row(x: &mut [f32]) {
    simd::run(
        #[inline(always)]
        || {
            let top = simd::max(x);
            let total = sum(x, |x| simd::exp(x - top)).ln();
            for x in x.iter_mut() {
                *x = (*x - top) - total;
            }
        },
    );
}

struct Softmax {
    log: bool,
    width: usize,
}

impl Op for Softmax {
    fn name(&self) -> &'static str {
        if self.log { "log_softmax" } else { "softmax" }
    }

    fn backward(&self, cx: &mut Cx<'_>) -> Result<()> {
        let mut dx = read(cx.grad, |g| Ok(g.to_vec()))?;
        let work = dx.len();
        let cells = par::rows_per_piece(self.width) * self.width;
        read(cx.out, |y| {
            par::each(dx.chunks_mut(cells).zip(y.chunks(cells)), work, |(dx, y)| {
                let rows = dx.chunks_exact_mut(self.width).zip(y.chunks_exact(self.width));
                rows.for_each(|(dx, y)| self.row_backward(dx, y));
            });
            Ok(())
        })?;
        cx.give_vec(0, dx)
    }
}

impl Softmax {
    /// `dx = y·(dy - Σ dy·y)`, or `dy - e^y Σ dy` of the logarithm.
    fn row_backward(&self, d: &mut [f32], y: &[f32]) {
        simd::run(
            #[inline(always)]
            || {
                if self.log {
                    let total = sum(d, |d| d);
                    for (d, &y) in d.iter_mut().zip(y) {
                        *d -= simd::exp(y) * total;
                    }
                } else {
                    let along = sum2(d, y, |d, y| d * y);
                    for (d, &y) in d.iter_mut().zip(y) {
                        *d = y * (*d - along);
                    }
                }
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{agree, distance, randn, values};

    #[test]
    fn norms_agree_with_the_definition() {
        for dims in [&[2usize, 3, 5][..], &[4, 37]] {
            let width = dims[dims.len() - 1];
            let (x, g, b) = (randn(1, dims), randn(2, &[width]), randn(3, &[width]));
            agree(
                &[&x, &g],
                |x| rms_norm(&x[0], &x[1], 1e-5),
                |x| composed::rms_norm(&x[0], &x[1], 1e-5),
                1e-5,
            );
            agree(
                &[&x, &g, &b],
                |x| layer_norm(&x[0], &x[1], Some(&x[2]), 1e-5),
                |x| composed::layer_norm(&x[0], &x[1], Some(&x[2]), 1e-5),
                2e-5,
            );
            agree(
                &[&x, &g],
                |x| layer_norm(&x[0], &x[1], None, 1e-5),
                |x| composed::layer_norm(&x[0], &x[1], None, 1e-5),
                2e-5,
            );
        }
    }

    #[test]
    fn softmax_and_its_logarithm_agree_with_the_definition() {
        let x = randn(1, &[2, 3, 19]);
        agree(&[&x], |x| softmax(&x[0]), |x| composed::softmax(&x[0]), 1e-5);
        agree(&[&x], |x| log_softmax(&x[0]), |x| composed::log_softmax(&x[0]), 1e-5);
    }

    #[test]
    fn many_rows_on_many_threads() {
        let (x, g) = (randn(1, &[700, 129]), randn(2, &[129]));
        let want = composed::rms_norm(&x, &g, 1e-6).unwrap();
        assert!(distance(&rms_norm(&x, &g, 1e-6).unwrap(), &want) < 1e-5);
        let sums = values(&softmax(&x).unwrap().sum(1).unwrap());
        assert!(sums.iter().all(|s| (s - 1.0).abs() < 1e-5));
    }

    #[test]
    fn large_numbers_do_not_overflow_and_nan_stays() {
        let x = Tensor::new(&[[1e4f32, 0.0, -1e4], [f32::NAN, 0.0, 1.0]], x_device()).unwrap();
        let y = values(&softmax(&x).unwrap());
        assert_eq!(&y[..3], &[1.0, 0.0, 0.0]);
        assert!(y[3..].iter().all(|y| y.is_nan()));
        assert_eq!(values(&log_softmax(&x).unwrap())[2], -2e4);
        assert!(
            values(&rms_norm(&x, &randn(1, &[3]), 1e-5).unwrap())[3..].iter().all(|y| y.is_nan())
        );
    }

    fn x_device() -> &'static candle_core::Device {
        &candle_core::Device::Cpu
    }

    #[test]
    fn misfits_name_the_op_and_both_shapes() {
        let text = rms_norm(&randn(1, &[2, 3]), &randn(1, &[4]), 1e-5).unwrap_err().to_string();
        assert!(text.contains("rms_norm") && text.contains("[4]") && text.contains("[2, 3]"));
        assert!(softmax(&Tensor::new(1f32, x_device()).unwrap()).is_err());
    }
}
