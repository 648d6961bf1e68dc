//! Charts, drawn here so that the page needs nothing from anywhere: bars by the page's own
//! layout, which fits a telephone too, lines as SVG.

use std::fmt::Write as _;

const WIDTH: f64 = 860.0;

/// One bar: its name, what it is long, the least and the most that was seen, and how it is
/// written.
pub(super) struct Bar {
    pub(super) name: String,
    pub(super) value: f64,
    pub(super) spread: (f64, f64),
    pub(super) told: String,
}

/// Horizontal bars from nought, each with its spread.
pub(super) fn bars(bars: &[Bar]) -> String {
    // Of the line's width, what the longest takes: the figure stands behind it.
    const LONGEST: f64 = 62.0;
    let finite = |value: f64| if value.is_finite() { value.max(0.0) } else { 0.0 };
    let end = |bar: &Bar| finite(bar.value).max(finite(bar.spread.1));
    let most = bars.iter().map(end).fold(f64::MIN_POSITIVE, f64::max);
    let mut chart = "<div class=\"bars\">".to_owned();
    for bar in bars {
        let share = |part: f64| 100.0 * finite(part) / end(bar).max(f64::MIN_POSITIVE);
        let (least, wide) = (share(bar.spread.0), share(bar.spread.1 - bar.spread.0));
        let _ = write!(
            chart,
            "<span>{}</span><div class=\"bar\"><i style=\"--c:var({});width:{:.2}%\">\
             <u style=\"width:{:.1}%\"></u><b style=\"left:{least:.1}%;width:{wide:.1}%\"></b>\
             </i>{}</div>",
            bar.name,
            colour(&bar.name),
            LONGEST * end(bar) / most,
            share(bar.value),
            bar.told
        );
    }
    chart + "</div>"
}

/// One line: its name and points.
pub(super) struct Line {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
}

/// Lines over two axes; `x` and `y` say where a value is, and how its mark is written.
pub(super) fn lines(lines: &[Line], x: &Axis, y: &Axis) -> String {
    const HEIGHT: f64 = 320.0;
    const BOTTOM: f64 = 26.0;
    const LEFT: f64 = 70.0;
    const RIGHT: f64 = 180.0;
    /// Between two names at the right.
    const APART: f64 = 15.0;
    let at_x = |value: f64| LEFT + (WIDTH - LEFT - RIGHT) * x.place(value);
    let at_y = |value: f64| (HEIGHT - BOTTOM) - (HEIGHT - BOTTOM - 10.0) * y.place(value);
    let mut svg =
        format!("<div class=\"scroll\"><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">");
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
    // Names at the lines' ends, moved apart, and up again where they would leave the chart.
    let mut ends: Vec<(f64, &Line)> =
        lines.iter().filter_map(|l| Some((at_y(l.points.last()?.1), l))).collect();
    ends.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut lowest = f64::NEG_INFINITY;
    for (at, _) in &mut ends {
        *at = at.max(lowest + APART);
        lowest = *at;
    }
    let mut highest = HEIGHT - BOTTOM + APART;
    for (at, _) in ends.iter_mut().rev() {
        *at = at.min(highest - APART);
        highest = *at;
    }
    for (label, line) in ends {
        let points: Vec<String> =
            line.points.iter().map(|(a, b)| format!("{:.1},{:.1}", at_x(*a), at_y(*b))).collect();
        let ours = line.name.starts_with("mesh");
        let _ = write!(
            svg,
            "<g style=\"--c:var({})\"><polyline class=\"{}\" points=\"{}\"/>\
             <text class=\"line\" x=\"{:.0}\" y=\"{:.1}\">{}</text></g>",
            colour(&line.name),
            if ours { "" } else { "dashed" },
            points.join(" "),
            WIDTH - RIGHT + 8.0,
            label + 4.0,
            line.name
        );
    }
    svg + "</svg></div>"
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

    /// Powers of ten between, or ones, twos and fives of them where those are few; in `unit`.
    pub(super) fn of_tens(least: f64, most: f64, unit: &str) -> Self {
        let (first, last) = (least.log10().floor() as i32, most.log10().ceil() as i32);
        let between = |steps: &[f64]| -> Vec<f64> {
            let powers = (first..=last).map(|power| 10f64.powi(power));
            let marks = powers.flat_map(|power| steps.iter().map(move |step| step * power));
            marks.filter(|mark| (least..=most).contains(mark)).collect()
        };
        let mut marks = between(&[1.0]);
        if marks.len() < 4 {
            marks = between(&[1.0, 2.0, 5.0]);
        }
        let told = marks.into_iter().map(|mark| (mark, format!("{mark} {unit}")));
        Self::new(least, most, told.collect())
    }

    fn place(&self, value: f64) -> f64 {
        let place = (value.max(self.least) / self.least).ln() / (self.most / self.least).ln();
        place.clamp(0.0, 1.0)
    }
}

/// How a contender is coloured: the name of a property of the style sheet.
fn colour(name: &str) -> &'static str {
    match name {
        "no-mesh" => "--no-mesh",
        "envoy-http" | "envoy sidecars" => "--envoy-http",
        "envoy-tcp" => "--envoy-tcp",
        "haproxy" => "--haproxy",
        "mesh-l7" | "mesh" => "--mesh-l7",
        "mesh-l4" => "--mesh-l4",
        "mesh-l4-redirect" => "--redirect",
        "mesh-l4-splice" => "--splice",
        "mesh-l4-proxied" => "--proxied",
        "mesh-l4-proxied-splice" => "--proxied-splice",
        "mesh-l7-splice" => "--l7-splice",
        _ => "--other",
    }
}
