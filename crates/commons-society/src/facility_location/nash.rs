//! The point of greatest Nash welfare.

use super::{Profile, Scalar};

/// Halvings of [0, 1]: below the resolution of `f64` near 1.
const HALVINGS: usize = 60;

/// `argmax_y Σ w_i log(1 − |x_i − y|)`. The objective is concave, so its slope has one sign change.
pub fn maximiser<T: Scalar>(profile: &Profile<T>) -> f64 {
    let agents: Vec<(f64, f64)> = profile
        .positions()
        .iter()
        .zip(profile.weights())
        .map(|(x, w)| (x.to_f64(), w.to_f64()))
        .collect();
    let slope = |y: f64| -> f64 {
        agents
            .iter()
            .map(|&(x, w)| match x.total_cmp(&y) {
                std::cmp::Ordering::Greater => w / (1. - (x - y)).max(f64::MIN_POSITIVE),
                std::cmp::Ordering::Less => -w / (1. - (y - x)).max(f64::MIN_POSITIVE),
                std::cmp::Ordering::Equal => 0.,
            })
            .sum()
    };
    let (mut low, mut high) = (profile.ends().0.to_f64(), profile.ends().1.to_f64());
    for _ in 0..HALVINGS {
        let middle = 0.5 * (low + high);
        if slope(middle) > 0. {
            low = middle;
        } else {
            high = middle;
        }
    }
    // A kink at an agent's own point is met exactly if that is where the slope turns.
    let middle = 0.5 * (low + high);
    let at = agents.iter().map(|a| a.0).find(|x| (x - middle).abs() < 1e-12);
    at.unwrap_or(middle)
}
