//! By HTTP: a request, and what is to be made of its answer.

use std::ops::Range;

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Request, Response, Uri,
    header::{HOST, USER_AGENT},
    request::Parts,
    uri::Authority,
};
use http_body_util::{BodyExt, Full};

use super::{Ill, Session, Verdict, connect, has_all};
use crate::{
    model::{
        cluster::{ConnectionLimits, HttpProbe},
        header_mutation::HeaderMutation,
        workload::WorkloadUid,
    },
    proxy::{Origination, http::mutate_literally, story},
    route::Destination,
    transport::http_pool::{HttpKey, HttpProtocol, LeaseError, LeasedBody},
};

const AGENT: HeaderValue = HeaderValue::from_static("Envoy/HC");
const IMMEDIATE_FAIL: &str = "x-envoy-immediate-health-check-fail";
const DEGRADED: &str = "x-envoy-degraded";
const CHECKED_CLUSTER: &str = "x-envoy-upstream-healthchecked-cluster";

type Answer = Response<LeasedBody<Full<Bytes>>>;

impl Session {
    pub(super) async fn http(&mut self, destination: &Destination, probe: &HttpProbe) -> Verdict {
        let protocol = if probe.http2 { HttpProtocol::Http2 } else { HttpProtocol::Http1 };
        let host = self.host(probe.host.as_ref());
        let mut head = head(protocol, host, &probe.path, destination)?;
        head.method = probe.method.clone();
        mutate_literally(&probe.headers, &mut head.headers);
        let request = Request::from_parts(head, Full::new(Bytes::clone(&probe.send)));
        let response = self.send(destination, protocol, request).await?;
        let (head, mut body) = response.into_parts();
        let mut came = Vec::new();
        // Its end is waited for, however little of it is looked at.
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| Ill::unreachable(story(&error)))?;
            if let Some(data) = frame.data_ref().filter(|_| !probe.receive.is_empty()) {
                let room = probe.response_buffer_bytes.saturating_sub(came.len());
                came.extend_from_slice(&data[..data.len().min(room)]);
            }
        }
        judge(probe, head.status.as_u16(), &head.headers, &came)
    }

    /// Sends a request, on the connection of the last check where there still is one.
    pub(super) async fn send(
        &mut self,
        destination: &Destination,
        protocol: HttpProtocol,
        mut request: Request<Full<Bytes>>,
    ) -> Result<Answer, Ill> {
        let authority = request.uri().authority().cloned();
        let named = authority.or_else(|| {
            request.headers().get(HOST).and_then(|host| host.to_str().ok()?.parse().ok())
        });
        let address: Result<Authority, _> = self.address().to_string().parse();
        let Some(authority) = named.or(address.ok()) else {
            return Err(Ill::unreachable("has no name"));
        };
        let contexts = &self.dataplane.connector.tls;
        let tls = Origination::http(contexts, destination, protocol, &authority, request.headers())
            .map_err(|failure| Ill::unreachable(failure.detail))?;
        let key = HttpKey {
            address: self.address(),
            destination_identity: None,
            destination_workload: None,
            // Nobody's: the pool is this endpoint's alone.
            pod: WorkloadUid("".into()),
            source_identity: None,
            client: None,
            tls: tls.as_ref().map(Origination::key),
            // Those are for requests.
            limits: ConnectionLimits::default(),
            protocol,
        };
        let (address, timeout) = (self.address(), self.check.timeout);
        let mut fresh = false;
        loop {
            let tls = tls.as_ref();
            let connect = || connect(address, destination, tls, timeout);
            let lease = match self.kept.pool.lease(&key, fresh, connect).await {
                Ok(lease) => lease,
                Err(LeaseError::Connect(reason)) => return Err(Ill::unreachable(reason)),
                Err(LeaseError::Handshake { source, .. }) => {
                    return Err(Ill::unreachable(story(&source)));
                }
            };
            let reused = lease.reused();
            match lease.send(request).await {
                Ok(response) => return Ok(response),
                // Closed between two checks.
                Err(failure) if reused && failure.unsent.is_some() => {
                    let Some(unsent) = failure.unsent else {
                        return Err(Ill::unreachable("the connection was closed"));
                    };
                    request = *unsent;
                    fresh = true;
                }
                Err(failure) => return Err(Ill::unreachable(story(&failure))),
            }
        }
    }
}

/// A request's head, as its protocol wants it.
pub(super) fn head(
    protocol: HttpProtocol,
    host: &str,
    path: &str,
    destination: &Destination,
) -> Result<Parts, Ill> {
    let (mut head, ()) = Request::new(()).into_parts();
    head.headers.insert(USER_AGENT, AGENT);
    let uri = match protocol {
        HttpProtocol::Http1 => {
            let host = HeaderValue::from_str(host).map_err(|_| Ill::unreachable("has no name"))?;
            head.headers.insert(HOST, host);
            path.parse()
        }
        HttpProtocol::Http2 => {
            let scheme = if destination.tls().is_some() { "https" } else { "http" };
            let uri = Uri::builder().scheme(scheme).authority(host).path_and_query(path).build();
            return match uri {
                Ok(uri) => {
                    head.uri = uri;
                    Ok(head)
                }
                Err(_) => Err(Ill::unreachable(format!("`{host}` is not a host"))),
            };
        }
    };
    head.uri = uri.map_err(|_| Ill::unreachable(format!("`{path}` is not a path")))?;
    Ok(head)
}

fn judge(probe: &HttpProbe, status: u16, headers: &HeaderMap, body: &[u8]) -> Verdict {
    let excluded = headers.contains_key(IMMEDIATE_FAIL);
    if !has_all(&probe.receive, body) {
        let ill = Ill::by_answer("the response lacks what is expected");
        return Err(Ill { excluded, ..ill });
    }
    let is_in = |ranges: &[Range<u16>]| ranges.iter().any(|range| range.contains(&status));
    if !is_in(&probe.expected) {
        let reason = format!("status {status}");
        return Err(Ill { at_once: !is_in(&probe.retriable), excluded, reason });
    }
    if let Some(expected) = &probe.service_name {
        let name = headers.get(CHECKED_CLUSTER).map_or(&b""[..], HeaderValue::as_bytes);
        if !expected.matches(name) {
            return Err(Ill::by_answer("it is another service"));
        }
    }
    Ok(headers.contains_key(DEGRADED))
}

/// As a probe's settings say, where there are some.
pub(super) fn add_headers(headers: &HeaderMutation, head: &mut Parts) {
    mutate_literally(headers, &mut head.headers);
}

#[cfg(test)]
mod tests;
