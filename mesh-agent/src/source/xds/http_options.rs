//! Tuning of the HTTP codecs, none of which is honoured yet: each option is refused by
//! its own name.
//!
//! Spec: `envoy/config/core/v3/protocol.proto`.

use envoy_types::pb::envoy::config::core::v3::{
    Http1ProtocolOptions, Http2ProtocolOptions, HttpProtocolOptions,
};

use super::reject::{Decoder, unsupported};

#[expect(deprecated, reason = "a deprecated field that is set is refused too")]
pub(super) fn http1(d: &mut Decoder, value: Http1ProtocolOptions) {
    let Http1ProtocolOptions {
        allow_absolute_url,
        accept_http_10,
        default_host_for_http_10,
        header_key_format,
        enable_trailers,
        allow_chunked_length,
        override_stream_error_on_invalid_http_message,
        send_fully_qualified_url,
        use_balsa_parser,
        allow_custom_methods,
        ignore_http_11_upgrade,
    } = value;
    unsupported!(
        d;
        allow_absolute_url, accept_http_10, default_host_for_http_10, header_key_format,
        enable_trailers, allow_chunked_length, override_stream_error_on_invalid_http_message,
        send_fully_qualified_url, use_balsa_parser, allow_custom_methods,
        ignore_http_11_upgrade,
    );
}

#[expect(deprecated, reason = "a deprecated field that is set is refused too")]
pub(super) fn http2(d: &mut Decoder, value: Http2ProtocolOptions) {
    let Http2ProtocolOptions {
        hpack_table_size,
        max_concurrent_streams,
        initial_stream_window_size,
        initial_connection_window_size,
        allow_connect,
        allow_metadata,
        max_outbound_frames,
        max_outbound_control_frames,
        max_consecutive_inbound_frames_with_empty_payload,
        max_inbound_priority_frames_per_stream,
        max_inbound_window_update_frames_per_data_frame_sent,
        stream_error_on_invalid_http_messaging,
        override_stream_error_on_invalid_http_message,
        custom_settings_parameters,
        connection_keepalive,
        use_oghttp2_codec,
        max_metadata_size,
        enable_huffman_encoding,
        max_header_field_size_kb,
        disallow_obs_text,
        stream_reset_burst,
        stream_reset_rate,
    } = value;
    unsupported!(
        d;
        hpack_table_size, max_concurrent_streams, initial_stream_window_size,
        initial_connection_window_size, allow_connect, allow_metadata, max_outbound_frames,
        max_outbound_control_frames, max_consecutive_inbound_frames_with_empty_payload,
        max_inbound_priority_frames_per_stream,
        max_inbound_window_update_frames_per_data_frame_sent,
        stream_error_on_invalid_http_messaging, override_stream_error_on_invalid_http_message,
        custom_settings_parameters, connection_keepalive, use_oghttp2_codec, max_metadata_size,
        enable_huffman_encoding, max_header_field_size_kb, disallow_obs_text,
        stream_reset_burst, stream_reset_rate,
    );
}

/// A connection manager's `common_http_protocol_options`, of which the idle timeout is
/// honoured: it is handed back.
pub(super) fn common(
    d: &mut Decoder,
    value: HttpProtocolOptions,
) -> Option<envoy_types::pb::google::protobuf::Duration> {
    let HttpProtocolOptions {
        idle_timeout,
        max_connection_duration,
        max_connection_duration_jitter,
        max_headers_count,
        max_response_headers_kb,
        max_stream_duration,
        headers_with_underscores_action,
        max_requests_per_connection,
    } = value;
    unsupported!(
        d;
        max_connection_duration, max_connection_duration_jitter, max_headers_count,
        max_response_headers_kb, max_stream_duration, headers_with_underscores_action,
        max_requests_per_connection,
    );
    idle_timeout
}
