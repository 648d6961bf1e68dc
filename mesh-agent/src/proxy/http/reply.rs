//! Responses the agent makes itself, in Envoy's words.

use std::{borrow::Cow, fmt::Write as _};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Response, StatusCode, Version,
    header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, LOCATION},
    request::Parts,
};

use super::{access_log::Worded, body::ResponseBody, grpc, record::RequestLog};
use crate::observe::flags::ResponseFlag;

/// The details of what an upstream has said, worded anew.
pub(super) const VIA_UPSTREAM: &str = "via_upstream";

/// A response of the agent's own.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
    pub(super) flag: Option<ResponseFlag>,
    /// For the log.
    pub(super) details: Cow<'static, str>,
    /// Envoy's response code details, where `details` does not begin with them.
    pub(super) code: Option<Cow<'static, str>>,
    /// Beside what each reply has.
    pub(super) headers: Option<Box<HeaderMap>>,
    /// Where what was asked for is to be found.
    pub(super) location: Option<Box<HeaderValue>>,
    /// HTTP/1: what follows on the connection can't be trusted to be a request.
    pub(super) close: bool,
    pub(super) grpc: ToGrpc,
}

/// What a gRPC client is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ToGrpc {
    /// The code that Envoy maps the status to.
    Mapped,
    /// This code.
    Code(u32),
    /// The same as others.
    Plain,
}

impl Reply {
    pub(super) fn new(
        status: StatusCode,
        body: &'static str,
        flag: Option<ResponseFlag>,
        details: impl Into<Cow<'static, str>>,
    ) -> Self {
        let body = Bytes::from_static(body.as_bytes());
        let headers = None;
        Self {
            status,
            body,
            flag,
            details: details.into(),
            code: None,
            headers,
            location: None,
            close: false,
            grpc: ToGrpc::Mapped,
        }
    }

    /// The client broke the protocol.
    pub(super) fn bad_request(details: impl Into<Cow<'static, str>>) -> Self {
        let flag = Some(ResponseFlag::DownstreamProtocolError);
        Self { close: true, ..Self::new(StatusCode::BAD_REQUEST, "Bad Request", flag, details) }
    }

    /// The upstream failed before it answered.
    pub(super) fn upstream_reset(
        flag: ResponseFlag,
        body: &'static str,
        details: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, body, Some(flag), details)
    }

    /// The response, its record noted.
    pub(super) fn into_response(
        self,
        mut log: RequestLog,
        head: &Parts,
        version: Version,
        grpc: bool,
    ) -> Response<ResponseBody> {
        log.record.details = Some(self.details);
        log.record.code_details = self.code;
        if let Some(flag) = self.flag {
            log.record.flags.insert(flag);
        }
        let mut worded = Worded {
            status: self.status,
            body: self.body,
            content_type: HeaderValue::from_static("text/plain"),
            headers: self.headers.map_or_else(|| HeaderMap::with_capacity(4), |own| *own),
        };
        if log.record.details.as_deref() != Some(VIA_UPSTREAM) {
            log.word(head, &mut worded);
        }
        let Worded { status, body, content_type, mut headers } = worded;
        let is_grpc = grpc && self.grpc != ToGrpc::Plain;
        let (status, body) = if is_grpc {
            grpc_headers(self.grpc, status, body.trim_ascii_end(), &mut headers);
            (StatusCode::OK, Bytes::new())
        } else if log.grpc_web && !body.is_empty() {
            // As Envoy: told twice, by the status, too.
            grpc_headers(ToGrpc::Mapped, status, &body, &mut headers);
            headers.insert(CONTENT_LENGTH, HeaderValue::from(0));
            (status, Bytes::new())
        } else {
            if !body.is_empty() {
                headers.entry(CONTENT_TYPE).or_insert(content_type);
            }
            if !body.is_empty() {
                headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
            }
            (status, body)
        };
        if let Some(location) = self.location {
            headers.insert(LOCATION, *location);
        }
        let has_body = !body.is_empty() && head.method != Method::HEAD;
        let stages = log.mutate(head, (status, has_body), &mut headers);
        // As Envoy: that there is none is told last. HTTP/2 does so by a flag.
        if body.is_empty() && version < Version::HTTP_2 && !is_grpc {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(0));
        }
        // As Envoy: what is left of the request is not waited for. CONNECT has no end.
        let connect = log.record.method == Some(Method::CONNECT);
        let unread = connect || !log.exchange.is_request_complete();
        if (self.close || unread) && version < Version::HTTP_2 {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        log.answered(head, status, &headers);
        let mut response = Response::new(ResponseBody::local(body, log).through(stages));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response
    }
}

/// A gRPC client reads no status code and no body: it is told in trailers-only form.
///
/// Spec: gRPC over HTTP/2, "Responses"; codes as Envoy maps them.
fn grpc_headers(told: ToGrpc, status: StatusCode, message: &[u8], headers: &mut HeaderMap) {
    let code = match told {
        ToGrpc::Code(code) => code,
        ToGrpc::Mapped | ToGrpc::Plain => grpc::code_of(status.as_u16()),
    };
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from(code));
    if !message.is_empty()
        && let Ok(message) = HeaderValue::try_from(percent_encoded(message))
    {
        headers.insert("grpc-message", message);
    }
}

/// Spec: gRPC over HTTP/2, `Percent-Encoded`: visible ASCII and space but for `%`.
fn percent_encoded(message: &[u8]) -> String {
    let mut out = String::with_capacity(message.len());
    for &byte in message {
        match byte {
            b' '..=b'~' if byte != b'%' => out.push(char::from(byte)),
            // Writing to a string can't fail.
            _ => drop(write!(out, "%{byte:02X}")),
        }
    }
    out
}
