//! Outlier detection.
//!
//! Spec: `envoy/config/cluster/v3/outlier_detection.proto`.

use envoy_types::pb::{
    envoy::config::cluster::v3::OutlierDetection as PbOutlierDetection,
    google::protobuf::{Duration as PbDuration, UInt32Value},
};

use super::{
    common,
    reject::{Decoder, unsupported},
};
use crate::model::cluster::{Consecutive, FailurePercentage, OutlierDetection, SuccessRate};

pub(super) fn outlier_detection(
    d: &mut Decoder,
    value: PbOutlierDetection,
) -> Option<OutlierDetection> {
    let PbOutlierDetection {
        consecutive_5xx,
        interval,
        base_ejection_time,
        max_ejection_percent,
        enforcing_consecutive_5xx,
        enforcing_success_rate,
        success_rate_minimum_hosts,
        success_rate_request_volume,
        success_rate_stdev_factor,
        consecutive_gateway_failure,
        enforcing_consecutive_gateway_failure,
        split_external_local_origin_errors,
        consecutive_local_origin_failure,
        enforcing_consecutive_local_origin_failure,
        enforcing_local_origin_success_rate,
        failure_percentage_threshold,
        enforcing_failure_percentage,
        enforcing_failure_percentage_local_origin,
        failure_percentage_minimum_hosts,
        failure_percentage_request_volume,
        max_ejection_time,
        max_ejection_time_jitter,
        successful_active_health_check_uneject_host,
        monitors,
        always_eject_one_host,
        detect_degraded_hosts,
    } = value;
    unsupported!(d; monitors, detect_degraded_hosts);
    let default = OutlierDetection::default();
    let interval = common::period(d, "interval", interval, default.interval);
    let base =
        common::period(d, "base_ejection_time", base_ejection_time, default.base_ejection_time)?;
    let longest = default.max_ejection_time.max(base);
    let max_ejection_time = common::period(d, "max_ejection_time", max_ejection_time, longest)?;
    if max_ejection_time < base {
        d.refuse_field("max_ejection_time", "is less than base_ejection_time");
    }
    let jitter = max_ejection_time_jitter.unwrap_or(PbDuration::default());
    let max_ejection_time_jitter = common::duration(d, "max_ejection_time_jitter", jitter);
    let (rate, failures) = (default.success_rate, default.failure_percentage);
    let mut share = |field, value: Option<UInt32Value>, default| match value {
        Some(UInt32Value { value }) if value > 100 => {
            d.refuse_field(field, "must be at most 100");
            default
        }
        given => or(given, default),
    };
    let enforced = |failures, enforcing, default: Consecutive| Consecutive {
        failures: or(failures, default.failures),
        enforcing,
    };
    let five = default.consecutive_5xx;
    let gateway = default.consecutive_gateway_failure;
    let local = default.consecutive_local_origin_failure;
    Some(OutlierDetection {
        consecutive_5xx: enforced(
            consecutive_5xx,
            share("enforcing_consecutive_5xx", enforcing_consecutive_5xx, five.enforcing),
            five,
        ),
        consecutive_gateway_failure: enforced(
            consecutive_gateway_failure,
            share(
                "enforcing_consecutive_gateway_failure",
                enforcing_consecutive_gateway_failure,
                gateway.enforcing,
            ),
            gateway,
        ),
        consecutive_local_origin_failure: enforced(
            consecutive_local_origin_failure,
            share(
                "enforcing_consecutive_local_origin_failure",
                enforcing_consecutive_local_origin_failure,
                local.enforcing,
            ),
            local,
        ),
        success_rate: SuccessRate {
            minimum_hosts: or(success_rate_minimum_hosts, rate.minimum_hosts),
            request_volume: or(success_rate_request_volume, rate.request_volume),
            stdev_factor: or(success_rate_stdev_factor, rate.stdev_factor),
            enforcing: share("enforcing_success_rate", enforcing_success_rate, rate.enforcing),
            enforcing_local_origin: share(
                "enforcing_local_origin_success_rate",
                enforcing_local_origin_success_rate,
                rate.enforcing_local_origin,
            ),
        },
        failure_percentage: FailurePercentage {
            threshold: share(
                "failure_percentage_threshold",
                failure_percentage_threshold,
                failures.threshold,
            ),
            minimum_hosts: or(failure_percentage_minimum_hosts, failures.minimum_hosts),
            request_volume: or(failure_percentage_request_volume, failures.request_volume),
            enforcing: share(
                "enforcing_failure_percentage",
                enforcing_failure_percentage,
                failures.enforcing,
            ),
            enforcing_local_origin: share(
                "enforcing_failure_percentage_local_origin",
                enforcing_failure_percentage_local_origin,
                failures.enforcing_local_origin,
            ),
        },
        max_ejection_percent: share(
            "max_ejection_percent",
            max_ejection_percent,
            default.max_ejection_percent,
        ),
        always_eject_one: always_eject_one_host.is_some_and(|always| always.value),
        split_local_origin: split_external_local_origin_errors,
        health_check_unejects: successful_active_health_check_uneject_host
            .is_none_or(|unejects| unejects.value),
        interval: interval?,
        base_ejection_time: base,
        max_ejection_time,
        max_ejection_time_jitter: max_ejection_time_jitter?,
    })
}

fn or(value: Option<UInt32Value>, default: u32) -> u32 {
    value.map_or(default, |value| value.value)
}
