//! A permitted request's exchange with its upstream.
//!
//! Sent again is what the route's retry policy says (`attempts`), with what was kept of
//! its body.

use http::{
    HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version,
    header::{CONTENT_LENGTH, SET_COOKIE},
    request::Parts,
    uri::Authority,
};
use http_body::Body;
use hyper::upgrade::OnUpgrade;

use super::{
    HttpConnection, RequestBody,
    answer::Answer,
    attempts::{self, Attempting, Progress},
    headers,
    mirror::Mirroring,
    outliers,
    record::RequestLog,
    reply::Reply,
    reset::{PROTOCOL_ERROR, expired_reply, reset_reply},
    rewrites::Rewrites,
    spans::Ending,
    switch::{self, Switch},
    timing::{Deadline, Expired},
};
use crate::{
    model::{cluster::UpstreamProtocol, listener::Direction, socket_match::Labels},
    observe::{flags::ResponseFlag, metrics::AttemptFailure},
    policy::{Permit, RequestPermit},
    proxy::Origination,
    route::{Destination, Reporter, Target},
    snapshot::Snapshot,
    transport::http_pool::{HttpKey, HttpProtocol},
};

const SERVICE_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");

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
