//! What clusters say of their endpoints' health.

use std::sync::Arc;

use super::{
    refused::{cluster, endpoint, one},
    *,
};
use crate::model::{
    cluster::{
        Balancing, Cluster, Consecutive, DnsFamily, Endpoint, EndpointCheck, FailurePercentage,
        HealthCheck, LoadAssignment, OutlierDetection, Probe, SelectorFallback, SubsetFallback,
        SuccessRate,
    },
    route::{Clusters, HostRewrite},
    runtime::RuntimeDouble,
};

#[track_caller]
fn the_cluster(fields: &str) -> Cluster {
    accepted(&cluster(fields)).clusters.into_iter().next().unwrap()
}

#[test]
fn outlier_detection_has_envoys_defaults_and_every_field() {
    let decoded = |fields: &str| {
        let detection = the_cluster(&format!("outlier_detection: {{{fields}}}")).monitoring;
        OutlierDetection::clone(&detection.outlier_detection.unwrap())
    };
    assert_eq!(decoded(""), OutlierDetection::default());
    assert!(the_cluster("").monitoring.outlier_detection.is_none());
    let seconds = Duration::from_secs;
    let longer = decoded("base_ejection_time: 400s");
    assert_eq!((longer.base_ejection_time, longer.max_ejection_time), (seconds(400), seconds(400)));
    let all = decoded(
        "consecutive_5xx: 1, interval: 2s, base_ejection_time: 3s, max_ejection_percent: 4, \
         enforcing_consecutive_5xx: 5, enforcing_success_rate: 6, success_rate_minimum_hosts: 7, \
         success_rate_request_volume: 8, success_rate_stdev_factor: 9, \
         consecutive_gateway_failure: 10, enforcing_consecutive_gateway_failure: 11, \
         split_external_local_origin_errors: true, consecutive_local_origin_failure: 13, \
         enforcing_consecutive_local_origin_failure: 14, enforcing_local_origin_success_rate: 15, \
         failure_percentage_threshold: 16, enforcing_failure_percentage: 17, \
         enforcing_failure_percentage_local_origin: 18, failure_percentage_minimum_hosts: 19, \
         failure_percentage_request_volume: 20, max_ejection_time: 21s, \
         max_ejection_time_jitter: 22s, successful_active_health_check_uneject_host: false, \
         always_eject_one_host: true",
    );
    let consecutive = |failures, enforcing| Consecutive { failures, enforcing };
    assert_eq!(
        all,
        OutlierDetection {
            interval: seconds(2),
            base_ejection_time: seconds(3),
            max_ejection_time: seconds(21),
            max_ejection_time_jitter: seconds(22),
            max_ejection_percent: 4,
            always_eject_one: true,
            split_local_origin: true,
            consecutive_5xx: consecutive(1, 5),
            consecutive_gateway_failure: consecutive(10, 11),
            consecutive_local_origin_failure: consecutive(13, 14),
            success_rate: SuccessRate {
                minimum_hosts: 7,
                request_volume: 8,
                stdev_factor: 9,
                enforcing: 6,
                enforcing_local_origin: 15,
            },
            failure_percentage: FailurePercentage {
                threshold: 16,
                minimum_hosts: 19,
                request_volume: 20,
                enforcing: 17,
                enforcing_local_origin: 18,
            },
            health_check_unejects: false,
        }
    );
}

#[test]
fn outlier_detection_that_makes_no_sense_is_refused() {
    for (fields, expected) in [
        ("interval: 0s", ".interval: must be more than zero"),
        ("base_ejection_time: 0s", ".base_ejection_time: must be more than zero"),
        ("max_ejection_time: 29s", ".max_ejection_time: is less than base_ejection_time"),
        (
            "max_ejection_time_jitter: -1s",
            ".max_ejection_time_jitter: is negative or beyond ten thousand years",
        ),
        ("max_ejection_percent: 101", ".max_ejection_percent: must be at most 100"),
        ("enforcing_success_rate: 101", ".enforcing_success_rate: must be at most 100"),
        ("failure_percentage_threshold: 101", ".failure_percentage_threshold: must be at most 100"),
        ("detect_degraded_hosts: true", ".detect_degraded_hosts: is not supported"),
        ("monitors: [{name: a}]", ".monitors: is not supported"),
    ] {
        one(
            cluster(&format!("outlier_detection: {{{fields}}}")),
            "clusters[c].outlier_detection",
            expected,
        );
    }
}

