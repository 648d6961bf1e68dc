//! HTTP filters that judge requests.

use serde_json::{Value, json};
use tests::corpus::Ask;

use super::{Case, case, get, to};

const AMBIGUOUS: &str = "paths that two readers could take for two are not judged but refused";

fn rbac(name: &'static str, action: &str, permissions: &Value, principals: &Value) -> Case {
    let policy = json!({ "permissions": permissions, "principals": principals });
    let rules = json!({ "action": action, "policies": { "policy": policy } });
    case(name, to("one")).filter(
        "envoy.filters.http.rbac",
        "extensions.filters.http.rbac.v3.RBAC",
        json!({ "rules": rules }),
    )
}

fn allows(name: &'static str, permission: &Value) -> Case {
    rbac(name, "ALLOW", &json!([permission]), &json!([{ "any": true }]))
}

/// Changes something, with these origins.
fn post(origins: &[&str]) -> Ask {
    let ask = Ask::new("POST", "/").host("a.test");
    origins.iter().fold(ask, |ask, origin| ask.with("origin", origin))
}

#[rustfmt::skip]
pub(super) fn cases() -> Vec<Case> {
    let any = json!([{ "any": true }]);
    let local_denial = json!({ "header": { "name": "x-a", "string_match": { "exact": "b" } } });
    vec![
        rbac("rbac-deny-any", "DENY", &any, &any).asks(get("/").is(403)).asks(get("/").http2().is(403))
            .asks(Ask::new("POST", "/").with("content-type", "application/grpc").body("").http2()),
        rbac("rbac-allow-any", "ALLOW", &any, &any).asks(get("/")),
        allows("rbac-path-exact", &json!({ "url_path": { "path": { "exact": "/a" } } }))
            .asks(get("/a")).asks(get("/a?q=1")).asks(get("/a/").is(403))
            .asks(get("/%61").is(403).differs("status", AMBIGUOUS)).asks(get("/b/../a").is(403).differs("status", AMBIGUOUS)),
        allows("rbac-path-prefix", &json!({ "url_path": { "path": { "prefix": "/a" } } }))
            .asks(get("/ab")).asks(get("/b").is(403))
            .asks(get("//a").is(403).differs("status", AMBIGUOUS)).asks(get("/a/../b").differs("status", AMBIGUOUS)),
        allows("rbac-path-regex", &json!({ "url_path": { "path": { "safe_regex": { "regex": "/[ab]+" } } } }))
            .asks(get("/ab")).asks(get("/abc").is(403)),
        allows("rbac-path-template", &json!({ "uri_template": { "name": "t", "typed_config": super::typed(
            "extensions.path.match.uri_template.v3.UriTemplateMatchConfig", json!({ "path_template": "/a/{x}/*" })) } }))
            .refused("permissions[0].uri_template: is not supported"),
        allows("rbac-header", &local_denial).asks(get("/").with("x-a", "b")).asks(get("/").with("x-a", "c").is(403)).asks(get("/").is(403)),
        allows("rbac-method", &json!({ "header": { "name": ":method", "string_match": { "exact": "GET" } } }))
            .asks(get("/"))
            .asks(Ask::new("POST", "/").body("x").is(403)).asks(Ask::new("HEAD", "/").is(403)),
        allows("rbac-not", &json!({ "not_rule": local_denial })).asks(get("/")).asks(get("/").with("x-a", "b").is(403)),
        allows("rbac-or", &json!({ "or_rules": { "rules": [local_denial, { "url_path": { "path": { "exact": "/o" } } }] } }))
            .asks(get("/o")).asks(get("/").with("x-a", "b")).asks(get("/").is(403)),
        allows("rbac-and", &json!({ "and_rules": { "rules": [local_denial, { "url_path": { "path": { "exact": "/o" } } }] } }))
            .asks(get("/o").with("x-a", "b")).asks(get("/o").is(403)),
        rbac("rbac-direct-ip", "ALLOW", &any, &json!([{ "direct_remote_ip": { "address_prefix": "10.0.0.0", "prefix_len": 8 } }])).asks(get("/")),
        rbac("rbac-other-ip", "ALLOW", &any, &json!([{ "direct_remote_ip": { "address_prefix": "192.0.2.0", "prefix_len": 24 } }])).asks(get("/").is(403)),
        rbac("rbac-principal-header", "DENY", &any, &json!([{ "header": { "name": "x-who", "present_match": true } }]))
            .asks(get("/")).asks(get("/").with("x-who", "me").is(403)),
        rbac("rbac-principal-path", "DENY", &any, &json!([{ "url_path": { "path": { "prefix": "/no" } } }]))
            .asks(get("/")).asks(get("/no").is(403)),
        case("rbac-two", to("one"))
            .filter("first", "extensions.filters.http.rbac.v3.RBAC", json!({ "rules": { "action": "DENY",
                "policies": { "p": { "permissions": [local_denial], "principals": any } } } }))
            .filter("second", "extensions.filters.http.rbac.v3.RBAC", json!({ "rules": { "action": "ALLOW",
                "policies": { "p": { "permissions": [{ "url_path": { "path": { "prefix": "/a" } } }], "principals": any } } } }))
            .asks(get("/a")).asks(get("/a").with("x-a", "b").is(403)).asks(get("/b").is(403)),
        case("rbac-before-routes", super::routes(json!([{ "match": { "path": "/a" }, "route": { "cluster": "one" } }])))
            .filter("rbac", "extensions.filters.http.rbac.v3.RBAC", json!({ "rules": { "action": "DENY",
                "policies": { "p": { "permissions": any, "principals": any } } } }))
            .asks(get("/b").is(403)),
        case("csrf", to("one"))
            .filter("csrf", "extensions.filters.http.csrf.v3.CsrfPolicy", json!({
                "filter_enabled": { "default_value": { "numerator": 100 } }, "additional_origins": [{ "exact": "ok.test" }] }))
            .asks(get("/")).asks(post(&[]).is(403)).asks(post(&["http://a.test"])).asks(post(&["http://a.test"]).http2())
            .asks(post(&["https://ok.test/"])).asks(post(&["http://u@a.test?x"])).asks(post(&["http://a.test@b"]).is(403))
            .asks(post(&["http://b"]).is(403)).asks(post(&["null"]).is(403)).asks(post(&["http://a.test#x"]).is(403))
            .asks(post(&["http://a.test", "http://b"]).is(403)).asks(post(&["http://a.test", "http://b"]).http2().is(403))
            .asks(post(&[]).with("referer", "http://a.test/p")).asks(post(&["http://b"]).with("referer", "http://a.test/p").is(403))
            .asks(post(&["http://a_b"]).host("a_b")).asks(post(&["https://a_b"]).host("a_b").is(403)),
        case("lua", to("one")).filter("lua", "extensions.filters.http.lua.v3.Lua", json!({}))
            .refused("extensions.filters.http.lua.v3.Lua) is not supported"),
        case("wasm", to("one")).filter("wasm", "extensions.filters.http.wasm.v3.Wasm", json!({}))
            .refused_by_both("extensions.filters.http.wasm.v3.Wasm) is not supported", "Unable to create Wasm plugin"),
    ]
}
