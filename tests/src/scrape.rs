//! An agent's metrics, as a reader of Prometheus' own understands them.

use std::{
    collections::BTreeMap,
    io::Write as _,
    process::{Command, Stdio},
};

use serde::Deserialize;

use crate::{Agent, control_plane, http};

/// What a scraper asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Spec: Prometheus text format 0.0.4.
    Text,
    /// Spec: OpenMetrics 1.0.
    OpenMetrics,
}

/// One sample.
#[derive(Debug, Clone, Deserialize)]
pub struct Sample {
    /// Its family's, without what a sample's name has behind it.
    pub family: String,
    /// Its family's.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its own.
    pub name: String,
    /// In no order.
    pub labels: BTreeMap<String, String>,
    value: String,
    /// Of one that fell into it.
    pub exemplar: Option<BTreeMap<String, String>>,
}

/// A whole page.
#[derive(Debug)]
pub struct Scrape {
    /// As it came.
    pub page: String,
    /// What is in it.
    pub samples: Vec<Sample>,
}

impl Sample {
    /// Whether it has all of these labels.
    pub fn has(&self, labels: &[(&str, &str)]) -> bool {
        labels.iter().all(|(name, value)| self.labels.get(*name).is_some_and(|own| own == value))
    }

    /// Its value.
    pub fn value(&self) -> f64 {
        self.value.parse().expect("a number")
    }
}

impl Scrape {
    /// Scrapes `agent`; fails where what comes is not what the format wants.
    #[track_caller]
    pub fn of(agent: &Agent, format: Format) -> Self {
        let (accept, name) = match format {
            Format::Text => ("text/plain;version=0.0.4", "text"),
            Format::OpenMetrics => ("application/openmetrics-text;version=1.0.0", "openmetrics"),
        };
        let socket = agent.node().socket();
        let answer = http::get_accepting(&socket, "/metrics", accept).expect("read the metrics");
        assert_eq!(answer.status, 200, "{}", answer.body);
        let mut reader = Command::new(control_plane::PYTHON)
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/programs/exposition.py"))
            .arg(name)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start the reader");
        let mut stdin = reader.stdin.take().expect("its stdin");
        // It reads everything before it says anything. One that has failed says so below.
        let _ = stdin.write_all(answer.body.as_bytes());
        drop(stdin);
        let said = reader.wait_with_output().expect("the reader's answer");
        let why = String::from_utf8_lossy(&said.stderr);
        assert!(said.status.success(), "{why}\n{}", answer.body);
        let samples = serde_json::from_slice(&said.stdout).expect("the reader's JSON");
        Self { page: answer.body, samples }
    }

    /// The samples of that name with these labels.
    pub fn of_name<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| sample.name == name && sample.has(labels))
    }

    /// Their sum; `None`: there are none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        self.of_name(name, labels).map(Sample::value).reduce(|one, other| one + other)
    }
}