fn checked(fields: &str) -> String {
    cluster(&format!(
        "health_checks: [{{timeout: 1s, interval: 2s, unhealthy_threshold: 3, \
         healthy_threshold: 4, {fields}}}]"
    ))
}

fn http_check(fields: &str) -> String {
    checked(&format!("http_health_check: {{path: /healthy, {fields}}}"))
}

#[track_caller]
fn the_check(yaml: &str) -> Arc<HealthCheck> {
    accepted(yaml).clusters.into_iter().next().unwrap().monitoring.health_check.unwrap()
}

#[test]
fn health_checks_have_envoys_defaults_and_every_field() {
    let seconds = Duration::from_secs;
    let check = the_check(&checked("tcp_health_check: {}"));
    assert_eq!((check.timeout, check.interval), (seconds(1), seconds(2)));
    assert_eq!((check.unhealthy_threshold, check.healthy_threshold), (3, 4));
    assert_eq!(check.no_traffic_healthy_interval, seconds(60));
    for interval in
        [check.unhealthy_interval, check.unhealthy_edge_interval, check.healthy_edge_interval]
    {
        assert_eq!(interval, seconds(2));
    }
    assert!(check.reuse_connection);
    let check = the_check(&checked(
        "initial_jitter: 5s, interval_jitter: 6s, interval_jitter_percent: 7, \
         reuse_connection: false, no_traffic_interval: 8s, unhealthy_interval: 9s, \
         tcp_health_check: {send: {text: '50494e47'}, receive: [{text: '504f'}, {binary: Tkc=}]}",
    ));
    assert_eq!((check.initial_jitter, check.interval_jitter), (seconds(5), seconds(6)));
    assert_eq!((check.interval_jitter_percent, check.reuse_connection), (7, false));
    assert_eq!(check.no_traffic_healthy_interval, seconds(8));
    assert_eq!(
        (check.unhealthy_edge_interval, check.healthy_edge_interval),
        (seconds(9), seconds(2))
    );
    let Probe::Tcp(tcp) = &check.probe else { panic!("{check:?}") };
    assert_eq!(tcp.send, "PING");
    assert_eq!(tcp.receive, ["PO", "NG"]);

    let check = the_check(&http_check(
        "host: h, method: POST, send: {text: '61'}, receive: [{text: '62'}], \
         response_buffer_size: 0, codec_client_type: HTTP2, \
         request_headers_to_add: [{header: {key: x-a, value: b}}], \
         request_headers_to_remove: [user-agent], expected_statuses: [{start: 200, end: 300}], \
         retriable_statuses: [{start: 500, end: 600}], service_name_matcher: {prefix: s}",
    ));
    let Probe::Http(http) = &check.probe else { panic!("{check:?}") };
    assert_eq!(
        (http.host.as_deref(), &*http.path, http.method.as_str()),
        (Some("h"), "/healthy", "POST")
    );
    assert!(http.http2 && http.service_name.is_some());
    assert_eq!((&http.expected[0], &http.retriable[0]), (&(200..300), &(500..600)));
    assert_eq!((http.headers.add.len(), http.headers.remove.len()), (1, 1));
    let check = the_check(&checked(
        "grpc_health_check: {service_name: s, authority: a, initial_metadata: [{header: {key: k, value: v}}]}",
    ));
    let Probe::Grpc(grpc) = &check.probe else { panic!("{check:?}") };
    assert_eq!((&*grpc.service_name, grpc.authority.as_deref()), ("s", Some("a")));
    assert_eq!(grpc.headers.add.len(), 1);
}

