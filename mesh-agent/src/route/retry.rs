//! Whether a request is sent again, and when: what Envoy's `RetryStateImpl` decides.
//!
//! Spec: Envoy, `config.http_filters.router`, "x-envoy-retry-on".

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, StatusCode, request::Parts};

use super::lb::random_below;
use crate::{
    model::retry::{RateLimitedBackOff, ResetFormat, RetryOn, RetryPolicy},
    policy::matcher::{header_matches, response_header_matches},
};

const RATE_LIMITED: &str = "x-envoy-ratelimited";
const GRPC_STATUS: &str = "grpc-status";

/// One request's.
#[derive(Debug)]
pub struct RetryState<'a> {
    policy: &'a RetryPolicy,
    retry_on: RetryOn,
    left: u32,
    /// The next pause is below this.
    pause_below: Duration,
}

/// Why there is no response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reset {
    /// No connection was to be had.
    ConnectFailure,
    /// There is too much on its way already.
    Overflow,
    /// HTTP/2: REFUSED_STREAM.
    RefusedStream,
    /// It ended, broke the protocol, or took too long for one attempt.
    Other,
}

/// What becomes of an attempt that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It was the last, for it is not one to repeat.
    Final,
    /// It was the last, for there were too many.
    LimitExceeded,
    /// Another one after this time.
    Retry(Duration),
}

impl<'a> RetryState<'a> {
    pub fn new(policy: &'a RetryPolicy, head: &Parts) -> Self {
        let asked = &policy.retriable_request_headers;
        let eligible = asked.is_empty() || asked.iter().any(|asked| header_matches(asked, head));
        let retry_on = if eligible { policy.retry_on } else { RetryOn::default() };
        Self { policy, retry_on, left: policy.num_retries, pause_below: policy.back_off.base }
    }

    /// Of a response. `random(n)` is a uniformly random number below `n`.
    pub fn response(
        &mut self,
        status: StatusCode,
        headers: &HeaderMap,
        now: SystemTime,
        random: &mut impl FnMut(u32) -> u32,
    ) -> Verdict {
        if !self.wants(status, headers) {
            return Verdict::Final;
        }
        let limited = self.policy.rate_limited_back_off.as_ref();
        let asked = limited.and_then(|limited| limited.interval(headers, now));
        self.again(asked, random)
    }

    /// Of a failure. `began`: something of the request may have been sent.
    pub fn reset(
        &mut self,
        reset: Reset,
        began: bool,
        random: &mut impl FnMut(u32) -> u32,
    ) -> Verdict {
        if reset == Reset::Overflow {
            return Verdict::Final;
        }
        let any = RetryOn::RESET.and(RetryOn::SERVER_ERROR).and(RetryOn::GATEWAY_ERROR);
        let wanted = self.retry_on.has(any)
            || !began && self.retry_on.has(RetryOn::RESET_BEFORE_REQUEST)
            || match reset {
                Reset::ConnectFailure => self.retry_on.has(RetryOn::CONNECT_FAILURE),
                Reset::RefusedStream => self.retry_on.has(RetryOn::REFUSED_STREAM),
                Reset::Overflow | Reset::Other => false,
            };
        if wanted { self.again(None, random) } else { Verdict::Final }
    }

    fn wants(&self, status: StatusCode, headers: &HeaderMap) -> bool {
        let on = self.retry_on;
        if headers.contains_key(RATE_LIMITED) {
            return on.has(RetryOn::ENVOY_RATELIMITED);
        }
        let policy = self.policy;
        on.has(RetryOn::SERVER_ERROR) && status.is_server_error()
            || on.has(RetryOn::GATEWAY_ERROR) && (502..=504).contains(&status.as_u16())
            || on.has(RetryOn::RETRIABLE_4XX) && status == StatusCode::CONFLICT
            || on.has(RetryOn::RETRIABLE_STATUS_CODES)
                && policy.retriable_status_codes.contains(&status.as_u16())
            || on.has(RetryOn::RETRIABLE_HEADERS)
                && policy
                    .retriable_headers
                    .iter()
                    .any(|asked| response_header_matches(asked, status, headers))
            || grpc_condition(headers).is_some_and(|condition| on.has(condition))
    }

    fn again(&mut self, asked: Option<Duration>, random: &mut impl FnMut(u32) -> u32) -> Verdict {
        if self.left == 0 {
            return Verdict::LimitExceeded;
        }
        self.left -= 1;
        if let Some(least) = asked {
            // Spread over half as much again.
            return Verdict::Retry(least.saturating_add(below(least / 2, random)));
        }
        let pause = below(self.pause_below, random);
        self.pause_below = self.pause_below.saturating_mul(2).min(self.policy.back_off.max);
        Verdict::Retry(pause)
    }
}

