//! TensorBoard event files: length-delimited records (TFRecord) of `tensorflow.Event` messages,
//! here with scalars only.

use crate::error::{Error, Result};
use std::{
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Writes one event file.
#[derive(Debug)]
pub struct EventWriter {
    path: PathBuf,
    file: BufWriter<File>,
}

impl EventWriter {
    /// Creates `events.out.tfevents.<seconds>.commons` in `folder`; `started` names it and stamps
    /// its first record.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be written.
    pub fn create(folder: impl AsRef<Path>, started: SystemTime) -> Result<Self> {
        let seconds = since_epoch(started).as_secs();
        let path = folder.as_ref().join(format!("events.out.tfevents.{seconds:010}.commons"));
        let file = File::create(&path).map_err(Error::io("create", &path))?;
        let mut writer = Self { path, file: BufWriter::new(file) };
        let mut event = event_header(started, 0);
        // Field 3, the version that must open every file.
        put_bytes(&mut event, 3, b"brain.Event:2");
        writer.record(&event)?;
        Ok(writer)
    }

    /// Adds one point of the curve `tag`. TensorBoard keeps `f32`.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be written.
    pub fn scalar(&mut self, tag: &str, step: u64, value: f64, at: SystemTime) -> Result<()> {
        let mut point = Vec::new();
        put_bytes(&mut point, 1, tag.as_bytes());
        put_key(&mut point, 2, WIRE_32_BIT);
        point.extend((value as f32).to_le_bytes());
        let mut summary = Vec::new();
        put_bytes(&mut summary, 1, &point);
        let mut event = event_header(at, step);
        put_bytes(&mut event, 5, &summary);
        self.record(&event)
    }

    /// Hands everything written so far to the system.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be written.
    pub fn flush(&mut self) -> Result<()> {
        self.file.flush().map_err(Error::io("write", &self.path))
    }

    /// Length, its checksum, data, its checksum.
    fn record(&mut self, data: &[u8]) -> Result<()> {
        let length = (data.len() as u64).to_le_bytes();
        let mut framed = Vec::with_capacity(data.len() + 16);
        framed.extend(length);
        framed.extend(masked_crc(&length).to_le_bytes());
        framed.extend(data);
        framed.extend(masked_crc(data).to_le_bytes());
        self.file.write_all(&framed).map_err(Error::io("write", &self.path))
    }
}

// Protocol-buffer wire types.
const WIRE_VARINT: u64 = 0;
const WIRE_64_BIT: u64 = 1;
const WIRE_BYTES: u64 = 2;
const WIRE_32_BIT: u64 = 5;

/// Fields 1 (wall time, double) and 2 (step, varint) of an event.
fn event_header(at: SystemTime, step: u64) -> Vec<u8> {
    let mut out = Vec::new();
    put_key(&mut out, 1, WIRE_64_BIT);
    out.extend(since_epoch(at).as_secs_f64().to_le_bytes());
    put_key(&mut out, 2, WIRE_VARINT);
    put_varint(&mut out, step);
    out
}

fn put_key(out: &mut Vec<u8>, field: u64, wire: u64) {
    put_varint(out, field << 3 | wire);
}

fn put_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_key(out, field, WIRE_BYTES);
    put_varint(out, bytes.len() as u64);
    out.extend(bytes);
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn since_epoch(at: SystemTime) -> Duration {
    at.duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The checksum of the TFRecord format: CRC-32C, rotated and offset so that the checksum of data
/// that holds checksums stays useful.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), one table of 256.
fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = table();
    !bytes
        .iter()
        .fold(u32::MAX, |crc, byte| TABLE[((crc ^ u32::from(*byte)) & 0xff) as usize] ^ (crc >> 8))
}

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let mut crc = i as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check values of RFC 3720, appendix B.4.
    #[test]
    fn crc_known_answers() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    }

    /// A reader that shares nothing with the writer but the checksum.
    fn read_records(bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut records = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let word = |p: usize| u32::from_le_bytes(bytes[p..p + 4].try_into().unwrap());
            let length = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
            assert_eq!(word(at + 8), masked_crc(&bytes[at..at + 8]));
            let data = &bytes[at + 12..at + 12 + length];
            assert_eq!(word(at + 12 + length), masked_crc(data));
            records.push(data.to_vec());
            at += 16 + length;
        }
        records
    }

    /// (field number, content) of a message; numbers as their little-endian bytes.
    fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
        fn varint(bytes: &mut &[u8]) -> u64 {
            let mut value = 0;
            for shift in (0..).step_by(7) {
                let byte = bytes[0];
                *bytes = &bytes[1..];
                value |= u64::from(byte & 0x7f) << shift;
                if byte < 0x80 {
                    return value;
                }
            }
            unreachable!()
        }
        let mut out = Vec::new();
        while !bytes.is_empty() {
            let key = varint(&mut bytes);
            let size = match key & 7 {
                0 => {
                    out.push((key >> 3, varint(&mut bytes).to_le_bytes().to_vec()));
                    continue;
                }
                1 => 8,
                2 => varint(&mut bytes) as usize,
                5 => 4,
                other => panic!("wire type {other}"),
            };
            out.push((key >> 3, bytes[..size].to_vec()));
            bytes = &bytes[size..];
        }
        out
    }

    #[test]
    fn written_scalars_can_be_read() {
        let folder = tempfile::tempdir().unwrap();
        let start = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let mut writer = EventWriter::create(folder.path(), start).unwrap();
        let later = start + Duration::from_millis(1500);
        writer.scalar("train/loss", 300, 2.5, later).unwrap();
        writer.flush().unwrap();
        let path = folder.path().join("events.out.tfevents.1700000000.commons");
        let records = read_records(&std::fs::read(path).unwrap());
        assert_eq!(records.len(), 2);
        let first = fields(&records[0]);
        assert_eq!(first[2], (3, b"brain.Event:2".to_vec()));
        let second = fields(&records[1]);
        assert_eq!(second[0], (1, 1_700_000_001.5_f64.to_le_bytes().to_vec()));
        assert_eq!(second[1], (2, 300_u64.to_le_bytes().to_vec()));
        assert_eq!(second[2].0, 5);
        let value = fields(&fields(&second[2].1)[0].1);
        assert_eq!(value, [(1, b"train/loss".to_vec()), (2, 2.5_f32.to_le_bytes().to_vec())]);
    }
}
