//! Headers as a route wants them, and the values that fill them in.
//!
//! Spec: `request_headers_to_add` and its kin in
//! `envoy/config/route/v3/route_components.proto`.

use std::{io::Write as _, net::SocketAddr, sync::Arc, time::SystemTime};

use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{
        ACCEPT, ACCEPT_ENCODING, ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS,
        ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS,
        ACCESS_CONTROL_MAX_AGE, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, COOKIE, ORIGIN,
        REFERER, USER_AGENT, VIA,
    },
    request::Parts,
};

use super::{
    Judged,
    filter::{
        compression::{Agreed, Compress, ExpandResponse},
        grpc_stats, grpc_web,
        stateful_session::Session,
    },
    grpc,
    headers::{self, append_value},
    record::RequestLog,
    stages::Stages,
};
use crate::{
    model::{
        format::{HeaderNames, Operator, PlainOperator, Values},
        header_mutation::{AppendAction, HeaderAddition, HeaderMutation, HeaderMutations},
    },
    policy::{Flow, matcher::first_value},
    proxy::{
        downstream_values::{self, Downstream, host_name, one_word, shown},
        log_filter::Ended as _,
    },
    route::Matched,
};

/// Headers that Envoy keeps as one value, and appends to with a comma.
const SINGLE: [HeaderName; 19] = [
    ACCEPT,
    ACCEPT_ENCODING,
    ACCESS_CONTROL_ALLOW_CREDENTIALS,
    ACCESS_CONTROL_ALLOW_HEADERS,
    ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS,
    ACCESS_CONTROL_MAX_AGE,
    AUTHORIZATION,
    CACHE_CONTROL,
    CONTENT_TYPE,
    COOKIE,
    ORIGIN,
    REFERER,
    USER_AGENT,
    VIA,
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-request-id"),
];

/// The levels at which headers may be changed, in the order in which they are.
type Levels<'a> = [Option<&'a HeaderMutations>; 4];

/// Does what the levels say of the request.
pub(super) fn mutate_request(levels: Levels<'_>, log: &RequestLog, flow: &Flow, head: &mut Parts) {
    for mutation in levels.into_iter().flatten().filter_map(|level| level.request.as_deref()) {
        mutate_head(mutation, log, flow, head);
    }
}

/// Does one mutation of the request.
pub(super) fn mutate_head(
    mutation: &HeaderMutation,
    log: &RequestLog,
    flow: &Flow,
    head: &mut Parts,
) {
    let mut value = Vec::new();
    for name in &mutation.remove {
        head.headers.remove(name);
    }
    for addition in &mutation.add {
        value.clear();
        let values = RequestValues {
            log,
            flow,
            head: Some(head),
            response: None,
            trailers: None,
            attempts: 0,
        };
        addition.value.append(&values, "", &mut value);
        set(&mut head.headers, addition, &value);
    }
}

/// For a request that nobody made: values are literal.
pub(in crate::proxy) fn mutate_literally(mutation: &HeaderMutation, headers: &mut HeaderMap) {
    for name in &mutation.remove {
        headers.remove(name);
    }
    for addition in &mutation.add {
        set(headers, addition, addition.value.literal().unwrap_or_default().as_bytes());
    }
}

fn set(headers: &mut HeaderMap, addition: &HeaderAddition, value: &[u8]) {
    if value.is_empty() && !addition.keep_empty {
        return;
    }
    // What fills a place came as a header's value or is an address or a name.
    let Ok(value) = HeaderValue::from_bytes(value) else { return };
    set_value(headers, addition.name.clone(), value, addition.action);
}

/// Sets a header as `action` says.
pub(super) fn set_value(
    headers: &mut HeaderMap,
    name: HeaderName,
    value: HeaderValue,
    action: AppendAction,
) {
    let there = headers.contains_key(&name);
    match action {
        AppendAction::AppendIfExistsOrAdd if SINGLE.contains(&name) => {
            let separator = if name == COOKIE { "; " } else { "," };
            append_value(headers, name, &value, separator);
        }
        AppendAction::AppendIfExistsOrAdd => {
            headers.append(name, value);
        }
        AppendAction::AddIfAbsent if there => {}
        AppendAction::OverwriteIfExists if !there => {}
        AppendAction::AddIfAbsent
        | AppendAction::OverwriteIfExists
        | AppendAction::OverwriteIfExistsOrAdd => {
            headers.insert(name, value);
        }
    }
}

