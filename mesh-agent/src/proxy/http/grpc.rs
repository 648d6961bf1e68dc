//! How long a gRPC request may take.
//!
//! Spec: gRPC over HTTP/2, "Requests", `Timeout`; `RouteAction.max_grpc_timeout`.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::headers::is_grpc;
use crate::model::route::{ForwardAction, GrpcTimeout, MaxStreamDuration};

const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
pub(super) const STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// What the header's number holds at most: eight digits.
const NUMBER_MAX: u128 = 99_999_999;

/// The whole exchange's limit: the route's, or for gRPC what the request asks for where the
/// route has bounds for that. `None`: none.
pub(super) fn timeout(action: &ForwardAction, headers: &HeaderMap) -> Option<Duration> {
    let timeout = match action.grpc_timeout {
        _ if action.max_stream_duration.is_some() => None,
        Some(bounds) if is_grpc(headers) => match (asked(bounds, headers), bounds.max) {
            (Some(asked), Some(max)) => Some(asked.min(max)),
            (asked, max) => asked.or(max),
        },
        _ => action.timeout,
    };
    timeout.filter(|timeout| !timeout.is_zero())
}

/// How long request and response may take together: what a gRPC request asks for where the
/// route has bounds for that, which the upstream is told, or as route or listener have it. `None`: for ever.
pub(super) fn stream_duration(
    of_route: Option<MaxStreamDuration>,
    of_listener: Option<Duration>,
    headers: &mut HeaderMap,
) -> Option<Duration> {
    let of_route = of_route.unwrap_or_default();
    if let Some(bounds) = of_route.grpc
        && let Some(asked) = headers.get(GRPC_TIMEOUT).and_then(|value| parse(value.as_bytes()))
    {
        let bounded = bounds.max.map_or(asked, |max| asked.min(max));
        // What is over already is over at once.
        let left = bounded.saturating_sub(bounds.offset).max(Duration::from_millis(1));
        set_timeout(headers, left);
        return Some(left);
    }
    of_route.own.map_or(of_listener, |own| own.limit())
}

/// What the request asks for, less the offset.
fn asked(bounds: GrpcTimeout, headers: &HeaderMap) -> Option<Duration> {
    let asked = headers.get(GRPC_TIMEOUT).and_then(|value| parse(value.as_bytes()))?;
    let asked = if asked > bounds.offset { asked - bounds.offset } else { asked };
    Some(asked).filter(|asked| !asked.is_zero())
}

/// The gRPC code that an HTTP status stands for, as Envoy maps them.
pub(super) fn code_of(status: u16) -> u32 {
    match status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 | 501 => 12,
        408 | 429 | 502..=504 => 14,
        _ => 2,
    }
}

/// A code's name as access logs have it; none for a code that gRPC does not define.
///
/// Source: Envoy's `%GRPC_STATUS%`.
pub(super) fn name_of(code: u32) -> Option<&'static str> {
    const NAMES: [&str; 17] = [
        "OK",
        "Canceled",
        "Unknown",
        "InvalidArgument",
        "DeadlineExceeded",
        "NotFound",
        "AlreadyExists",
        "PermissionDenied",
        "ResourceExhausted",
        "FailedPrecondition",
        "Aborted",
        "OutOfRange",
        "Unimplemented",
        "Internal",
        "Unavailable",
        "DataLoss",
        "Unauthenticated",
    ];
    NAMES.get(usize::try_from(code).ok()?).copied()
}

/// In whole milliseconds, rounded up: what is asked for is never nought unless it is.
fn parse(value: &[u8]) -> Option<Duration> {
    let (unit, number) = value.split_last()?;
    if number.is_empty() || number.len() > 8 || !number.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number: u64 = std::str::from_utf8(number).ok()?.parse().ok()?;
    let milliseconds = match unit {
        b'H' => number * 3_600_000,
        b'M' => number * 60_000,
        b'S' => number * 1000,
        b'm' => number,
        b'u' => number.div_ceil(1000),
        b'n' => number.div_ceil(1_000_000),
        _ => return None,
    };
    Some(Duration::from_millis(milliseconds))
}

/// Tells the upstream how long it has.
pub(super) fn set_timeout(headers: &mut HeaderMap, timeout: Duration) {
    let milliseconds = timeout.as_millis();
    let units = [(1, 'm'), (1000, 'S'), (60_000, 'M'), (3_600_000, 'H')];
    let fits = units.into_iter().find(|(size, _)| milliseconds / size <= NUMBER_MAX);
    let (number, unit) = fits.map_or((NUMBER_MAX, 'H'), |(size, unit)| (milliseconds / size, unit));
    if let Ok(value) = HeaderValue::try_from(format!("{number}{unit}")) {
        headers.insert(GRPC_TIMEOUT, value);
    }
}

#[cfg(test)]
mod tests {
    use http::header::CONTENT_TYPE;

    use super::*;
    use crate::model::route::{Clusters, GrpcTimeout};

    #[test]
    fn a_request_says_how_long_it_may_take_within_bounds() {
        let seconds = Duration::from_secs;
        let bounds = |max, offset| Some(GrpcTimeout { max, offset: Duration::from_millis(offset) });
        for (grpc_timeout, asked, expected) in [
            (None, Some("1S"), Some(seconds(15))),
            (bounds(Some(seconds(5)), 0), Some("1S"), Some(seconds(1))),
            (bounds(Some(seconds(5)), 0), Some("10S"), Some(seconds(5))),
            (bounds(Some(seconds(5)), 0), None, Some(seconds(5))),
            (bounds(Some(seconds(5)), 0), Some("0S"), Some(seconds(5))),
            (bounds(Some(seconds(5)), 0), Some("x"), Some(seconds(5))),
            (bounds(None, 0), Some("2M"), Some(seconds(120))),
            (bounds(None, 0), None, None),
            (bounds(None, 500), Some("1500m"), Some(seconds(1))),
            // Not more than is asked for.
            (bounds(None, 2000), Some("1S"), Some(seconds(1))),
            (bounds(None, 0), Some("1n"), Some(Duration::from_millis(1))),
            (bounds(None, 0), Some("123456789S"), None),
        ] {
            let action = ForwardAction {
                grpc_timeout,
                ..ForwardAction::to(Clusters::Header("x".to_owned()))
            };
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.extend(asked.map(|asked| (GRPC_TIMEOUT, HeaderValue::from_static(asked))));
            assert_eq!(timeout(&action, &headers), expected, "{grpc_timeout:?} {asked:?}");
            // Nobody else is asked.
            headers.remove(CONTENT_TYPE);
            assert_eq!(timeout(&action, &headers), Some(seconds(15)));
        }
    }

    #[test]
    fn an_upstream_is_told_in_eight_digits() {
        for (milliseconds, expected) in
            [(1, "1m"), (99_999_999, "99999999m"), (100_000_000, "100000S")]
        {
            let mut headers = HeaderMap::new();
            set_timeout(&mut headers, Duration::from_millis(milliseconds));
            assert_eq!(headers[GRPC_TIMEOUT], expected);
        }
    }
}
