//! From the wire's protobuf types to the model; nothing else knows protobuf.
//!
//! Files and ADS share these decoders. They are strict: a field that is set and not
//! honoured refuses the resource, by the field's full path. Two rules keep that true
//! as protos grow: every message is destructured without `..`, and what is bound and
//! not decoded goes through [`reject::unsupported`]. What is knowingly ignored is
//! bound to `_` with the reason beside it.
//!
//! What a newer control plane sends in a field that these protos don't have yet, prost
//! drops: [`unknown`] refuses it; in files such a field is refused by its name.

mod access_log;
mod address;
mod balancing;
mod bootstrap;
mod cds;
mod circuit_breakers;
mod client;
mod common;
mod config_source;
mod cookies;
mod dns;
mod downstream_tls;
mod ecds;
mod eds;
mod filters;
mod hcm;
mod header_mutation;
mod health_check;
mod http_options;
mod keepalive;
mod layered_runtime;
mod lds;
mod local_reply;
mod matchers;
mod options;
mod outlier;
mod rate_limits;
mod rbac;
mod rds;
mod reject;
mod resource;
mod rtds;
mod scopes;
mod sds;
mod services;
mod session;
mod tls;
mod tls_context;
mod traces;
mod unknown;
mod upgrades;
mod upstream_tls;
mod wishes;

use envoy_types::pb::envoy::{
    config::{
        cluster::v3::Cluster as PbCluster,
        core::v3::TypedExtensionConfig,
        endpoint::v3::ClusterLoadAssignment,
        listener::v3::Listener as PbListener,
        route::v3::{
            RouteConfiguration as PbRoutes, ScopedRouteConfiguration as PbScope,
            VirtualHost as PbVirtualHost,
        },
    },
    extensions::transport_sockets::tls::v3::Secret as PbSecret,
    service::runtime::v3::Runtime as PbRuntime,
};
use prost::Message;

pub use address::{ConnectionOptions, Server, ServerAddress};
pub use bootstrap::{Bootstrap, read_bootstrap};
pub use client::{AdsSource, AdsStatus, StreamState, StreamStatus};
pub(super) use common::PLACEHOLDER;
pub(super) use config_source::Reference;
pub use options::{NodeInfo, Origin, XdsOptions};
pub(super) use reject::{REJECTIONS_MAX, rejection};
pub use resource::{Resource, ResourceType, TYPE_URLS};

pub use session::{Refused, TypeStatus, Variant, Warming, hear};
pub use tls::{Pem, TlsOptions};
pub use wishes::Wishes;

use self::reject::Decoder;
use crate::snapshot::RejectedResource;

/// Several rejections on one line.
pub(super) fn shown(reasons: &[RejectedResource]) -> String {
    let reasons: Vec<_> = reasons.iter().map(ToString::to_string).collect();
    reasons.join("; ")
}

/// What a resource is called, as far as its bytes tell: the name is the first field of
/// every type.
pub(super) fn name_of(value: &[u8]) -> Option<String> {
    #[derive(Clone, PartialEq, Message)]
    struct Named {
        #[prost(string, tag = "1")]
        name: String,
    }
    Named::decode(value).ok().map(|named| named.name).filter(|name| !name.is_empty())
}

/// As [`decode_any`], and refuses fields that these protos don't have.
pub(super) fn decode_strict(
    type_url: &str,
    value: &[u8],
) -> Result<(Resource, Vec<Reference>), Vec<RejectedResource>> {
    let decoded = decode_with_references(type_url, value);
    let Some(kind) = ResourceType::of_url(type_url) else { return decoded };
    let root = format!("{}[{}]", kind.table(), name_of(value).unwrap_or_default());
    let unknown = unknown::fields(&kind.full_name(), value, &root);
    match decoded {
        Ok(decoded) if unknown.is_empty() => Ok(decoded),
        Ok(_) => Err(unknown),
        Err(mut reasons) => {
            reasons.extend(unknown);
            Err(reasons)
        }
    }
}

