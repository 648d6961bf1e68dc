//! From a permit to a destination: the last step before a connection is dialled.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use super::lb::{self, At, Balancers, Choice, LoadGuard, Reporter};
use crate::{
    model::{
        cluster::{
            CircuitBreakers, Cluster, ClusterName, ConnectionLimits, Discovery, Endpoint, Tunnel,
            UpstreamProtocol,
        },
        identity::Identity,
        listener::{Direction, TcpProxy, TerminalFilter, WeightedCluster},
        secret::SecretKind,
        socket_match::ClusterTls,
        tls::TlsOrigination,
        workload::WorkloadUid,
    },
    policy::{Permit, RequestPermit},
    snapshot::Snapshot,
};

/// How long a dial may take where no cluster says. Envoy's default.
const PASSTHROUGH_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Where to, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The address the connection itself asked for, in the clear: inbound the
    /// application, outbound passthrough to what is no workload of the mesh.
    OriginalDestination { address: SocketAddr },
    /// An endpoint, in the clear.
    Direct { endpoint: Arc<Endpoint> },
    /// An endpoint by HBONE to port 15008 of its address, which has to prove `identity`.
    Hbone { endpoint: Arc<Endpoint>, identity: Identity, workload: Option<WorkloadUid> },
}

/// What `proxy` may dial. Made by the `decide_*` functions only, each of which asks
/// for the permit; counts as one connection or request in flight until it is dropped.
#[derive(Debug)]
pub struct Destination {
    target: Target,
    cluster: Option<ClusterName>,
    connect_timeout: Duration,
    upstream_protocol: UpstreamProtocol,
    connection_limits: ConnectionLimits,
    circuit_breakers: Option<Arc<CircuitBreakers>>,
    tls: Option<TlsOrigination>,
    load: LoadGuard,
}

impl Destination {
    /// Where to, and how.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// The application's address: what is dialled, or with HBONE the `:authority`.
    pub fn address(&self) -> SocketAddr {
        match &self.target {
            Target::OriginalDestination { address } => *address,
            Target::Direct { endpoint } | Target::Hbone { endpoint, .. } => endpoint.address,
        }
    }

    /// What the endpoint is called, where it has a name.
    pub fn hostname(&self) -> Option<&Arc<str>> {
        match &self.target {
            Target::OriginalDestination { .. } => None,
            Target::Direct { endpoint } | Target::Hbone { endpoint, .. } => {
                endpoint.hostname.as_ref()
            }
        }
    }

    /// The cluster; `None` for passthrough.
    pub fn cluster(&self) -> Option<&ClusterName> {
        self.cluster.as_ref()
    }

    /// Bounds dial and handshakes together.
    pub fn connect_timeout(&self) -> Duration {
        self.connect_timeout
    }

    /// What HTTP speaks there.
    pub fn upstream_protocol(&self) -> UpstreamProtocol {
        self.upstream_protocol
    }

    /// How much may be on its way there; `None`: there is no limit.
    pub fn circuit_breakers(&self) -> Option<&CircuitBreakers> {
        self.circuit_breakers.as_deref()
    }

    /// How long HTTP connections there are used.
    pub fn connection_limits(&self) -> ConnectionLimits {
        self.connection_limits
    }

    /// TLS to speak there; never together with HBONE.
    pub fn tls(&self) -> Option<&TlsOrigination> {
        self.tls.as_ref()
    }

    /// Where to tell how it went.
    pub fn reporter(&self) -> Reporter {
        self.load.reporter()
    }

    /// Keeps the in-flight count alone, for whoever outlives the destination.
    pub fn into_load(self) -> LoadGuard {
        self.load
    }
}

