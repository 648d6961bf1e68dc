use super::*;
use crate::{
    model::{
        cluster::{Health, LbPolicy, LoadAssignment},
        listener::{Direction, FilterChainMatch},
        workload::MtlsMode,
    },
    policy::{
        Flow, authorize,
        fixtures::{
            addr, authorize_request, chain, cluster, cluster_name, http_terminal, identity,
            inbound, listener, manager, outbound_permit, permit_for, request, snapshot, tcp_proxy,
            weighted,
        },
    },
};

fn endpoint(address: &str, tunnel: Tunnel) -> Arc<Endpoint> {
    Arc::new(Endpoint {
        address: addr(address),
        hostname: Some("named.test".into()),
        tunnel,
        weight: 1,
        health: Health::Healthy,
        labels: None,
        check: None,
    })
}

fn of(name: &str, endpoints: Vec<Arc<Endpoint>>) -> Cluster {
    let discovery = Discovery::Static(Arc::new(LoadAssignment::of(endpoints)));
    cluster(name, LbPolicy::RoundRobin, discovery)
}

/// A snapshot whose clusters are these and which proxies the pod's port 8080 to
/// `entries`.
fn world(entries: &[(&str, u32)]) -> Arc<Snapshot> {
    let hbone =
        Tunnel::Hbone { identity: identity("server"), workload: Some(WorkloadUid("uid-9".into())) };
    let mut chain = chain("c", FilterChainMatch::default());
    chain.terminal = TerminalFilter::TcpProxy(Arc::new(tcp_proxy(entries)));
    snapshot(
        vec![listener(Direction::Inbound, "10.1.0.2:8080", vec![chain], None)],
        vec![
            of("direct", vec![endpoint("10.9.0.1:80", Tunnel::Direct)]),
            of("hbone", vec![endpoint("10.9.0.2:80", hbone)]),
            of("empty", vec![]),
        ],
    )
}

fn decide_for(entries: &[(&str, u32)]) -> Result<Destination, NoDestination> {
    decide_in(&world(entries), &world(entries))
}

/// Permitted by one snapshot, decided by another.
fn decide_in(permitting: &Snapshot, deciding: &Snapshot) -> Result<Destination, NoDestination> {
    let captured = inbound(Some("client"), MtlsMode::Strict, "10.1.0.2:8080");
    let permit = authorize(Flow::inbound(captured, permitting).unwrap()).unwrap();
    let Some(TerminalFilter::TcpProxy(proxy)) = permit.flow().terminal() else {
        panic!("no tcp_proxy: {permit:?}");
    };
    decide_tcp(&permit, proxy, deciding, &Balancers::default(), &mut |_| 0, Instant::now())
}

#[test]
fn a_destination_says_how_to_get_there() {
    let direct = decide_for(&[("direct", 1)]).unwrap();
    assert!(matches!(direct.target(), Target::Direct { .. }));
    assert_eq!(direct.address(), addr("10.9.0.1:80"));
    assert_eq!(direct.cluster(), Some(&cluster_name("direct")));
    assert_eq!(direct.connect_timeout(), Duration::from_secs(1));
    assert_eq!(direct.upstream_protocol(), UpstreamProtocol::Http1);

    let hbone = decide_for(&[("hbone", 1)]).unwrap();
    let Target::Hbone { identity: expected, workload, endpoint } = hbone.target() else {
        panic!("{hbone:?}");
    };
    assert_eq!(expected, &identity("server"));
    assert_eq!(workload, &Some(WorkloadUid("uid-9".into())));
    assert_eq!((endpoint.address, hbone.address()), (addr("10.9.0.2:80"), addr("10.9.0.2:80")));

    let application = decide_for(&[("app", 1)]).unwrap();
    let address = addr("10.1.0.2:8080");
    assert_eq!(application.target(), &Target::OriginalDestination { address });
    assert_eq!(application.address(), address);
    assert_eq!(application.cluster(), Some(&cluster_name("app")));
}

#[test]
fn no_destination_names_the_cluster_and_envoys_flag() {
    for (clusters, flag, text) in [
        (&[("empty", 1)][..], "UH", "cluster `empty` has no healthy endpoint"),
        (&[], "NR", "no cluster has a weight"),
        (&[("direct", 0)], "NR", "no cluster has a weight"),
        (&[("direct", 0), ("hbone", 0)], "NR", "no cluster has a weight"),
    ] {
        let error = decide_for(clusters).unwrap_err();
        assert_eq!((error.flag(), &*error.to_string()), (flag, text), "{clusters:?}");
    }
    let error = decide_in(&world(&[("direct", 1)]), &Snapshot::default()).unwrap_err();
    assert_eq!((error.flag(), &*error.to_string()), ("NC", "there is no cluster `direct`"));
    assert_eq!(error.cluster(), Some(&cluster_name("direct")));
}

