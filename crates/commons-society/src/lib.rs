//! Resources and outcomes shared among people and agents: one point for many wishes, a shortlist
//! from many rankings, samples and decisions spread over groups.
//!
//! One folder per method, each with its paper, its mathematics, its code, its recipe and what was
//! measured; [`METHODS`] lists them. No tensor engine: the crate builds and tests in seconds.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod adaptive_sampling;
pub mod aranyani;
mod conic;
pub mod csv_input;
mod error;
pub mod facility_location;
mod linear;
mod logistic;
pub mod multiwinner_subset;
pub mod pid_fairness;
pub mod tabular;

pub use error::{Error, Result};

use commons_core::evidence::Method;

/// Every method of this crate, by slug.
pub const METHODS: &[&dyn Method] = &[
    &adaptive_sampling::Evidence,
    &aranyani::Evidence,
    &facility_location::Evidence,
    &multiwinner_subset::Evidence,
    &pid_fairness::Evidence,
];
