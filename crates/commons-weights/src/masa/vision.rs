//! Vision transformers with shared attention, trained from scratch on images.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use commons_core::Seed;
use commons_nn::data::Images;
use commons_nn::hub;
use commons_nn::model::{Vit, VitConfig};
use commons_nn::train::{At, Loss, Outcome, StepReport, TrainConfig, Trainer};
use commons_ops::{self as ops, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{CoefficientNet, Made, NetConfig, Projection, Start, initialise};
use crate::{Error, Result};

/// Vision transformers trained from scratch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct VisionStudy {
    /// Name or folder of a data set with a training and a test Parquet file, such as `cifar10`.
    pub images: String,
    /// Images that are scored.
    pub test_images: usize,
    /// Height and width of a patch, pixels.
    pub patch_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Layers.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// `S`: atoms per projection.
    pub atoms: usize,
    /// The training run; `batch_size` counts images.
    pub train: TrainConfig,
}

impl Default for VisionStudy {
    fn default() -> Self {
        Self {
            images: "cifar10".into(),
            test_images: 2000,
            patch_size: 4,
            hidden_size: 64,
            layers: 12,
            heads: 4,
            atoms: 4,
            train: TrainConfig {
                steps: 200,
                batch_size: 64,
                seq_len: 1,
                learning_rate: 1e-3,
                warmup_steps: 20,
                ..TrainConfig::default()
            },
        }
    }
}

/// Images to learn from and images to be scored on.
#[derive(Debug)]
pub struct Pictures {
    train: Images,
    test: Images,
}

/// A trained vision transformer scored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Seen {
    /// Parameters stored.
    pub stored: usize,
    /// Share of test images whose class was found.
    pub accuracy: f64,
}

impl VisionStudy {
    /// Reads the images.
    ///
    /// # Errors
    /// When the data set is missing or has not one training and one test file.
    pub fn pictures(&self) -> Result<Pictures> {
        let folder = hub::resolve_data(&self.images)?;
        let read = |part: &str| -> Result<Images> {
            let mut files = crate::material::files_below(&folder)?;
            let named = |p: &Path, what: &str| {
                p.file_name().is_some_and(|n| n.to_string_lossy().contains(what))
            };
            files.retain(|f| named(f, part) && named(f, ".parquet"));
            match &files[..] {
                [file] => Ok(Images::from_parquet(file)?),
                _ => Err(Error::config(
                    "images",
                    format!(
                        "`{}` has {} Parquet files for {part}: name a data set with one, such as cifar10",
                        self.images,
                        files.len()
                    ),
                )),
            }
        };
        Ok(Pictures { train: read("train")?, test: read("test")? })
    }

    /// Trains a vision transformer, with dictionaries for all four projections if `masa`.
    ///
    /// # Errors
    /// When shapes do not fit, training fails or is stopped.
    pub fn train(
        &self,
        masa: bool,
        pictures: &Pictures,
        seed: u64,
        stop: Arc<AtomicBool>,
        observe: impl FnMut(&StepReport),
    ) -> Result<Seen> {
        let labels = pictures.train.labels.iter().max().map_or(0, |&l| l as usize + 1);
        let config = VitConfig {
            image_size: pictures.train.height,
            patch_size: self.patch_size,
            num_channels: pictures.train.channels,
            hidden_size: self.hidden_size,
            num_hidden_layers: self.layers,
            num_attention_heads: self.heads,
            num_key_value_heads: self.heads,
            intermediate_size: 2 * self.hidden_size,
            num_labels: labels,
        };
        let root = Seed::new(seed);
        let mut model = Vit::init(config, root.fork("vit", 0))?;
        let network = if masa { Some(self.share(&mut model, root)?) } else { None };
        let mut train = self.train.clone();
        train.seed = seed;
        let order = root.fork("images", 0);
        let n = pictures.train.len();
        let mut trainer = Trainer::new(train.clone(), &model.bank)?.stop_flag(stop);
        let outcome = trainer.run(
            |At { batch, .. }| {
                let mut rng = order.fork("batch", batch).rng();
                let pick: Vec<usize> =
                    (0..train.batch_size).map(|_| rng.below(n as u64) as usize).collect();
                let (images, labels) = pictures.train.batch(&pick, model.bank.device())?;
                let images = images.affine(2., -1.)?;
                let scores = match &network {
                    Some(network) => {
                        let bank = network.applied(&model.bank)?;
                        Vit { config: model.config.clone(), bank }.forward(&images)?
                    }
                    None => model.forward(&images)?,
                };
                let loss = ops::cross_entropy(&scores, &labels, 0.)?;
                Ok(Loss::new(loss, train.batch_size))
            },
            observe,
        )?;
        if outcome == Outcome::Interrupted {
            return Err(Error::Interrupted);
        }
        if let Some(network) = network {
            network.finish(&mut model.bank)?;
        }
        let accuracy = self.accuracy(&model, &pictures.test)?;
        Ok(Seen { stored: model.bank.stored(), accuracy })
    }

    fn share(&self, model: &mut Vit, seed: Seed) -> Result<CoefficientNet> {
        let mut made = Vec::new();
        for projection in Projection::ALL {
            let members = projection.of_vit(&model.config);
            let (key, seed) = (projection.letter(), seed.fork("dictionary", 0));
            initialise(&mut model.bank, key, &members, self.atoms, Start::default(), seed)?;
            made.push(Made { key: key.to_owned(), atoms: self.atoms });
        }
        let (config, seed) = (NetConfig::default(), seed.fork("network", 0));
        CoefficientNet::attach(&mut model.bank, &config, self.layers, made, seed)
    }

    fn accuracy(&self, model: &Vit, test: &Images) -> Result<f64> {
        let indices: Vec<usize> = (0..test.len().min(self.test_images)).collect();
        let mut right = 0usize;
        for part in indices.chunks(100) {
            let (images, labels) = test.batch(part, model.bank.device())?;
            let scores = ops::no_grad(|| model.forward(&images.affine(2., -1.)?))?;
            right += hits(&scores, &labels)?;
        }
        Ok(right as f64 / indices.len().max(1) as f64)
    }
}

fn hits(scores: &Tensor, labels: &Tensor) -> Result<usize> {
    let rows = scores.to_vec2::<f32>()?;
    let best = |row: &[f32]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]));
    let labels = labels.to_vec1::<u32>()?;
    Ok(rows.iter().zip(labels).filter(|(row, l)| best(row) == Some(*l as usize)).count())
}
