//! Several streams of activations through the same layers (ParScale, 2025): a prefix of keys or
//! values for each, and the mixture of what they end in.
//!
//! Streams lie one after the other in the batch: row `p · batch + b` is stream `p` of sample `b`.

use crate::tape::{self, Cx, Op};
use crate::{par, view};
use candle_core::{Result, Tensor, bail};

/// Puts a prefix before the keys (or values) of every stream: `prefix [streams, heads, n, d]`,
/// `x [streams · batch, t, heads, d]` → `[streams · batch, n + t, heads, d]`.
///
/// # Errors
/// If the shapes do not fit together.
pub fn prepend(prefix: &Tensor, x: &Tensor) -> Result<Tensor> {
    let (streams, heads, n, width) = prefix.dims4()?;
    let (rows, t, x_heads, x_width) = x.dims4()?;
    if streams == 0 || !rows.is_multiple_of(streams) || (heads, width) != (x_heads, x_width) {
        bail!("prepend: a prefix {:?} does not fit {:?}", prefix.dims(), x.dims())
    }
    if !view::fused(&[prefix, x]) {
        let batch = rows / streams;
        let shape = (streams, batch, n, heads, width);
        let spread = prefix.transpose(1, 2)?.unsqueeze(1)?.broadcast_as(shape)?.contiguous()?;
        return Tensor::cat(&[&spread.reshape((rows, n, heads, width))?, x], 1);
    }
    let sizes = Prefix { streams, heads, n, width, t, rows };
    let mut out = vec![0f32; rows * (n + t) * heads * width];
    view::read(prefix, |prefix| {
        view::read(x, |x| {
            let parts = out.chunks_mut(sizes.out_row().max(1)).enumerate();
            par::each(parts, rows * sizes.out_row(), |(row, out)| {
                let (head, tail) = out.split_at_mut(sizes.prefix_row());
                sizes.each_piece(row, |at, from| {
                    head[at..at + width].copy_from_slice(&prefix[from..from + width]);
                });
                tail.copy_from_slice(&x[row * sizes.x_row()..(row + 1) * sizes.x_row()]);
            });
            Ok(())
        })
    })?;
    tape::record_f32(sizes, &[prefix, x], out, (rows, n + t, heads, width))
}

/// Sizes of a [`prepend`].
#[derive(Clone, Copy)]
struct Prefix {
    streams: usize,
    heads: usize,
    n: usize,
    width: usize,
    t: usize,
    rows: usize,
}

impl Prefix {
    fn prefix_row(&self) -> usize {
        self.n * self.heads * self.width
    }

    fn x_row(&self) -> usize {
        self.t * self.heads * self.width
    }

    fn out_row(&self) -> usize {
        self.prefix_row() + self.x_row()
    }

    /// Calls `f(place in the prefix of an output row, place in the prefix tensor)` for every head
    /// of every prefix token of batch row `row`.
    fn each_piece(&self, row: usize, mut f: impl FnMut(usize, usize)) {
        let stream = row / (self.rows / self.streams);
        for token in 0..self.n {
            for head in 0..self.heads {
                let at = (token * self.heads + head) * self.width;
                f(at, ((stream * self.heads + head) * self.n + token) * self.width);
            }
        }
    }
}

impl Op for Prefix {
    fn name(&self) -> &'static str {
        "prepend"
    }

    fn backward(&self, cx: &mut Cx<'_>) -> Result<()> {
        let grad = cx.grad.clone();
        view::read(&grad, |grad| {
            if cx.wants(0) {
                cx.accumulate(0, |dst, _| {
                    for (row, grad) in grad.chunks(self.out_row().max(1)).enumerate() {
                        self.each_piece(row, |at, to| {
                            let pairs = dst[to..to + self.width].iter_mut();
                            pairs.zip(&grad[at..]).for_each(|(d, g)| *d += g);
                        });
                    }
                    Ok(())
                })?;
            }
            if cx.wants(1) {
                let mut dx = Vec::with_capacity(self.rows * self.x_row());
                for grad in grad.chunks(self.out_row().max(1)) {
                    dx.extend_from_slice(&grad[self.prefix_row()..]);
                }
                cx.give_vec(1, dx)?;
            }
            Ok(())
        })
    }
}

/// Lays the streams of each token side by side, feature by feature:
/// `x [streams · batch, seq, hidden]` → `[batch, seq, hidden · streams]`, where feature `h` of
/// stream `p` stands at `h · streams + p`.
///
/// # Errors
/// If the rows do not divide by the number of streams.
pub fn interleave(x: &Tensor, streams: usize) -> Result<Tensor> {
    let (rows, seq, hidden) = x.dims3()?;
    if streams == 0 || !rows.is_multiple_of(streams) {
        bail!("interleave: {rows} rows are not a multiple of {streams} streams")
    }
    let batch = rows / streams;
    if !view::fused(&[x]) {
        let x = x.reshape((streams, batch, seq, hidden))?.permute((1, 2, 3, 0))?.contiguous()?;
        return x.reshape((batch, seq, hidden * streams));
    }
    let tokens = batch * seq;
    let mut out = vec![0f32; tokens * hidden * streams];
    view::read(x, |x| {
        let width = hidden * streams;
        let parts = out.chunks_mut(width.max(1)).enumerate();
        par::each(parts, tokens * width, |(token, out)| {
            for p in 0..streams {
                let from = &x[(p * tokens + token) * hidden..][..hidden];
                from.iter().enumerate().for_each(|(h, v)| out[h * streams + p] = *v);
            }
        });
        Ok(())
    })?;
    let op = Interleave { streams, tokens, hidden };
    tape::record_f32(op, &[x], out, (batch, seq, hidden * streams))
}

