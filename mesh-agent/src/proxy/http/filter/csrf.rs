//! Requests that change things are let on from the target's own pages only.
//!
//! Spec: `envoy.extensions.filters.http.csrf.v3`; what is an origin is as Envoy 1.40 has it.

use std::net::Ipv6Addr;

use http::{
    HeaderMap, Method, StatusCode,
    header::{ORIGIN, REFERER},
    request::Parts,
};

use super::{super::reply::Reply, joined};
use crate::model::{
    filter::CsrfPolicy,
    runtime::{Runtime, RuntimeFraction},
};

/// Judges where a request comes from that goes to `authority`; `shadow` is told what would have
/// become of one that is looked at only.
pub(in crate::proxy::http) fn check(
    policy: &CsrfPolicy,
    runtime: &Runtime,
    head: &Parts,
    authority: &str,
    shadow: &mut Option<bool>,
) -> Result<(), Reply> {
    let changes =
        matches!(head.method, Method::POST | Method::PUT | Method::DELETE | Method::PATCH);
    let enforced = changes && runtime.includes(&policy.enabled, rand::random());
    let looked_at = |of: &RuntimeFraction| runtime.includes(of, rand::random());
    if !changes || (!enforced && !policy.shadow.as_ref().is_some_and(looked_at)) {
        return Ok(());
    }
    let scheme = head.uri.scheme_str().unwrap_or("http");
    let valid = comes_from_there(policy, &head.headers, scheme, authority);
    if !enforced {
        *shadow = Some(valid);
    }
    if valid || !enforced {
        return Ok(());
    }
    Err(Reply::new(StatusCode::FORBIDDEN, "Invalid origin", None, "csrf_origin_mismatch"))
}

fn comes_from_there(
    policy: &CsrfPolicy,
    headers: &HeaderMap,
    scheme: &str,
    authority: &str,
) -> bool {
    let origin = joined(headers, &ORIGIN);
    // What hides its origin has none, and its referrer says nothing.
    if *origin == *b"null" {
        return false;
    }
    let value = if origin.is_empty() { joined(headers, &REFERER) } else { origin };
    let source = host_and_port(&value).unwrap_or(&value);
    if source.is_empty() {
        return false;
    }
    is_target(source, scheme, authority)
        || policy.additional_origins.iter().any(|origin| origin.matches(source))
}

/// An authority that is none in Envoy's eyes is compared with its scheme.
fn is_target(source: &[u8], scheme: &str, authority: &str) -> bool {
    if is_host_and_port(authority.as_bytes()) {
        return source == authority.as_bytes();
    }
    let rest = source.strip_prefix(scheme.as_bytes());
    rest.and_then(|rest| rest.strip_prefix(b"://")) == Some(authority.as_bytes())
}

/// Those of an absolute URL; `None`: it is none.
fn host_and_port(url: &[u8]) -> Option<&[u8]> {
    let colon = url.iter().position(|byte| *byte == b':')?;
    let (scheme, rest) = url.split_at(colon);
    let is_scheme = scheme.first().is_some_and(u8::is_ascii_alphabetic)
        && scheme.iter().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(byte));
    let rest = rest.strip_prefix(b"://").filter(|_| is_scheme)?;
    let end = rest.iter().position(|byte| b"/?".contains(byte)).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if !path.iter().all(u8::is_ascii_graphic) {
        return None;
    }
    let host = match authority.iter().position(|byte| *byte == b'@') {
        None => authority,
        Some(at) => {
            let is_user =
                |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.!~*'()%;:&=+$,".contains(byte);
            Some(&authority[at + 1..]).filter(|_| authority[..at].iter().all(is_user))?
        }
    };
    is_host_and_port(host).then_some(host)
}

fn is_host_and_port(value: &[u8]) -> bool {
    let (is_host, port) = if let Some(rest) = value.strip_prefix(b"[") {
        let Some(end) = rest.iter().position(|byte| *byte == b']') else { return false };
        let address = str::from_utf8(&rest[..end]).ok();
        let is_address = address.is_some_and(|text| text.parse::<Ipv6Addr>().is_ok());
        (is_address, &rest[end + 1..])
    } else {
        let end = value.iter().position(|byte| *byte == b':').unwrap_or(value.len());
        let (host, port) = value.split_at(end);
        let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || b"-.".contains(byte);
        (!host.is_empty() && host.iter().all(is_name), port)
    };
    is_host && (port.is_empty() || is_port(port))
}

