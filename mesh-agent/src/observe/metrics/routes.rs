//! Requests that went by a route or a virtual cluster that has a name for its statistics.

use std::{fmt, sync::Arc};

use http::StatusCode;
use prometheus_client::{
    encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder},
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use super::{
    clusters::CLASSES,
    table::{Entry, SHARED, Table},
};

/// The most routes and virtual clusters that have series of their own.
const NAMES_MAX: usize = 1024;
/// There was no response.
const NONE: &str = "none";

/// What is counted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RouteKey {
    pub virtual_host: Arc<str>,
    pub of: RouteOrCluster,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum RouteOrCluster {
    /// A route's `stat_prefix`.
    Route(Arc<str>),
    VirtualCluster(Arc<str>),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Series {
    key: RouteKey,
    class: &'static str,
}

impl EncodeLabelSet for Series {
    fn encode(&self, set: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        let (label, name) = match &self.key.of {
            RouteOrCluster::Route(name) => ("route", name),
            RouteOrCluster::VirtualCluster(name) => ("virtual_cluster", name),
        };
        ("virtual_host", &*self.key.virtual_host).encode(set.encode_label())?;
        (label, &**name).encode(set.encode_label())?;
        ("response_class", self.class).encode(set.encode_label())
    }
}

/// Cheap to clone.
#[derive(Clone)]
pub struct RouteMetrics(Arc<Inner>);

struct Inner {
    routes: Family<Series, Counter>,
    clusters: Family<Series, Counter>,
    known: Table<RouteKey, Classes>,
}

/// The last one is of requests without a response.
type Classes = [Counter; CLASSES.len() + 1];

/// One route's, or one virtual cluster's.
pub struct OfRoute(Arc<Entry<Classes>>);

impl OfRoute {
    /// A request ended; `None`: before there was a response.
    pub fn ended(&self, status: Option<StatusCode>) {
        let class = status
            .map_or(CLASSES.len(), |status| usize::from(status.as_u16() / 100).saturating_sub(1));
        if let Some(counter) = self.0.value.get(class.min(CLASSES.len())) {
            counter.inc();
        }
    }
}

impl Default for RouteMetrics {
    fn default() -> Self {
        let (routes, clusters) = (Family::default(), Family::default());
        Self(Arc::new(Inner { routes, clusters, known: Table::new(NAMES_MAX) }))
    }
}

impl fmt::Debug for RouteMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RouteMetrics").finish_non_exhaustive()
    }
}

fn classes() -> impl Iterator<Item = &'static str> {
    CLASSES.into_iter().chain([NONE])
}

impl RouteMetrics {
    pub(super) fn register(&self, r: &mut Registry) {
        let Inner { routes, clusters, .. } = &*self.0;
        r.register(
            "mesh_route_requests",
            "Requests that went by a route with a `stat_prefix`, by class of the response",
            routes.clone(),
        );
        r.register(
            "mesh_virtual_cluster_requests",
            "Requests of a virtual cluster, by class of the response",
            clusters.clone(),
        );
    }

    /// Where requests of `key` are counted.
    pub fn of(&self, key: &RouteKey) -> OfRoute {
        let overflow = || {
            let all = || Arc::clone(&SHARED);
            let of = match &key.of {
                RouteOrCluster::Route(_) => RouteOrCluster::Route(all()),
                RouteOrCluster::VirtualCluster(_) => RouteOrCluster::VirtualCluster(all()),
            };
            RouteKey { virtual_host: all(), of }
        };
        let family = |key: &RouteKey| match key.of {
            RouteOrCluster::Route(_) => &self.0.routes,
            RouteOrCluster::VirtualCluster(_) => &self.0.clusters,
        };
        let make = |key: &RouteKey| {
            let series = |class| Series { key: key.clone(), class };
            let [a, b, c, d, e] = CLASSES;
            [a, b, c, d, e, NONE].map(|class| family(key).get_or_create_owned(&series(class)))
        };
        let forget = |key: &RouteKey| {
            for class in classes() {
                family(key).remove(&Series { key: key.clone(), class });
            }
        };
        OfRoute(self.0.known.of(key, overflow, make, forget))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_and_virtual_clusters_are_counted_by_class_and_are_not_without_end() {
        let metrics = RouteMetrics::default();
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let key = |of| RouteKey { virtual_host: "h".into(), of };
        let route = |n: usize| key(RouteOrCluster::Route(format!("r{n}").into()));
        for status in [Some(200), Some(404), Some(999), None] {
            let status = status.map(|status| StatusCode::from_u16(status).unwrap());
            metrics.of(&route(1)).ended(status);
        }
        let other = key(RouteOrCluster::VirtualCluster("r1".into()));
        metrics.of(&other).ended(Some(StatusCode::OK));
        for n in 2..NAMES_MAX + 3 {
            metrics.of(&route(n)).ended(Some(StatusCode::OK));
        }
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            r#"mesh_route_requests_total{virtual_host="h",route="r1",response_class="2xx"} 1"#,
            r#"mesh_route_requests_total{virtual_host="h",route="r1",response_class="4xx"} 1"#,
            // 999 is of no class.
            r#"mesh_route_requests_total{virtual_host="h",route="r1",response_class="none"} 2"#,
            r#"mesh_virtual_cluster_requests_total{virtual_host="h",virtual_cluster="r1",response_class="2xx"} 1"#,
            r#"mesh_route_requests_total{virtual_host="overflow",route="overflow",response_class="2xx"} 3"#,
        ] {
            assert!(text.lines().any(|known| known == line), "{line}\n{text}");
        }
    }
}
