//! What a rate limit server is asked, and what it says.
//!
//! Spec: `envoy.service.ratelimit.v3`.

use envoy_types::pb::{
    envoy::{
        config::core::v3::HeaderValue as PbHeaderValue,
        extensions::common::ratelimit::v3::{RateLimitDescriptor, rate_limit_descriptor::Entry},
        service::ratelimit::v3::{
            RateLimitRequest, RateLimitResponse,
            rate_limit_response::{Code, DescriptorStatus, RateLimit, rate_limit::Unit},
        },
    },
    google::protobuf::UInt64Value,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Map, Value};

use super::{grpc::is_too_much, structs::from_struct};

/// The method to call.
pub const SHOULD_RATE_LIMIT: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";

/// One thing that a request is counted under.
#[derive(Debug)]
pub struct Counted {
    /// Keys and values, in order.
    pub entries: Vec<(String, String)>,
    /// `None`: as the server has it, usually one.
    pub hits: Option<u64>,
}

/// What a server says.
#[derive(Debug, Default)]
pub struct Said {
    pub over: bool,
    /// Of each descriptor, in the order in which they were asked about.
    pub statuses: Vec<Status>,
    /// For the client.
    pub response: HeaderMap,
    /// For the upstream, of a request that goes on.
    pub request: HeaderMap,
    /// Of the answer to a request that does not.
    pub body: Vec<u8>,
    pub metadata: Map<String, Value>,
}

/// Of one descriptor.
#[derive(Debug)]
pub struct Status {
    pub over: bool,
    /// `None`: there is none for it.
    pub limit: Option<Limit>,
    pub remaining: u32,
    /// Seconds until there is more.
    pub reset: i64,
}

#[derive(Debug)]
pub struct Limit {
    pub requests: u32,
    /// Seconds; zero where it is not known.
    pub window: u32,
    pub name: String,
}

/// An answer that says neither yes nor no, or names a header that can't be one, or too many.
#[derive(Debug, thiserror::Error)]
#[error("the answer says neither yes nor no, or has a header that is none, or too many")]
pub struct InvalidAnswer;

/// The question as a message.
pub fn question(domain: &str, descriptors: Vec<Counted>) -> RateLimitRequest {
    let descriptor = |counted: Counted| RateLimitDescriptor {
        entries: counted.entries.into_iter().map(|(key, value)| Entry { key, value }).collect(),
        hits_addend: counted.hits.map(|value| UInt64Value { value }),
        ..RateLimitDescriptor::default()
    };
    RateLimitRequest {
        domain: domain.to_owned(),
        descriptors: descriptors.into_iter().map(descriptor).collect(),
        ..RateLimitRequest::default()
    }
}

/// What the answer says.
///
/// # Errors
/// [`InvalidAnswer`]
pub fn answer(response: RateLimitResponse) -> Result<Said, InvalidAnswer> {
    let over = match Code::try_from(response.overall_code) {
        Ok(Code::Ok) => false,
        Ok(Code::OverLimit) => true,
        Ok(Code::Unknown) | Err(_) => return Err(InvalidAnswer),
    };
    let names = response.statuses.iter();
    let names = names.map(|one| one.current_limit.as_ref().map_or(0, |limit| limit.name.len()));
    if is_too_much(names) {
        return Err(InvalidAnswer);
    }
    Ok(Said {
        over,
        statuses: response.statuses.into_iter().map(status).collect(),
        response: headers(response.response_headers_to_add)?,
        request: headers(response.request_headers_to_add)?,
        body: response.raw_body.to_vec(),
        metadata: response.dynamic_metadata.map(from_struct).unwrap_or_default(),
    })
}

fn status(status: DescriptorStatus) -> Status {
    const MINUTE: u32 = 60;
    const DAY: u32 = 24 * 60 * MINUTE;
    let limit = |RateLimit { name, requests_per_unit, unit }| Limit {
        requests: requests_per_unit,
        // As Envoy counts them.
        window: match Unit::try_from(unit) {
            Ok(Unit::Second) => 1,
            Ok(Unit::Minute) => MINUTE,
            Ok(Unit::Hour) => 60 * MINUTE,
            Ok(Unit::Day) => DAY,
            Ok(Unit::Week) => 7 * DAY,
            Ok(Unit::Month) => 30 * DAY,
            Ok(Unit::Year) => 365 * DAY,
            Ok(Unit::Unknown) | Err(_) => 0,
        },
        name,
    };
    Status {
        over: status.code == Code::OverLimit as i32,
        limit: status.current_limit.map(limit),
        remaining: status.limit_remaining,
        reset: status.duration_until_reset.map_or(0, |duration| duration.seconds),
    }
}

fn headers(values: Vec<PbHeaderValue>) -> Result<HeaderMap, InvalidAnswer> {
    if is_too_much(values.iter().map(|one| one.key.len() + one.value.len() + one.raw_value.len())) {
        return Err(InvalidAnswer);
    }
    let mut headers = HeaderMap::with_capacity(values.len());
    for PbHeaderValue { key, value, raw_value } in values {
        let name = HeaderName::try_from(key).map_err(|_| InvalidAnswer)?;
        let value = if raw_value.is_empty() { value.into_bytes() } else { raw_value.to_vec() };
        headers.append(name, HeaderValue::try_from(value).map_err(|_| InvalidAnswer)?);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clear_answer_is_one() {
        let said = |code, key: &str, value: &str| {
            answer(RateLimitResponse {
                overall_code: code,
                response_headers_to_add: vec![PbHeaderValue {
                    key: key.to_owned(),
                    value: value.to_owned(),
                    ..PbHeaderValue::default()
                }],
                ..RateLimitResponse::default()
            })
        };
        assert!(!said(1, "a", "b").unwrap().over);
        assert!(said(2, "a", "b").unwrap().over);
        assert!(said(0, "a", "b").is_err());
        assert!(said(7, "a", "b").is_err());
        assert!(said(1, "a b", "c").is_err());
        assert!(said(1, "a", "b\r\nc: d").is_err());
        assert!(said(1, "a", &"b".repeat(64 << 10)).is_err());
        // More than a map of headers takes.
        let one = PbHeaderValue { key: "a".to_owned(), ..PbHeaderValue::default() };
        assert!(headers(vec![one; 40_000]).is_err());
    }

    #[test]
    fn what_a_request_counts_is_asked_where_it_is_said() {
        let counted = |hits| Counted { entries: vec![("k".to_owned(), "v".to_owned())], hits };
        let asked = question("d", vec![counted(None), counted(Some(0)), counted(Some(3))]);
        let hits: Vec<_> =
            asked.descriptors.iter().map(|d| d.hits_addend.as_ref().map(|h| h.value)).collect();
        assert_eq!(hits, [None, Some(0), Some(3)]);
        assert_eq!(asked.domain, "d");
    }
}
