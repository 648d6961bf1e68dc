//! A permitted request's exchange with its upstream.
//!
//! Sent again is what the route's retry policy says (`attempts`), with what was kept of
//! its body. And, once and on a fresh connection, what can't have been acted on twice: a
//! request of which nothing was sent; and, where a kept connection ended before a byte of
//! the response, an idempotent request without a body (RFC 9110 §9.2.2), since a server
//! that closes an idle connection has most likely not seen it.

use std::{borrow::Cow, error::Error, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::TryFutureExt;
use http::{
    HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version,
    header::{CONTENT_LENGTH, SET_COOKIE},
    request::Parts,
    uri::Authority,
};
use http_body::Body;
use hyper::upgrade::OnUpgrade;

use super::{
    ConnectFailure, HttpConnection, HttpServices, RequestBody,
    attempts::{self, Attempting, Progress},
    breakers::Breaker,
    headers::{self, Rewrites},
    mirror::Mirroring,
    outliers,
    record::RequestLog,
    reply::{Reply, ToGrpc},
    request::Answer,
    spans::Ending,
    switch::{self, Switch},
    timing::{Deadline, Expired},
};
use crate::{
    model::{cluster::UpstreamProtocol, listener::Direction, socket_match::Labels},
    observe::{flags::ResponseFlag, metrics::AttemptFailure},
    policy::{Permit, RequestPermit},
    proxy::{Origination, story},
    route::{Destination, Reporter, Reset, Target},
    snapshot::Snapshot,
    transport::http_pool::{
        BoxedIo, Heard, Held, HttpKey, HttpProtocol, LeaseError, LeasedBody, SendFailure,
    },
};

const SERVICE_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");

const CONNECTION_FAILURE: &str = "remote connection failure";
const CONNECTION_TIMEOUT: &str = "connection timeout";
const CONNECTION_TERMINATION: &str = "connection termination";
const OVERFLOW: &str = "overflow";
const REMOTE_RESET: &str = "remote reset";
const REFUSED_STREAM: &str = "remote refused stream reset";
const PROTOCOL_ERROR: &str = "protocol error";

/// What was decided about a request.
pub(super) struct Forward<'a> {
    pub(super) connection: &'a HttpConnection,
    pub(super) permit: &'a Permit,
    pub(super) request_permit: &'a RequestPermit,
    pub(super) snapshot: &'a Snapshot,
    pub(super) destination: Destination,
    /// What it was chosen by.
    pub(super) hash: Option<u64>,
    /// Which the client is to keep for the next time.
    pub(super) cookies: Vec<HeaderValue>,
    pub(super) subset: Option<&'a Labels>,
    pub(super) rewrites: Rewrites<'a>,
    pub(super) authority: Authority,
    pub(super) deadline: Deadline,
    /// The client wants another protocol, and may.
    pub(super) upgrade: Option<Upgrade>,
    pub(super) mirroring: Option<Mirroring<'a>>,
}

/// A change of the protocol that is to go through.
pub(super) struct Upgrade {
    pub(super) switch: Switch,
    /// Of a stream of HTTP/2, whose client takes every success for an agreement.
    pub(super) of_stream: bool,
    /// The client's side, once it was told.
    pub(super) downstream: OnUpgrade,
}

