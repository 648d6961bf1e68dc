//! What a request lacks and may ask for, by what its listener and route allow.

use std::{sync::Arc, time::Duration};

use http::{StatusCode, request::Parts};

use super::reply::Reply;
use crate::{
    model::{
        cluster::ClusterName,
        listener::OnDemand,
        route::{Route, RouteConfiguration},
    },
    observe::flags::ResponseFlag,
    proxy::on_demand::{Sought, Unavailable},
    route::{NoRoute, NoScope, configuration_for},
    snapshot::RouteTable,
};

/// How long a request waits for its virtual host, or its route configuration.
const HOST_PATIENCE: Duration = Duration::from_secs(5);

/// How often one request may ask: configurations that chase each other must not hold it
/// for ever.
const LOOKUPS_MAX: u32 = 4;

/// What one request has asked for.
#[derive(Default)]
pub(super) struct Lookups {
    made: u32,
}

/// Why a request has no route.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum Unrouted {
    #[error("there is no route configuration")]
    NoTable,
    #[error(transparent)]
    Scope(NoScope),
    #[error("{1}")]
    Route(Arc<RouteConfiguration>, NoRoute),
}

impl Unrouted {
    /// Whether `table` has by now what was lacking; `routed` asks a route configuration.
    pub(super) fn is_over(
        &self,
        table: Option<&RouteTable>,
        head: &Parts,
        routed: impl FnOnce(&RouteConfiguration) -> bool,
    ) -> bool {
        let routes = table.and_then(|table| configuration_for(table, head).ok());
        match self {
            Self::NoTable | Self::Scope(_) => routes.is_some(),
            Self::Route(..) => routes.is_some_and(|routes| routed(&routes)),
        }
    }
}

impl Lookups {
    /// The route configuration or virtual host to ask for, and how long; `None`: there is
    /// nothing to ask.
    pub(super) fn route(&mut self, why: &Unrouted, authority: &str) -> Option<(Sought, Duration)> {
        let sought = match why {
            Unrouted::Scope(NoScope::Routes { routes, .. }) => Sought::Routes(Arc::clone(routes)),
            // A slash would name a host of another configuration.
            Unrouted::Route(routes, NoRoute::VirtualHost { .. })
                if routes.vhds && !authority.contains('/') =>
            {
                let name = format!("{}/{}", routes.name, authority.to_ascii_lowercase());
                Sought::VirtualHost(name.into())
            }
            Unrouted::NoTable | Unrouted::Scope(_) | Unrouted::Route(..) => return None,
        };
        self.count()?;
        Some((sought, HOST_PATIENCE))
    }

    /// The cluster to ask for, and how long; `None`: there is nothing to ask.
    pub(super) fn cluster(
        &mut self,
        own: &OnDemand,
        route: &Route,
        cluster: &ClusterName,
    ) -> Option<(Sought, Duration)> {
        let clusters = route.on_demand.map_or(own.clusters, |route| route.clusters)?;
        self.count()?;
        Some((Sought::Cluster(Arc::clone(&cluster.0)), clusters.timeout))
    }

    fn count(&mut self) -> Option<()> {
        self.made = Some(self.made + 1).filter(|made| *made <= LOOKUPS_MAX)?;
        Some(())
    }
}

/// The answer where it did not come: as without asking, unless the agent did not ask.
pub(super) fn not_obtained(why: Unavailable, reply: Reply) -> Reply {
    if why != Unavailable::Full {
        return reply;
    }
    let flag = Some(ResponseFlag::OverloadManager);
    let details = format!("on-demand discovery: {why}");
    Reply::new(StatusCode::SERVICE_UNAVAILABLE, "", flag, details)
}
