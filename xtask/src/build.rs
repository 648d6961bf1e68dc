//! What runs cargo: `test`, `demo`, `bench`, `ci`, `deny`.

use std::{
    fmt,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::{ebpf, setup, tidy, vm};

/// The workspace's directory.
pub(crate) fn workspace() -> PathBuf {
    // Cargo sets it for the process too, so that a moved checkout is no surprise.
    let manifest =
        std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&manifest).parent().map_or_else(PathBuf::new, Path::to_owned)
}

/// Runs `program` in the workspace and fails if it does.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let shown = format!("{program} {}", arguments.join(" "));
    println!("$ {shown}");
    let status =
        command(program, arguments).status().with_context(|| format!("`{shown}` did not start"))?;
    ensure!(status.success(), "`{shown}` failed ({status})");
    Ok(())
}

/// As [`run`], showing each line of its output to `see` as well.
fn run_seen(program: &str, arguments: &[&str], mut see: impl FnMut(&str)) -> Result<()> {
    let shown = format!("{program} {}", arguments.join(" "));
    println!("$ {shown}");
    let mut child = command(program, arguments)
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("`{shown}` did not start"))?;
    let output = child.stdout.take().context("the output of a child is not piped")?;
    for line in BufReader::new(output).split(b'\n') {
        let line = line.with_context(|| format!("read the output of `{shown}`"))?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        see(&line);
    }
    let status = child.wait().with_context(|| format!("wait for `{shown}`"))?;
    ensure!(status.success(), "`{shown}` failed ({status})");
    Ok(())
}

fn command(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(workspace());
    // Most tests wait for others most of the time.
    let threads = std::thread::available_parallelism().map_or(4, |cpus| 2 * cpus.get());
    command.env("RUST_TEST_THREADS", threads.to_string());
    // Where the agent's build script looks for the BPF object, whatever the user set.
    command.env("CARGO_TARGET_DIR", workspace().join("target"));
    command
}

/// `cargo xtask test [FILTER]`: the fuzz targets' seeds run as a test of the agent's, and
/// without a filter an older kernel is booted at the end.
pub(crate) fn test(filter: Option<&str>) -> Result<()> {
    setup::run()?;
    ebpf::build()?;
    // Always the whole workspace: with one set of features dependencies are compiled
    // once. The programs of `tests` that its tests run are built by the first command.
    run("cargo", &["build", "--workspace", "--all-targets"])?;
    let mut arguments = vec!["test", "--workspace", "--no-fail-fast"];
    arguments.extend(filter);
    let mut tally = Tally::default();
    let outcome = run_seen("cargo", &arguments, |line| tally.see(line));
    println!("\n{tally}");
    if outcome.is_err() && !tally.failures.is_empty() && tally.failures.len() <= MAX_ALONE {
        alone(&tally.failures)?;
    } else {
        outcome?;
    }
    if filter.is_some() { Ok(()) } else { vm::test() }
}

/// So many failures may be the machine's; more are not.
const MAX_ALONE: usize = 2;

/// Runs what failed beside all the others once more, with the machine to itself: a test of
/// real kernels and clocks that passes then is told to be flaky, by name, and is to be
/// mended, but what it tests holds.
fn alone(failures: &[String]) -> Result<()> {
    println!("\nonce more, alone: {}", failures.join(", "));
    let mut arguments = vec!["test", "--workspace", "--lib", "--bins", "--tests", "--no-fail-fast"];
    arguments.extend(["--", "--exact", "--test-threads=1"]);
    arguments.extend(failures.iter().map(String::as_str));
    let mut tally = Tally::default();
    let outcome = run_seen("cargo", &arguments, |line| tally.see(line));
    println!("\n{tally}");
    outcome?;
    ensure!(tally.passed >= failures.len(), "not found again: {}", failures.join(", "));
    for name in failures {
        println!("FLAKY: {name} failed beside the others and passed alone");
    }
    Ok(())
}

/// `cargo xtask demo [--keep]`: with the agent that a user would run, as its figure is
/// to mean something.
pub(crate) fn demo(keep: bool) -> Result<()> {
    setup::run()?;
    ebpf::build()?;
    let build = ["build", "--release", "--package", "mesh-agent", "--package", "tests", "--bins"];
    run("cargo", &build)?;
    let program = workspace().join("target/release/demo");
    let program = program.to_str().context("the workspace's path is not UTF-8")?;
    run(program, if keep { &["--keep"] } else { &[] })
}

