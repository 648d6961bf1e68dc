//! What command operators tell of the downstream end, of connections and requests alike.

use std::{fmt::Display, io::Write as _, net::SocketAddr};

use crate::{
    model::{
        captured::{PresentedCertificate, SubjectAltNames},
        format::{PlainOperator, TimeFormat, ValidityEnd},
        listener::Direction,
    },
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
        let Self { remote, direct, flow, .. } = *self;
        let tls = flow.and_then(Flow::tls);
        let chain = tls.map_or(&[][..], |tls| &tls.peer);
        let peer = chain.first();
        let local = tls.and_then(|tls| tls.local.as_deref());
        let of = |out: &mut Vec<u8>, certificate: Option<&PresentedCertificate>, pick: Told| {
            certificate.is_some_and(|certificate| text(out, pick(certificate)))
        };
        let names = |out: &mut Vec<u8>, certificate: Option<&PresentedCertificate>, pick: Names| {
            certificate.is_some_and(|of| text(out, &pick(&of.sans).join(",")))
        };
        let of_all = |out: &mut Vec<u8>, pick: Told| {
            text(out, &chain.iter().map(pick).collect::<Vec<_>>().join(","))
        };
        Some(match operator {
            P::DownstreamRemoteAddress => shown(out, &remote),
            P::DownstreamRemoteAddressWithoutPort => shown(out, &remote.ip()),
            P::DownstreamRemotePort => shown(out, &remote.port()),
            P::DownstreamDirectRemoteAddress => shown(out, &direct),
            P::DownstreamDirectRemoteAddressWithoutPort => shown(out, &direct.ip()),
            P::DownstreamDirectRemotePort => shown(out, &direct.port()),
            P::DownstreamLocalAddress => shown(out, &self.local),
            P::DownstreamLocalAddressWithoutPort => shown(out, &self.local.ip()),
            P::DownstreamLocalPort => shown(out, &self.local.port()),
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
            P::DownstreamTlsGroup => tls.is_some_and(|tls| text(out, tls.group)),
            // No session is ever resumed: none has a name.
            P::DownstreamTlsSessionId => false,
            P::DownstreamPeerSubject => of(out, peer, |of| &of.subject),
            P::DownstreamPeerIssuer => of(out, peer, |of| &of.issuer),
            P::DownstreamPeerSerial => of(out, peer, |of| &of.serial),
            P::DownstreamPeerFingerprint256 => of(out, peer, |of| &of.fingerprint_256),
            P::DownstreamPeerFingerprint1 => of(out, peer, |of| &of.fingerprint_1),
            P::DownstreamPeerChainFingerprints256 => of_all(out, |of| &of.fingerprint_256),
            P::DownstreamPeerChainFingerprints1 => of_all(out, |of| &of.fingerprint_1),
            P::DownstreamPeerChainSerials => of_all(out, |of| &of.serial),
            P::DownstreamPeerCert => of(out, peer, |of| of.der.encoded()),
            P::DownstreamPeerDnsSan => names(out, peer, |of| &of.hosts),
            P::DownstreamPeerIpSan => names(out, peer, |of| &of.addresses),
            P::DownstreamPeerEmailSan => names(out, peer, |of| &of.emails),
            P::DownstreamPeerOthernameSan => names(out, peer, |of| &of.others),
            P::DownstreamPeerUriSan if tls.is_some() => names(out, peer, |of| &of.uris),
            P::DownstreamLocalSubject => of(out, local, |of| &of.subject),
            P::DownstreamLocalDnsSan => names(out, local, |of| &of.hosts),
            P::DownstreamLocalIpSan => names(out, local, |of| &of.addresses),
            P::DownstreamLocalEmailSan => names(out, local, |of| &of.emails),
            P::DownstreamLocalOthernameSan => names(out, local, |of| &of.others),
            P::DownstreamLocalUriSan if tls.is_some() => names(out, local, |of| &of.uris),
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

    /// Appends when the client's certificate begins or ends to be valid, if there is one.
    pub(super) fn append_validity(
        &self,
        end: ValidityEnd,
        format: &TimeFormat,
        out: &mut Vec<u8>,
    ) -> bool {
        let Some(peer) = self.flow.and_then(Flow::tls).and_then(|tls| tls.peer.first()) else {
            return false;
        };
        format.append(
            match end {
                ValidityEnd::NotBefore => peer.not_before,
                ValidityEnd::NotAfter => peer.not_after,
            },
            out,
        );
        true
    }
}

/// One thing that is told of a certificate.
type Told = fn(&PresentedCertificate) -> &str;

/// Its names of one kind.
type Names = fn(&SubjectAltNames) -> &[Box<str>];

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

/// Appends it without spaces, as Envoy does; `false` of nothing.
pub(super) fn one_word(text: &str, out: &mut Vec<u8>) -> bool {
    out.extend(text.chars().map(|c| if c.is_ascii_graphic() { c as u8 } else { b'_' }));
    !text.is_empty()
}

/// Appends what an endpoint is called, or its address where it has no name; as Envoy, the port
/// is what follows the last colon outside of brackets.
pub(super) fn host_name(
    out: &mut Vec<u8>,
    name: Option<&str>,
    address: Option<SocketAddr>,
    with_port: bool,
) -> bool {
    let Some(address) = address else { return false };
    let from = out.len();
    match name {
        Some(name) => out.extend_from_slice(name.as_bytes()),
        None => _ = shown(out, &address),
    }
    let written = &out[from..];
    let colon = written.iter().rposition(|byte| *byte == b':').filter(|_| !with_port);
    if let Some(colon) = colon.filter(|colon| !written[*colon..].contains(&b']')) {
        out.truncate(from + colon);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_called_by_name_or_address() {
        let v6 = "[fd00::1]:80";
        for (name, address, expected, without_port) in [
            (None, "10.0.0.1:80", "10.0.0.1:80", "10.0.0.1"),
            (None, v6, v6, "[fd00::1]"),
            (Some("a.test"), v6, "a.test", "a.test"),
            (Some("a.test:81"), v6, "a.test:81", "a.test"),
            (Some("[fd00::2]"), v6, "[fd00::2]", "[fd00::2]"),
        ] {
            for (with_port, expected) in [(true, expected), (false, without_port)] {
                let mut out = b"a:b ".to_vec();
                assert!(host_name(&mut out, name, Some(address.parse().unwrap()), with_port));
                assert_eq!(String::from_utf8(out).unwrap(), format!("a:b {expected}"));
            }
        }
        assert!(!host_name(&mut Vec::new(), Some("a.test"), None, true));
    }

    #[test]
    fn details_become_one_word() {
        let mut out = Vec::new();
        assert!(one_word("the listener is n\u{f6}t\nHTTP", &mut out));
        assert_eq!(out, b"the_listener_is_n_t_HTTP");
        assert!(!one_word("", &mut Vec::new()));
    }
}
