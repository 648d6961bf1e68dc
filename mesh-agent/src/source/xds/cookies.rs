//! Cookies that clients get from here.
//!
//! Spec: `envoy.type.http.v3.Cookie`, `envoy.config.route.v3.RouteAction.HashPolicy.Cookie`.

use std::time::Duration;

use envoy_types::pb::google::protobuf::Duration as PbDuration;
use http::{HeaderName, HeaderValue};

use super::{common, reject::Decoder};
use crate::model::cookie::OwnCookie;

/// As Envoy, a lifetime of less than a second is none.
pub(super) fn own(
    d: &mut Decoder,
    name: String,
    ttl: Option<PbDuration>,
    path: String,
    attributes: Vec<(String, String)>,
) -> Option<OwnCookie> {
    let name = d.field("name", |d| match HeaderName::try_from(&name) {
        // A token, as names of headers are; letters count.
        Ok(_) => Some(name),
        Err(_) => d.refused(format!("`{name}` is not a cookie's name")),
    });
    let whole = |ttl: Duration| Some(Duration::from_secs(ttl.as_secs())).filter(|t| !t.is_zero());
    let ttl = match ttl {
        None => Some(None),
        Some(value) => common::duration(d, "ttl", value).map(whole),
    };
    let path = d.field("path", |d| part(d, path));
    let attributes = d.all("attributes", attributes, |d, (name, value)| {
        if name.is_empty() {
            return d.field("name", |d| d.refused("is missing"));
        }
        let name = d.field("name", |d| part(d, name));
        let value = d.field("value", |d| part(d, value));
        Some((name?, value?))
    });
    Some(OwnCookie { name: name?, ttl: ttl?, path: path?, attributes: attributes? })
}

/// Something that does not end the part of `set-cookie` that it is in.
fn part(d: &mut Decoder, text: String) -> Option<String> {
    match HeaderValue::from_str(&text) {
        Ok(_) if !text.contains(';') => Some(text),
        _ => d.refused("can't be in a cookie"),
    }
}
