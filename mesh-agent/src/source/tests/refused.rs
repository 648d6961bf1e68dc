//! Well-formed resources that ask for what is not there, and the paths they are
//! refused by.

mod clusters;
mod routes;

use super::*;

fn listener(rest: &str) -> String {
    format!(
        "'@type': t/envoy.config.listener.v3.Listener\nname: web\n\
         traffic_direction: INBOUND\n\
         address: {{socket_address: {{address: 10.0.0.1, port_value: 80}}}}\n{rest}\n"
    )
}

pub(super) const TCP: &str = "{name: tcp, typed_config: {'@type': \
    t/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, cluster: c}}";
pub(super) const ROUTER: &str = "{name: router, typed_config: {'@type': \
    t/envoy.extensions.filters.http.router.v3.Router}}";

fn chain(rest: &str) -> String {
    listener(&format!("filter_chains: [{{filters: [{TCP}], {rest}}}]"))
}

/// A listener with a network RBAC filter of these fields.
pub(super) fn network(rbac: &str) -> String {
    let filter = format!(
        "{{name: rbac, typed_config: {{'@type': \
         t/envoy.extensions.filters.network.rbac.v3.RBAC, {rbac}}}}}"
    );
    listener(&format!("filter_chains: [{{filters: [{filter}, {TCP}]}}]"))
}

pub(super) fn http(fields: &str) -> String {
    listener(&format!(
        "filter_chains: [{{filters: [{{name: hcm, typed_config: {{'@type': \
         t/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, \
         {fields}}}}}]}}]"
    ))
}

fn http_rbac(policy: &str) -> String {
    http(&format!(
        "rds: {{route_config_name: r}}, http_filters: [{{name: x, typed_config: {{'@type': \
         t/envoy.extensions.filters.http.rbac.v3.RBAC, rules: {{policies: {{p: {{{policy}}}}}}}}}}}, \
         {ROUTER}]"
    ))
}

fn route(route: &str) -> String {
    format!(
        "'@type': t/envoy.config.route.v3.RouteConfiguration\nname: r\n\
         virtual_hosts: [{{name: h, domains: ['*'], routes: [{{{route}}}]}}]\n"
    )
}

pub(super) fn cluster(fields: &str) -> String {
    format!("'@type': t/envoy.config.cluster.v3.Cluster\nname: c\n{fields}\n")
}

pub(super) fn endpoint(fields: &str) -> String {
    format!(
        "'@type': t/envoy.config.endpoint.v3.ClusterLoadAssignment\ncluster_name: e\n\
         endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: \
         {{address: 10.0.0.1, port_value: 80}}}}}}, {fields}}}]}}]\n"
    )
}

/// Checks one rejection, without the path of the part that all cases share.
#[track_caller]
pub(super) fn one(yaml: String, prefix: &str, expected: &str) {
    check(&yaml, &[&format!("{prefix}{expected}")]);
}

#[test]
fn listeners() {
    let ok = format!("filter_chains: [{{filters: [{TCP}]}}]");
    assert_eq!(accepted(&listener(&ok)).listeners.len(), 1);
    for (fields, expected) in [
        ("transparent: true", ".transparent: is not supported"),
        (
            "bind_to_port: true",
            ".bind_to_port: is not supported: traffic is captured, not bound to; a gateway \
             listener has no traffic_direction",
        ),
        (
            "access_log: [{name: envoy.access_loggers.file}]",
            ".access_log[0]: envoy.access_loggers.file without typed_config is not supported",
        ),
        (
            "per_connection_buffer_limit_bytes: 0",
            ".per_connection_buffer_limit_bytes: 0, for no limit, is not supported",
        ),
        (
            "access_log: [{filter: {and_filter: {filters: [{response_flag_filter: {}}, \
             {grpc_status_filter: {}}]}}, typed_config: {'@type': \
             t/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog}}]",
            ".access_log[0].filter: looks at requests, and there are none",
        ),
        (
            "listener_filters: [{name: envoy.filters.listener.tls_inspector}]",
            ".listener_filters[0]: envoy.filters.listener.tls_inspector without typed_config is not supported",
        ),
        ("socket_options: [{level: 1}]", ".socket_options: is not supported"),
        ("internal_listener: {}", ".internal_listener: is not supported"),
        ("nonsense: 1", ".nonsense: unknown field"),
        ("drain_type: NEVER", ".drain_type: unrecognized enum value 'NEVER'"),
    ] {
        one(listener(&format!("{ok}\n{fields}")), "listeners[web]", expected);
    }
    let pipe = listener(&ok)
        .replace("{socket_address: {address: 10.0.0.1, port_value: 80}}", "{pipe: {path: /x}}");
    one(pipe, "listeners[web]", ".address.pipe: is not supported");
    let named = listener(&ok).replace("10.0.0.1", "localhost");
    one(
        named,
        "listeners[web]",
        ".address.socket_address.address: `localhost` is not an IP address; names are not resolved",
    );
    one(
        listener(""),
        "listeners[web]",
        ".filter_chains: is empty, and there is no default_filter_chain",
    );
}

