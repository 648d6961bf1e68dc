//! The kernel path's maps: the plan goes in, connections and events come out.

use std::{
    collections::{HashMap as StdHashMap, HashSet},
    io,
    sync::Arc,
    time::Duration,
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, Map, MapData, MapError, RingBuf},
};
use mesh_common::{
    abi::{MAX_BACKENDS, map},
    address::Address,
    key::{ServiceKey, TupleKey},
    value::{Authorized, Backend, Service},
};

use super::{
    error::{CaptureError, chain},
    guard::GuardMode,
    kernel_events::{add_spliced, describe},
    maps::{is_absent, monotonic_ns},
    netns::PodNetns,
    node::{Capture, State},
    redirect::Road,
    sock_diag,
};
use crate::model::{
    agent_down::AgentDown,
    kernel_path::{KernelConnection, KernelPlan, KernelService, KernelTraffic},
    splice::Fitness,
    workload::WorkloadUid,
};

/// A SYN is given up after two minutes; whatever waits longer is a leftover.
const HANDSHAKE_LIFE: Duration = Duration::from_secs(300);

/// What became of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PlanApplied {
    /// In force.
    pub services: usize,
    /// The map is full: the agent serves these.
    pub left_out: usize,
}

/// The maps of the kernel path.
pub(super) struct KernelMaps {
    services: HashMap<MapData, ServiceKey, Service>,
    authorized: HashMap<MapData, TupleKey, Authorized>,
    count: Array<MapData, u64>,
    pub(super) events: Option<RingBuf<MapData>>,
    /// What `services` holds.
    written: StdHashMap<ServiceKey, Service>,
    /// What of it an earlier agent has written, and no plan of this one has replaced.
    inherited: HashSet<ServiceKey>,
}

impl KernelMaps {
    /// Takes the maps over. No verdict of an earlier agent stays in force, but for those
    /// that are kept without an agent, if `keep`.
    pub(super) fn take(ebpf: &mut Ebpf, keep: bool) -> Result<Self, CaptureError> {
        fn one<T: TryFrom<Map, Error = MapError>>(
            ebpf: &mut Ebpf,
            name: &'static str,
        ) -> Result<T, CaptureError> {
            ebpf.take_map(name)
                .ok_or(CaptureError::Missing(name))?
                .try_into()
                .map_err(|source| CaptureError::Map { map: name, source })
        }
        let mut this = Self {
            services: one(ebpf, map::SERVICES)?,
            authorized: one(ebpf, map::AUTHORIZED)?,
            count: one(ebpf, map::AUTHORIZED_COUNT)?,
            events: Some(one(ebpf, map::EVENTS)?),
            written: StdHashMap::new(),
            inherited: HashSet::new(),
        };
        let now = monotonic_ns();
        let keys: Vec<_> = this.services.keys().filter_map(Result::ok).collect();
        for key in keys {
            match this.services.get(&key, 0) {
                Ok(mut service) if keep && service.keep_until_ns > now => {
                    // Nothing is spliced before this agent has tested the kernel.
                    let is_spliced = |backend: &Backend| backend.splice != 0;
                    if service.backends.iter().any(is_spliced) {
                        service.backends.iter_mut().for_each(|backend| backend.splice = 0);
                        this.services
                            .insert(key, service, 0)
                            .map_err(|source| CaptureError::Map { map: map::SERVICES, source })?;
                    }
                    this.written.insert(key, service);
                    this.inherited.insert(key);
                }
                _ => this.remove(&key)?,
            }
        }
        this.sweep();
        Ok(this)
    }

    fn remove(&mut self, key: &ServiceKey) -> Result<(), CaptureError> {
        match self.services.remove(key) {
            Err(error) if !is_absent(&error) => {
                Err(CaptureError::Map { map: map::SERVICES, source: error })
            }
            _ => {
                self.written.remove(key);
                self.inherited.remove(key);
                Ok(())
            }
        }
    }

