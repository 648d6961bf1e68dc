//! From a captured connection to the listener and filter chain that judge it.
//!
//! Comes from `capture` (or an accepted HBONE stream), goes on to
//! [`authorize`](super::authorize::authorize).

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ipnet::IpNet;
use mesh_common::abi::{HBONE_PORT, INBOUND_PORT, OUTBOUND_PORT};
use serde::{Deserialize, Serialize};

use crate::{
    model::{
        captured::{
            AcceptedByGateway, CapturedInbound, CapturedOutbound, GatewayPeer, InboundPeer, Pod,
            TlsSession,
        },
        identity::Identity,
        listener::{
            Direction, FilterChain, Listener, NetworkFilter, SourceType, TerminalFilter,
            TransportProtocol,
        },
        listener_filter::Inspected,
        workload::{MtlsMode, WorkloadUid},
    },
    snapshot::Snapshot,
};

/// The agent's own ports in every pod: outbound, inbound plaintext, HBONE. The BPF
/// programs refuse them first; this holds for what gets here another way, such as an
/// HBONE `:authority`.
const AGENT_PORTS: [u16; 3] = [OUTBOUND_PORT, INBOUND_PORT, HBONE_PORT];

/// What becomes of an outbound connection that no listener is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum OutboundPolicy {
    /// It is passed through to its original destination, in the clear. The default.
    #[default]
    AllowAny,
    /// It is refused.
    RegistryOnly,
}

/// Why a connection has no filter chain to judge it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FlowError {
    /// Outbound, registry only.
    #[error(
        "no outbound listener is for {destination}, which {identity} at {source_address} asked for, and the outbound policy is registry-only"
    )]
    NoListener { identity: Identity, source_address: SocketAddr, destination: SocketAddr },
    /// The gateway listener that took it is gone.
    #[error("the gateway listener that took {source_address} -> {destination} is gone")]
    NoGateway { source_address: SocketAddr, destination: SocketAddr },
    /// The listener has neither a chain that matches nor a default one.
    #[error("no filter chain of listener `{listener}` matches {source_address} -> {destination}")]
    NoFilterChain { listener: Arc<str>, source_address: SocketAddr, destination: SocketAddr },
    /// The listener chooses by what the connection said first, and nobody has looked while
    /// that was to be seen.
    #[error(
        "listener `{listener}` looks at the first bytes of {source_address} -> {destination}, which have gone by"
    )]
    NotInspected { listener: Arc<str>, source_address: SocketAddr, destination: SocketAddr },
    /// Nobody vouches for the peer and neither the workload nor the port takes that.
    #[error(
        "plaintext from {source_address} to {destination} of {identity} is refused: mTLS is strict"
    )]
    PlaintextRefused { identity: Identity, source_address: SocketAddr, destination: SocketAddr },
    /// An HBONE `:authority` or packet for an address the pod does not have.
    #[error(
        "{destination}, asked for by {source_address}, is not an address of workload {workload}"
    )]
    NotThisWorkload { workload: WorkloadUid, source_address: SocketAddr, destination: SocketAddr },
    /// The connection would lead back into the agent.
    #[error(
        "{destination}, asked for by {source_address}, is the agent's own port in workload {workload}"
    )]
    AgentPort { workload: WorkloadUid, source_address: SocketAddr, destination: SocketAddr },
}

impl FlowError {
    /// Envoy's response flag.
    pub fn flag(&self) -> &'static str {
        match self {
            Self::NoListener { .. }
            | Self::NoGateway { .. }
            | Self::NoFilterChain { .. }
            | Self::NotInspected { .. } => "NR",
            Self::PlaintextRefused { .. }
            | Self::NotThisWorkload { .. }
            | Self::AgentPort { .. } => "UAEX",
        }
    }

    /// For a metric's label: lower case, stable.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::NoListener { .. } | Self::NoGateway { .. } => "no_listener",
            Self::NoFilterChain { .. } => "no_filter_chain",
            Self::NotInspected { .. } => "not_inspected",
            Self::PlaintextRefused { .. } => "plaintext_refused",
            Self::NotThisWorkload { .. } => "not_this_workload",
            Self::AgentPort { .. } => "agent_port",
        }
    }
}

#[derive(Debug, Clone)]
enum Captured {
    Outbound(CapturedOutbound),
    Inbound(CapturedInbound),
    Gateway(Arc<AcceptedByGateway>),
}

