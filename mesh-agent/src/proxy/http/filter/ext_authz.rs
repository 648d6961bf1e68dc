//! Asks an authorisation server whether a request may pass.
//!
//! Whatever is not an answer is none: the request is refused, unless the configuration says
//! otherwise.
//!
//! Spec: `envoy.extensions.filters.http.ext_authz.v3`, `envoy.service.auth.v3`; details as Envoy
//! 1.40 has them.

use std::{
    collections::{BTreeMap, HashSet},
    net::SocketAddr,
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE, HOST, LOCATION, PROXY_AUTHENTICATE, WWW_AUTHENTICATE},
    request::Parts,
    uri::{Authority, PathAndQuery},
};
use http_body::Body as _;
use serde_json::{Map, Value};

use super::{
    super::{
        RequestBody,
        call::{self, Answered, CallError, Caller, Limits},
        headers::append_value,
        mutations::set_value,
        record::RequestLog,
        reply::Reply,
    },
    FRAMING, Next, Room, joined,
};
use crate::{
    codec::ext_authz::{self as codec, Asked, InvalidAnswer, Said, SaidHeader},
    model::{
        authz::StringMatcher,
        ext_authz::{
            ANSWER_MAX_BYTES, AuthzBody, AuthzPerRoute, AuthzService, ExtAuthz, GrpcService,
            HttpAuthz,
        },
        filter::{Levels, RouteFilterConfig},
        header_mutation::AppendAction,
        listener::Direction,
    },
    observe::{Protocol, flags::ResponseFlag},
    policy::{Place, matcher::authority},
    snapshot::Snapshot,
};

const PARTIAL_BODY: HeaderName = HeaderName::from_static("x-envoy-auth-partial-body");
const FAILURE_ALLOWED: HeaderName = HeaderName::from_static("x-envoy-auth-failure-mode-allowed");
const TO_REMOVE: HeaderName = HeaderName::from_static("x-envoy-auth-headers-to-remove");
/// Where what an answer notes is noted, whatever the filter is called in its chain.
const NAMESPACE: &str = "envoy.filters.http.ext_authz";
const METADATA_PREFIX: &str = "x-ext-metadata-";

/// What is asked about one request.
pub(super) struct Question<'a> {
    filter: &'a ExtAuthz,
    extensions: BTreeMap<String, String>,
    body: Option<AuthzBody>,
}

/// A request that passes.
pub(super) struct Passed {
    pub(super) next: Next,
    pub(super) for_client: HeaderMap,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoAnswer {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(transparent)]
    Invalid(#[from] InvalidAnswer),
    #[error("the server answered {0}")]
    Status(StatusCode),
    #[error("the server could not decide")]
    Undecided,
    #[error("no valid question can be made of the request")]
    Question,
}

impl AuthzBody {
    /// How much has to be read to know.
    pub(super) fn until(self) -> usize {
        if self.allow_partial { self.max_bytes } else { self.max_bytes.saturating_add(1) }
    }

    /// Refuses what is too large.
    pub(super) fn check(self, whole: bool, body: &RequestBody) -> Result<(), Reply> {
        if self.allow_partial || (whole && body.ahead().len() <= self.max_bytes) {
            return Ok(());
        }
        let status = StatusCode::PAYLOAD_TOO_LARGE;
        let details = "request_payload_too_large";
        Err(Reply { close: !whole, ..Reply::new(status, "Payload Too Large", None, details) })
    }
}

impl<'a> Question<'a> {
    /// `None`: the request passes unasked.
    pub(super) fn of(
        filter: &'a ExtAuthz,
        place: Place<'_>,
        levels: Levels<'a>,
        snapshot: &Snapshot,
        log: &RequestLog,
    ) -> Option<Self> {
        let mut said = levels.configs(place.name).filter_map(|config| match config {
            RouteFilterConfig::ExtAuthz(said) => Some(&**said),
            _ => None,
        });
        let (mut extensions, mut body) = (BTreeMap::new(), filter.body);
        // What is told with the question comes from every level, and of one name from the
        // most specific; the rest from the most specific level.
        let all: Vec<_> = said.by_ref().collect();
        if let Some(AuthzPerRoute::Disabled) = all.first() {
            return None;
        }
        for (index, level) in all.iter().enumerate().rev() {
            if let AuthzPerRoute::Check { extensions: own, body: settings } = level {
                extensions.extend(own.clone());
                if index == 0 {
                    body = settings.unwrap_or(body);
                }
            }
        }
        let enabled = filter.enabled.as_ref();
        let enabled = enabled.is_none_or(|of| snapshot.runtime.includes(of, rand::random()));
        let metadata = filter.enabled_metadata.as_ref();
        let metadata = metadata.is_none_or(|matcher| matcher.matches(&log.record.metadata));
        (enabled && metadata).then_some(Self { filter, extensions, body })
    }

