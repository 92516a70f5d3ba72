//! One block with a mixture of experts for all layers, each of which keeps its own norms.
//!
//! # Paper
//! *Go Wider Instead of Deeper*, Xue et al., AAAI 2022,
//! [arXiv 2107.11817](https://arxiv.org/abs/2107.11817).
//!
//! # Problem
//! A block shared by all layers (ALBERT) is small but weak: capacity is lost with the parameters.
//! Width inside the shared block, of which a token uses little, gives capacity back.
//!
//! # Method
//! One attention `MHA_θ` and one mixture `MoE_φ` serve all `L` layers; norms are the layer's own,
//!
//! ```text
//! (1)  x' = x + MHA_θ(LN¹_ℓ(x)),     x ← x' + MoE_φ(LN²_ℓ(x')),     ℓ = 1 … L,
//! (2)  p = softmax(W x + ε),  ε ~ N(0, 1/E²) while training,
//!      MoE(x) = Σ_{e ∈ TopK(p)} p_e FFN_e(x),   weights not divided by their sum,
//! (3)  an expert takes C = ⌊c K T / E⌋ of the T tokens' choices while training, first choices
//!      before second, in the order of tokens; the others are dropped,
//! (4)  loss = task + α Σ_ℓ E Σ_e m_e P_e,
//! ```
//!
//! with `m_e` the share of choices that fall on `e` and `P_e` its mean probability. Norms of its own
//! show the one router every layer in another scale, so a token may take other experts at other
//! depths. A group of consecutive layers may have a block of its own ([`EncoderConfig::groups`]).
//!
//! # Shared / kept apart
//! Shared: attention, router and experts, stored as `bank.widenet.{group}.…`, to which plan entries
//! of kind `same` point from `layers.{l}.…`; with `share_norms` the norms too. Kept apart: norms of
//! every layer (`4d` parameters), embeddings and head. The gradient of a shared weight is the sum
//! over depth.
//!
//! # Claim
//! On ImageNet-1K better than ViT by 1.5 points with 0.72 of its parameters, and by 0.8 with 0.46
//! (abstract); better than ALBERT by 1.8 % on four tasks; shared norms are worse.
//!
//! # Here
//!
//! Measured on 2026-11-27T13:33:37Z with the recipe `full` (seed 0) in 27 min 24 s on AMD EPYC (2 threads, avx512, 23.5 GiB of memory,
//! of which 663 MiB were used), Commons 0.1.0.
//!
//! | claim                                                                     | paper                                                         | measured | baseline | needed            | found (95 % interval)             | verdict             |
//! | ------------------------------------------------------------------------- | ------------------------------------------------------------- | -------: | -------: | ----------------- | --------------------------------- | ------------------- |
//! | on images, more accurate than the block shared without experts, norms too | part of the ablation (no figure checked)                      |   0.3395 |   0.3382 | ≥ baseline        | 0.001333 (-0.006652 to 0.009319)  | holds (not settled) |
//! | on images, within two points of a transformer that shares nothing         | +0.8 points at 0.46 of the parameters, ImageNet-1K (abstract) |   0.3395 |   0.3578 | ≥ baseline − 0.02 | -0.01833 (-0.04446 to 0.00779)    | holds (not settled) |
//! | with at most 0.72 of its parameters                                       | 0.72                                                          |  200 554 |  460 714 | ≤ 0.72 × baseline | 0.4353 (0.4353 to 0.4353)         | holds               |
//! | norms of its own in every layer are no worse than shared ones             | shared norms are worse (ablation, no figure checked)          |   0.3395 |   0.3408 | ≥ baseline        | -0.001333 (-0.006934 to 0.004267) | fails (not settled) |
//! | with them more tokens visit another expert at another depth               | the paper's reason for them, not measured there               |   0.8122 |   0.8296 | ≥ baseline        | -0.01743 (-0.04143 to 0.006575)   | fails (not settled) |
//! | hidden bytes are found better than by the block shared without experts    | +1.8 % over ALBERT on four tasks (abstract)                   |    2.924 |     2.91 | ≤ baseline        | 0.01404 (-0.01264 to 0.04072)     | fails (not settled) |
//!
//! # Differs
//! * A network of some hundred thousand parameters on CIFAR-10 without augmentation, and on bytes:
//!   AdamW, not LAMB; no dropout, no representation layer before the head, mean of the patches and
//!   no class token.
//! * On text, 15 % of the bytes are hidden as in BERT and found again; no order of sentences, no
//!   fine-tuning.
//! * Scoring has no capacity: otherwise the images of a batch would change each other's results.
//! * Oddities of the released code are not copied: a second GELU after the experts, one place fewer
//!   than `C`, and its test for dropped tokens.
//! * Weights are drawn from a whole normal, not a truncated one, output projections like the others.
//! * The verb `train` makes decoders only; encoders, groups of layers and shared norms are of the
//!   library and the recipe. Where tokens go is a table in the report, for images of the first seed.
//! * Figures of the ablations were not checked against the paper and are marked so.
//!
//! # Use
//! `commons train --arch mini --experts 4 --active-experts 2 --share-layers -o widenet` trains a
//! decoder of this kind, with RMSNorm and gated experts. The rest of (2) and (3) is
//! `--set mixture_of_experts.norm_topk_prob=false`, and likewise `capacity_factor=1.2`,
//! `router_noise=0.25` and, for experts as wide as the feed-forward part, `moe_intermediate_size`. The encoder of the study:
//!
//! ```
//! use commons_core::Seed;
//! use commons_ops::{Device, Tensor};
//! use commons_weights::widenet::{EncoderConfig, Input, Phase, WideVit};
//!
//! let config = EncoderConfig { hidden_size: 32, intermediate_size: 64, ..Default::default() };
//! let input = Input { channels: 1, side: 16, patch: 4, classes: 10 };
//! let vit = WideVit::init(config, input, Seed::new(0))?;
//! let images = Tensor::zeros((2, 1, 16, 16), commons_ops::DType::F32, &Device::Cpu)?;
//! let (scores, encoded) = vit.forward(&images, Phase::Eval)?;
//! assert_eq!(scores.dims(), [2, 10]);
//! assert_eq!(encoded.layers.len(), 6);
//! # Ok::<(), commons_weights::Error>(())
//! ```

mod encoder;
mod evidence;
pub mod routes;
pub mod study;
#[cfg(test)]
mod tests;
mod text;
mod vision;

pub use encoder::{Encoded, Encoder, EncoderConfig, ExpertsConfig, Phase, layer_norm};
pub use evidence::Evidence;
pub use text::{Hidden, WideBert};
pub use vision::{Input, WideVit};
