//! Copies of requests for somebody else, whose answers nobody waits for.
//!
//! A copy is made of a request that is permitted and on its way; it takes the way of the
//! agent's own calls, with the pod's identity, by its cluster's circuit breakers, within the
//! route's timeout. What becomes of it is told to outlier detection and nobody else.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use http::{
    HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Version, request::Parts,
    uri::Authority,
};
use http_body::Body as _;
use http_body_util::BodyExt as _;

use super::{
    HttpServices, Judged, RequestBody,
    attempts::head_of,
    call,
    copy::Tee,
    headers, mutations, outliers,
    record::RequestLog,
    reset::Failure,
    rewrites::{Hosts, Rewrites},
    spans::Copied,
    timing::{Deadline, Exchange},
};
use crate::{
    model::{
        cluster::{ClusterName, UpstreamProtocol},
        route::{MirrorHost, MirrorPolicy, RouteClusterName},
    },
    observe::metrics::AttemptFailure,
    policy::matcher::first_value,
    route::{Matched, NoDestination, decide_call},
    snapshot::Snapshot,
    transport::http_pool::HttpProtocol,
};

const INTERNAL: HeaderName = HeaderName::from_static("x-envoy-internal");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// A copy that nothing moves of for so long is given up, where the route sets no other limit.
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);

/// Who gets copies of a request of this route: the most specific level that says so.
pub(super) fn policies<'a>(
    matched: &Matched<'a>,
    of_route: &'a [MirrorPolicy],
) -> &'a [MirrorPolicy] {
    let levels = [of_route, &matched.virtual_host.mirrors, &matched.configuration.mirrors];
    levels.into_iter().find(|level| !level.is_empty()).unwrap_or_default()
}

/// By what copies of a request are made.
pub(super) struct Mirroring<'a> {
    pub(super) policies: &'a [MirrorPolicy],
    pub(super) services: &'a HttpServices,
    pub(super) judged: &'a Arc<Judged>,
    pub(super) snapshot: &'a Arc<Snapshot>,
    /// The request's own, uniform.
    pub(super) random: u64,
}

impl Mirroring<'_> {
    /// Sends the copies on their way, and returns the body that they are copied from. `head`
    /// is the request's before it is turned into what goes upstream.
    pub(super) fn begin(
        &self,
        head: &Parts,
        hosts: &Hosts,
        rewrites: Rewrites<'_>,
        log: &RequestLog,
        body: RequestBody,
    ) -> RequestBody {
        let mut tee = Tee::new(self.services.filters.bodies(self.judged.permit.flow().pod()));
        let bodiless = body.is_end_stream();
        for policy in self.policies {
            let fraction = policy.fraction.as_ref();
            if fraction.is_some_and(|of| !self.snapshot.runtime.includes(of, self.random)) {
                continue;
            }
            let cluster = match &policy.cluster {
                RouteClusterName::Cluster(name) => Some(name.clone()),
                RouteClusterName::Header(name) => first_value(name, head)
                    .and_then(|name| std::str::from_utf8(name).ok())
                    .map(|name| ClusterName(name.into())),
            };
            let Some(cluster) = cluster.filter(|name| self.snapshot.cluster(name).is_some()) else {
                tracing::debug!("no cluster for a copy of the request");
                continue;
            };
            let exchange = Exchange::new();
            let body = match bodiless {
                true => RequestBody::whole(bytes::Bytes::new(), Arc::clone(&exchange)),
                false => RequestBody::copied(tee.add(), Arc::clone(&exchange)),
            };
            let Some(shadow) =
                self.shadow((policy, cluster), (head, bodiless), hosts, rewrites, log)
            else {
                continue;
            };
            tokio::spawn(async move {
                if let Err(why) = shadow.run(body, exchange).await {
                    tracing::debug!(%why, "a copy of a request was not answered");
                }
            });
        }
        if bodiless { body } else { body.with_tee(tee) }
    }

    fn shadow(
        &self,
        (policy, cluster): (&MirrorPolicy, ClusterName),
        (head, bodiless): (&Parts, bool),
        hosts: &Hosts,
        rewrites: Rewrites<'_>,
        log: &RequestLog,
    ) -> Option<Shadow> {
        let protocol = match (self.snapshot.cluster(&cluster)?.upstream_protocol, head.version) {
            (UpstreamProtocol::Http2, _) => HttpProtocol::Http2,
            (UpstreamProtocol::SameAsDownstream, Version::HTTP_2) => HttpProtocol::Http2,
            (UpstreamProtocol::Http1 | UpstreamProtocol::SameAsDownstream, _) => {
                HttpProtocol::Http1
            }
        };
        let flow = self.judged.permit.flow();
        let mut head = head.clone();
        let mut hosts = hosts.clone();
        match &policy.host {
            MirrorHost::Suffixed => hosts.host = suffixed(&hosts.host)?,
            MirrorHost::Same => {}
            MirrorHost::Literal(host) => hosts.host = Authority::try_from(host.as_str()).ok()?,
        }
        let host = hosts.host.clone();
        if rewrites.action.attempts.count_in_request {
            head.headers.insert(headers::ATTEMPT_COUNT, HeaderValue::from(1));
        }
        headers::forwarded(&mut head, hosts, rewrites, protocol).ok()?;
        if protocol == HttpProtocol::Http1 && !bodiless {
            headers::tell_body(&mut head);
        }
        for mutation in &policy.headers {
            mutations::mutate_head(mutation, log, flow, &mut head);
        }
        told(&mut head.headers, &flow.pod().workload.addresses);
        let span = log.trace.as_ref();
        let span = span.and_then(|trace| trace.copied(&mut head.headers, &self.services.spans));
        let mut request = Request::new(());
        *request.method_mut() = head.method;
        *request.uri_mut() = head.uri;
        *request.version_mut() = head.version;
        *request.headers_mut() = head.headers;
        Some(Shadow {
            services: self.services.clone(),
            judged: Arc::clone(self.judged),
            snapshot: Arc::clone(self.snapshot),
            cluster,
            protocol,
            host,
            request,
            timeout: rewrites.timeout,
            span,
        })
    }
}

