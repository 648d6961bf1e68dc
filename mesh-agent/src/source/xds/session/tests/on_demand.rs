//! Virtual hosts that come by themselves, and what is asked for at the first request.

use std::collections::BTreeSet;

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource};

use super::{
    messages::{VHDS, host, routes_with_vhds},
    *,
};

impl Bench {
    /// Cluster `a` behind listener `h` with routes `r`, whose hosts come by themselves;
    /// the routes wait for the first answer.
    fn with_vhds() -> Self {
        let mut bench = Self::new(Variant::Delta);
        bench.tells(CDS, "c1", &[("a", cluster("a"))], &[]);
        bench.tells(EDS, "e1", &[("a", endpoints("a", 1))], &[]);
        bench.tells(LDS, "l1", &[("h", http_listener("h", 80, "r"))], &[]);
        bench.tells(RDS, "r1", &[("r", routes_with_vhds("r"))], &[]);
        bench.drain();
        bench
    }

    fn drain(&mut self) -> Vec<DeltaDiscoveryRequest> {
        let next = || match self.session.poll_request(0, self.now)? {
            Request::Delta(request) => Some(request),
            Request::Sotw(request) => panic!("{request:?}"),
        };
        std::iter::from_fn(next).collect()
    }

    fn seeks(&mut self, names: &[(ResourceType, &str)]) -> Vec<DeltaDiscoveryRequest> {
        let keys: BTreeSet<Key> =
            names.iter().map(|(kind, name)| (*kind, (*name).into())).collect();
        self.session.want(&keys, self.now);
        self.apply();
        self.drain()
    }

    /// One virtual host, with the names it was asked for by; `None`: there is none.
    fn tells_host(&mut self, nonce: &str, name: &str, aliases: &[&str], host: Option<Any>) {
        let resource = Resource {
            name: name.to_owned(),
            aliases: aliases.iter().map(|&alias| alias.to_owned()).collect(),
            version: "1".to_owned(),
            resource: host,
            ..Resource::default()
        };
        let response = DeltaDiscoveryResponse {
            resources: vec![resource],
            type_url: VHDS.to_owned(),
            nonce: nonce.to_owned(),
            ..DeltaDiscoveryResponse::default()
        };
        self.session.on_delta(0, response, self.now);
        self.apply();
    }
}

use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;

const HOST: ResourceType = ResourceType::VirtualHost;
const CLUSTER: ResourceType = ResourceType::Cluster;

#[test]
fn routes_wait_for_the_first_word_on_their_hosts() {
    let mut bench = Bench::with_vhds();
    assert_eq!(
        bench.warming(),
        ["listeners[h] waits for routes[r]", "routes[r] waits for virtual_hosts[r]"]
    );
    // The request was for all: what it has of others says that it has none of these.
    bench.tells(VHDS, "v1", &[("other/x", host("x", "x", "a"))], &[]);
    bench.expect_in_force(&["cds/a", "eds/a:1", "lds/h", "rds/r"]);
    bench.tells(VHDS, "v2", &[("r/x", host("x", "x", "a")), ("r/y", host("y", "y", "a"))], &[]);
    bench.expect_in_force(&["cds/a", "eds/a:1", "lds/h", "rds/r+2"]);
    bench.tells(VHDS, "v3", &[], &["r/y"]);
    bench.expect_in_force(&["cds/a", "eds/a:1", "lds/h", "rds/r+1"]);
}

#[test]
fn a_domain_that_another_host_has_is_refused_by_name_until_it_is_free() {
    let mut bench = Bench::with_vhds();
    bench.tells(VHDS, "v1", &[("r/x", host("x", "x", "a")), ("r/y", host("y", "y", "a"))], &[]);
    bench.expect_in_force(&["cds/a", "eds/a:1", "lds/h", "rds/r+2"]);
    // The last good one stays.
    bench.tells(VHDS, "v2", &[("r/y", host("y", "x", "a"))], &[]);
    assert_eq!(bench.refused, ["virtual_hosts[r/y].domains: `x` is that of `r/x`"]);
    let domain = |bench: &Bench, name: &str| {
        let routes = bench.cell.load().virtual_hosts.get("r").cloned().unwrap();
        routes[name].domains[0].to_string()
    };
    assert_eq!(domain(&bench, "r/y"), "y");
    // Another one in the same response, and in other configurations.
    bench.refused.clear();
    let twins = [("r/v", host("v", "v", "a")), ("r/w", host("w", "v", "a"))];
    bench.tells(VHDS, "v3", &twins, &[]);
    assert_eq!(bench.refused, ["virtual_hosts[r/w].domains: `v` is that of `r/v`"]);
    bench.refused.clear();
    bench.tells(VHDS, "v4", &[("other/x", host("x", "x", "a"))], &[]);
    // Two trade theirs, and one takes over from one that goes.
    let traded = [("r/x", host("x", "y", "a")), ("r/y", host("y", "x", "a"))];
    bench.tells(VHDS, "v5", &traded, &[]);
    assert_eq!((domain(&bench, "r/x"), domain(&bench, "r/y")), ("y".into(), "x".into()));
    bench.tells(VHDS, "v6", &[("r/z", host("z", "v", "a"))], &["r/v"]);
    assert_eq!(domain(&bench, "r/z"), "v");
    bench.tells(VHDS, "v7", &[], &["r/z"]);
    bench.tells(VHDS, "v8", &[("r/u", host("u", "v", "a"))], &[]);
    assert_eq!(domain(&bench, "r/u"), "v");
    assert!(bench.refused.is_empty(), "{:?}", bench.refused);
}

