//! One connection's place in the table of live connections, in the metrics and in
//! the access log, from its capture to its end.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Dataplane, Failure, Upstream,
    connection_log::ConnectionLog,
    http::RequestRecord,
    network_filters::{self, Counted, HeldBack, Limited},
};
use crate::{
    model::{
        captured::{AcceptedByGateway, CapturedInbound, CapturedOutbound, GatewayPeer, Pod},
        cluster::ClusterName,
        identity::Identity,
        kernel_path::KernelTraffic,
        listener::Direction,
        workload::Workload,
    },
    observe::{
        ConnectionSecurity,
        access_log::{AccessRecord, KernelPathRecord},
        connections::{ConnectionGuard, ConnectionHandle, ConnectionInfo},
        metrics::{PeerLabels, RequestProtocol, TrafficLabels},
    },
    policy::{self, Denied, Flow, FlowError, Permit},
    route::{Destination, NoDestination, Target},
    snapshot::Snapshot,
    transport::http_pool::Io as _,
};

/// What is known of a connection before anything is decided.
pub(super) struct Facts {
    pub(super) pod: Arc<Pod>,
    direction: Direction,
    source: SocketAddr,
    original_destination: SocketAddr,
    /// Inbound: what mTLS proved. Outbound: the pod's own.
    source_identity: Option<Identity>,
}

impl From<&CapturedOutbound> for Facts {
    fn from(captured: &CapturedOutbound) -> Self {
        Self {
            pod: Arc::clone(&captured.pod),
            direction: Direction::Outbound,
            source: captured.source,
            original_destination: captured.original_destination,
            source_identity: Some(captured.pod.workload.identity.clone()),
        }
    }
}

impl From<&CapturedInbound> for Facts {
    fn from(captured: &CapturedInbound) -> Self {
        Self {
            pod: Arc::clone(&captured.pod),
            direction: Direction::Inbound,
            source: captured.source,
            original_destination: captured.original_destination,
            source_identity: captured.peer.identity().cloned(),
        }
    }
}

impl From<&AcceptedByGateway> for Facts {
    fn from(accepted: &AcceptedByGateway) -> Self {
        Self {
            pod: Arc::clone(&accepted.pod),
            direction: Direction::Gateway,
            source: accepted.source,
            original_destination: accepted.original_destination,
            source_identity: match &accepted.peer {
                GatewayPeer::Tls { identity, .. } => identity.clone(),
                GatewayPeer::Plaintext => None,
            },
        }
    }
}

impl Facts {
    fn security(&self) -> ConnectionSecurity {
        match (self.direction, &self.source_identity) {
            (Direction::Inbound, Some(_)) => ConnectionSecurity::MutualTls,
            // Outbound it depends on the destination, see `Session::destined`.
            _ => ConnectionSecurity::None,
        }
    }

    fn destination_identity(&self) -> Option<Identity> {
        match self.direction {
            Direction::Inbound => Some(self.pod.workload.identity.clone()),
            Direction::Outbound | Direction::Gateway => None,
        }
    }

    fn labels(&self, record: &AccessRecord, request_protocol: RequestProtocol) -> TrafficLabels {
        let workload = &self.pod.workload;
        let local = PeerLabels::of_workload(workload);
        let peer = |identity: &Option<Identity>| match identity {
            Some(identity) => PeerLabels::of_identity(identity),
            None => PeerLabels::unknown(),
        };
        let (source, destination, service) = match self.direction {
            Direction::Outbound | Direction::Gateway => {
                let cluster = record.upstream_cluster.clone();
                let service = cluster.unwrap_or_else(|| "PassthroughCluster".into());
                (local, peer(&record.destination_identity), service)
            }
            Direction::Inbound => {
                (peer(&record.source_identity), local, workload.name.as_str().into())
            }
        };
        TrafficLabels {
            reporter: self.direction.into(),
            source,
            destination,
            destination_service: service,
            request_protocol,
            connection_security_policy: record.connection_security_policy,
        }
    }
}

