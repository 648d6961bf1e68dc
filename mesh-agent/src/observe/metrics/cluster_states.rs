//! How clusters are when somebody looks: nothing of it is kept, all of it is read from who
//! knows.

use std::{collections::BTreeMap, fmt, iter, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet},
    metrics::MetricType,
};

use super::{
    clusters::{CLUSTERS_MAX, ClusterMetrics, OVERFLOW},
    labels::{ByBreaker, ByCluster, ByClusterAnd},
};
use crate::model::cluster::ClusterName;

/// What ejections were for, in the order of [`EndpointStates::ejections`].
pub const EJECTION_REASONS: [&str; 5] = [
    "consecutive_5xx",
    "consecutive_gateway_failure",
    "consecutive_local_origin_failure",
    "success_rate",
    "failure_percentage",
];

/// What circuit breakers limit, in the order of [`BreakerState`].
const RESOURCES: [&str; 4] = ["connections", "pending_requests", "requests", "retries"];

/// A cluster's endpoints.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EndpointStates {
    pub healthy: u64,
    pub degraded: u64,
    pub unhealthy: u64,
    /// Of the unhealthy ones.
    pub ejected: u64,
    /// Since the cluster is known; `None`: nobody is ever ejected.
    pub ejections: Option<[u64; EJECTION_REASONS.len()]>,
    /// A priority's traffic goes to all of its endpoints, or to none.
    pub panic: bool,
}

/// One pod's circuit breakers of a cluster. Connections are those of HTTP/1.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BreakerState {
    pub high: bool,
    pub used: [u64; RESOURCES.len()],
    pub max: [u64; RESOURCES.len()],
}

/// Who knows how clusters are. Asked at each scrape; must not block.
pub struct ClusterStates {
    pub endpoints: Box<dyn Fn() -> Vec<(ClusterName, EndpointStates)> + Send + Sync>,
    pub breakers: Box<dyn Fn() -> Vec<(ClusterName, BreakerState)> + Send + Sync>,
}

impl fmt::Debug for ClusterStates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterStates").finish_non_exhaustive()
    }
}

impl EndpointStates {
    fn add(&mut self, other: &Self) {
        self.healthy += other.healthy;
        self.degraded += other.degraded;
        self.unhealthy += other.unhealthy;
        self.ejected += other.ejected;
        self.panic |= other.panic;
        if let Some(ejections) = &other.ejections {
            let own = self.ejections.get_or_insert_default();
            own.iter_mut().zip(ejections).for_each(|(own, other)| *own += other);
        }
    }
}

/// The breakers of one priority, of all pods.
#[derive(Debug, Clone, Copy)]
struct Resource {
    used: u64,
    /// Of the pod that has least.
    remaining: u64,
}

/// What is shown of one cluster.
#[derive(Debug, Default)]
struct Shown {
    connections: Option<u64>,
    endpoints: Option<EndpointStates>,
    /// By whether the priority is high.
    breakers: [Option<[Resource; RESOURCES.len()]>; 2],
}

impl Shown {
    fn breaker(&mut self, state: &BreakerState) {
        let breaker = &mut self.breakers[usize::from(state.high)];
        let empty = [Resource { used: 0, remaining: u64::MAX }; RESOURCES.len()];
        let of = breaker.get_or_insert(empty);
        for (own, (used, max)) in of.iter_mut().zip(state.used.iter().zip(&state.max)) {
            own.used += used;
            own.remaining = own.remaining.min(max.saturating_sub(*used));
        }
    }

    /// Of both priorities.
    fn used(&self, resource: usize) -> Option<u64> {
        let of = |breaker: &[Resource; RESOURCES.len()]| breaker.get(resource).map(|of| of.used);
        let used = self.breakers.iter().flatten().filter_map(of);
        used.reduce(|one, other| one + other)
    }
}

type Table = BTreeMap<Arc<str>, Shown>;

/// Tells of all clusters at each scrape.
#[derive(Debug)]
pub(super) struct States(pub(super) ClusterMetrics);

impl States {
    fn table(&self) -> Table {
        let open = self.0.open_connections().into_iter();
        let mut table: Table = open
            .map(|(name, open)| (name, Shown { connections: Some(open), ..Shown::default() }))
            .collect();
        let Some(ClusterStates { endpoints, breakers }) = self.0.states() else { return table };
        let mut endpoints = endpoints();
        // Always the same ones, where they are too many.
        endpoints.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        for (name, states) in &endpoints {
            shown(&mut table, name).endpoints.get_or_insert_default().add(states);
        }
        for (name, state) in &breakers() {
            shown(&mut table, name).breaker(state);
        }
        table
    }
}