    /// How the body has to be read first.
    pub(super) fn reads_body(&self, body: &RequestBody) -> Option<AuthzBody> {
        self.body.filter(|_| !body.is_end_stream())
    }

    /// Asks.
    pub(super) async fn ask(
        &self,
        caller: Caller<'_>,
        log: &RequestLog,
        head: &Parts,
        body: &RequestBody,
    ) -> Result<Said, NoAnswer> {
        let read = self.reads_body(body).map(|settings| {
            let ahead = body.ahead();
            (&ahead[..ahead.len().min(settings.max_bytes)], settings)
        });
        match &self.filter.service {
            AuthzService::Grpc(service) => self.by_grpc(service, caller, log, head, read).await,
            AuthzService::Http(service) => self.by_http(service, caller, head, read).await,
        }
    }

    fn may_be_told(&self, name: &str, otherwise: bool) -> bool {
        let any = |of: &[StringMatcher]| of.iter().any(|one| one.matches(name.as_bytes()));
        !any(&self.filter.disallowed_headers)
            && self.filter.allowed_headers.as_ref().map_or(otherwise, |allowed| any(allowed))
    }

    async fn by_grpc(
        &self,
        service: &GrpcService,
        caller: Caller<'_>,
        log: &RequestLog,
        head: &Parts,
        body: Option<(&[u8], AuthzBody)>,
    ) -> Result<Said, NoAnswer> {
        let flow = caller.permit.flow();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace('\u{fffd}', "!");
        let host = text(authority(head).unwrap_or_default());
        let path = head.uri.path_and_query().map_or("", PathAndQuery::as_str);
        let scheme = head.uri.scheme_str().unwrap_or("http");
        let mut headers = BTreeMap::new();
        let method = head.method.as_str();
        for (name, value) in
            [(":authority", &*host), (":method", method), (":path", path), (":scheme", scheme)]
        {
            headers.insert(name.to_owned(), value.to_owned());
        }
        for name in head.headers.keys().filter(|name| **name != HOST) {
            headers.insert(name.to_string(), text(&joined(&head.headers, name)));
        }
        headers.retain(|name, _| self.may_be_told(name, true));
        if let Some((bytes, settings)) = body {
            let partial = (bytes.len() >= settings.max_bytes).to_string();
            headers.insert(PARTIAL_BODY.to_string(), partial);
        }
        let metadata = &log.record.metadata;
        let namespaces = self.filter.metadata_namespaces.iter();
        let metadata =
            namespaces.filter_map(|name| Some((name.as_str(), metadata.get::<&str>(name, &[])?)));
        let own = flow.pod().workload.identity.to_string();
        let inbound = flow.direction() == Direction::Inbound;
        let asked = Asked {
            source: flow.source(),
            source_principal: flow.source_principal().unwrap_or_default(),
            destination: SocketAddr::new(
                flow.original_destination().ip(),
                flow.original_destination().port(),
            ),
            destination_principal: if inbound { own } else { String::new() },
            id: log.record.request_id.as_ref().and_then(|id| id.to_str().ok()).unwrap_or_default(),
            method,
            path,
            host: &host,
            scheme,
            protocol: match log.record.protocol {
                Protocol::Http2 => "HTTP/2",
                _ => "HTTP/1.1",
            },
            headers,
            size: log.exchange.request_bytes(),
            body: body.map(|(bytes, _)| bytes),
            body_as_bytes: body.is_some_and(|(_, settings)| settings.as_bytes),
            extensions: &self.extensions,
            metadata: metadata.collect(),
        };
        let to = Authority::try_from(service.authority.as_str()).map_err(|_| NoAnswer::Question)?;
        let limits =
            Limits { timeout: service.timeout, answer_max_bytes: service.answer_max_bytes };
        let headers = service.initial_metadata.iter().cloned().collect();
        let question = codec::question(&asked);
        let answer =
            caller.grpc(&service.cluster, (to, codec::CHECK), headers, &question, limits).await?;
        let said = codec::answer(answer)?;
        if said.failed { Err(NoAnswer::Undecided) } else { Ok(said) }
    }

