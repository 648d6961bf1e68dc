//! Which requests are traced, what their spans say, and where these go.
//!
//! Spec: `envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.Tracing`,
//! `envoy.config.route.v3.{Tracing,Decorator}`, `envoy.config.trace.v3`.

use std::{sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue, uri::Authority};
use serde::{Serialize, Serializer};

use super::{cluster::ClusterName, format::Format, runtime::Fraction};

/// Of a connection manager.
#[derive(Debug, Clone, Serialize)]
pub struct Tracing {
    pub sampling: Sampling,
    /// In bytes, of the path in `http.url`. Envoy's default: 256.
    pub max_path_tag_length: usize,
    pub custom_tags: Vec<CustomTag>,
    /// Whether each attempt has a span of its own.
    pub spawn_upstream_span: bool,
    pub operations: Operations,
    /// Whether upstreams are told of the trace.
    pub propagates: bool,
    /// `None`: the bootstrap's.
    pub provider: Option<Arc<TracingProvider>>,
}

/// Which requests are traced that no other proxy has decided about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Sampling {
    /// Of those with `x-client-trace-id`.
    pub client: Fraction,
    /// Of all others.
    pub random: Fraction,
    /// Of all.
    pub overall: Fraction,
}

/// What spans are called, in place of what is said otherwise.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Operations {
    pub downstream: Option<Format>,
    pub upstream: Option<Format>,
}

/// What a route says of its requests' spans.
#[derive(Debug, Clone, Default, Serialize)]
pub struct RouteTracing {
    /// In place of the connection manager's.
    pub sampling: Option<Sampling>,
    /// Beside the connection manager's, in place of those of the same name.
    pub custom_tags: Vec<CustomTag>,
    pub operations: Operations,
    pub decorator: Option<Decorator>,
}

/// Spec: `envoy.config.route.v3.Decorator`.
#[derive(Debug, Clone, Serialize)]
pub struct Decorator {
    #[serde(serialize_with = "shown")]
    pub operation: HeaderValue,
    /// Whether the other side is told.
    pub propagate: bool,
}

fn shown<S: Serializer>(value: &HeaderValue, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(&String::from_utf8_lossy(value.as_bytes()))
}

/// Spec: `envoy.type.tracing.v3.CustomTag`; what is of the environment is a literal.
#[derive(Debug, Clone, Serialize)]
pub struct CustomTag {
    pub name: Arc<str>,
    pub value: TagValue,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TagValue {
    Literal(Arc<str>),
    /// Without a value there is no tag. Names are lower case.
    RequestHeader {
        name: String,
        default: Option<Arc<str>>,
    },
    /// What filters have noted.
    RequestMetadata {
        namespace: String,
        path: Vec<String>,
        default: Option<Arc<str>>,
    },
    Format(Format),
}

/// Who is told of spans, and how traces are passed on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TracingProvider {
    OpenTelemetry(OpenTelemetry),
    Zipkin(Zipkin),
}

/// Spec: `envoy.config.trace.v3.OpenTelemetryConfig`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OpenTelemetry {
    pub export: SpanExport,
    /// Attributes of who sends the spans.
    pub resource: Vec<(String, String)>,
    /// Whether spans name the instrumentation.
    pub scope: bool,
    /// `None`: as the connection manager says, or who began the trace.
    pub sampler: Option<Sampler>,
    /// Spans that wait, at most.
    pub cache_max: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Sampler {
    AlwaysOn,
    /// As who began the trace; those that begin here all.
    ParentOrAlwaysOn,
}

/// Spec: `envoy.config.trace.v3.ZipkinConfig`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Zipkin {
    pub export: SpanExport,
    pub trace_id_128bit: bool,
    /// Whether a server's span is that of its client.
    pub shared_span_context: bool,
    /// Whether `traceparent` is read where there is no B3, and written beside it.
    pub w3c: bool,
}

/// Where spans are sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SpanExport {
    pub cluster: ClusterName,
    #[serde(serialize_with = "text_of")]
    pub authority: Authority,
    pub protocol: ExportProtocol,
    pub timeout: Duration,
    /// Beside those that the protocol wants.
    #[serde(skip)]
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

fn text_of<S: Serializer>(value: &Authority, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(value.as_str())
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ExportProtocol {
    Grpc,
    /// To this path.
    Http(String),
}

impl Tracing {
    /// Where its own provider is told of spans.
    pub fn cluster(&self) -> Option<&ClusterName> {
        Some(&self.provider.as_ref()?.export().cluster)
    }
}

impl TracingProvider {
    /// Where its spans go.
    pub fn export(&self) -> &SpanExport {
        match self {
            Self::OpenTelemetry(otel) => &otel.export,
            Self::Zipkin(zipkin) => &zipkin.export,
        }
    }

    /// Spans that may wait for it.
    pub fn cache_max(&self) -> usize {
        match self {
            Self::OpenTelemetry(otel) => otel.cache_max,
            Self::Zipkin(_) => OpenTelemetry::CACHE_MAX,
        }
    }
}

impl OpenTelemetry {
    /// Envoy's default.
    pub const CACHE_MAX: usize = 1024;
}