#[test]
fn health_checks_that_can_not_be_made_are_refused() {
    let path = "clusters[c].health_checks[0]";
    for (yaml, expected) in [
        (
            cluster("health_checks: [{tcp_health_check: {}}]")
                .replace("[{", "[{interval: 1s, unhealthy_threshold: 1, healthy_threshold: 1, "),
            ".timeout: is missing",
        ),
        (checked("event_log_path: a, tcp_health_check: {}"), ".event_log_path: is not supported"),
        (
            checked("alt_port: 1, tcp_health_check: {}"),
            ".alt_port: is not supported: use the endpoint's health_check_config",
        ),
        (checked("tls_options: {}, tcp_health_check: {}"), ".tls_options: is not supported"),
        (
            checked("no_traffic_interval: 0s, tcp_health_check: {}"),
            ".no_traffic_interval: must be more than zero",
        ),
        (checked(""), ": has no http_health_check, grpc_health_check or tcp_health_check"),
        (
            checked("custom_health_check: {name: envoy.health_checkers.redis}"),
            ".custom_health_check: envoy.health_checkers.redis without typed_config is not supported",
        ),
        (
            checked("tcp_health_check: {proxy_protocol_config: {}}"),
            ".tcp_health_check.proxy_protocol_config: is not supported",
        ),
        (
            checked("tcp_health_check: {send: {text: abc}}"),
            ".tcp_health_check.send.text: `abc` is not hexadecimal",
        ),
        (
            checked("tcp_health_check: {receive: [{}]}"),
            ".tcp_health_check.receive[0]: has neither text nor binary",
        ),
        (checked("http_health_check: {path: a}"), ".http_health_check.path: `a` is not a path"),
        (
            http_check("codec_client_type: HTTP3"),
            ".http_health_check.codec_client_type: HTTP3 is not supported",
        ),
        (
            http_check("send: {text: '61'}"),
            ".http_health_check.send: can't go with this method, which has no body",
        ),
        (
            http_check("expected_statuses: [{start: 99, end: 200}]"),
            ".http_health_check.expected_statuses[0]: 99 to 200 are no statuses",
        ),
        (
            http_check("retriable_statuses: [{start: 200, end: 200}]"),
            ".http_health_check.retriable_statuses[0]: 200 to 200 are no statuses",
        ),
        (
            http_check("receive: [{text: '6162'}], response_buffer_size: 1"),
            ".http_health_check.receive: is longer than response_buffer_size, 1",
        ),
        (
            http_check("request_headers_to_add: [{header: {key: a, value: '%START_TIME%'}}]"),
            ".http_health_check.request_headers_to_add[0].header.value: command operators are not supported here",
        ),
        (
            checked("grpc_health_check: {}").replace("name: c", "name: 'a|b c'"),
            ".grpc_health_check.authority: `a|b c` is not a host",
        ),
    ] {
        let path =
            if yaml.contains("a|b") { path.replace("[c]", "[a|b c]") } else { path.to_owned() };
        one(yaml, &path, expected);
    }
    one(
        cluster("health_checks: [{}, {}]"),
        "clusters[c].health_checks",
        ": more than one is not supported",
    );
    let tunnel = "metadata: {filter_metadata: {envoy.transport_socket_match: {tunnel: http}, \
                  mesh.workload: {identity: 'spiffe://t/ns/n/sa/s'}}}";
    let endpoint = format!(
        "{{endpoint: {{address: {{socket_address: {{address: 10.0.0.1, port_value: 80}}}}}}, {tunnel}}}"
    );
    one(
        checked("tcp_health_check: {}")
            + &format!("load_assignment: {{endpoints: [{{lb_endpoints: [{endpoint}]}}]}}\n"),
        path,
        ": has endpoints that are reached by HBONE: checks have no identity",
    );
}

#[test]
fn an_endpoint_says_where_it_is_checked() {
    let of = |config: &str| {
        let yaml = format!(
            "'@type': t/envoy.config.endpoint.v3.ClusterLoadAssignment\ncluster_name: e\n\
             endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: \
             {{address: 10.0.0.1, port_value: 80}}}}, health_check_config: {{{config}}}}}}}]}}]\n"
        );
        let (_, assignment) = accepted(&yaml).assignments.into_iter().next().unwrap();
        EndpointCheck::clone(assignment.endpoints().next().unwrap().check.as_ref().unwrap())
    };
    let at = |address: &str| Some(address.parse().unwrap());
    let other = "address: {socket_address: {address: 10.0.0.9, port_value: 9}}";
    assert_eq!(of("port_value: 81").address, at("10.0.0.1:81"));
    assert_eq!(of(other).address, at("10.0.0.9:9"));
    assert_eq!(of(&format!("{other}, port_value: 82")).address, at("10.0.0.9:82"));
    let named = of("hostname: h.test, disable_active_health_check: true");
    assert_eq!(
        (named.hostname.as_deref(), named.disabled, named.address),
        (Some("h.test"), true, None)
    );
}

