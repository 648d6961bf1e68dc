//! Delays and aborts, to see how others bear them.
//!
//! Spec: `envoy.extensions.filters.http.fault.v3`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::{StatusCode, request::Parts};

use super::super::{
    reply::{Reply, ToGrpc},
    timing::{Deadline, Expired},
};
use crate::{
    model::{
        cluster::ClusterName,
        filter::{AbortBy, Fault},
        runtime::{Fraction, Runtime},
    },
    observe::flags::{ResponseFlag, ResponseFlags},
    policy::matcher::{first_value, header_matches},
};

/// How many faults are in hand.
pub(in crate::proxy::http) type Active = Arc<AtomicU64>;

/// One of them.
struct Counted(Active);

impl Counted {
    /// `None`: there are `max` already.
    fn one(active: &Active, max: u64) -> Option<Self> {
        let more = |now: u64| (now < max).then_some(now + 1);
        let counted = active.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        counted.is_ok().then(|| Self(Arc::clone(active)))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why a request goes no further.
#[derive(Debug)]
pub(in crate::proxy::http) enum Ended {
    Aborted(Reply),
    /// While it was delayed.
    Expired(Expired),
}

/// A fault, and the request it may meet.
pub(in crate::proxy::http) struct Injector<'a> {
    pub(in crate::proxy::http) fault: &'a Fault,
    pub(in crate::proxy::http) runtime: &'a Runtime,
    pub(in crate::proxy::http) head: &'a Parts,
    /// Where the request goes, where that is known.
    pub(in crate::proxy::http) cluster: Option<&'a ClusterName>,
}

impl Injector<'_> {
    /// Delays or aborts, or neither, and notes it.
    pub(in crate::proxy::http) async fn inject(
        &self,
        active: &Active,
        mut deadline: Deadline,
        flags: &mut ResponseFlags,
    ) -> Result<(), Ended> {
        if !self.is_meant() {
            return Ok(());
        }
        let keys = &self.fault.keys;
        let max = self.runtime.integer(&keys.max_active, self.fault.max_active.unwrap_or(u64::MAX));
        let mut counted = None;
        if let Some(delay) = self.delay() {
            counted = Counted::one(active, max);
            if counted.is_some() {
                flags.insert(ResponseFlag::DelayInjected);
                deadline.run(tokio::time::sleep(delay)).await.map_err(Ended::Expired)?;
            }
        }
        let Some((status, grpc)) = self.abort() else { return Ok(()) };
        // Of one request both are one.
        if counted.or_else(|| Counted::one(active, max)).is_none() {
            return Ok(());
        }
        let flag = Some(ResponseFlag::FaultInjected);
        let reply = Reply::new(status, "", flag, "fault_filter_abort");
        let body = self.fault.abort.as_ref().map(|abort| abort.body.clone()).unwrap_or_default();
        Err(Ended::Aborted(Reply { body, grpc, ..reply }))
    }

    fn is_meant(&self) -> bool {
        let Fault { upstream_cluster, downstream_nodes, headers, .. } = self.fault;
        let node = || self.text("x-envoy-downstream-service-node");
        upstream_cluster.as_ref().is_none_or(|wanted| self.cluster == Some(wanted))
            && (downstream_nodes.is_empty()
                || node().is_some_and(|node| downstream_nodes.iter().any(|known| known == node)))
            && headers.iter().all(|header| header_matches(header, self.head))
    }

    fn delay(&self) -> Option<Duration> {
        let delay = self.fault.delay.as_ref()?;
        let keys = &self.fault.keys;
        let percentage =
            self.percentage(delay.percentage, "x-envoy-fault-delay-request-percentage");
        if !self.is_included(&keys.delay_percent, "delay.fixed_delay_percent", percentage) {
            return None;
        }
        let asked = || self.number("x-envoy-fault-delay-request");
        let fixed = |fixed: Duration| u64::try_from(fixed.as_millis()).unwrap_or(u64::MAX);
        let millis = delay.fixed.map(fixed).or_else(asked)?;
        let millis = self.runtime.integer(&keys.delay_duration, millis);
        let millis = match self.of_caller("delay.fixed_duration_ms") {
            Some(key) => self.runtime.integer(&key, millis),
            None => millis,
        };
        (millis > 0).then(|| Duration::from_millis(millis))
    }

