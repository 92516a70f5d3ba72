//! CIFAR-10 and CIFAR-100 in the binary form of their authors: records of one class (CIFAR-100: a
//! coarse and a fine one) and 32x32 pixels, all red ones, then all green, then all blue. The form
//! with encoded images is read by [`Images::from_parquet`].

use std::path::{Path, PathBuf};

use super::images::Images;
use super::source;
use crate::error::{Error, Place, Result};

/// Rows and columns of an image.
const SIDE: usize = 32;
/// Bytes of an image.
const PIXELS: usize = 3 * SIDE * SIDE;

/// Which of the two sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Set {
    /// Ten classes.
    Cifar10,
    /// A hundred classes; the twenty coarse ones are left out.
    Cifar100,
}

impl Set {
    fn label_bytes(self) -> usize {
        match self {
            Self::Cifar10 => 1,
            Self::Cifar100 => 2,
        }
    }

    fn classes(self) -> u8 {
        match self {
            Self::Cifar10 => 10,
            Self::Cifar100 => 100,
        }
    }

    fn files(self, train: bool) -> Vec<String> {
        match (self, train) {
            (Self::Cifar10, true) => (1..=5).map(|i| format!("data_batch_{i}.bin")).collect(),
            (Self::Cifar10, false) => vec!["test_batch.bin".into()],
            (Self::Cifar100, true) => vec!["train.bin".into()],
            (Self::Cifar100, false) => vec!["test.bin".into()],
        }
    }
}

/// Reads a folder as its authors' archive unpacks: all training batches, or the test batch.
///
/// # Errors
/// When a file is missing, is no whole number of records, or holds an impossible class.
pub fn read_folder(folder: impl AsRef<Path>, set: Set, train: bool) -> Result<Images> {
    let files: Vec<PathBuf> =
        set.files(train).iter().map(|name| folder.as_ref().join(name)).collect();
    read(&files, set)
}

/// Reads batches, gzipped or not, one after the other.
///
/// # Errors
/// When a file cannot be read, is no whole number of records, or holds an impossible class; names
/// file, record and offset.
pub fn read(files: &[impl AsRef<Path>], set: Set) -> Result<Images> {
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    for file in files {
        let file = file.as_ref();
        let bytes = source::read(file, source::LIMIT)?;
        parse(file, &bytes, set, &mut pixels, &mut labels)?;
    }
    let file = files.first().map_or(Path::new(""), AsRef::as_ref);
    Images::new(file, [3, SIDE, SIDE], pixels, labels)
}

fn parse(
    file: &Path,
    bytes: &[u8],
    set: Set,
    pixels: &mut Vec<u8>,
    labels: &mut Vec<u32>,
) -> Result<()> {
    let head = set.label_bytes();
    let size = head + PIXELS;
    if bytes.is_empty() || !bytes.len().is_multiple_of(size) {
        let whole = bytes.len() / size * size;
        let reason = format!("has {} bytes, no whole number of records of {size}", bytes.len());
        return Err(Error::malformed(file, reason)
            .item(format!("record {}", bytes.len() / size + 1))
            .at(Place::Byte(whole as u64))
            .remedy("fetch the file again, or check that it is a batch of this set"));
    }
    for (i, record) in bytes.chunks_exact(size).enumerate() {
        // The finer class stands last.
        let label = record[head - 1];
        if label >= set.classes() {
            let reason = format!("has the class {label} of {}", set.classes());
            return Err(Error::malformed(file, reason)
                .item(format!("record {}", i + 1))
                .at(Place::Byte((i * size + head - 1) as u64))
                .remedy("check that the file is a batch of this set"));
        }
        labels.push(u32::from(label));
        pixels.extend_from_slice(&record[head..]);
    }
    Ok(())
}
