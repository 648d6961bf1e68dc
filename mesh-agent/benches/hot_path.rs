//! What each request pays, apart from the bytes that it moves: reading its head, finding
//! its route, judging it, choosing an endpoint.
//!
//! `cargo bench -p mesh-agent` tells times; `cargo xtask instructions` counts instructions
//! by callgrind, which come out the same on a busy machine, and keeps them in
//! `instructions.md`.

use std::{fmt::Write as _, io, net::SocketAddr, sync::Arc, time::Instant};

use divan::{Bencher, black_box};
use http::{Request, request::Parts};
use mesh_agent::{
    codec::guard::{GuardLimits, HeadGuard},
    model::{
        captured::{CapturedOutbound, Pod},
        cluster::ClusterName,
        listener::{HttpConnectionManager, RouteSource, TerminalFilter},
        metadata::DynamicMetadata,
        route::RouteConfiguration,
        socket::PodSockets,
        workload::{MtlsMode, Workload, WorkloadUid},
    },
    policy::{self, Chain, Flow, OutboundPolicy, Permit, RequestPermit, Step},
    route::{self, Balancers, Choice},
    snapshot::{Snapshot, SnapshotCell},
};

fn main() {
    divan::main();
}

const ROUTES: usize = 100;
const POLICIES: usize = 20;
const ENDPOINTS: usize = 100;
const BALANCED: [&str; 5] = ["ROUND_ROBIN", "LEAST_REQUEST", "RANDOM", "RING_HASH", "MAGLEV"];

const TYPES: &str = "type.googleapis.com/envoy";

/// A service whose requests are judged by many policies, have many routes, and clusters of
/// many endpoints with one load balancer each.
fn configuration() -> String {
    let mut routes = String::new();
    for i in 0..ROUTES {
        let matched = match i % 4 {
            0 => format!("prefix: /api/v{i}/"),
            1 => format!("path: /exact/{i}"),
            2 => format!("safe_regex: {{regex: '/items/{i}-[0-9]+'}}"),
            _ => format!("prefix: /, headers: [{{name: x-tenant, string_match: {{exact: t{i}}}}}]"),
        };
        _ = writeln!(routes, "- {{match: {{{matched}}}, route: {{cluster: ROUND_ROBIN}}}}");
    }
    let policies: String = (0..POLICIES)
        .map(|i| {
            format!(
                "p{i}: {{permissions: [{{and_rules: {{rules: [{{header: {{name: ':method', \
                 string_match: {{exact: GET}}}}}}, {{url_path: {{path: {{prefix: /exact/{j}}}}}}}\
                 ]}}}}], principals: [{{authenticated: {{principal_name: {{exact: \
                 'spiffe://cluster.local/ns/shop/sa/client'}}}}}}, {{any: true}}]}}, ",
                // The last one by name, `p9`, is for the request's path.
                j = 88 + i
            )
        })
        .collect();
    let clusters: String = BALANCED
        .iter()
        .map(|policy| {
            let endpoints: String = (0..ENDPOINTS)
                .map(|i| {
                    format!(
                        "{{endpoint: {{address: {{socket_address: {{address: 10.1.0.{}, \
                         port_value: 80}}}}}}}}, ",
                        i + 1
                    )
                })
                .collect();
            format!(
                "- '@type': {TYPES}.config.cluster.v3.Cluster\n  name: {policy}\n  \
                 lb_policy: {policy}\n  load_assignment: {{cluster_name: c, endpoints: \
                 [{{lb_endpoints: [{endpoints}]}}]}}\n"
            )
        })
        .collect();
    format!(
        "resources:\n\
         - '@type': {TYPES}.config.listener.v3.Listener\n  name: web\n  \
         traffic_direction: OUTBOUND\n  \
         address: {{socket_address: {{address: 10.96.0.1, port_value: 80}}}}\n  \
         filter_chains:\n  - filters:\n    - name: hcm\n      typed_config:\n        \
         '@type': {TYPES}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager\n        \
         stat_prefix: web\n        \
         route_config: {{name: web, virtual_hosts: [{{name: web, domains: [web.test], routes: [{}]}}]}}\n        \
         http_filters:\n        \
         - {{name: rbac, typed_config: {{'@type': {TYPES}.extensions.filters.http.rbac.v3.RBAC, \
         rules: {{action: ALLOW, policies: {{{policies}}}}}}}}}\n        \
         - {{name: router, typed_config: {{'@type': {TYPES}.extensions.filters.http.router.v3.Router}}}}\n\
         {clusters}",
        routes.trim_end().trim_start_matches("- ").replace("\n- ", ", "),
    )
}

#[derive(Debug)]
struct NoSockets;

impl PodSockets for NoSockets {
    fn tcp(&self, _: SocketAddr) -> io::Result<socket2::Socket> {
        Err(io::Error::other("nothing is dialled"))
    }

    fn tcp_from(&self, _: SocketAddr, _: SocketAddr) -> io::Result<socket2::Socket> {
        Err(io::Error::other("nothing is dialled"))
    }
}

