//! Builders for this room's tests and `route`'s.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use http::request::Parts;

use super::{Chain, Denied, Flow, OutboundPolicy, Permit, RequestPermit, Step, authorize};
use crate::{
    model::{
        authz::{
            Permission, Principal, Rbac, RbacAction, RbacPolicy, StringMatcher, StringPattern,
        },
        captured::{CapturedInbound, CapturedOutbound, InboundPeer, Pod},
        cluster::{Balancing, Cluster, ClusterName, Discovery, LbPolicy, UpstreamProtocol},
        filter::{ChainFilter, HttpFilter, Levels},
        identity::Identity,
        listener::{
            CodecType, Direction, FilterChain, FilterChainMatch, GatewayTls, HttpConnectionManager,
            Listener, NetworkFilter, NetworkRbac, RouteSource, TcpProxy, TerminalFilter,
            TransportProtocol, WeightedCluster,
        },
        listener_filter::{Inspected, ListenerFilters},
        metadata::DynamicMetadata,
        route::{HeaderMatchKind, HeaderMatcher, RouteConfiguration},
        socket::PodSockets,
        tls::{DownstreamTls, TlsVersion},
        workload::{MtlsMode, Workload, WorkloadUid},
    },
    snapshot::{Resources, Snapshot, SnapshotCell},
};

/// The pod's own addresses; the server's port is 8080.
pub(crate) const POD_V4: &str = "10.1.0.2";
pub(crate) const POD_V6: &str = "fd00::2";

#[derive(Debug)]
struct NoSockets;