/// Why there is nothing to dial.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoDestination {
    /// The filter chain or route names no cluster with a weight.
    #[error("no cluster has a weight")]
    NoCluster,
    /// A cluster that the snapshot does not have.
    #[error("there is no cluster `{cluster}`")]
    UnknownCluster { cluster: ClusterName },
    /// The cluster has no endpoint that may take traffic.
    #[error("cluster `{cluster}` has no healthy endpoint")]
    NoHealthyEndpoint { cluster: ClusterName },
    /// The control plane has some of the cluster's traffic dropped.
    #[error("cluster `{cluster}` is overloaded: dropped by category `{category}`")]
    DropOverload {
        cluster: ClusterName,
        category: Arc<str>,
        /// The category drops everything.
        unconditional: bool,
    },
    /// The permit is for something else: another filter chain, or one that judges
    /// requests, or none. A mistake in `proxy`, caught before it dials.
    #[error("the permit for {destination} is for filter chain `{chain}`, not for this")]
    NotPermitted { destination: SocketAddr, chain: Arc<str> },
}

impl NoDestination {
    /// Envoy's response flag.
    pub fn flag(&self) -> &'static str {
        match self {
            Self::NoCluster | Self::NotPermitted { .. } => "NR",
            Self::UnknownCluster { .. } => "NC",
            Self::NoHealthyEndpoint { .. } => "UH",
            Self::DropOverload { unconditional: false, .. } => "DO",
            Self::DropOverload { unconditional: true, .. } => "UDO",
        }
    }

    /// The cluster, where one was chosen.
    pub fn cluster(&self) -> Option<&ClusterName> {
        match self {
            Self::UnknownCluster { cluster }
            | Self::NoHealthyEndpoint { cluster }
            | Self::DropOverload { cluster, .. } => Some(cluster),
            Self::NoCluster | Self::NotPermitted { .. } => None,
        }
    }
}

/// For a connection that no listener is for: its original destination, by HBONE where
/// that is a workload of the mesh.
///
/// # Errors
/// [`NoDestination::NotPermitted`] where there is a filter chain after all.
pub fn decide_passthrough(
    permit: &Permit,
    snapshot: &Snapshot,
) -> Result<Destination, NoDestination> {
    match permit.flow().chain() {
        Some(_) => Err(not_permitted(permit)),
        None => Ok(Destination {
            target: original_destination(permit, snapshot),
            cluster: None,
            connect_timeout: PASSTHROUGH_CONNECT_TIMEOUT,
            upstream_protocol: UpstreamProtocol::SameAsDownstream,
            connection_limits: ConnectionLimits::default(),
            circuit_breakers: None,
            tls: None,
            load: LoadGuard::default(),
        }),
    }
}

/// For a connection that is proxied as opaque bytes. `proxy` is what the filter chain
/// of the permit's flow ends in. `random(n)` is a uniformly random number below `n`;
/// it is never called with 0. `now` tells whether endpoints are stale.
///
/// # Errors
/// No cluster, or no endpoint; or `proxy` is another chain's.
pub fn decide_tcp(
    permit: &Permit,
    proxy: &TcpProxy,
    snapshot: &Snapshot,
    balancers: &Balancers,
    random: &mut impl FnMut(u32) -> u32,
    now: Instant,
) -> Result<Destination, NoDestination> {
    match permit.flow().terminal() {
        Some(TerminalFilter::TcpProxy(own)) if std::ptr::eq(&raw const **own, proxy) => {
            let named = permit.flow().sni_cluster().map(|name| ClusterName(name.into()));
            let cluster = named.as_ref().or_else(|| choose_cluster(&proxy.clusters, random));
            decide(permit, cluster, Choice::default(), snapshot, balancers, random, now)
        }
        _ => Err(not_permitted(permit)),
    }
}

fn not_permitted(permit: &Permit) -> NoDestination {
    let chain = permit.flow().chain().map(|chain| Arc::clone(&chain.name));
    NoDestination::NotPermitted {
        destination: permit.flow().original_destination(),
        chain: chain.unwrap_or_default(),
    }
}

