//! `cargo xtask bench`: every contender by the same loads, in interleaved rounds.
//!
//! The figures of one machine say little; the ratio of two contenders in the same round
//! says more, and its median over rounds is what the report shows. Raw samples are kept,
//! one JSON object a line, as soon as they are taken: a run that was cut goes on where it
//! was, and anybody can compute another statistic.

mod bed;
mod envoy;
mod lane;
mod machine;
mod origin;
mod plugin;
mod report;
mod running;
mod sample;
mod scale;
mod workload;

use std::{
    collections::HashSet,
    fs,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Args;

use self::{
    bed::Bed,
    lane::{Contender, Lane, Place, Settings, lane_name},
    machine::Machine,
    plugin::Plugin,
    sample::{Failure, Journal, Sample},
    workload::Workload,
};

/// Of the machine's CPU time, what others may use before a sample is taken again.
const FOREIGN_MAX: f64 = 0.08;
/// How often a sample is taken before a disturbed one is kept, and marked.
const ATTEMPTS: u32 = 3;

/// What is compared, and how.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// A few contenders and loads, in about three minutes.
    #[arg(long)]
    quick: bool,
    /// Every contender as it comes, in place of equal settings; a part of its own in the report.
    #[arg(long)]
    as_shipped: bool,
    /// Interleaved rounds [default: 7, quick: 3].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// How long a sample takes, in seconds [default: 1.5, quick: 0.7].
    #[arg(long, value_parser = some_seconds)]
    seconds: Option<f64>,
    /// Only lanes whose names contain one of these, and what they are compared with; names are
    /// split at commas.
    #[arg(long, value_delimiter = ',')]
    lanes: Vec<String>,
    /// Only loads whose names contain one of these; the same.
    #[arg(long, value_delimiter = ',')]
    loads: Vec<String>,
    /// Contenders of your own: a directory with NAME.up and NAME.down, see docs/performance.md.
    #[arg(long)]
    plugins: Option<PathBuf>,
    /// Where samples and report go; a run that is there already is gone on with.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    /// Throw away the samples that are there.
    #[arg(long, conflicts_with = "report_only")]
    fresh: bool,
    /// Only make the report anew from the samples that are there.
    #[arg(long)]
    report_only: bool,
    /// Leave out memory, start-up and configuration at scale.
    #[arg(long)]
    no_scale: bool,
}

/// Lanes of the contenders that are always there.
fn own_lanes(place: Place) -> impl Iterator<Item = String> {
    let there = Contender::ALL.into_iter().filter(move |contender| contender.is_in(place));
    there.map(move |contender| lane_name(contender.name(), place))
}

fn some_seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "is no number".to_owned())?;
    if seconds.is_finite() && seconds > 0.0 { Ok(seconds) } else { Err("no time at all".into()) }
}

impl Options {
    fn rounds(&self) -> u32 {
        self.rounds.unwrap_or(if self.quick { 3 } else { 7 })
    }

    fn seconds(&self) -> f64 {
        self.seconds.unwrap_or(if self.quick { 0.7 } else { 1.5 })
    }

    /// What `bench kernel` is: pods of one node, by each way that there is.
    pub(crate) fn of_the_kernel_path(rounds: u32, seconds: f64) -> Self {
        let list = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let ways = [Contender::L4, Contender::Redirect, Contender::Splice, Contender::Proxied];
        Self {
            quick: false,
            as_shipped: false,
            rounds: Some(rounds),
            seconds: Some(seconds),
            lanes: ways.map(|way| lane_name(way.name(), Place::Same)).to_vec(),
            loads: list(&["http1-1", "connections", "stream-up-1", "stream-down-1"]),
            plugins: None,
            out: PathBuf::from("target/bench-kernel"),
            fresh: true,
            report_only: false,
            no_scale: true,
        }
    }

    /// Whether a lane is asked for that is there.
    fn any_lane_in(&self, place: Place) -> bool {
        let plugin =
            place == Place::Across && self.wanted_plugins().is_ok_and(|all| !all.is_empty());
        plugin || own_lanes(place).any(|name| self.names(&name))
    }

    fn loads(&self) -> Vec<Workload> {
        // A whole name is that load's, whatever else begins so.
        let is = |load: &Workload, name: &str| match workload::named(name) {
            Some(named) => load.name == named.name,
            None => load.name.contains(name),
        };
        let named =
            |load: &Workload| self.loads.is_empty() || self.loads.iter().any(|name| is(load, name));
        let wanted = |load: &&Workload| named(load) && (load.quick || !self.quick);
        workload::ALL.iter().filter(wanted).copied().collect()
    }

