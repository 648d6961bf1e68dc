//! The directory that keeps programs, maps and links alive without the agent.
#![forbid(unsafe_code)]

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use super::error::CaptureError;

const STANDARD_MOUNT: &str = "/sys/fs/bpf";

/// Whether `path` exists and is on a BPF filesystem.
pub(super) fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC)
}

/// Makes `directory`, mounting a BPF filesystem where there is none.
pub(super) fn prepare(directory: &Path) -> Result<(), CaptureError> {
    let existing = directory.ancestors().find(|path| path.exists());
    if !existing.is_some_and(is_bpffs) {
        let point = if directory.starts_with(STANDARD_MOUNT) {
            PathBuf::from(STANDARD_MOUNT)
        } else {
            directory.to_owned()
        };
        create(&point)?;
        mount(Some("bpf"), &point, Some("bpf"), MsFlags::empty(), Some("mode=0700")).map_err(
            |errno| CaptureError::File {
                act: "mount a BPF filesystem on",
                path: point.clone(),
                source: errno.into(),
            },
        )?;
        tracing::info!(path = %point.display(), "mounted a BPF filesystem");
    }
    create(directory)
}

/// Makes a directory and its parents.
pub(super) fn create(directory: &Path) -> Result<(), CaptureError> {
    fs::create_dir_all(directory).map_err(|source| CaptureError::File {
        act: "create",
        path: directory.to_owned(),
        source,
    })
}

/// Removes a pin or another file; one that is not there is fine.
pub(super) fn remove_file(path: &Path) -> Result<(), CaptureError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(CaptureError::File { act: "remove", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Removes a directory of pins with all it holds; one that is not there is fine.
pub(super) fn remove_tree(path: &Path) -> Result<(), CaptureError> {
    match fs::remove_dir_all(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(CaptureError::File { act: "remove", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}