/// The listener for what a local pod has asked for.
pub fn outbound_listener<'a>(
    captured: &CapturedOutbound,
    snapshot: &'a Snapshot,
) -> Option<&'a Arc<Listener>> {
    let destination = canonical(captured.original_destination);
    snapshot.listeners.select(Direction::Outbound, destination)
}

/// The listener whose socket has this address.
pub fn gateway_listener(bound: SocketAddr, snapshot: &Snapshot) -> Option<&Arc<Listener>> {
    snapshot.listeners.select(Direction::Gateway, bound)
}

/// A captured connection and the filter chain that is to judge it.
#[derive(Debug, Clone)]
pub struct Flow {
    captured: Captured,
    /// The source's proven names, of an identity the URI SAN, formatted once.
    principals: Arc<[Arc<str>]>,
    /// Both or none; none is passthrough.
    chosen: Option<(Arc<Listener>, Arc<FilterChain>)>,
}

impl Flow {
    /// A connection that a local pod opened.
    ///
    /// # Errors
    /// It leads to the agent itself, or has no listener or filter chain.
    pub fn outbound(
        mut captured: CapturedOutbound,
        snapshot: &Snapshot,
        policy: OutboundPolicy,
    ) -> Result<Self, FlowError> {
        let source = canonical(captured.source);
        let destination = canonical(captured.original_destination);
        (captured.source, captured.original_destination) = (source, destination);
        let workload = &captured.pod.workload;
        let ip = destination.ip();
        // Connecting to the unspecified address is connecting to oneself.
        let own = workload.owns(ip) || ip.is_loopback() || ip.is_unspecified();
        if own && AGENT_PORTS.contains(&destination.port()) {
            let workload = workload.uid.clone();
            return Err(FlowError::AgentPort { workload, source_address: source, destination });
        }
        let chosen = match outbound_listener(&captured, snapshot) {
            Some(listener) => {
                let traits = Traits::new(source, destination, &captured.inspected);
                Some(choose_chain(listener, &traits)?)
            }
            None if policy == OutboundPolicy::AllowAny => None,
            None => {
                let identity = workload.identity.clone();
                let source_address = source;
                return Err(FlowError::NoListener { identity, source_address, destination });
            }
        };
        let principals = Arc::new([workload.identity.to_string().into()]);
        Ok(Self { captured: Captured::Outbound(captured), principals, chosen })
    }

    /// A connection that arrived for a local pod.
    ///
    /// # Errors
    /// It is not for the workload or for the agent itself, it is plaintext where
    /// that is not taken, or it has no filter chain.
    pub fn inbound(mut captured: CapturedInbound, snapshot: &Snapshot) -> Result<Self, FlowError> {
        let source_address = canonical(captured.source);
        let destination = canonical(captured.original_destination);
        (captured.source, captured.original_destination) = (source_address, destination);
        let workload = &captured.pod.workload;
        if !workload.owns(destination.ip()) {
            let workload = workload.uid.clone();
            return Err(FlowError::NotThisWorkload { workload, source_address, destination });
        }
        if AGENT_PORTS.contains(&destination.port()) {
            let workload = workload.uid.clone();
            return Err(FlowError::AgentPort { workload, source_address, destination });
        }
        let transport = match captured.peer {
            InboundPeer::Mtls(_) => TransportProtocol::Tls,
            InboundPeer::Plaintext => TransportProtocol::RawBuffer,
        };
        let strict = workload.mtls != MtlsMode::Permissive;
        let refused = || FlowError::PlaintextRefused {
            identity: workload.identity.clone(),
            source_address,
            destination,
        };
        let plaintext = transport == TransportProtocol::RawBuffer;
        let chosen = match snapshot.listeners.select(Direction::Inbound, destination) {
            Some(listener) => {
                let inspected = Inspected { transport, ..Inspected::default() };
                match choose_chain(listener, &Traits::new(source_address, destination, &inspected))
                {
                    Ok(chosen) => Some(chosen),
                    // Strict mTLS says more than that there is no chain for plaintext.
                    Err(_) if plaintext && strict => return Err(refused()),
                    Err(error) => return Err(error),
                }
            }
            None => None,
        };
        let asked_for = chosen.as_ref().and_then(|(_, chain)| chain.matches.transport_protocol);
        if plaintext && strict && asked_for != Some(TransportProtocol::RawBuffer) {
            return Err(refused());
        }
        let principal = captured.peer.identity().map(|identity| identity.to_string().into());
        let principals = principal.into_iter().collect();
        Ok(Self { captured: Captured::Inbound(captured), principals, chosen })
    }

