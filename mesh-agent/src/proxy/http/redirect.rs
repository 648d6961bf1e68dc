//! Where a client is sent instead.
//!
//! Spec: `envoy.config.route.v3.RedirectAction`.

use std::borrow::Cow;

use http::{HeaderValue, StatusCode, request::Parts};

use super::{
    reply::Reply,
    request::path_and_query,
    rewrites::{misconfigured, with_prefix},
};
use crate::{
    model::{
        rewrite::RewrittenTooLong,
        route::{PathMatch, Redirect, RedirectPath},
    },
    policy::matcher::{authority, first_value},
};

/// The answer of a route that redirects.
pub(super) fn reply(redirect: &Redirect, matched: &PathMatch, head: &Parts) -> Reply {
    let status = StatusCode::from_u16(redirect.status).unwrap_or(StatusCode::MOVED_PERMANENTLY);
    let reply = Reply::new(status, "", None, "direct_response");
    let Ok(location) = location(redirect, matched, head) else {
        return misconfigured("the route makes no valid path of this request");
    };
    let location = HeaderValue::from_bytes(&location).ok();
    Reply { location: location.map(Box::new), ..reply }
}

/// The URL that the request itself is for.
pub(super) fn own_location(head: &Parts) -> Option<HeaderValue> {
    let host = authority(head)?;
    let path = path_and_query(head).as_bytes();
    HeaderValue::from_bytes(&[scheme(head).as_bytes(), b"://", host, path].concat()).ok()
}

fn location(
    redirect: &Redirect,
    matched: &PathMatch,
    head: &Parts,
) -> Result<Vec<u8>, RewrittenTooLong> {
    let own = scheme(head);
    let scheme = redirect.scheme.as_deref().unwrap_or(own);
    let mut location = [scheme.as_bytes(), b"://"].concat();
    match &redirect.host {
        Some(host) => location.extend_from_slice(host.as_bytes()),
        None => {
            let host = authority(head).unwrap_or_default();
            location.extend_from_slice(without_old_port(host, redirect, scheme, head));
        }
    }
    if let Some(port) = redirect.port {
        location.extend_from_slice(format!(":{port}").as_bytes());
    }
    let path = path(redirect, matched, path_and_query(head))?;
    location.extend_from_slice(path.as_bytes());
    Ok(location)
}

/// What a request came by: what it says itself, or else what the proxy before says.
fn scheme(head: &Parts) -> &str {
    match (head.uri.scheme_str(), first_value("x-forwarded-proto", head)) {
        (Some(scheme), _) => scheme,
        (None, Some(b"https")) => "https",
        (None, _) => "http",
    }
}

/// A port goes where there is another one, and where it is the old scheme's own.
fn without_old_port<'a>(
    host: &'a [u8],
    redirect: &Redirect,
    scheme: &str,
    head: &Parts,
) -> &'a [u8] {
    let colon = host.iter().rposition(|b| *b == b':');
    let bracket = host.iter().rposition(|b| *b == b']');
    let Some(colon) = colon.filter(|colon| bracket.is_none_or(|bracket| bracket < *colon)) else {
        return host;
    };
    let (bare, port) = host.split_at(colon);
    let came_by = first_value("x-forwarded-proto", head).unwrap_or(b"http");
    let default = matches!((came_by, port), (b"http", b":80") | (b"https", b":443"));
    if redirect.port.is_some() || default && came_by != scheme.as_bytes() { bare } else { host }
}

fn path<'a>(
    redirect: &'a Redirect,
    matched: &PathMatch,
    sent: &'a str,
) -> Result<Cow<'a, str>, RewrittenTooLong> {
    let (path, query) = match sent.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (sent, None),
    };
    let new: Cow<'a, str> = match &redirect.path {
        // Its own query goes before the request's.
        RedirectPath::Whole(whole) if whole.contains('?') => return Ok(whole.into()),
        RedirectPath::Whole(whole) => whole.into(),
        RedirectPath::Same => path.into(),
        RedirectPath::Prefix(prefix) => with_prefix(path, matched, prefix).into(),
        RedirectPath::Regex(rewrite) => match rewrite.replace_all(path)? {
            rewritten if rewritten.is_empty() => path.into(),
            rewritten => rewritten.into(),
        },
    };
    Ok(match query.filter(|_| !redirect.strip_query) {
        Some(query) => format!("{new}?{query}").into(),
        None => new,
    })
}

#[cfg(test)]
mod tests;
