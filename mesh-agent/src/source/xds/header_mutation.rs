//! Headers that are added, replaced and removed.
//!
//! Spec: `envoy/config/core/v3/base.proto` (`HeaderValueOption`).

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::{
    HeaderValue, HeaderValueOption, header_value_option::HeaderAppendAction,
};
use http::{
    HeaderName,
    header::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE},
};

use super::reject::Decoder;
use crate::model::{
    format::Format,
    header_mutation::{AppendAction, HeaderAddition, HeaderMutation, HeaderMutations},
};

/// The longest value of a header, in bytes, that Envoy takes.
const VALUE_MAX_BYTES: usize = 16_384;

/// Headers that frame a message or route it, and not for a configuration to touch.
const FRAMING: [HeaderName; 8] =
    [CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE];

/// The four fields that routes, virtual hosts and others have.
pub(super) struct Fields {
    pub(super) request_headers_to_add: Vec<HeaderValueOption>,
    pub(super) request_headers_to_remove: Vec<String>,
    pub(super) response_headers_to_add: Vec<HeaderValueOption>,
    pub(super) response_headers_to_remove: Vec<String>,
}

pub(super) fn mutations(d: &mut Decoder, fields: Fields) -> Option<HeaderMutations> {
    let Fields {
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
    } = fields;
    let request = mutation(
        d,
        ("request_headers_to_add", request_headers_to_add),
        ("request_headers_to_remove", request_headers_to_remove),
    );
    let response = mutation(
        d,
        ("response_headers_to_add", response_headers_to_add),
        ("response_headers_to_remove", response_headers_to_remove),
    );
    Some(HeaderMutations { request: request?, response: response? })
}

fn mutation(
    d: &mut Decoder,
    (add_field, add): (&str, Vec<HeaderValueOption>),
    (remove_field, remove): (&str, Vec<String>),
) -> Option<Option<Arc<HeaderMutation>>> {
    let add = d.all(add_field, add, addition);
    let remove = d.all(remove_field, remove, |d, text| name(d, &text));
    let (add, remove) = (add?, remove?);
    let some = !add.is_empty() || !remove.is_empty();
    Some(some.then(|| Arc::new(HeaderMutation { remove, add })))
}

/// One header to add.
#[expect(deprecated, reason = "control planes still send `append`")]
pub(super) fn addition(d: &mut Decoder, value: HeaderValueOption) -> Option<HeaderAddition> {
    let HeaderValueOption { header, append, append_action, keep_empty_value } = value;
    let Some(HeaderValue { key, value, raw_value }) = header else {
        return d.field("header", |d| d.refused("is missing"));
    };
    let action = match (append, HeaderAppendAction::try_from(append_action)) {
        (Some(_), Ok(action)) if action != HeaderAppendAction::AppendIfExistsOrAdd => {
            d.field("append", |d| d.refused("can't go with append_action"))
        }
        (Some(append), Ok(_)) if !append.value => Some(AppendAction::OverwriteIfExistsOrAdd),
        (_, Ok(HeaderAppendAction::AppendIfExistsOrAdd)) => Some(AppendAction::AppendIfExistsOrAdd),
        (_, Ok(HeaderAppendAction::AddIfAbsent)) => Some(AppendAction::AddIfAbsent),
        (_, Ok(HeaderAppendAction::OverwriteIfExistsOrAdd)) => {
            Some(AppendAction::OverwriteIfExistsOrAdd)
        }
        (_, Ok(HeaderAppendAction::OverwriteIfExists)) => Some(AppendAction::OverwriteIfExists),
        (_, Err(_)) => {
            d.field("append_action", |d| d.refused(format!("{append_action} is unknown")))
        }
    };
    let (name, format) = d.field("header", |d| {
        let name = d.field("key", |d| name(d, &key));
        let format = match (value.is_empty(), raw_value.is_empty()) {
            (false, false) => d.field("raw_value", |d| d.refused("can't go with a value")),
            (_, true) => d.field("value", |d| format(d, &value)),
            (true, false) => d.field("raw_value", |d| match std::str::from_utf8(&raw_value) {
                Ok(value) => format(d, value),
                Err(_) => d.refused("is not UTF-8"),
            }),
        };
        (name, format)
    });
    Some(HeaderAddition {
        name: name?,
        value: format?,
        action: action?,
        keep_empty: keep_empty_value,
    })
}

pub(super) fn name(d: &mut Decoder, text: &str) -> Option<HeaderName> {
    match HeaderName::try_from(text) {
        Ok(name) if FRAMING.contains(&name) => {
            d.refused(format!("`{name}` can't be touched: it frames or routes the message"))
        }
        Ok(name) => Some(name),
        Err(_) => d.refused(format!("`{text}` is not a header's name")),
    }
}

/// A value with command operators.
pub(super) fn format(d: &mut Decoder, text: &str) -> Option<Format> {
    if text.len() > VALUE_MAX_BYTES {
        return d.refused(format!("{} bytes are more than {VALUE_MAX_BYTES}", text.len()));
    }
    if http::HeaderValue::from_str(text).is_err() {
        return d.refused("is not a header's value");
    }
    match text.parse() {
        Ok(format) => Some(format),
        Err(error) => d.refused(format!("`{text}`: {error}")),
    }
}
