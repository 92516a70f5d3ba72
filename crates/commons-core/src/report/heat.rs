//! Square matrices as coloured cells.

use super::escape;
use crate::format;
use serde::{Deserialize, Serialize};
use std::fmt::Write;

/// Most labels that fit along an axis.
const LABELS: usize = 16;

/// A square matrix, shaded from its lowest value (clear) to its highest (full colour).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Heat {
    rows: Vec<Vec<f64>>,
    labels: Vec<String>,
    /// First and last index of frames on the diagonal.
    frames: Vec<(usize, usize)>,
}

/// Where the cells go.
#[derive(Clone, Copy)]
pub(super) struct Area {
    pub left: f64,
    pub top: f64,
    pub width: f64,
    pub height: f64,
}

impl Heat {
    pub fn new(rows: Vec<Vec<f64>>, labels: Vec<String>) -> Self {
        Self { rows, labels, frames: Vec::new() }
    }

    pub fn frame(&mut self, first: usize, last: usize) {
        self.frames.push((first, last));
    }

    pub fn draw(&self, svg: &mut String, area: Area) {
        let finite = || self.rows.iter().flatten().copied().filter(|v| v.is_finite());
        let low = finite().fold(f64::INFINITY, f64::min);
        let high = finite().fold(f64::NEG_INFINITY, f64::max);
        let n = self.rows.len().max(1) as f64;
        let (wide, tall) = (area.width / n, area.height / n);
        let name = |i: usize| self.labels.get(i).map_or("", String::as_str);
        for (i, row) in self.rows.iter().enumerate() {
            for (j, &value) in row.iter().enumerate().filter(|(_, v)| v.is_finite()) {
                let shade = if high > low { (value - low) / (high - low) } else { 1.0 };
                let (x, y) = (area.left + wide * j as f64, area.top + tall * i as f64);
                let _ = write!(
                    svg,
                    "<rect class=\"cell c0\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{wide:.2}\" height=\"{tall:.2}\" fill-opacity=\"{shade:.3}\"><title>{} and {}: {}</title></rect>",
                    escape(name(i)),
                    escape(name(j)),
                    format::number(value)
                );
            }
        }
        for &(first, last) in &self.frames {
            let (from, span) = (first as f64, (last + 1).saturating_sub(first) as f64);
            let _ = write!(
                svg,
                "<rect class=\"frame\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\"/>",
                area.left + wide * from,
                area.top + tall * from,
                wide * span,
                tall * span
            );
        }
        self.draw_labels(svg, area, (wide, tall));
        let _ = write!(
            svg,
            "<text class=\"name middle\" x=\"{:.1}\" y=\"{:.1}\">clear {} to full {}</text>",
            area.left + area.width / 2.0,
            area.top + area.height + 38.0,
            escape(&format::number(low)),
            escape(&format::number(high))
        );
    }

    fn draw_labels(&self, svg: &mut String, area: Area, (wide, tall): (f64, f64)) {
        let every = self.labels.len().div_ceil(LABELS).max(1);
        for (i, label) in self.labels.iter().enumerate().step_by(every) {
            let middle = i as f64 + 0.5;
            let (x, y) = (area.left + wide * middle, area.top + tall * middle);
            let (foot, side) = (area.top + area.height + 18.0, area.left - 6.0);
            let label = escape(label);
            let _ = write!(
                svg,
                "<text class=\"label middle\" x=\"{x:.1}\" y=\"{foot:.1}\">{label}</text>\
                 <text class=\"label end\" x=\"{side:.1}\" y=\"{:.1}\">{label}</text>",
                y + 5.0
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::report::Plot;

    #[test]
    fn cells_are_shaded_between_the_extremes_and_framed() {
        let rows = vec![vec![1.0, 0.25], vec![f64::NAN, 0.0]];
        let svg = Plot::new("h").heat(rows, ["a", "<b"]).frame(0, 1).to_svg();
        assert_eq!(svg.matches("class=\"cell").count(), 3, "NaN has no cell");
        assert!(svg.contains("fill-opacity=\"0.250\"><title>a and &lt;b: 0.25<"), "{svg}");
        assert!(svg.contains("fill-opacity=\"1.000\"") && svg.contains("fill-opacity=\"0.000\""));
        assert_eq!(svg.matches("class=\"frame\"").count(), 1);
        assert!(svg.contains("clear 0 to full 1"), "{svg}");
    }
}
