//! One identity's current certificate, and the resolver that presents it.

use std::{fmt, sync::Arc};

use arc_swap::ArcSwapOption;
use rustls::{
    SignatureScheme,
    client::ResolvesClientCert,
    crypto::CryptoProvider,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{
    clock::{Clock, Timestamp},
    refusal::RefusedPeer,
    source::{Issued, SourceError},
    trust::TrustBundles,
    verify::{Role, verify_chain},
};
use crate::model::identity::Identity;

/// A certificate that was checked when it arrived.
#[derive(Debug)]
pub(super) struct Certificate {
    pub(super) certified: Arc<CertifiedKey>,
    /// Hexadecimal, as `openssl x509 -serial` prints it.
    pub(super) serial: String,
    pub(super) not_before: Timestamp,
    pub(super) not_after: Timestamp,
}

impl Certificate {
    /// Accepts what a source issued for `identity` if peers with the same trust
    /// bundles would.
    pub(super) fn accept(
        issued: Issued,
        identity: &Identity,
        trust: &TrustBundles,
        provider: &CryptoProvider,
        now: Timestamp,
    ) -> Result<Self, SourceError> {
        let Some((leaf, intermediates)) = issued.chain.split_first() else {
            return Err(SourceError::Malformed { reason: "empty chain".to_owned() });
        };
        let algorithms = &provider.signature_verification_algorithms;
        for role in [Role::Server, Role::Client] {
            let verified =
                verify_chain(trust, algorithms, leaf, intermediates, role, now.unix_time());
            match verified {
                Ok(named) if named == *identity => {}
                Ok(issued) => return Err(SourceError::OtherIdentity { issued }),
                Err(RefusedPeer::Expired { not_after, .. }) => {
                    return Err(SourceError::Expired { not_after });
                }
                Err(refused) => return Err(SourceError::Untrusted(refused)),
            }
        }
        let (serial, not_before, not_after) = match X509Certificate::from_der(leaf) {
            Ok((_, leaf)) => {
                let validity = leaf.validity();
                (hex(leaf.raw_serial()), validity.not_before.into(), validity.not_after.into())
            }
            Err(error) => return Err(SourceError::Malformed { reason: error.to_string() }),
        };
        let certified = CertifiedKey::new(issued.chain, issued.key);
        if certified.keys_match().is_err() {
            return Err(SourceError::KeyMismatch);
        }
        Ok(Self { certified: Arc::new(certified), serial, not_before, not_after })
    }

    /// Whether nothing has changed.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.certified.cert == other.certified.cert
    }

    /// The last second of `notAfter` is still valid. Spec: RFC 5280 §4.1.2.5.
    pub(super) fn has_expired(&self, now: Timestamp) -> bool {
        now > self.not_after
    }
}

/// The slot that a running configuration reads at every handshake.
pub(super) struct CurrentCertificate {
    identity: Identity,
    clock: Clock,
    slot: ArcSwapOption<Certificate>,
}

impl CurrentCertificate {
    pub(super) fn new(identity: Identity, clock: Clock) -> Arc<Self> {
        Arc::new(Self { identity, clock, slot: ArcSwapOption::empty() })
    }

    pub(super) fn replace(&self, certificate: Certificate) {
        self.slot.store(Some(Arc::new(certificate)));
    }

    /// The newest certificate, expired or not.
    pub(super) fn newest(&self) -> Option<Arc<Certificate>> {
        self.slot.load_full()
    }

    fn presentable(&self) -> Option<Arc<CertifiedKey>> {
        let certificate = self.slot.load();
        let certificate = certificate.as_ref()?;
        if certificate.has_expired(Timestamp::now(&self.clock)) {
            return None;
        }
        Some(Arc::clone(&certificate.certified))
    }
}

impl fmt::Debug for CurrentCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CurrentCertificate({})", self.identity)
    }
}

impl ResolvesServerCert for CurrentCertificate {
    fn resolve(&self, _client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.presentable()
    }
}

impl ResolvesClientCert for CurrentCertificate {
    fn resolve(
        &self,
        _root_hint_subjects: &[&[u8]],
        _sigschemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        self.presentable()
    }

    fn has_certs(&self) -> bool {
        self.presentable().is_some()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
