//! What went wrong, whose fault it was, and what the outside is told.

use std::{error::Error, io};

use super::listener_filters::Stopped;
use crate::{
    identity::{self, upstream::UpstreamTlsError},
    model::cluster::ClusterName,
    observe::flags::ResponseFlag,
    policy::{Denied, FlowError, Revoked},
    route::NoDestination,
    transport::{
        dial::DialError,
        hbone::{HboneError, HboneFailure},
    },
};

/// The end of a connection or request that did not go as it should. Access log,
/// metrics and HTTP status read this and nothing else.
#[derive(Debug)]
pub struct Failure {
    /// Envoy's response flag.
    pub flag: ResponseFlag,
    /// A constant name of the cause, for a metric's label.
    pub reason: &'static str,
    /// The policy that denied, if one did.
    pub policy: Option<String>,
    /// The whole story in one line, causes included.
    pub detail: String,
    /// What the transport upstream said, in Envoy's words where it has some.
    pub transport: Option<String>,
}

impl Failure {
    fn new(flag: ResponseFlag, reason: &'static str, error: &(dyn Error + 'static)) -> Self {
        Self { flag, reason, policy: None, detail: story(error), transport: None }
    }

    /// No certificate to present: nothing may be dialled or accepted.
    pub fn no_certificate(error: &identity::IdentityError) -> Self {
        Self::new(ResponseFlag::UpstreamConnectionFailure, "no_certificate", error)
    }

    /// A connection that must speak TLS was about to be used in the clear. A mistake in
    /// `proxy`, caught before a byte is sent.
    pub(super) fn no_tls(cluster: &ClusterName) -> Self {
        Self {
            flag: ResponseFlag::UpstreamConnectionFailure,
            reason: "no_tls",
            policy: None,
            detail: format!("a connection of cluster `{cluster}` without its TLS"),
            transport: None,
        }
    }

    /// Whether policy, not the network, is the cause.
    pub fn is_denial(&self) -> bool {
        self.flag == ResponseFlag::Denied
    }
}

/// Policy changed and no longer lets the connection live.
pub(super) fn revoked(revoked: Revoked) -> Failure {
    let mut failure = Failure::from(revoked);
    failure.detail.insert_str(0, "connection cut after a change of configuration: ");
    failure
}

/// The agent ended the connection: it drains, or somebody asked for it.
pub(super) fn cut() -> Failure {
    Failure {
        flag: ResponseFlag::DurationTimeout,
        reason: "cut",
        policy: None,
        detail: "cut by the agent".to_owned(),
        transport: None,
    }
}

/// The connection's listener or filter chain is gone or another one, and its time to end
/// by itself is over.
pub(super) fn drained() -> Failure {
    Failure {
        flag: ResponseFlag::DurationTimeout,
        reason: "drained",
        policy: None,
        detail: "cut at the drain timeout: its listener or filter chain was removed or changed"
            .to_owned(),
        transport: None,
    }
}

/// Nobody knows whether an application's bytes are TCP's: they cannot be served.
pub(super) fn unknown_leg(error: &io::Error) -> Failure {
    let flag = ResponseFlag::DownstreamConnectionTermination;
    Failure::new(flag, "unknown_leg", error)
}

/// The listener filters have closed the connection, or seen it close.
pub(super) fn not_inspected(stopped: Stopped) -> Failure {
    let (flag, detail) = match stopped {
        Stopped::Gone => (
            ResponseFlag::DownstreamConnectionTermination,
            "closed by the client before the listener filters were done",
        ),
        Stopped::Refused(why) => (ResponseFlag::DownstreamProtocolError, why),
    };
    let (reason, detail) = ("listener_filter", detail.to_owned());
    Failure { flag, reason, policy: None, detail, transport: None }
}

/// Why a TLS handshake failed: a constant name for a metric's label, and the story.
pub(super) fn handshake(error: &io::Error) -> (&'static str, String) {
    match (identity::refusal(error), identity::refused_by_peer(error)) {
        (Some(refused), _) => (refused.reason(), refused.to_string()),
        (None, Some(alert)) => ("refused_by_peer", alert.to_string()),
        (None, None) => ("tls", story(error)),
    }
}

