//! When a request is sent again.
//!
//! Spec: `envoy.config.route.v3.RetryPolicy`.

use std::{sync::Arc, time::Duration};

use serde::{Serialize, Serializer};

use super::route::HeaderMatcher;

/// What a route says of its requests' attempts. The default: there is one, and nobody is
/// told.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Attempts {
    pub retry: Option<Arc<RetryPolicy>>,
    /// Whether the upstream is told how many there were: `x-envoy-attempt-count`.
    pub count_in_request: bool,
    /// Whether the client is.
    pub count_in_response: bool,
    /// Whether the upstream is told that the last one took too long:
    /// `x-envoy-is-timeout-retry`.
    pub timeout_in_request: bool,
    /// How much of a body is kept for another attempt; `None`: as much as the connection's
    /// limit allows.
    pub buffer_max_bytes: Option<u64>,
}

#[derive(Debug, Clone, Serialize)]
pub struct RetryPolicy {
    pub retry_on: RetryOn,
    /// Beyond the first attempt. Envoy's default: 1.
    pub num_retries: u32,
    /// From when a connection is there and the request has been read, to the response's
    /// head. Only where it is less than the route's own.
    pub per_try_timeout: Option<Duration>,
    /// Without a byte either way.
    pub per_try_idle_timeout: Option<Duration>,
    pub back_off: BackOff,
    pub rate_limited_back_off: Option<RateLimitedBackOff>,
    pub retriable_status_codes: Vec<u16>,
    /// Of responses; any of them.
    pub retriable_headers: Vec<HeaderMatcher>,
    /// With any, only requests that one of them matches are sent again.
    pub retriable_request_headers: Vec<HeaderMatcher>,
    /// Endpoints that had the request are not chosen again, if it can be helped.
    pub avoid_previous_hosts: bool,
    /// How often another endpoint is asked for in place of one to avoid. Envoy's
    /// default: 1.
    pub host_selection_attempts: u32,
}

/// Spec: `RetryPolicy.RetryBackOff`: before the nth retry a random time below
/// `base * (2^n - 1)`, and below `max`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct BackOff {
    pub base: Duration,
    pub max: Duration,
}

impl Default for BackOff {
    /// Envoy's.
    fn default() -> Self {
        Self { base: Duration::from_millis(25), max: Duration::from_millis(250) }
    }
}

/// The upstream says how long to wait.
///
/// Spec: `RetryPolicy.RateLimitedRetryBackOff`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RateLimitedBackOff {
    /// The first that a response has, and that says no more than `max`.
    pub headers: Vec<ResetHeader>,
    /// Envoy's default: 300 s.
    pub max: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ResetHeader {
    /// Lower case.
    pub name: String,
    pub format: ResetFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ResetFormat {
    /// From now.
    Seconds,
    UnixTimestamp,
}

macro_rules! conditions {
    ($($(#[$doc:meta])* $name:ident = $bit:literal, $text:literal;)*) => {
        impl RetryOn {
            $($(#[$doc])* pub const $name: Self = Self(1 << $bit);)*

            const ALL: &[(Self, &'static str)] = &[$((Self::$name, $text)),*];
        }
    };
}

/// What a request is sent again for: a set.
///
/// Spec: Envoy, `x-envoy-retry-on` and `x-envoy-retry-grpc-on`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RetryOn(u32);

conditions! {
    /// Any 5xx, and any failure to get a response.
    SERVER_ERROR = 0, "5xx";
    /// 502, 503 and 504, and any failure to get a response.
    GATEWAY_ERROR = 1, "gateway-error";
    /// Any failure to get a response.
    RESET = 2, "reset";
    /// One before anything of the request was sent.
    RESET_BEFORE_REQUEST = 3, "reset-before-request";
    CONNECT_FAILURE = 4, "connect-failure";
    /// `x-envoy-ratelimited` in the response, which nothing else is sent again for.
    ENVOY_RATELIMITED = 5, "envoy-ratelimited";
    /// 409.
    RETRIABLE_4XX = 6, "retriable-4xx";
    /// HTTP/2: REFUSED_STREAM.
    REFUSED_STREAM = 7, "refused-stream";
    RETRIABLE_STATUS_CODES = 8, "retriable-status-codes";
    RETRIABLE_HEADERS = 9, "retriable-headers";
    /// These by the `grpc-status` of a response without body.
    CANCELLED = 10, "cancelled";
    DEADLINE_EXCEEDED = 11, "deadline-exceeded";
    INTERNAL = 12, "internal";
    RESOURCE_EXHAUSTED = 13, "resource-exhausted";
    UNAVAILABLE = 14, "unavailable";
}

impl RetryOn {
    /// By its name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, text)| *text == name).map(|(condition, _)| *condition)
    }

    /// Whether any of `others` is in it.
    pub fn has(self, others: Self) -> bool {
        self.0 & others.0 != 0
    }

    /// Both together.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl Serialize for RetryOn {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let names = Self::ALL.iter().filter(|(condition, _)| self.has(*condition));
        serializer.collect_seq(names.map(|(_, text)| text))
    }
}
