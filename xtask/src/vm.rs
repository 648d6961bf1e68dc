//! `cargo xtask vm`: stock Debian kernels under QEMU, and what of the agent works on each.
//!
//! The guest is an initramfs of busybox, the modules it needs, the agent and the programs
//! of `tests`; `smoke` runs in it and prints a line of JSON for each feature. QEMU emulates
//! (no KVM is asked for), and has no disk and no network. Everything is fetched from the
//! Debian mirror that the machine uses, into `target/vm`, without touching its packages.

mod apt;
mod guest;
mod image;
mod table;

use std::{fs, path::PathBuf, time::Instant};

use anyhow::{Context, Result, bail, ensure};

use self::image::Guest;
use crate::{build::workspace, ebpf, setup};

/// Kernels to choose from, with the suites of the Debian archive that have them.
const KERNELS: [Kernel; 5] = [
    Kernel { version: "5.10", suites: &["bullseye", "bullseye-security"] },
    Kernel { version: "6.1", suites: &["bookworm", "bookworm-security"] },
    Kernel { version: "6.12", suites: &["trixie", "trixie-security"] },
    Kernel { version: "6.18", suites: &["trixie-backports"] },
    Kernel { version: "7.3", suites: &["trixie-backports"] },
];

/// The one that the test command boots.
const TESTED: &str = "6.1";

/// A kernel series.
#[derive(Debug, Clone, Copy)]
struct Kernel {
    version: &'static str,
    suites: &'static [&'static str],
}

/// Boots each of `wanted` (versions, or `all`) and prints a table kernel × feature.
///
/// # Errors
/// If something that has to work on a supported kernel does not.
pub(crate) fn run(wanted: &[String]) -> Result<()> {
    let kernels = choose(wanted)?;
    setup::run()?;
    ebpf::build()?;
    crate::build::run("cargo", &["build", "--workspace", "--bins"])?;
    boot(&kernels)
}

/// As [`run`] for [`TESTED`], with everything built already.
pub(crate) fn test() -> Result<()> {
    boot(&choose(&[TESTED.to_owned()])?)
}

fn choose(wanted: &[String]) -> Result<Vec<Kernel>> {
    if wanted.iter().any(|version| version == "all") {
        return Ok(KERNELS.to_vec());
    }
    let known = |version: &String| {
        let found = KERNELS.iter().find(|kernel| kernel.version == version).copied();
        let all = KERNELS.map(|kernel| kernel.version).join(", ");
        found.with_context(|| format!("no kernel `{version}`: there are {all}, and `all`"))
    };
    wanted.iter().map(known).collect()
}

fn boot(kernels: &[Kernel]) -> Result<()> {
    let qemu = apt::qemu()?;
    let guest = Guest::prepare()?;
    let mut outcomes = Vec::new();
    for kernel in kernels {
        let start = Instant::now();
        let found = apt::kernel(*kernel)?;
        let initrd = guest.initrd(&found)?;
        println!("vm: booting {} ({})", kernel.version, found.release);
        let outcome = guest::run(&qemu, &found, &initrd)?;
        let seconds = start.elapsed().as_secs();
        println!("vm: {} {} in {seconds} s", found.release, outcome.summary());
        outcomes.push((*kernel, found.release, outcome));
    }
    print!("\n{}", table::render(&outcomes));
    let failed: Vec<_> = outcomes
        .iter()
        .filter(|(.., outcome)| outcome.has_failed())
        .map(|(kernel, ..)| kernel.version)
        .collect();
    ensure!(failed.is_empty(), "not everything holds on {}", failed.join(", "));
    Ok(())
}

/// Where everything of this command is kept.
fn directory() -> Result<PathBuf> {
    let directory = workspace().join("target/vm");
    fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
    Ok(directory)
}

/// The numbers in a version, for comparing.
fn numbers(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

/// The only file or directory in `directories` whose name starts with `prefix`.
fn find(directories: &[PathBuf], prefix: &str) -> Result<PathBuf> {
    for directory in directories {
        let entries = fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
        let found = entries
            .map(|entry| entry.path())
            .find(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(prefix)));
        if let Some(path) = found {
            return Ok(path);
        }
    }
    bail!("no `{prefix}…` in {directories:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_chosen_by_version() {
        let versions = |wanted: &[&str]| {
            let wanted: Vec<String> = wanted.iter().map(|&w| w.to_owned()).collect();
            choose(&wanted).map(|kernels| kernels.iter().map(|k| k.version).collect::<Vec<_>>())
        };
        assert_eq!(versions(&["6.1", "5.10"]).unwrap(), ["6.1", "5.10"]);
        assert_eq!(versions(&["all"]).unwrap().len(), KERNELS.len());
        assert!(versions(&["4.19"]).unwrap_err().to_string().contains("no kernel `4.19`"));
        assert!(versions(&[TESTED]).is_ok());
    }

    #[test]
    fn versions_compare_by_their_numbers() {
        assert!(numbers("6.1.0-56-cloud") > numbers("6.1.0-9-cloud"));
        assert!(numbers("6.12.117+deb13") > numbers("6.12.90+deb13.1"));
    }
}
