//! What routes and virtual hosts say of retries.

use std::time::Duration;

use super::*;
use crate::model::{
    retry::{Attempts, BackOff, RateLimitedBackOff, ResetFormat, ResetHeader, RetryOn},
    route::RouteAction,
};

/// What the only route of a virtual host says.
#[track_caller]
fn attempts(host: &str, route: &str) -> Attempts {
    let yaml = format!(
        "'@type': t/envoy.config.route.v3.RouteConfiguration\nname: r\n\
         virtual_hosts: [{{name: h, domains: ['*'], {host} routes: [{{match: {{prefix: /}}, \
         route: {{{route} cluster: c}}}}]}}]\n"
    );
    let routes = accepted(&yaml).routes.into_iter().next().unwrap();
    match &routes.virtual_hosts[0].routes[0].action {
        RouteAction::Forward(action) => action.attempts.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_retry_policy_is_read_whole() {
    let attempts = attempts(
        "include_request_attempt_count: true, request_body_buffer_limit: 77,",
        "retry_policy: {retry_on: 'reset, unavailable,retriable-status-codes', num_retries: 7, \
         per_try_timeout: 1s, per_try_idle_timeout: 2s, retriable_status_codes: [503], \
         retry_host_predicate: [{name: p, typed_config: {'@type': \
         t/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate}}], \
         host_selection_retry_max_attempts: 5, retry_back_off: {base_interval: 0.2s}, \
         rate_limited_retry_back_off: {reset_headers: [{name: Retry-After}, \
         {name: x-at, format: UNIX_TIMESTAMP}]}, retriable_headers: [{name: x-a}], \
         retriable_request_headers: [{name: x-b}]},",
    );
    assert!(attempts.count_in_request && !attempts.count_in_response);
    assert_eq!(attempts.buffer_max_bytes, Some(77));
    let policy = attempts.retry.unwrap();
    let asked = RetryOn::RESET.and(RetryOn::UNAVAILABLE).and(RetryOn::RETRIABLE_STATUS_CODES);
    assert_eq!((policy.retry_on, policy.num_retries), (asked, 7));
    assert_eq!(policy.per_try_timeout, Some(Duration::from_secs(1)));
    assert_eq!(policy.per_try_idle_timeout, Some(Duration::from_secs(2)));
    assert_eq!(policy.retriable_status_codes, [503]);
    assert!(policy.avoid_previous_hosts);
    assert_eq!(policy.host_selection_attempts, 5);
    let back_off = BackOff { base: Duration::from_millis(200), max: Duration::from_secs(2) };
    assert_eq!(policy.back_off, back_off);
    let header = |name: &str, format| ResetHeader { name: name.to_owned(), format };
    let limited = RateLimitedBackOff {
        headers: vec![
            header("retry-after", ResetFormat::Seconds),
            header("x-at", ResetFormat::UnixTimestamp),
        ],
        max: Duration::from_secs(300),
    };
    assert_eq!(policy.rate_limited_back_off.as_ref(), Some(&limited));
    assert_eq!(policy.retriable_headers[0].name, "x-a");
    assert_eq!(policy.retriable_request_headers[0].name, "x-b");
}

#[test]
fn a_routes_policy_goes_before_its_hosts() {
    let own = "retry_policy: {retry_on: 5xx},";
    let host = "retry_policy: {retry_on: reset, num_retries: 9},";
    let read = |host, route| attempts(host, route).retry.map(|p| (p.retry_on, p.num_retries));
    assert_eq!(read("", ""), None);
    assert_eq!(read(host, ""), Some((RetryOn::RESET, 9)));
    assert_eq!(read(host, own), Some((RetryOn::SERVER_ERROR, 1)));
    let limit = |host, route| attempts(host, route).buffer_max_bytes;
    assert_eq!(limit("", ""), None);
    assert_eq!(limit("per_request_buffer_limit_bytes: 5,", ""), Some(5));
    // Also where the connection's is less.
    assert_eq!(limit("per_request_buffer_limit_bytes: 2000000,", ""), Some(2_000_000));
}
