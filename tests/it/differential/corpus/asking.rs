//! Filters that judge requests by tokens, or ask somebody else.

mod tokens;

use serde_json::{Value, json};
use tests::corpus::Ask;

use super::{Case, case, get, routes, to, typed};
pub(super) use tokens::JWKS;

const AUTHZ: &str = "extensions.filters.http.ext_authz.v3.ExtAuthz";
const AUTHZ_PER_ROUTE: &str = "extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute";
const JWT: &str = "extensions.filters.http.jwt_authn.v3.JwtAuthentication";
const JWT_PER_ROUTE: &str = "extensions.filters.http.jwt_authn.v3.PerRouteConfig";
const FILTER_CONFIG: &str = "config.route.v3.FilterConfig";
const RBAC: &str = "extensions.filters.http.rbac.v3.RBAC";

pub(super) fn cases() -> Vec<Case> {
    [jwt_cases(), jwt_key_cases(), authz_grpc_cases(), authz_http_cases()].concat()
}

fn jwks() -> Value {
    json!({ "inline_string": JWKS })
}

/// A provider `p` of issuer `https://a`, with these fields.
fn provider(fields: Value) -> Value {
    let mut provider = json!({ "issuer": "https://a", "local_jwks": jwks() });
    super::merge(&mut provider, fields);
    provider
}

/// Every request needs a token of `p`.
fn jwt(name: &'static str, fields: Value) -> Case {
    rules(name, json!({ "p": provider(fields) }), json!({ "provider_name": "p" }))
}

fn rules(name: &'static str, providers: Value, requires: Value) -> Case {
    case(name, to("one")).filter(
        "jwt",
        JWT,
        json!({
            "providers": providers, "rules": [{ "match": { "prefix": "/" }, "requires": requires }],
        }),
    )
}

fn bearing(token: &str) -> Ask {
    get("/").with("authorization", &format!("Bearer {token}"))
}

