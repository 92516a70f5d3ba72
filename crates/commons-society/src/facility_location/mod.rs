//! One point shared by everyone: nobody gains by lying, and every like-minded group gets a say in
//! proportion to its size.
//!
//! # Paper
//! Aziz, Lam, Lee, Walsh: *Strategyproof and Proportionally Fair Facility Location*,
//! arXiv:2111.01566 (2021); journal version in the Journal of Mathematical Economics (2025). No
//! official code was found.
//!
//! # Problem
//! A single number must be set (a threshold, a temperature, a budget split) from what many people
//! wish. The average can be pulled by exaggerating. The median cannot, but ignores all but the
//! majority: with 51 % at 0 and 49 % at 1 it is 0.
//!
//! # Method
//! Agents `1..n` have ideal points `x_i ∈ [0,1]`; the point `y` costs agent `i` `d_i = |x_i − y|`.
//! Total cost `TC = Σ d_i`, social welfare `SW = n − TC`.
//!
//! 1. *Uniform Phantom*: `y = median(x_1..x_n, 1/n, …, (n−1)/n)`, in `O(n log n)` as
//!    `y = max_k min(x_(k), (n−k+1)/n)`: the largest level that at least as large a part of the
//!    agents wants to reach.
//! 2. *Constrained median*: phantoms split evenly between `1/n` and `1 − 1/n`.
//! 3. Any phantoms of one's own; and to compare with: median, mean, midpoint, Nash welfare,
//!    dictator, constant ([`Mechanism`]).
//! 4. *Axioms* ([`axioms`]): unanimity; individual fair share `d_i ≤ 1 − 1/n`; proportionality;
//!    unanimous fair share `d_i ≤ 1 − s/n` for `s` agents at one point; proportional fairness
//!    `d_i ≤ 1 − s/n + r` for `s` agents within a range of `r`. A violated one comes with the set
//!    of agents that it wrongs most.
//! 5. *Strategyproofness* ([`manipulation`]): the best misreport of each agent; best-response
//!    dynamics of manipulable mechanisms.
//!
//! # Shared / kept apart
//! Shared: the point. Apart: each agent's ideal point, which only it knows, and its weight.
//!
//! # Claim
//! The Uniform Phantom is the only mechanism that is strategyproof and meets unanimous fair share
//! (equivalently proportional fairness); its worst welfare ratio, `max_k kn/(k² + (n−k)²)` with
//! the limit `(1+√2)/2 ≈ 1.207`, is the best of all that meet unanimous fair share; and the pure
//! Nash equilibria of every continuous, strictly monotone mechanism that meets it, such as the
//! average, yield the Uniform Phantom's point.
//!
//! # Here
//!
//! Measured on 2026-11-26T12:19:27Z with the recipe `full` (seed 0) in 2.15 s on AMD EPYC (2 threads, avx512, 23.5 GiB of memory,
//! of which 61.9 MiB were used), Commons 0.1.0.
//!
//! | claim                                                                                                                                                              | paper                                  |  measured | baseline | needed                       | found (95 % interval)              | verdict |
//! | ------------------------------------------------------------------------------------------------------------------------------------------------------------------ | -------------------------------------- | --------: | -------: | ---------------------------- | ---------------------------------- | ------- |
//! | of all anonymous strategyproof mechanisms of a grid exactly one meets unanimous fair share, and it is the Uniform Phantom                                          | 1                                      |         1 |          | 1 to 1                       | 1 (1 to 1)                         | holds   |
//! | those with unanimity and individual fair share are exactly those whose interior phantoms lie within 1/n to 1 − 1/n (share of the enumerated mechanisms told right) | theorem                                |         1 |          | ≥ 1                          | 1 (1 to 1)                         | holds   |
//! | no agent gains by a misreport under the Uniform Phantom (share of agents who could)                                                                                | theorem                                |         0 |          | ≤ 0                          | 0 (0 to 0)                         | holds   |
//! | at least half the agents could gain by a misreport under the average, none under the Uniform Phantom                                                               | the average is not strategyproof       |         0 |   0.7972 | ≤ baseline − 0.5             | -0.7972 (-0.809 to -0.7854)        | holds   |
//! | the Uniform Phantom never violates proportional fairness (share of random profiles)                                                                                | theorem                                |         0 |          | ≤ 0                          | 0 (0 to 0)                         | holds   |
//! | the median violates proportional fairness in a quarter of the profiles or more                                                                                     | the median is not fair (no rate given) |         0 |   0.2213 | ≤ baseline − 0.25            | -0.2213 (-0.2492 to -0.1935)       | fails   |
//! | the worst welfare ratio over a grid equals max_k kn/(k² + (n−k)²)                                                                                                  | theorem                                |     1.155 |    1.155 | 1 × baseline to 1 × baseline | 1 (1 to 1)                         | holds   |
//! | the worst welfare ratio of large electorates is (1+√2)/2                                                                                                           | 1.207                                  |     1.207 |          | 1.207 to 1.207               | 1.207 (1.207 to 1.207)             | holds   |
//! | no fair mechanism compared here (mean, Nash) has a better worst welfare ratio                                                                                      | theorem                                |     1.155 |    1.155 | ≤ baseline                   | 0 (0 to 0)                         | holds   |
//! | agents who answer each other's lies under the average end at the Uniform Phantom's point (largest distance)                                                        | 0                                      | 8.882e-17 |          | ≤ 1e-6                       | 8.882e-17 (5.107e-17 to 1.266e-16) | holds   |
//! | so they do under half average, half Uniform Phantom                                                                                                                | 0                                      | 2.939e-10 |          | ≤ 1e-6                       | 2.939e-10 (2.652e-10 to 3.226e-10) | holds   |
//! | committees of Adult rows: proportional fairness is violated at least five times as often by the median                                                             | none: our data                         |         0 |   0.0305 | ≤ 0.2 × baseline             | 0 (0 to 0)                         | holds   |
//!
//! # Differs
//! * Ours: weights. A coalition of share `s` can force the point up to `α(s)`; with equal weights
//!   that is the median with phantoms `α(k/n)`. The constrained median's band ends at the heaviest
//!   agent's share.
//! * Ours: several independent coordinates, budgets over more than two alternatives
//!   ([`markets::independent_markets`]), any interval by an affine map.
//! * `m` phantoms of one's own need not be `n − 1`: each then stands for one of `m + 1` equal parts
//!   of the electorate. With `m = n − 1` they are Moulin's.
//! * Locations are equal when they differ by at most 10⁻⁹ in `f64`, exactly in rationals.
//! * Theorems are tested by enumeration on grids in exact arithmetic, which can refute them but
//!   not prove them.
//!
//! # Use
//! ```
//! use commons_society::facility_location::{Mechanism, Profile, axioms, uniform_phantom};
//!
//! let x = [0., 0., 1.];
//! assert_eq!(uniform_phantom(&x)?, 1. / 3.);
//! let profile = Profile::new(x.to_vec())?;
//! let median = Mechanism::Median.outcome(&profile)?;
//! let wronged = axioms::ifs(&profile, &median).unwrap_err();
//! assert_eq!(wronged.agents, [2]); // it stands at 1, and the median is 0
//! # Ok::<(), commons_society::Error>(())
//! ```

pub mod axioms;
mod enumeration;
mod evidence;
mod generate;
pub mod groups;
pub mod manipulation;
pub mod markets;
mod mechanism;
mod nash;
mod profile;
mod scalar;
#[cfg(test)]
mod tests;
pub mod welfare;

pub use axioms::{Axiom, Witness};
pub use enumeration::{Survivors, strategyproof_on_grid, survivors};
pub use evidence::Evidence;
pub use generate::Spread;
pub use manipulation::{Deviation, Equilibrium, best_deviation};
pub use mechanism::Mechanism;
pub use num_rational::BigRational;
pub use profile::{Cluster, Profile, in_unit};
pub use scalar::Scalar;

use crate::Result;

/// The Uniform Phantom's point for agents of equal weight, in any [`Scalar`].
///
/// # Errors
/// When there are no agents, or a position is not in [0, 1].
pub fn uniform_phantom<T: Scalar>(x: &[T]) -> Result<T> {
    Mechanism::UniformPhantom.outcome(&Profile::new(x.to_vec())?)
}
