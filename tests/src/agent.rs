//! A node's agent, driven as its users drive it: command line, files, Unix socket.

use std::{
    fmt::Write as _,
    fs::{self, OpenOptions},
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::Duration,
};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    MeshConfig, Node, Pod, Process, Ran, eventually, eventually_within,
    http::{self, Answer},
    pod::TRUST_DOMAIN,
    process::{self, agent_binary},
};

/// A debug build of the agent loads its descriptor pool and BPF programs at start.
const START_PATIENCE: Duration = Duration::from_secs(90);

/// How an agent will run.
#[derive(Debug, Clone)]
pub struct AgentBuilder {
    node: Node,
    flags: Vec<String>,
    pods: Vec<Pod>,
    ca_dir: PathBuf,
    trust_domain: String,
}

impl AgentBuilder {
    pub(crate) fn new(node: &Node) -> Self {
        Self {
            node: node.clone(),
            flags: Vec::new(),
            pods: Vec::new(),
            ca_dir: node.ca_dir(),
            trust_domain: TRUST_DOMAIN.to_owned(),
        }
    }

    /// Adds flags of `mesh-agent run`.
    #[must_use]
    pub fn flags(mut self, flags: &[&str]) -> Self {
        self.flags.extend(flags.iter().map(|&flag| flag.to_owned()));
        self
    }

    /// Enrols `pod` at start, by the pods file.
    #[must_use]
    pub fn with_pod(mut self, pod: &Pod) -> Self {
        self.pods.push(pod.clone());
        self
    }

    /// With a certificate authority of its own instead of the bed's.
    #[must_use]
    pub fn own_ca(mut self, trust_domain: &str) -> Self {
        self.ca_dir = self.node.directory().join("own-ca");
        trust_domain.clone_into(&mut self.trust_domain);
        self
    }

    /// Makes the certificate authority if there is none, starts the agent and waits
    /// until it is ready.
    pub fn start(self) -> Agent {
        let agent = self.start_unready();
        agent.wait_ready();
        agent
    }

    /// As [`AgentBuilder::start`] without waiting.
    pub fn start_unready(self) -> Agent {
        create_ca(&self.ca_dir, &self.trust_domain);
        let pods_file = self.node.directory().join("pods.yaml");
        let pods: Vec<Value> = self.pods.iter().map(Pod::enrolment).collect();
        let yaml = serde_yaml_ng::to_string(&serde_json::json!({ "pods": pods }));
        fs::write(&pods_file, yaml.expect("pods are YAML")).expect("write pods.yaml");
        let process = spawn(&self, &pods_file);
        Agent { builder: self, pods_file, process }
    }
}

fn create_ca(directory: &Path, trust_domain: &str) {
    if directory.join("root.pem").exists() {
        return;
    }
    let mut command = Command::new(agent_binary());
    command.args(["ca", "init", "--trust-domain", trust_domain, "--dir"]).arg(directory);
    process::run_here(command, process::RUN_DEADLINE).expect_success();
}

fn spawn(builder: &AgentBuilder, pods_file: &Path) -> Process {
    let AgentBuilder { node, flags, ca_dir, trust_domain, .. } = builder;
    let mut command = Command::new(agent_binary());
    command.arg("run").args(["--node-name", &node.name(), "--instance", &node.name()]);
    command.args(["--trust-domain", trust_domain]);
    if !flags.iter().any(|flag| flag == "--access-log") {
        command.args(["--access-log", "json"]);
    }
    if !flags.iter().any(|flag| ["--xds-server", "--bootstrap"].contains(&flag.as_str())) {
        command.arg("--config-dir").arg(node.config_dir());
    }
    for (flag, path) in [
        ("--state-dir", &node.state_dir()),
        ("--cgroup-root", &node.cgroup()),
        ("--bpffs", &node.bpffs()),
        ("--socket", &node.socket()),
        ("--pods", &pods_file.to_owned()),
        ("--ca-dir", ca_dir),
    ] {
        command.arg(flag).arg(path);
    }
    if !flags.iter().any(|flag| flag == "--log") {
        command.args(["--log", "info,mesh_agent=debug"]);
    }
    command.args(flags);
    let open = |path: PathBuf| {
        OpenOptions::new().create(true).append(true).open(path).expect("open the agent's log")
    };
    let place = node.place("agent");
    let (stdout, log) = (stdout_file(node), log_file(node));
    Process::start_with(
        command,
        &place,
        &format!("agent of {}", node.name()),
        &log.clone(),
        open(stdout),
        open(log),
    )
}

fn stdout_file(node: &Node) -> PathBuf {
    node.directory().join("agent.stdout.log")
}

fn log_file(node: &Node) -> PathBuf {
    node.directory().join("agent.log")
}

