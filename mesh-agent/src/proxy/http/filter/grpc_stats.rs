//! Calls of gRPC, counted.
//!
//! Names of methods are a client's words: they are told only where they look like names and
//! the server knows the method.

use std::sync::{
    Arc, LazyLock,
    atomic::{AtomicU32, AtomicU64, Ordering},
};

use http::{HeaderMap, request::Parts};
use http_body::Body as _;

use super::{
    super::{
        RequestBody,
        grpc::STATUS,
        headers::is_grpc,
        mutations::OnTheWayOut,
        record::RequestLog,
        stages::{Stage, Stages},
    },
    run::Filtering,
};
use crate::{
    codec::grpc::MessageCounter,
    model::filter::{GrpcMethods, GrpcStats},
    observe::metrics::{GrpcCall, GrpcMethod, GrpcMetrics},
    policy::Place,
};

/// Methods that are not counted by themselves.
static OTHER: LazyLock<Arc<str>> = LazyLock::new(|| "other".into());
/// The longest name of a service or a method that is told.
const NAME_MAX_BYTES: usize = 128;
/// gRPC's UNIMPLEMENTED.
const UNIMPLEMENTED: u32 = 12;
/// There is no status yet.
const NONE: u32 = u32::MAX;

/// What goes by.
#[derive(Debug)]
pub(in crate::proxy::http) struct Counts {
    requests: AtomicU64,
    responses: AtomicU64,
    status: AtomicU32,
}

/// A call on its way.
pub(in crate::proxy::http) struct Call {
    cluster: Arc<str>,
    /// Service and method, where they may be told.
    named: Option<(Arc<str>, Arc<str>)>,
    counts: Arc<Counts>,
}

/// Counts one way's messages.
pub(in crate::proxy::http) struct Counting {
    counts: Arc<Counts>,
    messages: MessageCounter,
    response: bool,
}

impl Filtering<'_> {
    pub(super) fn grpc_stats(
        &self,
        place: Place<'_>,
        config: &GrpcStats,
        log: &mut RequestLog,
        head: &Parts,
        body: &mut RequestBody,
    ) {
        let there = self.cluster.filter(|cluster| self.snapshot.cluster(cluster).is_some());
        let Some(cluster) = there.filter(|_| is_grpc(&head.headers)) else { return };
        let counts = Arc::new(Counts {
            requests: AtomicU64::new(0),
            responses: AtomicU64::new(0),
            status: AtomicU32::new(NONE),
        });
        let named = named(config, head.uri.path());
        log.calls.push(Call {
            cluster: Arc::clone(&cluster.0),
            named,
            counts: Arc::clone(&counts),
        });
        if !body.is_end_stream() {
            body.through(Stage::CountGrpc(Counting::new(&counts, false)));
        }
        log.on_the_way_out(place, OnTheWayOut::GrpcStats(counts), self.judged);
    }
}

/// `/package.Service/Method`, where that is to be told.
fn named(config: &GrpcStats, path: &str) -> Option<(Arc<str>, Arc<str>)> {
    let mut parts = path.split('/').filter(|part| !part.is_empty());
    let (service, method) = (parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    let known = match &config.methods {
        GrpcMethods::None => false,
        GrpcMethods::All => is_name(service) && is_name(method),
        GrpcMethods::Listed(services) => {
            services.get(service).is_some_and(|methods| methods.contains(method))
        }
    };
    known.then(|| {
        let service = match config.replace_dots {
            true => service.replace('.', "_").into(),
            false => service.into(),
        };
        (service, method.into())
    })
}

fn is_name(text: &str) -> bool {
    let of_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_');
    text.len() <= NAME_MAX_BYTES && text.bytes().all(of_name)
}

impl Call {
    /// Tells of it.
    pub(in crate::proxy::http) fn ended(self, metrics: &GrpcMetrics) {
        let Self { cluster, named, counts } = self;
        let status = counts.status.load(Ordering::Relaxed);
        let status = (status != NONE).then_some(status);
        // Whoever makes methods up makes up no series.
        let is_known = status.is_some_and(|status| status != UNIMPLEMENTED);
        let other = || (Arc::clone(&OTHER), Arc::clone(&OTHER));
        let (service, method) = named.filter(|_| is_known).unwrap_or_else(other);
        let call = GrpcCall {
            status,
            request_messages: counts.requests.load(Ordering::Relaxed),
            response_messages: counts.responses.load(Ordering::Relaxed),
        };
        metrics.ended(&GrpcMethod { cluster, service, method }, call);
    }
}

impl Counts {
    /// A response that may be all there is to it, or has its status behind a body.
    pub(in crate::proxy::http) fn respond(
        self: Arc<Self>,
        has_body: bool,
        headers: &HeaderMap,
        stages: &mut Stages,
    ) {
        self.status(headers);
        if has_body {
            stages.push(Stage::CountGrpc(Counting::new(&self, true)));
        }
    }

    fn status(&self, headers: &HeaderMap) {
        let status = headers.get(STATUS).and_then(|status| status.to_str().ok()?.parse().ok());
        if let Some(status) = status {
            self.status.store(status, Ordering::Relaxed);
        }
    }
}

impl Counting {
    fn new(counts: &Arc<Counts>, response: bool) -> Self {
        Self { counts: Arc::clone(counts), messages: MessageCounter::default(), response }
    }

    /// These bytes go by.
    pub(in crate::proxy::http) fn moved(&mut self, data: &[u8]) {
        let counter = if self.response { &self.counts.responses } else { &self.counts.requests };
        counter.fetch_add(self.messages.count(data), Ordering::Relaxed);
    }

    /// Nothing more does.
    pub(in crate::proxy::http) fn ended(&self, trailers: Option<&HeaderMap>) {
        if let Some(trailers) = trailers.filter(|_| self.response) {
            self.counts.status(trailers);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_named_where_that_is_wanted_and_they_look_like_names() {
        let named = |methods, replace_dots, path: &str| {
            let named = named(&GrpcStats { methods, replace_dots }, path);
            named.map(|(service, method)| format!("{service} {method}"))
        };
        let list = || {
            let methods = ["M".to_owned()].into();
            GrpcMethods::Listed([("pkg.S".to_owned(), methods)].into())
        };
        let check = |methods, path: &str, expected: Option<&str>| {
            assert_eq!(named(methods, false, path).as_deref(), expected, "{path}");
        };
        check(GrpcMethods::None, "/pkg.S/M", None);
        check(GrpcMethods::All, "/pkg.S/M", Some("pkg.S M"));
        check(list(), "/pkg.S/M", Some("pkg.S M"));
        check(list(), "/pkg.S/Other", None);
        check(list(), "/Other/M", None);
        for path in ["/", "/pkg.S", "/pkg.S/M/more", "/pkg%22/M", "/pkg.S/M\u{e9}"] {
            check(GrpcMethods::All, path, None);
        }
        check(GrpcMethods::All, &format!("/pkg.S/{}", "m".repeat(129)), None);
        assert_eq!(named(GrpcMethods::All, true, "/a.b.S/M").as_deref(), Some("a_b_S M"));
    }
}
