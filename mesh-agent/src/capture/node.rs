//! Capture of one node: start, look after what is there, leave.
#![forbid(unsafe_code)]

use std::{
    collections::HashMap,
    fmt,
    fs::File,
    io,
    net::IpAddr,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use aya::{Ebpf, maps::HashMap as BpfHashMap};
use mesh_common::{
    abi::{ABI_VERSION, map},
    key::SpliceKey,
    verdict::Verdict,
};
use socket2::SockRef;

use super::{
    accept::DualListener,
    bpffs,
    cgroup::{cgroup2_root, is_cgroup2},
    enroll::is_name,
    error::{CaptureError, brief, chain},
    fullness,
    guard::{GuardAttachment, GuardMode},
    hand_over::{Inherited, Listening},
    heartbeat::Heartbeat,
    kernel_path::KernelMaps,
    legs::Legs,
    loader::{self, Pins},
    maps::{MapCapacities, Maps, monotonic_ns},
    netlink::Multicast,
    netns::PodNetns,
    options::{CaptureOptions, Exclusions},
    persist::{Record, Records, lock},
    redirect::Road,
};
use crate::model::{
    agent_down::AgentDown, redirect::RedirectMode, splice::SpliceMode, workload::WorkloadUid,
};

/// Published connections that nobody accepted for this long are forgotten.
const STALE: Duration = Duration::from_secs(60);

/// The kernel's side of one agent. Dropping it leaves everything pinned: enrolled
/// pods' new connections are refused until an agent is back.
#[derive(Debug)]
pub struct Capture {
    pub(super) pins: Pins,
    pub(super) records: Records,
    pub(super) exclusions: Exclusions,
    pub(super) guard: GuardMode,
    pub(super) guard_attachment: GuardAttachment,
    pub(super) redirect_peer: RedirectMode,
    pub(super) probe_cgroups: Vec<PathBuf>,
    pub(super) own: PodNetns,
    state: Mutex<State>,
    /// One look at interfaces, or one removal, at a time.
    pub(super) attaching: tokio::sync::Mutex<()>,
    pub(super) splice_mode: SpliceMode,
    pub(super) agent_down: AgentDown,
    pub(super) capacities: MapCapacities,
    /// Whether sockets can be spliced at all, and why not.
    pub(super) splice: Result<(), String>,
    log: Option<tokio::task::JoinHandle<()>>,
    /// While this agent is the one that keeps the kernel's verdicts.
    heartbeat: Mutex<Option<Heartbeat>>,
    /// From the agent before this one, where that one has handed over.
    pub(super) inherited: Option<Arc<Inherited>>,
    /// Held until another agent takes over.
    lock: Mutex<Option<File>>,
}

pub(super) struct State {
    pub(super) maps: Maps,
    pub(super) kernel: KernelMaps,
    pub(super) pods: HashMap<WorkloadUid, Slot>,
    /// Whether pods have guards, which see that the kernel path stays on the node.
    pub(super) guarded: bool,
    /// What [`Capture::maintain`] has reported before.
    publish_failures: u64,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("maps", &self.maps)
            .field("pods", &self.pods)
            .finish_non_exhaustive()
    }
}

/// One pod in memory.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) cookie: u64,
    pub(super) netns: Arc<PodNetns>,
    /// `None` while it is being enrolled.
    pub(super) record: Option<Record>,
    /// Captured, and served by nobody.
    pub(super) held: bool,
    /// Its sockets that may be spliced with its application's.
    pub(super) legs: Arc<Legs>,
    /// Those that are open.
    pub(super) listeners: Vec<Weak<DualListener>>,
    /// What it was enrolled with: whoever is root inside may give it any other.
    pub(super) addresses: Vec<IpAddr>,
    /// Indexes of those that were up when programs were attached.
    pub(super) interfaces: Vec<u32>,
    /// Why the pod has no guard.
    pub(super) unguarded: Option<String>,
    /// Whether what it and its neighbours say to each other may pass by whatever the node has
    /// on the way, and why not.
    pub(super) straight: Result<(), String>,
    /// Why its packets of the kernel path take the long way.
    pub(super) not_redirected: Option<String>,
    /// How packets of the kernel path reach it, or why there is no such connection.
    pub(super) road: Result<Road, String>,
}

