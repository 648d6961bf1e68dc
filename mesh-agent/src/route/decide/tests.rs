use super::*;
use crate::{
    model::{
        cluster::{Health, LbPolicy, LoadAssignment},
        listener::{Direction, FilterChainMatch},
    },
    policy::{
        authorize_request,
        fixtures::{
            addr, chain, cluster, cluster_name, identity, listener, manager, outbound_permit,
            permit_for, request, snapshot, tcp_proxy, weighted,
        },
    },
};

fn endpoint(address: &str, tunnel: Tunnel) -> Arc<Endpoint> {
    Arc::new(Endpoint { address: addr(address), tunnel, weight: 1, health: Health::Healthy })
}

fn of(name: &str, endpoints: Vec<Arc<Endpoint>>) -> Cluster {
    let discovery = Discovery::Static(Arc::new(LoadAssignment { endpoints }));
    cluster(name, LbPolicy::RoundRobin, discovery)
}

fn world() -> Arc<Snapshot> {
    let hbone =
        Tunnel::Hbone { identity: identity("server"), workload: Some(WorkloadUid("uid-9".into())) };
    snapshot(
        vec![],
        vec![
            of("direct", vec![endpoint("10.9.0.1:80", Tunnel::Direct)]),
            of("hbone", vec![endpoint("10.9.0.2:80", hbone)]),
            of("empty", vec![]),
        ],
    )
}

fn decide_for(clusters: &[(&str, u32)], draw: u32) -> Result<Destination, NoDestination> {
    let snapshot = world();
    let permit = permit_for(Some("client"));
    let balancers = Balancers::default();
    decide_tcp(&permit, &tcp_proxy(clusters), &snapshot, &balancers, &mut |_| draw)
}

#[test]
fn a_destination_says_how_to_get_there() {
    let direct = decide_for(&[("direct", 1)], 0).unwrap();
    assert!(matches!(direct.target(), Target::Direct { .. }));
    assert_eq!(direct.address(), addr("10.9.0.1:80"));
    assert_eq!(direct.cluster(), Some(&cluster_name("direct")));
    assert_eq!(direct.connect_timeout(), Duration::from_secs(1));
    assert_eq!(direct.upstream_protocol(), UpstreamProtocol::Http1);

    let hbone = decide_for(&[("hbone", 1)], 0).unwrap();
    let Target::Hbone { identity: expected, workload, endpoint } = hbone.target() else {
        panic!("{hbone:?}");
    };
    assert_eq!(expected, &identity("server"));
    assert_eq!(workload, &Some(WorkloadUid("uid-9".into())));
    assert_eq!((endpoint.address, hbone.address()), (addr("10.9.0.2:80"), addr("10.9.0.2:80")));

    let application = decide_for(&[("app", 1)], 0).unwrap();
    let address = addr("10.1.0.2:8080");
    assert_eq!(application.target(), &Target::OriginalDestination { address });
    assert_eq!(application.address(), address);
    assert_eq!(application.cluster(), Some(&cluster_name("app")));
}

#[test]
fn no_destination_names_the_cluster_and_envoys_flag() {
    for (clusters, flag, text) in [
        (&[("gone", 1)][..], "NC", "there is no cluster `gone`"),
        (&[("empty", 1)], "UH", "cluster `empty` has no healthy endpoint"),
        (&[], "NR", "no cluster has a weight"),
        (&[("direct", 0)], "NR", "no cluster has a weight"),
        (&[("direct", 0), ("hbone", 0)], "NR", "no cluster has a weight"),
    ] {
        let error = decide_for(clusters, 0).unwrap_err();
        assert_eq!((error.flag(), &*error.to_string()), (flag, text), "{clusters:?}");
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
    let destination = decide_passthrough(&permit).unwrap();
    assert_eq!(destination.address(), addr("192.0.2.1:443"));
    assert_eq!(destination.cluster(), None);
    assert_eq!(destination.connect_timeout(), Duration::from_secs(5));

    let chains = vec![chain("web", FilterChainMatch::default())];
    let judged =
        snapshot(vec![listener(Direction::Outbound, "192.0.2.1:443", chains, None)], vec![]);
    let error = decide_passthrough(&outbound_permit("192.0.2.1:443", &judged)).unwrap_err();
    assert!(matches!(error, NoDestination::NotPassthrough { .. }), "{error}");
}

#[test]
fn a_request_in_flight_counts_until_its_destination_goes() {
    let snapshot = world();
    let permit = permit_for(Some("client"));
    let head = request("GET", "/", &[]);
    let request = authorize_request(&permit, &manager(vec![]), &head).unwrap();
    let action = ForwardAction {
        clusters: weighted(&[("direct", 1)]),
        timeout: None,
        prefix_rewrite: None,
        host_rewrite: None,
    };
    let balancers = Balancers::default();
    let active = || balancers.active(&cluster_name("direct"), addr("10.9.0.1:80"));
    let decide =
        || decide_request(&request, &permit, &action, &snapshot, &balancers, &mut |_| 0).unwrap();
    assert_eq!(active(), 0);
    let (first, second) = (decide(), decide());
    assert_eq!(active(), 2);
    drop(first);
    assert_eq!(active(), 1);
    let load = second.into_load();
    assert_eq!(active(), 1);
    drop(load);
    assert_eq!(active(), 0);
}
