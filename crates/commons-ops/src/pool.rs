//! Pooling and nearest-neighbour resizing of `[batch, channels, height, width]`.

use candle_core::{DType, Result, Tensor, bail};
use rayon::prelude::*;

use crate::slices::{Real, direct, with_elements};
use crate::tape::{Cx, Op, record};

/// Elements below which a second thread is not worth waking.
const SMALL: usize = 32 * 1024;

/// Windows of a pooling, per axis `[height, width]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolOptions {
    /// Size of a window.
    pub kernel: [usize; 2],
    /// Step between windows.
    pub stride: [usize; 2],
    /// Elements added on both sides: `−∞` for maxima, zero for means. At most half a window.
    pub padding: [usize; 2],
    /// Whether means divide by the whole window (true) or by what of it lies inside the input.
    pub count_padding: bool,
}

impl PoolOptions {
    /// Square windows of `kernel` that step by `stride`, without padding.
    #[must_use]
    pub fn new(kernel: usize, stride: usize) -> Self {
        Self { kernel: [kernel; 2], stride: [stride; 2], padding: [0; 2], count_padding: true }
    }

    /// The same with padding on every side.
    #[must_use]
    pub fn padded(self, padding: usize) -> Self {
        Self { padding: [padding; 2], ..self }
    }
}

/// Maximum of each window; of equal elements the first in row-major order gets the gradient, and
/// a `NaN` counts as the largest. `x [batch, channels, h, w]` → `[batch, channels, h', w']` with
/// `h' = (h + 2·padding − kernel)/stride + 1`.
///
/// # Errors
/// If `x` does not have four dimensions or no window fits.
pub fn max_pool2d(x: &Tensor, options: &PoolOptions) -> Result<Tensor> {
    pool("max_pool2d", x, Kind::Max, |input| Windows::strided("max_pool2d", input, options))
}

/// Mean of each window, shapes as in [`max_pool2d`].
///
/// # Errors
/// If `x` does not have four dimensions or no window fits.
pub fn avg_pool2d(x: &Tensor, options: &PoolOptions) -> Result<Tensor> {
    let count = options.count_padding.then(|| options.kernel[0] * options.kernel[1]);
    let windows = |input| Windows::strided("avg_pool2d", input, options);
    pool("avg_pool2d", x, Kind::Mean(count), windows)
}

/// Means over an `h × w` grid of nearly equal windows: window `i` of an axis of length `n` is
/// `⌊i·n/h⌋ .. ⌈(i+1)·n/h⌉`. `x [batch, channels, ..]` → `[batch, channels, h, w]`.
///
/// # Errors
/// If `x` does not have four dimensions or a size is zero.
pub fn adaptive_avg_pool2d(x: &Tensor, size: [usize; 2]) -> Result<Tensor> {
    pool("adaptive_avg_pool2d", x, Kind::Mean(None), |input| {
        if size.contains(&0) || input.contains(&0) {
            bail!("adaptive_avg_pool2d: cannot pool {input:?} to {size:?}")
        }
        let axis = |a: usize| {
            let (n, m) = (input[a], size[a]);
            (0..m).map(|i| (i * n / m, ((i + 1) * n).div_ceil(m))).collect()
        };
        Ok(Windows { input, axes: [axis(0), axis(1)] })
    })
}

/// Mean over all positions: `[batch, channels, h, w]` → `[batch, channels]`.
///
/// # Errors
/// If `x` does not have four dimensions or no positions.
pub fn global_avg_pool2d(x: &Tensor) -> Result<Tensor> {
    adaptive_avg_pool2d(x, [1, 1])?.flatten_from(1)
}

/// Maximum over all positions: `[batch, channels, h, w]` → `[batch, channels]`.
///
/// # Errors
/// If `x` does not have four dimensions or no positions.
pub fn global_max_pool2d(x: &Tensor) -> Result<Tensor> {
    pool("global_max_pool2d", x, Kind::Max, |input| {
        if input.contains(&0) {
            bail!("global_max_pool2d: no positions in {input:?}")
        }
        Ok(Windows { input, axes: [vec![(0, input[0])], vec![(0, input[1])]] })
    })?
    .flatten_from(1)
}

/// Resizes to `height × width` by repeating: output `i` of an axis takes input `⌊i·n/m⌋`.
///
/// # Errors
/// If `x` does not have four dimensions or a size is zero.
pub fn upsample_nearest2d(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    // A window of one element each; windows may share an element, its gradients add up.
    pool("upsample_nearest2d", x, Kind::Mean(None), |input| {
        if height == 0 || width == 0 || input.contains(&0) {
            bail!("upsample_nearest2d: cannot resize {input:?} to {height} × {width}")
        }
        let axis = |n: usize, m: usize| (0..m).map(|i| (i * n / m, i * n / m + 1)).collect();
        Ok(Windows { input, axes: [axis(input[0], height), axis(input[1], width)] })
    })
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Max,
    /// Mean, by a fixed number or by the elements in the window.
    Mean(Option<usize>),
}

