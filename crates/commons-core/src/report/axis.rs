//! Axes: from data to ticks at round numbers.

use crate::format;

/// How values are laid out along an axis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Axis {
    /// Ends in the units of `place`: the value itself, or its decimal logarithm.
    low: f64,
    high: f64,
    log: bool,
}

impl Axis {
    /// An axis that holds all `values` with a little room. Without a usable value it is 0 to 1.
    /// A logarithmic axis leaves out what is not positive.
    pub(super) fn fit(values: impl Iterator<Item = f64>, log: bool, room: f64) -> Self {
        let placed = values.filter_map(|value| place(value, log));
        let (low, high) = placed.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
            (low.min(value), high.max(value))
        });
        if low > high {
            return Self { low: 0.0, high: 1.0, log };
        }
        let width = high - low;
        // One value alone, or values equal up to rounding, get an axis around them.
        let room = if width <= 1e-12 * high.abs() {
            if high == 0.0 { 1.0 } else { 0.1 * high.abs() }
        } else {
            room * width
        };
        Self { low: low - room, high: high + room, log }
    }

    /// The same axis for bars, which stand on zero: it holds zero, and ends there if no bar goes
    /// `below` or `above` it.
    pub(super) fn standing_on_zero(self, below: bool, above: bool) -> Self {
        if self.log {
            return self;
        }
        Self {
            low: if below { self.low.min(0.0) } else { 0.0 },
            high: if above || !below { self.high.max(0.0) } else { 0.0 },
            ..self
        }
    }

    /// Position of a value between the ends, 0 to 1; `None` if it cannot be shown.
    pub(super) fn position(&self, value: f64) -> Option<f64> {
        let placed = place(value, self.log)?;
        Some((placed - self.low) / (self.high - self.low))
    }

    /// About `count` round values within the ends, with their labels.
    pub(super) fn ticks(&self, count: usize) -> Vec<(f64, String)> {
        let values =
            if self.log { self.log_ticks(count) } else { linear_ticks(self.low, self.high, count) };
        let plain =
            values.iter().all(|value| value.abs() < 1e5 && (*value == 0.0 || value.abs() >= 1e-3));
        let label = |value: f64| {
            if plain { format::number(value) } else { format::si(value).replace(' ', "") }
        };
        values.into_iter().map(|value| (value, label(value))).collect()
    }

    fn log_ticks(&self, count: usize) -> Vec<f64> {
        let decades = self.high - self.low;
        if decades < 1.0 {
            // Too narrow for powers of ten: round values on the linear scale.
            return linear_ticks(10_f64.powf(self.low), 10_f64.powf(self.high), count);
        }
        let factors: &[f64] = if decades < 2.5 { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let skip = (decades / count as f64).ceil().max(1.0) as usize;
        let exponents = (self.low.floor() as i32..=self.high.ceil() as i32).step_by(skip);
        exponents
            .flat_map(|exponent| factors.iter().map(move |factor| factor * 10_f64.powi(exponent)))
            .filter(|value| (self.low..=self.high).contains(&value.log10()))
            .collect()
    }
}

fn place(value: f64, log: bool) -> Option<f64> {
    let placed = if log { value.log10() } else { value };
    // Beyond this the width of the axis would overflow.
    (placed.abs() < 1e300).then_some(placed)
}

fn linear_ticks(low: f64, high: f64, count: usize) -> Vec<f64> {
    let rough = (high - low) / count.max(1) as f64;
    let magnitude = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * magnitude)
        .find(|step| *step >= rough)
        .unwrap_or(10.0 * magnitude);
    if !(step.is_normal() && low.is_finite() && high.is_finite()) {
        return Vec::new();
    }
    let first = (low / step).ceil();
    let number = ((high / step).floor() - first) as usize;
    // Rounded to the step's own digits, so that 0.30000000000000004 does not appear.
    let digits = (-step.log10().floor()).clamp(0.0, 15.0) as i32;
    let round = |value: f64| {
        let scale = 10_f64.powi(digits);
        (value * scale).round() / scale
    };
    (0..=number.min(100)).map(|i| round((first + i as f64) * step) + 0.0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(axis: Axis, count: usize) -> Vec<f64> {
        axis.ticks(count).into_iter().map(|tick| tick.0).collect()
    }

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(
            values(Axis::fit([0.0, 1.0].into_iter(), false, 0.0), 5),
            [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
        );
        assert_eq!(
            values(Axis::fit([-3.0, 17.0].into_iter(), false, 0.0), 5),
            [0.0, 5.0, 10.0, 15.0]
        );
        let log = Axis::fit([0.001, 1000.0].into_iter(), true, 0.0);
        assert_eq!(values(log, 8), [1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, 1000.0]);
        assert_eq!(log.position(1.0), Some(0.5));
        assert_eq!(log.position(0.0), None);
        let labels: Vec<String> = Axis::fit([0.0, 3e6].into_iter(), false, 0.0)
            .ticks(3)
            .into_iter()
            .map(|t| t.1)
            .collect();
        assert_eq!(labels, ["0", "1M", "2M", "3M"]);
    }

    #[test]
    fn degenerate_data_still_give_an_axis() {
        for data in [
            vec![],
            vec![f64::NAN],
            vec![0.0],
            vec![7.0, 7.0],
            vec![f64::INFINITY, -2.0],
            vec![1e300, -1e300],
        ] {
            for log in [false, true] {
                let axis = Axis::fit(data.iter().copied(), log, 0.05);
                assert!(axis.low < axis.high, "{data:?}");
                assert!(axis.ticks(5).len() < 102);
            }
        }
        let bars = Axis::fit([5.0, 6.0].into_iter(), false, 0.05).standing_on_zero(false, true);
        assert_eq!(bars.position(0.0), Some(0.0));
        let below = Axis::fit([-5.0, -6.0].into_iter(), false, 0.05).standing_on_zero(true, false);
        assert_eq!(below.position(0.0), Some(1.0));
    }
}
