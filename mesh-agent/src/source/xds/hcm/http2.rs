//! What an HTTP/2 client may send ahead.
//!
//! Spec: `envoy.config.core.v3.Http2ProtocolOptions`.

use envoy_types::pb::{
    envoy::config::core::v3::Http2ProtocolOptions, google::protobuf::UInt32Value,
};

use super::super::reject::Decoder;
use crate::model::http_options::Http2Limits;

/// Beyond these a client could have the agent hold more than it should: Envoy's own bounds are
/// those of the protocol.
const STREAMS_MAX: u32 = 1024;
const STREAM_WINDOW_MAX_BYTES: u32 = 16 << 20;
const CONNECTION_WINDOW_MAX_BYTES: u32 = 64 << 20;
/// Spec: RFC 9113 §6.9.2; Envoy takes no less.
const WINDOW_MIN_BYTES: u32 = 65_535;

/// Takes what is read here out of `options`, and leaves the rest.
pub(super) fn limits(d: &mut Decoder, options: &mut Http2ProtocolOptions) -> Option<Http2Limits> {
    let default = Http2Limits::default();
    let mut within = |field: &str, value: Option<UInt32Value>, (min, max), default| match value {
        None => Some(default),
        Some(UInt32Value { value }) if (min..=max).contains(&value) => Some(value),
        Some(UInt32Value { value }) => {
            d.field(field, |d| d.refused(format!("{value} is not within {min} to {max}")))
        }
    };
    let streams = options.max_concurrent_streams.take();
    let streams = within("max_concurrent_streams", streams, (1, STREAMS_MAX), default.streams);
    let window = options.initial_stream_window_size.take();
    let bounds = (WINDOW_MIN_BYTES, STREAM_WINDOW_MAX_BYTES);
    let stream = within("initial_stream_window_size", window, bounds, default.stream_window_bytes);
    let window = options.initial_connection_window_size.take();
    let bounds = (WINDOW_MIN_BYTES, CONNECTION_WINDOW_MAX_BYTES);
    let default = default.connection_window_bytes;
    let connection = within("initial_connection_window_size", window, bounds, default);
    Some(Http2Limits {
        streams: streams?,
        stream_window_bytes: stream?,
        connection_window_bytes: connection?,
    })
}
