use std::{io, net::SocketAddr};

use super::*;
use crate::{
    model::{
        authz::{Permission, Principal, Rbac, RbacAction, RbacPolicy},
        cluster::{Cluster, Endpoint, Health, LbPolicy, LoadAssignment},
        listener::{FilterChainMatch, TerminalFilter},
        socket::PodSockets,
        workload::{MtlsMode, Workload},
    },
    policy::fixtures::{
        addr, chain, cluster, exact, http_terminal, identity, listener, snapshot, tcp_proxy,
        with_filters,
    },
    snapshot::{Changes, Removed, Resources, SnapshotCell},
};

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

const VIP: &str = "10.96.0.1:80";

fn pod(name: &str, addresses: &[&str]) -> Arc<Pod> {
    let workload = Workload {
        uid: WorkloadUid(name.into()),
        name: name.to_owned(),
        identity: identity(name),
        addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
        labels: Default::default(),
        mtls: MtlsMode::Strict,
    };
    Arc::new(Pod { workload, sockets: Arc::new(NoSockets) })
}

/// `client` and `server`, which listens on 8080.
fn pods() -> Vec<Arc<Pod>> {
    vec![pod("client", &["10.1.0.2", "fd00::2"]), pod("server", &["10.1.0.3", "fd00::3"])]
}

fn endpoint(address: &str, expected: &Identity) -> Arc<Endpoint> {
    Arc::new(Endpoint {
        address: addr(address),
        hostname: None,
        tunnel: Tunnel::Hbone { identity: expected.clone(), workload: None },
        weight: 1,
        health: Health::Healthy,
        labels: None,
        check: None,
    })
}

fn service(endpoints: Vec<Arc<Endpoint>>) -> Cluster {
    let assignment = Arc::new(LoadAssignment::of(endpoints));
    cluster("service", LbPolicy::RoundRobin, Discovery::Static(assignment))
}

fn server() -> Cluster {
    service(vec![endpoint("10.1.0.3:8080", &identity("server"))])
}

fn to_service(address: &str) -> Listener {
    listener(Direction::Outbound, address, vec![outbound_chain()], None)
}

fn outbound_chain() -> FilterChain {
    FilterChain {
        terminal: TerminalFilter::TcpProxy(Arc::new(tcp_proxy(&[("service", 1)]))),
        ..chain("out", FilterChainMatch::default())
    }
}

fn inbound(chain: FilterChain) -> Listener {
    listener(Direction::Inbound, "10.1.0.3:8080", vec![chain], None)
}

fn rbac(action: RbacAction, principal: Principal) -> Rbac {
    let policy = RbacPolicy {
        name: "p".into(),
        permissions: vec![Permission::Any],
        principals: vec![principal],
    };
    Rbac { stat_prefix: String::new(), action, policies: vec![policy] }
}

fn is(name: &str) -> Principal {
    Principal::Authenticated(Some(exact(&identity(name).to_string())))
}

fn planned(listeners: Vec<Listener>, cluster: Cluster, pods: &[Arc<Pod>]) -> Vec<KernelService> {
    planned_for(listeners, cluster, pods, &["client", "server", "twin"])
}

/// Where only those have certificates.
fn planned_for(
    listeners: Vec<Listener>,
    cluster: Cluster,
    pods: &[Arc<Pod>],
    proven: &[&str],
) -> Vec<KernelService> {
    let proven = proven.iter().map(|name| identity(name)).collect();
    let (mut services, snapshot) = (Services::default(), snapshot(listeners, vec![cluster]));
    plan(&mut services, &snapshot, pods, &proven, OutboundPolicy::AllowAny).services
}

#[test]
fn a_neighbour_that_may_be_reached_with_nothing_on_the_way_is_in_the_plan() {
    let plain = || chain("in", FilterChainMatch::default());
    let allowed = with_filters(plain(), vec![rbac(RbacAction::Allow, is("client"))]);
    for listeners in [
        vec![to_service(VIP)],
        vec![to_service(VIP), inbound(plain())],
        vec![to_service(VIP), inbound(allowed)],
    ] {
        let services = planned(listeners, server(), &pods());
        let [service] = &services[..] else { panic!("{services:?}") };
        assert_eq!(service.source, WorkloadUid("client".into()));
        assert_eq!(service.address, addr(VIP));
        let [backend] = &service.backends[..] else { panic!("{service:?}") };
        assert_eq!(backend.workload, WorkloadUid("server".into()));
        assert_eq!((backend.address, backend.weight), (addr("10.1.0.3:8080"), 1));
    }
}

#[test]
fn a_service_that_waits_for_a_word_of_its_client_is_not_in_the_plan() {
    let waiting = |http_inspector: bool| {
        let mut listener = to_service(VIP);
        listener.listener_filters.http_inspector = http_inspector;
        planned(vec![listener], server(), &pods())
    };
    assert_eq!((waiting(false).len(), waiting(true).len()), (1, 0));
}

