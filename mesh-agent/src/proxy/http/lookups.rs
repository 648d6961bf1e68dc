//! What a request lacks and may ask for, by what its listener and route allow.

use std::{sync::Arc, time::Duration};

use http::StatusCode;

use super::reply::Reply;
use crate::{
    model::{
        listener::HttpConnectionManager,
        route::{Route, RouteConfiguration},
    },
    observe::flags::ResponseFlag,
    proxy::on_demand::{Sought, Unavailable},
    route::{NoDestination, NoRoute, NoScope},
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

impl Lookups {
    /// The route configuration to ask for, and how long; `None`: there is nothing to ask.
    pub(super) fn routes(
        &mut self,
        http: &HttpConnectionManager,
        error: &NoScope,
    ) -> Option<(Sought, Duration)> {
        let NoScope::Routes { routes, .. } = error else { return None };
        http.on_demand?;
        if self.made >= LOOKUPS_MAX {
            return None;
        }
        self.made += 1;
        Some((Sought::Routes(Arc::clone(routes)), HOST_PATIENCE))
    }

    /// The virtual host to ask for, and how long; `None`: there is nothing to ask.
    pub(super) fn host(
        &mut self,
        http: &HttpConnectionManager,
        routes: &RouteConfiguration,
        error: &NoRoute,
        authority: &str,
    ) -> Option<(Sought, Duration)> {
        let allowed = routes.vhds && http.on_demand.is_some();
        let lacks_host = matches!(error, NoRoute::VirtualHost { .. });
        // A slash would name a host of another configuration.
        if !allowed || !lacks_host || authority.contains('/') || self.made >= LOOKUPS_MAX {
            return None;
        }
        self.made += 1;
        let name = format!("{}/{}", routes.name, authority.to_ascii_lowercase());
        Some((Sought::VirtualHost(name.into()), HOST_PATIENCE))
    }

    /// The cluster to ask for, and how long; `None`: there is nothing to ask.
    pub(super) fn cluster(
        &mut self,
        http: &HttpConnectionManager,
        route: &Route,
        error: &NoDestination,
    ) -> Option<(Sought, Duration)> {
        let NoDestination::UnknownCluster { cluster } = error else { return None };
        let listeners = http.on_demand?;
        let clusters = route.on_demand.map_or(listeners.clusters, |own| own.clusters)?;
        if self.made >= LOOKUPS_MAX {
            return None;
        }
        self.made += 1;
        Some((Sought::Cluster(Arc::clone(&cluster.0)), clusters.timeout))
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
