//! Samples, and the file that they are kept in.

use std::{
    collections::HashSet,
    fs::{self, File, OpenOptions},
    io::Write,
    path::Path,
};

use serde::{Deserialize, Serialize};

use super::{
    lane::Settings,
    workload::{self, Unit},
};

/// One load through one lane.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Sample {
    pub(crate) settings: Settings,
    pub(crate) lane: String,
    pub(crate) load: String,
    pub(crate) round: u32,
    pub(crate) attempt: u32,
    /// Others used more of the machine than a sample may bear, every time.
    pub(crate) disturbed: bool,
    pub(crate) seconds: f64,
    pub(crate) requests: u64,
    pub(crate) errors: u64,
    pub(crate) error: Option<String>,
    pub(crate) bytes: u64,
    /// Percent and microseconds.
    pub(crate) latency_us: Vec<(f64, u64)>,
    /// CPU time of everything in the bed, kernel included: load, origin and mesh.
    pub(crate) bed_cpu_us: f64,
    /// CPU time that the mesh's own processes were charged.
    pub(crate) mesh_cpu_us: f64,
    /// CPU time of the whole machine.
    pub(crate) machine_cpu_us: f64,
    /// Of the machine's CPU time, what neither the bed nor an idle CPU used.
    pub(crate) foreign: f64,
}

/// One figure that is not a load: memory, a time.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Figure {
    pub(crate) figure: String,
    pub(crate) lane: String,
    /// What it is a function of: pods, services.
    pub(crate) at: u64,
    pub(crate) value: f64,
    pub(crate) unit: String,
}

/// What a contender could not do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) settings: Settings,
    /// The contender's lane.
    pub(crate) failed: String,
    /// The load, or nothing where it did not start.
    pub(crate) load: Option<String>,
    /// The round that it left out, which a later run may make up for.
    #[serde(default)]
    pub(crate) round: Option<u32>,
    pub(crate) why: String,
}

impl Failure {
    /// Whether the sample is of the lane that failed, and of the load that it failed at.
    pub(crate) fn is_of(&self, sample: &Sample) -> bool {
        sample.settings == self.settings
            && sample.lane == self.failed
            && self.load.as_ref().is_none_or(|load| *load == sample.load)
    }

    /// In a line.
    pub(crate) fn told(&self) -> String {
        let at = self.load.as_deref().unwrap_or("its start");
        format!("{} failed at {at}: {}", self.failed, self.why)
    }
}

impl Sample {
    /// Why it is no sample of what the lane does: nothing got through, or most of it did not.
    pub(crate) fn failure(&self) -> Option<String> {
        let why = || self.error.clone().unwrap_or_else(|| "nothing got through".to_owned());
        if self.units() == 0.0 {
            return Some(why());
        }
        let most = self.errors > self.requests;
        most.then(|| format!("{} errors to {} answers: {}", self.errors, self.requests, why()))
    }

    fn key(&self) -> (Settings, String, String, u32) {
        (self.settings, self.lane.clone(), self.load.clone(), self.round)
    }

    fn unit(&self) -> Unit {
        workload::named(&self.load).map_or(Unit::Request, |load| load.unit)
    }

    /// Requests, or MiB.
    pub(crate) fn units(&self) -> f64 {
        match self.unit() {
            Unit::Request => self.requests as f64,
            Unit::Mebibyte => self.bytes as f64 / f64::from(1 << 20),
        }
    }

    /// Requests or MiB a second.
    pub(crate) fn rate(&self) -> f64 {
        self.units() / self.seconds
    }

    pub(crate) fn percentile(&self, percent: f64) -> f64 {
        let at = self.latency_us.iter().find(|(p, _)| *p >= percent);
        at.map_or(f64::NAN, |(_, us)| *us as f64)
    }

    /// For progress.
    pub(crate) fn line(&self) -> String {
        let unit = match self.unit() {
            Unit::Request => "/s",
            Unit::Mebibyte => " MiB/s",
        };
        format!(
            "{:<24} {:<16} {:>9.0}{unit:<6} p50 {:>7.0} µs, {:>7.1} µs CPU each{}{}",
            self.lane,
            self.load,
            self.rate(),
            self.percentile(50.0),
            self.bed_cpu_us / self.units(),
            if self.errors > 0 { format!(", {} errors", self.errors) } else { String::new() },
            if self.disturbed { ", disturbed" } else { "" },
        )
    }
}

/// What has been measured.
#[derive(Debug)]
pub(crate) struct Journal {
    file: File,
    there: HashSet<(Settings, String, String, u32)>,
    pub(crate) samples: Vec<Sample>,
    pub(crate) figures: Vec<Figure>,
    pub(crate) failures: Vec<Failure>,
}