#[test]
fn an_empty_answer_or_the_timeout_is_a_first_word_too() {
    let mut bench = Bench::with_vhds();
    bench.tells(VHDS, "v1", &[], &[]);
    bench.expect_in_force(&["cds/a", "eds/a:1", "lds/h", "rds/r"]);
    let mut bench = Bench::with_vhds();
    bench.after(Duration::from_secs(16));
    bench.expect_in_force(&["cds/a", "eds/a:1", "lds/h", "rds/r"]);
}

#[test]
fn hosts_are_asked_for_as_a_whole_and_go_and_come_with_their_configuration() {
    let mut bench = Bench::new(Variant::Delta);
    bench.tells(CDS, "c1", &[("a", cluster("a"))], &[]);
    bench.tells(EDS, "e1", &[("a", endpoints("a", 1))], &[]);
    bench.tells(LDS, "l1", &[("h", http_listener("h", 80, "r"))], &[]);
    bench.tells(RDS, "r1", &[("r", routes_with_vhds("r"))], &[]);
    let asked = bench.drain().into_iter().find(|request| request.type_url == VHDS).unwrap();
    assert!(asked.resource_names_subscribe.is_empty(), "{asked:?}");
    let hosts = [("r/x", host("x", "x", "a")), ("later/y", host("y", "y", "a"))];
    bench.tells(VHDS, "v1", &hosts, &[]);
    bench.expect_in_force(&["cds/a", "eds/a:1", "lds/h", "rds/r+1"]);
    bench.drain();
    // The same configuration, whose hosts no longer come by themselves.
    bench.tells(RDS, "r2", &[("r", routes("r", "a"))], &[]);
    bench.expect_in_force(&["cds/a", "eds/a:1", "lds/h", "rds/r"]);
    assert!(bench.cell.load().virtual_hosts.is_empty());
    // And again; and another one. The server takes their hosts for held.
    bench.tells(RDS, "r3", &[("r", routes_with_vhds("r"))], &[]);
    bench.expect_in_force(&["cds/a", "eds/a:1", "lds/h", "rds/r+1"]);
    bench.tells(LDS, "l2", &[("k", http_listener("k", 81, "later"))], &[]);
    bench.tells(RDS, "r4", &[("later", routes_with_vhds("later"))], &[]);
    let both = ["cds/a", "eds/a:1", "lds/h", "lds/k", "rds/later+1", "rds/r+1"];
    bench.expect_in_force(&both);
    let asked = bench.drain();
    let named = |r: &DeltaDiscoveryRequest| {
        r.type_url == VHDS
            && (r.resource_names_subscribe.len() + r.resource_names_unsubscribe.len() > 0)
    };
    assert!(!asked.iter().any(named), "{asked:?}");
    // What goes while nothing needs it is gone.
    bench.tells(RDS, "r5", &[("r", routes("r", "a"))], &[]);
    bench.tells(VHDS, "v2", &[], &["r/x"]);
    bench.tells(RDS, "r6", &[("r", routes_with_vhds("r"))], &[]);
    bench.expect_in_force(&["cds/a", "eds/a:1", "lds/h", "lds/k", "rds/later+1", "rds/r"]);
}