#[rustfmt::skip]
fn jwt_cases() -> Vec<Case> {
    use tokens::*;
    let b = json!({ "issuer": "https://b", "local_jwks": jwks(), "forward": true });
    let two = json!({ "p": provider(json!({})), "q": b });
    let writer = provider(json!({
        "forward_payload_header": "x-payload",
        "claim_to_headers": [{ "header_name": "x-sub", "claim_name": "sub" }, { "header_name": "x-none", "claim_name": "none" }],
    }));
    let forged = |method: &str, path: &str| {
        Ask::new(method, path).with("x-payload", "forged").with("x-sub", "forged").with("x-none", "forged").with("x-other", "kept")
    };
    let either = json!({ "requires_any": { "requirements": [{ "provider_name": "p" }, { "provider_name": "q" }] } });
    let lenient = |kind: &str| json!({ "requires_any": { "requirements": [{ "provider_name": "p" }, { kind: {} }] } });
    let admin = json!({ "rules": { "policies": { "p": { "permissions": [{ "any": true }], "principals": [
        { "metadata": { "filter": "envoy.filters.http.jwt_authn", "path": [{ "key": "claims" }, { "key": "scope" }],
                        "value": { "list_match": { "one_of": { "string_match": { "exact": "write" } } } } } },
    ] } } } });
    vec![
        jwt("jwt: tokens are verified", json!({}))
            .asks(bearing(RSA)).asks(bearing(PSS)).asks(bearing(EC)).asks(bearing(ED))
            .asks(get("/").is(401))
            .asks(get("/a?b=c").with("authorization", "Basic eDp5").is(401))
            .asks(bearing(EXPIRED).is(401)).asks(bearing(EARLY).is(401)).asks(bearing(STRANGER).is(401))
            .asks(bearing(FORGED).is(401)).asks(bearing(WRONG_KID).is(401)).asks(bearing(ENDLESS))
            .asks(bearing("a.b").is(401)).asks(bearing("a.b.c").is(401)).asks(bearing("").is(401))
            .asks(get(&format!("/x?a=1&access_token={EC}&b=2")))
            .asks(get(&format!("/x?access_token={EC}")))
            .asks(get(&format!("/x?access_token={EXPIRED}")).is(401))
            // Both have to be good.
            .asks(get(&format!("/x?access_token={EXPIRED}")).with("authorization", &format!("Bearer {EC}")).is(401))
            .asks(bearing(EC).http2()).asks(get("/").http2().is(401))
            .asks(get("/").with("content-type", "application/grpc").http2().is(200)),
        jwt("jwt: tokens are for an audience", json!({ "audiences": ["http://two"] })).asks(bearing(EC)).asks(bearing(OTHER_AUDIENCE).is(403)),
        jwt("jwt: tokens are found where they are said to be", json!({
            "from_headers": [{ "name": "X-Token" }, { "name": "x-other", "value_prefix": "JWT=" }],
            "from_params": ["t"], "from_cookies": ["c"],
        }))
            .asks(get("/").with("x-token", EC)).asks(get("/").with("x-other", &format!("JWT={EC}")))
            .asks(get("/").with("x-other", EC).is(401)).asks(bearing(EC).is(401))
            .asks(get(&format!("/?t={EC}"))).asks(get("/").with("cookie", &format!("a=b; c={EC}"))),
        jwt("jwt: tokens are passed on", json!({
            "forward": true, "forward_payload_header": "x-payload", "pad_forward_payload_header": true,
            "claim_to_headers": [
                { "header_name": "x-sub", "claim_name": "sub" }, { "header_name": "x-n", "claim_name": "n" },
                { "header_name": "x-real", "claim_name": "real" }, { "header_name": "x-yes", "claim_name": "yes" },
                { "header_name": "x-er", "claim_name": "deep.er" }, { "header_name": "x-aud", "claim_name": "aud" },
                { "header_name": "x-none", "claim_name": "none" },
            ],
        }))
            .asks(bearing(EC).with("x-sub", "forged").with("x-none", "forged").with("x-payload", "forged")),
        case("jwt: what providers write is not for clients, whatever is required", routes(json!([
            { "match": { "prefix": "/off" }, "route": { "cluster": "one" }, "typed_per_filter_config": { "jwt": typed(JWT_PER_ROUTE, json!({ "disabled": true })) } },
            { "match": { "prefix": "/filter-off" }, "route": { "cluster": "one" }, "typed_per_filter_config": { "jwt": typed(FILTER_CONFIG, json!({ "disabled": true })) } },
            { "match": { "prefix": "/" }, "route": { "cluster": "one" } },
        ]))).filter("jwt", JWT, json!({
            "providers": { "p": writer.clone(), "q": b.clone() }, "bypass_cors_preflight": true,
            "rules": [
                { "match": { "prefix": "/free" } },
                { "match": { "prefix": "/q" }, "requires": { "provider_name": "q" } },
                { "match": { "prefix": "/lenient" }, "requires": { "allow_missing_or_failed": {} } },
            ],
        }))
            .asks(forged("GET", "/none")).asks(forged("GET", "/off")).asks(forged("GET", "/filter-off")).asks(forged("GET", "/free")).asks(forged("GET", "/lenient"))
            .asks(forged("GET", "/q").with("authorization", &format!("Bearer {OTHER_ISSUER}"))).asks(forged("GET", "/none").http2())
            .asks(forged("OPTIONS", "/q").with("origin", "a").with("access-control-request-method", "PUT")),
        case("jwt: providers without rules", to("one")).filter("jwt", JWT, json!({ "providers": { "p": writer.clone() } })).asks(forged("GET", "/")),
        rules("jwt: two providers that write the same", json!({
            "p": provider(json!({ "claim_to_headers": [{ "header_name": "x-sub", "claim_name": "sub" }] })),
            "q": { "issuer": "https://b", "local_jwks": jwks(), "from_headers": [{ "name": "x-q" }], "claim_to_headers": [{ "header_name": "x-sub", "claim_name": "sub" }] },
        }), json!({ "requires_all": { "requirements": [{ "provider_name": "q" }, { "provider_name": "p" }] } }))
            .asks(bearing(EC).with("x-q", OTHER_ISSUER).with("x-sub", "forged")),
        jwt("jwt: padding is whole or none", json!({})).asks(bearing(&format!("{EC}=="))).asks(bearing(&format!("{EC}=")).is(401)),
        jwt("jwt: times of tokens have a range", json!({ "local_jwks": { "inline_string": SECRET } }))
            .asks(bearing(PLAIN)).asks(bearing(FRACTION)).asks(bearing(LARGE_EXP)).asks(bearing(LARGER_EXP)).asks(bearing(LIMIT_EXP).is(401)).asks(bearing(HUGE_EXP).is(401))
            .asks(bearing(HUGE_IAT).is(401)).asks(bearing(HUGE_NBF).is(401)).asks(bearing(NEG_EXP).is(401)).asks(bearing(PADDED)),
        jwt("jwt: payloads without padding", json!({ "forward_payload_header": "x-payload" })).asks(bearing(EC)),
        jwt("jwt: how long tokens live", json!({ "max_lifetime": "3600s" })).asks(bearing(EC).is(401)).asks(bearing(ENDLESS).is(401)),
        jwt("jwt: tokens have to end", json!({ "require_expiration": true })).asks(bearing(EC)).asks(bearing(ENDLESS).is(401)),
        jwt("jwt: tokens have a subject", json!({ "subjects": { "prefix": "m" } })).asks(bearing(EC)),
        jwt("jwt: tokens have another subject", json!({ "subjects": { "prefix": "x" } })).asks(bearing(EC).is(401)),
        rules("jwt: any of two providers", two.clone(), either)
            .asks(bearing(EC)).asks(bearing(OTHER_ISSUER)).asks(bearing(STRANGER).is(401)).asks(bearing(EXPIRED).is(401)).asks(get("/").is(401)),
        rules("jwt: both of two providers", two.clone(), json!({ "requires_all": { "requirements": [{ "provider_name": "q" }, { "provider_name": "p" }] } }))
            .asks(bearing(EC).is(401)).asks(bearing(OTHER_ISSUER).is(401)),
        rules("jwt: tokens may be missing", two.clone(), json!({ "allow_missing": {} }))
            .asks(get("/")).asks(bearing(EC)).asks(bearing(EXPIRED).is(401)).asks(bearing(STRANGER).is(401)),
        rules("jwt: tokens may be bad", two.clone(), json!({ "allow_missing_or_failed": {} }))
            .asks(get("/")).asks(bearing(EC)).asks(bearing(EXPIRED)).asks(bearing("a.b")),
        rules("jwt: one provider or a missing token", two.clone(), lenient("allow_missing"))
            .asks(get("/")).asks(bearing(EC)).asks(bearing(EXPIRED).is(401)).asks(bearing(OTHER_ISSUER).is(401)),
        rules("jwt: one provider or whatever", two.clone(), lenient("allow_missing_or_failed"))
            .asks(get("/")).asks(bearing(EXPIRED)).asks(bearing(OTHER_ISSUER)),
        rules("jwt: audiences of a requirement", two.clone(), json!({ "provider_and_audiences": { "provider_name": "p", "audiences": ["three"] } }))
            .asks(bearing(EC).is(403)).asks(bearing(OTHER_AUDIENCE)),
        case("jwt: rules by path", to("one")).filter("jwt", JWT, json!({
            "providers": { "p": provider(json!({})) },
            "requirement_map": { "named": { "provider_name": "p" } },
            "bypass_cors_preflight": true, "strip_failure_response": true,
            "rules": [
                { "match": { "prefix": "/open" } },
                { "match": { "path": "/named" }, "requirement_name": "named" },
                { "match": { "prefix": "/a", "headers": [{ "name": "x-a", "string_match": { "exact": "1" } }] }, "requires": { "provider_name": "p" } },
            ],
        }))
            .asks(get("/open/a")).asks(get("/named").is(401)).asks(get("/named?x").is(401)).asks(get("/a")).asks(get("/a").with("x-a", "1").is(401)).asks(get("/z"))
            .asks(Ask::new("OPTIONS", "/named").with("origin", "a").with("access-control-request-method", "PUT")),
        case("jwt: what routes say of tokens", routes(json!([
            { "match": { "prefix": "/off" }, "route": { "cluster": "one" }, "typed_per_filter_config": { "jwt": typed(JWT_PER_ROUTE, json!({ "disabled": true })) } },
            { "match": { "prefix": "/named" }, "route": { "cluster": "one" }, "typed_per_filter_config": { "jwt": typed(JWT_PER_ROUTE, json!({ "requirement_name": "named" })) } },
            { "match": { "prefix": "/unknown" }, "route": { "cluster": "one" }, "typed_per_filter_config": { "jwt": typed(JWT_PER_ROUTE, json!({ "requirement_name": "x" })) } },
            { "match": { "prefix": "/" }, "route": { "cluster": "one" } },
        ]))).filter("jwt", JWT, json!({
            "providers": { "p": provider(json!({})) },
            "requirement_map": { "named": { "provider_name": "p" } },
            "rules": [{ "match": { "prefix": "/o" }, "requires": { "provider_name": "p" } }],
        }))
            .asks(get("/off")).asks(get("/named").is(401)).asks(get("/named").with("authorization", &format!("Bearer {EC}"))).asks(get("/unknown").is(403)).asks(get("/z")),
        jwt("jwt: claims are read by rbac", json!({ "payload_in_metadata": "claims", "normalize_payload_in_metadata": { "space_delimited_claims": ["scope"] } }))
            .filter("rbac", RBAC, admin.clone()).asks(bearing(EC)),
        jwt("jwt: claims that are not noted", json!({ "header_in_metadata": "claims" })).filter("rbac", RBAC, admin).asks(bearing(EC).is(403)),
        case("jwt: claims choose the route", routes(json!([
            { "match": { "prefix": "/", "headers": [{ "name": "x-sub", "string_match": { "exact": "me" } }] }, "route": { "cluster": "two" } },
            { "match": { "prefix": "/" }, "route": { "cluster": "one" } },
        ]))).filter("jwt", JWT, json!({
            "providers": { "p": provider(json!({ "clear_route_cache": true, "claim_to_headers": [{ "header_name": "x-sub", "claim_name": "sub" }] })) },
            "rules": [{ "match": { "prefix": "/" }, "requires": { "provider_name": "p" } }],
        }))
            .asks(bearing(EC)).asks(bearing(RSA).with("x-sub", "me")),
        case("jwt: claims in headers of the route", routes(json!([
            { "match": { "prefix": "/" }, "route": { "cluster": "one" }, "request_headers_to_add": [
                { "header": { "key": "x-n", "value": "%DYNAMIC_METADATA(envoy.filters.http.jwt_authn:claims:n)%" } },
                { "header": { "key": "x-sub", "value": "%DYNAMIC_METADATA(envoy.filters.http.jwt_authn:claims:sub)%" } },
                { "header": { "key": "x-deep", "value": "%DYNAMIC_METADATA(envoy.filters.http.jwt_authn:claims:deep:list)%" } },
                { "header": { "key": "x-real", "value": "%DYNAMIC_METADATA(envoy.filters.http.jwt_authn:claims:real)%" } },
            ] },
        ]))).filter("jwt", JWT, json!({
            "providers": { "p": provider(json!({ "payload_in_metadata": "claims" })) },
            "rules": [{ "match": { "prefix": "/" }, "requires": { "provider_name": "p" } }],
        }))
            .asks(bearing(EC)),
        jwt("jwt: tokens without validation", json!({ "failed_status_in_metadata": "x" })).refused(".failed_status_in_metadata: is not supported"),
    ]
}

