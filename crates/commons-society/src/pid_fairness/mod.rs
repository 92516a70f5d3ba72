//! Unfairness told apart: what every client sees, what only the federation sees, what only clients
//! see, and how accurate a predictor that shares outcomes fairly can be at all.
//!
//! # Paper
//! Hamman, Dutta: *Demystifying Local and Global Fairness Trade-offs in Federated Learning Using
//! Partial Information Decomposition*, ICLR 2024, arXiv:2307.11333. Official code:
//! FaisalHamman/FairFL-PID (Python; `dit` and SciPy).
//!
//! # Problem
//! A federation trains one model from many clients. It can treat groups alike over all and not
//! within any client, or within each client and not over all. One number per client and one for
//! the whole do not say which, nor whether a remedy at the clients can help.
//!
//! # Method
//! Z is the sensitive attribute, S the client, Y the label, Ŷ the decision. Logarithms are to base
//! 2, P is the empirical distribution ([`Counts`]).
//! 1. *Disparities.* Global `I(Z; Ŷ)`, local `I(Z; Ŷ | S)`; each is 0 iff there is statistical
//!    parity over all, or in every client.
//! 2. *Decomposition* ([`pid_broja`]). `Uni(Z:Ŷ|S) = min_{Q ∈ Δ_P} I_Q(Z; Ŷ | S)`,
//!    `Δ_P = {Q : Q(z, ŷ) = P(z, ŷ), Q(z, s) = P(z, s)}`. Unique disparity is `Uni`, redundant
//!    `I(Z; Ŷ) − Uni`, masked `I(Z; Ŷ | S) − Uni`. Hence global = unique + redundant and
//!    local = unique + masked; redundant is at most `I(Z; S)`.
//! 3. *Limits* ([`Behaviour::limit`], AGLFOP). `min Pr(Ŷ ≠ Y)` over all `Q(ŷ | z, s, y)` with
//!    `I_Q(Z; Ŷ) ≤ ε_g` and `I_Q(Z; Ŷ | S) ≤ ε_l`.
//! 4. *Audit* ([`audit`]). Rates of groups and intersections of groups, their differences and
//!    ratios, and the decomposition, each with a bootstrap interval.
//!
//! # Shared / kept apart
//! Clients share one table of counts each, `|groups|·|classes|²` integers; no row leaves its owner.
//! The server needs nothing else for the whole report.
//!
//! # Claim
//! The three terms tell three kinds of splits apart (experiments on Adult: with clients alike
//! unique disparity dominates, with groups spread unevenly redundant, with opposite correlations
//! masked), and AGLFOP bounds the accuracy of every model. The paper shows figures, no table that
//! could be quoted.
//!
//! # Here
//!
//! Measured on 2026-11-26T11:54:43Z with the recipe `full` (seed 0) in 1 min 21 s on AMD EPYC (2 threads, avx512, 23.5 GiB of memory,
//! of which 160 MiB were used), Commons 0.1.0.
//!
//! | claim                                                                                                    | paper                                                  | measured | baseline | needed           | found (95 % interval)         | verdict          |
//! | -------------------------------------------------------------------------------------------------------- | ------------------------------------------------------ | -------: | -------: | ---------------- | ----------------------------- | ---------------- |
//! | the three canonical examples are wholly unique, redundant and masked (error, bits)                       | 0                                                      |        0 |          | ≤ 1e-9           | 0                             | holds (one seed) |
//! | with clients alike, unique disparity is most of the disparity                                            | dominates (figure)                                     |   0.9928 |          | ≥ 0.5            | 0.9928 (0.9855 to 1)          | holds            |
//! | with groups spread unevenly, redundant disparity is most of the disparity                                | dominates (figure)                                     |   0.7211 |          | ≥ 0.5            | 0.7211 (0.668 to 0.7742)      | holds            |
//! | with opposite correlations in the clients, masked disparity is most of the disparity                     | dominates (figure)                                     |   0.8016 |          | ≥ 0.5            | 0.8016 (0.7826 to 0.8205)     | holds            |
//! | no model is more accurate than AGLFOP allows at its own two disparities                                  | bound (theorem)                                        |   0.8478 |   0.9535 | ≤ baseline       | -0.1056 (-0.1218 to -0.08942) | holds            |
//! | with groups spread unevenly, reweighing inside clients takes away less than half of the global disparity | local fairness need not give global fairness (theorem) | 0.009719 |  0.03405 | ≥ 0.5 × baseline | 0.2823 (0.2274 to 0.3372)     | fails            |
//!
//! # Differs
//! * The decomposition is solved by a barrier method with a dual certificate (gap 1e-9 bits by
//!   default), not by a general optimiser: the terms are exact to that gap.
//! * AGLFOP is a cone programme (clarabel). Its bound is over behaviours that know group, client
//!   and label; [`Predictors::PostProcessed`] bounds what can be made of a given classifier.
//! * The model trained here is a logistic regression, not the paper's two-layer network.
//! * A rate whose denominator is 0 is `null` and left out of differences; fairlearn counts it as 0.
//! * Intervals are percentile intervals of a multinomial bootstrap. Plug-in informations are
//!   biased upwards, by about `(|Z|−1)(|Ŷ|−1)/(2n ln 2)` bits; the audit also gives values with
//!   Miller and Madow's correction.
//!
//! # Use
//! ```
//! use commons_society::pid_fairness::{Joint, pid_broja};
//!
//! // Ŷ = Z xor S: fair over all, unfair in every client. Cells are [z, ŷ, s].
//! let joint = Joint::from_weights(2, 2, 2, &[1., 0., 0., 1., 0., 1., 1., 0.])?;
//! let pid = pid_broja(&joint)?;
//! assert!((pid.masked - 1.).abs() < 1e-9 && pid.unique < 1e-9);
//! # Ok::<(), commons_society::Error>(())
//! ```

mod audit;
pub mod bootstrap;
mod broja;
mod counts;
mod evidence;
mod joint;
mod limits;
mod metrics;
pub mod study;
#[cfg(test)]
mod tests;

pub use audit::{Audit, AuditConfig, Client, Group, Grouping, audit};
pub use broja::{GAP, Pid, pid_broja, pid_broja_to};
pub use counts::{Columns, Counts};
pub use evidence::Evidence;
pub use joint::Joint;
pub use limits::{Behaviour, Limit, Predictors};
pub use metrics::{Confusion, DISPARITIES, Estimate, RATES, by_group, disparities, overall};
