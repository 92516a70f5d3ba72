//! Block quantisation: 32 or 256 weights share a scale (and an offset or sub-scales).
//!
//! Layouts and arithmetic are those of ggml (`ggml-common.h`, `ggml-quants.c`); products are formed
//! in the same order in `f32`, so results agree with ggml bit for bit.

use half::{bf16, f16};
use rayon::prelude::*;

use crate::error::{Error, Result};

/// Weights per block of the simple types.
const QK: usize = 32;
/// Weights per block of the `K` types.
const QK_K: usize = 256;
/// Weights decoded per parallel task: a multiple of every block length, fixed on every machine.
const TASK: usize = 1 << 16;

/// Element types of GGUF tensors that can be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the variants are ggml's own names")]
pub enum GgmlType {
    F32,
    F16,
    BF16,
    F64,
    I8,
    I16,
    I32,
    I64,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
}

use GgmlType::*;

/// (type, number in files, name, weights per block, bytes per block)
const TABLE: [(GgmlType, u32, &str, usize, usize); 16] = [
    (F32, 0, "F32", 1, 4),
    (F16, 1, "F16", 1, 2),
    (Q4_0, 2, "Q4_0", QK, 18),
    (Q4_1, 3, "Q4_1", QK, 20),
    (Q5_0, 6, "Q5_0", QK, 22),
    (Q5_1, 7, "Q5_1", QK, 24),
    (Q8_0, 8, "Q8_0", QK, 34),
    (Q4K, 12, "Q4_K", QK_K, 144),
    (Q5K, 13, "Q5_K", QK_K, 176),
    (Q6K, 14, "Q6_K", QK_K, 210),
    (I8, 24, "I8", 1, 1),
    (I16, 25, "I16", 1, 2),
    (I32, 26, "I32", 1, 4),
    (I64, 27, "I64", 1, 8),
    (F64, 28, "F64", 1, 8),
    (BF16, 30, "BF16", 1, 2),
];

impl GgmlType {
    /// The type numbered `id` in files, if it is one that can be decoded.
    pub fn from_id(id: u32) -> Option<Self> {
        TABLE.iter().find(|row| row.1 == id).map(|row| row.0)
    }

    fn row(self) -> &'static (GgmlType, u32, &'static str, usize, usize) {
        // Every variant has a row; the first one stands in for the impossible case.
        TABLE.iter().find(|row| row.0 == self).unwrap_or(&TABLE[0])
    }

    /// The number in files.
    pub fn id(self) -> u32 {
        self.row().1
    }

    /// ggml's name of the type, e.g. `Q4_K`.
    pub fn name(self) -> &'static str {
        self.row().2
    }

    /// Weights per block; one for plain types.
    pub fn block_len(self) -> usize {
        self.row().3
    }

    /// Bytes per block.
    pub fn block_bytes(self) -> usize {
        self.row().4
    }

    /// Bytes of `elements` weights, or `None` when they are not whole blocks or overflow.
    pub fn bytes_of(self, elements: usize) -> Option<usize> {
        if !elements.is_multiple_of(self.block_len()) {
            return None;
        }
        (elements / self.block_len()).checked_mul(self.block_bytes())
    }
}

/// Decodes `bytes` of type `kind` to `out.len()` weights, in parallel.
///
/// # Errors
/// When `bytes` is not exactly the encoding of that many weights.
pub fn dequantize(kind: GgmlType, bytes: &[u8], out: &mut [f32]) -> Result<()> {
    if kind.bytes_of(out.len()) != Some(bytes.len()) {
        return Err(Error::invalid(
            kind.name(),
            format!("{} bytes do not encode {} weights", bytes.len(), out.len()),
        ));
    }
    let task_bytes = TASK / kind.block_len() * kind.block_bytes();
    out.par_chunks_mut(TASK)
        .zip(bytes.par_chunks(task_bytes))
        .for_each(|(out, bytes)| decode(kind, bytes, out));
    Ok(())
}

