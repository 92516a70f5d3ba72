//! Every decoder on files with something wrong in them: thousands of seeded changes to small valid
//! files. A decoder answers or refuses; it never panics and never asks for memory beyond measure.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use ::parquet::basic::Compression;
use candle_core::{DType, Device, Tensor};
use commons_core::{Rng, Seed};

use crate::Result;
use crate::data::tests::{Held, flac, idx_file, npy_file, npz_file, parquet_file, png, wav};
use crate::data::{Images, audio, cifar, csv, idx, jsonl, npy, parquet};
use crate::format::gguf::{self, GgmlType, Gguf, TensorPlan, Value};
use crate::format::safetensors::{self, SafeTensors};
use crate::mmap::Bytes;

/// Changed files per format.
const CASES: u64 = 1500;

/// Address space that the decoders may use in all, in KiB: files here have a few kilobytes, but the
/// threads of the test itself reserve some hundred megabytes.
const SPACE: u64 = 1536 << 10;

/// Set for the process that does the work under a limit of memory.
const CHILD: &str = "COMMONS_TEST_HOSTILE_CHILD";

/// A valid file and what reads it, from memory (`Parse`) or from disk (`Open`).
struct Format {
    name: &'static str,
    valid: Vec<u8>,
    read: Read,
}

#[derive(Clone, Copy)]
enum Read {
    Parse(fn(&Path, &[u8]) -> Result<()>),
    Open(fn(&Path) -> Result<()>),
}

fn ramp(count: usize, shape: &[usize]) -> Tensor {
    Tensor::arange(0f32, count as f32, &Device::Cpu).unwrap().reshape(shape).unwrap()
}

fn safetensors_file() -> Vec<u8> {
    let held = Held::new("m.safetensors", b"");
    let tensors = [("a.weight", ramp(12, &[3, 4])), ("b.bias", ramp(5, &[5]))];
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let named = tensors.iter().map(|(name, tensor)| (*name, tensor));
    safetensors::save(held.path(), named, &metadata).unwrap();
    std::fs::read(held.path()).unwrap()
}

fn gguf_file() -> Vec<u8> {
    let held = Held::new("m.gguf", b"");
    let metadata = BTreeMap::from([
        ("general.architecture".to_owned(), Value::String("llama".into())),
        ("llama.block_count".to_owned(), Value::U32(2)),
        (
            "tokenizer.ggml.tokens".to_owned(),
            Value::Array(gguf::Array::String(vec!["a".into(); 9])),
        ),
        ("scores".to_owned(), Value::Array(gguf::Array::F32(vec![0.5; 9]))),
    ]);
    let plan = |name: &str, kind, shape: &[usize]| TensorPlan {
        name: name.into(),
        kind,
        shape: shape.to_vec(),
    };
    let plans =
        [plan("token_embd.weight", GgmlType::F32, &[3, 4]), plan("x", GgmlType::Q8_0, &[2, 32])];
    gguf::write(held.path(), &metadata, &plans, |plan| Ok(vec![0.25; plan.shape.iter().product()]))
        .unwrap();
    std::fs::read(held.path()).unwrap()
}

fn formats() -> Vec<Format> {
    let parse = |name, valid, read| Format { name, valid, read: Read::Parse(read) };
    let open = |name, valid, read| Format { name, valid, read: Read::Open(read) };
    let f64s: Vec<u8> = (0..24).flat_map(|i| f64::from(i).to_le_bytes()).collect();
    let npy_bytes = npy_file("<f8", true, "(4, 6)", &f64s);
    let sound: Vec<i16> = (0..300).map(|i| i * 90).collect();
    let pictures: Vec<Vec<u8>> = (0..3).map(|_| png(5, 4)).collect();
    let plain = parquet_file(&pictures, Compression::UNCOMPRESSED);
    let snappy = parquet_file(&pictures, Compression::SNAPPY);
    vec![
        parse("safetensors", safetensors_file(), |file, bytes| {
            let file = SafeTensors::from_bytes(Bytes::from_vec(file, bytes.to_vec()))?;
            for tensor in file.tensors() {
                tensor.check_finite()?;
                tensor.to_tensor(Some(DType::F32))?;
            }
            Ok(())
        }),
        parse("gguf", gguf_file(), |file, bytes| {
            let file = Gguf::from_bytes(Bytes::from_vec(file, bytes.to_vec()))?;
            for name in file.tensors().keys() {
                file.tensor(name, DType::F32)?;
            }
            file.check_finite()
        }),
        parse("idx", idx_file(0x0d, &[3, 2, 2], &[7; 48]), |file, bytes| {
            idx::parse(file, bytes)?.to_tensor(DType::F32, &Device::Cpu).map(drop)
        }),
        parse("npy", npy_bytes.clone(), |file, bytes| {
            let array = npy::parse(file, bytes)?;
            array.to_tensor(DType::F32, &Device::Cpu).map(drop)
        }),
        parse("npz", npz_file(&[("a", npy_bytes.clone()), ("b", npy_bytes)]), |file, bytes| {
            for array in npy::parse_npz(file, bytes)?.values() {
                array.to_tensor(DType::F32, &Device::Cpu)?;
            }
            Ok(())
        }),
        parse("csv", b"a,b,c\n1,2.5,\"x\ny\"\n2,,z\n".to_vec(), |file, bytes| {
            csv::parse(file, bytes, csv::Dialect::default()).map(drop)
        }),
        parse(
            "jsonl",
            b"{\"a\": [1, {}], \"b\": \"c\"}\n{\"b\": 1e3}\n".to_vec(),
            |file, bytes| jsonl::parse(file, bytes).map(drop),
        ),
        open("cifar", [vec![3; 3073], vec![5; 3073]].concat(), |file| {
            cifar::read(&[file], cifar::Set::Cifar10).map(drop)
        }),
        open("wav", wav(8000, 2, &sound), |file| audio::read(file).map(drop)),
        open("flac", flac(&sound, [0; 16]), |file| audio::read(file).map(drop)),
        open("parquet", plain, |file| parquet::read(file, None).map(drop)),
        open("parquet of images", snappy, |file| Images::from_parquet(file).map(drop)),
    ]
}

