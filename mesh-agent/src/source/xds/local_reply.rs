//! Spec: `LocalReplyConfig`, `ResponseMapper` of
//! `envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.proto`.

use std::sync::Arc;

use envoy_types::pb::envoy::{
    config::core::v3::SubstitutionFormatString,
    extensions::filters::network::http_connection_manager::v3::{LocalReplyConfig, ResponseMapper},
};
use http::{HeaderValue, StatusCode};

use super::{access_log, common, header_mutation, reject::Decoder};
use crate::model::{
    access_log::LineFormat,
    header_mutation::HeaderMutation,
    local_reply::{BodyFormat, LocalReply, ReplyMapper},
};

/// The longest body of a mapper.
const BODY_MAX_BYTES: usize = 64 * 1024;

pub(super) fn local_reply(d: &mut Decoder, value: LocalReplyConfig) -> Option<LocalReply> {
    let LocalReplyConfig { mappers, body_format } = value;
    let mappers = d.all("mappers", mappers, mapper);
    let format = optional(d, "body_format", body_format);
    Some(LocalReply { mappers: mappers?, format: format? })
}

fn optional(
    d: &mut Decoder,
    field: &str,
    value: Option<SubstitutionFormatString>,
) -> Option<Option<BodyFormat>> {
    match value {
        None => Some(None),
        Some(value) => d.field(field, |d| body_format(d, value)).map(Some),
    }
}

fn body_format(d: &mut Decoder, mut value: SubstitutionFormatString) -> Option<BodyFormat> {
    let told = std::mem::take(&mut value.content_type);
    let line = access_log::format(d, value);
    let content_type = match told.is_empty() {
        true => Some(None),
        false => d.field("content_type", |d| match HeaderValue::from_str(&told) {
            Ok(value) => Some(Some(value)),
            Err(_) => d.refused(format!("`{told}` is not a header's value")),
        }),
    };
    let (line, content_type) = (line?, content_type?);
    let content_type = content_type.unwrap_or(match line.format {
        LineFormat::Text(_) => HeaderValue::from_static("text/plain"),
        LineFormat::Json(_) => HeaderValue::from_static("application/json"),
    });
    Some(BodyFormat { line, content_type })
}

fn mapper(d: &mut Decoder, value: ResponseMapper) -> Option<ReplyMapper> {
    let ResponseMapper { filter, status_code, body, body_format_override, headers_to_add } = value;
    let filter = d.field("filter", |d| match filter {
        None => d.refused("is missing"),
        Some(value) => access_log::filter(d, value, 0),
    });
    let status = match status_code.map(|code| code.value) {
        None => Some(None),
        Some(code) => d.field("status_code", |d| {
            let status = u16::try_from(code).ok().filter(|code| (200..600).contains(code));
            match status.and_then(|code| StatusCode::from_u16(code).ok()) {
                Some(status) => Some(Some(status)),
                None => d.refused(format!("{code} is not within 200 to 599")),
            }
        }),
    };
    let body = match body {
        None => Some(None),
        Some(value) => d.field("body", |d| match common::inline(d, value)? {
            body if body.len() <= BODY_MAX_BYTES => Some(Some(body)),
            body => d.refused(format!("{} bytes are more than {BODY_MAX_BYTES}", body.len())),
        }),
    };
    let format = optional(d, "body_format_override", body_format_override);
    let headers = d.all("headers_to_add", headers_to_add, header_mutation::addition)?;
    let headers = (!headers.is_empty())
        .then(|| Arc::new(HeaderMutation { remove: Vec::new(), add: headers }));
    Some(ReplyMapper { filter: filter?, status: status?, body: body?, format: format?, headers })
}
