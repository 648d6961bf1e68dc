//! Spans on their way to a collector: OTLP, and Zipkin's JSON.
//!
//! Spec: `opentelemetry.proto.collector.trace.v1`; Zipkin API v2, `POST /api/v2/spans`.

use std::{
    borrow::Cow,
    net::IpAddr,
    time::{SystemTime, UNIX_EPOCH},
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse},
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    resource::v1::Resource,
    trace::v1::{
        ResourceSpans, ScopeSpans, Span as PbSpan, Status, span::SpanKind, status::StatusCode,
    },
};
use prost::Message as _;
use serde_json::json;

/// The method to call.
pub const EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// A name and its value.
pub type Tag = (Cow<'static, str>, String);

/// Which end of an exchange a span is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Server,
    Client,
}

/// A span that has ended.
#[derive(Debug, Clone)]
pub struct Span {
    /// Not zero.
    pub trace_id: u128,
    pub id: u64,
    pub parent: Option<u64>,
    /// W3C's, as it came.
    pub trace_state: String,
    pub name: String,
    pub kind: Kind,
    pub start: SystemTime,
    pub end: SystemTime,
    /// Of equal names there is one.
    pub tags: Vec<Tag>,
    pub failed: bool,
    /// Zipkin: the client's span has the same id.
    pub shared: bool,
}

impl Span {
    /// What it takes in memory, about.
    pub fn bytes(&self) -> usize {
        let tags = self.tags.iter().map(|(name, value)| name.len() + value.len() + 64);
        256 + self.name.len() + self.trace_state.len() + tags.sum::<usize>()
    }
}

/// What OTLP calls a batch. `scope`: whether it says who made the spans.
pub fn otlp(
    spans: &[Span],
    resource: &[(String, String)],
    scope: bool,
) -> ExportTraceServiceRequest {
    let pairs = resource.iter().map(|(key, value)| attribute(key, value));
    let resource = Resource { attributes: pairs.collect(), ..Resource::default() };
    let scope = scope.then(|| InstrumentationScope {
        name: env!("CARGO_PKG_NAME").to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    });
    let spans = spans.iter().map(otlp_span).collect();
    let scope_spans = vec![ScopeSpans { scope, spans, ..ScopeSpans::default() }];
    let of_resource =
        ResourceSpans { resource: Some(resource), scope_spans, ..ResourceSpans::default() };
    ExportTraceServiceRequest { resource_spans: vec![of_resource] }
}

/// What a collector did not take of a batch that it answered; bytes that are no answer took
/// everything.
pub fn rejected(answer: &ExportTraceServiceResponse) -> u64 {
    let rejected = answer.partial_success.as_ref().map_or(0, |partial| partial.rejected_spans);
    u64::try_from(rejected).unwrap_or(0)
}

/// The same of an answer by HTTP.
pub fn rejected_of(answer: &[u8]) -> u64 {
    ExportTraceServiceResponse::decode(answer).map_or(0, |answer| rejected(&answer))
}

/// What OTLP by HTTP has of a batch.
pub fn otlp_bytes(spans: &[Span], resource: &[(String, String)], scope: bool) -> Vec<u8> {
    otlp(spans, resource, scope).encode_to_vec()
}

fn attribute(key: &str, value: &str) -> KeyValue {
    let value = AnyValue { value: Some(Value::StringValue(value.to_owned())) };
    KeyValue { key: key.to_owned(), value: Some(value), ..KeyValue::default() }
}

fn otlp_span(span: &Span) -> PbSpan {
    let kind = match span.kind {
        Kind::Server => SpanKind::Server,
        Kind::Client => SpanKind::Client,
    };
    PbSpan {
        trace_id: span.trace_id.to_be_bytes().to_vec(),
        span_id: span.id.to_be_bytes().to_vec(),
        trace_state: span.trace_state.clone(),
        parent_span_id: span.parent.map_or_else(Vec::new, |id| id.to_be_bytes().to_vec()),
        name: span.name.clone(),
        kind: kind.into(),
        start_time_unix_nano: u64::try_from(nanos(span.start)).unwrap_or(u64::MAX),
        end_time_unix_nano: u64::try_from(nanos(span.end)).unwrap_or(u64::MAX),
        attributes: span
            .tags
            .iter()
            .map(|(key, value)| attribute(key, known(key, value)))
            .collect(),
        status: span.failed.then(|| Status { code: StatusCode::Error.into(), ..Status::default() }),
        ..PbSpan::default()
    }
}

/// Methods that semantic conventions do not know have one name together.
fn known<'a>(key: &str, value: &'a str) -> &'a str {
    const METHODS: [&str; 9] =
        ["CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"];
    if key == "http.method" && !METHODS.contains(&value) { "_OTHER" } else { value }
}