/// The part of every window inside the input, per axis as half-open ranges.
#[derive(Clone, Debug)]
struct Windows {
    input: [usize; 2],
    axes: [Vec<(usize, usize)>; 2],
}

impl Windows {
    fn strided(name: &str, input: [usize; 2], o: &PoolOptions) -> Result<Self> {
        let axis = |a: usize| {
            let (n, k, s, p) = (input[a], o.kernel[a], o.stride[a], o.padding[a]);
            if k == 0 || s == 0 || 2 * p > k || n + 2 * p < k {
                bail!("{name}: no window fits {input:?} with {o:?}")
            }
            let windows = (n + 2 * p - k) / s + 1;
            Ok((0..windows)
                .map(|i| ((i * s).saturating_sub(p), (i * s + k).saturating_sub(p).min(n)))
                .collect())
        };
        Ok(Self { input, axes: [axis(0)?, axis(1)?] })
    }

    fn input_len(&self) -> usize {
        self.input[0] * self.input[1]
    }

    fn output_len(&self) -> usize {
        self.axes[0].len() * self.axes[1].len()
    }

    /// Windows in row-major order.
    fn iter(&self) -> impl Iterator<Item = ((usize, usize), (usize, usize))> {
        self.axes[0].iter().flat_map(|&rows| self.axes[1].iter().map(move |&cols| (rows, cols)))
    }

    fn max<T: Real>(&self, x: &[T], y: &mut [T], at: &mut [u32]) {
        let width = self.input[1];
        for (((rows, cols), y), at) in self.iter().zip(y).zip(at) {
            let mut best = rows.0 * width + cols.0;
            for row in rows.0..rows.1 {
                for i in row * width + cols.0..row * width + cols.1 {
                    if x[i] > x[best] || (x[i].is_nan() && !x[best].is_nan()) {
                        best = i;
                    }
                }
            }
            *y = x[best];
            *at = best as u32;
        }
    }

    fn mean<T: Real>(&self, count: Option<usize>, x: &[T], y: &mut [T]) {
        let width = self.input[1];
        for ((rows, cols), y) in self.iter().zip(y) {
            let mut sum = T::zero();
            for row in rows.0..rows.1 {
                let run = &x[row * width + cols.0..row * width + cols.1];
                sum += run.iter().fold(T::zero(), |a, &b| a + b);
            }
            *y = sum / divisor(count, rows, cols);
        }
    }

    fn mean_backward<T: Real>(&self, count: Option<usize>, grad: &[T], dx: &mut [T]) {
        let width = self.input[1];
        for ((rows, cols), &g) in self.iter().zip(grad) {
            let g = g / divisor(count, rows, cols);
            for row in rows.0..rows.1 {
                for d in &mut dx[row * width + cols.0..row * width + cols.1] {
                    *d += g;
                }
            }
        }
    }
}

fn divisor<T: Real>(count: Option<usize>, rows: (usize, usize), cols: (usize, usize)) -> T {
    T::narrow(count.unwrap_or((rows.1 - rows.0) * (cols.1 - cols.0)) as f64)
}

fn pool(
    name: &'static str,
    x: &Tensor,
    kind: Kind,
    windows: impl FnOnce([usize; 2]) -> Result<Windows>,
) -> Result<Tensor> {
    let &[batch, channels, h, w] = x.dims() else {
        bail!("{name}: expected [batch, channels, height, width], got {:?}", x.dims())
    };
    let windows = windows([h, w])?;
    let shape = [batch, channels, windows.axes[0].len(), windows.axes[1].len()];
    match x.dtype() {
        DType::F32 if direct(x) => run::<f32>(name, x, kind, windows, shape),
        DType::F64 if direct(x) => run::<f64>(name, x, kind, windows, shape),
        dtype if x.device().is_cpu() => {
            let x = x.to_dtype(DType::F32)?;
            run::<f32>(name, &x, kind, windows, shape)?.to_dtype(dtype)
        }
        _ => composed(x, kind, &windows, shape),
    }
}

