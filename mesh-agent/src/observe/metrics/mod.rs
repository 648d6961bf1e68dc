//! Prometheus metrics: Istio's names where they exist, our own under `mesh_`.

mod cluster_states;
mod clusters;
mod exposition;
mod grpc;
mod labels;
mod routes;
mod spans;
mod table;
mod traffic;
mod xds;

use std::{
    fmt,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    encoding::text,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

pub use self::{
    cluster_states::{BreakerState, ClusterStates, EJECTION_REASONS, EndpointStates},
    clusters::{AttemptFailure, ClusterMetrics, OfCluster, OpenConnection},
    exposition::Exposition,
    grpc::{GrpcCall, GrpcMethod, GrpcMetrics},
    labels::{PeerLabels, Reporter, RequestProtocol, TrafficLabels},
    routes::{OfRoute, RouteKey, RouteMetrics, RouteOrCluster},
    spans::SpanCounters,
    traffic::{HttpMetrics, Observed, TcpMetrics},
    xds::{XdsStreams, XdsType},
};
use self::{
    labels::{
        ByAccount, ByCategory, ByCheck, ByDirection, ByIdentity, ByMap, ByOrigin, ByReason,
        ByResult, ByShadow, ByVerdict, ByVersion,
    },
    traffic::{Families, Handles, MAX_LABEL_SETS},
};
use super::connections::Connections;
use crate::model::{budget::Budget, identity::Identity, listener::Direction, splice::SelfTest};

/// Every metric of the agent. Cheap to clone: clones count into the same series.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    families: Families,
    tcp: Handles<TcpMetrics>,
    http: Handles<HttpMetrics>,
    own: Own,
}

/// The families under `mesh_`.
#[derive(Default)]
struct Own {
    captured: Family<ByDirection, Counter>,
    denied: Family<ByReason, Counter>,
    shadow: Family<ByShadow, Counter>,
    origin_shadow: Family<ByOrigin, Counter>,
    drop_overloads: Family<ByCategory, Counter>,
    handshake_failures: Family<ByReason, Counter>,
    open_connections: Family<ByDirection, Gauge>,
    configs: Family<ByResult, Counter>,
    snapshot_version: Gauge,
    certificate_expiry: Family<ByIdentity, Gauge>,
    rotation_failures: Family<ByIdentity, Counter>,
    pods: Gauge,
    verdicts: Family<ByVerdict, Counter>,
    hbone_connections: Gauge,
    hbone_streams: Gauge,
    kernel_path_services: Gauge,
    kernel_path_left_out: Gauge,
    kernel_path_connections: Gauge,
    kernel_path_cut: Counter,
    tunnels_within: Counter,
    self_test: Family<ByCheck, Gauge>,
    map_entries: Family<ByMap, Gauge>,
    map_capacity: Family<ByMap, Gauge>,
    account_used: Family<ByAccount, Gauge>,
    account_limit: Family<ByAccount, Gauge>,
    access_log_dropped: Counter,
    spans: SpanCounters,
    clusters: ClusterMetrics,
    routes: RouteMetrics,
    grpc: GrpcMetrics,
    label_sets_overflowed: Counter,
    ready: Gauge,
    xds: xds::XdsFamilies,
    build: Family<ByVersion, Gauge>,
}