/// A random time below `limit`, in whole milliseconds.
fn below(limit: Duration, random: &mut impl FnMut(u32) -> u32) -> Duration {
    let millis = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(random_below(millis, random).unwrap_or(0))
}

/// Spec: gRPC, "Status codes and their use in gRPC".
fn grpc_condition(headers: &HeaderMap) -> Option<RetryOn> {
    match headers.get(GRPC_STATUS)?.as_bytes() {
        b"1" => Some(RetryOn::CANCELLED),
        b"4" => Some(RetryOn::DEADLINE_EXCEEDED),
        b"8" => Some(RetryOn::RESOURCE_EXHAUSTED),
        b"13" => Some(RetryOn::INTERNAL),
        b"14" => Some(RetryOn::UNAVAILABLE),
        _ => None,
    }
}

impl RateLimitedBackOff {
    /// What a response asks for.
    fn interval(&self, headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
        let now = now.duration_since(UNIX_EPOCH).ok()?;
        let interval = |name: &str, format| {
            let value = headers.get(name)?.to_str().ok()?.trim().parse().ok()?;
            match format {
                ResetFormat::Seconds => Some(Duration::from_secs(value)),
                ResetFormat::UnixTimestamp => {
                    let wait = value.checked_sub(now.as_secs()).filter(|wait| *wait > 0)?;
                    Some(Duration::from_secs(wait))
                }
            }
        };
        let mut asked =
            self.headers.iter().filter_map(|header| interval(&header.name, header.format));
        asked.find(|interval| *interval <= self.max)
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Request, StatusCode};

    use super::*;
    use crate::model::{
        retry::{BackOff, ResetHeader},
        route::{HeaderMatchKind, HeaderMatcher},
    };

    fn policy(retry_on: RetryOn) -> RetryPolicy {
        RetryPolicy {
            retry_on,
            num_retries: 2,
            per_try_timeout: None,
            per_try_idle_timeout: None,
            back_off: BackOff::default(),
            rate_limited_back_off: None,
            retriable_status_codes: vec![418],
            retriable_headers: vec![present("x-again")],
            retriable_request_headers: vec![],
            avoid_previous_hosts: false,
            host_selection_attempts: 1,
        }
    }

    fn present(name: &str) -> HeaderMatcher {
        HeaderMatcher {
            name: name.to_owned(),
            kind: HeaderMatchKind::Present(true),
            invert: false,
            treat_missing_as_empty: false,
        }
    }

    fn head(name: &'static str) -> Parts {
        Request::get("/").header(name, "1").body(()).unwrap().into_parts().0
    }

