//! Scopes and their routes (SRDS).

use std::collections::BTreeSet;

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};

use super::{
    messages::{SRDS, scope, scope_on_demand, scope_with_routes, scoped_listener},
    *,
};

const ROUTES: ResourceType = ResourceType::Routes;

impl Bench {
    /// Cluster `a`, and listener `h`, which waits for scopes.
    fn with_scopes() -> Self {
        let mut bench = Self::new(Variant::Delta);
        bench.tells(CDS, "c1", &[("a", cluster("a"))], &[]);
        bench.tells(EDS, "e1", &[("a", endpoints("a", 1))], &[]);
        bench.tells(LDS, "l1", &[("h", scoped_listener("h", 80))], &[]);
        bench
    }

    /// The same with `x` by key `1` and routes `r`, in force.
    fn with_one_scope() -> Self {
        let mut bench = Self::with_scopes();
        bench.tells(SRDS, "s1", &[("x", scope("x", "1", "r"))], &[]);
        bench.tells(RDS, "r1", &[("r", routes("r", "a"))], &[]);
        bench.expect_in_force(&["cds/a", "eds/a:1", "lds/h", "rds/r", "srds/x=1"]);
        bench.requests();
        bench
    }

    fn requests(&mut self) -> Vec<DeltaDiscoveryRequest> {
        let next = || match self.session.poll_request(0, self.now)? {
            Request::Delta(request) => Some(request),
            Request::Sotw(request) => panic!("{request:?}"),
        };
        std::iter::from_fn(next).collect()
    }

    fn asks(&mut self, url: &str) -> DeltaDiscoveryRequest {
        let requests = self.requests();
        let found = requests.iter().find(|request| request.type_url == url).cloned();
        found.unwrap_or_else(|| panic!("{requests:?}"))
    }

    fn world(&mut self, url: &str, version: &str, resources: Vec<Any>) {
        let response = sotw::response(url, version, version, resources);
        self.session.on_sotw(0, response, self.now);
        self.apply();
    }

    fn last_said(&mut self, url: &str) -> Option<DiscoveryRequest> {
        let next = || match self.session.poll_request(0, self.now)? {
            Request::Sotw(request) => Some(request),
            Request::Delta(request) => panic!("{request:?}"),
        };
        std::iter::from_fn(next).filter(|request| request.type_url == url).last()
    }
}

#[test]
fn a_listener_waits_for_the_scopes_and_they_for_their_routes() {
    let mut bench = Bench::with_scopes();
    assert_eq!(bench.warming(), ["listeners[h] waits for scoped_routes[*]"]);
    let asked = bench.asks(SRDS);
    assert!(asked.resource_names_subscribe.is_empty(), "as a whole: {asked:?}");
    let scopes = [
        ("x", scope("x", "1", "r")),
        ("y", scope_with_routes("y", "2", "a")),
        ("z", scope_on_demand("z", "3", "later")),
    ];
    bench.tells(SRDS, "s1", &scopes, &[]);
    bench.expect_in_force(&[]);
    assert_eq!(
        bench.warming(),
        ["listeners[h] waits for scoped_routes[*]", "scoped_routes[x] waits for routes[r]"]
    );
    assert_eq!(bench.asks(RDS).resource_names_subscribe, ["r"]);
    bench.tells(RDS, "r1", &[("r", routes("r", "a"))], &[]);
    bench.expect_in_force(&[
        "cds/a", "eds/a:1", "lds/h", "rds/r", "srds/x=1", "srds/y=2", "srds/z=3",
    ]);
    assert_eq!(bench.updates, 1);
}

#[test]
fn an_empty_answer_or_the_timeout_is_a_first_word_on_scopes_too() {
    let mut bench = Bench::with_scopes();
    bench.tells(SRDS, "s1", &[], &[]);
    bench.expect_in_force(&["cds/a", "eds/a:1", "lds/h"]);
    let mut bench = Bench::with_scopes();
    bench.after(Duration::from_secs(16));
    bench.expect_in_force(&["cds/a", "eds/a:1", "lds/h"]);
}