    fn abort(&self) -> Option<(StatusCode, ToGrpc)> {
        let abort = self.fault.abort.as_ref()?;
        let keys = &self.fault.keys;
        let percentage =
            self.percentage(abort.percentage, "x-envoy-fault-abort-request-percentage");
        if !self.is_included(&keys.abort_percent, "abort.abort_percent", percentage) {
            return None;
        }
        let (http, grpc) = match abort.by {
            AbortBy::HttpStatus(status) => (Some(status.into()), None),
            AbortBy::GrpcStatus(code) => (None, Some(code.into())),
            AbortBy::Header => {
                let status = self.number("x-envoy-fault-abort-request");
                let status = status.filter(|status| (200..600).contains(status));
                (status, self.number("x-envoy-fault-abort-grpc-request"))
            }
        };
        // As Envoy: where the caller is known, what it has goes before what all have.
        let changed = |all: &str, own: &str, default: u64| match self.of_caller(own) {
            Some(key) => self.runtime.integer(&key, default),
            None => self.runtime.integer(all, default),
        };
        if let Some(default) = http {
            let status = changed(&keys.abort_http_status, "abort.http_status", default);
            let valid = |status| StatusCode::from_u16(u16::try_from(status).ok()?).ok();
            // The runtime may hold anything.
            let status = valid(status).filter(|status| status.as_u16() >= 200);
            return Some((status.or_else(|| valid(default))?, ToGrpc::Mapped));
        }
        let code = changed(&keys.abort_grpc_status, "abort.grpc_status", grpc?);
        Some((StatusCode::OK, ToGrpc::Code(u32::try_from(code).unwrap_or(u32::MAX))))
    }

    /// Requests may ask for less than is configured.
    fn percentage(&self, configured: Fraction, header: &str) -> Fraction {
        let asked = self.number(header).and_then(|asked| u32::try_from(asked).ok());
        let numerator = asked.map_or(configured.numerator, |asked| asked.min(configured.numerator));
        Fraction { numerator, ..configured }
    }

    fn is_included(&self, all: &str, own: &str, default: Fraction) -> bool {
        let fraction = match self.of_caller(own) {
            Some(key) => self.runtime.fraction(&key, default),
            None => self.runtime.fraction(all, default),
        };
        fraction.includes(rand::random())
    }

    /// The runtime's key for who the caller says it is; `None`: it says nothing.
    fn of_caller(&self, key: &str) -> Option<String> {
        let caller = self.text("x-envoy-downstream-service-cluster")?;
        Some(format!("fault.http.{caller}.{key}"))
    }

    fn text(&self, header: &str) -> Option<&str> {
        str::from_utf8(first_value(header, self.head)?).ok()
    }