/// One connection of a pod to the service, and a request on it.
struct World {
    snapshot: Arc<Snapshot>,
    permit: Permit,
    http: Arc<HttpConnectionManager>,
    head: Parts,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("make a directory");
        std::fs::write(directory.path().join("mesh.yaml"), configuration()).expect("write");
        let delivery = mesh_agent::source::validate(directory.path()).expect("a configuration");
        let snapshots = SnapshotCell::default();
        snapshots.replace(delivery.resources, delivery.label).expect("in force");
        let snapshot = snapshots.load();
        let workload = Workload {
            uid: WorkloadUid("client".into()),
            name: "client".into(),
            identity: "spiffe://cluster.local/ns/shop/sa/client".parse().expect("an identity"),
            addresses: vec![[10, 1, 0, 1].into()],
            labels: Default::default(),
            mtls: MtlsMode::Strict,
        };
        let captured = CapturedOutbound {
            pod: Arc::new(Pod { workload, sockets: Arc::new(NoSockets) }),
            source: ([10, 1, 0, 1], 40000).into(),
            original_destination: ([10, 96, 0, 1], 80).into(),
            inspected: Default::default(),
        };
        let flow = Flow::outbound(captured, &snapshot, OutboundPolicy::AllowAny).expect("a flow");
        let permit = policy::authorize(flow).expect("a permit");
        let Some(TerminalFilter::Http(http)) = permit.flow().terminal() else { panic!("not HTTP") };
        let http = Arc::clone(http);
        let request = Request::get("/exact/97").header("host", "web.test");
        let request = request.header("user-agent", "bench").header("accept", "*/*");
        let (head, ()) = request.body(()).expect("a request").into_parts();
        Self { snapshot, permit, http, head }
    }

    fn routes(&self) -> &RouteConfiguration {
        match &self.http.routes {
            RouteSource::Inline(routes) => routes,
            _ => panic!("routes are inline"),
        }
    }

    fn judge(&self) -> RequestPermit {
        let levels = Default::default();
        let request = (&self.head, None);
        let chain = Chain::new(&self.permit, &self.http, &self.snapshot, levels, request);
        match chain.expect("one host").next(&self.head, &mut DynamicMetadata::default()) {
            Ok(Step::Passed(permit)) => permit,
            other => panic!("{other:?}"),
        }
    }
}

/// A head of a browser's size, let through to the parser.
#[divan::bench]
fn guard_a_head(bencher: Bencher) {
    const HEAD: &[u8] = b"GET /exact/97?page=2&sort=name HTTP/1.1\r\nhost: web.test\r\n\
        user-agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36\r\n\
        accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n\
        accept-language: en-US,en;q=0.5\r\naccept-encoding: gzip, deflate, br\r\n\
        cookie: session=0123456789abcdef0123456789abcdef; theme=dark\r\n\
        x-request-id: 2f1c2c6e-55cd-4c0a-8b5c-2d1c6b6a3a10\r\n\r\n";
    let limits = GuardLimits {
        head_max_bytes: 60 << 10,
        head_timeout: std::time::Duration::from_secs(10),
        idle_timeout: None,
    };
    bencher.bench(|| {
        let (guard, shared) = HeadGuard::new(tokio::io::empty(), black_box(HEAD).into(), limits);
        (guard, shared)
    });
}

/// The 98th of a hundred routes.
#[divan::bench]
fn match_a_route(bencher: Bencher) {
    let world = World::new();
    bencher.bench(|| {
        let runtime = &world.snapshot.runtime;
        route::match_route(world.routes(), black_box(&world.head), runtime, 7).expect("a route");
    });
}

/// By the last of twenty policies of two rules each.
#[divan::bench]
fn judge_by_rbac(bencher: Bencher) {
    let world = World::new();
    bencher.bench(|| black_box(world.judge()));
}

#[divan::bench]
fn choose_by_round_robin(bencher: Bencher) {
    choose_an_endpoint(bencher, "ROUND_ROBIN");
}

#[divan::bench]
fn choose_by_least_request(bencher: Bencher) {
    choose_an_endpoint(bencher, "LEAST_REQUEST");
}

#[divan::bench]
fn choose_at_random(bencher: Bencher) {
    choose_an_endpoint(bencher, "RANDOM");
}

#[divan::bench]
fn choose_by_ring_hash(bencher: Bencher) {
    choose_an_endpoint(bencher, "RING_HASH");
}

#[divan::bench]
fn choose_by_maglev(bencher: Bencher) {
    choose_an_endpoint(bencher, "MAGLEV");
}

/// One of a hundred endpoints, up to what is dialled.
fn choose_an_endpoint(bencher: Bencher, policy: &str) {
    let world = World::new();
    let (request, cluster) = (world.judge(), ClusterName(policy.into()));
    let (balancers, mut state) = (Balancers::default(), 1_u32);
    let mut random = move |n: u32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % n
    };
    let now = Instant::now();
    let mut hash = 0_u64;
    bencher.bench_local(|| {
        hash = hash.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let choice = Choice { hash: Some(hash), ..Choice::default() };
        route::decide_request(
            &request,
            &world.permit,
            Some(&cluster),
            choice,
            &world.snapshot,
            &balancers,
            &mut random,
            now,
        )
        .expect("a destination")
    });
}
