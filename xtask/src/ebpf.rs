//! `cargo xtask ebpf`: builds the BPF object that the agent embeds.
//!
//! The object needs `core` from source for a target that stable toolchains do not
//! ship. Two recipes, whichever is there: the distribution's own toolchain with its
//! source package and `RUSTC_BOOTSTRAP`, or rustup's nightly with `rust-src`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{build::workspace, setup};

const SYSTEM_RUSTC: &str = "/usr/bin/rustc";
const SYSTEM_CARGO: &str = "/usr/bin/cargo";
const SYSTEM_CORE_SOURCE: &str = "/usr/lib/rustlib/src/rust/library/core/Cargo.toml";

/// Builds the object if its sources changed.
///
/// Returns its path, `<workspace>/target/ebpf/mesh-ebpf`.
///
/// # Errors
/// Where no toolchain is found, or what cargo and the linker said.
pub(crate) fn build() -> Result<PathBuf> {
    let workspace = workspace();
    let target = workspace.join("target");
    let linker = setup::tools().join("bin/bpf-linker");
    ensure!(linker.is_file(), "no {}: run `cargo xtask setup`", linker.display());

    let mut cargo = toolchain()?;
    let flags = [
        format!("-Clinker={}", linker.display()),
        "--cfg=bpf_target_arch=\"x86_64\"".to_owned(),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
    ];
    let status = cargo
        .current_dir(workspace.join("mesh-ebpf"))
        .args(["build", "--release", "--locked", "-Zbuild-std=core", "--target=bpfel-unknown-none"])
        .arg("--target-dir")
        .arg(target.join("ebpf-build"))
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env_remove("RUSTFLAGS")
        .status()
        .context("cargo for mesh-ebpf did not start")?;
    ensure!(status.success(), "the BPF object did not build ({status})");

    let built = target.join("ebpf-build/bpfel-unknown-none/release/mesh-ebpf");
    let object = target.join("ebpf/mesh-ebpf");
    copy_if_changed(&built, &object)?;
    Ok(object)
}

/// A cargo that can build `core`, with the outer cargo's variables taken away.
fn toolchain() -> Result<Command> {
    let rustup_nightly = || {
        Command::new("rustup")
            .args(["component", "list", "--installed", "--toolchain", "nightly"])
            .output()
            .is_ok_and(|out| {
                out.status.success() && String::from_utf8_lossy(&out.stdout).contains("rust-src")
            })
    };
    let mut cargo;
    // First what is known to speak the linker's version of LLVM.
    if Path::new(SYSTEM_CORE_SOURCE).exists() && Path::new(SYSTEM_CARGO).exists() {
        cargo = Command::new(SYSTEM_CARGO);
        cargo.env("RUSTC", SYSTEM_RUSTC).env("RUSTC_BOOTSTRAP", "1");
    } else if rustup_nightly() {
        cargo = Command::new("rustup");
        cargo.args(["run", "nightly", "cargo"]);
        cargo.env_remove("RUSTC");
    } else {
        bail!(
            "no toolchain can build the BPF object: run `cargo xtask setup`, or install \
             rustup's nightly with rust-src, or the packages rustc-web cargo-web rust-web-src"
        );
    }
    // What cargo set for xtask itself would steer the inner build.
    for name in
        ["CARGO", "RUSTUP_TOOLCHAIN", "CARGO_MANIFEST_DIR", "CARGO_TARGET_DIR", "RUSTC_WRAPPER"]
    {
        cargo.env_remove(name);
    }
    Ok(cargo)
}

/// Leaves the file's time alone when nothing changed, so that the agent is not rebuilt.
fn copy_if_changed(from: &Path, to: &Path) -> Result<()> {
    let new = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    if let Some(directory) = to.parent() {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
    }
    fs::write(to, new).with_context(|| format!("cannot write {}", to.display()))
}