/// Keys that are fetched.
#[rustfmt::skip]
fn jwt_key_cases() -> Vec<Case> {
    use tokens::*;
    let remote = |cluster: &str, path: &str| {
        let uri = json!({ "uri": format!("http://keys{path}"), "cluster": cluster, "timeout": "2s" });
        json!({ "p": { "issuer": "https://a", "remote_jwks": { "http_uri": uri, "cache_duration": "60s" } } })
    };
    let p = || json!({ "provider_name": "p" });
    vec![
        rules("jwt: keys are fetched", remote("http-authority", "/jwks"), p()).asks(bearing(EC)).asks(bearing(RSA)).asks(bearing(FORGED).is(401)).asks(get("/").is(401)),
        rules("jwt: keys that are not there", remote("http-authority", "/jwks-none"), p()).asks(bearing(EC).is(401)),
        rules("jwt: keys of nobody", remote("dead", "/jwks"), p()).asks(bearing(EC).is(401)),
        rules("jwt: keys of no cluster", remote("nowhere", "/jwks"), p()).asks(bearing(EC).is(401)),
        rules("jwt: keys that are too large", remote("http-authority", "/jwks-huge"), p())
            .asks(bearing(EC).differs("status", "a JWKS of more than a MiB is not read").is(200)),
    ]
}

