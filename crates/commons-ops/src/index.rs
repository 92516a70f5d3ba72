//! Gathering, scattering, segments, running sums and selection.
//!
//! Indices are `u32`. An index out of range is an error that names it, never undefined.

use candle_core::{DType, Result, Shape, Tensor, WithDType, bail};

use crate::slices::{Real, direct, with_elements};
use crate::tape::{Cx, Op, record};

/// `y[.., i, ..] = x[.., index[.., i, ..], ..]` along `dim`. `index` (`u32`) has as many
/// dimensions as `x`, none but `dim` larger than that of `x`; the result has its shape.
///
/// # Errors
/// If shapes do not fit or an index is out of range.
pub fn gather(x: &Tensor, index: &Tensor, dim: usize) -> Result<Tensor> {
    let plan = Plan::paired("gather", x, index, dim)?;
    if !direct(x) {
        return x.gather(&index.contiguous()?, dim);
    }
    let index = plan.indices("gather", index)?;
    let op = Pick { name: "gather", plan, index };
    match x.dtype() {
        DType::F64 => op.run::<f64>(x),
        _ => op.run::<f32>(x),
    }
}

/// A copy of `x` with `source[.., i, ..]` added at `index[.., i, ..]` along `dim`; equal indices
/// add up in order. `index` (`u32`) and `source` have one shape, see [`gather`].
///
/// # Errors
/// If shapes do not fit or an index is out of range.
pub fn scatter_add(x: &Tensor, index: &Tensor, source: &Tensor, dim: usize) -> Result<Tensor> {
    let plan = Plan::paired("scatter_add", x, index, dim)?;
    if source.dims() != index.dims() {
        bail!("scatter_add: index {:?} and source {:?} differ", index.dims(), source.dims())
    }
    add_at("scatter_add", plan, x, index, source)
}

/// Slices of `x` along `dim` picked by `index [n]` (`u32`).
///
/// # Errors
/// If `index` is not a vector or an index is out of range.
pub fn index_select(x: &Tensor, index: &Tensor, dim: usize) -> Result<Tensor> {
    let plan = Plan::slices("index_select", x, index, dim)?;
    if !direct(x) {
        return x.index_select(&index.contiguous()?, dim);
    }
    let index = plan.indices("index_select", index)?;
    let op = Pick { name: "index_select", plan, index };
    match x.dtype() {
        DType::F64 => op.run::<f64>(x),
        _ => op.run::<f32>(x),
    }
}

/// A copy of `x` with slice `i` of `source` along `dim` added to slice `index[i]`; equal indices
/// add up in order. `index [n]` is `u32`, `source` is shaped like `x` except `n` at `dim`.
///
/// # Errors
/// If shapes do not fit or an index is out of range.
pub fn index_add(x: &Tensor, index: &Tensor, source: &Tensor, dim: usize) -> Result<Tensor> {
    let plan = Plan::slices("index_add", x, index, dim)?;
    if source.dims() != plan.picked.dims() {
        bail!("index_add: source {:?} should be {:?}", source.dims(), plan.picked.dims())
    }
    add_at("index_add", plan, x, index, source)
}

/// `y[s] = Σ x[i]` over the rows `i` with `segments[i] = s`: `x [n, ..]`, `segments [n]` (`u32`,
/// in any order) → `[count, ..]`; a segment without rows is zero.
///
/// # Errors
/// If `segments` does not match the rows or names a segment not below `count`.
pub fn segment_sum(x: &Tensor, segments: &Tensor, count: usize) -> Result<Tensor> {
    let Some((&rows, rest)) = x.dims().split_first() else {
        bail!("segment_sum: the input has no rows")
    };
    if segments.dims() != [rows] {
        bail!("segment_sum: {rows} rows need segments [{rows}], got {:?}", segments.dims())
    }
    let mut dims = vec![count];
    dims.extend(rest);
    index_add(&Tensor::zeros(dims, x.dtype(), x.device())?, segments, x, 0)
}

