//! A mesh of one connection.

mod upstreams;

use std::{
    collections::BTreeMap,
    future::Future,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderName, HeaderValue, uri::Authority};
use http_body_util::combinators::UnsyncBoxBody;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::CancellationToken;

use super::super::{
    ConnectFailure, HttpConnection, HttpOutcome, HttpServices, RequestObserver, RequestRecord,
    Spans, Upstreams, held::Held, serve_http,
};
use crate::{
    model::{
        access_log::AccessLog,
        authz::{
            Permission, Principal, Rbac, RbacAction, RbacPolicy, StringMatcher, StringPattern,
        },
        captured::{CapturedOutbound, Pod},
        cluster::{
            Balancing, CircuitBreakers, Cluster, ClusterName, Discovery, Endpoint, Health,
            LbPolicy, LoadAssignment, Tunnel, UpstreamProtocol,
        },
        filter::{ChainFilter, PerFilter},
        header_mutation::{AppendAction, HeaderAddition, HeaderMutation, HeaderMutations},
        http_options::{BODIES_OF_POD_MAX_BYTES, Http2Limits, HttpOptions},
        listener::{
            CodecType, Direction, FilterChain, FilterChainMatch, HttpConnectionManager, Listener,
            RouteSource, TerminalFilter,
        },
        retry::Attempts,
        route::{
            Clusters, DirectResponse, Domain, ForwardAction, HostRewrite, MirrorPolicy, PathMatch,
            PathRewrite, Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost,
        },
        socket::PodSockets,
        upgrade::Upgrades,
        workload::{MtlsMode, Workload, WorkloadUid},
    },
    observe::{access_log::Lines, flags::ResponseFlag, metrics::Metrics},
    policy::{Flow, OutboundPolicy, Permit, authorize, fixtures::chain_filter},
    proxy::{Origination, on_demand::OnDemand},
    route::{Balancers, Destination},
    snapshot::{Resources, SnapshotCell},
    transport::http_pool::{BoxedIo, HttpPool, HttpPoolOptions, HttpProtocol},
};

pub(super) use self::upstreams::{
    http_upstream, mirror_upstream, raw_upstream, read_head, silent_upstream,
};

pub(super) type BoxBody = UnsyncBoxBody<Bytes, io::Error>;

#[derive(Debug)]
struct NoSockets;

impl PodSockets for NoSockets {
    fn tcp(&self, _: SocketAddr) -> io::Result<socket2::Socket> {
        Err(io::Error::other("not in this test"))
    }

    fn tcp_from(&self, _: SocketAddr, _: SocketAddr) -> io::Result<socket2::Socket> {
        Err(io::Error::other("not in this test"))
    }
}

/// Dials loopback and counts.
#[derive(Default)]
pub(super) struct Dialler {
    pub(super) connections: AtomicUsize,
}

impl Upstreams for Dialler {
    fn connect<'a>(
        &'a self,
        _: &'a Permit,
        destination: &'a Destination,
        _: Option<&'a Origination>,
    ) -> BoxFuture<'a, Result<BoxedIo, ConnectFailure>> {
        Box::pin(async move {
            self.connections.fetch_add(1, Ordering::Relaxed);
            let address = destination.address();
            match TcpStream::connect(address).await {
                Ok(stream) => Ok(Box::new(stream) as BoxedIo),
                Err(error) => Err(ConnectFailure {
                    flag: ResponseFlag::UpstreamConnectionFailure,
                    message: format!("{address}: {error}"),
                    transport: None,
                }),
            }
        })
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

#[derive(Default)]
pub(super) struct Records(Mutex<Vec<RequestRecord>>);

impl RequestObserver for Records {
    fn request(&self, record: RequestRecord) {
        self.0.lock().unwrap().push(record);
    }
}

