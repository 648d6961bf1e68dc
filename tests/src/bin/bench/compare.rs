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
    sample::{Journal, Sample},
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
    #[arg(long)]
    rounds: Option<u32>,
    /// How long a sample takes, in seconds [default: 1.5, quick: 0.7].
    #[arg(long)]
    seconds: Option<f64>,
    /// Only lanes whose names contain one of these, and what they are compared with.
    #[arg(long, value_delimiter = ',')]
    lanes: Vec<String>,
    /// Only loads whose names contain one of these.
    #[arg(long, value_delimiter = ',')]
    loads: Vec<String>,
    /// Contenders of your own: a directory with NAME.up and NAME.down, see docs/performance.md.
    #[arg(long)]
    plugins: Option<PathBuf>,
    /// Where samples and report go; a run that is there already is gone on with.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    /// Only make the report anew from the samples that are there.
    #[arg(long)]
    report_only: bool,
    /// Leave out memory, start-up and configuration at scale.
    #[arg(long)]
    no_scale: bool,
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
            report_only: false,
            no_scale: true,
        }
    }

    /// Whether a lane is asked for that is there.
    fn any_lane_in(&self, place: Place) -> bool {
        let mut there = Contender::ALL.into_iter().filter(|contender| contender.is_in(place));
        there.any(|contender| {
            let name = lane_name(contender.name(), place);
            self.lanes.iter().any(|part| name.contains(&**part))
        })
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

    fn settings(&self) -> Settings {
        if self.as_shipped { Settings::AsShipped } else { Settings::Equal }
    }
}

/// Measures anew, and prints the report as well.
pub(crate) fn show(options: &Options) -> ExitCode {
    // Nothing is there the first time.
    let _ = fs::remove_dir_all(&options.out);
    let done = run(options);
    println!("{}", fs::read_to_string(options.out.join("report.md")).expect("read the report"));
    done
}

/// Measures what is missing, and writes the report.
pub(crate) fn run(options: &Options) -> ExitCode {
    fs::create_dir_all(&options.out).expect("make the directory of the report");
    let mut journal = Journal::open(&options.out.join("samples.jsonl"));
    let machine = Machine::of_this();
    if !options.report_only {
        measure(options, &mut journal);
        if !options.no_scale && !options.as_shipped {
            scale::measure(options, &mut journal);
        }
    }
    let written = report::write(&options.out, &machine, &journal);
    for file in written {
        println!("{}", file.display());
    }
    ExitCode::SUCCESS
}

fn measure(options: &Options, journal: &mut Journal) {
    let (loads, rounds) = (options.loads(), options.rounds());
    let bed = Bed::start(options);
    running::keep(&options.out, options.settings(), &bed.programs());
    let todo: Vec<(u32, &Workload, &Lane)> = (0..rounds)
        .flat_map(|round| loads.iter().map(move |load| (round, load)))
        .flat_map(|(round, load)| bed.lanes().iter().map(move |lane| (round, load, lane)))
        .filter(|(_, load, lane)| lane.takes(load))
        .filter(|(round, load, lane)| {
            !journal.has(options.settings(), &lane.name, load.name, *round)
        })
        .collect();
    println!(
        "{} samples of {} s: {} lanes, {} loads, {rounds} rounds",
        todo.len(),
        options.seconds(),
        bed.lanes().len(),
        loads.len(),
    );
    warm_up(&bed, &loads);
    let start = Instant::now();
    for (done, (round, load, lane)) in todo.iter().enumerate() {
        let sample = take(&bed, lane, load, *round, options.seconds());
        let left = start.elapsed().mul_f64((todo.len() - done) as f64 / (done + 1) as f64);
        println!("  {:>4}/{} {}   {} left", done + 1, todo.len(), sample.line(), short(left));
        journal.add(&sample);
    }
    bed.stop();
}

/// Tunnels, pools, caches; and every lane is seen to work before hours are spent.
fn warm_up(bed: &Bed, loads: &[Workload]) {
    for load in loads {
        for lane in bed.lanes().iter().filter(|lane| lane.takes(load)) {
            let sample = bed.sample(lane, load, 0, 0.2);
            assert!(
                sample.errors == 0 && (sample.requests > 0 || sample.bytes > 0),
                "{} does not get {} through: {:?}",
                lane.name,
                load.name,
                sample.error
            );
        }
    }
}

fn take(bed: &Bed, lane: &Lane, load: &Workload, round: u32, seconds: f64) -> Sample {
    for attempt in 1.. {
        let mut sample = bed.sample(lane, load, round, seconds);
        sample.attempt = attempt;
        if sample.foreign <= FOREIGN_MAX || attempt == ATTEMPTS {
            sample.disturbed = sample.foreign > FOREIGN_MAX;
            return sample;
        }
    }
    unreachable!("the last attempt is taken")
}

fn short(duration: Duration) -> String {
    let seconds = duration.as_secs();
    format!("{}:{:02}", seconds / 60, seconds % 60)
}
