//! A request's spans: its own, and one for each attempt where that is asked for.
//!
//! What they say is gathered where it is known, told when the request has ended, and handed
//! over to [`export`]. A request that is not sampled is told of to upstreams and nobody else.
//!
//! Spec: Envoy's "Tracing", and what Envoy 1.40 does.

mod context;
pub(super) mod export;
mod reason;
mod tags;

use std::{net::SocketAddr, sync::Arc, time::SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header::HOST, request::Parts};

pub(super) use self::reason::forget;
use self::{context::Context, export::Spans, tags::Tags};
use super::{
    Judged, headers::REQUEST_ID, mutations::RequestValues, record::RequestLog, reset::Failure,
};
use crate::{
    codec::spans::{Kind, Span},
    model::{
        format::Format,
        listener::{Direction, HttpConnectionManager},
        route::Route,
        tracing::{CustomTag, RouteTracing, TagValue, Tracing, TracingProvider},
    },
    observe::flags::{ResponseFlag, ResponseFlags},
    policy::matcher::first_value,
    snapshot::Snapshot,
    transport::http_pool::HttpProtocol,
};

const DECORATOR_OPERATION: HeaderName = HeaderName::from_static("x-envoy-decorator-operation");

/// Attempts of one request that have spans.
const ATTEMPTS_MAX: usize = 64;

/// A request of a connection manager that traces.
pub(super) struct Trace {
    tracing: Arc<Tracing>,
    route: Option<Arc<RouteTracing>>,
    egress: bool,
    /// The decorator's operation, for the client.
    told: Option<HeaderValue>,
    /// `None`: there is no provider, or who began the trace says nothing valid.
    own: Option<Own>,
}

struct Own {
    context: Context,
    provider: Arc<TracingProvider>,
    judged: Arc<Judged>,
    start: SystemTime,
    name: String,
    /// Of the request, once its head is what goes on.
    request: Option<Tags>,
    /// Of the response.
    response: Tags,
    /// What formats read; only where there are any.
    kept: Option<Box<Kept>>,
    attempts: Vec<Attempt>,
}

#[derive(Default)]
struct Kept {
    request: Option<Parts>,
    response: Option<(StatusCode, HeaderMap)>,
    trailers: Option<HeaderMap>,
}

struct Attempt {
    context: Context,
    start: SystemTime,
    address: SocketAddr,
    protocol: HttpProtocol,
    /// It is the so many-th after the first.
    retry: u32,
    end: Option<(SystemTime, Ending)>,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy)]
pub(super) enum Ending {
    /// Its answer went on.
    Answered(StatusCode),
    /// Its answer was not waited for, or did not do.
    Cancelled(Option<StatusCode>, Option<ResponseFlag>),
    /// Why there was none, in Envoy's words; whether there was a connection.
    Failed(ResponseFlag, &'static str, bool),
}

impl From<&Failure> for Ending {
    fn from(failure: &Failure) -> Self {
        match failure {
            // Given up, as Envoy says it.
            Failure::Attempt(_) => Self::Cancelled(None, Some(failure.told().0)),
            _ => {
                let (flag, reason, connected) = failure.told();
                Self::Failed(flag, reason, connected)
            }
        }
    }
}

impl Trace {
    /// Decides about a request once its first route is known.
    pub(super) fn begin(
        log: &mut RequestLog,
        http: &HttpConnectionManager,
        route: Option<&Route>,
        head: &mut Parts,
        (judged, snapshot): (&Arc<Judged>, &Snapshot),
        spans: &Spans,
    ) {
        let Some(tracing) = &http.tracing else { return };
        if log.trace.is_some() {
            return;
        }
        let route = route.and_then(|route| route.tracing.clone());
        let sampling = route.as_ref().and_then(|route| route.sampling).unwrap_or(tracing.sampling);
        let ids = http.options.request_ids;
        let traced = reason::decide(&mut head.headers, sampling, ids, &snapshot.runtime);
        log.record.request_id = head.headers.get(REQUEST_ID).cloned();

        let egress = judged.permit.flow().direction() == Direction::Outbound;
        let provider = tracing.provider.as_ref().or(spans.provider());
        let own = provider.and_then(|provider| {
            let server = tracing.spawn_upstream_span || !egress;
            let context = Context::start(provider, &head.headers, traced, server)?;
            let host = first_value(HOST.as_str(), head).map(String::from_utf8_lossy);
            let host = host.unwrap_or_default();
            let name = match (&**provider, egress) {
                (TracingProvider::Zipkin(_), _) => host.into_owned(),
                (TracingProvider::OpenTelemetry(_), true) => format!("egress {host}"),
                (TracingProvider::OpenTelemetry(_), false) => "ingress".to_owned(),
            };
            Some(Own {
                context,
                provider: Arc::clone(provider),
                judged: Arc::clone(judged),
                start: log.exchange.started(),
                name,
                request: None,
                response: Tags::default(),
                kept: None,
                attempts: Vec::new(),
            })
        });
        let mut trace =
            Box::new(Self { tracing: Arc::clone(tracing), route, egress, told: None, own });
        trace.decorate(&mut head.headers);
        if trace.formats()
            && let Some(own) = &mut trace.own
        {
            own.kept = Some(Box::default());
        }
        log.trace = Some(trace);
    }

