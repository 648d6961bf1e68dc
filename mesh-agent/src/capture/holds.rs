//! What is pinned is held open as well: who deletes the pins of an agent that lives takes
//! neither capture nor guard away, and finds the pins again.
//!
//! Pins alone keep an object for as long as there is a path to it; a descriptor keeps it for
//! as long as the agent lives.
#![forbid(unsafe_code)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use aya::programs::links::FdLink;

use super::{
    bpf::{detach_link, open_pin, pin_object},
    bpffs,
    error::CaptureError,
};

/// How deep pins are below the instance's directory: `guards/<cookie>/<pin>`.
const DEPTH: u32 = 3;

/// Every pin of the instance, by its path.
#[derive(Debug, Default)]
pub(super) struct Holds(Mutex<BTreeMap<PathBuf, Hold>>);

#[derive(Debug)]
struct Hold {
    /// Another one: something else was pinned there.
    inode: u64,
    object: OwnedFd,
}

impl Hold {
    fn of(pin: &Path) -> io::Result<Self> {
        let object = open_pin(pin)?;
        Ok(Self { inode: fs::symlink_metadata(pin)?.ino(), object })
    }

    fn detach(self) {
        if let Err(error) = detach_link(self.object.as_fd()) {
            // A map, or what a link was attached to is gone.
            tracing::trace!(%error, "not a link that could be detached");
        }
    }
}

impl Holds {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Hold>> {
        // Entries come and go whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is pinned is somebody else's to hold.
    pub(super) fn let_go(&self) {
        self.lock().clear();
    }

    /// Pins a new link; what was pinned there before goes only now that it is attached.
    pub(super) fn replace(&self, link: FdLink, pin: &Path) -> Result<(), CaptureError> {
        let mut holds = self.lock();
        holds.remove(pin);
        bpffs::remove_file(pin)?;
        let failed = |source| CaptureError::Pin { path: pin.to_owned(), source };
        link.pin(pin).map(drop).map_err(failed)?;
        if let Ok(hold) = Hold::of(pin) {
            holds.insert(pin.to_owned(), hold);
        }
        Ok(())
    }

    /// Removes a pin, and with it what is pinned; a link is detached at once.
    pub(super) fn remove(&self, pin: &Path) -> Result<(), CaptureError> {
        if let Some(hold) = self.lock().remove(pin) {
            hold.detach();
        }
        bpffs::remove_file(pin)
    }

    /// Removes a directory of pins with all that is pinned in it, as [`Holds::remove`].
    pub(super) fn remove_tree(&self, directory: &Path) -> Result<(), CaptureError> {
        let mut holds = self.lock();
        for (_, hold) in holds.extract_if(.., |pin, _| pin.starts_with(directory)) {
            hold.detach();
        }
        bpffs::remove_tree(directory)
    }

    /// Holds what is pinned below `root`, and pins anew what somebody else has deleted.
    pub(super) fn keep(&self, root: &Path) {
        let mut holds = self.lock();
        let mut there = BTreeSet::new();
        list(root, DEPTH, &mut |pin, inode| {
            if holds.get(&pin).is_none_or(|hold| hold.inode != inode)
                && let Ok(hold) = Hold::of(&pin)
            {
                holds.insert(pin.clone(), hold);
            }
            there.insert(pin);
        });
        let mut made = 0;
        for (pin, hold) in holds.iter_mut().filter(|(pin, _)| !there.contains(*pin)) {
            match pin_again(root, pin, hold) {
                Ok(()) => made += 1,
                Err(error) => tracing::error!(
                    pin = %pin.display(), %error,
                    "a pin was deleted and can't be made again: what it held ends with this agent"
                ),
            }
        }
        if made > 0 {
            tracing::error!(
                pins = made, directory = %root.display(),
                "pins were deleted, and are made again: without this agent the mesh would have \
                 let go of its pods"
            );
        }
    }
}

fn pin_again(root: &Path, pin: &Path, hold: &mut Hold) -> Result<(), CaptureError> {
    bpffs::prepare(root)?;
    pin.parent().map_or(Ok(()), bpffs::create)?;
    let failed = |source| CaptureError::File { act: "pin", path: pin.to_owned(), source };
    pin_object(hold.object.as_fd(), pin).map_err(failed)?;
    hold.inode = fs::symlink_metadata(pin).map_err(failed)?.ino();
    Ok(())
}

fn list(directory: &Path, depth: u32, found: &mut impl FnMut(PathBuf, u64)) {
    // What is not there has no pins.
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.filter_map(Result::ok) {
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() && depth > 1 => {
                list(&entry.path(), depth - 1, found);
            }
            Ok(metadata) if metadata.is_file() => found(entry.path(), metadata.ino()),
            _ => {}
        }
    }
}
