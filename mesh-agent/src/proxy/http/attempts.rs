//! A request's attempts: the first, and those that its route's retry policy adds.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use http::{HeaderValue, Request, Response, request::Parts, uri::Authority};
use http_body::Body as _;
use hyper::ext::Protocol;

use super::{
    HttpConnection, RequestBody,
    breakers::{self, Admitted, Breaker, Counted, Overflow},
    exchange::{exchange, terminate},
    forward::key,
    headers::{ATTEMPT_COUNT, TIMEOUT_RETRY},
    held::Share,
    outliers,
    record::RequestLog,
    refusals::no_destination,
    replay::Replay,
    reply::Reply,
    reset::Failure,
    rewrites::Renaming,
    spans::Ending,
    timing::Exchange,
};
use crate::{
    model::{retry::Attempts, route::ForwardAction, socket_match::Labels},
    observe::{flags::ResponseFlag, metrics::OfCluster},
    policy::{Permit, RequestPermit},
    route::{Choice, Destination, Reporter, RetryState, Verdict, decide_request},
    snapshot::Snapshot,
    transport::http_pool::{HttpProtocol, LeasedBody},
};

type Answered = (Response<LeasedBody<RequestBody>>, Destination, Admitted);
pub(super) type Ended = Result<(Response<LeasedBody<RequestBody>>, Admitted), Failure>;

/// How far the attempts got, also where they are given up.
pub(super) struct Progress {
    /// The number of the attempt.
    pub(super) count: u32,
    /// Of the attempt in hand.
    pub(super) reporter: Reporter,
    /// Where what becomes of it is counted; `None`: it has no cluster.
    pub(super) counted: Option<Arc<OfCluster>>,
}

/// What stays the same for all attempts.
pub(super) struct Attempting<'a> {
    pub(super) connection: &'a HttpConnection,
    pub(super) permit: &'a Permit,
    pub(super) request_permit: &'a RequestPermit,
    pub(super) snapshot: &'a Snapshot,
    pub(super) action: &'a ForwardAction,
    /// Of all attempts together.
    pub(super) timeout: Option<Duration>,
    pub(super) protocol: HttpProtocol,
    /// The host that goes upstream.
    pub(super) host: Authority,
    pub(super) retries: Option<RetryState<'a>>,
    /// How much of the body is kept for them.
    pub(super) buffer_max_bytes: u64,
    /// What the endpoint is chosen by.
    pub(super) hash: Option<u64>,
    pub(super) subset: Option<&'a Labels>,
    pub(super) grpc: bool,
    /// It ends in a connection that carries no HTTP.
    pub(super) opaque: bool,
}

/// What a retry policy makes of a request; `None` without one.
pub(super) fn retries<'a>(attempts: &'a Attempts, head: &Parts) -> Option<RetryState<'a>> {
    attempts.retry.as_ref().map(|policy| RetryState::new(policy, head))
}

/// A body for each attempt.
enum Bodies {
    /// There is but one attempt.
    Once(Option<RequestBody>),
    Empty,
    Kept(Replay),
}

impl Bodies {
    fn new(body: RequestBody, again: bool, max_bytes: u64, share: impl FnOnce() -> Share) -> Self {
        if !again {
            return Self::Once(Some(body));
        }
        if body.is_end_stream() {
            return Self::Empty;
        }
        Self::Kept(Replay::new(body, max_bytes, share()))
    }

    fn next(&mut self, exchange: &Arc<Exchange>) -> RequestBody {
        let exchange = Arc::clone(exchange);
        match self {
            Self::Once(body) => body.take().unwrap_or_else(|| RequestBody::empty(exchange)),
            Self::Empty => RequestBody::empty(exchange),
            Self::Kept(replay) => RequestBody::replayed(replay.attempt(), exchange),
        }
    }

    /// Whether another attempt would have all of it.
    fn is_whole(&self) -> bool {
        match self {
            Self::Once(body) => body.is_some(),
            Self::Empty => true,
            Self::Kept(replay) => replay.is_whole(),
        }
    }
}