impl Capture {
    /// Loads the programs and attaches them, or adopts what an earlier agent of the
    /// same instance left. Pods that it had enrolled stay captured throughout.
    ///
    /// Blocks for up to a second where a predecessor still holds the state directory.
    /// With `bpf_log` the caller must be in a tokio runtime.
    ///
    /// # Errors
    /// [`CaptureError`]; nothing that was pinned before is taken away.
    pub fn start(options: CaptureOptions) -> Result<Self, CaptureError> {
        Self::begin(options, None)
    }

    /// As [`Capture::start`], after an agent that has handed over and may still serve what it
    /// had: nothing that it needs for that is touched.
    ///
    /// # Errors
    /// As of [`Capture::start`].
    pub fn take_over(
        options: CaptureOptions,
        inherited: Arc<Inherited>,
    ) -> Result<Self, CaptureError> {
        Self::begin(options, Some(inherited))
    }

    fn begin(
        options: CaptureOptions,
        inherited: Option<Arc<Inherited>>,
    ) -> Result<Self, CaptureError> {
        if !is_name(&options.instance) {
            return Err(CaptureError::Instance(options.instance));
        }
        bpffs::create(&options.state_dir)?;
        let lock = lock(&options.state_dir)?;
        let records = Records::open(&options.state_dir)?;
        let known = records.load_all()?;
        let cgroup_root = match options.cgroup_root {
            Some(root) => root,
            None => cgroup2_root()?,
        };
        if !is_cgroup2(&cgroup_root) {
            return Err(CaptureError::NotCgroup2(cgroup_root));
        }
        for directory in options.probe_cgroups.iter().filter(|directory| !is_cgroup2(directory)) {
            tracing::warn!(
                path = %directory.display(),
                "there is no such cgroup (yet): nobody probes pods by it"
            );
        }
        let own = PodNetns::own().map_err(|error| CaptureError::File {
            act: "use",
            path: PathBuf::from("/proc/thread-self/ns/net"),
            source: std::io::Error::other(error),
        })?;
        let pins = Pins::prepare(&options.bpffs, &options.instance, &options.capacities)?;
        let mut ebpf = pins.load(None)?;
        let log = options.bpf_log.then(|| super::log::pump(&mut ebpf)).flatten();
        let mut maps = Maps::take(&mut ebpf, &pins.maps())?;
        let kernel = KernelMaps::take(&mut ebpf, options.kernel_path)?;
        name_older_maps(&pins, &options.capacities);
        match maps.abi_version()? {
            ABI_VERSION | 0 => {}
            found => {
                return Err(CaptureError::Abi { path: pins.maps(), found, expected: ABI_VERSION });
            }
        }
        maps.configure(options.bpf_log, options.kernel_path, options.drop_non_tcp)?;
        let heartbeat = Heartbeat::start(&pins.maps(), options.hung_after)?;
        maps.set_probers(&cgroup_ids(&options.probe_cgroups))?;
        if inherited.is_none() {
            // No listener is open yet: whoever published these has been refused since. And
            // what an earlier agent let applications send ahead is nobody's to take any more.
            maps.withdraw(|_, _| true);
            forget_grants(&mut ebpf)?;
        }
        // Nobody has asked this kernel yet.
        for cookie in maps.pods() {
            maps.set_splicing(cookie, false)?;
        }
        // Before the links run programs that use these maps, which may be new.
        for record in known.iter().filter(|record| record.active) {
            maps.add_pod(record.netns_cookie, record.pod.mtls)?;
        }
        pins.attach_cgroup(&mut ebpf, &cgroup_root)?;
        pins.remove_other_versions()?;
        pins.keep();
        let splice = match options.splice {
            SpliceMode::Off => Err("switched off".to_owned()),
            SpliceMode::Auto | SpliceMode::On => {
                loader::attach_splice(&mut ebpf).map_err(|error| brief(&chain(&error)))
            }
        };
        let alive = forget_dead(&pins, &mut maps)?;
        name_strangers(&alive, &mut maps, &known)?;
        tracing::info!(
            cgroup = %cgroup_root.display(), instance = options.instance, adopted = known.len(),
            "capture is attached"
        );
        Ok(Self {
            pins,
            records,
            exclusions: options.exclusions,
            guard: options.guard,
            guard_attachment: options.guard_attachment,
            redirect_peer: options.redirect_peer,
            probe_cgroups: options.probe_cgroups,
            own,
            attaching: tokio::sync::Mutex::default(),
            state: Mutex::new(State {
                maps,
                kernel,
                pods: HashMap::new(),
                guarded: options.guard != GuardMode::Off,
                publish_failures: 0,
            }),
            splice_mode: options.splice,
            agent_down: options.agent_down,
            capacities: options.capacities,
            splice,
            log,
            heartbeat: Mutex::new(Some(heartbeat)),
            inherited,
            lock: Mutex::new(Some(lock)),
        })
    }

