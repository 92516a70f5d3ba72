//! Shared layers that every token passes as often as a router says.
//!
//! # Paper
//! *Mixture-of-Recursions: Learning Dynamic Recursive Depths for Adaptive Token-Level Computation*,
//! 2025, [arXiv 2507.10524](https://arxiv.org/abs/2507.10524).
//!
//! # Problem
//! Passing one block of layers several times saves parameters, not arithmetic: easy tokens are
//! passed as often as hard ones, and keys and values are kept of every pass.
//!
//! # Method
//! Of `L` layers the first and the last stay as they are; the middle ones are one block `Φ` of
//! `(L − 2)/N` layers, passed up to `N` times. With expert choice, recursion `r` takes the `k_r`
//! tokens with the highest scores among those of recursion `r − 1`:
//!
//! ```text
//! (1)  z_t = θ_r · H_t,   g_t = α σ(z_t),   k_r = max(1, ⌊c_r T⌋),   c_r = (N − r + 1)/N
//! (2)  H_t ← H_t + g_t Φ(H)_t   if t is taken, else H_t
//! ```
//!
//! `Φ` runs over the taken tokens only, at their own rotary positions, each seeing the taken tokens
//! before it. The highest scores of a sequence are not known before its end; so a loss
//! `0.001 · BCE(z_t, taken)` pulls the scores of taken tokens above one half, and without the whole
//! sequence a token is taken if `σ(z_t) ≥ 1/2`. With token choice the router sees the token once and
//! says a depth `i`, `p = softmax(θ H_t)`:
//!
//! ```text
//! (3)  H_t ← H_t + p_i Φ^i(H)_t,   loss 0.1 · N Σ_i f_i P_i  for even depths.
//! ```
//!
//! # Shared / kept apart
//! Shared: the block among recursions (`bank.recursion.*`, a plan of `same`), and if asked for the
//! keys and values of the first recursion. Kept apart: first and last layer, routers, and otherwise
//! keys and values of each recursion, which hold only the tokens that took part:
//!
//! ```text
//! cache / cache of L layers = (N + 1)/(2N)  of each recursion,   1/N  shared.
//! ```
//!
//! # Claim
//! At equal training arithmetic better than the plain model (validation loss 2.7511 against 2.7824
//! at 360 M) and than plain recursion, with half the parameters; expert choice better than token
//! choice. At 135 M the plain model stays ahead.
//!
//! # Here
//!
//! Measured on 2026-11-27T06:35:33Z with the recipe `full` (seed 0) in 15 min 19 s on AMD EPYC (2 threads, avx512, 23.5 GiB of memory,
//! of which 2.25 GiB were used), Commons 0.1.0.
//!
//! | claim                                                                                                                           | paper                                                   |  measured |  baseline | needed                             | found (95 % interval)          | verdict             |
//! | ------------------------------------------------------------------------------------------------------------------------------- | ------------------------------------------------------- | --------: | --------: | ---------------------------------- | ------------------------------ | ------------------- |
//! | at equal training arithmetic, expert choice reaches a lower loss than the plain model                                           | 2.7511 against 2.7824 (360M, N = 2, 16.5e18 operations) |     2.083 |     2.182 | ≤ baseline                         | -0.09912 (-0.1875 to -0.01073) | holds               |
//! | at equal training arithmetic, expert choice reaches a lower loss than plain recursion                                           | direction                                               |     2.083 |     2.206 | ≤ baseline                         | -0.1231 (-0.1686 to -0.07756)  | holds               |
//! | at equal training arithmetic, expert choice reaches a lower loss than a plain model of as many parameters                       | direction                                               |     2.083 |     1.958 | ≤ baseline                         | 0.1249 (0.08964 to 0.1602)     | fails               |
//! | expert choice reaches a lower loss than depths by chance                                                                        | direction                                               |     2.083 |     2.105 | ≤ baseline                         | -0.02211 (-0.06647 to 0.02225) | holds (not settled) |
//! | expert choice reaches a lower loss than token choice                                                                            | 42.6 % against 40.0 % few-shot (N = 3)                  |     2.083 |     2.053 | ≤ baseline                         | 0.03008 (-0.007355 to 0.06751) | fails (not settled) |
//! | a threshold on a token's own score says what the highest scores of the sequence say                                             | not given                                               |    0.9419 |           | ≥ 0.9                              | 0.9419 (0.9299 to 0.9538)      | holds               |
//! | threshold routing costs less than 1 % of the loss of full-sequence expert choice                                                | direction                                               |     2.088 |     2.088 | ≤ 1.01 × baseline                  | 1 (0.9989 to 1.001)            | holds               |
//! | with threshold routing, the auxiliary loss lowers the loss                                                                      | direction                                               |     2.083 |      2.08 | ≤ baseline                         | 0.003113 (-0.02574 to 0.03197) | fails (not settled) |
//! | between first and last layer, keys and values of each recursion take (N + 1)/(2N) of the plain model's                          | 0.6667                                                  |   738 304 | 1 179 648 | 0.6 × baseline to 0.73 × baseline  | 0.6259 (0.5756 to 0.6761)      | holds (not settled) |
//! | between first and last layer, shared keys and values take 1/N of the plain model's                                              | 0.3333                                                  |   393 216 | 1 179 648 | 0.33 × baseline to 0.34 × baseline | 0.3333 (0.3333 to 0.3333)      | holds               |
//! | a training step takes less time per token than the plain model's                                                                | 0.81 × (N = 2)                                          | 0.0001557 |  0.000218 | ≤ 1 × baseline                     | 0.7211 (0.3371 to 1.105)       | holds (not settled) |
//! | with four fifths of the plain model's training arithmetic, expert choice reaches its loss                                       | 25 % fewer operations (N = 2, 20e9 tokens)              |     2.159 |     2.182 | ≤ baseline                         | -0.02328 (-0.08954 to 0.04299) | holds (not settled) |
//! | that training takes less wall time than the plain model's                                                                       | 19 % less time (N = 2, 20e9 tokens)                     |     16.94 |     22.28 | ≤ 1 × baseline                     | 0.7598 (0.7283 to 0.7912)      | holds               |
//! | a trained model reads a text in less time per token than the plain model                                                        | direction                                               |  8.395e-5 | 0.0001046 | ≤ 1 × baseline                     | 0.8153 (0.5331 to 1.098)       | holds (not settled) |
//! | every part of a short training lowers the loss of a converted pretrained decoder: the largest ratio of a loss to the one before | direction                                               |    0.9856 |           | ≤ 1                                | 0.9856                         | holds (one seed)    |
//!
//! - Depth of each byte, expert choice: `···=·Robert·<unk>·=·····Robert·<unk>·is·an·Engli` `313132111223111113131313211122311111312312312222`. Deepest on the mean: · 2.8, h 2.8, s 2.0, t 2.0, r 1.9, n 1.8. Shallowest: a 1.0, e 1.1, o 1.2, u 1.3, l 1.5, i 1.7.
//!
//! # Differs
//! * Bytes and models of a few million parameters instead of FineWeb-Edu and 135 M to 1.7 B.
//! * A recursion that takes all its candidates has nothing to learn: it adds no term to the
//!   auxiliary loss.
//! * Routers are linear; there is no warm-up of the capacities, no balance by a bias, no update of
//!   shared keys by later recursions.
//! * A pretrained model is converted by folding its middle layers ([`convert`]); what its layers add
//!   is then scaled by `α σ` of a router that has learnt nothing, so it has to learn much again.
//! * Depths by chance are drawn from position and byte alike for all seeds, so that reading with a
//!   cache agrees with reading at once: they do not change from step to step.
//! * Claims on the cache are about the layers between first and last, which are passed again.
//! * Shares in each recursion are those of a trained model, not over training; routers' entropy is
//!   not recorded, token choice has no variant with `σ` or `tanh` in place of the softmax.
//! * Losses are of threshold routing; what full-sequence top-k would give is shown beside them.
//!
//! # Use
//! `commons train --arch mini --recursions 3 -o mor` trains a new model,
//! `commons compress --method mor --recursions 2` folds a pretrained one. In Rust:
//!
//! ```
//! use commons_core::Seed;
//! use commons_nn::model::{Decoder, DecoderConfig, MixtureOfRecursions, ids_tensor};
//!
//! let mut config = DecoderConfig::llama(64, 32, 8, 4, 2, 48);
//! config.mixture_of_recursions =
//!     Some(MixtureOfRecursions { recursions: 3, ..MixtureOfRecursions::default() });
//! let model = Decoder::init(config, Seed::new(0))?;
//! let ids = ids_tensor(&[&[1, 2, 3, 4, 5, 6, 7]], &model.bank)?;
//! let step = model.routed_loss(&ids, false)?;
//! assert_eq!(step.routed.active.iter().map(|rows| rows[0].len()).collect::<Vec<_>>(), [6, 4, 2]);
//! # Ok::<(), commons_nn::Error>(())
//! ```

pub mod conversion;
mod convert;
mod evidence;
mod flops;
pub mod study;
#[cfg(test)]
mod tests;

pub use convert::{Config, Init, Mor, convert};
pub use evidence::Evidence;
pub use flops::training_flops;
