//! The delta variant, request by request.

use std::collections::HashMap;

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource,
};

use super::{
    messages::{bad_cluster, stale_endpoints},
    *,
};

impl Bench {
    pub(super) fn told(
        type_url: &str,
        nonce: &str,
        resources: &[(&str, Any)],
        removed: &[&str],
    ) -> DeltaDiscoveryResponse {
        let wrap = |(name, any): &(&str, Any)| Resource {
            name: (*name).to_owned(),
            version: format!("of-{nonce}"),
            resource: Some(any.clone()),
            ..Resource::default()
        };
        DeltaDiscoveryResponse {
            resources: resources.iter().map(wrap).collect(),
            type_url: type_url.to_owned(),
            removed_resources: removed.iter().map(|&name| name.to_owned()).collect(),
            nonce: nonce.to_owned(),
            ..DeltaDiscoveryResponse::default()
        }
    }

    pub(super) fn tells(
        &mut self,
        type_url: &str,
        nonce: &str,
        resources: &[(&str, Any)],
        removed: &[&str],
    ) {
        self.session.on_delta(0, Self::told(type_url, nonce, resources, removed), self.now);
        self.apply();
    }

    /// The next request, without its node.
    #[track_caller]
    pub(super) fn subscribes(&mut self) -> DeltaDiscoveryRequest {
        match self.session.poll_request(0, self.now) {
            Some(Request::Delta(request)) => DeltaDiscoveryRequest { node: None, ..request },
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    pub(super) fn expect_silence(&mut self) {
        assert_eq!(self.session.poll_request(0, self.now), None);
    }

    fn delta_with_one_service() -> Self {
        let mut bench = Self::new(Variant::Delta);
        assert_eq!(bench.subscribes(), request(CDS, "", &[], &[]));
        assert_eq!(bench.subscribes(), request(LDS, "", &[], &[]));
        bench.expect_silence();
        bench.tells(CDS, "c1", &[("a", cluster("a"))], &[]);
        assert_eq!(bench.subscribes(), request(CDS, "c1", &[], &[]));
        assert_eq!(bench.subscribes(), request(EDS, "", &["a"], &[]));
        bench.tells(LDS, "l1", &[("l", tcp_listener("l", 80, "a"))], &[]);
        assert_eq!(bench.subscribes(), request(LDS, "l1", &[], &[]));
        assert_eq!(bench.updates, 0);
        bench.tells(EDS, "e1", &[("a", endpoints("a", 1))], &[]);
        assert_eq!(bench.subscribes(), request(EDS, "e1", &[], &[]));
        bench.expect_silence();
        bench.expect_in_force(&["cds/a", "eds/a:1", "lds/l"]);
        bench
    }
}

fn request(url: &str, nonce: &str, more: &[&str], less: &[&str]) -> DeltaDiscoveryRequest {
    let texts = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    DeltaDiscoveryRequest {
        type_url: url.to_owned(),
        response_nonce: nonce.to_owned(),
        resource_names_subscribe: texts(more),
        resource_names_unsubscribe: texts(less),
        ..DeltaDiscoveryRequest::default()
    }
}

#[test]
fn good_resources_apply_and_the_bad_one_is_refused_by_name() {
    let mut bench = Bench::delta_with_one_service();
    bench.tells(CDS, "c2", &[("a", bad_cluster("a")), ("b", cluster("b"))], &[]);
    let nack = bench.subscribes();
    assert_eq!(nack.response_nonce, "c2");
    assert!(nack.error_detail.unwrap().message.starts_with("clusters[a].lb_policy"));
    assert_eq!(bench.subscribes(), request(EDS, "", &["b"], &[]));
    bench.tells(EDS, "e2", &[("b", endpoints("b", 1))], &[]);
    bench.expect_in_force(&["cds/a", "cds/b", "eds/a:1", "eds/b:1", "lds/l"]);
}

/// What is refused of clusters, by name, with where the first reason is.
fn refused(bench: &Bench) -> Vec<(String, String)> {
    let types = bench.session.status();
    let clusters = types.iter().find(|of| of.kind == "clusters").unwrap();
    assert_eq!(clusters.refusing, !clusters.refused.is_empty());
    let place = |reason: &String| reason.split(": ").next().unwrap_or_default().to_owned();
    clusters.refused.iter().map(|r| (r.name.to_string(), place(&r.reasons[0]))).collect()
}

#[test]
fn what_is_refused_stays_so_until_it_is_made_good_whatever_else_is_accepted() {
    let of = |name: &str| (name.to_owned(), format!("clusters[{name}].lb_policy"));
    let mut bench = Bench::delta_with_one_service();
    bench.tells(CDS, "c2", &[("a", bad_cluster("a"))], &[]);
    assert_eq!(refused(&bench), [of("a")]);
    // Another one is accepted, and a third refused, and goes.
    bench.tells(CDS, "c3", &[("b", cluster("b")), ("c", bad_cluster("c"))], &[]);
    bench.tells(CDS, "c4", &[("b", cluster("b"))], &[]);
    assert_eq!(refused(&bench), [of("a"), of("c")]);
    bench.tells(CDS, "c5", &[], &["c"]);
    assert_eq!(refused(&bench), [of("a")]);
    // The server goes back to what is in force.
    bench.tells(CDS, "c6", &[("a", cluster("a"))], &[]);
    assert_eq!(refused(&bench), []);

    // A new stream's server says again what it has.
    bench.tells(CDS, "c7", &[("a", bad_cluster("a"))], &[]);
    bench.reconnect();
    assert_eq!(refused(&bench), [of("a")]);
    bench.tells(CDS, "d1", &[("b", cluster("b"))], &[]);
    assert_eq!(refused(&bench), []);
}

#[test]
fn ever_new_names_that_are_refused_take_no_more_than_their_room() {
    let mut bench = Bench::delta_with_one_service();
    for i in 0..30 {
        let names: Vec<_> = (0..50).map(|j| format!("b{i}-{j}")).collect();
        let bad: Vec<_> = names.iter().map(|n| (n.as_str(), bad_cluster(n))).collect();
        bench.tells(CDS, &format!("c{i}"), &bad, &[]);
        while bench.session.poll_request(0, bench.now).is_some() {}
    }
    let clusters = bench.session.table(ResourceType::Cluster);
    assert!((1000..=1001).contains(&clusters.refused.iter().count()));
    assert_eq!(refused(&bench).len(), 50);
    bench.tells(CDS, "d", &[(&*"n".repeat(1 << 20), bad_cluster(&"n".repeat(1 << 20)))], &[]);
    let longest = bench.session.table(ResourceType::Cluster).refused.iter().map(|r| r.name.len());
    assert!(longest.max() < Some(1 << 10));
}

#[test]
fn what_can_not_be_read_is_refused_by_the_name_it_was_sent_by() {
    let mut bench = Bench::delta_with_one_service();
    // A listener's bytes, cut short.
    let Any { mut value, .. } = tcp_listener("l", 80, "a");
    value.truncate(value.len() - 1);
    bench.tells(CDS, "c2", &[("a", Any { type_url: CDS.to_owned(), value })], &[]);
    let error = bench.subscribes().error_detail.unwrap().message;
    assert!(error.starts_with("clusters[a]: is not a valid envoy.config"), "{error}");
    bench.expect_in_force(&["cds/a", "eds/a:1", "lds/l"]);
}

#[test]
fn a_change_of_endpoints_is_one_update_of_one_table() {
    let mut bench = Bench::delta_with_one_service();
    let before = bench.cell.load();
    bench.tells(EDS, "e2", &[("a", endpoints("a", 2))], &[]);
    let after = bench.cell.load();
    assert_eq!(after.version, before.version + 1);
    assert!(Arc::ptr_eq(&before.clusters, &after.clusters));
    assert!(Arc::ptr_eq(&before.listeners, &after.listeners));
    assert_eq!(after.assignments["a"].endpoints().count(), 2);
}

/// What is in use though the server has it no longer.
fn withdrawn(bench: &Bench) -> Vec<String> {
    let types = bench.session.status().into_iter();
    let named = |of: crate::source::TypeStatus| {
        of.withdrawn.into_iter().map(move |name| format!("{}/{name}", of.kind)).collect::<Vec<_>>()
    };
    types.flat_map(named).collect()
}

#[test]
fn what_the_server_has_no_longer_is_told_for_as_long_as_it_is_in_use() {
    let mut bench = Bench::delta_with_one_service();
    bench.tells(EDS, "e2", &[], &["a", "unknown"]);
    assert_eq!(withdrawn(&bench), ["endpoints/a"]);
    bench.expect_in_force(&["cds/a", "eds/a:1", "lds/l"]);
    // Neither time nor another connection changes that.
    bench.after(Duration::from_secs(60));
    bench.reconnect();
    assert_eq!(withdrawn(&bench), ["endpoints/a"]);
    bench.expect_in_force(&["cds/a", "eds/a:1", "lds/l"]);
    // It has it again, the very same.
    bench.tells(EDS, "e3", &[("a", endpoints("a", 1))], &[]);
    assert_eq!(withdrawn(&bench), [] as [&str; 0]);

    bench.tells(CDS, "c2", &[], &["a"]);
    bench.tells(EDS, "e4", &[], &["a"]);
    assert_eq!(withdrawn(&bench), ["clusters/a", "endpoints/a"]);
    bench.tells(LDS, "l2", &[], &["l"]);
    bench.expect_in_force(&[]);
    assert_eq!(withdrawn(&bench), [] as [&str; 0]);

    // What never was in force is just gone.
    bench.tells(CDS, "c3", &[("b", cluster("b"))], &[]);
    bench.tells(CDS, "c4", &[], &["b"]);
    assert_eq!(withdrawn(&bench), [] as [&str; 0]);
}

#[test]
fn removals_wait_for_their_users() {
    let mut bench = Bench::delta_with_one_service();
    bench.tells(CDS, "c2", &[], &["a"]);
    bench.tells(EDS, "e2", &[], &["a"]);
    bench.expect_in_force(&["cds/a", "eds/a:1", "lds/l"]);
    bench.tells(LDS, "l2", &[], &["l"]);
    bench.expect_in_force(&[]);
    assert_eq!(bench.subscribes(), request(CDS, "c2", &[], &[]));
    assert_eq!(bench.subscribes(), request(EDS, "e2", &[], &["a"]));
    assert_eq!(bench.subscribes(), request(LDS, "l2", &[], &[]));
    bench.expect_silence();
}

#[test]
fn a_name_that_the_server_does_not_have_keeps_nobody_waiting() {
    let mut bench = Bench::delta_with_one_service();
    bench.tells(CDS, "c2", &[("b", cluster("b"))], &[]);
    bench.expect_in_force(&["cds/a", "eds/a:1", "lds/l"]);
    bench.tells(EDS, "e2", &[], &["b"]);
    bench.expect_in_force(&["cds/a", "cds/b", "eds/a:1", "eds/b:0", "lds/l"]);
}

#[test]
fn a_new_stream_says_what_is_known() {
    let mut bench = Bench::delta_with_one_service();
    bench.tells(CDS, "c2", &[("a", bad_cluster("a"))], &[]);
    bench.reconnect();
    let known = |name: &str, nonce: &str| HashMap::from([(name.to_owned(), format!("of-{nonce}"))]);
    let cds = bench.subscribes();
    assert_eq!((cds.type_url.as_str(), cds.initial_resource_versions), (CDS, known("a", "c1")));
    let eds = bench.subscribes();
    assert_eq!(eds.resource_names_subscribe, ["a"]);
    assert_eq!(eds.initial_resource_versions, known("a", "e1"));
    let lds = bench.subscribes();
    assert_eq!(
        (lds.response_nonce.as_str(), lds.initial_resource_versions),
        ("", known("l", "l1"))
    );
    bench.expect_silence();
    bench.expect_in_force(&["cds/a", "eds/a:1", "lds/l"]);
}

#[test]
fn a_name_must_be_the_resources_own() {
    let mut bench = Bench::delta_with_one_service();
    bench.tells(CDS, "c2", &[("c", cluster("b"))], &[]);
    let told = bench.subscribes().error_detail.unwrap().message;
    assert_eq!(told, "clusters[c].name: calls itself `b`");
}

#[test]
fn a_delayed_nack_goes_before_the_next_answer() {
    let mut bench = Bench::delta_with_one_service();
    for nonce in ["c2", "c3"] {
        bench.tells(CDS, nonce, &[("a", bad_cluster("a"))], &[]);
    }
    assert_eq!(bench.subscribes().response_nonce, "c2");
    bench.expect_silence();
    bench.tells(CDS, "c4", &[("b", cluster("b"))], &[]);
    assert_eq!(bench.subscribes().response_nonce, "c3");
    let ack = bench.subscribes();
    assert_eq!((ack.response_nonce.as_str(), ack.error_detail), ("c4", None));
}

#[test]
fn routes_are_asked_for_by_the_listeners_that_need_them() {
    let mut bench = Bench::delta_with_one_service();
    bench.tells(LDS, "l2", &[("h", http_listener("h", 81, "r"))], &[]);
    assert_eq!(bench.subscribes().response_nonce, "l2");
    assert_eq!(bench.subscribes(), request(RDS, "", &["r"], &[]));
    bench.tells(RDS, "r1", &[("r", routes("r", "a")), ("unasked", routes("unasked", "a"))], &[]);
    bench.expect_in_force(&["cds/a", "eds/a:1", "lds/h", "lds/l", "rds/r"]);
    bench.tells(LDS, "l3", &[], &["h"]);
    bench.expect_in_force(&["cds/a", "eds/a:1", "lds/l"]);
    while let Some(Request::Delta(request)) = bench.session.poll_request(0, bench.now) {
        if request.type_url == RDS && request.response_nonce.is_empty() {
            assert_eq!(request.resource_names_unsubscribe, ["r"]);
        }
    }
}

#[test]
fn endpoints_that_grow_stale_are_renewed_by_being_told_again() {
    let mut bench = Bench::delta_with_one_service();
    let told_twice = |bench: &mut Bench, endpoints: Any| {
        bench.tells(EDS, "e2", &[("a", Any::clone(&endpoints))], &[]);
        let updates = bench.updates;
        let before = Arc::clone(&bench.cell.load().assignments["a"]);
        bench.tells(EDS, "e3", &[("a", endpoints)], &[]);
        let after = Arc::clone(&bench.cell.load().assignments["a"]);
        (bench.updates - updates, before.stale_at, after.stale_at)
    };
    let (updates, before, after) = told_twice(&mut bench, stale_endpoints("a"));
    assert!(updates == 1 && before.is_some() && after > before, "{before:?} {after:?}");
    // All others are not worth an update.
    assert_eq!(told_twice(&mut bench, endpoints("a", 2)), (0, None, None));
}

#[test]
fn answers_that_a_server_does_not_read_are_not_piled_up() {
    let mut bench = Bench::delta_with_one_service();
    assert!(!bench.session.is_overdue(0));
    let nonce = "n".repeat(1 << 20);
    for _ in 0..17 {
        bench.tells(CDS, &nonce, &[("a", cluster("a"))], &[]);
    }
    assert!(bench.session.is_overdue(0), "bytes count");
    while bench.session.poll_request(0, bench.now).is_some() {}
    assert!(!bench.session.is_overdue(0));
    for i in 0..1025 {
        bench.tells(CDS, &i.to_string(), &[("a", cluster("a"))], &[]);
    }
    assert!(bench.session.is_overdue(0), "answers count");
}

#[test]
fn what_is_wanted_again_before_the_server_heard_that_it_was_not_is_asked_for_anew() {
    let mut bench = Bench::delta_with_one_service();
    bench.tells(LDS, "l2", &[], &["l"]);
    // No room for a request: the cluster goes, and its endpoints with it, and is back.
    bench.tells(CDS, "c2", &[], &["a"]);
    bench.expect_in_force(&[]);
    bench.tells(CDS, "c3", &[("a", cluster("a"))], &[]);
    assert_eq!(bench.subscribes(), request(CDS, "c2", &[], &[]));
    assert_eq!(bench.subscribes(), request(CDS, "c3", &[], &[]));
    assert_eq!(bench.subscribes(), request(EDS, "", &[], &["a"]));
    assert_eq!(bench.subscribes(), request(EDS, "", &["a"], &[]));
    assert_eq!(bench.subscribes(), request(LDS, "l2", &[], &[]));
    bench.expect_silence();
    bench.tells(EDS, "e2", &[("a", endpoints("a", 2))], &[]);
    bench.expect_in_force(&["cds/a", "eds/a:2"]);
}
