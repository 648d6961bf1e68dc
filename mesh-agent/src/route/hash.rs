//! The hash that a request is balanced by.

use std::net::{IpAddr, SocketAddr};

use http::request::Parts;

use super::{lb::xx_hash, match_http::cookie};
use crate::{
    model::{
        cookie::OwnCookie,
        hash_policy::{HashInput, HashPolicy},
    },
    policy::matcher::first_value,
};

/// What `policies` make of a request from `source`; `None` where none of them has a say. `make`
/// gives the value of a cookie that the client is to get.
pub fn request_hash(
    policies: &[HashPolicy],
    head: &Parts,
    source: IpAddr,
    make: &mut dyn FnMut(&OwnCookie) -> String,
) -> Option<u64> {
    let mut hash = None;
    for policy in policies {
        if let Some(new) = input_hash(&policy.input, head, source, make) {
            // As Envoy: so that two of the same do not make nothing.
            hash = Some(hash.unwrap_or(0_u64).rotate_left(1) ^ new);
        }
        if policy.terminal && hash.is_some() {
            break;
        }
    }
    hash
}

/// The value of a cookie for the client at `peer` of a connection to `local`: the same for all
/// of its requests.
pub fn connection_cookie(peer: SocketAddr, local: SocketAddr) -> String {
    format!("{:016x}", xx_hash(format!("{peer}{local}").as_bytes(), 0))
}

fn input_hash(
    input: &HashInput,
    head: &Parts,
    source: IpAddr,
    make: &mut dyn FnMut(&OwnCookie) -> String,
) -> Option<u64> {
    let has = |name: &str| cookie(head, name).filter(|value| !value.is_empty());
    match input {
        HashInput::Header(name) => {
            let mut values: Vec<&[u8]> =
                head.headers.get_all(name).iter().map(http::HeaderValue::as_bytes).collect();
            if values.is_empty() {
                values.extend(first_value(name, head));
            }
            values.sort_unstable();
            let hashed = |hash: Option<u64>, value: &&[u8]| Some(xx_hash(value, hash.unwrap_or(0)));
            values.iter().fold(None, hashed)
        }
        HashInput::Cookie(name) => has(name).map(|value| xx_hash(value, 0)),
        HashInput::OwnCookie(own) => Some(match has(&own.name) {
            Some(value) => xx_hash(value, 0),
            None => xx_hash(make(own).as_bytes(), 0),
        }),
        HashInput::QueryParameter(name) => {
            let pairs = head.uri.query()?.split('&');
            let mut pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
            let (_, value) = pairs.find(|(key, _)| key == name)?;
            Some(xx_hash(value.as_bytes(), 0))
        }
        HashInput::SourceIp => Some(xx_hash(source.to_string().as_bytes(), 0)),
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn policy(input: HashInput) -> HashPolicy {
        HashPolicy { input, terminal: false }
    }

    fn hash(policies: &[HashPolicy]) -> Option<u64> {
        let head = Request::get("/p?a=1&b=x&b=y")
            .header("x-h", "x")
            .header("cookie", "k=v; s=x; empty=")
            .header("host", "h.test")
            .body(())
            .unwrap()
            .into_parts()
            .0;
        request_hash(policies, &head, "10.0.0.1".parse().unwrap(), &mut |own| own.path.clone())
    }

    #[test]
    fn whatever_says_the_same_hashes_the_same() {
        let x = Some(xx_hash(b"x", 0));
        assert_eq!(hash(&[policy(HashInput::Header("x-h".into()))]), x);
        assert_eq!(hash(&[policy(HashInput::Cookie("s".into()))]), x);
        assert_eq!(hash(&[policy(HashInput::QueryParameter("b".into()))]), x);
        let ip = Some(xx_hash(b"10.0.0.1", 0));
        assert_eq!(hash(&[policy(HashInput::SourceIp)]), ip);
        let host = Some(xx_hash(b"h.test", 0));
        assert_eq!(hash(&[policy(HashInput::Header(":authority".into()))]), host);
    }

    #[test]
    fn who_has_no_cookie_gets_one_and_counts_as_having_it() {
        let own = |name: &str, made: &str| {
            let (name, path) = (name.to_owned(), made.to_owned());
            policy(HashInput::OwnCookie(Box::new(OwnCookie {
                name,
                path,
                ttl: None,
                attributes: Vec::new(),
            })))
        };
        let x = Some(xx_hash(b"x", 0));
        assert_eq!(hash(&[own("none", "x")]), x);
        assert_eq!(hash(&[own("empty", "x")]), x);
        assert_eq!(hash(&[own("s", "y")]), x);
        assert_eq!(hash(&[policy(HashInput::Cookie("empty".into()))]), None);
        let first = HashPolicy { terminal: true, ..own("s", "y") };
        assert_eq!(hash(&[first, own("none", "z")]), x);
    }

    #[test]
    fn policies_add_up_to_the_first_terminal_one_that_has_a_say() {
        let header = |name: &str| policy(HashInput::Header(name.into()));
        assert_eq!(hash(&[]), None);
        assert_eq!(hash(&[header("x-none")]), None);
        let x = xx_hash(b"x", 0);
        assert_eq!(hash(&[header("x-h"), header("x-h")]), Some(x.rotate_left(1) ^ x));
        let last = HashPolicy { terminal: true, ..header("x-h") };
        assert_eq!(hash(&[last, policy(HashInput::SourceIp)]), Some(x));
        let silent = HashPolicy { terminal: true, ..header("x-none") };
        assert_eq!(hash(&[silent, header("x-h")]), Some(x));
    }
}
