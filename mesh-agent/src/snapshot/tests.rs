use std::{net::SocketAddr, time::Duration};

use super::*;
use crate::model::{
    cluster::{
        Balancing, Cluster, ClusterName, Discovery, Endpoint, Health, LbPolicy, LoadAssignment,
        Tunnel, UpstreamProtocol,
    },
    identity::Identity,
    listener::{
        Direction, FilterChain, FilterChainMatch, Listener, TcpProxy, TerminalFilter,
        WeightedCluster,
    },
};

fn cluster(name: &str) -> Cluster {
    Cluster {
        tls: None,
        monitoring: crate::model::cluster::Monitoring::default(),
        socket_matches: Vec::new(),
        name: ClusterName(name.into()),
        discovery: Discovery::Eds { service_name: name.into() },
        lb_policy: LbPolicy::RoundRobin,
        balancing: Balancing::default(),
        table_space: None,
        connect_timeout: Duration::from_secs(5),
        upstream_protocol: UpstreamProtocol::Http1,
        connection_limits: Default::default(),
        circuit_breakers: Arc::default(),
    }
}

fn listener(name: &str, port: u16, to: &str) -> Listener {
    let cluster = WeightedCluster { cluster: ClusterName(to.into()), weight: 1 };
    let tcp = TcpProxy {
        stat_prefix: String::new(),
        clusters: vec![cluster],
        idle_timeout: None,
        access_logs: Arc::default(),
    };
    let chain = FilterChain {
        name: "".into(),
        matches: FilterChainMatch::default(),
        tls: None,
        filters: Vec::new(),
        terminal: TerminalFilter::TcpProxy(Arc::new(tcp)),
    };
    Listener {
        name: name.into(),
        direction: Direction::Outbound,
        address: ([10, 0, 0, 1], port).into(),
        use_original_dst: false,
        gateway: None,
        listener_filters: Default::default(),
        filter_chains: vec![Arc::new(chain)],
        default_filter_chain: None,
        access_logs: Arc::default(),
    }
}

fn two_services() -> SnapshotCell {
    let cell = SnapshotCell::default();
    let resources = Resources {
        listeners: vec![listener("a", 1, "a"), listener("b", 2, "b")],
        clusters: vec![cluster("a"), cluster("b")],
        assignments: ["a", "b"].map(|n| (n.into(), LoadAssignment::default())).into(),
        ..Resources::default()
    };
    assert_eq!(cell.replace(resources, "1".into()).unwrap(), 1);
    cell
}

fn updated(updated: Resources) -> Changes {
    Changes { updated, removed: Removed::default() }
}

#[test]
fn a_change_of_endpoints_copies_one_table() {
    let cell = two_services();
    let before = cell.load();
    let assignments = vec![("a".into(), LoadAssignment::default())];
    let changes = updated(Resources { assignments, ..Resources::default() });
    assert_eq!(cell.update(changes, "2".into()).unwrap(), 2);
    let after = cell.load();
    assert!(Arc::ptr_eq(&before.clusters, &after.clusters));
    assert!(Arc::ptr_eq(&before.routes, &after.routes));
    assert!(Arc::ptr_eq(&before.listeners, &after.listeners));
    assert!(!Arc::ptr_eq(&before.assignments["a"], &after.assignments["a"]));
    assert!(Arc::ptr_eq(&before.assignments["b"], &after.assignments["b"]));
}

fn told(rejected: &[RejectedResource]) -> Vec<String> {
    rejected.iter().map(ToString::to_string).collect()
}

#[test]
fn what_is_named_can_not_be_removed_and_nothing_changes() {
    let cell = two_services();
    let removed = Removed { assignments: vec!["a".into()], ..Removed::default() };
    let changes = Changes { updated: Resources::default(), removed };
    let rejected = cell.update(changes, "2".into()).unwrap_err();
    let reason = "clusters[a].eds_cluster_config: there is no ClusterLoadAssignment `a`";
    assert_eq!(told(&rejected), [reason]);
    assert_eq!(cell.load().version, 1);
}

