//! The lines that the access logs of a listener and of its `tcp_proxy` have of a connection.
//!
//! Spec: `Listener.access_log`, `TcpProxy.access_log`; values as Envoy has them, for which what
//! a connection manager's requests do is no matter of the connection.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use super::{
    Failure,
    downstream_values::{Downstream, host_name, one_word, shown, text},
    log_filter::{Ended, wants},
    network_filters::TOO_FAST,
};
use crate::{
    model::{
        access_log::AccessLogs,
        format::{Operator, PlainOperator, Values},
        listener::{Listener, TerminalFilter},
        route::HeaderMatcher,
        runtime::Runtime,
    },
    observe::{
        Protocol,
        access_log::{AccessRecord, Lines},
        flags::{ResponseFlag, ResponseFlags},
    },
    policy::Flow,
};

/// A connection that will have lines.
pub(super) struct ConnectionLog {
    logs: Vec<Arc<AccessLogs>>,
    flow: Option<Flow>,
    /// The agent's end of the connection upstream.
    pub(super) upstream_local: Option<SocketAddr>,
    /// What the endpoint is called, where it has a name.
    pub(super) upstream_name: Option<Arc<str>>,
}

impl ConnectionLog {
    /// Of one that a filter chain is for; `None` where nobody wants to know.
    pub(super) fn of(flow: &Flow) -> Option<Box<Self>> {
        let of_listener = flow.listener().map(|listener| &listener.access_logs);
        let of_filter = match flow.terminal() {
            Some(TerminalFilter::TcpProxy(tcp)) => Some(&tcp.access_logs),
            Some(TerminalFilter::Http(_)) | None => None,
        };
        Self::new(of_listener.into_iter().chain(of_filter), || Some(flow.clone()))
    }

    /// Of one that no filter chain of `listener` is for.
    pub(super) fn unmatched(listener: &Listener) -> Option<Box<Self>> {
        Self::new(std::iter::once(&listener.access_logs), || None)
    }

    fn new<'a>(
        logs: impl Iterator<Item = &'a Arc<AccessLogs>>,
        flow: impl FnOnce() -> Option<Flow>,
    ) -> Option<Box<Self>> {
        let logs: Vec<_> = logs.filter(|logs| !logs.is_empty()).cloned().collect();
        let any = !logs.is_empty();
        any.then(|| {
            Box::new(Self { logs, flow: flow(), upstream_local: None, upstream_name: None })
        })
    }

    /// Hands the lines over.
    pub(super) fn write(
        &self,
        record: &AccessRecord,
        failure: Option<&Failure>,
        runtime: &Runtime,
        lines: &Lines,
    ) {
        let values = ConnectionValues { log: self, record, failure };
        for of in self.logs.iter().flat_map(|logs| logs.iter()) {
            if of.filter.as_ref().is_none_or(|filter| wants(filter, &values, runtime)) {
                let mut line = Vec::with_capacity(256);
                of.line.append_to_log(&values, &mut line);
                lines.write(&of.sink, line);
            }
        }
    }
}

/// What is known of one connection.
struct ConnectionValues<'a> {
    log: &'a ConnectionLog,
    record: &'a AccessRecord,
    failure: Option<&'a Failure>,
}