/// Running sum along `dim`, `y[i] = Σ_{j ≤ i} x[j]`, in time linear in the elements.
///
/// # Errors
/// If `x` has no dimension `dim`.
pub fn cumsum(x: &Tensor, dim: usize) -> Result<Tensor> {
    if dim >= x.rank() {
        bail!("cumsum: no dimension {dim} in {:?}", x.dims())
    }
    match x.dtype() {
        DType::F32 if direct(x) => cumsum_as::<f32>(x, dim),
        DType::F64 if direct(x) => cumsum_as::<f64>(x, dim),
        _ => x.cumsum(dim),
    }
}

/// The `k` largest elements of each row of `x [.., n]` in descending order: `(values, indices)`,
/// both `[.., k]`, indices `u32`. Among equal elements the lower index comes first; a `NaN` counts
/// as the largest. The gradient of a value goes to the element it came from.
///
/// # Errors
/// If `x` has no dimension or fewer than `k` elements in a row.
pub fn top_k(x: &Tensor, k: usize) -> Result<(Tensor, Tensor)> {
    let Some((&n, lead)) = x.dims().split_last() else {
        bail!("top_k: the input has no dimension")
    };
    if k > n {
        bail!("top_k: {k} of {n} elements")
    }
    let rows = x.detach().to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    let mut picked = Vec::with_capacity(rows.len() / n.max(1) * k);
    let mut order: Vec<u32> = Vec::with_capacity(n);
    for row in rows.chunks(n.max(1)) {
        order.clear();
        order.extend(0..n as u32);
        let largest_first = |&a: &u32, &b: &u32| {
            let (x, y) = (row[a as usize], row[b as usize]);
            descending(x, y).then(a.cmp(&b))
        };
        if 0 < k && k < n {
            order.select_nth_unstable_by(k - 1, largest_first);
            order.truncate(k);
        }
        order.sort_unstable_by(largest_first);
        picked.extend_from_slice(&order[..k]);
    }
    let mut dims = lead.to_vec();
    dims.push(k);
    let indices = Tensor::from_vec(picked, dims, x.device())?;
    Ok((gather(x, &indices, x.rank() - 1)?, indices))
}

fn descending(a: f64, b: f64) -> std::cmp::Ordering {
    b.partial_cmp(&a).unwrap_or_else(|| b.is_nan().cmp(&a.is_nan()))
}

/// The index (`u32`) of the largest element of each row, `[.., n]` → `[..]`; the lowest of equal
/// ones, and `NaN` counts as the largest.
///
/// # Errors
/// If rows are empty or missing.
pub fn argmax(x: &Tensor) -> Result<Tensor> {
    let Some((&n, lead)) = x.dims().split_last().filter(|(n, _)| **n > 0) else {
        bail!("argmax: rows of {:?} are empty", x.dims())
    };
    let best = |row: &[f64]| {
        let later = |best: usize, i: usize| descending(row[best], row[i]).is_gt();
        (1..n).fold(0, |best, i| if later(best, i) { i } else { best }) as u32
    };
    let rows = x.detach().to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    let found: Vec<u32> = rows.chunks(n).map(best).collect();
    Tensor::from_vec(found, lead, x.device())
}

/// `ids` (`u32`, any shape) → `[ids.., classes]` with a one at each id and zeros elsewhere.
///
/// # Errors
/// If an id is not below `classes`.
pub fn one_hot(ids: &Tensor, classes: usize, dtype: DType) -> Result<Tensor> {
    let list = ids.flatten_all()?.to_vec1::<u32>()?;
    let mut out = vec![0f32; list.len() * classes];
    for (row, &id) in list.iter().enumerate() {
        if id as usize >= classes {
            bail!("one_hot: id {id} at position {row} is not below {classes}")
        }
        out[row * classes + id as usize] = 1.0;
    }
    let mut dims = ids.dims().to_vec();
    dims.push(classes);
    Tensor::from_vec(out, dims, ids.device())?.to_dtype(dtype)
}

/// Which elements of a larger tensor the elements of a picked one correspond to.
#[derive(Clone, Debug)]
struct Plan {
    /// Shape of the larger tensor, and which dimension is indexed.
    whole: Vec<usize>,
    dim: usize,
    picked: Shape,
    /// Whether every picked element has an index of its own, or every slice has one.
    paired: bool,
}

