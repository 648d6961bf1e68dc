//! The rustls configurations of the mesh: TLS 1.3, both sides authenticated by SPIFFE
//! certificates, HTTP/2 for HBONE.
//!
//! - Key exchange: X25519MLKEM768 first, then X25519 and P-256.
//! - No session resumption on either side: a resumed session would carry the peer's
//!   identity past the expiry of its certificate and past a change of trust. HBONE
//!   pools its connections, so full handshakes are rare.
//! - No SNI: the server is told apart by its address, and proven by its SPIFFE ID.

use std::sync::Arc;

use rustls::{
    ClientConfig, CommonState, ServerConfig,
    client::{ResolvesClientCert, Resumption, danger::ServerCertVerifier},
    crypto::{
        CryptoProvider,
        aws_lc_rs::{
            cipher_suite::{
                TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
            },
            default_provider,
            kx_group::{SECP256R1, X25519, X25519MLKEM768},
        },
    },
    pki_types::ServerName,
    server::{NoServerSessionStorage, ResolvesServerCert, danger::ClientCertVerifier},
    version::TLS13,
};

use super::{clock::Clock, refusal::RefusedPeer, verify::read_identity};
use crate::model::identity::Identity;

/// What HBONE speaks inside TLS.
pub const ALPN_H2: &[u8] = b"h2";

/// The name to give to a TLS client that connects with one of our configurations. It
/// is never sent and never compared: the expected identity is in the configuration.
pub fn server_name() -> ServerName<'static> {
    ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into())
}

/// The identity that the peer of a finished handshake proved.
///
/// # Errors
/// [`RefusedPeer::NoCertificate`] before the handshake is finished or where the
/// configuration is none of ours.
pub fn peer_identity(connection: &CommonState) -> Result<Identity, RefusedPeer> {
    match connection.peer_certificates() {
        Some([leaf, ..]) => read_identity(leaf),
        _ => Err(RefusedPeer::NoCertificate),
    }
}

/// The algorithms of the mesh.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            TLS13_AES_128_GCM_SHA256,
            TLS13_AES_256_GCM_SHA384,
            TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![X25519MLKEM768, X25519, SECP256R1],
        ..default_provider()
    })
}

pub(super) fn server_config(
    provider: Arc<CryptoProvider>,
    verifier: Arc<dyn ClientCertVerifier>,
    certificate: Arc<dyn ResolvesServerCert>,
    clock: Clock,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut config = ServerConfig::builder_with_details(provider, clock)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

pub(super) fn client_config(
    provider: Arc<CryptoProvider>,
    verifier: Arc<dyn ServerCertVerifier>,
    certificate: Arc<dyn ResolvesClientCert>,
    clock: Clock,
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let mut config = ClientConfig::builder_with_details(provider, clock)
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(certificate);
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests;