/// With its colon; zeros may go before it.
fn is_port(value: &[u8]) -> bool {
    let digits = value.strip_prefix(b":").filter(|digits| digits.iter().all(u8::is_ascii_digit));
    let digits = digits.and_then(|digits| str::from_utf8(digits).ok());
    digits.is_some_and(|digits| digits.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, Request};

    use super::*;
    use crate::{
        model::runtime::{Fraction, RuntimeFraction},
        policy::fixtures::exact,
    };

    fn policy(percent: u32, additional: &[&str]) -> CsrfPolicy {
        CsrfPolicy {
            enabled: RuntimeFraction { key: String::new(), default: Fraction::percent(percent) },
            shadow: None,
            additional_origins: additional.iter().map(|origin| exact(origin)).collect(),
        }
    }

    fn passes(policy: &CsrfPolicy, method: &str, host: &str, headers: &[(&str, &str)]) -> bool {
        let mut request = Request::builder().method(method).uri("/");
        for (name, value) in headers {
            request = request.header(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        let (head, ()) = request.body(()).unwrap().into_parts();
        match check(policy, &Runtime::default(), &head, host, &mut None) {
            Ok(()) => true,
            Err(reply) => {
                assert_eq!((reply.status.as_u16(), &*reply.body), (403, &b"Invalid origin"[..]));
                false
            }
        }
    }

    #[test]
    fn what_is_only_looked_at_passes_and_is_told() {
        let fraction =
            |percent| RuntimeFraction { key: String::new(), default: Fraction::percent(percent) };
        let look = |enabled, shadow, method: &str, origin: &str| {
            let policy = CsrfPolicy { shadow: Some(fraction(shadow)), ..policy(enabled, &[]) };
            let request = Request::builder().method(method).uri("/").header("origin", origin);
            let (head, ()) = request.body(()).unwrap().into_parts();
            let mut said = None;
            let passes = check(&policy, &Runtime::default(), &head, "b", &mut said).is_ok();
            (passes, said)
        };
        assert_eq!(look(0, 100, "POST", "http://c"), (true, Some(false)));
        assert_eq!(look(0, 100, "POST", "http://b"), (true, Some(true)));
        assert_eq!(look(0, 100, "GET", "http://c"), (true, None));
        assert_eq!(look(0, 0, "POST", "http://c"), (true, None));
        assert_eq!(look(100, 100, "POST", "http://c"), (false, None));
    }

    /// Each answer is Envoy 1.40's.
    #[test]
    fn origins_are_those_of_envoy() {
        let parsed = [
            "http://b",
            "http://b:65535",
            "http://b:0",
            "http://b:00080",
            "http://b/#x",
            "http://b?#x",
            "http://a@b",
            "http://@b",
            "http://a:b:c@d",
            "http://a@b:80",
            "http://[::1]",
            "http://[::1]:80",
            "http://b/\"<>",
            "http://-b",
            "http://a%@b",
            "h1://b",
            "h-x://b",
        ];
        for url in parsed {
            assert!(host_and_port(url.as_bytes()).is_some(), "{url}");
        }
        let whole = [
            "b",
            "//b",
            "http:b",
            "http:/b",
            "1h://b",
            "://b",
            "h_x://b",
            "+h://b",
            "http://b:99999",
            "http://b:65536",
            "http://b:",
            "http://b:1a",
            "http://:80",
            "http://",
            "http:///x",
            "http://?x",
            "http://b#x",
            "http://b/ x",
            "http://b/é",
            "http://é",
            "http://b\\x",
            "http://b_c",
            "http://b~c",
            "http://b,c",
            "http://b%41",
            "http://a@b@c",
            "http://a é@b",
            "http://a#@b",
            "http://[::1",
            "http://[zz]",
            "http://[::1]x",
            "http://[]",
            "http://b\"",
            "http://a@",
            "http://a@:80",
            "http://b+c",
            "http://b!c",
            "http://[v1.a]",
            "http://[fe80::1%25e]",
            "http://b;c",
            "http://a[@b",
            "http://b/\tx",
        ];
        for url in whole {
            assert_eq!(host_and_port(url.as_bytes()), None, "{url}");
        }
        assert_eq!(host_and_port(b"http://u:p@a.test:80/x@y"), Some(&b"a.test:80"[..]));
    }

    #[test]
    fn only_the_target_and_additional_origins_change_things() {
        let policy = policy(100, &["ok.test", "null"]);
        for method in ["POST", "PUT", "DELETE", "PATCH"] {
            assert!(!passes(&policy, method, "a.test", &[]), "{method}");
        }
        assert!(passes(&policy, "GET", "a.test", &[("origin", "http://b")]));
        let post = |host, headers: &[(&str, &str)]| passes(&policy, "POST", host, headers);
        for (origin, passes) in [
            ("http://a.test", true),
            ("https://a.test", true),
            ("a.test", true),
            ("http://ok.test/", true),
            ("http://a.test:80", false),
            ("http://A.test", false),
            ("http://a.test@b", false),
            ("http://a.test#x", false),
            ("null", false),
            ("http://xok.test", false),
        ] {
            assert_eq!(post("a.test", &[("origin", origin)]), passes, "{origin}");
        }
        let own = "http://a.test/p?q";
        assert!(post("a.test", &[("referer", own)]));
        assert!(post("a.test", &[("origin", ""), ("referer", own)]));
        assert!(!post("a.test", &[("origin", "null"), ("referer", own)]));
        assert!(!post("a.test", &[("origin", "http://b"), ("referer", own)]));
        assert!(!post("a.test", &[("origin", "http://a.test"), ("origin", "http://b")]));
        assert!(!post("null", &[("origin", "null")]));
        assert!(post("a.test:99999", &[("origin", "http://a.test:99999")]));
        assert!(post("[::1]:80", &[("origin", "http://[::1]:80")]));
    }

    #[test]
    fn a_policy_that_is_not_enabled_lets_everything_on() {
        assert!(passes(&policy(0, &[]), "POST", "a.test", &[("origin", "http://b")]));
    }
}