impl Plan {
    fn check(name: &str, x: &Tensor, index: &Tensor, dim: usize) -> Result<()> {
        if dim >= x.rank() {
            bail!("{name}: no dimension {dim} in {:?}", x.dims())
        }
        if index.dtype() != DType::U32 {
            bail!("{name}: indices must be u32, got {:?}", index.dtype())
        }
        Ok(())
    }

    fn paired(name: &str, x: &Tensor, index: &Tensor, dim: usize) -> Result<Self> {
        Self::check(name, x, index, dim)?;
        let fits = x.rank() == index.rank()
            && (0..x.rank()).all(|d| d == dim || index.dims()[d] <= x.dims()[d]);
        if !fits {
            bail!("{name}: index {:?} does not fit {:?} along {dim}", index.dims(), x.dims())
        }
        Ok(Self { whole: x.dims().to_vec(), dim, picked: index.shape().clone(), paired: true })
    }

    fn slices(name: &str, x: &Tensor, index: &Tensor, dim: usize) -> Result<Self> {
        Self::check(name, x, index, dim)?;
        let &[n] = index.dims() else {
            bail!("{name}: the index must be a vector, got {:?}", index.dims())
        };
        let mut picked = x.dims().to_vec();
        picked[dim] = n;
        Ok(Self { whole: x.dims().to_vec(), dim, picked: picked.into(), paired: false })
    }

    fn indices(&self, name: &str, index: &Tensor) -> Result<Vec<u32>> {
        let index = index.flatten_all()?.to_vec1::<u32>()?;
        let limit = self.whole[self.dim];
        match index.iter().position(|&i| i as usize >= limit) {
            None => Ok(index),
            Some(at) => bail!(
                "{name}: index {} at position {at} is not below {limit}, the size of dimension {}",
                index[at],
                self.dim
            ),
        }
    }

    /// Calls `f(picked offset, whole offset, length)` for runs that are contiguous in both.
    fn runs(&self, index: &[u32], mut f: impl FnMut(usize, usize, usize)) {
        let picked = self.picked.dims();
        if !self.paired {
            let inner: usize = picked[self.dim + 1..].iter().product();
            let outer: usize = picked[..self.dim].iter().product();
            for o in 0..outer {
                for (i, &at) in index.iter().enumerate() {
                    let from = (o * index.len() + i) * inner;
                    f(from, (o * self.whole[self.dim] + at as usize) * inner, inner);
                }
            }
            return;
        }
        // Walk the picked coordinates like an odometer; offsets in the whole leave out `dim`.
        let mut strides = vec![1; picked.len()];
        for d in (1..picked.len()).rev() {
            strides[d - 1] = strides[d] * self.whole[d];
        }
        let step = std::mem::replace(&mut strides[self.dim], 0);
        let mut coordinates = vec![0; picked.len()];
        let mut base = 0;
        for (from, &at) in index.iter().enumerate() {
            f(from, base + at as usize * step, 1);
            for d in (0..picked.len()).rev() {
                coordinates[d] += 1;
                base += strides[d];
                if coordinates[d] < picked[d] {
                    break;
                }
                base -= strides[d] * picked[d];
                coordinates[d] = 0;
            }
        }
    }

    fn pick<T: WithDType>(&self, x: &[T], index: &[u32]) -> Vec<T> {
        let mut out = vec![T::zero(); self.picked.elem_count()];
        self.runs(index, |to, from, len| out[to..to + len].copy_from_slice(&x[from..from + len]));
        out
    }

    fn add<T: WithDType>(&self, into: &mut [T], index: &[u32], source: &[T]) {
        self.runs(index, |from, to, len| {
            for (o, &v) in into[to..to + len].iter_mut().zip(&source[from..from + len]) {
                *o += v;
            }
        });
    }
}

/// Gather and index_select.
struct Pick {
    name: &'static str,
    plan: Plan,
    index: Vec<u32>,
}

impl Pick {
    fn run<T: Real>(self, x: &Tensor) -> Result<Tensor> {
        let y = with_elements::<T, _>(x, |x| self.plan.pick(x, &self.index))?;
        let shape = self.plan.picked.clone();
        record(self, &[x], T::to_cpu_storage_owned(y), shape)
    }