    /// Names the span as the route, or the other side, wants it. An operation of the
    /// configuration goes before, and makes nothing of the header.
    fn decorate(&mut self, headers: &mut HeaderMap) {
        if self.operation().is_some() {
            return;
        }
        let decorator = self.route.as_ref().and_then(|route| route.decorator.clone());
        if let Some(decorator) = &decorator {
            self.rename(&decorator.operation);
        }
        let told = decorator.filter(|decorator| decorator.propagate);
        let told = told.map(|decorator| decorator.operation);
        if self.egress {
            if let Some(operation) = told {
                headers.insert(DECORATOR_OPERATION, operation);
            }
            return;
        }
        self.told = told;
        if let Some(wanted) = headers.remove(DECORATOR_OPERATION).filter(|name| !name.is_empty()) {
            self.rename(&wanted);
            self.told = None;
        }
    }

    fn rename(&mut self, name: &HeaderValue) {
        if let Some(own) = &mut self.own {
            own.name = String::from_utf8_lossy(name.as_bytes()).into_owned();
        }
    }

    fn operation(&self) -> Option<&Format> {
        let route = self.route.as_ref().and_then(|route| route.operations.downstream.as_ref());
        route.or(self.tracing.operations.downstream.as_ref())
    }

    fn upstream_operation(&self) -> Option<&Format> {
        let route = self.route.as_ref().and_then(|route| route.operations.upstream.as_ref());
        route.or(self.tracing.operations.upstream.as_ref())
    }

    /// A route's before the connection manager's, of which some are in its place.
    fn custom_tags(&self) -> impl Iterator<Item = &CustomTag> {
        let of_route = self.route.as_ref().map_or(&[][..], |route| &route.custom_tags);
        let replaced = |tag: &&CustomTag| !of_route.iter().any(|own| own.name == tag.name);
        of_route.iter().chain(self.tracing.custom_tags.iter().filter(replaced))
    }

    fn formats(&self) -> bool {
        let of_tags = self.custom_tags().any(|tag| !matches!(tag.value, TagValue::Literal(_)));
        of_tags || self.operation().is_some() || self.upstream_operation().is_some()
    }

    fn sampled(&mut self) -> Option<&mut Own> {
        self.own.as_mut().filter(|own| own.context.sampled)
    }

    /// The request as it goes on, or came, where it did not; the first that is told stays.
    pub(super) fn request(&mut self, head: &Parts, log: &RequestLog) {
        let path_max = self.tracing.max_path_tag_length;
        let Some(own) = self.sampled() else { return };
        if own.request.is_some() {
            return;
        }
        let client = own.judged.permit.flow().direct_source().ip();
        own.request = Some(Tags::of_request(head, log.record.protocol, client, path_max));
        if let Some(kept) = &mut own.kept {
            kept.request = Some(head.clone());
        }
    }