#[test]
fn filters_that_count_connections() {
    let of = |kind: &str, fields: &str| {
        let filter = format!(
            "{{name: x, typed_config: {{'@type': t/envoy.extensions.filters.network.{kind}, {fields}}}}}"
        );
        listener(&format!("filter_chains: [{{filters: [{filter}, {TCP}]}}]"))
    };
    let at = "listeners[web].filter_chains[0].filters[0]";
    let limit = |fields: &str| of("connection_limit.v3.ConnectionLimit", fields);
    let rate = |fields: &str| of("local_ratelimit.v3.LocalRateLimit", fields);
    let bucket = "stat_prefix: x, token_bucket: {max_tokens: 1, fill_interval: 1s}";
    for whole in [
        limit("stat_prefix: x, max_connections: 1"),
        limit(
            "stat_prefix: x, max_connections: 1, delay: 60s, runtime_enabled: {default_value: false}",
        ),
        rate(bucket),
        rate(&format!("{bucket}, share_key: k")),
    ] {
        assert_eq!(accepted(&whole).listeners[0].filter_chains[0].filters.len(), 1);
    }
    for (yaml, expected) in [
        (limit("max_connections: 1"), ".stat_prefix: is missing"),
        (limit("stat_prefix: x"), ".max_connections: is missing"),
        (limit("stat_prefix: x, max_connections: 0"), ".max_connections: must be above zero"),
        (limit("stat_prefix: x, max_connections: 1, delay: 61s"), ".delay: is more than 60s"),
        (rate("stat_prefix: x"), ".token_bucket: is missing"),
        (
            rate("stat_prefix: x, token_bucket: {fill_interval: 1s}"),
            ".token_bucket.max_tokens: must be above zero",
        ),
        (
            rate("stat_prefix: x, token_bucket: {max_tokens: 1, fill_interval: 0.04s}"),
            ".token_bucket.fill_interval: is less than 50 ms",
        ),
        (of("sni_cluster.v3.SniCluster", ""), ": nobody looks for the name where mTLS ends"),
    ] {
        one(yaml, at, expected);
    }
}