    fn gradient<T: Real>(&self, grad: &Tensor) -> Result<Tensor> {
        let mut dx = vec![T::zero(); self.plan.whole.iter().product()];
        with_elements::<T, _>(grad, |grad| self.plan.add(&mut dx, &self.index, grad))?;
        Tensor::from_vec(dx, &self.plan.whole[..], grad.device())
    }
}

impl Op for Pick {
    fn name(&self) -> &'static str {
        self.name
    }

    fn backward(&self, cx: &mut Cx<'_>) -> Result<()> {
        let dx = match cx.grad.dtype() {
            DType::F64 => self.gradient::<f64>(cx.grad)?,
            _ => self.gradient::<f32>(cx.grad)?,
        };
        cx.give(0, dx)
    }
}

fn add_at(
    name: &'static str,
    plan: Plan,
    x: &Tensor,
    index: &Tensor,
    source: &Tensor,
) -> Result<Tensor> {
    if source.dtype() != x.dtype() {
        bail!("{name}: source is {:?}, the target {:?}", source.dtype(), x.dtype())
    }
    if !direct(x) {
        // candle's scatter_add has a gradient for equal shapes only, index_add a right one.
        return if plan.paired && index.dims() != x.dims() {
            bail!("{name}: {:?} on {:?} needs equal shapes", x.dtype(), x.device())
        } else if plan.paired {
            x.scatter_add(&index.contiguous()?, &source.contiguous()?, plan.dim)
        } else {
            x.index_add(&index.contiguous()?, &source.contiguous()?, plan.dim)
        };
    }
    let index = plan.indices(name, index)?;
    let op = AddAt { name, plan, index };
    match x.dtype() {
        DType::F64 => op.run::<f64>(x, source),
        _ => op.run::<f32>(x, source),
    }
}

/// Scatter_add and index_add.
struct AddAt {
    name: &'static str,
    plan: Plan,
    index: Vec<u32>,
}

impl AddAt {
    fn run<T: Real>(self, x: &Tensor, source: &Tensor) -> Result<Tensor> {
        let mut y = with_elements::<T, _>(x, <[T]>::to_vec)?;
        with_elements::<T, _>(source, |s| self.plan.add(&mut y, &self.index, s))?;
        record(self, &[x, source], T::to_cpu_storage_owned(y), x.shape())
    }

    fn gradient<T: Real>(&self, grad: &Tensor) -> Result<Tensor> {
        let picked = with_elements::<T, _>(grad, |grad| self.plan.pick(grad, &self.index))?;
        Tensor::from_vec(picked, &self.plan.picked, grad.device())
    }
}

impl Op for AddAt {
    fn name(&self) -> &'static str {
        self.name
    }

    fn backward(&self, cx: &mut Cx<'_>) -> Result<()> {
        if cx.wants(1) {
            let grad = match cx.grad.dtype() {
                DType::F64 => self.gradient::<f64>(cx.grad)?,
                _ => self.gradient::<f32>(cx.grad)?,
            };
            cx.give(1, grad)?;
        }
        if cx.wants(0) {
            cx.share(0, cx.grad.clone())?;
        }
        Ok(())
    }
}

struct CumSum {
    dim: usize,
}

fn cumsum_as<T: Real>(x: &Tensor, dim: usize) -> Result<Tensor> {
    let mut y = with_elements::<T, _>(x, <[T]>::to_vec)?;
    running_sum(&mut y, x.dims(), dim, false);
    record(CumSum { dim }, &[x], T::to_cpu_storage_owned(y), x.shape())
}

/// In place, from the front or from the back.
fn running_sum<T: Real>(data: &mut [T], dims: &[usize], dim: usize, reverse: bool) {
    let inner: usize = dims[dim + 1..].iter().product();
    let n = dims[dim];
    for block in data.chunks_mut((n * inner).max(1)) {
        for step in 1..n {
            let (at, before) = if reverse { (n - 1 - step, n - step) } else { (step, step - 1) };
            for i in 0..inner {
                let previous = block[before * inner + i];
                block[at * inner + i] += previous;
            }
        }
    }
}

