//! Calls of gRPC that `grpc_stats` counts: by method only where that is asked for, and never
//! without end.

use std::{
    array, fmt,
    sync::{Arc, OnceLock},
};

use prometheus_client::{
    encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder},
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use super::table::{SHARED, Table};

/// The most (cluster, method) that have series of their own.
const METHODS_MAX: usize = 512;
/// How many statuses gRPC knows.
const STATUSES: usize = 17;

/// One method of one cluster's.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GrpcMethod {
    pub cluster: Arc<str>,
    pub service: Arc<str>,
    pub method: Arc<str>,
}

impl EncodeLabelSet for GrpcMethod {
    fn encode(&self, set: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        ("cluster", &*self.cluster).encode(set.encode_label())?;
        ("grpc_service", &*self.service).encode(set.encode_label())?;
        ("grpc_method", &*self.method).encode(set.encode_label())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Series {
    method: GrpcMethod,
    /// `None`: there was none, or none that gRPC knows.
    status: Option<usize>,
}

impl Series {
    /// `index` of [`OfMethod::calls`].
    fn at(method: &GrpcMethod, index: usize) -> Self {
        Self { method: method.clone(), status: Some(index).filter(|status| *status < STATUSES) }
    }
}

impl EncodeLabelSet for Series {
    fn encode(&self, set: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        self.method.encode(set)?;
        match self.status {
            Some(status) => ("grpc_status", status as u64).encode(set.encode_label()),
            None => ("grpc_status", "none").encode(set.encode_label()),
        }
    }
}

/// A call that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GrpcCall {
    pub status: Option<u32>,
    pub request_messages: u64,
    pub response_messages: u64,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct GrpcMetrics(Arc<Inner>);

struct Inner {
    families: Families,
    known: Table<GrpcMethod, OfMethod>,
}

#[derive(Default)]
struct Families {
    calls: Family<Series, Counter>,
    requests: Family<GrpcMethod, Counter>,
    responses: Family<GrpcMethod, Counter>,
}

struct OfMethod {
    key: GrpcMethod,
    /// By status; the last one is of those that gRPC doesn't know. Made when there is a call.
    calls: [OnceLock<Counter>; STATUSES + 1],
    requests: Counter,
    responses: Counter,
}

impl Default for GrpcMetrics {
    fn default() -> Self {
        Self(Arc::new(Inner { families: Families::default(), known: Table::new(METHODS_MAX) }))
    }
}

impl fmt::Debug for GrpcMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrpcMetrics").finish_non_exhaustive()
    }
}

impl GrpcMetrics {
    pub(super) fn register(&self, r: &mut Registry) {
        let Families { calls, requests, responses } = &self.0.families;
        r.register("mesh_grpc_calls", "Calls of gRPC that ended, by status", calls.clone());
        r.register("mesh_grpc_request_messages", "Messages of their requests", requests.clone());
        r.register("mesh_grpc_response_messages", "Messages of their responses", responses.clone());
    }

    /// A call ended.
    pub fn ended(&self, key: &GrpcMethod, call: GrpcCall) {
        let overflow = || {
            let all = || Arc::clone(&SHARED);
            GrpcMethod { cluster: all(), service: all(), method: all() }
        };
        let Families { calls, requests, responses } = &self.0.families;
        let make = |key: &GrpcMethod| OfMethod {
            key: key.clone(),
            calls: array::from_fn(|_| OnceLock::new()),
            requests: requests.get_or_create_owned(key),
            responses: responses.get_or_create_owned(key),
        };
        let forget = |key: &GrpcMethod| {
            requests.remove(key);
            responses.remove(key);
            for index in 0..=STATUSES {
                calls.remove(&Series::at(key, index));
            }
        };
        let entry = self.0.known.of(key, overflow, make, forget);
        let of = &entry.value;
        let status = call.status.and_then(|status| usize::try_from(status).ok());
        let index = status.map_or(STATUSES, |status| status.min(STATUSES));
        if let Some(counter) = of.calls.get(index) {
            counter.get_or_init(|| calls.get_or_create_owned(&Series::at(&of.key, index))).inc();
        }
        of.requests.inc_by(call.request_messages);
        of.responses.inc_by(call.response_messages);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_by_method_and_status_and_are_not_without_end() {
        let metrics = GrpcMetrics::default();
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let key = |n: usize| GrpcMethod {
            cluster: "c".into(),
            service: "pkg.S".into(),
            method: format!("M{n}").into(),
        };
        let call = |status| GrpcCall { status, request_messages: 2, response_messages: 3 };
        for status in [Some(0), Some(16), Some(17), None] {
            metrics.ended(&key(0), call(status));
        }
        for n in 1..METHODS_MAX + 4 {
            metrics.ended(&key(n), call(Some(0)));
        }
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let of = r#"cluster="c",grpc_service="pkg.S",grpc_method="M0""#;
        let many = r#"cluster="overflow",grpc_service="overflow",grpc_method="overflow""#;
        for line in [
            format!("mesh_grpc_calls_total{{{of},grpc_status=\"0\"}} 1"),
            format!("mesh_grpc_calls_total{{{of},grpc_status=\"16\"}} 1"),
            format!("mesh_grpc_calls_total{{{of},grpc_status=\"none\"}} 2"),
            format!("mesh_grpc_request_messages_total{{{of}}} 8"),
            format!("mesh_grpc_response_messages_total{{{of}}} 12"),
            format!("mesh_grpc_calls_total{{{many},grpc_status=\"0\"}} 4"),
        ] {
            assert!(text.lines().any(|known| known == line), "{line}\n{text}");
        }
    }
}
