//! Tells browsers which pages of other origins may ask.
//!
//! Spec: `envoy.extensions.filters.http.cors.v3`; the Fetch standard, "CORS protocol".

use std::sync::Arc;

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode,
    header::{
        ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS,
        ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS,
        ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD,
        ORIGIN,
    },
    request::Parts,
};

use super::{
    super::reply::{Reply, ToGrpc},
    joined,
};
use crate::model::{
    filter::{CorsPolicy, Levels, RouteFilterConfig},
    route::{Route, RouteAction},
    runtime::Runtime,
};

const REQUEST_PRIVATE_NETWORK: HeaderName =
    HeaderName::from_static("access-control-request-private-network");
const ALLOW_PRIVATE_NETWORK: HeaderName =
    HeaderName::from_static("access-control-allow-private-network");
const TRUE: HeaderValue = HeaderValue::from_static("true");

/// The policies of a route, the most specific first. What is said of the filter by its name
/// goes before the fields of route and virtual host.
pub(in crate::proxy::http) fn policies<'a>(
    name: &str,
    levels: Levels<'a>,
    route: Option<&'a Route>,
) -> Policies<'a> {
    // As Envoy: what answers by itself has no policy.
    let Some(RouteAction::Forward(action)) = route.map(|route| &route.action) else {
        return Policies([None; 4]);
    };
    let said = levels.configs(name).filter_map(|config| match config {
        RouteFilterConfig::Cors(policy) => Some(policy),
        _ => None,
    });
    let policies = collect(said);
    match policies.0[0] {
        Some(_) => policies,
        None => collect(action.cors.iter()),
    }
}

/// The most specific first.
#[derive(Debug, Clone, Copy)]
pub(in crate::proxy::http) struct Policies<'a>([Option<&'a CorsPolicy>; 4]);

fn collect<'a>(policies: impl Iterator<Item = &'a Arc<CorsPolicy>>) -> Policies<'a> {
    let mut all = [None; 4];
    for (place, policy) in all.iter_mut().zip(policies) {
        *place = Some(&**policy);
    }
    Policies(all)
}

impl<'a> Policies<'a> {
    /// What the most specific level says that says anything.
    fn first<T>(self, of: impl FnMut(&'a CorsPolicy) -> Option<T>) -> Option<T> {
        self.0.into_iter().flatten().find_map(of)
    }

    fn is_enabled(self, runtime: &Runtime) -> bool {
        self.0[0].is_some_and(|policy| {
            let enabled = policy.enabled.as_ref();
            enabled.is_none_or(|enabled| runtime.includes(enabled, rand::random()))
        })
    }

    fn is_shadowed(self, runtime: &Runtime) -> bool {
        let shadow = self.0[0].and_then(|policy| policy.shadow.as_ref());
        shadow.is_some_and(|shadow| runtime.includes(shadow, rand::random()))
    }

    fn allows(self, origin: &[u8]) -> bool {
        let origins = self
            .first(|policy| (!policy.allow_origins.is_empty()).then_some(&policy.allow_origins));
        // As Envoy: whatever matches a star matches all.
        let matches = |origins: &'a Vec<_>| {
            origins.iter().any(|allowed: &crate::model::authz::StringMatcher| {
                allowed.matches(b"*") || allowed.matches(origin)
            })
        };
        origins.is_some_and(matches)
    }