pub(super) async fn forward(
    forward: Forward<'_>,
    log: &mut RequestLog,
    head: &mut Parts,
    body: RequestBody,
) -> Result<Answer, Reply> {
    let Forward { connection, permit, destination, rewrites, authority, .. } = forward;
    let mut deadline = forward.deadline;
    let action = rewrites.action;
    let protocol = match (destination.upstream_protocol(), head.version) {
        (UpstreamProtocol::Http2, _) => HttpProtocol::Http2,
        (UpstreamProtocol::SameAsDownstream, Version::HTTP_2) => HttpProtocol::Http2,
        (UpstreamProtocol::Http1 | UpstreamProtocol::SameAsDownstream, _) => HttpProtocol::Http1,
    };
    let switch = forward.upgrade.as_ref().map(|upgrade| &upgrade.switch);
    let connect = matches!(switch, Some(Switch::Connect));
    let of_stream = forward.upgrade.as_ref().is_some_and(|upgrade| upgrade.of_stream);
    if connect {
        // As Envoy: it runs from the end of a request, which a tunnel has none of.
        deadline.set_route(None);
    }
    let hosts = rewrites.hosts(head, &authority)?;
    let head_request = head.method == Method::HEAD;
    let of_connection = connection.http.options.buffer_max_bytes(head.version == Version::HTTP_2);
    let attempting = Attempting {
        connection,
        permit,
        request_permit: forward.request_permit,
        snapshot: forward.snapshot,
        action,
        timeout: rewrites.timeout,
        protocol,
        host: hosts.host.clone(),
        hash: forward.hash,
        subset: forward.subset,
        retries: attempts::retries(&action.attempts, head),
        buffer_max_bytes: action.attempts.buffer_max_bytes.unwrap_or(of_connection),
        grpc: headers::is_grpc(&head.headers),
        opaque: connect && action.terminates_connect,
    };
    let body = match &forward.mirroring {
        // As Envoy: what follows an upgrade is no request.
        Some(mirroring) if forward.upgrade.is_none() => {
            mirroring.begin(head, &hosts, rewrites, log, body)
        }
        _ => body,
    };
    headers::forwarded(head, hosts, rewrites, protocol)?;
    let mut extended = None;
    match (switch, protocol) {
        (Some(Switch::Connect), _) => {}
        (Some(Switch::Protocol(name)), HttpProtocol::Http1) => {
            switch::offer(&mut head.headers, name.clone());
        }
        (Some(Switch::Protocol(name)), HttpProtocol::Http2) => {
            extended = Some(switch::to_extended(head, name)?);
        }
        (None, HttpProtocol::Http1) if body.is_end_stream() => headers::tell_no_body(head),
        (None, HttpProtocol::Http1) => headers::tell_body(head),
        (None, HttpProtocol::Http2) => {}
    }
    if let Some(trace) = &mut log.trace {
        trace.attempt(&mut head.headers, (destination.address(), protocol), 1);
    }
    log.forwarded(head);
    let mut request = Request::new(());
    *request.method_mut() = std::mem::take(&mut head.method);
    *request.uri_mut() = std::mem::take(&mut head.uri);
    *request.version_mut() = head.version;
    *request.headers_mut() = std::mem::take(&mut head.headers);
    if let Some(protocol) = extended {
        request.extensions_mut().insert(protocol);
    }

    let mut progress = Progress { count: 1, reporter: Reporter::default(), counted: None };
    let all = attempting.run(destination, request, body, log, &mut progress);
    let ended = deadline.run(all).await;
    let count = progress.count;
    if let Some(logging) = &mut log.logging {
        logging.attempts(count);
    }
    let told = action.attempts.count_in_response;
    let counted = |mut reply: Reply, count: u32| {
        if told {
            let headers = reply.headers.get_or_insert_default();
            headers.insert(headers::ATTEMPT_COUNT, HeaderValue::from(count));
        }
        reply
    };
    let (response, destination, admitted) = match ended {
        Ok(Ok(answered)) => answered,
        Ok(Err(reply)) => return Err(counted(reply, count)),
        Err(expired) => {
            if let Expired::Route = expired {
                outliers::timed_out(&progress.reporter);
            }
            if let Some(counted) = &progress.counted {
                counted.failed(AttemptFailure::Timeout);
            }
            let reply = expired_reply(expired, log);
            if let Some(trace) = &mut log.trace {
                trace.attempt_ended(Ending::Cancelled(None, reply.flag));
            }
            return Err(counted(reply, count));
        }
    };
    if let Some(idle) = action.attempts.retry.as_ref().and_then(|r| r.per_try_idle_timeout) {
        deadline.limit_idle(idle);
    }
    let mut response = response;
    let status = response.status();
    let switched = match forward.upgrade {
        Some(Upgrade { switch, downstream, .. }) if switch.is_agreed(protocol, status) => {
            deadline.set_route(None);
            Some((switch, downstream, hyper::upgrade::on(&mut response)))
        }
        _ => None,
    };
    let (mut parts, mut body) = response.into_parts();
    if let (Some((Switch::Protocol(name), ..)), HttpProtocol::Http2) = (&switched, protocol) {
        parts.status = StatusCode::SWITCHING_PROTOCOLS;
        parts.headers.remove(CONTENT_LENGTH);
        switch::offer(&mut parts.headers, name.clone());
    }
    let switch = switched.as_ref().map(|(switch, ..)| switch);
    let sanitized = match switch {
        None if (connect || of_stream) && status.is_success() => {
            Err("upstream did not switch protocols, and calls it a success")
        }
        _ => headers::sanitize_response(parts.status, &mut parts.headers, switch),
    };
    if let Err(details) = sanitized {
        let flag = ResponseFlag::UpstreamProtocolError;
        return Err(counted(reset_reply(flag, PROTOCOL_ERROR, details, count > 1), count));
    }
    if told {
        parts.headers.insert(headers::ATTEMPT_COUNT, HeaderValue::from(count));
    }
    for cookie in forward.cookies {
        parts.headers.append(SET_COOKIE, cookie);
    }
    // hyper writes the version downstream speaks.
    parts.version = Version::HTTP_11;
    // As Envoy: it counts from the request's end, which such a one does not have.
    if switched.is_none() {
        let elapsed = u64::try_from(log.exchange.elapsed().as_millis()).unwrap_or(u64::MAX);
        parts.headers.insert(SERVICE_TIME, HeaderValue::from(elapsed));
    }
    std::future::poll_fn(|cx| {
        body.release_if_ended(cx);
        std::task::Poll::Ready(())
    })
    .await;
    let switched = switched.map(|(_, downstream, upstream)| (downstream, upstream));
    let response = Response::from_parts(parts, body);
    Ok(Answer { response, deadline, destination, admitted, head_request, switched })
}