    /// Makes the map hold `wanted` and nothing else; what goes goes first. Inherited
    /// verdicts hold for as long as one of their pods is `waiting` for this agent.
    fn reconcile(
        &mut self,
        wanted: &StdHashMap<ServiceKey, Service>,
        waiting: impl Fn(u64) -> bool,
    ) -> Result<PlanApplied, CaptureError> {
        let now = monotonic_ns();
        let holds = |key: &ServiceKey, service: &Service| {
            let backends = service.backends.iter().take(service.count as usize);
            let mut pods = backends.map(|backend| backend.netns_cookie).chain([key.netns_cookie]);
            self.inherited.contains(key) && service.keep_until_ns > now && pods.any(&waiting)
        };
        let goes = |(key, service): &(&ServiceKey, &Service)| {
            !wanted.contains_key(key) && !holds(key, service)
        };
        let stale: Vec<_> = self.written.iter().filter(goes).map(|(key, _)| *key).collect();
        for key in stale {
            self.remove(&key)?;
        }
        let mut applied = PlanApplied::default();
        for (key, service) in wanted {
            self.inherited.remove(key);
            if self.written.get(key) == Some(service) {
                applied.services += 1;
                continue;
            }
            match self.services.insert(key, service, 0) {
                Ok(()) => {
                    self.written.insert(*key, *service);
                    applied.services += 1;
                }
                Err(error) => {
                    // Full, or worse: what is there must not stay as it was.
                    self.remove(key)?;
                    tracing::debug!(%error, "a service is left to the agent");
                    applied.left_out += 1;
                }
            }
        }
        Ok(applied)
    }

    /// Takes what leads from or to a pod out of force.
    pub(super) fn forget_pod(&mut self, cookie: u64) -> Result<(), CaptureError> {
        let concerns = |key: &ServiceKey, service: &Service| {
            key.netns_cookie == cookie
                || service.backends.iter().any(|backend| backend.netns_cookie == cookie)
        };
        let stale: Vec<_> = self
            .written
            .iter()
            .filter(|(key, service)| concerns(key, service))
            .map(|(key, _)| *key)
            .collect();
        stale.iter().try_for_each(|key| self.remove(key))
    }

    fn live(&self) -> Vec<(TupleKey, Authorized)> {
        self.authorized.iter().filter_map(Result::ok).collect()
    }

    /// Whether the client's socket is still there.
    fn holds(&self, connection: &KernelConnection) -> bool {
        let KernelConnection { source, destination, .. } = connection;
        let key = TupleKey {
            netns_cookie: connection.destination_netns,
            source: source.ip().into(),
            destination: destination.ip().into(),
            source_port: source.port().into(),
            destination_port: destination.port().into(),
        };
        self.authorized.get(&key, 0).is_ok_and(|a| a.socket_cookie == connection.socket_cookie)
    }

    /// Forgets handshakes that cannot be under way any more, and counts the rest.
    pub(super) fn sweep(&mut self) {
        let oldest = monotonic_ns()
            .saturating_sub(u64::try_from(HANDSHAKE_LIFE.as_nanos()).unwrap_or(u64::MAX));
        let mut live = 0;
        for (key, connection) in self.live() {
            if connection.established_ns == 0 && connection.opened_ns < oldest {
                // Nothing to do where it has gone meanwhile.
                let _ = self.authorized.remove(&key);
            } else {
                live += 1;
            }
        }
        if self.count.get(&0, 0).ok() != Some(live)
            && let Err(error) = self.count.set(0, live, 0)
        {
            tracing::warn!(%error, "cannot count the connections of the kernel path");
        }
    }
}