    /// Which headers the response has to have, if any, and the answer to what only asks whether
    /// another request would be allowed. `shadow` is told whether an origin would be allowed
    /// that is looked at only.
    pub(in crate::proxy::http) fn check(
        self,
        runtime: &Runtime,
        head: &Parts,
        shadow: &mut Option<bool>,
    ) -> (Option<HeaderMap>, Option<Reply>) {
        if self.0[0].is_none() || !head.headers.contains_key(ORIGIN) {
            return (None, None);
        }
        let enforced = self.is_enabled(runtime);
        if !enforced && !self.is_shadowed(runtime) {
            return (None, None);
        }
        let origin = joined(&head.headers, &ORIGIN);
        if origin.is_empty() {
            return (None, None);
        }
        let allowed = self.allows(&origin);
        if !enforced {
            *shadow = Some(allowed);
            return (None, None);
        }
        // The parts are values of headers, and a comma.
        let origin = HeaderValue::from_bytes(&origin).ok().filter(|_| allowed);
        let credentials = self.first(|policy| policy.allow_credentials) == Some(true);
        let on_the_way_out = origin.as_ref().map(|origin| {
            let mut headers = HeaderMap::with_capacity(3);
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            if credentials {
                headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE);
            }
            if let Some(expose) = self.first(|policy| policy.expose_headers.as_ref()) {
                headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, expose.clone());
            }
            headers
        });
        let method = joined(&head.headers, &ACCESS_CONTROL_REQUEST_METHOD);
        let forwards = self.first(|policy| policy.forward_not_matching_preflights) != Some(false);
        if head.method != Method::OPTIONS || method.is_empty() || (!allowed && forwards) {
            return (on_the_way_out, None);
        }
        let mut headers = HeaderMap::new();
        headers.extend(origin.map(|origin| (ACCESS_CONTROL_ALLOW_ORIGIN, origin)));
        if credentials {
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE);
        }
        let asked = |header: &HeaderName| HeaderValue::from_bytes(&joined(&head.headers, header));
        for (name, allowed, request) in [
            (
                ACCESS_CONTROL_ALLOW_METHODS,
                self.first(|policy| policy.allow_methods.as_ref()),
                ACCESS_CONTROL_REQUEST_METHOD,
            ),
            (
                ACCESS_CONTROL_ALLOW_HEADERS,
                self.first(|policy| policy.allow_headers.as_ref()),
                ACCESS_CONTROL_REQUEST_HEADERS,
            ),
        ] {
            match allowed {
                Some(any) if any == "*" => {
                    headers.extend(asked(&request).ok().map(|asked| (name, asked)));
                }
                Some(allowed) => drop(headers.insert(name, allowed.clone())),
                None => {}
            }
        }
        if let Some(max_age) = self.first(|policy| policy.max_age.as_ref()) {
            headers.insert(ACCESS_CONTROL_MAX_AGE, max_age.clone());
        }
        if self.first(|policy| policy.allow_private_network_access) == Some(true)
            && *joined(&head.headers, &REQUEST_PRIVATE_NETWORK) == *b"true"
        {
            headers.insert(ALLOW_PRIVATE_NETWORK, TRUE);
        }
        let reply = Reply::new(StatusCode::OK, "", None, "cors_response");
        let reply = Reply { headers: Some(Box::new(headers)), grpc: ToGrpc::Plain, ..reply };
        (on_the_way_out, Some(reply))
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;
    use crate::{
        model::runtime::{Fraction, RuntimeFraction},
        policy::fixtures::exact,
    };

    fn head(method: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().method(method).uri("/");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn check(policies: &[CorsPolicy], head: &Parts) -> (Option<HeaderMap>, Option<Reply>) {
        let policies: Vec<_> = policies.iter().cloned().map(Arc::new).collect();
        collect(policies.iter()).check(&Runtime::default(), head, &mut None)
    }

    fn of(origin: &str) -> CorsPolicy {
        CorsPolicy { allow_origins: vec![exact(origin)], ..CorsPolicy::default() }
    }

    #[test]
    fn responses_tell_who_may_read_them_where_the_origin_is_allowed() {
        let ask = head("GET", &[("origin", "http://a")]);
        let headers = check(&[of("http://a")], &ask).0.unwrap();
        assert_eq!(headers.len(), 1);
        assert_eq!(headers[ACCESS_CONTROL_ALLOW_ORIGIN], "http://a");
        assert!(check(&[of("http://b")], &ask).0.is_none());
        assert!(check(&[], &ask).0.is_none());
        let twice = head("GET", &[("origin", "http://a"), ("origin", "http://b")]);
        assert!(check(&[of("http://a")], &twice).0.is_none());
    }

    #[test]
    fn what_is_only_looked_at_is_told_and_changes_nothing() {
        let fraction =
            |percent| RuntimeFraction { key: String::new(), default: Fraction::percent(percent) };
        let (ask, mut said) = (head("GET", &[("origin", "http://a")]), None);
        for (origin, allowed) in [("http://a", true), ("http://b", false)] {
            let (enabled, shadow) = (Some(fraction(0)), Some(fraction(100)));
            let policy = [Arc::new(CorsPolicy { enabled, shadow, ..of(origin) })];
            let done = collect(policy.iter()).check(&Runtime::default(), &ask, &mut said);
            assert!(done.0.is_none() && done.1.is_none());
            assert_eq!(said, Some(allowed));
        }
    }

    #[test]
    fn levels_leave_to_the_next_what_they_do_not_say() {
        let ask =
            head("OPTIONS", &[("origin", "http://a"), ("access-control-request-method", "PUT")]);
        let value = |text| Some(HeaderValue::from_static(text));
        let specific = CorsPolicy { max_age: value("1"), ..CorsPolicy::default() };
        let general = CorsPolicy {
            max_age: value("2"),
            allow_methods: value("*"),
            allow_credentials: Some(true),
            ..of("http://a")
        };
        let reply = check(&[specific, general], &ask).1.unwrap();
        let headers = reply.headers.unwrap();
        assert_eq!((reply.status, headers.len()), (StatusCode::OK, 4));
        assert_eq!(headers[ACCESS_CONTROL_MAX_AGE], "1");
        assert_eq!(headers[ACCESS_CONTROL_ALLOW_METHODS], "PUT");
        // Only the most specific one says whether it is in force at all.
        let off = RuntimeFraction { key: String::new(), default: Fraction::percent(0) };
        let off = CorsPolicy { enabled: Some(off), ..CorsPolicy::default() };
        assert!(check(&[off, of("http://a")], &ask).1.is_none());
    }

    #[test]
    fn what_is_not_allowed_is_for_the_upstream_unless_told_otherwise() {
        let ask =
            head("OPTIONS", &[("origin", "http://b"), ("access-control-request-method", "PUT")]);
        assert!(check(&[of("http://a")], &ask).1.is_none());
        let here = CorsPolicy { forward_not_matching_preflights: Some(false), ..of("http://a") };
        let reply = check(&[here], &ask).1.unwrap();
        assert!(reply.headers.unwrap().is_empty());
    }
}
