//! Routes that are answered by the agent itself.
//!
//! Spec: `envoy.config.route.v3.DirectResponseAction`.

use bytes::Bytes;
use envoy_types::pb::envoy::config::{
    core::v3::{DataSource, data_source},
    route::v3::DirectResponseAction,
};

use super::super::reject::{Decoder, unsupported};
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
        Some(DataSource { watched_directory, specifier }) => d.field("body", |d| {
            unsupported!(d; watched_directory);
            match specifier {
                Some(data_source::Specifier::InlineString(s)) => Some(Bytes::from(s)),
                Some(data_source::Specifier::InlineBytes(b)) => Some(Bytes::from(b)),
                Some(data_source::Specifier::Filename(_)) => {
                    d.field("filename", |d| d.refused("is not supported"))
                }
                Some(data_source::Specifier::EnvironmentVariable(_)) => {
                    d.field("environment_variable", |d| d.refused("is not supported"))
                }
                None => Some(Bytes::new()),
            }
        }),
        None => Some(Bytes::new()),
    }?;
    if u32::try_from(body.len()).is_ok_and(|length| length <= body_max) {
        return Some(DirectResponse { status: status?, body });
    }
    d.field("body", |d| d.refused(format!("{} bytes are more than {body_max}", body.len())))
}
