//! HTTP filters of a chain, and what routes say for single ones.
//!
//! Spec: `HttpFilter` of `envoy/extensions/filters/network/http_connection_manager/v3`,
//! `typed_per_filter_config` and `FilterConfig` of `envoy/config/route/v3/route_components.proto`.

mod cors;
mod fault;
mod global_rate_limit;
mod grpc_stats;
mod health_check;
mod local_rate_limit;
mod set_metadata;
mod stateful_session;

use std::sync::Arc;

use serde::Serialize;

pub use self::{
    cors::CorsPolicy,
    fault::{AbortBy, Fault, FaultAbort, FaultDelay, FaultKeys},
    global_rate_limit::{GlobalRateLimit, RateLimitPerRoute, RequestType},
    grpc_stats::{GrpcMethods, GrpcStats},
    health_check::HealthCheck,
    local_rate_limit::{LocalDescriptor, LocalRateLimit, TokenBucket},
    set_metadata::SetMetadata,
    stateful_session::{SessionPerRoute, SessionState, StatefulSession},
};
use super::{
    authz::{Rbac, StringMatcher},
    cluster::ClusterName,
    compression::{Compressor, CompressorPerRoute, Decompressor},
    ext_authz::{AuthzPerRoute, ExtAuthz},
    extension::DiscoveredFilter,
    header_mutation::HeaderMutation,
    jwt_authn::{JwtAuthn, JwtPerRoute},
    listener::OnDemand,
    route::OnDemandRoute,
    runtime::RuntimeFraction,
};

impl HttpFilter {
    /// Whether it may deny a request for what it is, by its own rules or by what somebody says
    /// whom it asks.
    pub fn judges(&self) -> bool {
        matches!(self, Self::Rbac(_) | Self::JwtAuthn(_) | Self::ExtAuthz(_))
    }

    /// The clusters that it asks.
    pub fn clusters(&self) -> Vec<&ClusterName> {
        match self {
            Self::JwtAuthn(jwt) => jwt.clusters().collect(),
            Self::ExtAuthz(authz) => vec![authz.cluster()],
            Self::GlobalRateLimit(limit) => vec![&limit.service.cluster],
            _ => Vec::new(),
        }
    }
}