#[test]
fn a_cluster_may_go_while_something_leads_to_it_but_a_whole_configuration_has_them_all() {
    let cell = two_services();
    let gone = ClusterName("b".into());
    let removed = Removed { clusters: vec![gone.clone()], ..Removed::default() };
    cell.update(Changes { updated: Resources::default(), removed }, "2".into()).unwrap();
    let snapshot = cell.load();
    assert!(snapshot.cluster(&gone).is_none());
    assert_eq!(snapshot.listeners.len(), 2);

    let dangling = Resources { listeners: vec![listener("b", 2, "b")], ..Resources::default() };
    let reason = "listeners[b].filter_chains[0].filters[0]: there is no cluster `b`";
    assert_eq!(told(&check(dangling).unwrap_err()), [reason]);
}

#[test]
fn a_service_goes_as_a_whole_and_its_address_is_free_again() {
    let cell = two_services();
    let changes = Changes {
        updated: Resources { listeners: vec![listener("c", 1, "b")], ..Resources::default() },
        removed: Removed {
            listeners: vec!["a".into()],
            clusters: vec![ClusterName("a".into())],
            assignments: vec!["a".into()],
            ..Removed::default()
        },
    };
    cell.update(changes, "2".into()).unwrap();
    let snapshot = cell.load();
    let found = snapshot.listeners.select(Direction::Outbound, ([10, 0, 0, 1], 1).into());
    assert_eq!(&*found.unwrap().name, "c");
    assert_eq!((snapshot.clusters.size(), snapshot.assignments.size()), (1, 1));
}

#[test]
fn two_listeners_can_not_have_one_address_but_can_swap_theirs() {
    let cell = two_services();
    let clash =
        updated(Resources { listeners: vec![listener("c", 1, "a")], ..Resources::default() });
    let rejected = cell.update(clash, "2".into()).unwrap_err();
    assert!(rejected[0].reason.contains("taken by listener `a`"), "{rejected:?}");
    let listeners = vec![listener("a", 2, "a"), listener("b", 1, "b")];
    cell.update(updated(Resources { listeners, ..Resources::default() }), "3".into()).unwrap();
    let snapshot = cell.load();
    let found = snapshot.listeners.select(Direction::Outbound, ([10, 0, 0, 1], 1).into());
    assert_eq!(&*found.unwrap().name, "b");
}

#[test]
fn one_listener_of_a_family_may_be_for_what_no_other_is_for() {
    let cell = two_services();
    let anywhere = |name: &str, address: &str| Listener {
        address: address.parse().unwrap(),
        use_original_dst: true,
        ..listener(name, 0, "a")
    };
    let give = |name: &str, address: &str| {
        let listeners = vec![anywhere(name, address)];
        updated(Resources { listeners, ..Resources::default() })
    };
    let selected = |direction, destination: &str| {
        let snapshot = cell.load();
        let listener = snapshot.listeners.select(direction, destination.parse().unwrap());
        listener.map(|listener| listener.name.to_string())
    };
    let outbound = |destination: &str| selected(Direction::Outbound, destination);
    assert_eq!(outbound("192.0.2.1:443"), None);
    cell.update(give("virtual", "0.0.0.0:15001"), "2".into()).unwrap();
    for destination in ["192.0.2.1:443", "10.0.0.1:3", "192.0.2.1:15001"] {
        assert_eq!(outbound(destination).as_deref(), Some("virtual"), "{destination}");
    }
    assert_eq!(outbound("10.0.0.1:2").as_deref(), Some("b"));
    assert_eq!(outbound("[2001:db8::1]:443"), None);
    assert_eq!(selected(Direction::Inbound, "192.0.2.1:443"), None);

    let second = cell.update(give("another", "0.0.0.0:15002"), "3".into()).unwrap_err();
    let reason = "0.0.0.0:15002, or use_original_dst, is already taken by listener `virtual`";
    assert!(second[0].reason.contains(reason), "{second:?}");
    cell.update(give("v6", "[::]:15001"), "3".into()).unwrap();
    assert_eq!(outbound("[2001:db8::1]:443").as_deref(), Some("v6"));

    // Told otherwise, or gone: nothing of it is left behind.
    let plain = Listener { use_original_dst: false, ..anywhere("virtual", "0.0.0.0:15001") };
    let plain = Resources { listeners: vec![plain], ..Resources::default() };
    cell.update(updated(plain), "4".into()).unwrap();
    assert_eq!(outbound("192.0.2.1:443"), None);
    assert_eq!(outbound("192.0.2.1:15001").as_deref(), Some("virtual"));
    let removed = Removed { listeners: vec!["v6".into()], ..Removed::default() };
    cell.update(Changes { removed, ..Changes::default() }, "5".into()).unwrap();
    assert_eq!(outbound("[2001:db8::1]:443"), None);
}

