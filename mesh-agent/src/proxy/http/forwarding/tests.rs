//! Each answer is what Envoy 1.40 said.

use super::*;

fn request(pairs: &[(&'static str, &'static str)], options: &HttpOptions) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(*name, HeaderValue::from_static(value));
    }
    let (remote, local) = ("192.0.2.7:999".parse().unwrap(), "10.0.0.1:80".parse().unwrap());
    of_request(&mut headers, options, (remote, local), false);
    headers
}

const CLAIMS: [(&str, &str); 6] = [
    ("x-forwarded-for", "1.2.3.4"),
    ("x-forwarded-proto", "https"),
    ("x-request-id", "my"),
    ("x-envoy-internal", "true"),
    ("x-envoy-retry-on", "5xx"),
    ("x-envoy-original-path", "/"),
];

#[test]
fn a_proxy_before_is_believed_but_for_what_steers() {
    let headers = request(&CLAIMS, &HttpOptions::default());
    for (name, value) in [
        ("x-forwarded-for", "1.2.3.4"),
        ("x-forwarded-proto", "https"),
        ("x-request-id", "my"),
        ("x-envoy-original-path", "/"),
    ] {
        assert_eq!(headers[name], value, "{name}");
    }
    assert!(!headers.contains_key("x-envoy-internal"));
    assert!(!headers.contains_key("x-envoy-retry-on"));
    let headers = request(&[], &HttpOptions::default());
    assert_eq!(headers["x-forwarded-proto"], "http");
    assert_eq!(headers["x-request-id"].len(), 36);
    assert!(!headers.contains_key("x-forwarded-for"));
}

#[test]
fn a_client_is_not_believed() {
    let options = HttpOptions { use_remote_address: true, ..HttpOptions::default() };
    let headers = request(&CLAIMS, &options);
    for (name, value) in [
        ("x-forwarded-for", "1.2.3.4,192.0.2.7"),
        ("x-forwarded-proto", "http"),
        ("x-envoy-external-address", "192.0.2.7"),
    ] {
        assert_eq!(headers[name], value, "{name}");
    }
    assert_ne!(headers["x-request-id"], "my");
    for name in ["x-envoy-internal", "x-envoy-retry-on", "x-envoy-original-path"] {
        assert!(!headers.contains_key(name), "{name}");
    }
    let kept = HttpOptions { preserve_external_request_id: true, skip_xff_append: true, ..options };
    let headers = request(&CLAIMS, &kept);
    assert_eq!(headers["x-request-id"], "my");
    assert_eq!(headers["x-forwarded-for"], "1.2.3.4");
}

#[test]
fn some_proxies_may_be_believed() {
    let options =
        HttpOptions { use_remote_address: true, trusted_hops: 2, ..HttpOptions::default() };
    for (sent, expected) in [
        (&["1.1.1.1, 2.2.2.2, 3.3.3.3"][..], "2.2.2.2"),
        (&["1.1.1.1, 2.2.2.2", "3.3.3.3"], "2.2.2.2"),
        (&["1.1.1.1"], "192.0.2.7"),
        (&["x, 1.1.1.1"], "192.0.2.7"),
        (&[], "192.0.2.7"),
    ] {
        let mut pairs: Vec<_> = sent.iter().map(|value| ("x-forwarded-for", *value)).collect();
        pairs.push(("x-forwarded-proto", "https"));
        let headers = request(&pairs, &options);
        assert_eq!(headers["x-envoy-external-address"], expected, "{sent:?}");
        assert_eq!(headers["x-forwarded-proto"], "https");
    }
}

#[test]
fn a_response_says_who_served_it() {
    for (server_header, upstreams, expected) in [
        (ServerHeader::Overwrite, Some("up"), Some("srv")),
        (ServerHeader::Overwrite, None, Some("srv")),
        (ServerHeader::AppendIfAbsent, Some("up"), Some("up")),
        (ServerHeader::AppendIfAbsent, None, Some("srv")),
        (ServerHeader::PassThrough, Some("up"), Some("up")),
        (ServerHeader::PassThrough, None, None),
    ] {
        let options = HttpOptions {
            server_header,
            server_name: HeaderValue::from_static("srv"),
            via: Some(HeaderValue::from_static("me")),
            request_id_in_response: true,
            ..HttpOptions::default()
        };
        let mut headers = HeaderMap::new();
        headers.extend(upstreams.map(|server| (SERVER, HeaderValue::from_static(server))));
        headers.insert(VIA, HeaderValue::from_static("a"));
        let id = HeaderValue::from_static("id");
        of_response(&mut headers, &options, Some(&id));
        assert_eq!(headers.get(SERVER).map(|name| name.to_str().unwrap()), expected);
        assert_eq!(headers[VIA], "a, me");
        assert_eq!(headers[REQUEST_ID], "id");
    }
}