    /// As `absl::SimpleAtoi`: a whole decimal number, white space around it allowed.
    fn number(&self, header: &str) -> Option<u64> {
        self.text(header)?.trim_ascii().parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;
    use crate::{
        model::{
            filter::{FaultAbort, FaultDelay, FaultKeys},
            runtime::{RuntimeLayer, RuntimeValue},
        },
        proxy::http::timing::Exchange,
    };

    fn fault(delay: Option<Option<u64>>, by: Option<AbortBy>) -> Fault {
        let all = Fraction::percent(100);
        let delay = delay
            .map(|millis| FaultDelay { fixed: millis.map(Duration::from_millis), percentage: all });
        let abort = by.map(|by| FaultAbort { by, percentage: all, body: "body".into() });
        let key = |name: &str| format!("key.{name}");
        let keys = FaultKeys {
            delay_percent: key("delay_percent"),
            delay_duration: key("delay_duration"),
            abort_percent: key("abort_percent"),
            abort_http_status: key("abort_http_status"),
            abort_grpc_status: key("abort_grpc_status"),
            max_active: key("max_active"),
        };
        let (headers, downstream_nodes) = (Vec::new(), Vec::new());
        let (upstream_cluster, max_active) = (None, None);
        Fault { delay, abort, upstream_cluster, headers, downstream_nodes, max_active, keys }
    }

    fn head(headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().uri("/");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn runtime(values: &[(&str, f64)]) -> Runtime {
        let values = values.iter().map(|(key, n)| ((*key).to_owned(), RuntimeValue::Number(*n)));
        let layer = RuntimeLayer { values: values.collect() };
        Runtime { layers: vec![("test".into(), Arc::new(layer))] }
    }

    async fn inject(
        fault: &Fault,
        runtime: &Runtime,
        head: &Parts,
        active: &Active,
    ) -> (Option<Ended>, ResponseFlags) {
        let mut flags = ResponseFlags::NONE;
        let deadline = Deadline::new(Exchange::new(), Some(Duration::from_secs(10)));
        let injector = Injector { fault, runtime, head, cluster: None };
        (injector.inject(active, deadline, &mut flags).await.err(), flags)
    }

    async fn aborted(fault: &Fault, runtime: &Runtime, head: &Parts) -> Option<(u16, ToGrpc)> {
        match inject(fault, runtime, head, &Active::default()).await.0 {
            None => None,
            Some(Ended::Aborted(reply)) => Some((reply.status.as_u16(), reply.grpc)),
            Some(Ended::Expired(expired)) => panic!("{expired:?}"),
        }
    }

    #[tokio::test]
    async fn aborts_are_as_configured_or_asked_for() {
        let none = Runtime::default();
        let fixed = fault(None, Some(AbortBy::HttpStatus(418)));
        assert_eq!(aborted(&fixed, &none, &head(&[])).await, Some((418, ToGrpc::Mapped)));
        let asked = fault(None, Some(AbortBy::Header));
        for (headers, expected) in [
            (&[("x-envoy-fault-abort-request", "599")][..], Some((599, ToGrpc::Mapped))),
            (&[("x-envoy-fault-abort-request", "600")], None),
            (&[("x-envoy-fault-abort-request", "x")], None),
            (&[("x-envoy-fault-abort-grpc-request", "7")], Some((200, ToGrpc::Code(7)))),
            (&[], None),
        ] {
            assert_eq!(aborted(&asked, &none, &head(headers)).await, expected, "{headers:?}");
        }
        let less = head(&[("x-envoy-fault-abort-request-percentage", "0")]);
        assert_eq!(aborted(&fixed, &none, &less).await, None);
    }

    #[tokio::test]
    async fn the_runtime_changes_it_for_all_or_for_one_caller() {
        let fixed = fault(None, Some(AbortBy::HttpStatus(418)));
        let changed = runtime(&[
            ("key.abort_http_status", 404.0),
            ("fault.http.me.abort.http_status", 403.0),
            ("fault.http.you.abort.abort_percent", 0.0),
        ]);
        let from = |who| head(&[("x-envoy-downstream-service-cluster", who)]);
        assert_eq!(aborted(&fixed, &changed, &head(&[])).await, Some((404, ToGrpc::Mapped)));
        assert_eq!(aborted(&fixed, &changed, &from("me")).await, Some((403, ToGrpc::Mapped)));
        assert_eq!(aborted(&fixed, &changed, &from("you")).await, None);
        let nonsense = runtime(&[("key.abort_http_status", 7000.0)]);
        assert_eq!(aborted(&fixed, &nonsense, &head(&[])).await, Some((418, ToGrpc::Mapped)));
    }

    #[tokio::test(start_paused = true)]
    async fn delays_are_counted_and_end_with_the_streams_patience() {
        let (none, active) = (Runtime::default(), Active::default());
        let delay = Fault { max_active: Some(1), ..fault(Some(Some(3000)), None) };
        let nothing = head(&[]);
        let begun = tokio::time::Instant::now();
        let ((first, flags), (second, not)) = tokio::join!(
            inject(&delay, &none, &nothing, &active),
            inject(&delay, &none, &nothing, &active)
        );
        assert!(first.is_none() && second.is_none());
        assert_eq!((flags.to_string().as_str(), not.is_empty()), ("DI", true));
        assert_eq!(begun.elapsed().as_secs(), 3);
        assert_eq!(active.load(Ordering::Relaxed), 0);
        let asked = head(&[("x-envoy-fault-delay-request", "20000")]);
        let (ended, _) = inject(&fault(Some(None), None), &none, &asked, &active).await;
        assert!(matches!(ended, Some(Ended::Expired(Expired::StreamIdle))));
        assert_eq!(active.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn only_who_is_meant_is_met() {
        let by = Some(AbortBy::HttpStatus(418));
        let nodes = Fault { downstream_nodes: vec!["n".into()], ..fault(None, by) };
        let none = Runtime::default();
        let node = head(&[("x-envoy-downstream-service-node", "n")]);
        assert!(aborted(&nodes, &none, &node).await.is_some());
        assert!(aborted(&nodes, &none, &head(&[])).await.is_none());
        let cluster = Fault { upstream_cluster: Some(ClusterName("c".into())), ..fault(None, by) };
        assert!(aborted(&cluster, &none, &node).await.is_none());
    }
}