impl ConnectionValues<'_> {
    fn downstream(&self) -> Downstream<'_> {
        match &self.log.flow {
            Some(flow) => Downstream::of(flow),
            None => {
                let (remote, local) = (self.record.source, self.record.original_destination);
                Downstream { remote, direct: remote, local, flow: None }
            }
        }
    }

    fn plain(&self, operator: PlainOperator, out: &mut Vec<u8>) -> bool {
        use PlainOperator as P;
        let Self { log, record, failure } = self;
        if let Some(there) = self.downstream().append(operator, out) {
            return there;
        }
        let local = log.upstream_local;
        let remote = record.upstream_host.filter(|_| !self.flags().contains(UNCONNECTED));
        match operator {
            P::Duration => shown(out, &record.duration.as_millis()),
            // There is no response.
            P::ResponseCode => shown(out, &0),
            // It was the last of one attempt, which Envoy notes second.
            P::ResponseFlags if self.flags().contains(UNCONNECTED) => text(out, "UF,URX"),
            P::ResponseFlags => shown(out, &self.flags()),
            P::Protocol => match record.protocol {
                Protocol::Http1 => text(out, "HTTP/1.1"),
                Protocol::Http2 => text(out, "HTTP/2"),
                Protocol::Tcp => false,
            },
            P::BytesReceived => shown(out, &record.bytes_received),
            P::BytesSent => shown(out, &record.bytes_sent),
            P::UpstreamHost => record.upstream_host.is_some_and(|host| shown(out, &host)),
            P::UpstreamHostName | P::UpstreamHostNameWithoutPort => {
                let with_port = operator == P::UpstreamHostName;
                host_name(out, log.upstream_name.as_deref(), record.upstream_host, with_port)
            }
            P::UpstreamRemoteAddress => remote.is_some_and(|end| shown(out, &end)),
            P::UpstreamRemoteAddressWithoutPort => remote.is_some_and(|end| shown(out, &end.ip())),
            P::UpstreamRemotePort => remote.is_some_and(|end| shown(out, &end.port())),
            P::UpstreamLocalAddress => local.is_some_and(|end| shown(out, &end)),
            P::UpstreamLocalAddressWithoutPort => local.is_some_and(|end| shown(out, &end.ip())),
            P::UpstreamLocalPort => local.is_some_and(|end| shown(out, &end.port())),
            P::UpstreamTransportFailureReason => {
                let why = failure.and_then(|failure| failure.transport.as_ref());
                why.is_some_and(|why| one_word(why, out))
            }
            P::UpstreamCluster | P::UpstreamClusterRaw => {
                record.upstream_cluster.as_ref().is_some_and(|name| text(out, &**name))
            }
            P::UpstreamRequestAttemptCount => shown(out, &u8::from(record.upstream_host.is_some())),
            P::ResponseCodeDetails => {
                let no_chain = failure.is_some_and(|failure| failure.reason == "no_filter_chain");
                no_chain && text(out, "filter_chain_not_found")
            }
            P::ConnectionTerminationDetails => match failure {
                Some(failure) if failure.is_denial() => {
                    let by = failure.policy.as_deref().unwrap_or("none");
                    one_word(&format!("rbac_access_denied_matched_policy[{by}]"), out)
                }
                _ => false,
            },
            // Elsewhere it is empty.
            P::LocalReplyBody => true,
            _ => false,
        }
    }
}

/// Nothing was connected.
const UNCONNECTED: ResponseFlag = ResponseFlag::UpstreamConnectionFailure;

impl Ended for ConnectionValues<'_> {
    fn status(&self) -> u16 {
        0
    }

    fn elapsed(&self) -> Duration {
        self.record.duration
    }

    fn flags(&self) -> ResponseFlags {
        let flags = self.record.response_flags.iter();
        // As Envoy, which gives denials of policy none, and has an odd word for too fast.
        let own = [ResponseFlag::Denied, ResponseFlag::RateLimited];
        let mut flags: ResponseFlags = flags.filter(|flag| !own.contains(flag)).collect();
        let too_fast = self.failure.is_some_and(|failure| failure.reason == TOO_FAST);
        if flags.contains(UNCONNECTED) || too_fast {
            flags.insert(ResponseFlag::UpstreamRetryLimitExceeded);
        }
        flags
    }

    fn has_header(&self, _: &HeaderMatcher) -> bool {
        false
    }

    fn grpc_status(&self) -> u32 {
        // UNKNOWN.
        2
    }
}

impl Values for ConnectionValues<'_> {
    fn append(&self, operator: &Operator, out: &mut Vec<u8>) -> bool {
        match operator {
            Operator::Plain(plain) => self.plain(*plain, out),
            Operator::StartTime(format) => {
                format.append(self.record.start_time, out);
                true
            }
            Operator::PeerValidity(end, format) => {
                self.downstream().append_validity(*end, format, out)
            }
            Operator::Request(_)
            | Operator::Response(_)
            | Operator::Trailer(_)
            | Operator::DynamicMetadata { .. } => false,
        }
    }
}
