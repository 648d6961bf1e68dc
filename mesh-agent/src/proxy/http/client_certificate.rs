//! `x-forwarded-client-cert`: who a client has proven to be, for those behind this proxy.
//!
//! Spec: Envoy's "HTTP header manipulation", `x-forwarded-client-cert`.

use http::{HeaderMap, HeaderValue};

use super::{
    forwarding::join_lines,
    headers::{FORWARDED_CLIENT_CERT, append_value, nominated},
};
use crate::{
    model::{
        captured::{PresentedCertificate, TlsSession},
        http_options::{CertificateDetails, ClientCertificates},
        identity::Identity,
    },
    policy::Flow,
};

/// Both ends of a connection whose client has proven who it is.
enum Proven<'a> {
    Certificate(&'a TlsSession, &'a PresentedCertificate),
    /// Through a tunnel of the mesh, or within the agent, where nothing was presented.
    Workload {
        own: &'a Identity,
        client: &'a Identity,
    },
}

/// Before anything is judged by it.
pub(super) fn of_request(headers: &mut HeaderMap, wanted: ClientCertificates, flow: &Flow) {
    let name = FORWARDED_CLIENT_CERT;
    if nominated(headers).any(|of| of.eq_ignore_ascii_case(name.as_str().as_bytes())) {
        // It was for this hop; what is said below is not.
        headers.remove(FORWARDED_CLIENT_CERT);
    }
    let proven = proven(flow);
    match (wanted, proven) {
        (ClientCertificates::AlwaysForwardOnly, _) | (ClientCertificates::ForwardOnly, Some(_)) => {
            join_lines(headers, FORWARDED_CLIENT_CERT);
        }
        (ClientCertificates::AppendForward(details), Some(proven)) => {
            match told(&proven, details) {
                Some(told) => {
                    join_lines(headers, FORWARDED_CLIENT_CERT);
                    append_value(headers, FORWARDED_CLIENT_CERT, &told, ",");
                }
                // What the client says would stand last, as if it were said here.
                None => _ = headers.remove(FORWARDED_CLIENT_CERT),
            }
        }
        (ClientCertificates::SanitizeSet(details), Some(proven)) => match told(&proven, details) {
            Some(told) => _ = headers.insert(FORWARDED_CLIENT_CERT, told),
            None => _ = headers.remove(FORWARDED_CLIENT_CERT),
        },
        (ClientCertificates::Sanitize, _) | (_, None) => {
            headers.remove(FORWARDED_CLIENT_CERT);
        }
    }
}

fn proven(flow: &Flow) -> Option<Proven<'_>> {
    if let Some(session) = flow.tls() {
        let certificate = session.peer.first()?;
        return Some(Proven::Certificate(session, certificate));
    }
    let client = flow.peer()?.identity()?;
    Some(Proven::Workload { own: &flow.pod().workload.identity, client })
}

fn told(proven: &Proven<'_>, details: CertificateDetails) -> Option<HeaderValue> {
    let mut parts = Vec::new();
    match proven {
        Proven::Workload { own, client } => {
            parts.push(format!("By={own}"));
            parts.extend(details.uri.then(|| format!("URI={client}")));
        }
        Proven::Certificate(session, certificate) => {
            let own = session.local.iter().flat_map(|own| &own.sans.uris);
            parts.extend(own.map(|uri| format!("By={uri}")));
            parts.push(format!("Hash={}", certificate.fingerprint_256));
            if details.cert {
                parts.push(format!("Cert=\"{}\"", certificate.der.encoded()));
            }
            if details.chain {
                let chain: String = session.peer.iter().map(|one| one.der.encoded()).collect();
                parts.push(format!("Chain=\"{chain}\""));
            }
            if details.subject {
                parts.push(format!("Subject=\"{}\"", certificate.subject));
            }
            if details.uri {
                parts.extend(certificate.sans.uris.iter().map(|uri| format!("URI={uri}")));
                if certificate.sans.uris.is_empty() {
                    parts.push("URI=".to_owned());
                }
            }
            if details.dns {
                parts.extend(certificate.sans.hosts.iter().map(|host| format!("DNS={host}")));
            }
        }
    }
    HeaderValue::try_from(parts.join(";")).ok()
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::SystemTime};

    use super::*;
    use crate::{
        model::{
            captured::{AcceptedByGateway, GatewayPeer, PresentedDer, SubjectAltNames},
            listener::{Direction, FilterChainMatch},
            listener_filter::Inspected,
            workload::MtlsMode,
        },
        policy::fixtures::{addr, by_tls, chain, listener, pod, snapshot},
    };

    /// A gateway's client that has presented a certificate of this subject.
    fn presents(subject: &str) -> Flow {
        let chain = by_tls(chain("tls", FilterChainMatch::default()));
        let bound = "10.0.0.1:443";
        let snapshot =
            snapshot(vec![listener(Direction::Gateway, bound, vec![chain], None)], vec![]);
        let certificate = PresentedCertificate {
            der: PresentedDer::new(b"der"),
            subject: subject.into(),
            issuer: "CN=ca".into(),
            sans: SubjectAltNames::default(),
            serial: "1".into(),
            fingerprint_1: "f1".into(),
            fingerprint_256: "f256".into(),
            not_before: SystemTime::UNIX_EPOCH,
            not_after: SystemTime::UNIX_EPOCH,
        };
        let session = TlsSession { peer: Arc::new([certificate]), ..TlsSession::default() };
        let source = addr("192.0.2.7:999");
        let accepted = AcceptedByGateway {
            pod: pod(MtlsMode::Strict),
            bound: addr(bound),
            direct_source: source,
            source,
            original_destination: addr(bound),
            inspected: Inspected::default(),
            peer: GatewayPeer::Tls {
                names: Arc::new([]),
                identity: None,
                server_name: None,
                session,
            },
        };
        Flow::gateway(Arc::new(accepted), &snapshot).unwrap()
    }

    /// What goes on of a claim.
    fn told(subject: &str, wanted: fn(CertificateDetails) -> ClientCertificates) -> Option<String> {
        let claim = HeaderValue::from_static("Hash=1;URI=spiffe://cluster.local/ns/a/sa/admin");
        let mut headers = HeaderMap::from_iter([(FORWARDED_CLIENT_CERT, claim)]);
        let details = CertificateDetails { subject: true, ..CertificateDetails::default() };
        of_request(&mut headers, wanted(details), &presents(subject));
        let told = headers.get(FORWARDED_CLIENT_CERT)?;
        Some(told.to_str().unwrap().to_owned())
    }

    /// Who reads the header takes its last element for what this proxy has seen: where there is
    /// none, a client's own would stand in its place.
    #[test]
    fn a_claim_goes_where_what_is_proven_cannot_be_said() {
        use ClientCertificates::{AppendForward, SanitizeSet};
        let own = "Hash=f256;Subject=\"CN=a\"";
        let claimed = "Hash=1;URI=spiffe://cluster.local/ns/a/sa/admin";
        assert_eq!(told("CN=a", AppendForward), Some(format!("{claimed},{own}")));
        assert_eq!(told("CN=a", SanitizeSet).as_deref(), Some(own));
        for unsayable in ["CN=a\nb", "CN=a\0", "CN=\u{7f}"] {
            assert_eq!(told(unsayable, AppendForward), None, "{unsayable:?}");
            assert_eq!(told(unsayable, SanitizeSet), None, "{unsayable:?}");
        }
    }
}
