//! The report for people: one page that needs nothing else.

use std::fmt::Write as _;

use super::{
    CALM_TOLD, Figure, Part, Place, Report, Row, Settings, Table,
    chart::{self, Axis, Bar, Line},
    figure_lanes, figure_lines, ratio_shown, shown, spread_shown,
};

const STYLE: &str = include_str!("style.css");

pub(super) fn page(report: &Report<'_>) -> String {
    let mut page = String::new();
    let _ = head(&mut page, report);
    let _ = contents(&mut page, report);
    let _ = targets(&mut page, report);
    for part in report.parts() {
        let _ = measured(&mut page, part);
        if part.settings == Settings::Equal {
            let _ = figures(&mut page, report.figures);
        }
    }
    if report.alike.is_none() {
        let _ = figures(&mut page, report.figures);
    }
    for part in report.parts() {
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
         <p>{}; {} × {}, {} MiB, Linux {}.<br>{} · Envoy {} · HAProxy {} · {} ({})</p>",
        text(&machine.date),
        machine.cpus,
        text(&machine.cpu),
        machine.memory_mib,
        text(&machine.kernel),
        text(&machine.nginx),
        text(&machine.envoy),
        text(&machine.haproxy),
        text(&machine.agent),
        text(&machine.agent_build),
    )?;
    for failure in &report.failures {
        write!(page, "<p class=\"no\">{}</p>", text(&failure.told()))?;
    }
    write!(
        page,
        "<p class=\"note\">Figures are medians of interleaved rounds; the mark in a bar is the \
         least and the most that was seen. A ratio is to no mesh in the same place and the same \
         round. CPU counts everything that ran for a request or MiB: load, origin, proxies and \
         kernel; the mesh's part is what that is more than without one. {CALM_TOLD}</p>"
    )
}

fn contents(page: &mut String, report: &Report<'_>) -> std::fmt::Result {
    write!(page, "<nav><a href=\"#targets\">Targets</a>")?;
    for part in report.parts() {
        write!(page, "<a href=\"#{}\">{}</a>", prefix(part), title(part))?;
        for table in &part.tables {
            let (of, load) = (prefix(part), table.load);
            write!(page, "<a href=\"#{of}-{load}\">– {}</a>", text(table.title))?;
        }
    }
    write!(
        page,
        "<a href=\"#figures\">Memory, start, restart, upgrade</a>\
         <a href=\"#programs\">Programs and their configuration</a></nav>"
    )
}

fn prefix(part: &Part) -> &'static str {
    match part.settings {
        Settings::Equal => "alike",
        Settings::AsShipped => "shipped",
    }
}

fn title(part: &Part) -> &'static str {
    match part.settings {
        Settings::Equal => "With equal settings",
        Settings::AsShipped => "As shipped",
    }
}

fn measured(page: &mut String, part: &Part) -> std::fmt::Result {
    write!(
        page,
        "<h1 id=\"{}\">{}</h1><p class=\"note\">{} samples in {} interleaved rounds, {} of them \
         disturbed.</p><dl>",
        prefix(part),
        title(part),
        part.samples,
        part.rounds,
        part.disturbed
    )?;
    for (what, told) in part.settings_told {
        write!(page, "<dt>{}</dt><dd>{}</dd>", text(what), text(told))?;
    }
    write!(page, "</dl>")?;
    part.tables.iter().try_for_each(|table| load(page, prefix(part), table))
}

/// Folded: who wants to check or repeat it opens them.
fn programs(page: &mut String, part: &Part) -> std::fmt::Result {
    let id = if part.settings == Settings::Equal { " id=\"programs\"" } else { "" };
    write!(page, "<h2{id}>Programs and their configuration: {}</h2>", title(part))?;
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
        "<h2 id=\"targets\">Targets</h2><div class=\"scroll\"><table><tr><th></th><th>goal</th>\
         <th>seen</th><th>Envoy</th><th></th><th>goal as mesh<br>CPU µs, there</th><th>here</th>\
         <th>mesh CPU µs<br>seen</th><th>Envoy</th></tr>"
    )?;
    for target in &report.targets {
        let (class, verdict) = match target.reached {
            Some(true) => ("yes", "reached"),
            Some(false) => ("no", "missed"),
            None => ("open", "not measured"),
        };
        write!(
            page,
            "<tr><td class=\"long\">{}</td><td>{}</td><td>{}</td><td>{}</td>\
             <td class=\"{class}\">{verdict}{}</td>",
            text(target.what),
            text(&target.goal),
            shown(target.seen),
            shown(target.envoy),
            target.doubt()
        )?;
        for value in target.cpu_columns() {
            write!(page, "<td>{value}</td>")?;
        }
        write!(page, "</tr>")?;
    }
    write!(page, "</table></div><p class=\"note\">{}</p>", text(super::targets::AS_CPU_TOLD))
}

