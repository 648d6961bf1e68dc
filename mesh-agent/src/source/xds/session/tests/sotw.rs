//! The state-of-the-world variant, request by request.

use std::sync::atomic::{AtomicUsize, Ordering};

use envoy_types::pb::{
    envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse, Resource},
    google::protobuf,
};
use prost::{Message as _, Name as _};

use super::{
    messages::{bad_cluster, with_unknown_field},
    *,
};

pub(super) fn response(
    type_url: &str,
    version: &str,
    nonce: &str,
    resources: Vec<Any>,
) -> DiscoveryResponse {
    DiscoveryResponse {
        version_info: version.to_owned(),
        resources,
        type_url: type_url.to_owned(),
        nonce: nonce.to_owned(),
        ..DiscoveryResponse::default()
    }
}

impl Bench {
    pub(super) fn sotw(type_: Variant) -> Self {
        assert_eq!(type_, Variant::Sotw);
        Self::new(type_)
    }

    pub(super) fn says(&mut self, type_url: &str, version: &str, nonce: &str, resources: Vec<Any>) {
        self.session.on_sotw(0, response(type_url, version, nonce, resources), self.now);
        self.apply();
    }

    fn asked(&mut self) -> Option<DiscoveryRequest> {
        match self.session.poll_request(0, self.now) {
            Some(Request::Sotw(request)) => Some(request),
            Some(Request::Delta(request)) => panic!("{request:?}"),
            None => None,
        }
    }

    /// The requests: `type version nonce names [error]`.
    #[track_caller]
    fn expect_requests(&mut self, expected: &[&str]) {
        let mut found = Vec::new();
        while let Some(request) = self.asked() {
            let kind = match request.type_url.as_str() {
                LDS => "lds",
                RDS => "rds",
                CDS => "cds",
                EDS => "eds",
                other => panic!("{other}"),
            };
            let DiscoveryRequest { version_info, response_nonce, resource_names, .. } = request;
            let mut text = format!(
                "{kind} v={version_info} n={response_nonce} [{}]",
                resource_names.join(",")
            );
            if let Some(error) = request.error_detail {
                assert_eq!(error.code, 3);
                text = format!("{text} {}", error.message);
            }
            found.push(text);
        }
        assert_eq!(found, expected);
    }

    /// Cluster `a` with one endpoint behind listener `l` and routes `r`.
    fn with_one_service() -> Self {
        let mut bench = Self::sotw(Variant::Sotw);
        bench.expect_requests(&["cds v= n= []", "lds v= n= []"]);
        bench.says(CDS, "1", "c1", vec![cluster("a")]);
        bench.expect_requests(&["cds v=1 n=c1 []", "eds v= n= [a]"]);
        bench.says(EDS, "1", "e1", vec![endpoints("a", 1)]);
        bench.says(LDS, "1", "l1", vec![http_listener("l", 80, "r")]);
        bench.expect_requests(&["eds v=1 n=e1 [a]", "lds v=1 n=l1 []", "rds v= n= [r]"]);
        assert_eq!(bench.updates, 0, "{:?}", bench.in_force());
        bench.says(RDS, "1", "r1", vec![routes("r", "a")]);
        bench.expect_requests(&["rds v=1 n=r1 [r]"]);
        bench.expect_in_force(&["cds/a", "eds/a:1", "lds/l", "rds/r"]);
        assert_eq!(bench.updates, 1);
        bench
    }
}

#[test]
fn only_the_first_request_of_a_stream_says_who_we_are() {
    let mut bench = Bench::sotw(Variant::Sotw);
    assert_eq!(bench.asked().unwrap().node.unwrap().id, "n");
    assert_eq!(bench.asked().unwrap().node, None);
    bench.reconnect();
    assert_eq!(bench.asked().unwrap().node.unwrap().id, "n");
}

#[test]
fn a_first_configuration_goes_out_whole() {
    Bench::with_one_service();
}

