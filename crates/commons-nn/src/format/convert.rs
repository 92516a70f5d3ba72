//! Element types: from stored bytes to values of the tensor engine, and back to bytes.

use candle_core::{DType, Device, Shape, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::tensor::Dtype;

use crate::error::{Error, Result};

/// Elements converted per parallel task; fixed so that work is split alike on every machine.
pub(crate) const CHUNK: usize = 1 << 16;

/// Splits `bytes` into `N`-byte little-endian elements and maps them in parallel.
fn map_elements<const N: usize, T: Send + Copy + Default>(
    bytes: &[u8],
    convert: impl Fn([u8; N]) -> T + Sync,
) -> Vec<T> {
    let mut out = vec![T::default(); bytes.len() / N];
    out.par_chunks_mut(CHUNK).zip(bytes.par_chunks(CHUNK * N)).for_each(|(out, bytes)| {
        for (value, element) in out.iter_mut().zip(bytes.as_chunks::<N>().0) {
            *value = convert(*element);
        }
    });
    out
}

/// Decodes floating-point bytes to `f32`; `None` for integer types.
pub(crate) fn floats(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    Some(match dtype {
        Dtype::F32 => map_elements(bytes, f32::from_le_bytes),
        Dtype::F16 => map_elements(bytes, |b| f16::from_le_bytes(b).to_f32()),
        Dtype::BF16 => map_elements(bytes, |b| bf16::from_le_bytes(b).to_f32()),
        Dtype::F64 => map_elements(bytes, |b| f64::from_le_bytes(b) as f32),
        _ => return None,
    })
}

/// Decodes `bytes` of type `dtype` to a CPU tensor of type `wanted`.
///
/// Floats convert directly where possible. `BOOL` and `I8` widen to the nearest type the engine
/// knows before the final conversion; `U16` and `U64` become `I64`.
///
/// # Errors
/// Types without an exact counterpart (packed 4- to 8-bit floats, complex numbers) and `U64` values
/// above `i64::MAX`, named by `subject`.
pub(crate) fn decode(
    subject: &str,
    dtype: Dtype,
    shape: &[usize],
    bytes: &[u8],
    wanted: DType,
) -> Result<Tensor> {
    let cpu = &Device::Cpu;
    let shape = Shape::from(shape);
    let tensor = match (dtype, wanted) {
        (Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64, DType::F32) => {
            let values = floats(dtype, bytes).unwrap_or_default();
            return Ok(Tensor::from_vec(values, shape, cpu)?);
        }
        (Dtype::F64, _) => Tensor::from_vec(map_elements(bytes, f64::from_le_bytes), shape, cpu)?,
        (Dtype::F32, _) => Tensor::from_vec(map_elements(bytes, f32::from_le_bytes), shape, cpu)?,
        (Dtype::F16, _) => Tensor::from_vec(map_elements(bytes, f16::from_le_bytes), shape, cpu)?,
        (Dtype::BF16, _) => Tensor::from_vec(map_elements(bytes, bf16::from_le_bytes), shape, cpu)?,
        (Dtype::U8, _) => Tensor::from_vec(bytes.to_vec(), shape, cpu)?,
        (Dtype::BOOL, _) => {
            let values = bytes.iter().map(|&b| u8::from(b != 0)).collect::<Vec<_>>();
            Tensor::from_vec(values, shape, cpu)?
        }
        (Dtype::I8, _) => {
            let values = map_elements(bytes, |[b]: [u8; 1]| i16::from(b.cast_signed()));
            Tensor::from_vec(values, shape, cpu)?
        }
        (Dtype::I16, _) => Tensor::from_vec(map_elements(bytes, i16::from_le_bytes), shape, cpu)?,
        (Dtype::I32, _) => Tensor::from_vec(map_elements(bytes, i32::from_le_bytes), shape, cpu)?,
        (Dtype::I64, _) => Tensor::from_vec(map_elements(bytes, i64::from_le_bytes), shape, cpu)?,
        (Dtype::U32, _) => Tensor::from_vec(map_elements(bytes, u32::from_le_bytes), shape, cpu)?,
        (Dtype::U16, _) => {
            let values = map_elements(bytes, |b| i64::from(u16::from_le_bytes(b)));
            Tensor::from_vec(values, shape, cpu)?
        }
        (Dtype::U64, _) => {
            let values = map_elements(bytes, |b| u64::from_le_bytes(b).cast_signed());
            if values.iter().any(|&v| v < 0) {
                return Err(Error::invalid(subject, "holds a U64 value above i64::MAX"));
            }
            Tensor::from_vec(values, shape, cpu)?
        }
        _ => {
            return Err(Error::invalid(
                subject,
                format!("has the element type {dtype:?}, which is not supported"),
            )
            .remedy("convert the checkpoint to F32, F16 or BF16"));
        }
    };
    Ok(tensor.to_dtype(wanted)?)
}

/// The engine type that holds `dtype` without loss, used when no type is asked for.
pub(crate) fn natural(dtype: Dtype) -> DType {
    match dtype {
        Dtype::F64 => DType::F64,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::BOOL | Dtype::U8 => DType::U8,
        Dtype::I8 | Dtype::I16 => DType::I16,
        Dtype::I32 => DType::I32,
        Dtype::U16 | Dtype::I64 | Dtype::U64 => DType::I64,
        Dtype::U32 => DType::U32,
        _ => DType::F32,
    }
}

/// The safetensors name of an engine type.
///
/// # Errors
/// For the packed types that this crate does not write.
pub(crate) fn stored(dtype: DType) -> Result<Dtype> {
    Ok(match dtype {
        DType::U8 => Dtype::U8,
        DType::U32 => Dtype::U32,
        DType::I16 => Dtype::I16,
        DType::I32 => Dtype::I32,
        DType::I64 => Dtype::I64,
        DType::BF16 => Dtype::BF16,
        DType::F16 => Dtype::F16,
        DType::F32 => Dtype::F32,
        DType::F64 => Dtype::F64,
        other => {
            return Err(Error::invalid("dtype", format!("{other:?} cannot be stored"))
                .remedy("convert to F32, F16 or BF16 first"));
        }
    })
}

/// The little-endian bytes of a tensor, row-major.
///
/// # Errors
/// When the element type is one that [`stored`] refuses, or the engine fails.
pub(crate) fn encode(tensor: &Tensor) -> Result<Vec<u8>> {
    fn bytes<T: Copy, const N: usize>(values: &[T], convert: impl Fn(T) -> [u8; N]) -> Vec<u8> {
        values.iter().flat_map(|&v| convert(v)).collect()
    }
    let flat = tensor.flatten_all()?;
    Ok(match flat.dtype() {
        DType::U8 => flat.to_vec1::<u8>()?,
        DType::U32 => bytes(&flat.to_vec1()?, u32::to_le_bytes),
        DType::I16 => bytes(&flat.to_vec1()?, i16::to_le_bytes),
        DType::I32 => bytes(&flat.to_vec1()?, i32::to_le_bytes),
        DType::I64 => bytes(&flat.to_vec1()?, i64::to_le_bytes),
        DType::BF16 => bytes(&flat.to_vec1()?, bf16::to_le_bytes),
        DType::F16 => bytes(&flat.to_vec1()?, f16::to_le_bytes),
        DType::F32 => bytes(&flat.to_vec1()?, f32::to_le_bytes),
        DType::F64 => bytes(&flat.to_vec1()?, f64::to_le_bytes),
        other => {
            return Err(stored(other)
                .err()
                .unwrap_or_else(|| Error::invalid("dtype", format!("{other:?}"))));
        }
    })
}

/// Index and value of the first element that is NaN or infinite, if any.
pub(crate) fn first_not_finite(values: &[f32]) -> Option<(usize, f32)> {
    let index = values.par_chunks(CHUNK).enumerate().find_map_first(|(i, chunk)| {
        chunk.iter().position(|v| !v.is_finite()).map(|j| i * CHUNK + j)
    })?;
    Some((index, values[index]))
}