#[test]
fn scopes_are_not_asked_for_unless_a_listener_takes_them() {
    let mut bench = Bench::new(Variant::Delta);
    bench.tells(CDS, "c1", &[], &[]);
    bench.tells(LDS, "l1", &[], &[]);
    assert!(bench.requests().iter().all(|request| request.type_url != SRDS));
    bench.tells(SRDS, "s1", &[("x", scope("x", "1", "r"))], &[]);
    bench.expect_in_force(&[]);
    // And no longer than that.
    let mut bench = Bench::with_one_scope();
    bench.tells(LDS, "l2", &[], &["h"]);
    bench.expect_in_force(&["cds/a", "eds/a:1"]);
    assert_eq!(bench.asks(SRDS).resource_names_unsubscribe, ["*"]);
    bench.tells(LDS, "l3", &[("h", scoped_listener("h", 80))], &[]);
    assert_eq!(bench.asks(SRDS).resource_names_subscribe, ["*"]);
    assert_eq!(bench.warming(), ["listeners[h] waits for scoped_routes[*]"]);
}

#[test]
fn a_new_version_of_a_scope_waits_for_its_routes_and_the_old_ones_stay_until_then() {
    let mut bench = Bench::with_one_scope();
    bench.tells(SRDS, "s2", &[("x", scope("x", "9", "q"))], &[]);
    bench.expect_in_force(&["cds/a", "eds/a:1", "lds/h", "rds/r", "srds/x=1"]);
    bench.tells(RDS, "r2", &[("q", routes("q", "a"))], &[]);
    bench.expect_in_force(&["cds/a", "eds/a:1", "lds/h", "rds/q", "srds/x=9"]);
    assert_eq!(bench.asks(RDS).resource_names_unsubscribe, ["r"]);
    bench.tells(SRDS, "s3", &[], &["x"]);
    bench.expect_in_force(&["cds/a", "eds/a:1", "lds/h"]);
}

#[test]
fn two_scopes_can_not_have_one_key_but_can_swap_theirs() {
    let mut bench = Bench::with_one_scope();
    bench.tells(SRDS, "s2", &[("y", scope("y", "1", "r"))], &[]);
    assert_eq!(bench.refused, ["scoped_routes[y].key: is that of scope `x`"]);
    let nack = bench.asks(SRDS).error_detail.unwrap();
    assert_eq!(nack.message, "scoped_routes[y].key: is that of scope `x`");
    bench.expect_in_force(&["cds/a", "eds/a:1", "lds/h", "rds/r", "srds/x=1"]);
    bench.tells(SRDS, "s3", &[("y", scope("y", "2", "r"))], &[]);
    let swapped = [("x", scope("x", "2", "r")), ("y", scope("y", "1", "r"))];
    bench.tells(SRDS, "s4", &swapped, &[]);
    bench.expect_in_force(&["cds/a", "eds/a:1", "lds/h", "rds/r", "srds/x=2", "srds/y=1"]);
    // The key of one that goes in the same response is free.
    bench.tells(SRDS, "s5", &[("z", scope("z", "2", "r"))], &["x"]);
    bench.expect_in_force(&["cds/a", "eds/a:1", "lds/h", "rds/r", "srds/y=1", "srds/z=2"]);
    assert_eq!(bench.refused.len(), 1, "{:?}", bench.refused);
}

#[test]
fn a_key_that_a_bad_new_version_keeps_is_waited_for_and_holds_up_no_listener() {
    let mut bench = Bench::with_one_scope();
    // `y` is judged before `x`, whose good version keeps the key.
    let bad = messages::with_unknown_field(scope("x", "2", "r"));
    bench.tells(SRDS, "s2", &[("y", scope("y", "1", "r")), ("x", bad)], &[]);
    bench.expect_in_force(&["cds/a", "eds/a:1", "lds/h", "rds/r", "srds/x=1"]);
    assert_eq!(bench.warming(), ["scoped_routes[y] waits for its key, which another scope has"]);
    bench.tells(LDS, "l2", &[("g", scoped_listener("g", 81))], &[]);
    bench.expect_in_force(&["cds/a", "eds/a:1", "lds/g", "lds/h", "rds/r", "srds/x=1"]);
    bench.tells(SRDS, "s3", &[("x", scope("x", "2", "r"))], &[]);
    bench.expect_in_force(&["cds/a", "eds/a:1", "lds/g", "lds/h", "rds/r", "srds/x=2", "srds/y=1"]);
}

