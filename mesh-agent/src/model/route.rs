//! Routes: which cluster an HTTP request goes to.
//!
//! Spec: `envoy/config/route/v3/route.proto`, `route_components.proto`.

mod action;
mod mirror;

use std::{fmt, sync::Arc, time::Duration};

use serde::Serialize;

pub use self::action::{
    Clusters, DirectResponse, ForwardAction, GrpcTimeout, HostRewrite, IdleTimeout,
    MaxStreamDuration, PathRewrite, Redirect, RedirectPath, RouteAction, RouteCluster,
    RouteClusterName, WeightedClusters,
};
pub use self::mirror::{MirrorHost, MirrorPolicy};
use super::{
    authz::StringMatcher, filter::PerFilter, header_mutation::HeaderMutations, regex::WholeRegex,
    rewrite::UriTemplate, runtime::RuntimeFraction, tracing::RouteTracing,
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
    /// Whether a host's port counts for nothing when its virtual host is looked for.
    pub ignore_port_in_host_matching: bool,
    /// Whether paths are matched up to their first `;` only.
    pub ignore_path_parameters: bool,
    pub headers: HeaderMutations,
    /// Whether headers are changed first by this configuration and last by the route; else
    /// the other way round.
    pub most_specific_header_mutations_wins: bool,
    pub per_filter: PerFilter,
    /// Of virtual hosts that have none themselves.
    pub mirrors: Vec<MirrorPolicy>,
}

#[derive(Debug, Clone, Serialize)]
pub struct VirtualHost {
    pub name: Arc<str>,
    /// Host patterns; never empty. A pattern is unique within its configuration.
    pub domains: Vec<Domain>,
    /// Tried in order; the first that matches wins.
    pub routes: Vec<Route>,
    pub require_tls: Option<RequireTls>,
    pub headers: HeaderMutations,
    pub per_filter: PerFilter,
    /// Of routes that have none themselves.
    pub mirrors: Vec<MirrorPolicy>,
    /// Tried in order; the first that matches counts a request.
    pub virtual_clusters: Vec<VirtualCluster>,
}

/// Requests that are counted together, whatever routes they take.
///
/// Spec: `envoy.config.route.v3.VirtualCluster`.
#[derive(Debug, Clone, Serialize)]
pub struct VirtualCluster {
    pub name: Arc<str>,
    /// All must match; never empty.
    pub headers: Vec<HeaderMatcher>,
}

/// Requests that did not come by TLS are told to.
///
/// Spec: `envoy.config.route.v3.VirtualHost.TlsRequirementType`.
#[derive(Debug, Clone, Serialize)]
pub struct RequireTls {
    /// Only those from outside are told.
    pub external_only: bool,
    pub redirect: Box<Route>,
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

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Suffix(end) => write!(f, "*{end}"),
            Self::Prefix(start) => write!(f, "{start}*"),
            Self::Any => f.write_str("*"),
        }
    }
}

#[derive(Debug, Clone, Serialize)]
pub struct Route {
    /// Empty where the configuration gives none.
    pub name: Arc<str>,
    /// Requests are counted under it; `None`: they are not counted by route.
    pub stat_prefix: Option<Arc<str>>,
    pub matches: RouteMatch,
    pub action: RouteAction,
    pub headers: HeaderMutations,
    /// Replaces what the connection manager says of clusters that are not there.
    pub on_demand: Option<OnDemandRoute>,
    pub tracing: Option<Arc<RouteTracing>>,
    pub per_filter: PerFilter,
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
    /// All must match.
    pub query_parameters: Vec<QueryParameterMatcher>,
    /// All must match.
    pub cookies: Vec<CookieMatcher>,
    /// For gRPC alone.
    pub grpc: bool,
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
    /// The path itself, or one below it: `/api` and `/api/x`, not `/apis`.
    SeparatedPrefix(String),
    /// CONNECT, which has no path.
    Connect,
    Template(UriTemplate),
}

impl RouteMatch {
    /// Every request with such a path.
    pub fn path(path: PathMatch) -> Self {
        Self {
            path,
            case_sensitive: true,
            headers: Vec::new(),
            query_parameters: Vec::new(),
            cookies: Vec::new(),
            grpc: false,
            runtime_fraction: None,
        }
    }
}

/// Spec: `envoy.config.route.v3.QueryParameterMatcher`.
#[derive(Debug, Clone, Serialize)]
pub struct QueryParameterMatcher {
    pub name: String,
    /// Asked of the first value; `None`: it has to be there.
    pub value: Option<StringMatcher>,
    /// Where there is no value to ask: whether the parameter has to be there, or not.
    pub present: bool,
}

/// Spec: `envoy.config.route.v3.CookieMatcher`.
#[derive(Debug, Clone, Serialize)]
pub struct CookieMatcher {
    pub name: String,
    pub value: StringMatcher,
    pub invert: bool,
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
