//! What is told about each request, once it has ended.

use std::{
    borrow::Cow,
    net::{IpAddr, SocketAddr},
    sync::{Arc, LazyLock, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, request::Parts};

use super::{
    HttpConnection, Judged,
    access_log::{Logging, Worded},
    filter::grpc_stats::Call,
    forwarding,
    mutations::{OnTheWayOut, ResponseMutations},
    spans::Trace,
    stages::Stages,
    timing::{Deadline, Exchange, Expired},
    tunnel::Tunnel,
};
use crate::{
    codec::guard::GuardShared,
    model::{
        cluster::ClusterName,
        http_options::HttpOptions,
        identity::Identity,
        metadata::DynamicMetadata,
        route::{Route, VirtualCluster, VirtualHost},
    },
    observe::{
        Protocol,
        flags::{ResponseFlag, ResponseFlags},
        metrics::{OfRoute, RouteKey, RouteOrCluster},
    },
    policy::{Flow, Place, Shadow, matcher::header_matches},
    route::{Destination, WantedHost},
};

/// Requests that none of a host's virtual clusters matches.
static OTHER: LazyLock<Arc<str>> = LazyLock::new(|| "other".into());

/// Takes note of finished requests: metrics and access log of one connection.
pub trait RequestObserver: Send + Sync {
    /// Called once per request that goes on to an upstream, before it does: cluster,
    /// upstream, its identity and the policy are known; must not block.
    fn routed(&self, _record: &RequestRecord) {}

    /// Called exactly once per request, from wherever it ended; must not block.
    fn request(&self, record: RequestRecord);
}

/// One request, ended. Strings come from the network and are not escaped.
#[derive(Debug, Clone)]
pub struct RequestRecord {
    /// Downstream's.
    pub protocol: Protocol,
    /// `None`, like path and authority, where the head was refused unread.
    pub method: Option<Method>,
    /// As it came: with the query string, before any rewrite.
    pub path: Option<String>,
    pub authority: Option<HeaderValue>,
    pub request_id: Option<HeaderValue>,
    pub user_agent: Option<HeaderValue>,
    /// Of the trace that collectors are told of.
    pub trace_id: Option<u128>,
    /// The client, where it is another one than the connection's source: whom proxies before
    /// this one have named.
    pub client: Option<IpAddr>,
    /// The route's name; empty where it has none.
    pub route: Option<Arc<str>>,
    pub cluster: Option<ClusterName>,
    /// The endpoint that was chosen.
    pub upstream: Option<SocketAddr>,
    /// What that endpoint is called, where it has a name.
    pub upstream_name: Option<Arc<str>>,
    /// The agent's end of the connection to it, unless that is a tunnel.
    pub upstream_local: Option<SocketAddr>,
    /// The identity that endpoint had to prove.
    pub upstream_identity: Option<Identity>,
    /// The category of `drop_overloads` that dropped it.
    pub dropped: Option<Arc<str>>,
    /// The policy that allowed or denied.
    pub policy: Option<Arc<str>>,
    /// What filters have noted.
    pub metadata: DynamicMetadata,
    /// What shadow rules have said.
    pub shadow: Shadow,
    pub origins: Origins,
    /// `None` where downstream went away before there was one.
    pub response_code: Option<StatusCode>,
    pub flags: ResponseFlags,
    /// For people: why, where the agent answered itself or cut the exchange.
    pub details: Option<Cow<'static, str>>,
    /// Envoy's response code details, where `details` does not begin with them.
    pub code_details: Option<Cow<'static, str>>,
    /// What the last connection to an upstream failed of.
    pub transport_failure: Option<String>,
    /// Body bytes received from downstream.
    pub request_bytes: u64,
    /// Body bytes sent to downstream.
    pub response_bytes: u64,
    pub duration: Duration,
}

/// Whether a request's origin would have been let in by filters that only look at it; `None`:
/// it was not looked at, or was judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Origins {
    pub csrf: Option<bool>,
    pub cors: Option<bool>,
}

impl RequestRecord {
    /// [`RequestRecord::flags`] as Envoy has them, which gives RBAC's denials none.
    pub(super) fn envoy_flags(&self) -> ResponseFlags {
        let of_rbac = |code: &Cow<'_, str>| code.starts_with("rbac_access_denied");
        match self.code_details.as_ref().is_some_and(of_rbac) {
            true => self.flags.iter().filter(|flag| *flag != ResponseFlag::Denied).collect(),
            false => self.flags,
        }
    }

    /// This endpoint was chosen.
    pub(super) fn goes_to(&mut self, destination: &Destination) {
        self.upstream = Some(destination.address());
        self.upstream_name = destination.hostname().cloned();
    }

    fn new(protocol: Protocol) -> Self {
        Self {
            protocol,
            method: None,
            path: None,
            authority: None,
            request_id: None,
            user_agent: None,
            trace_id: None,
            client: None,
            route: None,
            cluster: None,
            upstream: None,
            upstream_name: None,
            upstream_local: None,
            upstream_identity: None,
            dropped: None,
            policy: None,
            metadata: DynamicMetadata::default(),
            shadow: Shadow::default(),
            origins: Origins::default(),
            response_code: None,
            flags: ResponseFlags::NONE,
            details: None,
            code_details: None,
            transport_failure: None,
            request_bytes: 0,
            response_bytes: 0,
            duration: Duration::ZERO,
        }
    }
}