#[test]
fn endpoints_and_services_that_come_and_go_are_followed() {
    let cell = SnapshotCell::default();
    let eds = Discovery::Eds { service_name: "web".into() };
    let web = |endpoints| ("web".into(), LoadAssignment::of(endpoints));
    let near = || web(vec![endpoint("10.1.0.3:8080", &identity("server"))]);
    let far = web(vec![endpoint("10.9.0.9:8080", &identity("server"))]);
    let changed = |updated: Resources| Changes { updated, ..Changes::default() };
    let assignments =
        |assignment| Resources { assignments: vec![assignment], ..Resources::default() };
    let mut services = Services::default();
    let proven = ["client", "server"].map(identity).into();
    let mut planned_after = |changes: Changes| {
        cell.update(changes, "test".into()).unwrap();
        plan(&mut services, &cell.load(), &pods(), &proven, OutboundPolicy::AllowAny).services.len()
    };
    let all = Resources {
        listeners: vec![to_service(VIP)],
        clusters: vec![cluster("service", LbPolicy::RoundRobin, eds)],
        ..assignments(far.clone())
    };
    assert_eq!(planned_after(changed(all)), 0);
    assert_eq!(planned_after(changed(assignments(near()))), 1, "its endpoint has come here");
    assert_eq!(planned_after(changed(assignments(far))), 0, "and gone");
    let fixed = Resources { clusters: vec![server()], ..Resources::default() };
    assert_eq!(planned_after(changed(fixed)), 1, "its cluster has endpoints of its own");
    let gone = Removed { listeners: vec![to_service(VIP).name], ..Removed::default() };
    assert_eq!(planned_after(Changes { removed: gone, ..Changes::default() }), 0);
}

#[test]
fn any_doubt_is_left_to_the_agent() {
    let plain = || chain("in", FilterChainMatch::default());
    let http = || FilterChain { terminal: http_terminal(Vec::new()), ..plain() };
    let by_port = || FilterChain {
        matches: FilterChainMatch { source_ports: vec![1], ..Default::default() },
        ..plain()
    };
    let denying = || with_filters(plain(), vec![rbac(RbacAction::Deny, is("client"))]);
    let others = || with_filters(plain(), vec![rbac(RbacAction::Allow, is("other"))]);
    let wildcard = || to_service("0.0.0.0:80");
    let impatient = || {
        let mut tcp = tcp_proxy(&[("service", 1)]);
        tcp.idle_timeout = Some(Duration::from_secs(1));
        FilterChain { terminal: TerminalFilter::TcpProxy(Arc::new(tcp)), ..plain() }
    };
    let split = || FilterChain {
        terminal: TerminalFilter::TcpProxy(Arc::new(tcp_proxy(&[("service", 1), ("app", 1)]))),
        ..plain()
    };
    let out = |chain| listener(Direction::Outbound, VIP, vec![chain], None);
    for (what, listeners) in [
        ("an HTTP service", vec![out(http())]),
        ("HTTP inbound", vec![to_service(VIP), inbound(http())]),
        (
            "outbound by source port",
            vec![listener(Direction::Outbound, VIP, vec![by_port()], Some(outbound_chain()))],
        ),
        (
            "inbound by source port",
            vec![
                to_service(VIP),
                listener(Direction::Inbound, "10.1.0.3:8080", vec![by_port()], Some(plain())),
            ],
        ),
        ("denied inbound", vec![to_service(VIP), inbound(denying())]),
        ("not allowed inbound", vec![to_service(VIP), inbound(others())]),
        (
            "denied outbound",
            vec![out(with_filters(outbound_chain(), vec![rbac(RbacAction::Deny, is("client"))]))],
        ),
        ("a listener for every address", vec![wildcard()]),
        ("a short idle timeout", vec![out(impatient())]),
        ("two clusters", vec![out(split())]),
        ("to the original destination", vec![out(plain())]),
        ("another family", vec![to_service("[fd00:96::1]:80")]),
    ] {
        assert_eq!(planned(listeners, server(), &pods()), [], "{what}");
    }
    let server = identity("server");
    let plaintext =
        Endpoint { tunnel: Tunnel::Direct, ..(*endpoint("10.1.0.3:8080", &server)).clone() };
    for (what, endpoints) in [
        (
            "an endpoint elsewhere",
            vec![endpoint("10.1.0.3:8080", &server), endpoint("10.9.0.3:8080", &server)],
        ),
        ("another identity expected", vec![endpoint("10.1.0.3:8080", &identity("other"))]),
        ("plaintext", vec![Arc::new(plaintext)]),
        ("the agent's own port", vec![endpoint("10.1.0.3:15008", &server)]),
        ("the pod itself", vec![endpoint("10.1.0.2:8080", &identity("client"))]),
        ("none", Vec::new()),
        (
            "too many",
            (0..17).map(|i| endpoint(&format!("10.1.0.3:{}", 8000 + i), &server)).collect(),
        ),
    ] {
        let services = planned(vec![to_service(VIP)], service(endpoints), &pods());
        let of_client: Vec<_> = services.iter().filter(|s| *s.source.0 == *"client").collect();
        assert!(of_client.is_empty(), "{what}: {of_client:?}");
    }
    let mut twins = pods();
    twins.push(pod("twin", &["10.1.0.3"]));
    let services = planned(vec![to_service(VIP)], self::server(), &twins);
    assert_eq!(services, [], "two pods with one address");
}

#[test]
fn who_cannot_prove_who_he_is_neither_reaches_nor_is_reached() {
    let services =
        |proven: &[&str]| planned_for(vec![to_service(VIP)], server(), &pods(), proven).len();
    assert_eq!(services(&["client", "server"]), 1);
    assert_eq!(services(&["client"]), 0);
    assert_eq!(services(&["server"]), 0);
    // Nor is the address of one who can't free for another.
    let mut twins = pods();
    twins.push(pod("twin", &["10.1.0.3"]));
    let services = planned_for(vec![to_service(VIP)], server(), &twins, &["client", "server"]);
    assert_eq!(services, []);
}
