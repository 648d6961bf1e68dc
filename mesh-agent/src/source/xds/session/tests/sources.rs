//! Types that come from elsewhere than the aggregated stream.

use envoy_types::pb::envoy::config::{
    cluster::v3::{Cluster, cluster::EdsClusterConfig},
    core::v3::{
        ApiConfigSource, ConfigSource, GrpcService,
        api_config_source::ApiType,
        config_source::ConfigSourceSpecifier,
        grpc_service::{EnvoyGrpc, TargetSpecifier},
    },
};

use super::{
    messages::{SRDS, scope, scoped_listener_by},
    *,
};
use crate::source::xds::options::{Fixed, Origin};

/// That management server, by a type's own service.
fn source_of(server: &str, timeout: Option<i64>) -> Option<ConfigSource> {
    let envoy = EnvoyGrpc { cluster_name: server.to_owned(), ..EnvoyGrpc::default() };
    let service = GrpcService {
        target_specifier: Some(TargetSpecifier::EnvoyGrpc(envoy)),
        ..GrpcService::default()
    };
    let api = ApiConfigSource {
        api_type: ApiType::Grpc as i32,
        grpc_services: vec![service],
        ..ApiConfigSource::default()
    };
    let initial_fetch_timeout = timeout.map(|seconds| {
        envoy_types::pb::google::protobuf::Duration { seconds, ..Default::default() }
    });
    Some(ConfigSource {
        initial_fetch_timeout,
        config_source_specifier: Some(ConfigSourceSpecifier::ApiConfigSource(api)),
        ..ConfigSource::default()
    })
}

/// A cluster whose endpoints come from that management server, by their own service.
fn cluster_of(name: &str, server: &str, timeout: Option<i64>) -> Any {
    let Any { type_url, value } = cluster(name);
    let cluster = Cluster {
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: source_of(server, timeout),
            ..EdsClusterConfig::default()
        }),
        ..Cluster::decode(value.as_slice()).unwrap()
    };
    Any { type_url, value: cluster.encode_to_vec() }
}

fn bench() -> Bench {
    let mut bench = Bench::new(Variant::Delta);
    bench.session.knows(["other", "third"].map(str::to_owned).into());
    assert!(bench.session.poll_streams().is_empty(), "the first one is the caller's");
    bench
}

#[test]
fn a_type_comes_from_the_service_that_resources_name() {
    let mut bench = bench();
    bench.tells(CDS, "c1", &[("a", cluster_of("a", "other", Some(40)))], &[]);
    bench.tells(LDS, "l1", &[("l", tcp_listener("l", 1, "a"))], &[]);
    let opened = bench.session.poll_streams();
    let [(at, Origin::Service(service), Some(ResourceType::Endpoints))] = opened.as_slice() else {
        panic!("{opened:?}")
    };
    assert_eq!(service.clusters, ["other"]);
    bench.session.connected(*at, bench.now);
    let asked = bench.session.poll_request(*at, bench.now);
    let Some(Request::Sotw(asked)) = asked else { panic!("{asked:?}") };
    assert_eq!((asked.type_url.as_str(), asked.resource_names), (EDS, vec!["a".to_owned()]));
    assert!(asked.node.is_some(), "each stream is told who we are");

    // Only that stream can say it, and its own timeout counts.
    bench.tells(EDS, "e1", &[("a", endpoints("a", 1))], &[]);
    bench.after(Duration::from_secs(20));
    let warming = bench.warming();
    assert!(warming.iter().any(|w| w.contains("endpoints[a]")), "{warming:?}");
    let response = discovery::DiscoveryResponse {
        type_url: EDS.to_owned(),
        resources: vec![endpoints("a", 2)],
        nonce: "n".to_owned(),
        ..discovery::DiscoveryResponse::default()
    };
    bench.session.on_sotw(*at, response, bench.now);
    bench.expect_in_force(&["cds/a", "eds/a:2", "lds/l"]);
}

#[test]
fn the_source_of_routes_that_scopes_will_name_is_kept_until_they_do() {
    let mut bench = bench();
    let listener = scoped_listener_by("h", 80, source_of("other", None));
    bench.tells(LDS, "l1", &[("h", listener)], &[]);
    bench.tells(CDS, "c1", &[("a", cluster("a"))], &[]);
    bench.tells(EDS, "e1", &[("a", endpoints("a", 1))], &[]);
    let opened = bench.session.poll_streams();
    let [(at, Origin::Service(_), Some(ResourceType::Routes))] = opened.as_slice() else {
        panic!("{opened:?}")
    };
    bench.session.connected(*at, bench.now);
    assert_eq!(bench.session.poll_request(*at, bench.now), None, "no scope names any");

    bench.tells(SRDS, "s1", &[("x", scope("x", "1", "r"))], &[]);
    let asked = bench.session.poll_request(*at, bench.now);
    let Some(Request::Sotw(asked)) = asked else { panic!("{asked:?}") };
    assert_eq!((asked.type_url.as_str(), asked.resource_names), (RDS, vec!["r".to_owned()]));
    let response = sotw::response(RDS, "1", "n", vec![routes("r", "a")]);
    bench.session.on_sotw(*at, response, bench.now);
    bench.expect_in_force(&["cds/a", "eds/a:1", "lds/h", "rds/r", "srds/x=1"]);

    // Without scopes for a while, and then without the listener.
    bench.tells(SRDS, "s2", &[], &["x"]);
    assert!(bench.session.poll_closed().is_empty());
    bench.tells(LDS, "l2", &[], &["h"]);
    assert_eq!(bench.session.poll_closed(), [*at]);
    assert!(bench.refused.is_empty(), "{:?}", bench.refused);
}

