//! Why an exchange had no response, and what that is to retries, metrics and the client.

use std::{borrow::Cow, error::Error};

use bytes::Bytes;
use http::{HeaderValue, StatusCode};

use super::{
    ConnectFailure, headers,
    record::RequestLog,
    reply::{Reply, ToGrpc},
    timing::Expired,
};
use crate::{
    observe::{flags::ResponseFlag, metrics::AttemptFailure},
    proxy::story,
    route::Reset,
};

const CONNECTION_FAILURE: &str = "remote connection failure";
const CONNECTION_TIMEOUT: &str = "connection timeout";
const CONNECTION_TERMINATION: &str = "connection termination";
const OVERFLOW: &str = "overflow";
const REMOTE_RESET: &str = "remote reset";
const REFUSED_STREAM: &str = "remote refused stream reset";
pub(super) const PROTOCOL_ERROR: &str = "protocol error";

/// Why there is no response.
pub(super) enum Failure {
    Connect(ConnectFailure),
    ConnectTimeout(String),
    Handshake(String),
    /// A circuit breaker is open.
    Overflow,
    Send {
        error: hyper::Error,
        /// Whether something of the request may have been sent.
        began: bool,
        /// Whether something of a head has come, and not its end.
        torn: bool,
    },
    /// An attempt took too long: Envoy's response code details.
    Attempt(&'static str),
}

impl std::fmt::Display for Failure {
    /// For the log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Connect(ConnectFailure { message, .. })
            | Self::ConnectTimeout(message)
            | Self::Handshake(message) => f.write_str(message),
            Self::Overflow => f.write_str("a circuit breaker is open"),
            Self::Send { error, .. } => f.write_str(&story(error)),
            Self::Attempt(details) => f.write_str(details),
        }
    }
}

impl Failure {
    /// For the retry policy: what it was, and whether something of the request may have
    /// been sent.
    pub(super) fn reset(&self) -> (Reset, bool) {
        match self {
            Self::Connect(_) | Self::ConnectTimeout(_) | Self::Handshake(_) => {
                (Reset::ConnectFailure, false)
            }
            Self::Send { error, began, .. } if is_refused_stream(error) => {
                (Reset::RefusedStream, *began)
            }
            Self::Send { began, .. } => (Reset::Other, *began),
            Self::Overflow => (Reset::Overflow, false),
            Self::Attempt(_) => (Reset::Other, true),
        }
    }

    /// For the cluster's metrics.
    pub(super) fn kind(&self) -> AttemptFailure {
        match self {
            Self::Connect(_) | Self::ConnectTimeout(_) | Self::Handshake(_) => {
                AttemptFailure::Connect
            }
            Self::Overflow => AttemptFailure::Overflow,
            Self::Send { .. } => AttemptFailure::Reset,
            Self::Attempt(_) => AttemptFailure::Timeout,
        }
    }

    /// The flag, the reason in Envoy's words, and whether there was a connection.
    pub(super) fn told(&self) -> (ResponseFlag, &'static str, bool) {
        let unconnected = ResponseFlag::UpstreamConnectionFailure;
        match self {
            Self::Connect(ConnectFailure { flag, .. }) => (*flag, CONNECTION_FAILURE, false),
            Self::ConnectTimeout(_) => (unconnected, CONNECTION_TIMEOUT, false),
            Self::Handshake(_) => (unconnected, CONNECTION_FAILURE, false),
            Self::Overflow => (ResponseFlag::UpstreamOverflow, OVERFLOW, false),
            Self::Send { error, torn, .. } => {
                let (flag, reason) = classify(error, *torn);
                (flag, reason, true)
            }
            Self::Attempt(details) => (ResponseFlag::UpstreamRequestTimeout, details, true),
        }
    }

    /// `retried`: it was not the first attempt.
    pub(super) fn into_reply(self, log: &RequestLog, retried: bool) -> Reply {
        let unconnected = ResponseFlag::UpstreamConnectionFailure;
        match self {
            // Not the upstream's fault.
            _ if log.exchange.is_request_broken() && log.grpc_web => {
                let body = "Bad gRPC-web request, invalid base64 data.";
                let details = "grpc_base_64_decode_failed";
                Reply { close: true, ..Reply::new(StatusCode::BAD_REQUEST, body, None, details) }
            }
            _ if log.exchange.is_request_broken() => Reply::bad_request("malformed request body"),
            Self::Connect(ConnectFailure { flag, message, .. }) => {
                tracing::debug!(%message, "no upstream connection");
                let reply = reset_reply(flag, CONNECTION_FAILURE, message, retried);
                let transport = log.record.transport_failure.as_deref();
                Reply { code: Some(reset_code(CONNECTION_FAILURE, transport).into()), ..reply }
            }
            Self::ConnectTimeout(message) => {
                reset_reply(unconnected, CONNECTION_TIMEOUT, message, retried)
            }
            Self::Handshake(message) => {
                reset_reply(unconnected, CONNECTION_FAILURE, message, retried)
            }
            Self::Overflow => {
                let flag = ResponseFlag::UpstreamOverflow;
                let details = "upstream_reset_before_response_started{overflow}";
                let mut reply = reset_reply(flag, OVERFLOW, details, retried);
                let headers = reply.headers.get_or_insert_default();
                headers.insert(headers::OVERLOADED, HeaderValue::from_static("true"));
                reply
            }
            Self::Send { error, torn, .. } => {
                let (flag, reason) = classify(&error, torn);
                reset_reply(flag, reason, story(&error), retried)
            }
            Self::Attempt(details) => timeout_reply(details),
        }
    }
}