    /// To be called now and then: forgets connections that nobody accepted, and logs
    /// what the programs could not do.
    ///
    /// Returns enrolled pods whose namespace's file is gone or is another one's: the
    /// pod was most likely deleted without being un-enrolled.
    pub fn maintain(&self) -> Vec<WorkloadUid> {
        self.pins.keep();
        let mut state = self.state();
        let oldest =
            monotonic_ns().saturating_sub(u64::try_from(STALE.as_nanos()).unwrap_or(u64::MAX));
        state.maps.withdraw(|_, value| value.published_ns < oldest);
        state.kernel.sweep();
        self.retire_redirects(&mut state);
        // A service that is started again gets a cgroup of its own again.
        if let Err(error) = state.maps.set_probers(&cgroup_ids(&self.probe_cgroups)) {
            tracing::warn!(%error, "probers are not up to date");
        }
        let failures = state
            .maps
            .verdicts()
            .ok()
            .and_then(|all| all.into_iter().find(|(verdict, _)| *verdict == Verdict::PublishFailed))
            .map_or(0, |(_, count)| count);
        if failures > state.publish_failures {
            tracing::error!(
                refused = failures - state.publish_failures,
                map = mesh_common::abi::map::ORIGINAL_DESTINATIONS,
                "connections were refused because the map is full: raise its capacity"
            );
            state.publish_failures = failures;
        }
        if let Err(error) = forget_dead(&self.pins, &mut state.maps) {
            tracing::warn!(%error, "cannot clean up after pods that are gone");
        }
        // Some may have been another pod's until now.
        let State { maps, pods, .. } = &mut *state;
        for (uid, slot) in pods.iter().filter(|(_, slot)| slot.record.is_some()) {
            if let Err(error) = maps.claim(slot.cookie, &slot.addresses) {
                tracing::warn!(pod = %uid, %error, "the pod's addresses cannot be noted");
            }
        }
        let enrolled = state.pods.iter().filter(|(_, slot)| slot.record.is_some());
        enrolled.filter(|(_, slot)| !slot.netns.is_current()).map(|(uid, _)| uid.clone()).collect()
    }

    /// What the programs decided, by name, since the maps were made.
    ///
    /// # Errors
    /// [`CaptureError::Map`].
    pub fn counters(&self) -> Result<Vec<(&'static str, u64)>, CaptureError> {
        let verdicts = self.state().maps.verdicts()?;
        Ok(verdicts.into_iter().map(|(verdict, count)| (verdict.name(), count)).collect())
    }

    /// Every listener inside a pod that is open.
    ///
    /// # Errors
    /// The system's: out of descriptors, most likely.
    pub fn listening(&self) -> io::Result<Vec<Listening>> {
        let state = self.state();
        let mut all = Vec::new();
        for (uid, slot) in &state.pods {
            for listener in slot.listeners.iter().filter_map(Weak::upgrade) {
                for socket in listener.sockets().map(|(_, socket)| socket) {
                    let address = SockRef::from(&socket).local_addr()?.as_socket();
                    let address = address.ok_or(io::ErrorKind::InvalidData)?;
                    let socket = socket.try_clone_to_owned()?;
                    all.push(Listening { pod: Some(uid.clone()), address, socket });
                }
            }
        }
        Ok(all)
    }