/// One thing that is done to a response's headers.
pub(super) enum OnTheWayOut {
    Mutate(Arc<HeaderMutation>),
    /// In place of what is there.
    Set(HeaderMap),
    /// Beside what is there.
    Append(HeaderMap),
    Compress(Box<Compress>),
    Expand(ExpandResponse),
    Session(Box<Session>),
    GrpcWeb(grpc_web::Answered),
    GrpcStats(Arc<grpc_stats::Counts>),
}

/// The place of what routes want, before the last filter.
const OF_ROUTE: usize = usize::MAX;

/// What is to be done to a response, whoever makes it.
pub(super) struct ResponseMutations {
    /// By the filter's index in its chain, the last first; the route's come before all.
    steps: Vec<(usize, OnTheWayOut)>,
    judged: Arc<Judged>,
    /// The head as it went upstream, where a value is taken from it.
    request: Option<Parts>,
}

impl ResponseMutations {
    /// What the route wants, and then the filters, by their indexes, the last first; `None`
    /// where there is nothing to do.
    pub(super) fn of<'a>(
        levels: Levels<'a>,
        filters: impl Iterator<Item = (usize, &'a Arc<HeaderMutation>)>,
        judged: &Arc<Judged>,
    ) -> Option<Box<Self>> {
        let levels = levels.into_iter().flatten();
        let own = levels.filter_map(|level| Some((OF_ROUTE, level.response.as_ref()?)));
        let mutations = own.chain(filters);
        let steps: Vec<_> = mutations
            .map(|(index, mutation)| (index, OnTheWayOut::Mutate(Arc::clone(mutation))))
            .collect();
        (!steps.is_empty()).then(|| Box::new(Self::new(steps, judged)))
    }

    fn new(steps: Vec<(usize, OnTheWayOut)>, judged: &Arc<Judged>) -> Self {
        Self { steps, judged: Arc::clone(judged), request: None }
    }

    /// Adds what the filter at `index` wants, in its place.
    pub(super) fn insert(
        this: &mut Option<Box<Self>>,
        index: usize,
        step: OnTheWayOut,
        judged: &Arc<Judged>,
    ) {
        let steps = &mut this.get_or_insert_with(|| Box::new(Self::new(Vec::new(), judged))).steps;
        let place = steps.partition_point(|(before, _)| *before >= index);
        steps.insert(place, (index, step));
    }

    /// Takes over what filters wanted, from before the route was another one.
    pub(super) fn keep(this: &mut Option<Box<Self>>, before: Option<Box<Self>>) {
        let Some(before) = before else { return };
        let Self { steps, judged, .. } = *before;
        for (index, step) in steps {
            if !matches!(step, OnTheWayOut::Mutate(_)) {
                Self::insert(this, index, step, &judged);
            }
        }
    }

    /// Keeps the request's head, as it goes upstream, if it will be asked for.
    pub(super) fn keep_request(&mut self, head: &Parts) {
        let reads = |step: &OnTheWayOut| match step {
            OnTheWayOut::Mutate(mutation) => mutation.reads_request(),
            _ => false,
        };
        if self.steps.iter().any(|(_, step)| reads(step)) {
            self.request = Some(head.clone());
        }
    }

    /// Does it. `head` is the request's, where it did not go upstream.
    pub(super) fn mutate(
        self,
        log: &RequestLog,
        head: &Parts,
        (status, has_body): (StatusCode, bool),
        headers: &mut HeaderMap,
    ) -> Stages {
        let (mut agreed, mut stages) = (Agreed::default(), Stages::default());
        let Self { steps, judged, request } = self;
        let head = request.as_ref().unwrap_or(head);
        for (_, step) in steps {
            match step {
                OnTheWayOut::Mutate(mutation) => {
                    let flow = judged.permit.flow();
                    mutate_response(&mutation, log, flow, head, (status, headers));
                }
                OnTheWayOut::Set(set) => {
                    for (name, value) in &set {
                        headers.insert(name, value.clone());
                    }
                }
                OnTheWayOut::Append(more) => {
                    // What a map of headers has no room for is left out.
                    for (name, value) in &more {
                        let _ = headers.try_append(name, value.clone());
                    }
                }
                OnTheWayOut::Compress(step) => {
                    step.respond((status, has_body), headers, &mut agreed, &mut stages);
                }
                OnTheWayOut::Session(step) => step.respond(log.record.upstream, headers),
                OnTheWayOut::GrpcWeb(step) => step.respond(has_body, headers, &mut stages),
                OnTheWayOut::GrpcStats(counts) => counts.respond(has_body, headers, &mut stages),
                OnTheWayOut::Expand(step) => step.respond(has_body, headers, &mut stages),
            }
        }
        stages
    }
}