    /// A connection that a gateway listener took, its chain's TLS terminated: see
    /// [`gateway_chain`].
    ///
    /// # Errors
    /// There is no listener or filter chain for it, or one that wants TLS and there is
    /// none, or the other way round.
    pub fn gateway(
        accepted: Arc<AcceptedByGateway>,
        snapshot: &Snapshot,
    ) -> Result<Self, FlowError> {
        let (listener, chain) = gateway_chain(&accepted, snapshot)?;
        if chain.tls.is_some() != accepted.peer.is_tls() {
            return Err(FlowError::NoFilterChain {
                listener: Arc::clone(&listener.name),
                source_address: accepted.source,
                destination: accepted.original_destination,
            });
        }
        let principals = match &accepted.peer {
            GatewayPeer::Plaintext => Arc::new([]),
            GatewayPeer::Tls { names, .. } => Arc::clone(names),
        };
        let chosen = Some((listener, chain));
        Ok(Self { captured: Captured::Gateway(accepted), principals, chosen })
    }

    /// The same connection against another snapshot.
    pub(super) fn again(
        &self,
        snapshot: &Snapshot,
        policy: OutboundPolicy,
    ) -> Result<Self, FlowError> {
        match &self.captured {
            Captured::Outbound(captured) => Self::outbound(captured.clone(), snapshot, policy),
            Captured::Inbound(captured) => Self::inbound(captured.clone(), snapshot),
            Captured::Gateway(accepted) => Self::gateway(Arc::clone(accepted), snapshot),
        }
    }

    /// Relative to the local workload.
    pub fn direction(&self) -> Direction {
        match self.captured {
            Captured::Outbound(_) => Direction::Outbound,
            Captured::Inbound(_) => Direction::Inbound,
            Captured::Gateway(_) => Direction::Gateway,
        }
    }

    /// The local pod: the source of an outbound flow, the destination of an inbound one,
    /// the gateway itself.
    pub fn pod(&self) -> &Arc<Pod> {
        match &self.captured {
            Captured::Outbound(captured) => &captured.pod,
            Captured::Inbound(captured) => &captured.pod,
            Captured::Gateway(accepted) => &accepted.pod,
        }
    }

    /// Where the connection comes from. Never IPv4-mapped IPv6.
    pub fn source(&self) -> SocketAddr {
        match &self.captured {
            Captured::Outbound(captured) => captured.source,
            Captured::Inbound(captured) => captured.source,
            Captured::Gateway(accepted) => accepted.source,
        }
    }

    /// [`Flow::source`], whatever the PROXY protocol says.
    pub fn direct_source(&self) -> SocketAddr {
        match &self.captured {
            Captured::Gateway(accepted) => accepted.direct_source,
            Captured::Outbound(_) | Captured::Inbound(_) => self.source(),
        }
    }

    /// Whether the client itself speaks TLS, which a gateway has terminated.
    pub fn is_secure(&self) -> bool {
        matches!(&self.captured, Captured::Gateway(accepted) if accepted.peer.is_tls())
    }

    /// The TLS that a gateway's client came by.
    pub fn tls(&self) -> Option<&TlsSession> {
        let Captured::Gateway(accepted) = &self.captured else { return None };
        match &accepted.peer {
            GatewayPeer::Tls { session, .. } => Some(session),
            GatewayPeer::Plaintext => None,
        }
    }

    /// The SNI; `None` where there is none or nobody looked.
    pub fn requested_server_name(&self) -> Option<&str> {
        let inspected = match &self.captured {
            Captured::Outbound(captured) => &captured.inspected,
            Captured::Inbound(_) => return None,
            Captured::Gateway(accepted) => match &accepted.peer {
                GatewayPeer::Tls { server_name: Some(name), .. } => return Some(name),
                _ => &accepted.inspected,
            },
        };
        inspected.server_name.as_deref()
    }

    /// The cluster that the client has named, where the chain has it choose.
    pub fn sni_cluster(&self) -> Option<&str> {
        let chain = self.chain()?;
        let chooses = chain.filters.iter().any(|of| matches!(of, NetworkFilter::SniCluster));
        self.requested_server_name().filter(|_| chooses)
    }

