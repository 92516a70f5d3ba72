//! Arrays of numbers as they are stored.

use candle_core::{DType, Device, Tensor};

use crate::error::{Error, Result};

/// Type of the elements of an [`Array`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Number {
    Bool,
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F16,
    F32,
    F64,
}

impl Number {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::Bool | Self::U8 | Self::I8 => 1,
            Self::U16 | Self::I16 | Self::F16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    /// Whether elements are whole numbers.
    pub const fn is_integer(self) -> bool {
        !matches!(self, Self::F16 | Self::F32 | Self::F64)
    }
}

/// An array of numbers, row-major.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Array {
    number: Number,
    shape: Vec<usize>,
    /// Little-endian.
    bytes: Vec<u8>,
}

impl Array {
    /// Takes `bytes` as they were stored. The caller has checked that their number fits `shape`.
    pub(super) fn new(number: Number, shape: Vec<usize>, mut bytes: Vec<u8>, big: bool) -> Self {
        debug_assert_eq!(byte_length(number, &shape), Some(bytes.len()));
        if big {
            bytes.chunks_exact_mut(number.size()).for_each(<[u8]>::reverse);
        }
        Self { number, shape, bytes }
    }

    /// The same numbers, given in column-major order, in row-major order.
    pub(super) fn into_rows(self) -> Self {
        if self.shape.len() < 2 || self.bytes.is_empty() {
            return self;
        }
        let size = self.number.size();
        // Stride of each dimension, in elements of the column-major array.
        let strides: Vec<usize> =
            (0..self.shape.len()).map(|d| self.shape[..d].iter().product()).collect();
        let mut bytes = Vec::with_capacity(self.bytes.len());
        let mut index = vec![0; self.shape.len()];
        for _ in 0..self.bytes.len() / size {
            let at: usize = index.iter().zip(&strides).map(|(i, s)| i * s).sum();
            bytes.extend_from_slice(&self.bytes[at * size..(at + 1) * size]);
            for d in (0..index.len()).rev() {
                index[d] += 1;
                if index[d] < self.shape[d] {
                    break;
                }
                index[d] = 0;
            }
        }
        Self { bytes, ..self }
    }

    /// Type of the elements.
    pub fn number(&self) -> Number {
        self.number
    }

    /// Dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.number.size()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Elements as bytes, little-endian and row-major.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// All elements as `f64`, row-major. Whole numbers beyond 2⁵³ are rounded.
    pub fn to_f64(&self) -> Vec<f64> {
        let floats = |read: fn(&[u8]) -> f64| {
            self.bytes.chunks_exact(self.number.size()).map(read).collect()
        };
        match self.number {
            Number::F16 => floats(|b| f64::from(half::f16::from_le_bytes(fixed(b)))),
            Number::F32 => floats(|b| f64::from(f32::from_le_bytes(fixed(b)))),
            Number::F64 => floats(|b| f64::from_le_bytes(fixed(b))),
            Number::U64 => floats(|b| u64::from_le_bytes(fixed(b)) as f64),
            _ => self.integers().map(|v| v as f64).collect(),
        }
    }

    /// All elements as `i64`, row-major.
    ///
    /// # Errors
    /// When they are not whole numbers, or one is beyond the range.
    pub fn to_i64(&self) -> Result<Vec<i64>> {
        if !self.number.is_integer() {
            return Err(Error::invalid("array", format!("holds {:?}, not integers", self.number)));
        }
        let values: Vec<i64> = self.integers().collect();
        if self.number == Number::U64 && values.iter().any(|&v| v < 0) {
            return Err(Error::invalid("array", "holds a number beyond 2⁶³"));
        }
        Ok(values)
    }

    /// Elements of a type of whole numbers.
    fn integers(&self) -> impl Iterator<Item = i64> {
        let read: fn(&[u8]) -> i64 = match self.number {
            Number::Bool | Number::U8 => |b| i64::from(b[0]),
            Number::I8 => |b| i64::from(b[0] as i8),
            Number::U16 => |b| i64::from(u16::from_le_bytes(fixed(b))),
            Number::I16 => |b| i64::from(i16::from_le_bytes(fixed(b))),
            Number::U32 => |b| i64::from(u32::from_le_bytes(fixed(b))),
            Number::I32 => |b| i64::from(i32::from_le_bytes(fixed(b))),
            _ => |b| i64::from_le_bytes(fixed(b)),
        };
        self.bytes.chunks_exact(self.number.size()).map(read)
    }

    /// A tensor of the array's shape and element type `dtype`.
    ///
    /// # Errors
    /// When the tensor engine refuses.
    pub fn to_tensor(&self, dtype: DType, device: &Device) -> Result<Tensor> {
        let tensor = if self.number.is_integer() && self.number != Number::U64 {
            Tensor::from_vec(self.integers().collect::<Vec<_>>(), self.shape.as_slice(), device)?
        } else {
            Tensor::from_vec(self.to_f64(), self.shape.as_slice(), device)?
        };
        Ok(tensor.to_dtype(dtype)?)
    }
}

/// The first bytes of `bytes`, which holds at least `N`.
fn fixed<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[..N]);
    out
}

/// Bytes that `shape` takes, unless that is beyond measure.
pub(super) fn byte_length(number: Number, shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(number.size(), |n, &d| n.checked_mul(d))
}