/// The headers that a mutation adds to an answer of the agent's own, which as in Envoy has no
/// status yet.
pub(super) fn of_own_answer(
    mutation: &HeaderMutation,
    log: &RequestLog,
    flow: &Flow,
    head: &Parts,
) -> HeaderMap {
    let (mut headers, mut value) = (HeaderMap::new(), Vec::new());
    for addition in &mutation.add {
        value.clear();
        let values = RequestValues {
            log,
            flow,
            head: Some(head),
            response: None,
            trailers: None,
            attempts: 0,
        };
        addition.value.append(&values, "", &mut value);
        set(&mut headers, addition, &value);
    }
    headers
}

pub(super) fn mutate_response(
    mutation: &HeaderMutation,
    log: &RequestLog,
    flow: &Flow,
    head: &Parts,
    (status, headers): (StatusCode, &mut HeaderMap),
) {
    let mut value = Vec::new();
    for name in &mutation.remove {
        headers.remove(name);
    }
    for addition in &mutation.add {
        value.clear();
        let response = Some((status, &*headers));
        let values =
            RequestValues { log, flow, head: Some(head), response, trailers: None, attempts: 0 };
        addition.value.append(&values, "", &mut value);
        set(headers, addition, &value);
    }
}

/// The levels of a matched route, and of the one of several clusters that was chosen.
pub(super) fn levels<'a>(matched: &Matched<'a>, entry: Option<&'a HeaderMutations>) -> Levels<'a> {
    let Matched { configuration, virtual_host, route } = *matched;
    let [first, last] = match configuration.most_specific_header_mutations_wins {
        false => [&route.headers, &configuration.headers],
        true => [&configuration.headers, &route.headers],
    };
    [entry, Some(first), Some(&virtual_host.headers), Some(last)]
}

/// What is known of one request.
pub(super) struct RequestValues<'a> {
    pub(super) log: &'a RequestLog,
    pub(super) flow: &'a Flow,
    pub(super) head: Option<&'a Parts>,
    pub(super) response: Option<(StatusCode, &'a HeaderMap)>,
    /// For access logs only, like what follows.
    pub(super) trailers: Option<&'a HeaderMap>,
    pub(super) attempts: u32,
}

