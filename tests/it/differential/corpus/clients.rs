//! Who a request is from: the peer, or whom proxies before it have named.

use serde_json::{Value, json};

use super::{Case, case, get, routes, to, typed};

const LIMIT: &str = "extensions.filters.http.local_ratelimit.v3.LocalRateLimit";

/// Only who is from `192.0.2.0/24` is let in, and the upstream is told who that was.
fn by_ip(name: &'static str, principal: &str, manager: Value) -> Case {
    let range = json!({ "address_prefix": "192.0.2.0", "prefix_len": 24 });
    let policy = json!({ "permissions": [{ "any": true }], "principals": [{ principal: range }] });
    telling(name)
        .filter(
            "rbac",
            "extensions.filters.http.rbac.v3.RBAC",
            json!({ "rules": { "policies": { "policy": policy } } }),
        )
        .manager(manager)
}

/// The upstream is told what is known of the client.
fn telling(name: &'static str) -> Case {
    let text =
        "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%";
    let mut config = to("one");
    config["request_headers_to_add"] = json!([{ "header": { "key": "x-told", "value": text } }]);
    case(name, config)
}

fn edge(hops: u32) -> Value {
    json!({ "use_remote_address": true, "xff_num_trusted_hops": hops })
}

fn detected(all: &[(&str, Value)]) -> Value {
    let extension = |(kind, config): &(&str, Value)| {
        let config =
            typed(&format!("extensions.http.original_ip_detection.{kind}"), config.clone());
        json!({ "name": kind, "typed_config": config })
    };
    json!({ "original_ip_detection_extensions": all.iter().map(extension).collect::<Vec<_>>() })
}

fn xff(config: Value) -> (&'static str, Value) {
    ("xff.v3.XffConfig", config)
}

fn header(more: Value) -> (&'static str, Value) {
    let mut config = json!({ "header_name": "x-real-ip" });
    super::merge(&mut config, more);
    ("custom_header.v3.CustomHeaderConfig", config)
}

/// One token for each client.
fn limited(name: &'static str, action: Value, entry: Value) -> Case {
    let bucket = |tokens: u32| json!({ "max_tokens": tokens, "fill_interval": "3600s" });
    let all = json!({ "default_value": { "numerator": 100 } });
    let mut config = routes(
        json!([{ "match": { "prefix": "/" }, "route": { "cluster": "one", "rate_limits": [{ "actions": [action] }] } }]),
    );
    config["name"] = name.into();
    case(name, config).filter("limit", LIMIT, json!({
        "stat_prefix": "l", "filter_enabled": all, "filter_enforced": all,
        "token_bucket": bucket(100), "descriptors": [{ "entries": [entry], "token_bucket": bucket(1) }],
    }))
}

