//! The address of an endpoint, as clients keep it.
//!
//! Spec: `envoy.extensions.http.stateful_session.{cookie,header}.v3`; a cookie is the
//! `envoy.Cookie` of Envoy's `source/extensions/http/stateful_session/cookie`.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use prost::Message;

#[derive(Clone, PartialEq, Message)]
struct Cookie {
    #[prost(string, tag = "1")]
    address: String,
    /// Seconds since 1970; 0: never.
    #[prost(int64, tag = "2")]
    expires: i64,
}

/// A cookie's value.
pub fn cookie(address: &str, expires: Option<SystemTime>) -> String {
    let expires = expires.map_or(0, seconds);
    STANDARD.encode(Cookie { address: address.to_owned(), expires }.encode_to_vec())
}

/// The address in a cookie, unless it is too old; as Envoy, what is no message is an address.
pub fn of_cookie(value: &[u8], now: SystemTime) -> Option<String> {
    let bytes = STANDARD.decode(value).ok()?;
    let address = match Cookie::decode(bytes.as_slice()) {
        Ok(Cookie { expires, .. }) if expires != 0 && seconds(now) > expires => return None,
        Ok(Cookie { address, .. }) => address,
        Err(_) => String::from_utf8(bytes).ok()?,
    };
    Some(address).filter(|address| !address.is_empty())
}

/// A header's value.
pub fn header(address: &str) -> String {
    STANDARD.encode(address)
}

/// The address in a header.
pub fn of_header(value: &[u8]) -> Option<String> {
    let address = String::from_utf8(STANDARD.decode(value).ok()?).ok()?;
    Some(address).filter(|address| !address.is_empty())
}

fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn addresses_come_back_until_they_are_too_old() {
        let (now, minute) = (SystemTime::now(), Duration::from_secs(60));
        let kept = cookie("10.0.0.1:80", None);
        assert_eq!(of_cookie(kept.as_bytes(), now).as_deref(), Some("10.0.0.1:80"));
        let old = cookie("10.0.0.1:80", Some(now - minute));
        assert_eq!(of_cookie(old.as_bytes(), now), None);
        let young = cookie("10.0.0.1:80", Some(now + minute));
        assert_eq!(of_cookie(young.as_bytes(), now).as_deref(), Some("10.0.0.1:80"));
        // As it was before there was a message.
        let plain = header("10.244.2.10:9200");
        assert_eq!(of_cookie(plain.as_bytes(), now).as_deref(), Some("10.244.2.10:9200"));
        assert_eq!(of_header(plain.as_bytes()).as_deref(), Some("10.244.2.10:9200"));
        for nothing in ["", "!", "AAAA", "====", "gICAgA=="] {
            assert_eq!(of_cookie(nothing.as_bytes(), now).filter(|a| a.contains(':')), None);
        }
        assert_eq!(of_header(b""), None);
        assert_eq!(of_header(b"/////w=="), None);
    }
}