#[test]
fn filter_chains() {
    for (fields, expected) in [
        (
            "transport_socket: {name: envoy.transport_sockets.tls, typed_config: {'@type': \
             t/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, require_client_certificate: true}}",
            ".transport_socket: envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext is \
             not supported: mTLS of captured traffic is the agent's own, with the workload's identity",
        ),
        (
            "filter_chain_match: {destination_port: 70000}",
            ".filter_chain_match.destination_port: 70000 is not a port",
        ),
        (
            "filter_chain_match: {transport_protocol: quic}",
            ".filter_chain_match.transport_protocol: `quic` is not supported, only tls and raw_buffer",
        ),
        (
            "filter_chain_match: {prefix_ranges: [{address_prefix: 10.0.0.0}]}",
            ".filter_chain_match.prefix_ranges[0].prefix_len: is missing, which would match every address",
        ),
        (
            "filter_chain_match: {prefix_ranges: [{address_prefix: 10.0.0.0, prefix_len: 33}]}",
            ".filter_chain_match.prefix_ranges[0].prefix_len: 33 is too long for 10.0.0.0",
        ),
        (
            "filter_chain_match: {source_ports: ['x']}",
            ".filter_chain_match.source_ports: invalid digit found in string",
        ),
    ] {
        one(chain(fields), "listeners[web].filter_chains[0]", expected);
    }
    let twice = listener(&format!("filter_chains: [{{filters: [{TCP}]}}, {{filters: [{TCP}]}}]"));
    one(
        twice,
        "listeners[web].filter_chains[1]",
        ".filter_chain_match: is the same as an earlier one's",
    );
    for (filters, expected) in [
        (String::new(), ".filters: is empty"),
        (format!("{TCP}, {TCP}"), ".filters[0]: must be the last filter of its chain"),
        (
            "{name: e, typed_config: {'@type': t/envoy.extensions.filters.network.echo.v3.Echo}}"
                .to_owned(),
            ".filters[0]: e (envoy.extensions.filters.network.echo.v3.Echo) is not supported",
        ),
        (
            "{name: envoy.filters.network.echo}".to_owned(),
            ".filters[0]: envoy.filters.network.echo without typed_config is not supported",
        ),
        ("{name: x, typed_config: {cluster: y}}".to_owned(), ".filters[0]: has no @type"),
        (
            TCP.replace("cluster: c", "cluster: c, tunneling_config: {hostname: x}"),
            ".filters[0].tunneling_config: is not supported",
        ),
        (
            TCP.replace("cluster: c", "weighted_clusters: {clusters: [{name: a, weight: 0}]}"),
            ".filters[0].weighted_clusters: has no weight above zero",
        ),
        (
            TCP.replace("cluster: c", "cluster: c, weighted_clusters: {}"),
            ".filters[0].weighted_clusters: excludes cluster: only one of them may be set",
        ),
        (
            TCP.replace("cluster: c", "cluster: c, idle_timeout: -1s"),
            ".filters[0].idle_timeout: is negative or beyond ten thousand years",
        ),
    ] {
        let yaml = listener(&format!("filter_chains: [{{filters: [{filters}]}}]"));
        one(yaml, "listeners[web].filter_chains[0]", expected);
    }
}