#[test]
fn a_host_is_answered_by_name_by_alias_or_by_its_absence() {
    let mut bench = Bench::with_vhds();
    bench.tells(VHDS, "v1", &[], &[]);
    bench.drain();
    let asked = bench.seeks(&[(HOST, "r/x"), (HOST, "r/y"), (HOST, "r/z"), (HOST, "r/w")]);
    assert_eq!(asked[0].resource_names_subscribe, ["r/w", "r/x", "r/y", "r/z"]);
    bench.tells_host("v2", "r/x", &[], Some(host("x", "x", "a")));
    assert_eq!(bench.answered, ["r/x"]);
    bench.tells_host("v3", "r/shared", &["r/y"], Some(host("shared", "y", "a")));
    assert_eq!(bench.answered, ["r/x", "r/y"]);
    bench.expect_in_force(&["cds/a", "eds/a:1", "lds/h", "rds/r+2"]);
    bench.tells_host("v4", "r/z", &["r/z"], None);
    bench.tells(VHDS, "v5", &[], &["r/w"]);
    assert_eq!(bench.answered, ["r/x", "r/y", "r/z", "r/w"]);
    assert!(bench.refused.is_empty(), "{:?}", bench.refused);
    // What nobody asks for any more goes; what came under another name stays with the rest.
    bench.drain();
    let asked = bench.seeks(&[]);
    assert_eq!(asked[0].resource_names_unsubscribe, ["r/w", "r/x", "r/y", "r/z"]);
    bench.expect_in_force(&["cds/a", "eds/a:1", "lds/h", "rds/r+1"]);
}

#[test]
fn a_host_does_without_a_cluster_that_is_not_there() {
    let mut bench = Bench::with_vhds();
    bench.tells(VHDS, "v1", &[("r/x", host("x", "x", "nowhere"))], &[]);
    bench.expect_in_force(&["cds/a", "eds/a:1", "lds/h", "rds/r+1"]);
}

#[test]
fn a_host_has_a_configuration_in_its_name() {
    let mut bench = Bench::with_vhds();
    bench.seeks(&[(HOST, "x")]);
    bench.tells(VHDS, "v1", &[("x", host("x", "x", "a"))], &[]);
    assert_eq!(bench.refused, ["virtual_hosts[x]: is not called `<route configuration>/<host>`"]);
}

#[test]
fn the_state_of_the_world_has_no_virtual_hosts_and_says_so() {
    let mut bench = Bench::new(Variant::Sotw);
    bench.session.on_sotw(0, sotw::response(CDS, "1", "c1", vec![]), bench.now);
    let listener = vec![http_listener("h", 80, "r")];
    bench.session.on_sotw(0, sotw::response(LDS, "1", "l1", listener), bench.now);
    bench.session.on_sotw(
        0,
        sotw::response(RDS, "1", "r1", vec![routes_with_vhds("r")]),
        bench.now,
    );
    bench.apply();
    assert_eq!(bench.refused, ["routes[r].vhds: virtual hosts come in the delta variant only"]);
}

#[test]
fn a_cluster_is_asked_for_beside_the_wildcard() {
    let mut bench = Bench::with_vhds();
    bench.tells(VHDS, "v1", &[], &[]);
    bench.drain();
    let asked = bench.seeks(&[(CLUSTER, "b"), (CLUSTER, "none")]);
    assert_eq!((asked.len(), asked[0].type_url.as_str()), (1, CDS));
    assert_eq!(asked[0].resource_names_subscribe, ["b", "none"]);
    bench.tells(CDS, "c2", &[("b", cluster("b"))], &["none"]);
    assert_eq!(bench.answered, ["none"]);
    bench.tells(EDS, "e2", &[("b", endpoints("b", 1))], &[]);
    assert_eq!(bench.answered, ["none", "b"]);
    bench.expect_in_force(&["cds/a", "cds/b", "eds/a:1", "eds/b:1", "lds/h", "rds/r"]);
    // A new stream says that it wants all, besides.
    bench.seeks(&[(CLUSTER, "b")]);
    bench.reconnect();
    let first = bench.drain().into_iter().find(|request| request.type_url == CDS).unwrap();
    assert_eq!(first.resource_names_subscribe, ["*", "b"]);
    assert_eq!(first.initial_resource_versions.len(), 2);
}

#[test]
fn the_state_of_the_world_has_no_single_clusters() {
    let mut bench = Bench::new(Variant::Sotw);
    bench.session.on_sotw(0, sotw::response(CDS, "1", "c1", vec![]), bench.now);
    bench.session.on_sotw(0, sotw::response(LDS, "1", "l1", vec![]), bench.now);
    bench.apply();
    let keys = BTreeSet::from([(CLUSTER, "b".into())]);
    bench.session.want(&keys, bench.now);
    bench.apply();
    assert_eq!(bench.answered, ["b"]);
    while let Some(Request::Sotw(request)) = bench.session.poll_request(0, bench.now) {
        assert!(request.resource_names.is_empty(), "{request:?}");
    }
}
