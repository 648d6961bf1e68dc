//! Asks a rate limit server whether a request may pass.
//!
//! Spec: `envoy.extensions.filters.http.ratelimit.v3`, `envoy.service.ratelimit.v3`; the
//! `x-ratelimit` headers are draft-polli-ratelimit-headers-03.

use std::fmt::Write as _;

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER},
    request::Parts,
    uri::Authority,
};

use super::{
    super::{
        call::{CallError, Limits},
        descriptors::{Counted, Descriptor},
        mutations::{self, OnTheWayOut},
        record::RequestLog,
        reply::{Reply, ToGrpc},
    },
    FRAMING, RESOURCE_EXHAUSTED, Room,
    run::Filtering,
};
use crate::{
    codec::rate_limit::{self as codec, InvalidAnswer, Said, Status},
    model::{
        filter::{GlobalRateLimit, RequestType},
        rate_limit::{HostRateLimits, RateLimit},
        route::RouteAction,
        runtime::{Fraction, RuntimeFraction},
    },
    observe::flags::ResponseFlag,
    policy::Place,
};

const INTERNAL: HeaderName = HeaderName::from_static("x-envoy-internal");
const RATELIMITED: HeaderName = HeaderName::from_static("x-envoy-ratelimited");

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum NoAnswer {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(transparent)]
    Invalid(#[from] InvalidAnswer),
    #[error("`{0}` is no authority")]
    Authority(String),
}

