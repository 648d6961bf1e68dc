//! Connections, and streams of HTTP/2, that are to become something else.
//!
//! Inside, what asks for another protocol is in the form of HTTP/1.1, as in Envoy; an
//! extended CONNECT of HTTP/2 is brought into it and out of it at both ends.

use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{CONNECTION, CONTENT_LENGTH, UPGRADE},
    request::Parts,
};
use hyper::ext::Protocol;

use super::reply::Reply;
use crate::{model::upgrade::CONNECT, transport::http_pool::HttpProtocol};

/// What a connection, or a stream of HTTP/2, is to become.
#[derive(Debug)]
pub(super) enum Switch {
    /// The protocol of this name.
    Protocol(HeaderValue),
    /// What a CONNECT asks for.
    Connect,
}

impl Switch {
    /// What a request asks for.
    pub(super) fn asked(head: &Parts) -> Option<Self> {
        match head.method == Method::CONNECT {
            true => Some(Self::Connect),
            false => upgrade(head).map(Self::Protocol),
        }
    }

    /// Its name among the upgrades of a configuration.
    pub(super) fn name(&self) -> &[u8] {
        match self {
            Self::Protocol(protocol) => protocol.as_bytes(),
            Self::Connect => CONNECT,
        }
    }

    /// Whether an upstream that speaks `protocol` agrees by `status`.
    ///
    /// Spec: RFC 9110 §9.3.6 and §15.2.2, RFC 8441 §5.
    pub(super) fn is_agreed(&self, protocol: HttpProtocol, status: StatusCode) -> bool {
        match (self, protocol) {
            (Self::Protocol(_), HttpProtocol::Http1) => status == StatusCode::SWITCHING_PROTOCOLS,
            (Self::Protocol(_), HttpProtocol::Http2) | (Self::Connect, _) => {
                status == StatusCode::OK
            }
        }
    }
}

/// The protocol that a client wants to go on in. An offer of HTTP/2 may be ignored: the
/// client goes on in HTTP/1.1.
fn upgrade(head: &Parts) -> Option<HeaderValue> {
    let mut asked = head.headers.get_all(CONNECTION).iter();
    let is_asked = asked.any(|value| {
        value
            .as_bytes()
            .split(|b| *b == b',')
            .any(|t| t.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
    });
    let protocol = head.headers.get(UPGRADE).filter(|_| is_asked)?;
    let mut offers = protocol.as_bytes().split(|b| *b == b',').map(<[u8]>::trim_ascii);
    let ignored = offers.all(|offer| offer.is_empty() || offer.eq_ignore_ascii_case(b"h2c"));
    (!ignored).then(|| protocol.clone())
}

/// An extended CONNECT becomes what it would be by HTTP/1.1, as in Envoy.
///
/// Spec: RFC 8441 §5.
///
/// # Errors
/// The protocol's name is no header's value.
pub(super) fn from_extended(head: &mut Parts, protocol: &Protocol) -> Result<(), Reply> {
    let protocol = HeaderValue::from_bytes(protocol.as_ref());
    let protocol = protocol.map_err(|_| Reply::bad_request("invalid :protocol"))?;
    head.method = Method::GET;
    offer(&mut head.headers, protocol);
    Ok(())
}

/// And back: what a request that asks for another protocol is to be sent by HTTP/2 with.
///
/// # Errors
/// As [`from_extended`].
pub(super) fn to_extended(head: &mut Parts, protocol: &HeaderValue) -> Result<Protocol, Reply> {
    let protocol = protocol.to_str().map_err(|_| Reply::bad_request("invalid upgrade"))?;
    head.method = Method::CONNECT;
    head.headers.remove(CONTENT_LENGTH);
    Ok(Protocol::from(protocol))
}

/// What says by HTTP/1.1 that a connection has changed its protocol is said by HTTP/2 without
/// these.
pub(super) fn unswitch(headers: &mut HeaderMap) {
    headers.remove(CONNECTION);
    headers.remove(UPGRADE);
}

/// Asks for another protocol, or agrees to it.
pub(super) fn offer(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, protocol);
}
