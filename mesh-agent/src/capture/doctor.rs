//! Whether this kernel can capture: for `mesh-agent doctor`.
#![forbid(unsafe_code)]

use std::{fs, fs::File, os::fd::AsFd, path::Path};

use super::{
    bpf::attached_programs,
    bpffs::is_bpffs,
    cgroup::cgroup2_root,
    error::{brief, chain},
    fullness::{MapFill, fills},
    loader::{CGROUP_PROGRAMS, SPLICE_PROGRAM, maps_directory, try_load},
    netns::PodNetns,
    options::CaptureOptions,
    redirect::netfilter,
    selftest::self_test,
    sock_diag,
};
use crate::model::splice::{SelfCheck, SpliceMode};

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckStatus {
    Ok,
    /// Works, but an operator should know.
    Warn,
    /// Capture will not work.
    Fail,
}

/// One thing looked at.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Check {
    pub name: String,
    pub status: CheckStatus,
    /// What was found, and what to do about it.
    pub detail: String,
}

/// Looks at the kernel and the mounts. Changes nothing.
pub fn doctor(options: &CaptureOptions) -> Vec<Check> {
    let mut checks = vec![kernel_version(), btf()];
    checks.extend(programs());
    checks.push(netns_cookie());
    checks.extend(cgroup(options));
    checks.push(bpffs(&options.bpffs));
    checks.push(maps(options));
    checks.extend(sysctls());
    checks.push(kernel_path());
    checks.push(redirect_peer());
    checks.extend(options.probe_cgroups.iter().map(|path| prober(path)));
    checks.extend(self_tested(options.splice));
    checks
}

/// Whether there is room in the maps of the agent that runs, or ran, here.
fn maps(options: &CaptureOptions) -> Check {
    let directory = options.bpffs.join(&options.instance).join(maps_directory());
    let mut told = Vec::new();
    for fill in fills(&directory, &options.capacities) {
        let MapFill { map, entries, capacity, wanted } = fill;
        if fill.is_filling() {
            told.push(format!("{map} is nearly full, {entries} of {capacity}: --map-size"));
        }
        if capacity != wanted {
            told.push(format!("{map} keeps its {capacity} entries, not {wanted}"));
        }
    }
    if told.is_empty() {
        return check("maps", CheckStatus::Ok, "none is nearly full");
    }
    check("maps", CheckStatus::Warn, told.join("; "))
}

/// Whether pods of this node may be connected without the agent.
fn kernel_path() -> Check {
    match sock_diag::can_destroy() {
        Ok(()) => check("kernel path", CheckStatus::Ok, "live connections can be cut"),
        Err(error) => check(
            "kernel path",
            CheckStatus::Warn,
            format!("off: live connections can't be cut (CONFIG_INET_DIAG_DESTROY): {error}"),
        ),
    }
}

/// Whether packets may go straight from pod to pod, as far as the node as a whole says;
/// what is on each pod's interface is in the agent's status.
fn redirect_peer() -> Check {
    match netfilter() {
        None => check("redirect_peer", CheckStatus::Ok, "no rules of the node need to see packets"),
        Some(why) => check(
            "redirect_peer",
            CheckStatus::Warn,
            format!("auto is off: {why}; `--redirect-peer on` steps around them"),
        ),
    }
}

/// Whose probes are let in: a path that is not there lets nobody in, and is no error.
fn prober(path: &Path) -> Check {
    let name = format!("prober {}", path.display());
    if path.join("cgroup.procs").exists() {
        check(name, CheckStatus::Ok, "its processes reach this node's pods in plaintext")
    } else {
        check(name, CheckStatus::Warn, "is no cgroup v2 directory (yet): its probes are refused")
    }
}

/// What the kernel does, and what comes of it for splicing.
fn self_tested(mode: SpliceMode) -> Vec<Check> {
    let test = self_test();
    let status = |passed| if passed { CheckStatus::Ok } else { CheckStatus::Warn };
    let mut checks: Vec<Check> = test
        .checks
        .iter()
        .map(|found| {
            let detail = format!("{} ({} µs)", found.detail, found.micros);
            check(format!("self-test {}", found.name), status(found.passed), detail)
        })
        .collect();
    checks.push(spliced("splice", mode, &test.splice_vetoes(), &test.splice_failures()));
    checks.push(spliced("splice agent", mode, &test.agent_vetoes(), &test.agent_failures()));
    checks
}

fn spliced(name: &str, mode: SpliceMode, vetoes: &[&str], failures: &[&SelfCheck]) -> Check {
    let failed: Vec<_> = failures.iter().map(|check| check.name.as_str()).collect();
    let failed = failed.join(", ");
    match mode {
        SpliceMode::Off => check(name, CheckStatus::Ok, "off: switched off"),
        SpliceMode::On if !vetoes.is_empty() => {
            let detail = format!("off all the same: this kernel fails {}", vetoes.join(", "));
            check(name, CheckStatus::Warn, detail)
        }
        _ if failed.is_empty() => check(name, CheckStatus::Ok, "on: every check passes"),
        SpliceMode::Auto => {
            check(name, CheckStatus::Ok, format!("off: this kernel fails {failed}"))
        }
        SpliceMode::On => {
            check(name, CheckStatus::Warn, format!("on, although this kernel fails {failed}"))
        }
    }
}

fn check(name: impl Into<String>, status: CheckStatus, detail: impl Into<String>) -> Check {
    Check { name: name.into(), status, detail: detail.into() }
}

