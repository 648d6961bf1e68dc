use std::sync::Arc;

use super::*;
use crate::{
    model::{
        filter::PerFilter,
        header_mutation::HeaderMutations,
        runtime::{RuntimeLayer, RuntimeValue},
    },
    policy::fixtures::{cluster_name, request},
};

fn entry(name: &str, weight: u32) -> RouteCluster {
    let cluster = RouteClusterName::Cluster(cluster_name(name));
    let headers = HeaderMutations::default();
    RouteCluster {
        cluster,
        weight,
        host_rewrite: None,
        headers,
        per_filter: PerFilter::default(),
        metadata_match: None,
    }
}

fn weighted(entries: Vec<RouteCluster>, prefix: Option<&str>, header: Option<&str>) -> Clusters {
    Clusters::Weighted(WeightedClusters {
        entries,
        runtime_key_prefix: prefix.map(str::to_owned),
        random_header: header.map(str::to_owned),
    })
}

fn runtime(values: &[(&str, RuntimeValue)]) -> Runtime {
    let values = values.iter().map(|(key, value)| ((*key).to_owned(), value.clone()));
    let layer = RuntimeLayer { values: values.collect() };
    Runtime { layers: vec![("l".into(), Arc::new(layer))] }
}

#[track_caller]
fn chosen(clusters: &Clusters, head: &Parts, runtime: &Runtime, random: u64) -> Option<String> {
    choose(clusters, head, runtime, random).map(|chosen| chosen.cluster.to_string())
}

#[test]
fn weights_share_the_random_number() {
    let clusters = weighted(vec![entry("a", 1), entry("b", 0), entry("c", 2)], None, None);
    let head = request("GET", "/", &[]);
    let all: Vec<_> = (0..6)
        .map(|random| chosen(&clusters, &head, &Runtime::default(), random).unwrap())
        .collect();
    assert_eq!(all, ["a", "c", "c", "a", "c", "c"]);
}

#[test]
fn the_runtime_goes_before_a_weight() {
    let entries = || vec![entry("a", 1), entry("b", 0)];
    let head = request("GET", "/", &[]);
    let swapped =
        runtime(&[("w.a", RuntimeValue::Number(0.0)), ("w.b", RuntimeValue::Number(5.0))]);
    for (prefix, expected) in [(Some("w"), "b"), (Some("other"), "a"), (None, "a")] {
        let clusters = weighted(entries(), prefix, None);
        assert_eq!(chosen(&clusters, &head, &swapped, 3).unwrap(), expected);
    }
    let clusters = weighted(entries(), Some("w"), None);
    let text = runtime(&[("w.a", RuntimeValue::Text("no".into()))]);
    assert_eq!(chosen(&clusters, &head, &text, 0).unwrap(), "a");
    let none = runtime(&[("w.a", RuntimeValue::Number(0.0))]);
    assert_eq!(chosen(&clusters, &head, &none, 0), None);
}

#[test]
fn a_header_may_stand_for_the_random_number_or_name_the_cluster() {
    let clusters = weighted(vec![entry("a", 1), entry("b", 1)], None, Some("x-random"));
    let none = Runtime::default();
    for (value, expected) in [("0", "a"), ("1", "b"), ("7", "b"), ("-1", "a"), ("x", "a")] {
        let head = request("GET", "/", &[("x-random", value)]);
        assert_eq!(chosen(&clusters, &head, &none, 0).unwrap(), expected, "{value}");
    }
    let header = || RouteClusterName::Header("x-cluster".to_owned());
    let one = RouteCluster {
        metadata_match: None,
        cluster: header(),
        weight: 1,
        host_rewrite: None,
        headers: HeaderMutations::default(),
        per_filter: PerFilter::default(),
    };
    let head = request("GET", "/", &[("x-cluster", "c"), ("x-cluster", "d")]);
    assert_eq!(chosen(&weighted(vec![one], None, None), &head, &none, 9).unwrap(), "c");
    let by_header = Clusters::Header("x-cluster".to_owned());
    assert_eq!(chosen(&by_header, &head, &none, 0).unwrap(), "c");
    // Named by nobody: one that is not there.
    assert_eq!(chosen(&by_header, &request("GET", "/", &[]), &none, 0).unwrap(), "");
}
