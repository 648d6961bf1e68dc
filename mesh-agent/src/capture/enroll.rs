//! Capture of one node: start, enrol and un-enrol pods, leave.
#![forbid(unsafe_code)]

use std::{
    collections::HashMap,
    fmt,
    fs::File,
    io,
    net::IpAddr,
    num::NonZeroU32,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mesh_common::{abi::ABI_VERSION, key::ListenerKind, verdict::Verdict};

use super::{
    accept::{DualListener, HboneListener, InboundListener, OutboundListener},
    bpffs,
    cgroup::cgroup2_root,
    error::{CaptureError, EnrollError, brief, chain},
    fullness,
    guard::{GuardAttachment, GuardMode},
    kernel_path::KernelMaps,
    loader::{self, Pins},
    maps::{MapCapacities, Maps, monotonic_ns},
    netlink::Multicast,
    netns::PodNetns,
    options::{CaptureOptions, EnrollPod, Exclusions},
    orig_dst::OriginalDestinations,
    persist::{Record, Records, lock},
    routing::{self, RoutingError},
    sockets::{NetnsSockets, Vouched},
};
use crate::model::{
    agent_down::AgentDown,
    captured::Pod,
    redirect::RedirectMode,
    splice::SpliceMode,
    workload::{Workload, WorkloadUid},
};

/// Published connections that nobody accepted for this long are forgotten.
const STALE: Duration = Duration::from_secs(60);

/// A pod whose listeners are open. Dropping the listeners refuses its connections.
#[derive(Debug)]
pub struct EnrolledPod {
    pub pod: Arc<Pod>,
    pub outbound: OutboundListener,
    pub inbound: InboundListener,
    pub hbone: HboneListener,
    /// Tells when interfaces come or go inside: see [`Capture::look_at_interfaces`].
    pub links: Multicast,
}

/// By then a connect(2) that was under way has sent its SYN.
const HOOKS_END: Duration = Duration::from_millis(20);

/// The kernel's side of one agent. Dropping it leaves everything pinned: enrolled
/// pods' new connections are refused until an agent is back.
#[derive(Debug)]
pub struct Capture {
    pub(super) pins: Pins,
    pub(super) records: Records,
    exclusions: Exclusions,
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
    /// Held for as long as the agent lives.
    _lock: File,
}

pub(super) struct State {
    pub(super) maps: Maps,
    pub(super) kernel: KernelMaps,
    pub(super) pods: HashMap<WorkloadUid, Slot>,
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
    /// Indexes of those that were up when programs were attached.
    pub(super) interfaces: Vec<u32>,
    /// Why the pod has no guard.
    pub(super) unguarded: Option<String>,
    /// Why its packets of the kernel path take the long way.
    pub(super) not_redirected: Option<String>,
    /// Its addresses that packets of the kernel path may go to, or why there is no such
    /// connection.
    pub(super) road: Result<Vec<IpAddr>, String>,
}

/// A slot that is freed again unless it is filled.
struct Reservation<'a> {
    capture: &'a Capture,
    uid: WorkloadUid,
}