fn shown<'a>(table: &'a mut Table, name: &ClusterName) -> &'a mut Shown {
    let own = table.contains_key(&name.0) || table.len() < CLUSTERS_MAX;
    let name = if own { Arc::clone(&name.0) } else { OVERFLOW.into() };
    table.entry(name).or_default()
}

impl Collector for States {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let table = self.table();
        let by_cluster = |of: &dyn Fn(&Shown) -> Option<u64>| -> Vec<_> {
            let known = table.iter().filter_map(|(name, shown)| Some((name, of(shown)?)));
            known.map(|(name, value)| (ByCluster(Arc::clone(name)), value)).collect()
        };
        let endpoints = |of: fn(&EndpointStates) -> u64| {
            by_cluster(&move |shown| shown.endpoints.as_ref().map(of))
        };
        let out = &mut encoder;
        gauges(
            out,
            ("mesh_cluster_active_connections", "Connections to endpoints that are open"),
            by_cluster(&|shown| shown.connections),
        )?;
        for (name, help, resource) in [
            ("mesh_cluster_active_requests", "Requests on their way to endpoints", 2),
            ("mesh_cluster_pending_requests", "Requests that wait for a connection", 1),
            ("mesh_cluster_active_retries", "Requests that are being sent again", 3),
        ] {
            gauges(out, (name, help), by_cluster(&|shown| shown.used(resource)))?;
        }
        let by_health = table.iter().flat_map(|(name, shown)| {
            let of = |states: &EndpointStates| {
                let EndpointStates { healthy, degraded, unhealthy, .. } = *states;
                [("healthy", healthy), ("degraded", degraded), ("unhealthy", unhealthy)]
            };
            let states = shown.endpoints.as_ref().map(of).into_iter().flatten();
            states.map(|(health, count)| (and(name, ("health", health)), count))
        });
        gauges(out, ("mesh_cluster_endpoints", "Endpoints, by health"), by_health)?;
        gauges(
            out,
            ("mesh_cluster_ejected_endpoints", "Endpoints that outlier detection has ejected"),
            endpoints(|states| states.ejected),
        )?;
        gauges(
            out,
            (
                "mesh_cluster_panic",
                "1 while too few endpoints of a priority are well for their health to count",
            ),
            endpoints(|states| u64::from(states.panic)),
        )?;
        let breakers = |of: fn(Resource) -> u64| {
            table.iter().flat_map(move |(name, shown)| {
                let by_priority = ["default", "high"].into_iter().zip(&shown.breakers);
                by_priority.filter_map(|(p, of)| Some((p, of.as_ref()?))).flat_map(
                    move |(priority, resources)| {
                        RESOURCES.into_iter().zip(resources).map(move |(resource, state)| {
                            let cluster = Arc::clone(name);
                            (ByBreaker { cluster, priority, resource }, of(*state))
                        })
                    },
                )
            })
        };
        gauges(
            out,
            (
                "mesh_cluster_circuit_breaker_open",
                "1 while a pod has as much on its way as it may have",
            ),
            breakers(|resource| u64::from(resource.remaining == 0)),
        )?;
        gauges(
            out,
            (
                "mesh_cluster_circuit_breaker_remaining",
                "How much more may be on its way, of the pod that has least left",
            ),
            breakers(|resource| resource.remaining),
        )?;
        let ejections = table.iter().flat_map(|(name, shown)| {
            let of = shown.endpoints.as_ref().and_then(|states| states.ejections);
            let of = of.into_iter().flat_map(|of| EJECTION_REASONS.into_iter().zip(of));
            of.map(|(reason, count)| (and(name, ("reason", reason)), count))
        });
        let (name, help) =
            ("mesh_cluster_ejections", "Ejections of endpoints by outlier detection, by reason");
        family(out, MetricType::Counter, (name, help), ejections)
    }
}

fn and(cluster: &Arc<str>, and: (&'static str, &'static str)) -> ByClusterAnd {
    ByClusterAnd { cluster: Arc::clone(cluster), and }
}

fn gauges<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    named: (&str, &str),
    values: impl IntoIterator<Item = (L, u64)>,
) -> Result<(), fmt::Error> {
    family(encoder, MetricType::Gauge, named, values)
}

