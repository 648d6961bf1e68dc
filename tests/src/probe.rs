//! The same questions asked from several pods, so that the answers can be compared.

use std::{collections::BTreeMap, fmt, fs, net::SocketAddr};

use serde_json::Value;

use crate::Pod;

/// How long one answer may take, in seconds.
const MAX_TIME: &str = "5";

/// Stands between two answers in curl's output.
const MARK: &str = "\n@@ ";

/// Headers that are part of an answer; the others say who made it, and when.
const HEADERS: [&str; 2] = ["location", "content-type"];

/// Statuses that a proxy answers with by itself, in words of its own.
const OWN_REPLIES: [u16; 4] = [403, 404, 503, 504];

/// One question, asked a number of times over fresh connections.
#[derive(Debug, Clone)]
pub struct Probe {
    label: String,
    times: usize,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    Http { url: String, method: String, headers: Vec<String> },
    Tcp(SocketAddr),
}

/// What came of a question.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Answer {
    /// An HTTP response; its body only where no proxy made it.
    Response { status: u16, headers: Vec<String>, body: String },
    /// The connection was refused, or ended without a byte. A transparent proxy can't
    /// refuse: the handshake is over before it knows where the connection wants to go.
    Nothing,
    /// Bytes of an opaque connection.
    Heard(String),
    /// No end within five seconds.
    Hangs,
}

/// What came of one probe's questions, and how often. Two are the same if the same
/// answers came, however often each.
#[derive(Debug, Clone, Default)]
pub struct Answers(BTreeMap<Answer, usize>);

impl PartialEq for Answers {
    fn eq(&self, other: &Self) -> bool {
        self.0.keys().eq(other.0.keys())
    }
}

impl FromIterator<Answer> for Answers {
    fn from_iter<I: IntoIterator<Item = Answer>>(answers: I) -> Self {
        let mut counts = BTreeMap::new();
        for answer in answers {
            *counts.entry(answer).or_default() += 1;
        }
        Self(counts)
    }
}

impl Probe {
    /// A GET of `path` at `address` (`10.96.0.1:80`).
    pub fn get(address: &str, path: &str) -> Self {
        let url = format!("http://{address}{path}");
        let kind = Kind::Http { url, method: "GET".to_owned(), headers: Vec::new() };
        Self { label: format!("GET {address}{path}"), times: 1, kind }
    }

    /// A connection to `address` that listens.
    pub fn tcp(address: &str) -> Self {
        let kind = Kind::Tcp(address.parse().expect("an address with a port"));
        Self { label: format!("TCP {address}"), times: 1, kind }
    }

    /// Asked so often, one after the other.
    #[must_use]
    pub fn times(mut self, times: usize) -> Self {
        self.times = times;
        self
    }

    /// With this method.
    #[must_use]
    pub fn method(mut self, with: &str) -> Self {
        if let Kind::Http { method, .. } = &mut self.kind {
            with.clone_into(method);
        }
        self.label = format!("{with} ({})", self.label);
        self
    }

    /// With this header, as `name: value`.
    #[must_use]
    pub fn header(mut self, header: &str) -> Self {
        if let Kind::Http { headers, .. } = &mut self.kind {
            headers.push(header.to_owned());
        }
        self.label = format!("{} with {header}", self.label);
        self
    }

    /// Names it in what a failed test says.
    pub fn label(&self) -> &str {
        &self.label
    }
}

impl Answers {
    /// Whether they are all of this status.
    pub fn is_status(&self, status: u16) -> bool {
        let is =
            |answer: &Answer| matches!(answer, Answer::Response { status: s, .. } if *s == status);
        self.0.keys().all(is)
    }

    /// Whether nothing but a connection that was refused or cut came of it.
    pub fn is_nothing(&self) -> bool {
        self.0.keys().all(|answer| *answer == Answer::Nothing)
    }

    /// The texts that were answered, each once.
    pub fn texts(&self) -> Vec<&str> {
        let texts = self.0.keys().filter_map(|answer| match answer {
            Answer::Response { body: text, .. } | Answer::Heard(text) => Some(text.trim_end()),
            Answer::Nothing | Answer::Hangs => None,
        });
        texts.collect()
    }

    /// How many of the answers contain `text`.
    pub fn share_of(&self, text: &str) -> f64 {
        let holds = |answer: &Answer| matches!(answer, Answer::Response { body: of, .. } | Answer::Heard(of) if of.contains(text));
        let with: usize = self.0.iter().filter(|(answer, _)| holds(answer)).map(|(_, n)| n).sum();
        with as f64 / self.0.values().sum::<usize>() as f64
    }
}