#[test]
fn a_bad_resource_is_refused_by_name_and_the_good_ones_apply() {
    let mut bench = Bench::with_one_service();
    bench.says(CDS, "2", "c2", vec![bad_cluster("a"), cluster("b")]);
    let reason = "clusters[a].lb_policy: ";
    let request = bench.asked().unwrap();
    assert_eq!((request.version_info.as_str(), request.response_nonce.as_str()), ("1", "c2"));
    let told = request.error_detail.unwrap().message;
    assert!(told.starts_with(reason), "{told}");
    assert!(bench.refused[0].starts_with(reason), "{:?}", bench.refused);
    bench.expect_requests(&["eds v=1 n=e1 [a,b]"]);
    bench.says(EDS, "2", "e2", vec![endpoints("a", 1), endpoints("b", 2)]);
    bench.expect_in_force(&["cds/a", "cds/b", "eds/a:1", "eds/b:2", "lds/l", "rds/r"]);
    // What was refused says nothing about who is gone.
    bench.says(CDS, "3", "c3", vec![bad_cluster("a")]);
    bench.expect_in_force(&["cds/a", "cds/b", "eds/a:1", "eds/b:2", "lds/l", "rds/r"]);
}

#[test]
fn what_is_refused_is_not_listed_any_more_once_nobody_asks_for_it() {
    let refused = |bench: &Bench| {
        let types = bench.session.status();
        let of = types.iter().find(|of| of.kind == "endpoints").unwrap();
        assert_eq!(of.refusing, !of.refused.is_empty());
        of.refused.iter().map(|refused| refused.name.to_string()).collect::<Vec<_>>()
    };
    let bad = || with_unknown_field(endpoints("b", 1));
    let mut bench = Bench::with_one_service();
    bench.says(CDS, "2", "c2", vec![cluster("a"), cluster("b")]);
    bench.says(EDS, "2", "e2", vec![endpoints("a", 1), bad()]);
    assert_eq!(refused(&bench), ["b"]);
    // A response need not name all there is: this says nothing of it.
    bench.says(EDS, "3", "e3", vec![endpoints("a", 2)]);
    assert_eq!(refused(&bench), ["b"]);
    bench.says(CDS, "3", "c3", vec![cluster("a")]);
    assert_eq!(refused(&bench), Vec::<String>::new());
    // The server may have said it before it heard that.
    bench.says(EDS, "4", "e4", vec![endpoints("a", 1), bad()]);
    assert_eq!(refused(&bench), Vec::<String>::new());
    bench.says(CDS, "4", "c4", vec![cluster("a"), cluster("b")]);
    assert_eq!(refused(&bench), Vec::<String>::new());
}

#[test]
fn unknown_fields_wrong_types_twins_and_locators_are_refused() {
    let mut odd = cluster("b");
    odd.type_url = LDS.to_owned();
    for (resources, reason) in [
        (vec![with_unknown_field(cluster("b"))], "clusters[b]: unknown field number 1000"),
        (vec![odd], "clusters[b]: is a `"),
        (vec![cluster("b"), cluster("b")], "clusters[b]: is given twice"),
        (vec![cluster("xdstp://a/b")], "clusters[xdstp://a/b]: xdstp names"),
        (vec![Any { type_url: CDS.to_owned(), value: vec![0xff; 9] }], "clusters: resources[0]"),
    ] {
        let mut bench = Bench::with_one_service();
        bench.says(CDS, "2", "c2", resources);
        let told = bench.asked().unwrap().error_detail.unwrap().message;
        assert!(told.starts_with(reason), "{told}");
        bench.apply();
        assert!(bench.in_force().contains(&"cds/a".to_owned()));
    }
}

#[test]
fn absence_removes_clusters_and_listeners_only_and_only_when_nothing_needs_them() {
    let mut bench = Bench::with_one_service();
    bench.says(CDS, "2", "c2", vec![]);
    bench.expect_requests(&["cds v=2 n=c2 []"]);
    bench.expect_in_force(&["cds/a", "eds/a:1", "lds/l", "rds/r"]);
    bench.says(RDS, "2", "r2", vec![]);
    bench.says(EDS, "2", "e2", vec![]);
    bench.expect_requests(&["eds v=2 n=e2 [a]", "rds v=2 n=r2 [r]"]);
    bench.expect_in_force(&["cds/a", "eds/a:1", "lds/l", "rds/r"]);
    bench.says(LDS, "2", "l2", vec![]);
    bench.expect_in_force(&[]);
    bench.expect_requests(&["eds v=2 n=e2 []", "lds v=2 n=l2 []", "rds v=2 n=r2 []"]);
}

