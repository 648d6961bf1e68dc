//! Istio's labels. Values are bounded: names from configuration and enrolment and
//! identities that mTLS proved, never anything a peer may choose freely.

use std::{
    fmt::{self, Write as _},
    sync::{Arc, LazyLock},
};

use prometheus_client::encoding::{
    EncodeLabel, EncodeLabelSet, EncodeLabelValue, LabelSetEncoder, LabelValueEncoder,
};

use crate::{
    model::{identity::Identity, listener::Direction, workload::Workload},
    observe::{ConnectionSecurity, flags::ResponseFlags},
};

/// Istio's word for what is not known.
static UNKNOWN: LazyLock<Arc<str>> = LazyLock::new(|| "unknown".into());

/// One end of a connection, as labels tell of it. Make it once per pod or peer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PeerLabels {
    pub workload: Arc<str>,
    pub namespace: Arc<str>,
    /// The whole SPIFFE ID; `unknown` where nobody proved one.
    pub principal: Arc<str>,
}

impl PeerLabels {
    /// Nothing is known: the peer spoke plaintext from outside the mesh.
    pub fn unknown() -> Self {
        Self {
            workload: Arc::clone(&UNKNOWN),
            namespace: Arc::clone(&UNKNOWN),
            principal: Arc::clone(&UNKNOWN),
        }
    }

    /// A remote peer whose identity is proven or required; its workload's name is not known.
    pub fn of_identity(identity: &Identity) -> Self {
        Self {
            workload: Arc::clone(&UNKNOWN),
            namespace: identity.namespace().into(),
            principal: identity.to_string().into(),
        }
    }

    /// An enrolled pod of this node.
    pub fn of_workload(workload: &Workload) -> Self {
        Self { workload: workload.name.as_str().into(), ..Self::of_identity(&workload.identity) }
    }
}

/// Istio's `reporter`: which of the two agents tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reporter {
    /// The source's agent: outbound.
    Source,
    /// The destination's agent: inbound.
    Destination,
}

impl From<Direction> for Reporter {
    fn from(direction: Direction) -> Self {
        match direction {
            Direction::Outbound | Direction::Gateway => Self::Source,
            Direction::Inbound => Self::Destination,
        }
    }
}

/// Istio's `request_protocol`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RequestProtocol {
    Tcp,
    Http,
    Grpc,
}

/// What is the same for all connections or requests between two workloads.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TrafficLabels {
    pub reporter: Reporter,
    pub source: PeerLabels,
    pub destination: PeerLabels,
    /// The cluster (outbound) or the workload (inbound); never a `Host` header.
    pub destination_service: Arc<str>,
    pub request_protocol: RequestProtocol,
    pub connection_security_policy: ConnectionSecurity,
}

impl TrafficLabels {
    /// Stands in for label sets beyond the limit, so that totals stay right.
    pub(super) fn overflow(reporter: Reporter, request_protocol: RequestProtocol) -> Self {
        let other: Arc<str> = "overflow".into();
        let peer = PeerLabels {
            workload: Arc::clone(&other),
            namespace: Arc::clone(&other),
            principal: Arc::clone(&other),
        };
        Self {
            reporter,
            source: peer.clone(),
            destination: peer,
            destination_service: other,
            request_protocol,
            connection_security_policy: ConnectionSecurity::None,
        }
    }
}

impl EncodeLabelSet for TrafficLabels {
    fn encode(&self, set: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        let reporter = match self.reporter {
            Reporter::Source => "source",
            Reporter::Destination => "destination",
        };
        let protocol = match self.request_protocol {
            RequestProtocol::Tcp => "tcp",
            RequestProtocol::Http => "http",
            RequestProtocol::Grpc => "grpc",
        };
        let security = match self.connection_security_policy {
            ConnectionSecurity::MutualTls => "mutual_tls",
            ConnectionSecurity::None => "none",
        };
        for (name, value) in [
            ("reporter", reporter),
            ("source_workload", &self.source.workload),
            ("source_workload_namespace", &self.source.namespace),
            ("source_principal", &self.source.principal),
            ("destination_workload", &self.destination.workload),
            ("destination_workload_namespace", &self.destination.namespace),
            ("destination_principal", &self.destination.principal),
            ("destination_service", &self.destination_service),
            ("request_protocol", protocol),
            ("connection_security_policy", security),
        ] {
            (name, value).encode(set.encode_label())?;
        }
        Ok(())
    }
}

impl EncodeLabelValue for ResponseFlags {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        write!(encoder, "{self}")
    }
}

/// One series of `istio_tcp_*`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct TcpSeries {
    pub(super) traffic: Arc<TrafficLabels>,
    pub(super) response_flags: ResponseFlags,
}