/// Every request is asked about by gRPC.
fn by_grpc(name: &'static str, routes: Value, fields: Value) -> Case {
    by_grpc_of(name, "grpc-authority", routes, fields)
}

fn by_grpc_of(name: &'static str, cluster: &str, routes: Value, fields: Value) -> Case {
    let service = json!({ "envoy_grpc": { "cluster_name": cluster }, "timeout": "1s" });
    let mut config = json!({ "transport_api_version": "V3", "grpc_service": service });
    super::merge(&mut config, fields);
    case(name, routes).filter("authz", AUTHZ, config)
}

fn says(how: &str) -> Ask {
    get("/a?b=c").with("x-authority", how)
}

#[rustfmt::skip]
fn authz_grpc_cases() -> Vec<Case> {
    let per_route = |prefix: &str, config: Value| json!({
        "match": { "prefix": prefix }, "route": { "cluster": "one" }, "typed_per_filter_config": { "authz": typed(AUTHZ_PER_ROUTE, config) },
    });
    let rest = json!({ "match": { "prefix": "/" }, "route": { "cluster": "one" } });
    let post = |body: &str| Ask::new("POST", "/a").body(body);
    vec![
        by_grpc("authz: by gRPC", to("one"), json!({}))
            .asks(get("/a?b=c").with("x-a", "1").with("x-a", "2")).asks(get("/").http2()).asks(post("body"))
            .asks(says("deny").is(401)).asks(says("deny-plain").is(403)).asks(says("deny").http2().with("content-type", "application/grpc").is(200))
            .asks(says("error").is(403)).asks(says("slow").is(403)).asks(says("huge").differs("status", "an answer of more than 4 MiB is no answer: a denial").is(500))
            .asks(says("change").with("x-set", "old").with("x-add", "old").with("x-if-there", "old").with("x-gone", "1"))
            .asks(says("change")),
        by_grpc("authz: failures are let pass", to("one"), json!({ "failure_mode_allow": true, "failure_mode_allow_header_add": true }))
            .asks(says("error")).asks(says("slow")).asks(says("deny").is(401)),
        by_grpc("authz: status of failures", to("one"), json!({ "status_on_error": { "code": "ServiceUnavailable" } })).asks(says("error").is(503)).asks(get("/")),
        by_grpc_of("authz: nobody there", "dead", to("one"), json!({})).asks(get("/").is(403)),
        by_grpc_of("authz: no cluster", "nowhere", to("one"), json!({})).asks(get("/").is(403)),
        by_grpc("authz: headers that are told", to("one"), json!({
            "allowed_headers": { "patterns": [{ "prefix": "x-" }] }, "disallowed_headers": { "patterns": [{ "exact": "x-secret" }] },
        })).asks(get("/").with("x-secret", "1").with("x-a", "1").with("authorization", "2")),
        by_grpc("authz: bodies", to("one"), json!({ "with_request_body": { "max_request_bytes": 8 } }))
            .asks(get("/")).asks(post("1234567")).asks(post("123456789").is(413)).asks(post("1234567").http2()),
        by_grpc("authz: parts of bodies", to("one"), json!({ "with_request_body": { "max_request_bytes": 8, "allow_partial_message": true, "pack_as_bytes": true } }))
            .asks(post("1234567")).asks(post("1234567890123")),
        by_grpc("authz: routes", routes(json!([
            per_route("/off", json!({ "disabled": true })),
            per_route("/more", json!({ "check_settings": { "context_extensions": { "a": "b" } } })),
            per_route("/none", json!({ "check_settings": { "disable_request_body_buffering": true } })),
            rest,
        ])), json!({ "with_request_body": { "max_request_bytes": 8 } }))
            .asks(get("/off").with("x-authority", "deny")).asks(get("/more")).asks(get("/more").with("x-authority", "deny").is(401))
            .asks(Ask::new("POST", "/none").body("123456789")),
        by_grpc("authz: another route", routes(json!([
            { "match": { "prefix": "/", "headers": [{ "name": "x-to", "string_match": { "exact": "two" } }] }, "route": { "cluster": "two" } }, rest,
        ])), json!({ "clear_route_cache": true })).asks(says("route")).asks(says("")),
        by_grpc("authz: metadata of the answer", routes(json!([
            { "match": { "prefix": "/" }, "route": { "cluster": "one" }, "request_headers_to_add": [
                { "header": { "key": "x-user", "value": "%DYNAMIC_METADATA(authz:user)%" } },
                { "header": { "key": "x-level", "value": "%DYNAMIC_METADATA(authz:level)%" } },
                { "header": { "key": "x-default", "value": "%DYNAMIC_METADATA(envoy.filters.http.ext_authz:user)%" } },
            ] },
        ])), json!({})).asks(says("change")),
        by_grpc("authz: refused", to("one"), json!({ "include_peer_certificate": true })).refused(".include_peer_certificate: is not supported"),
        by_grpc("authz: another version", to("one"), json!({ "transport_api_version": "V2" })).refused(".transport_api_version: only V3 is supported"),
    ]
}

