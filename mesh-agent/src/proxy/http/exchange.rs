//! One exchange with an endpoint, on a pooled connection or a fresh one.
//!
//! Sent again, once and on a fresh connection, is what can't have been acted on twice: a
//! request of which nothing was sent; and, where a kept connection ended before a byte of
//! the response, an idempotent request without a body (RFC 9110 §9.2.2), since a server
//! that closes an idle connection has most likely not seen it.

use std::{error::Error, net::SocketAddr, sync::Arc, time::Duration};

use futures_util::TryFutureExt;
use http::{Request, Response};
use http_body::Body;

use super::{
    ConnectFailure, HttpServices, RequestBody, attempts,
    breakers::Breaker,
    reset::Failure,
    timing::{Deadline, Exchange, Expired},
};
use crate::{
    policy::Permit,
    proxy::{Origination, story},
    route::Destination,
    transport::http_pool::{BoxedIo, Heard, Held, HttpKey, LeaseError, LeasedBody, SendFailure},
};

/// Sends a request to `destination`. `limits` bounds it from when there is a connection;
/// `ready` is told that connection's own end, and has the request once more.
pub(super) async fn exchange(
    services: &HttpServices,
    permit: &Permit,
    (destination, tls, key): (&Destination, Option<&Origination>, &HttpKey),
    mut request: Request<RequestBody>,
    breaker: Option<&Arc<Breaker>>,
    limits: (Option<Duration>, Option<Duration>),
    mut ready: impl FnMut(Option<SocketAddr>, Request<RequestBody>) -> Request<RequestBody>,
) -> Result<Response<LeasedBody<RequestBody>>, Failure> {
    let connect = || connect(services, permit, (destination, tls), breaker);
    let mut fresh = false;
    loop {
        let lease =
            services.pool.lease(key, fresh, connect).await.map_err(|error| match error {
                LeaseError::Connect(error) => error.into(),
                LeaseError::Handshake { .. } => Failure::Handshake(story(&error)),
            })?;
        request = ready(lease.local_address(), request);
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

/// Ends a CONNECT here: a connection to `destination` for what it carries, whose own end `ready`
/// is told.
pub(super) async fn terminate(
    services: &HttpServices,
    permit: &Permit,
    to: (&Destination, Option<&Origination>),
    breaker: Option<&Arc<Breaker>>,
    ready: impl FnOnce(Option<SocketAddr>),
) -> Result<Response<LeasedBody<RequestBody>>, Failure> {
    let io = connect(services, permit, to, breaker).await?;
    ready(io.local_address());
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

type Copied = (Request<()>, Arc<Exchange>);

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
