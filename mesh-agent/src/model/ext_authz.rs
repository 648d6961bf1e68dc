//! Who is asked whether a request may pass, and how.
//!
//! Spec: `envoy.extensions.filters.http.ext_authz.v3`, `envoy/config/core/v3/grpc_service.proto`.

use std::{collections::BTreeMap, time::Duration};

use http::{HeaderName, HeaderValue};
use serde::Serialize;

use super::{
    authz::StringMatcher, cluster::ClusterName, jwt_authn::HttpUri, metadata::MetadataMatcher,
    runtime::RuntimeFraction,
};

/// The largest answer of a server that a filter asks, in bytes, whatever the configuration
/// says: an empty item of a protobuf list is two bytes and becomes a struct of dozens, so an
/// answer is held to what is bearable when it is decoded.
pub const ANSWER_MAX_BYTES: usize = 1 << 20;

/// Spec: `ExtAuthz`.
#[derive(Debug, Clone, Serialize)]
pub struct ExtAuthz {
    pub service: AuthzService,
    /// Whether a request passes where there is no answer.
    pub failure_mode_allow: bool,
    pub failure_mode_allow_header_add: bool,
    pub body: Option<AuthzBody>,
    pub clear_route_cache: bool,
    pub status_on_error: u16,
    pub metadata_namespaces: Vec<String>,
    /// Of how many requests it is asked; `None`: of all.
    pub enabled: Option<RuntimeFraction>,
    pub enabled_metadata: Option<MetadataMatcher>,
    /// The headers that are told; `None`: all by gRPC, and by HTTP few.
    pub allowed_headers: Option<Vec<StringMatcher>>,
    pub disallowed_headers: Vec<StringMatcher>,
    /// Whether what the answer notes is noted.
    pub takes_metadata: bool,
    pub denied_body_max_bytes: Option<usize>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthzService {
    Grpc(GrpcService),
    Http(Box<HttpAuthz>),
}

/// Spec: `envoy.config.core.v3.GrpcService`, `envoy_grpc`.
#[derive(Debug, Clone, Serialize)]
pub struct GrpcService {
    pub cluster: ClusterName,
    pub authority: String,
    pub timeout: Option<Duration>,
    #[serde(skip)]
    pub initial_metadata: Vec<(HeaderName, HeaderValue)>,
    /// The largest answer that is read; at most [`ANSWER_MAX_BYTES`].
    pub answer_max_bytes: usize,
}

/// Spec: `HttpService`.
#[derive(Debug, Clone, Serialize)]
pub struct HttpAuthz {
    pub uri: HttpUri,
    pub path_prefix: String,
    #[serde(skip)]
    pub headers_to_add: Vec<(HeaderName, HeaderValue)>,
    /// Headers of the answer that go on, in place of the request's.
    pub upstream: Vec<StringMatcher>,
    /// The same, beside the request's.
    pub upstream_append: Vec<StringMatcher>,
    /// Headers of a denial that the client gets; `None`: all.
    pub client: Option<Vec<StringMatcher>>,
    /// Headers of the answer that the client gets where its request passes.
    pub client_on_success: Vec<StringMatcher>,
    pub metadata: Vec<StringMatcher>,
}

/// Spec: `BufferSettings`.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct AuthzBody {
    pub max_bytes: usize,
    pub allow_partial: bool,
    pub as_bytes: bool,
}

/// What a route says: `ExtAuthzPerRoute`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthzPerRoute {
    Disabled,
    Check {
        /// Told with the question.
        extensions: BTreeMap<String, String>,
        /// The inner `None`: the body is not looked at.
        body: Option<Option<AuthzBody>>,
    },
}

impl ExtAuthz {
    /// Whom it asks.
    pub fn cluster(&self) -> &ClusterName {
        match &self.service {
            AuthzService::Grpc(grpc) => &grpc.cluster,
            AuthzService::Http(http) => &http.uri.cluster,
        }
    }
}
