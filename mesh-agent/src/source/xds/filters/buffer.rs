//! Spec: `envoy.extensions.filters.http.buffer.v3`.

use envoy_types::pb::{
    envoy::extensions::filters::http::buffer::v3::{
        Buffer, BufferPerRoute, buffer_per_route::Override,
    },
    google::protobuf::Any,
};

use super::super::{common, reject::Decoder};
use crate::model::filter::{HttpFilter, RouteFilterConfig};

pub(super) fn filter(d: &mut Decoder, any: &Any) -> Option<HttpFilter> {
    let buffer = common::unpack(d, any)?;
    max_bytes(d, buffer).map(HttpFilter::Buffer)
}

pub(super) fn route(d: &mut Decoder, any: &Any) -> Option<RouteFilterConfig> {
    let BufferPerRoute { r#override } = common::unpack(d, any)?;
    match r#override {
        Some(Override::Disabled(true)) => Some(RouteFilterConfig::Buffer(None)),
        Some(Override::Disabled(false)) => d.field("disabled", |d| d.refused("can only be true")),
        Some(Override::Buffer(buffer)) => {
            let max = d.field("buffer", |d| max_bytes(d, buffer))?;
            Some(RouteFilterConfig::Buffer(Some(max)))
        }
        None => d.refused("has neither disabled nor buffer"),
    }
}

fn max_bytes(d: &mut Decoder, value: Buffer) -> Option<u32> {
    let Buffer { max_request_bytes } = value;
    match max_request_bytes.map(|max| max.value) {
        None | Some(0) => d.field("max_request_bytes", |d| d.refused("must be above zero")),
        Some(max) => Some(max),
    }
}
