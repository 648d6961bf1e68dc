//! What the fuzz targets do with a peer's bytes; `mesh-agent/tests/fuzz_seeds.rs` runs
//! the same over the seeds as an ordinary test.

use mesh_agent::{
    codec::{
        client_hello::{Hello, HelloReader},
        compression, detect, grpc, http, jwt,
        proxy_protocol::{self, Parsed},
        session,
    },
    model::{
        identity::Identity,
        listener_filter::{ProxyProtocol, TlsInspector},
        regex::WholeRegex,
        rewrite::{RegexRewrite, TemplateRewrite, UriTemplate},
    },
    proxy, source,
    transport::hbone,
};

/// Takes a peer's bytes and must not panic.
type Target = fn(&[u8]);

/// Every target by the name of its seeds' directory.
#[allow(dead_code, reason = "a fuzz target runs one, the test runs all")]
pub(crate) const ALL: &[(&str, Target)] = &[
    ("chunks", chunks),
    ("client_hello", client_hello),
    ("expand", expand),
    ("grpc", grpc),
    ("hbone_authority", hbone_authority),
    ("http1", http1),
    ("http2", http2),
    ("jwt", jwt),
    ("proxy_header", proxy_header),
    ("regex", regex),
    ("sniff", sniff),
    ("spiffe_id", spiffe_id),
    ("xds_decode", xds_decode),
    ("xds_response", xds_response),
];

/// The `:authority` of a CONNECT request.
#[allow(dead_code, reason = "see ALL")]
pub(crate) fn hbone_authority(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(address) = hbone::parse_authority(text)
    {
        // What was understood can be said again.
        assert_eq!(hbone::parse_authority(&address.to_string()).ok(), Some(address));
    }
}

/// One HTTP/1 connection's heads and chunks; the first byte says where it is split.
#[allow(dead_code, reason = "see ALL")]
pub(crate) fn http1(data: &[u8]) {
    if let Some((split, bytes)) = data.split_first() {
        http::fuzz_scan(bytes, usize::from(*split));
    }
}

/// What a client of HTTP/2 says, through a whole connection.
#[allow(dead_code, reason = "see ALL")]
pub(crate) fn http2(data: &[u8]) {
    proxy::http::fuzz_http2(data);
}

/// A pattern of the configuration, a value that is matched by it, and what is to stand for it; the
/// first two bytes say how many are whose.
#[allow(dead_code, reason = "see ALL")]
pub(crate) fn regex(data: &[u8]) {
    const VALUE_BYTES: usize = 4096;
    let [pattern, value, rest @ ..] = data else { return };
    let (pattern, rest) = rest.split_at(rest.len().min(usize::from(*pattern)));
    let (value, substitution) = rest.split_at(rest.len().min(usize::from(*value)));
    let [Ok(pattern), Ok(value), Ok(substitution)] =
        [pattern, value, substitution].map(std::str::from_utf8)
    else {
        return;
    };
    let long = value.repeat(VALUE_BYTES / value.len().max(1));
    if let Ok(regex) = pattern.parse::<WholeRegex>() {
        let rewrite = RegexRewrite::new(pattern, substitution);
        for value in [value, &long] {
            regex.is_match(value);
            if let Ok(Ok(rewritten)) = rewrite.as_ref().map(|of| of.replace_all(value)) {
                assert!(rewritten.len() <= 64 << 10);
            }
        }
    }
    if let Ok(template) = pattern.parse::<UriTemplate>() {
        let rewrite = TemplateRewrite::new(substitution, &template);
        for value in [value, &long] {
            let matches = template.is_match(value);
            if let Ok(Ok(rewritten)) = rewrite.as_ref().map(|of| of.rewrite(value)) {
                assert_eq!(rewritten.is_some(), matches);
            }
        }
    }
}

/// The chunks of one HTTP/1 request's body, and what comes behind it; the first byte says where
/// they are split.
#[allow(dead_code, reason = "see ALL")]
pub(crate) fn chunks(data: &[u8]) {
    const HEAD: &[u8] = b"POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
    if let Some((split, body)) = data.split_first() {
        http::fuzz_scan(&[HEAD, body].concat(), HEAD.len() + usize::from(*split));
    }
}