/// A filter's place in its chain.
#[derive(Debug, Clone, Serialize)]
pub struct ChainFilter {
    /// By which routes tell it something.
    pub name: Arc<str>,
    /// Whether it runs only where a route enables it.
    pub disabled: bool,
    pub filter: HttpFilter,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HttpFilter {
    /// `envoy.extensions.filters.http.rbac.v3.RBAC`
    Rbac(HttpRbac),
    /// `envoy.extensions.filters.http.header_mutation.v3.HeaderMutation`
    HeaderMutation(Arc<HeaderMutationFilter>),
    /// `envoy.extensions.filters.http.csrf.v3.CsrfPolicy`
    Csrf(Arc<CsrfPolicy>),
    /// `envoy.extensions.filters.http.cors.v3.Cors`: routes say what it does.
    Cors,
    /// `envoy.extensions.filters.http.fault.v3.HTTPFault`
    Fault(Arc<Fault>),
    /// `envoy.extensions.filters.http.ext_authz.v3.ExtAuthz`
    ExtAuthz(Arc<ExtAuthz>),
    /// `envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication`
    JwtAuthn(Arc<JwtAuthn>),
    /// `envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit`
    LocalRateLimit(Arc<LocalRateLimit>),
    /// `envoy.extensions.filters.http.ratelimit.v3.RateLimit`
    GlobalRateLimit(Arc<GlobalRateLimit>),
    /// `envoy.extensions.filters.http.grpc_web.v3.GrpcWeb`
    GrpcWeb,
    /// `envoy.extensions.filters.http.grpc_stats.v3.FilterConfig`
    GrpcStats(Arc<GrpcStats>),
    /// `envoy.extensions.filters.http.health_check.v3.HealthCheck`
    HealthCheck(Arc<HealthCheck>),
    /// `envoy.extensions.filters.http.set_metadata.v3.Config`, in order.
    SetMetadata(Arc<[SetMetadata]>),
    /// `envoy.extensions.filters.http.buffer.v3.Buffer`: how many bytes a request's body may
    /// have.
    Buffer(u32),
    /// `envoy.extensions.filters.http.compressor.v3.Compressor`
    Compressor(Arc<Compressor>),
    /// `envoy.extensions.filters.http.decompressor.v3.Decompressor`
    Decompressor(Arc<Decompressor>),
    /// `envoy.extensions.filters.http.stateful_session.v3.StatefulSession`
    StatefulSession(Arc<StatefulSession>),
    /// `envoy.extensions.filters.http.on_demand.v3.OnDemand`
    OnDemand(OnDemand),
    /// One whose configuration is a resource of its own (`config_discovery`).
    Discovered(Arc<DiscoveredFilter>),
}

/// The rules of one `rbac` filter; without any it does nothing, unless a route brings some.
#[derive(Debug, Clone, Default, Serialize)]
pub struct HttpRbac {
    pub rules: Option<Arc<Rbac>>,
    /// Judged and told of, never enforced.
    pub shadow: Option<Arc<Rbac>>,
}

impl From<Option<Arc<Rbac>>> for HttpRbac {
    fn from(rules: Option<Arc<Rbac>>) -> Self {
        Self { rules, shadow: None }
    }
}

#[derive(Debug, Clone, Serialize)]
pub struct HeaderMutationFilter {
    pub mutations: Arc<FilterMutations>,
    /// Whether of the routes' mutations the most specific come last.
    pub most_specific_wins: bool,
}

/// Spec: `envoy.extensions.filters.http.header_mutation.v3.Mutations`.
#[derive(Debug, Clone, Default, Serialize)]
pub struct FilterMutations {
    /// In order.
    pub request: Vec<Arc<HeaderMutation>>,
    /// In order.
    pub response: Vec<Arc<HeaderMutation>>,
}

/// Spec: `envoy.extensions.filters.http.csrf.v3.CsrfPolicy`.
#[derive(Debug, Clone, Serialize)]
pub struct CsrfPolicy {
    /// Of how many requests the origin is looked at.
    pub enabled: RuntimeFraction,
    /// Of how many others it is looked at, and told what comes of it.
    pub shadow: Option<RuntimeFraction>,
    /// Origins, as `host:port`, that may change things beside the target's own.
    pub additional_origins: Vec<StringMatcher>,
}

/// What one level (a route configuration, a virtual host, a route, one of several
/// clusters) says for filters, by their names in the chain.
#[derive(Debug, Clone, Default, Serialize)]
pub struct PerFilter(pub Vec<(Arc<str>, RouteFilter)>);

/// What one level says for one filter.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RouteFilter {
    /// It does not run.
    Disabled,
    /// It runs, where it is disabled in its chain as well.
    Enabled(RouteFilterConfig),
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RouteFilterConfig {
    /// Replaces the chain's rules, all of them.
    Rbac(HttpRbac),
    /// Comes after the chain's.
    HeaderMutation(Arc<FilterMutations>),
    /// Replaces the chain's policy.
    Csrf(Arc<CsrfPolicy>),
    /// Leaves the rest to less specific levels.
    Cors(Arc<CorsPolicy>),
    /// Replaces the chain's.
    Fault(Arc<Fault>),
    /// Comes beside the chain's.
    ExtAuthz(Arc<AuthzPerRoute>),
    /// Replaces the chain's rules.
    JwtAuthn(Arc<JwtPerRoute>),
    /// Replaces the chain's, and has buckets of its own.
    LocalRateLimit(Arc<LocalRateLimit>),
    /// Comes beside the chain's.
    GlobalRateLimit(Arc<RateLimitPerRoute>),
    /// Replaces the chain's limit; `None`: bodies are not read ahead.
    Buffer(Option<u32>),
    /// Comes beside the chain's.
    Compressor(Arc<CompressorPerRoute>),
    /// Replaces the chain's.
    StatefulSession(Arc<SessionPerRoute>),
    /// Replaces what the chain's says of clusters that are not there.
    OnDemand(OnDemandRoute),
}

impl PerFilter {
    /// What is said for the `on_demand` filter.
    pub fn on_demand(&self) -> Option<OnDemandRoute> {
        self.0.iter().find_map(|(_, filter)| match filter {
            RouteFilter::Enabled(RouteFilterConfig::OnDemand(on_demand)) => Some(*on_demand),
            _ => None,
        })
    }

