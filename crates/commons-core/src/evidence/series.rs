//! Curves kept in memory for plots.

use serde::{Deserialize, Serialize};

/// Points kept of a curve. More than a plot is wide, few enough that a long run stays small.
const MOST_POINTS: usize = 4096;

/// A curve: values by step. Long ones are thinned evenly as they grow; the newest point is always
/// there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Series {
    points: Vec<(u64, f64)>,
    last: Option<(u64, f64)>,
    stride: u64,
    seen: u64,
}

impl Default for Series {
    fn default() -> Self {
        Self { points: Vec::new(), last: None, stride: 1, seen: 0 }
    }
}

impl Series {
    /// Adds a point.
    pub fn push(&mut self, step: u64, value: f64) {
        if self.seen.is_multiple_of(self.stride) {
            self.points.push((step, value));
            if self.points.len() == MOST_POINTS {
                let mut index = 0;
                self.points.retain(|_| {
                    index += 1;
                    index % 2 == 1
                });
                self.stride *= 2;
            }
        }
        self.seen += 1;
        self.last = Some((step, value));
    }

    /// The points kept, oldest first.
    pub fn points(&self) -> Vec<(u64, f64)> {
        let mut points = self.points.clone();
        if let Some(last) = self.last.filter(|last| points.last() != Some(last)) {
            points.push(last);
        }
        points
    }

    /// The newest value.
    pub fn last(&self) -> Option<f64> {
        self.last.map(|point| point.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_curves_are_thinned_evenly() {
        let mut series = Series::default();
        for step in 0..100_001 {
            series.push(step, step as f64);
        }
        let points = series.points();
        assert!(points.len() > MOST_POINTS / 3 && points.len() <= MOST_POINTS);
        assert_eq!(points.last(), Some(&(100_000, 100_000.0)));
        let gaps: Vec<u64> = points.windows(2).map(|w| w[1].0 - w[0].0).collect();
        assert!(gaps[..gaps.len() - 1].iter().all(|gap| *gap == gaps[0]));
    }
}