impl RequestValues<'_> {
    fn plain(&self, operator: PlainOperator, out: &mut Vec<u8>) -> bool {
        use PlainOperator as P;
        let record = &self.log.record;
        let mut downstream = Downstream::of(self.flow);
        if let Some(client) = record.client {
            // As Envoy: nothing is known of another's port.
            downstream.remote = SocketAddr::new(client, 0);
        }
        if let Some(there) = downstream.append(operator, out) {
            return there;
        }
        let text = |out: &mut Vec<u8>, value: Option<&[u8]>| {
            value.is_some_and(|value| downstream_values::text(out, value))
        };
        // Where there was a connection.
        let connected = record.upstream_local.is_some() || record.upstream_identity.is_some();
        let remote_end = record.upstream.filter(|_| connected && self.response.is_some());
        match operator {
            P::Protocol => {
                let http2 = record.protocol == crate::observe::Protocol::Http2;
                text(out, Some(if http2 { b"HTTP/2" } else { b"HTTP/1.1" }))
            }
            P::Duration => shown(out, &self.log.exchange.elapsed().as_millis()),
            P::ResponseCode => shown(out, &self.response.map_or(0, |(status, _)| status.as_u16())),
            P::ResponseFlags => shown(out, &record.envoy_flags()),
            P::ResponseCodeDetails => {
                let details = match (&record.code_details, &record.details, self.response) {
                    (Some(code), ..) => code,
                    (None, Some(details), _) => details.split(": ").next().unwrap_or_default(),
                    (None, None, Some(_)) => "via_upstream",
                    (None, None, None) => return false,
                };
                one_word(details, out)
            }
            P::GrpcStatus | P::GrpcStatusNumber => {
                let grpc = self.head.is_some_and(|head| headers::is_grpc(&head.headers));
                if !grpc || self.response.is_none() {
                    return false;
                }
                let code = self.grpc_status();
                match grpc::name_of(code).filter(|_| operator == P::GrpcStatus) {
                    Some(name) => text(out, Some(name.as_bytes())),
                    None => shown(out, &code),
                }
            }
            P::BytesReceived => shown(out, &self.log.exchange.request_bytes()),
            P::BytesSent => shown(out, &self.log.exchange.response_bytes()),
            P::UpstreamHost => match (record.upstream, self.response) {
                (Some(upstream), Some(_)) => shown(out, &upstream),
                _ => false,
            },
            P::UpstreamHostName | P::UpstreamHostNameWithoutPort => {
                let upstream = record.upstream.filter(|_| self.response.is_some());
                let with_port = operator == P::UpstreamHostName;
                host_name(out, record.upstream_name.as_deref(), upstream, with_port)
            }
            P::UpstreamRemoteAddress => remote_end.is_some_and(|end| shown(out, &end)),
            P::UpstreamRemoteAddressWithoutPort => {
                remote_end.is_some_and(|end| shown(out, &end.ip()))
            }
            P::UpstreamRemotePort => remote_end.is_some_and(|end| shown(out, &end.port())),
            P::UpstreamLocalAddress => {
                record.upstream_local.is_some_and(|local| shown(out, &local))
            }
            P::UpstreamLocalAddressWithoutPort => {
                record.upstream_local.is_some_and(|local| shown(out, &local.ip()))
            }
            P::UpstreamLocalPort => {
                record.upstream_local.is_some_and(|local| shown(out, &local.port()))
            }
            P::UpstreamTransportFailureReason => {
                record.transport_failure.as_ref().is_some_and(|why| one_word(why, out))
            }
            P::UpstreamRequestAttemptCount => shown(out, &self.attempts),
            P::VirtualClusterName => {
                text(out, self.log.virtual_cluster.as_ref().map(|name| name.as_bytes()))
            }
            // Only connections without HTTP have details.
            P::ConnectionTerminationDetails => false,
            P::UpstreamCluster | P::UpstreamClusterRaw => {
                text(out, self.log.cluster().map(|cluster| cluster.0.as_bytes()))
            }
            P::RouteName => text(out, record.route.as_ref().map(|route| route.as_bytes())),
            // Elsewhere it is empty.
            P::LocalReplyBody => {
                out.extend_from_slice(self.log.reply_body.as_deref().unwrap_or_default());
                true
            }
            P::StreamId => text(out, record.request_id.as_ref().map(HeaderValue::as_bytes)),
            // The downstream end's, above.
            _ => false,
        }
    }
}

impl Values for RequestValues<'_> {
    fn append(&self, operator: &Operator, out: &mut Vec<u8>) -> bool {
        let value = match operator {
            Operator::Plain(plain) => return self.plain(*plain, out),
            Operator::StartTime(format) => {
                let now = SystemTime::now();
                let start = now.checked_sub(self.log.exchange.elapsed()).unwrap_or(now);
                format.append(start, out);
                return true;
            }
            Operator::PeerValidity(end, format) => {
                return Downstream::of(self.flow).append_validity(*end, format, out);
            }
            Operator::Request(names) => {
                either(names, |name| self.head.and_then(|head| first_value(name, head)))
            }
            Operator::Response(names) => either(names, |name| {
                let (_, headers) = self.response?;
                headers.get(name).map(HeaderValue::as_bytes)
            }),
            Operator::DynamicMetadata { namespace, path } => {
                return match self.log.record.metadata.get(namespace, path) {
                    None => false,
                    Some(serde_json::Value::String(text)) => {
                        out.extend_from_slice(text.as_bytes());
                        true
                    }
                    // Writing to a Vec does not fail.
                    Some(value) => write!(out, "{value}").is_ok(),
                };
            }
            Operator::Trailer(names) => {
                either(names, |name| self.trailers?.get(name).map(HeaderValue::as_bytes))
            }
        };
        if let Some(value) = value {
            out.extend_from_slice(value);
        }
        value.is_some()
    }

    fn is_text(&self, operator: &Operator) -> bool {
        let Operator::DynamicMetadata { namespace, path } = operator else { return false };
        self.log.record.metadata.get(namespace, path).is_some_and(serde_json::Value::is_string)
    }
}

fn either<'a>(names: &HeaderNames, value: impl Fn(&str) -> Option<&'a [u8]>) -> Option<&'a [u8]> {
    value(&names.first).or_else(|| value(names.otherwise.as_deref()?))
}

#[cfg(test)]
mod tests;