/// For one HTTP request on a permitted connection, whose route leads to `cluster`.
/// `random` and `now` as for [`decide_tcp`].
///
/// # Errors
/// No cluster, or no endpoint.
#[expect(clippy::too_many_arguments, reason = "what a decision goes by")]
pub fn decide_request(
    _request: &RequestPermit,
    permit: &Permit,
    cluster: Option<&ClusterName>,
    choice: Choice<'_>,
    snapshot: &Snapshot,
    balancers: &Balancers,
    random: &mut impl FnMut(u32) -> u32,
    now: Instant,
) -> Result<Destination, NoDestination> {
    decide(permit, cluster, choice, snapshot, balancers, random, now)
}

/// For a request of a filter's own, such as one that asks whether a request may pass. It goes
/// out from the permit's pod, whichever way the connection goes that it is about, and never
/// to that connection's original destination. `random` and `now` as for [`decide_tcp`].
///
/// # Errors
/// No cluster, or no endpoint.
pub fn decide_call(
    permit: &Permit,
    cluster: &ClusterName,
    snapshot: &Snapshot,
    balancers: &Balancers,
    random: &mut impl FnMut(u32) -> u32,
    now: Instant,
) -> Result<Destination, NoDestination> {
    let discovery = snapshot.cluster(cluster).map(|cluster| &cluster.discovery);
    if let Some(Discovery::OriginalDestination) = discovery {
        return Err(NoDestination::NoHealthyEndpoint { cluster: cluster.clone() });
    }
    decide(permit, Some(cluster), Choice::default(), snapshot, balancers, random, now)
}

/// For a health check of `endpoint`, which is for nobody's request: made by the agent, from
/// its own network namespace, and without any workload's identity. `None`: an endpoint that
/// is not reached without one, or that would be the node itself.
pub fn decide_check(
    snapshot: &Snapshot,
    cluster: &ClusterName,
    endpoint: &Arc<Endpoint>,
) -> Option<Destination> {
    let cluster = snapshot.cluster(cluster)?;
    let own = |address: SocketAddr| address.ip().to_canonical().is_loopback();
    let elsewhere = endpoint.check.as_ref().and_then(|check| check.address);
    if endpoint.tunnel != Tunnel::Direct || own(elsewhere.unwrap_or(endpoint.address)) {
        return None;
    }
    Some(Destination {
        target: Target::Direct { endpoint: Arc::clone(endpoint) },
        cluster: Some(cluster.name.clone()),
        connect_timeout: cluster.connect_timeout,
        upstream_protocol: cluster.upstream_protocol,
        connection_limits: cluster.connection_limits,
        circuit_breakers: None,
        tls: originate(cluster, Some(endpoint), snapshot),
        load: LoadGuard::default(),
    })
}