impl Reservation<'_> {
    fn fill(self, record: Record) {
        if let Some(slot) = self.capture.state().pods.get_mut(&self.uid) {
            slot.record = Some(record);
        }
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut state = self.capture.state();
        if state.pods.get(&self.uid).is_some_and(|slot| slot.record.is_none()) {
            state.pods.remove(&self.uid);
        }
    }
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
        maps.set_probers(&cgroup_ids(&options.probe_cgroups))?;
        // No listener is open yet: whoever published these has been refused since.
        maps.withdraw(|_, _| true);
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
            state: Mutex::new(State { maps, kernel, pods: HashMap::new(), publish_failures: 0 }),
            splice_mode: options.splice,
            agent_down: options.agent_down,
            capacities: options.capacities,
            splice,
            log,
            _lock: lock,
        })
    }

    /// Pods that an earlier agent had enrolled, in the order of their UIDs: enrol them
    /// again. Those whose namespace is gone have been dropped.
    ///
    /// # Errors
    /// [`CaptureError`] where the state directory cannot be read.
    pub fn persisted(&self) -> Result<Vec<EnrollPod>, CaptureError> {
        Ok(self.records.load_all()?.into_iter().map(|record| record.pod).collect())
    }

    /// Opens listeners inside the pod and prepares everything to capture it. Capture
    /// begins with [`Capture::activate`]; a pod that an earlier agent had activated
    /// is captured already.
    ///
    /// Cancelled, it leaves routing and listeners' entries behind, which harm nobody and
    /// which the next attempt takes over.
    ///
    /// # Errors
    /// [`EnrollError`]; the pod is then as it was before.
    pub async fn enroll(&self, request: EnrollPod) -> Result<EnrolledPod, EnrollError> {
        let uid = request.uid.clone();
        if !is_name(&uid.0) {
            return Err(EnrollError::Uid(uid.0.chars().take(128).collect()));
        }
        {
            let mut state = self.state();
            match state.pods.get(&uid) {
                Some(slot) if slot.held => drop(state.pods.remove(&uid)),
                Some(_) => return Err(EnrollError::AlreadyEnrolled(uid)),
                None => {}
            }
        }
        let kernel = kernel(&uid);
        let mut request = request;
        let given = request.netns.clone();
        let before = match self.records.load(&uid) {
            // Enrolling is how it is mended: the pod may well be captured.
            Err(error @ CaptureError::Record { .. }) => {
                tracing::error!(pod = %uid, %error, "replacing a record that cannot be read");
                None
            }
            known => known.map_err(&kernel)?,
        };
        request.netns = self.records.hold(&request)?;
        let held = request.netns != given;
        let outcome = self.enroll_held(&request, before.as_ref()).await;
        if outcome.is_err() && held && before.is_none() {
            self.records.remove(&request).map_err(&kernel)?;
        }
        outcome
    }

    async fn enroll_held(
        &self,
        request: &EnrollPod,
        before: Option<&Record>,
    ) -> Result<EnrolledPod, EnrollError> {
        let uid = &request.uid;
        let netns = PodNetns::open(&request.netns)
            .map(Arc::new)
            .map_err(|source| EnrollError::Netns { uid: uid.clone(), source })?;
        let cookie = netns.cookie();
        if cookie == self.own.cookie() {
            return Err(EnrollError::HostNetwork(uid.clone()));
        }
        let before = before.filter(|record| record.netns_cookie == cookie);
        let reservation = self.reserve(uid, &netns)?;
        // Whatever fails, a pod that is captured stays captured.
        let captured = self.state().maps.pods().contains(&cookie);
        let outcome = match self.fwmark_accept(uid, &netns, before) {
            Ok(value) => {
                self.prepare(request, &netns, captured, &value).await.map_err(|e| (e, value))
            }
            Err(error) => Err((error, "0".to_owned())),
        };
        match outcome {
            Ok((enrolled, record)) => {
                reservation.fill(record);
                tracing::info!(pod = %uid, netns = %netns.path().display(), cookie, "enrolled");
                Ok(enrolled)
            }
            Err((error, fwmark_accept)) => {
                if before.is_none() && !captured {
                    self.undo(&netns, &fwmark_accept).await;
                }
                Err(error)
            }
        }
    }

    /// The pod's sysctl as it was before any agent.
    fn fwmark_accept(
        &self,
        uid: &WorkloadUid,
        netns: &PodNetns,
        before: Option<&Record>,
    ) -> Result<String, EnrollError> {
        match before {
            Some(record) => Ok(record.fwmark_accept.clone()),
            None => routing::fwmark_accept(netns).map_err(routing_failed(uid)),
        }
    }

    /// Keeps UID and namespace from being enrolled twice.
    fn reserve(
        &self,
        uid: &WorkloadUid,
        netns: &Arc<PodNetns>,
    ) -> Result<Reservation<'_>, EnrollError> {
        let cookie = netns.cookie();
        let mut state = self.state();
        if state.pods.contains_key(uid) {
            return Err(EnrollError::AlreadyEnrolled(uid.clone()));
        }
        if let Some((other, _)) = state.pods.iter().find(|(_, slot)| slot.cookie == cookie) {
            return Err(EnrollError::NetnsInUse { uid: uid.clone(), other: other.clone() });
        }
        let slot = Slot {
            cookie,
            netns: Arc::clone(netns),
            record: None,
            held: false,
            interfaces: Vec::new(),
            unguarded: None,
            not_redirected: None,
            road: Err("the pod is being enrolled".to_owned()),
        };
        state.pods.insert(uid.clone(), slot);
        Ok(Reservation { capture: self, uid: uid.clone() })
    }

    async fn prepare(
        &self,
        request: &EnrollPod,
        netns: &Arc<PodNetns>,
        captured: bool,
        fwmark_accept: &str,
    ) -> Result<(EnrolledPod, Record), EnrollError> {
        let uid = &request.uid;
        let cookie = netns.cookie();
        let kernel = kernel(uid);
        let in_netns = |source| EnrollError::Netns { uid: uid.clone(), source };
        let addresses = netns.addresses().await.map_err(in_netns)?;
        if addresses.is_empty() {
            return Err(EnrollError::NoAddress(uid.clone()));
        }
        let node = self.own.addresses().await.map_err(in_netns)?;
        // What arrives for the application is bound to the interface it came by: the
        // agent's own dial to the application, over `lo` and from the client's
        // address, may get the client's port number, and would be taken for it.
        // Before they are listed: none may be missed.
        let links = netns
            .run(Multicast::links)
            .and_then(|links| links)
            .map_err(|source| EnrollError::Watch { uid: uid.clone(), source })?;
        let interfaces = netns.interfaces().await.map_err(in_netns)?;
        let interface = match &interfaces[..] {
            [only] => NonZeroU32::new(only.index),
            _ => None,
        };
        if interface.is_none() {
            tracing::warn!(
                pod = %uid,
                "several interfaces are up: a client's port number may collide with the agent's"
            );
        }

        let open = |(v4, v6), interface| {
            DualListener::open(netns, v4, v6, interface).map_err(|(address, source)| {
                EnrollError::Listen { uid: uid.clone(), address, source }
            })
        };
        let outbound = open(OutboundListener::ADDRESSES, None)?;
        let inbound = open(InboundListener::ADDRESSES, interface)?;
        let hbone = open(HboneListener::ADDRESSES, None)?;

        let v6 = outbound.has_v6();
        routing::install(netns, v6).await.map_err(routing_failed(uid))?;

        let exclusions = self.exclusions.union(&request.exclusions);
        {
            let mut state = self.state();
            state.maps.set_facts(cookie, &addresses, &node, &exclusions).map_err(&kernel)?;
            state.maps.remove_listeners(cookie).map_err(&kernel)?;
            for (kind, listener) in
                [(ListenerKind::Inbound, &inbound), (ListenerKind::Hbone, &hbone)]
            {
                for (v6, socket) in listener.sockets() {
                    state.maps.add_listener(cookie, kind, v6, socket).map_err(&kernel)?;
                }
            }
        }
        let destinations =
            OriginalDestinations::open(&self.pins.maps(), cookie).map_err(&kernel)?;
        let vouched = Vouched::open(&self.pins.maps()).map_err(&kernel)?;
        for listener in [&inbound, &hbone] {
            for (_, socket) in listener.sockets() {
                vouched
                    .add(socket)
                    .map_err(|source| EnrollError::Vouch { uid: uid.clone(), source })?;
            }
        }
        self.attach_programs(request, netns, &addresses, &interfaces).await.map_err(&kernel)?;
        let record = Record {
            boot_id: self.records.boot_id().to_owned(),
            netns_cookie: cookie,
            fwmark_accept: fwmark_accept.to_owned(),
            active: captured,
            pod: request.clone(),
        };
        self.records.save(&record).map_err(&kernel)?;

        let own = addresses.clone();
        let pod = Arc::new(Pod {
            workload: Workload {
                uid: uid.clone(),
                name: request.name.clone(),
                identity: request.identity.clone(),
                addresses,
                labels: request.labels.clone(),
                mtls: request.mtls,
            },
            sockets: Arc::new(NetnsSockets { netns: Arc::clone(netns), own, vouched }),
        });
        let enrolled = EnrolledPod {
            outbound: OutboundListener { listener: outbound, pod: Arc::clone(&pod), destinations },
            inbound: InboundListener { listener: inbound, pod: Arc::clone(&pod) },
            hbone: HboneListener { listener: hbone },
            links,
            pod,
        };
        Ok((enrolled, record))
    }

    /// Turns capture on: the pod's new connections, both ways, go to the agent from now on.
    ///
    /// # Errors
    /// [`EnrollError::NotEnrolled`], or [`EnrollError::Kernel`] where a map is full:
    /// the pod then has plain networking, un-enrol it.
    pub fn activate(&self, uid: &WorkloadUid) -> Result<(), EnrollError> {
        let kernel = kernel(uid);
        let mut state = self.state();
        let State { maps, pods, .. } = &mut *state;
        let record = pods
            .get_mut(uid)
            .and_then(|slot| slot.record.as_mut())
            .ok_or_else(|| EnrollError::NotEnrolled(uid.clone()))?;
        maps.add_pod(record.netns_cookie, record.pod.mtls).map_err(&kernel)?;
        if record.active {
            // It was captured all along, and its record says so.
            return Ok(());
        }
        record.active = true;
        self.records.save(record).map_err(&kernel)
    }

    /// Gives the pod plain networking back, at once for new connections. Connections
    /// through the agent end when their listeners' owner drops them.
    ///
    /// # Errors
    /// [`EnrollError`]; capture is off if the kernel took that first step.
    pub async fn unenroll(&self, uid: &WorkloadUid) -> Result<(), EnrollError> {
        let kernel = kernel(uid);
        let slot = {
            let mut state = self.state();
            let enrolled = state.pods.get(uid).is_some_and(|slot| slot.record.is_some());
            if enrolled { state.pods.remove(uid) } else { None }
        };
        let (record, netns) = match slot {
            Some(Slot { record: Some(record), netns, .. }) => (record, Some(netns)),
            // Not restored by this agent, but known from an earlier one.
            _ => {
                let record = self.records.load(uid).map_err(&kernel)?;
                let record = record.ok_or_else(|| EnrollError::NotEnrolled(uid.clone()))?;
                let netns = PodNetns::open(&record.pod.netns).ok().map(Arc::new);
                (record, netns)
            }
        };
        let cookie = record.netns_cookie;
        {
            let mut state = self.state();
            state.maps.remove_pod(cookie).map_err(&kernel)?;
            state.kernel.forget_pod(cookie).map_err(&kernel)?;
        }
        self.cut_kernel_connections_of(cookie);
        // Once more for what a connect hook had decided just before.
        tokio::time::sleep(HOOKS_END).await;
        self.cut_kernel_connections_of(cookie);
        let _alone = self.attaching.lock().await;
        match netns.filter(|netns| netns.cookie() == cookie) {
            Some(netns) => self.undo(&netns, &record.fwmark_accept).await,
            None => self.undo_kernel(cookie),
        }
        self.records.remove(&record.pod).map_err(&kernel)?;
        tracing::info!(pod = %uid, "un-enrolled");
        Ok(())
    }

    /// Lets go of a pod whose namespace's file is gone, but not of its namespace: what
    /// still runs in there stays captured, and is refused until the namespace dies or
    /// is enrolled again. The caller drops the pod's listeners.
    ///
    /// # Errors
    /// [`EnrollError::NotEnrolled`], or [`EnrollError::Kernel`] where the record is left.
    pub fn abandon(&self, uid: &WorkloadUid) -> Result<(), EnrollError> {
        let kernel = kernel(uid);
        let cookie = self.state().pods.get(uid).map(|slot| slot.cookie);
        if let Some(cookie) = cookie {
            self.cut_kernel_connections_of(cookie);
        }
        let mut state = self.state();
        let State { maps, pods, kernel: shortcuts, .. } = &mut *state;
        let slot = pods.remove(uid).ok_or_else(|| EnrollError::NotEnrolled(uid.clone()))?;
        shortcuts.forget_pod(slot.cookie).map_err(&kernel)?;
        maps.remove_listeners(slot.cookie).map_err(&kernel)?;
        match &slot.record {
            Some(record) => self.records.remove(&record.pod).map_err(&kernel),
            None => Ok(()),
        }
    }

    /// Takes away what `prepare` may have set. What fails is logged: the rest must go too.
    async fn undo(&self, netns: &PodNetns, fwmark_accept: &str) {
        self.undo_kernel(netns.cookie());
        match netns.interfaces().await {
            Ok(interfaces) => {
                if let Err(error) = self.detach_guards(netns, &interfaces).await {
                    tracing::warn!(netns = %netns.path().display(), %error, "cannot remove the guard");
                }
            }
            Err(error) => {
                tracing::warn!(netns = %netns.path().display(), %error, "cannot list interfaces");
            }
        }
        if let Err(error) = routing::remove(netns, fwmark_accept).await {
            tracing::warn!(netns = %netns.path().display(), ?error, "cannot remove routing");
        }
    }

    fn undo_kernel(&self, cookie: u64) {
        let mut state = self.state();
        let steps = [
            state.maps.remove_pod(cookie),
            self.pins.detach_pod(cookie),
            self.pins.detach_guard(cookie, None),
            state.maps.remove_listeners(cookie),
            state.maps.remove_facts(cookie),
            state.maps.set_outside(cookie, &[], None),
        ];
        for error in steps.into_iter().filter_map(Result::err) {
            tracing::warn!(cookie, %error, "cannot clean up after a pod");
        }
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
    /// rules change, and by [`Capture::maintain`].
    pub fn look_at_rules(&self) {
        self.retire_redirects(&mut self.state());
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

fn routing_failed(uid: &WorkloadUid) -> impl Fn(RoutingError) -> EnrollError {
    move |error| match error {
        RoutingError::Netlink { what, source } => {
            EnrollError::Routing { uid: uid.clone(), what, source: Box::new(source) }
        }
        RoutingError::Sysctl { name, source } => {
            EnrollError::Sysctl { uid: uid.clone(), name, source }
        }
    }
}

fn kernel(uid: &WorkloadUid) -> impl Fn(CaptureError) -> EnrollError {
    move |source| EnrollError::Kernel { uid: uid.clone(), source: Box::new(source) }
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
        maps.set_outside(cookie, &[], None)?;
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
            maps.set_outside(cookie, &[], None)?;
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

/// Letters, digits, `.`, `-`, `_`; usable as a file name.
fn is_name(name: &str) -> bool {
    let valid = |b: u8| b.is_ascii_alphanumeric() || b".-_".contains(&b);
    !name.is_empty() && name.len() <= 128 && !name.starts_with('.') && name.bytes().all(valid)
}