impl Filtering<'_> {
    /// Counts a request at the server, if there is anything to count it under.
    pub(super) async fn limit_globally(
        &self,
        place: Place<'_>,
        filter: &GlobalRateLimit,
        log: &mut RequestLog,
        head: &mut Parts,
    ) -> Result<(), Reply> {
        let internal = head.headers.get(INTERNAL).is_some_and(|value| value == "true");
        let other = match filter.requests {
            RequestType::Both => false,
            RequestType::Internal => !internal,
            RequestType::External => internal,
        };
        if other || !self.includes(&filter.enabled) {
            return Ok(());
        }
        let descriptors = self.descriptors(place, filter, (log, head));
        if descriptors.is_empty() {
            return Ok(());
        }
        let flow = self.judged.permit.flow();
        let room = Room::of(self.http);
        let said = match self.ask(place, filter, &descriptors).await {
            Ok(said) if !room.has(&head.headers, &said.request) => Err(InvalidAnswer.into()),
            answer => answer,
        };
        let said = match said {
            Ok(said) => said,
            Err(error) => {
                let cluster = &filter.service.cluster;
                tracing::debug!(%cluster, "no answer of a rate limit server: {error}");
                let denies = match &filter.deny_on_failure_fraction {
                    Some(fraction) => self.includes(fraction),
                    None => filter.deny_on_failure,
                };
                if !denies {
                    return Ok(());
                }
                let flag = Some(ResponseFlag::RateLimitServiceError);
                let status = status(filter.status_on_error);
                return Err(Reply::new(status, "", flag, "rate_limiter_error"));
            }
        };
        if !said.metadata.is_empty() {
            log.record.metadata.merge(&filter.metadata_namespace, said.metadata.clone());
        }
        let mut told = said.response;
        framing_is_nobodys(&mut told);
        if said.over && filter.x_envoy_ratelimited {
            told.insert(RATELIMITED, HeaderValue::from_static("true"));
        }
        if filter.x_ratelimit {
            tell_what_is_left(&descriptors, &said.statuses, &mut told);
        }
        let refused = said.over && self.includes(&filter.enforced);
        if refused
            && filter.retry_after
            && filter.status == StatusCode::TOO_MANY_REQUESTS.as_u16()
            && !told.contains_key(RETRY_AFTER)
            && let Some(seconds) = said.statuses.iter().filter(|s| s.over).map(|s| s.reset).max()
        {
            told.insert(RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        // Of the body's type the server knows best.
        if refused && let Some(content_type) = told.remove(CONTENT_TYPE) {
            let told = HeaderMap::from_iter([(CONTENT_TYPE, content_type)]);
            log.on_the_way_out(place, OnTheWayOut::Set(told), self.judged);
        }
        if !told.is_empty() {
            log.on_the_way_out(place, OnTheWayOut::Append(told), self.judged);
        }
        if !refused {
            let mut request = said.request;
            framing_is_nobodys(&mut request);
            for (name, value) in &request {
                head.headers.append(name, value.clone());
            }
            return Ok(());
        }
        let flag = Some(ResponseFlag::RateLimited);
        let reply = Reply::new(status(filter.status), "", flag, "request_rate_limited");
        let headers = mutations::of_own_answer(&filter.response, log, flow, head);
        let grpc = match filter.resource_exhausted {
            true => ToGrpc::Code(RESOURCE_EXHAUSTED),
            false => ToGrpc::Mapped,
        };
        let body = Bytes::from(said.body);
        Err(Reply { headers: Some(Box::new(headers)), grpc, body, ..reply })
    }

    fn includes(&self, fraction: &RuntimeFraction) -> bool {
        self.snapshot.runtime.includes(fraction, rand::random())
    }

    fn descriptors(
        &self,
        place: Place<'_>,
        filter: &GlobalRateLimit,
        (log, head): (&RequestLog, &Parts),
    ) -> Vec<Descriptor> {
        // As Envoy: who answers here, or leads nowhere, is not counted.
        let Some(RouteAction::Forward(action)) = self.route.map(|route| &route.action) else {
            return Vec::new();
        };
        let Some(cluster) = self.cluster.filter(|name| self.snapshot.cluster(name).is_some())
        else {
            return Vec::new();
        };
        let client = log.client(self.judged.permit.flow());
        let counted = Counted { head, client, cluster: Some(cluster) };
        let said = self.levels.global_rate_limit(place.name);
        let own = said.map(|said| said.rate_limits.as_slice()).filter(|own| !own.is_empty());
        let own = own.unwrap_or(&filter.rate_limits);
        if !own.is_empty() {
            return own.iter().filter_map(|limit| counted.under(limit)).collect();
        }
        let host = said.map_or(HostRateLimits::default(), |said| said.host);
        let limits = action.rate_limits.of(filter.stage, host);
        let on = |limit: &&RateLimit| limit.disable_key.is_empty() || self.is_on(limit);
        limits.filter(on).filter_map(|limit| counted.under_routes(limit)).collect()
    }

    fn is_on(&self, limit: &RateLimit) -> bool {
        let key = format!("ratelimit.{}.http_filter_enabled", limit.disable_key);
        self.includes(&RuntimeFraction { key, default: Fraction::percent(100) })
    }

    async fn ask(
        &self,
        place: Place<'_>,
        filter: &GlobalRateLimit,
        descriptors: &[Descriptor],
    ) -> Result<Said, NoAnswer> {
        let own = self.levels.global_rate_limit(place.name).and_then(|own| own.domain.as_deref());
        let counted = descriptors.iter().map(|descriptor| codec::Counted {
            entries: descriptor.entries.clone(),
            hits: descriptor.hits,
        });
        let question = codec::question(own.unwrap_or(&filter.domain), counted.collect());
        let service = &filter.service;
        let to = Authority::try_from(service.authority.as_str())
            .map_err(|_| NoAnswer::Authority(service.authority.clone()))?;
        let limits =
            Limits { timeout: service.timeout, answer_max_bytes: service.answer_max_bytes };
        let headers = service.initial_metadata.iter().cloned().collect();
        let method = (to, codec::SHOULD_RATE_LIMIT);
        let caller = self.caller();
        let answer = caller.grpc(&service.cluster, method, headers, &question, limits).await?;
        Ok(codec::answer(answer)?)
    }
}

fn status(code: u16) -> StatusCode {
    // Only what is a status was let in.
    StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

fn framing_is_nobodys(headers: &mut HeaderMap) {
    for name in FRAMING {
        headers.remove(name);
    }
}

/// Of the limit that is closest to being reached, among those that may be told.
fn tell_what_is_left(descriptors: &[Descriptor], statuses: &[Status], headers: &mut HeaderMap) {
    let told = |index: usize| {
        let own = descriptors.get(index).and_then(|descriptor| descriptor.x_ratelimit);
        own != Some(false)
    };
    let mut policies = String::new();
    let mut closest: Option<(&Status, u32)> = None;
    for (index, status) in statuses.iter().enumerate() {
        let Some(limit) = status.limit.as_ref().filter(|_| told(index)) else { continue };
        if closest.is_none_or(|(closest, _)| status.remaining < closest.remaining) {
            closest = Some((status, limit.requests));
        }
        if limit.window > 0 {
            // Writing to a string can't fail.
            let _ = write!(policies, ", {};w={}", limit.requests, limit.window);
            if !limit.name.is_empty() {
                let _ = write!(policies, ";name=\"{}\"", limit.name);
            }
        }
    }
    let Some((status, requests)) = closest else { return };
    let mut tell = |name: &'static str, value: Result<HeaderValue, _>| {
        // A name may have bytes that no header's value has.
        let _: Option<_> = value
            .ok()
            .map(|value: HeaderValue| headers.append(HeaderName::from_static(name), value));
    };
    tell("x-ratelimit-limit", HeaderValue::try_from(format!("{requests}{policies}")));
    tell("x-ratelimit-remaining", Ok(HeaderValue::from(status.remaining)));
    tell("x-ratelimit-reset", Ok(HeaderValue::from(status.reset)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::rate_limit::Limit;

    fn of(requests: u32, window: u32, name: &str, remaining: u32) -> Status {
        let limit = Limit { requests, window, name: name.to_owned() };
        Status { over: false, limit: Some(limit), remaining, reset: 7 }
    }

    fn told(own: &[Option<bool>], statuses: &[Status]) -> Vec<String> {
        let descriptor = |x_ratelimit: &Option<bool>| Descriptor {
            entries: Vec::new(),
            hits: None,
            x_ratelimit: *x_ratelimit,
        };
        let descriptors: Vec<_> = own.iter().map(descriptor).collect();
        let mut headers = HeaderMap::new();
        tell_what_is_left(&descriptors, statuses, &mut headers);
        headers.values().map(|value| value.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn the_closest_limit_is_told_and_the_policies_of_all() {
        let statuses = [of(10, 60, "a", 5), of(4, 1, "", 2), of(9, 0, "x", 3)];
        assert_eq!(told(&[None; 3], &statuses), ["4, 10;w=60;name=\"a\", 4;w=1", "2", "7"]);
        let some = [Some(true), Some(false), None];
        assert_eq!(told(&some, &statuses), ["9, 10;w=60;name=\"a\"", "3", "7"]);
        assert!(told(&[Some(false); 3], &statuses).is_empty());
        let without = Status { over: true, limit: None, remaining: 0, reset: 1 };
        assert!(told(&[None], &[without]).is_empty());
        // What can't be said is left out.
        assert_eq!(told(&[None], &[of(1, 1, "a\nb", 1)]), ["1", "7"]);
    }
}
