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
