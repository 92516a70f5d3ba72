//! What of candle may be used, and where.

use super::layers::at_dependency;
use super::{Breach, named};
use crate::tree::Tree;

const OPS: &str = "commons-ops";

/// Packages that depend on candle-core themselves: the kernels, and the layer that stores weights.
const ON_CANDLE: &[&str] = &[OPS, "commons-nn"];

/// Names from candle whose backward pass is missing or wrong in 0.11, and the reason.
const FAULTY: &[(&[&str], &str)] = &[
    (
        &["softmax_last_dim", "rotary_emb", "rms_norm_slow", "layer_norm_slow", "sdpa"],
        "candle drops its gradient without a word; use the one in commons-ops",
    ),
    (
        &[".scatter(", ".scatter_set(", ".scatter_add(", ".scatter_add_set("],
        "its gradient is wrong in candle; use commons_ops::scatter_add",
    ),
    (
        &[".upsample_nearest1d(", ".upsample_nearest2d(", ".upsample_bilinear2d("],
        "its backward pass overwrites gradients; write an op in commons-ops",
    ),
    (
        &[".conv_transpose1d(", ".conv_transpose2d("],
        "candle lacks its backward pass; use the one in commons-ops",
    ),
    (&[".backward("], "it misses gradients inside checkpoints; use commons_ops::backward"),
];

/// Rule `candle-behind-ops`.
pub fn behind_ops(tree: &Tree) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for package in &tree.packages {
        for dependency in &package.dependencies {
            let name = dependency.name.as_str();
            if !name.starts_with("candle-")
                || (name == "candle-core" && ON_CANDLE.contains(&package.name.as_str()))
            {
                continue;
            }
            let message = if name == "candle-core" {
                "reach tensors through commons-ops, which re-exports them".to_owned()
            } else {
                format!("`{name}` drops gradients and brings its own layers; use commons-ops")
            };
            breaches.push(at_dependency(tree, package, name, message));
        }
    }
    for file in tree.rust() {
        let names = ["candle_nn", "candle_transformers"];
        breaches.extend(named(file, &file.code, &names, "use commons-ops"));
    }
    breaches
}

/// Rule `gradients`.
pub fn gradients(tree: &Tree) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for file in tree.rust().filter(|file| file.package() != OPS) {
        for (names, why) in FAULTY {
            breaches.extend(named(file, &file.code, names, why));
        }
    }
    breaches
}
