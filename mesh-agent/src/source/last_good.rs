//! The last configuration that was applied, on disk, for an agent that starts while its
//! source is away or bad.
//!
//! Resources are kept as they were delivered: starting from them means decoding them
//! again, as strictly as ever. The file is replaced as a whole and carries a checksum;
//! one that is damaged, or is another source's, is not applied. Secrets with a private
//! key are never in it: after a restart, who needs one waits for the source.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::digest;
use envoy_types::pb::{envoy::service::discovery::v3::Resource as Named, google::protobuf::Any};
use prost::{Message, Name as _};
use rpds::RedBlackTreeMapSync;
use tokio::{sync::Notify, time};
use tokio_util::sync::CancellationToken;

use super::{
    versions::Versions,
    xds::{self, ResourceType},
};
use crate::snapshot::{RejectedResource, Resources};

/// The first line: what the file is, and the version of its form.
const MAGIC: &[u8] = b"mesh-last-good ";
const FORMAT: u64 = 1;

/// More digits no version has.
const FORMAT_DIGITS_MAX: usize = 10;

const CHECKSUM_BYTES: usize = 32;

/// Far more than 10 000 clusters with 100 000 endpoints take.
const FILE_MAX_BYTES: u64 = 1 << 30;

/// How long changes are gathered before they are written.
const GATHER: Duration = Duration::from_millis(200);

/// The least time between two writes: a busy control plane must not wear the disk out.
const BETWEEN_WRITES: Duration = Duration::from_secs(5);

/// When what could not be written is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(30);

/// What names a resource among all.
pub(super) type Key = (ResourceType, Arc<str>);

/// Resources in the form in which their source delivered them.
#[derive(Debug, Default, Clone)]
pub struct Raw {
    /// Encoded protobuf; `None`: it is no more.
    pub(super) resources: Vec<(Key, Option<Arc<[u8]>>)>,
    /// What their source calls their versions; `None`: they are no more.
    pub(super) versions: Vec<(Key, Option<Arc<str>>)>,
}

impl Raw {
    /// Takes note of a resource; of one that must not be stored, that what was stored
    /// under its name is no more.
    pub(super) fn keep(
        &mut self,
        key: Key,
        resource: &xds::Resource,
        bytes: Arc<[u8]>,
        version: Arc<str>,
    ) {
        self.versions.push((key.clone(), Some(version)));
        self.resources.push((key, resource.stored(bytes)));
    }

    /// The resource is no more.
    pub(super) fn remove(&mut self, key: Key) {
        self.versions.push((key.clone(), None));
        self.resources.push((key, None));
    }
}

/// Why there is no last good configuration, though there is a file.
#[derive(Debug, thiserror::Error)]
pub enum LastGoodError {
    /// It can't be read.
    #[error("last good configuration {}: {source}", .path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// It is not what was written: cut short, or changed since.
    #[error("last good configuration {} is damaged: {reason}", .path.display())]
    Damaged { path: PathBuf, reason: &'static str },
    /// Another version of the agent wrote it.
    #[error(
        "last good configuration {} is of format version {found}, and this agent reads {FORMAT}: \
         it is kept until there is a good new one",
        .path.display()
    )]
    OtherFormat { path: PathBuf, found: u64 },
    /// It came from elsewhere than this agent's source.
    #[error("last good configuration {} is of {found}, not of {expected}", .path.display())]
    OtherSource { path: PathBuf, found: String, expected: String },
    /// This agent does not understand it, as an older one would not.
    #[error("last good configuration {} is refused: {}", .path.display(), xds::shown(.reasons))]
    Refused { path: PathBuf, reasons: Vec<RejectedResource> },
}

/// What was on disk, decoded.
#[derive(Debug)]
pub struct Restored {
    pub resources: Resources,
    pub label: String,
    /// When it was applied.
    pub saved_at: SystemTime,
    /// What is in it.
    pub versions: Versions,
}

/// The payload under the checksum.
#[derive(Clone, PartialEq, Message)]
struct Body {
    #[prost(uint64, tag = "1")]
    saved_at: u64,
    #[prost(string, tag = "2")]
    source: String,
    #[prost(string, tag = "3")]
    label: String,
    #[prost(message, repeated, tag = "4")]
    resources: Vec<Any>,
}

