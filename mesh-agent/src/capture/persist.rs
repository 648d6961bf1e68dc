//! Records of enrolled pods in the state directory: what a restarted agent adopts.
#![forbid(unsafe_code)]

use std::{
    fs,
    io::{self, Write},
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde::{Deserialize, Serialize};

use super::{
    bpffs,
    error::{CaptureError, EnrollError},
    netns::{NetnsError, NetnsRef, PodNetns},
    options::EnrollPod,
    routing::Sysctls,
};
use crate::model::workload::WorkloadUid;

/// How long a predecessor may take to leave.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// One enrolled pod.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    /// Cookies are unique until reboot only.
    pub(super) boot_id: String,
    pub(super) netns_cookie: u64,
    /// In the pod before enrolment.
    #[serde(flatten)]
    pub(super) sysctls: Sysctls,
    /// Whether capture was turned on.
    pub(super) active: bool,
    /// What the pod was first enrolled with; empty in records of before there was this.
    #[serde(default)]
    pub(super) addresses: Vec<IpAddr>,
    pub(super) pod: EnrollPod,
}

/// The state directory.
#[derive(Debug)]
pub(super) struct Records {
    pods: PathBuf,
    namespaces: PathBuf,
    boot_id: String,
}

impl Records {
    pub(super) fn open(state_dir: &Path) -> Result<Self, CaptureError> {
        let pods = state_dir.join("pods");
        let namespaces = state_dir.join("netns");
        bpffs::create(&pods)?;
        bpffs::create(&namespaces)?;
        let path = PathBuf::from("/proc/sys/kernel/random/boot_id");
        let boot_id = fs::read_to_string(&path).map_err(|source| CaptureError::File {
            act: "read",
            path,
            source,
        })?;
        Ok(Self { pods, namespaces, boot_id: boot_id.trim().to_owned() })
    }

    pub(super) fn boot_id(&self) -> &str {
        &self.boot_id
    }

    fn path(&self, uid: &WorkloadUid) -> PathBuf {
        self.pods.join(format!("{uid}.json"))
    }

    /// Writes one record; a crash leaves the old one or the new one.
    pub(super) fn save(&self, record: &Record) -> Result<(), CaptureError> {
        let path = self.path(&record.pod.uid);
        let json = serde_json::to_vec_pretty(record)
            .map_err(|source| CaptureError::Record { path: path.clone(), source })?;
        let temporary = path.with_extension("tmp");
        let write = || {
            let mut file = fs::File::create(&temporary)?;
            file.write_all(&json)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)
        };
        write().map_err(|source| CaptureError::File { act: "write", path: path.clone(), source })
    }

    pub(super) fn load(&self, uid: &WorkloadUid) -> Result<Option<Record>, CaptureError> {
        read(&self.path(uid))
    }

    /// Every record whose namespace still is what it was. The others are dropped.
    pub(super) fn load_all(&self) -> Result<Vec<Record>, CaptureError> {
        let directory = fs::read_dir(&self.pods).map_err(|source| CaptureError::File {
            act: "read",
            path: self.pods.clone(),
            source,
        })?;
        let mut records = Vec::new();
        for entry in directory.filter_map(Result::ok) {
            let path = entry.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let record = match read(&path) {
                Ok(Some(record)) => record,
                Ok(None) => continue,
                Err(error) => {
                    // One bad file must not keep the other pods without an agent.
                    tracing::error!(path = %path.display(), %error, "ignored a pod's record");
                    continue;
                }
            };
            match self.staleness(&record) {
                None => records.push(record),
                Some(why) => {
                    tracing::warn!(pod = %record.pod.uid, why, "dropped a pod that is gone");
                    self.remove(&record.pod)?;
                }
            }
        }
        records.sort_by(|a, b| a.pod.uid.cmp(&b.pod.uid));
        Ok(records)
    }

    fn staleness(&self, record: &Record) -> Option<&'static str> {
        if record.boot_id != self.boot_id {
            return Some("enrolled before the last boot");
        }
        match PodNetns::open(&record.pod.netns) {
            Err(_) => Some("its network namespace cannot be opened"),
            Ok(netns) if netns.cookie() != record.netns_cookie => {
                Some("its network namespace is another one now")
            }
            Ok(_) => None,
        }
    }

    /// Forgets a pod, and lets go of its namespace where it was held.
    pub(super) fn remove(&self, pod: &EnrollPod) -> Result<(), CaptureError> {
        let held = self.namespaces.join(&*pod.uid.0);
        if held.exists() {
            match umount2(&held, MntFlags::MNT_DETACH) {
                Ok(()) | Err(nix::errno::Errno::EINVAL) => {}
                Err(errno) => {
                    return Err(CaptureError::File {
                        act: "unmount",
                        path: held,
                        source: errno.into(),
                    });
                }
            }
            bpffs::remove_file(&held)?;
        }
        bpffs::remove_file(&self.path(&pod.uid))
    }

    /// Binds the namespace of a process to a file, so that a restarted agent finds
    /// it whatever became of the process. A path is left as it is.
    pub(super) fn hold(&self, pod: &EnrollPod) -> Result<NetnsRef, EnrollError> {
        let NetnsRef::Pid(_) = pod.netns else { return Ok(pod.netns.clone()) };
        let path = pod.netns.path();
        if let Err(source) = fs::File::open(&path) {
            let source = NetnsError::Open { path, source };
            return Err(EnrollError::Netns { uid: pod.uid.clone(), source });
        }
        let held = self.namespaces.join(&*pod.uid.0);
        let bind = || -> io::Result<()> {
            // Left over from an attempt that was killed.
            let _ = umount2(&held, MntFlags::MNT_DETACH);
            fs::File::create(&held)?;
            mount(Some(&pod.netns.path()), &held, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
            Ok(())
        };
        bind().map_err(|source| EnrollError::Kernel {
            uid: pod.uid.clone(),
            source: Box::new(CaptureError::File {
                act: "bind a network namespace to",
                path: held.clone(),
                source,
            }),
        })?;
        Ok(NetnsRef::Path(held))
    }
}

fn read(path: &Path) -> Result<Option<Record>, CaptureError> {
    let json = match fs::read(path) {
        Ok(json) => json,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(CaptureError::File { act: "read", path: path.to_owned(), source });
        }
    };
    serde_json::from_slice(&json)
        .map(Some)
        .map_err(|source| CaptureError::Record { path: path.to_owned(), source })
}

/// Keeps the state directory for one agent, for as long as the file is open.
pub(super) fn lock(state_dir: &Path) -> Result<fs::File, CaptureError> {
    let path = state_dir.join("agent.lock");
    let file = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|source| CaptureError::File { act: "open", path: path.clone(), source })?;
    hold(file, path, || CaptureError::InUse(state_dir.to_owned()))
}

/// As [`lock`], the directory of what is pinned, which another agent's state may go with.
pub(super) fn lock_pins(root: &Path) -> Result<fs::File, CaptureError> {
    let directory = fs::File::open(root).map_err(|source| CaptureError::File {
        act: "open",
        path: root.to_owned(),
        source,
    })?;
    hold(directory, root.to_owned(), || CaptureError::PinsInUse(root.to_owned()))
}

fn hold(
    file: fs::File,
    path: PathBuf,
    in_use: impl FnOnce() -> CaptureError,
) -> Result<fs::File, CaptureError> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(fs::TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::sleep(LOCK_PATIENCE / 20);
            }
            Err(fs::TryLockError::WouldBlock) => return Err(in_use()),
            Err(fs::TryLockError::Error(source)) => {
                return Err(CaptureError::File { act: "lock", path, source });
            }
        }
    }
}