/// In Envoy's words.
pub(super) fn reset_reply(
    flag: ResponseFlag,
    reason: &'static str,
    details: impl Into<Cow<'static, str>>,
    retried: bool,
) -> Reply {
    let retried = if retried { "retried and the latest " } else { "" };
    let body = format!(
        "upstream connect error or disconnect/reset before headers. {retried}reset reason: {reason}"
    );
    let reply = Reply {
        body: Bytes::from(body),
        code: Some(reset_code(reason, None).into()),
        ..Reply::upstream_reset(flag, "", details)
    };
    match reason {
        // What came was no HTTP, as opposed to nothing.
        PROTOCOL_ERROR => Reply { status: StatusCode::BAD_GATEWAY, ..reply },
        _ => reply,
    }
}

/// Envoy's response code details.
fn reset_code(reason: &str, transport: Option<&str>) -> String {
    match transport {
        Some(transport) => {
            format!("upstream_reset_before_response_started{{{reason}|{transport}}}")
        }
        None => format!("upstream_reset_before_response_started{{{reason}}}"),
    }
}

fn timeout_reply(details: &'static str) -> Reply {
    Reply::new(
        StatusCode::GATEWAY_TIMEOUT,
        "upstream request timeout",
        Some(ResponseFlag::UpstreamRequestTimeout),
        details,
    )
}

fn h2_error(error: &hyper::Error) -> Option<&h2::Error> {
    error.source().and_then(|source| source.downcast_ref())
}

fn is_refused_stream(error: &hyper::Error) -> bool {
    h2_error(error).is_some_and(|h2| h2.reason() == Some(h2::Reason::REFUSED_STREAM))
}

fn classify(error: &hyper::Error, torn: bool) -> (ResponseFlag, &'static str) {
    if torn || error.is_parse() {
        return (ResponseFlag::UpstreamProtocolError, PROTOCOL_ERROR);
    }
    match h2_error(error) {
        Some(_) if is_refused_stream(error) => (ResponseFlag::UpstreamRemoteReset, REFUSED_STREAM),
        Some(h2) if h2.is_reset() && h2.is_remote() => {
            (ResponseFlag::UpstreamRemoteReset, REMOTE_RESET)
        }
        Some(h2) if h2.is_reset() || h2.is_go_away() && h2.is_library() => {
            (ResponseFlag::UpstreamProtocolError, PROTOCOL_ERROR)
        }
        _ => (ResponseFlag::UpstreamConnectionTermination, CONNECTION_TERMINATION),
    }
}

pub(super) fn expired_reply(expired: Expired, log: &RequestLog) -> Reply {
    match expired {
        Expired::Route => timeout_reply("response_timeout"),
        Expired::Request => {
            let status = StatusCode::REQUEST_TIMEOUT;
            let reply = Reply::new(status, "request timeout", None, "request_overall_timeout");
            Reply { close: true, ..reply }
        }
        Expired::Whole => {
            let complete = log.exchange.is_request_complete();
            let status =
                if complete { StatusCode::GATEWAY_TIMEOUT } else { StatusCode::REQUEST_TIMEOUT };
            let flag = Some(ResponseFlag::DurationTimeout);
            let details = "max_duration_timeout";
            let reply = Reply::new(status, "downstream duration timeout", flag, details);
            // DEADLINE_EXCEEDED.
            Reply { close: !complete, grpc: ToGrpc::Code(4), ..reply }
        }
        Expired::StreamIdle => {
            // Whose silence it was.
            let complete = log.exchange.is_request_complete();
            let status =
                if complete { StatusCode::GATEWAY_TIMEOUT } else { StatusCode::REQUEST_TIMEOUT };
            let flag = Some(ResponseFlag::StreamIdleTimeout);
            let reply = Reply::new(status, "stream timeout", flag, "stream_idle_timeout");
            Reply { close: !complete, ..reply }
        }
    }
}
