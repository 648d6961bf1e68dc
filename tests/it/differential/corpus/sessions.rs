//! Clients that come again to the endpoint they had.

use serde_json::{Value, json};

use super::{Case, case, get, routes, to, typed};

const SESSION: &str = "extensions.filters.http.stateful_session.v3.StatefulSession";
const PER_ROUTE: &str = "extensions.filters.http.stateful_session.v3.StatefulSessionPerRoute";

fn cookie(fields: Value) -> Value {
    let mut cookie = json!({ "name": "s" });
    super::merge(&mut cookie, fields);
    json!({ "session_state": { "name": "envoy.http.stateful_session.cookie", "typed_config": typed("extensions.http.stateful_session.cookie.v3.CookieBasedSessionState", json!({ "cookie": cookie })) } })
}

fn header(name: &str) -> Value {
    json!({ "session_state": { "name": "envoy.http.stateful_session.header", "typed_config": typed("extensions.http.stateful_session.header.v3.HeaderBasedSessionState", json!({ "name": name })) } })
}

fn session(name: &'static str, cluster: &str, config: Value, strict: bool) -> Case {
    let mut config = config;
    config["strict"] = strict.into();
    case(name, to(cluster)).filter("session", SESSION, config)
}

/// `10.244.2.10:9200` and `10.244.2.11:9200`, which is where the witnesses are, and
/// `10.244.2.99:9200`, where nobody is; `\n` and a length before them: a cookie.
const A: &str = "MTAuMjQ0LjIuMTA6OTIwMA==";
const B: &str = "MTAuMjQ0LjIuMTE6OTIwMA==";
const NOBODY: &str = "MTAuMjQ0LjIuOTk6OTIwMA==";
const A_COOKIE: &str = "ChAxMC4yNDQuMi4xMDo5MjAw";
const B_COOKIE: &str = "ChAxMC4yNDQuMi4xMTo5MjAw";
/// Of 2001.
const OLD_COOKIE: &str = "ChAxMC4yNDQuMi4xMTo5MjAwEICU69wD";

/// By the header `x-first` if there is one, else by the cookie `hashed`.
fn by_hash(cluster: &str, dead: &str, fields: Value) -> Value {
    let mut cookie = json!({ "name": "hashed" });
    super::merge(&mut cookie, fields);
    let policy = json!([
        { "header": { "header_name": "x-first" }, "terminal": true },
        { "cookie": cookie },
    ]);
    let to = |prefix: &str, cluster: &str, retries: u32| {
        json!({ "match": { "prefix": prefix }, "route": {
            "cluster": cluster, "hash_policy": policy,
            "retry_policy": { "retry_on": "5xx", "num_retries": retries },
        } })
    };
    routes(json!([
        to("/other", "one", 0),
        to("/dead", dead, 0),
        to("/retried", cluster, 1),
        to("/", cluster, 0),
    ]))
}

