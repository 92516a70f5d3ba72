//! A pretrained decoder made into a mixture of recursions: its middle layers are folded into one
//! block, and fresh routers say how often a token passes it. What the layers add to the residual
//! stream is then scaled by a router that has learnt nothing, so the model has to be trained on.

use commons_core::table::Table;
use commons_core::{Seed, cells};
use commons_nn::bank::Entry;
use commons_nn::model::{Decoder, DecoderConfig, MixtureOfRecursions};
use commons_ops::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::baseline::{layer_weight, mean_weight, spread_layers};
use crate::compress::{Compress, Context, Shared, check_own};
use crate::heal::HealConfig;
use crate::{Error, Result};

/// Deviation of a fresh router's weights, as in a model from scratch.
const ROUTER: f32 = 0.02;

/// Which pretrained layers a shared layer starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Init {
    /// Layers spread evenly over the middle of the depth, first and last of it included.
    #[default]
    Stepwise,
    /// The mean of all layers at whose depths it is passed.
    Average,
    /// The first layers of the middle.
    Lower,
    /// The last layers of the middle.
    Upper,
}

impl Init {
    /// For every shared layer, the pretrained layers (of `layers`, from 0) whose mean it starts as.
    pub fn sources(self, mixture: &MixtureOfRecursions, layers: usize) -> Vec<Vec<usize>> {
        let (sharing, n) = (mixture.sharing, mixture.recursions);
        let ends = sharing.ends();
        let middle = layers.saturating_sub(2 * ends);
        let block = middle / n.max(1);
        let single = |picked: Vec<usize>| picked.into_iter().map(|l| vec![ends + l]).collect();
        match self {
            Self::Stepwise => single(spread_layers(middle, block)),
            Self::Average => {
                let passed = |j| (0..layers).filter(move |&d| sharing.layer_at(d, layers, n) == j);
                (0..block).map(|j| passed(Some(j)).collect()).collect()
            }
            Self::Lower => single((0..block).collect()),
            Self::Upper => single((middle - block..middle).collect()),
        }
    }
}

/// Options of [`Mor`].
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The recursions and who decides on them.
    pub mixture: MixtureOfRecursions,
    /// How shared layers start.
    pub init: Init,
    /// The training that follows.
    pub heal: HealConfig,
}

/// The configuration of the mixture that `model` is to become.
///
/// # Errors
/// As [`convert`].
fn check(config: &Config, model: &Decoder) -> Result<DecoderConfig> {
    config.heal.check()?;
    config.heal.check_routed()?;
    let mixture = &config.mixture;
    if mixture.recursions < 2 {
        let reason = "1 passes every layer once and shares none: use 2 or more";
        return Err(Error::config("mixture.recursions", reason));
    }
    let shape =
        DecoderConfig { mixture_of_recursions: Some(mixture.clone()), ..model.config.clone() };
    shape.check()?;
    check_groups(&shape)?;
    let names = shape.weights().into_iter().map(|(name, _)| name);
    check_own(model, names.filter(|name| layer_weight(name).is_some()), "")?;
    Ok(shape)
}

/// Makes `model` a mixture of recursions. It stores the ends, one block of the middle layers and
/// the routers, and shares no storage with `model`.
///
/// # Errors
/// When the layers do not make the recursions (saying which would do), or one of them is shared
/// already or groups its query heads unlike the layer it would share with.
pub fn convert(config: &Config, model: &Decoder, seed: Seed) -> Result<Decoder> {
    let shape = check(config, model)?;
    let mixture = &config.mixture;
    let layers = shape.num_hidden_layers;
    let sources = config.init.sources(mixture, layers);
    let mut bank = model.bank.deep_clone()?;
    for (name, _) in shape.weights() {
        let Some((depth, rest)) = layer_weight(&name) else { continue };
        let (Some(part), Some(j)) = (
            shape.recursion_part(&name),
            mixture.sharing.layer_at(depth, layers, mixture.recursions),
        ) else {
            continue;
        };
        if bank.stored_var(&part).is_err() {
            bank.insert(part.clone(), mean_weight(model, &sources[j], rest)?)?;
        }
        bank.share(&name, Entry::same(part))?;
    }
    for (name, dims) in shape.router_weights() {
        let mut v = vec![0f32; dims.iter().product()];
        seed.fork(&name, 0).normal(0, &mut v);
        v.iter_mut().for_each(|x| *x *= ROUTER);
        let drawn = Tensor::from_vec(v, dims, bank.device())?;
        bank.insert(name, drawn)?;
    }
    Ok(Decoder::new(shape, bank)?)
}

/// Layers that share keys must serve the same query heads with them.
fn check_groups(shape: &DecoderConfig) -> Result<()> {
    let groups = &shape.query_heads_per_kv_head;
    if groups.windows(2).all(|w| w[0] == w[1]) {
        return Ok(());
    }
    let reason = "differ from layer to layer, and layers that are passed again share their keys: \
                  use a model with equal groups";
    Err(Error::config("query_heads_per_kv_head", reason))
}

/// The method as the command line sees it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Mor;

impl Compress for Mor {
    type Config = Config;

    const SLUG: &'static str = "mor";
    const SUMMARY: &'static str =
        "fold the middle layers into one that each token passes as often as a router says (2025)";

    fn check(&self, config: &Config, model: &Decoder) -> Result<()> {
        check(config, model).map(drop)
    }

    fn share(&self, config: &Config, model: &Decoder, context: &mut Context<'_>) -> Result<Shared> {
        context.tick("fold", 0, 1)?;
        let made = convert(config, model, Seed::new(context.seed))?;
        let tables = vec![layer_table(config, model.config.num_hidden_layers)];
        Ok(Shared { model: made, tables })
    }

    fn healing<'a>(&self, config: &'a mut Config) -> &'a mut HealConfig {
        &mut config.heal
    }
}

/// Which layers were folded into which, counted from 0.
fn layer_table(config: &Config, layers: usize) -> Table {
    let mixture = &config.mixture;
    let list = |of: &[usize]| of.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let mut table =
        Table::new("Shared layers").columns(["layer", "made from layers", "passed at depths"]);
    for (j, made) in config.init.sources(mixture, layers).iter().enumerate() {
        let at = |d: &usize| mixture.sharing.layer_at(*d, layers, mixture.recursions) == Some(j);
        let depths: Vec<usize> = (0..layers).filter(at).collect();
        table.push(cells![j, list(made), list(&depths)]);
    }
    table
}
