//! The model that the program carries: a decoder of 1.1 million parameters over bytes, trained by
//! `assets/tiny/recipe.toml` on the corpus that the program writes itself.

use commons_nn::hub::{EmbeddedFile, Kind, register_embedded};

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_bytes!(concat!("../assets/tiny/", $name)))),*]
    };
}

const TINY: &[EmbeddedFile] = files![
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
];

/// Makes the embedded model known under its name.
pub fn register() {
    register_embedded(Kind::Model, crate::model::EMBEDDED, TINY);
}
