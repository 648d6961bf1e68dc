//! Heads as they come and as they go on: checked, stripped, translated.
//!
//! Spec: RFC 9110 §7.6.1 (hop-by-hop), RFC 9112 §3.2 (host), RFC 9113 §8.2.2, §8.2.3, §8.3.

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Uri, Version,
    header::{
        CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, EXPECT, HOST, TE, TRAILER,
        TRANSFER_ENCODING, UPGRADE,
    },
    request::Parts,
    uri::{Authority, PathAndQuery, Scheme},
};
use hyper::ext::ReasonPhrase;

use super::{
    grpc,
    reply::Reply,
    rewrites::{Hosts, Rewrites},
    switch::{self, Switch},
};
use crate::{
    codec::http::content_length, model::http_options::Underscores, observe::flags::ResponseFlag,
    transport::http_pool::HttpProtocol,
};

pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(super) const ATTEMPT_COUNT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");
pub(super) const OVERLOADED: HeaderName = HeaderName::from_static("x-envoy-overloaded");
pub(super) const TIMEOUT_RETRY: HeaderName = HeaderName::from_static("x-envoy-is-timeout-retry");
pub(super) const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// Envoy's "this is who the client proved to be".
pub(super) const FORWARDED_CLIENT_CERT: HeaderName =
    HeaderName::from_static("x-forwarded-client-cert");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const ORIGINAL_HOST: HeaderName = HeaderName::from_static("x-envoy-original-host");
const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");
const EXPECTED_TIMEOUT: HeaderName = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// The methods that Envoy takes by HTTP/1.
const METHODS: [&str; 34] = [
    "ACL",
    "BIND",
    "CHECKOUT",
    "CONNECT",
    "COPY",
    "DELETE",
    "GET",
    "HEAD",
    "LINK",
    "LOCK",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MOVE",
    "MSEARCH",
    "NOTIFY",
    "OPTIONS",
    "PATCH",
    "POST",
    "PROPFIND",
    "PROPPATCH",
    "PURGE",
    "PUT",
    "REBIND",
    "REPORT",
    "SEARCH",
    "SOURCE",
    "SUBSCRIBE",
    "TRACE",
    "UNBIND",
    "UNLINK",
    "UNLOCK",
    "UNSUBSCRIBE",
];
/// So many items in `connection` are refused, as in Envoy.
const NOMINATED_MAX: usize = 10;

/// What a request is sent to, once its head has been found sound.
#[derive(Debug, Clone)]
pub(super) struct Checked {
    pub(super) authority: Authority,
}

/// Refuses heads that could not be forwarded unambiguously.
pub(super) fn check(head: &Parts) -> Result<Checked, Reply> {
    if head.version < Version::HTTP_2 {
        check_http1(head)?;
    } else if head.headers.get_all(CONTENT_LENGTH).iter().nth(1).is_some() {
        // Of two that are the same HTTP/2 looks at one, and both would go on. By HTTP/1 the
        // scanner takes none.
        return Err(Reply::bad_request("several content-length headers"));
    }
    let mut hosts = head.headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(Reply::bad_request("several host headers"));
    }
    let authority = match (head.uri.authority(), host) {
        // Where they differ policy refuses.
        (Some(authority), _) => authority.clone(),
        (None, Some(host)) => Authority::try_from(host.as_bytes())
            .map_err(|_| Reply::bad_request("invalid host header"))?,
        (None, None) => return Err(Reply::bad_request("no host header")),
    };
    if authority.as_str().contains('@') {
        return Err(Reply::bad_request("credentials in the authority"));
    }
    let scheme = head.uri.scheme();
    if scheme.is_some_and(|scheme| *scheme != Scheme::HTTP && *scheme != Scheme::HTTPS) {
        return Err(Reply::bad_request("unsupported scheme"));
    }
    let target = match head.uri.path() {
        // RFC 9110 §9.3.6: host and port, and nothing else.
        _ if head.method == Method::CONNECT => {
            head.uri.path_and_query().is_none() && head.uri.authority().is_some()
        }
        "*" => head.method == Method::OPTIONS,
        path => path.starts_with('/'),
    };
    if !target {
        return Err(Reply::bad_request("invalid request target"));
    }
    Ok(Checked { authority })
}

/// Refuses or drops headers with `_` in their names, which some servers take for `-`.
pub(super) fn check_names(headers: &mut HeaderMap, action: Underscores) -> Result<(), Reply> {
    if action == Underscores::Allow || !headers.keys().any(|name| name.as_str().contains('_')) {
        return Ok(());
    }
    if action == Underscores::Reject {
        return Err(Reply::bad_request("header with underscores"));
    }
    let names: Vec<_> =
        headers.keys().filter(|name| name.as_str().contains('_')).cloned().collect();
    for name in names {
        headers.remove(name);
    }
    Ok(())
}

