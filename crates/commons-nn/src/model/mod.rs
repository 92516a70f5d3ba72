//! Models over the bank: decoders, encoders and image classifiers.

mod bert;
mod config;
mod decoder;
mod io;
mod kv;
mod vit;

pub use bert::{Bert, BertConfig};
pub use config::{DecoderConfig, Family, LayerType};
pub use decoder::{BLOCK_MATRICES, Decoder, Rotary, ids_tensor, layer_prefix};
pub use io::{Loaded, SaveFormat};
pub use kv::KvCache;
pub use vit::{Vit, VitConfig};
