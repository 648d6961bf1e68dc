//! `path_config_source`: a file in place of a server.
//!
//! The file is read anew when something is moved to where it is, or, if it says so, into
//! the directory it names: a file that is half written never counts. What it holds is
//! taken as a server's response would be.

use std::{
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use envoy_types::pb::envoy::service::discovery::v3::DiscoveryResponse;
use notify::{
    Event as Change, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode, ModifyKind, RenameMode},
};
use prost::Message as _;
use tokio::{
    sync::mpsc,
    time::{self, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use super::{
    super::{ResourceType, options::WatchedFile, rejection, session::Request},
    Event, Events, REQUESTS, Response, StreamId,
};
use crate::{
    snapshot::RejectedResource,
    source::{file, json, watch::identity},
};

/// How often the file is looked at where the kernel grants no watch, and where it does,
/// whether the directory is still the one that is watched.
const POLL: Duration = Duration::from_secs(5);

/// After so long without a change, what was needed to read the file is given back.
const DESCRIPTORS_KEPT: Duration = Duration::from_secs(3);

/// Reads the file now and at every change, until nobody listens.
pub(super) async fn watch(watched: WatchedFile, kind: ResourceType, id: StreamId, events: Events) {
    let (requests, mut asked) = mpsc::channel(REQUESTS);
    let server = format!("file://{}", watched.path.display());
    let connecting = Event::Connecting { server, requests, stop: CancellationToken::new() };
    if events.send((id, connecting)).await.is_err() {
        return;
    }
    let mut changes = Changes::of(&watched);
    let mut names: Vec<String> = Vec::new();
    let mut sent = None;
    let mut number = 0_u64;
    loop {
        let read = read(watched.path.clone(), kind).await;
        // The same is said twice only to somebody who asks for something else.
        if sent.as_ref() != Some(&read) {
            number += 1;
            let event = match read.clone() {
                Ok(response) => {
                    let nonce = number.to_string();
                    Event::Said(Response::Sotw(DiscoveryResponse { nonce, ..response }))
                }
                Err(reasons) => Event::Refused(reasons),
            };
            if events.send((id, event)).await.is_err() {
                return;
            }
            sent = Some(read);
        }
        loop {
            tokio::select! {
                () = changes.next() => break,
                request = asked.recv() => match request {
                    Some(Request::Sotw(request)) if request.resource_names != names => {
                        names = request.resource_names;
                        sent = None;
                        break;
                    }
                    Some(_) => {}
                    None => return,
                },
                () = time::sleep(DESCRIPTORS_KEPT), if changes.fresh => {
                    json::forget_descriptors();
                    changes.fresh = false;
                }
            }
        }
        changes.fresh = true;
    }
}

/// What the file says, under its own version or else a digest of it.
async fn read(
    path: PathBuf,
    kind: ResourceType,
) -> Result<DiscoveryResponse, Vec<RejectedResource>> {
    let name = path.display().to_string();
    let told = |reason: String| vec![rejection(&name, reason)];
    let of_file = path.clone();
    let work = move || {
        let content = file::read_file(&of_file, file::FILE_MAX_BYTES)?;
        Ok::<_, io::Error>(decode(&of_file, kind, &content))
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(decoded)) => decoded,
        Ok(Err(error)) => Err(told(error.to_string())),
        Err(error) => Err(told(format!("reading it failed: {error}"))),
    }
}

fn decode(
    path: &Path,
    kind: ResourceType,
    content: &[u8],
) -> Result<DiscoveryResponse, Vec<RejectedResource>> {
    let name = path.display().to_string();
    let mut response = if path.extension() == Some(OsStr::new("pb")) {
        DiscoveryResponse::decode(content)
            .map_err(|error| vec![rejection(&name, error.to_string())])?
    } else {
        file::response(&name, path, content)?
    };
    if response.version_info.is_empty() {
        response.version_info = file::short_digest(content);
    }
    if response.type_url.is_empty() {
        response.type_url = kind.type_url().to_owned();
    }
    if ResourceType::of_url(&response.type_url) != Some(kind) {
        let reason = format!("`{}` is not {}", response.type_url, kind.type_url());
        return Err(vec![rejection(&format!("{name}: type_url"), reason)]);
    }
    Ok(response)
}

/// Tells when the file is to be read anew.
struct Changes {
    directory: PathBuf,
    watcher: Option<RecommendedWatcher>,
    /// The directory that is being watched; `None` while there is none.
    watched: Option<(u64, u64)>,
    /// Whether the kernel has said that the directory is gone from its path.
    lost: Arc<AtomicBool>,
    moved: mpsc::Receiver<()>,
    poll: Option<time::Interval>,
    /// Whether what was needed to read the file is still held.
    fresh: bool,
}

impl Changes {
    fn of(watched: &WatchedFile) -> Self {
        let (sender, moved) = mpsc::channel(1);
        let lost = Arc::new(AtomicBool::new(false));
        let parent = watched.path.parent().unwrap_or(Path::new("/"));
        let directory = watched.directory.as_deref().unwrap_or(parent).to_owned();
        let mut watcher = None;
        let mut every = watched.poll;
        if every.is_none() {
            match Self::watch(watched, &directory, sender, Arc::clone(&lost)) {
                Ok(granted) => watcher = Some(granted),
                Err(error) => {
                    let path = watched.path.display();
                    tracing::warn!(%path, %error, "no watch granted: changes are seen by polling");
                    every = Some(POLL);
                }
            }
        }
        let poll = every.map(|every| {
            let mut poll = time::interval_at(time::Instant::now() + every, every);
            poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
            poll
        });
        let watching = identity(&directory).ok().filter(|_| watcher.is_some());
        Self { directory, watcher, watched: watching, lost, moved, poll, fresh: true }
    }

    fn watch(
        watched: &WatchedFile,
        directory: &Path,
        moved: mpsc::Sender<()>,
        lost: Arc<AtomicBool>,
    ) -> Result<RecommendedWatcher, notify::Error> {
        // Without a directory of its own, only the file itself counts.
        let name = watched.directory.is_none().then(|| watched.path.file_name()).flatten();
        let (name, in_place) = (name.map(OsStr::to_owned), watched.in_place);
        let of = directory.to_owned();
        let mut watcher = notify::recommended_watcher(move |change: notify::Result<Change>| {
            let goes = change.as_ref().is_ok_and(|change| {
                let kind = EventKind::is_remove(&change.kind)
                    || matches!(change.kind, EventKind::Modify(ModifyKind::Name(_)));
                kind && change.paths.contains(&of)
            });
            if goes {
                lost.store(true, Ordering::Release);
            }
            let counts = change.as_ref().map_or(true, |change| {
                let named = |path: &PathBuf| match &name {
                    Some(name) => path.file_name() == Some(name),
                    None => path.parent() == Some(&of),
                };
                let kind = match change.kind {
                    EventKind::Modify(ModifyKind::Name(RenameMode::From)) => false,
                    EventKind::Modify(ModifyKind::Name(_)) => true,
                    // A link made in place is whole as well.
                    EventKind::Create(_) => change.paths.iter().any(|path| path.is_symlink()),
                    EventKind::Access(AccessKind::Close(AccessMode::Write)) => in_place,
                    _ => false,
                };
                change.need_rescan() || (kind && change.paths.iter().any(named))
            });
            if counts || goes {
                // Full: it will be read anyway.
                let _ = moved.try_send(());
            }
        })?;
        watcher.watch(directory, RecursiveMode::NonRecursive)?;
        Ok(watcher)
    }

    /// Watches the directory that is at the path now, if it is another one; whether it is.
    fn rewatch(&mut self) -> bool {
        let Some(watcher) = &mut self.watcher else { return false };
        // A new directory often takes over the inode.
        let lost = self.lost.swap(false, Ordering::AcqRel);
        let now = identity(&self.directory).ok();
        if now == self.watched && !lost {
            return false;
        }
        // The kernel has dropped it already if the directory is gone.
        let _ = watcher.unwatch(&self.directory);
        let watch = |_: &_| watcher.watch(&self.directory, RecursiveMode::NonRecursive).is_ok();
        self.watched = now.filter(watch);
        self.watched.is_some()
    }

    async fn next(&mut self) {
        loop {
            let Self { moved, poll, watcher, .. } = self;
            let told = async {
                // None: it is not watched, or the watcher's thread is gone.
                if moved.recv().await.is_none() {
                    std::future::pending().await
                }
            };
            let tick = async {
                match poll {
                    Some(poll) => _ = poll.tick().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = told => if self.rewatch() || self.watched.is_some() {
                    return;
                },
                () = tick => return,
                () = time::sleep(POLL), if watcher.is_some() => if self.rewatch() {
                    return;
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Longer than anything takes.
    const PATIENCE: Duration = Duration::from_secs(60);

    fn watched(path: PathBuf, poll: Option<Duration>) -> WatchedFile {
        WatchedFile { path, directory: None, in_place: false, poll }
    }

    async fn is_told(changes: &mut Changes) {
        time::timeout(PATIENCE, changes.next()).await.expect("a change is seen");
    }

    #[tokio::test]
    async fn a_file_that_is_polled_is_looked_at_again_and_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = watched(dir.path().join("lds.yaml"), Some(Duration::from_millis(1)));
        let mut changes = Changes::of(&file);
        for _ in 0..100 {
            is_told(&mut changes).await;
        }
    }

    #[tokio::test]
    async fn a_directory_that_was_made_anew_is_watched_again() {
        let dir = tempfile::tempdir().unwrap();
        let directory = dir.path().join("xds");
        let file = directory.join("lds.yaml");
        let moves = || {
            fs::write(directory.join("new"), "x").unwrap();
            fs::rename(directory.join("new"), &file).unwrap();
        };
        fs::create_dir(&directory).unwrap();
        let mut changes = Changes::of(&watched(file.clone(), None));
        moves();
        is_told(&mut changes).await;

        // Deleted and made anew, often with the same inode.
        fs::remove_dir_all(&directory).unwrap();
        fs::create_dir(&directory).unwrap();
        is_told(&mut changes).await;
        moves();
        is_told(&mut changes).await;

        // Another one in its place.
        fs::rename(&directory, dir.path().join("old")).unwrap();
        fs::create_dir(&directory).unwrap();
        is_told(&mut changes).await;
        moves();
        is_told(&mut changes).await;
    }
}