#[test]
fn routes_on_demand_are_asked_for_by_the_first_request_and_answered() {
    let mut bench = Bench::with_scopes();
    let scopes = [("x", scope_on_demand("x", "1", "r")), ("y", scope_on_demand("y", "2", "no"))];
    bench.tells(SRDS, "s1", &scopes, &[]);
    bench.expect_in_force(&["cds/a", "eds/a:1", "lds/h", "srds/x=1", "srds/y=2"]);
    assert!(bench.requests().iter().all(|request| request.type_url != RDS));
    let keys = |names: &[&str]| -> BTreeSet<Key> {
        names.iter().map(|name| (ROUTES, (*name).into())).collect()
    };
    bench.session.want(&keys(&["r", "no"]), bench.now);
    assert_eq!(bench.asks(RDS).resource_names_subscribe, ["no", "r"]);
    bench.tells(RDS, "r1", &[("r", routes("r", "a"))], &["no"]);
    assert_eq!(bench.answered, ["no", "r"]);
    // What there is none of is not made up.
    bench.expect_in_force(&["cds/a", "eds/a:1", "lds/h", "rds/r", "srds/x=1", "srds/y=2"]);
    bench.session.want(&keys(&[]), bench.now);
    bench.expect_in_force(&["cds/a", "eds/a:1", "lds/h", "srds/x=1", "srds/y=2"]);
    assert_eq!(bench.asks(RDS).resource_names_unsubscribe, ["no", "r"]);
}

#[test]
fn a_scope_with_routes_of_its_own_does_without_a_cluster_that_is_not_there() {
    let mut bench = Bench::with_scopes();
    bench.tells(SRDS, "s1", &[("x", scope_with_routes("x", "1", "nowhere"))], &[]);
    bench.expect_in_force(&["cds/a", "eds/a:1", "lds/h", "srds/x=1"]);
}

#[test]
fn in_the_state_of_the_world_absence_removes_and_no_names_are_said() {
    let mut bench = Bench::new(Variant::Sotw);
    bench.world(CDS, "c1", vec![cluster("a")]);
    bench.world(EDS, "e1", vec![endpoints("a", 1)]);
    assert_eq!(bench.last_said(SRDS), None);
    bench.world(LDS, "l1", vec![scoped_listener("h", 80)]);
    let asked = bench.last_said(SRDS).unwrap();
    assert!(asked.resource_names.is_empty() && asked.response_nonce.is_empty(), "{asked:?}");
    bench.world(SRDS, "s1", vec![scope("x", "1", "r"), scope("y", "2", "r")]);
    bench.world(RDS, "r1", vec![routes("r", "a")]);
    bench.expect_in_force(&["cds/a", "eds/a:1", "lds/h", "rds/r", "srds/x=1", "srds/y=2"]);
    let ack = bench.last_said(SRDS).unwrap();
    assert_eq!((ack.version_info.as_str(), ack.resource_names.len()), ("s1", 0));
    // `z` takes the key of one that is no more.
    bench.world(SRDS, "s2", vec![scope("x", "1", "r"), scope("z", "2", "r")]);
    bench.expect_in_force(&["cds/a", "eds/a:1", "lds/h", "rds/r", "srds/x=1", "srds/z=2"]);
    bench.world(SRDS, "s3", vec![scope("x", "1", "r"), scope("y", "1", "r")]);
    assert_eq!(bench.refused, ["scoped_routes[y].key: is that of scope `x`"]);
    bench.expect_in_force(&["cds/a", "eds/a:1", "lds/h", "rds/r", "srds/x=1", "srds/z=2"]);
    assert_eq!(bench.last_said(SRDS).unwrap().version_info, "s2");
    // Nobody takes them: what came stays while the stream lasts, and goes with the next.
    bench.world(LDS, "l2", vec![]);
    bench.reconnect();
    bench.expect_in_force(&["cds/a", "eds/a:1"]);
    assert_eq!(bench.last_said(SRDS), None);
}
