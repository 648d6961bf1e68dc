//! A client's bytes through a whole connection, for fuzzing.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderValue, uri::Authority};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use super::{
    ConnectFailure, HttpConnection, HttpServices, RequestObserver, RequestRecord, Spans,
    UpstreamPool, Upstreams, serve_http,
};
use crate::{
    codec::detect::HTTP2_PREFACE,
    model::{
        captured::{CapturedOutbound, Pod},
        header_mutation::HeaderMutations,
        http_options::HttpOptions,
        listener::{
            CodecType, Direction, FilterChain, FilterChainMatch, HttpConnectionManager, Listener,
            RouteSource, TerminalFilter,
        },
        route::{
            DirectResponse, Domain, PathMatch, Route, RouteAction, RouteConfiguration, RouteMatch,
            VirtualHost,
        },
        socket::PodSockets,
        workload::{MtlsMode, Workload, WorkloadUid},
    },
    observe::{access_log::Lines, flags::ResponseFlag, metrics::Metrics},
    policy::{Flow, OutboundPolicy, authorize},
    proxy::{Origination, on_demand::OnDemand},
    route::{Balancers, Destination},
    snapshot::{Resources, SnapshotCell},
    transport::http_pool::{BoxedIo, HttpPoolOptions, HttpProtocol},
};

const SERVICE: &str = "10.0.0.1:80";
/// More than it takes to say anything.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug)]
struct Nowhere;

impl PodSockets for Nowhere {
    fn tcp(&self, _: SocketAddr) -> io::Result<socket2::Socket> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn tcp_from(&self, _: SocketAddr, _: SocketAddr) -> io::Result<socket2::Socket> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl Upstreams for Nowhere {
    fn connect<'a>(
        &'a self,
        _: &'a crate::policy::Permit,
        _: &'a Destination,
        _: Option<&'a Origination>,
    ) -> BoxFuture<'a, Result<BoxedIo, ConnectFailure>> {
        let flag = ResponseFlag::UpstreamConnectionFailure;
        let failure = ConnectFailure { flag, message: "nowhere".to_owned(), transport: None };
        Box::pin(std::future::ready(Err(failure)))
    }

    fn originate(
        &self,
        _: &Destination,
        _: HttpProtocol,
        _: &Authority,
        _: &HeaderMap,
    ) -> Result<Option<Origination>, ConnectFailure> {
        Ok(None)
    }
}

#[derive(Debug, Default)]
struct Counted(AtomicU64);

