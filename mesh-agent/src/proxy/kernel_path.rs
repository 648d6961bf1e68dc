//! The kernel path: which connections between pods of this node need nothing of the
//! agent, and the account of those that went that way.
//!
//! [`plan`] asks the same rooms as the pipelines do, ahead of time: whoever is in the
//! plan would be let through by both, unchanged. What depends on anything that is not
//! known before (a source port, a request) is not in it, and goes to the agent.
//!
//! [`KernelSessions`] keeps a row, metrics and access log for each connection, and says
//! which of them policy no longer allows.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use mesh_common::abi::MAX_BACKENDS;

use super::{
    Dataplane, Failure, failure,
    rejudge::{self, DrainDeadline, Standing},
    session::{Facts, Session},
};
use crate::{
    model::{
        captured::{CapturedInbound, CapturedOutbound, InboundPeer, Pod},
        cluster::{Cluster, ClusterName, Discovery, Endpoint, Tunnel},
        identity::Identity,
        kernel_path::{
            KernelBackend, KernelConnection, KernelPeer, KernelPlan, KernelService, KernelTraffic,
        },
        listener::{Direction, FilterChain, Listener, NetworkFilter, TcpProxy, TerminalFilter},
        listener_filter::Inspected,
        workload::WorkloadUid,
    },
    observe::flags::ResponseFlag,
    policy::{self, Flow, OutboundPolicy, Permit},
    route::{self, Around},
    snapshot::{AssignmentOwner, ListenerTable, Snapshot, Table},
};

/// Idle timeouts shorter than this are the agent's to keep: the kernel's sockets are
/// looked at now and then only.
const SHORTEST_IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// What the kernel may decide by itself between `pods`, which are all of this node.
/// `proven`: the identities that have a certificate to prove them by now; a handshake
/// with any other would fail.
pub fn plan(
    services: &mut Services,
    snapshot: &Snapshot,
    pods: &[Arc<Pod>],
    proven: &HashSet<Identity>,
    policy: OutboundPolicy,
) -> KernelPlan {
    let around = Around::of(snapshot);
    let planner = Planner { snapshot, pods, proven, policy, around };
    let local = pods.iter().flat_map(|pod| &pod.workload.addresses).copied();
    let mut services: Vec<KernelService> = services
        .of(snapshot, local)
        .into_iter()
        .flat_map(|listener| {
            let planner = &planner;
            pods.iter().filter_map(move |pod| planner.service(&listener, pod))
        })
        .collect();
    services.sort_by(|a, b| (&a.source, a.address).cmp(&(&b.source, b.address)));
    KernelPlan { services, proven_for: HashMap::new() }
}

type Clusters = Arc<Table<ClusterName, Arc<Cluster>>>;

/// Which services lead to which endpoints. Worked out anew only where listeners or clusters
/// have changed: endpoints change far more often, and most services have none on a node.
#[derive(Debug, Default)]
pub struct Services {
    of: Option<(Arc<ListenerTable>, Clusters)>,
    leading_to: HashMap<AssignmentOwner, Vec<Arc<Listener>>>,
}

impl Services {
    /// The outbound listeners that lead, as they are, to an endpoint at one of these
    /// addresses; each once.
    fn of(
        &mut self,
        snapshot: &Snapshot,
        local: impl Iterator<Item = IpAddr>,
    ) -> Vec<Arc<Listener>> {
        self.update(snapshot);
        let owners: HashSet<_> = local.flat_map(|ip| snapshot.workloads.owners(ip)).collect();
        let leading = owners.into_iter().filter_map(|owner| self.leading_to.get(owner)).flatten();
        let by_name: HashMap<_, _> = leading.map(|listener| (&listener.name, listener)).collect();
        by_name.into_values().cloned().collect()
    }

    fn update(&mut self, snapshot: &Snapshot) {
        let (listeners, clusters) = (&snapshot.listeners, &snapshot.clusters);
        let known = self.of.as_ref();
        if known.is_some_and(|(l, c)| Arc::ptr_eq(l, listeners) && Arc::ptr_eq(c, clusters)) {
            return;
        }
        self.leading_to.clear();
        // One that is for every address may be hidden by another.
        let is_service = |listener: &&Arc<Listener>| {
            listener.direction == Direction::Outbound && !listener.address.ip().is_unspecified()
        };
        for listener in listeners.iter().filter(is_service) {
            let chains = listener.chains().filter_map(|chain| match &chain.terminal {
                TerminalFilter::TcpProxy(tcp) => Some(tcp),
                TerminalFilter::Http(_) => None,
            });
            for entry in chains.flat_map(|tcp| &tcp.clusters) {
                let Some(cluster) = clusters.get(&entry.cluster) else { continue };
                let owner = match cluster.assignment_name() {
                    Some(name) => AssignmentOwner::Assignment(Arc::clone(name)),
                    None => AssignmentOwner::Cluster(cluster.name.clone()),
                };
                self.leading_to.entry(owner).or_default().push(Arc::clone(listener));
            }
        }
        self.of = Some((Arc::clone(listeners), Arc::clone(clusters)));
    }
}