    fn get(&self, name: &str) -> Option<&RouteFilter> {
        self.0.iter().find(|(known, _)| **known == *name).map(|(_, filter)| filter)
    }
}

/// What the levels of a request's route say for filters, the most specific first.
#[derive(Debug, Clone, Copy, Default)]
pub struct Levels<'a>(pub [Option<&'a PerFilter>; 4]);

impl<'a> Levels<'a> {
    /// What each level that says anything does, for the filter of that name.
    pub fn of(self, name: &str) -> impl DoubleEndedIterator<Item = &'a RouteFilter> {
        self.0.into_iter().flatten().filter_map(move |level| level.get(name))
    }

    /// Whether the filter runs.
    pub fn runs(self, filter: &ChainFilter) -> bool {
        match self.of(&filter.name).next() {
            Some(said) => matches!(said, RouteFilter::Enabled(_)),
            None => !filter.disabled,
        }
    }

    /// The configurations for the filter of that name.
    pub fn configs(self, name: &str) -> impl DoubleEndedIterator<Item = &'a RouteFilterConfig> {
        self.of(name).filter_map(|said| match said {
            RouteFilter::Enabled(config) => Some(config),
            RouteFilter::Disabled => None,
        })
    }

    /// The rules in force where the chain has `own`.
    pub fn rbac(self, name: &str, own: &'a HttpRbac) -> &'a HttpRbac {
        let rbac = |config: &'a RouteFilterConfig| match config {
            RouteFilterConfig::Rbac(rbac) => Some(rbac),
            _ => None,
        };
        self.configs(name).find_map(rbac).unwrap_or(own)
    }

    /// The fault in force where the chain has `own`.
    pub fn fault(self, name: &str, own: &'a Fault) -> &'a Fault {
        let fault = |config: &'a RouteFilterConfig| match config {
            RouteFilterConfig::Fault(fault) => Some(&**fault),
            _ => None,
        };
        self.configs(name).find_map(fault).unwrap_or(own)
    }

    /// The limit in force where the chain has `own`.
    pub fn local_rate_limit(
        self,
        name: &str,
        own: &'a Arc<LocalRateLimit>,
    ) -> &'a Arc<LocalRateLimit> {
        let limit = |config: &'a RouteFilterConfig| match config {
            RouteFilterConfig::LocalRateLimit(limit) => Some(limit),
            _ => None,
        };
        self.configs(name).find_map(limit).unwrap_or(own)
    }

    /// What is said of a global limit.
    pub fn global_rate_limit(self, name: &str) -> Option<&'a RateLimitPerRoute> {
        self.configs(name).find_map(|config| match config {
            RouteFilterConfig::GlobalRateLimit(said) => Some(&**said),
            _ => None,
        })
    }

    /// What is said of compression.
    pub fn compressor(self, name: &str) -> Option<&'a CompressorPerRoute> {
        self.configs(name).find_map(|config| match config {
            RouteFilterConfig::Compressor(said) => Some(&**said),
            _ => None,
        })
    }

    /// What is said of sessions.
    pub fn stateful_session(self, name: &str) -> Option<&'a SessionPerRoute> {
        self.configs(name).find_map(|config| match config {
            RouteFilterConfig::StatefulSession(said) => Some(&**said),
            _ => None,
        })
    }

    /// How many bytes a body may have where the chain says `own`; `None`: it is not read ahead.
    pub fn buffer(self, name: &str, own: u32) -> Option<u32> {
        let buffer = |config: &RouteFilterConfig| match config {
            RouteFilterConfig::Buffer(max) => Some(*max),
            _ => None,
        };
        self.configs(name).find_map(buffer).unwrap_or(Some(own))
    }

    /// The policy in force where the chain has `own`.
    pub fn csrf(self, name: &str, own: &'a CsrfPolicy) -> &'a CsrfPolicy {
        let csrf = |config: &'a RouteFilterConfig| match config {
            RouteFilterConfig::Csrf(policy) => Some(&**policy),
            _ => None,
        };
        self.configs(name).find_map(csrf).unwrap_or(own)
    }
}