impl PodSockets for NoSockets {
    fn tcp(&self, _: SocketAddr) -> io::Result<socket2::Socket> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn tcp_from(&self, _: SocketAddr, _: SocketAddr) -> io::Result<socket2::Socket> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

pub(crate) fn addr(s: &str) -> SocketAddr {
    s.parse().unwrap()
}

pub(crate) fn identity(service_account: &str) -> Identity {
    Identity::new("cluster.local".parse().unwrap(), "shop", service_account).unwrap()
}

pub(crate) fn pod(mtls: MtlsMode) -> Arc<Pod> {
    let addresses = [POD_V4, POD_V6].map(|ip| ip.parse::<IpAddr>().unwrap()).to_vec();
    let workload = Workload {
        uid: WorkloadUid("uid-1".into()),
        name: "web-0".to_owned(),
        identity: identity("web"),
        addresses,
        labels: Default::default(),
        mtls,
    };
    Arc::new(Pod { workload, sockets: Arc::new(NoSockets) })
}

pub(crate) fn outbound_to(destination: &str) -> CapturedOutbound {
    CapturedOutbound {
        pod: pod(MtlsMode::Strict),
        source: addr("10.1.0.2:40000"),
        original_destination: addr(destination),
        inspected: Inspected::default(),
    }
}

pub(crate) fn inbound(peer: Option<&str>, mtls: MtlsMode, destination: &str) -> CapturedInbound {
    CapturedInbound {
        pod: pod(mtls),
        source: addr("10.2.0.7:50000"),
        original_destination: addr(destination),
        peer: match peer {
            Some(name) => InboundPeer::Mtls(identity(name)),
            None => InboundPeer::Plaintext,
        },
    }
}

pub(crate) fn string(pattern: StringPattern) -> StringMatcher {
    StringMatcher { pattern, ignore_case: false }
}

pub(crate) fn exact(s: &str) -> StringMatcher {
    string(StringPattern::Exact(s.to_owned()))
}

pub(crate) fn prefix(s: &str) -> StringMatcher {
    string(StringPattern::Prefix(s.to_owned()))
}

pub(crate) fn regex(s: &str) -> StringMatcher {
    string(StringPattern::Regex(s.parse().unwrap()))
}

pub(crate) fn header(name: &str, kind: HeaderMatchKind) -> HeaderMatcher {
    HeaderMatcher { name: name.to_owned(), kind, invert: false, treat_missing_as_empty: false }
}

pub(crate) fn header_is(name: &str, value: &str) -> HeaderMatcher {
    header(name, HeaderMatchKind::String(exact(value)))
}

pub(crate) fn is_identity(service_account: &str) -> Principal {
    Principal::Authenticated(Some(exact(&identity(service_account).to_string())))
}

pub(crate) fn policy(
    name: &str,
    permissions: Vec<Permission>,
    principals: Vec<Principal>,
) -> RbacPolicy {
    RbacPolicy { name: name.into(), permissions, principals }
}

pub(crate) fn rbac(action: RbacAction, policies: Vec<RbacPolicy>) -> Rbac {
    Rbac { stat_prefix: String::new(), action, policies }
}

/// A connection manager with these filters and no routes.
pub(crate) fn manager(filters: Vec<Rbac>) -> HttpConnectionManager {
    HttpConnectionManager {
        access_logs: std::sync::Arc::default(),
        local_reply: None,
        tracing: None,
        request_timeout: None,
        max_stream_duration: None,
        max_connection_duration: None,
        max_requests_per_connection: None,
        max_headers_count: 100,
        stat_prefix: "http".to_owned(),
        codec: CodecType::Auto,
        routes: RouteSource::Inline(Arc::new(RouteConfiguration {
            name: "routes".into(),
            ..RouteConfiguration::default()
        })),
        http_filters: filters.into_iter().map(chain_filter).collect(),
        options: Arc::default(),
        idle_timeout: None,
        stream_idle_timeout: None,
        request_headers_timeout: None,
        max_request_headers_kib: 60,
    }
}

pub(crate) fn http_terminal(filters: Vec<Rbac>) -> TerminalFilter {
    TerminalFilter::Http(Arc::new(manager(filters)))
}

pub(crate) fn weighted(entries: &[(&str, u32)]) -> Vec<WeightedCluster> {
    let entries = entries.iter();
    entries
        .map(|(c, weight)| WeightedCluster { cluster: cluster_name(c), weight: *weight })
        .collect()
}

pub(crate) fn tcp_proxy(clusters: &[(&str, u32)]) -> TcpProxy {
    TcpProxy {
        stat_prefix: "tcp".to_owned(),
        clusters: weighted(clusters),
        idle_timeout: None,
        access_logs: Arc::default(),
    }
}

pub(crate) fn chain(name: &str, matches: FilterChainMatch) -> FilterChain {
    let terminal = TerminalFilter::TcpProxy(Arc::new(tcp_proxy(&[("app", 1)])));
    FilterChain { name: name.into(), matches, tls: None, filters: Vec::new(), terminal }
}

/// The same for clients that speak TLS to a gateway.
pub(crate) fn by_tls(chain: FilterChain) -> FilterChain {
    let settings = DownstreamTls {
        min_version: TlsVersion::V1_2,
        max_version: TlsVersion::V1_3,
        cipher_suites: vec![],
        curves: vec![],
        alpn: vec![],
        // Nobody shakes hands.
        certificates: vec![],
        validation: None,
        require_client_certificate: false,
        require_sni: false,
        prefer_client_ciphers: false,
    };
    let tls = GatewayTls { settings: Arc::new(settings), timeout: None };
    FilterChain { tls: Some(tls), ..chain }
}

pub(crate) fn for_transport(transport: TransportProtocol) -> FilterChainMatch {
    FilterChainMatch { transport_protocol: Some(transport), ..FilterChainMatch::default() }
}

pub(crate) fn with_filters(mut chain: FilterChain, filters: Vec<Rbac>) -> FilterChain {
    chain.filters = filters
        .into_iter()
        .map(|rbac| NetworkFilter::Rbac(NetworkRbac { rules: Some(Arc::new(rbac)), shadow: None }))
        .collect();
    chain
}

pub(crate) fn listener(
    direction: Direction,
    address: &str,
    chains: Vec<FilterChain>,
    default: Option<FilterChain>,
) -> Listener {
    Listener {
        name: format!("{direction:?}-{address}").into(),
        direction,
        address: addr(address),
        use_original_dst: false,
        gateway: None,
        listener_filters: ListenerFilters::default(),
        filter_chains: chains.into_iter().map(Arc::new).collect(),
        default_filter_chain: default.map(Arc::new),
        access_logs: Arc::default(),
    }
}

pub(crate) fn cluster_name(name: &str) -> ClusterName {
    ClusterName(name.into())
}

pub(crate) fn cluster(name: &str, lb_policy: LbPolicy, discovery: Discovery) -> Cluster {
    Cluster {
        tls: None,
        monitoring: crate::model::cluster::Monitoring::default(),
        socket_matches: Vec::new(),
        name: cluster_name(name),
        discovery,
        lb_policy,
        balancing: Balancing::default(),
        table_space: None,
        connect_timeout: Duration::from_secs(1),
        upstream_protocol: UpstreamProtocol::Http1,
        connection_limits: Default::default(),
        circuit_breakers: Arc::default(),
    }
}

/// A snapshot of these listeners and clusters, and of `app`, the application itself.
pub(crate) fn snapshot(listeners: Vec<Listener>, mut clusters: Vec<Cluster>) -> Arc<Snapshot> {
    clusters.push(cluster("app", LbPolicy::RoundRobin, Discovery::OriginalDestination));
    let cell = SnapshotCell::default();
    let resources = Resources { listeners, clusters, ..Resources::default() };
    cell.replace(resources, "test".to_owned()).unwrap();
    cell.load()
}

/// A request from `caller` to port 8080 of the pod, let in without network policy.
pub(crate) fn permit_for(caller: Option<&str>) -> Permit {
    let captured = inbound(caller, MtlsMode::Permissive, "10.1.0.2:8080");
    authorize(Flow::inbound(captured, &Snapshot::default()).unwrap()).unwrap()
}

pub(crate) fn outbound_permit(destination: &str, snapshot: &Snapshot) -> Permit {
    let captured = outbound_to(destination);
    authorize(Flow::outbound(captured, snapshot, OutboundPolicy::AllowAny).unwrap()).unwrap()
}

pub(crate) fn request(method: &str, uri: &str, headers: &[(&str, &str)]) -> Parts {
    let mut builder = http::Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(()).unwrap().into_parts().0
}

/// A filter with these rules in its place.
pub(crate) fn chain_filter(rbac: Rbac) -> ChainFilter {
    let filter = HttpFilter::Rbac(Some(Arc::new(rbac)).into());
    ChainFilter { name: "envoy.filters.http.rbac".into(), disabled: false, filter }
}

/// Walks a chain of nothing but filters that judge, for a route that says nothing of them.
pub(crate) fn authorize_request(
    permit: &Permit,
    http: &HttpConnectionManager,
    snapshot: &Snapshot,
    head: &Parts,
) -> Result<RequestPermit, Denied> {
    let mut chain = Chain::new(permit, http, snapshot, Levels::default(), (head, None))?;
    match chain.next(head, &mut DynamicMetadata::default())? {
        Step::Passed(permit) => Ok(permit),
        Step::Run(place, _) => panic!("{} judges nothing", place.name),
    }
}