/// A connection that is on the table.
pub(super) struct Session {
    pub(super) guard: ConnectionGuard,
    facts: Arc<Facts>,
    record: AccessRecord,
    began: Instant,
    /// For access logs that the configuration asks for.
    logging: Option<Box<ConnectionLog>>,
    /// Where it is counted as long as it lives.
    counted: Vec<Counted>,
    held_back: Option<HeldBack>,
}

/// What all requests of a connection have in common.
pub(super) struct RequestBase {
    facts: Arc<Facts>,
    record: AccessRecord,
    connection: ConnectionHandle,
}

// === impl RequestBase ===

impl RequestBase {
    pub(super) fn direction(&self) -> Direction {
        self.facts.direction
    }

    /// Shows the connection as its latest request: where that goes, and by which policy.
    pub(super) fn show(&self, request: &RequestRecord) {
        self.connection.update(|progress| {
            progress.protocol = request.protocol;
            progress.policy = request.policy.clone().or_else(|| self.record.policy.clone());
            // A request that was refused goes nowhere: where the last one went stays.
            if let Some(upstream) = request.upstream {
                progress.upstream = Some(upstream);
                progress.cluster = request.cluster.as_ref().map(|name| Arc::clone(&name.0));
            }
            if let Some(identity) = &request.upstream_identity {
                progress.destination_identity = Some(identity.clone());
                progress.security = Some(ConnectionSecurity::MutualTls);
            }
        });
    }

    /// A record for one request; `upstream` is the identity its endpoint had to prove.
    pub(super) fn record(&self, upstream: Option<Identity>) -> AccessRecord {
        let mut record = self.record.clone();
        if let Some(identity) = upstream {
            record.destination_identity = Some(identity);
            record.connection_security_policy = ConnectionSecurity::MutualTls;
        }
        record
    }

    /// Labels of the requests that go to `cluster`.
    pub(super) fn labels(
        &self,
        cluster: Option<&ClusterName>,
        upstream: Option<&Identity>,
    ) -> TrafficLabels {
        let mut record = self.record(upstream.cloned());
        record.upstream_cluster = cluster.map(|name| Arc::clone(&name.0));
        self.facts.labels(&record, RequestProtocol::Http)
    }
}

impl Session {
    /// Counts the connection as captured and puts it on the table.
    pub(super) fn begin(dataplane: &Dataplane, facts: Facts) -> Self {
        dataplane.metrics.captured(facts.direction);
        Self::on_the_table(dataplane, facts)
    }

    /// Puts a connection on the table that the kernel took, `age` ago.
    pub(super) fn begin_kernel_path(dataplane: &Dataplane, facts: Facts, age: Duration) -> Self {
        let mut session = Self::on_the_table(dataplane, facts);
        let record = &mut session.record;
        record.connection_security_policy = ConnectionSecurity::None;
        record.start_time = record.start_time.checked_sub(age).unwrap_or(record.start_time);
        session.began = session.began.checked_sub(age).unwrap_or(session.began);
        session
    }

    /// Notes where the kernel took the connection.
    pub(super) fn shortcut(
        &mut self,
        cluster: Option<&ClusterName>,
        upstream: SocketAddr,
        destination: &Workload,
    ) {
        let cluster = cluster.map(|name| Arc::clone(&name.0));
        self.record.upstream_cluster = cluster.clone();
        self.record.upstream_host = Some(upstream);
        self.record.destination_identity = Some(destination.identity.clone());
        self.guard.update(|progress| {
            progress.cluster = cluster;
            progress.upstream = Some(upstream);
            progress.destination_identity = Some(destination.identity.clone());
            progress.security = Some(ConnectionSecurity::None);
            progress.kernel_path = true;
        });
    }

