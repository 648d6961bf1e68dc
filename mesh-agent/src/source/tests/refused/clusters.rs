//! Clusters and their endpoints.

use std::time::Duration;

use super::*;
use crate::model::cluster::{ConnectionLimits, Pings};

#[test]
fn clusters() {
    assert_eq!(accepted(&cluster("")).clusters.len(), 1);
    for (fields, expected) in [
        ("type: STRICT_DNS", ".load_assignment: is missing"),
        (
            "cluster_type: {name: envoy.clusters.aggregate}",
            ".cluster_type: envoy.clusters.aggregate without typed_config is not supported",
        ),
        (
            "lb_policy: MAGLEV\nmaglev_lb_config: {table_size: 4}",
            ".maglev_lb_config.table_size: 4 is not a prime up to 5000011",
        ),
        (
            "lb_policy: RING_HASH\nring_hash_lb_config: {maximum_ring_size: 0}",
            ".ring_hash_lb_config.maximum_ring_size: must be between 1 and 8388608",
        ),
        (
            "lb_policy: MAGLEV\nring_hash_lb_config: {}",
            ".ring_hash_lb_config: is not supported with MAGLEV",
        ),
        ("lb_policy: CLUSTER_PROVIDED", ".lb_policy: CLUSTER_PROVIDED is for ORIGINAL_DST"),
        ("type: ORIGINAL_DST", ".lb_policy: must be CLUSTER_PROVIDED with ORIGINAL_DST"),
        (
            "least_request_lb_config: {}",
            ".least_request_lb_config: is not supported with ROUND_ROBIN",
        ),
        (
            "upstream_connection_options: {tcp_keepalive: {keepalive_probes: 128}}",
            ".upstream_connection_options.tcp_keepalive.keepalive_probes: 128 is more than 127",
        ),
        (
            "upstream_connection_options: {tcp_keepalive: {keepalive_time: 32768}}",
            ".upstream_connection_options.tcp_keepalive.keepalive_time: 32768 is more than 32767",
        ),
        (
            "upstream_connection_options: {happy_eyeballs_config: {}}",
            ".upstream_connection_options.happy_eyeballs_config: is not supported",
        ),
        ("connect_timeout: 0s", ".connect_timeout: must be more than zero"),
        (
            "circuit_breakers: {per_host_thresholds: [{max_connections: 1}]}",
            ".circuit_breakers.per_host_thresholds: is not supported",
        ),
        (
            "circuit_breakers: {thresholds: [{max_connection_pools: 1}]}",
            ".circuit_breakers.thresholds[0].max_connection_pools: is not supported",
        ),
        (
            "circuit_breakers: {thresholds: [{retry_budget: {budget_percent: {value: 101}}}]}",
            ".circuit_breakers.thresholds[0].retry_budget.budget_percent: 101 is not a percentage",
        ),
        ("upstream_bind_config: {}", ".upstream_bind_config: is not supported"),
        ("track_timeout_budgets: true", ".track_timeout_budgets: is not supported"),
        (
            "http2_protocol_options: {}",
            ".http2_protocol_options: is not supported: use typed_extension_protocol_options\
             [envoy.extensions.upstreams.http.v3.HttpProtocolOptions]",
        ),
        (
            "transport_socket: {name: tls, typed_config: {'@type': t/a.B}}",
            ".transport_socket: tls (a.B) is not supported",
        ),
        (
            "typed_extension_protocol_options: {x: {'@type': t/a.B}}",
            ".typed_extension_protocol_options[x]: a.B is not supported",
        ),
        ("eds_cluster_config: {}", ".eds_cluster_config: is for EDS, not STATIC"),
        ("type: EDS\nload_assignment: {}", ".load_assignment: is for STATIC, not EDS"),
        (
            "transport_socket_matches: [{name: a}]",
            ".transport_socket_matches[0].transport_socket: is missing",
        ),
        (
            "transport_socket_matches: [{name: a, transport_socket: {name: q, typed_config: {'@type': t/a.B}}}]",
            ".transport_socket_matches[0].transport_socket: q (a.B) is not supported",
        ),
        ("transport_socket_matcher: {}", ".transport_socket_matcher: is not supported"),
    ] {
        one(cluster(fields), "clusters[c]", expected);
    }
}

