//! What becomes of a request that a route matches.
//!
//! Spec: `RouteAction`, `RedirectAction`, `DirectResponseAction` and `WeightedCluster` of
//! `envoy/config/route/v3/route_components.proto`.

use std::{sync::Arc, time::Duration};

use serde::Serialize;

use super::MirrorPolicy;
use crate::model::{
    cluster::ClusterName,
    filter::{CorsPolicy, PerFilter},
    hash_policy::HashPolicy,
    header_mutation::HeaderMutations,
    rate_limit::RouteRateLimits,
    retry::Attempts,
    rewrite::{RegexRewrite, TemplateRewrite},
    socket_match::Labels,
    upgrade::Upgrades,
};

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RouteAction {
    Forward(Box<ForwardAction>),
    Redirect(Redirect),
    DirectResponse(DirectResponse),
}

#[derive(Debug, Clone, Serialize)]
pub struct ForwardAction {
    pub clusters: Clusters,
    /// Where its cluster is not there. Envoy's default: 503.
    pub cluster_not_found_status: u16,
    /// Bounds request and response together. Envoy's default: 15 s; `None` never.
    pub timeout: Option<Duration>,
    /// Takes the place of the timeout for gRPC requests.
    pub grpc_timeout: Option<GrpcTimeout>,
    /// Bounds request and response together, from the request's head on, in place of the
    /// timeout; `None`: as the listener says, beside it.
    pub max_stream_duration: Option<MaxStreamDuration>,
    /// Bounds a stream without activity; `None`: as the listener says.
    pub idle_timeout: Option<IdleTimeout>,
    pub path_rewrite: Option<PathRewrite>,
    /// Replaces `:authority`.
    pub host_rewrite: Option<HostRewrite>,
    /// Whether a replaced host is appended to `x-forwarded-host`.
    pub append_x_forwarded_host: bool,
    pub attempts: Attempts,
    /// Which of its cluster's circuit breakers counts.
    pub high_priority: bool,
    /// What its cluster's policy goes by, if it goes by a hash.
    pub hash_policy: Vec<HashPolicy>,
    /// Which subset of its cluster it is for.
    pub metadata_match: Option<Arc<Labels>>,
    /// Where nothing is said for the filter by its name: the route's policy, then the virtual
    /// host's.
    pub cors: Vec<Arc<CorsPolicy>>,
    pub upgrades: Upgrades,
    /// CONNECT ends here: what it carries goes to the cluster's endpoints as it is.
    ///
    /// Spec: `RouteAction.UpgradeConfig.ConnectConfig`.
    pub terminates_connect: bool,
    pub rate_limits: RouteRateLimits,
    pub mirrors: Vec<MirrorPolicy>,
}

impl ForwardAction {
    /// To these clusters, with Envoy's defaults.
    pub fn to(clusters: Clusters) -> Self {
        Self {
            clusters,
            cluster_not_found_status: 503,
            timeout: Some(Duration::from_secs(15)),
            grpc_timeout: None,
            max_stream_duration: None,
            idle_timeout: None,
            path_rewrite: None,
            host_rewrite: None,
            append_x_forwarded_host: false,
            attempts: Attempts::default(),
            high_priority: false,
            hash_policy: Vec::new(),
            metadata_match: None,
            cors: Vec::new(),
            upgrades: Upgrades::default(),
            terminates_connect: false,
            rate_limits: RouteRateLimits::default(),
            mirrors: Vec::new(),
        }
    }
}

/// The timeout is what a request's `grpc-timeout` says, within bounds.
///
/// Spec: `RouteAction.max_grpc_timeout`, `RouteAction.grpc_timeout_offset`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct GrpcTimeout {
    /// `None`: whatever is asked for.
    pub max: Option<Duration>,
    /// Taken off what is asked for, where that is more.
    pub offset: Duration,
}

/// Spec: `RouteAction.MaxStreamDuration`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct MaxStreamDuration {
    /// `None`: as the listener says.
    pub own: Option<IdleTimeout>,
    /// By which a request's `grpc-timeout` takes the place of the others.
    pub grpc: Option<GrpcTimeout>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum IdleTimeout {
    Never,
    After(Duration),
}

impl IdleTimeout {
    /// `None`: never.
    pub fn limit(self) -> Option<Duration> {
        match self {
            Self::Never => None,
            Self::After(limit) => Some(limit),
        }
    }
}