#[test]
fn an_endpoint_may_have_a_name() {
    let at = "endpoint: {address: ";
    let of = |hostname: &str| {
        endpoint("").replace(at, &format!("endpoint: {{hostname: {hostname:?}, address: "))
    };
    for (hostname, expected) in [
        ("", None),
        ("a.test", Some("a.test")),
        ("a.test:81", Some("a.test:81")),
        ("10.0.0.9", Some("10.0.0.9")),
        ("fd00::1", Some("[fd00::1]")),
    ] {
        let (_, assignment) = accepted(&of(hostname)).assignments.into_iter().next().unwrap();
        let endpoint = assignment.endpoints().next().unwrap();
        assert_eq!(endpoint.hostname.as_deref(), expected, "{hostname}");
    }
    let path = "endpoints[e].endpoints[0].lb_endpoints[0].endpoint.hostname";
    one(of("a b"), path, ": `a b` is not an authority: invalid uri character");
    one(of("a/b"), path, ": `a/b` is not an authority: invalid uri character");
}

#[test]
fn routes_may_want_the_endpoints_name_for_the_host() {
    let of = |wanted: bool| {
        let yaml = format!(
            "'@type': t/envoy.config.route.v3.RouteConfiguration\nname: r\n\
             virtual_hosts: [{{name: h, domains: ['*'], routes: [{{match: {{prefix: /}}, \
             route: {{cluster: c, auto_host_rewrite: {wanted}}}}}]}}]\n"
        );
        let routes = accepted(&yaml).routes.into_iter().next().unwrap();
        let RouteAction::Forward(action) = &routes.virtual_hosts[0].routes[0].action else {
            panic!("{routes:?}")
        };
        action.host_rewrite.clone()
    };
    assert!(matches!(of(true), Some(HostRewrite::Endpoint)));
    assert!(of(false).is_none());
}

fn typed(kind: &str, fields: &str) -> String {
    let policies = "t/envoy.extensions.load_balancing_policies";
    let policy = format!(
        "{{typed_extension_config: {{name: x, typed_config: {{'@type': {policies}.{kind}, {fields}}}}}}}"
    );
    cluster(&format!("load_balancing_policy: {{policies: [{policy}]}}"))
}

#[test]
fn slow_start_and_the_options_of_least_request_are_read_in_both_forms() {
    let slow = "slow_start_config: {slow_start_window: 10s, aggression: {default_value: 2.0, \
                runtime_key: a}, min_weight_percent: {value: 20}}";
    let bias = "active_request_bias: {default_value: 0.5, runtime_key: b}";
    let round_robin = "round_robin.v3.RoundRobin";
    let least = "least_request.v3.LeastRequest";
    let least_request = LbPolicy::LeastRequest { choice_count: 2 };
    for (yaml, policy) in [
        (cluster(&format!("round_robin_lb_config: {{{slow}}}")), LbPolicy::RoundRobin),
        (typed(round_robin, slow), LbPolicy::RoundRobin),
        (
            cluster(&format!(
                "lb_policy: LEAST_REQUEST\nleast_request_lb_config: {{{slow}, {bias}}}"
            )),
            least_request,
        ),
        (typed(least, &format!("{slow}, {bias}")), least_request),
        (
            typed(least, &format!("{slow}, {bias}, selection_method: FULL_SCAN")),
            LbPolicy::LeastRequestFullScan,
        ),
        (
            typed(least, &format!("{slow}, {bias}, enable_full_scan: true")),
            LbPolicy::LeastRequestFullScan,
        ),
    ] {
        let decoded = accepted(&yaml).clusters.into_iter().next().unwrap();
        assert_eq!(decoded.lb_policy, policy, "{yaml}");
        let Balancing { slow_start, active_request_bias, .. } = decoded.balancing;
        let slow_start = slow_start.unwrap();
        assert_eq!((slow_start.window, slow_start.min_weight), (Duration::from_secs(10), 0.2));
        assert_eq!(slow_start.aggression, RuntimeDouble { key: "a".to_owned(), default: 2.0 });
        let expected = RuntimeDouble { key: "b".to_owned(), default: 0.5 };
        assert_eq!(active_request_bias, policy.is_by_load().then_some(expected));
    }
    let none = the_cluster("round_robin_lb_config: {slow_start_config: {}}");
    assert_eq!(none.balancing.slow_start, None);
    for (fields, expected) in [
        ("aggression: {default_value: 0.0}", ".aggression: must be more than zero"),
        ("min_weight_percent: {value: 101}", ".min_weight_percent: 101 is not a percentage"),
        ("slow_start_window: -1s", ".slow_start_window: is negative or beyond ten thousand years"),
    ] {
        let yaml = cluster(&format!("round_robin_lb_config: {{slow_start_config: {{{fields}}}}}"));
        one(yaml, "clusters[c].round_robin_lb_config.slow_start_config", expected);
    }
    one(
        cluster(
            "lb_policy: LEAST_REQUEST\nleast_request_lb_config: {active_request_bias: {default_value: -1.0}}",
        ),
        "clusters[c].least_request_lb_config.active_request_bias",
        ": must not be negative",
    );
}