impl Capture {
    /// Whether the kernel can end connections that policy no longer allows: without
    /// that none may take the kernel path.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn can_cut_connections() -> io::Result<()> {
        sock_diag::can_destroy()
    }

    /// Puts a plan in force in place of the one before. Backends and sources that are
    /// not enrolled are left out. `fitness`: what the self-test has found splicing fit for.
    ///
    /// # Errors
    /// [`CaptureError::Map`] where a stale entry could not be removed.
    pub fn apply_kernel_plan(
        &self,
        plan: &KernelPlan,
        fitness: Fitness,
    ) -> Result<PlanApplied, CaptureError> {
        let attached = self.splice.is_ok();
        let mut state = self.state();
        self.splice_legs(&mut state, fitness)?;
        let members: StdHashMap<&WorkloadUid, Member<'_>> = state
            .pods
            .iter()
            .filter_map(|(uid, slot)| {
                let wanted = slot.record.as_ref()?.pod.splice;
                let splice = attached && self.splice_mode.allows(wanted, fitness.applications);
                let pod = &slot.record.as_ref()?.pod;
                let keeps = pod.agent_down.unwrap_or(self.agent_down) == AgentDown::Keep;
                let proven_for = plan.proven_for.get(uid).copied().unwrap_or_default();
                let keep_for = if keeps { proven_for } else { Duration::ZERO };
                let road = match (&slot.road, self.guard) {
                    // The operator wants nobody to watch.
                    (_, GuardMode::Off) => None,
                    (Ok(road), _) => Some(road),
                    (Err(_), _) => return None,
                };
                Some((uid, Member { cookie: slot.cookie, splice, keep_for, road }))
            })
            .collect();
        let wanted: StdHashMap<_, _> =
            plan.services.iter().filter_map(|service| compile(service, &members)).collect();
        let served = state.pods.values().filter(|slot| slot.record.is_some());
        let served: HashSet<u64> = served.map(|slot| slot.cookie).collect();
        let State { maps, kernel, .. } = &mut *state;
        let waiting = |cookie| !served.contains(&cookie) && maps.is_captured(cookie);
        kernel.reconcile(&wanted, waiting)
    }

    /// Lets applications and the agent be spliced, or new connections of theirs no more.
    fn splice_legs(&self, state: &mut State, fitness: Fitness) -> Result<(), CaptureError> {
        let State { maps, pods, .. } = state;
        for slot in pods.values() {
            let Some(record) = &slot.record else { continue };
            let wanted = self.splice_mode.allows(record.pod.splice, fitness.agent);
            let mut wanted = wanted && self.splice.is_ok();
            if wanted && let Err(error) = slot.legs.allow(&self.pins.maps(), &slot.netns) {
                tracing::error!(
                    pod = %record.pod.uid, error = %chain(&error),
                    "the pod's application and the agent are not spliced"
                );
                wanted = false;
            }
            maps.set_splicing(slot.cookie, wanted)?;
        }
        Ok(())
    }

    /// Whether verdicts of an earlier agent are in force, for pods that wait for this one.
    pub fn has_inherited_verdicts(&self) -> bool {
        !self.state().kernel.inherited.is_empty()
    }

    /// Whether the kernel took the splicing program, and why not.
    pub fn splice_attached(&self) -> Result<(), &str> {
        self.splice.as_ref().copied().map_err(String::as_str)
    }

    /// Every connection that takes the kernel path now.
    pub fn kernel_connections(&self) -> Vec<KernelConnection> {
        let state = self.state();
        let slots = state.by_cookie();
        let live = state.kernel.live();
        live.iter().map(|(tuple, connection)| describe(tuple, connection, &slots)).collect()
    }

    /// Ends a connection: both applications see it. `false` where it has ended already.
    ///
    /// # Errors
    /// A namespace could not be entered, or the kernel refused.
    pub fn cut_kernel_connection(&self, connection: &KernelConnection) -> io::Result<bool> {
        let KernelConnection { source, destination, socket_cookie, .. } = *connection;
        let client = self.place_of(connection.source_netns).map(|(netns, interfaces)| {
            let lives = || self.state().kernel.holds(connection);
            netns.run(|| sock_diag::destroy(source, destination, socket_cookie, &interfaces, lives))
        });
        // The reset may be kept from it, and the client's namespace be gone.
        let server = self.place_of(connection.destination_netns).map(|(netns, interfaces)| {
            netns.run(|| sock_diag::destroy_connected(destination, source, &interfaces))
        });
        let mut cut = false;
        for end in [client, server].into_iter().flatten() {
            cut |= end??;
        }
        Ok(cut)
    }

    /// Ends every connection from or to the pod of `cookie`.
    pub(super) fn cut_kernel_connections_of(&self, cookie: u64) {
        let is_of = |connection: &KernelConnection| {
            connection.source_netns == cookie || connection.destination_netns == cookie
        };
        for connection in self.kernel_connections().into_iter().filter(is_of) {
            if let Err(error) = self.cut_kernel_connection(&connection) {
                tracing::error!(
                    source = %connection.source, destination = %connection.destination, %error,
                    "a connection of a pod that is un-enrolled cannot be cut"
                );
            }
        }
    }

    /// What the sockets of the pods that have connections on the kernel path have moved,
    /// by socket cookie.
    pub fn kernel_traffic(&self) -> StdHashMap<u64, KernelTraffic> {
        let live = self.state().kernel.live();
        let mut sources: Vec<u64> = live.iter().map(|(_, live)| live.source_cookie).collect();
        sources.sort_unstable();
        sources.dedup();
        let mut all = StdHashMap::new();
        for netns in sources.into_iter().filter_map(|cookie| self.netns_of(cookie)) {
            match netns.run(sock_diag::traffic).and_then(|traffic| traffic) {
                Ok(traffic) => all.extend(traffic),
                Err(error) => tracing::warn!(
                    netns = %netns.path().display(), %error, "cannot ask for sockets' traffic"
                ),
            }
        }
        let now = monotonic_ns();
        for (_, connection) in &live {
            if let Some(traffic) = all.get_mut(&connection.socket_cookie) {
                add_spliced(traffic, connection, now);
            }
        }
        all
    }

    fn netns_of(&self, cookie: u64) -> Option<Arc<PodNetns>> {
        self.place_of(cookie).map(|(netns, _)| netns)
    }

    /// The namespace of a pod that is enrolled or was by an earlier agent, and its interfaces
    /// as far as they are known.
    fn place_of(&self, cookie: u64) -> Option<(Arc<PodNetns>, Vec<u32>)> {
        {
            let state = self.state();
            let mut pods = state.pods.values();
            if let Some(slot) = pods.find(|slot| slot.cookie == cookie) {
                return Some((Arc::clone(&slot.netns), slot.interfaces.clone()));
            }
        }
        let records = self.records.load_all().ok()?;
        let record = records.into_iter().find(|record| record.netns_cookie == cookie)?;
        let netns = PodNetns::open(&record.pod.netns).ok()?;
        (netns.cookie() == cookie).then(|| (Arc::new(netns), Vec::new()))
    }
}

