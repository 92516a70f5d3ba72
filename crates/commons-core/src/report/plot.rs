//! Plots as SVG. Colours are classes and CSS variables, so that one drawing suits a light and a
//! dark page.

use super::{
    axis::Axis,
    escape,
    heat::{Area, Heat},
};
use crate::format;
use serde::{Deserialize, Serialize};
use std::fmt::Write;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 340.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 52.0;
/// Colours in the style sheet; further curves start again with dashes and rings.
const COLOURS: usize = 8;
/// Colours and fonts; part of a report's style sheet and of every standalone file.
pub(super) const STYLE: &str = include_str!("plot.css");

/// A plot: curves, point clouds or bars on shared axes.
///
/// ```
/// use commons_core::report::Plot;
///
/// let plot = Plot::new("Perplexity against size")
///     .x("stored parameters")
///     .y("perplexity")
///     .log_x()
///     .line("ours", [(1e6, 31.0), (1e7, 19.5)])
///     .points("paper", [(5e6, 24.0)])
///     .mark("full model", 18.1);
/// assert!(plot.to_svg().starts_with("<svg"));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Plot {
    /// What it shows.
    pub title: String,
    x: String,
    y: String,
    log_x: bool,
    log_y: bool,
    curves: Vec<Curve>,
    bars: Vec<Bar>,
    marks: Vec<(String, f64)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    heat: Option<Heat>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Curve {
    name: String,
    joined: bool,
    points: Vec<(f64, f64)>,
    /// Lower and upper edge at each point, if there is a band.
    band: Vec<(f64, f64)>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Bar {
    name: String,
    value: f64,
    interval: Option<(f64, f64)>,
}

impl Plot {
    /// An empty plot.
    pub fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), ..Self::default() }
    }

    /// Names the horizontal axis.
    #[must_use]
    pub fn x(mut self, label: impl Into<String>) -> Self {
        self.x = label.into();
        self
    }

    /// Names the vertical axis.
    #[must_use]
    pub fn y(mut self, label: impl Into<String>) -> Self {
        self.y = label.into();
        self
    }

    /// Makes the horizontal axis logarithmic; values that are not positive are left out.
    #[must_use]
    pub fn log_x(mut self) -> Self {
        self.log_x = true;
        self
    }

    /// Makes the vertical axis logarithmic; values that are not positive are left out.
    #[must_use]
    pub fn log_y(mut self) -> Self {
        self.log_y = true;
        self
    }

    /// Adds a curve. It breaks where a value is not finite.
    #[must_use]
    pub fn line(
        self,
        name: impl Into<String>,
        points: impl IntoIterator<Item = (f64, f64)>,
    ) -> Self {
        self.curve(name.into(), true, points.into_iter().collect(), Vec::new())
    }

    /// Adds a curve within a band: (x, y, lower edge, upper edge).
    #[must_use]
    pub fn band(
        self,
        name: impl Into<String>,
        points: impl IntoIterator<Item = (f64, f64, f64, f64)>,
    ) -> Self {
        let all: Vec<_> = points.into_iter().collect();
        let line = all.iter().map(|p| (p.0, p.1)).collect();
        self.curve(name.into(), true, line, all.iter().map(|p| (p.2, p.3)).collect())
    }

    /// Adds unconnected points.
    #[must_use]
    pub fn points(
        self,
        name: impl Into<String>,
        points: impl IntoIterator<Item = (f64, f64)>,
    ) -> Self {
        self.curve(name.into(), false, points.into_iter().collect(), Vec::new())
    }

    /// Adds a bar, with an interval if there is one. A plot with bars shows no curves.
    #[must_use]
    pub fn bar(
        mut self,
        name: impl Into<String>,
        value: f64,
        interval: Option<(f64, f64)>,
    ) -> Self {
        self.bars.push(Bar { name: name.into(), value, interval });
        self
    }

    /// Adds a labelled horizontal line, such as a baseline or a figure of the paper.
    #[must_use]
    pub fn mark(mut self, label: impl Into<String>, y: f64) -> Self {
        self.marks.push((label.into(), y));
        self
    }

    /// Shows a square matrix as shaded cells instead of curves; each label names a row and the
    /// column of the same number.
    #[must_use]
    pub fn heat<L: Into<String>>(
        mut self,
        rows: Vec<Vec<f64>>,
        labels: impl IntoIterator<Item = L>,
    ) -> Self {
        self.heat = Some(Heat::new(rows, labels.into_iter().map(Into::into).collect()));
        self
    }

    /// Draws a frame on the diagonal of the matrix around the rows `first` to `last`.
    #[must_use]
    pub fn frame(mut self, first: usize, last: usize) -> Self {
        if let Some(heat) = &mut self.heat {
            heat.frame(first, last);
        }
        self
    }

    fn curve(
        mut self,
        name: String,
        joined: bool,
        points: Vec<(f64, f64)>,
        band: Vec<(f64, f64)>,
    ) -> Self {
        self.curves.push(Curve { name, joined, points, band });
        self
    }

    /// Names of the curves, for a legend in the order of their colours.
    pub(super) fn legend(&self) -> Vec<(usize, &str)> {
        let names = self.curves.iter().map(|curve| curve.name.as_str()).enumerate();
        if self.bars.is_empty() { names.collect() } else { Vec::new() }
    }

    /// A file of its own: the drawing with its style and legend.
    pub fn to_svg(&self) -> String {
        self.draw(true)
    }

    /// The drawing for a page that has [`STYLE`] already and shows title and legend itself.
    pub(super) fn fragment(&self) -> String {
        self.draw(false)
    }

    fn draw(&self, standalone: bool) -> String {
        let head =
            if standalone { 26.0 + 18.0 * self.legend().len().div_ceil(4) as f64 } else { 0.0 };
        let mut svg = String::new();
        let height = HEIGHT + head;
        let _ = write!(
            svg,
            "<svg class=\"plot\" xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{}\">",
            escape(&self.title)
        );
        if standalone {
            let _ = write!(
                svg,
                "<style>{STYLE}</style><rect class=\"page\" width=\"{WIDTH}\" height=\"{height}\"/>"
            );
            let _ = write!(
                svg,
                "<text class=\"title\" x=\"{LEFT}\" y=\"20\">{}</text>",
                escape(&self.title)
            );
            for (index, name) in self.legend() {
                let (x, y) = (LEFT + 140.0 * (index % 4) as f64, 40.0 + 18.0 * (index / 4) as f64);
                let _ = write!(
                    svg,
                    "<circle class=\"{}\" cx=\"{}\" cy=\"{}\" r=\"4\"/>",
                    class(index),
                    x + 4.0,
                    y - 4.0
                );
                let _ = write!(
                    svg,
                    "<text class=\"key\" x=\"{}\" y=\"{y}\">{}</text>",
                    x + 14.0,
                    escape(name)
                );
            }
            let _ = write!(svg, "<g transform=\"translate(0 {head})\">");
        }
        if let Some(heat) = &self.heat {
            let (width, height) = (WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM);
            heat.draw(&mut svg, Area { left: LEFT, top: TOP, width, height });
        } else if self.bars.is_empty() {
            self.draw_curves(&mut svg)
        } else {
            self.draw_bars(&mut svg)
        }
        svg.push_str(if standalone { "</g></svg>" } else { "</svg>" });
        svg
    }

    fn draw_curves(&self, svg: &mut String) {
        let points = || self.curves.iter().flat_map(|curve| &curve.points);
        let edges =
            self.curves.iter().flat_map(|curve| &curve.band).flat_map(|edge| [edge.0, edge.1]);
        let marks = self.marks.iter().map(|mark| mark.1);
        let x = Axis::fit(points().map(|p| p.0), self.log_x, 0.02);
        let y = Axis::fit(points().map(|p| p.1).chain(edges).chain(marks), self.log_y, 0.06);
        self.draw_frame(svg, &y);
        for (value, label) in x.ticks(7) {
            let Some(at) = x.position(value).map(across) else {
                continue;
            };
            let (foot, text) = (HEIGHT - BOTTOM, HEIGHT - BOTTOM + 20.0);
            let _ = write!(svg, "<path class=\"tick\" d=\"M{at:.1} {foot}v5\"/>");
            let _ = write!(
                svg,
                "<text class=\"label middle\" x=\"{at:.1}\" y=\"{text}\">{}</text>",
                escape(&label)
            );
        }
        for (index, curve) in self.curves.iter().enumerate() {
            curve.draw(svg, index, &x, &y);
        }
        self.draw_marks(svg, &y);
    }

    fn draw_bars(&self, svg: &mut String) {
        let ends = self.bars.iter().flat_map(|bar| {
            let (low, high) = bar.interval.unwrap_or((bar.value, bar.value));
            [bar.value, low, high]
        });
        let marks = self.marks.iter().map(|mark| mark.1);
        let all: Vec<f64> = ends.chain(marks).collect();
        let y = Axis::fit(all.iter().copied(), self.log_y, 0.08)
            .standing_on_zero(all.iter().any(|end| *end < 0.0), all.iter().any(|end| *end > 0.0));
        self.draw_frame(svg, &y);
        let slot = (WIDTH - LEFT - RIGHT) / self.bars.len() as f64;
        let width = (slot * 0.62).min(70.0);
        let foot = y.position(0.0).map_or(HEIGHT - BOTTOM, up);
        for (index, bar) in self.bars.iter().enumerate() {
            let middle = LEFT + slot * (index as f64 + 0.5);
            if let Some(top) = y.position(bar.value).map(up) {
                let (from, tall) = (top.min(foot), (foot - top).abs());
                let left = middle - width / 2.0;
                let _ = write!(
                    svg,
                    "<rect class=\"bar c0\" x=\"{left:.1}\" y=\"{from:.1}\" width=\"{width:.1}\" height=\"{tall:.1}\" rx=\"2\"><title>{}: {}</title></rect>",
                    escape(&bar.name),
                    format::number(bar.value)
                );
                let above =
                    bar.interval.and_then(|(_, high)| y.position(high)).map_or(from, up).min(from);
                let _ = write!(
                    svg,
                    "<text class=\"value middle\" x=\"{middle:.1}\" y=\"{:.1}\">{}</text>",
                    above - 5.0,
                    escape(&format::number(bar.value))
                );
            }
            if let Some((low, high)) = bar.interval
                && let (Some(low), Some(high)) = (y.position(low).map(up), y.position(high).map(up))
            {
                let _ = write!(
                    svg,
                    "<path class=\"whisker\" d=\"M{middle:.1} {low:.1}V{high:.1}m-5 0h10M{:.1} {low:.1}h10\"/>",
                    middle - 5.0
                );
            }
            let room = (slot / 7.5).max(4.0) as usize;
            let _ = write!(
                svg,
                "<text class=\"label middle\" x=\"{middle:.1}\" y=\"{}\">{}</text>",
                HEIGHT - BOTTOM + 20.0,
                escape(&shortened(&bar.name, room))
            );
        }
        self.draw_marks(svg, &y);
    }

    /// Horizontal grid, value labels and the names of the axes.
    fn draw_frame(&self, svg: &mut String, y: &Axis) {
        let (right, foot) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for (value, label) in y.ticks(5) {
            let Some(at) = y.position(value).map(up) else {
                continue;
            };
            let _ = write!(svg, "<path class=\"grid\" d=\"M{LEFT} {at:.1}H{right}\"/>");
            let _ = write!(
                svg,
                "<text class=\"label end\" x=\"{}\" y=\"{:.1}\">{}</text>",
                LEFT - 8.0,
                at + 5.0,
                escape(&label)
            );
        }
        let _ = write!(svg, "<path class=\"axis\" d=\"M{LEFT} {foot}H{right}\"/>");
        let middle = (LEFT + right) / 2.0;
        if !self.x.is_empty() {
            let _ = write!(
                svg,
                "<text class=\"name middle\" x=\"{middle}\" y=\"{}\">{}</text>",
                HEIGHT - 8.0,
                escape(&self.x)
            );
        }
        if !self.y.is_empty() {
            let _ = write!(
                svg,
                "<text class=\"name middle\" transform=\"translate(14 {}) rotate(-90)\">{}</text>",
                (TOP + foot) / 2.0,
                escape(&self.y)
            );
        }
    }

    fn draw_marks(&self, svg: &mut String, y: &Axis) {
        for (label, value) in &self.marks {
            let Some(at) = y.position(*value).map(up) else {
                continue;
            };
            let right = WIDTH - RIGHT;
            let _ = write!(svg, "<path class=\"mark\" d=\"M{LEFT} {at:.1}H{right}\"/>");
            let _ = write!(
                svg,
                "<text class=\"value end\" x=\"{}\" y=\"{:.1}\">{}</text>",
                right - 4.0,
                at - 5.0,
                escape(label)
            );
        }
    }
}