fn decide(
    permit: &Permit,
    cluster: Option<&ClusterName>,
    choice: Choice<'_>,
    snapshot: &Snapshot,
    balancers: &Balancers,
    random: &mut impl FnMut(u32) -> u32,
    now: Instant,
) -> Result<Destination, NoDestination> {
    let name = cluster.ok_or(NoDestination::NoCluster)?;
    let unknown = || NoDestination::UnknownCluster { cluster: name.clone() };
    let cluster = snapshot.cluster(name).ok_or_else(unknown)?;
    let (target, load) = match &cluster.discovery {
        // Its clients asked for the gateway itself, or for what a PROXY header says.
        Discovery::OriginalDestination if permit.flow().direction() == Direction::Gateway => {
            return Err(NoDestination::NoHealthyEndpoint { cluster: name.clone() });
        }
        Discovery::OriginalDestination => {
            (original_destination(permit, snapshot), LoadGuard::default())
        }
        Discovery::Static(_) | Discovery::Eds { .. } | Discovery::Dns(_) => {
            let assignment = snapshot.assignment(cluster);
            let assignment = assignment.filter(|a| a.stale_at.is_none_or(|stale| now < stale));
            if let Some(drop) = assignment.as_deref().and_then(|a| lb::dropped(a, random)) {
                return Err(NoDestination::DropOverload {
                    cluster: name.clone(),
                    category: Arc::clone(&drop.category),
                    unconditional: drop.is_unconditional(),
                });
            }
            let at = At { now, runtime: &snapshot.runtime };
            let picked = assignment.and_then(|a| balancers.pick(cluster, &a, choice, at, random));
            let none = || NoDestination::NoHealthyEndpoint { cluster: name.clone() };
            let (endpoint, load) = picked.ok_or_else(none)?;
            (reach(endpoint), load)
        }
    };
    let Cluster { connect_timeout, upstream_protocol, connection_limits, .. } = **cluster;
    let tls = match &target {
        // The endpoint's metadata chose another transport than the cluster's own.
        Target::Hbone { .. } => None,
        Target::Direct { endpoint } => originate(cluster, Some(endpoint), snapshot),
        Target::OriginalDestination { .. } => originate(cluster, None, snapshot),
    };
    Ok(Destination {
        target,
        tls,
        cluster: Some(name.clone()),
        connect_timeout,
        upstream_protocol,
        connection_limits,
        circuit_breakers: Some(Arc::clone(&cluster.circuit_breakers)),
        load,
    })
}

/// TLS as the cluster wants it, with the secrets of this version.
fn originate(
    cluster: &Cluster,
    endpoint: Option<&Endpoint>,
    snapshot: &Snapshot,
) -> Option<TlsOrigination> {
    let ClusterTls { place, settings } = cluster.tls_to(endpoint)?;
    let (mut certificate, mut validation) = (None, None);
    for secret in settings.secret_names().filter_map(|name| snapshot.secrets.get(name)) {
        match &secret.kind {
            SecretKind::TlsCertificate(material) => certificate = Some(Arc::clone(material)),
            SecretKind::ValidationContext(context) => validation = Some(Arc::clone(context)),
        }
    }
    let (cluster, settings) = (cluster.name.clone(), Arc::clone(settings));
    Some(TlsOrigination { cluster, place, settings, certificate, validation })
}

/// What a pod sends to a workload of the mesh never leaves in the clear, also where it
/// asks for the workload's own address and not for that of a service.
fn original_destination(permit: &Permit, snapshot: &Snapshot) -> Target {
    let address = permit.flow().original_destination();
    let workload = match permit.flow().direction() {
        Direction::Outbound | Direction::Gateway => snapshot.workloads.tunnel(address),
        Direction::Inbound => None,
    };
    // Who asks for an address does not ask for one of its names.
    let unnamed = |endpoint: Arc<Endpoint>| match endpoint.hostname {
        Some(_) => Arc::new(Endpoint { hostname: None, ..Endpoint::clone(&endpoint) }),
        None => endpoint,
    };
    workload.map(unnamed).map_or(Target::OriginalDestination { address }, reach)
}

fn reach(endpoint: Arc<Endpoint>) -> Target {
    match endpoint.tunnel.clone() {
        Tunnel::Direct => Target::Direct { endpoint },
        Tunnel::Hbone { identity, workload } => Target::Hbone { endpoint, identity, workload },
    }
}

fn choose_cluster<'a>(
    clusters: &'a [WeightedCluster],
    random: &mut impl FnMut(u32) -> u32,
) -> Option<&'a ClusterName> {
    if let [only] = clusters {
        return (only.weight > 0).then_some(&only.cluster);
    }
    let total = clusters.iter().map(|entry| u64::from(entry.weight)).sum();
    let mut left = lb::random_below(total, random)?;
    for WeightedCluster { cluster, weight } in clusters {
        match left.checked_sub(u64::from(*weight)) {
            Some(rest) => left = rest,
            None => return Some(cluster),
        }
    }
    None
}

#[cfg(test)]
mod tests;