/// What a test may want otherwise.
pub(super) struct Setup {
    pub(super) upstream: SocketAddr,
    pub(super) protocol: UpstreamProtocol,
    pub(super) codec: CodecType,
    pub(super) request_headers_timeout: Option<Duration>,
    pub(super) idle_timeout: Option<Duration>,
    pub(super) stream_idle_timeout: Option<Duration>,
    pub(super) headers_kib: u32,
    /// Of routes below `/again`.
    pub(super) attempts: Attempts,
    /// After the one that judges paths, which is called as [`chain_filter`] has it.
    pub(super) filters: Vec<ChainFilter>,
    /// Of the virtual host.
    pub(super) per_filter: PerFilter,
    pub(super) circuit_breakers: CircuitBreakers,
    /// Extended CONNECT is on where there are any.
    pub(super) upgrades: Upgrades,
    pub(super) http2: Http2Limits,
    /// Whether the route for CONNECT ends it.
    pub(super) terminates_connect: bool,
    pub(super) buffer_max_bytes: u64,
    /// Of the virtual host.
    pub(super) mirrors: Vec<MirrorPolicy>,
    pub(super) access_logs: Vec<AccessLog>,
    /// The cluster `shadow`'s endpoint.
    pub(super) shadow: Option<SocketAddr>,
    /// What the endpoints of the clusters `app` and `dead` are called.
    pub(super) hostname: Option<Arc<str>>,
}

impl Setup {
    pub(super) fn new(upstream: SocketAddr) -> Self {
        Self {
            upstream,
            protocol: UpstreamProtocol::Http1,
            codec: CodecType::Auto,
            request_headers_timeout: None,
            idle_timeout: Some(Duration::from_secs(60)),
            stream_idle_timeout: Some(Duration::from_secs(60)),
            headers_kib: 60,
            attempts: Attempts::default(),
            filters: Vec::new(),
            per_filter: PerFilter::default(),
            circuit_breakers: CircuitBreakers::default(),
            upgrades: Upgrades::default(),
            http2: Http2Limits::default(),
            terminates_connect: false,
            buffer_max_bytes: HttpOptions::BUFFER_MAX_BYTES,
            mirrors: Vec::new(),
            access_logs: Vec::new(),
            shadow: None,
            hostname: None,
        }
    }

    pub(super) fn http2(upstream: SocketAddr) -> Self {
        Self { protocol: UpstreamProtocol::Http2, ..Self::new(upstream) }
    }
}

fn route(prefix: &str, action: RouteAction) -> Route {
    Route {
        headers: HeaderMutations::default(),
        on_demand: None,
        stat_prefix: None,
        tracing: None,
        per_filter: PerFilter::default(),
        name: prefix.into(),
        matches: RouteMatch::path(PathMatch::Prefix(prefix.to_owned())),
        action,
    }
}

fn to(cluster: &str) -> ForwardAction {
    ForwardAction::to(Clusters::One(ClusterName(cluster.into())))
}

fn cluster(
    name: &str,
    address: Option<SocketAddr>,
    upstream_protocol: UpstreamProtocol,
    hostname: Option<&Arc<str>>,
) -> Cluster {
    let endpoint = |address| {
        Arc::new(Endpoint {
            address,
            hostname: hostname.cloned(),
            tunnel: Tunnel::Direct,
            weight: 1,
            health: Health::Healthy,
            labels: None,
            check: None,
        })
    };
    let endpoints = address.into_iter().map(endpoint).collect();
    Cluster {
        tls: None,
        monitoring: crate::model::cluster::Monitoring::default(),
        socket_matches: Vec::new(),
        name: ClusterName(name.into()),
        discovery: Discovery::Static(Arc::new(LoadAssignment::of(endpoints))),
        lb_policy: LbPolicy::RoundRobin,
        balancing: Balancing::default(),
        table_space: None,
        connect_timeout: Duration::from_secs(2),
        upstream_protocol,
        connection_limits: Default::default(),
        circuit_breakers: Arc::default(),
    }
}

