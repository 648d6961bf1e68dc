//! Where cgroup v2 is mounted.
#![forbid(unsafe_code)]

use std::{
    fs,
    path::{Path, PathBuf},
};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::error::CaptureError;

/// The cgroup v2 root, from `/proc/self/mountinfo`: on hybrid systems it is not
/// `/sys/fs/cgroup`.
///
/// # Errors
/// [`CaptureError::NoCgroup2`] where none is mounted.
pub fn cgroup2_root() -> Result<PathBuf, CaptureError> {
    let path = PathBuf::from("/proc/self/mountinfo");
    let mountinfo = fs::read_to_string(&path).map_err(|source| CaptureError::File {
        act: "read",
        path,
        source,
    })?;
    find(&mountinfo).ok_or(CaptureError::NoCgroup2)
}

/// Whether `directory` is one of cgroup v2.
pub(super) fn is_cgroup2(directory: &Path) -> bool {
    statfs(directory).is_ok_and(|stat| stat.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

/// Spec: proc_pid_mountinfo(5). Prefers a mount of the whole hierarchy to one of a part.
fn find(mountinfo: &str) -> Option<PathBuf> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        if filesystem.split(' ').next() != Some("cgroup2") {
            return None;
        }
        let mut fields = mount.split(' ').skip(3);
        Some((fields.next()?, unescape(fields.next()?)))
    });
    let mounts: Vec<_> = mounts.collect();
    mounts
        .iter()
        .find(|(root, _)| *root == "/")
        .or_else(|| mounts.first())
        .map(|(_, point)| PathBuf::from(point))
}

/// The kernel writes space, tab, newline and backslash as octal escapes.
fn unescape(field: &str) -> String {
    field.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_directory_is_none() {
        assert!(is_cgroup2(&cgroup2_root().unwrap()));
        assert!(!is_cgroup2(Path::new("/tmp")));
        assert!(!is_cgroup2(Path::new("/nowhere")));
    }

    #[test]
    fn the_hierarchy_is_found_where_it_is() {
        let hybrid = "\
30 24 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw
31 30 0:27 / /sys/fs/cgroup/cpu rw,nosuid - cgroup cgroup rw,cpu
40 30 0:36 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw
";
        assert_eq!(find(hybrid), Some("/sys/fs/cgroup/unified".into()));
        let container = "\
5 1 0:36 /pod7 /mnt/part rw - cgroup2 cgroup2 rw
6 1 0:36 / /mnt/with\\040space rw - cgroup2 cgroup2 rw
";
        assert_eq!(find(container), Some("/mnt/with space".into()));
        assert_eq!(find("1 1 0:1 / / rw - ext4 /dev/sda rw\n"), None);
    }
}
