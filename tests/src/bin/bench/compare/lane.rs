//! A lane: one contender in one place, ready to be driven.

use std::{collections::BTreeMap, net::SocketAddr};

use tests::{Pod, Process};

use super::workload::{Port, Workload};

/// Whether contenders are made alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Settings {
    /// The same key exchange, cipher, certificates, logging.
    Equal,
    /// What somebody gets who installs it and changes nothing.
    AsShipped,
}

/// Where client and server are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// On two nodes.
    Across,
    /// On one.
    Same,
}

impl Place {
    pub(crate) const ALL: [Self; 2] = [Self::Across, Self::Same];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Across => "across",
            Self::Same => "same-node",
        }
    }

    /// The node of the server; the client is on 1.
    pub(crate) fn server_node(self) -> u8 {
        match self {
            Self::Across => 2,
            Self::Same => 1,
        }
    }
}

/// Who is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contender {
    NoMesh,
    /// A pair of sidecars, HTTP with RBAC.
    EnvoyHttp,
    /// A pair of sidecars, TCP with RBAC.
    EnvoyTcp,
    /// One hop of a lean proxy, without TLS or policy: what a hop costs at least.
    HaProxy,
    /// Each request judged and routed.
    L7,
    /// The same with `redirect_peer`: on one node within one agent.
    L7Redirect,
    /// Connections judged; on one node by the kernel path.
    L4,
    /// The kernel path with `redirect_peer`.
    Redirect,
    /// The kernel path with `splice`.
    Splice,
    /// What the kernel path would take, by the agent all the same.
    Proxied,
    /// The same, with `splice` between the applications and the agent.
    ProxiedSplice,
    /// Each request judged and routed, with `splice` between the applications and the agents.
    L7Splice,
}

impl Contender {
    pub(crate) const ALL: [Self; 12] = [
        Self::NoMesh,
        Self::EnvoyHttp,
        Self::EnvoyTcp,
        Self::HaProxy,
        Self::L7,
        Self::L7Redirect,
        Self::L4,
        Self::Redirect,
        Self::Splice,
        Self::Proxied,
        Self::ProxiedSplice,
        Self::L7Splice,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::NoMesh => "no-mesh",
            Self::EnvoyHttp => "envoy-http",
            Self::EnvoyTcp => "envoy-tcp",
            Self::HaProxy => "haproxy",
            Self::L7 => "mesh-l7",
            Self::L7Redirect => "mesh-l7-redirect",
            Self::L4 => "mesh-l4",
            Self::Redirect => "mesh-l4-redirect",
            Self::Splice => "mesh-l4-splice",
            Self::Proxied => "mesh-l4-proxied",
            Self::ProxiedSplice => "mesh-l4-proxied-splice",
            Self::L7Splice => "mesh-l7-splice",
        }
    }

    /// Whether it is one of ours.
    pub(crate) fn is_mesh(self) -> bool {
        !matches!(self, Self::NoMesh | Self::EnvoyHttp | Self::EnvoyTcp | Self::HaProxy)
    }

    /// Whether requests are judged and routed by the agents.
    pub(crate) fn is_l7(self) -> bool {
        matches!(self, Self::L7 | Self::L7Redirect | Self::L7Splice)
    }

    /// Whether its pods have `splice` turned on.
    pub(crate) fn splices(self) -> bool {
        matches!(self, Self::Splice | Self::ProxiedSplice | Self::L7Splice)
    }

    /// Whether its pods have `redirect_peer` turned on.
    pub(crate) fn redirects(self) -> bool {
        matches!(self, Self::Redirect | Self::L7Redirect)
    }

    /// Whether the kernel path takes it on one node.
    pub(crate) fn by_kernel(self) -> bool {
        matches!(self, Self::L4 | Self::Redirect | Self::Splice)
    }

    /// Whether it is there at all in that place.
    pub(crate) fn is_in(self, place: Place) -> bool {
        use Contender::{L7Redirect, Proxied, ProxiedSplice, Redirect, Splice};
        let here = matches!(self, L7Redirect | Redirect | Splice | Proxied | ProxiedSplice);
        place == Place::Same || !here
    }

    /// Whether it is what somebody gets who changes no setting.
    pub(crate) fn is_as_shipped(self) -> bool {
        use Contender::{L7Redirect, L7Splice, Proxied, ProxiedSplice, Redirect, Splice};
        !matches!(self, L7Redirect | Redirect | Splice | Proxied | ProxiedSplice | L7Splice)
    }

    /// Part of the short run.
    pub(crate) fn is_quick(self, place: Place) -> bool {
        match self {
            Self::HaProxy | Self::Splice | Self::Proxied | Self::ProxiedSplice | Self::L7Splice => {
                false
            }
            Self::EnvoyHttp | Self::EnvoyTcp => place == Place::Across,
            Self::NoMesh | Self::L7 | Self::L7Redirect | Self::L4 | Self::Redirect => true,
        }
    }

    /// Whether it carries a port's protocol.
    pub(crate) fn carries(self, port: Port) -> bool {
        port.is_http() || !(self.is_l7() || matches!(self, Self::EnvoyHttp | Self::HaProxy))
    }
}

/// The name of a contender's lane.
pub(crate) fn lane_name(contender: &str, place: Place) -> String {
    format!("{contender}/{}", place.name())
}

/// One contender in one place.
#[derive(Debug)]
pub(crate) struct Lane {
    /// `contender/place`.
    pub(crate) name: String,
    pub(crate) client: Pod,
    /// What to dial.
    pub(crate) targets: BTreeMap<Port, SocketAddr>,
    /// The proxies that are this lane's alone.
    pub(crate) proxies: Vec<Process>,
    /// Whether the node agents work for it.
    pub(crate) by_agents: bool,
}

impl Lane {
    pub(crate) fn takes(&self, load: &Workload) -> bool {
        self.targets.contains_key(&load.port)
    }
}