/// Classes that give the `index`-th curve its colour and stroke, in drawing and legend.
pub(super) fn class(index: usize) -> String {
    format!("c{}{}", index % COLOURS, if index >= COLOURS { " again" } else { "" })
}

impl Curve {
    fn draw(&self, svg: &mut String, index: usize, x: &Axis, y: &Axis) {
        let place = |(a, b): (f64, f64)| Some((across(x.position(a)?), up(y.position(b)?)));
        let class = class(index);
        if !self.band.is_empty() {
            let edge = |pick: fn(&(f64, f64)) -> f64| {
                let ends = self
                    .points
                    .iter()
                    .zip(&self.band)
                    .map(move |(point, band)| (point.0, pick(band)));
                ends.filter_map(place).collect::<Vec<_>>()
            };
            let (low, high) = (edge(|band| band.0), edge(|band| band.1));
            let outline: Vec<String> = low
                .iter()
                .chain(high.iter().rev())
                .map(|(x, y)| format!("{x:.1},{y:.1}"))
                .collect();
            let _ =
                write!(svg, "<polygon class=\"band {class}\" points=\"{}\"/>", outline.join(" "));
        }
        let placed: Vec<_> = self.points.iter().map(|point| place(*point)).collect();
        if self.joined {
            // A gap wherever a value cannot be shown.
            for piece in placed.split(Option::is_none) {
                let piece: Vec<String> =
                    piece.iter().flatten().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
                if piece.len() > 1 {
                    let _ = write!(
                        svg,
                        "<polyline class=\"line {class}\" points=\"{}\"/>",
                        piece.join(" ")
                    );
                }
            }
        }
        // Few points are worth seeing one by one.
        if !self.joined || self.points.len() <= 12 {
            for (point, (cx, cy)) in
                self.points.iter().zip(&placed).filter_map(|(p, at)| Some((p, (*at)?)))
            {
                let _ = write!(
                    svg,
                    "<circle class=\"dot {class}\" cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"3.5\"><title>{}: {}, {}</title></circle>",
                    escape(&self.name),
                    format::number(point.0),
                    format::number(point.1)
                );
            }
        }
    }
}

