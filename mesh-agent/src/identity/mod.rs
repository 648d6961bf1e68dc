//! Workload certificates: where they come from, their rotation, and the TLS
//! configurations made of them.
//!
//! A [`CertificateSource`] (the [`DevelopmentCa`], or SDS: [`SdsCertificates`]) has them
//! for an identity; the
//! [`IdentityManager`] keeps one valid certificate per identity of this node and
//! hands out rustls configurations that always present the newest one; [`tls`]
//! verifies what the peer presents. This room knows nothing of sockets, pods or
//! policy: `transport` runs the handshakes, `policy` judges the identity they prove.
//!
//! Invariants:
//! - A private key exists only inside the crypto library; it is never written to
//!   disk (the development CA's root excepted) and never formatted.
//! - An expired certificate is never presented: configurations are refused, and the
//!   ones already handed out resolve to nothing.
//! - No TLS session is resumed, so every connection is verified against the trust
//!   bundles and certificates of its own moment.

#![forbid(unsafe_code)]

pub mod ca;
mod certificate;
mod clock;
mod contexts;
mod csr;
pub mod downstream;
mod manager;
mod material;
mod refusal;
mod rotation;
mod sds;
mod source;
mod subject;
pub mod tls;
mod trust;
pub mod upstream;
mod verify;

#[cfg(test)]
mod testing;

pub use ca::{CaError, DevelopmentCa};
pub use clock::{Clock, Timestamp, system_clock};
pub use csr::PrivateKey;
pub use manager::{CertificateStatus, IdentityError, IdentityManager, IdentityOptions, Renewal};
pub use refusal::{PeerAlert, RefusedPeer, refusal, refused_by_peer, tls_refusal};
pub use sds::{SdsCertificates, SdsOptions, SecretNames, Secrets, Subscriptions};
pub use source::{CertificateSource, Fetch, Following, Issued, SourceError};
pub use tls::peer_identity;
pub use trust::{TrustBundles, TrustError};
