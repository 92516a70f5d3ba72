//! Group normalisation: the statistics of a few channels of one sample.

use super::*;

#[derive(Clone, Copy)]
pub(super) struct GroupNorm {
    pub(super) dims: Dims,
    pub(super) groups: usize,
    pub(super) eps: f32,
}

/// A group normalisation with each group's mean and `1/√(variance + eps)`.
struct GroupNormed<T> {
    options: GroupNorm,
    statistics: Vec<(T, T)>,
}

impl GroupNorm {
    /// Elements of one group of one sample.
    fn group_len(&self) -> usize {
        self.dims.channels / self.groups * self.dims.len
    }

    pub(super) fn composed(&self, x: &Tensor, gain: &Tensor, bias: &Tensor) -> Result<Tensor> {
        let Dims { batch, channels, len } = self.dims;
        let x = widen(x)?.reshape((batch, self.groups, channels / self.groups * len))?;
        let centred = x.broadcast_sub(&x.mean_keepdim(2)?)?;
        let variance = centred.sqr()?.mean_keepdim(2)?;
        let hat = centred.broadcast_div(&(variance + f64::from(self.eps))?.sqrt()?)?;
        hat.reshape((batch, channels, len))?
            .broadcast_mul(&self.dims.column(&widen(gain)?)?)?
            .broadcast_add(&self.dims.column(&widen(bias)?)?)
    }

    pub(super) fn run<T: Real>(self, x: &Tensor, gain: &Tensor, bias: &Tensor) -> Result<Tensor> {
        let (gains, biases) = (gain.to_vec1::<T>()?, bias.to_vec1::<T>()?);
        let (y, statistics) =
            with_elements::<T, _>(x, |x| self.forward(x, &gains, &biases))?;
        let op = GroupNormed { options: self, statistics };
        record(op, &[x, gain, bias], T::to_cpu_storage_owned(y), x.shape())
    }

    fn forward<T: Real>(&self, x: &[T], gain: &[T], bias: &[T]) -> (Vec<T>, Vec<(T, T)>) {
        let (size, len) = (self.group_len().max(1), self.dims.len.max(1));
        let mut y = vec![T::zero(); x.len()];
        let group = |(at, (out, x)): (usize, (&mut [T], &[T]))| {
            vectorised(
                #[inline(always)]
                || {
                    let mean = T::narrow(sum(x, |v| v) / size as f64);
                    let variance = sum(x, |v| (v - mean) * (v - mean)) / size as f64;
                    let rstd = T::narrow((variance + f64::from(self.eps)).sqrt().recip());
                    let first = at % self.groups * (size / len);
                    for (c, (out, x)) in out.chunks_mut(len).zip(x.chunks(len)).enumerate() {
                        let c = first + c;
                        affine(out, x, None, mean, rstd * gain[c], bias[c], false);
                    }
                    (mean, rstd)
                },
            )
        };
        let statistics = if x.len() < SMALL {
            y.chunks_mut(size).zip(x.chunks(size)).enumerate().map(group).collect()
        } else {
            y.par_chunks_mut(size).zip(x.par_chunks(size)).enumerate().map(group).collect()
        };
        (y, statistics)
    }
}

impl<T: Real> Op for GroupNormed<T> {
    fn name(&self) -> &'static str {
        "group_norm"
    }

    fn backward(&self, cx: &mut Cx<'_>) -> Result<()> {
        let gains = cx.args[1].to_vec1::<T>()?;
        let (dx, dgain, dbias) = with_elements::<T, _>(&cx.args[0], |x| {
            with_elements::<T, _>(cx.grad, |grad| self.gradients(x, grad, &gains))
        })??;
        let device = cx.grad.device().clone();
        if cx.wants(0) {
            cx.give(0, Tensor::from_vec(dx, cx.args[0].shape(), &device)?)?;
        }
        for (i, vector) in [(1, dgain), (2, dbias)] {
            if cx.wants(i) {
                cx.give(i, Tensor::from_vec(vector, self.options.dims.channels, &device)?)?;
            }
        }
        Ok(())
    }
}

impl<T: Real> GroupNormed<T> {
    /// As for batch normalisation, with `g = gain · dy` and means over the group.
    fn gradients(&self, x: &[T], grad: &[T], gain: &[T]) -> (Vec<T>, Vec<T>, Vec<T>) {
        let options = &self.options;
        let (size, len) = (options.group_len().max(1), options.dims.len.max(1));
        let mut dx = vec![T::zero(); x.len()];
        let group = |(at, ((dx, x), grad)): (usize, ((&mut [T], &[T]), &[T]))| {
            vectorised(
                #[inline(always)]
                || {
                    let (mean, rstd) = self.statistics[at];
                    let first = at % options.groups * (size / len);
                    let sums: Vec<(f64, f64)> = x
                        .chunks(len)
                        .zip(grad.chunks(len))
                        .map(|(x, g)| {
                            let runs = x.chunks(4096).zip(g.chunks(4096));
                            runs.fold((0.0, 0.0), |(total, along), (x, g)| {
                                let (a, b) = gradient_sums(g, None, x, mean);
                                (total + a, along + b)
                            })
                        })
                        .collect();
                    let weigh = |pick: fn(&(f64, f64)) -> f64| {
                        let weighted = sums.iter().zip(&gain[first..]);
                        weighted.map(|(s, &w)| pick(s) * w.wide()).sum::<f64>() / size as f64
                    };
                    let (total, along) = (weigh(|s| s.0), weigh(|s| s.1));
                    let slope = T::narrow(along * (rstd * rstd).wide() * rstd.wide());
                    let offset = T::narrow(total * rstd.wide());
                    let runs = dx.chunks_mut(len).zip(x.chunks(len)).zip(grad.chunks(len));
                    for (c, ((dx, x), grad)) in runs.enumerate() {
                        let scale = gain[first + c] * rstd;
                        for ((d, &x), &g) in dx.iter_mut().zip(x).zip(grad) {
                            *d = scale * g - offset - (x - mean) * slope;
                        }
                    }
                    sums
                },
            )
        };
        let sums: Vec<Vec<(f64, f64)>> = if x.len() < SMALL {
            dx.chunks_mut(size).zip(x.chunks(size)).zip(grad.chunks(size)).enumerate().map(group).collect()
        } else {
            dx.par_chunks_mut(size)
                .zip(x.par_chunks(size))
                .zip(grad.par_chunks(size))
                .enumerate()
                .map(group)
                .collect()
        };
        let mut total = vec![(0.0, 0.0); options.dims.channels];
        for (at, sums) in sums.iter().enumerate() {
            let rstd = self.statistics[at].1.wide();
            let into = &mut total[at % options.groups * (size / len)..];
            for (into, sums) in into.iter_mut().zip(sums) {
                into.0 += sums.0;
                into.1 += sums.1 * rstd;
            }
        }
        let (dbias, dgain) = total.iter().map(|s| (T::narrow(s.0), T::narrow(s.1))).unzip();
        (dx, dgain, dbias)
    }
}