fn nanos(time: SystemTime) -> u128 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()
}

/// A batch as Zipkin takes it, from the service of that name at that address.
pub fn zipkin(spans: &[Span], service: &str, address: Option<IpAddr>) -> Vec<u8> {
    let mut local = json!({ "serviceName": service });
    match address {
        Some(IpAddr::V4(address)) => local["ipv4"] = json!(address),
        Some(IpAddr::V6(address)) => local["ipv6"] = json!(address),
        None => {}
    }
    let span = |span: &Span| {
        let micros = |time| u64::try_from(nanos(time) / 1000).unwrap_or(u64::MAX);
        let (kind, event) = match span.kind {
            Kind::Server => ("SERVER", "ss"),
            Kind::Client => ("CLIENT", "cr"),
        };
        // It has no values that say nothing.
        let tags = span.tags.iter().filter(|(_, value)| !value.is_empty());
        let tags = tags.map(|(key, value)| (key.clone().into_owned(), json!(value))).collect();
        let mut out = json!({
            "traceId": zipkin_trace_id(span.trace_id),
            "id": format!("{:016x}", span.id),
            "kind": kind,
            "name": span.name,
            "timestamp": micros(span.start),
            "duration": micros(span.end).saturating_sub(micros(span.start)).max(1),
            "localEndpoint": local,
            "annotations": [{ "timestamp": micros(span.end), "value": event }],
            "tags": serde_json::Value::Object(tags),
        });
        if let Some(parent) = span.parent {
            out["parentId"] = format!("{parent:016x}").into();
        }
        if span.shared {
            out["shared"] = true.into();
        }
        out
    };
    let all: serde_json::Value = spans.iter().map(span).collect();
    all.to_string().into_bytes()
}

/// Of 64 bits where it is no longer.
pub fn zipkin_trace_id(id: u128) -> String {
    match u64::try_from(id) {
        Ok(short) => format!("{short:016x}"),
        Err(_) => format!("{id:032x}"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn span() -> Span {
        let start = UNIX_EPOCH + Duration::from_micros(1_000_000);
        Span {
            trace_id: 0xa,
            id: 0xb,
            parent: Some(0xc),
            trace_state: "k=v".to_owned(),
            name: "ingress".to_owned(),
            kind: Kind::Server,
            start,
            end: start + Duration::from_micros(250),
            tags: vec![("http.method".into(), "GET".to_owned()), ("zone".into(), String::new())],
            failed: true,
            shared: true,
        }
    }

    #[test]
    fn otlp_says_all_of_a_span() {
        let resource = [("service.name".to_owned(), "web".to_owned())];
        let batch = otlp(&[span()], &resource, true);
        let of_resource = &batch.resource_spans[0];
        assert_eq!(
            of_resource.resource.as_ref().unwrap().attributes,
            [attribute("service.name", "web")]
        );
        let scope = &of_resource.scope_spans[0];
        assert_eq!(scope.scope.as_ref().unwrap().name, "mesh-agent");
        let told = &scope.spans[0];
        assert_eq!(told.trace_id, [&[0; 15][..], &[0xa]].concat());
        assert_eq!(told.span_id, [0, 0, 0, 0, 0, 0, 0, 0xb]);
        assert_eq!(told.parent_span_id, [0, 0, 0, 0, 0, 0, 0, 0xc]);
        assert_eq!(told.end_time_unix_nano - told.start_time_unix_nano, 250_000);
        assert_eq!((told.kind(), told.trace_state.as_str()), (SpanKind::Server, "k=v"));
        assert_eq!(told.status.as_ref().unwrap().code(), StatusCode::Error);
        assert_eq!(told.attributes.len(), 2);
        assert!(otlp(&[], &[], false).resource_spans[0].scope_spans[0].scope.is_none());
        // Nobody's answer is nobody's loss.
        assert_eq!((rejected_of(b""), rejected_of(b"\xff")), (0, 0));
    }

    #[test]
    fn zipkin_says_all_of_a_span() {
        let text = zipkin(&[span()], "web", Some(IpAddr::from([10, 0, 0, 1])));
        let told: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(
            told,
            json!([{
                "traceId": "000000000000000a", "id": "000000000000000b",
                "parentId": "000000000000000c", "kind": "SERVER", "name": "ingress",
                "timestamp": 1_000_000, "duration": 250, "shared": true,
                "localEndpoint": { "serviceName": "web", "ipv4": "10.0.0.1" },
                "annotations": [{ "timestamp": 1_000_250, "value": "ss" }],
                "tags": { "http.method": "GET" },
            }])
        );
        assert_eq!(zipkin_trace_id(1 << 64), format!("{:032x}", 1_u128 << 64));
    }
}