impl fmt::Display for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.0.keys().map(|answer| match answer {
            Answer::Response { status, headers, body } => {
                format!("{status} {} {}", headers.join(" "), body.trim_end())
            }
            other => format!("{other:?}"),
        });
        f.write_str(&shown.collect::<Vec<_>>().join(" | "))
    }
}

/// Asks every probe's questions from `pod`; the answers are in the same order.
pub fn ask(pod: &Pod, probes: &[Probe]) -> Vec<Answers> {
    let mut answers = over_http(pod, probes).into_iter();
    let of = |probe: &Probe| match &probe.kind {
        Kind::Http { .. } => {
            let all: Vec<Answer> = answers.by_ref().take(probe.times).collect();
            assert_eq!(all.len(), probe.times, "curl answered less than it was asked");
            all.into_iter().collect()
        }
        Kind::Tcp(address) => over_tcp(pod, *address, probe.times),
    };
    probes.iter().map(of).collect()
}

/// All HTTP questions in one run of curl.
fn over_http(pod: &Pod, probes: &[Probe]) -> Vec<Answer> {
    let mut config = String::new();
    for probe in probes {
        let Kind::Http { url, method, headers } = &probe.kind else { continue };
        let mut lines = vec![
            format!("url = \"{url}\""),
            format!("request = \"{method}\""),
            // The next question gets a connection of its own.
            "header = \"Connection: close\"".to_owned(),
            "noproxy = \"*\"".to_owned(),
            "path-as-is".to_owned(),
            "include".to_owned(),
            format!("max-time = {MAX_TIME}"),
            "write-out = \"\\n@@ %{exitcode}\"".to_owned(),
        ];
        lines.extend(headers.iter().map(|header| format!("header = \"{header}\"")));
        if method == "HEAD" {
            lines.push("head".to_owned());
        }
        for _ in 0..probe.times {
            if !config.is_empty() {
                config.push_str("next\n");
            }
            config.push_str(&lines.join("\n"));
            config.push('\n');
        }
    }
    if config.is_empty() {
        return Vec::new();
    }
    let file = pod.node().directory().join(format!("{}-probes.curl", pod.name()));
    fs::write(&file, config).expect("write curl's configuration");
    let file = file.to_str().expect("paths of a bed are text");
    let ran = pod.run(&["curl", "--silent", "--config", file]);
    let mut rest = ran.stdout();
    let mut answers = Vec::new();
    while let Some((output, behind)) = rest.split_once(MARK) {
        let digits = behind.bytes().take_while(u8::is_ascii_digit).count();
        let (code, behind) = behind.split_at(digits);
        answers.push(answer(output, code.parse().expect("curl's exit code")));
        rest = behind;
    }
    answers
}

fn answer(output: &str, code: i32) -> Answer {
    const TIMED_OUT: i32 = 28;
    let head = output.split_once("\r\n\r\n").filter(|(head, _)| head.starts_with("HTTP/"));
    let Some((head, body)) = head else {
        return if code == TIMED_OUT { Answer::Hangs } else { Answer::Nothing };
    };
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
    let status = status.expect("a status");
    let own = OWN_REPLIES.contains(&status);
    let mut headers: Vec<String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value))
        .filter(|(name, _)| HEADERS.contains(&&**name) && !own)
        .map(|(name, value)| format!("{name}: {value}"))
        .collect();
    headers.sort();
    // Who asked is not the same for two pods.
    let body = body.split_once(", you are").map_or(body, |(who, _)| who);
    Answer::Response { status, headers, body: if own { String::new() } else { body.to_owned() } }
}

fn over_tcp(pod: &Pod, address: SocketAddr, times: usize) -> Answers {
    let ran = pod.run_peer(&["hears", &address.to_string(), &times.to_string()]).expect_success();
    let answer = |line: &str| {
        let line: Value = serde_json::from_str(line).expect("a line of JSON");
        let heard = line["heard"].as_str().unwrap_or_default();
        match (heard, line["end"].as_str()) {
            ("", Some("silent")) => Answer::Hangs,
            ("", _) => Answer::Nothing,
            // `peer who` says first who asked, then who it is.
            (heard, _) => Answer::Heard(heard.rsplit(", ").next().unwrap_or(heard).to_owned()),
        }
    };
    ran.stdout().lines().map(answer).collect()
}