impl Op for CumSum {
    fn name(&self) -> &'static str {
        "cumsum"
    }

    fn backward(&self, cx: &mut Cx<'_>) -> Result<()> {
        let dims = cx.out.dims();
        let dx = match cx.grad.dtype() {
            DType::F64 => self.gradient::<f64>(cx.grad, dims)?,
            _ => self.gradient::<f32>(cx.grad, dims)?,
        };
        cx.give(0, dx)
    }
}

impl CumSum {
    fn gradient<T: Real>(&self, grad: &Tensor, dims: &[usize]) -> Result<Tensor> {
        let mut dx = with_elements::<T, _>(grad, <[T]>::to_vec)?;
        running_sum(&mut dx, dims, self.dim, true);
        Tensor::from_vec(dx, dims, grad.device())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{agree, ids, mix, randn, values, var};
    use crate::{Device, backward};

    fn table(data: &[u32], dims: &[usize]) -> Tensor {
        Tensor::from_vec(data.to_vec(), dims, &Device::Cpu).unwrap()
    }

    /// The definition of a gather, by one-hot products.
    fn gather_reference(x: &Tensor, index: &Tensor) -> Result<Tensor> {
        let hot = one_hot(index, x.dim(1)?, x.dtype())?;
        hot.broadcast_mul(&x.narrow(0, 0, index.dim(0)?)?.unsqueeze(1)?)?.sum(2)
    }

    #[test]
    fn gather_and_scatter_add_are_adjoint() {
        let x = randn(1, &[3, 5]);
        for index in [table(&[4, 0, 4, 2, 2, 1], &[2, 3]), table(&[0; 21], &[3, 7])] {
            let f = |t: &[Tensor]| gather(&t[0], &index, 1);
            agree(&[&x], f, |t| gather_reference(&t[0], &index), 1e-6);
            let source = randn(2, index.dims());
            agree(
                &[&x, &source],
                |t| scatter_add(&t[0], &index, &t[1], 1),
                |t| {
                    let hot = one_hot(&index, 5, DType::F64)?;
                    let sums = hot.broadcast_mul(&t[1].unsqueeze(2)?)?.sum(1)?;
                    let missing = Tensor::zeros((3 - index.dim(0)?, 5), DType::F64, &Device::Cpu)?;
                    &t[0] + Tensor::cat(&[&sums, &missing], 0)?
                },
                1e-6,
            );
        }
        // Another axis: the same as on the transpose.
        let index = table(&[2, 0, 1, 1, 0, 2, 2, 2], &[2, 4]);
        let y = gather(&x, &index, 0).unwrap();
        let t = gather(&x.t().unwrap(), &index.t().unwrap().contiguous().unwrap(), 1).unwrap();
        assert_eq!(values(&y), values(&t.t().unwrap()));
        assert!(x.gather(&index, 0).is_err() || values(&x.gather(&index, 0).unwrap()) == values(&y));
    }

    #[test]
    fn scatter_add_has_a_gradient_where_candle_fails() {
        let (x, source) = (var(1, &[2, 4]), var(2, &[2, 2]));
        let index = table(&[3, 3, 0, 1], &[2, 2]);
        let theirs = x.scatter_add(&index, &source, 1).and_then(|y| y.sum_all()?.backward());
        assert!(theirs.is_err(), "candle has been mended: drop the warning in the docs");
        let y = scatter_add(&x, &index, &source, 1).unwrap();
        let grads = backward(&mix(&y).unwrap()).unwrap();
        let weight = |i: usize| (i as f64 * 0.7).sin() + 0.3;
        let near = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6);
        let want = [weight(3), weight(3), weight(4), weight(5)];
        assert!(near(&values(grads.get(&source).unwrap()), &want));
        let want: Vec<f64> = (0..8).map(weight).collect();
        assert!(near(&values(grads.get(&x).unwrap()), &want));
    }