fn decode(kind: GgmlType, bytes: &[u8], out: &mut [f32]) {
    match kind {
        F32 => plain(bytes, out, f32::from_le_bytes),
        F16 => plain(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
        BF16 => plain(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
        F64 => plain(bytes, out, |b| f64::from_le_bytes(b) as f32),
        I8 => plain(bytes, out, |b| f32::from(i8::from_le_bytes(b))),
        I16 => plain(bytes, out, |b| f32::from(i16::from_le_bytes(b))),
        I32 => plain(bytes, out, |b| i32::from_le_bytes(b) as f32),
        I64 => plain(bytes, out, |b| i64::from_le_bytes(b) as f32),
        Q4_0 => blocks::<18, QK>(bytes, out, q4_0),
        Q4_1 => blocks::<20, QK>(bytes, out, q4_1),
        Q5_0 => blocks::<22, QK>(bytes, out, q5_0),
        Q5_1 => blocks::<24, QK>(bytes, out, q5_1),
        Q8_0 => blocks::<34, QK>(bytes, out, q8_0),
        Q4K => blocks::<144, QK_K>(bytes, out, q4_k),
        Q5K => blocks::<176, QK_K>(bytes, out, q5_k),
        Q6K => blocks::<210, QK_K>(bytes, out, q6_k),
    }
}

fn plain<const N: usize>(bytes: &[u8], out: &mut [f32], convert: impl Fn([u8; N]) -> f32) {
    for (value, element) in out.iter_mut().zip(bytes.as_chunks::<N>().0) {
        *value = convert(*element);
    }
}

fn blocks<const BYTES: usize, const LEN: usize>(
    bytes: &[u8],
    out: &mut [f32],
    decode: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    let pairs = bytes.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<LEN>().0);
    for (block, out) in pairs {
        decode(block, out);
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// `d`, 16 bytes: `y = d (q − 8)`; low nibbles first, then high ones.
fn q4_0(block: &[u8; 18], out: &mut [f32; QK]) {
    let d = half_at(block, 0);
    for (i, &q) in block[2..].iter().enumerate() {
        out[i] = f32::from((q & 15).cast_signed() - 8) * d;
        out[i + 16] = f32::from((q >> 4).cast_signed() - 8) * d;
    }
}

/// `d`, `m`, 16 bytes: `y = d q + m`.
fn q4_1(block: &[u8; 20], out: &mut [f32; QK]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    for (i, &q) in block[4..].iter().enumerate() {
        out[i] = f32::from(q & 15) * d + m;
        out[i + 16] = f32::from(q >> 4) * d + m;
    }
}

/// Fifth bits of a `Q5_0` or `Q5_1` block: bit `i` belongs to weight `i`.
fn fifth_bits(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// `d`, fifth bits, 16 bytes: `y = d (q − 16)`.
fn q5_0(block: &[u8; 22], out: &mut [f32; QK]) {
    let (d, high) = (half_at(block, 0), fifth_bits(block, 2));
    for (i, &q) in block[6..].iter().enumerate() {
        let low = u32::from(q & 15) | ((high >> i) & 1) << 4;
        let top = u32::from(q >> 4) | ((high >> (i + 16)) & 1) << 4;
        out[i] = (low.cast_signed() - 16) as f32 * d;
        out[i + 16] = (top.cast_signed() - 16) as f32 * d;
    }
}

/// `d`, `m`, fifth bits, 16 bytes: `y = d q + m`.
fn q5_1(block: &[u8; 24], out: &mut [f32; QK]) {
    let (d, m, high) = (half_at(block, 0), half_at(block, 2), fifth_bits(block, 4));
    for (i, &q) in block[8..].iter().enumerate() {
        let low = u32::from(q & 15) | ((high >> i) & 1) << 4;
        let top = u32::from(q >> 4) | ((high >> (i + 16)) & 1) << 4;
        out[i] = low as f32 * d + m;
        out[i + 16] = top as f32 * d + m;
    }
}

/// `d`, 32 signed bytes: `y = d q`.
fn q8_0(block: &[u8; 34], out: &mut [f32; QK]) {
    let d = half_at(block, 0);
    for (value, &q) in out.iter_mut().zip(&block[2..]) {
        *value = f32::from(q.cast_signed()) * d;
    }
}

/// Six-bit scale and offset of sub-block `j` out of the 12 packed bytes of `Q4_K` and `Q5_K`.
fn scale_and_offset(packed: &[u8], j: usize) -> (f32, f32) {
    let (scale, offset) = if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        (
            (packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4,
            (packed[j + 4] >> 4) | (packed[j] >> 6) << 4,
        )
    };
    (f32::from(scale), f32::from(offset))
}

/// `d`, `dmin`, 12 bytes of sub-scales, 128 bytes: `y = d s q − dmin o` per 32 weights.
fn q4_k(block: &[u8; 144], out: &mut [f32; QK_K]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let (packed, quants) = (&block[4..16], &block[16..]);
    for (j, (out, q)) in out.chunks_exact_mut(64).zip(quants.chunks_exact(32)).enumerate() {
        let (s1, o1) = scale_and_offset(packed, 2 * j);
        let (s2, o2) = scale_and_offset(packed, 2 * j + 1);
        let (low, high) = out.split_at_mut(32);
        for i in 0..32 {
            low[i] = d * s1 * f32::from(q[i] & 15) - dmin * o1;
            high[i] = d * s2 * f32::from(q[i] >> 4) - dmin * o2;
        }
    }
}

/// As `Q4_K` with 32 bytes of fifth bits: bit `2j` or `2j + 1` of byte `i`.
fn q5_k(block: &[u8; 176], out: &mut [f32; QK_K]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let (packed, fifth, quants) = (&block[4..16], &block[16..48], &block[48..]);
    for (j, (out, q)) in out.chunks_exact_mut(64).zip(quants.chunks_exact(32)).enumerate() {
        let (s1, o1) = scale_and_offset(packed, 2 * j);
        let (s2, o2) = scale_and_offset(packed, 2 * j + 1);
        let (low, high) = out.split_at_mut(32);
        for i in 0..32 {
            let a = (q[i] & 15) | ((fifth[i] >> (2 * j)) & 1) << 4;
            let b = (q[i] >> 4) | ((fifth[i] >> (2 * j + 1)) & 1) << 4;
            low[i] = d * s1 * f32::from(a) - dmin * o1;
            high[i] = d * s2 * f32::from(b) - dmin * o2;
        }
    }
}

/// 128 bytes of low nibbles, 64 of upper bit pairs, 16 signed sub-scales, `d`:
/// `y = d s (q − 32)` per 16 weights.
fn q6_k(block: &[u8; 210], out: &mut [f32; QK_K]) {
    let d = half_at(block, 208);
    for (n, out) in out.chunks_exact_mut(128).enumerate() {
        let low = &block[64 * n..64 * n + 64];
        let upper = &block[128 + 32 * n..128 + 32 * n + 32];
        let scales = &block[192 + 8 * n..192 + 8 * n + 8];
        let scale = |k: usize| d * f32::from(scales[k].cast_signed());
        for half in 0..2 {
            let s = [scale(half), scale(half + 2), scale(half + 4), scale(half + 6)];
            for i in 16 * half..16 * half + 16 {
                let (a, b, h) = (low[i], low[i + 32], upper[i]);
                let quants = [
                    (a & 15) | (h & 3) << 4,
                    (b & 15) | (h >> 2 & 3) << 4,
                    (a >> 4) | (h >> 4 & 3) << 4,
                    (b >> 4) | (h >> 6) << 4,
                ];
                for (k, q) in quants.into_iter().enumerate() {
                    out[i + 32 * k] = s[k] * f32::from(q.cast_signed() - 32);
                }
            }
        }
    }
}

/// Encodes weights as `kind`: plain types and `Q8_0`.
///
/// `Q8_0` takes `d = max|x| / 127` per 32 weights and rounds half away from zero, as ggml does.
///
/// # Errors
/// For other types, and when `values` are not whole blocks.
pub fn quantize(kind: GgmlType, values: &[f32]) -> Result<Vec<u8>> {
    let Some(size) = kind.bytes_of(values.len()) else {
        return Err(Error::invalid(
            kind.name(),
            format!("{} weights are not whole blocks of {}", values.len(), kind.block_len()),
        )
        .remedy("store this tensor as F16 or F32"));
    };
    let mut out = vec![0u8; size];
    match kind {
        F32 => encode_blocks::<4, 1>(values, &mut out, |v, b| *b = v[0].to_le_bytes()),
        F16 => {
            encode_blocks::<2, 1>(values, &mut out, |v, b| *b = f16::from_f32(v[0]).to_le_bytes())
        }
        BF16 => {
            encode_blocks::<2, 1>(values, &mut out, |v, b| *b = bf16::from_f32(v[0]).to_le_bytes())
        }
        Q8_0 => encode_blocks::<34, QK>(values, &mut out, encode_q8_0),
        _ => {
            return Err(Error::invalid(kind.name(), "cannot be written")
                .remedy("choose F32, F16, BF16 or Q8_0"));
        }
    }
    Ok(out)
}

fn encode_blocks<const BYTES: usize, const LEN: usize>(
    values: &[f32],
    out: &mut [u8],
    encode: impl Fn(&[f32; LEN], &mut [u8; BYTES]) + Sync,
) {
    out.par_chunks_mut(TASK / LEN * BYTES).zip(values.par_chunks(TASK)).for_each(
        |(out, values)| {
            let pairs = out.as_chunks_mut::<BYTES>().0.iter_mut().zip(values.as_chunks::<LEN>().0);
            for (block, values) in pairs {
                encode(values, block);
            }
        },
    );
}

fn encode_q8_0(values: &[f32; QK], block: &mut [u8; 34]) {
    let largest = values.iter().fold(0f32, |m, v| m.max(v.abs()));
    let d = largest / 127.0;
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    block[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    for (q, v) in block[2..].iter_mut().zip(values) {
        // `as` saturates, so an infinite weight cannot wrap around.
        *q = ((v * inverse).round() as i8).cast_unsigned();
    }
}