/// The same by candle's ops: one window position at a time, windows along the batch.
fn composed(x: &Tensor, kind: Kind, windows: &Windows, shape: [usize; 4]) -> Result<Tensor> {
    let mut cells = Vec::with_capacity(windows.output_len());
    for (rows, cols) in windows.iter() {
        let cell = x.narrow(2, rows.0, rows.1 - rows.0)?.narrow(3, cols.0, cols.1 - cols.0)?;
        let cell = cell.contiguous()?.flatten_from(2)?;
        cells.push(match kind {
            Kind::Max => cell.max(2)?,
            Kind::Mean(None) => cell.mean(2)?,
            Kind::Mean(Some(count)) => (cell.sum(2)? / count as f64)?,
        });
    }
    Tensor::stack(&cells, 2)?.reshape(&shape[..])
}

struct Pool {
    name: &'static str,
    kind: Kind,
    windows: Windows,
    /// Where each maximum was found inside its plane.
    at: Vec<u32>,
}

fn run<T: Real>(
    name: &'static str,
    x: &Tensor,
    kind: Kind,
    windows: Windows,
    shape: [usize; 4],
) -> Result<Tensor> {
    let len: usize = shape.iter().product();
    let mut y = vec![T::zero(); len];
    let mut at = vec![0u32; if kind == Kind::Max { len } else { 0 }];
    let (input, output) = (windows.input_len().max(1), windows.output_len().max(1));
    with_elements::<T, _>(x, |x| match kind {
        Kind::Max if x.len() < SMALL => {
            let planes = x.chunks(input).zip(y.chunks_mut(output)).zip(at.chunks_mut(output));
            planes.for_each(|((x, y), at)| windows.max(x, y, at));
        }
        Kind::Max => x
            .par_chunks(input)
            .zip(y.par_chunks_mut(output))
            .zip(at.par_chunks_mut(output))
            .for_each(|((x, y), at)| windows.max(x, y, at)),
        Kind::Mean(count) => planes(x, input, &mut y, output, |x, y| windows.mean(count, x, y)),
    })?;
    let op = Pool { name, kind, windows, at };
    record(op, &[x], T::to_cpu_storage_owned(y), &shape[..])
}

/// Calls `f` on matching planes.
fn planes<T: Real>(
    from: &[T],
    from_len: usize,
    to: &mut [T],
    to_len: usize,
    f: impl Fn(&[T], &mut [T]) + Sync,
) {
    if from.len().max(to.len()) < SMALL {
        from.chunks(from_len).zip(to.chunks_mut(to_len)).for_each(|(a, b)| f(a, b));
    } else {
        from.par_chunks(from_len).zip(to.par_chunks_mut(to_len)).for_each(|(a, b)| f(a, b));
    }
}

impl Pool {
    fn gradient<T: Real>(&self, x: &Tensor, grad: &Tensor) -> Result<Tensor> {
        let mut dx = vec![T::zero(); x.elem_count()];
        let (input, output) = (self.windows.input_len().max(1), self.windows.output_len().max(1));
        with_elements::<T, _>(grad, |grad| match self.kind {
            Kind::Max => {
                for ((dx, grad), at) in
                    dx.chunks_mut(input).zip(grad.chunks(output)).zip(self.at.chunks(output))
                {
                    for (&g, &at) in grad.iter().zip(at) {
                        dx[at as usize] += g;
                    }
                }
            }
            Kind::Mean(count) => planes(grad, output, &mut dx, input, |g, d| {
                self.windows.mean_backward(count, g, d);
            }),
        })?;
        Tensor::from_vec(dx, x.shape(), grad.device())
    }
}