/// Numbers that headers are made to claim.
const CLAIMS: [u64; 10] =
    [0, 1, 0x7f, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 1 << 40, 1 << 62, u64::MAX];

/// One to four changes to `bytes`.
fn damage(bytes: &mut Vec<u8>, rng: &mut Rng) {
    for _ in 0..=rng.below(4) {
        if bytes.is_empty() {
            return;
        }
        let at = rng.below(bytes.len() as u64) as usize;
        let rest = bytes.len() - at;
        let some = rest.min(1 + rng.below(16) as usize);
        match rng.below(8) {
            0 => bytes[at] ^= 1 << rng.below(8),
            1 => bytes[at] = rng.next_u32() as u8,
            2 | 3 => {
                // A length, of any width and order, that claims something else.
                let claim = *rng.choose(&CLAIMS).unwrap();
                let width = rest.min(*rng.choose(&[1, 2, 4, 8]).unwrap());
                let claim = if rng.chance(0.5) { claim } else { claim.swap_bytes() };
                bytes[at..at + width].copy_from_slice(&claim.to_le_bytes()[..width]);
            }
            4 => bytes.truncate(at),
            5 => drop(bytes.drain(at..at + some)),
            6 => {
                let copy = bytes[at..at + some].to_vec();
                bytes.splice(at..at, copy);
            }
            _ => {
                // A number in text that claims something else.
                if let Some(digit) = bytes[at..].iter().position(u8::is_ascii_digit) {
                    let claim = rng.choose(&CLAIMS).unwrap().to_string();
                    bytes.splice(at + digit..=at + digit, claim.into_bytes());
                }
            }
        }
    }
}

fn read(format: &Format, held: &Held, bytes: &[u8]) -> Result<()> {
    match format.read {
        Read::Parse(parse) => parse(held.path(), bytes),
        Read::Open(open) => {
            std::fs::write(held.path(), bytes).unwrap();
            open(held.path())
        }
    }
}

/// Runs only as the child of the next test.
#[test]
fn decoders_answer_or_refuse() {
    if cfg!(unix) && std::env::var_os(CHILD).is_none() {
        return;
    }
    let mut panicked = Vec::new();
    for format in formats() {
        let held = Held::new("file", b"");
        read(&format, &held, &format.valid).unwrap_or_else(|e| panic!("{}: {e}", format.name));
        let mut refusals = 0;
        for case in 0..CASES {
            let mut bytes = format.valid.clone();
            damage(&mut bytes, &mut Seed::new(1).fork(format.name, case).rng());
            match catch_unwind(AssertUnwindSafe(|| read(&format, &held, &bytes))) {
                Ok(outcome) => refusals += u64::from(outcome.is_err()),
                Err(_) => panicked.push(format!("{} case {case}", format.name)),
            }
        }
        assert!(refusals > CASES / 10, "{}: only {refusals} were refused", format.name);
    }
    assert!(panicked.is_empty(), "panics: {panicked:?}");
}

/// The work is done in a process of its own, in which an allocation by the size that a header claims
/// fails, and ends the process.
#[cfg(unix)]
#[test]
fn decoders_survive_damage_in_little_memory() {
    let script = format!("ulimit -v {SPACE} && exec \"$0\" \"$@\"");
    let output = std::process::Command::new("sh")
        .args(["-c", &script])
        .arg(std::env::current_exe().unwrap())
        .args(["hostile::decoders_answer_or_refuse", "--exact", "--nocapture"])
        .env(CHILD, "1")
        .env("RAYON_NUM_THREADS", "2")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}\n{errors}");
}
