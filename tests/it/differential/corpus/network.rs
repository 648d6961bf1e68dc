//! Network filters that count connections, and what access logs say of connections.

use serde_json::{Value, json};
use tests::corpus::Ask;

use super::{
    Case,
    access_logs::{connection, network_rbac},
    get, typed,
};

fn rate(max_tokens: u32, more: Value) -> Value {
    let mut config = json!({
        "stat_prefix": "rate",
        "token_bucket": { "max_tokens": max_tokens, "tokens_per_fill": 1, "fill_interval": "3600s" },
    });
    super::merge(&mut config, more);
    json!({ "name": "rate", "typed_config": typed("extensions.filters.network.local_ratelimit.v3.LocalRateLimit", config) })
}

fn limit(config: Value) -> Value {
    let mut config = config;
    config["stat_prefix"] = "limit".into();
    json!({ "name": "limit", "typed_config": typed("extensions.filters.network.connection_limit.v3.ConnectionLimit", config) })
}

fn off() -> Value {
    json!({ "runtime_enabled": { "default_value": false, "runtime_key": "none" } })
}

/// Without logs: which of several connections has its line first is up to time.
fn quiet(mut case: Case) -> Case {
    case.listener["access_log"] = json!([]);
    let filters = case.listener["filter_chains"][0]["filters"].as_array_mut();
    let proxy = filters.and_then(|filters| filters.last_mut()).expect("a terminal filter");
    proxy["typed_config"]["access_log"] = json!([]);
    case
}

#[rustfmt::skip]
pub(super) fn cases() -> Vec<Case> {
    let refused = || get("/").is(0);
    let three = |case: Case, asks: [Ask; 3]| asks.into_iter().fold(quiet(case), Case::asks);
    let mut shadow = network_rbac("ALLOW", 1);
    let rules = shadow["typed_config"]["rules"].take();
    shadow["typed_config"]["shadow_rules"] = rules;
    shadow["typed_config"].as_object_mut().expect("an object").remove("rules");
    let sni = json!({ "name": "sni", "typed_config": typed("extensions.filters.network.sni_cluster.v3.SniCluster", json!({})) });
    vec![
        three(connection("net-rate", "one", vec![rate(2, json!({}))]), [get("/"), get("/"), refused()]),
        three(connection("net-rate-twice", "one", vec![rate(2, json!({})), rate(2, json!({}))]), [get("/"), get("/"), refused()]),
        // Each connection takes two.
        three(connection("net-rate-shared", "one", vec![rate(2, json!({ "share_key": "k" })), rate(2, json!({ "share_key": "k" }))]), [get("/"), refused(), refused()]),
        three(connection("net-rate-other-measure", "one", vec![rate(4, json!({ "share_key": "k" })), rate(2, json!({ "share_key": "o" }))]), [get("/"), get("/"), refused()]),
        connection("net-rate-log", "one", vec![rate(1, json!({ "share_key": "l" })), rate(1, json!({ "share_key": "l" }))]).asks(refused()),
        three(connection("net-rate-off", "one", vec![rate(1, off())]), [get("/"), get("/"), get("/")]),
        three(connection("net-limit", "one", vec![limit(json!({ "max_connections": 100 }))]), [get("/"), get("/"), get("/")]),
        quiet(connection("net-limit-held", "one", vec![limit(json!({ "max_connections": 1 }))])).asks(get("/").beside().is(0)),
        quiet(connection("net-limit-held-room", "one", vec![limit(json!({ "max_connections": 2 }))])).asks(get("/").beside()),
        quiet(connection("net-limit-held-off", "one", vec![limit(json!({ "max_connections": 1, "runtime_enabled": { "default_value": false, "runtime_key": "none" } }))])).asks(get("/").beside()),
        // The kernel's clock is coarser than ours.
        quiet(connection("net-limit-delay", "one", vec![limit(json!({ "max_connections": 1, "delay": "1s" }))])).asks(get("/").beside().ends_after_ms(900)),
        quiet(connection("net-limit-delay-room", "one", vec![limit(json!({ "max_connections": 2, "delay": "1s" }))])).asks(get("/").beside()),
        connection("net-shadow", "one", vec![shadow]).asks(get("/")),
        connection("net-sni", "one", vec![sni]).asks(get("/")),
    ]
}
