use serde_json::json;

use super::*;
use crate::{
    model::{
        jwks::{Jwk, Jwks, Key},
        jwt_authn::ClaimToHeader,
    },
    policy::fixtures::request,
};

fn provider(issuer: Option<&str>, locations: Vec<JwtLocation>) -> Arc<JwtProvider> {
    let key = Jwk { kid: None, alg: None, key: Key::Octets(b"x".to_vec()) };
    Arc::new(JwtProvider {
        name: "p".to_owned(),
        issuer: issuer.map(str::to_owned),
        audiences: Vec::new(),
        subjects: None,
        require_expiration: false,
        max_lifetime: None,
        clock_skew: Duration::from_secs(60),
        jwks: JwksSource::Local(Arc::new(Jwks { keys: vec![key] })),
        locations,
        forward: false,
        forward_payload_header: None,
        pad_forward_payload_header: false,
        payload_in_metadata: None,
        header_in_metadata: None,
        space_delimited_claims: Vec::new(),
        claim_to_headers: Vec::new(),
        clear_route_cache: false,
    })
}

fn header(name: &str, prefix: &str) -> JwtLocation {
    JwtLocation::Header { name: name.to_owned(), prefix: prefix.to_owned() }
}

#[test]
fn what_providers_write_is_not_for_clients() {
    let mut first = Arc::unwrap_or_clone(provider(None, Vec::new()));
    first.forward_payload_header = Some(HeaderName::from_static("x-payload"));
    let mut second = Arc::unwrap_or_clone(provider(None, Vec::new()));
    let claim = |name| ClaimToHeader {
        path: vec!["sub".to_owned()],
        header: HeaderName::from_static(name),
    };
    second.claim_to_headers = vec![claim("x-a"), claim("x-b")];
    let forged = [("x-payload", "f"), ("x-a", "f"), ("x-a", "g"), ("x-b", "f"), ("x-c", "kept")];
    let mut head = request("GET", "/", &forged);
    strip(&[Arc::new(first), Arc::new(second)], &mut head.headers);
    let left: Vec<_> = head.headers.keys().map(HeaderName::as_str).collect();
    assert!(!left.iter().any(|name| ["x-payload", "x-a", "x-b"].contains(name)), "{left:?}");
    assert!(left.contains(&"x-c"));
}

#[test]
fn tokens_are_found_in_each_place_once() {
    let providers = [
        provider(Some("a"), vec![header("x-t", "Bearer "), JwtLocation::Parameter("t".to_owned())]),
        provider(None, vec![header("x-t", "Bearer "), JwtLocation::Cookie("c".to_owned())]),
    ];
    let head = request(
        "GET",
        "/?a=1&%74=two%2e&t=no",
        &[("x-t", "Bearer  one"), ("x-t", "Basic x"), ("cookie", "b=c; c=three")],
    );
    let tokens = tokens(&providers, &head);
    let found: Vec<_> = tokens.iter().map(|t| (t.text.as_str(), t.issuers.clone())).collect();
    assert_eq!(
        found,
        [("one", vec![Some("a"), None]), ("two.", vec![Some("a")]), ("three", vec![None])]
    );
}

#[test]
fn a_parameter_goes_and_the_others_stay() {
    for (path, expected) in [
        ("/p?a=1&t=x&b=%20&t=y", "/p?a=1&b=%20"),
        ("/p?t=x", "/p"),
        ("/p?tt=x", "/p?tt=x"),
        ("/p", "/p"),
    ] {
        let mut head = request("GET", path, &[]);
        remove(&mut head, &JwtLocation::Parameter("t".to_owned()));
        assert_eq!(head.uri.path_and_query().unwrap().as_str(), expected);
    }
}

#[test]
fn audiences_are_compared_without_scheme_and_last_slash() {
    let allowed = ["https://a/".to_owned(), "b".to_owned()];
    for (audience, expected) in
        [("a", true), ("http://a", true), ("a//", false), ("http://b/", true), ("c", false)]
    {
        assert_eq!(is_among(audience, &allowed), expected, "{audience}");
    }
}

#[test]
fn claims_as_text() {
    for (claim, expected) in [
        (json!("x"), Some("x")),
        (json!(""), None),
        (json!(null), None),
        (json!(7), Some("7")),
        (json!(7.0), Some("7")),
        (json!(-7), Some("-7.000000")),
        (json!(1.5), Some("1.500000")),
        (json!(false), Some("false")),
        (json!(["a"]), Some("WyJhIl0=")),
    ] {
        assert_eq!(claim_text(&claim).as_deref(), expected, "{claim}");
    }
}

#[test]
fn time_is_judged_with_some_skew() {
    let check = |claims: Value, change: fn(&mut JwtProvider)| {
        let engine = base64::prelude::BASE64_URL_SAFE_NO_PAD;
        let [header, claims] =
            [json!({ "alg": "ES256" }), claims].map(|v| engine.encode(v.to_string()));
        let token = format!("{header}.{claims}.AA");
        let jwt = Jwt::parse(&token).unwrap();
        let mut provider = Arc::unwrap_or_clone(provider(None, Vec::new()));
        change(&mut provider);
        in_time(&jwt, &provider, Duration::from_secs(1000))
    };
    fn max(provider: &mut JwtProvider) {
        provider.max_lifetime = Some(Duration::from_secs(100));
    }
    assert_eq!(check(json!({}), |_| {}), Ok(()));
    assert_eq!(check(json!({ "exp": 940, "nbf": 1060 }), |_| {}), Ok(()));
    assert_eq!(check(json!({ "exp": 939 }), |_| {}), Err(JwtError::Expired));
    assert_eq!(check(json!({ "nbf": 1061 }), |_| {}), Err(JwtError::NotYetValid));
    assert_eq!(check(json!({}), |p| p.require_expiration = true), Err(JwtError::VerificationFails));
    assert_eq!(check(json!({ "exp": 1100 }), max), Ok(()));
    assert_eq!(check(json!({ "exp": 1101 }), max), Err(JwtError::VerificationFails));
    assert_eq!(check(json!({}), max), Err(JwtError::VerificationFails));
}