#[rustfmt::skip]
fn authz_http_cases() -> Vec<Case> {
    let exact = |names: &[&str]| {
        let patterns: Vec<Value> = names.iter().map(|name| json!({ "exact": name })).collect();
        json!({ "patterns": patterns })
    };
    let http = |name: &'static str, service: Value, fields: Value| {
        let uri = json!({ "uri": "http://authority", "cluster": "http-authority", "timeout": "1s" });
        let mut config = json!({ "transport_api_version": "V3", "http_service": { "server_uri": uri }, "allowed_headers": exact(&["x-authority", "x-a"]) });
        super::merge(&mut config["http_service"], service);
        super::merge(&mut config, fields);
        case(name, to("one")).filter("authz", AUTHZ, config)
    };
    vec![
        http("authz: by HTTP", json!({
            "path_prefix": "/check", "authorization_request": { "headers_to_add": [{ "key": "x-added", "value": "yes" }] },
            "authorization_response": {
                "allowed_upstream_headers": exact(&["x-asked", "x-set"]), "allowed_upstream_headers_to_append": exact(&["x-add"]),
                "allowed_client_headers": exact(&["x-why"]), "allowed_client_headers_on_success": exact(&["x-for-client"]),
            },
        }), json!({}))
            .asks(get("/a?b=c").with("authorization", "x").with("x-a", "1").with("x-b", "2").with("x-set", "old").with("x-add", "old"))
            .asks(Ask::new("POST", "/a").body("body")).asks(get("/").http2())
            .asks(says("deny").is(403)).asks(says("error").is(403)).asks(says("slow").is(403)),
        http("authz: by HTTP, all headers", json!({}), json!({})).asks(get("/a"))
            .asks(says("deny").differs("header x-envoy-upstream-service-time", "the time of a call is no part of its answer").is(403)),
        http("authz: by HTTP, bodies", json!({ "authorization_response": { "allowed_upstream_headers": exact(&["x-asked"]) } }), json!({ "with_request_body": { "max_request_bytes": 8 } }))
            .asks(Ask::new("POST", "/a").body("1234567")).asks(Ask::new("POST", "/a").body("123456789").is(413)),
    ]
}
