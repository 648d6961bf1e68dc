//! The report for people: one page that needs nothing else.

use std::fmt::Write as _;

use super::{
    Figure, Part, Report, Row, Settings, Table,
    chart::{self, Axis, Bar, Line},
    shown,
};

const STYLE: &str = "
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2733; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2.5rem }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .5rem; border-bottom: 1px solid #e3e8ee; text-align: right }
th:first-child, td:first-child { text-align: left }
tr.mesh td:first-child { font-weight: 600 }
.yes { color: #0a7a3d } .no { color: #b3261e; font-weight: 600 } .open { color: #77828f }
svg { width: 100%; height: auto; font: 12px system-ui, sans-serif }
svg text { fill: #1c2733 }
rect.plain { fill: #b8c2cc } rect.envoy { fill: #d08a2e } rect.mesh { fill: #2f6fd0 }
rect.other { fill: #7f8c99 }
polyline { fill: none; stroke-width: 2 } .grid { stroke: #e3e8ee }
polyline.plain { stroke: #98a4b0 } polyline.envoy { stroke: #d08a2e }
polyline.mesh { stroke: #2f6fd0 } polyline.other { stroke: #7f8c99 }
p.note { color: #55606c }
pre { font-size: .8rem; white-space: pre-wrap; overflow-wrap: anywhere }
";

pub(super) fn page(report: &Report<'_>) -> String {
    let mut page = String::new();
    let _ = head(&mut page, report);
    let _ = targets(&mut page, report);
    for table in &report.alike.tables {
        let _ = load(&mut page, table);
    }
    let _ = figures(&mut page, report.figures);
    if let Some(part) = &report.as_shipped {
        let _ = write!(page, "<h1>As shipped</h1>");
        let _ = told(&mut page, part);
        for table in &part.tables {
            let _ = load(&mut page, table);
        }
    }
    for part in [Some(&report.alike), report.as_shipped.as_ref()].into_iter().flatten() {
        let _ = programs(&mut page, part);
    }
    page + "</body></html>\n"
}

fn head(page: &mut String, report: &Report<'_>) -> std::fmt::Result {
    let machine = report.machine;
    write!(
        page,
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>Comparison</title>\
         <style>{STYLE}</style></head><body><h1>No mesh, sidecars, node agent</h1>\
         <p>{}; {} × {}, {} MiB, Linux {}.<br>{} · Envoy {} · HAProxy {} · {}</p>",
        text(&machine.date),
        machine.cpus,
        text(&machine.cpu),
        machine.memory_mib,
        text(&machine.kernel),
        text(&machine.nginx),
        text(&machine.envoy),
        text(&machine.haproxy),
        text(&machine.agent),
    )?;
    told(page, &report.alike)
}

/// How it was measured.
fn told(page: &mut String, part: &Part) -> std::fmt::Result {
    write!(
        page,
        "<p class=\"note\">{} samples in {} interleaved rounds; {} were disturbed by other \
         programs and count only where there is nothing else. Figures are medians. A ratio is \
         to no mesh in the same place and the same round. CPU counts everything that ran for a \
         request or MiB: load, origin, proxies and kernel; the mesh's part is what that is more \
         than without one.</p><ul>",
        part.samples, part.rounds, part.disturbed
    )?;
    for (what, told) in part.settings_told.as_object().into_iter().flatten() {
        let told = text(told.as_str().unwrap_or_default());
        write!(page, "<li>{}: {told}</li>", text(&what.replace('_', " ")))?;
    }
    write!(page, "</ul>")
}

/// Folded: who wants to check or repeat it opens them.
fn programs(page: &mut String, part: &Part) -> std::fmt::Result {
    let of = match part.settings {
        Settings::Equal => "Programs and their configuration",
        Settings::AsShipped => "Programs and their configuration, as shipped",
    };
    write!(page, "<h2>{of}</h2>")?;
    for program in &part.programs {
        let (of, command) = (text(&program.of), text(&program.command));
        write!(page, "<details><summary>{of}</summary><pre>{command}</pre>")?;
        for (name, file) in &program.files {
            write!(page, "<p>{}</p><pre>{}</pre>", text(name), text(file))?;
        }
        write!(page, "</details>")?;
    }
    Ok(())
}

fn targets(page: &mut String, report: &Report<'_>) -> std::fmt::Result {
    write!(
        page,
        "<h2>Targets</h2><table><tr><th></th><th>goal</th><th>seen</th><th>Envoy</th><th></th></tr>"
    )?;
    for target in &report.targets {
        let (class, verdict) = match target.reached {
            Some(true) => ("yes", "reached"),
            Some(false) => ("no", "missed"),
            None => ("open", "not measured"),
        };
        write!(
            page,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td class=\"{class}\">{verdict}</td></tr>",
            text(target.what),
            text(&target.goal),
            shown(target.seen),
            shown(target.envoy)
        )?;
    }
    write!(page, "</table>")
}

fn load(page: &mut String, table: &Table) -> std::fmt::Result {
    let (per, plural) = (table.per, super::plural(table));
    write!(page, "<h2>{}</h2>", text(table.title))?;
    let bars = |value: fn(&Row) -> f64, told: fn(&Row) -> String| -> String {
        let bars: Vec<Bar> = table
            .rows
            .iter()
            .map(|row| Bar { name: text(&row.lane), value: value(row), told: told(row) })
            .collect();
        chart::bars(&bars)
    };
    let rates = bars(|row| row.rate, |row| format!("{}/s ×{:.2}", shown(row.rate), row.ratio));
    write!(page, "<p class=\"note\">{plural} a second</p>{rates}")?;
    let cpu = bars(|row| row.cpu_us, |row| format!("{} µs", shown(row.cpu_us)));
    write!(page, "<p class=\"note\">CPU for each {per}</p>{cpu}")?;
    if per == "request" {
        write!(page, "<p class=\"note\">latency by percentile</p>{}", latency(&table.rows))?;
    }
    write!(
        page,
        "<table><tr><th></th><th>{plural}/s</th><th>×</th><th>least–most</th><th>p50 µs</th>\
         <th>p99 µs</th><th>CPU µs</th><th>mesh µs</th><th>proxies µs</th><th>errors</th></tr>"
    )?;
    for row in &table.rows {
        let (least, most) = row.ratio_spread;
        let class = if row.lane.starts_with("mesh") { " class=\"mesh\"" } else { "" };
        write!(
            page,
            "<tr{class}><td>{}</td><td>{}</td><td>{:.3}</td><td>{least:.2}–{most:.2}</td><td>{}</td>\
             <td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            text(&row.lane),
            shown(row.rate),
            row.ratio,
            shown(row.p50_us),
            shown(row.p99_us),
            shown(row.cpu_us),
            shown(row.mesh_us),
            shown(row.proxies_us),
            row.errors
        )?;
    }
    write!(page, "</table>")
}

/// Over how rare a latency is: 1 in 2, in 10, in 100.
fn latency(rows: &[Row]) -> String {
    const RAREST: f64 = 1e4;
    let lines: Vec<Line> = rows
        .iter()
        .map(|row| Line {
            name: text(&row.lane),
            points: row
                .latency
                .iter()
                .filter(|(percent, us)| (0.0..100.0).contains(percent) && us.is_finite())
                .map(|(percent, us)| ((100.0 / (100.0 - percent)).min(RAREST), *us))
                .collect(),
        })
        .collect();
    let all = || lines.iter().flat_map(|line| &line.points).map(|(_, us)| us.max(1.0));
    let (least, most) = (all().fold(f64::INFINITY, f64::min), all().fold(1.0, f64::max));
    let marks = [(1.0, "0"), (2.0, "50"), (10.0, "90"), (100.0, "99"), (1000.0, "99.9")];
    let x = Axis::new(1.0, RAREST, marks.map(|(at, told)| (at, format!("{told} %"))).into());
    chart::lines(&lines, &x, &Axis::of_tens(least.min(most), most, "µs"))
}

fn figures(page: &mut String, figures: &[Figure]) -> std::fmt::Result {
    if figures.is_empty() {
        return Ok(());
    }
    write!(page, "<h2>Memory, start, restart</h2>")?;
    for (figure, what) in [("memory", "pods"), ("memory by services", "services")] {
        let mut lines: Vec<Line> = Vec::new();
        for point in figures.iter().filter(|point| point.figure == figure) {
            let at = (point.at as f64, point.value);
            match lines.iter_mut().find(|line| line.name == point.lane) {
                Some(line) => line.points.push(at),
                None => lines.push(Line { name: text(&point.lane), points: vec![at] }),
            }
        }
        lines.iter_mut().for_each(|line| line.points.sort_by(|a, b| a.0.total_cmp(&b.0)));
        let all = || lines.iter().flat_map(|line| line.points.iter().copied());
        if all().count() > 1 {
            let (least_x, most_x) = range(all().map(|(x, _)| x));
            let (least_y, most_y) = range(all().map(|(_, y)| y));
            let x = Axis::of_tens(least_x, most_x, what);
            let y = Axis::of_tens(least_y * 0.8, most_y * 1.2, "MiB");
            write!(page, "<p class=\"note\">{figure}</p>{}", chart::lines(&lines, &x, &y))?;
        }
    }
    write!(page, "<table><tr><th></th><th>of</th><th>at</th><th></th></tr>")?;
    for figure in figures {
        write!(
            page,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{} {}</td></tr>",
            text(&figure.figure),
            text(&figure.lane),
            figure.at,
            shown(figure.value),
            text(&figure.unit)
        )?;
    }
    write!(page, "</table>")
}

fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), v| (least.min(v), most.max(v)))
}

/// Fit for a page, whatever a plug-in is called.
fn text(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
