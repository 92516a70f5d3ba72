//! Images with their classes.

use std::io::Cursor;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use image::{DynamicImage, ImageDecoder, ImageReader, Limits};
use rayon::prelude::*;

use super::parquet;
use super::table::{Column, Records};
use crate::error::{Error, Place, Result};

/// Largest side of an encoded image, in pixels: its header is believed up to here.
const MAX_SIDE: u32 = 8192;
/// Most memory that decoding one image may take, in bytes.
const MAX_DECODING: u64 = 512 << 20;
/// Names under which data sets keep encoded images.
const IMAGE_COLUMNS: [&str; 5] = ["image.bytes", "img.bytes", "image", "img", "bytes"];
/// Names under which data sets keep classes.
const LABEL_COLUMNS: [&str; 4] = ["label", "labels", "fine_label", "class"];

/// Images of one size with their classes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Images {
    /// Brightness from 0 to 255, `[n, channels, height, width]`, row-major.
    pub pixels: Vec<u8>,
    /// 1 (grey) or 3 (red, green, blue).
    pub channels: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// Class of each image, counted from zero.
    pub labels: Vec<u32>,
}

impl Images {
    /// `[channels, height, width]` images with their classes, said to come from `file`.
    pub(super) fn new(
        file: &Path,
        [channels, height, width]: [usize; 3],
        pixels: Vec<u8>,
        labels: Vec<u32>,
    ) -> Result<Self> {
        let size = [channels, height, width].iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        if size.and_then(|size| size.checked_mul(labels.len())) != Some(pixels.len()) {
            let reason = format!(
                "{} bytes of {channels}x{height}x{width} images do not fit {} labels",
                pixels.len(),
                labels.len()
            );
            return Err(Error::malformed(file, reason).remedy("give images and labels of one set"));
        }
        Ok(Self { pixels, channels, height, width, labels })
    }

    /// Reads a Parquet file with a column of PNG or JPEG files (`image`, `img`, either also as a
    /// group with `bytes`) and a column of classes (`label`, `labels`, `fine_label`, `class`), such
    /// as CIFAR-10 on the hub. An image without colour has one channel, any other has three.
    ///
    /// # Errors
    /// When a column is missing, or an image cannot be decoded or has another size than the first;
    /// names the row.
    pub fn from_parquet(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let names = parquet::columns(path)?;
        let find = |known: &'static [&'static str], what: &str| {
            known.iter().copied().find(|k| names.iter().any(|n| n == k)).ok_or_else(|| {
                Error::malformed(path, format!("has no column of {what}")).remedy(format!(
                    "one of {} is expected; there are {}",
                    known.join(", "),
                    names.join(", ")
                ))
            })
        };
        let (image, label) = (find(&IMAGE_COLUMNS, "images")?, find(&LABEL_COLUMNS, "classes")?);
        let records = parquet::read(path, Some(&[image, label]))?;
        Self::from_records(&records, image, label)
    }

    /// Decodes the column `image` of encoded images, with their classes in the column `label`.
    ///
    /// # Errors
    /// As for [`Images::from_parquet`].
    pub fn from_records(records: &Records, image: &str, label: &str) -> Result<Self> {
        // A column of text cannot hold images, whatever its name; say so rather than decode it.
        if let Column::Text(_) = records.column(image)? {
            return Err(Error::malformed(records.file(), "holds text, not encoded images")
                .item(format!("column `{image}`")));
        }
        let encoded = records.bytes(image)?;
        let labels = records.labels(label)?;
        let fault = |row: usize, reason: String| {
            Error::malformed(records.file(), reason)
                .item(format!("column `{image}`"))
                .at(Place::Row(row as u64 + 1))
                .remedy("images must be PNG or JPEG files, all of one size")
        };
        let Some(first) = encoded.first() else {
            return Self::new(records.file(), [0, 0, 0], Vec::new(), labels);
        };
        let first = decode(first, None).map_err(|e| fault(0, e))?;
        let (height, width) = (first.height(), first.width());
        let channels = if first.color().has_color() { 3 } else { 1 };
        let planes: Vec<Result<Vec<u8>, String>> = encoded
            .par_iter()
            .map(|bytes| Ok(planes(&decode(bytes, Some((width, height)))?, channels)))
            .collect();
        let mut pixels = Vec::new();
        for (row, planes) in planes.into_iter().enumerate() {
            pixels.extend(planes.map_err(|e| fault(row, e))?);
        }
        let shape = [channels, height as usize, width as usize];
        Self::new(records.file(), shape, pixels, labels)
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The images `indices` as `f32` from 0 to 1, `[n, channels, height, width]`, and their classes
    /// as `u32`, `[n]`.
    ///
    /// # Errors
    /// When there is no image of an index, or the tensor engine refuses.
    pub fn batch(&self, indices: &[usize], device: &Device) -> Result<(Tensor, Tensor)> {
        let size = self.channels * self.height * self.width;
        let mut pixels = Vec::with_capacity(indices.len() * size);
        let mut labels = Vec::with_capacity(indices.len());
        for &i in indices {
            let Some(&label) = self.labels.get(i) else {
                let reason = format!("there is no image {i} among {}", self.len());
                return Err(Error::invalid("index", reason));
            };
            labels.push(label);
            let image = &self.pixels[i * size..(i + 1) * size];
            pixels.extend(image.iter().map(|&p| f32::from(p) / 255.));
        }
        let shape = (indices.len(), self.channels, self.height, self.width);
        let pixels = Tensor::from_vec(pixels, shape, device)?.to_dtype(DType::F32)?;
        Ok((pixels, Tensor::from_vec(labels, indices.len(), device)?))
    }
}

/// Decodes a PNG or JPEG file, which must be `size` (width, height) if given. The size is checked
/// before a pixel is decoded.
fn decode(bytes: &[u8], size: Option<(u32, u32)>) -> Result<DynamicImage, String> {
    let text = |e: image::ImageError| e.to_string();
    let mut reader =
        ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| e.to_string())?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_DECODING);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(text)?;
    let (width, height) = decoder.dimensions();
    if let Some(expected) = size.filter(|&s| s != (width, height)) {
        return Err(format!("is {width}x{height}, the first is {}x{}", expected.0, expected.1));
    }
    DynamicImage::from_decoder(decoder).map_err(text)
}

/// Pixels of an image, one channel after the other.
fn planes(image: &DynamicImage, channels: usize) -> Vec<u8> {
    if channels == 1 {
        return image.to_luma8().into_raw();
    }
    let pixels = image.to_rgb8().into_raw();
    (0..3).flat_map(|c| pixels.iter().skip(c).step_by(3).copied()).collect()
}
