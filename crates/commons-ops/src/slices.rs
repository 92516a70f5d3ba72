//! Borrowing CPU tensors as slices, and wrapping results.

use candle_core::{CpuStorage, Layout, Result, Storage, Tensor, WithDType};

/// The elements of a contiguous CPU storage.
///
/// # Errors
/// If the dtype is not `T` or the layout is strided.
pub(crate) fn elements<'a, T: WithDType>(
    storage: &'a CpuStorage,
    layout: &Layout,
) -> Result<&'a [T]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        candle_core::bail!("expected a contiguous tensor, got strides {:?}", layout.stride())
    };
    Ok(&storage.as_slice::<T>()?[start..end])
}

/// Calls `f` with the elements of `tensor` in row-major order, copying only if it is strided.
///
/// # Errors
/// If the tensor is not on the CPU or its dtype is not `T`.
pub(crate) fn with_elements<T: WithDType, R>(
    tensor: &Tensor,
    f: impl FnOnce(&[T]) -> R,
) -> Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => Ok(f(elements(storage, layout)?)),
        _ => candle_core::bail!("expected a tensor on the CPU, got {:?}", tensor.device()),
    }
}