    /// As [`Session::end`], of a connection that the kernel took.
    pub(super) fn end_kernel_path(
        mut self,
        dataplane: &Dataplane,
        failure: Option<Failure>,
        traffic: &KernelTraffic,
    ) {
        let KernelTraffic { round_trip, retransmits, .. } = *traffic;
        self.record.kernel_path = Some(KernelPathRecord { round_trip, retransmits });
        self.end(dataplane, failure);
    }

    fn on_the_table(dataplane: &Dataplane, facts: Facts) -> Self {
        let guard = dataplane.connections.open(ConnectionInfo {
            direction: facts.direction,
            workload: facts.pod.workload.uid.clone(),
            source: facts.source,
            original_destination: facts.original_destination,
            source_identity: facts.source_identity.clone(),
            destination_identity: facts.destination_identity(),
            security: facts.security(),
        });
        let mut record =
            AccessRecord::new(facts.direction, facts.source, facts.original_destination);
        let workload = Some(facts.pod.workload.name.as_str().into());
        match facts.direction {
            Direction::Outbound | Direction::Gateway => record.source_workload = workload,
            Direction::Inbound => record.destination_workload = workload,
        }
        record.source_identity = facts.source_identity.clone();
        record.destination_identity = facts.destination_identity();
        record.connection_security_policy = facts.security();
        let (facts, began) = (Arc::new(facts), Instant::now());
        Self { guard, facts, record, began, logging: None, counted: Vec::new(), held_back: None }
    }

    /// For the requests of this connection.
    pub(super) fn request_base(&self) -> RequestBase {
        RequestBase {
            facts: Arc::clone(&self.facts),
            record: self.record.clone(),
            connection: self.guard.handle(),
        }
    }

    /// Judges a connection that has just begun, by the filter chain that is for it.
    ///
    /// # Errors
    /// There is none, a limit is reached, or policy denies it. Before it is closed,
    /// [`Session::hold_back`].
    pub(super) fn admit(
        &mut self,
        dataplane: &Dataplane,
        flow: Result<Flow, FlowError>,
        snapshot: &Snapshot,
    ) -> Result<Permit, Failure> {
        let flow = flow.inspect_err(|error| self.unchosen(error, snapshot))?;
        self.logging = ConnectionLog::of(&flow);
        let memory = &dataplane.http.filters;
        match network_filters::enter(memory, &flow, &snapshot.runtime, Instant::now()) {
            Ok(counted) => self.counted = counted,
            Err(limited) => {
                let Limited { failure, held_back } = *limited;
                self.held_back = held_back;
                dataplane.metrics.denied(self.facts.direction, failure.reason);
                return Err(failure);
            }
        }
        let judged = policy::authorize(flow);
        let shadow = judged.as_ref().map_or_else(Denied::shadow, Permit::shadow);
        dataplane.metrics.shadow(self.facts.direction, shadow.allowed, shadow.denied);
        let permit = judged?;
        self.permitted(&permit);
        Ok(permit)
    }

    /// Waits where a connection over a limit is not to be closed at once.
    pub(super) async fn hold_back(&mut self) {
        if let Some(held) = self.held_back.take() {
            let cut = self.guard.cancelled().cancelled();
            // Cut is closed, too.
            let _ = tokio::time::timeout(held.delay, cut).await;
        }
    }

    /// Notes why there is no filter chain.
    fn unchosen(&mut self, error: &FlowError, snapshot: &Snapshot) {
        if let FlowError::NoFilterChain { listener, .. } = error {
            let listener = snapshot.listeners.iter().find(|one| one.name == *listener);
            self.logging = listener.and_then(|listener| ConnectionLog::unmatched(listener));
        }
    }

    /// Notes the cluster that has nowhere for the connection to go.
    pub(super) fn stranded(&mut self, error: &NoDestination) {
        if !matches!(error, NoDestination::UnknownCluster { .. }) {
            let cluster = error.cluster().map(|name| Arc::clone(&name.0));
            self.record.upstream_cluster = cluster;
        }
    }

