//! Charts as SVG, drawn here so that the page needs nothing from anywhere.

use std::fmt::Write as _;

const WIDTH: f64 = 860.0;
const LABEL: f64 = 190.0;
const BAR: f64 = 20.0;

/// One bar: its name, what it is long, and how it is written.
pub(super) struct Bar {
    pub(super) name: String,
    pub(super) value: f64,
    pub(super) told: String,
}

/// Horizontal bars from nought.
pub(super) fn bars(bars: &[Bar]) -> String {
    let most = bars.iter().map(|bar| bar.value).filter(|v| v.is_finite()).fold(0.0, f64::max);
    let height = BAR * 1.3 * bars.len() as f64 + 4.0;
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\">");
    for (i, bar) in bars.iter().enumerate() {
        let y = BAR * 1.3 * i as f64;
        let width = match bar.value.is_finite() && most > 0.0 {
            true => (WIDTH - LABEL - 120.0) * bar.value.max(0.0) / most,
            false => 0.0,
        };
        let (text, end) = (y + BAR * 0.72, LABEL + width + 6.0);
        let _ = write!(
            svg,
            "<text x=\"{:.0}\" y=\"{text:.1}\" text-anchor=\"end\">{}</text>\
             <rect class=\"{}\" x=\"{LABEL:.0}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{BAR:.0}\"/>\
             <text x=\"{end:.1}\" y=\"{text:.1}\">{}</text>",
            LABEL - 8.0,
            bar.name,
            class(&bar.name),
            bar.told
        );
    }
    svg + "</svg>"
}

/// One line: its name and points.
pub(super) struct Line {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
}

/// Lines over two axes; `x` and `y` say where a value is, and how its mark is written.
pub(super) fn lines(lines: &[Line], x: &Axis, y: &Axis) -> String {
    const HEIGHT: f64 = 300.0;
    const BOTTOM: f64 = 26.0;
    const LEFT: f64 = 70.0;
    const RIGHT: f64 = 180.0;
    let at_x = |value: f64| LEFT + (WIDTH - LEFT - RIGHT) * x.place(value);
    let at_y = |value: f64| (HEIGHT - BOTTOM) - (HEIGHT - BOTTOM - 10.0) * y.place(value);
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">");
    for (value, told) in &x.marks {
        let at = at_x(*value);
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"10\" y2=\"{:.0}\"/>\
             <text x=\"{at:.1}\" y=\"{:.0}\" text-anchor=\"middle\">{told}</text>",
            HEIGHT - BOTTOM,
            HEIGHT - 8.0
        );
    }
    for (value, told) in &y.marks {
        let at = at_y(*value);
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.0}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{told}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            at + 4.0
        );
    }
    // Names at the lines' ends, moved apart.
    let mut ends: Vec<(f64, &Line)> =
        lines.iter().filter_map(|l| Some((at_y(l.points.last()?.1), l))).collect();
    ends.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut lowest = 0.0_f64;
    for (at, line) in ends {
        let points: Vec<String> =
            line.points.iter().map(|(a, b)| format!("{:.1},{:.1}", at_x(*a), at_y(*b))).collect();
        let label = at.max(lowest + 14.0);
        lowest = label;
        let class = class(&line.name);
        let _ = write!(
            svg,
            "<polyline class=\"{class}\" points=\"{}\"/><text class=\"{class}\" x=\"{:.0}\" \
             y=\"{:.1}\">{}</text>",
            points.join(" "),
            WIDTH - RIGHT + 8.0,
            label + 4.0,
            line.name
        );
    }
    svg + "</svg>"
}

/// A logarithmic axis.
pub(super) struct Axis {
    least: f64,
    most: f64,
    pub(super) marks: Vec<(f64, String)>,
}

impl Axis {
    /// From `least` to `most`, both above nought.
    pub(super) fn new(least: f64, most: f64, marks: Vec<(f64, String)>) -> Self {
        Self { least, most: most.max(least * 1.01), marks }
    }

    /// Powers of ten between, by what they are called.
    pub(super) fn of_tens(least: f64, most: f64, unit: &str) -> Self {
        let (first, last) = (least.log10().floor() as i32, most.log10().ceil() as i32);
        let marks = (first..=last).map(|power| 10f64.powi(power));
        let marks = marks.filter(|mark| (least..=most).contains(mark));
        Self::new(least, most, marks.map(|mark| (mark, format!("{mark} {unit}"))).collect())
    }

    fn place(&self, value: f64) -> f64 {
        let place = (value.max(self.least) / self.least).ln() / (self.most / self.least).ln();
        place.clamp(0.0, 1.0)
    }
}

/// How a lane is coloured.
fn class(name: &str) -> &'static str {
    match name {
        _ if name.starts_with("no-mesh") => "plain",
        _ if name.starts_with("envoy") => "envoy",
        _ if name.starts_with("mesh") => "mesh",
        _ => "other",
    }
}
