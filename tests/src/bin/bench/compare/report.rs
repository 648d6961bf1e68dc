//! From samples to a report: one page, the same as Markdown, the same as JSON.

mod chart;
mod html;
mod markdown;
mod targets;
#[cfg(test)]
mod tests;

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
    sample::{Failure, Figure, Journal, Sample},
    workload::{self, Unit, Workload},
};

/// What the report is written into.
pub(crate) const FILES: [&str; 3] = ["report.html", "report.md", "report.json"];

/// For who reads the tables.
const CALM_TOLD: &str = "Samples that other programs disturbed count only where there is nothing \
    else, which is then said: \"rounds\" is how many samples a lane's own figures stand on, \
    \"pairs\" how many rounds its ratios and the mesh's part of the CPU do, both sides calm.";

/// Everything that is shown.
#[derive(Debug, Serialize)]
pub(crate) struct Report<'a> {
    machine: &'a Machine,
    /// With equal settings, where that was measured.
    alike: Option<Part>,
    /// With none, where that was.
    as_shipped: Option<Part>,
    figures: &'a [Figure],
    failures: Vec<&'a Failure>,
    targets: Vec<targets::Target>,
}

/// What was measured by the same settings.
#[derive(Debug, Serialize)]
struct Part {
    settings: Settings,
    settings_told: &'static [(&'static str, &'static str)],
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
    /// Samples that its own figures stand on, one a round.
    rounds: usize,
    /// Whether these are disturbed ones, for want of others.
    disturbed: bool,
    /// Rounds that its ratios stand on: with a sample of it and one of no mesh.
    pairs: usize,
    /// Whether one of the two was disturbed in each, for want of others.
    pairs_disturbed: bool,
    errors: u64,
    /// Requests or MiB a second.
    rate: f64,
    /// The least and the most of it.
    rate_spread: (f64, f64),
    /// To no mesh in the same place and round.
    ratio: f64,
    /// The least and the most of it.
    ratio_spread: (f64, f64),
    p50_us: f64,
    p99_us: f64,
    /// All that ran, kernel included, in µs for each unit.
    cpu_us: f64,
    cpu_spread: (f64, f64),
    /// What that is more than without a mesh, in the same round.
    mesh_us: f64,
    /// Of it, what the proxies were charged.
    proxies_us: f64,
    /// Percent and µs.
    latency: Vec<(f64, f64)>,
}

/// Writes all forms, and says where.
pub(crate) fn write(out: &Path, machine: &Machine, journal: &Journal) -> Vec<PathBuf> {
    let part =
        |settings| Some(Part::of(settings, out, journal)).filter(|part: &Part| part.samples > 0);
    let alike = part(Settings::Equal);
    let tables = alike.as_ref().map_or(&[][..], |part| &part.tables);
    let report = Report {
        machine,
        targets: targets::all(tables, &journal.figures),
        alike,
        as_shipped: part(Settings::AsShipped),
        figures: &journal.figures,
        failures: journal.unmended(),
    };
    let json = serde_json::to_string_pretty(&report).expect("it is JSON");
    let texts = [html::page(&report), markdown::page(&report), json];
    FILES
        .into_iter()
        .zip(texts)
        .map(|(name, text)| {
            let path = out.join(name);
            fs::write(&path, text).unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
            path
        })
        .collect()
}

impl Report<'_> {
    fn parts(&self) -> impl Iterator<Item = &Part> {
        [&self.alike, &self.as_shipped].into_iter().flatten()
    }
}

impl Part {
    fn of(settings: Settings, out: &Path, journal: &Journal) -> Self {
        let samples: Vec<&Sample> =
            journal.samples.iter().filter(|sample| sample.settings == settings).collect();
        // A lane that failed at a load is named above the tables, and is in no ratio.
        let failures = journal.unmended();
        let failed = |sample: &Sample| failures.iter().any(|failure| failure.is_of(sample));
        let samples: Vec<&Sample> = samples.into_iter().filter(|sample| !failed(sample)).collect();
        Self::new(settings, &samples, running::kept(out, settings))
    }

