//! What a point means to groups of agents.

use serde::Serialize;

use super::{Mechanism, Profile, Scalar};
use crate::{Error, Result};

/// How a group fares at a point.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GroupShare {
    /// Name of the group.
    pub group: String,
    /// Agents in it.
    pub agents: usize,
    /// Their part of the whole weight.
    pub share: f64,
    /// Lower (weighted) median of their ideal points.
    pub median: f64,
    /// Weighted mean distance of its agents from the point.
    pub mean_distance: f64,
    /// Distance of its farthest agent.
    pub max_distance: f64,
    /// What proportional fairness allows that agent: `1 − share + range`, at most 1.
    pub allowed: f64,
    /// Whether the group, if it spoke with one voice, that of its median, would be farther from the
    /// point than the `1 − share` it could claim.
    pub below_fair_share: bool,
}

/// Groups in order of their names, each with how it fares at `y`. `names` holds one name for each
/// agent.
///
/// # Errors
/// When there is not one name for each agent.
pub fn group_shares<T: Scalar>(
    profile: &Profile<T>,
    names: &[String],
    y: &T,
) -> Result<Vec<GroupShare>> {
    if names.len() != profile.len() {
        let reason = format!("there are {} for {} agents", names.len(), profile.len());
        return Err(Error::config("groups", reason));
    }
    let mut groups: std::collections::BTreeMap<&str, Vec<usize>> = Default::default();
    for (i, name) in names.iter().enumerate() {
        groups.entry(name).or_default().push(i);
    }
    groups.into_iter().map(|(name, agents)| share_of(profile, name, &agents, y)).collect()
}

fn share_of<T: Scalar>(
    profile: &Profile<T>,
    name: &str,
    agents: &[usize],
    y: &T,
) -> Result<GroupShare> {
    let pick = |of: &[T]| agents.iter().map(|&i| of[i].clone()).collect::<Vec<T>>();
    let group = Profile::weighted(pick(profile.positions()), pick(profile.weights()))?;
    let share = group.total().clone() / profile.total().clone();
    let median = Mechanism::Median.outcome(&group)?;
    let (low, high) = group.ends();
    let farthest = low.distance(y).larger(high.distance(y));
    let allowed = (T::one() - share.clone() + high - low).smaller(T::one());
    Ok(GroupShare {
        group: name.to_owned(),
        agents: agents.len(),
        share: share.to_f64(),
        mean_distance: group.total_cost(y).to_f64() / group.total().to_f64(),
        max_distance: farthest.to_f64(),
        allowed: allowed.to_f64(),
        below_fair_share: median.distance(y).exceeds(&(T::one() - share)),
        median: median.to_f64(),
    })
}
