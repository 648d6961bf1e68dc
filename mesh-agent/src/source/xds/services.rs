//! Servers that filters ask: where, and how long they may take.
//!
//! Spec: `envoy/config/core/v3/http_uri.proto`.

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::{HttpUri as PbHttpUri, http_uri::HttpUpstreamType};
use http::uri::{Authority, Uri};

use super::{common, reject::Decoder};
use crate::model::{cluster::ClusterName, jwt_authn::HttpUri};

/// Spec: `envoy.config.core.v3.HttpUri`.
pub(super) fn http_uri(d: &mut Decoder, value: PbHttpUri) -> Option<HttpUri> {
    let PbHttpUri { uri, timeout, http_upstream_type } = value;
    let cluster = match http_upstream_type {
        Some(HttpUpstreamType::Cluster(name)) if !name.is_empty() => Some(ClusterName(name.into())),
        _ => d.field("cluster", |d| d.refused("is missing")),
    };
    let timeout = match timeout {
        Some(value) => common::duration(d, "timeout", value),
        None => d.field("timeout", |d| d.refused("is missing")),
    };
    let place = d.field("uri", |d| match parts(&uri) {
        Some(place) => Some(place),
        None => d.refused(format!("`{uri}` is no address: http://HOST/PATH")),
    });
    let (authority, path) = place?;
    Some(HttpUri {
        cluster: cluster?,
        authority: authority.to_string(),
        path,
        timeout: timeout.filter(|timeout| *timeout > Duration::ZERO || refuse_zero(d))?,
    })
}

fn refuse_zero(d: &mut Decoder) -> bool {
    d.refuse_field("timeout", "must be more than zero");
    false
}

/// As Envoy, which takes the host for what stands behind `//`, or before the first slash.
fn parts(uri: &str) -> Option<(Authority, String)> {
    let rest = uri.split_once("://").map_or(uri, |(_, rest)| rest);
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let authority = Authority::try_from(authority).ok()?;
    let path = if path.is_empty() { "/" } else { path };
    Uri::try_from(path).ok()?;
    (!authority.as_str().contains('@')).then(|| (authority, path.to_owned()))
}
