//! Each answer is what Envoy 1.40 said.

use super::*;

fn request(pairs: &[(&'static str, &'static str)], options: &HttpOptions) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(*name, HeaderValue::from_static(value));
    }
    of_request(&mut headers, options, peer()).unwrap();
    headers
}

fn peer() -> Peer {
    Peer { ip: "192.0.2.7".parse().unwrap(), secure: false }
}

fn by_proxies(pairs: &[(&'static str, &'static str)], all: Vec<OriginalIp>) -> (String, String) {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(*name, HeaderValue::from_static(value));
    }
    let options = HttpOptions { original_ip: all, ..HttpOptions::default() };
    let client = match of_request(&mut headers, &options, peer()) {
        Ok(client) => client.map_or_else(|| "peer".to_owned(), |client| client.to_string()),
        Err(status) => status.as_u16().to_string(),
    };
    let forwarded = headers.get(FORWARDED_FOR).map_or("", |value| value.to_str().unwrap());
    (client, forwarded.to_owned())
}

#[test]
fn proxies_are_believed_by_their_number() {
    let xff =
        |hops, append| OriginalIp::ForwardedFor { trusted: TrustedProxies::Hops(hops), append };
    let sent = [("x-forwarded-for", "1.1.1.1, 2.2.2.2")];
    for (sent, hops, append, expected) in [
        (&sent[..], 0, false, ("2.2.2.2", "1.1.1.1, 2.2.2.2")),
        (&sent[..], 1, true, ("1.1.1.1", "1.1.1.1, 2.2.2.2,192.0.2.7")),
        (&sent[..], 2, true, ("peer", "1.1.1.1, 2.2.2.2,192.0.2.7")),
        (&[], 0, true, ("peer", "192.0.2.7")),
    ] {
        let (client, forwarded) = by_proxies(sent, vec![xff(hops, append)]);
        assert_eq!((&*client, &*forwarded), expected, "{sent:?} {hops}");
    }
}

#[test]
fn proxies_are_believed_by_their_addresses() {
    let xff = |ranges: &[&str]| OriginalIp::ForwardedFor {
        trusted: TrustedProxies::Ranges(ranges.iter().map(|net| net.parse().unwrap()).collect()),
        append: false,
    };
    for (ranges, sent, expected) in [
        (&["192.0.2.0/24", "2.0.0.0/8"][..], "9.9.9.9, 1.1.1.1, 2.2.2.2", "1.1.1.1"),
        (&["192.0.2.0/24", "2.0.0.0/8"], "2.0.0.1, 2.0.0.2", "2.0.0.1"),
        (&["192.0.2.0/24", "2.0.0.0/8"], "1.1.1.1, x, 2.0.0.2", "peer"),
        (&["192.0.2.0/24"], "x", "peer"),
        // The peer itself is nobody that is believed.
        (&["2.0.0.0/8"], "1.1.1.1, 2.2.2.2", "peer"),
    ] {
        let (client, _) = by_proxies(&[("x-forwarded-for", sent)], vec![xff(ranges)]);
        assert_eq!(client, expected, "{ranges:?} {sent}");
    }
}

#[test]
fn a_header_may_name_the_client_or_has_to() {
    let header = |rejected| OriginalIp::Header { name: "x-real-ip".to_owned(), rejected };
    let named = [("x-real-ip", "2001:db8::1")];
    assert_eq!(by_proxies(&named, vec![header(None)]).0, "2001:db8::1");
    assert_eq!(by_proxies(&named, vec![header(Some(401))]).0, "2001:db8::1");
    for sent in [&[][..], &[("x-real-ip", "me")]] {
        assert_eq!(by_proxies(sent, vec![header(None)]).0, "peer");
        assert_eq!(by_proxies(sent, vec![header(Some(401))]).0, "401");
    }
    let both = [("x-real-ip", "me"), ("x-forwarded-for", "1.1.1.1")];
    let xff = OriginalIp::ForwardedFor { trusted: TrustedProxies::Hops(0), append: false };
    assert_eq!(by_proxies(&both, vec![header(None), xff]).0, "1.1.1.1");
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