    /// What is told next of the request counts in place of what was told before.
    pub(super) fn request_anew(&mut self) {
        if let Some(own) = self.sampled() {
            own.request = None;
        }
    }

    /// Tells the upstream of the attempt that begins: to `address`, the `count`th.
    pub(super) fn attempt(
        &mut self,
        headers: &mut HeaderMap,
        (address, protocol): (SocketAddr, HttpProtocol),
        count: u32,
    ) {
        let (spawn, propagates) = (self.tracing.spawn_upstream_span, self.tracing.propagates);
        let Some(own) = &mut self.own else { return };
        if !spawn {
            if propagates {
                own.context.inject(headers);
            }
            return;
        }
        let context = own.context.child();
        if propagates {
            context.inject(headers);
        }
        if context.sampled && own.attempts.len() < ATTEMPTS_MAX {
            let (start, retry) = (SystemTime::now(), count.saturating_sub(1));
            own.attempts.push(Attempt { context, start, address, protocol, retry, end: None });
        }
    }

    /// The attempt that began last has ended.
    pub(super) fn attempt_ended(&mut self, ending: Ending) {
        let last = self.own.as_mut().and_then(|own| own.attempts.last_mut());
        if let Some(attempt) = last {
            attempt.end.get_or_insert_with(|| (SystemTime::now(), ending));
        }
    }

    /// What the response, or the other side by it, says of the span.
    pub(super) fn response(&mut self, headers: &mut HeaderMap) {
        if self.operation().is_some() {
            return;
        }
        if self.egress {
            let wanted = headers.remove(DECORATOR_OPERATION);
            if let Some(wanted) = wanted.filter(|name| !name.is_empty()) {
                self.rename(&wanted);
            }
        } else if let Some(told) = self.told.take() {
            headers.insert(DECORATOR_OPERATION, told);
        }
    }

    /// The response's head, as it goes to the client.
    pub(super) fn answered(&mut self, status: StatusCode, headers: &HeaderMap) {
        let Some(own) = self.sampled() else { return };
        own.response.grpc_response(headers);
        if let Some(kept) = &mut own.kept {
            kept.response = Some((status, headers.clone()));
        }
    }

    pub(super) fn trailers(&mut self, trailers: &HeaderMap) {
        let Some(own) = self.sampled() else { return };
        own.response.grpc_response(trailers);
        if let Some(kept) = &mut own.kept {
            kept.trailers = Some(trailers.clone());
        }
    }

    /// The id of a trace that is told of, for exemplars.
    pub(super) fn sampled_id(&self) -> Option<u128> {
        let own = self.own.as_ref().filter(|own| own.context.sampled)?;
        Some(own.context.trace_id)
    }

    /// A copy of the request goes to somebody else: tells it, and has its span.
    pub(super) fn copied(&self, headers: &mut HeaderMap, spans: &Spans) -> Option<Copied> {
        let own = self.own.as_ref()?;
        let context = own.context.child();
        context.inject(headers);
        context.sampled.then(|| Copied {
            spans: spans.clone(),
            judged: Arc::clone(&own.judged),
            provider: Arc::clone(&own.provider),
            context,
            start: SystemTime::now(),
        })
    }