/// A node's agent. Dropping it kills it; its pins stay until the bed goes.
#[derive(Debug)]
pub struct Agent {
    builder: AgentBuilder,
    pods_file: PathBuf,
    process: Process,
}

impl Agent {
    /// The node it serves.
    pub fn node(&self) -> &Node {
        &self.builder.node
    }

    /// Its process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// What it logged (not the access log).
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Waits until `/readyz` says so.
    ///
    /// # Panics
    /// With the log, if it ends or does not become ready.
    pub fn wait_ready(&self) {
        self.wait_ready_within(START_PATIENCE);
    }

    /// As [`Agent::wait_ready`], for longer or shorter.
    pub fn wait_ready_within(&self, patience: Duration) {
        eventually_within(patience, &format!("{} is ready", self.process.label()), || {
            if let Some(status) = self.process.ended() {
                panic!("{} ended: {status}\n{}", self.process.label(), self.log());
            }
            match http::get(&self.node().socket(), "/readyz") {
                Ok(Answer { status: 200, .. }) => Ok(()),
                other => Err(format!("{other:?}\n{}", tail(&self.log()))),
            }
        });
        if self.builder.flags.iter().any(|flag| flag == "--splice") {
            self.wait_tested();
        }
    }

    /// Waits until it has tried the kernel and acts on what it found: before that nothing is
    /// spliced.
    fn wait_tested(&self) {
        eventually("the kernel is tested", || {
            let status = self.status();
            let off = status["kernel_path"]["splice"]["off"].to_string();
            if off.contains("not tested") { Err(status) } else { Ok(()) }
        });
    }

    /// Kills it as a crash would: nothing is cleaned up.
    pub fn kill_9(&self) {
        self.process.kill_9();
    }

    /// Asks it to end and waits.
    pub fn terminate(&self) -> ExitStatus {
        self.process.signal(Signal::SIGTERM);
        self.process.wait()
    }

    /// Starts it again, as it was, and waits until it is ready.
    pub fn restart(&mut self) {
        self.restart_with(&[]);
    }

    /// As [`Agent::restart`] with further flags.
    pub fn restart_with(&mut self, flags: &[&str]) {
        self.builder = self.builder.clone().flags(flags);
        self.restart_unready();
        self.wait_ready();
    }

    /// Starts another one beside it that takes over, and waits until that one is ready. What
    /// is left is the old one's process, which drains.
    ///
    /// # Panics
    /// If the new one ends, or the old one goes on.
    pub fn upgrade(&mut self) -> Process {
        let before = self.status()["started_at"].clone();
        let builder = self.builder.clone().flags(&["--take-over"]);
        let new = spawn(&builder, &self.pods_file);
        let old = std::mem::replace(&mut self.process, new);
        eventually_within(2 * START_PATIENCE, "another agent has taken over", || {
            if let Some(status) = self.process.ended() {
                panic!("the new agent ended: {status}\n{}", tail(&self.log()));
            }
            let answer = http::get(&self.node().socket(), "/status");
            let answer = answer.map_err(|error| error.to_string())?;
            let status: Value = serde_json::from_str(&answer.body).map_err(|e| e.to_string())?;
            if status["started_at"] == before { Err(status.to_string()) } else { Ok(()) }
        });
        self.wait_ready_within(2 * START_PATIENCE);
        old
    }

    /// Starts another one beside it that takes over, and waits for nothing.
    pub fn begins_upgrade(&self) -> Process {
        spawn(&self.builder.clone().flags(&["--take-over"]), &self.pods_file)
    }

    /// Starts another one beside it that was not told to take over: how it ended.
    pub fn refuses_to_start_beside(&self) -> ExitStatus {
        spawn(&self.builder, &self.pods_file).wait()
    }

    /// As [`Agent::restart`], for one that has no hope of being ready: it answers at the end.
    pub fn restart_unready(&mut self) {
        if self.process.ended().is_none() {
            self.kill_9();
        }
        self.process = spawn(&self.builder, &self.pods_file);
        let label = format!("{} answers", self.process.label());
        eventually_within(START_PATIENCE, &label, || {
            http::get(&self.node().socket(), "/readyz").map(drop).map_err(|e| e.to_string())
        });
    }

    /// As [`Agent::restart_with`], but the flags are for this life only.
    pub fn restart_once_with(&mut self, flags: &[&str]) {
        let builder = self.builder.clone();
        self.restart_with(flags);
        self.builder = builder;
    }

    /// Runs a command of the agent's against its socket, on the node.
    pub fn cli(&self, arguments: &[&str]) -> Ran {
        let mut command = Command::new(agent_binary());
        command.args(arguments).arg("--socket").arg(self.node().socket());
        process::run(command, &self.node().place("host"), process::RUN_DEADLINE)
    }