#[test]
fn two_sources_of_one_type_and_unknown_ones_are_refused_by_path() {
    let mut bench = bench();
    bench.tells(
        CDS,
        "c1",
        &[
            ("a", cluster_of("a", "other", None)),
            ("b", cluster_of("b", "third", None)),
            ("c", cluster_of("c", "nowhere", None)),
        ],
        &[],
    );
    let [second, unknown] = bench.refused.as_slice() else { panic!("{:?}", bench.refused) };
    let at = "eds_cluster_config.eds_config";
    assert_eq!(
        second,
        &format!("clusters[b].{at}: other endpoints come from another source already")
    );
    let reason = "`nowhere` is no management server of the bootstrap";
    assert_eq!(unknown, &format!("clusters[c].{at}.api_config_source.grpc_services: {reason}"));

    // Once nothing needs the first, the second may come.
    bench.tells(CDS, "c2", &[], &["a"]);
    bench.tells(CDS, "c3", &[("b", cluster_of("b", "third", None))], &[]);
    assert_eq!(bench.refused.len(), 2, "{:?}", bench.refused);
    let opened = bench.session.poll_streams();
    let [(_, Origin::Service(third), _)] = opened.as_slice() else { panic!("{opened:?}") };
    assert_eq!(third.clusters, ["third"], "the first was given up before it was opened");
}

#[test]
fn streams_end_when_nothing_refers_to_their_sources() {
    let mut bench = bench();
    let mut live = BTreeSet::new();
    for round in 0..50 {
        let server = if round % 2 == 0 { "other" } else { "third" };
        bench.tells(CDS, &format!("c{round}"), &[("a", cluster_of("a", server, None))], &[]);
        for closed in bench.session.poll_closed() {
            assert!(live.remove(&closed), "{closed} was not open");
        }
        for (at, ..) in bench.session.poll_streams() {
            assert!(live.insert(at), "{at} is open already");
            bench.session.connected(at, bench.now);
        }
        assert_eq!(live.len(), 1, "round {round}");
        assert!(live.iter().all(|at| *at <= 2), "places are taken again: {live:?}");
        // The agent says so on the new stream only.
        let at = *live.first().unwrap();
        let asked = bench.session.poll_request(at, bench.now);
        let Some(Request::Sotw(asked)) = asked else { panic!("{asked:?}") };
        assert_eq!(asked.resource_names, ["a"]);
        bench.tells(CDS, &format!("d{round}"), &[], &["a"]);
    }
    assert_eq!(bench.session.poll_closed(), live.into_iter().collect::<Vec<_>>());
    assert!(bench.session.poll_streams().is_empty());
    assert!(bench.refused.is_empty(), "{:?}", bench.refused);
    // The type comes from where it came from at first again.
    bench.tells(CDS, "c", &[("b", cluster("b"))], &[]);
    bench.tells(LDS, "l", &[("l", tcp_listener("l", 1, "b"))], &[]);
    bench.tells(EDS, "e", &[("b", endpoints("b", 1))], &[]);
    bench.expect_in_force(&["cds/b", "eds/b:1", "lds/l"]);
}

#[test]
fn what_is_fixed_goes_out_alone_when_servers_had_their_time() {
    let mut bench = bench();
    let fixed = Fixed {
        kind: ResourceType::Cluster,
        name: "fixed".into(),
        value: cluster("fixed").value.into(),
    };
    let alone_by = bench.now.at + Duration::from_secs(15);
    bench.session.hold(&[fixed], Some(alone_by), bench.now);
    bench.tells(EDS, "e1", &[("fixed", endpoints("fixed", 1))], &[]);
    bench.expect_in_force(&[]);
    assert!(bench.session.deadline_after(bench.now.at).is_some());
    bench.after(Duration::from_secs(16));
    bench.expect_in_force(&["cds/fixed", "eds/fixed:1"]);
    // No server changes or removes it.
    bench.tells(CDS, "c1", &[("fixed", cluster("fixed"))], &["fixed"]);
    bench.expect_in_force(&["cds/fixed", "eds/fixed:1"]);
    assert_eq!(bench.refused, ["clusters[fixed]: is among the bootstrap's static_resources"]);
}

#[test]
fn that_nothing_is_refused_any_more_is_told_though_nothing_has_changed() {
    let mut bench = bench();
    bench.tells(CDS, "c1", &[("a", cluster("a"))], &[]);
    bench.tells(LDS, "l1", &[], &[]);
    bench.tells(EDS, "e1", &[("a", endpoints("a", 1))], &[]);
    bench.tells(CDS, "c2", &[("a", cluster_of("a", "nowhere", None))], &[]);
    assert_eq!(bench.refused.len(), 1);
    let before = bench.updates;
    bench.tells(CDS, "c3", &[("a", cluster("a"))], &[]);
    assert_eq!(bench.updates, before + 1);
    bench.expect_in_force(&["cds/a", "eds/a:1"]);
}
