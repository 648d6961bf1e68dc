//! Paths and hosts in the form in which they are judged, matched and sent on.
//!
//! Spec: `normalize_path`, `merge_slashes`, `path_with_escaped_slashes_action`,
//! `strip_*_host_port` and `strip_trailing_host_dot` of the HTTP connection manager;
//! RFC 3986 §6.2.2.

use std::{borrow::Cow, fmt::Write as _};

use http::{
    HeaderValue, StatusCode, Uri,
    header::HOST,
    request::Parts,
    uri::{Authority, PathAndQuery},
};

use super::{headers::is_grpc, reply::Reply, request::path_and_query};
use crate::model::http_options::{EscapedSlashes, HttpOptions, StripPort};

/// Changes a head that has been found sound, and its `authority`.
///
/// # Errors
/// The request is refused, or sent elsewhere.
pub(super) fn normalize(
    head: &mut Parts,
    authority: &mut Authority,
    options: &HttpOptions,
    dialled_port: u16,
) -> Result<(), Reply> {
    normalize_host(head, authority, options, dialled_port)?;
    let sent = path_and_query(head);
    // RFC 9110 §9.3.7: the server as a whole.
    if !sent.starts_with('/') {
        return Ok(());
    }
    let (path, query) = match sent.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (sent, None),
    };
    let mut path = Cow::Borrowed(path);
    let mut redirects = false;
    if options.escaped_slashes != EscapedSlashes::Keep
        && let Some(unescaped) = unescaped_slashes(&path)
    {
        let told = options.escaped_slashes == EscapedSlashes::Redirect;
        if options.escaped_slashes == EscapedSlashes::Reject || told && is_grpc(&head.headers) {
            return Err(refused());
        }
        redirects = told;
        path = Cow::Owned(unescaped);
    }
    if options.normalize_path
        && let Some(normal) = normal(&path)
    {
        path = Cow::Owned(normal);
    }
    if options.merge_slashes && path.contains("//") {
        path = Cow::Owned(merged(&path));
    }
    let Cow::Owned(path) = path else { return Ok(()) };
    let target = match query {
        Some(query) => format!("{path}?{query}"),
        None => path,
    };
    if redirects {
        let reply = Reply::new(StatusCode::TEMPORARY_REDIRECT, "", None, "path_normalization");
        let location = HeaderValue::try_from(target).ok().map(Box::new);
        return Err(Reply { location, ..reply });
    }
    let mut parts = std::mem::take(&mut head.uri).into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(target).map_err(|_| refused())?);
    head.uri = Uri::from_parts(parts).map_err(|_| refused())?;
    Ok(())
}

fn refused() -> Reply {
    let reply = Reply::bad_request("path_normalization_failed");
    Reply { body: bytes::Bytes::new(), ..reply }
}

fn normalize_host(
    head: &mut Parts,
    authority: &mut Authority,
    options: &HttpOptions,
    dialled_port: u16,
) -> Result<(), Reply> {
    let (mut host, mut port) = (authority.host(), authority.port_u16());
    let strips = match options.strip_port {
        StripPort::No => false,
        StripPort::Matching => port == Some(dialled_port),
        StripPort::Any => port.is_some(),
    };
    if strips {
        port = None;
    }
    let dotted = options.strip_trailing_host_dot && host.len() > 1;
    let undotted = host.strip_suffix('.').filter(|_| dotted);
    if !strips && undotted.is_none() {
        return Ok(());
    }
    host = undotted.unwrap_or(host);
    let invalid = || Reply::bad_request("invalid host header");
    let new = match port {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    };
    let value = HeaderValue::try_from(&new).map_err(|_| invalid())?;
    let new = Authority::try_from(new).map_err(|_| invalid())?;
    if head.uri.authority().is_some() {
        let mut parts = std::mem::take(&mut head.uri).into_parts();
        parts.authority = Some(new.clone());
        head.uri = Uri::from_parts(parts).map_err(|_| invalid())?;
    }
    if head.headers.contains_key(HOST) {
        head.headers.insert(HOST, value);
    }
    *authority = new;
    Ok(())
}

/// `None` where there is none to unescape.
fn unescaped_slashes(path: &str) -> Option<String> {
    let mut out = String::new();
    let mut rest = path;
    while let Some(percent) = rest.find('%') {
        let (before, escape) = rest.split_at(percent);
        let slash = match escape.get(1..3) {
            Some("2f" | "2F") => '/',
            Some("5c" | "5C") => '\\',
            _ => {
                out.push_str(before);
                out.push('%');
                rest = &escape[1..];
                continue;
            }
        };
        out.push_str(before);
        out.push(slash);
        rest = &escape[3..];
    }
    out.push_str(rest);
    (out.len() < path.len()).then_some(out)
}

/// As browsers do, and so Envoy: escapes of what needs none are decoded, `\` is `/`, what
/// needs an escape gets one, dot segments are resolved. `None` where it is normal already.
fn normal(path: &str) -> Option<String> {
    let mut out = String::with_capacity(path.len());
    let mut bytes = path.bytes().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'%' => match escape(path, at) {
                Some(decoded) if is_unreserved(decoded) => {
                    out.push(char::from(decoded));
                    bytes.nth(1);
                }
                _ => out.push('%'),
            },
            b'\\' => out.push('/'),
            b'"' | b'<' | b'>' | b'`' | b'{' | b'|' | b'}' | b'^' | 0..=b' ' | 0x7f.. => {
                // Writing to a string can't fail.
                let _ = write!(out, "%{byte:02X}");
            }
            _ => out.push(char::from(byte)),
        }
    }
    let mut resolved = String::with_capacity(out.len());
    let mut segments = out.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "." | ".." => {
                if segment == ".." {
                    resolved.truncate(resolved.rfind('/').unwrap_or(0));
                }
                if last {
                    resolved.push('/');
                }
            }
            _ => {
                resolved.push('/');
                resolved.push_str(segment);
            }
        }
    }
    (resolved != path).then_some(resolved)
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// The byte that the escape at `at` stands for.
fn escape(path: &str, at: usize) -> Option<u8> {
    let digits = path.get(at + 1..at + 3)?;
    if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    u8::from_str_radix(digits, 16).ok()
}

/// One slash where there are several; the first and the last one stay, as in Envoy, which
/// leaves `//` as it is.
fn merged(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    out.push('/');
    for segment in path.split('/').filter(|segment| !segment.is_empty()) {
        if out.len() > 1 {
            out.push('/');
        }
        out.push_str(segment);
    }
    if path.len() > 1 && path.ends_with('/') {
        out.push('/');
    }
    out
}

#[cfg(test)]
mod tests;