    /// What was asked for. Never IPv4-mapped IPv6.
    pub fn original_destination(&self) -> SocketAddr {
        match &self.captured {
            Captured::Outbound(captured) => captured.original_destination,
            Captured::Inbound(captured) => captured.original_destination,
            Captured::Gateway(accepted) => accepted.original_destination,
        }
    }

    /// Who opened the connection: the pod that dialled, or the identity that mTLS
    /// proved; `None` for plaintext that arrived, and for a gateway's client that is no
    /// workload.
    pub fn source_identity(&self) -> Option<&Identity> {
        match &self.captured {
            Captured::Outbound(captured) => Some(&captured.pod.workload.identity),
            Captured::Inbound(captured) => captured.peer.identity(),
            Captured::Gateway(accepted) => match &accepted.peer {
                GatewayPeer::Tls { identity, .. } => identity.as_ref(),
                GatewayPeer::Plaintext => None,
            },
        }
    }

    /// [`Flow::source_identity`] as its URI SAN; of a gateway's client, the first name that
    /// its certificate proves.
    pub fn source_principal(&self) -> Option<&str> {
        self.principals.first().map(|name| &**name)
    }

    /// Every name that was proven.
    pub(super) fn principals(&self) -> &[Arc<str>] {
        &self.principals
    }

    /// How an inbound connection arrived; `None` for others.
    pub fn peer(&self) -> Option<&InboundPeer> {
        match &self.captured {
            Captured::Outbound(_) | Captured::Gateway(_) => None,
            Captured::Inbound(captured) => Some(&captured.peer),
        }
    }

    /// The listener that was selected; `None` for passthrough.
    pub fn listener(&self) -> Option<&Arc<Listener>> {
        self.chosen.as_ref().map(|(listener, _)| listener)
    }

    /// The filter chain that was selected; `None` for passthrough.
    pub fn chain(&self) -> Option<&Arc<FilterChain>> {
        self.chosen.as_ref().map(|(_, chain)| chain)
    }

    /// What the chain ends in; `None` for passthrough.
    pub fn terminal(&self) -> Option<&TerminalFilter> {
        self.chain().map(|chain| &chain.terminal)
    }
}

/// `<identity> at <source> -> <original destination>`, for logs and errors.
impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let identity = self.source_principal().unwrap_or("unauthenticated peer");
        write!(f, "{identity} at {} -> {}", self.source(), self.original_destination())
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The listener and filter chain for what a gateway's socket took, as far as it is known
/// before its TLS.
///
/// # Errors
/// There is none.
pub fn gateway_chain(
    accepted: &AcceptedByGateway,
    snapshot: &Snapshot,
) -> Result<(Arc<Listener>, Arc<FilterChain>), FlowError> {
    let AcceptedByGateway { bound, source, original_destination, .. } = accepted;
    let Some(listener) = gateway_listener(*bound, snapshot) else {
        let (source_address, destination) = (*source, *original_destination);
        return Err(FlowError::NoGateway { source_address, destination });
    };
    let traits = Traits {
        direct_source: accepted.direct_source.ip(),
        ..Traits::new(*source, *original_destination, &accepted.inspected)
    };
    choose_chain(listener, &traits)
}

/// What a connection is, to choose a filter chain by.
struct Traits<'a> {
    source: SocketAddr,
    direct_source: IpAddr,
    destination: SocketAddr,
    inspected: &'a Inspected,
}

impl<'a> Traits<'a> {
    fn new(source: SocketAddr, destination: SocketAddr, inspected: &'a Inspected) -> Self {
        Self { source, direct_source: source.ip(), destination, inspected }
    }
}

/// Narrows the chains down criterion by criterion in Envoy's order, each time
/// keeping those with the most specific value that matches. There is no way back:
/// a chain for the port hides every chain without one, whatever comes after.
///
/// Spec: `envoy.config.listener.v3.FilterChainMatch`, "The following order applies".
fn choose_chain(
    listener: &Arc<Listener>,
    traits: &Traits<'_>,
) -> Result<(Arc<Listener>, Arc<FilterChain>), FlowError> {
    if !listener.listener_filters.are_done(traits.inspected) {
        return Err(FlowError::NotInspected {
            listener: Arc::clone(&listener.name),
            source_address: traits.source,
            destination: traits.destination,
        });
    }
    let chain = narrow(&listener.filter_chains, traits).or(listener.default_filter_chain.as_ref());
    match chain {
        Some(chain) => Ok((Arc::clone(listener), Arc::clone(chain))),
        None => Err(FlowError::NoFilterChain {
            listener: Arc::clone(&listener.name),
            source_address: traits.source,
            destination: traits.destination,
        }),
    }
}