    async fn by_http(
        &self,
        service: &HttpAuthz,
        caller: Caller<'_>,
        head: &Parts,
        body: Option<(&[u8], AuthzBody)>,
    ) -> Result<Said, NoAnswer> {
        let mut headers = HeaderMap::new();
        for name in head.headers.keys().filter(|name| !FRAMING.contains(name)) {
            if self.may_be_told(name.as_str(), false) || *name == AUTHORIZATION {
                // Values of a header, and commas.
                if let Ok(value) = HeaderValue::from_bytes(&joined(&head.headers, name)) {
                    headers.insert(name.clone(), value);
                }
            }
        }
        for (name, value) in &service.headers_to_add {
            headers.insert(name.clone(), value.clone());
        }
        if let Some((bytes, settings)) = body {
            let partial = bytes.len() >= settings.max_bytes;
            let partial = HeaderValue::from_static(if partial { "true" } else { "false" });
            headers.insert(PARTIAL_BODY, partial);
        }
        let host = authority(head).unwrap_or_default();
        let path = head.uri.path_and_query().map_or("/", PathAndQuery::as_str);
        let path = format!("{}{path}", service.path_prefix);
        let question = call::Question {
            method: head.method.clone(),
            authority: Authority::try_from(host).map_err(|_| NoAnswer::Question)?,
            path: path.try_into().map_err(|_| NoAnswer::Question)?,
            headers,
            body: body.map(|(bytes, _)| Bytes::copy_from_slice(bytes)).unwrap_or_default(),
        };
        let limits =
            Limits { timeout: Some(service.uri.timeout), answer_max_bytes: ANSWER_MAX_BYTES };
        let Answered { head, body, .. } =
            caller.http(&service.uri.cluster, question, limits).await?;
        if head.status.is_server_error() {
            return Err(NoAnswer::Status(head.status));
        }
        Ok(said_by_http(service, head.status, &head.headers, &body))
    }

    /// Does what the answer says.
    pub(super) fn take(
        &self,
        answer: Result<Said, NoAnswer>,
        room: Room,
        head: &mut Parts,
        log: &mut RequestLog,
    ) -> Result<Passed, Reply> {
        let said = match answer {
            Ok(said) => said,
            Err(error) => return self.without_answer(&error, head),
        };
        if self.filter.takes_metadata && !said.metadata.is_empty() {
            log.record.metadata.merge(NAMESPACE, said.metadata.clone());
        }
        if !said.ok {
            return Err(self.denied(said));
        }
        let mut changed = !said.set_parameters.is_empty() || !said.remove_parameters.is_empty();
        let names = said
            .headers
            .iter()
            .chain(&said.beside)
            .chain(&said.for_client)
            .map(|header| &header.name);
        if names.into_iter().any(|name| FRAMING.contains(name)) {
            return Err(invalid());
        }
        for header in said.headers {
            changed = true;
            change(&mut head.headers, header);
        }
        for SaidHeader { name, value, .. } in said.beside {
            changed = true;
            head.headers.append(name, value);
        }
        for name in said.remove {
            match HeaderName::try_from(name) {
                Ok(name) if !FRAMING.contains(&name) => {
                    changed |= head.headers.remove(name).is_some();
                }
                _ => {}
            }
        }
        set_parameters(head, &said.set_parameters, &said.remove_parameters);
        // As Envoy: who sends too much may be let pass, but not with more yet.
        if changed && !room.has(&head.headers, &HeaderMap::new()) {
            return Err(invalid());
        }
        let mut for_client = HeaderMap::new();
        for SaidHeader { name, value, .. } in said.for_client {
            for_client.append(name, value);
        }
        let next = match changed && self.filter.clear_route_cache {
            true => Next::Reroute,
            false => Next::Continue,
        };
        Ok(Passed { next, for_client })
    }

