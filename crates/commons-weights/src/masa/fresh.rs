//! Dictionaries of a new decoder, trained from scratch.

use commons_core::Seed;
use commons_nn::model::Decoder;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::dictionary::{Projection, Start, initialise};
use super::net::{CoefficientNet, Made, NetConfig};
use crate::{Error, Result};

/// Which projections of a new decoder are mixed from atoms, and how their coefficients are made
/// while it trains.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Dictionaries {
    /// `S`: atoms of each projection; 0 shares nothing.
    pub atoms: usize,
    /// Projections that share: all four (MASA-QKVO), or without `o` (MASA-QKV).
    pub share: Vec<Projection>,
    /// How coefficients start.
    pub start: Start,
    /// The network that makes the coefficients while training.
    pub network: NetConfig,
    /// Train the coefficients themselves, without the network.
    pub raw_coefficients: bool,
}

impl Default for Dictionaries {
    fn default() -> Self {
        Self {
            atoms: 0,
            share: Projection::ALL.to_vec(),
            start: Start::default(),
            network: NetConfig::default(),
            raw_coefficients: false,
        }
    }
}

impl Dictionaries {
    /// Replaces the projections of a freshly initialised `model` by dictionaries, and adds the
    /// network that makes their coefficients, if there is to be one. The model is trained as
    /// [`CoefficientNet::applied`] gives it, and afterwards [`CoefficientNet::finish`] stores the
    /// coefficients.
    ///
    /// # Errors
    /// When there are no atoms, or as many as layers, or projections are named twice or shared
    /// already.
    pub fn attach(&self, model: &mut Decoder, seed: Seed) -> Result<Option<CoefficientNet>> {
        let layers = model.config.num_hidden_layers;
        if self.atoms == 0 || self.atoms >= layers {
            let most = layers.saturating_sub(1).max(1);
            let why = format!("{} atoms for {layers} layers: use 1 to {most}", self.atoms);
            return Err(Error::config("atoms", why));
        }
        let mut once = self.share.clone();
        once.sort_unstable();
        once.dedup();
        if once.is_empty() || once.len() != self.share.len() {
            return Err(Error::config("share", "name at least one projection, and each once"));
        }
        let mut made = Vec::new();
        for projection in &self.share {
            let members = projection.of_decoder(&model.config);
            if let Some(name) = members.iter().find(|n| model.bank.plan().get(n).is_some()) {
                let why = "is shared already: layers that are passed again, or all alike, have no \
                           weights of their own to mix";
                return Err(Error::config(name.as_str(), why));
            }
            let key = projection.letter().to_owned();
            let drawn = seed.fork("dictionary", 0);
            initialise(&mut model.bank, &key, &members, self.atoms, self.start, drawn)?;
            made.push(Made { key, atoms: self.atoms });
        }
        if self.raw_coefficients {
            return Ok(None);
        }
        let seed = seed.fork("network", 0);
        CoefficientNet::attach(&mut model.bank, &self.network, layers, made, seed).map(Some)
    }
}
