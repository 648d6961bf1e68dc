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

mod address;
mod balancing;
mod cds;
mod client;
mod common;
mod eds;
mod hcm;
mod http_options;
mod lds;
mod matchers;
mod rbac;
mod rds;
mod reject;
mod session;
mod unknown;

use std::sync::Arc;

use envoy_types::pb::envoy::config::{
    cluster::v3::Cluster as PbCluster, endpoint::v3::ClusterLoadAssignment,
    listener::v3::Listener as PbListener, route::v3::RouteConfiguration as PbRoutes,
};
use prost::{Message, Name as _};

pub use address::{ServerAddress, TlsFiles};
pub use client::{AdsOptions, AdsSource, AdsStatus, NodeInfo, StreamState};
pub(super) use common::PLACEHOLDER;
pub(super) use reject::{REJECTIONS_MAX, rejection};

pub use session::{TypeStatus, Variant, Warming, hear};

use self::reject::Decoder;
use crate::{
    model::{
        cluster::{Cluster, LoadAssignment},
        listener::Listener,
        route::RouteConfiguration,
    },
    snapshot::{RejectedResource, Resources},
};

/// The type URLs [`decode_any`] knows: LDS, RDS, CDS, EDS.
pub const TYPE_URLS: [&str; 4] = [
    "type.googleapis.com/envoy.config.listener.v3.Listener",
    "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
    "type.googleapis.com/envoy.config.cluster.v3.Cluster",
    "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
];

/// One decoded top-level resource.
#[derive(Debug, Clone)]
pub enum Resource {
    /// LDS
    Listener(Listener),
    /// RDS
    Routes(RouteConfiguration),
    /// CDS
    Cluster(Cluster),
    /// EDS, with its `cluster_name`.
    Endpoints(Arc<str>, LoadAssignment),
}

impl Resource {
    /// Its type and name.
    pub(super) fn key(&self) -> (ResourceType, Arc<str>) {
        match self {
            Self::Listener(listener) => (ResourceType::Listener, Arc::clone(&listener.name)),
            Self::Routes(routes) => (ResourceType::Routes, Arc::clone(&routes.name)),
            Self::Cluster(cluster) => (ResourceType::Cluster, Arc::clone(&cluster.name.0)),
            Self::Endpoints(name, _) => (ResourceType::Endpoints, Arc::clone(name)),
        }
    }

    /// Adds the resource to a set.
    pub fn add_to(self, resources: &mut Resources) {
        match self {
            Self::Listener(listener) => resources.listeners.push(listener),
            Self::Routes(routes) => resources.routes.push(routes),
            Self::Cluster(cluster) => resources.clusters.push(cluster),
            Self::Endpoints(name, assignment) => resources.assignments.push((name, assignment)),
        }
    }
}

/// The types of resources, by full protobuf name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum ResourceType {
    Listener,
    Routes,
    Cluster,
    Endpoints,
}

impl ResourceType {
    pub(super) const ALL: [Self; 4] =
        [Self::Listener, Self::Routes, Self::Cluster, Self::Endpoints];

    pub(super) fn full_name(self) -> String {
        match self {
            Self::Listener => PbListener::full_name(),
            Self::Routes => PbRoutes::full_name(),
            Self::Cluster => PbCluster::full_name(),
            Self::Endpoints => ClusterLoadAssignment::full_name(),
        }
    }

    /// As it stands in an `Any`.
    pub(super) fn type_url(self) -> &'static str {
        let [listener, routes, cluster, endpoints] = TYPE_URLS;
        match self {
            Self::Listener => listener,
            Self::Routes => routes,
            Self::Cluster => cluster,
            Self::Endpoints => endpoints,
        }
    }

    /// What a rejection's path starts with.
    pub(super) fn table(self) -> &'static str {
        match self {
            Self::Listener => "listeners",
            Self::Routes => "routes",
            Self::Cluster => "clusters",
            Self::Endpoints => "endpoints",
        }
    }

    /// The field that names a resource of this type.
    pub(super) fn name_field(self) -> &'static str {
        match self {
            Self::Listener | Self::Routes | Self::Cluster => "name",
            Self::Endpoints => "cluster_name",
        }
    }

    /// The same field as canonical JSON spells it.
    pub(super) fn json_name_field(self) -> &'static str {
        match self {
            Self::Listener | Self::Routes | Self::Cluster => "name",
            Self::Endpoints => "clusterName",
        }
    }

    /// The type of that URL, whatever its prefix.
    pub(super) fn of_url(type_url: &str) -> Option<Self> {
        let name = type_url.rsplit('/').next()?;
        Self::ALL.into_iter().find(|known| known.full_name() == name)
    }
}

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
) -> Result<Resource, Vec<RejectedResource>> {
    let decoded = decode_any(type_url, value);
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
    }
}

fn decode<M: Message + Default>(
    kind: ResourceType,
    value: &[u8],
    name: impl FnOnce(&M) -> &String,
    decode: impl FnOnce(&mut Decoder, M) -> Option<Resource>,
) -> Result<Resource, Vec<RejectedResource>> {
    match M::decode(value) {
        Ok(message) => {
            let root = format!("{}[{}]", kind.table(), name(&message));
            let mut decoder = Decoder::new(root);
            let decoded = decode(&mut decoder, message);
            decoder.finish(decoded)
        }
        Err(error) => {
            let reason = format!("is not a valid {}: {error}", kind.full_name());
            Err(vec![rejection(&format!("{}[]", kind.table()), reason)])
        }
    }
}