    /// The plug-ins that lanes are asked for of.
    ///
    /// # Errors
    /// See [`Plugin::all`].
    fn wanted_plugins(&self) -> Result<Vec<Plugin>, String> {
        let mut plugins = self.plugins.as_deref().map(Plugin::all).transpose()?.unwrap_or_default();
        plugins.retain(|plugin| {
            self.lanes.is_empty() || self.names(&lane_name(&plugin.name, Place::Across))
        });
        Ok(plugins)
    }

    /// Whether `--lanes` has a part of it.
    fn names(&self, lane: &str) -> bool {
        self.lanes.iter().any(|part| lane.contains(&**part))
    }

    /// Why nothing is measured like this.
    fn refusal(&self) -> Option<String> {
        let plugins = match self.wanted_plugins() {
            Ok(plugins) => plugins,
            Err(why) => return Some(why),
        };
        let mut lanes: Vec<String> = Place::ALL.into_iter().flat_map(own_lanes).collect();
        lanes.extend(plugins.iter().map(|plugin| lane_name(&plugin.name, Place::Across)));
        let no_lane = |part: &&String| !lanes.iter().any(|lane| lane.contains(&***part));
        if let Some(part) = self.lanes.iter().find(no_lane) {
            return Some(format!("--lanes {part}: there are {}", lanes.join(", ")));
        }
        let no_load =
            |part: &&String| !workload::ALL.iter().any(|load| load.name.contains(&***part));
        if let Some(part) = self.loads.iter().find(no_load) {
            let there: Vec<&str> = workload::ALL.iter().map(|load| load.name).collect();
            return Some(format!("--loads {part}: there are {}", there.join(", ")));
        }
        let is_root = nix::unistd::geteuid().is_root();
        (!is_root).then(|| "namespaces and BPF programs are made as root".to_owned())
    }

    fn settings(&self) -> Settings {
        if self.as_shipped { Settings::AsShipped } else { Settings::Equal }
    }
}

/// Measures anew, and prints the report as well.
pub(crate) fn show(options: &Options) -> ExitCode {
    let done = run(options);
    println!("{}", fs::read_to_string(options.out.join("report.md")).expect("read the report"));
    done
}

/// Measures what is missing, and writes the report.
pub(crate) fn run(options: &Options) -> ExitCode {
    if let Some(why) = options.refusal().filter(|_| !options.report_only) {
        eprintln!("{why}");
        return ExitCode::FAILURE;
    }
    let out = &options.out;
    if let Err(error) = fs::create_dir_all(out) {
        eprintln!("--out {}: {error}", out.display());
        return ExitCode::FAILURE;
    }
    // Let go of when this process ends, however it does.
    let lock = fs::File::create(out.join(".lock")).map_err(|error| error.to_string());
    if let Err(why) = lock
        .as_ref()
        .map_err(String::clone)
        .and_then(|lock| lock.try_lock().map_err(|error| format!("another run is at it: {error}")))
    {
        eprintln!("--out {}: {why}", out.display());
        return ExitCode::FAILURE;
    }
    if options.fresh {
        // Nothing is there the first time; what others keep in that directory stays.
        for file in running::FILES.into_iter().chain(report::FILES) {
            let _ = fs::remove_file(out.join(file));
        }
    }
    let mut journal = Journal::open(&out.join(running::SAMPLES));
    if options.report_only {
        if journal.is_empty() {
            eprintln!("{} has no samples", out.display());
            return ExitCode::FAILURE;
        }
        let machine = running::kept_machine(out).unwrap_or_else(Machine::of_this);
        return write_report(options, &machine, &journal);
    }
    let machine = Machine::of_this();
    let of_another =
        running::kept_machine(out).is_none_or(|kept| kept.agent_build != machine.agent_build);
    if !journal.is_empty() && of_another {
        eprintln!(
            "{} has samples of another build of the agent: --fresh throws them away, --out \
             DIRECTORY puts these elsewhere, --report-only makes their report",
            out.display()
        );
        return ExitCode::FAILURE;
    }
    running::keep_machine(out, &machine);
    measure(options, &mut journal);
    if !options.no_scale && !options.as_shipped {
        scale::measure(options, &mut journal);
    }
    write_report(options, &machine, &journal)
}