impl Op for Pool {
    fn name(&self) -> &'static str {
        self.name
    }

    fn backward(&self, cx: &mut Cx<'_>) -> Result<()> {
        let dx = match cx.grad.dtype() {
            DType::F64 => self.gradient::<f64>(&cx.args[0], cx.grad)?,
            _ => self.gradient::<f32>(&cx.args[0], cx.grad)?,
        };
        cx.give(0, dx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{agree, distance, mix, randn, values, var};
    use crate::{Device, Var, backward};

    fn by_candle(x: &Tensor, kind: Kind, windows: &Windows) -> Result<Tensor> {
        let (n, c) = (x.dim(0)?, x.dim(1)?);
        composed(x, kind, windows, [n, c, windows.axes[0].len(), windows.axes[1].len()])
    }

    #[test]
    fn pools_match_the_composed_graph() {
        let options = [
            PoolOptions::new(2, 2),
            PoolOptions::new(3, 2).padded(1),
            PoolOptions { kernel: [3, 2], stride: [1, 3], padding: [1, 0], count_padding: false },
            PoolOptions { count_padding: false, ..PoolOptions::new(3, 1).padded(1) },
        ];
        let x = randn(1, &[2, 3, 7, 9]);
        for o in &options {
            let windows = Windows::strided("test", [7, 9], o).unwrap();
            let f = |t: &[Tensor]| max_pool2d(&t[0], o);
            agree(&[&x], f, |t| by_candle(&t[0], Kind::Max, &windows), 1e-6);
            let count = o.count_padding.then(|| o.kernel[0] * o.kernel[1]);
            let f = |t: &[Tensor]| avg_pool2d(&t[0], o);
            agree(&[&x], f, |t| by_candle(&t[0], Kind::Mean(count), &windows), 1e-5);
        }
        agree(&[&x], |t| global_avg_pool2d(&t[0]), |t| t[0].flatten_from(2)?.mean(2), 1e-5);
        agree(&[&x], |t| global_max_pool2d(&t[0]), |t| t[0].flatten_from(2)?.max(2), 1e-6);
    }

    #[test]
    fn known_values() {
        let x = Tensor::new(&[[[[1f32, 2., 3.], [4., 9., 6.], [7., 8., 5.]]]], &Device::Cpu).unwrap();
        let y = max_pool2d(&x, &PoolOptions::new(2, 1)).unwrap();
        assert_eq!(values(&y), [9., 9., 9., 9.]);
        // Padding counts as zero or not at all.
        let o = PoolOptions::new(2, 2).padded(1);
        assert_eq!(values(&avg_pool2d(&x, &o).unwrap()), [0.25, 1.25, 2.75, 7.0]);
        let o = PoolOptions { count_padding: false, ..o };
        assert_eq!(values(&avg_pool2d(&x, &o).unwrap()), [1., 2.5, 5.5, 7.0]);
        let y = adaptive_avg_pool2d(&x, [2, 1]).unwrap();
        assert!((values(&y)[0] - 25. / 6.).abs() < 1e-6 && values(&y)[1] == 6.5);
        let y = upsample_nearest2d(&x, 2, 5).unwrap();
        assert_eq!(values(&y), [1., 1., 2., 2., 3., 4., 4., 9., 9., 6.]);
    }

    #[test]
    fn upsampling_adds_to_other_uses_of_its_input() {
        // candle's own op overwrites the gradient of the other use.
        let x = var(1, &[1, 2, 3, 4]);
        let by_repeat = |t: &Tensor| {
            t.reshape((1, 2, 3, 1, 4, 1))?
                .broadcast_as((1, 2, 3, 2, 4, 3))?
                .contiguous()?
                .reshape((1, 2, 6, 12))
        };
        agree(&[&x], |t| upsample_nearest2d(&t[0], 6, 12), |t| by_repeat(&t[0]), 1e-6);
        let y = upsample_nearest2d(&x, 6, 12).unwrap().sum_all().unwrap();
        let loss = (y + (x.as_tensor() * 3.0).unwrap().sum_all().unwrap()).unwrap();
        let grads = backward(&loss).unwrap();
        assert_eq!(values(grads.get(&x).unwrap()), [9.0; 24]);
        let y = x.upsample_nearest2d(6, 8).unwrap().sum_all().unwrap();
        let theirs = (y + (x.as_tensor() * 3.0).unwrap().sum_all().unwrap()).unwrap().backward().unwrap();
        let sum: f64 = values(theirs.get(&x).unwrap()).iter().sum();
        assert_ne!(sum, (4.0 + 3.0) * 24.0, "candle has been mended");
    }

    #[test]
    fn strided_input_and_other_types() {
        let x = randn(1, &[4, 5, 2, 3]);
        let t = x.permute((3, 2, 0, 1)).unwrap();
        let o = PoolOptions::new(2, 2);
        let want = max_pool2d(&t.contiguous().unwrap(), &o).unwrap();
        assert_eq!(values(&max_pool2d(&t, &o).unwrap()), values(&want));
        let half = max_pool2d(&t.to_dtype(DType::BF16).unwrap(), &o).unwrap();
        assert_eq!(half.dtype(), DType::BF16);
        assert!(distance(&half, &want) < 1e-2);
        assert!(max_pool2d(&x, &PoolOptions::new(9, 1)).is_err());
        assert!(max_pool2d(&x.flatten_all().unwrap(), &o).is_err());
    }

    #[test]
    fn threads_do_not_matter() {
        let x = randn(1, &[8, 8, 30, 30]);
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let x = Var::from_tensor(&x).unwrap();
                let y = max_pool2d(&x, &PoolOptions::new(3, 1).padded(1)).unwrap();
                let z = avg_pool2d(&y, &PoolOptions::new(3, 2)).unwrap();
                let grads = backward(&mix(&z).unwrap()).unwrap();
                [values(&z), values(grads.get(&x).unwrap())]
            })
        };
        let one = run(1);
        assert!(one == run(2) && one == run(4));
    }
}
