//! What outlier detection is told of attempts: as by Envoy's router.

use std::time::Instant;

use http::{HeaderMap, HeaderName};

use super::{attempts::Ended, reset::Failure};
use crate::route::{Outcome, Reporter};

/// Says that the endpoint is to take no more until it passes a health check.
const IMMEDIATE_FAIL: &str = "x-envoy-immediate-health-check-fail";
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// How an attempt ended.
pub(super) fn tell(reporter: &Reporter, grpc: bool, ended: &Ended) {
    match ended {
        Ok((response, _)) => {
            report(reporter, Outcome::Connected);
            let status = if grpc { grpc_status(response.headers()) } else { None };
            report(reporter, Outcome::Status(status.unwrap_or(response.status().as_u16())));
            if response.headers().contains_key(IMMEDIATE_FAIL) {
                reporter.fails_at_once();
            }
        }
        Err(Failure::Connect(_) | Failure::ConnectTimeout(_) | Failure::Handshake(_)) => {
            report(reporter, Outcome::Failed);
        }
        Err(Failure::Send { .. }) => {
            report(reporter, Outcome::Connected);
            report(reporter, Outcome::Failed);
        }
        Err(Failure::Attempt(_)) => {
            report(reporter, Outcome::Connected);
            timed_out(reporter);
        }
        // Nothing was asked of the endpoint.
        Err(Failure::Overflow) => {}
    }
}

/// It did not answer within the route's timeout.
pub(super) fn timed_out(reporter: &Reporter) {
    report(reporter, Outcome::TimedOut);
}

/// Its response broke off.
pub(super) fn broke_off(reporter: &Reporter) {
    report(reporter, Outcome::Failed);
}

fn report(reporter: &Reporter, outcome: Outcome) {
    reporter.report(outcome, Instant::now(), &mut |below| rand::random_range(0..below));
}

/// The HTTP status that a response's gRPC status stands for, where it is in the head.
///
/// Spec: Envoy's `Grpc::Utility::grpcToHttpStatus`; `google/rpc/code.proto`.
fn grpc_status(headers: &HeaderMap) -> Option<u16> {
    let status: u32 = headers.get(GRPC_STATUS)?.to_str().ok()?.parse().ok()?;
    Some(match status {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    })
}
