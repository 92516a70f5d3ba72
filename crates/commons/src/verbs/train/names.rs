//! What options call things.

use clap::ValueEnum;
use serde::Serialize;

/// Routers by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum RouterName {
    /// Each recursion takes the tokens with the highest scores.
    Expert,
    /// Each token takes a depth.
    Token,
    /// Chance: the baseline.
    Random,
}

/// Ways to share layers by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum SharingName {
    /// The whole stack again and again.
    Cycle,
    /// Every layer several times in a row.
    Sequence,
    /// Cycle between a first and a last layer of their own.
    MiddleCycle,
    /// Sequence between a first and a last layer of their own.
    MiddleSequence,
}

/// Caches of recursions by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum CacheName {
    /// Those of the tokens that take part in it.
    Recursion,
    /// Those of the first recursion.
    Shared,
}

/// Optimisers by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum OptimizerName {
    /// Adam with decoupled weight decay.
    #[serde(rename = "adamw")]
    #[value(name = "adamw")]
    AdamW,
    /// Gradient descent with momentum.
    Sgd,
    /// Orthogonalised momentum for hidden matrices, AdamW for the rest.
    Muon,
    /// Small state: row and column moments.
    Adafactor,
    /// No backward pass: two forward passes along a seeded direction.
    ZeroOrder,
}
