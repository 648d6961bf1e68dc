//! Which request gets which answer.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use http_body_util::Full;
use hyper::{
    Method, Response, StatusCode, Version,
    body::Bytes,
    header::{
        ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderValue, X_CONTENT_TYPE_OPTIONS,
    },
    http::request::Parts,
};
use serde::Serialize;

use super::{AgentControl, ControlError, ErrorView};
use crate::{model::workload::WorkloadUid, observe::metrics::Exposition};

pub(super) type Body = Full<Bytes>;

/// How a request came in.
#[derive(Debug, Clone, Copy)]
pub(super) enum Access {
    /// Over the admin address: may read.
    Tcp { bound: Option<SocketAddr> },
    /// Over the control socket: may do everything.
    Unix,
}

const INDEX: &str = "\
mesh-agent admin

GET /healthz      the process answers
GET /readyz       200 once ready, 503 with the reasons until then
GET /metrics      Prometheus text, or OpenMetrics to who accepts it
GET /status       the agent in one page
GET /config_dump  the configuration in force
GET /connections  live connections
GET /pods         enrolled pods

Over the control socket only:
POST /pods           enrol a pod
DELETE /pods/<uid>   un-enrol it
POST /drain          drain and stop
";

/// The answer to what must not even be looked at; `None` lets it in.
///
/// The `Host` check keeps web pages out: a browser tricked into resolving the
/// page's name to this address still sends that name.
pub(super) fn refuse(head: &Parts, access: Access) -> Option<Response<Body>> {
    let Access::Tcp { bound } = access else { return None };
    if !host_is_ours(head, bound.map(|bound| bound.ip())) {
        let why = "this Host is not the agent's: use localhost or the admin address";
        return Some(error(StatusCode::MISDIRECTED_REQUEST, why));
    }
    if head.method != Method::GET && head.method != Method::HEAD {
        let why = "the admin address only answers reads: changes go over the control socket";
        return Some(not_allowed("GET, HEAD", why));
    }
    None
}

fn host_is_ours(head: &Parts, bound: Option<IpAddr>) -> bool {
    let mut hosts = head.headers.get_all(HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().ok(),
        // Only HTTP/1.0 may do without, and no browser speaks it.
        (None, _) => return head.version == Version::HTTP_10,
        (Some(_), Some(_)) => None,
    };
    // An absolute-form target would override the Host header (RFC 9112 §3.2.2).
    let authority = match head.uri.authority() {
        Some(authority) => Some(authority.clone()),
        None => host.and_then(|host| host.parse::<hyper::http::uri::Authority>().ok()),
    };
    let Some(authority) = authority else { return false };
    let name = authority.host();
    if name.eq_ignore_ascii_case("localhost") {
        return true;
    }
    let Ok(ip) = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() else {
        return false;
    };
    let ip = ip.to_canonical();
    // Bound to every address, the agent can't tell which are its own; an address
    // is no name, so nobody can rebind it.
    ip.is_loopback()
        || bound.is_some_and(|bound| bound.is_unspecified() || bound.to_canonical() == ip)
}

pub(super) async fn route(
    head: &Parts,
    body: &Bytes,
    control: &dyn AgentControl,
) -> Response<Body> {
    let path = head.uri.path();
    let read = head.method == Method::GET || head.method == Method::HEAD;
    match path {
        "/pods" if head.method == Method::POST => return enroll(body, control).await,
        "/drain" if head.method == Method::POST => {
            control.drain();
            return json(StatusCode::ACCEPTED, &serde_json::json!({"draining": true}));
        }
        "/drain" => return not_allowed("POST", "use POST"),
        _ => {}
    }
    if let Some(uid) = path.strip_prefix("/pods/") {
        if head.method != Method::DELETE {
            return not_allowed("DELETE", "use DELETE");
        }
        return match control.unenroll(WorkloadUid(uid.into())).await {
            Ok(()) => json(StatusCode::OK, &serde_json::json!({"unenrolled": uid})),
            Err(refused) => refusal(&refused),
        };
    }
    match path {
        "/" if read => text(StatusCode::OK, "text/plain; charset=utf-8", INDEX),
        "/healthz" if read => text(StatusCode::OK, "text/plain; charset=utf-8", "ok\n"),
        "/readyz" if read => {
            let readiness = control.readiness();
            let status =
                if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            json(status, &readiness)
        }
        "/metrics" if read => {
            let accept = head.headers.get(ACCEPT).and_then(|accept| accept.to_str().ok());
            let exposition = Exposition::for_accept(accept);
            let page = exposition.of(control.metrics());
            text(StatusCode::OK, exposition.content_type(), page)
        }
        "/status" if read => json(StatusCode::OK, &control.status()),
        "/config_dump" if read => json(StatusCode::OK, &control.config_dump()),
        "/connections" if read => json(StatusCode::OK, &control.connections()),
        "/pods" if read => json(StatusCode::OK, &control.pods()),
        "/pods" => not_allowed("GET, HEAD, POST", "use GET or POST"),
        "/" | "/healthz" | "/readyz" | "/metrics" | "/status" | "/config_dump" | "/connections" => {
            not_allowed("GET, HEAD", "use GET")
        }
        _ => error(StatusCode::NOT_FOUND, "no such endpoint; GET / lists them"),
    }
}

async fn enroll(body: &Bytes, control: &dyn AgentControl) -> Response<Body> {
    let request = match serde_json::from_slice(body) {
        Ok(request) => request,
        Err(reason) => return error(StatusCode::BAD_REQUEST, &format!("not a pod: {reason}")),
    };
    match control.enroll(request).await {
        Ok(pod) => json(StatusCode::CREATED, &pod),
        Err(refused) => refusal(&refused),
    }
}

fn refusal(refused: &ControlError) -> Response<Body> {
    let status = match refused {
        ControlError::Invalid(_) => StatusCode::BAD_REQUEST,
        ControlError::NotFound(_) => StatusCode::NOT_FOUND,
        ControlError::Conflict(_) => StatusCode::CONFLICT,
        ControlError::Draining => StatusCode::SERVICE_UNAVAILABLE,
        ControlError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    error(status, &refused.to_string())
}

pub(super) fn too_large(limit: usize) -> Response<Body> {
    error(StatusCode::PAYLOAD_TOO_LARGE, &format!("the body is longer than {limit} bytes"))
}

pub(super) fn no_body() -> Response<Body> {
    error(StatusCode::REQUEST_TIMEOUT, "the body did not arrive whole and in time")
}

pub(super) fn too_slow(limit: Duration) -> Response<Body> {
    let why = format!("not done after {} s; look at the agent's log", limit.as_secs());
    error(StatusCode::GATEWAY_TIMEOUT, &why)
}

fn not_allowed(allow: &'static str, why: &str) -> Response<Body> {
    let mut response = error(StatusCode::METHOD_NOT_ALLOWED, why);
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
    response
}

fn error(status: StatusCode, why: &str) -> Response<Body> {
    json(status, &ErrorView { error: why.to_owned() })
}

fn json(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    match serde_json::to_vec_pretty(value) {
        Ok(mut body) => {
            body.push(b'\n');
            text(status, "application/json", body)
        }
        Err(failure) => {
            tracing::error!(error = %failure, "an admin answer can't be written as JSON");
            let body = "{\"error\":\"the answer can't be written as JSON\"}\n";
            text(StatusCode::INTERNAL_SERVER_ERROR, "application/json", body)
        }
    }
}

fn text(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