/// Spec: `RouteAction.cluster_specifier`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Clusters {
    One(ClusterName),
    /// The request header that names it, in lower case.
    Header(String),
    Weighted(WeightedClusters),
}

/// Spec: `envoy.config.route.v3.WeightedCluster`.
#[derive(Debug, Clone, Serialize)]
pub struct WeightedClusters {
    /// Weights are relative; their sum is not zero.
    pub entries: Vec<RouteCluster>,
    /// With it the runtime's value of `<prefix>.<cluster>` goes before a cluster's weight.
    pub runtime_key_prefix: Option<String>,
    /// The request header whose number takes the place of the random one, in lower case.
    pub random_header: Option<String>,
}

/// One of several clusters.
///
/// Spec: `envoy.config.route.v3.WeightedCluster.ClusterWeight`.
#[derive(Debug, Clone, Serialize)]
pub struct RouteCluster {
    pub cluster: RouteClusterName,
    pub weight: u32,
    /// Replaces `:authority`; the route's own rewrite goes before it.
    pub host_rewrite: Option<String>,
    pub headers: HeaderMutations,
    pub per_filter: PerFilter,
    /// Those of the route, and its own.
    pub metadata_match: Option<Arc<Labels>>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RouteClusterName {
    Cluster(ClusterName),
    /// The request header that names it, in lower case.
    Header(String),
}

impl WeightedClusters {
    /// Each asks for what the route does, unless it asks for something else itself.
    pub fn ask_besides(&mut self, route: Option<&Labels>) {
        let Some(route) = route else { return };
        for entry in &mut self.entries {
            let mut all = route.clone();
            all.extend(entry.metadata_match.as_deref().cloned().unwrap_or_default());
            entry.metadata_match = Some(Arc::new(all));
        }
    }
}

impl Clusters {
    /// Those that are named in the configuration; one may come several times.
    pub fn names(&self) -> impl Iterator<Item = &ClusterName> {
        let (one, entries) = match self {
            Self::One(name) => (Some(name), &[][..]),
            Self::Header(_) => (None, &[][..]),
            Self::Weighted(weighted) => (None, &weighted.entries[..]),
        };
        let weighted = entries.iter().filter_map(|entry| match &entry.cluster {
            RouteClusterName::Cluster(name) => Some(name),
            RouteClusterName::Header(_) => None,
        });
        one.into_iter().chain(weighted)
    }
}

/// How the path of a request is replaced; its query stays.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PathRewrite {
    /// Of what matched: a prefix, or else the whole path.
    Prefix(String),
    Regex(RegexRewrite),
    Template(TemplateRewrite),
}

/// How the host of a request is replaced.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HostRewrite {
    Literal(String),
    /// By a request header, where it is there; its name in lower case.
    Header(String),
    /// By what becomes of the path without query.
    PathRegex(RegexRewrite),
    /// By what the endpoint is called, where it has a name; each attempt's anew.
    Endpoint,
}

/// Spec: `envoy.config.route.v3.RedirectAction`.
#[derive(Debug, Clone, Serialize)]
pub struct Redirect {
    pub status: u16,
    /// Without it the request's own.
    pub scheme: Option<String>,
    /// Without it the request's own, and with it the port.
    pub host: Option<String>,
    pub port: Option<u16>,
    pub path: RedirectPath,
    pub strip_query: bool,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RedirectPath {
    Same,
    /// If it has a query, that replaces the request's.
    Whole(String),
    /// Replaces what matched.
    Prefix(String),
    Regex(RegexRewrite),
}

impl Redirect {
    /// To the same place by TLS, for good: Envoy's answer where a virtual host takes no
    /// other requests.
    pub fn to_tls() -> Self {
        Self {
            status: 301,
            scheme: Some("https".to_owned()),
            host: None,
            port: None,
            path: RedirectPath::Same,
            strip_query: false,
        }
    }
}

#[derive(Debug, Clone, Serialize)]
pub struct DirectResponse {
    pub status: u16,
    #[serde(serialize_with = "lossy")]
    pub body: bytes::Bytes,
}

fn lossy<S: serde::Serializer>(body: &bytes::Bytes, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(&String::from_utf8_lossy(body))
}
