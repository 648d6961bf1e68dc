//! What a connection manager does to every request and response.
//!
//! Spec: `envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager`.

use http::HeaderValue;
use ipnet::IpNet;
use serde::{Serialize, Serializer};

use super::{budget::Budget, upgrade::Upgrades};

/// What bodies may take that are kept: for another attempt, for a filter that wants to see them
/// whole, for copies that are behind.
pub static BODIES: Budget = Budget::new("request_bodies", 256 << 20);

/// Of that, what may be those of one pod's requests, in bytes.
pub const BODIES_OF_POD_MAX_BYTES: usize = 64 << 20;

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HttpOptions {
    pub http2: Http2Limits,
    /// Whether paths are brought into normal form (RFC 3986 §6).
    pub normalize_path: bool,
    pub merge_slashes: bool,
    pub escaped_slashes: EscapedSlashes,
    pub strip_port: StripPort,
    /// Whether `a.test.` is `a.test`.
    pub strip_trailing_host_dot: bool,
    /// Whether the peer is the client, and not a proxy that is to be believed.
    pub use_remote_address: bool,
    /// How many proxies before this one are to be believed.
    pub trusted_hops: u32,
    pub skip_xff_append: bool,
    /// Who tells where a request comes from, in place of all that; the first that knows is
    /// believed.
    pub original_ip: Vec<OriginalIp>,
    pub generate_request_id: bool,
    /// Whether a client's own request id stays, where the peer is the client.
    pub preserve_external_request_id: bool,
    pub request_id_in_response: bool,
    /// Appended to `via`.
    #[serde(serialize_with = "shown")]
    pub via: Option<HeaderValue>,
    #[serde(serialize_with = "shown_one")]
    pub server_name: HeaderValue,
    pub server_header: ServerHeader,
    pub client_certificates: ClientCertificates,
    pub underscores: Underscores,
    pub request_ids: RequestIds,
    pub upgrades: Upgrades,
    /// HTTP/2: requests may ask for other protocols. Spec: RFC 8441.
    pub extended_connect: bool,
    /// How much of a request's body is kept in memory where it has to be, on connections of
    /// HTTP/1. Spec: `Listener.per_connection_buffer_limit_bytes`.
    pub buffer_max_bytes: u64,
}

impl HttpOptions {
    /// Envoy's default, and what holds for HTTP/2, where no listener says how much.
    pub const BUFFER_MAX_BYTES: u64 = 1 << 20;

    /// [`HttpOptions::buffer_max_bytes`], or what holds for HTTP/2.
    pub const fn buffer_max_bytes(&self, http2: bool) -> u64 {
        if http2 { Self::BUFFER_MAX_BYTES } else { self.buffer_max_bytes }
    }
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            http2: Http2Limits::default(),
            normalize_path: false,
            merge_slashes: false,
            escaped_slashes: EscapedSlashes::Keep,
            strip_port: StripPort::No,
            strip_trailing_host_dot: false,
            use_remote_address: false,
            trusted_hops: 0,
            skip_xff_append: false,
            original_ip: Vec::new(),
            generate_request_id: true,
            preserve_external_request_id: false,
            request_id_in_response: false,
            via: None,
            server_name: HeaderValue::from_static("envoy"),
            server_header: ServerHeader::Overwrite,
            client_certificates: ClientCertificates::default(),
            underscores: Underscores::Allow,
            request_ids: RequestIds::default(),
            upgrades: Upgrades::default(),
            extended_connect: false,
            buffer_max_bytes: Self::BUFFER_MAX_BYTES,
        }
    }
}

fn shown<S: Serializer>(value: &Option<HeaderValue>, s: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => shown_one(value, s),
        None => s.serialize_none(),
    }
}

fn shown_one<S: Serializer>(value: &HeaderValue, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(&String::from_utf8_lossy(value.as_bytes()))
}

/// What an HTTP/2 client may send ahead.
///
/// Spec: `envoy.config.core.v3.Http2ProtocolOptions`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Http2Limits {
    /// Requests at a time.
    pub streams: u32,
    /// A client whose upstream is slow has at most this much of its upload in the agent.
    pub stream_window_bytes: u32,
    pub connection_window_bytes: u32,
}

impl Default for Http2Limits {
    fn default() -> Self {
        Self { streams: 256, stream_window_bytes: 256 * 1024, connection_window_bytes: 8 << 20 }
    }
}

/// What becomes of `x-forwarded-client-cert`.
///
/// Spec: `HttpConnectionManager.ForwardClientCertDetails`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientCertificates {
    #[default]
    Sanitize,
    /// What a client says that has proven who it is stays.
    ForwardOnly,
    /// And who it has proven to be is added.
    AppendForward(CertificateDetails),
    /// In place of what it says.
    SanitizeSet(CertificateDetails),
    /// Whatever anybody says stays.
    AlwaysForwardOnly,
}

/// What is told of a client's certificate besides its digest.
///
/// Spec: `HttpConnectionManager.SetCurrentClientCertDetails`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct CertificateDetails {
    pub cert: bool,
    pub chain: bool,
    pub subject: bool,
    pub uri: bool,
    pub dns: bool,
}

/// What a request's id tells of its trace.
///
/// Spec: `envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct RequestIds {
    /// Whether the id says why the request is traced.
    pub pack_trace_reason: bool,
    /// Whether the id decides if it is.
    pub sampling: bool,
}

impl Default for RequestIds {
    fn default() -> Self {
        Self { pack_trace_reason: true, sampling: true }
    }
}

/// Spec: `envoy.extensions.http.original_ip_detection`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OriginalIp {
    /// `x-forwarded-for`.
    ForwardedFor {
        trusted: TrustedProxies,
        /// Whether the peer is told of in it.
        append: bool,
    },
    Header {
        name: String,
        /// What a request without an address there is answered.
        rejected: Option<u16>,
    },
}

/// Which proxies' entries of `x-forwarded-for` are passed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TrustedProxies {
    /// So many, beside the peer.
    Hops(u32),
    /// Those that are in one of these ranges, if the peer is. Never empty.
    Ranges(Vec<IpNet>),
}

/// What becomes of headers with `_` in their names.
///
/// Spec: `envoy.config.core.v3.HttpProtocolOptions.HeadersWithUnderscoresAction`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Underscores {
    #[default]
    Allow,
    /// The request is answered 400.
    Reject,
    Drop,
}

/// What becomes of `%2F`, `%5C` and their like in a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EscapedSlashes {
    Keep,
    Reject,
    /// The client is sent to the path without them.
    Redirect,
    Unescape,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StripPort {
    No,
    /// Where it is the one that was dialled.
    Matching,
    Any,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerHeader {
    Overwrite,
    AppendIfAbsent,
    PassThrough,
}
