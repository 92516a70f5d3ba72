//! Images that an experiment of this crate trains on: MNIST and relatives, CIFAR-10, or patterns
//! that need no file.

use std::path::{Path, PathBuf};

use commons_core::Seed;
use commons_nn::data::{Images, idx};
use commons_nn::hub;
use commons_ops::{self as ops, Device, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::material::files_below;
use crate::{Error, Result};

/// Which images, and how many.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ImagesConfig {
    /// `patterns` (generated), or the name or path of a data set: a folder of IDX files or of
    /// Parquet files with `train` and `test` in their names.
    pub data: String,
    /// Training images used, at most.
    pub train: usize,
    /// Test images used, at most.
    pub test: usize,
    /// Training images left out before those used: a slice of a data set that choices were not
    /// made on.
    pub skip_train: usize,
    /// Test images left out before those used.
    pub skip_test: usize,
}

impl Default for ImagesConfig {
    fn default() -> Self {
        Self { data: "patterns".into(), train: 2000, test: 500, skip_train: 0, skip_test: 0 }
    }
}

/// Images to train on and images to score.
#[derive(Debug, Clone)]
pub struct ImageSets {
    /// To train on.
    pub train: Images,
    /// To score.
    pub test: Images,
    /// Number of classes.
    pub classes: usize,
}

/// Classes of the generated patterns.
const PATTERNS: usize = 10;

/// Height and width of a generated pattern, pixels.
const SIDE: usize = 16;

impl ImagesConfig {
    /// Reads or generates the images.
    ///
    /// # Errors
    /// When the data cannot be found or read.
    pub fn prepare(&self, seed: Seed) -> Result<ImageSets> {
        if self.train == 0 || self.test == 0 {
            return Err(Error::config("images.train", "and images.test must be at least 1"));
        }
        if self.data == "patterns" && self.skip_train + self.skip_test > 0 {
            return Err(Error::config("skip_train", "and skip_test belong to a data set"));
        }
        let (train, test) = if self.data == "patterns" {
            let make = |part, n| patterns(seed.fork(part, 0), n);
            (make("train", self.train), make("test", self.test))
        } else {
            let folder = hub::resolve_data(&self.data)?;
            (
                slice(read(&self.data, &folder, true)?, self.skip_train, self.train, "train")?,
                slice(read(&self.data, &folder, false)?, self.skip_test, self.test, "test")?,
            )
        };
        let classes = train.labels.iter().max().map_or(0, |&c| c as usize + 1);
        Ok(ImageSets { train, test, classes })
    }
}

fn read(name: &str, folder: &Path, train: bool) -> Result<Images> {
    let part = if train { "train" } else { "test" };
    let files = files_below(folder)?;
    let is = |file: &PathBuf, what: &str| {
        file.file_name().is_some_and(|n| n.to_string_lossy().contains(what))
    };
    if let Some(idx_file) = files.iter().find(|f| is(f, "idx3-ubyte")) {
        return Ok(idx::mnist(idx_file.parent().unwrap_or(folder), train)?);
    }
    let tables: Vec<&PathBuf> = files.iter().filter(|f| is(f, ".parquet") && is(f, part)).collect();
    match tables[..] {
        [file] => Ok(Images::from_parquet(file)?),
        _ => Err(Error::config(
            name,
            format!(
                "{} of its files are Parquet with `{part}` in the name, and none is IDX: give a \
                 folder with IDX files or one Parquet file for each of train and test",
                tables.len()
            ),
        )),
    }
}

/// Up to `n` images after the first `skip`.
fn slice(mut images: Images, skip: usize, n: usize, part: &str) -> Result<Images> {
    let left = images.len().saturating_sub(skip);
    if left == 0 {
        let why = format!("{skip} leaves none of the {} images", images.len());
        return Err(Error::config(format!("skip_{part}"), why));
    }
    let (n, size) = (n.min(left), images.channels * images.height * images.width);
    images.pixels.drain(..skip * size);
    images.pixels.truncate(n * size);
    images.labels.drain(..skip);
    images.labels.truncate(n);
    Ok(images)
}

/// Gratings whose direction and frequency are the class, with random phase, contrast and noise.
fn patterns(seed: Seed, n: usize) -> Images {
    let mut rng = seed.rng();
    let mut pixels = Vec::with_capacity(n * SIDE * SIDE);
    let mut labels = Vec::with_capacity(n);
    for _ in 0..n {
        let class = rng.below(PATTERNS as u64) as usize;
        let angle = std::f64::consts::PI * (class % 5) as f64 / 5.;
        let wave = if class < 5 { 0.7 } else { 1.3 };
        let (phase, contrast) = (rng.range(0., std::f64::consts::TAU), rng.range(30., 70.));
        for y in 0..SIDE {
            for x in 0..SIDE {
                let along = x as f64 * angle.cos() + y as f64 * angle.sin();
                let value = 128. + contrast * (wave * along + phase).sin() + 25. * rng.normal();
                pixels.push(value.clamp(0., 255.) as u8);
            }
        }
        labels.push(class as u32);
    }
    Images { pixels, channels: 1, height: SIDE, width: SIDE, labels }
}