/// A request in hand: whatever becomes of it, dropping this tells.
pub(super) struct RequestLog {
    connection: Arc<HttpConnection>,
    guard: Option<Arc<GuardShared>>,
    pub(super) exchange: Arc<Exchange>,
    pub(super) record: RequestRecord,
    /// The listener's, as they are for this request.
    pub(super) options: Arc<HttpOptions>,
    /// What the route wants of the response's headers.
    pub(super) mutations: Option<Box<ResponseMutations>>,
    /// Where the client wants to go again, and what it is told if that is not there.
    pub(super) wanted: Option<(WantedHost, StatusCode)>,
    /// The cluster that its route leads to, for who tells of a request that went nowhere.
    pub(super) chosen: Option<ClusterName>,
    /// The virtual cluster that it is one of, if that has a name.
    pub(super) virtual_cluster: Option<Arc<str>>,
    /// Its route and its virtual cluster, where these are counted.
    pub(super) counted: Vec<OfRoute>,
    /// What filters count of it as a call of gRPC.
    pub(super) calls: Vec<Call>,
    pub(super) logging: Option<Box<Logging>>,
    pub(super) trace: Option<Box<Trace>>,
    /// The body of an answer of the agent's own, while that is worded.
    pub(super) reply_body: Option<Bytes>,
    /// The client speaks gRPC-Web, and to whom comes next gRPC.
    pub(super) grpc_web: bool,
    /// The response was handed over to its end, or cut for a reason that was noted.
    ended: bool,
}

impl RequestLog {
    pub(super) fn new(
        connection: Arc<HttpConnection>,
        guard: Option<Arc<GuardShared>>,
        exchange: Arc<Exchange>,
        protocol: Protocol,
    ) -> Self {
        connection.active.fetch_add(1, Ordering::Relaxed);
        let record = RequestRecord::new(protocol);
        let options = Arc::clone(&connection.http.options);
        let logging = Logging::of(&connection.http, &connection.judged.load());
        let mutations = None;
        Self {
            connection,
            guard,
            exchange,
            record,
            options,
            mutations,
            logging,
            trace: None,
            reply_body: None,
            wanted: None,
            chosen: None,
            virtual_cluster: None,
            counted: Vec::new(),
            calls: Vec::new(),
            grpc_web: false,
            ended: false,
        }
    }

    /// It goes by this route of this host, which are counted where they have a name for that.
    pub(super) fn goes_by(&mut self, host: &VirtualHost, route: &Route, head: &Parts) {
        let mut count = |of| {
            let key = RouteKey { virtual_host: Arc::clone(&host.name), of };
            self.counted.push(self.connection.services.routes.of(&key));
        };
        if let Some(name) = &route.stat_prefix {
            count(RouteOrCluster::Route(Arc::clone(name)));
        }
        if host.virtual_clusters.is_empty() {
            return;
        }
        let is_of =
            |one: &&VirtualCluster| one.headers.iter().all(|header| header_matches(header, head));
        let own = host.virtual_clusters.iter().find(is_of).map(|one| Arc::clone(&one.name));
        let name = Arc::clone(own.as_ref().unwrap_or(&OTHER));
        count(RouteOrCluster::VirtualCluster(name));
        self.virtual_cluster = own;
    }

    /// Who the request is from.
    pub(super) fn client(&self, flow: &Flow) -> IpAddr {
        self.record.client.unwrap_or_else(|| flow.source().ip())
    }

    /// The cluster it went to or, if it went nowhere, would have.
    pub(super) fn cluster(&self) -> Option<&ClusterName> {
        self.record.cluster.as_ref().or(self.chosen.as_ref())
    }

    /// The request goes upstream like this.
    pub(super) fn forwarded(&mut self, head: &Parts) {
        if let Some(mutations) = &mut self.mutations {
            mutations.keep_request(head);
        }
        if let Some(logging) = &mut self.logging {
            logging.request(head);
        }
        self.trace_request(head);
    }

    /// The request goes upstream like this, and not as [`RequestLog::forwarded`] was told.
    pub(super) fn goes_on<B>(&mut self, request: Request<B>) -> Request<B> {
        let (head, body) = request.into_parts();
        if let Some(mutations) = &mut self.mutations {
            mutations.keep_request(&head);
        }
        if let Some(logging) = &mut self.logging {
            logging.request_anew(&head);
        }
        if let Some(trace) = &mut self.trace {
            trace.request_anew();
        }
        self.trace_request(&head);
        Request::from_parts(head, body)
    }

    fn trace_request(&mut self, head: &Parts) {
        if let Some(mut trace) = self.trace.take() {
            trace.request(head, self);
            self.trace = Some(trace);
        }
    }

