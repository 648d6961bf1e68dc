//! How a connection manager words the answers that it makes itself.
//!
//! Spec: `LocalReplyConfig` of
//! `envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager`.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use serde::{Serialize, Serializer};

use super::{
    access_log::{Line, LogFilter},
    header_mutation::HeaderMutation,
};

#[derive(Debug, Clone, Default, Serialize)]
pub struct LocalReply {
    /// The first whose filter is for an answer changes it.
    pub mappers: Vec<ReplyMapper>,
    /// Of bodies that no mapper has a format for.
    pub format: Option<BodyFormat>,
}

#[derive(Debug, Clone, Serialize)]
pub struct ReplyMapper {
    pub filter: LogFilter,
    #[serde(serialize_with = "code")]
    pub status: Option<StatusCode>,
    #[serde(serialize_with = "lossy")]
    pub body: Option<Bytes>,
    pub format: Option<BodyFormat>,
    pub headers: Option<Arc<HeaderMutation>>,
}

/// A body with places to fill in.
#[derive(Debug, Clone, Serialize)]
pub struct BodyFormat {
    pub line: Line,
    #[serde(serialize_with = "value")]
    pub content_type: HeaderValue,
}

fn code<S: Serializer>(status: &Option<StatusCode>, s: S) -> Result<S::Ok, S::Error> {
    status.map(|status| status.as_u16()).serialize(s)
}

fn lossy<S: Serializer>(body: &Option<Bytes>, s: S) -> Result<S::Ok, S::Error> {
    body.as_ref().map(|body| String::from_utf8_lossy(body)).serialize(s)
}

fn value<S: Serializer>(value: &HeaderValue, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(&String::from_utf8_lossy(value.as_bytes()))
}