fn endpoint(address: &str, tunnel: Tunnel) -> Arc<Endpoint> {
    let address = address.parse().unwrap();
    Arc::new(Endpoint {
        address,
        hostname: None,
        tunnel,
        weight: 1,
        health: Health::Healthy,
        labels: None,
        check: None,
    })
}

#[test]
fn endpoints_are_found_where_they_are_now_and_not_where_they_were() {
    let identity: Identity = "spiffe://cluster.local/ns/a/sa/b".parse().unwrap();
    let hbone = || Tunnel::Hbone { identity: identity.clone(), workload: None };
    let [here, there] = ["10.1.0.1:80", "10.1.0.2:80"];
    let [here_at, there_at] = [here, there].map(|at| at.parse::<SocketAddr>().unwrap());
    let cell = two_services();
    let give = |name: &str, endpoints| {
        let assignments = vec![(name.into(), LoadAssignment::of(endpoints))];
        cell.update(updated(Resources { assignments, ..Resources::default() }), "".into()).unwrap();
    };
    give("a", vec![endpoint(here, hbone())]);
    give("b", vec![endpoint(here, Tunnel::Direct), endpoint(there, Tunnel::Direct)]);
    let before = cell.load();
    assert!(before.workloads.has(here_at) && before.workloads.has(there_at));
    assert!(before.workloads.has_tunnel(here_at.ip(), &identity));
    assert!(before.workloads.tunnel(there_at).is_none());

    give("a", vec![endpoint(there, hbone())]);
    let workloads = &cell.load().workloads;
    assert!(workloads.has(here_at), "it is still the other service's");
    assert!(!workloads.has_tunnel(here_at.ip(), &identity));
    assert!(workloads.tunnel(there_at).is_some());
    assert!(before.workloads.tunnel(there_at).is_none(), "a version does not change");

    // With its endpoints in itself, and then without any.
    let inline = Arc::new(LoadAssignment::of(vec![endpoint("10.1.0.3:80", hbone())]));
    let discovery = Discovery::Static(inline);
    let clusters = vec![Cluster { discovery, ..cluster("b") }];
    let removed = Removed { assignments: vec!["b".into()], ..Removed::default() };
    let changes = Changes { updated: Resources { clusters, ..Resources::default() }, removed };
    cell.update(changes, "".into()).unwrap();
    let workloads = &cell.load().workloads;
    assert!(!workloads.has(here_at) && workloads.has(([10, 1, 0, 3], 80).into()));
    let clusters = vec![ClusterName("b".into())];
    let removed = Removed { clusters, ..Removed::default() };
    cell.update(Changes { removed, ..Changes::default() }, "".into()).unwrap();
    assert!(!cell.load().workloads.has(([10, 1, 0, 3], 80).into()));
}