#[rustfmt::skip]
pub(super) fn cases() -> Vec<Case> {
    let with = |name: &str, value: &str| get("/a/b").with(name, value);
    let by_cookie = |value: &str| with("cookie", &format!("x=y; s={value}"));
    let per = |config: Value| json!({ "session": typed(PER_ROUTE, config) });
    vec![
        session("session: new ones by cookie", "one", cookie(json!({ "path": "/a", "attributes": [{ "name": "SameSite", "value": "Lax" }, { "name": "Secure" }] })), false)
            .asks(get("/a")).asks(get("/a/b?c")).asks(get("/ab")).asks(get("/")).asks(by_cookie(A)).asks(by_cookie(A_COOKIE)).asks(by_cookie(B)).asks(by_cookie("!")).asks(get("/a").http2())
            .asks(get("/a").answered(&json!({ "headers": [["set-cookie", "other=1"]] }))),
        session("session: new ones by header", "one", header("x-session"), false)
            .asks(get("/")).asks(with("x-session", A)).asks(with("x-session", B)).asks(with("x-session", "!")).asks(get("/").answered(&json!({ "headers": [["x-session", "own"]] }))),
        session("session: by cookie", "both", cookie(json!({})), false)
            .asks(by_cookie(A)).asks(by_cookie(A)).asks(by_cookie(B)).asks(by_cookie(B)).asks(by_cookie(A_COOKIE)).asks(by_cookie(A_COOKIE)).asks(by_cookie(B_COOKIE)).asks(by_cookie(&format!("\"{B_COOKIE}\""))),
        session("session: by header", "both", header("x-session"), true)
            .asks(with("x-session", A)).asks(with("x-session", A)).asks(with("x-session", B)).asks(with("x-session", B).http2()),
        session("session: who is gone, strictly", "both", header("x-session"), true).asks(with("x-session", NOBODY).is(503)).asks(with("x-session", "eHl6").is(503)),
        session("session: who is gone", "one", header("x-session"), false).asks(with("x-session", NOBODY)).asks(with("x-session", "eHl6")),
        session("session: cookies that are too old", "one", cookie(json!({})), true).asks(by_cookie(OLD_COOKIE)),
        session("session: nobody there", "dead", cookie(json!({})), false).asks(get("/").is(503)),
        session("session: nothing to remember", "one", json!({}), true).asks(get("/")).asks(by_cookie(NOBODY)),
        case("session: routes", routes(json!([
            { "match": { "prefix": "/off" }, "route": { "cluster": "one" }, "typed_per_filter_config": per(json!({ "disabled": true })) },
            { "match": { "prefix": "/own" }, "route": { "cluster": "one" }, "typed_per_filter_config": per(json!({ "stateful_session": header("x-own") })) },
            { "match": { "prefix": "/direct" }, "direct_response": { "status": 200 } },
            { "match": { "prefix": "/" }, "route": { "cluster": "one" } },
        ]))).filter("session", SESSION, header("x-session")).asks(get("/off")).asks(get("/own")).asks(get("/direct")).asks(get("/")),
        case("session: with retries", routes(json!([
            { "match": { "prefix": "/" }, "route": { "cluster": "one", "retry_policy": { "retry_on": "5xx", "num_retries": 1 } } },
        ]))).filter("session", SESSION, header("x-session"))
            .asks(get("/").answered(&json!({ "attempts": [{ "status": 503 }, { "status": 200 }] }))),
        case("session: hashed cookies", by_hash("by-cookie", "by-cookie-dead", json!({ "ttl": "60s", "path": "/a", "attributes": [{ "name": "SameSite", "value": "Lax" }, { "name": "Secure" }] })))
            .cluster("by-cookie", "one", json!({ "lb_policy": "RING_HASH" })).cluster("by-cookie-dead", "dead", json!({ "lb_policy": "MAGLEV" }))
            .asks(get("/")).asks(get("/").http2()).asks(with("cookie", "hashed=x")).asks(with("cookie", "hashed=")).asks(with("cookie", "a=b; hashed=\"\"")).asks(with("x-first", "1")).asks(get("/other")).asks(get("/dead").is(503))
            .asks(get("/").answered(&json!({ "status": 418, "headers": [["set-cookie", "other=1"]] })).is(418))
            .asks(get("/retried").answered(&json!({ "attempts": [{ "status": 503 }, { "status": 200 }] })).differs("header set-cookie", "once, not for each attempt")),
        case("session: hashed cookies of a session", by_hash("by-session-cookie", "dead", json!({ "ttl": "0.9s" }))).cluster("by-session-cookie", "one", json!({ "lb_policy": "MAGLEV" })).asks(get("/")),
        case("session: hashed cookies that nobody makes", by_hash("by-client-cookie", "dead", json!({ "path": "/a" }))).cluster("by-client-cookie", "one", json!({ "lb_policy": "MAGLEV" })).asks(get("/")).asks(with("cookie", "hashed=x")),
        session("session: a cookie without a name", "one", cookie(json!({ "name": "" })), false).refused_by_both("cookie.name: `` is not a cookie's name", "at least 1"),
        session("session: by something else", "one", json!({ "session_state": { "name": "x", "typed_config": { "@type": "type.googleapis.com/envoy.config.core.v3.Address" } } }), false)
            .refused("session_state: x (envoy.config.core.v3.Address) is not supported"),
    ]
}
