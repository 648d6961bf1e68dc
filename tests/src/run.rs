//! A run's name, and the removal of what killed runs left behind.
//!
//! Every namespace, cgroup, directory and BPF pin of a bed starts with
//! `meshbed-<pid>-<start time>-<sequence>`: the owner can be looked up, and a recycled
//! pid does not pass for it.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Once,
        atomic::{AtomicU32, Ordering},
    },
};

use crate::{cgroup, netns};

const PREFIX: &str = "meshbed";
/// Holds each run's configuration, state, sockets and logs.
const DIRECTORY: &str = "/run/mesh-testbed";
const BPFFS: &str = "/sys/fs/bpf";

/// Names one bed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RunId(String);

impl RunId {
    /// A name no other bed has, owned by this process.
    pub fn fresh() -> Self {
        static SEQUENCE: AtomicU32 = AtomicU32::new(0);
        let pid = std::process::id();
        let start = start_time(pid).expect("read this process's own start time");
        Self(format!("{PREFIX}-{pid}-{start}-{}", SEQUENCE.fetch_add(1, Ordering::Relaxed)))
    }

    /// The run that owns something called `name`, if a bed made it.
    pub fn of(name: &str) -> Option<Self> {
        let mut parts = name.splitn(5, '-');
        let prefix = parts.next()?;
        let numbers: Vec<&str> = parts.by_ref().take(3).collect();
        let numeric = |s: &&str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        (prefix == PREFIX && numbers.len() == 3 && numbers.iter().all(numeric))
            .then(|| Self(format!("{prefix}-{}", numbers.join("-"))))
    }

    /// The name itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The run's own directory: configuration, state, sockets, logs.
    pub fn directory(&self) -> PathBuf {
        Path::new(DIRECTORY).join(&self.0)
    }

    /// The run's cgroup.
    pub fn cgroup(&self) -> PathBuf {
        cgroup::root().join(&self.0)
    }

    /// The BPF file system directory of one of the run's nodes.
    pub fn bpffs(&self, node: u8) -> PathBuf {
        Path::new(BPFFS).join(format!("{}-n{node}", self.0))
    }

    /// Whether the process that made the bed still runs.
    fn owner_lives(&self) -> bool {
        let mut numbers = self.0.split('-').skip(1).filter_map(|n| n.parse::<u64>().ok());
        let (Some(pid), Some(start)) = (numbers.next(), numbers.next()) else { return false };
        u32::try_from(pid).ok().and_then(start_time) == Some(start)
    }

    /// The file that tells the next run to leave this one alone.
    fn keep_marker(&self) -> PathBuf {
        self.directory().join("keep")
    }

    /// Spares the run from [`reap`] when its owner is gone.
    pub fn keep(&self) {
        fs::write(self.keep_marker(), "kept by `cargo xtask demo --keep`\n")
            .expect("mark the run as kept");
    }

    fn is_kept(&self) -> bool {
        self.keep_marker().exists()
    }

    /// Ends the run's processes and removes everything that carries its name.
    ///
    /// Goes on past what it cannot remove and returns that.
    pub fn remove(&self) -> Vec<String> {
        let mut left = Vec::new();
        let mut note = |what: &str, result: io::Result<()>| {
            if let Err(error) = result {
                left.push(format!("{what}: {error}"));
            }
        };
        // Processes first: they hold namespaces, pins and cgroups. The cgroup is the
        // run's own, so whatever is in it is ours to end.
        note("end processes", cgroup::kill_all(&self.cgroup()));
        for entry in entries(BPFFS).filter(|name| Self::of(name).as_ref() == Some(self)) {
            note("remove BPF pins", remove_tree(&Path::new(BPFFS).join(entry)));
        }
        for name in netns::list().into_iter().filter(|name| Self::of(name).as_ref() == Some(self)) {
            note("remove network namespace", netns::remove(&name));
        }
        note("remove cgroup", cgroup::remove(&self.cgroup()));
        note("remove directory", remove_tree(&self.directory()));
        left
    }

    /// Everything on this machine that carries the run's name.
    pub fn leftovers(&self) -> Vec<String> {
        let mut found: Vec<String> =
            netns::list().into_iter().map(|name| format!("netns {name}")).collect();
        found.extend(entries(BPFFS).map(|name| format!("bpffs {name}")));
        found.extend(entries(DIRECTORY).map(|name| format!("directory {name}")));
        found.extend(entries(cgroup::root()).map(|name| format!("cgroup {name}")));
        let ours = |line: &String| {
            line.split_once(' ').and_then(|(_, name)| Self::of(name)).as_ref() == Some(self)
        };
        found.retain(ours);
        found
    }
}

impl std::fmt::Display for RunId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Removes what runs left behind whose process is gone; returns their names.
pub fn reap() -> Vec<RunId> {
    let dead = |run: &RunId| !run.owner_lives() && !run.is_kept();
    let gone: Vec<RunId> = all_runs().into_iter().filter(dead).collect();
    for run in &gone {
        for problem in run.remove() {
            eprintln!("reap {run}: {problem}");
        }
    }
    gone
}

/// Removes the runs of this process, whatever its threads are at; returns what is left.
pub fn remove_own() -> Vec<String> {
    let owner = format!("{PREFIX}-{}-", std::process::id());
    let own = |run: &RunId| run.0.starts_with(&owner) && run.owner_lives() && !run.is_kept();
    all_runs().iter().filter(|run| own(run)).flat_map(RunId::remove).collect()
}

/// [`reap`], once per process.
pub(crate) fn reap_once() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        reap();
    });
}

/// The runs that were kept on purpose.
pub fn kept_runs() -> Vec<RunId> {
    all_runs().into_iter().filter(|run| run.is_kept() && !run.owner_lives()).collect()
}

/// Removes the runs that were kept on purpose, and dead ones; returns their names.
pub fn remove_kept() -> Vec<RunId> {
    let mut gone = kept_runs();
    for run in &gone {
        for problem in run.remove() {
            eprintln!("remove {run}: {problem}");
        }
    }
    gone.extend(reap());
    gone
}

fn all_runs() -> Vec<RunId> {
    let mut runs: Vec<RunId> = netns::list()
        .into_iter()
        .chain(entries(BPFFS))
        .chain(entries(DIRECTORY))
        .chain(entries(cgroup::root()))
        .filter_map(|name| RunId::of(&name))
        .collect();
    runs.sort();
    runs.dedup();
    runs
}

/// Clock ticks after boot at which process `pid` started; `None` if there is none.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command in parentheses may hold anything; fields count from behind it.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

fn entries(directory: impl AsRef<Path>) -> impl Iterator<Item = String> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
}

fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_leads_back_to_its_run() {
        let run = RunId::fresh();
        assert_eq!(RunId::of(run.as_str()).as_ref(), Some(&run));
        assert_eq!(RunId::of(&format!("{run}-n1-web")).as_ref(), Some(&run));
        assert!(run.owner_lives());
    }

    #[test]
    fn foreign_names_are_nobodys() {
        for name in ["", "meshbed", "meshbed-1-2", "meshbed-1-x-3", "cni-1-2-3", "meshbed--1-2"] {
            assert_eq!(RunId::of(name), None, "{name}");
        }
    }

    #[test]
    fn a_recycled_pid_is_not_the_owner() {
        let run = RunId(format!("{PREFIX}-{}-1-0", std::process::id()));
        assert!(!run.owner_lives());
    }
}