#[test]
fn options_of_http() {
    let filter = |kind: &str, more: &str| {
        format!(
            "{{name: f{more}, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.{kind}}}}}"
        )
    };
    let codec = filter("upstream_codec.v3.UpstreamCodec", "");
    let off = filter("upstream_codec.v3.UpstreamCodec", ", disabled: true");
    let mutation = filter("header_mutation.v3.HeaderMutation", "");
    let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let with = |fields: &str| {
        cluster(&format!(
            "typed_extension_protocol_options: {{{options}: {{'@type': type.googleapis.com/{options}, \
             explicit_http_config: {{http_protocol_options: {{}}}}, {fields}}}}}"
        ))
    };
    let common = "common_http_protocol_options";
    let limits = |fields: &str| {
        let accepted = accepted(&with(&format!("{common}: {{{fields}}}, http_filters: [{codec}]")));
        accepted.clusters[0].connection_limits
    };
    let seconds = |s| Some(Duration::from_secs(s));
    let none = ConnectionLimits::default();
    for (fields, expected) in [
        ("", none),
        (
            "idle_timeout: 7s, max_connection_duration: 8s, max_requests_per_connection: 9",
            ConnectionLimits {
                idle_timeout: seconds(7),
                max_duration: seconds(8),
                max_requests: Some(9),
                ..none
            },
        ),
        (
            "idle_timeout: 0s, max_connection_duration: 0s, max_requests_per_connection: 0",
            ConnectionLimits { idle_timeout: Some(Duration::MAX), ..none },
        ),
    ] {
        assert_eq!(limits(fields), expected, "{fields}");
    }
    let at = format!("clusters[c].typed_extension_protocol_options[{options}]");
    for (fields, expected) in [
        (
            format!("{common}: {{max_stream_duration: 1s}}"),
            ".common_http_protocol_options.max_stream_duration: is not supported",
        ),
        (
            format!("{common}: {{max_headers_count: 9}}"),
            ".common_http_protocol_options.max_headers_count: is not supported",
        ),
        (
            format!("{common}: {{idle_timeout: -1s}}"),
            ".common_http_protocol_options.idle_timeout: is negative or beyond ten thousand years",
        ),
        (
            format!("http_filters: [{mutation}, {codec}]"),
            ".http_filters[0]: f (envoy.extensions.filters.http.header_mutation.v3.HeaderMutation) is not supported",
        ),
        (format!("http_filters: [{off}]"), ".http_filters[0].disabled: is not supported"),
        (format!("http_filters: [{codec}, {codec}]"), ".http_filters[0]: has to be the last one"),
    ] {
        one(with(&fields), &at, expected);
    }
}

#[test]
fn endpoints() {
    assert_eq!(accepted(&endpoint("")).assignments.len(), 1);
    let at = "endpoints[e].endpoints[0].lb_endpoints[0]";
    let metadata = |m: &str| format!("metadata: {{filter_metadata: {{{m}}}}}");
    let tunnel = "envoy.transport_socket_match: {tunnel: http}";
    for (fields, expected) in [
        ("load_balancing_weight: 0".to_owned(), ".load_balancing_weight: must be at least 1"),
        (
            metadata(tunnel),
            ".metadata.filter_metadata[mesh.workload].identity: is missing: a tunnel has to know \
             whom it must reach",
        ),
        (
            metadata(&format!("{tunnel}, mesh.workload: {{identity: 'spiffe://x'}}")),
            ".metadata.filter_metadata[mesh.workload].identity: `spiffe://x` is not a workload's \
             SPIFFE ID: its path must be /ns/<namespace>/sa/<service account>",
        ),
        (
            metadata("mesh.workload: {identity: 'spiffe://x/ns/a/sa/b'}"),
            ".metadata.filter_metadata[mesh.workload]: names a workload that would be reached in \
             the clear; add envoy.transport_socket_match: {tunnel: http}",
        ),
        (
            metadata("envoy.transport_socket_match: {tunnel: h2}"),
            ".metadata.filter_metadata[envoy.transport_socket_match].tunnel: `h2` is unknown; only http is",
        ),
        (
            metadata(&format!("{tunnel}, mesh.workload: {{identity: 7}}")),
            ".metadata.filter_metadata[mesh.workload].identity: must be a string, not empty",
        ),
    ] {
        one(endpoint(&fields), at, expected);
    }
    let priority = endpoint("").replace("endpoints: [{lb", "endpoints: [{priority: 129, lb");
    one(priority, "endpoints[e].endpoints[0]", ".priority: must be at most 128");
    let whole = format!("endpoints: [{{{}, lb", metadata(tunnel));
    one(
        endpoint("").replace("endpoints: [{lb", &whole),
        "endpoints[e].endpoints[0]",
        ".metadata.filter_metadata[envoy.transport_socket_match].tunnel: is for endpoints, each \
         of which names its identity",
    );
    let unspecified = endpoint("").replace("10.0.0.1", "0.0.0.0");
    one(unspecified, at, ".endpoint.address: 0.0.0.0 can't be dialled");
}

#[test]
fn who_pings_servers() {
    let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let with = |keepalive: &str| {
        cluster(&format!(
            "typed_extension_protocol_options: {{{options}: {{'@type': type.googleapis.com/{options}, \
             explicit_http_config: {{http2_protocol_options: {{connection_keepalive: \
             {{{keepalive}}}}}}}}}}}"
        ))
    };
    let pings = |keepalive| accepted(&with(keepalive)).clusters[0].connection_limits.pings;
    let seconds = Duration::from_secs;
    let both = Pings { interval: seconds(30), timeout: seconds(5) };
    assert_eq!(pings("interval: 30s, timeout: 5s, interval_jitter: {value: 10}"), Some(both));
    assert_eq!(pings("timeout: 5s"), None);
    let at = format!(
        "clusters[c].typed_extension_protocol_options[{options}].explicit_http_config\
         .http2_protocol_options.connection_keepalive"
    );
    for (keepalive, expected) in [
        ("interval: 30s", ".timeout: is missing"),
        ("interval: 0s, timeout: 5s", ".interval: must be more than zero"),
        (
            "timeout: 5s, connection_idle_interval: 1s",
            ".connection_idle_interval: is not supported",
        ),
    ] {
        one(with(keepalive), &at, expected);
    }
}