    fn new(settings: Settings, samples: &[&Sample], programs: Vec<Program>) -> Self {
        Self {
            settings,
            settings_told: settings_told(settings),
            rounds: samples.iter().map(|sample| sample.round).collect::<BTreeSet<_>>().len(),
            samples: samples.len(),
            disturbed: samples.iter().filter(|sample| sample.disturbed).count(),
            tables: tables(samples),
            programs,
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

impl Table {
    fn plural(&self) -> &'static str {
        if self.per == "MiB" { "MiB" } else { "requests" }
    }

    /// Streams have no requests whose latency could be told.
    fn has_latency(&self) -> bool {
        self.per == "request"
    }

    /// The rows of each place, where it has any.
    fn by_place(&self) -> impl Iterator<Item = (Place, Vec<&Row>)> {
        let of = |place| self.rows.iter().filter(|row| row.place() == Some(place)).collect();
        Place::ALL
            .map(|place| (place, of(place)))
            .into_iter()
            .filter(|(_, rows): &(_, Vec<_>)| !rows.is_empty())
    }
}

impl Row {
    fn place(&self) -> Option<Place> {
        Place::ALL.into_iter().find(|place| self.lane.ends_with(place.name()))
    }

    fn contender(&self) -> &str {
        self.lane.split_once('/').map_or(&self.lane, |(contender, _)| contender)
    }

    /// How many rounds its own figures and its ratios stand on, as people read it.
    fn rounds_shown(&self) -> [String; 2] {
        [(self.rounds, self.disturbed), (self.pairs, self.pairs_disturbed)].map(
            |(count, disturbed)| format!("{count}{}", if disturbed { " disturbed" } else { "" }),
        )
    }
}

/// A line of the figures' table.
struct FigureLine<'a> {
    figure: &'a str,
    unit: &'a str,
    at: u64,
    /// By the names of [`figure_lanes`]; NaN where there is none.
    values: Vec<f64>,
}

/// Whose figures there are, in the order in which they came.
fn figure_lanes(figures: &[Figure]) -> Vec<&str> {
    let mut lanes: Vec<&str> = Vec::new();
    for figure in figures {
        if !lanes.contains(&&*figure.lane) {
            lanes.push(&figure.lane);
        }
    }
    lanes
}

/// Figures of the same name and unit under each other.
fn figure_lines(figures: &[Figure]) -> Vec<FigureLine<'_>> {
    let lanes = figure_lanes(figures);
    let mut lines: Vec<FigureLine<'_>> = Vec::new();
    for figure in figures {
        let same = |line: &FigureLine<'_>| line.figure == figure.figure && line.unit == figure.unit;
        let at = match lines.iter().position(|line| same(line) && line.at == figure.at) {
            Some(at) => at,
            None => {
                let after = lines.iter().rposition(|line| same(line) && line.at < figure.at);
                let before = lines.iter().position(same);
                let at = after.map(|at| at + 1).or(before).unwrap_or(lines.len());
                let values = vec![f64::NAN; lanes.len()];
                let (unit, name) = (&*figure.unit, &*figure.figure);
                lines.insert(at, FigureLine { figure: name, unit, at: figure.at, values });
                at
            }
        };
        let lane = lanes.iter().position(|lane| *lane == figure.lane).unwrap_or_default();
        lines[at].values[lane] = figure.value;
    }
    lines
}

/// A lane's place in tables.
fn order(lane: &str) -> usize {
    let known = Place::ALL.into_iter().flat_map(|place| {
        Contender::ALL.into_iter().map(move |contender| lane_name(contender.name(), place))
    });
    known.into_iter().position(|name| name == lane).unwrap_or(usize::MAX)
}

fn row(lane: &str, taken: &[&Sample], plain: &[&Sample]) -> Row {
    // What was disturbed counts only where there is nothing else; of a ratio, either side.
    let (used, disturbed) =
        calm_or_all(taken.iter().copied().map(|sample| (sample, sample.disturbed)).collect());
    let beside = |sample: &Sample| plain.iter().find(|plain| plain.round == sample.round).copied();
    let pairs = taken.iter().filter_map(|sample| Some((*sample, beside(sample)?)));
    let (pairs, pairs_disturbed) =
        calm_or_all(pairs.map(|pair| (pair, pair.0.disturbed || pair.1.disturbed)).collect());
    let ratios: Vec<f64> = pairs.iter().map(|(mine, plain)| mine.rate() / plain.rate()).collect();
    let cpu = |sample: &Sample| sample.bed_cpu_us / sample.units();
    let percents: Vec<f64> =
        used.first().map(|s| s.latency_us.iter().map(|(p, _)| *p).collect()).unwrap_or_default();
    let latency =
        percents.into_iter().map(|p| (p, median(used.iter().map(|s| s.percentile(p))))).collect();
    let rates: Vec<f64> = used.iter().map(|sample| sample.rate()).collect();
    let cpus: Vec<f64> = used.iter().map(|sample| cpu(sample)).collect();
    Row {
        lane: lane.to_owned(),
        rounds: used.len(),
        disturbed,
        pairs: pairs.len(),
        pairs_disturbed,
        errors: used.iter().map(|sample| sample.errors).sum(),
        rate: median(rates.iter().copied()),
        rate_spread: spread(&rates),
        ratio: median(ratios.iter().copied()),
        ratio_spread: spread(&ratios),
        p50_us: median(used.iter().map(|sample| sample.percentile(50.0))),
        p99_us: median(used.iter().map(|sample| sample.percentile(99.0))),
        cpu_us: median(cpus.iter().copied()),
        cpu_spread: spread(&cpus),
        mesh_us: median(pairs.iter().map(|(mine, plain)| cpu(mine) - cpu(plain))),
        proxies_us: median(used.iter().map(|sample| sample.mesh_cpu_us / sample.units())),
        latency,
    }
}

/// Those that are not disturbed or, where there is none, all; and whether it is these.
fn calm_or_all<T>(all: Vec<(T, bool)>) -> (Vec<T>, bool) {
    let disturbed = !all.is_empty() && all.iter().all(|(_, disturbed)| *disturbed);
    let used = all.into_iter().filter(|(_, it)| *it == disturbed).map(|(value, _)| value);
    (used.collect(), disturbed)
}

/// The least and the most.
fn spread(values: &[f64]) -> (f64, f64) {
    let fold = |from, pick: fn(f64, f64) -> f64| values.iter().copied().fold(from, pick);
    (fold(f64::INFINITY, f64::min), fold(f64::NEG_INFINITY, f64::max))
}

/// The least and the most as people read them.
fn spread_shown((least, most): (f64, f64)) -> String {
    if least.is_finite() { format!("{least:.2}–{most:.2}") } else { "–".to_owned() }
}

fn ratio_shown(ratio: f64) -> String {
    if ratio.is_finite() { format!("{ratio:.3}") } else { "–".to_owned() }
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