impl Own {
    fn register(&self, registry: &mut Registry) {
        let r = registry;
        r.register(
            "mesh_captured_connections",
            "Connections capture handed to the agent",
            self.captured.clone(),
        );
        r.register(
            "mesh_denied",
            "Connections and requests refused, by reason",
            self.denied.clone(),
        );
        r.register(
            "mesh_rbac_shadow",
            "What shadow rules said of requests, by result",
            self.shadow.clone(),
        );
        r.register(
            "mesh_origin_shadow",
            "What `csrf` and `cors` would have said of requests' origins, by result",
            self.origin_shadow.clone(),
        );
        r.register(
            "mesh_drop_overload",
            "Connections and requests the control plane had dropped, by category",
            self.drop_overloads.clone(),
        );
        r.register(
            "mesh_handshake_failures",
            "TLS handshakes that failed, by reason",
            self.handshake_failures.clone(),
        );
        r.register("mesh_open_connections", "Live connections", self.open_connections.clone());
        r.register("mesh_config_updates", "Configurations delivered", self.configs.clone());
        r.register(
            "mesh_snapshot_version",
            "The version of the configuration in force",
            self.snapshot_version.clone(),
        );
        r.register(
            "mesh_certificate_expiry_timestamp_seconds",
            "When a workload's certificate expires, as Unix time",
            self.certificate_expiry.clone(),
        );
        r.register(
            "mesh_certificate_rotation_failures",
            "Certificates that could not be fetched",
            self.rotation_failures.clone(),
        );
        r.register("mesh_pods_enrolled", "Enrolled pods of this node", self.pods.clone());
        r.register("mesh_bpf_verdicts", "What the kernel programs decided", self.verdicts.clone());
        r.register(
            "mesh_hbone_pool_connections",
            "HTTP/2 connections to other nodes",
            self.hbone_connections.clone(),
        );
        r.register(
            "mesh_hbone_pool_streams",
            "CONNECT streams on them",
            self.hbone_streams.clone(),
        );
        r.register(
            "mesh_kernel_path_services",
            "Services the kernel takes from pod to pod, once for each pod that may dial them",
            self.kernel_path_services.clone(),
        );
        r.register(
            "mesh_kernel_path_left_out",
            "Services the agent serves because the kernel's map is full",
            self.kernel_path_left_out.clone(),
        );
        r.register(
            "mesh_kernel_path_connections",
            "Live connections on the kernel path",
            self.kernel_path_connections.clone(),
        );
        r.register(
            "mesh_kernel_path_cut",
            "Connections of the kernel path that were cut",
            self.kernel_path_cut.clone(),
        );
        r.register(
            "mesh_tunnels_within_agent",
            "Tunnels between pods of this node that did not leave the agent",
            self.tunnels_within.clone(),
        );
        r.register(
            "mesh_bpf_map_entries",
            "Entries of a map of the kernel's",
            self.map_entries.clone(),
        );
        r.register(
            "mesh_bpf_map_capacity",
            "Entries that a map of the kernel's has room for",
            self.map_capacity.clone(),
        );
        r.register(
            "mesh_memory_account_bytes",
            "Memory that all hash tables, or all regexes, of the configuration take",
            self.account_used.clone(),
        );
        r.register(
            "mesh_memory_account_limit_bytes",
            "Memory that they may take: what needs more is refused",
            self.account_limit.clone(),
        );
        r.register(
            "mesh_selftest",
            "1 where the kernel passed the check at start, 0 where it did not",
            self.self_test.clone(),
        );
        self.spans.register(r);
        self.clusters.register(r);
        self.routes.register(r);
        self.grpc.register(r);
        r.register(
            "mesh_access_log_dropped",
            "Access log lines that were not written",
            self.access_log_dropped.clone(),
        );
        r.register(
            "mesh_metrics_overflowed",
            "Look-ups of istio_* series folded into `overflow` labels",
            self.label_sets_overflowed.clone(),
        );
        self.xds.register(r);
        r.register("mesh_ready", "1 while the agent is ready", self.ready.clone());
        r.register("mesh_build_info", "The running version", self.build.clone());
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// A registry of its own with every family in it.
    pub fn new() -> Self {
        Self::with_limit(MAX_LABEL_SETS)
    }

    fn with_limit(label_sets: usize) -> Self {
        let mut registry = Registry::default();
        let families = Families::register(&mut registry);
        let own = Own::default();
        own.register(&mut registry);
        own.build.get_or_create(&ByVersion(env!("CARGO_PKG_VERSION"))).set(1);
        Self(Arc::new(Inner {
            registry,
            families,
            tcp: Handles::new(label_sets),
            http: Handles::new(label_sets),
            own,
        }))
    }

    /// The TCP series for these labels; keep it for a connection's life.
    pub fn tcp(&self, labels: &TrafficLabels) -> TcpMetrics {
        let overflowed = || _ = self.0.own.label_sets_overflowed.inc();
        self.0.tcp.of(labels, &self.0.families, overflowed)
    }

    /// The HTTP series for these labels; keep it for a connection's life, or look
    /// it up per request: that costs a hash of the labels and no allocation.
    pub fn http(&self, labels: &TrafficLabels) -> HttpMetrics {
        let overflowed = || _ = self.0.own.label_sets_overflowed.inc();
        self.0.http.of(labels, &self.0.families, overflowed)
    }

    /// Capture handed over a connection.
    pub fn captured(&self, direction: Direction) {
        self.0.own.captured.get_or_create(&ByDirection(direction.as_str())).inc();
    }

    /// A connection or request was refused; `reason` is one of a fixed few, snake_case.
    pub fn denied(&self, direction: Direction, reason: &'static str) {
        let series = ByReason { direction: direction.as_str(), reason };
        self.0.own.denied.get_or_create(&series).inc();
    }

    /// So often shadow rules would have allowed or denied a request.
    pub fn shadow(&self, direction: Direction, allowed: u32, denied: u32) {
        for (result, count) in [("allowed", allowed), ("denied", denied)] {
            if count > 0 {
                let series = ByShadow { direction: direction.as_str(), result };
                self.0.own.shadow.get_or_create(&series).inc_by(count.into());
            }
        }
    }

    /// `filter`, one of a fixed few, would have let a request's origin in, or not.
    pub fn origin_shadow(&self, direction: Direction, filter: &'static str, allowed: bool) {
        let result = if allowed { "allowed" } else { "denied" };
        let series = ByOrigin { direction: direction.as_str(), filter, result };
        self.0.own.origin_shadow.get_or_create(&series).inc();
    }

    /// A connection or request was dropped as the control plane asked; `category` is its
    /// word for why.
    pub fn drop_overload(&self, category: &str) {
        let series = ByCategory { category: category.to_owned() };
        self.0.own.drop_overloads.get_or_create(&series).inc();
    }

    /// A TLS handshake failed; `reason` is one of a fixed few, snake_case.
    pub fn handshake_failed(&self, direction: Direction, reason: &'static str) {
        let series = ByReason { direction: direction.as_str(), reason };
        self.0.own.handshake_failures.get_or_create(&series).inc();
    }

    /// A plan for the kernel path is in force.
    pub fn kernel_path_services(&self, services: usize, left_out: usize) {
        let gauge = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.0.own.kernel_path_services.set(gauge(services));
        self.0.own.kernel_path_left_out.set(gauge(left_out));
    }

    /// So many connections are on the kernel path now.
    pub fn kernel_path_connections(&self, live: usize) {
        self.0.own.kernel_path_connections.set(i64::try_from(live).unwrap_or(i64::MAX));
    }

    /// A connection of the kernel path was cut.
    pub fn kernel_path_cut(&self) {
        self.0.own.kernel_path_cut.inc();
    }

    /// A tunnel was asked for that stays within the agent.
    pub fn tunnel_within(&self) {
        self.0.own.tunnels_within.inc();
    }

    /// How full a map of the kernel's is.
    pub fn map_fill(&self, map: &'static str, entries: u32, capacity: u32) {
        self.0.own.map_entries.get_or_create(&ByMap(map)).set(entries.into());
        self.0.own.map_capacity.get_or_create(&ByMap(map)).set(capacity.into());
    }

    /// How full an account of memory is.
    pub fn memory_account(&self, account: &Budget) {
        let signed = |bytes| i64::try_from(bytes).unwrap_or(i64::MAX);
        let of = ByAccount(account.name());
        self.0.own.account_used.get_or_create(&of).set(signed(account.used_bytes()));
        self.0.own.account_limit.get_or_create(&of).set(signed(account.max_bytes()));
    }

    /// What the kernel was found to do.
    pub fn self_test(&self, test: &SelfTest) {
        for check in &test.checks {
            let series = ByCheck(check.name.as_str().into());
            let gauge = self.0.own.self_test.get_or_create_owned(&series);
            gauge.set(i64::from(check.passed));
        }
    }

    /// A configuration was applied.
    pub fn config_applied(&self, version: u64) {
        self.0.own.configs.get_or_create(&ByResult("applied")).inc();
        self.0.own.snapshot_version.set(i64::try_from(version).unwrap_or(i64::MAX));
    }

    /// A configuration was refused; the last good one stays.
    pub fn config_rejected(&self) {
        self.0.own.configs.get_or_create(&ByResult("rejected")).inc();
    }

    /// A workload has a certificate until then.
    pub fn certificate(&self, identity: &Identity, not_after: SystemTime) {
        let seconds = not_after.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let series = ByIdentity(identity.to_string().into());
        let gauge = self.0.own.certificate_expiry.get_or_create_owned(&series);
        gauge.set(i64::try_from(seconds).unwrap_or(i64::MAX));
    }

    /// A workload's certificate could not be fetched or renewed.
    pub fn rotation_failed(&self, identity: &Identity) {
        let series = ByIdentity(identity.to_string().into());
        self.0.own.rotation_failures.get_or_create(&series).inc();
    }

    /// No pod of this identity is left: its certificate's series go.
    pub fn forget_identity(&self, identity: &Identity) {
        let series = ByIdentity(identity.to_string().into());
        self.0.own.certificate_expiry.remove(&series);
        self.0.own.rotation_failures.remove(&series);
    }

    /// How many pods are enrolled.
    pub fn pods_enrolled(&self, pods: usize) {
        self.0.own.pods.set(i64::try_from(pods).unwrap_or(i64::MAX));
    }

    /// The kernel's own counters, as totals.
    pub fn bpf_verdicts(&self, totals: impl IntoIterator<Item = (impl AsRef<str>, u64)>) {
        for (verdict, total) in totals {
            let counter =
                self.0.own.verdicts.get_or_create_owned(&ByVerdict(verdict.as_ref().into()));
            counter.inner().store(total, std::sync::atomic::Ordering::Relaxed);
        }
    }

    /// The size of the HBONE pool.
    pub fn hbone_pool(&self, connections: usize, streams: usize) {
        self.0.own.hbone_connections.set(i64::try_from(connections).unwrap_or(i64::MAX));
        self.0.own.hbone_streams.set(i64::try_from(streams).unwrap_or(i64::MAX));
    }

    /// Whether the agent is ready.
    pub fn ready(&self, ready: bool) {
        self.0.own.ready.set(i64::from(ready));
    }

    /// Counts access log lines that could not be written; give it to the access log.
    pub fn access_log_dropped(&self) -> Counter {
        self.0.own.access_log_dropped.clone()
    }

    /// Counts what becomes of requests to clusters.
    pub fn clusters(&self) -> ClusterMetrics {
        self.0.own.clusters.clone()
    }

    /// Counts requests of routes and virtual clusters.
    pub fn routes(&self) -> RouteMetrics {
        self.0.own.routes.clone()
    }

    /// Counts calls of gRPC.
    pub fn grpc(&self) -> GrpcMetrics {
        self.0.own.grpc.clone()
    }

    /// Counts spans; give it to who sends them.
    pub fn spans(&self) -> SpanCounters {
        self.0.own.spans.clone()
    }

    /// The exposition in OpenMetrics text, live connections' bytes included.
    pub fn encode(&self, connections: &Connections) -> String {
        connections.settle();
        for (direction, open) in connections.by_direction() {
            let series = ByDirection(direction.as_str());
            let gauge = self.0.own.open_connections.get_or_create_owned(&series);
            gauge.set(i64::try_from(open).unwrap_or(i64::MAX));
        }
        let mut text = String::with_capacity(16 * 1024);
        if text::encode(&mut text, &self.0.registry).is_err() {
            // Writing to a String does not fail; an encoder that does is a bug to see, not to hide.
            tracing::error!("metrics could not be encoded");
            text.clear();
        }
        text
    }
}

#[cfg(test)]
mod tests;