/// Who may share the connection.
pub(super) fn key(
    permit: &Permit,
    destination: &Destination,
    protocol: HttpProtocol,
    tls: Option<&Origination>,
) -> HttpKey {
    let flow = permit.flow();
    let (destination_identity, destination_workload) = match destination.target() {
        Target::Hbone { identity, workload, .. } => (Some(identity.clone()), workload.clone()),
        Target::Direct { .. } | Target::OriginalDestination { .. } => (None, None),
    };
    let inbound = flow.direction() == Direction::Inbound;
    HttpKey {
        address: destination.address(),
        destination_identity,
        destination_workload,
        pod: flow.pod().workload.uid.clone(),
        source_identity: match flow.direction() {
            Direction::Inbound | Direction::Outbound => flow.source_identity().cloned(),
            // Its clients share its connections.
            Direction::Gateway => Some(flow.pod().workload.identity.clone()),
        },
        client: inbound.then(|| flow.source().ip()),
        tls: tls.map(Origination::key),
        limits: destination.connection_limits(),
        protocol,
    }
}

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

/// Sends a request to `destination`. `limits` bounds it from when there is a connection,
/// whose own end becomes `local`.
pub(super) async fn exchange(
    services: &HttpServices,
    permit: &Permit,
    (destination, tls, key): (&Destination, Option<&Origination>, &HttpKey),
    mut request: Request<RequestBody>,
    breaker: Option<&Arc<Breaker>>,
    limits: (Option<Duration>, Option<Duration>),
    local: &mut Option<SocketAddr>,
) -> Result<Response<LeasedBody<RequestBody>>, Failure> {
    let connect = || connect(services, permit, (destination, tls), breaker);
    let mut fresh = false;
    loop {
        let lease =
            services.pool.lease(key, fresh, connect).await.map_err(|error| match error {
                LeaseError::Connect(error) => error.into(),
                LeaseError::Handshake { .. } => Failure::Handshake(story(&error)),
            })?;
        *local = lease.local_address();
        let copy = if lease.reused() { repeatable(&request) } else { None };
        let retry = !fresh && lease.reused();
        let exchange = request.body().exchange();
        let sending = lease.send(request);
        let sent = match limits {
            (None, None) => sending.await,
            (whole, idle) => {
                let mut limits = Deadline::of_attempt(exchange, whole, idle);
                let expired = |expired| {
                    Failure::Attempt(match expired {
                        Expired::Route => "upstream_per_try_timeout",
                        Expired::StreamIdle => "upstream_per_try_idle_timeout",
                        // Not an attempt's.
                        Expired::Request | Expired::Whole => "max_duration_timeout",
                    })
                };
                limits.run(sending).await.map_err(expired)?
            }
        };
        let SendFailure { error, unsent, heard } = match sent {
            Ok(response) => return Ok(response),
            Err(failure) => failure,
        };
        request = match (retry, unsent, copy) {
            (true, Some(unsent), _) => *unsent,
            (true, None, Some(copy)) if is_closed(&error) && heard == Heard::Nothing => {
                let body = RequestBody::empty(Arc::clone(&copy.1));
                copy.0.map(|()| body)
            }
            (_, unsent, _) => {
                return Err(Failure::Send {
                    error,
                    began: unsent.is_none(),
                    torn: heard == Heard::Torn,
                });
            }
        };
        fresh = true;
    }
}

