//! Spec: `envoy.extensions.filters.http.grpc_web.v3`.

use envoy_types::pb::{
    envoy::extensions::filters::http::grpc_web::v3::GrpcWeb, google::protobuf::Any,
};

use super::super::{common, reject::Decoder};
use crate::model::filter::{HttpFilter, RouteFilterConfig};

pub(super) fn filter(d: &mut Decoder, any: &Any) -> Option<HttpFilter> {
    let GrpcWeb {} = common::unpack(d, any)?;
    Some(HttpFilter::GrpcWeb)
}

/// As Envoy, which has no such configuration either.
pub(super) fn route(d: &mut Decoder, _: &Any) -> Option<RouteFilterConfig> {
    d.refused("routes can't tell grpc_web anything")
}