fn load(page: &mut String, prefix: &str, table: &Table) -> std::fmt::Result {
    let (per, plural) = (table.per, table.plural());
    write!(page, "<h2 id=\"{prefix}-{}\">{}</h2>", table.load, text(table.title))?;
    for (place, rows) in table.by_place() {
        let rates: Vec<Bar> = rows
            .iter()
            .map(|row| Bar {
                name: text(row.contender()),
                value: row.rate,
                spread: row.rate_spread,
                told: format!("{} ×{}", shown(row.rate), shown(row.ratio)),
            })
            .collect();
        let cpu: Vec<Bar> = rows
            .iter()
            .map(|row| Bar {
                name: text(row.contender()),
                value: row.cpu_us,
                spread: row.cpu_spread,
                told: format!("{} µs", shown(row.cpu_us)),
            })
            .collect();
        write!(
            page,
            "<h3>{}</h3><div class=\"pair\"><div><p class=\"note\">{plural} a second, and the \
             ratio to no mesh</p>{}</div><div><p class=\"note\">CPU for each {per}</p>{}</div></div>",
            match place {
                Place::Across => "Across nodes",
                Place::Same => "On one node",
            },
            chart::bars(&rates),
            chart::bars(&cpu)
        )?;
        if table.has_latency() {
            write!(page, "<p class=\"note\">latency by percentile</p>{}", latency(&rows))?;
        }
    }
    let latency = if table.has_latency() { "<th>p50 µs</th><th>p99 µs</th>" } else { "" };
    write!(
        page,
        "<h3>Figures</h3><div class=\"scroll\"><table><tr><th></th><th>{plural}/s</th><th>×</th>\
         <th>least–most</th>{latency}<th>CPU µs</th><th>mesh µs</th><th>proxies µs</th>\
         <th>rounds</th><th>pairs</th><th>errors</th></tr>"
    )?;
    for row in &table.rows {
        let class = if row.lane.starts_with("mesh") { " class=\"mesh\"" } else { "" };
        let latency = match table.has_latency() {
            true => format!("<td>{}</td><td>{}</td>", shown(row.p50_us), shown(row.p99_us)),
            false => String::new(),
        };
        let [rounds, pairs] = row.rounds_shown();
        write!(
            page,
            "<tr{class}><td>{}</td><td>{}</td><td>{}</td><td>{}</td>{latency}<td>{}</td>\
             <td>{}</td><td>{}</td><td>{rounds}</td><td>{pairs}</td><td>{}</td></tr>",
            text(&row.lane),
            shown(row.rate),
            ratio_shown(row.ratio),
            spread_shown(row.ratio_spread),
            shown(row.cpu_us),
            shown(row.mesh_us),
            shown(row.proxies_us),
            row.errors
        )?;
    }
    write!(page, "</table></div>")
}

/// Over how rare a latency is: 1 in 2, in 10, in 100.
fn latency(rows: &[&Row]) -> String {
    const RAREST: f64 = 1e4;
    let lines: Vec<Line> = rows
        .iter()
        .map(|row| Line {
            name: text(row.contender()),
            points: row
                .latency
                .iter()
                .filter(|(percent, us)| (0.0..100.0).contains(percent) && us.is_finite())
                .map(|(percent, us)| ((100.0 / (100.0 - percent)).min(RAREST), us.max(1.0)))
                .collect(),
        })
        .collect();
    let all = || lines.iter().flat_map(|line| &line.points).map(|(_, us)| *us);
    let (least, most) = (all().fold(f64::INFINITY, f64::min), all().fold(1.0, f64::max));
    let marks =
        [(1.0, "0"), (2.0, "50"), (10.0, "90"), (100.0, "99"), (1000.0, "99.9"), (1e4, "99.99")];
    let x = Axis::new(1.0, RAREST, marks.map(|(at, told)| (at, format!("{told} %"))).into());
    chart::lines(&lines, &x, &Axis::of_tens(least.min(most), most, "µs"))
}

fn figures(page: &mut String, figures: &[Figure]) -> std::fmt::Result {
    if figures.is_empty() {
        return Ok(());
    }
    write!(page, "<h2 id=\"figures\">Memory, start, restart, upgrade</h2>")?;
    for (figure, unit, what) in [
        ("memory", "MiB", "pods"),
        ("memory by services", "MiB", "services"),
        ("start", "s", "pods"),
        ("idle CPU", "ms/s", "pods"),
    ] {
        let mut lines: Vec<Line> = Vec::new();
        // A logarithmic axis has no nought.
        for point in figures.iter().filter(|point| point.figure == figure && point.value > 0.0) {
            let at = (point.at as f64, point.value);
            match lines.iter_mut().find(|line| line.name == point.lane) {
                Some(line) => line.points.push(at),
                None => lines.push(Line { name: text(&point.lane), points: vec![at] }),
            }
        }
        lines.iter_mut().for_each(|line| line.points.sort_by(|a, b| a.0.total_cmp(&b.0)));
        let all = || lines.iter().flat_map(|line| line.points.iter().copied());
        if lines.iter().any(|line| line.points.len() > 1) {
            let (least_x, most_x) = range(all().map(|(x, _)| x));
            let (least_y, most_y) = range(all().map(|(_, y)| y));
            let x = Axis::of_tens(least_x, most_x, what);
            let y = Axis::of_tens(least_y * 0.8, most_y * 1.2, unit);
            write!(
                page,
                "<p class=\"note\">{figure}, {unit}, by {what}</p>{}",
                chart::lines(&lines, &x, &y)
            )?;
        }
    }
    write!(page, "<div class=\"scroll\"><table><tr><th></th><th>at</th>")?;
    for lane in figure_lanes(figures) {
        write!(page, "<th>{}</th>", text(lane))?;
    }
    write!(page, "<th></th></tr>")?;
    for line in figure_lines(figures) {
        write!(page, "<tr><td>{}</td><td>{}</td>", text(line.figure), line.at)?;
        for value in line.values {
            write!(page, "<td>{}</td>", shown(value))?;
        }
        write!(page, "<td>{}</td></tr>", text(line.unit))?;
    }
    write!(page, "</table></div>")
}

fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), v| (least.min(v), most.max(v)))
}

/// Fit for a page, whatever a plug-in is called.
fn text(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
