//! Which endpoints of a cluster are spoken to in another way than the rest.
//!
//! Spec: `envoy.config.cluster.v3.Cluster.TransportSocketMatch`.

use std::sync::Arc;

use serde::Serialize;

use super::{
    cluster::{Cluster, Endpoint},
    tls::UpstreamTls,
};

/// What metadata says under `envoy.transport_socket_match`.
pub type Labels = serde_json::Map<String, serde_json::Value>;

#[derive(Debug, Clone, Serialize)]
pub struct TransportSocketMatch {
    pub name: Arc<str>,
    /// All of these an endpoint must have, or its locality; none: any has.
    pub labels: Labels,
    /// `None`: in the clear.
    pub tls: Option<Arc<UpstreamTls>>,
}

/// The labels of an endpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SocketLabels {
    pub own: Labels,
    /// Those of its locality: looked at where nothing matches its own.
    pub locality: Labels,
    /// What subsets go by: its own under `envoy.lb`.
    pub lb: Labels,
}

/// TLS of one of a cluster's transport sockets.
#[derive(Debug, Clone, Copy)]
pub struct ClusterTls<'a> {
    /// Which of the cluster's matches it is of; `None`: its own `transport_socket`.
    pub place: Option<usize>,
    pub settings: &'a Arc<UpstreamTls>,
}

impl Cluster {
    /// How an endpoint is spoken to that is not reached by HBONE; `None`: in the clear. A
    /// destination that is no endpoint has no labels.
    pub fn tls_to(&self, endpoint: Option<&Endpoint>) -> Option<ClusterTls<'_>> {
        let labels = endpoint.and_then(|endpoint| endpoint.labels.as_deref());
        let matched = self.matched(|labels| &labels.own, labels);
        match matched.or_else(|| self.matched(|labels| &labels.locality, labels)) {
            Some(place) => self.tls_at(Some(place)),
            None => self.tls_at(None),
        }
    }

    /// Every TLS it may speak.
    pub fn all_tls(&self) -> impl Iterator<Item = ClusterTls<'_>> {
        let places = 0..self.socket_matches.len();
        let places = std::iter::once(None).chain(places.map(Some));
        places.filter_map(|place| self.tls_at(place))
    }

    /// The TLS at a [`ClusterTls::place`].
    pub fn tls_at(&self, place: Option<usize>) -> Option<ClusterTls<'_>> {
        let settings = match place {
            None => self.tls.as_ref(),
            Some(place) => self.socket_matches.get(place)?.tls.as_ref(),
        };
        settings.map(|settings| ClusterTls { place, settings })
    }

    fn matched(
        &self,
        whose: impl Fn(&SocketLabels) -> &Labels,
        labels: Option<&SocketLabels>,
    ) -> Option<usize> {
        let labels = labels.map(whose);
        let has = |(name, value)| labels.and_then(|labels| labels.get(name)) == Some(value);
        self.socket_matches.iter().position(|socket| socket.labels.iter().all(has))
    }
}