/// A route with header mutations of many kinds.
fn mutated(prefix: &str, action: RouteAction) -> Route {
    let add = |pairs: &[(&'static str, &str)]| {
        let additions = pairs.iter().map(|(name, value)| HeaderAddition {
            name: HeaderName::from_static(name),
            value: value.parse().unwrap(),
            action: AppendAction::OverwriteIfExistsOrAdd,
            keep_empty: false,
        });
        additions.collect()
    };
    let request = HeaderMutation {
        remove: vec![HeaderName::from_static("x-gone")],
        add: add(&[
            ("x-path", "%REQ(X-None?:PATH)%"),
            ("x-cut", "%REQ(:METHOD):2%"),
            ("x-cluster", "%UPSTREAM_CLUSTER%;%PROTOCOL%;%ROUTE_NAME%"),
            ("x-upstream", "[%UPSTREAM_HOST%]"),
            ("x-code", "%RESPONSE_CODE%"),
            ("x-empty", "%REQ(x-none)%"),
        ]),
    };
    let response = HeaderMutation {
        remove: vec![HeaderName::from_static("content-type")],
        add: add(&[
            ("r-seen", "%REQ(x-here)% %REQ(x-cut)%"),
            ("r-code", "%RESPONSE_CODE%;%RESPONSE_CODE_DETAILS%"),
            ("r-upstream", "%UPSTREAM_HOST%"),
            ("r-host", "%REQ(:AUTHORITY)% %UPSTREAM_HOST_NAME% %UPSTREAM_HOST_NAME_WITHOUT_PORT%"),
        ]),
    };
    let (request, response) = (Some(Arc::new(request)), Some(Arc::new(response)));
    let headers = HeaderMutations { request, response };
    Route { name: "mutated".into(), headers, ..route(prefix, action) }
}

fn resources(setup: &Setup, denied_prefix: &str) -> Resources {
    let again = |prefix, cluster| {
        let attempts = setup.attempts.clone();
        route(prefix, RouteAction::Forward(Box::new(ForwardAction { attempts, ..to(cluster) })))
    };
    let named = |prefix, cluster| {
        let action = ForwardAction {
            attempts: setup.attempts.clone(),
            host_rewrite: Some(HostRewrite::Endpoint),
            append_x_forwarded_host: true,
            ..to(cluster)
        };
        mutated(prefix, RouteAction::Forward(Box::new(action)))
    };
    let forward = |prefix, cluster| route(prefix, RouteAction::Forward(Box::new(to(cluster))));
    let routes = vec![
        route(
            "/direct",
            RouteAction::DirectResponse(DirectResponse {
                status: 418,
                body: Bytes::from_static(b"short and stout"),
            }),
        ),
        route(
            "/slow",
            RouteAction::Forward(Box::new(ForwardAction {
                timeout: Some(Duration::from_millis(300)),
                ..to("app")
            })),
        ),
        route(
            "/api/",
            RouteAction::Forward(Box::new(ForwardAction {
                path_rewrite: Some(PathRewrite::Prefix("/v1/".to_owned())),
                host_rewrite: Some(HostRewrite::Literal("internal.test".to_owned())),
                ..to("app")
            })),
        ),
        route(
            "/stream",
            RouteAction::Forward(Box::new(ForwardAction { timeout: None, ..to("app") })),
        ),
        named("/named/dead", "dead"),
        named("/named", "app"),
        again("/again/dead", "dead"),
        again("/again", "app"),
        mutated("/mutated/", RouteAction::Forward(Box::new(to("app")))),
        mutated(
            "/mutated-direct",
            RouteAction::DirectResponse(DirectResponse { status: 200, body: Bytes::new() }),
        ),
        forward("/none", "empty"),
        forward("/dead", "dead"),
        forward("/shadow", "shadow"),
        forward("/", "app"),
        forward("*", "app"),
        Route {
            matches: RouteMatch::path(PathMatch::Connect),
            ..route(
                "connect",
                RouteAction::Forward(Box::new(ForwardAction {
                    terminates_connect: setup.terminates_connect,
                    // Not for what has no end of a request.
                    timeout: Some(Duration::from_millis(100)),
                    ..to("app")
                })),
            )
        },
    ];
    let configuration = RouteConfiguration {
        name: "test".into(),
        virtual_hosts: vec![Arc::new(VirtualHost {
            name: "app".into(),
            domains: ["app.test", "app.test:443"].map(|host| Domain::Exact(host.into())).into(),
            routes,
            require_tls: None,
            headers: HeaderMutations::default(),
            per_filter: setup.per_filter.clone(),
            mirrors: setup.mirrors.clone(),
            virtual_clusters: Vec::new(),
        })],
        ..RouteConfiguration::default()
    };
    let rbac = Rbac {
        stat_prefix: String::new(),
        action: RbacAction::Deny,
        policies: vec![RbacPolicy {
            name: "no-secrets".into(),
            permissions: vec![Permission::UrlPath(StringMatcher {
                pattern: StringPattern::Prefix(denied_prefix.into()),
                ignore_case: false,
            })],
            principals: vec![Principal::Any],
        }],
    };
    let http = HttpConnectionManager {
        stat_prefix: "test".into(),
        codec: setup.codec,
        routes: RouteSource::Inline(Arc::new(configuration)),
        access_logs: Arc::new(setup.access_logs.clone().into()),
        local_reply: None,
        tracing: None,
        request_timeout: None,
        max_stream_duration: None,
        max_connection_duration: None,
        max_requests_per_connection: None,
        max_headers_count: 100,
        http_filters: std::iter::once(chain_filter(rbac)).chain(setup.filters.clone()).collect(),
        options: Arc::new(HttpOptions {
            http2: setup.http2,
            upgrades: setup.upgrades.clone(),
            extended_connect: !setup.upgrades.0.is_empty(),
            buffer_max_bytes: setup.buffer_max_bytes,
            ..HttpOptions::default()
        }),
        idle_timeout: setup.idle_timeout,
        stream_idle_timeout: setup.stream_idle_timeout,
        request_headers_timeout: setup.request_headers_timeout,
        max_request_headers_kib: setup.headers_kib,
    };
    let chain = FilterChain {
        name: "http".into(),
        matches: FilterChainMatch::default(),
        tls: None,
        filters: vec![],
        terminal: TerminalFilter::Http(Arc::new(http)),
    };
    let listener = Listener {
        name: "outbound".into(),
        direction: Direction::Outbound,
        address: "10.0.0.1:80".parse().unwrap(),
        use_original_dst: false,
        gateway: None,
        listener_filters: Default::default(),
        filter_chains: vec![Arc::new(chain)],
        default_filter_chain: None,
        access_logs: Arc::default(),
    };
    let name = setup.hostname.as_ref();
    Resources {
        listeners: vec![listener],
        clusters: vec![
            Cluster {
                circuit_breakers: Arc::new(setup.circuit_breakers),
                ..cluster("app", Some(setup.upstream), setup.protocol, name)
            },
            cluster("empty", None, setup.protocol, None),
            cluster("shadow", setup.shadow, setup.protocol, None),
            cluster("dead", Some("127.0.0.1:1".parse().unwrap()), setup.protocol, name),
        ],
        ..Resources::default()
    }
}

/// The only one there is.
fn client_pod() -> Arc<Pod> {
    let workload = Workload {
        uid: WorkloadUid("client".into()),
        name: "client".into(),
        identity: "spiffe://cluster.local/ns/shop/sa/client".parse().unwrap(),
        addresses: vec!["10.1.0.1".parse().unwrap()],
        labels: BTreeMap::new(),
        mtls: MtlsMode::Strict,
    };
    Arc::new(Pod { workload, sockets: Arc::new(NoSockets) })
}

/// The engine, ready for connections of one client pod.
pub(super) struct Mesh {
    setup: Setup,
    pub(super) services: HttpServices,
    pub(super) dialler: Arc<Dialler>,
    pub(super) records: Arc<Records>,
    pub(super) drain: CancellationToken,
}

impl Mesh {
    pub(super) fn new(setup: Setup) -> Self {
        let snapshots = Arc::<SnapshotCell>::default();
        snapshots.replace(resources(&setup, "/secret"), "test".into()).unwrap();
        let dialler = Arc::<Dialler>::default();
        let on_demand = OnDemand::new(None, Arc::clone(&snapshots), Metrics::new());
        let services = HttpServices {
            snapshots,
            on_demand: Arc::new(on_demand),
            lines: Lines::off(),
            spans: Spans::off(),
            clusters: Metrics::new().clusters(),
            routes: Metrics::new().routes(),
            grpc: Metrics::new().grpc(),
            last_request: Duration::from_secs(3),
            balancers: Arc::new(Balancers::default()),
            outbound_policy: OutboundPolicy::AllowAny,
            upstreams: Arc::clone(&dialler) as Arc<dyn Upstreams>,
            breakers: Arc::default(),
            filters: Arc::default(),
            node_cluster: HeaderValue::from_static("mesh"),
            pool: Arc::new(HttpPool::new(HttpPoolOptions::default())),
        };
        let (records, drain) = (Arc::default(), CancellationToken::new());
        Self { setup, services, dialler, records, drain }
    }

    /// Another configuration: denies `prefix` instead.
    pub(super) fn deny(&self, prefix: &str) {
        let resources = resources(&self.setup, prefix);
        self.services.snapshots.replace(resources, "test".into()).unwrap();
    }

    /// Another configuration: without the listener, the clusters stay.
    pub(super) fn remove_listener(&self) {
        let resources = Resources { listeners: vec![], ..resources(&self.setup, "/secret") };
        self.services.snapshots.replace(resources, "test".into()).unwrap();
    }

    /// What a client pod's new connection leads to.
    pub(super) async fn connect(&self) -> Client {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (served, source) = listener.accept().await.unwrap();
        client.set_nodelay(true).unwrap();
        served.set_nodelay(true).unwrap();
        let captured = CapturedOutbound {
            pod: client_pod(),
            source,
            original_destination: "10.0.0.1:80".parse().unwrap(),
            inspected: Default::default(),
        };
        let snapshot = self.services.snapshots.load();
        let flow = Flow::outbound(captured, &snapshot, OutboundPolicy::AllowAny).unwrap();
        let permit = authorize(flow).unwrap();
        let Some(TerminalFilter::Http(http)) = permit.flow().terminal() else { panic!("not HTTP") };
        let http = Arc::clone(http);
        let observer = Arc::clone(&self.records) as Arc<dyn RequestObserver>;
        let connection = HttpConnection::new(
            permit,
            snapshot.version,
            http,
            self.services.clone(),
            observer,
            self.drain.clone(),
        );
        let served = tokio::spawn(serve_http(served, Arc::new(connection)));
        Client { stream: client, served }
    }

    pub(super) fn connections(&self) -> usize {
        self.dialler.connections.load(Ordering::Relaxed)
    }

    /// The `n`th record, once it is there.
    pub(super) async fn record(&self, n: usize) -> RequestRecord {
        eventually(|| self.records.0.lock().unwrap().get(n).cloned()).await
    }

    /// Takes all that the pod's requests may keep of their bodies but for so many bytes.
    pub(super) fn leave(&self, bytes: usize) -> Held {
        let share = self.services.filters.bodies(&client_pod());
        share.take(BODIES_OF_POD_MAX_BYTES - bytes).unwrap()
    }

    pub(super) fn recorded(&self) -> usize {
        self.records.0.lock().unwrap().len()
    }
}

/// Asks until there is an answer; at most 5 s.
pub(super) async fn eventually<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    for _ in 0..500 {
        if let Some(answer) = ask() {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within 5 s");
}

pub(super) struct Client {
    pub(super) stream: TcpStream,
    pub(super) served: tokio::task::JoinHandle<HttpOutcome>,
}

impl Client {
    pub(super) async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Reads one response with `Content-Length`, or none at all: head and body.
    pub(super) async fn response(&mut self) -> String {
        let mut read = Vec::new();
        loop {
            let text = String::from_utf8_lossy(&read).into_owned();
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let length = head
                    .lines()
                    .find_map(|line| line.strip_prefix("content-length: "))
                    .map_or(0, |length| length.parse::<usize>().unwrap());
                let chunked = head.contains("transfer-encoding: chunked");
                if head.starts_with("HTTP/1.1 100")
                    || !chunked && body.len() >= length
                    || chunked && body.ends_with("\r\n\r\n")
                {
                    return text;
                }
            }
            let byte = within(self.stream.read_u8()).await;
            match byte {
                Ok(byte) => read.push(byte),
                Err(error) => panic!("{error} after {text:?}"),
            }
        }
    }

    /// Everything until the connection ends, and whether it was reset.
    pub(super) async fn rest(&mut self) -> (String, bool) {
        let mut read = Vec::new();
        let end = within(self.stream.read_to_end(&mut read)).await;
        (String::from_utf8_lossy(&read).into_owned(), end.is_err())
    }

    /// Sends one request and reads its response.
    pub(super) async fn ask(&mut self, request: &str) -> String {
        self.write(request).await;
        self.response().await
    }

    pub(super) async fn http2(self) -> hyper::client::conn::http2::SendRequest<BoxBody> {
        let (sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            .handshake(TokioIo::new(self.stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        sender
    }
}

pub(super) async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(10), future).await.expect("within 10 s")
}