#[rustfmt::skip]
pub(super) fn cases() -> Vec<Case> {
    let from = |list: &str| get("/").with("x-forwarded-for", list);
    let real = |ip: &str| get("/").with("x-real-ip", ip);
    let ranges = |all: &[&str]| json!({ "xff_trusted_cidrs": { "cidrs": all.iter().map(|prefix| json!({ "address_prefix": prefix, "prefix_len": 8 })).collect::<Vec<_>>() } });
    let mut hashed = routes(json!([{ "match": { "prefix": "/" }, "route": { "cluster": "by-client", "hash_policy": [{ "connection_properties": { "source_ip": true } }] } }]));
    hashed["name"] = "by-client".into();
    let hash = (1..9).fold(
        case("client: hash", hashed).cluster("by-client", "both", json!({ "lb_policy": "MAGLEV" })),
        |case, n| case.asks(from(&format!("192.0.2.{n}"))),
    );
    let rls = |name: &'static str, actions: Value| {
        let service = json!({ "transport_api_version": "V3", "grpc_service": { "envoy_grpc": { "cluster_name": "grpc-authority" } } });
        case(name, routes(json!([{ "match": { "prefix": "/" }, "route": { "cluster": "one", "rate_limits": [{ "actions": actions }] } }])))
            .filter("rl", "extensions.filters.http.ratelimit.v3.RateLimit", json!({ "domain": "d", "timeout": "2s", "rate_limit_service": service }))
            .asks(from("192.0.2.7")).asks(from("198.51.100.7, 2001:db8:1::1")).asks(get("/"))
    };
    vec![
        by_ip("client: remote_ip", "remote_ip", json!({}))
            .asks(from("192.0.2.7")).asks(from("198.51.100.7").is(403)).asks(get("/").is(403)).asks(from("198.51.100.7, 192.0.2.7").http2())
            .asks(from("192.0.2.7, 198.51.100.7").is(403)).asks(from("192.0.2.7, x").is(403)).asks(from("192.0.2.7,").is(403))
            .asks(from("198.51.100.7").with("x-forwarded-for", "192.0.2.7")).asks(from("192.0.2.7:80").is(403))
            .asks(from("::ffff:192.0.2.7").is(403).differs("status", "who writes IPv4 as IPv6 is in no range, and not refused by any")),
        by_ip("client: direct_remote_ip", "direct_remote_ip", json!({})).asks(from("192.0.2.7").is(403)),
        by_ip("client: source_ip", "source_ip", json!({})).asks(from("192.0.2.7").is(403)),
        by_ip("client: remote_ip at the edge", "remote_ip", edge(0)).asks(from("192.0.2.7").is(403)).asks(get("/").is(403)),
        by_ip("client: remote_ip behind one", "remote_ip", edge(1)).asks(from("192.0.2.7")).asks(from("192.0.2.7, 198.51.100.7").is(403)).asks(get("/").is(403)),
        by_ip("client: remote_ip behind two", "remote_ip", edge(2)).asks(from("192.0.2.7").is(403)).asks(from("192.0.2.7, 198.51.100.7")),
        by_ip("client: remote_ip after hops", "remote_ip", json!({ "xff_num_trusted_hops": 1 })).asks(from("192.0.2.7").is(403)).asks(from("192.0.2.7, 198.51.100.7")),
        hash,
        limited("client: limit", json!({ "remote_address": {} }), json!({ "key": "remote_address", "value": "192.0.2.7" }))
            .asks(from("192.0.2.7")).asks(from("192.0.2.7").is(429)).asks(from("192.0.2.8")).asks(get("/")),
        limited("client: limit of a network", json!({ "masked_remote_address": { "v4_prefix_mask_len": 24 } }), json!({ "key": "masked_remote_address", "value": "192.0.2.0/24" }))
            .asks(from("192.0.2.7")).asks(from("192.0.2.8").is(429)).asks(from("198.51.100.7")),
        rls("client: rls", json!([{ "remote_address": {} }])),
        rls("client: rls of a network", json!([{ "masked_remote_address": { "v4_prefix_mask_len": 8, "v6_prefix_mask_len": 48 } }])),
        telling("client: xff").manager(detected(&[xff(json!({}))])).asks(from("192.0.2.7")).asks(from("x")).asks(get("/")),
        telling("client: xff, a hop").manager(detected(&[xff(json!({ "xff_num_trusted_hops": 1, "skip_xff_append": false }))]))
            .asks(from("192.0.2.7, 198.51.100.7")).asks(from("192.0.2.7")).asks(get("/")),
        telling("client: xff, by ranges").manager(detected(&[xff(ranges(&["10.0.0.0", "198.0.0.0"]))]))
            .asks(from("192.0.2.7, 198.51.100.7")).asks(from("198.51.100.6, 198.51.100.7")).asks(from("192.0.2.7, x, 198.51.100.7")).asks(from("x")).asks(get("/")),
        telling("client: xff, the peer is not trusted").manager(detected(&[xff(ranges(&["198.0.0.0"]))])).asks(from("192.0.2.7, 198.51.100.7")).asks(get("/")),
        telling("client: xff, no ranges").manager(detected(&[xff(ranges(&[]))])).asks(from("192.0.2.7, 198.51.100.7")),
        telling("client: header").manager(detected(&[header(json!({}))])).asks(real("192.0.2.7")).asks(real("2001:db8::1")).asks(real("me")).asks(get("/")),
        telling("client: header, or none").manager(detected(&[header(json!({ "reject_with_status": { "code": 401 } }))])).asks(real("192.0.2.7")).asks(real("me").is(401)).asks(get("/").is(401)),
        telling("client: header, no error").manager(detected(&[header(json!({ "reject_with_status": { "code": 200 } }))])).asks(get("/").is(403)),
        telling("client: header, then xff").manager(detected(&[header(json!({})), xff(json!({}))])).asks(real("192.0.2.7")).asks(from("192.0.2.8")).asks(real("192.0.2.7").with("x-forwarded-for", "192.0.2.8")),
    ]
}