struct Planner<'a> {
    snapshot: &'a Snapshot,
    pods: &'a [Arc<Pod>],
    proven: &'a HashSet<Identity>,
    policy: OutboundPolicy,
    around: Around,
}

impl Planner<'_> {
    /// A service as `source` may reach it, if every one of its endpoints may be
    /// reached so: who picks among them must see them all. Endpoints that share by
    /// anything but weight, or whose traffic is dropped in part, are the agent's.
    fn service(&self, listener: &Listener, source: &Arc<Pod>) -> Option<KernelService> {
        if !self.proven.contains(&source.workload.identity) {
            return None;
        }
        let cluster = self.outbound_cluster(listener, source)?;
        let cluster = self.snapshot.cluster(&cluster)?;
        if matches!(cluster.discovery, Discovery::OriginalDestination) {
            return None;
        }
        let assignment = self.snapshot.assignment(cluster)?;
        let mut backends = Vec::new();
        for (endpoint, weight) in route::shares(cluster, &assignment, &self.around)? {
            backends.push(self.backend(listener, source, &endpoint, weight)?);
        }
        let fits = (1..=MAX_BACKENDS).contains(&backends.len());
        fits.then(|| KernelService {
            source: source.workload.uid.clone(),
            address: listener.address,
            backends,
        })
    }

    /// The one cluster to which the listener sends what `source` dials.
    fn outbound_cluster(&self, listener: &Listener, source: &Arc<Pod>) -> Option<ClusterName> {
        let mut cluster = None;
        for ip in family(source, listener.address.is_ipv4()) {
            let captured = CapturedOutbound {
                pod: Arc::clone(source),
                source: (ip, 0).into(),
                original_destination: listener.address,
                // What waits for a word of the client's is the agent's.
                inspected: Inspected::default(),
            };
            let flow = Flow::outbound(captured, self.snapshot, self.policy).ok()?;
            let chosen = opaque_cluster(&policy::authorize(flow).ok()?)?;
            if cluster.get_or_insert_with(|| chosen.clone()) != &chosen {
                return None;
            }
        }
        cluster
    }

    /// The endpoint as the kernel may reach it. `None`: it may not, or there is doubt.
    fn backend(
        &self,
        listener: &Listener,
        source: &Arc<Pod>,
        endpoint: &Endpoint,
        weight: u32,
    ) -> Option<KernelBackend> {
        let Tunnel::Hbone { identity, workload } = &endpoint.tunnel else { return None };
        let mut owners = self.pods.iter().filter(|pod| pod.workload.owns(endpoint.address.ip()));
        let pod = owners.next()?;
        let certain = owners.next().is_none()
            && pod.workload.identity == *identity
            && self.proven.contains(identity)
            && workload.as_ref().is_none_or(|uid| *uid == pod.workload.uid)
            && pod.workload.uid != source.workload.uid
            && endpoint.address.is_ipv4() == listener.address.is_ipv4();
        if !certain {
            return None;
        }
        for ip in family(source, endpoint.address.is_ipv4()) {
            let captured = CapturedInbound {
                pod: Arc::clone(pod),
                source: (ip, 0).into(),
                original_destination: endpoint.address,
                peer: InboundPeer::Mtls(source.workload.identity.clone()),
            };
            let permit = policy::authorize(Flow::inbound(captured, self.snapshot).ok()?).ok()?;
            if permit.flow().chain().is_some() {
                let cluster = self.snapshot.cluster(&opaque_cluster(&permit)?)?;
                let as_it_is = cluster.all_tls().next().is_none();
                if !as_it_is || !matches!(cluster.discovery, Discovery::OriginalDestination) {
                    return None;
                }
            }
        }
        Some(KernelBackend {
            workload: pod.workload.uid.clone(),
            address: endpoint.address,
            weight,
        })
    }
}