    fn response(policy: &RetryPolicy, status: u16, header: (&'static str, &str)) -> Verdict {
        let mut headers = HeaderMap::new();
        headers.insert(header.0, header.1.parse().unwrap());
        let now = UNIX_EPOCH + Duration::from_secs(1000);
        let status = StatusCode::from_u16(status).unwrap();
        RetryState::new(policy, &head("x-a")).response(status, &headers, now, &mut |_| 0)
    }

    #[test]
    fn responses_are_repeated_for_what_was_asked_and_nothing_else() {
        let cases = [
            (RetryOn::SERVER_ERROR, 500, ("a", ""), true),
            (RetryOn::SERVER_ERROR, 499, ("a", ""), false),
            (RetryOn::GATEWAY_ERROR, 502, ("a", ""), true),
            (RetryOn::GATEWAY_ERROR, 504, ("a", ""), true),
            (RetryOn::GATEWAY_ERROR, 500, ("a", ""), false),
            (RetryOn::GATEWAY_ERROR, 505, ("a", ""), false),
            (RetryOn::RETRIABLE_4XX, 409, ("a", ""), true),
            (RetryOn::RETRIABLE_4XX, 404, ("a", ""), false),
            (RetryOn::RETRIABLE_STATUS_CODES, 418, ("a", ""), true),
            (RetryOn::RETRIABLE_STATUS_CODES, 503, ("a", ""), false),
            (RetryOn::RETRIABLE_HEADERS, 200, ("x-again", "1"), true),
            (RetryOn::RETRIABLE_HEADERS, 200, ("x-other", "1"), false),
            (RetryOn::RESET, 503, ("a", ""), false),
            (RetryOn::UNAVAILABLE, 200, (GRPC_STATUS, "14"), true),
            (RetryOn::UNAVAILABLE, 200, (GRPC_STATUS, "13"), false),
            (RetryOn::INTERNAL, 200, (GRPC_STATUS, "13"), true),
            (RetryOn::CANCELLED, 200, (GRPC_STATUS, "1"), true),
            (RetryOn::DEADLINE_EXCEEDED, 200, (GRPC_STATUS, "4"), true),
            (RetryOn::RESOURCE_EXHAUSTED, 200, (GRPC_STATUS, "8"), true),
            (RetryOn::SERVER_ERROR, 503, (RATE_LIMITED, "true"), false),
            (RetryOn::ENVOY_RATELIMITED, 429, (RATE_LIMITED, "true"), true),
        ];
        for (retry_on, status, header, expected) in cases {
            let verdict = response(&policy(retry_on), status, header);
            let expected = if expected { Verdict::Retry(Duration::ZERO) } else { Verdict::Final };
            assert_eq!(verdict, expected, "{retry_on:?} {status} {header:?}");
        }
    }

    #[test]
    fn failures_are_repeated_for_what_was_asked_and_nothing_else() {
        use Reset::{ConnectFailure, Other, RefusedStream};
        let cases = [
            (RetryOn::SERVER_ERROR, Other, true, true),
            (RetryOn::GATEWAY_ERROR, ConnectFailure, false, true),
            (RetryOn::RESET, RefusedStream, true, true),
            (RetryOn::CONNECT_FAILURE, ConnectFailure, false, true),
            (RetryOn::CONNECT_FAILURE, Other, true, false),
            (RetryOn::REFUSED_STREAM, RefusedStream, true, true),
            (RetryOn::REFUSED_STREAM, Other, true, false),
            (RetryOn::RESET_BEFORE_REQUEST, Other, false, true),
            (RetryOn::RESET_BEFORE_REQUEST, Other, true, false),
            (RetryOn::RETRIABLE_4XX, Other, true, false),
            (RetryOn::SERVER_ERROR, Reset::Overflow, false, false),
        ];
        for (retry_on, reset, began, expected) in cases {
            let policy = policy(retry_on);
            let mut state = RetryState::new(&policy, &head("x-a"));
            let verdict = state.reset(reset, began, &mut |_| 0);
            assert_eq!(verdict != Verdict::Final, expected, "{retry_on:?} {reset:?} {began}");
        }
    }

    #[test]
    fn attempts_are_numbered_and_pauses_grow() {
        let policy = policy(RetryOn::RESET);
        let mut state = RetryState::new(&policy, &head("x-a"));
        let mut next = || state.reset(Reset::Other, true, &mut |below| below - 1);
        assert_eq!(next(), Verdict::Retry(Duration::from_millis(24)));
        assert_eq!(next(), Verdict::Retry(Duration::from_millis(49)));
        assert_eq!(next(), Verdict::LimitExceeded);
    }

    #[test]
    fn a_pause_is_never_above_the_largest() {
        let policy = RetryPolicy { num_retries: 100, ..policy(RetryOn::RESET) };
        let mut state = RetryState::new(&policy, &head("x-a"));
        for _ in 0..100 {
            let Verdict::Retry(pause) = state.reset(Reset::Other, true, &mut |n| n - 1) else {
                panic!("ended early")
            };
            assert!(pause < Duration::from_millis(250), "{pause:?}");
        }
    }

    #[test]
    fn only_requests_that_match_are_sent_again() {
        let retriable_request_headers = vec![present("x-please")];
        let policy = RetryPolicy { retriable_request_headers, ..policy(RetryOn::RESET) };
        let verdict =
            |name| RetryState::new(&policy, &head(name)).reset(Reset::Other, true, &mut |_| 0);
        assert_eq!(verdict("x-please"), Verdict::Retry(Duration::ZERO));
        assert_eq!(verdict("x-a"), Verdict::Final);
    }

    #[test]
    fn the_upstream_may_say_when() {
        let header = |name: &str, format| ResetHeader { name: name.to_owned(), format };
        let headers = vec![
            header("retry-after", ResetFormat::Seconds),
            header("x-reset", ResetFormat::UnixTimestamp),
        ];
        let limited = RateLimitedBackOff { headers, max: Duration::from_secs(60) };
        let policy =
            RetryPolicy { rate_limited_back_off: Some(limited), ..policy(RetryOn::SERVER_ERROR) };
        let seconds = |n| Verdict::Retry(Duration::from_secs(n));
        assert_eq!(response(&policy, 503, ("retry-after", "7")), seconds(7));
        assert_eq!(response(&policy, 503, ("x-reset", "1009")), seconds(9));
        // Too long, past, or no number: as without.
        for header in [("retry-after", "61"), ("x-reset", "1000"), ("retry-after", "soon")] {
            assert_eq!(response(&policy, 503, header), seconds(0), "{header:?}");
        }
    }
}