/// A connection to `destination`, in the time that its cluster gives.
async fn connect(
    services: &HttpServices,
    permit: &Permit,
    (destination, tls): (&Destination, Option<&Origination>),
    breaker: Option<&Arc<Breaker>>,
) -> Result<BoxedIo, ConnectError> {
    // Until it is there.
    let _pending = match breaker {
        Some(breaker) => Some(breaker.pending().map_err(|_| ConnectError::Overflow)?),
        None => None,
    };
    let connecting = services.upstreams.connect(permit, destination, tls);
    let connecting = connecting.map_err(ConnectError::Failed);
    let limit = destination.connect_timeout();
    let io = tokio::time::timeout(limit, connecting).await.unwrap_or_else(|_| {
        let message = format!("connecting to {} took longer than {limit:?}", destination.address());
        Err(ConnectError::Timeout(message))
    })?;
    Ok(match breaker {
        Some(breaker) => Box::new(Held::new(io, breaker.counted.connected())),
        None => io,
    })
}

/// Ends a CONNECT here: a connection to `destination` for what it carries.
pub(super) async fn terminate(
    services: &HttpServices,
    permit: &Permit,
    to: (&Destination, Option<&Origination>),
    breaker: Option<&Arc<Breaker>>,
    local: &mut Option<SocketAddr>,
) -> Result<Response<LeasedBody<RequestBody>>, Failure> {
    let io = connect(services, permit, to, breaker).await?;
    *local = io.local_address();
    Ok(Response::new(LeasedBody::opaque(io)))
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Failed(failure) => Self::Connect(failure),
            ConnectError::Overflow => Self::Overflow,
            ConnectError::Timeout(message) => Self::ConnectTimeout(message),
        }
    }
}

type Copied = (Request<()>, Arc<super::timing::Exchange>);

/// A copy, where sending it twice does no harm.
fn repeatable(request: &Request<RequestBody>) -> Option<Copied> {
    if !request.body().is_end_stream() || !request.method().is_idempotent() {
        return None;
    }
    Some((attempts::head_of(request), request.body().exchange()))
}

/// Whether the connection ended before a byte of the response.
fn is_closed(error: &hyper::Error) -> bool {
    if error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
        return true;
    }
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
            return matches!(io.kind(), BrokenPipe | ConnectionAborted | ConnectionReset);
        }
        if let Some(h2) = error.downcast_ref::<h2::Error>() {
            return h2.is_go_away() && h2.reason() == Some(h2::Reason::NO_ERROR)
                || h2.reason() == Some(h2::Reason::REFUSED_STREAM);
        }
        source = error.source();
    }
    false
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
enum ConnectError {
    #[error(transparent)]
    Failed(ConnectFailure),
    #[error("{0}")]
    Timeout(String),
    #[error("overflow")]
    Overflow,
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
fn reset_reply(
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
