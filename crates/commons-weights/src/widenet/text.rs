//! The encoder on text: masked bytes are predicted from both sides, with ALBERT's small embedding.

use commons_core::Seed;
use commons_nn::bank::Bank;
use commons_ops::{self as ops, LossOptions, Tensor};

use super::encoder::{Encoded, Encoder, EncoderConfig, Phase, initial, layer_norm, positions};
use crate::Result;
use crate::baseline::scratch::BYTE_VOCABULARY;

/// The token that stands for a hidden one.
const MASK: u32 = BYTE_VOCABULARY as u32;

/// Share of the tokens that are predicted.
const MASKED: f64 = 0.15;

/// A text encoder over bytes: embeddings of width `embedding`, learned positions added and the sum
/// normed before it is mapped to the hidden width (ALBERT), and a head that maps back and is tied
/// to the embeddings.
#[derive(Debug, Clone)]
pub struct WideBert {
    /// The layers and all parameters.
    pub encoder: Encoder,
}

/// A batch with hidden tokens, `[batch, seq]` each; targets are `u32::MAX` where nothing is hidden.
#[derive(Debug, Clone)]
pub struct Hidden {
    /// What the model reads.
    pub input: Tensor,
    /// What it must find.
    pub targets: Tensor,
}

impl Hidden {
    /// Hides 15 % of `ids [batch, seq]`: of those eight in ten become the mask, one in ten another
    /// byte, and one in ten stays (BERT).
    ///
    /// # Errors
    /// When `ids` are no `u32` matrix.
    pub fn of(ids: &Tensor, seed: Seed) -> Result<Self> {
        let (shape, mut rng) = (ids.dims2()?, seed.rng());
        let ids = ids.flatten_all()?.to_vec1::<u32>()?;
        let (mut input, mut targets) = (ids.clone(), vec![u32::MAX; ids.len()]);
        for (i, &id) in ids.iter().enumerate() {
            if !rng.chance(MASKED) {
                continue;
            }
            targets[i] = id;
            match rng.below(10) {
                0 => input[i] = rng.below(u64::from(MASK)) as u32,
                1 => {}
                _ => input[i] = MASK,
            }
        }
        let device = &ops::Device::Cpu;
        Ok(Self {
            input: Tensor::from_vec(input, shape, device)?,
            targets: Tensor::from_vec(targets, shape, device)?,
        })
    }

    /// Tokens to find.
    ///
    /// # Errors
    /// When the targets cannot be read.
    pub fn count(&self) -> Result<usize> {
        let targets = self.targets.flatten_all()?.to_vec1::<u32>()?;
        Ok(targets.iter().filter(|t| **t != u32::MAX).count())
    }
}

impl WideBert {
    /// A freshly initialised encoder for `seq` tokens.
    ///
    /// # Errors
    /// When counts do not divide.
    pub fn init(config: EncoderConfig, embedding: usize, seq: usize, seed: Seed) -> Result<Self> {
        let d = config.hidden_size;
        let mut bank = Bank::default();
        for (name, shape) in [
            ("embedding.weight", vec![BYTE_VOCABULARY + 1, embedding]),
            ("positions", vec![seq, embedding]),
            ("embedding_norm.weight", vec![embedding]),
            ("embedding_norm.bias", vec![embedding]),
            ("widen.weight", vec![d, embedding]),
            ("norm.weight", vec![d]),
            ("norm.bias", vec![d]),
            ("narrow.weight", vec![embedding, d]),
            ("narrow.bias", vec![embedding]),
            ("head_norm.weight", vec![embedding]),
            ("head_norm.bias", vec![embedding]),
        ] {
            let v = initial(name, &shape, seed.fork(name, 0));
            bank.insert(name, Tensor::from_vec(v, shape, bank.device())?)?;
        }
        Ok(Self { encoder: Encoder::init(config, bank, seed)? })
    }

    /// Mean cross-entropy, nats per hidden token, and what the layers did.
    ///
    /// # Errors
    /// When the text is longer than there are positions.
    pub fn loss(&self, text: &Hidden, phase: Phase) -> Result<(Tensor, Encoded)> {
        let bank = &self.encoder.bank;
        let table = bank.weight("embedding.weight")?;
        let x = ops::embedding(&table, &text.input)?;
        let (batch, seq, _) = x.dims3()?;
        let x = ops::add(&x, &positions(bank, batch, seq)?)?;
        let x = bank.linear("widen", &layer_norm(bank, "embedding_norm", &x)?)?;
        let encoded = self.encoder.forward(&x, phase)?;
        let y = bank.linear("narrow", &layer_norm(bank, "norm", &encoded.x)?)?;
        let y = layer_norm(bank, "head_norm", &ops::gelu(&y)?)?;
        let y = y.reshape((batch * seq, y.dim(2)?))?;
        let targets = text.targets.flatten_all()?;
        let loss = ops::linear_cross_entropy(&y, &table, &targets, &LossOptions::default())?;
        Ok((loss, encoded))
    }
}