    /// Words an answer of the agent's own; `head` as for [`RequestLog::answered`].
    pub(super) fn word(&mut self, head: &Parts, reply: &mut Worded) {
        let Some(mut logging) = self.logging.take() else { return };
        if self.record.method.is_some() {
            logging.request(head);
        }
        let runtime = Arc::clone(&self.connection.services.snapshots.load().runtime);
        logging.word(self, &runtime, reply);
        self.logging = Some(logging);
    }

    /// The response's head is this; `head` is the request's, where it did not go upstream.
    pub(super) fn answered(&mut self, head: &Parts, status: StatusCode, headers: &HeaderMap) {
        self.record.response_code = Some(status);
        if let Some(logging) = &mut self.logging {
            // Of one that was refused unread nothing is known.
            if self.record.method.is_some() {
                logging.request(head);
            }
            logging.response(status, headers);
        }
        self.trace_request(head);
        if let Some(trace) = &mut self.trace {
            trace.answered(status, headers);
        }
    }

    /// The response ends with these.
    pub(super) fn trailers(&mut self, trailers: &HeaderMap) {
        if let Some(logging) = &mut self.logging {
            logging.trailers(trailers);
        }
        if let Some(trace) = &mut self.trace {
            trace.trailers(trailers);
        }
    }

    /// Changes a response's headers as route and listener want; `head` is the request's, where it
    /// did not go upstream. Returns what is to be made of the body.
    pub(super) fn mutate(
        &mut self,
        head: &Parts,
        answer: (StatusCode, bool),
        headers: &mut HeaderMap,
    ) -> Stages {
        let stages = match self.mutations.take() {
            Some(mutations) => mutations.mutate(self, head, answer, headers),
            None => Stages::default(),
        };
        forwarding::of_response(headers, &self.options, self.record.request_id.as_ref());
        if let Some(trace) = &mut self.trace {
            trace.response(headers);
        }
        stages
    }

    /// Notes what the filter at `place` does to the response.
    pub(super) fn on_the_way_out(
        &mut self,
        place: Place<'_>,
        step: OnTheWayOut,
        judged: &Arc<Judged>,
    ) {
        ResponseMutations::insert(&mut self.mutations, place.index, step, judged);
    }

    /// The connection goes on with a tunnel, which has the log.
    pub(super) fn carry(self, tunnel: impl FnOnce(Self) -> Tunnel) {
        let connection = Arc::clone(&self.connection);
        let http1 = self.guard.is_some();
        let tunnel = tunnel(self);
        if http1 {
            connection.carry(tunnel);
        } else {
            tokio::spawn(tunnel.run_stream());
        }
    }

    /// The response has been handed over to its end.
    pub(super) fn end(&mut self) {
        self.exchange.hand_over();
        self.ended = true;
    }

    /// What an answer of the agent's own has to be taken in.
    pub(super) fn idle(&self) -> Deadline {
        Deadline::new(Arc::clone(&self.exchange), self.connection.http.stream_idle_timeout)
    }

    /// The exchange is cut, as a limit has passed.
    pub(super) fn expired(&mut self, expired: Expired) {
        let (flag, details) = match expired {
            Expired::Route => (ResponseFlag::UpstreamRequestTimeout, "route timeout"),
            Expired::Request => (ResponseFlag::StreamIdleTimeout, "request_overall_timeout"),
            Expired::Whole => (ResponseFlag::DurationTimeout, "max_duration_timeout"),
            Expired::StreamIdle => (ResponseFlag::StreamIdleTimeout, "stream idle timeout"),
        };
        self.cut(flag, details);
    }

    /// The exchange is cut, because of `flag`.
    pub(super) fn cut(&mut self, flag: ResponseFlag, details: impl Into<Cow<'static, str>>) {
        self.record.flags.insert(flag);
        self.record.details = Some(details.into());
        self.ended = true;
    }
}

impl Drop for RequestLog {
    fn drop(&mut self) {
        self.exchange.finish();
        self.connection.active.fetch_sub(1, Ordering::Relaxed);
        if let Some(guard) = &self.guard {
            guard.finished();
        }
        // All of it may have been handed over, and not taken.
        if let Some(expired) = self.exchange.expired() {
            self.expired(expired);
        }
        if !self.ended {
            self.record.flags.insert(ResponseFlag::DownstreamConnectionTermination);
            self.record.details.get_or_insert(Cow::Borrowed("downstream closed or reset"));
        }
        for counted in self.counted.drain(..) {
            counted.ended(self.record.response_code);
        }
        for call in self.calls.drain(..) {
            call.ended(&self.connection.services.grpc);
        }
        if let Some(trace) = self.trace.take() {
            self.record.trace_id = trace.sampled_id();
            trace.finish(self, &self.connection.services.spans);
        }
        if let Some(logging) = self.logging.take() {
            let services = &self.connection.services;
            logging.write(self, &services.snapshots.load().runtime, &services.lines);
        }
        let empty = RequestRecord::new(self.record.protocol);
        let mut record = std::mem::replace(&mut self.record, empty);
        record.request_bytes = self.exchange.request_bytes();
        record.response_bytes = self.exchange.response_bytes();
        record.duration = self.exchange.elapsed();
        self.connection.observer.request(record);
    }
}