#[test]
fn subsets_are_read_whole_and_what_is_not_there_is_refused() {
    let of =
        |fields: &str| the_cluster(&format!("lb_subset_config: {{{fields}}}")).balancing.subsets;
    assert!(of("fallback_policy: ANY_ENDPOINT").is_none(), "without selectors");
    let subsets = of(
        "fallback_policy: DEFAULT_SUBSET, default_subset: {a: 1}, locality_weight_aware: true, \
         scale_locality_weight: true, panic_mode_any: true, metadata_fallback_policy: FALLBACK_LIST, \
         subset_selectors: [{keys: [b, a]}, {keys: [a], fallback_policy: NO_FALLBACK}, \
         {keys: [c, d], fallback_policy: KEYS_SUBSET, fallback_keys_subset: [d]}]",
    )
    .unwrap();
    assert_eq!(subsets.fallback, SubsetFallback::Default);
    assert_eq!(subsets.default_subset["a"], 1.0);
    assert!(subsets.locality_weight_aware && subsets.scale_locality_weight);
    assert!(subsets.panic_mode_any && subsets.fallback_list);
    let fallbacks: Vec<_> = subsets.selectors.iter().map(|s| s.fallback.clone()).collect();
    let keys = std::iter::once("d".to_owned()).collect();
    assert_eq!(
        fallbacks,
        [
            None,
            Some(SelectorFallback::To(SubsetFallback::Nobody)),
            Some(SelectorFallback::Keys(keys))
        ]
    );
    for (fields, expected) in [
        ("list_as_any: true", ".list_as_any: is not supported"),
        (
            "subset_selectors: [{keys: [a], single_host_per_subset: true}]",
            ".subset_selectors[0].single_host_per_subset: is not supported",
        ),
        ("subset_selectors: [{}]", ".subset_selectors[0].keys: is missing"),
        (
            "subset_selectors: [{keys: [a], fallback_keys_subset: [a]}]",
            ".subset_selectors[0].fallback_keys_subset: is for KEYS_SUBSET",
        ),
        (
            "subset_selectors: [{keys: [a], fallback_policy: KEYS_SUBSET, fallback_keys_subset: [a]}]",
            ".subset_selectors[0].fallback_keys_subset: must be some of the selector's keys, and not all",
        ),
    ] {
        one(
            cluster(&format!("lb_subset_config: {{{fields}}}")),
            "clusters[c].lb_subset_config",
            expected,
        );
    }
}

