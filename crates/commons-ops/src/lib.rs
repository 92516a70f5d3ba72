//! Tensors that train fast: differentiable operations on candle tensors with fused `f32` CPU
//! kernels, forward and backward.
//!
//! Every operation takes and returns [`Tensor`]s. On the CPU in `f32` it runs one fused kernel
//! each way; for other types and devices it runs the same mathematics as a candle graph
//! ([`composed`]). Gradients come from [`backward`], which also collects what [`checkpoint`]ed
//! segments produce.
//!
//! Layout: activations are `[batch, seq, hidden]`, heads `[batch, seq, heads, head_dim]`, weights
//! `[out, in]`. Inputs may be strided views; no operation asks for a transpose.
//!
//! Results do not depend on the number of threads: work is cut into pieces of fixed size and
//! partial sums are added in a fixed order.
#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)
)]

pub mod arithmetic;
pub mod attention;
mod check;
pub mod checkpoint;
pub mod composed;
mod conv;
pub mod elementwise;
pub mod grads;
pub mod linear;
pub mod loss;
pub mod norm;
pub mod optim;
mod par;
pub mod rope;
pub mod share;
mod slices;
mod tape;
#[cfg(test)]
mod testing;
mod view;

pub use arithmetic::{add, mse, scale, sum};
pub use attention::{AttentionOptions, attention};
pub use checkpoint::checkpoint;
pub use conv::{ConvOptions, conv_transpose1d, conv_transpose2d, conv1d, conv2d};
pub use elementwise::{
    Activation, activation, embedding, geglu, gelu, gelu_tanh, relu, sigmoid, silu, swiglu, tanh,
};
pub use grads::{Grads, backward, no_grad};
pub use linear::{linear, linear_act, lora_linear};
pub use loss::{LossOptions, cross_entropy, linear_cross_entropy, linear_kl};
pub use norm::{layer_norm, log_softmax, rms_norm, softmax};
pub use rope::{RopeScaling, rope, rope_tables};
pub use share::{HashedLayout, hashed, noise_sum, weighted_sum};

pub use candle_core::{DType, Device, Error, Result, Shape, Storage, Tensor, Var};
