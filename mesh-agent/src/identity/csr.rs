//! A workload's private key and the signing request made with it.

use std::{fmt, sync::Arc};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use rcgen::{CertificateParams, DistinguishedName, SanType};
use rustls::{
    SignatureAlgorithm, SignatureScheme,
    pki_types::{CertificateSigningRequestDer, SubjectPublicKeyInfoDer, alg_id},
    sign::{Signer, SigningKey, public_key_to_spki},
};

use crate::model::identity::Identity;

/// A P-256 key that lives in the crypto library alone: it signs handshakes and
/// requests, has no serialized form, and is wiped by the library when it is freed
/// (AWS-LC cleanses all memory it frees).
#[derive(Clone)]
pub struct PrivateKey {
    pair: Arc<EcdsaKeyPair>,
}

impl PrivateKey {
    /// A new random key.
    ///
    /// # Errors
    /// When the crypto library has no randomness to offer.
    pub fn generate() -> Result<Self, aws_lc_rs::error::Unspecified> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING)?;
        Ok(Self { pair: Arc::new(pair) })
    }

    /// A key stored as PKCS #8.
    pub(super) fn from_pkcs8(der: &[u8]) -> Result<Self, aws_lc_rs::error::KeyRejected> {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der)?;
        Ok(Self { pair: Arc::new(pair) })
    }

    /// A PKCS #10 request for `identity`, signed with this key.
    ///
    /// # Errors
    /// When signing fails.
    pub fn signing_request(
        &self,
        identity: &Identity,
    ) -> Result<CertificateSigningRequestDer<'static>, rcgen::Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
        Ok(params.serialize_request(self)?.into())
    }

    /// The uncompressed curve point.
    pub(super) fn public_key(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    fn sign_message(&self, message: &[u8]) -> Option<Vec<u8>> {
        let signature = self.pair.sign(&SystemRandom::new(), message).ok()?;
        Some(signature.as_ref().to_vec())
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(P-256, redacted)")
    }
}

// === for rcgen: requests, and the development CA's own signatures ===

impl rcgen::PublicKeyData for PrivateKey {
    fn der_bytes(&self) -> &[u8] {
        self.public_key()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for PrivateKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.sign_message(message).ok_or(rcgen::Error::RemoteKeyError)
    }
}

// === for rustls: handshakes ===

impl SigningKey for PrivateKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let offered = offered.contains(&SignatureScheme::ECDSA_NISTP256_SHA256);
        offered.then(|| Box::new(self.clone()) as Box<dyn Signer>)
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(public_key_to_spki(&alg_id::ECDSA_P256, Self::public_key(self)))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

impl Signer for PrivateKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        self.sign_message(message).ok_or_else(|| rustls::Error::General("signing failed".into()))
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ECDSA_NISTP256_SHA256
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_the_identity_and_proves_the_key() {
        let key = PrivateKey::generate().unwrap();
        let identity = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
        let der = key.signing_request(&identity).unwrap();
        let request = rcgen::CertificateSigningRequestParams::from_der(&der).unwrap();
        assert_eq!(
            request.params.subject_alt_names,
            [SanType::URI(identity.to_string().try_into().unwrap())]
        );
        let other = PrivateKey::generate().unwrap();
        assert_ne!(key.public_key(), other.public_key());
    }

    #[test]
    fn debug_shows_no_key() {
        let key = PrivateKey::generate().unwrap();
        assert_eq!(format!("{key:?}"), "PrivateKey(P-256, redacted)");
    }
}
