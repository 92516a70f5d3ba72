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
//! Not measured yet.
//!
//! # Differs
//! * Bytes and models of a few million parameters instead of FineWeb-Edu and 135 M to 1.7 B.
//! * A recursion that takes all its candidates has nothing to learn: it adds no term to the
//!   auxiliary loss.
//! * Routers are linear; there is no warm-up of the capacities, no balance by a bias, no update of
//!   shared keys by later recursions.
//! * Losses are of threshold routing; what full-sequence top-k would give is shown beside them.
//!
//! # Use
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

mod evidence;
mod flops;
pub mod study;
#[cfg(test)]
mod tests;

pub use evidence::Evidence;
pub use flops::training_flops;