    /// The request has ended: hands its spans over.
    pub(super) fn finish(mut self, log: &RequestLog, spans: &Spans) {
        let Some(own) = self.own.take().filter(|own| own.context.sampled) else { return };
        let Own { context, provider, judged, start, name, request, response, kept, attempts } = own;
        let kept = kept.map_or_else(Kept::default, |kept| *kept);
        let values = RequestValues {
            log,
            flow: judged.permit.flow(),
            head: kept.request.as_ref(),
            response: kept.response.as_ref().map(|(status, headers)| (*status, headers)),
            trailers: kept.trailers.as_ref(),
            attempts: u32::try_from(attempts.len().max(1)).unwrap_or(u32::MAX),
        };
        let mut custom = Tags::default();
        self.custom_tags().for_each(|tag| custom.custom(tag, &values));

        let record = &log.record;
        let cluster = log.cluster();
        let cluster = cluster.filter(|_| !record.flags.contains(ResponseFlag::NoClusterFound));
        let cluster = cluster.map(|cluster| &*cluster.0);
        let send = |context: &Context, name: String, kind, (start, end), tags: Tags| {
            let (tags, failed) = tags.into_span(kind);
            let span = Span {
                trace_id: context.trace_id,
                id: context.id,
                parent: context.parent,
                trace_state: text_of(context.state.as_ref()),
                name,
                kind,
                start,
                end,
                tags,
                failed,
                shared: context.shared,
            };
            spans.send(&judged, &provider, span);
        };
        let left = match record.response_code {
            Some(status) => Ending::Answered(status),
            None => Ending::Cancelled(None, None),
        };
        let ended = SystemTime::now();
        for attempt in attempts {
            let (end, ending) = attempt.end.unwrap_or((ended, left));
            let name = match self.upstream_operation() {
                Some(format) => tags::filled(format, &values),
                None => format!("router {} egress", cluster.unwrap_or_default()),
            };
            let mut tags =
                Tags::of_attempt(attempt.address, attempt.protocol, attempt.retry, ending);
            let (status, flags) = match ending {
                Ending::Answered(status) => (Some(status), None),
                Ending::Cancelled(status, flag) => (status, flag),
                Ending::Failed(flag, _, _) => (None, Some(flag)),
            };
            let flags = flags.map_or(ResponseFlags::NONE, ResponseFlags::from);
            tags.common(cluster, status, flags);
            if let Ending::Answered(_) = ending {
                tags.extend(&response);
            }
            tags.extend(&custom);
            send(&attempt.context, name, Kind::Client, (attempt.start, end), tags);
        }

        let mut tags = Tags::default();
        tags.put("node_id", spans.node().id.clone());
        tags.put("zone", spans.node().zone.clone());
        tags.extend(&request.unwrap_or_default());
        tags.put("request_size", log.exchange.request_bytes().to_string());
        tags.put("response_size", log.exchange.response_bytes().to_string());
        tags.common(cluster, record.response_code, record.envoy_flags());
        tags.extend(&response);
        tags.extend(&custom);
        let name = self.operation().map_or(name, |format| tags::filled(format, &values));
        let server = self.tracing.spawn_upstream_span || !self.egress;
        let kind = if server { Kind::Server } else { Kind::Client };
        send(&context, name, kind, (start, ended), tags);
    }
}

fn text_of(value: Option<&HeaderValue>) -> String {
    value.map_or_else(String::new, |value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}

/// A copy that is on its way.
pub(super) struct Copied {
    spans: Spans,
    judged: Arc<Judged>,
    provider: Arc<TracingProvider>,
    context: Context,
    start: SystemTime,
}

impl Copied {
    /// Its answer has come, or will not; `to`: to whom it went.
    pub(super) fn ended(
        self,
        cluster: &str,
        to: Option<(SocketAddr, HttpProtocol)>,
        status: Option<StatusCode>,
    ) {
        let mut tags = match to {
            Some((address, protocol)) => {
                let ending = status.map_or(Ending::Cancelled(None, None), Ending::Answered);
                Tags::of_attempt(address, protocol, 0, ending)
            }
            None => Tags::default(),
        };
        tags.common(Some(cluster), status, ResponseFlags::NONE);
        let (tags, failed) = tags.into_span(Kind::Client);
        let span = Span {
            trace_id: self.context.trace_id,
            id: self.context.id,
            parent: self.context.parent,
            trace_state: text_of(self.context.state.as_ref()),
            name: "mirror".to_owned(),
            kind: Kind::Client,
            start: self.start,
            end: SystemTime::now(),
            tags,
            failed,
            shared: false,
        };
        self.spans.send(&self.judged, &self.provider, span);
    }
}