    fn without_answer(&self, error: &NoAnswer, head: &mut Parts) -> Result<Passed, Reply> {
        let cluster = self.filter.cluster();
        tracing::debug!(%cluster, "no answer of an authorisation server: {error}");
        if let NoAnswer::Invalid(_) = error {
            return Err(invalid());
        }
        if self.filter.failure_mode_allow {
            if self.filter.failure_mode_allow_header_add {
                head.headers.insert(FAILURE_ALLOWED, HeaderValue::from_static("true"));
            }
            return Ok(Passed { next: Next::Continue, for_client: HeaderMap::new() });
        }
        let status = StatusCode::from_u16(self.filter.status_on_error);
        let status = status.unwrap_or(StatusCode::FORBIDDEN);
        Err(Reply::new(status, "", Some(ResponseFlag::Denied), "ext_authz_error"))
    }

    fn denied(&self, said: Said) -> Reply {
        let status = u16::try_from(said.status).ok().filter(|status| *status >= 200);
        let status = status.and_then(|status| StatusCode::from_u16(status).ok());
        let status = status.unwrap_or(StatusCode::FORBIDDEN);
        let mut body = Bytes::from(said.body);
        if let Some(max) = self.filter.denied_body_max_bytes {
            body.truncate(max);
        }
        let mut headers = HeaderMap::new();
        for SaidHeader { name, value, append, .. } in said.headers {
            match (FRAMING.contains(&name), append) {
                (true, _) => {}
                (false, Some(true)) => drop(headers.append(name, value)),
                (false, _) => drop(headers.insert(name, value)),
            }
        }
        let reply = Reply::new(status, "", Some(ResponseFlag::Denied), "ext_authz_denied");
        Reply { body, headers: Some(Box::new(headers)), ..reply }
    }
}

fn invalid() -> Reply {
    let status = StatusCode::INTERNAL_SERVER_ERROR;
    Reply::new(status, "", Some(ResponseFlag::Denied), "ext_authz_invalid")
}

fn said_by_http(
    service: &HttpAuthz,
    status: StatusCode,
    headers: &HeaderMap,
    body: &Bytes,
) -> Said {
    let ok = status == StatusCode::OK;
    let mut said = Said { ok, status: status.as_u16().into(), ..Said::default() };
    let any = |of: &[StringMatcher], name: &HeaderName| {
        of.iter().any(|one| one.matches(name.as_str().as_bytes()))
    };
    let header = |name: &HeaderName, value: &HeaderValue, action, append| SaidHeader {
        name: name.clone(),
        value: value.clone(),
        action,
        append: Some(append),
    };
    let overwrite = AppendAction::OverwriteIfExistsOrAdd;
    let mut metadata = Map::new();
    for (name, value) in headers {
        if FRAMING.contains(name) {
            continue;
        }
        if any(&service.metadata, name) {
            let text = String::from_utf8_lossy(value.as_bytes()).into_owned();
            let key = name.as_str();
            let key = key.strip_prefix(METADATA_PREFIX).unwrap_or(key);
            metadata.insert(key.to_owned(), Value::from(text));
        }
        if ok {
            if any(&service.upstream, name) {
                said.headers.push(header(name, value, overwrite, false));
            }
            if any(&service.upstream_append, name) {
                said.beside.push(header(name, value, AppendAction::AppendIfExistsOrAdd, true));
            }
            if any(&service.client_on_success, name) {
                said.for_client.push(header(name, value, overwrite, false));
            }
        } else {
            let always = [WWW_AUTHENTICATE, PROXY_AUTHENTICATE, LOCATION].contains(name);
            let told = service.client.as_ref().is_none_or(|client| any(client, name) || always);
            if told && (*name != CONTENT_TYPE || !body.is_empty()) {
                said.headers.push(header(name, value, overwrite, true));
            }
        }
    }
    if ok {
        let names = headers.get_all(TO_REMOVE).iter().filter_map(|value| value.to_str().ok());
        said.remove = names.flat_map(|names| names.split(',')).map(|n| n.trim().into()).collect();
    } else {
        said.body = body.to_vec();
    }
    said.metadata = metadata;
    said
}

/// As Envoy: what appends does so to what is there, and else comes to nothing; what says
/// nothing sets.
fn change(headers: &mut HeaderMap, header: SaidHeader) {
    let SaidHeader { name, value, action, append } = header;
    match (append, action) {
        (Some(true), _) => {
            if headers.contains_key(&name) {
                append_value(headers, name, &value, ",");
            }
        }
        (_, AppendAction::AddIfAbsent) => {
            set_value(headers, name, value, AppendAction::AddIfAbsent);
        }
        _ => drop(headers.insert(name, value)),
    }
}

fn set_parameters(head: &mut Parts, set: &[(String, String)], remove: &[String]) {
    if set.is_empty() && remove.is_empty() {
        return;
    }
    let query = head.uri.query().unwrap_or_default();
    let key = |pair: &str| super::decoded(pair.split_once('=').map_or(pair, |(key, _)| key));
    let gone: HashSet<&str> =
        remove.iter().chain(set.iter().map(|(name, _)| name)).map(|n| &**n).collect();
    let goes = |pair: &str| gone.contains(&*key(pair));
    let mut pairs: Vec<String> =
        query.split('&').filter(|p| !p.is_empty() && !goes(p)).map(str::to_owned).collect();
    let encoded = |text: &str| {
        let mut out = String::new();
        for byte in text.bytes() {
            match byte {
                b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'-' | b'_' | b'.' | b'~' => {
                    out.push(char::from(byte));
                }
                _ => out.push_str(&format!("%{byte:02X}")),
            }
        }
        out
    };
    pairs.extend(set.iter().map(|(name, value)| format!("{}={}", encoded(name), encoded(value))));
    super::set_query(head, &pairs);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::fixtures::request;

    #[test]
    fn parameters_are_set_and_removed() {
        let mut head = request("GET", "/p?a=1&gone=2&set=0&%67one=3", &[]);
        let set = [("set".to_owned(), "x y".to_owned())];
        set_parameters(&mut head, &set, &["gone".to_owned()]);
        assert_eq!(head.uri.path_and_query().unwrap().as_str(), "/p?a=1&set=x%20y");
    }

    #[test]
    fn headers_change_as_the_answer_says() {
        let mut headers = HeaderMap::new();
        headers.insert("there", HeaderValue::from_static("1"));
        let mut say = |name: &'static str, action, append| {
            change(
                &mut headers,
                SaidHeader {
                    name: HeaderName::from_static(name),
                    value: HeaderValue::from_static("2"),
                    action,
                    append,
                },
            );
            headers.get(name).map(|value| value.to_str().unwrap().to_owned())
        };
        use AppendAction::{AddIfAbsent, AppendIfExistsOrAdd, OverwriteIfExists};
        assert_eq!(say("there", AddIfAbsent, None).as_deref(), Some("1"));
        assert_eq!(say("there", AppendIfExistsOrAdd, Some(true)).as_deref(), Some("1,2"));
        assert_eq!(say("absent", AppendIfExistsOrAdd, Some(true)), None);
        assert_eq!(say("absent", OverwriteIfExists, None).as_deref(), Some("2"));
        assert_eq!(say("there", AppendIfExistsOrAdd, None).as_deref(), Some("2"));
    }
}
