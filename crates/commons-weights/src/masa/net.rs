//! The coefficient network: while a model trains, a small network makes the coefficients from an
//! embedding per layer; afterwards only what it made is stored.

use commons_core::Seed;
use commons_nn::bank::{Bank, PART};
use commons_ops::{self as ops, Activation, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::dictionary::coefficient_part;
use crate::{Error, Result};

/// Shape of the coefficient network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NetConfig {
    /// Width of the layers' embeddings.
    pub embedding: usize,
    /// Width of the two hidden layers.
    pub hidden: usize,
}

impl Default for NetConfig {
    fn default() -> Self {
        Self { embedding: 64, hidden: 64 }
    }
}

/// A dictionary whose coefficients the network makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// Key of the dictionary.
    pub key: String,
    /// Atoms.
    pub atoms: usize,
}

/// `c_l = c_l⁰ + MLP(e_l)`: three linear maps with GELU between them, for all dictionaries at
/// once. Its weights are parts of the bank, so that the optimiser and checkpoints see them.
#[derive(Debug, Clone)]
pub struct CoefficientNet {
    layers: usize,
    made: Vec<Made>,
}

/// Deviation of the last map's weights: small, so that training begins at `c⁰`.
const LAST: f32 = 0.02;

fn part(name: &str) -> String {
    format!("{PART}masa.net.{name}")
}

impl CoefficientNet {
    /// Adds the network to `bank` and freezes the stored coefficients, from then on its constant
    /// `c⁰`.
    ///
    /// # Errors
    /// When a width is zero.
    pub fn attach(
        bank: &mut Bank,
        config: &NetConfig,
        layers: usize,
        made: Vec<Made>,
        seed: Seed,
    ) -> Result<Self> {
        if config.embedding == 0 || config.hidden == 0 {
            return Err(Error::config("network", "embedding and hidden must be at least 1"));
        }
        let outputs: usize = made.iter().map(|m| m.atoms).sum();
        let (m, h) = (config.embedding, config.hidden);
        let maps = [
            ("0.weight", h, m, 1. / (m as f32).sqrt()),
            ("1.weight", h, h, 1. / (h as f32).sqrt()),
            ("2.weight", outputs, h, LAST / (h as f32).sqrt()),
            ("embedding", layers, m, 1.),
        ];
        for (name, out, input, sigma) in maps {
            let mut v = vec![0f32; out * input];
            seed.fork(name, 0).normal(0, &mut v);
            v.iter_mut().for_each(|x| *x *= sigma);
            bank.insert(part(name), Tensor::from_vec(v, (out, input), bank.device())?)?;
        }
        for (name, width) in [("0.bias", h), ("1.bias", h), ("2.bias", outputs)] {
            bank.insert(part(name), Tensor::zeros(width, ops::DType::F32, bank.device())?)?;
        }
        let net = Self { layers, made };
        bank.freeze(|name| net.coefficients().any(|(part, _)| part == name));
        Ok(net)
    }

    /// Stored names of the coefficients, and where each stands in the network's output.
    fn coefficients(&self) -> impl Iterator<Item = (String, usize)> + '_ {
        let width: usize = self.made.iter().map(|m| m.atoms).sum();
        (0..self.layers).flat_map(move |l| {
            let mut offset = l * width;
            self.made.iter().map(move |m| {
                let at = offset;
                offset += m.atoms;
                (coefficient_part(&m.key, l), at)
            })
        })
    }

    /// Names and values `[S]` of all coefficients, differentiable in the network.
    ///
    /// # Errors
    /// When the network is not in `bank`.
    pub fn make(&self, bank: &Bank) -> Result<Vec<(String, Tensor)>> {
        let read = |name: &str| bank.weight(&part(name));
        let step = |x: &Tensor, i: usize, act| -> Result<Tensor> {
            let (w, b) = (read(&format!("{i}.weight"))?, read(&format!("{i}.bias"))?);
            Ok(ops::linear_act(x, &w, Some(&b), act)?)
        };
        let x = step(&read("embedding")?, 0, Activation::Gelu)?;
        let x = step(&x, 1, Activation::Gelu)?;
        let flat = step(&x, 2, Activation::Identity)?.flatten_all()?;
        self.coefficients()
            .map(|(name, at)| {
                let start = bank.stored_var(&name)?.as_detached_tensor();
                let change = flat.narrow(0, at, start.dims1()?)?;
                Ok((name, ops::add(&start, &change)?))
            })
            .collect()
    }

    /// The bank whose coefficients are those of the network at this moment.
    ///
    /// # Errors
    /// When the network is not in `bank`.
    pub fn applied(&self, bank: &Bank) -> Result<Bank> {
        Ok(bank.substituted(self.make(bank)?)?)
    }

    /// Stores what the network makes and drops the network.
    ///
    /// # Errors
    /// When the network is not in `bank`.
    pub fn finish(self, bank: &mut Bank) -> Result<()> {
        for (name, value) in ops::no_grad(|| self.make(bank))? {
            bank.insert(name, value)?;
        }
        let parts: Vec<String> = bank
            .stored_vars()
            .map(|(name, _)| name.to_owned())
            .filter(|name| name.starts_with(&part("")))
            .collect();
        parts.iter().for_each(|name| bank.remove(name));
        bank.freeze(|_| false);
        Ok(())
    }
}