#[test]
fn a_change_is_made_before_the_old_is_broken() {
    let mut bench = Bench::with_one_service();
    // As go-control-plane sends a snapshot: clusters first, without the old one.
    bench.says(CDS, "2", "c2", vec![cluster("b")]);
    bench.expect_in_force(&["cds/a", "eds/a:1", "lds/l", "rds/r"]);
    assert_eq!(bench.warming(), ["clusters[b] waits for endpoints[b]"]);
    bench.says(RDS, "2", "r2", vec![routes("r", "b")]);
    assert_eq!(
        bench.warming(),
        ["routes[r] waits for clusters[b]", "clusters[b] waits for endpoints[b]"]
    );
    bench.says(EDS, "2", "e2", vec![endpoints("b", 3)]);
    bench.expect_in_force(&["cds/b", "eds/b:3", "lds/l", "rds/r"]);
    assert!(bench.warming().is_empty());
}

#[test]
fn a_server_that_repeats_what_was_refused_is_answered_slowly_and_logged_once() {
    let mut bench = Bench::with_one_service();
    let mut answers = 0;
    for i in 0..200 {
        // The nonce is new each time, the version too: only the content says it.
        bench.says(CDS, &format!("v{i}"), &format!("c{i}"), vec![bad_cluster("a")]);
        while let Some(request) = bench.asked() {
            assert_eq!(request.version_info, "1");
            assert!(request.error_detail.is_some());
            answers += 1;
        }
        bench.after(Duration::from_millis(50));
    }
    assert_eq!(bench.refused.len(), 1, "{:?}", bench.refused);
    assert!((1..10).contains(&answers), "{answers} in ten seconds");
    // Mended: answered at once, and a new fault is told at once.
    bench.says(CDS, "2", "d1", vec![cluster("a")]);
    bench.expect_requests(&["cds v=2 n=d1 []"]);
    bench.says(CDS, "3", "d2", vec![bad_cluster("a")]);
    assert!(bench.asked().unwrap().error_detail.is_some());
    assert_eq!(bench.refused.len(), 2);
}

#[test]
fn a_new_stream_takes_versions_along_and_no_nonces() {
    let mut bench = Bench::with_one_service();
    bench.says(CDS, "2", "c2", vec![bad_cluster("a")]);
    bench.reconnect();
    bench.expect_requests(&["cds v=1 n= []", "eds v=1 n= [a]", "lds v=1 n= []", "rds v=1 n= [r]"]);
    bench.expect_in_force(&["cds/a", "eds/a:1", "lds/l", "rds/r"]);
    // The same content again changes nothing, but that nothing is refused any more.
    let updates = bench.updates;
    bench.says(CDS, "1", "c1", vec![cluster("a")]);
    assert_eq!(bench.updates, updates + 1);
    bench.says(CDS, "1", "c2", vec![cluster("a")]);
    bench.says(EDS, "1", "e1", vec![endpoints("a", 1)]);
    assert_eq!(bench.updates, updates + 1);
}

#[test]
fn what_does_not_come_in_time_is_taken_for_empty() {
    let mut bench = Bench::sotw(Variant::Sotw);
    bench.says(CDS, "1", "c1", vec![cluster("a")]);
    bench.says(LDS, "1", "l1", vec![tcp_listener("l", 80, "a")]);
    bench.expect_in_force(&[]);
    bench.after(Duration::from_secs(14));
    bench.expect_in_force(&[]);
    bench.after(Duration::from_secs(2));
    bench.expect_in_force(&["cds/a", "eds/a:0", "lds/l"]);
    bench.says(EDS, "1", "e1", vec![endpoints("a", 2)]);
    bench.expect_in_force(&["cds/a", "eds/a:2", "lds/l"]);
}

#[test]
fn a_server_that_says_nothing_leaves_all_as_it_was() {
    let mut bench = Bench::sotw(Variant::Sotw);
    bench.after(Duration::from_secs(3600));
    bench.says(CDS, "1", "c1", vec![]);
    bench.after(Duration::from_secs(3600));
    assert_eq!(bench.updates, 0);
}