/// The pod's addresses of one family: any may be a connection's source.
fn family(pod: &Pod, v4: bool) -> impl Iterator<Item = IpAddr> {
    pod.workload.addresses.iter().copied().filter(move |ip| ip.is_ipv4() == v4)
}

/// The cluster of a permitted flow that is proxied as it is, whatever its source port.
fn opaque_cluster(permit: &Permit) -> Option<ClusterName> {
    let listener = permit.flow().listener()?;
    let by_port = |chain: &Arc<FilterChain>| !chain.matches.source_ports.is_empty();
    if listener.filter_chains.iter().chain(&listener.default_filter_chain).any(by_port) {
        return None;
    }
    if !permit.flow().chain()?.filters.iter().all(NetworkFilter::judges_alone) {
        return None;
    }
    let tcp = opaque(permit)?;
    if tcp.idle_timeout.is_some_and(|idle| idle < SHORTEST_IDLE_TIMEOUT) {
        return None;
    }
    match &tcp.clusters[..] {
        [only] if only.weight > 0 => Some(only.cluster.clone()),
        _ => None,
    }
}

fn opaque(permit: &Permit) -> Option<&TcpProxy> {
    super::opaque(permit.flow().terminal())
}

/// What is to become of a connection.
#[derive(Debug)]
pub enum Judgement {
    Keep,
    /// To be cut; the reason is told when it is closed.
    Cut,
}

/// The connections that the kernel took, by client's socket.
#[derive(Default)]
pub struct KernelSessions {
    live: HashMap<u64, Live>,
}

struct Live {
    outbound: Leg,
    inbound: Leg,
    idle_timeout: Option<Duration>,
    drain: DrainDeadline,
    traffic: KernelTraffic,
    failure: Option<fn() -> Failure>,
    revoked: Option<policy::Revoked>,
}

struct Leg {
    session: Session,
    permit: Option<Permit>,
    /// What it was let through by at first.
    began: Option<TerminalFilter>,
}

impl KernelSessions {
    /// Puts an established connection on the table, if it is not there yet, and judges
    /// it: the plan that let it through may be an old one.
    pub fn adopt(
        &mut self,
        dataplane: &Dataplane,
        connection: &KernelConnection,
        pods: &HashMap<WorkloadUid, Arc<Pod>>,
    ) -> Judgement {
        if self.live.contains_key(&connection.socket_cookie) {
            return Judgement::Keep;
        }
        let (source, destination) = match ends(connection, pods) {
            Ok(ends) => ends,
            Err(judgement) => return judgement,
        };
        let snapshot = dataplane.snapshot.load();
        let mut live = Live::begin(dataplane, &snapshot, connection, source, destination);
        let keep = live.revoked.is_none() && connection.seen && connection.on_path;
        if !connection.seen {
            live.failure = Some(astray);
        } else if !connection.on_path {
            live.failure = Some(off_path);
        }
        self.live.insert(connection.socket_cookie, live);
        if keep { Judgement::Keep } else { Judgement::Cut }
    }

    /// Judges a connection that nobody has answered yet: what let it knock may hold no more.
    pub fn knocks(
        &self,
        dataplane: &Dataplane,
        connection: &KernelConnection,
        pods: &HashMap<WorkloadUid, Arc<Pod>>,
    ) -> Judgement {
        let (source, destination) = match ends(connection, pods) {
            Ok(ends) => ends,
            Err(judgement) => return judgement,
        };
        let snapshot = dataplane.snapshot.load();
        let (outbound, inbound) = captured(connection, source, destination);
        let permits = permits(dataplane, &snapshot, outbound, inbound);
        let let_in = connection.on_path && permits.iter().all(Result::is_ok);
        if let_in { Judgement::Keep } else { Judgement::Cut }
    }

    /// Asks policy again about a connection on the table; says whether it must end.
    pub fn rejudge(&mut self, dataplane: &Dataplane, connection: &KernelConnection) -> Judgement {
        let Some(live) = self.live.get_mut(&connection.socket_cookie) else {
            return Judgement::Keep;
        };
        let gone = KernelPeer::Gone;
        if connection.source_pod == gone || connection.destination_pod == gone {
            live.failure = Some(failure::cut);
            return Judgement::Cut;
        }
        if !connection.on_path {
            live.failure = Some(off_path);
            return Judgement::Cut;
        }
        let snapshot = dataplane.snapshot.load();
        for leg in [&mut live.outbound, &mut live.inbound] {
            let Some(permit) = &leg.permit else { return Judgement::Cut };
            let policy = dataplane.options.outbound_policy;
            match rejudge::standing(permit, leg.began.as_ref(), &snapshot, policy) {
                Standing::Holds(renewed) => leg.permit = Some(renewed),
                Standing::Drains(renewed) => {
                    leg.permit = renewed.or(leg.permit.take());
                    live.drain.begin(dataplane.options.drain_timeout);
                }
                Standing::Denied(revoked) => {
                    live.revoked = Some(revoked);
                    return Judgement::Cut;
                }
            }
        }
        live.idle_timeout = live.shortest_idle_timeout();
        Judgement::Keep
    }