/// How many criteria there are.
const CRITERIA: usize = 9;

/// One criterion: how specifically a chain asks for what the connection is, or
/// `None` where it asks for something else.
type Criterion<'a> = &'a dyn Fn(&FilterChain) -> Option<u16>;

fn narrow<'a>(chains: &'a [Arc<FilterChain>], is: &Traits<'_>) -> Option<&'a Arc<FilterChain>> {
    let said = is.inspected;
    let criteria: [Criterion<'_>; CRITERIA] = [
        &|c| exact(c.matches.destination_port.as_slice(), &is.destination.port()),
        &|c| longest(&c.matches.prefix_ranges, is.destination.ip()),
        &|c| server_name(&c.matches.server_names, said.server_name.as_deref().unwrap_or("")),
        &|c| exact(c.matches.transport_protocol.as_slice(), &said.transport),
        &|c| any_of(&c.matches.application_protocols, &said.application_protocols),
        &|c| longest(&c.matches.direct_source_prefix_ranges, is.direct_source),
        &|c| source_type(c.matches.source_type, is),
        &|c| longest(&c.matches.source_prefix_ranges, is.source.ip()),
        &|c| exact(&c.matches.source_ports, &is.source.port()),
    ];
    let mut kept = [None; CRITERIA];
    for (i, criterion) in criteria.iter().enumerate() {
        // The best value among the chains that every criterion so far has kept.
        let left = chains.iter().filter(|chain| is_kept(chain, &criteria[..i], &kept));
        kept[i] = Some(left.filter_map(|chain| criterion(chain)).max()?);
    }
    chains.iter().find(|chain| is_kept(chain, &criteria, &kept))
}

fn is_kept(
    chain: &FilterChain,
    criteria: &[Criterion<'_>],
    kept: &[Option<u16>; CRITERIA],
) -> bool {
    criteria.iter().zip(kept).all(|(criterion, kept)| criterion(chain) == *kept)
}

/// 0 for "any", 1 for the value itself.
fn exact<T: PartialEq>(wanted: &[T], is: &T) -> Option<u16> {
    if wanted.is_empty() { Some(0) } else { wanted.contains(is).then_some(1) }
}

/// As [`exact`], where the connection may be several things: what it would rather be is
/// more specific.
fn any_of(wanted: &[Arc<str>], is: &[Arc<str>]) -> Option<u16> {
    if wanted.is_empty() {
        return Some(0);
    }
    let preferred = is.iter().position(|one| wanted.contains(one))?;
    u16::try_from(preferred).ok().map(|at| u16::MAX - at).filter(|value| *value > 0)
}

/// The length of the longest prefix; none at all is the same as `/0`.
fn longest(ranges: &[IpNet], ip: IpAddr) -> Option<u16> {
    if ranges.is_empty() {
        return Some(0);
    }
    let lengths = ranges.iter().filter(|range| range.contains(&ip)).map(IpNet::prefix_len);
    lengths.max().map(u16::from)
}

/// The name itself first, then the longest suffix.
fn server_name(wanted: &[Arc<str>], is: &str) -> Option<u16> {
    if wanted.is_empty() {
        return Some(0);
    }
    let specificity = |name: &Arc<str>| match name.strip_prefix('*') {
        // `.example.com` of `*.example.com`: at least one more label.
        Some(suffix) if is.len() > suffix.len() && is.ends_with(suffix) => {
            u16::try_from(suffix.len()).ok()
        }
        Some(_) => None,
        None => (**name == *is).then_some(u16::MAX),
    };
    wanted.iter().filter_map(specificity).max()
}

fn source_type(wanted: SourceType, is: &Traits<'_>) -> Option<u16> {
    let source = is.source.ip();
    let local = source.is_loopback() || source == is.destination.ip();
    match (wanted, local) {
        (SourceType::Any, _) => Some(0),
        (SourceType::SameIpOrLoopback, true) | (SourceType::External, false) => Some(1),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