/// Horizontal place of a position between 0 and 1.
fn across(position: f64) -> f64 {
    LEFT + position * (WIDTH - LEFT - RIGHT)
}

/// Vertical place of a position between 0 and 1.
fn up(position: f64) -> f64 {
    HEIGHT - BOTTOM - position * (HEIGHT - TOP - BOTTOM)
}

fn shortened(text: &str, room: usize) -> String {
    if text.chars().count() <= room {
        return text.to_owned();
    }
    text.chars().take(room.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawings_hold_their_data_and_escape_names() {
        let svg = Plot::new("a < b")
            .line("x & y", [(0.0, 0.0), (1.0, f64::NAN), (2.0, 1.0), (3.0, 2.0)])
            .to_svg();
        assert!(svg.contains("a &lt; b") && svg.contains("x &amp; y"));
        // The gap leaves one piece of two points.
        assert_eq!(svg.matches("<polyline").count(), 1);
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
        let bars =
            Plot::new("bars").bar("one", 1.0, Some((0.8, 1.2))).bar("two", -2.0, None).to_svg();
        assert_eq!(
            (bars.matches("<rect class=\"bar").count(), bars.matches("whisker\"").count()),
            (2, 1)
        );
    }

    #[test]
    fn a_ninth_curve_differs_from_the_first_in_drawing_and_legend() {
        let line = [(0.0, 0.0), (1.0, 1.0)];
        let plot = (0..9).fold(Plot::new("many"), |plot, i| plot.line(format!("n{i}"), line));
        let svg = plot.to_svg();
        for class in ["line c0", "line c0 again", "circle class=\"c0", "circle class=\"c0 again"] {
            assert_eq!(svg.matches(&format!("{class}\"")).count(), 1, "{class}");
        }
    }

    #[test]
    fn strange_data_draw_something_valid() {
        let strange = [
            Plot::new("empty"),
            Plot::new("nan").line("a", [(f64::NAN, f64::NAN)]),
            Plot::new("one").points("a", [(1.0, 1.0)]).log_x().log_y(),
            Plot::new("negative").line("a", [(-1.0, -1.0), (-2.0, 0.0)]).log_x().log_y(),
            Plot::new("huge").line("a", [(0.0, 1e308), (1.0, -1e308)]),
            Plot::new("band").band("a", [(0.0, 1.0, 0.5, 1.5), (1.0, 2.0, 1.0, 3.0)]),
        ];
        for plot in strange {
            let svg = plot.to_svg();
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{}", plot.title);
            assert!(svg.ends_with("</svg>"));
        }
    }
}
