//! Loads, attaches, pins and adopts the BPF programs.
//!
//! ```text
//! <bpffs>/<instance>/maps-v<ABI>/<MAP>      shared by all programs
//!                    links/<program>         attached to the cgroup root
//!                    pods/<netns cookie>     sk_lookup, attached to one pod's namespace
//!                    guards/<netns cookie>/<interface>-<program>   on its interfaces
//! ```
//! Pinned links keep running the programs of an agent that is gone. The next one
//! updates each link to its own program in place, so that there is no moment
//! without one; with another ABI version its programs use maps of their own, in
//! which it has listed the enrolled pods before.
#![forbid(unsafe_code)]

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::SockHash,
    programs::{
        CgroupAttachMode, Program, ProgramError,
        links::{FdLink, LinkError},
    },
};
use mesh_common::{
    abi::{ABI_VERSION, map},
    key::SpliceKey,
};

use super::{
    bpf::{LinkTarget, link_target, open_pin, update_link},
    bpffs,
    error::CaptureError,
    guard::{GUARD_PROGRAMS, HOST_PROGRAM},
    holds::Holds,
    layout,
    maps::MapCapacities,
    netns::PodNetns,
    persist,
};

/// The object that `build.rs` found.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("MESH_EBPF_OBJECT_PATH"));

/// Programs attached to the cgroup root. What refuses and rewrites comes last, so
/// that nothing is captured before it can be published.
pub(super) const CGROUP_PROGRAMS: [&str; 5] =
    ["mesh_sock_ops", "mesh_getpeername4", "mesh_getpeername6", "mesh_connect4", "mesh_connect6"];
/// The verifier gives up with EAGAIN when a signal is pending: libbpf tries as often.
const LOAD_ATTEMPTS: u32 = 5;
/// Of a map of [`load_private`].
const PRIVATE_ENTRIES: u32 = 64;
/// The program that runs for sockets of the map [`map::SPLICED`].
pub(super) const SPLICE_PROGRAM: &str = "mesh_sk_msg";
/// The program that each pod gets its own instance of.
pub(super) const POD_PROGRAM: &str = "mesh_sk_lookup";
/// The constant in it that names the pod.
const POD_GLOBAL: &str = "POD";

/// Where the maps are pinned, below an instance's directory.
pub(super) fn maps_directory() -> String {
    format!("maps-v{ABI_VERSION}")
}

/// Where everything of one agent instance is pinned.
#[derive(Debug)]
pub(super) struct Pins {
    root: PathBuf,
    /// Kept, for making one reads the kernel's BTF, a tenth of a second each time.
    loader: Mutex<EbpfLoader<'static>>,
    pub(super) holds: Holds,
    /// Held until another agent takes over.
    lock: Mutex<Option<File>>,
}

impl Pins {
    /// Prepares the directories, mounting a BPF filesystem where there is none.
    pub(super) fn prepare(
        bpffs: &Path,
        instance: &str,
        capacities: &MapCapacities,
    ) -> Result<Self, CaptureError> {
        bpffs::prepare(bpffs)?;
        let root = bpffs.join(instance);
        bpffs::create(&root)?;
        let lock = persist::lock_pins(&root)?;
        let this = Self {
            root,
            loader: Mutex::new(loader()),
            holds: Holds::default(),
            lock: Mutex::new(Some(lock)),
        };
        {
            let mut loader = this.loader();
            for name in map::PINNED {
                loader.map_pin_path(name, this.maps().join(name));
            }
            for (name, capacity) in capacities.by_map() {
                loader.map_max_entries(name, capacity);
            }
        }
        for directory in [this.maps(), this.links(), this.pods()] {
            bpffs::create(&directory)?;
        }
        layout::check_object(OBJECT)?;
        layout::check_pins(&this.maps())?;
        Ok(this)
    }

