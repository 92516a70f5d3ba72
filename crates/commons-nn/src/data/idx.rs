//! IDX, the format of MNIST and its relatives.
//!
//! Two zero bytes, a byte for the type, a byte for the number of dimensions, each dimension as a
//! big-endian `u32`, then the numbers, big-endian.

use std::path::{Path, PathBuf};

use super::array::{Array, Number, byte_length};
use super::images::Images;
use super::source;
use crate::error::{Error, Place, Result};

/// Bytes before the dimensions.
const PREFIX: usize = 4;

/// Reads an array, gzipped or not.
///
/// # Errors
/// When the file cannot be read, is not IDX, or is longer or shorter than its dimensions say.
pub fn read(path: impl AsRef<Path>) -> Result<Array> {
    let path = path.as_ref();
    parse(path, &source::read(path, source::LIMIT)?)
}

/// Reads an array that is in memory, called `file` in messages.
///
/// # Errors
/// As for [`read`].
pub fn parse(file: &Path, bytes: &[u8]) -> Result<Array> {
    let fault =
        |at: usize, reason: String| Error::malformed(file, reason).at(Place::Byte(at as u64));
    let Some(&[0, 0, kind, rank]) = bytes.first_chunk::<PREFIX>() else {
        return Err(fault(0, "does not begin as an IDX file".into())
            .remedy("give a file such as train-images-idx3-ubyte, gzipped or not"));
    };
    let number = match kind {
        0x08 => Number::U8,
        0x09 => Number::I8,
        0x0b => Number::I16,
        0x0c => Number::I32,
        0x0d => Number::F32,
        0x0e => Number::F64,
        _ => return Err(fault(2, format!("{kind:#04x} is not a type of IDX"))),
    };
    let start = PREFIX + 4 * usize::from(rank);
    let dims = bytes.get(PREFIX..start).ok_or_else(|| {
        fault(bytes.len(), format!("ends within its {rank} dimensions"))
            .remedy("fetch the file again: it is cut short")
    })?;
    let shape: Vec<usize> = dims
        .chunks_exact(4)
        .map(|d| u32::from_be_bytes([d[0], d[1], d[2], d[3]]) as usize)
        .collect();
    let found = bytes.len() - start;
    let wanted = byte_length(number, &shape);
    if wanted != Some(found) {
        let size = wanted.map_or_else(|| "more than any file".into(), |n| format!("{n} bytes"));
        let reason =
            format!("shape {shape:?} of {number:?} takes {size}, but {found} bytes follow");
        return Err(fault(start, reason).remedy("fetch the file again: it is cut short or damaged"));
    }
    Ok(Array::new(number, shape, bytes[start..].to_vec(), true))
}

/// Images `[n, height, width]` of one channel from one file, and their classes from another.
///
/// # Errors
/// When a file is not IDX, has another shape or type, or the two differ in length.
pub fn images(images: impl AsRef<Path>, labels: impl AsRef<Path>) -> Result<Images> {
    let (image_file, label_file) = (images.as_ref(), labels.as_ref());
    let (pixels, classes) = (read(image_file)?, read(label_file)?);
    let fault = |file: &Path, array: &Array, wanted: &str| {
        let (shape, number) = (array.shape(), array.number());
        Error::malformed(file, format!("holds {number:?} of shape {shape:?}, not {wanted}"))
    };
    let &[_, height, width] = pixels.shape() else {
        return Err(fault(image_file, &pixels, "images [n, height, width]"));
    };
    if pixels.number() != Number::U8 {
        return Err(fault(image_file, &pixels, "bytes"));
    }
    if classes.number() != Number::U8 || classes.shape().len() != 1 {
        return Err(fault(label_file, &classes, "one byte per image"));
    }
    let classes = classes.into_bytes().into_iter().map(u32::from).collect();
    Images::new(image_file, [1, height, width], pixels.into_bytes(), classes)
}

/// MNIST, Fashion-MNIST or another set with the same file names from its folder: the training images
/// if `train`, else the test images.
///
/// # Errors
/// When a file is missing or malformed.
pub fn mnist(folder: impl AsRef<Path>, train: bool) -> Result<Images> {
    let folder = folder.as_ref();
    let part = if train { "train" } else { "t10k" };
    let file = |rest: &str| -> Result<PathBuf> {
        let plain = folder.join(format!("{part}-{rest}"));
        let packed = folder.join(format!("{part}-{rest}.gz"));
        [&plain, &packed].into_iter().find(|p| p.is_file()).cloned().ok_or_else(|| {
            Error::invalid(plain.display().to_string(), "is not there, nor is it with .gz")
                .remedy("give the folder that holds the four IDX files")
        })
    };
    images(file("images-idx3-ubyte")?, file("labels-idx1-ubyte")?)
}