#[test]
fn listeners_swap_their_addresses_and_never_share_one() {
    let mut bench = Bench::sotw(Variant::Sotw);
    bench.says(CDS, "1", "c1", vec![cluster("a")]);
    bench.says(EDS, "1", "e1", vec![endpoints("a", 1)]);
    let swap = |l, m| vec![tcp_listener("l", l, "a"), tcp_listener("m", m, "a")];
    bench.says(LDS, "1", "l1", swap(1, 2));
    bench.says(LDS, "2", "l2", swap(2, 1));
    let port = |bench: &Bench, name: &str| {
        let snapshot = bench.cell.load();
        snapshot.listeners.iter().find(|l| &*l.name == name).unwrap().address.port()
    };
    assert_eq!((port(&bench, "l"), port(&bench, "m")), (2, 1));
    bench.refused.clear();
    bench.says(LDS, "3", "l3", vec![tcp_listener("m", 1, "a"), tcp_listener("l", 1, "a")]);
    assert_eq!((port(&bench, "l"), port(&bench, "m")), (2, 1));
    let told = "listeners[l].address: 10.9.0.1:1 is the address of listener `m`";
    assert_eq!(bench.refused, [told]);
    // A newcomer may have the address of one that goes with the same response.
    bench.says(LDS, "4", "l4", vec![tcp_listener("n", 1, "a")]);
    assert_eq!(port(&bench, "n"), 1);
    bench.expect_in_force(&["cds/a", "eds/a:1", "lds/n"]);
}

#[test]
fn a_time_to_live_is_honoured_and_a_heartbeat_prolongs_it() {
    let wrapped = |resource: Option<Any>| {
        let wrapped = Resource {
            name: "b".to_owned(),
            version: "1".to_owned(),
            resource,
            ttl: Some(protobuf::Duration { seconds: 10, nanos: 0 }),
            ..Resource::default()
        };
        Any { type_url: Resource::type_url(), value: wrapped.encode_to_vec() }
    };
    let mut bench = Bench::with_one_service();
    bench.says(EDS, "2", "e2", vec![endpoints("a", 1), endpoints("b", 1)]);
    bench.says(CDS, "2", "c2", vec![cluster("a"), wrapped(Some(cluster("b")))]);
    bench.says(EDS, "3", "e3", vec![endpoints("b", 1)]);
    let with_b = ["cds/a", "cds/b", "eds/a:1", "eds/b:1", "lds/l", "rds/r"];
    bench.expect_in_force(&with_b);
    bench.after(Duration::from_secs(8));
    bench.says(CDS, "2", "c3", vec![cluster("a"), wrapped(None)]);
    bench.after(Duration::from_secs(8));
    bench.expect_in_force(&with_b);
    bench.after(Duration::from_secs(3));
    bench.expect_in_force(&["cds/a", "eds/a:1", "lds/l", "rds/r"]);
}

#[test]
fn many_ends_at_once_do_not_fill_the_log() {
    /// Counts what is logged.
    struct Lines(Arc<AtomicUsize>);
    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let lines = bytes.iter().filter(|byte| **byte == b'\n').count();
            self.0.fetch_add(lines, Ordering::Relaxed);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let lines = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&lines);
    let subscriber =
        tracing_subscriber::fmt().with_writer(move || Lines(Arc::clone(&counted))).finish();
    tracing::subscriber::with_default(subscriber, || {
        let mut bench = Bench::with_one_service();
        for round in 0..3 {
            let brief = |i: usize| {
                let wrapped = Resource {
                    name: format!("b{i}"),
                    resource: Some(cluster(&format!("b{i}"))),
                    ttl: Some(protobuf::Duration::default()),
                    ..Resource::default()
                };
                Any { type_url: Resource::type_url(), value: wrapped.encode_to_vec() }
            };
            let all = (0..500).map(brief).chain([cluster("a")]).collect();
            bench.says(CDS, &format!("v{round}"), &format!("c{round}"), all);
            bench.after(Duration::ZERO);
            assert_eq!(bench.session.table(ResourceType::Cluster).accepted.len(), 1);
        }
    });
    let lines = lines.load(Ordering::Relaxed);
    assert!((100..=110).contains(&lines), "{lines} lines");
}

