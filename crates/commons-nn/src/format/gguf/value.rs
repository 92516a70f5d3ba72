//! Metadata values and the bounds-checked cursor that reads them.

use std::path::Path;

use crate::error::{Error, Place, Result};

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "the variants are the format's own types")]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    U64(u64),
    I64(i64),
    F64(f64),
    Array(Array),
}

/// A metadata array; all elements have one type, and arrays do not nest.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "the variants are the format's own types")]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Vec<String>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

impl Value {
    /// The value as a non-negative whole number, whatever integer type it is stored in.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::U8(v) => Some(v.into()),
            Self::U16(v) => Some(v.into()),
            Self::U32(v) => Some(v.into()),
            Self::U64(v) => Some(v),
            Self::I8(v) => v.try_into().ok(),
            Self::I16(v) => v.try_into().ok(),
            Self::I32(v) => v.try_into().ok(),
            Self::I64(v) => v.try_into().ok(),
            _ => None,
        }
    }

    /// The value as a number.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Self::F32(v) => Some(v.into()),
            Self::F64(v) => Some(v),
            Self::I8(v) => Some(v.into()),
            Self::I16(v) => Some(v.into()),
            Self::I32(v) => Some(v.into()),
            Self::I64(v) => Some(v as f64),
            _ => self.as_u64().map(|v| v as f64),
        }
    }

    /// The value as text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(v) => Some(v),
            _ => None,
        }
    }

    /// The value as a truth value.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(v) => Some(*v),
            _ => None,
        }
    }

    /// The value as a list of texts.
    pub fn as_strings(&self) -> Option<&[String]> {
        match self {
            Self::Array(Array::String(v)) => Some(v),
            _ => None,
        }
    }

    /// The value as a list of `f32`.
    pub fn as_f32s(&self) -> Option<&[f32]> {
        match self {
            Self::Array(Array::F32(v)) => Some(v),
            _ => None,
        }
    }

    /// The value as a list of whole numbers, whatever integer type they are stored in.
    pub fn as_i64s(&self) -> Option<Vec<i64>> {
        match self {
            Self::Array(Array::I8(v)) => Some(v.iter().map(|&v| v.into()).collect()),
            Self::Array(Array::U8(v)) => Some(v.iter().map(|&v| v.into()).collect()),
            Self::Array(Array::I16(v)) => Some(v.iter().map(|&v| v.into()).collect()),
            Self::Array(Array::U16(v)) => Some(v.iter().map(|&v| v.into()).collect()),
            Self::Array(Array::I32(v)) => Some(v.iter().map(|&v| v.into()).collect()),
            Self::Array(Array::U32(v)) => Some(v.iter().map(|&v| v.into()).collect()),
            Self::Array(Array::I64(v)) => Some(v.clone()),
            Self::Array(Array::U64(v)) => v.iter().map(|&v| v.try_into().ok()).collect(),
            _ => None,
        }
    }
}

impl Array {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::U8(v) => v.len(),
            Self::I8(v) => v.len(),
            Self::U16(v) => v.len(),
            Self::I16(v) => v.len(),
            Self::U32(v) => v.len(),
            Self::I32(v) => v.len(),
            Self::F32(v) => v.len(),
            Self::Bool(v) => v.len(),
            Self::String(v) => v.len(),
            Self::U64(v) => v.len(),
            Self::I64(v) => v.len(),
            Self::F64(v) => v.len(),
        }
    }

    /// Whether the array has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Reads little-endian values from a file's bytes, never past their end.
pub(super) struct Cursor<'a> {
    pub file: &'a Path,
    pub bytes: &'a [u8],
    pub at: usize,
}

impl<'a> Cursor<'a> {
    pub fn fault(&self, reason: impl Into<String>) -> Error {
        Error::malformed(self.file, reason).at(Place::Byte(self.at as u64))
    }

    fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        if length > self.remaining() {
            return Err(self
                .fault(format!("needs {length} bytes but only {} follow", self.remaining()))
                .remedy("fetch the file again: it is damaged or cut short"));
        }
        let taken = &self.bytes[self.at..self.at + length];
        self.at += length;
        Ok(taken)
    }

    pub fn fixed<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    pub fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.fixed()?))
    }

    pub fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.fixed()?))
    }

    /// A count of things of at least `size` bytes each, refused when they cannot fit in the file:
    /// nothing is allocated for a lying count.
    pub fn count(&mut self, what: &str, size: usize) -> Result<usize> {
        let at = self.at;
        let count = self.u64()?;
        if count > (self.remaining() / size.max(1)) as u64 {
            return Err(Error::malformed(
                self.file,
                format!("claims {count} {what} but only {} bytes follow", self.remaining()),
            )
            .at(Place::Byte(at as u64))
            .remedy("fetch the file again: it is damaged or cut short"));
        }
        Ok(count as usize)
    }

    pub fn string(&mut self) -> Result<String> {
        let length = self.count("bytes of text", 1)?;
        let at = self.at;
        let bytes = self.take(length)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(e) => Err(Error::malformed(self.file, "holds text that is not UTF-8")
                .at(Place::Byte((at + e.valid_up_to()) as u64))),
        }
    }

    fn truth(&mut self) -> Result<bool> {
        match self.fixed::<1>()? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(self.fault(format!("holds the truth value {other}"))),
        }
    }

    pub fn value(&mut self) -> Result<Value> {
        Ok(match self.u32()? {
            0 => Value::U8(u8::from_le_bytes(self.fixed()?)),
            1 => Value::I8(i8::from_le_bytes(self.fixed()?)),
            2 => Value::U16(u16::from_le_bytes(self.fixed()?)),
            3 => Value::I16(i16::from_le_bytes(self.fixed()?)),
            4 => Value::U32(u32::from_le_bytes(self.fixed()?)),
            5 => Value::I32(i32::from_le_bytes(self.fixed()?)),
            6 => Value::F32(f32::from_le_bytes(self.fixed()?)),
            7 => Value::Bool(self.truth()?),
            8 => Value::String(self.string()?),
            9 => Value::Array(self.array()?),
            10 => Value::U64(u64::from_le_bytes(self.fixed()?)),
            11 => Value::I64(i64::from_le_bytes(self.fixed()?)),
            12 => Value::F64(f64::from_le_bytes(self.fixed()?)),
            other => return Err(self.fault(format!("has a value of unknown type {other}"))),
        })
    }

    fn array(&mut self) -> Result<Array> {
        let kind = self.u32()?;
        Ok(match kind {
            0 => Array::U8(self.elements(u8::from_le_bytes)?),
            1 => Array::I8(self.elements(i8::from_le_bytes)?),
            2 => Array::U16(self.elements(u16::from_le_bytes)?),
            3 => Array::I16(self.elements(i16::from_le_bytes)?),
            4 => Array::U32(self.elements(u32::from_le_bytes)?),
            5 => Array::I32(self.elements(i32::from_le_bytes)?),
            6 => Array::F32(self.elements(f32::from_le_bytes)?),
            7 => {
                let count = self.count("truth values", 1)?;
                Array::Bool((0..count).map(|_| self.truth()).collect::<Result<_>>()?)
            }
            8 => {
                let count = self.count("texts", 8)?;
                Array::String((0..count).map(|_| self.string()).collect::<Result<_>>()?)
            }
            9 => return Err(self.fault("nests arrays, which no known model does")),
            10 => Array::U64(self.elements(u64::from_le_bytes)?),
            11 => Array::I64(self.elements(i64::from_le_bytes)?),
            12 => Array::F64(self.elements(f64::from_le_bytes)?),
            other => return Err(self.fault(format!("has an array of unknown type {other}"))),
        })
    }

    fn elements<const N: usize, T>(&mut self, convert: impl Fn([u8; N]) -> T) -> Result<Vec<T>> {
        let count = self.count("array elements", N)?;
        let bytes = self.take(count * N)?;
        Ok(bytes.as_chunks::<N>().0.iter().map(|b| convert(*b)).collect())
    }
}

/// Appends values in the file's encoding.
pub(super) fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// Appends a value with its type number.
pub(super) fn put_value(out: &mut Vec<u8>, value: &Value) {
    fn scalar(out: &mut Vec<u8>, kind: u32, bytes: &[u8]) {
        out.extend(kind.to_le_bytes());
        out.extend(bytes);
    }
    match value {
        Value::U8(v) => scalar(out, 0, &v.to_le_bytes()),
        Value::I8(v) => scalar(out, 1, &v.to_le_bytes()),
        Value::U16(v) => scalar(out, 2, &v.to_le_bytes()),
        Value::I16(v) => scalar(out, 3, &v.to_le_bytes()),
        Value::U32(v) => scalar(out, 4, &v.to_le_bytes()),
        Value::I32(v) => scalar(out, 5, &v.to_le_bytes()),
        Value::F32(v) => scalar(out, 6, &v.to_le_bytes()),
        Value::Bool(v) => scalar(out, 7, &[u8::from(*v)]),
        Value::String(v) => {
            out.extend(8u32.to_le_bytes());
            put_string(out, v);
        }
        Value::Array(v) => {
            out.extend(9u32.to_le_bytes());
            put_array(out, v);
        }
        Value::U64(v) => scalar(out, 10, &v.to_le_bytes()),
        Value::I64(v) => scalar(out, 11, &v.to_le_bytes()),
        Value::F64(v) => scalar(out, 12, &v.to_le_bytes()),
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    fn all<T: Copy, const N: usize>(
        out: &mut Vec<u8>,
        kind: u32,
        values: &[T],
        bytes: impl Fn(T) -> [u8; N],
    ) {
        out.extend(kind.to_le_bytes());
        out.extend((values.len() as u64).to_le_bytes());
        out.extend(values.iter().flat_map(|&v| bytes(v)));
    }
    match array {
        Array::U8(v) => all(out, 0, v, u8::to_le_bytes),
        Array::I8(v) => all(out, 1, v, i8::to_le_bytes),
        Array::U16(v) => all(out, 2, v, u16::to_le_bytes),
        Array::I16(v) => all(out, 3, v, i16::to_le_bytes),
        Array::U32(v) => all(out, 4, v, u32::to_le_bytes),
        Array::I32(v) => all(out, 5, v, i32::to_le_bytes),
        Array::F32(v) => all(out, 6, v, f32::to_le_bytes),
        Array::Bool(v) => all(out, 7, v, |b| [u8::from(b)]),
        Array::String(v) => {
            out.extend(8u32.to_le_bytes());
            out.extend((v.len() as u64).to_le_bytes());
            for text in v {
                put_string(out, text);
            }
        }
        Array::U64(v) => all(out, 10, v, u64::to_le_bytes),
        Array::I64(v) => all(out, 11, v, i64::to_le_bytes),
        Array::F64(v) => all(out, 12, v, f64::to_le_bytes),
    }
}
