//! A connection that capture handed to the agent, before anything was decided.

use std::{
    fmt::Write as _,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::SystemTime,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};

use super::{
    identity::Identity, listener_filter::Inspected, socket::PodSockets, workload::Workload,
};

/// An enrolled pod: who it is, and how to make sockets in its namespace.
#[derive(Debug)]
pub struct Pod {
    pub workload: Workload,
    pub sockets: Arc<dyn PodSockets>,
}

/// How an inbound connection reached the destination workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InboundPeer {
    /// Through HBONE: the TLS handshake proved this identity.
    Mtls(Identity),
    /// As plaintext from the wire: nobody vouches for it.
    Plaintext,
}

impl InboundPeer {
    /// The proven identity, if there is one.
    pub fn identity(&self) -> Option<&Identity> {
        match self {
            Self::Mtls(identity) => Some(identity),
            Self::Plaintext => None,
        }
    }
}

/// A connection that a local pod opened.
#[derive(Debug, Clone)]
pub struct CapturedOutbound {
    /// The pod that dialled: its identity is the connection's source identity.
    pub pod: Arc<Pod>,
    /// The application's own address.
    pub source: SocketAddr,
    /// What the application asked for, before eBPF rewrote it. IPv4-mapped IPv6
    /// is shown as IPv4.
    pub original_destination: SocketAddr,
    pub inspected: Inspected,
}

/// A connection that arrived for a local pod.
#[derive(Debug, Clone)]
pub struct CapturedInbound {
    /// The destination workload.
    pub pod: Arc<Pod>,
    /// Where the packets came from; with HBONE, where the TLS connection came from.
    pub source: SocketAddr,
    /// The address and port the peer asked for: with HBONE the `:authority`.
    pub original_destination: SocketAddr,
    pub peer: InboundPeer,
}

/// A connection that a client made to a gateway listener of this node.
#[derive(Debug, Clone)]
pub struct AcceptedByGateway {
    /// The gateway itself, as a workload of the mesh.
    pub pod: Arc<Pod>,
    /// The socket's own address, by which its listener is found.
    pub bound: SocketAddr,
    /// Who connected.
    pub direct_source: SocketAddr,
    /// Who connected, by the PROXY protocol where that is spoken.
    pub source: SocketAddr,
    /// What the client asked for, by the PROXY protocol where that is spoken.
    pub original_destination: SocketAddr,
    pub inspected: Inspected,
    /// What became of the filter chain's TLS.
    pub peer: GatewayPeer,
}

/// How a gateway's client is spoken to, and who it has proven to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum GatewayPeer {
    #[default]
    Plaintext,
    Tls {
        /// The names of a certificate that somebody trusted vouches for: URIs, then DNS
        /// names, then the subject. Empty: none was presented.
        names: Arc<[Arc<str>]>,
        /// The first of them that is a workload's.
        identity: Option<Identity>,
        /// The SNI that was agreed on, in lower case.
        server_name: Option<Arc<str>>,
        session: TlsSession,
    },
}

/// What is told of a TLS connection, in OpenSSL's words; empty where nothing is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsSession {
    /// `TLSv1.3`
    pub version: &'static str,
    /// `TLS_AES_128_GCM_SHA256`, `ECDHE-RSA-AES128-GCM-SHA256`
    pub cipher: &'static str,
    /// `X25519MLKEM768`, `P-256`
    pub group: &'static str,
    /// The client's chain, its own first; empty unless somebody trusted vouches for it.
    pub peer: Arc<[PresentedCertificate]>,
    /// The listener's own that the client was shown.
    pub local: Option<Arc<PresentedCertificate>>,
}

/// What is told of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PresentedCertificate {
    pub der: PresentedDer,
    /// As RFC 2253 has it.
    pub subject: Box<str>,
    pub issuer: Box<str>,
    pub sans: SubjectAltNames,
    /// Hexadecimal.
    pub serial: Box<str>,
    pub fingerprint_1: Box<str>,
    pub fingerprint_256: Box<str>,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

/// A certificate as it was presented.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PresentedDer {
    der: Box<[u8]>,
    /// As it goes into headers, once somebody has wanted to know.
    encoded: OnceLock<String>,
}

impl PresentedDer {
    pub fn new(der: &[u8]) -> Self {
        Self { der: der.into(), encoded: OnceLock::new() }
    }

    /// PEM, URL-encoded as by Envoy.
    pub fn encoded(&self) -> &str {
        self.encoded.get_or_init(|| url_encoded_pem(&self.der))
    }
}

/// What PEM has in a line.
const PEM_COLUMNS: usize = 64;

fn url_encoded_pem(der: &[u8]) -> String {
    let base64 = BASE64_STANDARD.encode(der);
    let mut out = "-----BEGIN%20CERTIFICATE-----".to_owned();
    for (at, c) in base64.chars().enumerate() {
        if at % PEM_COLUMNS == 0 {
            out.push_str("%0A");
        }
        match c {
            // Writing to a string can't fail.
            '+' | '/' | '=' => _ = write!(out, "%{:02X}", u32::from(c)),
            c => out.push(c),
        }
    }
    out.push_str("%0A-----END%20CERTIFICATE-----%0A");
    out
}

/// A certificate's names by kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SubjectAltNames {
    pub uris: Box<[Box<str>]>,
    pub hosts: Box<[Box<str>]>,
    pub addresses: Box<[Box<str>]>,
    pub emails: Box<[Box<str>]>,
    pub others: Box<[Box<str>]>,
}

impl GatewayPeer {
    /// Whether TLS was terminated.
    pub fn is_tls(&self) -> bool {
        matches!(self, Self::Tls { .. })
    }
}