/// Fails where a contender did.
fn write_report(options: &Options, machine: &Machine, journal: &Journal) -> ExitCode {
    for file in report::write(&options.out, machine, journal) {
        println!("{}", file.display());
    }
    let failures = journal.unmended();
    for failure in &failures {
        eprintln!("{}", failure.told());
    }
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn measure(options: &Options, journal: &mut Journal) {
    let (loads, rounds, settings) = (options.loads(), options.rounds(), options.settings());
    let bed = Bed::start(options);
    running::keep(&options.out, settings, &bed.programs());
    for (lane, why) in bed.failed() {
        let (failed, why) = (lane.clone(), why.clone());
        journal.add_failure(Failure { settings, failed, load: None, round: None, why });
    }
    let all: Vec<(u32, &Workload, &Lane)> = (0..rounds)
        .flat_map(|round| loads.iter().map(move |load| (round, load)))
        .flat_map(|(round, load)| bed.lanes().iter().map(move |lane| (round, load, lane)))
        .filter(|(_, load, lane)| lane.takes(load))
        .collect();
    let mut todo = all.clone();
    todo.retain(|(round, load, lane)| !journal.has(settings, &lane.name, load.name, *round));
    println!(
        "{} samples of {} s: {} lanes, {} loads, {rounds} rounds; {} are there{}",
        all.len(),
        options.seconds(),
        bed.lanes().len(),
        loads.len(),
        all.len() - todo.len(),
        if todo.is_empty() { " (--fresh measures anew)" } else { "" }
    );
    let broken = warm_up(&bed, &todo, journal);
    todo.retain(|(_, load, lane)| !broken.contains(&(lane.name.as_str(), load.name)));
    let start = Instant::now();
    for (done, (round, load, lane)) in todo.iter().enumerate() {
        let left = start.elapsed().mul_f64((todo.len() - done) as f64 / done.max(1) as f64);
        let taken = take(&bed, lane, load, *round, options.seconds());
        match taken.and_then(|sample| sample.failure().map_or(Ok(sample), Err)) {
            Ok(sample) => {
                let (number, line) = (done + 1, sample.line());
                println!("  {number:>4}/{} {line}   {} left", todo.len(), short(left));
                journal.add(&sample);
            }
            Err(why) => journal.add_failure(failure(&bed, lane, load, *round, why)),
        }
    }
    bed.stop();
}

fn failure(bed: &Bed, lane: &Lane, load: &Workload, round: u32, why: String) -> Failure {
    let (failed, load) = (lane.name.clone(), Some(load.name.to_owned()));
    Failure { settings: bed.settings(), failed, load, round: Some(round), why }
}

/// Tunnels, pools, caches; and every lane of `todo` is seen to work before hours are spent.
/// Returns those that do not, with the load.
fn warm_up<'a>(
    bed: &'a Bed,
    todo: &[(u32, &Workload, &'a Lane)],
    journal: &mut Journal,
) -> HashSet<(&'a str, &'static str)> {
    let (mut broken, mut seen) = (HashSet::new(), HashSet::new());
    for &(round, load, lane) in todo {
        if seen.insert((lane.name.as_str(), load.name)) {
            let works = bed.sample(lane, load, 0, 0.2).and_then(|sample| {
                let moved = sample.requests > 0 || sample.bytes > 0;
                let why = || sample.error.unwrap_or_else(|| "nothing got through".to_owned());
                if sample.errors == 0 && moved { Ok(()) } else { Err(why()) }
            });
            if let Err(why) = works {
                journal.add_failure(failure(bed, lane, load, round, why));
                broken.insert((lane.name.as_str(), load.name));
            }
        }
    }
    broken
}

fn take(
    bed: &Bed,
    lane: &Lane,
    load: &Workload,
    round: u32,
    seconds: f64,
) -> Result<Sample, String> {
    for attempt in 1.. {
        let mut sample = bed.sample(lane, load, round, seconds)?;
        sample.attempt = attempt;
        if sample.foreign <= FOREIGN_MAX || attempt == ATTEMPTS {
            sample.disturbed = sample.foreign > FOREIGN_MAX;
            return Ok(sample);
        }
    }
    unreachable!("the last attempt is taken")
}

fn short(duration: Duration) -> String {
    let seconds = duration.as_secs();
    format!("{}:{:02}", seconds / 60, seconds % 60)
}
