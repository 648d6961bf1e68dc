//! From samples to a report: one page, the same as Markdown, the same as JSON.

mod chart;
mod html;
mod markdown;
mod targets;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::{
    bed::settings_told,
    lane::{Contender, Place, Settings, lane_name},
    machine::Machine,
    running::{self, Program},
    sample::{Figure, Journal, Sample},
    workload::{self, Unit, Workload},
};

/// Everything that is shown.
#[derive(Debug, Serialize)]
pub(crate) struct Report<'a> {
    machine: &'a Machine,
    /// With equal settings.
    alike: Part,
    /// With none, where that was measured too.
    as_shipped: Option<Part>,
    figures: &'a [Figure],
    targets: Vec<targets::Target>,
}

/// What was measured by the same settings.
#[derive(Debug, Serialize)]
struct Part {
    settings: Settings,
    settings_told: serde_json::Value,
    rounds: usize,
    samples: usize,
    disturbed: usize,
    tables: Vec<Table>,
    programs: Vec<Program>,
}

/// One load, by lane.
#[derive(Debug, Serialize)]
struct Table {
    load: &'static str,
    title: &'static str,
    per: &'static str,
    rows: Vec<Row>,
}

/// One lane under one load: medians over rounds.
#[derive(Debug, Clone, Serialize)]
struct Row {
    lane: String,
    rounds: usize,
    errors: u64,
    /// Requests or MiB a second.
    rate: f64,
    /// To no mesh in the same place and round.
    ratio: f64,
    /// The least and the most of it.
    ratio_spread: (f64, f64),
    p50_us: f64,
    p99_us: f64,
    /// All that ran, kernel included, in µs for each unit.
    cpu_us: f64,
    /// What that is more than without a mesh, in the same round.
    mesh_us: f64,
    /// Of it, what the proxies were charged.
    proxies_us: f64,
    /// Percent and µs.
    latency: Vec<(f64, f64)>,
}

/// Writes all forms, and says where.
pub(crate) fn write(out: &Path, machine: &Machine, journal: &Journal) -> Vec<PathBuf> {
    let part = |settings| Part::of(settings, out, journal);
    let (alike, as_shipped) = (part(Settings::Equal), part(Settings::AsShipped));
    let report = Report {
        machine,
        targets: targets::all(&alike.tables, &journal.figures),
        alike,
        as_shipped: Some(as_shipped).filter(|part| part.samples > 0),
        figures: &journal.figures,
    };
    let json = serde_json::to_string_pretty(&report).expect("it is JSON");
    let forms = [
        ("report.html", html::page(&report)),
        ("report.md", markdown::page(&report)),
        ("report.json", json),
    ];
    forms
        .map(|(name, text)| {
            let path = out.join(name);
            fs::write(&path, text).unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
            path
        })
        .into()
}

impl Part {
    fn of(settings: Settings, out: &Path, journal: &Journal) -> Self {
        let samples: Vec<&Sample> =
            journal.samples.iter().filter(|sample| sample.settings == settings).collect();
        Self {
            settings,
            settings_told: settings_told(settings),
            rounds: samples.iter().map(|sample| sample.round).collect::<BTreeSet<_>>().len(),
            samples: samples.len(),
            disturbed: samples.iter().filter(|sample| sample.disturbed).count(),
            tables: tables(&samples),
            programs: running::kept(out, settings),
        }
    }
}

fn tables(samples: &[&Sample]) -> Vec<Table> {
    workload::ALL
        .iter()
        .map(|load| table(load, samples))
        .filter(|table| !table.rows.is_empty())
        .collect()
}

fn table(load: &Workload, samples: &[&Sample]) -> Table {
    let mut lanes: BTreeMap<(usize, &str), Vec<&Sample>> = BTreeMap::new();
    for &sample in samples.iter().filter(|sample| sample.load == load.name) {
        lanes.entry((order(&sample.lane), &sample.lane)).or_default().push(sample);
    }
    let rows = lanes
        .iter()
        .map(|((_, lane), taken)| {
            let baseline = Place::ALL
                .into_iter()
                .find(|place| lane.ends_with(place.name()))
                .map(|place| lane_name(Contender::NoMesh.name(), place));
            let plain = lanes.iter().find(|((_, name), _)| Some(*name) == baseline.as_deref());
            row(lane, taken, plain.map_or(&[][..], |(_, plain)| plain))
        })
        .collect();
    let per = match load.unit {
        Unit::Request => "request",
        Unit::Mebibyte => "MiB",
    };
    Table { load: load.name, title: load.title, per, rows }
}

/// A lane's place in tables.
fn order(lane: &str) -> usize {
    let known = Place::ALL.into_iter().flat_map(|place| {
        Contender::ALL.into_iter().map(move |contender| lane_name(contender.name(), place))
    });
    known.into_iter().position(|name| name == lane).unwrap_or(usize::MAX)
}

fn row(lane: &str, taken: &[&Sample], plain: &[&Sample]) -> Row {
    // What was disturbed counts only where there is nothing else.
    let calm: Vec<&Sample> = taken.iter().copied().filter(|sample| !sample.disturbed).collect();
    let used = if calm.is_empty() { taken.to_vec() } else { calm };
    let beside = |sample: &Sample| plain.iter().find(|plain| plain.round == sample.round).copied();
    let pairs: Vec<(&Sample, &Sample)> =
        used.iter().filter_map(|sample| Some((*sample, beside(sample)?))).collect();
    let ratios: Vec<f64> = pairs.iter().map(|(mine, plain)| mine.rate() / plain.rate()).collect();
    let cpu = |sample: &Sample| sample.bed_cpu_us / sample.units();
    let percents: Vec<f64> =
        used.first().map(|s| s.latency_us.iter().map(|(p, _)| *p).collect()).unwrap_or_default();
    let latency =
        percents.into_iter().map(|p| (p, median(used.iter().map(|s| s.percentile(p))))).collect();
    Row {
        lane: lane.to_owned(),
        rounds: used.len(),
        errors: used.iter().map(|sample| sample.errors).sum(),
        rate: median(used.iter().map(|sample| sample.rate())),
        ratio: median(ratios.iter().copied()),
        ratio_spread: (
            ratios.iter().copied().fold(f64::INFINITY, f64::min),
            ratios.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        ),
        p50_us: median(used.iter().map(|sample| sample.percentile(50.0))),
        p99_us: median(used.iter().map(|sample| sample.percentile(99.0))),
        cpu_us: median(used.iter().map(|sample| cpu(sample))),
        mesh_us: median(pairs.iter().map(|(mine, plain)| cpu(mine) - cpu(plain))),
        proxies_us: median(used.iter().map(|sample| sample.mesh_cpu_us / sample.units())),
        latency,
    }
}

fn plural(table: &Table) -> &'static str {
    if table.per == "MiB" { "MiB" } else { "requests" }
}

/// NaN of nothing.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.filter(|value| value.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

/// A figure as people read it: three digits that mean something.
fn shown(value: f64) -> String {
    match value.abs() {
        _ if !value.is_finite() => "–".to_owned(),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