/// Decodes one resource as the wire carries it: `google.protobuf.Any` taken apart.
///
/// # Errors
/// Every reason why it can't be honoured, by full path; at most a hundred and one.
pub fn decode_any(type_url: &str, value: &[u8]) -> Result<Resource, Vec<RejectedResource>> {
    decode_with_references(type_url, value).map(|(resource, _)| resource)
}

/// As [`decode_any`], and where what the resource needs comes from.
pub(super) fn decode_with_references(
    type_url: &str,
    value: &[u8],
) -> Result<(Resource, Vec<Reference>), Vec<RejectedResource>> {
    let Some(kind) = ResourceType::of_url(type_url) else {
        return Err(vec![rejection("resource", format!("unknown @type `{type_url}`"))]);
    };
    match kind {
        ResourceType::Listener => decode(
            kind,
            value,
            |m: &PbListener| &m.name,
            |d, m| lds::listener(d, m).map(Resource::Listener),
        ),
        ResourceType::Routes => decode(
            kind,
            value,
            |m: &PbRoutes| &m.name,
            |d, m| {
                if m.name.is_empty() {
                    d.refuse_field("name", "is missing");
                }
                rds::configuration(d, m).map(Resource::Routes)
            },
        ),
        ResourceType::Cluster => decode(
            kind,
            value,
            |m: &PbCluster| &m.name,
            |d, m| cds::cluster(d, m).map(Resource::Cluster),
        ),
        ResourceType::Endpoints => decode(
            kind,
            value,
            |m: &ClusterLoadAssignment| &m.cluster_name,
            |d, m| {
                if m.cluster_name.is_empty() {
                    d.refuse_field("cluster_name", "is missing");
                }
                let name = m.cluster_name.as_str().into();
                eds::assignment(d, m).map(|assignment| Resource::Endpoints(name, assignment))
            },
        ),
        ResourceType::Secret => decode(
            kind,
            value,
            |m: &PbSecret| &m.name,
            |d, m| sds::secret(d, m).map(Resource::Secret),
        ),
        ResourceType::Runtime => decode(
            kind,
            value,
            |m: &PbRuntime| &m.name,
            |d, m| rtds::layer(d, m).map(|(name, layer)| Resource::Runtime(name, layer)),
        ),
        ResourceType::ExtensionConfig => decode(
            kind,
            value,
            |m: &TypedExtensionConfig| &m.name,
            |d, m| ecds::extension(d, m).map(Resource::ExtensionConfig),
        ),
        ResourceType::VirtualHost => decode(
            kind,
            value,
            |m: &PbVirtualHost| &m.name,
            |d, m| {
                let name = m.name.as_str().into();
                rds::discovered_host(d, m).map(|host| Resource::VirtualHost(name, host))
            },
        ),
        ResourceType::Scope => decode(
            kind,
            value,
            |m: &PbScope| &m.name,
            |d, m| scopes::scope(d, m).map(Resource::Scope),
        ),
    }
}

fn decode<M: Message + Default>(
    kind: ResourceType,
    value: &[u8],
    name: impl FnOnce(&M) -> &String,
    decode: impl FnOnce(&mut Decoder, M) -> Option<Resource>,
) -> Result<(Resource, Vec<Reference>), Vec<RejectedResource>> {
    match M::decode(value) {
        Ok(message) => {
            let root = format!("{}[{}]", kind.table(), name(&message));
            let mut decoder = Decoder::new(root);
            let decoded = decode(&mut decoder, message);
            let references = decoder.take_references();
            decoder.finish(decoded).map(|resource| (resource, references))
        }
        Err(error) => {
            let reason = format!("is not a valid {}: {error}", kind.full_name());
            Err(vec![rejection(&format!("{}[]", kind.table()), reason)])
        }
    }
}