fn family<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    kind: MetricType,
    (name, help): (&str, &str),
    values: impl IntoIterator<Item = (L, u64)>,
) -> Result<(), fmt::Error> {
    let mut values = values.into_iter();
    // One without samples is not declared.
    let Some(first) = values.next() else { return Ok(()) };
    let mut family = encoder.encode_descriptor(name, help, None, kind)?;
    for (labels, value) in iter::once(first).chain(values) {
        let mut sample = family.encode_family(&labels)?;
        match kind {
            MetricType::Counter => sample.encode_counter::<NoLabelSet, _, f64>(&value, None)?,
            _ => sample.encode_gauge(&i64::try_from(value).unwrap_or(i64::MAX))?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use prometheus_client::{encoding::text, registry::Registry};

    use super::*;

    fn exposed(endpoints: Vec<(ClusterName, EndpointStates)>) -> String {
        let metrics = ClusterMetrics::default();
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let state = |used, max| BreakerState { high: false, used: [0, 1, used, 0], max: [max; 4] };
        metrics.show(ClusterStates {
            endpoints: Box::new(move || endpoints.clone()),
            breakers: Box::new(move || {
                let one = ClusterName("c0".into());
                let high = BreakerState { high: true, ..state(1, 9) };
                vec![(one.clone(), state(2, 9)), (one.clone(), state(5, 5)), (one, high)]
            }),
        });
        let mut out = String::new();
        text::encode(&mut out, &registry).unwrap();
        out
    }

    fn assert_lines(text: &str, lines: &[&str]) {
        for line in lines {
            assert!(text.lines().any(|known| known == *line), "{line}\n{text}");
        }
    }

    #[test]
    fn clusters_are_told_of_as_they_are() {
        let states = EndpointStates {
            healthy: 1,
            degraded: 2,
            unhealthy: 3,
            ejected: 2,
            ejections: Some([4, 0, 0, 0, 1]),
            panic: true,
        };
        let calm = EndpointStates { healthy: 1, ..EndpointStates::default() };
        let text =
            exposed(vec![(ClusterName("c0".into()), states), (ClusterName("calm".into()), calm)]);
        assert_lines(
            &text,
            &[
                r#"mesh_cluster_active_requests{cluster="c0"} 8"#,
                r#"mesh_cluster_pending_requests{cluster="c0"} 3"#,
                r#"mesh_cluster_active_retries{cluster="c0"} 0"#,
                r#"mesh_cluster_endpoints{cluster="c0",health="healthy"} 1"#,
                r#"mesh_cluster_endpoints{cluster="c0",health="degraded"} 2"#,
                r#"mesh_cluster_endpoints{cluster="c0",health="unhealthy"} 3"#,
                r#"mesh_cluster_ejected_endpoints{cluster="c0"} 2"#,
                r#"mesh_cluster_ejections_total{cluster="c0",reason="consecutive_5xx"} 4"#,
                r#"mesh_cluster_ejections_total{cluster="c0",reason="failure_percentage"} 1"#,
                r#"mesh_cluster_panic{cluster="c0"} 1"#,
                r#"mesh_cluster_panic{cluster="calm"} 0"#,
                r#"mesh_cluster_circuit_breaker_open{cluster="c0",priority="default",resource="requests"} 1"#,
                r#"mesh_cluster_circuit_breaker_open{cluster="c0",priority="high",resource="requests"} 0"#,
                r#"mesh_cluster_circuit_breaker_open{cluster="c0",priority="default",resource="retries"} 0"#,
                r#"mesh_cluster_circuit_breaker_remaining{cluster="c0",priority="default",resource="requests"} 0"#,
                r#"mesh_cluster_circuit_breaker_remaining{cluster="c0",priority="default",resource="pending_requests"} 4"#,
                r#"mesh_cluster_circuit_breaker_remaining{cluster="c0",priority="high",resource="requests"} 8"#,
            ],
        );
        assert!(!text.contains(r#"mesh_cluster_ejections_total{cluster="calm""#), "{text}");
    }

    #[test]
    fn clusters_beyond_the_limit_are_told_of_together() {
        let one = EndpointStates { healthy: 1, ..EndpointStates::default() };
        let names = (0..CLUSTERS_MAX + 5).map(|n| ClusterName(format!("c{n:05}").into()));
        let text = exposed(names.map(|name| (name, one.clone())).collect());
        assert_lines(
            &text,
            &[
                r#"mesh_cluster_endpoints{cluster="overflow",health="healthy"} 5"#,
                r#"mesh_cluster_endpoints{cluster="c01023",health="healthy"} 1"#,
                // It is none of the first.
                r#"mesh_cluster_active_requests{cluster="overflow"} 8"#,
            ],
        );
        let clusters = |line: &&str| line.starts_with("mesh_cluster_endpoints{");
        assert_eq!(text.lines().filter(clusters).count(), (CLUSTERS_MAX + 1) * 3);
    }
}
