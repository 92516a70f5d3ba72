//! Access to candle storage: slices to read, slices to write, and gradients of views.

use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Result, Storage, Tensor, bail};
use std::cell::RefCell;

/// Whether the fused path serves these tensors: all `f32` on the CPU.
pub(crate) fn fused(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|x| x.device().is_cpu() && x.dtype() == DType::F32)
}

/// Whether two tensors are windows on one storage.
pub(crate) fn same_storage(a: &Tensor, b: &Tensor) -> bool {
    let a: *const Storage = &*a.storage_and_layout().0;
    let b: *const Storage = &*b.storage_and_layout().0;
    std::ptr::eq(a, b)
}

/// Lets `f` read the elements of an `f32` CPU tensor in order; copies only if it is strided.
pub(crate) fn read<T>(x: &Tensor, f: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
    let owned;
    let x = if x.is_contiguous() {
        x
    } else {
        owned = x.detach().contiguous()?;
        &owned
    };
    let (storage, layout) = x.storage_and_layout();
    match &*storage {
        Storage::Cpu(CpuStorage::F32(data)) => {
            let start = layout.start_offset();
            f(&data[start..start + layout.shape().elem_count()])
        }
        _ => bail!("expected an f32 tensor on the CPU, got {:?}", x.dtype()),
    }
}

/// [`read`] for several tensors at once.
pub(crate) fn read_all<T>(tensors: &[Tensor], f: impl FnOnce(&[&[f32]]) -> Result<T>) -> Result<T> {
    let dense: Vec<Tensor> = tensors
        .iter()
        .map(|x| if x.is_contiguous() { Ok(x.clone()) } else { x.detach().contiguous() })
        .collect::<Result<_>>()?;
    let held: Vec<_> = dense.iter().map(Tensor::storage_and_layout).collect();
    let slices: Vec<&[f32]> = held
        .iter()
        .map(|(storage, layout)| match &**storage {
            Storage::Cpu(CpuStorage::F32(data)) => {
                let start = layout.start_offset();
                Ok(&data[start..start + layout.shape().elem_count()])
            }
            _ => bail!("expected f32 tensors on the CPU"),
        })
        .collect::<Result<_>>()?;
    f(&slices)
}

/// Lets `f` write the elements of a contiguous `f32` CPU tensor in place.
pub(crate) fn write<T>(x: &Tensor, f: impl FnOnce(&mut [f32]) -> Result<T>) -> Result<T> {
    struct Write<F, T>(RefCell<(Option<F>, Option<T>)>);
    impl<T, F: FnOnce(&mut [f32]) -> Result<T>> InplaceOp1 for Write<F, T> {
        fn name(&self) -> &'static str {
            "write"
        }
        fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
            let (CpuStorage::F32(data), Some((start, end))) =
                (storage, layout.contiguous_offsets())
            else {
                bail!("only a contiguous f32 tensor can be written in place")
            };
            let mut cell = self.0.borrow_mut();
            if let Some(f) = cell.0.take() {
                cell.1 = Some(f(&mut data[start..end])?);
            }
            Ok(())
        }
    }
    let op = Write(RefCell::new((Some(f), None)));
    x.inplace_op1(&op)?;
    match op.0.into_inner().1 {
        Some(out) => Ok(out),
        None => bail!("a tensor outside the CPU cannot be written in place"),
    }
}

/// `dst += src` for `f32` CPU tensors of one shape.
pub(crate) fn add_assign(dst: &Tensor, src: &Tensor) -> Result<()> {
    read(src, |src| {
        write(dst, |dst| {
            for (d, s) in dst.iter_mut().zip(src) {
                *d += s;
            }
            Ok(())
        })
    })
}

/// The gradient of `arg` when `out`, a view of it, has gradient `grad`; and whether the result
/// owns its storage.
pub(crate) fn backward(arg: &Tensor, out: &Tensor, grad: &Tensor) -> Result<(Tensor, bool)> {
    let (arg_layout, out_layout) = (arg.layout(), out.layout());
    let whole = arg_layout.shape().elem_count() == out_layout.shape().elem_count();
    if whole && arg_layout.is_contiguous() && out_layout.is_contiguous() {
        return Ok((grad.reshape(arg.shape())?, false));
    }
    let values = grad.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
    let Some(size) = span(arg_layout).max(span(out_layout)) else {
        return Ok((arg.zeros_like()?, true));
    };
    let mut sums = vec![0f64; size];
    for (offset, value) in offsets(out_layout).into_iter().zip(values) {
        sums[offset] += value;
    }
    // Elements of a broadcast argument share a cell: the first takes it, whoever made the
    // broadcast adds the cells up again.
    let taken: Vec<f64> =
        offsets(arg_layout).into_iter().map(|offset| std::mem::take(&mut sums[offset])).collect();
    let grad = Tensor::from_vec(taken, arg.shape(), grad.device())?.to_dtype(arg.dtype())?;
    Ok((grad, true))
}

/// One past the last storage cell of a layout, `None` if it is empty.
fn span(layout: &Layout) -> Option<usize> {
    if layout.shape().elem_count() == 0 {
        return None;
    }
    let last: usize = layout.dims().iter().zip(layout.stride()).map(|(d, s)| (d - 1) * s).sum();
    Some(layout.start_offset() + last + 1)
}

/// The storage cell of every element, in order.
fn offsets(layout: &Layout) -> Vec<usize> {
    let mut offsets = vec![layout.start_offset()];
    for (&dim, &stride) in layout.dims().iter().zip(layout.stride()) {
        offsets =
            offsets.iter().flat_map(|base| (0..dim).map(move |i| base + i * stride)).collect();
    }
    offsets
}
