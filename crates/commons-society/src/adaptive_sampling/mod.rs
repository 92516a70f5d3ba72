//! A budget of samples shared among groups, so that a model serves them equitably, with learning
//! curves that are found out on the way.
//!
//! # Paper
//! Cai, Encarnacion, Chern, Corbett-Davies, Bogen, Bergman, Goel: *Adaptive Sampling Strategies to
//! Construct Equitable Training Datasets*, FAccT 2022, arXiv:2202.01327. No official code was
//! found; the abstract is the authority, "Differs" names what is ours.
//!
//! # Problem
//! Sampling everybody in proportion leaves small groups with poor models; sampling all groups
//! equally wastes samples where a model already does well. The best split depends on how fast the
//! loss of each group falls, which nobody knows before collecting.
//!
//! # Method
//! Groups g with cost `c_g`, budget B, loss `ℓ_g(n) = e_g + a_g n^(−b_g)` after n samples.
//! 1. *Plan* ([`plan`]). `max U(perf)` s.t. `Σ c_g n_g ≤ B`, `n_g ≥ owned_g`, `perf_g = top − ℓ_g`.
//!    Utilitarian: `n_g = (w_g a_g b_g/(λ c_g))^(1/(1+b_g))` with λ by bisection. Max-min: losses
//!    equalised. CES `(Σ w perf^ρ)^(1/ρ)` and gap utilities: a programme over power and exponential
//!    cones.
//! 2. *Fit* ([`fit`]). `(e, a, b)` by weighted least squares with `e ≥ 0`, `a > 0`,
//!    `b ∈ [0.05, 2]`; exponents of groups are pulled towards the shared one.
//! 3. *Adapt* ([`AdaptiveSampler`]). Warm-up; then again and again: fit, plan the whole budget,
//!    collect one batch for the group furthest behind its plan. Where a mean is estimated the
//!    curve is `σ̂²/n`.
//!
//! # Shared / kept apart
//! Shared: the budget, and the exponent towards which curves are pulled. Apart: every group's
//! samples, curve and model.
//!
//! # Claim
//! Adaptive sampling beats equal and proportional sampling in a simulation of polygenic scores,
//! and attains the optimum without knowing the rates (abstract; it states no number).
//!
//! # Here
//!
//! Measured on 2026-11-26T11:56:46Z with the recipe `full` (seed 0) in 3 min 15 s on AMD EPYC (2 threads, avx512, 23.5 GiB of memory,
//! of which 207 MiB were used), Commons 0.1.0.
//!
//! | claim                                                                                 | paper                         | measured | baseline | needed            | found (95 % interval)           | verdict             |
//! | ------------------------------------------------------------------------------------- | ----------------------------- | -------: | -------: | ----------------- | ------------------------------- | ------------------- |
//! | with unknown variances, adaptive sampling comes within 2 % of knowing them            | attains the optimum (theorem) |  0.01964 |   0.0196 | ≤ 1.02 × baseline | 1.002 (1.002 to 1.002)          | holds               |
//! | polygenic scores: mean R² over groups is no lower than by equal sampling              | direction only (abstract)     |   0.2787 |   0.3002 | ≥ baseline        | -0.02154 (-0.04761 to 0.004533) | fails (not settled) |
//! | polygenic scores: mean R² over groups is higher than by proportional sampling         | direction only (abstract)     |   0.2787 |   0.2105 | ≥ baseline        | 0.06812 (0.03826 to 0.09799)    | holds               |
//! | polygenic scores: R² of the worst-off group is no lower than by equal sampling        | direction only (abstract)     |   0.2588 |   0.2662 | ≥ baseline        | -0.007482 (-0.03279 to 0.01783) | fails (not settled) |
//! | polygenic scores: R² of the worst-off group is higher than by proportional sampling   | direction only (abstract)     |   0.2588 |  0.09037 | ≥ baseline        | 0.1684 (0.1217 to 0.2151)       | holds               |
//! | coalescent genomes: R² of the worst-off group is no lower than by equal sampling      | direction only (abstract)     |  0.09931 |  0.09479 | ≥ baseline        | 0.00452 (-0.02804 to 0.03708)   | holds (not settled) |
//! | coalescent genomes: R² of the worst-off group is higher than by proportional sampling | direction only (abstract)     |  0.09931 |  0.03093 | ≥ baseline        | 0.06838 (0.03513 to 0.1016)     | holds               |
//!
//! # Differs
//! * Inverse power laws and their fit are ours, as are the generated genomes: four ancestries,
//!   Balding–Nichols frequencies, blocks of linked variants ([`GenomeConfig`]). Beside them stand
//!   genotypes from a coalescent simulation of three populations out of Africa, read from PLINK
//!   files ([`PlinkConfig`]), which is what the paper is believed to use.
//! * The gap utility is mean − κ·(mean − worst), which is concave and increasing for κ ≤ 1.
//! * Every group has a model of its own; with a model of all groups losses would depend on all
//!   sizes, and a plan by separate curves would mis-state gains.
//! * Validation and test sets are not counted in the budget.
//!
//! # Use
//! ```
//! use commons_society::adaptive_sampling::{Goal, Group, PowerLaw, plan};
//!
//! let group = |name: &str, a: f64| Group {
//!     name: name.into(),
//!     cost: 1.,
//!     owned: 0.,
//!     weight: 1.,
//!     curve: PowerLaw { e: 0., a, b: 1. },
//! };
//! let plan = plan(&[group("a", 1.), group("b", 4.)], 300., Goal::Utilitarian, 1.)?;
//! assert_eq!(plan.whole, [100, 200]);
//! # Ok::<(), commons_society::Error>(())
//! ```

mod curve;
mod evidence;
mod genome;
mod plan;
mod plink;
mod sampler;
pub mod simulate;
#[cfg(test)]
mod tests;
mod utility;

pub use curve::{EXPONENTS, Fit, LearningCurve, Point, PowerLaw, fit, fit_with};
pub use evidence::Evidence;
pub use genome::{ANCESTRIES, Cohort, Genome, GenomeConfig};
pub use plan::{Group, Plan, plan, worth};
pub use plink::{PlinkConfig, Population, populations};
pub use sampler::{AdaptiveSampler, Batch, Rule, SamplerConfig, Source};
pub use utility::{Goal, Utility};
