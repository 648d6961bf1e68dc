//! When an endpoint is an outlier, and for how long it is left out.
//!
//! Spec: `envoy/config/cluster/v3/outlier_detection.proto`.

use std::time::Duration;

use serde::Serialize;

/// Counts without unit are of requests; shares are in percent, at most 100.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OutlierDetection {
    /// Between two looks at success rates and at who may come back; more than zero.
    pub interval: Duration,
    /// Times how often it was ejected, up to `max_ejection_time`.
    pub base_ejection_time: Duration,
    /// Not less than `base_ejection_time`.
    pub max_ejection_time: Duration,
    /// Up to so much longer, at random.
    pub max_ejection_time_jitter: Duration,
    /// Of the cluster's endpoints, so many may be ejected.
    pub max_ejection_percent: u32,
    /// One may be, whatever `max_ejection_percent` says.
    pub always_eject_one: bool,
    /// Failures to connect and timeouts count by themselves, not as 503 and 504.
    pub split_local_origin: bool,
    pub consecutive_5xx: Consecutive,
    pub consecutive_gateway_failure: Consecutive,
    /// Only with `split_local_origin`.
    pub consecutive_local_origin_failure: Consecutive,
    pub success_rate: SuccessRate,
    pub failure_percentage: FailurePercentage,
    /// An active health check that succeeds ends an ejection.
    pub health_check_unejects: bool,
}

/// So many failures in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Consecutive {
    /// 0: never.
    pub failures: u32,
    /// How often that leads to an ejection.
    pub enforcing: u32,
}

/// An endpoint that does worse than the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct SuccessRate {
    /// So many endpoints must have had `request_volume` within an interval.
    pub minimum_hosts: u32,
    pub request_volume: u32,
    /// In thousandths: how many standard deviations below the mean.
    pub stdev_factor: u32,
    pub enforcing: u32,
    pub enforcing_local_origin: u32,
}

/// An endpoint that fails too often, whatever the others do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct FailurePercentage {
    pub threshold: u32,
    pub minimum_hosts: u32,
    pub request_volume: u32,
    pub enforcing: u32,
    pub enforcing_local_origin: u32,
}

impl Default for OutlierDetection {
    /// Envoy's.
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(10),
            base_ejection_time: Duration::from_secs(30),
            max_ejection_time: Duration::from_secs(300),
            max_ejection_time_jitter: Duration::ZERO,
            max_ejection_percent: 10,
            always_eject_one: false,
            split_local_origin: false,
            consecutive_5xx: Consecutive { failures: 5, enforcing: 100 },
            consecutive_gateway_failure: Consecutive { failures: 5, enforcing: 0 },
            consecutive_local_origin_failure: Consecutive { failures: 5, enforcing: 100 },
            success_rate: SuccessRate {
                minimum_hosts: 5,
                request_volume: 100,
                stdev_factor: 1900,
                enforcing: 100,
                enforcing_local_origin: 100,
            },
            failure_percentage: FailurePercentage {
                threshold: 85,
                minimum_hosts: 5,
                request_volume: 50,
                enforcing: 0,
                enforcing_local_origin: 0,
            },
            health_check_unejects: true,
        }
    }
}
