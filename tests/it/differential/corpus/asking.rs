//! Filters that judge requests by tokens, or ask somebody else.

mod tokens;

use serde_json::{Value, json};
use tests::corpus::Ask;

use super::{Case, case, get, routes, to, typed};
pub(super) use tokens::JWKS;

const JWT: &str = "extensions.filters.http.jwt_authn.v3.JwtAuthentication";
const JWT_PER_ROUTE: &str = "extensions.filters.http.jwt_authn.v3.PerRouteConfig";
const RBAC: &str = "extensions.filters.http.rbac.v3.RBAC";

pub(super) fn cases() -> Vec<Case> {
    [jwt_cases(), jwt_key_cases()].concat()
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
