//! Which tokens requests have to bring.
//!
//! Spec: `envoy.extensions.filters.http.jwt_authn.v3`.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use http::HeaderName;
use serde::{Serialize, Serializer};

use super::{
    authz::StringMatcher, cluster::ClusterName, jwks::Jwks, retry::BackOff, route::RouteMatch,
};

/// Spec: `JwtAuthentication`.
#[derive(Debug, Clone, Serialize)]
pub struct JwtAuthn {
    /// In order of their names.
    pub providers: Vec<Arc<JwtProvider>>,
    /// The first that matches counts; without one nothing is required.
    pub rules: Vec<JwtRule>,
    /// Those that routes name.
    pub requirements: BTreeMap<String, JwtRequirement>,
    pub bypass_cors_preflight: bool,
    pub strip_failure_response: bool,
}

#[derive(Debug, Clone, Serialize)]
pub struct JwtRule {
    pub matches: RouteMatch,
    /// `None`: nothing is required.
    pub requirement: Option<JwtRequirement>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum JwtRequirement {
    Provider {
        provider: Arc<JwtProvider>,
        /// In place of the provider's own.
        audiences: Vec<String>,
    },
    Any(Vec<JwtRequirement>),
    All(Vec<JwtRequirement>),
    /// Of any of the filter's providers; but one that is there has to be good.
    AllowMissing,
    AllowMissingOrFailed,
}

/// Spec: `JwtProvider`.
#[derive(Debug, Clone, Serialize)]
pub struct JwtProvider {
    pub name: String,
    /// `None`: anybody.
    pub issuer: Option<String>,
    /// None: whatever.
    pub audiences: Vec<String>,
    pub subjects: Option<StringMatcher>,
    pub require_expiration: bool,
    pub max_lifetime: Option<Duration>,
    pub clock_skew: Duration,
    pub jwks: JwksSource,
    /// In order.
    pub locations: Vec<JwtLocation>,
    /// Whether the token stays in the request.
    pub forward: bool,
    #[serde(serialize_with = "shown")]
    pub forward_payload_header: Option<HeaderName>,
    pub pad_forward_payload_header: bool,
    pub payload_in_metadata: Option<String>,
    pub header_in_metadata: Option<String>,
    /// Claims whose words become a list in metadata.
    pub space_delimited_claims: Vec<String>,
    pub claim_to_headers: Vec<ClaimToHeader>,
    pub clear_route_cache: bool,
}

fn shown<S: Serializer>(name: &Option<HeaderName>, serializer: S) -> Result<S::Ok, S::Error> {
    name.as_ref().map(HeaderName::as_str).serialize(serializer)
}

/// Where a token may be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum JwtLocation {
    /// `name` is in lower case.
    Header {
        name: String,
        prefix: String,
    },
    Parameter(String),
    Cookie(String),
}

#[derive(Debug, Clone, Serialize)]
pub struct ClaimToHeader {
    /// The claim, and names within it.
    pub path: Vec<String>,
    #[serde(serialize_with = "named")]
    pub header: HeaderName,
}

fn named<S: Serializer>(name: &HeaderName, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(name.as_str())
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum JwksSource {
    Local(Arc<Jwks>),
    Remote(RemoteJwks),
}

/// Spec: `RemoteJwks`.
#[derive(Debug, Clone, Serialize)]
pub struct RemoteJwks {
    pub uri: HttpUri,
    pub cache_duration: Duration,
    /// Beyond the first attempt.
    pub retries: u32,
    pub back_off: BackOff,
}

/// Spec: `envoy.config.core.v3.HttpUri`.
#[derive(Debug, Clone, Serialize)]
pub struct HttpUri {
    pub cluster: ClusterName,
    pub authority: String,
    /// With its query.
    pub path: String,
    pub timeout: Duration,
}

/// What a route says: `envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum JwtPerRoute {
    Disabled,
    /// One of the filter's requirements. Where it has none of the name requests are refused.
    Requirement(String),
}

impl JwtAuthn {
    /// Where it asks for keys.
    pub fn clusters(&self) -> impl Iterator<Item = &ClusterName> {
        self.providers.iter().filter_map(|provider| match &provider.jwks {
            JwksSource::Remote(remote) => Some(&remote.uri.cluster),
            JwksSource::Local(_) => None,
        })
    }
}