/// `shop.test:80` becomes `shop.test-shadow:80`.
fn suffixed(host: &Authority) -> Option<Authority> {
    let text = host.as_str();
    let (name, port) = match host.port() {
        Some(port) => text.split_at(text.len() - port.as_str().len() - 1),
        None => (text, ""),
    };
    Authority::try_from(format!("{name}-shadow{port}")).ok()
}

/// Copies say, as Envoy's do, that they come from the proxy.
fn told(headers: &mut HeaderMap, addresses: &[IpAddr]) {
    headers.insert(INTERNAL, HeaderValue::from_static("true"));
    let own = addresses.iter().find(|address| address.is_ipv4()).or(addresses.first());
    if let Some(own) = own.and_then(|own| HeaderValue::from_str(&own.to_string()).ok()) {
        headers::append_value(headers, FORWARDED_FOR, &own, ",");
    }
}

/// One copy on its way.
struct Shadow {
    services: HttpServices,
    judged: Arc<Judged>,
    snapshot: Arc<Snapshot>,
    cluster: ClusterName,
    protocol: HttpProtocol,
    host: Authority,
    request: Request<()>,
    timeout: Option<Duration>,
    span: Option<Copied>,
}

impl Shadow {
    /// Until its answer has ended, which nobody reads.
    async fn run(mut self, body: RequestBody, on_its_way: Arc<Exchange>) -> Result<(), Why> {
        let mut deadline = Deadline::new(on_its_way, Some(IDLE_TIMEOUT));
        deadline.set_route(self.timeout);
        let span = self.span.take();
        let (mut to, mut status) = (None, None);
        let sent = deadline.run(self.send(body, &mut to, &mut status)).await;
        let sent = sent.unwrap_or_else(|_| {
            self.services.clusters.of(&self.cluster).failed(AttemptFailure::Timeout);
            Err(Why::Late)
        });
        if let Some(span) = span {
            span.ended(&self.cluster.0, to.map(|to| (to, self.protocol)), status);
        }
        sent
    }

    async fn send(
        &self,
        body: RequestBody,
        told_to: &mut Option<SocketAddr>,
        status: &mut Option<StatusCode>,
    ) -> Result<(), Why> {
        let Self { services, judged, snapshot, cluster, protocol, host, request, .. } = self;
        let permit = &judged.permit;
        let random = &mut |below| rand::random_range(0..below);
        let now = Instant::now();
        let destination = decide_call(permit, cluster, snapshot, &services.balancers, random, now)?;
        *told_to = Some(destination.address());
        let grpc = headers::is_grpc(request.headers());
        let request = head_of(request).map(|()| body);
        let ended = call::send(services, permit, (&destination, *protocol), host, request).await;
        outliers::tell(&destination.reporter(), grpc, &ended);
        let (response, _admitted) = ended?;
        *status = Some(response.status());
        let mut answer = response.into_body();
        while let Some(frame) = answer.frame().await {
            frame.map_err(|error| Why::Broken(error.to_string()))?;
        }
        Ok(())
    }
}

/// Why a copy was not answered.
#[derive(Debug, thiserror::Error)]
enum Why {
    #[error(transparent)]
    NoDestination(#[from] NoDestination),
    #[error("{0}")]
    NotSent(String),
    #[error("the answer broke off: {0}")]
    Broken(String),
    #[error("there was no answer in time")]
    Late,
}

impl From<Failure> for Why {
    fn from(failure: Failure) -> Self {
        Self::NotSent(failure.to_string())
    }
}
