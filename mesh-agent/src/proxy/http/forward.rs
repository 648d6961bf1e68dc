//! A permitted request's exchange with its upstream.
//!
//! Sent again, once and on a fresh connection, is only what can't have been acted on
//! twice: a request of which nothing was sent; and, where a kept connection ended
//! before a byte of the response, an idempotent request without a body (RFC 9110
//! §9.2.2), since a server that closes an idle connection has most likely not seen it.

use std::{error::Error, sync::Arc};

use http::{Method, Request, Response, StatusCode, Version, request::Parts, uri::Authority};
use http_body::Body;

use super::{
    ConnectFailure, HttpConnection, RequestBody,
    headers::{self, Rewrites},
    record::RequestLog,
    reply::Reply,
    request::Answer,
    timing::{Deadline, Expired},
};
use crate::{
    model::{cluster::UpstreamProtocol, listener::Direction},
    observe::flags::ResponseFlag,
    policy::Permit,
    proxy::{Origination, story},
    route::{Destination, Target},
    transport::http_pool::{HttpKey, HttpProtocol, LeaseError, LeasedBody, SendFailure},
};

const CONNECTION_FAILURE: &str = "upstream connect error or disconnect/reset before headers. \
     reset reason: connection failure";
const CONNECTION_TERMINATION: &str = "upstream connect error or disconnect/reset before headers. \
     reset reason: connection termination";
const REMOTE_RESET: &str = "upstream connect error or disconnect/reset before headers. \
     reset reason: remote reset";
const PROTOCOL_ERROR: &str = "upstream connect error or disconnect/reset before headers. \
     reset reason: protocol error";

/// What was decided about a request.
pub(super) struct Forward<'a> {
    pub(super) connection: &'a HttpConnection,
    pub(super) permit: &'a Permit,
    pub(super) destination: Destination,
    pub(super) rewrites: Rewrites<'a>,
    pub(super) authority: Authority,
    pub(super) deadline: Deadline,
}

pub(super) async fn forward(
    forward: Forward<'_>,
    log: &mut RequestLog,
    head: &mut Parts,
    body: RequestBody,
) -> Result<Answer, Reply> {
    let Forward { connection, permit, destination, rewrites, authority, mut deadline } = forward;
    let protocol = match (destination.upstream_protocol(), head.version) {
        (UpstreamProtocol::Http2, _) => HttpProtocol::Http2,
        (UpstreamProtocol::SameAsDownstream, Version::HTTP_2) => HttpProtocol::Http2,
        (UpstreamProtocol::Http1 | UpstreamProtocol::SameAsDownstream, _) => HttpProtocol::Http1,
    };
    let hosts = rewrites.hosts(head, &authority)?;
    let upstreams = &connection.services.upstreams;
    let tls = upstreams
        .originate(&destination, protocol, &hosts.host, &head.headers)
        .map_err(|failure| Failure::Connect(failure).into_reply(log))?;
    let key = key(permit, &destination, protocol, tls.as_ref());
    log.record.upstream_identity = key.destination_identity.clone();
    connection.observer.routed(&log.record);
    headers::forwarded(head, hosts, rewrites, protocol)?;
    if let Some(mutations) = &mut log.mutations {
        mutations.keep_request(head);
    }
    let head_request = head.method == Method::HEAD;

    let mut request = Request::new(body);
    *request.method_mut() = std::mem::take(&mut head.method);
    *request.uri_mut() = std::mem::take(&mut head.uri);
    *request.version_mut() = head.version;
    *request.headers_mut() = std::mem::take(&mut head.headers);

    let exchanged = exchange(connection, permit, (&destination, tls.as_ref()), &key, request);
    let response = match deadline.run(exchanged).await {
        Ok(Ok(response)) => response,
        Ok(Err(failure)) => return Err(failure.into_reply(log)),
        Err(expired) => return Err(expired_reply(expired, log)),
    };
    let (mut parts, mut body) = response.into_parts();
    if let Err(details) = headers::sanitize_response(parts.status, &mut parts.headers) {
        let flag = ResponseFlag::UpstreamProtocolError;
        return Err(Reply::upstream_reset(flag, PROTOCOL_ERROR, details));
    }
    // hyper writes the version downstream speaks.
    parts.version = Version::HTTP_11;
    std::future::poll_fn(|cx| {
        body.release_if_ended(cx);
        std::task::Poll::Ready(())
    })
    .await;
    let response = Response::from_parts(parts, body);
    Ok(Answer { response, deadline, destination, head_request })
}