#[test]
fn what_is_overloaded_or_stale_goes_nowhere() {
    use crate::model::cluster::DropOverload;
    let entries = &[("c", 1)];
    let with = |assignment: LoadAssignment| {
        let cluster = cluster("c", LbPolicy::RoundRobin, Discovery::Static(Arc::new(assignment)));
        let mut chain = chain("c", FilterChainMatch::default());
        chain.terminal = TerminalFilter::TcpProxy(Arc::new(tcp_proxy(entries)));
        let listener = listener(Direction::Inbound, "10.1.0.2:8080", vec![chain], None);
        let world = snapshot(vec![listener], vec![cluster]);
        decide_in(&world, &world).map(|destination| destination.address())
    };
    let good = LoadAssignment::of(vec![endpoint("10.9.0.1:80", Tunnel::Direct)]);
    let dropping = |per_million| LoadAssignment {
        drop_overloads: vec![DropOverload { category: "shed".into(), per_million }],
        ..good.clone()
    };
    // The tests' random number is always 0.
    for (per_million, flag) in [(1, "DO"), (DropOverload::ALL, "UDO")] {
        let error = with(dropping(per_million)).unwrap_err();
        let text = "cluster `c` is overloaded: dropped by category `shed`";
        assert_eq!((error.flag(), &*error.to_string()), (flag, text));
    }
    assert!(with(dropping(0)).is_ok());
    let stale_at = |at| LoadAssignment { stale_at: Some(at), ..good.clone() };
    assert_eq!(with(stale_at(Instant::now())).unwrap_err().flag(), "UH");
    assert!(with(stale_at(Instant::now() + Duration::from_secs(600))).is_ok());
}

#[test]
fn a_permit_for_something_else_dials_nothing() {
    let world = world(&[("direct", 1)]);
    let proxy = tcp_proxy(&[("direct", 1)]);
    let judged = {
        let mut chain = chain("c", FilterChainMatch::default());
        chain.terminal = http_terminal(vec![]);
        snapshot(vec![listener(Direction::Outbound, "10.9.0.9:80", vec![chain], None)], vec![])
    };
    for permit in [permit_for(None), outbound_permit("10.9.0.9:80", &judged)] {
        let balancers = Balancers::default();
        let result = decide_tcp(&permit, &proxy, &world, &balancers, &mut |_| 0, Instant::now());
        assert!(matches!(result, Err(NoDestination::NotPermitted { .. })), "{result:?}");
    }
}

#[test]
fn weighted_clusters_share_by_weight() {
    let clusters = [("a", 1), ("none", 0), ("b", 3), ("c", 6)];
    let entries = weighted(&clusters);
    let mut counts = std::collections::BTreeMap::new();
    for draw in 0..10 {
        let chosen = choose_cluster(&entries, &mut |bound| {
            assert_eq!(bound, 10);
            draw
        });
        *counts.entry(chosen.unwrap().to_string()).or_insert(0) += 1;
    }
    assert_eq!(counts, [("a", 1), ("b", 3), ("c", 6)].map(|(c, n)| (c.to_owned(), n)).into());
    // A generator that breaks its promise breaks nothing.
    assert_eq!(choose_cluster(&entries, &mut |_| u32::MAX), Some(&cluster_name("c")));
    // Weights whose sum needs more than 32 bits.
    let wide = weighted(&[("a", u32::MAX), ("b", u32::MAX)]);
    assert_eq!(choose_cluster(&wide, &mut |_| 0), Some(&cluster_name("a")));
}

#[test]
fn passthrough_goes_where_the_application_wanted_and_nowhere_with_a_chain() {
    let permit = outbound_permit("192.0.2.1:443", &Snapshot::default());
    let destination = decide_passthrough(&permit, &Snapshot::default()).unwrap();
    assert_eq!(destination.address(), addr("192.0.2.1:443"));
    assert_eq!(destination.cluster(), None);
    assert_eq!(destination.connect_timeout(), Duration::from_secs(5));

    let chains = vec![chain("web", FilterChainMatch::default())];
    let judged =
        snapshot(vec![listener(Direction::Outbound, "192.0.2.1:443", chains, None)], vec![]);
    let error =
        decide_passthrough(&outbound_permit("192.0.2.1:443", &judged), &judged).unwrap_err();
    assert!(matches!(error, NoDestination::NotPermitted { .. }), "{error}");
}

#[test]
fn passthrough_to_a_workload_of_the_mesh_is_tunnelled() {
    let world = world(&[]);
    let to = |address| {
        let destination = decide_passthrough(&outbound_permit(address, &world), &world).unwrap();
        assert_eq!((destination.address(), destination.cluster()), (addr(address), None));
        // It was asked for by its address.
        assert_eq!(destination.hostname(), None);
        matches!(destination.target(), Target::Hbone { identity: i, .. } if *i == identity("server"))
    };
    assert!(to("10.9.0.2:80"), "the endpoint itself");
    assert!(to("10.9.0.2:81"), "another port of the workload");
    assert!(!to("10.9.0.1:80"), "an endpoint in the clear");
    assert!(!to("10.9.0.3:80"), "nobody we know");
    // What arrives for the application is not sent round again.
    let application = decide_for(&[("app", 1)]).unwrap();
    assert!(matches!(application.target(), Target::OriginalDestination { .. }));
}

#[test]
fn a_request_in_flight_counts_until_its_destination_goes() {
    let snapshot = world(&[]);
    let permit = permit_for(Some("client"));
    let head = request("GET", "/", &[]);
    let request =
        authorize_request(&permit, &manager(vec![]), &Snapshot::default(), &head).unwrap();
    let balancers = Balancers::default();
    let active = || balancers.active(&cluster_name("direct"), addr("10.9.0.1:80"));
    let decide = || {
        decide_request(
            &request,
            &permit,
            Some(&cluster_name("direct")),
            Choice::default(),
            &snapshot,
            &balancers,
            &mut |_| 0,
            Instant::now(),
        )
        .unwrap()
    };
    assert_eq!(active(), 0);
    let (first, second) = (decide(), decide());
    assert_eq!(active(), 2);
    assert_eq!(first.hostname().map(|name| &**name), Some("named.test"));
    drop(first);
    assert_eq!(active(), 1);
    let load = second.into_load();
    assert_eq!(active(), 1);
    drop(load);
    assert_eq!(active(), 0);
}