#[test]
fn connection_managers() {
    let base = format!("rds: {{route_config_name: r}}, http_filters: [{ROUTER}]");
    assert_eq!(accepted(&http(&base)).listeners.len(), 1);
    let detected = |more: &str| {
        let kind = "type.googleapis.com/\
            envoy.extensions.http.original_ip_detection.xff.v3.XffConfig";
        format!(
            "original_ip_detection_extensions: [{{name: xff, typed_config: {{'@type': {kind}{more}}}}}]"
        )
    };
    for (fields, expected) in [
        (
            format!("use_remote_address: true, {}", detected("")).as_str(),
            ".use_remote_address: can't go with original_ip_detection_extensions",
        ),
        (
            format!("xff_num_trusted_hops: 1, {}", detected("")).as_str(),
            ".xff_num_trusted_hops: can't go with original_ip_detection_extensions",
        ),
        (
            detected(
                ", xff_num_trusted_hops: 1, \
                 xff_trusted_cidrs: {cidrs: [{address_prefix: 10.0.0.0, prefix_len: 8}]}",
            )
            .as_str(),
            ".original_ip_detection_extensions[0].typed_config: can't have both xff_num_trusted_hops and xff_trusted_cidrs",
        ),
        (
            "upgrade_configs: [{upgrade_type: CONNECT-UDP}]",
            ".upgrade_configs[0].upgrade_type: CONNECT-UDP is not supported",
        ),
        (
            "upgrade_configs: [{upgrade_type: websocket}, {upgrade_type: WebSocket}]",
            ".upgrade_configs[1].upgrade_type: `WebSocket` is given twice",
        ),
        (
            "upgrade_configs: [{upgrade_type: websocket, filters: [{name: x}]}]",
            ".upgrade_configs[0].filters: is not supported",
        ),
        ("codec_type: HTTP3", ".codec_type: HTTP3 is not supported"),
        ("tracing: {verbose: true}", ".tracing.verbose: is not supported"),
        (
            "tracing: {custom_tags: [{tag: a, literal: {}}]}",
            ".tracing.custom_tags[0].literal.value: is missing",
        ),
        (
            "tracing: {random_sampling: {value: 101}}",
            ".tracing.random_sampling: 101 is not within 0 to 100",
        ),
        (
            "tracing: {provider: {name: envoy.tracers.datadog}}",
            ".tracing.provider: envoy.tracers.datadog without typed_config is not supported",
        ),
        (
            "tracing: {provider: {name: t, typed_config: {\"@type\": type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig}}}",
            ".tracing.provider.typed_config: has neither grpc_service nor http_service",
        ),
        (
            "local_reply_config: {mappers: [{}]}",
            ".local_reply_config.mappers[0].filter: is missing",
        ),
        (
            "local_reply_config: {mappers: [{filter: {response_flag_filter: {flags: [UX]}}}]}",
            ".local_reply_config.mappers[0].filter.response_flag_filter.flags[0]: UX is not supported",
        ),
        (
            "access_log: [{name: mine}]",
            ".access_log[0]: mine without typed_config is not supported",
        ),
        (
            "access_log: [{typed_config: {'@type': \
             t/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: log}}]",
            ".access_log[0].typed_config.path: `log` is not an absolute path",
        ),
        (
            "access_log: [{typed_config: {'@type': \
             t/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog, log_format: \
             {json_format: {a: {b: ['%NONE%']}}}}}]",
            ".access_log[0].typed_config.log_format.json_format.a.b[0]: `%NONE%`: %NONE% is not supported",
        ),
        ("internal_address_config: {}", ".internal_address_config: is not supported"),
        (
            "strip_any_host_port: true, strip_matching_host_port: true",
            ".strip_any_host_port: can't go with strip_matching_host_port",
        ),
        ("max_request_headers_kb: 9000", ".max_request_headers_kb: 9000 is not within 1 to 8192"),
        (
            "common_http_protocol_options: {max_headers_count: 0}",
            ".common_http_protocol_options.max_headers_count: 0 is not within 1 to 10000",
        ),
        (
            "common_http_protocol_options: {max_connection_duration_jitter: {value: 50}}",
            ".common_http_protocol_options.max_connection_duration_jitter: is not supported",
        ),
        (
            "common_http_protocol_options: {max_response_headers_kb: 3}",
            ".common_http_protocol_options.max_response_headers_kb: is not supported",
        ),
        (
            "http2_protocol_options: {max_concurrent_streams: 2147483647}",
            ".http2_protocol_options.max_concurrent_streams: 2147483647 is not within 1 to 1024",
        ),
    ] {
        one(
            http(&format!("{base}, {fields}")),
            "listeners[web].filter_chains[0].filters[0]",
            expected,
        );
    }
    let routed = |routes: &str| http(&format!("{routes}, http_filters: [{ROUTER}]"));
    let filtered =
        |filters: &str| http(&format!("rds: {{route_config_name: r}}, http_filters: [{filters}]"));
    let rbac = "{name: x, typed_config: {'@type': t/envoy.extensions.filters.http.rbac.v3.RBAC}}";
    for (yaml, expected) in [
        (routed("stat_prefix: x"), ": has no routes: route_config, rds or scoped_routes"),
        (
            routed("rds: {route_config_name: r, config_source: {path_config_source: {path: /x}}}"),
            ".rds.config_source.path_config_source: is not supported: resources come from the \
             source of this one (`ads: {}`)",
        ),
        (filtered(""), ".http_filters: is empty; it must end with the router"),
        (filtered(rbac), ".http_filters[0]: can't be the last filter: that is the router's place"),
        (
            filtered(&format!("{ROUTER}, {ROUTER}")),
            ".http_filters[0]: the router must be the last filter",
        ),
        (
            filtered(
                "{name: r, typed_config: {'@type': t/envoy.extensions.filters.http.router.v3.Router, suppress_envoy_headers: true}}",
            ),
            ".http_filters[0].suppress_envoy_headers: is not supported",
        ),
        (
            filtered(&ROUTER.replace("name: router", "disabled: true")),
            ".http_filters[0].disabled: the router can't be disabled",
        ),
        (
            filtered(&format!(
                "{{name: x, is_optional: true, typed_config: {{'@type': \
                t/envoy.extensions.filters.http.rbac.v3.RBAC, track_per_rule_stats: true}}}}, {ROUTER}"
            )),
            ".http_filters[0].track_per_rule_stats: is not supported",
        ),
    ] {
        one(yaml, "listeners[web].filter_chains[0].filters[0]", expected);
    }
}