impl ImageSets {
    /// The images `indices` of `images` from −1 to 1, `[n, channels, height, width]`, and their
    /// classes, `[n]`.
    ///
    /// # Errors
    /// When there is no such image.
    pub fn batch(images: &Images, indices: &[usize]) -> Result<(Tensor, Tensor)> {
        let (pixels, labels) = images.batch(indices, &Device::Cpu)?;
        Ok((pixels.affine(2., -1.)?, labels))
    }

    /// The training images alone, the last `n` of them to score: what choices may be made on.
    ///
    /// # Errors
    /// When nothing would be left to train on.
    pub fn hold_out(&self, n: usize) -> Result<Self> {
        let left = self.train.len().saturating_sub(n);
        if n == 0 || left == 0 {
            let why = format!("{n} of {} training images leave none of a kind", self.train.len());
            return Err(Error::config("held_out", why));
        }
        let (mut train, mut test) = (self.train.clone(), self.train.clone());
        let size = train.channels * train.height * train.width;
        train.pixels.truncate(left * size);
        train.labels.truncate(left);
        test.pixels.drain(..left * size);
        test.labels.drain(..left);
        Ok(Self { train, test, classes: self.classes })
    }

    /// The `batch`-th batch of `size` training images: every epoch is a new permutation, and the
    /// batch is a function of its number alone.
    ///
    /// # Errors
    /// When a tensor cannot be made.
    pub fn train_batch(&self, seed: Seed, batch: u64, size: usize) -> Result<(Tensor, Tensor)> {
        let n = self.train.len();
        let size = size.min(n);
        let per_epoch = (n / size) as u64;
        let order = seed.fork("epoch", batch / per_epoch).permutation(n);
        let start = (batch % per_epoch) as usize * size;
        Self::batch(&self.train, &order[start..start + size])
    }

    /// Share of the test images that `scores` (class scores `[n, classes]` of images) gets right.
    ///
    /// # Errors
    /// What `scores` returns.
    pub fn accuracy(&self, mut scores: impl FnMut(&Tensor) -> Result<Tensor>) -> Result<f64> {
        let all: Vec<usize> = (0..self.test.len()).collect();
        let mut right = 0usize;
        for part in all.chunks(100) {
            let (images, labels) = Self::batch(&self.test, part)?;
            let best = ops::argmax(&ops::no_grad(|| scores(&images))?)?.to_vec1::<u32>()?;
            let labels = labels.to_vec1::<u32>()?;
            right += best.iter().zip(&labels).filter(|(a, b)| a == b).count();
        }
        Ok(right as f64 / all.len().max(1) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_seeded_and_an_epoch_holds_every_image_once() {
        let config = ImagesConfig { train: 40, test: 20, ..ImagesConfig::default() };
        let sets = config.prepare(Seed::new(1)).unwrap();
        assert_eq!(sets.train, config.prepare(Seed::new(1)).unwrap().train);
        assert_ne!(sets.train.pixels[..256], sets.test.pixels[..256]);
        let mut seen = Vec::new();
        for batch in 4..8 {
            seen.extend(
                sets.train_batch(Seed::new(2), batch, 10).unwrap().1.to_vec1::<u32>().unwrap(),
            );
        }
        seen.sort_unstable();
        let mut all = sets.train.labels.clone();
        all.sort_unstable();
        assert_eq!(seen, all);
    }

    #[test]
    fn held_out_images_are_the_last_of_training_and_never_of_the_test() {
        let config = ImagesConfig { train: 40, test: 20, ..ImagesConfig::default() };
        let sets = config.prepare(Seed::new(4)).unwrap();
        let held = sets.hold_out(15).unwrap();
        assert_eq!((held.train.len(), held.test.len()), (25, 15));
        assert_eq!([held.train.pixels, held.test.pixels].concat(), sets.train.pixels);
        assert_eq!([held.train.labels, held.test.labels].concat(), sets.train.labels);
        for n in [0, 40, 41] {
            assert!(sets.hold_out(n).unwrap_err().to_string().contains("held_out"), "{n}");
        }
    }

    #[test]
    fn a_slice_holds_the_images_after_those_left_out() {
        let all = patterns(Seed::new(5), 12);
        let size = SIDE * SIDE;
        let part = slice(all.clone(), 3, 4, "test").unwrap();
        assert_eq!(part.labels, all.labels[3..7]);
        assert_eq!(part.pixels, all.pixels[3 * size..7 * size]);
        assert_eq!(slice(all.clone(), 10, 4, "test").unwrap().len(), 2);
        let none = slice(all, 12, 4, "train").unwrap_err().to_string();
        assert!(none.contains("skip_train"), "{none}");
    }

    #[test]
    fn accuracy_counts_what_is_right() {
        let sets = ImagesConfig { train: 1, test: 30, ..ImagesConfig::default() };
        let sets = sets.prepare(Seed::new(3)).unwrap();
        let always = |class: u32| {
            sets.accuracy(|x| {
                Ok(ops::one_hot(
                    &Tensor::full(class, x.dim(0)?, &Device::Cpu)?,
                    10,
                    ops::DType::F32,
                )?)
            })
            .unwrap()
        };
        let total: f64 = (0..10).map(always).sum();
        assert!((total - 1.).abs() < 1e-9, "{total}");
    }
}