impl Attempting<'_> {
    /// Until a response, or a failure, that is not one to repeat.
    pub(super) async fn run(
        mut self,
        mut destination: Destination,
        mut request: Request<()>,
        body: RequestBody,
        log: &mut RequestLog,
        progress: &mut Progress,
    ) -> Result<Answered, Reply> {
        let random = &mut |below| rand::random_range(0..below);
        let share = || self.connection.services.filters.bodies(self.permit.flow().pod());
        let again = self.retries.is_some();
        let mut bodies = Bodies::new(body, again, self.buffer_max_bytes, share);
        let mut avoid: Vec<SocketAddr> = Vec::new();
        let mut retrying: Option<Counted> = None;
        loop {
            let count = progress.count;
            if self.action.attempts.count_in_request {
                request.headers_mut().insert(ATTEMPT_COUNT, HeaderValue::from(count));
            }
            let body = bodies.next(&log.exchange);
            let this = match self.retries.is_some() {
                true => head_of(&request).map(|()| body),
                false => std::mem::take(&mut request).map(|()| body),
            };
            progress.reporter = destination.reporter();
            let breaker = self.breaker(&destination);
            let renaming = Renaming::of(self.action, &destination)?;
            let mut due = renaming.as_ref();
            progress.counted = breaker.as_ref().map(|breaker| Arc::clone(&breaker.counted));
            let ended = self.attempt(&destination, breaker.as_ref(), this, &mut due, log).await;
            if let Some(counted) = &progress.counted {
                let answered = ended.as_ref().map(|(response, _)| response.status());
                breakers::count(counted, answered);
            }
            log.record.transport_failure = match &ended {
                Err(Failure::Connect(failure)) => failure.transport.clone(),
                _ => None,
            };
            let broken = log.exchange.is_request_broken();
            if let (Some(trace), Err(failure)) = (&mut log.trace, &ended) {
                trace.attempt_ended(failure.into());
            }
            let reporter = std::mem::take(&mut progress.reporter);
            if !broken {
                outliers::tell(&reporter, self.grpc, &ended);
            }
            let verdict = match (&mut self.retries, &ended) {
                (None, _) => Verdict::Final,
                // The client's fault; or it can't be sent from its beginning.
                _ if broken || !bodies.is_whole() => Verdict::Final,
                (Some(retries), Ok((response, _))) => {
                    let (status, now) = (response.status(), SystemTime::now());
                    retries.response(status, response.headers(), now, random)
                }
                (Some(retries), Err(failure)) => {
                    let (reset, began) = failure.reset();
                    retries.reset(reset, began, random)
                }
            };
            let pause = match verdict {
                Verdict::Retry(pause) => {
                    // The place of the retry before this one is free again.
                    drop(retrying.take());
                    match breaker.as_ref().map(|breaker| breaker.retry()).transpose() {
                        Ok(place) => retrying = place,
                        Err(Overflow) => {
                            log.record.flags.insert(ResponseFlag::UpstreamOverflow);
                            return self.ended(ended, destination, log, count);
                        }
                    }
                    pause
                }
                Verdict::LimitExceeded => {
                    log.record.flags.insert(ResponseFlag::UpstreamRetryLimitExceeded);
                    return self.ended(ended, destination, log, count);
                }
                Verdict::Final => return self.ended(ended, destination, log, count),
            };
            // As Envoy: only once there was a connection, and the next one sees it.
            if let (Some(renaming), None) = (&renaming, due) {
                request = renaming.apply(request);
            }
            if self.action.attempts.timeout_in_request && matches!(ended, Err(Failure::Attempt(_)))
            {
                request.headers_mut().insert(TIMEOUT_RETRY, HeaderValue::from_static("true"));
            }
            if let (Some(trace), Ok((response, _))) = (&mut log.trace, &ended) {
                trace.attempt_ended(Ending::Cancelled(Some(response.status()), None));
            }
            if let Some(counted) = progress.counted.take() {
                counted.retried();
            }
            avoid.push(destination.address());
            let cluster = destination.cluster().cloned();
            // Neither is busy for this request any more.
            drop((ended, destination));
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            progress.count += 1;
            destination = match cluster {
                Some(cluster) => {
                    let policy = self.action.attempts.retry.as_deref();
                    let choice = match policy {
                        Some(policy) if policy.avoid_previous_hosts => Choice {
                            avoid: &avoid,
                            reselections: policy.host_selection_attempts,
                            hash: self.hash,
                            subset: self.subset,
                            // As Envoy: the first attempt's.
                            wanted: None,
                        },
                        _ => Choice { hash: self.hash, subset: self.subset, ..Choice::default() },
                    };
                    let decided = decide_request(
                        self.request_permit,
                        self.permit,
                        Some(&cluster),
                        choice,
                        self.snapshot,
                        &self.connection.services.balancers,
                        random,
                        Instant::now(),
                    );
                    decided.map_err(|error| no_destination(&error, self.action, log))?
                }
                // Only requests of a route are sent again, and a route names a cluster.
                None => return Err(Reply::bad_request("no cluster")),
            };
            log.record.goes_to(&destination);
            if let Some(trace) = &mut log.trace {
                let to = (destination.address(), self.protocol);
                trace.attempt(request.headers_mut(), to, progress.count);
            }
        }
    }

    /// `due`: what becomes of the request's host once there is a connection, which takes it.
    async fn attempt(
        &self,
        destination: &Destination,
        breaker: Option<&Arc<Breaker>>,
        request: Request<RequestBody>,
        due: &mut Option<&Renaming>,
        log: &mut RequestLog,
    ) -> Ended {
        let admitted = match breaker {
            Some(breaker) => {
                breaker.admit(self.protocol).await.map_err(|Overflow| Failure::Overflow)?
            }
            None => Admitted::default(),
        };
        let upstreams = &self.connection.services.upstreams;
        let tls = upstreams
            .originate(destination, self.protocol, &self.host, request.headers())
            .map_err(Failure::Connect)?;
        let key = key(self.permit, destination, self.protocol, tls.as_ref());
        log.record.upstream_identity = key.destination_identity.clone();
        self.connection.observer.routed(&log.record);
        let to = (destination, tls.as_ref(), &key);
        let (services, limits) = (&self.connection.services, self.limits());
        log.record.upstream_local = None;
        let mut ready = |local, request: Request<RequestBody>| {
            log.record.upstream_local = local;
            match due.take() {
                Some(renaming) => log.goes_on(renaming.apply(request)),
                None => request,
            }
        };
        if self.opaque {
            let to = (destination, tls.as_ref());
            let ready = |local| drop(ready(local, request));
            let opened = terminate(services, self.permit, to, breaker, ready).await;
            return Ok((opened?, admitted));
        }
        let sent = exchange(services, self.permit, to, request, breaker, limits, ready).await;
        Ok((sent?, admitted))
    }

    /// `None` where nothing is limited: there is no cluster.
    fn breaker(&self, destination: &Destination) -> Option<Arc<Breaker>> {
        let (cluster, limits) = (destination.cluster()?, destination.circuit_breakers()?);
        let pod = &self.permit.flow().pod().workload.uid;
        let high = self.action.high_priority;
        Some(self.connection.services.breakers.of(pod, cluster, limits, high))
    }

    /// Of one attempt: the whole of it, and silence. One that is no less than the route's
    /// own counts for nothing, as in Envoy.
    fn limits(&self) -> (Option<Duration>, Option<Duration>) {
        let Some(policy) = &self.action.attempts.retry else { return (None, None) };
        let whole = self.timeout;
        let per_try =
            policy.per_try_timeout.filter(|per_try| whole.is_none_or(|whole| *per_try < whole));
        (per_try, policy.per_try_idle_timeout)
    }

    fn ended(
        &self,
        ended: Ended,
        destination: Destination,
        log: &RequestLog,
        count: u32,
    ) -> Result<Answered, Reply> {
        match ended {
            Ok((response, admitted)) => Ok((response, destination, admitted)),
            Err(failure) => Err(failure.into_reply(log, count > 1)),
        }
    }
}

/// A copy without body.
pub(super) fn head_of<B>(request: &Request<B>) -> Request<()> {
    let mut copy = Request::new(());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    if let Some(protocol) = request.extensions().get::<Protocol>() {
        copy.extensions_mut().insert(protocol.clone());
    }
    copy
}
