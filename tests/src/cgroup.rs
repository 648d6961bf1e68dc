//! Cgroup v2 paths: found, made, emptied and removed.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::OnceLock,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Where cgroup v2 is mounted: on a hybrid machine not at `/sys/fs/cgroup`.
///
/// # Panics
/// If it is mounted nowhere (`cargo xtask setup` mounts it).
pub fn root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").expect("read mountinfo");
        find_root(&mountinfo)
            .expect("cgroup v2 is not mounted: run `cargo xtask setup` in the host's namespaces")
    })
}

fn find_root(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(3);
        let (fs_root, mount_point) = (fields.next()?, fields.next()?);
        (after.starts_with("cgroup2 ") && fs_root == "/").then(|| PathBuf::from(mount_point))
    })
}

/// Makes the cgroup at `path` with its parents.
pub fn create(path: &Path) {
    fs::create_dir_all(path).unwrap_or_else(|e| panic!("make cgroup {}: {e}", path.display()));
}

/// The processes in the cgroup at `path` and below.
pub fn processes(path: &Path) -> Vec<Pid> {
    let mut pids = Vec::new();
    walk(path, &mut |cgroup| {
        let listed = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
        pids.extend(listed.lines().filter_map(|l| l.parse().ok()).map(Pid::from_raw));
    });
    pids
}

/// Kills every process in the cgroup at `path` and below, and waits until they are gone.
///
/// # Errors
/// If some are still there after five seconds.
pub fn kill_all(path: &Path) -> io::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        // Pid 0 would be a process of another pid namespace.
        let pids: Vec<Pid> = processes(path).into_iter().filter(|pid| pid.as_raw() > 0).collect();
        if pids.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(io::Error::other(format!("processes {pids:?} do not end")));
        }
        for pid in pids {
            // One that ended by itself in between is what we want.
            let _ = kill(pid, Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Removes the cgroup at `path` and those below; it must have no processes.
///
/// # Errors
/// What `rmdir(2)` said, after retries: the kernel lets go of a dead process's cgroup late.
pub fn remove(path: &Path) -> io::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let mut result = Ok(());
        walk(path, &mut |cgroup| {
            if let Err(error) = fs::remove_dir(cgroup)
                && error.kind() != io::ErrorKind::NotFound
            {
                result = Err(error);
            }
        });
        if result.is_ok() || Instant::now() > deadline {
            return result;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Visits the cgroup at `path` and those below it, deepest first.
fn walk(path: &Path, visit: &mut dyn FnMut(&Path)) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), visit);
        }
    }
    if path.exists() {
        visit(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_cgroup_v2_wherever_it_is_mounted() {
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(find_root(hybrid), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        let unified = "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n";
        assert_eq!(find_root(unified), Some(PathBuf::from("/sys/fs/cgroup")));
        let bind_of_a_part = "31 23 0:28 /pod /mnt rw - cgroup2 cgroup rw\n";
        assert_eq!(find_root(bind_of_a_part), None);
    }
}
