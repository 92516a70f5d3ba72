//! The work of a batch is shared in equal parts by groups of experts: every token takes as many
//! experts of one group as of any other.
//!
//! # Paper
//! *Pangu Pro MoE: Mixture of Grouped Experts for Efficient Sparsity*, 2025,
//! [arXiv 2505.21411](https://arxiv.org/abs/2505.21411).
//!
//! # Problem
//! Experts are spread over devices. With top-K routing a batch loads them unevenly, and all wait
//! for the busiest.
//!
//! # Method
//! `N` experts in `M` groups of consecutive ones, a group per device; a token takes `K' = K/M` of
//! each:
//!
//! ```text
//! (1)  S = softmax(Wᵀ h) over all N experts,
//! (2)  G'_i = S_i if i is among the K' largest of its group (ties to the lower index), else 0,
//! (3)  y = Σ_i G'_i E_i(h) + shared expert,    weights not divided by their sum,
//! (4)  IS(X) = (max_i T_i − min_i T_i) / |X|,   T_i: assignments on device i of the tokens X,
//! (5)  loss = task + α Σ_layers Σ_i f_i p_i,    f_i = N/(K|X|) · times i was chosen, p_i mean S_i.
//! ```
//!
//! Every device computes exactly `K'|X|` assignments, so IS is 0 for any batch. (5) balances experts
//! inside groups; it is 1 when both factors are uniform. Plain top-K is `M = 1` with weights
//! `softmax(TopK(Wᵀh))`.
//!
//! # Shared / kept apart
//! Shared: attention, router and shared expert by all tokens, and the work by all groups. Kept
//! apart: the experts. Nothing is tied; rows are sorted by expert, so the rows of a group are one
//! piece of the buffer ([`commons_ops::Dispatch`]).
//!
//! # Claim
//! IS = 0 against IS > 0 with probability close to 1 (64 experts, 8 taken, 8 devices, 16 tokens); the
//! largest difference of execution times between devices falls by more than half.
//!
//! # Here
//!
//! Measured on 2026-11-27T05:15:42Z with the recipe `full` (seed 0) in 4 min 11 s on AMD EPYC (2 threads, avx512, 23.5 GiB of memory,
//! of which 299 MiB were used), Commons 0.1.0.
//!
//! | claim                                                                                        | paper                                               | measured | baseline | needed            | found (95 % interval)    | verdict             |
//! | -------------------------------------------------------------------------------------------- | --------------------------------------------------- | -------: | -------: | ----------------- | ------------------------ | ------------------- |
//! | in a trained decoder the imbalance score of groups is 0                                      | 0                                                   |        0 |          | ≤ 0               | 0 (0 to 0)               | holds               |
//! | with 64 experts, 8 taken, 8 devices and 16 tokens top-K is practically never balanced        | probability of IS > 0 close to 1                    |        1 |          | ≥ 0.99            | 1 (1 to 1)               | holds               |
//! | test loss is within a hundredth of that of top-K with as many parameters                     | ours; the paper reports whole models                |    1.936 |     1.89 | ≤ 1.01 × baseline | 1.024 (1.006 to 1.043)   | fails (not settled) |
//! | test loss is within a hundredth of that of top-K whose weights, as in groups, keep their sum | not in the paper                                    |    1.936 |    1.974 | ≤ 1.01 × baseline | 0.9821 (0.8962 to 1.068) | holds (not settled) |
//! | one thread per group finishes a batch no later than with top-K                               | direction only                                      |     4.78 |    4.932 | ≤ 1 × baseline    | 0.9697 (0.8927 to 1.047) | holds (not settled) |
//! | the time that the first thread waits for the last is at most half of that with top-K         | largest difference between devices more than halved |   0.3486 |   0.4258 | ≤ 0.5 × baseline  | 0.8308 (0.5782 to 1.083) | fails               |
//!
//! # Differs
//! * A decoder of two million parameters over bytes instead of 72 billion; devices are threads of
//!   this machine, each with a pool of one thread, and nothing is sent.
//! * `α` is 0.01 for both routers; the part of the report that we read does not give it. Experts
//!   are SwiGLU with no bias.
//! * Top-K divides the weights of a token by their sum, as is usual, and groups do not, as in the
//!   paper: what a group costs by itself is shown beside top-K with weights as they are.
//! * The paper's numbers of experts are only simulated: independent scores, and Zipf's law.
//! * Routers that limit a token to some devices, that let experts choose, or that are balanced by a
//!   bias are not among the baselines; routing is simulated, not read from a trace.
//! * Batches of 16 to 1024 tokens weigh the same in the mean of times.
//! * No re-grouping of a trained top-K router, and no loss per group in place of (5).
//!
//! # Use
//! `commons train --arch mini --experts 16 --active-experts 4 --expert-groups 2 -o moge` trains a
//! decoder so ([`MixtureOfExperts`](commons_nn::model::MixtureOfExperts)). Routing by itself:
//!
//! ```
//! use commons_core::Seed;
//! use commons_ops::{Dispatch, Selection};
//! use commons_weights::moge::{imbalance, scores};
//!
//! let scores = scores(Seed::new(0), 16, 64, 0.);
//! let grouped = Selection { experts: 64, active: 8, groups: 8 };
//! let dispatch = Dispatch::new(grouped, &scores, None, None)?;
//! assert_eq!(imbalance(&dispatch, 8)?, 0.);
//! let plain = Dispatch::new(Selection::top_k(64, 8), &scores, None, None)?;
//! assert!(imbalance(&plain, 8)? > 0.);
//! # Ok::<(), commons_weights::Error>(())
//! ```

mod devices;
mod evidence;
mod imbalance;
pub mod study;
#[cfg(test)]
mod tests;

pub use devices::{Devices, Step};
pub use evidence::Evidence;
pub use imbalance::{Simulated, busiest, device_loads, imbalance, scores, simulate};