/// The file, and what belongs into it.
#[derive(Debug)]
pub struct LastGood {
    path: PathBuf,
    source: String,
    kept: Mutex<Kept>,
    /// Held while writing, so that an older content can't overtake a newer one.
    writing: Mutex<()>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Kept {
    /// Shared with who writes it: nobody waits for a copy of all.
    resources: RedBlackTreeMapSync<Key, Arc<[u8]>>,
    label: String,
    saved_at: u64,
    dirty: bool,
}

impl LastGood {
    /// The file of that state directory, for the source of that name. Touches nothing.
    pub fn new(state_dir: &Path, source: impl Into<String>) -> Self {
        Self {
            path: state_dir.join("config").join("last-good"),
            source: source.into(),
            kept: Mutex::default(),
            writing: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// Whether there is a file, good or damaged.
    pub fn is_there(&self) -> bool {
        self.path.exists()
    }

    /// Reads and decodes the file; `None` where there is none. Blocks.
    ///
    /// # Errors
    /// Why what is there can't be applied.
    pub fn load(&self) -> Result<Option<Restored>, LastGoodError> {
        let path = || self.path.clone();
        let bytes = match read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(LastGoodError::Read { path: path(), source }),
        };
        let damaged = |reason| LastGoodError::Damaged { path: path(), reason };
        let (format, rest) = format_of(&bytes).ok_or_else(|| damaged("its header is unknown"))?;
        if format != FORMAT {
            return Err(LastGoodError::OtherFormat { path: path(), found: format });
        }
        let (checksum, body) =
            rest.split_at_checked(CHECKSUM_BYTES).ok_or_else(|| damaged("it is cut short"))?;
        if digest::digest(&digest::SHA256, body).as_ref() != checksum {
            return Err(damaged("its checksum is wrong"));
        }
        let body = Body::decode(body).map_err(|_| damaged("its payload is unknown"))?;
        if body.source != self.source {
            let expected = self.source.clone();
            return Err(LastGoodError::OtherSource { path: path(), found: body.source, expected });
        }
        let mut resources = Resources::default();
        let mut reasons = Vec::new();
        let mut kept = RedBlackTreeMapSync::new_sync();
        for any in body.resources {
            let (name, any) = unwrapped(any);
            match xds::decode_strict(&any.type_url, &any.value) {
                Ok((decoded, _)) => {
                    let decoded = decoded.called(name);
                    kept.insert_mut(decoded.key(), any.value.into());
                    decoded.add_to(&mut resources);
                }
                Err(further) => reasons.extend(further),
            }
        }
        if !reasons.is_empty() {
            return Err(LastGoodError::Refused { path: path(), reasons });
        }
        let saved_at = UNIX_EPOCH.checked_add(Duration::from_secs(body.saved_at));
        let saved_at = saved_at.ok_or_else(|| damaged("it was saved at no time"))?;
        let label = body.label.clone();
        let saved = body.saved_at;
        let mut versions = Versions::default();
        let known: Arc<str> = label.as_str().into();
        let all = kept.keys().map(|key: &Key| (key.clone(), Some(Arc::clone(&known))));
        versions.changed(all, saved_at);
        *self.kept() = Kept { resources: kept, label: body.label, saved_at: saved, dirty: false };
        Ok(Some(Restored { resources, label, saved_at, versions }))
    }

    /// Takes note of a whole configuration that was applied.
    pub fn replaced(&self, raw: Raw, label: &str) {
        self.kept().resources = RedBlackTreeMapSync::new_sync();
        self.changed(raw, label);
    }

    /// Takes note of a change that was applied.
    pub fn changed(&self, raw: Raw, label: &str) {
        let mut kept = self.kept();
        for (key, resource) in raw.resources {
            match resource {
                Some(resource) => kept.resources.insert_mut(key, resource),
                None => _ = kept.resources.remove_mut(&key),
            }
        }
        label.clone_into(&mut kept.label);
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        kept.saved_at = now.map_or(0, |now| now.as_secs());
        kept.dirty = true;
        drop(kept);
        self.changed.notify_one();
    }

    /// Writes what is noted, until `shutdown`; then once more.
    pub async fn write(self: Arc<Self>, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = self.changed.notified() => {}
                () = shutdown.cancelled() => break,
            }
            let gathered = async {
                time::sleep(GATHER).await;
                if self.write_once().await {
                    time::sleep(BETWEEN_WRITES).await;
                } else {
                    time::sleep(TRY_AGAIN).await;
                    self.changed.notify_one();
                }
            };
            tokio::select! {
                () = gathered => {}
                () = shutdown.cancelled() => break,
            }
        }
        self.write_once().await;
    }