    pub(super) fn maps(&self) -> PathBuf {
        self.root.join(maps_directory())
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Sees to it that everything is pinned that was.
    pub(super) fn keep(&self) {
        self.holds.keep(&self.root);
    }

    /// Another agent may have what is pinned.
    pub(super) fn give_up(&self) {
        self.holds.let_go();
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }

    fn pod(&self, cookie: u64) -> PathBuf {
        self.pods().join(cookie.to_string())
    }

    /// Loads the object over the pinned maps, making those that are missing.
    ///
    /// `pod` sets the namespace of the lookup program's instance.
    pub(super) fn load(&self, pod: Option<u64>) -> Result<Ebpf, CaptureError> {
        let mut loader = self.loader();
        if let Some(cookie) = pod {
            // Eight bytes for each enrolment, for as long as the loader lives: for ever.
            loader.override_global(POD_GLOBAL, &*Box::leak(Box::new(cookie)), true);
        }
        loader.load(OBJECT).map_err(|source| CaptureError::Load(Box::new(source)))
    }

    fn loader(&self) -> MutexGuard<'_, EbpfLoader<'static>> {
        // Holds options only, each of which is set whole.
        self.loader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Attaches the cgroup programs, or updates the links that are there.
    pub(super) fn attach_cgroup(&self, ebpf: &mut Ebpf, root: &Path) -> Result<(), CaptureError> {
        let file = |source| CaptureError::File { act: "open", path: root.to_owned(), source };
        let cgroup = File::open(root).map_err(file)?;
        // A cgroup's ID is its inode.
        let target = LinkTarget::Cgroup(cgroup.metadata().map_err(file)?.ino());
        for name in CGROUP_PROGRAMS {
            let program = ebpf.program_mut(name).ok_or(CaptureError::Missing(name))?;
            let refused =
                |source| CaptureError::Program { program: name, source: Box::new(source) };
            load(program).map_err(refused)?;
            let pin = self.links().join(name);
            if adopt(&pin, program, target)? {
                tracing::debug!(program = name, "adopted a pinned link");
                continue;
            }
            let link = attach(program, cgroup.as_fd()).map_err(refused)?;
            self.holds.replace(link, &pin)?;
        }
        Ok(())
    }

    /// Attaches the lookup program to a pod's namespace, or updates the link that is there.
    /// Returns the pod's instances of all programs.
    pub(super) fn attach_pod(&self, netns: &PodNetns) -> Result<Ebpf, CaptureError> {
        let cookie = netns.cookie();
        let mut ebpf = self.load(Some(cookie))?;
        let program = ebpf.program_mut(POD_PROGRAM).ok_or(CaptureError::Missing(POD_PROGRAM))?;
        let refused =
            |source| CaptureError::Program { program: POD_PROGRAM, source: Box::new(source) };
        load(program).map_err(refused)?;
        let file =
            |source| CaptureError::File { act: "read", path: netns.path().to_owned(), source };
        let inode = nix::sys::stat::fstat(netns).map_err(|errno| file(errno.into()))?.st_ino;
        let target = LinkTarget::Netns(u32::try_from(inode).unwrap_or_default());
        let pin = self.pod(cookie);
        if !adopt(&pin, program, target)? {
            let link = attach(program, netns.as_fd()).map_err(refused)?;
            self.holds.replace(link, &pin)?;
        }
        Ok(ebpf)
    }

    /// Detaches the lookup program of a pod.
    pub(super) fn detach_pod(&self, cookie: u64) -> Result<(), CaptureError> {
        self.holds.remove(&self.pod(cookie))
    }

    /// Pods with a pinned lookup program; whether their namespace still exists.
    pub(super) fn attached_pods(&self) -> Result<Vec<(u64, bool)>, CaptureError> {
        let directory = self.pods();
        let entries = fs::read_dir(&directory).map_err(|source| CaptureError::File {
            act: "read",
            path: directory,
            source,
        })?;
        Ok(entries
            .filter_map(Result::ok)
            .filter_map(|entry| {
                let cookie = entry.file_name().to_str()?.parse().ok()?;
                let target = open_pin(&entry.path()).and_then(|link| link_target(link.as_fd()));
                Some((cookie, !matches!(target, Ok(LinkTarget::Netns(0)))))
            })
            .collect())
    }

    /// Maps of other ABI versions: no link runs a program that uses them any more,
    /// but for pods that are not enrolled again yet, which keep them alive themselves.
    pub(super) fn remove_other_versions(&self) -> Result<(), CaptureError> {
        let read = |source| CaptureError::File { act: "read", path: self.root.clone(), source };
        for entry in fs::read_dir(&self.root).map_err(read)?.filter_map(Result::ok) {
            let name = entry.file_name();
            let path = entry.path();
            if name.to_string_lossy().starts_with("maps-v") && path != self.maps() {
                tracing::warn!(
                    path = %path.display(), expected = ABI_VERSION,
                    "replaced pinned maps of another ABI version"
                );
                self.holds.remove_tree(&path)?;
            }
        }
        Ok(())
    }

    /// Removes everything: plain networking from now on.
    pub(super) fn remove_all(&self) -> Result<(), CaptureError> {
        // Links first: a program whose pods are gone from the map passes everything,
        // but one that cannot find a listener refuses.
        self.holds.remove_tree(&self.links())?;
        self.holds.remove_tree(&self.root)
    }
}

/// Loads the object with maps of its own, small ones: nothing is pinned or attached.
pub(super) fn load_private() -> Result<Ebpf, CaptureError> {
    let mut loader = loader();
    for name in [map::SPLICED, map::AUTHORIZED, map::LISTENERS, map::PODS] {
        loader.map_max_entries(name, PRIVATE_ENTRIES);
    }
    loader.load(OBJECT).map_err(|source| CaptureError::Load(Box::new(source)))
}

/// Lets the splicing program run for the sockets that will be in its map. Those that
/// are there keep the one they came with.
pub(super) fn attach_splice(ebpf: &mut Ebpf) -> Result<(), CaptureError> {
    let missing = CaptureError::Missing(map::SPLICED);
    let sockets: SockHash<_, SpliceKey> = ebpf
        .map(map::SPLICED)
        .ok_or(missing)?
        .try_into()
        .map_err(|source| CaptureError::Map { map: map::SPLICED, source })?;
    let fd = sockets
        .fd()
        .try_clone()
        .map_err(|source| CaptureError::Map { map: map::SPLICED, source: source.into() })?;
    let program = ebpf.program_mut(SPLICE_PROGRAM).ok_or(CaptureError::Missing(SPLICE_PROGRAM))?;
    let refused =
        |source| CaptureError::Program { program: SPLICE_PROGRAM, source: Box::new(source) };
    load(program).map_err(refused)?;
    let Program::SkMsg(program) = program else {
        return Err(refused(ProgramError::UnexpectedProgramType));
    };
    let id = program.attach(&fd).map_err(refused)?;
    // Not a link of the kernel's: it would be undone when dropped. The map keeps the
    // program for as long as it is pinned.
    std::mem::forget(program.take_link(id).map_err(refused)?);
    Ok(())
}

/// A program's name, and what the kernel said of it.
pub(super) type Loaded = (&'static str, Result<(), ProgramError>);

/// Loads every program of the object without attaching or pinning anything: what
/// the kernel says of each.
pub(super) fn try_load() -> Result<Vec<Loaded>, CaptureError> {
    let mut ebpf = loader().load(OBJECT).map_err(|source| CaptureError::Load(Box::new(source)))?;
    CGROUP_PROGRAMS
        .into_iter()
        .chain([POD_PROGRAM])
        .chain(GUARD_PROGRAMS.map(|(name, _)| name))
        .chain([HOST_PROGRAM.0, SPLICE_PROGRAM])
        .map(|name| {
            let program = ebpf.program_mut(name).ok_or(CaptureError::Missing(name))?;
            Ok((name, load(program)))
        })
        .collect()
}

/// Whether the kernel takes every program, without attaching or pinning anything.
///
/// # Errors
/// What it said of the first that it does not take.
pub fn rehearse() -> Result<(), CaptureError> {
    for (program, loaded) in try_load()? {
        loaded.map_err(|source| CaptureError::Program { program, source: Box::new(source) })?;
    }
    Ok(())
}

/// The programs relocate against no kernel type: the kernel's BTF, megabytes of it,
/// need not be kept.
fn loader() -> EbpfLoader<'static> {
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    loader
}

/// Loads a program, once for all it is attached to.
pub(super) fn load(program: &mut Program) -> Result<(), ProgramError> {
    let mut left = LOAD_ATTEMPTS;
    loop {
        left -= 1;
        match load_once(program) {
            Err(ProgramError::LoadError { io_error, .. })
                if left > 0 && io_error.kind() == io::ErrorKind::WouldBlock => {}
            Err(ProgramError::AlreadyLoaded) => return Ok(()),
            loaded => return loaded,
        }
    }
}

fn load_once(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::CgroupSockAddr(program) => program.load(),
        Program::SockOps(program) => program.load(),
        Program::SkLookup(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        Program::SkMsg(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// Attaches and takes the link, which holds for as long as it is open or pinned.
fn attach(program: &mut Program, target: BorrowedFd<'_>) -> Result<FdLink, ProgramError> {
    // Links refuse any other mode; the kernel lets several links run side by side.
    const MODE: CgroupAttachMode = CgroupAttachMode::Single;
    match program {
        Program::CgroupSockAddr(program) => {
            let id = program.attach(target, MODE)?;
            program.take_link(id)?.try_into().map_err(not_a_link)
        }
        Program::SockOps(program) => {
            let id = program.attach(target, MODE)?;
            program.take_link(id)?.try_into().map_err(not_a_link)
        }
        Program::SkLookup(program) => {
            let id = program.attach(target)?;
            Ok(program.take_link(id)?.into())
        }
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// Kernels before 5.7 attach without a link, which could not be pinned.
pub(super) fn not_a_link(error: LinkError) -> ProgramError {
    ProgramError::IOError(io::Error::other(error))
}

/// Updates the link pinned at `pin` to `program`. `false` where there is none, or
/// it is attached to something else than `target`.
pub(super) fn adopt(
    pin: &Path,
    program: &Program,
    target: LinkTarget,
) -> Result<bool, CaptureError> {
    let failed = |source| CaptureError::Link { program: pin.display().to_string(), source };
    let link = match open_pin(pin) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(source) => return Err(failed(source)),
    };
    if link_target(link.as_fd()).map_err(failed)? != target {
        return Ok(false);
    }
    let fd = match program.fd() {
        Ok(fd) => fd,
        Err(error) => return Err(failed(io::Error::other(error))),
    };
    match update_link(link.as_fd(), fd.as_fd()) {
        Ok(()) => Ok(true),
        // The target is gone; the new attachment will tell.
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => Ok(false),
        Err(source) => Err(failed(source)),
    }
}