impl Journal {
    /// What is in the file at `path`, which more is added to.
    pub(crate) fn open(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap_or_default();
        // The last line of a run that was killed may be half of one.
        let samples: Vec<Sample> =
            text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let figures = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let failures = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let there = samples.iter().map(Sample::key).collect();
        let mut file = OpenOptions::new().create(true).append(true).open(path).expect("open it");
        if !text.is_empty() && !text.ends_with('\n') {
            writeln!(file).expect("write a sample");
        }
        Self { file, there, samples, figures, failures }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.samples.is_empty() && self.figures.is_empty()
    }

    /// What failed and has not been done since, each once.
    pub(crate) fn unmended(&self) -> Vec<&Failure> {
        let mended = |failure: &Failure| {
            self.samples.iter().any(|sample| {
                failure.is_of(sample) && failure.round.is_none_or(|round| round == sample.round)
            })
        };
        let mut seen = HashSet::new();
        let last = self.failures.iter().rev().filter(|failure| !mended(failure));
        last.filter(|f| seen.insert((f.settings, &f.failed, &f.load))).collect()
    }

    pub(crate) fn has(&self, settings: Settings, lane: &str, load: &str, round: u32) -> bool {
        self.there.contains(&(settings, lane.to_owned(), load.to_owned(), round))
    }

    pub(crate) fn has_figure(&self, figure: &str, lane: &str, at: u64) -> bool {
        self.figures.iter().any(|f| f.figure == figure && f.lane == lane && f.at == at)
    }

    pub(crate) fn add(&mut self, sample: &Sample) {
        self.write(sample);
        self.there.insert(sample.key());
        self.samples.push(sample.clone());
    }

    pub(crate) fn add_figure(&mut self, figure: Figure) {
        println!(
            "  {} of {} at {}: {:.1} {}",
            figure.figure, figure.lane, figure.at, figure.value, figure.unit
        );
        self.write(&figure);
        self.figures.push(figure);
    }

    /// Tells it at once as well: hours may go by until the report.
    pub(crate) fn add_failure(&mut self, failure: Failure) {
        crate::wait_for_the_end_if_interrupted();
        eprintln!("  {}", failure.told());
        self.write(&failure);
        self.failures.push(failure);
    }

    fn write(&mut self, value: &impl Serialize) {
        let line = serde_json::to_string(value).expect("it is JSON");
        writeln!(self.file, "{line}").expect("write a sample");
    }
}

#[cfg(test)]
mod tests {
    use super::{Failure, Journal, Sample, Settings};

    fn sample(round: u32, requests: u64, errors: u64) -> Sample {
        Sample {
            settings: Settings::Equal,
            lane: "plug/across".to_owned(),
            load: "http1-16".to_owned(),
            round,
            attempt: 1,
            disturbed: false,
            seconds: 1.0,
            requests,
            errors,
            error: (errors > 0).then(|| "refused".to_owned()),
            bytes: 0,
            latency_us: Vec::new(),
            bed_cpu_us: 0.0,
            mesh_cpu_us: 0.0,
            machine_cpu_us: 0.0,
            foreign: 0.0,
        }
    }

    #[test]
    fn a_sample_of_errors_is_a_failure() {
        assert_eq!(sample(0, 10, 10).failure(), None);
        assert_eq!(sample(0, 10, 11).failure().unwrap(), "11 errors to 10 answers: refused");
        assert_eq!(sample(0, 0, 3).failure().unwrap(), "refused");
        assert_eq!(sample(0, 0, 0).failure().unwrap(), "nothing got through");
    }

    #[test]
    fn a_round_that_failed_is_mended_by_that_round_alone() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(&directory.path().join("samples.jsonl"));
        journal.add(&sample(0, 10, 0));
        journal.add_failure(Failure {
            settings: Settings::Equal,
            failed: "plug/across".to_owned(),
            load: Some("http1-16".to_owned()),
            round: Some(1),
            why: "refused".to_owned(),
        });
        // Another round's sample mends nothing; it is of what failed, other loads' are not.
        let unmended = journal.unmended();
        assert!(unmended.len() == 1 && unmended[0].is_of(&sample(0, 10, 0)));
        assert!(!unmended[0].is_of(&Sample { load: "http2".to_owned(), ..sample(0, 10, 0) }));
        let shipped = Sample { settings: Settings::AsShipped, ..sample(0, 10, 0) };
        assert!(!unmended[0].is_of(&shipped));
        journal.add(&sample(1, 10, 0));
        assert!(journal.unmended().is_empty());
    }
}
