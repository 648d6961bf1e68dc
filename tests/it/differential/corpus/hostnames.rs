//! Requests whose host becomes the name of the endpoint that they go to.

use serde_json::{Value, json};
use tests::corpus::Ask;

use super::{Case, access_logs, case, get, many_retries, merge, routes, typed};

/// What is told of hosts: to upstreams, to clients, and in the log.
const HOSTS: &str = "%REQ(:AUTHORITY)% %REQ(X-ENVOY-ORIGINAL-HOST)% %REQ(X-FORWARDED-HOST)% %UPSTREAM_HOST_NAME% %UPSTREAM_HOST_NAME_WITHOUT_PORT%";

const EARLY: &str = "headers that are added tell the host as it came; Envoy's, the one that the cluster's entry has";

/// Everything goes to a cluster of this name, whose endpoints are called so.
fn called(name: &'static str, like: &str, hostnames: &[&str], action: Value) -> Case {
    let cluster = json!({ "hostnames": hostnames });
    called_by(name, (like, cluster), action)
}

fn called_by(name: &'static str, (like, mut cluster): (&str, Value), action: Value) -> Case {
    let mut route = json!({ "cluster": name, "auto_host_rewrite": true });
    if action.get("weighted_clusters").is_some() {
        route = json!({ "auto_host_rewrite": true });
    }
    merge(&mut route, action);
    merge(&mut cluster, many_retries());
    let headers = |name: &str| json!([{ "header": { "key": name, "value": HOSTS } }]);
    let config = routes(json!([
        { "match": { "prefix": "/wait" }, "route": { "cluster": "two" } },
        {
            "match": { "prefix": "/" }, "route": route,
            "request_headers_to_add": headers("x-hosts"), "response_headers_to_add": headers("x-hosts"),
        },
    ]));
    case(name, config)
        .manager(json!({ "access_log": [access_logs::text(HOSTS)] }))
        .cluster(name, like, cluster)
}

fn appended() -> Value {
    json!({ "append_x_forwarded_host": true })
}

/// Whom it goes to first is said by the request, and then it goes to somebody else.
fn retried() -> Value {
    let others = typed("extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate", json!({}));
    json!({
        "append_x_forwarded_host": true,
        // What is left of it would be told, and no two runs have the same.
        "timeout": "0s",
        "hash_policy": [{ "header": { "header_name": "x-hash" } }],
        "retry_policy": {
            "retry_on": "5xx", "num_retries": 1, "retry_back_off": { "base_interval": "0.001s" },
            "retry_host_predicate": [{ "name": "others", "typed_config": others }],
            "host_selection_retry_max_attempts": "20",
        },
    })
}

fn failing(hash: &str) -> Ask {
    get("/").with("x-hash", hash).answered(&json!({ "status": 503 })).is(503)
}

fn resolved(kind: &str, hostnames: &[&str]) -> (&'static str, Value) {
    ("one", json!({ "type": kind, "hostnames": hostnames }))
}

#[rustfmt::skip]
pub(super) fn cases() -> Vec<Case> {
    let wait = || get("/wait").answered(&json!({ "delay_ms": 300 }));
    let post = || Ask::new("POST", "/a?b=c").body("five!");
    let hashed = |hostnames: &[&str]| ("both", json!({ "lb_policy": "MAGLEV", "hostnames": hostnames }));
    let twice = json!({ "retry_policy": { "retry_on": "5xx", "num_retries": 1, "retry_back_off": { "base_interval": "0.001s" } } });
    vec![
        called("hostname", "one", &["a.test"], json!({}))
            .asks(get("/")).asks(get("/").http2()).asks(get("/").host("other.test:81")).asks(post()).asks(post().http2())
            .asks(get("/").with("x-envoy-original-host", "forged")),
        called("hostname-by-http2", "h2", &["a.test"], json!({})).asks(get("/")).asks(get("/").http2()).asks(post()),
        called("hostname-port", "one", &["a.test:81"], json!({})).asks(get("/")).asks(get("/").http2()),
        called("hostname-capitals", "h2", &["A.Test"], json!({})).asks(get("/")),
        called("hostname-address", "one", &["10.9.9.9"], json!({})).asks(get("/")),
        called("hostname-none", "one", &[], appended()).asks(get("/")).asks(get("/").http2()),
        called("hostname-not-wanted", "one", &["a.test"], json!({ "auto_host_rewrite": false })).asks(get("/")),
        called("hostname-appended", "one", &["a.test"], appended())
            .asks(get("/")).asks(get("/").http2()).asks(get("/").host("other.test:81").with("x-forwarded-host", "before.test"))
            .asks(get("/").host("b.test").with("x-forwarded-host", "before.test,b.test")),
        called("hostname-appended-by-http2", "h2", &["a.test"], appended()).asks(get("/")).asks(get("/").with("x-forwarded-host", "before.test").http2()),
        called("hostname-same", "one", &["a.test"], appended()).asks(get("/").host("a.test")),
        called_by("hostname-strict-dns", resolved("STRICT_DNS", &[]), appended()).asks(wait()).asks(get("/")).asks(get("/").http2()),
        called_by("hostname-strict-dns-named", resolved("STRICT_DNS", &["a.test"]), json!({})).asks(wait()).asks(get("/")),
        called_by("hostname-logical-dns", resolved("LOGICAL_DNS", &[]), json!({})).asks(wait()).asks(get("/")),
        called_by("hostname-logical-dns-named", resolved("LOGICAL_DNS", &["a.test"]), json!({})).asks(wait()).asks(get("/")),
        called("hostname-of-entry", "one", &["a.test"], json!({
            "append_x_forwarded_host": true,
            "weighted_clusters": { "clusters": [{ "name": "hostname-of-entry", "weight": 1, "host_rewrite_literal": "entry.test" }] },
        })).asks(get("/").differs("upstream header x-hosts", EARLY)).asks(get("/").http2().differs("upstream header x-hosts", EARLY)),
        called("hostname-mirrored", "one", &["a.test"], json!({ "append_x_forwarded_host": true, "request_mirror_policies": [{ "cluster": "two" }] }))
            .asks(get("/")).asks(post()),
        called("hostname-twice", "one", &["a.test"], { let mut of = twice.clone(); merge(&mut of, appended()); of }).asks(failing("")).asks(get("/")),
        called("hostname-twice-by-http2", "h2", &["a.test"], twice.clone()).asks(failing("")).asks(failing("").http2()),
        called_by("hostname-retried", hashed(&["a.test", "b.test:81"]), retried())
            .asks(failing("1")).asks(failing("2")).asks(failing("3")).asks(failing("4").http2()).asks(get("/").with("x-hash", "5")),
        called_by("hostname-retried-without", hashed(&["a.test"]), retried()).asks(failing("1")).asks(failing("2")).asks(failing("3")).asks(failing("4")),
        called("hostname-dead", "dead", &["a.test"], twice).asks(get("/").is(503)),
        called("hostname-late", "one", &["a.test"], json!({ "timeout": "0.2s" })).asks(get("/").answered(&json!({ "delay_ms": 900 })).is(504)),
        called("hostname-late-try", "one", &["a.test"], json!({ "retry_policy": { "retry_on": "5xx", "num_retries": 1, "per_try_timeout": "0.2s" } }))
            .asks(get("/").answered(&json!({ "delay_ms": 900 })).is(504)),
    ]
}