#[test]
fn filters_that_are_configured_by_themselves() {
    const RBAC: &str = "t/envoy.extensions.filters.http.rbac.v3.RBAC";
    let discovered = |fields: &str| {
        http(&format!(
            "rds: {{route_config_name: r}}, http_filters: [{{name: x, config_discovery: \
             {{{fields}}}}}, {ROUTER}]"
        ))
    };
    let ok = format!("config_source: {{ads: {{}}}}, type_urls: [{RBAC}]");
    assert_eq!(accepted(&discovered(&ok)).listeners.len(), 1);
    let at = "listeners[web].filter_chains[0].filters[0].http_filters[0]";
    for (fields, expected) in [
        (format!("type_urls: [{RBAC}]"), ".config_source: is missing"),
        ("config_source: {ads: {}}".to_owned(), ".type_urls: is empty"),
        (
            format!("config_source: {{ads: {{}}}}, type_urls: [{RBAC}, t/a.b.Lua]"),
            ".type_urls[1]: `t/a.b.Lua` is not supported",
        ),
        (
            "config_source: {ads: {}}, type_urls: [t/envoy.extensions.filters.http.router.v3.Router]"
                .to_owned(),
            ".type_urls[0]: `t/envoy.extensions.filters.http.router.v3.Router` is not supported",
        ),
        (
            format!("{ok}, apply_default_config_without_warming: true"),
            ".apply_default_config_without_warming: needs a default_config",
        ),
        (
            format!("{ok}, default_config: {{'@type': t/a.b.Lua}}"),
            ".default_config: a.b.Lua is not supported",
        ),
        (
            format!("{ok}, default_config: {{'@type': {RBAC}, track_per_rule_stats: true}}"),
            ".default_config.track_per_rule_stats: is not supported",
        ),
    ] {
        let expected = format!(".config_discovery{expected}");
        one(discovered(&fields), at, &expected);
    }
    let last = http(&format!(
        "rds: {{route_config_name: r}}, http_filters: [{{name: x, config_discovery: {{{ok}}}}}]"
    ));
    one(last, at, ": can't be the last filter: that is the router's place");
    let nameless = discovered(&ok).replace("name: x, ", "");
    one(nameless, at, ".name: is missing: the configuration is asked for by it");
}

#[test]
fn filters_that_are_not_known_and_optional_are_left_out() {
    let first = |filter: &str| {
        let yaml = http(&format!(
            "rds: {{route_config_name: r}}, http_filters: [{{name: x, {filter}}}, {ROUTER}]"
        ));
        let listener = accepted(&yaml).listeners.remove(0);
        let TerminalFilter::Http(http) = &listener.filter_chains[0].terminal else { panic!("tcp") };
        http.http_filters.len()
    };
    let rbac = "typed_config: {'@type': t/envoy.extensions.filters.http.rbac.v3.RBAC, rules: {}}";
    assert_eq!(first(rbac), 1);
    assert_eq!(first(&format!("is_optional: true, {rbac}")), 1);
    assert_eq!(first(&format!("disabled: true, {rbac}")), 1);
    assert_eq!(first("is_optional: true, typed_config: {'@type': t/a.b.Lua, code: x}"), 0);
}