/// There are more headers than may be.
pub(super) fn too_many() -> Reply {
    let (status, flag) =
        (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, ResponseFlag::DownstreamProtocolError);
    let body = "Request Header Fields Too Large";
    Reply { close: true, ..Reply::new(status, body, Some(flag), "too many headers") }
}

/// What Envoy refuses of HTTP/1 only.
fn check_http1(head: &Parts) -> Result<(), Reply> {
    if head.version < Version::HTTP_11 {
        let reply =
            Reply::new(StatusCode::UPGRADE_REQUIRED, "Upgrade Required", None, "low_version");
        return Err(Reply { close: true, ..reply });
    }
    if !METHODS.contains(&head.method.as_str()) {
        return Err(Reply::bad_request("unknown method"));
    }
    for (n, name) in nominated(&head.headers).enumerate() {
        // Without these the request would be another one.
        let kept = [HOST, FORWARDED_FOR, FORWARDED_HOST, FORWARDED_PROTO];
        if n + 1 >= NOMINATED_MAX
            || name.first() == Some(&b':')
            || kept.iter().any(|kept| name.eq_ignore_ascii_case(kept.as_str().as_bytes()))
        {
            let reply = Reply::bad_request("invalid nominated header in connection");
            // Envoy's answer to this one is empty.
            return Err(match name.eq_ignore_ascii_case(HOST.as_str().as_bytes()) {
                true => Reply { body: Bytes::new(), ..reply },
                false => reply,
            });
        }
    }
    Ok(())
}

/// What `connection` names.
pub(super) fn nominated(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let values = headers.get_all(CONNECTION).iter();
    values.flat_map(|value| value.as_bytes().split(|b| *b == b',')).map(<[u8]>::trim_ascii)
}

/// Turns a request's head into the one that goes upstream, to `host`.
pub(super) fn forwarded(
    head: &mut Parts,
    Hosts { host, original }: Hosts,
    rewrites: Rewrites<'_>,
    protocol: HttpProtocol,
) -> Result<(), Reply> {
    let trailers = wants_trailers(&head.headers);
    strip_hop_by_hop(&mut head.headers);
    // Answered by the agent: the body is asked for when the upstream wants it. Of other
    // expectations the upstream has to say whether it meets them.
    let asked = head.headers.get(EXPECT).map(HeaderValue::as_bytes);
    if asked.is_some_and(|expected| expected.eq_ignore_ascii_case(b"100-continue")) {
        head.headers.remove(EXPECT);
    }
    let action = rewrites.action;
    let per_try = action.attempts.retry.as_ref().and_then(|retry| retry.per_try_timeout);
    if let Some(timeout) = per_try.or(rewrites.timeout) {
        let milliseconds = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        head.headers.insert(EXPECTED_TIMEOUT, HeaderValue::from(milliseconds));
        if action.grpc_timeout.is_some() && is_grpc(&head.headers) {
            grpc::set_timeout(&mut head.headers, timeout);
        }
    }
    if let Some(original) = original {
        let original = HeaderValue::from_str(original.as_str())
            .map_err(|_| Reply::bad_request("invalid authority"))?;
        original_host(&mut head.headers, original, rewrites.action.append_x_forwarded_host);
    }
    let connect = head.method == Method::CONNECT;
    let path = match rewrites.path(&head.uri)? {
        Some(path) => {
            let original = head.uri.path_and_query().map_or("/", |path| path.as_str());
            if let Ok(original) = HeaderValue::from_str(original) {
                head.headers.insert(ORIGINAL_PATH, original);
            }
            path
        }
        None => {
            head.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"))
        }
    };
    match protocol {
        HttpProtocol::Http1 => {
            head.version = Version::HTTP_11;
            // Always the authority that was judged, whatever form it came in.
            let value = HeaderValue::from_str(host.as_str())
                .map_err(|_| Reply::bad_request("invalid authority"))?;
            head.headers.insert(HOST, value);
            if trailers {
                head.headers.insert(TE, HeaderValue::from_static("trailers"));
                head.headers.insert(CONNECTION, HeaderValue::from_static("te"));
            }
            head.uri = if connect { Uri::from(host) } else { Uri::from(path) };
        }
        HttpProtocol::Http2 => {
            head.version = Version::HTTP_2;
            head.headers.remove(HOST);
            if trailers {
                head.headers.insert(TE, HeaderValue::from_static("trailers"));
            }
            head.uri = match connect {
                true => Uri::from(host),
                false => Uri::builder()
                    .scheme(scheme(head))
                    .authority(host)
                    .path_and_query(path)
                    .build()
                    .map_err(|_| Reply::bad_request("invalid request target"))?,
            };
        }
    }
    join_cookies(&mut head.headers);
    Ok(())
}

