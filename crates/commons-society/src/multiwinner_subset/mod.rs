//! One shortlist shared by all voters: bounds on groups give back what bias took from one of them.
//!
//! # Paper
//! Boehmer, Celis, Huang, Mehrotra, Vishnoi: *Subset Selection Based On Multiple Rankings in the
//! Presence of Bias: Effectiveness of Fairness Constraints for Multiwinner Voting Score
//! Functions*, ICML 2023, arXiv:2306.09835. Official code: one notebook
//! (AnayMehrotra/Selection-with-Multiple-Rankings-with-Bias).
//!
//! # Problem
//! `k` of `m` items are chosen from `n` rankings, but the rankings place one group lower than it
//! deserves. Does it help to require a number of that group, and does it help whatever score
//! function adds the rankings up?
//!
//! # Method
//! 1. *Scores* ([`Score`]): `F(S) = Σ_v f_v(S)`. k-Borda sums `m − 1 − pos_v(c)`; SNTV counts first
//!    places, Bloc the first `k`; ℓ1 Chamberlin–Courant takes `max_{c ∈ S} (m − 1 − pos_v(c))`;
//!    OWA weights the sorted values. All are monotone and submodular; sums are modular.
//! 2. *Bounds* ([`Bounds`]): `L_ℓ ≤ |S ∩ G_ℓ| ≤ U_ℓ`; the family `S_l` has `|S ∩ G_2| = l`.
//! 3. *Solvers* ([`select`]): sorting for modular `F`; greedy; branch and bound with a Lagrangian
//!    bound ([`exact`]).
//! 4. *Bias* ([`Bias`]): utilities of the group times `θ`, or swaps: `⌊λ·pairs⌋` times a pair
//!    `(i ∈ G_1 below j ∈ G_2)` changes places, with probability `∝ φ^{pos(i) − pos(j)}`.
//! 5. *Judgement* ([`simulate`]): choose from biased rankings, divide the latent score by the best
//!    latent score.
//! 6. *Smoothness* ([`smoothness`]): `α = min_c min(s_c, ŝ_c)/τ_1` and
//!    `γ(β) = max ŝ_j/ŝ_i` over pairs of a group with `s_j ≤ β s_i`. High `α`, low `γ`: few
//!    rankings are needed.
//!
//! # Shared / kept apart
//! Shared: the subset. Apart: each voter's ranking, with a bias of its own (independent across
//! voters; a common one could not be averaged out).
//!
//! # Claim
//! Group constraints can raise the latent quality of the selection; how many rankings that takes
//! differs drastically between score functions, polynomial for some (Borda), exponential for
//! others (SNTV).
//!
//! # Here
//!
//! Not measured yet.
//!
//! # Differs
//! * The official notebook's Borda helper counts positions upwards and its SNTV divides by `m`; we
//!   follow the definitions, so its printed `α̂` are not comparable.
//! * Pair weights are refreshed after every swap; the official loop only zeroes some.
//! * Tied and unranked items share the places of their block, each worth its mean.
//! * Approval ballots and their rules (AV, approval CC, PAV), to stand beside `abcvoting`.
//! * Exact solutions come from a branch and bound of our own, which lists all optimal subsets; no
//!   integer-programming library is linked. It is checked against enumeration and `abcvoting`.
//! * Ties go to the lowest index and are always reported.
//! * "Best `l`" looks at the latent scores. It is reported as an oracle, beside the proportional
//!   bound that a user can choose.
//!
//! # Use
//! ```
//! use commons_society::multiwinner_subset::{Bounds, Rankings, Score, Solver, numbered, select};
//!
//! let seen = [vec![0, 1, 2, 3], vec![1, 0, 3, 2], vec![0, 1, 3, 2]];
//! let rankings = Rankings::from_orders(numbered(4), &seen)?;
//! let bounds = Bounds::exactly(4, &[2, 3], 1)?; // one of the items ranked last by bias
//! let chosen = select(&rankings, &Score::BORDA, 2, &bounds, Solver::Auto)?;
//! assert_eq!(chosen.subset, [0, 3]);
//! # Ok::<(), commons_society::Error>(())
//! ```

mod bounds;
mod evidence;
pub mod exact;
pub mod files;
mod latent;
mod rankings;
mod report;
mod score;
mod select;
pub mod simulate;
pub mod smoothness;
#[cfg(test)]
mod tests;

pub use bounds::{Bounds, Group};
pub use evidence::Evidence;
pub use latent::{Bias, Latent, Order, by_utility, mallows_distance};
pub use rankings::{Ballot, Rankings, numbered};
pub use report::{DELTA, Needed, Shortlist, report, shortlist};
pub use score::{Owa, Score, ScoreFn, Scored, Values};
pub use select::{
    Selection, Solver, TiedStep, Ties, greedy, greedy_scored, select, select_within, top,
};
pub use simulate::{Ratios, Simulation};