#[test]
fn what_a_route_asks_for_goes_for_each_of_its_clusters() {
    let yaml = "'@type': t/envoy.config.route.v3.RouteConfiguration\nname: r\n\
         virtual_hosts: [{name: h, domains: ['*'], routes: [{match: {prefix: /}, route: {\
         metadata_match: {filter_metadata: {envoy.lb: {a: 1, b: 2}, other: {x: 1}}}, \
         weighted_clusters: {clusters: [{name: a, weight: 1}, {name: b, weight: 1, \
         metadata_match: {filter_metadata: {envoy.lb: {b: 3, c: 4}}}}]}}}]}]\n";
    let routes = accepted(yaml).routes.into_iter().next().unwrap();
    let RouteAction::Forward(action) = &routes.virtual_hosts[0].routes[0].action else { panic!() };
    let Clusters::Weighted(weighted) = &action.clusters else { panic!() };
    let shown: Vec<_> = weighted
        .entries
        .iter()
        .map(|entry| serde_json::to_string(entry.metadata_match.as_deref().unwrap()).unwrap())
        .collect();
    assert_eq!(shown, [r#"{"a":1.0,"b":2.0}"#, r#"{"a":1.0,"b":3.0,"c":4.0}"#]);
    assert_eq!(action.metadata_match.as_ref().unwrap().len(), 2);
}

fn named(kind: &str, host: &str, fields: &str) -> String {
    let endpoint = format!(
        "{{endpoint: {{address: {{socket_address: {{address: {host}, port_value: 81}}}}}}}}"
    );
    cluster(&format!(
        "type: {kind}\nload_assignment: {{endpoints: [{{lb_endpoints: [{endpoint}]}}]}}\n{fields}"
    ))
}

#[test]
fn endpoints_may_be_names() {
    let of = |yaml: &str| {
        let cluster = accepted(yaml).clusters.into_iter().next().unwrap();
        let Discovery::Dns(dns) = cluster.discovery else { panic!("{cluster:?}") };
        dns
    };
    let seconds = Duration::from_secs;
    let plain = of(&named("STRICT_DNS", "web.test", ""));
    assert_eq!((plain.logical, plain.family, plain.refresh), (false, DnsFamily::Auto, seconds(5)));
    assert_eq!((plain.failure_refresh, plain.jitter), ((seconds(5), seconds(5)), Duration::ZERO));
    let names: Vec<_> = plain.names.values().map(|name| (&*name.host, name.port)).collect();
    assert_eq!(names, [("web.test", 81)]);
    let addresses = [("web.test".into(), vec!["10.0.0.7".parse().unwrap()])].into();
    let resolved = plain.resolved(&addresses);
    let called = |resolved: &LoadAssignment| -> Vec<_> {
        let shown = |e: &Arc<Endpoint>| format!("{} {}", e.address, e.hostname.as_deref().unwrap());
        resolved.endpoints().map(shown).collect()
    };
    assert_eq!(called(&resolved), ["10.0.0.7:81 web.test"]);
    let named_otherwise = named("STRICT_DNS", "web.test", "")
        .replace("endpoint: {address", "endpoint: {hostname: other.test, address");
    let resolved = of(&named_otherwise).resolved(&addresses);
    assert_eq!(called(&resolved), ["10.0.0.7:81 other.test"]);
    let all = of(&named(
        "LOGICAL_DNS",
        "web.test",
        "dns_refresh_rate: 7s\ndns_jitter: 1s\ndns_lookup_family: V4_PREFERRED\n\
         dns_failure_refresh_rate: {base_interval: 2s}",
    ));
    assert_eq!((all.logical, all.family, all.refresh), (true, DnsFamily::V4Preferred, seconds(7)));
    assert_eq!((all.failure_refresh, all.jitter), ((seconds(2), seconds(20)), seconds(1)));
    let at = ".load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address";
    for (yaml, expected) in [
        (named("STRICT_DNS", "'a b'", ""), format!("{at}.address: `a b` is not a host")),
        (named("STRICT_DNS", "a", "respect_dns_ttl: true"), ".respect_dns_ttl: is not supported: the node's resolver tells no TTL; use dns_refresh_rate".to_owned()),
        (named("STRICT_DNS", "a", "dns_refresh_rate: 0s"), ".dns_refresh_rate: must be more than zero".to_owned()),
        (named("STRICT_DNS", "a", "dns_failure_refresh_rate: {}"), ".dns_failure_refresh_rate.base_interval: is missing".to_owned()),
        (named("STRICT_DNS", "a", "dns_failure_refresh_rate: {base_interval: 2s, max_interval: 1s}"), ".dns_failure_refresh_rate.max_interval: is less than base_interval".to_owned()),
        (named("STRICT_DNS", "a", "use_tcp_for_dns_lookups: true"), ".use_tcp_for_dns_lookups: is not supported".to_owned()),
        (cluster("type: STRICT_DNS"), ".load_assignment: is missing".to_owned()),
        (cluster("type: LOGICAL_DNS\nload_assignment: {endpoints: []}"), ".load_assignment.endpoints: LOGICAL_DNS has one endpoint of one locality".to_owned()),
        (cluster("dns_lookup_family: V4_ONLY"), ".dns_lookup_family: is for STRICT_DNS and LOGICAL_DNS".to_owned()),
    ] {
        one(yaml, "clusters[c]", &expected);
    }
}
