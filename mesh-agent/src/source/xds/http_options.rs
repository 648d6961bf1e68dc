//! Options of HTTP. Of those that tune the codecs only `allow_connect` is honoured here, towards
//! servers `connection_keepalive`, and what clients may send ahead by `hcm::http2`: each other one
//! is refused by its own name.
//!
//! Spec: `envoy/config/core/v3/protocol.proto`.

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::{
    Http1ProtocolOptions, Http2ProtocolOptions, HttpProtocolOptions, KeepaliveSettings,
    http_protocol_options::HeadersWithUnderscoresAction as Action,
};

use super::{
    common,
    reject::{Decoder, unsupported},
};
use crate::model::{
    cluster::{ConnectionLimits, Pings},
    http_options::Underscores,
};

const IDLE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(3600);
const HEADERS_COUNT_DEFAULT: u32 = 100;
/// More than any server takes; bounds what a client may have an agent hold.
const HEADERS_COUNT_MAX: u32 = 10_000;

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

/// What is honoured of [`Http2ProtocolOptions`].
#[derive(Debug, Default)]
pub(super) struct Http2 {
    /// Towards servers it means nothing, as with Envoy: they say themselves whether they take
    /// such requests.
    pub(super) allow_connect: bool,
}

#[expect(deprecated, reason = "a deprecated field that is set is refused too")]
pub(super) fn http2(d: &mut Decoder, value: Http2ProtocolOptions) -> Http2 {
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
        initial_connection_window_size, allow_metadata, max_outbound_frames,
        max_outbound_control_frames, max_consecutive_inbound_frames_with_empty_payload,
        max_inbound_priority_frames_per_stream,
        max_inbound_window_update_frames_per_data_frame_sent,
        stream_error_on_invalid_http_messaging, override_stream_error_on_invalid_http_message,
        custom_settings_parameters, connection_keepalive, use_oghttp2_codec, max_metadata_size,
        enable_huffman_encoding, max_header_field_size_kb, disallow_obs_text,
        stream_reset_burst, stream_reset_rate,
    );
    Http2 { allow_connect }
}

/// Those of a cluster: whether its servers are asked if they are there.
pub(super) fn http2_of_upstream(
    d: &mut Decoder,
    mut value: Http2ProtocolOptions,
) -> Option<Option<Pings>> {
    let keepalive = value.connection_keepalive.take();
    http2(d, value);
    match keepalive {
        None => Some(None),
        Some(value) => d.field("connection_keepalive", |d| pings(d, value)),
    }
}

fn pings(d: &mut Decoder, value: KeepaliveSettings) -> Option<Option<Pings>> {
    // Connections begin at times of their own.
    let KeepaliveSettings { interval, timeout, interval_jitter: _, connection_idle_interval } =
        value;
    unsupported!(d; connection_idle_interval);
    if timeout.is_none() {
        d.refuse_field("timeout", "is missing");
    }
    let timeout = common::period(d, "timeout", timeout, Duration::ZERO);
    // As Envoy: without an interval nobody is asked.
    let unasked = interval.is_none();
    let interval = common::period(d, "interval", interval, Duration::ZERO);
    let pings = Pings { interval: interval?, timeout: timeout? };
    Some(Some(pings).filter(|_| !unasked))
}

/// A cluster's `common_http_protocol_options`.
pub(super) fn of_upstream(d: &mut Decoder, value: HttpProtocolOptions) -> Option<ConnectionLimits> {
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
        max_connection_duration_jitter, max_headers_count, max_response_headers_kb,
        max_stream_duration, headers_with_underscores_action,
    );
    let idle_timeout = match idle_timeout {
        None => Some(None),
        Some(value) => common::duration(d, "idle_timeout", value)
            .map(|timeout| Some(if timeout.is_zero() { Duration::MAX } else { timeout })),
    };
    let max_duration = common::timeout(d, "max_connection_duration", max_connection_duration, None);
    let max_requests = max_requests_per_connection.map(|max| max.value).filter(|max| *max > 0);
    Some(ConnectionLimits {
        idle_timeout: idle_timeout?,
        max_duration: max_duration?,
        max_requests,
        ..ConnectionLimits::default()
    })
}

/// A connection manager's `common_http_protocol_options`.
pub(super) struct Common {
    pub(super) idle_timeout: Option<Duration>,
    pub(super) max_connection_duration: Option<Duration>,
    pub(super) max_stream_duration: Option<Duration>,
    pub(super) max_requests_per_connection: Option<u32>,
    pub(super) max_headers_count: u32,
    pub(super) underscores: Underscores,
}

pub(super) fn common(d: &mut Decoder, value: HttpProtocolOptions) -> Option<Common> {
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
    unsupported!(d; max_connection_duration_jitter, max_response_headers_kb);
    let idle_timeout = common::timeout(d, "idle_timeout", idle_timeout, Some(IDLE_TIMEOUT_DEFAULT));
    let max_connection_duration = match max_connection_duration {
        None => Some(None),
        // Envoy closes every connection at once, sometimes before an answer.
        Some(value) if value.seconds == 0 && value.nanos == 0 => {
            d.field("max_connection_duration", |d| d.refused("0s lets no connection live"))
        }
        Some(value) => common::duration(d, "max_connection_duration", value).map(Some),
    };
    let max_stream_duration = common::timeout(d, "max_stream_duration", max_stream_duration, None);
    let max_headers_count = match max_headers_count.map(|max| max.value) {
        None => Some(HEADERS_COUNT_DEFAULT),
        Some(max @ 1..=HEADERS_COUNT_MAX) => Some(max),
        Some(max) => d.field("max_headers_count", |d| {
            d.refused(format!("{max} is not within 1 to {HEADERS_COUNT_MAX}"))
        }),
    };
    let underscores = match Action::try_from(headers_with_underscores_action) {
        Ok(Action::Allow) => Some(Underscores::Allow),
        Ok(Action::RejectRequest) => Some(Underscores::Reject),
        Ok(Action::DropHeader) => Some(Underscores::Drop),
        Err(_) => d.field("headers_with_underscores_action", |d| d.refused("is unknown")),
    };
    let max_requests = max_requests_per_connection.map(|max| max.value);
    Some(Common {
        idle_timeout: idle_timeout?,
        max_connection_duration: max_connection_duration?,
        max_stream_duration: max_stream_duration?,
        max_requests_per_connection: max_requests.filter(|max| *max > 0),
        max_headers_count: max_headers_count?,
        underscores: underscores?,
    })
}
