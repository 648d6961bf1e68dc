//! `cargo xtask instructions`: what the hot path costs, counted by callgrind. Unlike times,
//! the numbers are those of a quiet machine also on a busy one.

use std::{fmt::Write as _, fs, process::Command};

use anyhow::{Context as _, Result, ensure};

use crate::{build::workspace, ebpf, setup};

const BENCH: &str = "hot_path";
/// Below the workspace.
const TABLE: &str = "mesh-agent/benches/instructions.md";
/// Calls in the shorter of the two runs whose difference is taken.
const CALLS: u64 = 500;

pub(crate) fn run() -> Result<()> {
    setup::for_counting()?;
    ebpf::build()?;
    let program = build()?;
    let mut table = String::from(
        "# Instructions of the hot path\n\n\
         Made by `cargo xtask instructions`: callgrind's count for one call, of the release\n\
         profile on x86-64. What each case is, `hot_path.rs` says.\n\n\
         | case | instructions |\n|---|---:|\n",
    );
    for case in cases(&program)? {
        let [few, many] = [CALLS, 2 * CALLS].map(|calls| count(&program, &case, calls));
        let each = (many? - few?) / CALLS;
        println!("{case:<40}{each:>12}");
        _ = writeln!(table, "| `{case}` | {each} |");
    }
    fs::write(workspace().join(TABLE), table).with_context(|| format!("write {TABLE}"))
}

/// Where cargo says that it put the benchmark.
fn build() -> Result<String> {
    let arguments = ["bench", "--package", "mesh-agent", "--bench", BENCH, "--no-run"];
    let output = Command::new("cargo")
        .args(arguments)
        .current_dir(workspace())
        .output()
        .context("cargo did not start")?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`cargo {}` failed:\n{told}", arguments.join(" "));
    let line = told.lines().find(|line| line.trim_start().starts_with("Executable"));
    let path = line.and_then(|line| line.split(['(', ')']).nth(1));
    Ok(path.with_context(|| format!("cargo names no executable:\n{told}"))?.to_owned())
}

/// The benchmark's cases, which it shows as a tree.
fn cases(program: &str) -> Result<Vec<String>> {
    let output = Command::new(program)
        .arg("--list")
        .current_dir(workspace())
        .output()
        .with_context(|| format!("{program} did not start"))?;
    let names = String::from_utf8_lossy(&output.stdout);
    let names = names.lines().filter_map(|line| line.split("─ ").nth(1));
    let names: Vec<String> = names.map(|name| name.trim().to_owned()).collect();
    ensure!(!names.is_empty(), "{program} has no cases");
    Ok(names)
}

/// The instructions of the whole run.
fn count(program: &str, case: &str, calls: u64) -> Result<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", program, "--bench"])
        .args([case, "--sample-count", "1", "--sample-size", &calls.to_string()])
        .current_dir(workspace())
        .output()
        .context("valgrind did not start")?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "valgrind failed at {case}:\n{told}");
    let line = told.lines().find_map(|line| line.split("Collected : ").nth(1));
    let number = line.and_then(|line| line.trim().parse().ok());
    number.with_context(|| format!("valgrind tells no number:\n{told}"))
}
