//! CPU tensors of either float width as slices, and vectorised plain loops.

use candle_core::{DType, Result, Storage, Tensor, WithDType, bail};
use num_traits::Float;
use pulp::{Arch, NullaryFnOnce};

/// `f32` or `f64`.
pub(crate) trait Real: WithDType + Float {
    /// Conversion from wider arithmetic.
    fn narrow(v: f64) -> Self {
        <Self as WithDType>::from_f64(v)
    }
    /// Conversion to wider arithmetic.
    fn wide(self) -> f64 {
        WithDType::to_f64(self)
    }
}

impl Real for f32 {}
impl Real for f64 {}

/// Calls `f` with the elements of `tensor` in row-major order, copying only if it is strided.
///
/// # Errors
/// If the tensor is not on the CPU or its dtype is not `T`.
pub(crate) fn with_elements<T: WithDType, R>(
    tensor: &Tensor,
    f: impl FnOnce(&[T]) -> R,
) -> Result<R> {
    let owned;
    let tensor = if tensor.is_contiguous() {
        tensor
    } else {
        owned = tensor.detach().contiguous()?;
        &owned
    };
    let (storage, layout) = tensor.storage_and_layout();
    let start = layout.start_offset();
    match &*storage {
        Storage::Cpu(storage) => {
            Ok(f(&storage.as_slice::<T>()?[start..start + layout.shape().elem_count()]))
        }
        _ => bail!("expected a tensor on the CPU, got {:?}", tensor.device()),
    }
}

/// Whether kernels of this crate serve the tensor directly: `f32` or `f64` on the CPU.
pub(crate) fn direct(x: &Tensor) -> bool {
    x.device().is_cpu() && matches!(x.dtype(), DType::F32 | DType::F64)
}

/// Runs `f`, a plain loop marked `#[inline(always)]`, compiled for the widest vectors this
/// machine has.
#[inline(always)]
pub(crate) fn vectorised<F: NullaryFnOnce>(f: F) -> F::Output {
    Arch::new().dispatch(f)
}

/// Independent partial sums of a reduction: enough lanes for the widest registers, and a fixed
/// order of additions.
const LANES: usize = 32;

/// `Σ f(a)` with each run of 4096 elements summed in `T` and the runs in `f64`.
#[inline(always)]
pub(crate) fn sum<T: Real>(a: &[T], f: impl Fn(T) -> T) -> f64 {
    a.chunks(4096).map(|run| {
        let mut lanes = [T::zero(); LANES];
        let (body, tail) = run.as_chunks::<LANES>();
        for chunk in body {
            for l in 0..LANES {
                lanes[l] += f(chunk[l]);
            }
        }
        for (lane, &v) in lanes.iter_mut().zip(tail) {
            *lane += f(v);
        }
        lanes.iter().map(|v| v.wide()).sum::<f64>()
    }).sum()
}