struct Interleave {
    streams: usize,
    tokens: usize,
    hidden: usize,
}

impl Op for Interleave {
    fn name(&self) -> &'static str {
        "interleave"
    }

    fn backward(&self, cx: &mut Cx<'_>) -> Result<()> {
        let (streams, tokens, hidden) = (self.streams, self.tokens, self.hidden);
        let grad = cx.grad.clone();
        view::read(&grad, |grad| {
            cx.accumulate(0, |dst, _| {
                let work = dst.len();
                par::each(dst.chunks_mut(hidden.max(1)).enumerate(), work, |(row, dst)| {
                    let (p, token) = (row / tokens, row % tokens);
                    let grad = &grad[token * hidden * streams..];
                    dst.iter_mut().enumerate().for_each(|(h, d)| *d += grad[h * streams + p]);
                });
                Ok(())
            })
        })
    }
}

/// The weighted sum over streams: `x [streams · batch, seq, hidden]`, `weights [batch, seq,
/// streams]` → `[batch, seq, hidden]`.
///
/// # Errors
/// If the shapes do not fit together.
pub fn mix(x: &Tensor, weights: &Tensor) -> Result<Tensor> {
    let (rows, seq, hidden) = x.dims3()?;
    let (batch, w_seq, streams) = weights.dims3()?;
    if rows != streams * batch || seq != w_seq {
        bail!("mix: weights {:?} do not fit {:?}", weights.dims(), x.dims())
    }
    if !view::fused(&[x, weights]) {
        let x = x.reshape((streams, batch, seq, hidden))?;
        return x.broadcast_mul(&weights.permute((2, 0, 1))?.unsqueeze(3)?)?.sum(0);
    }
    let tokens = batch * seq;
    let mut out = vec![0f32; tokens * hidden];
    view::read(x, |x| {
        view::read(weights, |w| {
            let parts = out.chunks_mut(hidden.max(1)).enumerate();
            par::each(parts, tokens * hidden, |(token, out)| {
                for p in 0..streams {
                    let w = w[token * streams + p];
                    let from = &x[(p * tokens + token) * hidden..][..hidden];
                    out.iter_mut().zip(from).for_each(|(y, x)| *y += w * x);
                }
            });
            Ok(())
        })
    })?;
    tape::record_f32(Mix { streams, tokens, hidden }, &[x, weights], out, (batch, seq, hidden))
}

struct Mix {
    streams: usize,
    tokens: usize,
    hidden: usize,
}

impl Op for Mix {
    fn name(&self) -> &'static str {
        "mix"
    }

    fn backward(&self, cx: &mut Cx<'_>) -> Result<()> {
        let (streams, tokens, hidden) = (self.streams, self.tokens, self.hidden);
        let (grad, args) = (cx.grad.clone(), cx.args);
        view::read(&grad, |grad| {
            if cx.wants(0) {
                view::read(&args[1], |w| {
                    cx.accumulate(0, |dst, _| {
                        let work = dst.len();
                        par::each(dst.chunks_mut(hidden.max(1)).enumerate(), work, |(row, dst)| {
                            let (p, token) = (row / tokens, row % tokens);
                            let w = w[token * streams + p];
                            let grad = &grad[token * hidden..][..hidden];
                            dst.iter_mut().zip(grad).for_each(|(d, g)| *d += w * g);
                        });
                        Ok(())
                    })
                })?;
            }
            if cx.wants(1) {
                view::read(&args[0], |x| {
                    cx.accumulate(1, |dst, _| {
                        for token in 0..tokens {
                            let grad = &grad[token * hidden..][..hidden];
                            for p in 0..streams {
                                let x = &x[(p * tokens + token) * hidden..][..hidden];
                                let dot: f32 = x.iter().zip(grad).map(|(x, g)| x * g).sum();
                                dst[token * streams + p] += dot;
                            }
                        }
                        Ok(())
                    })
                })?;
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{agree, randn, values};

    /// The composed forms, reached by giving the ops anything but `f32`: here through `f64`.
    #[test]
    fn each_agrees_with_its_plain_form_and_finite_differences() {
        let (prefix, x) = (randn(1, &[2, 3, 4, 2]), randn(2, &[6, 5, 3, 2]));
        agree(&[&prefix, &x], |a| prepend(&a[0], &a[1]), |a| prepend(&a[0], &a[1]), 1e-5);
        let x = randn(3, &[6, 4, 5]);
        agree(&[&x], |a| interleave(&a[0], 3), |a| interleave(&a[0], 3), 1e-5);
        let w = randn(4, &[2, 4, 3]);
        agree(&[&x, &w], |a| mix(&a[0], &a[1]), |a| mix(&a[0], &a[1]), 1e-5);
    }

    #[test]
    fn streams_stand_feature_by_feature() {
        let x = Tensor::arange(0f32, 8., &candle_core::Device::Cpu).unwrap();
        let x = x.reshape((2, 1, 4)).unwrap();
        let got = values(&interleave(&x, 2).unwrap());
        assert_eq!(got, [0., 4., 1., 5., 2., 6., 3., 7.]);
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        assert!(interleave(&randn(1, &[5, 2, 2]), 2).is_err());
        assert!(mix(&randn(1, &[4, 2, 2]), &randn(2, &[2, 2, 3])).is_err());
        assert!(prepend(&randn(1, &[2, 3, 4, 2]), &randn(2, &[5, 5, 3, 2])).is_err());
    }
}
