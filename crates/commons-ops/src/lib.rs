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
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs))]

pub mod arithmetic;
pub mod attention;
pub mod batch_norm;
mod check;
pub mod checkpoint;
pub mod combine;
pub mod composed;
pub mod conv;
pub mod einsum;
pub mod elementwise;
pub mod fold;
pub mod gate;
pub mod grads;
pub mod index;
pub mod linear;
pub mod loss;
mod matmul;
pub mod moe;
pub mod norm;
pub mod optim;
mod par;
pub mod pool;
pub mod rope;
pub mod share;
pub mod simd;
mod slices;
pub mod streams;
mod tape;
#[cfg(test)]
mod testing;
mod view;

pub use arithmetic::{add, mse, scale, sum};
pub use attention::{AttentionOptions, attention};
pub use batch_norm::{batch_norm, batch_norm_eval, batch_norm_relu, group_norm};
pub use checkpoint::checkpoint;
pub use combine::weighted_sum;
pub use conv::{ConvOptions, conv_transpose1d, conv_transpose2d, conv1d, conv2d};
pub use einsum::einsum;
pub use elementwise::{
    Activation, activation, embedding, geglu, gelu, gelu_tanh, relu, sigmoid, silu, swiglu, tanh,
};
pub use fold::{FoldedLayout, folded};
pub use gate::gated_add;
pub use grads::{Grads, backward, no_grad};
pub use index::{
    argmax, cumsum, gather, index_add, index_select, one_hot, scatter_add, segment_sum, top_k,
};
pub use linear::{linear, linear_act, lora_linear};
pub use loss::{
    DistillOptions, Distilled, LossOptions, cross_entropy, linear_cross_entropy, linear_distill,
    linear_kl,
};
pub use moe::{Dispatch, Expert, MoeTimes, Selection, gates, moe, router_balance};
pub use norm::{layer_norm, log_softmax, rms_norm, softmax};
pub use pool::{
    PoolOptions, adaptive_avg_pool2d, avg_pool2d, global_avg_pool2d, global_max_pool2d, max_pool2d,
    upsample_nearest2d,
};
pub use rope::{RopeScaling, rope, rope_tables};
pub use share::{HashedLayout, hashed, noise_sum};
pub use streams::{interleave, mix, prepend};

pub use candle_core::{DType, Device, Error, Result, Shape, Storage, Tensor, Var};
