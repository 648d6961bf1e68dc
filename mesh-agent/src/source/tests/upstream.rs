//! What clusters say of their endpoints' health.

use super::{
    refused::{cluster, one},
    *,
};
use crate::model::cluster::{
    Cluster, Consecutive, FailurePercentage, OutlierDetection, SuccessRate,
};

#[track_caller]
fn the_cluster(fields: &str) -> Cluster {
    accepted(&cluster(fields)).clusters.into_iter().next().unwrap()
}

#[test]
fn outlier_detection_has_envoys_defaults_and_every_field() {
    let decoded = |fields: &str| {
        let detection = the_cluster(&format!("outlier_detection: {{{fields}}}")).monitoring;
        OutlierDetection::clone(&detection.outlier_detection.unwrap())
    };
    assert_eq!(decoded(""), OutlierDetection::default());
    assert!(the_cluster("").monitoring.outlier_detection.is_none());
    let seconds = Duration::from_secs;
    let longer = decoded("base_ejection_time: 400s");
    assert_eq!((longer.base_ejection_time, longer.max_ejection_time), (seconds(400), seconds(400)));
    let all = decoded(
        "consecutive_5xx: 1, interval: 2s, base_ejection_time: 3s, max_ejection_percent: 4, \
         enforcing_consecutive_5xx: 5, enforcing_success_rate: 6, success_rate_minimum_hosts: 7, \
         success_rate_request_volume: 8, success_rate_stdev_factor: 9, \
         consecutive_gateway_failure: 10, enforcing_consecutive_gateway_failure: 11, \
         split_external_local_origin_errors: true, consecutive_local_origin_failure: 13, \
         enforcing_consecutive_local_origin_failure: 14, enforcing_local_origin_success_rate: 15, \
         failure_percentage_threshold: 16, enforcing_failure_percentage: 17, \
         enforcing_failure_percentage_local_origin: 18, failure_percentage_minimum_hosts: 19, \
         failure_percentage_request_volume: 20, max_ejection_time: 21s, \
         max_ejection_time_jitter: 22s, successful_active_health_check_uneject_host: false, \
         always_eject_one_host: true",
    );
    let consecutive = |failures, enforcing| Consecutive { failures, enforcing };
    assert_eq!(
        all,
        OutlierDetection {
            interval: seconds(2),
            base_ejection_time: seconds(3),
            max_ejection_time: seconds(21),
            max_ejection_time_jitter: seconds(22),
            max_ejection_percent: 4,
            always_eject_one: true,
            split_local_origin: true,
            consecutive_5xx: consecutive(1, 5),
            consecutive_gateway_failure: consecutive(10, 11),
            consecutive_local_origin_failure: consecutive(13, 14),
            success_rate: SuccessRate {
                minimum_hosts: 7,
                request_volume: 8,
                stdev_factor: 9,
                enforcing: 6,
                enforcing_local_origin: 15,
            },
            failure_percentage: FailurePercentage {
                threshold: 16,
                minimum_hosts: 19,
                request_volume: 20,
                enforcing: 17,
                enforcing_local_origin: 18,
            },
            health_check_unejects: false,
        }
    );
}

#[test]
fn outlier_detection_that_makes_no_sense_is_refused() {
    for (fields, expected) in [
        ("interval: 0s", ".interval: must be more than zero"),
        ("base_ejection_time: 0s", ".base_ejection_time: must be more than zero"),
        ("max_ejection_time: 29s", ".max_ejection_time: is less than base_ejection_time"),
        (
            "max_ejection_time_jitter: -1s",
            ".max_ejection_time_jitter: is negative or beyond ten thousand years",
        ),
        ("max_ejection_percent: 101", ".max_ejection_percent: must be at most 100"),
        ("enforcing_success_rate: 101", ".enforcing_success_rate: must be at most 100"),
        ("failure_percentage_threshold: 101", ".failure_percentage_threshold: must be at most 100"),
        ("detect_degraded_hosts: true", ".detect_degraded_hosts: is not supported"),
        ("monitors: [{name: a}]", ".monitors: is not supported"),
    ] {
        one(
            cluster(&format!("outlier_detection: {{{fields}}}")),
            "clusters[c].outlier_detection",
            expected,
        );
    }
}