/// What the client says it is; where its protocol does not, what a proxy before says.
fn scheme(head: &Parts) -> Scheme {
    match (head.uri.scheme(), head.headers.get(FORWARDED_PROTO)) {
        (Some(own), _) => own.clone(),
        (None, Some(told)) if told.as_bytes().eq_ignore_ascii_case(b"https") => Scheme::HTTPS,
        (None, _) => Scheme::HTTP,
    }
}

/// Tells the upstream what host it was before.
pub(super) fn original_host(headers: &mut HeaderMap, host: HeaderValue, append: bool) {
    if append {
        let known = headers.get(FORWARDED_HOST).map(HeaderValue::as_bytes);
        let last = known.and_then(|known| known.rsplit(|b| *b == b',').next());
        if last.is_none_or(|last| last.trim_ascii() != host.as_bytes()) {
            append_value(headers, FORWARDED_HOST, &host, ",");
        }
    }
    headers.insert(ORIGINAL_HOST, host);
}

/// Adds to the one value that a header has, as Envoy does to those it knows.
pub(super) fn append_value(
    headers: &mut HeaderMap,
    name: HeaderName,
    value: &HeaderValue,
    separator: &str,
) {
    let joined = match headers.get(&name) {
        Some(known) if !known.is_empty() => {
            let joined = [known.as_bytes(), separator.as_bytes(), value.as_bytes()].concat();
            // Parts of valid values, joined by visible characters, are one.
            HeaderValue::from_bytes(&joined).unwrap_or_else(|_| value.clone())
        }
        _ => value.clone(),
    };
    headers.insert(name, joined);
}

/// A request without a body says so where its method leaves that open, as Envoy has it.
///
/// Spec: RFC 9110 §8.6.
pub(super) fn tell_no_body(head: &mut Parts) {
    let has_none =
        matches!(head.method, Method::GET | Method::HEAD | Method::DELETE | Method::TRACE);
    if !has_none {
        head.headers.entry(CONTENT_LENGTH).or_insert(HeaderValue::from_static("0"));
    }
}

/// A body of unknown length is in chunks, whatever the method: hyper would leave out that of
/// a GET or HEAD unless it is told.
pub(super) fn tell_body(head: &mut Parts) {
    if matches!(head.method, Method::GET | Method::HEAD)
        && !head.headers.contains_key(CONTENT_LENGTH)
    {
        head.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
}

/// Envoy's words for a status, where hyper has others; those of an upstream are never passed on.
pub(super) fn name_status<B>(response: &mut Response<B>) {
    response.extensions_mut().remove::<ReasonPhrase>();
    let words: &[u8] = match (response.status().as_u16(), response.status().canonical_reason()) {
        (203, _) => b"Non-Authoritative Information",
        (599, _) => b"Last Unassigned Server Error Code",
        (418 | 451, _) | (_, None) => b"Unknown",
        (_, Some(_)) => return,
    };
    response.extensions_mut().insert(ReasonPhrase::from_static(words));
}

/// A response's head as it goes downstream.
///
/// # Errors
/// What is wrong with it, where it can't be passed on.
pub(super) fn sanitize_response(
    status: StatusCode,
    headers: &mut HeaderMap,
    switching: Option<&Switch>,
) -> Result<(), &'static str> {
    if let Some(Switch::Connect) = switching {
        // Spec: RFC 9110 §9.3.6: what frames a body means nothing here.
        strip_hop_by_hop(headers);
        headers.remove(CONTENT_LENGTH);
        return Ok(());
    }
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let coding = codings.next();
    let is_other =
        |coding: &HeaderValue| !coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
    if coding.is_some_and(is_other) || codings.next().is_some() {
        return Err("upstream used an unsupported transfer-encoding");
    }
    // Not looked at by hyper where there is no body, and none of a list.
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let length = lengths.next().map(|length| content_length(length.as_bytes()));
    if length == Some(None) || lengths.next().is_some() {
        return Err("upstream told no valid content-length");
    }
    let framed = coding.is_some() || length.flatten().is_some_and(|length| length > 0);
    let switches = status == StatusCode::SWITCHING_PROTOCOLS;
    if framed && (switches || status == StatusCode::NO_CONTENT) {
        return Err("upstream framed a body of a response that has none");
    }
    if switches {
        let protocol = headers.get(UPGRADE).cloned().filter(|_| switching.is_some());
        let protocol = protocol.ok_or("upstream switched protocols without being asked")?;
        strip_hop_by_hop(headers);
        headers.remove(CONTENT_LENGTH);
        switch::offer(headers, protocol);
        return Ok(());
    }
    // Spec: RFC 9112 §6.3, item 3: "ought to be handled as an error". Somebody else may have
    // taken the other one for the response's end.
    if headers.contains_key(TRANSFER_ENCODING) && headers.contains_key(CONTENT_LENGTH) {
        return Err("upstream framed its response twice");
    }
    strip_hop_by_hop(headers);
    if status == StatusCode::NO_CONTENT {
        headers.remove(CONTENT_LENGTH);
    }
    Ok(())
}

fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        // Naming these would take away what frames, routes or judges the message, or what the
        // agent itself says.
        let kept = [HOST, CONTENT_LENGTH, TRAILER, FORWARDED_CLIENT_CERT];
        let nominated: Vec<HeaderName> = nominated(headers)
            .filter_map(|name| HeaderName::from_bytes(name).ok())
            .filter(|name| !kept.contains(name))
            .collect();
        for name in nominated {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    let hop_by_hop = [KEEP_ALIVE, PROXY_CONNECTION, HTTP2_SETTINGS, TE, TRANSFER_ENCODING, UPGRADE];
    // Mostly there is none, and to look at names is less than to hash them.
    if headers.keys().any(|name| hop_by_hop.contains(name)) {
        for name in hop_by_hop {
            headers.remove(name);
        }
    }
}

/// Spec: RFC 9110 §6.5.1: fields that frame, route or authenticate are no trailers.
pub(super) fn strip_trailers(trailers: &mut HeaderMap) {
    strip_hop_by_hop(trailers);
    let never = [CONTENT_LENGTH, HOST, CONTENT_TYPE, TRAILER, EXPECT, FORWARDED_CLIENT_CERT];
    for name in never {
        trailers.remove(name);
    }
}

/// Whether the client understands trailers.
fn wants_trailers(headers: &HeaderMap) -> bool {
    let mut tokens =
        headers.get_all(TE).iter().flat_map(|value| value.as_bytes().split(|b| *b == b','));
    tokens.any(|token| token.trim_ascii().eq_ignore_ascii_case(b"trailers"))
}

/// HTTP/2 may split the one `cookie` header of HTTP/1. Spec: RFC 9113 §8.2.3.
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let crumbs: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    // Parts of valid values, joined by visible characters, are one.
    if let Ok(cookie) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        headers.insert(COOKIE, cookie);
    }
}

/// Whether the client speaks gRPC and wants errors told so.
pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    kind.and_then(|kind| kind.strip_prefix(b"application/grpc"))
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// A random UUID. Spec: RFC 9562 §5.4.
pub(super) fn new_request_id() -> HeaderValue {
    let mut id: u128 = rand::random();
    id = (id & !(0xf << 76)) | (0x4 << 76);
    id = (id & !(0b11 << 62)) | (0b10 << 62);
    let hex = format!("{id:032x}");
    let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
    // Hexadecimal digits and dashes always are a valid value.
    HeaderValue::from_str(&parts.join("-")).unwrap_or(HeaderValue::from_static("-"))
}

#[cfg(test)]
mod tests {
    use http::header::{CONNECTION, COOKIE, HOST, TE};

    use super::{HeaderMap, HeaderValue, is_grpc, join_cookies, new_request_id, strip_hop_by_hop};

    #[test]
    fn a_request_id_is_a_version_4_uuid() {
        let id = new_request_id();
        let id = id.to_str().unwrap();
        assert_eq!(id.len(), 36, "{id}");
        assert_eq!(id.as_bytes()[14], b'4', "{id}");
        assert!(b"89ab".contains(&id.as_bytes()[19]), "{id}");
        assert_ne!(id, new_request_id().to_str().unwrap());
    }

    #[test]
    fn hop_by_hop_headers_go_no_further() {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_static("a"));
        headers.append(CONNECTION, HeaderValue::from_static("x-hop, close , host"));
        headers.append(CONNECTION, HeaderValue::from_static("x-other"));
        headers.insert(TE, HeaderValue::from_static("gzip"));
        for name in ["x-hop", "x-other", "keep-alive", "x-end"] {
            headers.insert(name, HeaderValue::from_static("1"));
        }
        strip_hop_by_hop(&mut headers);
        let mut left: Vec<_> = headers.keys().map(|name| name.as_str()).collect();
        left.sort_unstable();
        assert_eq!(left, ["host", "x-end"]);
    }

    #[test]
    fn cookie_crumbs_are_joined() {
        let mut headers = HeaderMap::new();
        headers.append(COOKIE, HeaderValue::from_static("a=1"));
        headers.append(COOKIE, HeaderValue::from_static("b=2"));
        join_cookies(&mut headers);
        assert_eq!(headers.get_all(COOKIE).iter().collect::<Vec<_>>(), ["a=1; b=2"]);
    }

    #[test]
    fn grpc_is_told_by_its_content_type() {
        for (kind, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc-web", false),
            ("application/json", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("content-type", HeaderValue::from_static(kind));
            assert_eq!(is_grpc(&headers), expected, "{kind}");
        }
    }
}