    /// Notes the connection upstream.
    pub(super) fn connected(&mut self, upstream: &Upstream) {
        if let Some(logging) = &mut self.logging {
            logging.upstream_local = upstream.local_address();
        }
    }

    /// Notes the listener, chain and policy that let the connection in.
    pub(super) fn permitted(&mut self, permit: &Permit) {
        let flow = permit.flow();
        if self.logging.is_none() {
            self.logging = ConnectionLog::of(flow);
        }
        self.record.listener = flow.listener().map(|listener| Arc::clone(&listener.name));
        self.record.filter_chain = flow.chain().map(|chain| Arc::clone(&chain.name));
        self.record.policy = permit.policy().or(permit.logged_policy()).map(Into::into);
        self.guard.set_policy(self.record.policy.clone());
    }

    /// Notes where the connection goes.
    pub(super) fn destined(&mut self, destination: &Destination) {
        let cluster = destination.cluster().map(|name| Arc::clone(&name.0));
        self.record.upstream_cluster = cluster.clone();
        self.record.upstream_host = Some(destination.address());
        if let Some(logging) = &mut self.logging {
            logging.upstream_name = destination.hostname().cloned();
        }
        if let Target::Hbone { identity, .. } = destination.target() {
            self.record.destination_identity = Some(identity.clone());
            self.record.connection_security_policy = ConnectionSecurity::MutualTls;
        }
        let (identity, security) =
            (self.record.destination_identity.clone(), self.record.connection_security_policy);
        self.guard.update(|progress| {
            progress.cluster = cluster;
            progress.upstream = Some(destination.address());
            progress.destination_identity = identity;
            progress.security = Some(security);
        });
    }

    /// Counts the connection in `istio_tcp_*` from now on.
    pub(super) fn count_tcp(&self, dataplane: &Dataplane) {
        let labels = self.facts.labels(&self.record, RequestProtocol::Tcp);
        self.guard.count_tcp(dataplane.metrics.tcp(&labels));
    }

    /// Ends the session of a connection whose requests had lines of their own.
    pub(super) fn end_of_requests(mut self, dataplane: &Dataplane) {
        if self.logging.is_some() {
            let counters = self.guard.counters();
            self.record.bytes_received = counters.received();
            self.record.bytes_sent = counters.sent();
            self.record.duration = self.began.elapsed();
            let protocol = &mut self.record.protocol;
            self.guard.update(|progress| *protocol = progress.protocol);
            self.write_lines(dataplane, None);
        }
    }

    fn write_lines(&self, dataplane: &Dataplane, failure: Option<&Failure>) {
        if let Some(logging) = &self.logging {
            let runtime = &dataplane.snapshot.load().runtime;
            logging.write(&self.record, failure, runtime, &dataplane.http.lines);
        }
    }

    /// Ends the session and writes its access log line.
    pub(super) fn end(mut self, dataplane: &Dataplane, failure: Option<Failure>) {
        let counters = self.guard.counters();
        self.record.bytes_received = counters.received();
        self.record.bytes_sent = counters.sent();
        self.record.duration = self.began.elapsed();
        if let Some(failure) = &failure {
            self.guard.add_flag(failure.flag);
            self.record.response_flags.insert(failure.flag);
        }
        self.write_lines(dataplane, failure.as_ref());
        if let Some(failure) = failure {
            if failure.is_denial() {
                dataplane.metrics.denied(self.facts.direction, failure.reason);
            }
            tracing::debug!(
                source = %self.facts.source,
                original_destination = %self.facts.original_destination,
                flag = %failure.flag,
                "{}",
                failure.detail
            );
            if let Some(policy) = failure.policy {
                self.record.policy = Some(policy.into());
            }
            self.record.denied_reason = Some(failure.detail);
        }
        dataplane.access_log.log(self.record);
    }
}