/// `cargo xtask bench [ARGUMENT]...`.
pub(crate) fn bench(arguments: &[String]) -> Result<()> {
    setup::for_bench()?;
    ebpf::build()?;
    run(
        "cargo",
        &["build", "--release", "--package", "mesh-agent", "--package", "tests", "--bins"],
    )?;
    let program = workspace().join("target/release/bench");
    let program = program.to_str().context("the workspace's path is not UTF-8")?;
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    run(program, &arguments)
}

/// `cargo xtask demo --down`: whatever build is there can do it.
pub(crate) fn demo_down() -> Result<()> {
    let built = ["target/release/demo", "target/debug/demo"].map(|file| workspace().join(file));
    match built.iter().find(|file| file.is_file()) {
        Some(program) => {
            let program = program.to_str().context("the workspace's path is not UTF-8")?;
            run(program, &["--down"])
        }
        None => {
            println!("nothing is up: the demo has not been built here");
            Ok(())
        }
    }
}

/// What the test programs said, added up.
#[derive(Debug, Default)]
struct Tally {
    programs: usize,
    passed: usize,
    failed: usize,
    ignored: usize,
    failures: Vec<String>,
}

impl Tally {
    /// Reads one line of libtest's.
    fn see(&mut self, line: &str) {
        if let Some(result) = line.strip_prefix("test result: ") {
            let number = |of: &str| {
                let mut words = result.split([' ', ';', '.']).filter(|word| !word.is_empty());
                let mut before = None;
                words.find_map(|word| {
                    let found = (word == of).then_some(before).flatten();
                    before = word.parse::<usize>().ok();
                    found
                })
            };
            self.programs += 1;
            self.passed += number("passed").unwrap_or(0);
            self.failed += number("failed").unwrap_or(0);
            self.ignored += number("ignored").unwrap_or(0);
        } else if let Some(name) =
            line.strip_prefix("test ").and_then(|line| line.strip_suffix(" ... FAILED"))
        {
            self.failures.push(name.to_owned());
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { programs, passed, failed, ignored, failures } = self;
        for failure in failures {
            writeln!(f, "FAILED: {failure}")?;
        }
        write!(
            f,
            "tests: {passed} passed, {failed} failed, {ignored} ignored in {programs} programs"
        )
    }
}

/// `cargo xtask ci`.
pub(crate) fn ci() -> Result<()> {
    components()?;
    for manifest in ["Cargo.toml", "mesh-ebpf/Cargo.toml", "fuzz/Cargo.toml"] {
        run("cargo", &["fmt", "--all", "--check", "--manifest-path", manifest])?;
    }
    // The agent's build script embeds the BPF object: it must exist before clippy.
    setup::run()?;
    ebpf::build()?;
    run("cargo", &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])?;
    tidy::run(&workspace())?;
    test(None)?;
    if cargo_deny().is_some() {
        return deny();
    }
    println!("cargo-deny is not installed: skipped (`cargo xtask deny` installs it)");
    Ok(())
}

/// Rustup's minimal profile comes without them.
fn components() -> Result<()> {
    for (probe, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
        let there = Command::new("cargo").args([probe, "--version"]).output();
        if !there.is_ok_and(|output| output.status.success()) {
            run("rustup", &["component", "add", component])?;
        }
    }
    Ok(())
}

fn cargo_deny() -> Option<PathBuf> {
    let ours = setup::tools().join("bin/cargo-deny");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&path).map(|dir| dir.join("cargo-deny"));
    if ours.is_file() { Some(ours) } else { places.find(|file| file.is_file()) }
}

/// `cargo xtask deny`.
pub(crate) fn deny() -> Result<()> {
    if cargo_deny().is_none() {
        let root = setup::tools();
        let root = root.to_str().context("the workspace's path is not UTF-8")?;
        run("cargo", &["install", "cargo-deny", "--locked", "--root", root])?;
    }
    let program = cargo_deny().context("cargo-deny was not installed")?;
    let program = program.to_str().context("the path of cargo-deny is not UTF-8")?;
    run(program, &["--all-features", "check"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_added_up_and_failures_named() {
        let mut tally = Tally::default();
        for line in [
            "running 3 tests",
            "test http::a_request_is_kept ... ok",
            "test http::b ... FAILED",
            "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; \
             finished in 0.02s",
            "test result: ok. 40 passed; 0 failed; 3 ignored; 0 measured; 0 filtered out",
        ] {
            tally.see(line);
        }
        let expected = "FAILED: http::b\ntests: 42 passed, 1 failed, 3 ignored in 2 programs";
        assert_eq!(tally.to_string(), expected);
    }
}