/// Who may share the connection.
fn key(
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
        source_identity: flow.source_identity().cloned(),
        client: inbound.then(|| flow.source().ip()),
        tls: tls.map(Origination::key),
        protocol,
    }
}

/// Why there is no response.
enum Failure {
    Connect(ConnectFailure),
    Handshake(String),
    Send(hyper::Error),
}

async fn exchange(
    connection: &HttpConnection,
    permit: &Permit,
    (destination, tls): (&Destination, Option<&Origination>),
    key: &HttpKey,
    mut request: Request<RequestBody>,
) -> Result<Response<LeasedBody<RequestBody>>, Failure> {
    let services = &connection.services;
    let connect = || async move {
        let connecting = services.upstreams.connect(permit, destination, tls);
        let limit = destination.connect_timeout();
        tokio::time::timeout(limit, connecting).await.unwrap_or_else(|_| {
            let message =
                format!("connecting to {} took longer than {limit:?}", destination.address());
            Err(ConnectFailure { flag: ResponseFlag::UpstreamConnectionFailure, message })
        })
    };
    let mut fresh = false;
    loop {
        let lease =
            services.pool.lease(key, fresh, connect).await.map_err(|error| match error {
                LeaseError::Connect(failure) => Failure::Connect(failure),
                LeaseError::Handshake { .. } => Failure::Handshake(story(&error)),
            })?;
        let copy = if lease.reused() { repeatable(&request) } else { None };
        let retry = !fresh && lease.reused();
        let SendFailure { error, unsent } = match lease.send(request).await {
            Ok(response) => return Ok(response),
            Err(failure) => failure,
        };
        request = match (retry, unsent, copy) {
            (true, Some(unsent), _) => *unsent,
            (true, None, Some(copy)) if is_closed(&error) => {
                let body = RequestBody::empty(Arc::clone(&copy.1));
                copy.0.map(|()| body)
            }
            _ => return Err(Failure::Send(error)),
        };
        fresh = true;
    }
}

type Copied = (Request<()>, Arc<super::timing::Exchange>);

/// A copy, where sending it twice does no harm.
fn repeatable(request: &Request<RequestBody>) -> Option<Copied> {
    if !request.body().is_end_stream() || !request.method().is_idempotent() {
        return None;
    }
    let mut copy = Request::new(());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    Some((copy, request.body().exchange()))
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

impl Failure {
    fn into_reply(self, log: &RequestLog) -> Reply {
        match self {
            // Not the upstream's fault.
            _ if log.exchange.is_request_broken() => Reply::bad_request("malformed request body"),
            Self::Connect(ConnectFailure { flag, message }) => {
                tracing::debug!(%message, "no upstream connection");
                Reply::upstream_reset(flag, CONNECTION_FAILURE, message)
            }
            Self::Handshake(message) => {
                let flag = ResponseFlag::UpstreamConnectionFailure;
                Reply::upstream_reset(flag, CONNECTION_FAILURE, message)
            }
            Self::Send(error) => {
                let (flag, body) = classify(&error);
                Reply::upstream_reset(flag, body, story(&error))
            }
        }
    }
}

fn classify(error: &hyper::Error) -> (ResponseFlag, &'static str) {
    if error.is_parse() {
        return (ResponseFlag::UpstreamProtocolError, PROTOCOL_ERROR);
    }
    let h2 = error.source().and_then(|source| source.downcast_ref::<h2::Error>());
    match h2 {
        Some(h2) if h2.is_reset() && h2.is_remote() => {
            (ResponseFlag::UpstreamRemoteReset, REMOTE_RESET)
        }
        Some(h2) if h2.is_reset() || h2.is_go_away() && h2.is_library() => {
            (ResponseFlag::UpstreamProtocolError, PROTOCOL_ERROR)
        }
        _ => (ResponseFlag::UpstreamConnectionTermination, CONNECTION_TERMINATION),
    }
}

fn expired_reply(expired: Expired, log: &RequestLog) -> Reply {
    match expired {
        Expired::Route => Reply::new(
            StatusCode::GATEWAY_TIMEOUT,
            "upstream request timeout",
            Some(ResponseFlag::UpstreamRequestTimeout),
            "response_timeout",
        ),
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
