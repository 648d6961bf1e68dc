//! What no route can be.

use super::*;

#[test]
fn routes() {
    let at = "routes[r].virtual_hosts[h].routes[0]";
    for (fields, expected) in [
        (
            "match: {prefix: /}, redirect: {path_redirect: 'a b'}",
            ".redirect.path_redirect: `a b` is not a path",
        ),
        (
            "match: {prefix: /}, redirect: {port_redirect: 70000}",
            ".redirect.port_redirect: 70000 is not a port",
        ),
        (
            "match: {prefix: /}, redirect: {scheme_redirect: 'a:'}",
            ".redirect.scheme_redirect: `a:` is not a scheme",
        ),
        (
            "match: {prefix: /}, redirect: {regex_rewrite: {pattern: {regex: a}, \
             substitution: '\\1'}}",
            ".redirect.regex_rewrite.substitution: `\\1`: the pattern has no group 1",
        ),
        ("match: {prefix: /}", ": has no action: route, redirect or direct_response"),
        (
            "match: {}, route: {cluster: c}",
            ".match: has no path: prefix, path, path_separated_prefix or safe_regex",
        ),
        ("match: {prefixx: /}, route: {cluster: c}", ".match.prefixx: unknown field"),
        (
            "match: {path_separated_prefix: /a/}, route: {cluster: c}",
            ".match.path_separated_prefix: `/a/` is empty, or has a query, or ends with `/`",
        ),
        (
            "match: {prefix: /, runtime_fraction: {runtime_key: a}}, route: {cluster: c}",
            ".match.runtime_fraction.default_value: is missing",
        ),
        (
            "match: {prefix: /, query_parameters: [{}]}, route: {cluster: c}",
            ".match.query_parameters[0].name: is missing",
        ),
        (
            "match: {prefix: /, cookies: [{name: a}]}, route: {cluster: c}",
            ".match.cookies[0].string_match: is missing",
        ),
        (
            "match: {path_match_policy: {name: x, typed_config: {'@type': \
             t/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig, \
             path_template: '/**/*'}}}, route: {cluster: c}",
            ".match.path_match_policy.path_template: `/**/*`: a wildcard can't follow `**`",
        ),
        (
            "match: {prefix: /}, route: {cluster: c, prefix_rewrite: /a, regex_rewrite: \
             {pattern: {regex: a}}}",
            ".route: has more than one of prefix_rewrite, regex_rewrite and path_rewrite_policy",
        ),
        (
            "match: {prefix: /}, route: {cluster: c, path_rewrite_policy: {name: x, typed_config: \
             {'@type': t/envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig, \
             path_template_rewrite: /a}}}",
            ".route.path_rewrite_policy: goes with a path_match_policy of the same kind only",
        ),
        (
            "match: {prefix: /}, route: {weighted_clusters: {clusters: \
             [{name: a, cluster_header: b, weight: 1}]}}",
            ".route.weighted_clusters.clusters[0].cluster_header: can't go with a name",
        ),
        (
            "match: {prefix: /}, route: {cluster: c}, typed_per_filter_config: {x: \
             {'@type': t/envoy.extensions.filters.http.rbac.v3.RBACPerRoute, \
             rbac: {track_per_rule_stats: true}}}",
            ".typed_per_filter_config[x].rbac.track_per_rule_stats: is not supported",
        ),
        (
            "match: {prefix: /}, route: {cluster: c}, typed_per_filter_config: {x: \
             {'@type': t/envoy.extensions.filters.http.csrf.v3.CsrfPolicy}}",
            ".typed_per_filter_config[x].filter_enabled: is missing",
        ),
        (
            "match: {prefix: /}, route: {cluster: c}, typed_per_filter_config: {x: \
             {'@type': t/envoy.extensions.filters.http.cors.v3.CorsPolicy, allow_methods: \"\\x01\"}}",
            ".typed_per_filter_config[x].allow_methods: is not a header's value",
        ),
        (
            "match: {prefix: /}, route: {cluster: c, cors: {shadow_enabled: {}}}",
            ".route.cors.shadow_enabled.default_value: is missing",
        ),
        (
            "match: {prefix: /}, route: {cluster: c}, typed_per_filter_config: {x: \
             {'@type': t/envoy.extensions.filters.http.fault.v3.HTTPFault, response_rate_limit: {}}}",
            ".typed_per_filter_config[x].response_rate_limit: is not supported",
        ),
        (
            "match: {prefix: /}, route: {cluster: c}, typed_per_filter_config: {x: \
             {'@type': t/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit, stat_prefix: l}}",
            ".typed_per_filter_config[x].token_bucket: is missing: routes must have one",
        ),
        (
            "match: {prefix: /}, route: {cluster: c}, typed_per_filter_config: {x: \
             {'@type': t/envoy.extensions.filters.http.ratelimit.v3.RateLimitPerRoute, override_option: IGNORE_POLICY}}",
            ".typed_per_filter_config[x].override_option: is not supported",
        ),
        (
            "match: {prefix: /}, route: {cluster: c, rate_limits: [{actions: [{query_parameters: {}}]}]}",
            ".route.rate_limits[0].actions[0].query_parameters: is not supported",
        ),
        (
            "match: {prefix: /}, route: {cluster: c}, typed_per_filter_config: {x: \
             {'@type': t/envoy.extensions.filters.http.set_metadata.v3.Config}}",
            ".typed_per_filter_config[x]: routes can't tell set_metadata anything",
        ),
        (
            "match: {prefix: /}, route: {cluster: c}, typed_per_filter_config: {x: \
             {'@type': t/envoy.extensions.filters.http.fault.v3.HTTPFault, filter_metadata: {a: b}}}",
            ".typed_per_filter_config[x].filter_metadata: is not supported",
        ),
        (
            "match: {prefix: /}, route: {cluster: c}, typed_per_filter_config: {x: \
             {'@type': t/envoy.extensions.filters.http.fault.v3.HTTPFault, delay: {fixed_delay: 0s}}}",
            ".typed_per_filter_config[x].delay.fixed_delay: must be above zero",
        ),
        (
            "match: {prefix: /}, route: {cluster: c}, typed_per_filter_config: {x: \
             {'@type': t/envoy.config.route.v3.FilterConfig}}",
            ".typed_per_filter_config[x].config: is missing",
        ),
        (
            "match: {prefix: /}, route: {cluster: c}, typed_per_filter_config: {x: \
             {'@type': t/envoy.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute, \
             mutations: {request_mutations: [{remove: host}]}}}",
            ".typed_per_filter_config[x].mutations.request_mutations[0].remove: `host` can't be \
             touched: it frames or routes the message",
        ),
        (
            "match: {prefix: /}, route: {weighted_clusters: {clusters: [{name: a, weight: 1, \
             typed_per_filter_config: {x: \
             {'@type': t/envoy.extensions.filters.http.on_demand.v3.PerRouteConfig}}}]}}",
            ".route.weighted_clusters.clusters[0].typed_per_filter_config: on_demand is told by \
             routes and virtual hosts only",
        ),
        (
            "match: {prefix: /}, route: {cluster: c, retry_policy: {retry_on: 'reset,5XX'}}",
            ".route.retry_policy.retry_on: `5XX` is unknown",
        ),
        (
            "match: {prefix: /}, route: {cluster: c, retry_policy: {retry_on: http3-post-connect-failure}}",
            ".route.retry_policy.retry_on: `http3-post-connect-failure`: HTTP/3 is not supported",
        ),
        (
            "match: {prefix: /}, route: {cluster: c, retry_policy: {retry_priority: {name: p}}}",
            ".route.retry_policy.retry_priority: is not supported",
        ),
        (
            "match: {prefix: /}, route: {cluster: c, retry_policy: {retry_host_predicate: [{name: p}]}}",
            ".route.retry_policy.retry_host_predicate[0]: p without typed_config is not supported",
        ),
        (
            "match: {prefix: /}, route: {cluster: c, retry_policy: {retry_back_off: {max_interval: 1s}}}",
            ".route.retry_policy.retry_back_off.base_interval: is missing",
        ),
        (
            "match: {prefix: /}, route: {cluster: c, retry_policy: {retriable_status_codes: [1000]}}",
            ".route.retry_policy.retriable_status_codes[0]: 1000 is not a status code",
        ),
        (
            "match: {prefix: /}, route: {cluster: c, retry_policy: {rate_limited_retry_back_off: {}}}",
            ".route.retry_policy.rate_limited_retry_back_off.reset_headers: is empty",
        ),
        (
            "match: {prefix: /}, route: {cluster: c, hash_policy: [{cookie: {name: s, ttl: 1s, path: a;b}}]}",
            ".route.hash_policy[0].cookie.path: can't be in a cookie",
        ),
        (
            "match: {prefix: /}, route: {cluster: c, hash_policy: [{terminal: true}]}",
            ".route.hash_policy[0]: says nothing to hash",
        ),
        (
            "match: {prefix: /}, route: {cluster: c, hedge_policy: {}}",
            ".route.hedge_policy: is not supported",
        ),
        (
            "match: {prefix: /}, route: {cluster_header: 'a b'}",
            ".route.cluster_header: `a b` is not a header's name",
        ),
        (
            "match: {prefix: /}, route: {cluster: c}, typed_per_filter_config: \
             {envoy.filters.http.on_demand: {'@type': \
             t/envoy.extensions.filters.http.on_demand.v3.PerRouteConfig, odcds: \
             {resources_locator: 'xdstp://a/b'}}}",
            ".typed_per_filter_config[envoy.filters.http.on_demand].odcds.resources_locator: \
             xdstp locators are not supported",
        ),
        (
            "match: {prefix: /}, route: {cluster: c}, request_headers_to_remove: [Content-Length]",
            ".request_headers_to_remove[0]: `content-length` can't be touched: it frames or \
             routes the message",
        ),
        (
            "match: {prefix: /}, route: {cluster: c}, request_headers_to_add: \
             [{header: {key: ':path', value: a}}]",
            ".request_headers_to_add[0].header.key: `:path` is not a header's name",
        ),
        (
            "match: {prefix: /}, route: {cluster: c}, response_headers_to_add: \
             [{header: {key: a, value: 'x%TRACE_ID%'}}]",
            ".response_headers_to_add[0].header.value: `x%TRACE_ID%`: %TRACE_ID% is not supported",
        ),
        (
            "match: {prefix: /}, route: {cluster: c}, response_headers_to_add: \
             [{header: {key: a, value: b}, append: false, append_action: ADD_IF_ABSENT}]",
            ".response_headers_to_add[0].append: can't go with append_action",
        ),
        (
            "match: {prefix: /}, route: {cluster: c, prefix_rewrite: 'a b'}",
            ".route.prefix_rewrite: `a b` is not a path",
        ),
        (
            "match: {prefix: /}, direct_response: {status: 99}",
            ".direct_response.status: 99 is not within 200 to 599",
        ),
        (
            "match: {prefix: /}, direct_response: {status: 200, body: {filename: /etc/shadow}}",
            ".direct_response.body.filename: is not supported",
        ),
        (
            "match: {prefix: /}, route: {weighted_clusters: {total_weight: 9, clusters: [{name: a, weight: 8}]}}",
            ".route.weighted_clusters.total_weight: is 9, but the weights add up to 8",
        ),
        (
            "match: {prefix: /}, route: {weighted_clusters: {clusters: [{name: a, weight: 4294967295}, {name: b, weight: 1}]}}",
            ".route.weighted_clusters: has weights that add up to 4294967296, more than 4294967295",
        ),
        (
            "match: {prefix: /}, route: {cluster: c, grpc_timeout_offset: 1s}",
            ".route.grpc_timeout_offset: needs max_grpc_timeout",
        ),
        (
            "match: {prefix: /}, route: {cluster: c, timeout: soon}",
            ".route.timeout: failed to parse duration",
        ),
    ] {
        let yaml = route(fields);
        let lines = decode(&[("a.yaml", yaml.as_bytes())]).map(|_| ()).unwrap_err();
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].starts_with(&format!("{at}{expected}")), "{} is not {expected}", lines[0]);
    }
    let domains =
        |domains: &str| route("match: {prefix: /}, route: {cluster: c}").replace("['*']", domains);
    let at = "routes[r].virtual_hosts[h]";
    one(domains("[]"), at, ".domains: is empty");
    one(domains("[a, A]"), at, ".domains[1]: `A` is given twice in this route configuration");
    for domain in ["a*b", "*a*", "**"] {
        let expected =
            format!(".domains[0]: `{domain}` is not a domain: `*` may stand first or last, once");
        one(domains(&format!("['{domain}']")), at, &expected);
    }
}
