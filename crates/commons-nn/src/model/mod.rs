//! Models over the bank: decoders, encoders and image classifiers.

mod bert;
mod config;
mod decoder;
mod experts;
mod groups;
mod io;
mod kv;
mod mixture;
#[cfg(test)]
mod mixture_tests;
pub mod moe;
mod mor;
#[cfg(test)]
mod mor_tests;
mod recursion;
mod resnet;
mod router;
mod streams;
mod vit;

pub use bert::{Bert, BertConfig};
pub use config::{DecoderConfig, Family, LayerType, ParallelStreams};
pub use decoder::{BLOCK_MATRICES, Decoder, Rotary, ids_tensor, layer_prefix};
pub use experts::{EXPERTS_KEY, MixtureOfExperts, SHARE_LAYERS_KEY};
pub use groups::{GROUPS_KEY, key_heads};
pub use io::{Loaded, SaveFormat};
pub use kv::KvCache;
pub use mixture::{ExpertsLoss, ExpertsPass, MoePhase, TrainingLoss};
pub use mor::{Routed, RoutedLoss, RoutedTimes, Routing};
pub use recursion::{
    MixtureOfRecursions, RECURSION_KEY, RecursionCache, RecursionGate, RecursionSharing,
    RouterKind, ThresholdSource,
};
pub use resnet::{Mode, ResNet, ResNetConfig, is_running_statistic};
pub use streams::smooth;
pub use vit::{Vit, VitConfig};