/// What a TLS client of a gateway asks for; the first byte says how much of it comes at a time.
/// It is the same however it comes.
#[allow(dead_code, reason = "see ALL")]
pub(crate) fn client_hello(data: &[u8]) {
    let Some((size, bytes)) = data.split_first() else { return };
    let options = TlsInspector { max_client_hello_bytes: 16 << 10, close_on_errors: false };
    let whole = HelloReader::new(options).read(bytes);
    let mut reader = HelloReader::new(options);
    let ends = (1..).map(|n| n * usize::from(*size).max(1)).take_while(|end| *end < bytes.len());
    for end in ends.chain([bytes.len()]) {
        let told = reader.read(&bytes[..end]);
        if told != Hello::NeedMore {
            assert_eq!(told, whole, "after {end} bytes");
            return;
        }
    }
    assert_eq!(whole, Hello::NeedMore);
}

/// Compressed content, of a client or an upstream.
#[allow(dead_code, reason = "see ALL")]
pub(crate) fn expand(data: &[u8]) {
    compression::fuzz_expand(data);
}

/// The answer of a server that a filter asks.
#[allow(dead_code, reason = "see ALL")]
pub(crate) fn grpc(data: &[u8]) {
    grpc::fuzz_answer(data);
}

/// A token of a client, keys of a server: the first byte says how many of the bytes are the
/// token; and where a client wants to go again.
#[allow(dead_code, reason = "see ALL")]
pub(crate) fn jwt(data: &[u8]) {
    jwt::fuzz_token(data);
    let _ = session::of_cookie(data, std::time::UNIX_EPOCH);
}

/// What comes before a gateway's connection proper; the first byte says what is allowed. More
/// bytes never change a decision.
#[allow(dead_code, reason = "see ALL")]
pub(crate) fn proxy_header(data: &[u8]) {
    let Some((allowed, bytes)) = data.split_first() else { return };
    let options =
        ProxyProtocol { optional: allowed & 1 != 0, v1: allowed & 2 == 0, v2: allowed & 4 == 0 };
    let whole = proxy_protocol::parse(bytes, options);
    // The longest header of version 1 and the head of version 2 are shorter.
    for end in 0..bytes.len().min(256) {
        let told = proxy_protocol::parse(&bytes[..end], options);
        if told != Parsed::NeedMore {
            assert_eq!(told, whole, "after {end} bytes");
        }
    }
    if let Parsed::Header { bytes: length, .. } = whole {
        assert!(length <= bytes.len());
    }
}

/// The first bytes of a captured connection: more bytes never change a decision.
#[allow(dead_code, reason = "see ALL")]
pub(crate) fn sniff(data: &[u8]) {
    let mut decided = None;
    for end in 0..=data.len().min(64) {
        let now = detect::detect(&data[..end]);
        if let Some(before) = decided {
            assert_eq!(now, before, "{:?}", &data[..end]);
        }
        decided = (now != detect::Detected::NeedMore).then_some(now);
    }
}

/// A URI SAN of a peer's certificate.
#[allow(dead_code, reason = "see ALL")]
pub(crate) fn spiffe_id(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(identity) = text.parse::<Identity>()
    {
        assert_eq!(identity.to_string(), text);
    }
}

/// An xDS resource: the first byte picks the type, the rest is the message.
#[allow(dead_code, reason = "see ALL")]
pub(crate) fn xds_decode(data: &[u8]) {
    if let Some((first, value)) = data.split_first() {
        let type_url = source::TYPE_URLS[usize::from(*first) % source::TYPE_URLS.len()];
        let _ = source::decode_any(type_url, value);
    }
}

/// What a control plane sends: the first byte picks the variant, the rest is the response.
#[allow(dead_code, reason = "see ALL")]
pub fn xds_response(data: &[u8]) {
    if let Some((first, response)) = data.split_first() {
        let variant = if first % 2 == 0 { source::Variant::Sotw } else { source::Variant::Delta };
        let _ = source::hear(variant, response);
    }
}
