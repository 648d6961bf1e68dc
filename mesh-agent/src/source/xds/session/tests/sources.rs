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

use super::*;
use crate::source::xds::options::{Fixed, Origin};

/// A cluster whose endpoints come from that management server, by their own service.
fn cluster_of(name: &str, server: &str, timeout: Option<i64>) -> Any {
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
    let source = ConfigSource {
        initial_fetch_timeout,
        config_source_specifier: Some(ConfigSourceSpecifier::ApiConfigSource(api)),
        ..ConfigSource::default()
    };
    let Any { type_url, value } = cluster(name);
    let cluster = Cluster {
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: Some(source),
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
    assert_eq!(bench.session.poll_streams().len(), 2);
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
