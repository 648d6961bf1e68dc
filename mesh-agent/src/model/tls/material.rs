//! Certificates, keys, roots and revocation lists out of PEM.

use std::{fmt, path::PathBuf, sync::Arc};

use rustls::{
    crypto::aws_lc_rs::sign::any_supported_type,
    pki_types::{
        CertificateDer, CertificateRevocationListDer, PrivateKeyDer, TrustAnchor, pem,
        pem::PemObject,
    },
    sign::CertifiedKey,
};
use serde::{Serialize, Serializer, ser::SerializeStruct as _};
use webpki::{CertRevocationList, OwnedCertRevocationList};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroize as _;

/// The largest file or inline value: more than a bundle of every public authority.
pub const MATERIAL_MAX_BYTES: usize = 4 << 20;

/// Why certificates, keys or lists are of no use. Never holds any of a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MaterialError {
    #[error("holds no {what} in PEM")]
    Empty { what: &'static str },
    #[error("is not PEM: {reason}")]
    NotPem { reason: String },
    #[error("{what} {index} can't be read: {reason}")]
    Malformed { what: &'static str, index: usize, reason: String },
    /// Of no algorithm that we know, encrypted, or damaged.
    #[error("the private key can't be used")]
    Key,
    /// Key and certificate are not a pair.
    #[error("the private key does not belong to the certificate")]
    KeyMismatch,
}

/// A certificate chain with its key, which were seen to be a pair. The key is inside the
/// crypto library, which wipes it; it has no other form here.
#[derive(Clone)]
pub struct TlsCertificate {
    certified: Arc<CertifiedKey>,
    serial: Arc<str>,
}

/// The files of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CertificateFiles {
    pub chain: PathBuf,
    pub key: PathBuf,
}

impl TlsCertificate {
    /// Reads a chain, leaf first, and its key.
    ///
    /// # Errors
    /// See [`MaterialError`].
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, MaterialError> {
        let what = "certificate";
        let chain: Vec<CertificateDer<'static>> = read(chain, what)?;
        let mut serial = String::new();
        for (index, certificate) in chain.iter().enumerate() {
            let malformed = |reason| MaterialError::Malformed { what, index, reason };
            let (_, parsed) = X509Certificate::from_der(certificate)
                .map_err(|error| malformed(error.to_string()))?;
            if index == 0 {
                serial = parsed.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect();
            }
        }
        // Its errors may quote what they could not read.
        let mut key = PrivateKeyDer::from_pem_slice(key).map_err(|_| MaterialError::Key)?;
        let signer = any_supported_type(&key);
        key.zeroize();
        let certified = CertifiedKey::new(chain, signer.map_err(|_| MaterialError::Key)?);
        certified.keys_match().map_err(|_| MaterialError::KeyMismatch)?;
        Ok(Self { certified: Arc::new(certified), serial: serial.into() })
    }

    /// For rustls.
    pub fn certified(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }

    /// The leaf's, hexadecimal.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// Whether both are the very same, not merely equal.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.certified, &other.certified)
    }
}

impl fmt::Debug for TlsCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("TlsCertificate");
        shown.field("serial", &self.serial).field("private_key", &"[redacted]").finish()
    }
}

/// The key is left out.
impl Serialize for TlsCertificate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let leaf = self.certified.cert.first();
        let leaf = leaf.and_then(|leaf| X509Certificate::from_der(leaf).ok()).map(|(_, leaf)| leaf);
        let mut shown = serializer.serialize_struct("TlsCertificate", 4)?;
        shown.serialize_field("serial", &self.serial)?;
        shown.serialize_field("subject", &leaf.as_ref().map(|l| l.subject().to_string()))?;
        let not_after = leaf.as_ref().map(|l| l.validity().not_after.to_string());
        shown.serialize_field("not_after", &not_after)?;
        shown.serialize_field("private_key", "[redacted]")?;
        shown.end()
    }
}

/// Every certificate, as a root to trust.
///
/// # Errors
/// See [`MaterialError`].
pub fn anchors_from_pem(pem: &[u8]) -> Result<Vec<TrustAnchor<'static>>, MaterialError> {
    let what = "certificate";
    let certificates: Vec<CertificateDer<'static>> = read(pem, what)?;
    let anchor = |(index, certificate)| match webpki::anchor_from_trusted_cert(certificate) {
        Ok(anchor) => Ok(anchor.to_owned()),
        Err(error) => Err(MaterialError::Malformed { what, index, reason: error.to_string() }),
    };
    certificates.iter().enumerate().map(anchor).collect()
}

/// Every revocation list.
///
/// # Errors
/// See [`MaterialError`].
pub fn crls_from_pem(pem: &[u8]) -> Result<Vec<CertRevocationList<'static>>, MaterialError> {
    let what = "revocation list";
    let lists: Vec<CertificateRevocationListDer<'static>> = read(pem, what)?;
    let list = |(index, list): (usize, &CertificateRevocationListDer<'_>)| {
        match OwnedCertRevocationList::from_der(list) {
            Ok(list) => Ok(list.into()),
            Err(error) => Err(MaterialError::Malformed { what, index, reason: error.to_string() }),
        }
    };
    lists.iter().enumerate().map(list).collect()
}

fn read<T: PemObject>(bytes: &[u8], what: &'static str) -> Result<Vec<T>, MaterialError> {
    let items: Result<Vec<_>, pem::Error> = T::pem_slice_iter(bytes).collect();
    let items = items.map_err(|error| MaterialError::NotPem { reason: error.to_string() })?;
    if items.is_empty() { Err(MaterialError::Empty { what }) } else { Ok(items) }
}
