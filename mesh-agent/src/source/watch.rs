//! Watching the directory: a complete configuration, or why not, at every change.
//!
//! A change is looked at once the directory has been still for a while and two
//! readings agree, and while nobody who writes to a file there has it open: a file
//! that is half written never counts, even if that half happens to be valid YAML.

use std::{
    collections::HashMap,
    ffi::OsString,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode, ModifyKind},
};
use tokio::{
    sync::mpsc,
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;

use super::{
    file::{self, Contents, Delivery, SourceError},
    json,
    last_good::Raw,
    xds,
};
use crate::snapshot::{Changes, RejectedResource};

/// How long the directory has to be still, twice, before a change counts.
const STILL: Duration = Duration::from_millis(50);

/// How often the directory is looked at without being told to: file systems that
/// report nothing, lost events, a directory that comes back.
const POLL: Duration = Duration::from_secs(5);

/// How long a writer that keeps a file open without writing holds a change back.
const WRITER_PATIENCE: Duration = Duration::from_secs(10);

/// How long after a reading the next is likely enough to keep what it needs.
const DESCRIPTORS_KEPT: Duration = Duration::from_secs(3);

/// Events from the kernel that wait for us; more coalesce into "something changed".
const EVENTS_MAX: usize = 256;

/// What the source says.
#[expect(clippy::large_enum_variant, reason = "few are made, each for a whole response")]
#[derive(Debug)]
pub enum Update {
    /// A complete configuration to be applied.
    Resources(Delivery),
    /// What changed in the configuration delivered before.
    Changes(Delta),
    /// What is there can't be honoured; the last good configuration stays.
    Rejected(Vec<RejectedResource>),
    /// These names, which [`Wishes`](super::Wishes) asked for, are in force since the
    /// update before, or are not to be had.
    Answered(Vec<(xds::ResourceType, Arc<str>)>),
}

/// What changed, decoded; consistent with what was delivered before.
#[derive(Debug)]
pub struct Delta {
    pub changes: Changes,
    pub label: String,
    /// The same for [`LastGood`](super::LastGood).
    pub raw: Raw,
    /// Whether something else that was delivered is still refused.
    pub refused: bool,
}

/// A directory of LDS, RDS, CDS and EDS resources as YAML or JSON.
#[derive(Debug)]
pub struct FileSource {
    directory: PathBuf,
}

impl FileSource {
    /// A source on a directory that is there. It is read by [`FileSource::watch`].
    ///
    /// # Errors
    /// [`SourceError::Directory`] where it is missing, can't be read or is none.
    pub fn open(directory: impl Into<PathBuf>) -> Result<Self, SourceError> {
        let directory = directory.into();
        // The kernel's events name absolute paths.
        let readable =
            std::path::absolute(&directory).and_then(|path| fs::read_dir(&path).map(|_| path));
        match readable {
            Ok(directory) => Ok(Self { directory }),
            Err(source) => Err(SourceError::Directory { path: directory, source }),
        }
    }

    /// A source on a directory that may come later: until then it is a rejection.
    ///
    /// # Errors
    /// The file system's, where the path can't be made absolute.
    pub fn awaiting(directory: &Path) -> io::Result<Self> {
        Ok(Self { directory: std::path::absolute(directory)? })
    }

    /// Sends what the directory says now and at every change, until `shutdown` or until
    /// nobody receives any more. The same content is not sent twice in a row, good or
    /// bad. A directory that vanishes is a rejection, and is watched again once it is
    /// back. Where the kernel grants no watch, changes are seen by polling, later.
    pub async fn watch(self, updates: mpsc::Sender<Update>, shutdown: CancellationToken) {
        let mut watching = Watching::start(&self.directory);
        let mut sent: Option<Verdict> = None;
        let work = async {
            loop {
                let seen = watching.settled().await;
                if sent.as_ref() != Some(&seen) {
                    let update = seen.read(&self.directory).await;
                    // Changed while it was being decoded: look again.
                    let Some(update) = update else { continue };
                    if updates.send(update).await.is_err() {
                        return;
                    }
                    sent = Some(seen);
                }
                if time::timeout(DESCRIPTORS_KEPT, watching.changed()).await.is_err() {
                    json::forget_descriptors();
                    watching.changed().await;
                }
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = work => {}
        }
    }
}

/// What identifies a state of the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    Contents([u8; 32]),
    Unreadable(RejectedResource),
}

impl Verdict {
    async fn of(directory: &Path) -> Self {
        match read(directory).await {
            Ok(contents) => Self::Contents(contents.digest),
            Err(rejected) => Self::Unreadable(rejected),
        }
    }

    /// What to send for this state; `None` if it isn't the directory's any more.
    async fn read(&self, directory: &Path) -> Option<Update> {
        match (self, read(directory).await) {
            (Self::Contents(digest), Ok(contents)) if contents.digest == *digest => {
                Some(match tokio::task::spawn_blocking(move || contents.deliver()).await {
                    Ok(decoded) => decoded.map_or_else(Update::Rejected, Update::Resources),
                    Err(error) => Update::Rejected(vec![broken(directory, &error)]),
                })
            }
            (Self::Unreadable(known), Err(rejected)) if rejected == *known => {
                Some(Update::Rejected(vec![rejected]))
            }
            _ => None,
        }
    }
}

async fn read(directory: &Path) -> Result<Contents, RejectedResource> {
    let path = directory.to_owned();
    match tokio::task::spawn_blocking(move || Contents::read(&path)).await {
        Ok(contents) => contents.map_err(|error| file::unreadable(&error)),
        Err(error) => Err(broken(directory, &error)),
    }
}

fn broken(directory: &Path, error: &tokio::task::JoinError) -> RejectedResource {
    xds::rejection(&directory.display().to_string(), format!("reading it failed: {error}"))
}

/// The kernel's watches on the directory and on what holds it.
struct Watching {
    directory: PathBuf,
    /// `None` where the kernel grants none: nodes do run out of inotify instances.
    watcher: Option<RecommendedWatcher>,
    events: mpsc::Receiver<notify::Result<Event>>,
    /// The directory that is being watched, by device and inode; `None` while there is
    /// none.
    watched: Option<(u64, u64)>,
    /// Files that somebody is writing to, and when they last did.
    writers: HashMap<OsString, Instant>,
    /// Whether it was said that changes are seen by polling only.
    warned: bool,
}

impl Watching {
    fn start(directory: &Path) -> Self {
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let of = directory.to_owned();
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            if event.as_ref().map_or(true, |event| counts(event, &of)) {
                // Full: there are events enough to make us look, and the poll besides.
                let _ = sender.try_send(event);
            }
        });
        let mut watching = Self {
            directory: directory.to_owned(),
            watcher: None,
            events,
            watched: None,
            writers: HashMap::new(),
            warned: false,
        };
        match watcher {
            Ok(watcher) => watching.watcher = Some(watcher),
            Err(error) => watching.warn(&error),
        }
        watching.rewatch();
        // Tells when the directory itself is replaced; the poll would too, later.
        if let (Some(watcher), Some(parent)) = (&mut watching.watcher, directory.parent()) {
            let _ = watcher.watch(parent, RecursiveMode::NonRecursive);
        }
        watching
    }

    fn warn(&mut self, error: &notify::Error) {
        if !std::mem::replace(&mut self.warned, true) {
            let directory = self.directory.display();
            tracing::warn!(%directory, %error, "no watch granted: changes are seen by polling");
        }
    }

    /// Watches the directory that is at the path now, if it is another one.
    fn rewatch(&mut self) {
        let now = identity(&self.directory).ok();
        if now == self.watched {
            return;
        }
        self.forget();
        if let (Some(watcher), Some(_)) = (&mut self.watcher, now) {
            match watcher.watch(&self.directory, RecursiveMode::NonRecursive) {
                Ok(()) => self.watched = now,
                Err(error) => self.warn(&error),
            }
        }
    }

    /// Waits until something may have changed.
    async fn changed(&mut self) {
        let poll = time::sleep(POLL);
        tokio::pin!(poll);
        loop {
            tokio::select! {
                event = next(&mut self.events) => {
                    if self.note(event) {
                        return;
                    }
                }
                () = &mut poll => return,
            }
        }
    }

    /// Waits until the directory has been still, and says what is in it then.
    async fn settled(&mut self) -> Verdict {
        let mut last = None;
        loop {
            self.rewatch();
            self.still().await;
            let now = Verdict::of(&self.directory).await;
            if last.as_ref() == Some(&now) {
                return now;
            }
            last = Some(now);
        }
    }

    /// Waits until no event has come for a while and no writer is at work.
    async fn still(&mut self) {
        let mut quiet = Instant::now() + STILL;
        loop {
            let patience = self.writers.values().max().map(|last| *last + WRITER_PATIENCE);
            let until = patience.map_or(quiet, |patience| patience.max(quiet));
            match time::timeout_at(until, next(&mut self.events)).await {
                Ok(event) => {
                    if self.note(event) {
                        quiet = Instant::now() + STILL;
                    }
                }
                Err(_) => {
                    self.writers.clear();
                    return;
                }
            }
        }
    }

    /// Takes an event in; whether it concerns the directory.
    fn note(&mut self, event: notify::Result<Event>) -> bool {
        let Ok(event) = event else { return true };
        let mut concerns = event.need_rescan();
        for path in &event.paths {
            if *path == self.directory {
                concerns = true;
                // It, or what its name leads to, may be another one now; even with the
                // same inode, which a new directory often takes over.
                if !matches!(event.kind, EventKind::Modify(ModifyKind::Metadata(_))) {
                    self.forget();
                }
            }
            let inside = path.parent() == Some(self.directory.as_path());
            let Some(name) = path.file_name().filter(|_| inside) else { continue };
            let counted = file::format_of(Path::new(name)).is_some();
            match event.kind {
                EventKind::Modify(ModifyKind::Data(_)) if counted => {
                    self.writers.insert(name.to_owned(), Instant::now());
                }
                // Somebody's log in the same place must not keep us from settling.
                EventKind::Modify(ModifyKind::Data(_)) | EventKind::Access(_) if !counted => {
                    continue;
                }
                EventKind::Access(_)
                | EventKind::Remove(_)
                | EventKind::Modify(ModifyKind::Name(_)) => {
                    self.writers.remove(name);
                }
                _ => {}
            }
            concerns = true;
        }
        concerns
    }

    fn forget(&mut self) {
        if let (Some(watcher), Some(_)) = (&mut self.watcher, self.watched.take()) {
            // The kernel has dropped it already if the directory is gone.
            let _ = watcher.unwatch(&self.directory);
        }
        self.writers.clear();
    }
}

/// The next event. Never, if the watcher's thread is gone: the poll goes on.
async fn next(events: &mut mpsc::Receiver<notify::Result<Event>>) -> notify::Result<Event> {
    match events.recv().await {
        Some(event) => event,
        None => std::future::pending().await,
    }
}

/// Whether an event can mean a change: our own reading causes events too, and so does
/// whatever else lives beside the directory.
fn counts(event: &Event, directory: &Path) -> bool {
    let near = |path: &PathBuf| path == directory || path.parent() == Some(directory);
    match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => event.paths.iter().any(near),
        EventKind::Access(_) => false,
        _ => event.need_rescan() || event.paths.iter().any(near),
    }
}

/// Device and inode.
pub(super) fn identity(directory: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::metadata(directory)?;
    Ok((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests;