/// An error with its causes, `outer: inner: innermost`, leaving out what an outer
/// message says already.
pub fn story(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.ends_with(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        next = cause.source();
    }
    text
}

impl From<FlowError> for Failure {
    fn from(error: FlowError) -> Self {
        let (flag, reason) = match &error {
            FlowError::NoListener { .. } | FlowError::NoGateway { .. } => {
                (ResponseFlag::NoRouteFound, "no_listener")
            }
            FlowError::NoFilterChain { .. } => (ResponseFlag::NoRouteFound, "no_filter_chain"),
            FlowError::NotInspected { .. } => (ResponseFlag::NoRouteFound, "not_inspected"),
            FlowError::PlaintextRefused { .. } => (ResponseFlag::Denied, "plaintext_refused"),
            FlowError::NotThisWorkload { .. } => (ResponseFlag::NoRouteFound, "not_this_workload"),
            FlowError::AgentPort { .. } => (ResponseFlag::NoRouteFound, "agent_port"),
        };
        Self::new(flag, reason, &error)
    }
}

impl From<Denied> for Failure {
    fn from(denied: Denied) -> Self {
        Self {
            policy: denied.policy().map(str::to_owned),
            ..Self::new(ResponseFlag::Denied, denied.reason().as_str(), &denied)
        }
    }
}

impl From<Revoked> for Failure {
    fn from(revoked: Revoked) -> Self {
        match revoked {
            Revoked::Flow(error) => error.into(),
            Revoked::Denied(denied) => denied.into(),
        }
    }
}

impl From<NoDestination> for Failure {
    fn from(error: NoDestination) -> Self {
        let (flag, reason) = match &error {
            NoDestination::NoCluster => (ResponseFlag::NoRouteFound, "no_cluster"),
            NoDestination::NotPermitted { .. } => (ResponseFlag::NoRouteFound, "not_permitted"),
            NoDestination::UnknownCluster { .. } => {
                (ResponseFlag::NoClusterFound, "unknown_cluster")
            }
            NoDestination::NoHealthyEndpoint { .. } => {
                (ResponseFlag::NoHealthyUpstream, "no_healthy_endpoint")
            }
            NoDestination::DropOverload { unconditional: false, .. } => {
                (ResponseFlag::DropOverload, "drop_overload")
            }
            NoDestination::DropOverload { unconditional: true, .. } => {
                (ResponseFlag::UnconditionalDropOverload, "unconditional_drop_overload")
            }
        };
        Self::new(flag, reason, &error)
    }
}

impl From<DialError> for Failure {
    fn from(error: DialError) -> Self {
        let transport = error.transport_failure();
        let flag = ResponseFlag::UpstreamConnectionFailure;
        Self { transport, ..Self::new(flag, "dial_failed", &error) }
    }
}

impl From<&UpstreamTlsError> for Failure {
    fn from(error: &UpstreamTlsError) -> Self {
        let reason = match error {
            UpstreamTlsError::NoSecret { .. } => "no_secret",
            _ => "no_tls",
        };
        Self::new(ResponseFlag::UpstreamConnectionFailure, reason, error)
    }
}

impl From<HboneError> for Failure {
    fn from(error: HboneError) -> Self {
        let reason = match error.failure() {
            HboneFailure::Handshake(_) | HboneFailure::Alpn => "tls_handshake_failed",
            HboneFailure::Refused { .. } => "refused_by_destination",
            HboneFailure::Timeout { .. } => "connect_timeout",
            _ => "hbone_failed",
        };
        let mut failure = Self::new(ResponseFlag::UpstreamConnectionFailure, reason, &error);
        if let HboneFailure::Handshake(cause) = error.failure() {
            // In our words: rustls shows who was refused as a debug dump.
            let (_, why) = handshake(cause);
            failure.detail = format!("{error}: {why}");
            failure.transport = Some(format!("TLS error: {why}"));
        }
        failure
    }
}