impl EncodeLabelSet for TcpSeries {
    fn encode(&self, set: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        self.traffic.encode(set)?;
        ("response_flags", self.response_flags).encode(set.encode_label())
    }
}

/// One series of `istio_request*`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct HttpSeries {
    pub(super) traffic: Arc<TrafficLabels>,
    pub(super) response_code: u16,
    pub(super) response_flags: ResponseFlags,
}

impl EncodeLabelSet for HttpSeries {
    fn encode(&self, set: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        self.traffic.encode(set)?;
        ("response_code", u32::from(self.response_code)).encode(set.encode_label())?;
        ("response_flags", self.response_flags).encode(set.encode_label())
    }
}

/// A label set of one label whose values the agent's own code enumerates.
macro_rules! single_label {
    ($name:ident, $label:literal, $type:ty) => {
        #[derive(Debug, Clone, PartialEq, Eq, Hash)]
        pub(super) struct $name(pub(super) $type);

        impl EncodeLabelSet for $name {
            fn encode(&self, set: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
                ($label, self.0.clone()).encode(set.encode_label())
            }
        }
    };
}

single_label!(ByIdentity, "identity", Arc<str>);
single_label!(ByVerdict, "verdict", Arc<str>);
single_label!(ByCheck, "check", Arc<str>);
single_label!(ByMap, "map", &'static str);
single_label!(ByAccount, "account", &'static str);
single_label!(ByResult, "result", &'static str);
single_label!(ByDirection, "direction", &'static str);
single_label!(ByType, "type", &'static str);
single_label!(ByVersion, "version", &'static str);

/// A direction and what rules said, of a fixed few.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct ByShadow {
    pub(super) direction: &'static str,
    pub(super) result: &'static str,
}

impl EncodeLabelSet for ByShadow {
    fn encode(&self, set: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        ("direction", self.direction).encode(set.encode_label())?;
        ("result", self.result).encode(set.encode_label())
    }
}

/// A direction, a filter, and what it said, of a fixed few.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct ByOrigin {
    pub(super) direction: &'static str,
    pub(super) filter: &'static str,
    pub(super) result: &'static str,
}

impl EncodeLabelSet for ByOrigin {
    fn encode(&self, set: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        ("direction", self.direction).encode(set.encode_label())?;
        ("filter", self.filter).encode(set.encode_label())?;
        ("result", self.result).encode(set.encode_label())
    }
}

/// A direction and a reason; reasons are the code's own words, never a peer's.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct ByReason {
    pub(super) direction: &'static str,
    pub(super) reason: &'static str,
}

impl EncodeLabelSet for ByReason {
    fn encode(&self, set: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        ("direction", self.direction).encode(set.encode_label())?;
        ("reason", self.reason).encode(set.encode_label())
    }
}

/// A category of `drop_overloads`; the control plane's word.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct ByCategory {
    pub(super) category: String,
}

impl EncodeLabelSet for ByCategory {
    fn encode(&self, set: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        ("category", self.category.as_str()).encode(set.encode_label())
    }
}

/// A type of xDS resources, and how a response was answered.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct ByTypeAndResult {
    pub(super) kind: &'static str,
    pub(super) result: &'static str,
}

impl EncodeLabelSet for ByTypeAndResult {
    fn encode(&self, set: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        ("type", self.kind).encode(set.encode_label())?;
        ("result", self.result).encode(set.encode_label())
    }
}

/// A trace, as exemplars name it.
#[derive(Debug, Clone, Copy)]
pub(super) struct TraceId(pub(super) u128);

impl EncodeLabelSet for TraceId {
    fn encode(&self, set: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        ("trace_id", format!("{:032x}", self.0)).encode(set.encode_label())
    }
}

single_label!(ByCluster, "cluster", Arc<str>);

/// A cluster, and one of a fixed few.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct ByClusterAnd {
    pub(super) cluster: Arc<str>,
    pub(super) and: (&'static str, &'static str),
}

impl EncodeLabelSet for ByClusterAnd {
    fn encode(&self, set: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        ("cluster", &*self.cluster).encode(set.encode_label())?;
        self.and.encode(set.encode_label())
    }
}

/// One limit of a cluster's circuit breakers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct ByBreaker {
    pub(super) cluster: Arc<str>,
    pub(super) priority: &'static str,
    pub(super) resource: &'static str,
}

impl EncodeLabelSet for ByBreaker {
    fn encode(&self, set: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        ("cluster", &*self.cluster).encode(set.encode_label())?;
        ("priority", self.priority).encode(set.encode_label())?;
        ("resource", self.resource).encode(set.encode_label())
    }
}
