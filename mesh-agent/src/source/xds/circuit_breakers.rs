//! How much may be on its way to a cluster.
//!
//! Spec: `envoy/config/cluster/v3/circuit_breaker.proto`.

use envoy_types::pb::envoy::{
    config::{
        cluster::v3::{
            CircuitBreakers as PbCircuitBreakers,
            circuit_breakers::{Thresholds as PbThresholds, thresholds::RetryBudget as PbBudget},
        },
        core::v3::RoutingPriority,
    },
    r#type::v3::Percent,
};

use super::reject::{Decoder, unsupported};
use crate::model::cluster::{CircuitBreakers, RetryBudget, Thresholds};

pub(super) fn circuit_breakers(
    d: &mut Decoder,
    value: PbCircuitBreakers,
) -> Option<CircuitBreakers> {
    let PbCircuitBreakers { thresholds, per_host_thresholds } = value;
    unsupported!(d; per_host_thresholds);
    let decoded = d.all("thresholds", thresholds, thresholds_of)?;
    let of = |high: bool| {
        // The first of a priority counts, as in Envoy.
        let found = decoded.iter().find(|(priority, _)| *priority == high);
        found.map_or_else(Thresholds::default, |(_, thresholds)| *thresholds)
    };
    Some(CircuitBreakers { default: of(false), high: of(true) })
}

/// Whether a priority is the high one.
pub(super) fn is_high(d: &mut Decoder, priority: i32) -> Option<bool> {
    match RoutingPriority::try_from(priority) {
        Ok(priority) => Some(priority == RoutingPriority::High),
        Err(_) => d.field("priority", |d| d.refused(format!("{priority} is unknown"))),
    }
}

fn thresholds_of(d: &mut Decoder, value: PbThresholds) -> Option<(bool, Thresholds)> {
    let PbThresholds {
        priority,
        max_connections,
        max_pending_requests,
        max_requests,
        max_retries,
        retry_budget,
        // Numbers in statistics.
        track_remaining: _,
        max_connection_pools,
    } = value;
    unsupported!(d; max_connection_pools);
    let high = is_high(d, priority);
    let default = Thresholds::default();
    let retry_budget = match retry_budget {
        None => Some(None),
        Some(value) => d.field("retry_budget", |d| budget(d, value)).map(Some),
    };
    let thresholds = Thresholds {
        max_connections: max_connections.map_or(default.max_connections, |max| max.value),
        max_pending_requests: max_pending_requests
            .map_or(default.max_pending_requests, |max| max.value),
        max_requests: max_requests.map_or(default.max_requests, |max| max.value),
        max_retries: max_retries.map_or(default.max_retries, |max| max.value),
        retry_budget: retry_budget?,
    };
    Some((high?, thresholds))
}

fn budget(d: &mut Decoder, value: PbBudget) -> Option<RetryBudget> {
    let PbBudget { budget_percent, min_retry_concurrency, budget_interval } = value;
    unsupported!(d; budget_interval);
    let default = RetryBudget::default();
    let percent = match budget_percent {
        None => Some(default.percent),
        Some(Percent { value: percent @ 0.0..=100.0 }) => Some(percent),
        Some(Percent { value }) => {
            d.field("budget_percent", |d| d.refused(format!("{value} is not a percentage")))
        }
    };
    let min_concurrency = min_retry_concurrency.map_or(default.min_concurrency, |min| min.value);
    Some(RetryBudget { percent: percent?, min_concurrency })
}