    /// Notes what a connection has moved so far; says whether it was idle for too long,
    /// or has drained for long enough.
    pub fn moved(&mut self, socket_cookie: u64, traffic: KernelTraffic) -> Judgement {
        let Some(live) = self.live.get_mut(&socket_cookie) else { return Judgement::Keep };
        live.note(traffic);
        if live.idle_timeout.is_some_and(|timeout| traffic.idle >= timeout) {
            live.failure = Some(idle);
            return Judgement::Cut;
        }
        if live.drain.is_over() {
            live.failure = Some(failure::drained);
            return Judgement::Cut;
        }
        Judgement::Keep
    }

    /// Takes a connection off the table and writes its access log lines.
    pub fn end(
        &mut self,
        dataplane: &Dataplane,
        connection: &KernelConnection,
        traffic: KernelTraffic,
        aborted: bool,
        pods: &HashMap<WorkloadUid, Arc<Pod>>,
    ) {
        let live = self.live.remove(&connection.socket_cookie).or_else(|| {
            // It never got established, or its first event was lost.
            let pod = |peer: &KernelPeer| match peer {
                KernelPeer::Enrolled(uid) => pods.get(uid),
                KernelPeer::Waiting | KernelPeer::Gone => None,
            };
            let (source, destination) =
                (pod(&connection.source_pod)?, pod(&connection.destination_pod)?);
            let snapshot = dataplane.snapshot.load();
            let mut live = Live::begin(dataplane, &snapshot, connection, source, destination);
            if !connection.established {
                live.failure = Some(refused);
            }
            Some(live)
        });
        let Some(mut live) = live else { return };
        live.note(traffic);
        if aborted && live.failure.is_none() && live.revoked.is_none() {
            live.failure = Some(if connection.on_path { reset } else { off_path });
        }
        live.end(dataplane);
    }

    /// Ends the rows of connections that are gone without a word: their last event was
    /// lost. `exists` tells by the client's socket.
    pub fn retain(&mut self, dataplane: &Dataplane, exists: impl Fn(u64) -> bool) {
        let gone: Vec<u64> = self.live.keys().copied().filter(|cookie| !exists(*cookie)).collect();
        for cookie in gone {
            if let Some(live) = self.live.remove(&cookie) {
                live.end(dataplane);
            }
        }
    }

    /// How many are on the table.
    pub fn len(&self) -> usize {
        self.live.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.live.is_empty()
    }
}

/// The pods that a connection is between; `Err` says what becomes of it where one is not served.
fn ends<'a>(
    connection: &KernelConnection,
    pods: &'a HashMap<WorkloadUid, Arc<Pod>>,
) -> Result<(&'a Arc<Pod>, &'a Arc<Pod>), Judgement> {
    match (&connection.source_pod, &connection.destination_pod) {
        (KernelPeer::Waiting, _) | (_, KernelPeer::Waiting) => Err(Judgement::Keep),
        (KernelPeer::Enrolled(source), KernelPeer::Enrolled(destination)) => {
            // Enrolled, but not served yet: the next look will tell.
            pods.get(source).zip(pods.get(destination)).ok_or(Judgement::Keep)
        }
        (KernelPeer::Gone, _) | (_, KernelPeer::Gone) => Err(Judgement::Cut),
    }
}

/// A connection as the two pipelines would have taken it.
fn captured(
    connection: &KernelConnection,
    source: &Arc<Pod>,
    destination: &Arc<Pod>,
) -> (CapturedOutbound, CapturedInbound) {
    let outbound = CapturedOutbound {
        pod: Arc::clone(source),
        source: connection.source,
        original_destination: connection.original_destination,
        inspected: Inspected::default(),
    };
    let inbound = CapturedInbound {
        pod: Arc::clone(destination),
        source: connection.source,
        original_destination: connection.destination,
        peer: InboundPeer::Mtls(source.workload.identity.clone()),
    };
    (outbound, inbound)
}

