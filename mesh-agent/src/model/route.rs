//! Routes: which cluster an HTTP request goes to.
//!
//! Spec: `envoy/config/route/v3/route.proto`, `route_components.proto`.

use std::{sync::Arc, time::Duration};

use serde::Serialize;

use super::{
    authz::StringMatcher, listener::WeightedCluster, regex::WholeRegex, runtime::RuntimeFraction,
};

#[derive(Debug, Clone, Default, Serialize)]
pub struct RouteConfiguration {
    pub name: Arc<str>,
    pub virtual_hosts: Vec<Arc<VirtualHost>>,
    /// Whether virtual hosts arrive by themselves as well (VHDS).
    pub vhds: bool,
    /// Those that have arrived, by the names they go by. They come after its own: of two
    /// hosts with one domain the first counts.
    pub discovered: Vec<Arc<VirtualHost>>,
    /// Whether every cluster it names has to be there; `None`: as its source has it.
    pub validate_clusters: Option<bool>,
}

#[derive(Debug, Clone, Serialize)]
pub struct VirtualHost {
    pub name: Arc<str>,
    /// Host patterns; never empty. A pattern is unique within its configuration.
    pub domains: Vec<Domain>,
    /// Tried in order; the first that matches wins.
    pub routes: Vec<Route>,
}

/// A `domains` entry, in order of Envoy's search: exact, suffix (`*.example.com`),
/// prefix (`example.*`), any (`*`); the longest wins within a kind. Lower case.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Domain {
    Exact(String),
    /// With the `*` removed: `.example.com`.
    Suffix(String),
    /// With the `*` removed: `example.`.
    Prefix(String),
    Any,
}

#[derive(Debug, Clone, Serialize)]
pub struct Route {
    /// Empty where the configuration gives none.
    pub name: Arc<str>,
    pub matches: RouteMatch,
    pub action: RouteAction,
    /// Replaces what the connection manager says of clusters that are not there.
    pub on_demand: Option<OnDemandRoute>,
}

/// Spec: `envoy.extensions.filters.http.on_demand.v3.PerRouteConfig`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct OnDemandRoute {
    pub clusters: Option<OnDemandClusters>,
}

/// A cluster that is not there is asked for, while the request waits.
///
/// Spec: `envoy.extensions.filters.http.on_demand.v3.OnDemandCds`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct OnDemandClusters {
    /// Envoy's default: 5 s.
    pub timeout: Duration,
}

#[derive(Debug, Clone, Serialize)]
pub struct RouteMatch {
    pub path: PathMatch,
    /// Applies to prefix and exact paths. Default true.
    pub case_sensitive: bool,
    /// All must match.
    pub headers: Vec<HeaderMatcher>,
    /// Of the requests that match otherwise, those that do.
    pub runtime_fraction: Option<RuntimeFraction>,
}

/// The path is matched without its query string, as Envoy does.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PathMatch {
    Prefix(String),
    Exact(String),
    /// The whole path must match.
    Regex(WholeRegex),
}

/// Spec: `envoy.config.route.v3.HeaderMatcher`.
#[derive(Debug, Clone, Serialize)]
pub struct HeaderMatcher {
    /// Lower case; `:method`, `:path` and `:authority` name the request line's parts.
    pub name: String,
    pub kind: HeaderMatchKind,
    pub invert: bool,
    /// Treats a missing header as an empty one.
    pub treat_missing_as_empty: bool,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HeaderMatchKind {
    String(StringMatcher),
    /// Start inclusive, end exclusive.
    Range {
        start: i64,
        end: i64,
    },
    Present(bool),
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RouteAction {
    Forward(ForwardAction),
    DirectResponse(DirectResponse),
}

#[derive(Debug, Clone, Serialize)]
pub struct ForwardAction {
    /// One entry for a plain `cluster`. Weights are relative; their sum is not zero.
    /// Empty with `cluster_header`.
    pub clusters: Vec<WeightedCluster>,
    /// The request header that names the cluster, in lower case.
    pub cluster_header: Option<String>,
    /// With it the runtime's value of `<prefix>.<cluster>` goes before a cluster's weight.
    pub runtime_key_prefix: Option<String>,
    /// Bounds request and response together. Envoy's default: 15 s; `None` never.
    pub timeout: Option<Duration>,
    /// Replaces the matched prefix or path.
    pub prefix_rewrite: Option<String>,
    /// Replaces `:authority`.
    pub host_rewrite: Option<String>,
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