    #[test]
    fn slices_by_index() {
        let x = randn(1, &[3, 4, 2]);
        let index = ids(&[2, 2, 0]);
        for dim in 0..3 {
            let index = if dim == 2 { ids(&[1, 1, 0]) } else { index.clone() };
            agree(
                &[&x],
                |t| index_select(&t[0], &index, dim),
                |t| t[0].index_select(&index, dim),
                1e-6,
            );
            let mut dims = x.dims().to_vec();
            dims[dim] = 3;
            let source = randn(2, &dims);
            agree(
                &[&x, &source],
                |t| index_add(&t[0], &index, &t[1], dim),
                |t| t[0].index_add(&index, &t[1], dim),
                1e-6,
            );
        }
        let segments = ids(&[4, 0, 4]);
        agree(
            &[&x],
            |t| segment_sum(&t[0], &segments, 5),
            |t| Tensor::zeros((5, 4, 2), DType::F64, &Device::Cpu)?.index_add(&segments, &t[0], 0),
            1e-6,
        );
        let y = segment_sum(&x, &segments, 5).unwrap();
        assert_eq!(values(&y.get(1).unwrap()), [0.0; 8]);
    }

    #[test]
    fn cumsum_along_every_axis() {
        let x = randn(1, &[2, 5, 3]);
        for dim in 0..3 {
            agree(&[&x], |t| cumsum(&t[0], dim), |t| t[0].cumsum(dim), 1e-6);
            // Strided, and used twice.
            agree(
                &[&x],
                |t| cumsum(&t[0].transpose(0, 2)?, dim)? + cumsum(&t[0].transpose(0, 2)?, dim)?,
                |t| t[0].transpose(0, 2)?.contiguous()?.cumsum(dim)? * 2.0,
                1e-6,
            );
        }
        // Linear time: candle builds an n × n triangle, 40 GB here.
        let long = Tensor::ones(100_000, DType::F32, &Device::Cpu).unwrap();
        let y = values(&cumsum(&long, 0).unwrap());
        assert_eq!((y[0], y[99_999]), (1.0, 100_000.0));
    }

    #[test]
    fn top_k_is_ordered_and_stable() {
        let x = Tensor::new(&[[1f32, 5., 5., 2., 5.], [f32::NAN, 0., -1., f32::INFINITY, 0.]], &Device::Cpu).unwrap();
        let (v, i) = top_k(&x, 3).unwrap();
        assert_eq!(i.to_vec2::<u32>().unwrap(), [[1, 2, 4], [0, 3, 1]]);
        assert_eq!(v.get(0).unwrap().to_vec1::<f32>().unwrap(), [5., 5., 5.]);
        assert_eq!(argmax(&x).unwrap().to_vec1::<u32>().unwrap(), [1, 0]);
        assert_eq!(top_k(&x, 0).unwrap().0.dims(), [2, 0]);
        assert!(top_k(&x, 6).is_err());
        // The gradient lands on the chosen elements.
        let x = var(3, &[4, 7]);
        let (v, i) = top_k(&x, 2).unwrap();
        let grads = backward(&mix(&v).unwrap()).unwrap();
        let got = grads.get(&x).unwrap().to_vec2::<f32>().unwrap();
        let rows = i.to_vec2::<u32>().unwrap();
        for (r, row) in rows.iter().enumerate() {
            assert!(x.to_vec2::<f32>().unwrap()[r][row[0] as usize] >= x.to_vec2::<f32>().unwrap()[r][row[1] as usize]);
            for (c, g) in got[r].iter().enumerate() {
                let want = row.iter().position(|&i| i as usize == c);
                let want = want.map_or(0.0, |k| ((r * 2 + k) as f64 * 0.7).sin() + 0.3);
                assert!((f64::from(*g) - want).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn wrong_indices_are_named() {
        let x = randn(1, &[2, 3]);
        let message = gather(&x, &table(&[0, 3], &[2, 1]), 1).unwrap_err().to_string();
        assert!(message.contains("index 3 at position 1"), "{message}");
        assert!(gather(&x, &table(&[0; 3], &[3, 1]), 1).is_err());
        assert!(gather(&x, &randn(1, &[2, 1]), 1).is_err());
        assert!(index_add(&x, &ids(&[0]), &randn(1, &[2, 2]), 1).is_err());
        assert!(segment_sum(&x, &ids(&[0, 9]), 2).is_err());
        assert!(one_hot(&ids(&[7]), 7, DType::F32).is_err());
        let hot = one_hot(&ids(&[1, 0]), 3, DType::F32).unwrap();
        assert_eq!(values(&hot), [0., 1., 0., 1., 0., 0.]);
    }
}