/// What policy says at each end.
fn permits(
    dataplane: &Dataplane,
    snapshot: &Snapshot,
    outbound: CapturedOutbound,
    inbound: CapturedInbound,
) -> [Result<Permit, policy::Revoked>; 2] {
    let policy = dataplane.options.outbound_policy;
    [
        Flow::outbound(outbound, snapshot, policy).map_err(policy::Revoked::from),
        Flow::inbound(inbound, snapshot).map_err(policy::Revoked::from),
    ]
    .map(|flow| flow.and_then(|flow| Ok(policy::authorize(flow)?)))
}

impl Live {
    fn begin(
        dataplane: &Dataplane,
        snapshot: &Snapshot,
        connection: &KernelConnection,
        source: &Arc<Pod>,
        destination: &Arc<Pod>,
    ) -> Self {
        let (outbound, inbound) = captured(connection, source, destination);
        let facts = [Facts::from(&outbound), Facts::from(&inbound)];
        let permits = permits(dataplane, snapshot, outbound, inbound);
        let mut revoked = None;
        let mut leg = |facts, permit: Result<Permit, policy::Revoked>| {
            let mut session = Session::begin_kernel_path(dataplane, facts, connection.age);
            let permit = permit.map_err(|error| revoked = Some(error)).ok();
            if let Some(permit) = &permit {
                session.permitted(permit);
                let cluster = opaque(permit).and_then(|tcp| tcp.clusters.first());
                let cluster = cluster.map(|entry| &entry.cluster);
                session.shortcut(cluster, connection.destination, &destination.workload);
                if connection.established {
                    session.count_tcp(dataplane);
                }
            }
            let began = permit.as_ref().and_then(|permit| permit.flow().terminal().cloned());
            Leg { session, permit, began }
        };
        let [outbound_facts, inbound_facts] = facts;
        let [outbound_permit, inbound_permit] = permits;
        let outbound = leg(outbound_facts, outbound_permit);
        let inbound = leg(inbound_facts, inbound_permit);
        let mut live = Self {
            outbound,
            inbound,
            idle_timeout: None,
            drain: DrainDeadline::default(),
            traffic: KernelTraffic::default(),
            failure: None,
            revoked,
        };
        live.idle_timeout = live.shortest_idle_timeout();
        live
    }

    fn shortest_idle_timeout(&self) -> Option<Duration> {
        let legs = [&self.outbound, &self.inbound];
        legs.into_iter().filter_map(|leg| opaque(leg.permit.as_ref()?)?.idle_timeout).min()
    }

    fn note(&mut self, traffic: KernelTraffic) {
        self.traffic = traffic;
        for leg in [&self.outbound, &self.inbound] {
            leg.session.guard.counters().set(traffic.received_bytes, traffic.sent_bytes);
        }
    }

    fn end(self, dataplane: &Dataplane) {
        let failures = match (self.revoked, self.failure) {
            (Some(revoked), _) => {
                let both = [revoked.clone(), revoked];
                both.map(|revoked| Some(failure::revoked(revoked)))
            }
            (None, Some(failure)) => [Some(failure()), Some(failure())],
            (None, None) => [None, None],
        };
        for (leg, failure) in [self.outbound, self.inbound].into_iter().zip(failures) {
            leg.session.end_kernel_path(dataplane, failure, &self.traffic);
        }
    }
}

fn refused() -> Failure {
    told(ResponseFlag::UpstreamConnectionFailure, "connect", "the application did not accept")
}

fn reset() -> Failure {
    told(ResponseFlag::UpstreamConnectionTermination, "reset", "reset by either side")
}

fn idle() -> Failure {
    told(ResponseFlag::StreamIdleTimeout, "idle", "idle timeout")
}

fn astray() -> Failure {
    told(
        ResponseFlag::UpstreamConnectionFailure,
        "astray",
        "cut: it did not arrive at the pod it was meant for",
    )
}

fn off_path() -> Failure {
    told(
        ResponseFlag::UpstreamConnectionTermination,
        "off_kernel_path",
        "cut: the node no longer leads packets from pod to pod",
    )
}

fn told(flag: ResponseFlag, reason: &'static str, detail: &str) -> Failure {
    Failure { flag, reason, policy: None, detail: detail.to_owned(), transport: None }
}

#[cfg(test)]
mod tests;
