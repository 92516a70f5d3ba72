//! placeholder
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]
mod conv;
mod slices;

pub use conv::{ConvOptions, conv_transpose1d, conv_transpose2d, conv1d, conv2d};
