//! Routes that are answered by the agent itself.
//!
//! Spec: `envoy.config.route.v3.DirectResponseAction`.

use bytes::Bytes;
use envoy_types::pb::envoy::config::route::v3::DirectResponseAction;

use super::super::{
    common,
    reject::{Decoder, unsupported},
};
use crate::model::route::DirectResponse;

pub(super) fn response(
    d: &mut Decoder,
    value: DirectResponseAction,
    body_max: u32,
) -> Option<DirectResponse> {
    let DirectResponseAction { status, body, body_format } = value;
    unsupported!(d; body_format);
    let status = match u16::try_from(status) {
        Ok(status @ 200..=599) => Some(status),
        _ => d.field("status", |d| d.refused(format!("{status} is not within 200 to 599"))),
    };
    let body = match body {
        Some(value) => d.field("body", |d| common::inline(d, value)),
        None => Some(Bytes::new()),
    }?;
    if u32::try_from(body.len()).is_ok_and(|length| length <= body_max) {
        return Some(DirectResponse { status: status?, body });
    }
    d.field("body", |d| d.refused(format!("{} bytes are more than {body_max}", body.len())))
}
