//! Servers that filters ask: where, and how long they may take.
//!
//! Spec: `envoy/config/core/v3/{http_uri,grpc_service}.proto`.

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::{
    GrpcService as PbGrpcService, HeaderValue as PbHeaderValue, HttpUri as PbHttpUri,
    grpc_service::{EnvoyGrpc, TargetSpecifier},
    http_uri::HttpUpstreamType,
};
use http::{
    HeaderName, HeaderValue,
    uri::{Authority, Uri},
};

use super::{
    common,
    reject::{Decoder, unsupported},
};
use crate::model::{
    cluster::ClusterName,
    ext_authz::{ANSWER_MAX_BYTES, GrpcService},
    jwt_authn::HttpUri,
};

/// How long a gRPC server has where nothing is said, as in Envoy's filters.
const GRPC_TIMEOUT_DEFAULT: Duration = Duration::from_millis(200);

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

/// Spec: `envoy.config.core.v3.GrpcService`: by `envoy_grpc` only.
pub(super) fn grpc_service(d: &mut Decoder, value: PbGrpcService) -> Option<GrpcService> {
    let PbGrpcService { timeout, initial_metadata, retry_policy, target_specifier } = value;
    unsupported!(d; retry_policy);
    let timeout = common::timeout(d, "timeout", timeout, Some(GRPC_TIMEOUT_DEFAULT));
    let initial_metadata = d.all("initial_metadata", initial_metadata, literal_header);
    let (cluster, authority, answer_max_bytes) = match target_specifier {
        Some(TargetSpecifier::EnvoyGrpc(value)) => d.field("envoy_grpc", |d| {
            let (cluster_name, authority, max) = envoy_grpc(d, value);
            let authority = if authority.is_empty() { cluster_name.clone() } else { authority };
            let max = max.and_then(|max| usize::try_from(max).ok());
            let max = max.filter(|max| *max > 0).unwrap_or(ANSWER_MAX_BYTES).min(ANSWER_MAX_BYTES);
            Some((ClusterName(cluster_name.into()), authority, max))
        })?,
        Some(TargetSpecifier::GoogleGrpc(_)) => return d.not_supported("google_grpc"),
        None => return d.refused("has no envoy_grpc"),
    };
    Some(GrpcService {
        cluster,
        authority,
        timeout: timeout?,
        initial_metadata: initial_metadata?,
        answer_max_bytes,
    })
}

/// The cluster's name, the authority, and how large a message may be.
pub(super) fn envoy_grpc(d: &mut Decoder, value: EnvoyGrpc) -> (String, String, Option<u32>) {
    let EnvoyGrpc {
        cluster_name,
        authority,
        retry_policy,
        max_receive_message_length,
        // Headers that the agent does not set.
        skip_envoy_headers: _,
    } = value;
    unsupported!(d; retry_policy);
    if cluster_name.is_empty() {
        d.refuse_field("cluster_name", "is missing");
    }
    (cluster_name, authority, max_receive_message_length.map(|most| most.value))
}

/// A header whose value is as it is written.
pub(super) fn literal_header(
    d: &mut Decoder,
    value: PbHeaderValue,
) -> Option<(HeaderName, HeaderValue)> {
    let PbHeaderValue { key, value, raw_value } = value;
    unsupported!(d; raw_value);
    if value.contains('%') {
        return d.field("value", |d| d.refused("command operators are not supported here"));
    }
    match (HeaderName::try_from(&key), HeaderValue::try_from(&value)) {
        (Ok(name), Ok(value)) => Some((name, value)),
        _ => d.refused(format!("`{key}` is no valid header")),
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::google::protobuf::UInt32Value;

    use super::*;

    /// How large an answer may be where the configuration says `most`.
    fn answer_max_bytes(most: Option<u32>) -> usize {
        let service = EnvoyGrpc {
            cluster_name: "asked".to_owned(),
            max_receive_message_length: most.map(|value| UInt32Value { value }),
            ..EnvoyGrpc::default()
        };
        let target_specifier = Some(TargetSpecifier::EnvoyGrpc(service));
        let service = PbGrpcService { target_specifier, ..PbGrpcService::default() };
        grpc_service(&mut Decoder::new("service".to_owned()), service).unwrap().answer_max_bytes
    }

    #[test]
    fn no_answer_is_larger_than_what_is_bearable_decoded() {
        for most in [None, Some(0), Some(4 << 20), Some(u32::MAX)] {
            assert_eq!(answer_max_bytes(most), 1 << 20, "{most:?}");
        }
        assert_eq!(answer_max_bytes(Some(1000)), 1000);
    }
}
