//! What it runs on, and how busy that is.

use std::{fs, path::Path, process::Command};

use sha2::{Digest, Sha256};

/// For the head of the report.
#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cpus: usize,
    pub(crate) memory_mib: u64,
    pub(crate) kernel: String,
    pub(crate) date: String,
    pub(crate) nginx: String,
    pub(crate) envoy: String,
    pub(crate) haproxy: String,
    pub(crate) agent: String,
    /// The beginning of the SHA-256 of the agent's program: two builds are not one run.
    pub(crate) agent_build: String,
}

impl Machine {
    pub(crate) fn of_this() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            let value = line.and_then(|line| line.split_once(':'));
            value.map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
        };
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kib = field(&meminfo, "MemTotal").split(' ').next().and_then(|kib| kib.parse().ok());
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let envoy = tests::envoy::binary();
        let agent = tests::process::agent_binary();
        Self {
            cpu: field(&cpuinfo, "model name"),
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            memory_mib: kib.unwrap_or(0u64) / 1024,
            kernel: kernel.trim().to_owned(),
            date: said_by(&["date", "-u", "+%Y-%m-%d %H:%M UTC"]),
            nginx: said_by(&["nginx", "-v"]),
            envoy: said_by(&[&envoy.to_string_lossy(), "--version"]),
            haproxy: said_by(&["haproxy", "-v"]),
            agent: said_by(&[&agent.to_string_lossy(), "--version"]),
            agent_build: build(&agent),
        }
    }
}

fn build(program: &Path) -> String {
    let bytes = fs::read(program).unwrap_or_else(|e| panic!("read {}: {e}", program.display()));
    Sha256::digest(bytes)[..6].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The first line with something on it; empty where the program is not there.
fn said_by(argv: &[&str]) -> String {
    let Ok(output) = Command::new(argv[0]).args(&argv[1..]).output() else { return String::new() };
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    // Envoy begins with the path of its program and a revision.
    let line = line.rsplit("version: ").next().unwrap_or_default();
    let parts: Vec<&str> = line.split('/').collect();
    match parts[..] {
        [_, version, _, _, _] => version.to_owned(),
        _ => {
            let line = line.strip_prefix("HAProxy version ").unwrap_or(line);
            line.split(" - ").next().unwrap_or_default().to_owned()
        }
    }
}

/// CPU time that was used and that there was, in clock ticks since boot.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ticks {
    pub(crate) busy: u64,
    pub(crate) all: u64,
}

impl Ticks {
    pub(crate) fn now() -> Self {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let fields: Vec<u64> = stat
            .lines()
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .skip(1)
            // user nice system idle iowait irq softirq steal; guests are in user and nice.
            .take(8)
            .filter_map(|field| field.parse().ok())
            .collect();
        let idle: u64 = fields.iter().skip(3).take(2).sum();
        let all: u64 = fields.iter().sum();
        Self { busy: all - idle, all }
    }
}