/// `bpf_set_retval` in the connect hooks is the newest thing capture cannot do without.
const OLDEST: (u32, u32) = (6, 1);

fn kernel_version() -> Check {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let status = if version >= OLDEST { CheckStatus::Ok } else { CheckStatus::Fail };
    check("kernel", status, format!("{release} (needs {}.{})", OLDEST.0, OLDEST.1))
}

fn btf() -> Check {
    let path = "/sys/kernel/btf/vmlinux";
    if Path::new(path).exists() {
        check("btf", CheckStatus::Ok, path)
    } else {
        check("btf", CheckStatus::Warn, format!("{path} is not there (CONFIG_DEBUG_INFO_BTF)"))
    }
}

fn programs() -> Vec<Check> {
    match try_load() {
        Ok(programs) => programs
            .into_iter()
            .map(|(name, result)| match result {
                Ok(()) => check(format!("program {name}"), CheckStatus::Ok, "loads"),
                Err(error) => {
                    // Without this one there is no splicing, and all else works.
                    let spared = name == SPLICE_PROGRAM;
                    let status = if spared { CheckStatus::Warn } else { CheckStatus::Fail };
                    check(format!("program {name}"), status, brief(&chain(&error)))
                }
            })
            .collect(),
        Err(error) => vec![check("programs", CheckStatus::Fail, chain(&error))],
    }
}

fn netns_cookie() -> Check {
    match PodNetns::own() {
        Ok(own) => check("netns cookie", CheckStatus::Ok, format!("own: {}", own.cookie())),
        Err(error) => check("netns cookie", CheckStatus::Fail, chain(&error)),
    }
}

fn cgroup(options: &CaptureOptions) -> Vec<Check> {
    let root = match options.cgroup_root.clone().map_or_else(cgroup2_root, Ok) {
        Ok(root) => root,
        Err(error) => return vec![check("cgroup v2", CheckStatus::Fail, chain(&error))],
    };
    if !root.join("cgroup.procs").exists() {
        let detail = format!("{} is not a cgroup v2 directory", root.display());
        return vec![check("cgroup v2", CheckStatus::Fail, detail)];
    }
    let mut checks = vec![check("cgroup v2", CheckStatus::Ok, root.display().to_string())];
    let directory = match File::open(&root) {
        Ok(directory) => directory,
        Err(error) => {
            checks.push(check("cgroup programs", CheckStatus::Fail, chain(&error)));
            return checks;
        }
    };
    // Attach types of `enum bpf_attach_type`.
    for (name, attach_type) in [
        ("sock_ops", 3),
        ("connect4", 10),
        ("connect6", 11),
        ("getpeername4", 29),
        ("getpeername6", 30),
    ] {
        let name = format!("cgroup {name}");
        checks.push(match attached_programs(directory.as_fd(), attach_type) {
            Ok(ids) => {
                let others: Vec<_> = ids.into_iter().filter_map(foreign).collect();
                if others.is_empty() {
                    check(name, CheckStatus::Ok, "no other programs")
                } else {
                    let detail = format!(
                        "other programs run here too and may rewrite addresses before capture \
                         sees them: {}",
                        others.join(", ")
                    );
                    check(name, CheckStatus::Warn, detail)
                }
            }
            Err(error) => check(name, CheckStatus::Warn, format!("cannot be queried: {error}")),
        });
    }
    checks
}

/// The program's name, if it is not one of ours.
fn foreign(id: u32) -> Option<String> {
    let name = aya::programs::loaded_programs()
        .filter_map(Result::ok)
        .find(|program| program.id() == id)
        .and_then(|program| program.name_as_str().map(str::to_owned))
        .unwrap_or_default();
    // The kernel keeps 15 bytes of a name.
    let ours = CGROUP_PROGRAMS.iter().any(|known| !name.is_empty() && known.starts_with(&name));
    (!ours).then(|| format!("{name} (id {id})"))
}

fn bpffs(directory: &Path) -> Check {
    let existing = directory.ancestors().find(|path| path.exists());
    match existing {
        Some(path) if is_bpffs(path) => {
            check("bpffs", CheckStatus::Ok, directory.display().to_string())
        }
        _ => check(
            "bpffs",
            CheckStatus::Warn,
            format!("{} is on no BPF filesystem: the agent will mount one", directory.display()),
        ),
    }
}

fn sysctls() -> Vec<Check> {
    let read = |path: &str| fs::read_to_string(path).ok().map(|value| value.trim().to_owned());
    let fwmark_accept = "/proc/sys/net/ipv4/tcp_fwmark_accept";
    let jit = "/proc/sys/net/core/bpf_jit_enable";
    vec![
        match read(fwmark_accept) {
            Some(value) => check(
                "sysctl net.ipv4.tcp_fwmark_accept",
                CheckStatus::Ok,
                format!("{value} here; set to 1 inside enrolled pods"),
            ),
            None => check(
                "sysctl net.ipv4.tcp_fwmark_accept",
                CheckStatus::Fail,
                "missing: applications cannot see their clients' addresses",
            ),
        },
        match read(jit).as_deref() {
            Some("0") => check(
                "sysctl net.core.bpf_jit_enable",
                CheckStatus::Warn,
                "0: programs are interpreted, which is slow",
            ),
            Some(value) => check("sysctl net.core.bpf_jit_enable", CheckStatus::Ok, value),
            None => check("sysctl net.core.bpf_jit_enable", CheckStatus::Ok, "always on"),
        },
    ]
}
