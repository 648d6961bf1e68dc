//! What command operators tell of the downstream end, of connections and requests alike.

use std::{fmt::Display, io::Write as _, net::SocketAddr};

use crate::{
    model::{format::PlainOperator, listener::Direction},
    policy::Flow,
};

/// A connection's downstream end.
#[derive(Clone, Copy)]
pub(super) struct Downstream<'a> {
    /// Who is told to be the client.
    pub(super) remote: SocketAddr,
    /// The peer, as far as is known.
    pub(super) direct: SocketAddr,
    pub(super) local: SocketAddr,
    /// `None` where no filter chain is for it.
    pub(super) flow: Option<&'a Flow>,
}

impl<'a> Downstream<'a> {
    pub(super) fn of(flow: &'a Flow) -> Self {
        let (remote, local) = (flow.source(), flow.original_destination());
        Self { remote, direct: flow.direct_source(), local, flow: Some(flow) }
    }

    /// Appends the operator's value, and says whether there is one; `None`: it tells of
    /// something else.
    pub(super) fn append(&self, operator: PlainOperator, out: &mut Vec<u8>) -> Option<bool> {
        use PlainOperator as P;
        let Self { remote, direct, local, flow } = *self;
        let tls = flow.and_then(Flow::tls);
        let certificate = tls.and_then(|tls| tls.certificate.as_deref());
        Some(match operator {
            P::DownstreamRemoteAddress => shown(out, &remote),
            P::DownstreamRemoteAddressWithoutPort => shown(out, &remote.ip()),
            P::DownstreamRemotePort => shown(out, &remote.port()),
            P::DownstreamDirectRemoteAddress => shown(out, &direct),
            P::DownstreamDirectRemoteAddressWithoutPort => shown(out, &direct.ip()),
            P::DownstreamDirectRemotePort => shown(out, &direct.port()),
            P::DownstreamLocalAddress => shown(out, &local),
            P::DownstreamLocalAddressWithoutPort => shown(out, &local.ip()),
            P::DownstreamLocalPort => shown(out, &local.port()),
            P::FilterChainName => {
                let chain = flow.and_then(|flow| flow.chain());
                chain.is_some_and(|chain| text(out, &*chain.name))
            }
            P::RequestedServerName => {
                flow.and_then(Flow::requested_server_name).is_some_and(|name| text(out, name))
            }
            // Only a tunnel's handshake proves anything.
            P::DownstreamTlsVersion => tls.is_some_and(|tls| text(out, tls.version)),
            P::DownstreamTlsCipher => tls.is_some_and(|tls| text(out, tls.cipher)),
            P::DownstreamPeerSubject => certificate.is_some_and(|of| text(out, &*of.subject)),
            P::DownstreamPeerIssuer => certificate.is_some_and(|of| text(out, &*of.issuer)),
            P::DownstreamPeerSerial => certificate.is_some_and(|of| text(out, &*of.serial)),
            P::DownstreamPeerFingerprint256 => {
                certificate.is_some_and(|of| text(out, &*of.fingerprint_256))
            }
            P::DownstreamPeerDnsSan => certificate.is_some_and(|of| listed(out, &of.hosts)),
            P::DownstreamPeerUriSan if tls.is_some() => {
                certificate.is_some_and(|of| listed(out, &of.uris))
            }
            P::DownstreamPeerUriSan => {
                let flow = flow.filter(|flow| flow.direction() != Direction::Outbound);
                flow.and_then(Flow::source_identity).is_some_and(|name| shown(out, name))
            }
            P::DownstreamLocalUriSan => {
                let flow = flow.filter(|flow| flow.direction() == Direction::Inbound);
                let proven = flow.filter(|flow| flow.source_identity().is_some());
                proven.is_some_and(|flow| shown(out, &flow.pod().workload.identity))
            }
            _ => return None,
        })
    }
}

/// Appends it; `true`.
pub(super) fn shown(out: &mut Vec<u8>, value: &dyn Display) -> bool {
    // Writing to a Vec does not fail.
    write!(out, "{value}").is_ok()
}

/// Appends it; `false` of nothing.
pub(super) fn text<T: AsRef<[u8]> + ?Sized>(out: &mut Vec<u8>, value: &T) -> bool {
    out.extend_from_slice(value.as_ref());
    !value.as_ref().is_empty()
}

/// Appends them with commas between; `false` of none.
fn listed(out: &mut Vec<u8>, values: &[Box<str>]) -> bool {
    text(out, &values.join(","))
}

/// Appends it without spaces, as Envoy does; `false` of nothing.
pub(super) fn one_word(text: &str, out: &mut Vec<u8>) -> bool {
    out.extend(text.chars().map(|c| if c.is_ascii_graphic() { c as u8 } else { b'_' }));
    !text.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_become_one_word() {
        let mut out = Vec::new();
        assert!(one_word("the listener is n\u{f6}t\nHTTP", &mut out));
        assert_eq!(out, b"the_listener_is_n_t_HTTP");
        assert!(!one_word("", &mut Vec::new()));
    }
}