impl RequestObserver for Counted {
    fn request(&self, _: RequestRecord) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Everything is answered by the agent itself.
fn listener() -> Listener {
    let body = Bytes::from_static(b"short and stout");
    let route = Route {
        name: "all".into(),
        headers: HeaderMutations::default(),
        on_demand: None,
        stat_prefix: None,
        tracing: None,
        per_filter: Default::default(),
        matches: RouteMatch::path(PathMatch::Prefix("/".to_owned())),
        action: RouteAction::DirectResponse(DirectResponse { status: 418, body }),
    };
    let host = VirtualHost {
        name: "all".into(),
        domains: vec![Domain::Any],
        routes: vec![route],
        require_tls: None,
        headers: HeaderMutations::default(),
        per_filter: Default::default(),
        mirrors: Vec::new(),
        virtual_clusters: Vec::new(),
    };
    let configuration = RouteConfiguration {
        name: "fuzz".into(),
        virtual_hosts: vec![Arc::new(host)],
        ..RouteConfiguration::default()
    };
    let manager = HttpConnectionManager {
        stat_prefix: "fuzz".into(),
        codec: CodecType::Auto,
        routes: RouteSource::Inline(Arc::new(configuration)),
        access_logs: Arc::default(),
        local_reply: None,
        tracing: None,
        request_timeout: None,
        max_stream_duration: None,
        max_connection_duration: None,
        max_requests_per_connection: None,
        max_headers_count: 100,
        http_filters: Vec::new(),
        options: Arc::new(HttpOptions { extended_connect: true, ..HttpOptions::default() }),
        idle_timeout: None,
        stream_idle_timeout: None,
        request_headers_timeout: None,
        max_request_headers_kib: 60,
    };
    let chain = FilterChain {
        name: "http".into(),
        matches: FilterChainMatch::default(),
        tls: None,
        filters: Vec::new(),
        terminal: TerminalFilter::Http(Arc::new(manager)),
    };
    Listener {
        name: "fuzz".into(),
        direction: Direction::Outbound,
        address: SERVICE.parse().expect("an address"),
        use_original_dst: false,
        gateway: None,
        listener_filters: Default::default(),
        filter_chains: vec![Arc::new(chain)],
        default_filter_chain: None,
        access_logs: Arc::default(),
    }
}

fn services() -> HttpServices {
    let snapshots = Arc::<SnapshotCell>::default();
    let resources = Resources { listeners: vec![listener()], ..Resources::default() };
    snapshots.replace(resources, "fuzz".to_owned()).expect("a configuration");
    let metrics = Metrics::new();
    HttpServices {
        on_demand: Arc::new(OnDemand::new(None, Arc::clone(&snapshots), Metrics::new())),
        snapshots,
        lines: Lines::off(),
        spans: Spans::off(),
        clusters: metrics.clusters(),
        routes: metrics.routes(),
        grpc: metrics.grpc(),
        last_request: Duration::ZERO,
        balancers: Arc::new(Balancers::default()),
        outbound_policy: OutboundPolicy::AllowAny,
        upstreams: Arc::new(Nowhere),
        breakers: Arc::default(),
        filters: Arc::default(),
        node_cluster: HeaderValue::from_static("fuzz"),
        pool: Arc::new(UpstreamPool::new(HttpPoolOptions::default())),
    }
}

fn connection(services: &HttpServices, observer: Arc<Counted>) -> HttpConnection {
    let workload = Workload {
        uid: WorkloadUid("client".into()),
        name: "client".to_owned(),
        identity: "spiffe://cluster.local/ns/fuzz/sa/client".parse().expect("an identity"),
        addresses: Vec::new(),
        labels: Default::default(),
        mtls: MtlsMode::Strict,
    };
    let captured = CapturedOutbound {
        pod: Arc::new(Pod { workload, sockets: Arc::new(Nowhere) }),
        source: "10.0.0.2:40000".parse().expect("an address"),
        original_destination: SERVICE.parse().expect("an address"),
        inspected: Default::default(),
    };
    let snapshot = services.snapshots.load();
    let flow = Flow::outbound(captured, &snapshot, OutboundPolicy::AllowAny).expect("a listener");
    let permit = authorize(flow).expect("nothing forbids it");
    let Some(TerminalFilter::Http(http)) = permit.flow().terminal() else {
        unreachable!("it is the only chain's")
    };
    let (http, drain) = (Arc::clone(http), CancellationToken::new());
    HttpConnection::new(permit, snapshot.version, http, services.clone(), observer, drain)
}

/// Frames whose lengths are what they are: of each four bytes say kind, flags, stream and, in
/// words of four bytes, the length.
fn framed(mut data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let [kind, flags, stream, words, rest @ ..] = data {
        let (payload, left) = rest.split_at(rest.len().min(usize::from(*words) * 4));
        let length = u32::try_from(payload.len()).unwrap_or_default().to_be_bytes();
        out.extend_from_slice(&length[1..]);
        out.extend_from_slice(&[*kind, *flags, 0, 0, 0, *stream]);
        out.extend_from_slice(payload);
        data = left;
    }
    out
}

/// Has a client of HTTP/2 say these bytes: behind what it has to say first, and, unless the first
/// of them is odd, in whole frames. Every request that came has one record, and the connection
/// comes to its end.
#[doc(hidden)]
pub fn fuzz_http2(data: &[u8]) {
    static SERVICES: OnceLock<HttpServices> = OnceLock::new();
    let Some((how, bytes)) = data.split_first() else { return };
    let says = match how % 2 {
        0 => framed(bytes),
        _ => bytes.to_vec(),
    };
    let says = [HTTP2_PREFACE, b"\0\0\0\x04\0\0\0\0\0", &says].concat();
    let records = Arc::<Counted>::default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.expect("a runtime");
    let talk = async {
        let connection = connection(SERVICES.get_or_init(services), Arc::clone(&records));
        let (client, server) = tokio::io::duplex(64 << 10);
        let served = tokio::spawn(serve_http(server, Arc::new(connection)));
        let (mut read, mut write) = tokio::io::split(client);
        let reading = tokio::spawn(async move {
            let mut replies = [0; 4096];
            while matches!(read.read(&mut replies).await, Ok(1..)) {}
        });
        // It may hang up before.
        let _ = write.write_all(&says).await;
        let _ = write.shutdown().await;
        let outcome = served.await.expect("it does not panic");
        reading.abort();
        outcome
    };
    let talk = async { tokio::time::timeout(PATIENCE, talk).await };
    let outcome = runtime.block_on(talk).expect("it comes to its end");
    // What is not over yet is given up with it.
    drop(runtime);
    assert_eq!(records.0.load(Ordering::Relaxed), outcome.requests, "each has one record");
}
