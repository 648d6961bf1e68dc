//! Cookies by which clients come again to the endpoint they had.

use std::{fmt::Write as _, net::IpAddr};

use http::{HeaderValue, request::Parts};

use crate::{
    model::{cookie::OwnCookie, hash_policy::HashPolicy},
    policy::Flow,
    route::{connection_cookie, request_hash},
};

/// A `set-cookie`.
pub(super) fn set_cookie(own: &OwnCookie, value: &str) -> Option<HeaderValue> {
    let mut out = format!("{}=\"{value}\"", own.name);
    // Writing to a string can't fail.
    if let Some(ttl) = own.ttl {
        let _ = write!(out, "; Max-Age={}", ttl.as_secs());
    }
    if !own.path.is_empty() {
        let _ = write!(out, "; Path={}", own.path);
    }
    for (name, value) in &own.attributes {
        let _ = match value.is_empty() {
            true => write!(out, "; {name}"),
            false => write!(out, "; {name}={value}"),
        };
    }
    out.push_str("; HttpOnly");
    HeaderValue::try_from(out).ok()
}

/// What a request is balanced by, and the cookies that its client is to get for that.
///
/// Spec: `envoy.config.route.v3.RouteAction.HashPolicy`.
pub(super) fn hash(
    policies: &[HashPolicy],
    head: &Parts,
    client: IpAddr,
    flow: &Flow,
) -> (Option<u64>, Vec<HeaderValue>) {
    let mut cookies = Vec::new();
    let hash = request_hash(policies, head, client, &mut |own| {
        let value = connection_cookie(flow.direct_source(), flow.original_destination());
        cookies.extend(set_cookie(own, &value));
        value
    });
    (hash, cookies)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_cookie_says_how_long_and_where() {
        let attributes =
            vec![("SameSite".to_owned(), "Lax".to_owned()), ("Secure".to_owned(), String::new())];
        let (name, path) = ("s".to_owned(), "/a".to_owned());
        let own = OwnCookie { name, path, ttl: Some(Duration::from_secs(60)), attributes };
        let said = set_cookie(&own, "value").unwrap();
        assert_eq!(said, "s=\"value\"; Max-Age=60; Path=/a; SameSite=Lax; Secure; HttpOnly");
        let bare = OwnCookie { path: String::new(), ttl: None, attributes: Vec::new(), ..own };
        assert_eq!(set_cookie(&bare, "").unwrap(), "s=\"\"; HttpOnly");
    }
}