    /// Another agent may have all of this from now on. Nothing of it is to be changed by this
    /// one any more; what it serves goes on.
    pub fn give_up(&self) {
        if let Some(log) = &self.log {
            log.abort();
        }
        // Else it would hide that the other one hangs.
        self.heartbeat.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.pins.give_up();
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Leaves with everything pinned: enrolled pods' new connections are refused until
    /// an agent of this instance is back.
    pub fn suspend(self) {
        let enrolled = self.state().pods.len();
        tracing::info!(enrolled, "capture stays attached; new connections are refused");
    }

    /// Un-enrols every pod and removes programs, maps and links.
    ///
    /// # Errors
    /// The first failure; the rest has been tried.
    pub async fn teardown(self) -> Result<(), CaptureError> {
        let known = self.records.load_all()?;
        for record in known {
            if let Err(error) = self.unenroll(&record.pod.uid).await {
                tracing::warn!(pod = %record.pod.uid, %error, "cannot un-enrol");
            }
        }
        self.pins.remove_all()
    }

    /// Tells when nftables change in the agent's own namespace. The caller is in a tokio
    /// runtime.
    ///
    /// # Errors
    /// What the kernel said: EPROTONOSUPPORT where it has no netfilter.
    pub fn rules_watch(&self) -> io::Result<Multicast> {
        self.own.run(Multicast::nftables)?
    }

    /// Takes packets off the short way that rules of the node may be about. Called when
    /// rules change, and by [`Capture::maintain`]. Says whether it did.
    pub fn look_at_rules(&self) -> bool {
        self.retire_redirects(&mut self.state())
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // Every change of the maps stands for itself: a panic leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if let Some(log) = &self.log {
            log.abort();
        }
    }
}

/// What applications may send ahead.
fn forget_grants(ebpf: &mut Ebpf) -> Result<(), CaptureError> {
    let failed = |source| CaptureError::Map { map: map::GRANTS, source };
    // Not taken out: programs that are still to be loaded use it.
    let map = ebpf.map_mut(map::GRANTS).ok_or(CaptureError::Missing(map::GRANTS))?;
    let mut grants: BpfHashMap<_, SpliceKey, u64> = map.try_into().map_err(failed)?;
    let keys: Vec<_> = grants.keys().filter_map(Result::ok).collect();
    for key in keys {
        // Gone already is as well.
        let _ = grants.remove(&key);
    }
    Ok(())
}

/// Removes what the kernel holds for pods whose namespace is gone. Returns the pods
/// that are left.
fn forget_dead(pins: &Pins, maps: &mut Maps) -> Result<Vec<u64>, CaptureError> {
    let mut alive = Vec::new();
    for (cookie, is_alive) in pins.attached_pods()? {
        if is_alive {
            alive.push(cookie);
            continue;
        }
        maps.remove_pod(cookie)?;
        maps.remove_listeners(cookie)?;
        maps.remove_facts(cookie)?;
        maps.disclaim(cookie)?;
        pins.detach_pod(cookie)?;
        pins.detach_guard(cookie, None)?;
    }
    Ok(alive)
}

/// Removes map entries that belong to no pod, and names pods that are captured
/// without a record: they stay refused, for who knows why.
fn name_strangers(alive: &[u64], maps: &mut Maps, known: &[Record]) -> Result<(), CaptureError> {
    let is_known = |cookie: u64| known.iter().any(|record| record.netns_cookie == cookie);
    for cookie in maps.pods() {
        if is_known(cookie) {
            continue;
        }
        if alive.contains(&cookie) {
            tracing::warn!(
                cookie,
                "a pod is captured that no record names: its connections stay refused until \
                 it is enrolled again, or capture is torn down"
            );
        } else {
            maps.remove_pod(cookie)?;
            maps.remove_facts(cookie)?;
            maps.disclaim(cookie)?;
        }
    }
    Ok(())
}

/// Pinned maps keep the size they were made with.
fn name_older_maps(pins: &Pins, capacities: &MapCapacities) {
    for fill in fullness::fills(&pins.maps(), capacities) {
        if fill.capacity != fill.wanted {
            tracing::warn!(
                map = fill.map,
                capacity = fill.capacity,
                wanted = fill.wanted,
                "a map keeps the size it was made with, until it is removed with its pin"
            );
        }
    }
}

/// The IDs of the cgroups that are there: a cgroup's ID is its inode.
fn cgroup_ids(directories: &[PathBuf]) -> Vec<u64> {
    let id = |directory: &PathBuf| Some(std::fs::metadata(directory).ok()?.ino());
    directories.iter().filter_map(id).collect()
}