#[test]
fn a_time_to_live_that_is_no_duration_ends_nothing() {
    for (seconds, nanos) in [(-1, 0), (0, -1), (0, 1_000_000_000), (i64::MIN, i32::MIN)] {
        let mut bench = Bench::with_one_service();
        let wrapped = Resource {
            name: "a".to_owned(),
            resource: Some(cluster("a")),
            ttl: Some(protobuf::Duration { seconds, nanos }),
            ..Resource::default()
        };
        let any = Any { type_url: Resource::type_url(), value: wrapped.encode_to_vec() };
        bench.says(CDS, "2", "c2", vec![any]);
        bench.after(Duration::from_secs(1));
        bench.expect_in_force(&["cds/a", "eds/a:1", "lds/l", "rds/r"]);
        assert_eq!(bench.refused, ["clusters[a].ttl: is negative or no duration"]);
    }
}

#[test]
fn what_was_not_asked_for_is_neither_taken_nor_answered() {
    let mut bench = Bench::new(Variant::Sotw);
    bench.says(RDS, "1", "r1", vec![routes("r", "a")]);
    bench.expect_requests(&["cds v= n= []", "lds v= n= []"]);
    assert!(!bench.session.is_due(bench.now.at), "an answer that is never sent keeps waking us");
}

#[test]
fn a_first_configuration_that_is_refused_keeps_nobody_busy() {
    let mut bench = Bench::new(Variant::Sotw);
    bench.expect_requests(&["cds v= n= []", "lds v= n= []"]);
    bench.says(CDS, "1", "c1", vec![bad_cluster("a")]);
    bench.says(LDS, "1", "l1", vec![]);
    while bench.asked().is_some() {}
    bench.after(Duration::from_secs(60));
    assert_eq!(bench.session.deadline_after(bench.now.at), None);
    bench.expect_in_force(&[]);
}

#[test]
fn a_server_that_always_finds_new_faults_does_not_fill_the_log() {
    let mut bench = Bench::with_one_service();
    for i in 0..50 {
        let all = (0..50).map(|j| bad_cluster(&format!("b{i}-{j}"))).collect();
        bench.says(CDS, &format!("v{i}"), &format!("c{i}"), all);
        let answer = bench.asked().filter(|request| request.error_detail.is_some());
        if let Some(error) = answer.and_then(|request| request.error_detail) {
            assert!(error.message.ends_with("; and 40 more"), "{}", error.message);
        }
    }
    assert!(bench.refused.len() <= 101, "{}", bench.refused.len());
    bench.after(Duration::from_secs(60));
    bench.says(CDS, "w", "d", vec![bad_cluster("b")]);
    assert!(bench.refused.last().unwrap().starts_with("clusters[b]"), "{:?}", bench.refused.last());
}

#[test]
fn what_is_wanted_again_before_the_server_heard_that_it_was_not_is_asked_for_anew() {
    let mut bench = Bench::with_one_service();
    bench.says(LDS, "2", "l2", vec![]);
    // No room for a request: the cluster goes, and its endpoints with it, and is back.
    bench.says(CDS, "2", "c2", vec![]);
    bench.expect_in_force(&[]);
    bench.says(CDS, "3", "c3", vec![cluster("a")]);
    bench.expect_requests(&[
        "cds v=3 n=c3 []",
        "eds v=1 n=e1 []",
        "eds v=1 n=e1 [a]",
        "lds v=2 n=l2 []",
        "rds v=1 n=r1 []",
    ]);
}

#[test]
fn what_came_too_late_is_asked_for_anew() {
    let mut bench = Bench::with_one_service();
    bench.says(LDS, "2", "l2", vec![]);
    bench.says(CDS, "2", "c2", vec![]);
    let gone = ["cds v=2 n=c2 []", "eds v=1 n=e1 []", "lds v=2 n=l2 []", "rds v=1 n=r1 []"];
    bench.expect_requests(&gone);
    // The server said this before it heard that, and so does not heed that request.
    bench.says(EDS, "2", "e2", vec![endpoints("a", 2)]);
    bench.says(CDS, "3", "c3", vec![cluster("a")]);
    bench.expect_requests(&["cds v=3 n=c3 []", "eds v=2 n=e2 []", "eds v=2 n=e2 [a]"]);
}