/// An enrolled pod, as a plan is compiled for it.
#[derive(Clone, Copy)]
struct Member<'a> {
    cookie: u64,
    /// How it is reached; nobody asks without.
    road: Option<&'a Road>,
    /// Its connections may be spliced.
    splice: bool,
    /// For how long new ones may be opened without the agent.
    keep_for: Duration,
}

/// A service as the programs read it. `None` where it is none of a pod that is
/// enrolled, or has a backend that is not.
fn compile(
    service: &KernelService,
    members: &StdHashMap<&WorkloadUid, Member<'_>>,
) -> Option<(ServiceKey, Service)> {
    let source = members.get(&service.source)?;
    // Answers must find the way too, whichever of its addresses the source dials from.
    let v4 = service.address.is_ipv4();
    if source.road.is_some_and(|road| !road.reaches_all(v4)) {
        return None;
    }
    let none = Backend {
        netns_cookie: 0,
        address: Address::UNSPECIFIED,
        port: 0,
        cumulative_weight: 0,
        splice: 0,
        _zero: 0,
    };
    let mut backends = [none; MAX_BACKENDS];
    if service.backends.len() > MAX_BACKENDS {
        return None;
    }
    let mut total_weight = 0_u32;
    let mut keep_for = source.keep_for;
    for (slot, backend) in backends.iter_mut().zip(&service.backends) {
        total_weight = total_weight.checked_add(backend.weight)?;
        let member = members.get(&backend.workload)?;
        if member.road.is_some_and(|road| !road.reaches(backend.address.ip())) {
            return None;
        }
        keep_for = keep_for.min(member.keep_for);
        *slot = Backend {
            netns_cookie: member.cookie,
            address: backend.address.ip().into(),
            port: backend.address.port().into(),
            cumulative_weight: total_weight,
            splice: (source.splice && member.splice).into(),
            _zero: 0,
        };
    }
    let key = ServiceKey::new(source.cookie, service.address.ip().into(), service.address.port());
    let count = u32::try_from(service.backends.len()).ok()?;
    let keep_until_ns = match u64::try_from(keep_for.as_nanos()) {
        Ok(0) => 0,
        left => monotonic_ns().saturating_add(left.unwrap_or(u64::MAX)),
    };
    Some((key, Service { keep_until_ns, total_weight, count, backends }))
}
