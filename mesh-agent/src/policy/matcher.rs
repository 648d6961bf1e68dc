//! String and header matchers, as Envoy evaluates them.
//!
//! Values are bytes: a header may hold any. Nothing here allocates, except for a
//! header that is there several times and for a regex on a value that is not UTF-8.
//!
//! Spec: `envoy/type/matcher/v3/string.proto`, `HeaderMatcher` in
//! `envoy/config/route/v3/route_components.proto`.

use std::borrow::Cow;

use http::{HeaderMap, HeaderValue, StatusCode, header::HOST, request::Parts};

use crate::model::route::{HeaderMatchKind, HeaderMatcher};

/// Whether a request's header matches.
///
/// A missing header matches nothing, inverted or not, except a `present_match` and
/// where it is to be treated as empty. Of a header that is there several times any value
/// may match, each by itself (Envoy since 1.39, `match_headers_individually`).
pub fn header_matches(matcher: &HeaderMatcher, head: &Parts) -> bool {
    let values = head.headers.get_all(&*matcher.name);
    // Pseudo-headers and `host` are there once, whatever the map holds.
    let once = matcher.name.starts_with(':') || matcher.name == "host";
    if once || values.iter().nth(1).is_none() {
        return joined_header_matches(matcher, head);
    }
    values.iter().any(|value| kind_matches(&matcher.kind, value.as_bytes())) != matcher.invert
}

/// As [`header_matches`], of a response.
pub fn response_header_matches(
    matcher: &HeaderMatcher,
    status: StatusCode,
    headers: &HeaderMap,
) -> bool {
    if matcher.name == ":status" {
        return value_matches(matcher, Some(status.as_str().as_bytes()));
    }
    let mut values = headers.get_all(&*matcher.name).iter().map(HeaderValue::as_bytes);
    match (values.next(), values.next()) {
        (first, None) => value_matches(matcher, first),
        _ => {
            let values = headers.get_all(&*matcher.name).iter();
            let mut matched = values.map(|value| kind_matches(&matcher.kind, value.as_bytes()));
            matched.any(|matched| matched) != matcher.invert
        }
    }
}

/// As [`header_matches`], of the values joined by `,`: how an application may read them.
pub(super) fn joined_header_matches(matcher: &HeaderMatcher, head: &Parts) -> bool {
    value_matches(matcher, header_value(&matcher.name, head).as_deref())
}

/// As [`header_matches`], of a value that was found already.
pub(super) fn value_matches(matcher: &HeaderMatcher, value: Option<&[u8]>) -> bool {
    let value = value.or(matcher.treat_missing_as_empty.then_some(b""));
    let matched = match (&matcher.kind, value) {
        (HeaderMatchKind::Present(present), None) => !present,
        (_, None) => return false,
        (kind, Some(value)) => kind_matches(kind, value),
    };
    matched != matcher.invert
}

fn kind_matches(kind: &HeaderMatchKind, value: &[u8]) -> bool {
    match kind {
        HeaderMatchKind::Present(present) => *present,
        HeaderMatchKind::String(string) => string.matches(value),
        HeaderMatchKind::Range { start, end } => {
            integer(value).is_some_and(|n| (*start..*end).contains(&n))
        }
    }
}

/// As `absl::SimpleAtoi`: a whole decimal number, white space around it allowed.
fn integer(value: &[u8]) -> Option<i64> {
    std::str::from_utf8(value.trim_ascii()).ok()?.parse().ok()
}

/// A header's value by lower-case name; pseudo-headers and `host` are answered from
/// the request line, as in Envoy, where HTTP/1.1's `Host` is `:authority`.
fn header_value<'a>(name: &str, head: &'a Parts) -> Option<Cow<'a, [u8]>> {
    match name {
        ":method" => Some(Cow::Borrowed(head.method.as_str().as_bytes())),
        ":path" => {
            let path = head.uri.path_and_query()?.as_str();
            (!path.is_empty()).then_some(Cow::Borrowed(path.as_bytes()))
        }
        ":authority" | "host" => authority(head).map(Cow::Borrowed),
        ":scheme" => Some(Cow::Borrowed(head.uri.scheme_str().unwrap_or("http").as_bytes())),
        name => {
            let mut values = head.headers.get_all(name).iter();
            let first = values.next()?.as_bytes();
            let Some(second) = values.next() else { return Some(Cow::Borrowed(first)) };
            let mut joined = [first, b",", second.as_bytes()].concat();
            for value in values {
                joined.push(b',');
                joined.extend_from_slice(value.as_bytes());
            }
            Some(Cow::Owned(joined))
        }
    }
}

/// As [`header_value`], but of a header that is there several times only the first value.
pub fn first_value<'a>(name: &str, head: &'a Parts) -> Option<&'a [u8]> {
    if let Some(value) = head.headers.get(name) {
        return Some(value.as_bytes());
    }
    match header_value(name, head)? {
        Cow::Borrowed(value) => Some(value),
        // Pseudo-headers are all borrowed, and there is no other header of that name.
        Cow::Owned(_) => None,
    }
}

/// The host a request is for, with its port where it names one, as sent.
///
/// HTTP/2's `:authority` and HTTP/1.1's absolute form go before `Host`; a request
/// where they differ never gets here, see [`authority_is_ambiguous`].
pub fn authority(head: &Parts) -> Option<&[u8]> {
    match head.uri.authority() {
        Some(authority) => Some(authority.as_str().as_bytes()),
        None => head.headers.get(HOST).map(HeaderValue::as_bytes),
    }
}

/// Whether policy and application might disagree about the host: several `Host`
/// headers, one that differs from `:authority`, or credentials in it.
///
/// Spec: RFC 9112 §3.2 (several Host fields), RFC 9113 §8.3.1 (a Host that differs,
/// userinfo).
pub fn authority_is_ambiguous(head: &Parts) -> bool {
    let mut hosts = head.headers.get_all(HOST).iter().map(HeaderValue::as_bytes);
    let host = hosts.next();
    let differs = match (head.uri.authority(), host) {
        (Some(authority), Some(host)) => !authority.as_str().as_bytes().eq_ignore_ascii_case(host),
        _ => false,
    };
    differs || hosts.next().is_some() || authority(head).is_some_and(|a| a.contains(&b'@'))
}

/// The path without query and fragment; empty for `CONNECT host:port`.
pub fn url_path(head: &Parts) -> &str {
    let path = head.uri.path_and_query().map_or("", |path| path.as_str());
    path.split(['?', '#']).next().unwrap_or("")
}

#[cfg(test)]
mod tests;