    /// Whether there is nothing left to write.
    async fn write_once(self: &Arc<Self>) -> bool {
        let this = Arc::clone(self);
        let written = tokio::task::spawn_blocking(move || this.flush()).await;
        let error = match written {
            Ok(Ok(())) => return true,
            Ok(Err(error)) => error.to_string(),
            // The runtime ends, and the agent flushes by itself.
            Err(error) if error.is_cancelled() => return true,
            Err(error) => error.to_string(),
        };
        let path = self.path.display();
        tracing::error!(%path, error, "the last good configuration can't be written");
        false
    }

    /// Writes what is noted and not yet written. Blocks.
    ///
    /// # Errors
    /// The file system's; the file is as it was then.
    pub fn flush(&self) -> io::Result<()> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        // The one writer of snapshots waits for this lock.
        let (resources, label, saved_at) = {
            let mut kept = self.kept();
            if !std::mem::take(&mut kept.dirty) {
                return Ok(());
            }
            (kept.resources.clone(), kept.label.clone(), kept.saved_at)
        };
        let wrapped = resources.iter().map(|(key, value)| wrapped(key, value)).collect();
        let body = Body { saved_at, source: self.source.clone(), label, resources: wrapped };
        let body = body.encode_to_vec();
        let written = replace(&self.path, &body);
        if written.is_err() {
            self.kept().dirty = true;
        }
        written
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A virtual host does not say itself what it goes by: it is kept together with that.
fn wrapped((kind, name): &Key, value: &[u8]) -> Any {
    let any = Any { type_url: kind.type_url().to_owned(), value: value.to_vec() };
    if *kind != ResourceType::VirtualHost {
        return any;
    }
    let named = Named { name: name.to_string(), resource: Some(any), ..Named::default() };
    Any { type_url: Named::type_url(), value: named.encode_to_vec() }
}

fn unwrapped(any: Any) -> (Option<String>, Any) {
    if any.type_url != Named::type_url() {
        return (None, any);
    }
    match Named::decode(any.value.as_slice()) {
        Ok(Named { name, resource: Some(inner), .. }) => (Some(name), inner),
        // The decoder refuses it by its type.
        _ => (None, any),
    }
}

/// The version of the file's form, and what follows the line that says it.
fn format_of(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let end = rest.iter().take(FORMAT_DIGITS_MAX + 1).position(|byte| *byte == b'\n')?;
    let (digits, rest) = rest.split_at_checked(end)?;
    let digits = std::str::from_utf8(digits).ok()?;
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    Some((digits.parse().ok().filter(|_| is_number)?, rest.get(1..)?))
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("is not a regular file"));
    }
    // Before any of it is in memory.
    if metadata.len() > FILE_MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "is too large"));
    }
    let mut bytes = Vec::new();
    file.take(FILE_MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A crash leaves the old file or the new one.
fn replace(path: &Path, body: &[u8]) -> io::Result<()> {
    let directory = path.parent().ok_or_else(|| io::Error::other("has no directory"))?;
    fs::create_dir_all(directory)?;
    let temporary = path.with_extension("tmp");
    let replaced = write_new(&temporary, body).and_then(|()| fs::rename(&temporary, path));
    if replaced.is_err() {
        // Half of it must not keep a full disk full.
        _ = fs::remove_file(&temporary);
    }
    replaced?;
    File::open(directory)?.sync_all()
}

fn write_new(path: &Path, body: &[u8]) -> io::Result<()> {
    // What somebody left there is not opened: it may be a link, a FIFO that nobody reads, or
    // a file that others may read.
    fs::remove_file(path).or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(MAGIC)?;
    writeln!(file, "{FORMAT}")?;
    file.write_all(digest::digest(&digest::SHA256, body).as_ref())?;
    file.write_all(body)?;
    file.sync_all()
}

#[cfg(test)]
mod tests;
