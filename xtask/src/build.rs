//! What runs cargo: `test`, `demo`, `bench`, `ci`, `deny`.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{ebpf, setup, tidy};

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
    let status = Command::new(program)
        .args(arguments)
        .current_dir(workspace())
        .status()
        .with_context(|| format!("`{shown}` did not start"))?;
    ensure!(status.success(), "`{shown}` failed ({status})");
    Ok(())
}

/// Makes everything that the demo and the tests need, once for both: one set of
/// features, so that dependencies are compiled once.
fn everything() -> Result<()> {
    setup::run()?;
    ebpf::build()?;
    run("cargo", &["build", "--workspace", "--all-targets"])
}

/// `cargo xtask test [FILTER]`: the fuzz targets' seeds run as a test of the agent's.
pub(crate) fn test(filter: Option<&str>) -> Result<()> {
    everything()?;
    let mut arguments = vec!["test", "--workspace", "--no-fail-fast"];
    arguments.extend(filter);
    run("cargo", &arguments)
}

/// `cargo xtask demo [--keep]`.
pub(crate) fn demo(keep: bool) -> Result<()> {
    everything()?;
    let program = workspace().join("target/debug/demo");
    let program = program.to_str().context("the workspace's path is not UTF-8")?;
    run(program, if keep { &["--keep"] } else { &[] })
}

/// `cargo xtask bench [ARGUMENT]...`.
pub(crate) fn bench(arguments: &[String]) -> Result<()> {
    setup::run()?;
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

/// `cargo xtask demo --down`.
pub(crate) fn demo_down() -> Result<()> {
    run("cargo", &["run", "--quiet", "--package", "tests", "--bin", "demo", "--", "--down"])
}

/// `cargo xtask ci`.
pub(crate) fn ci() -> Result<()> {
    components()?;
    run("cargo", &["fmt", "--all", "--check"])?;
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
