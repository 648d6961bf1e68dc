//! Zone-aware routing: traffic stays where it comes from, as far as endpoints there can
//! bear it.

use serde::Serialize;

use super::{ClusterName, Place};

/// Spec: `envoy.extensions.load_balancing_policies.common.v3.LocalityLbConfig.ZoneAwareLbConfig`,
/// `envoy.config.cluster.v3.Cluster.CommonLbConfig.ZoneAwareLbConfig`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ZoneAware {
    /// Of the traffic, in percent.
    pub routing_enabled: u8,
    /// With fewer healthy endpoints there is none.
    pub min_cluster_size: u64,
    /// With so many healthy endpoints of the own zone all of it stays there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub force_local_zone: Option<u32>,
    /// Zones are compared by the weights of their endpoints, not by their number.
    pub by_weight: bool,
}

impl Default for ZoneAware {
    /// Envoy's.
    fn default() -> Self {
        Self { routing_enabled: 100, min_cluster_size: 6, force_local_zone: None, by_weight: false }
    }
}

/// Where traffic comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalCluster {
    /// Whose endpoints, of priority 0, send as this node does.
    ///
    /// Spec: `envoy.config.bootstrap.v3.ClusterManager.local_cluster_name`.
    pub name: ClusterName,
    /// Where this node is. `None`: nobody knows, and no traffic stays anywhere.
    pub place: Option<Place>,
}