#[test]
fn authorization_rules() {
    let any = "permissions: [{any: true}], principals: [{any: true}]";
    assert_eq!(accepted(&http_rbac(any)).listeners.len(), 1);
    let at = "listeners[web].filter_chains[0].filters[0].http_filters[0].rules.policies[p]";
    for (policy, expected) in [
        (format!("{any}, condition: {{}}"), ".condition: is not supported"),
        (
            "permissions: [{any: true}]".to_owned(),
            ".principals: is empty; say `any: true` for everything",
        ),
    ] {
        one(http_rbac(&policy), at, expected);
    }
    for (permission, expected) in [
        ("any: false", ".any: can only be true"),
        ("", ": has no rule"),
        ("and_rules: {}", ".and_rules.rules: is empty; say `any: true` for everything"),
        (
            "metadata: {filter: x, path: [{key: a}], value: {list_match: {one_of: {}}}}",
            ".metadata.value.list_match.one_of: has no pattern",
        ),
        (
            "sourced_metadata: {metadata_source: ROUTE, metadata_matcher: \
             {filter: x, path: [{key: a}], value: {bool_match: true}}}",
            ".sourced_metadata.metadata_source: only DYNAMIC is supported",
        ),
        ("requested_server_name: {exact: x}", ".requested_server_name: is not supported"),
        ("matcher: {name: x}", ".matcher: is not supported"),
        ("uri_template: {name: x}", ".uri_template: is not supported"),
        ("destination_port: 0", ".destination_port: 0 is not a port"),
        (
            "destination_port_range: {start: 9, end: 9}",
            ".destination_port_range: 9 up to but not 9 is not a range of ports",
        ),
        (
            "url_path: {path: {prefix: ''}}",
            ".url_path.path.prefix: is empty, which would match everything",
        ),
        (
            "not_rule: {or_rules: {rules: [{any: true}, {header: {name: 'a b', present_match: true}}]}}",
            ".not_rule.or_rules.rules[1].header.name: `a b` is not a header's name",
        ),
        ("header: {name: ':status'}", ".header.name: `:status` is not a header's name"),
        (
            "header: {name: a, string_match: {safe_regex: {regex: 'a)|(?:b'}}}",
            ".header.string_match.safe_regex.regex: `a)|(?:b`: unopened group",
        ),
        (
            "header: {name: a, string_match: {safe_regex: {regex: '(a{1000}){1000}'}}}",
            ".header.string_match.safe_regex.regex: needs more than 2097152 bytes once compiled",
        ),
        (
            "header: {name: a, string_match: {ignore_case: true, safe_regex: {regex: a}}}",
            ".header.string_match.ignore_case: has no effect on safe_regex; use (?i)",
        ),
    ] {
        let policy = format!("permissions: [{{{permission}}}], principals: [{{any: true}}]");
        one(http_rbac(&policy), &format!("{at}.permissions[0]"), expected);
    }
    for (principal, expected) in [
        ("metadata: {filter: x, path: [{key: a}]}", ".metadata.value: is missing"),
        ("filter_state: {key: x}", ".filter_state: is not supported"),
        ("authenticated: {principal_name: {}}", ".authenticated.principal_name: has no pattern"),
        (
            "remote_ip: {address_prefix: '::ffff:10.0.0.0', prefix_len: 104}",
            ".remote_ip.address_prefix: write it as IPv4: ::ffff:10.0.0.0 never appears on a connection",
        ),
    ] {
        let policy = format!("permissions: [{{any: true}}], principals: [{{{principal}}}]");
        one(http_rbac(&policy), &format!("{at}.principals[0]"), expected);
    }
    let at = "listeners[web].filter_chains[0].filters[0]";
    let policy = "rules: {policies: {p: {permissions: [{url_path: {path: {exact: /}}}], principals: [{any: true}]}}}";
    one(
        network(policy),
        at,
        ".rules.policies[p].permissions[0].url_path: is not supported in envoy.filters.network.rbac, \
         where it never matches; use envoy.filters.http.rbac",
    );
    let policy = "rules: {policies: {p: {permissions: [{any: true}], principals: \
                  [{metadata: {filter: x, path: [{key: a}], value: {bool_match: true}}}]}}}";
    one(
        network(policy),
        at,
        ".rules.policies[p].principals[0].metadata: is not supported in \
         envoy.filters.network.rbac, where it never matches; use envoy.filters.http.rbac",
    );
    one(network("shadow_matcher: {}"), at, ".shadow_matcher: is not supported");
    one(network("matcher: {}"), at, ".matcher: is not supported");
    one(network("enforcement_type: CONTINUOUS"), at, ".enforcement_type: is not supported");
}

#[test]
fn all_rejections_are_said_at_once_and_none_twice() {
    let files = [
        ("a.yaml", cluster("upstream_bind_config: {}\nlb_policy: CLUSTER_PROVIDED\nnonsense: 1")),
        ("b.yaml", cluster("type: STRICT_DNS")),
        ("c.yaml", route("match: {prefixx: /, cookies: [{name: a}]}, routte: {}")),
    ];
    let files: Vec<_> = files.iter().map(|(name, text)| (*name, text.as_bytes())).collect();
    let lines = decode(&files).map(|_| ()).unwrap_err();
    assert_eq!(
        lines,
        [
            "clusters[c].nonsense: unknown field",
            "clusters[c].upstream_bind_config: is not supported",
            "clusters[c].lb_policy: CLUSTER_PROVIDED is for ORIGINAL_DST",
            "clusters[c].load_assignment: is missing",
            "routes[r].virtual_hosts[h].routes[0].match.prefixx: unknown field",
            "routes[r].virtual_hosts[h].routes[0].routte: unknown field",
            "routes[r].virtual_hosts[h].routes[0].match.cookies[0].string_match: is missing",
        ]
    );
}