    /// Enrols a running pod by the command line.
    pub fn enroll(&self, pod: &Pod) -> Ran {
        let flags = pod.enroll_flags();
        let mut arguments = vec!["enroll", pod.name()];
        arguments.extend(flags.iter().map(String::as_str));
        self.cli(&arguments).expect_success()
    }

    /// Takes a pod out of the mesh by the command line.
    pub fn unenroll(&self, pod: &Pod) -> Ran {
        self.cli(&["unenroll", &pod.uid()]).expect_success()
    }

    /// `mesh-agent status --output json`.
    pub fn status(&self) -> Value {
        self.cli(&["status", "--output", "json"]).expect_success().json()
    }

    /// `mesh-agent pods --output json`.
    pub fn pods(&self) -> Value {
        self.cli(&["pods", "--output", "json"]).expect_success().json()
    }

    /// `mesh-agent connections --output json`.
    pub fn connections(&self) -> Value {
        self.cli(&["connections", "--output", "json"]).expect_success().json()
    }

    /// `mesh-agent config dump --output json`.
    pub fn config_dump(&self) -> Value {
        self.cli(&["config", "dump", "--output", "json"]).expect_success().json()
    }

    /// The metrics page.
    pub fn metrics(&self) -> Metrics {
        let answer = http::get(&self.node().socket(), "/metrics").expect("read the metrics");
        assert_eq!(answer.status, 200, "{}", answer.body);
        Metrics(answer.body)
    }

    /// What it has written to its stdout so far: access logs.
    pub fn stdout(&self) -> String {
        fs::read_to_string(stdout_file(self.node())).unwrap_or_default()
    }

    /// The access log so far, one JSON object per connection or request.
    pub fn access_log(&self) -> Vec<Value> {
        let text = self.stdout();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits for an access log entry that contains all of `texts` and returns it.
    ///
    /// # Panics
    /// With the entries there are, if it does not come.
    pub fn logs_access(&self, texts: &[&str]) -> Value {
        let what = format!("{} logs an access with {texts:?}", self.node().name());
        eventually(&what, || {
            let entries = self.access_log();
            let holds = |entry: &&Value| {
                let line = entry.to_string();
                texts.iter().all(|text| line.contains(text))
            };
            entries.iter().rev().find(holds).cloned().ok_or_else(|| {
                let mut all = String::new();
                for entry in &entries {
                    let _ = write!(all, "\n  {entry}");
                }
                all
            })
        })
    }

    /// Waits until the log contains all of `texts` in one line; returns that line.
    ///
    /// # Panics
    /// With the log's end, if it does not come.
    pub fn logs(&self, texts: &[&str]) -> String {
        let what = format!("{} logs {texts:?}", self.node().name());
        eventually(&what, || {
            let log = self.log();
            let holds = |line: &&str| {
                let line = line.to_lowercase();
                texts.iter().all(|text| line.contains(&text.to_lowercase()))
            };
            log.lines().find(holds).map(str::to_owned).ok_or_else(|| tail(&log))
        })
    }

    /// Gives it a configuration and waits until it is in force.
    pub fn configure(&self, config: &MeshConfig) {
        let before = self.snapshot_version();
        config.write_to(&self.node().config_dir());
        eventually("the configuration is in force", || {
            let now = self.snapshot_version();
            if now > before { Ok(()) } else { Err(format!("{before} -> {now}")) }
        });
    }

    /// The version of the snapshot in force.
    pub fn snapshot_version(&self) -> u64 {
        self.metrics().sum("mesh_snapshot_version", &[]) as u64
    }
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

/// A page in Prometheus' text format.
#[derive(Debug, Clone)]
pub struct Metrics(String);

impl Metrics {
    /// The sum of all series of `name` whose labels contain each of `labels`
    /// (`key="value"`).
    pub fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let of_series = |line: &&str| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
                && labels.iter().all(|label| line.contains(label))
        };
        let value = |line: &str| line.rsplit(' ').next()?.parse::<f64>().ok();
        self.0.lines().filter(of_series).filter_map(value).sum()
    }

    /// Whether there is a series of that name.
    pub fn has(&self, name: &str) -> bool {
        self.0.lines().any(|line| line.starts_with(name))
    }

    /// The page itself.
    pub fn text(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_only_the_series_asked_for() {
        let page = Metrics(
            "# TYPE a counter\na_total{x=\"1\",y=\"2\"} 3\na_total{x=\"2\"} 4\nab_total 9\nb 2.5\n"
                .into(),
        );
        let check = |name, labels: &[&str], expected: f64| {
            assert!((page.sum(name, labels) - expected).abs() < 1e-9, "{name} {labels:?}");
        };
        check("a_total", &[], 7.0);
        check("a_total", &["x=\"1\""], 3.0);
        check("b", &[], 2.5);
        check("c", &[], 0.0);
        assert!(page.has("ab_total"));
    }
}
