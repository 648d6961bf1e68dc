//! Trust bundles: whom to believe about which trust domain.

use std::{collections::BTreeMap, fmt};

use rustls::pki_types::{CertificateDer, TrustAnchor, pem::PemObject};

use crate::model::identity::TrustDomain;

/// Why a root certificate cannot be trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// It cannot be read.
    #[error("root certificate {index} for trust domain {trust_domain}: {reason}")]
    Malformed { trust_domain: TrustDomain, index: usize, reason: String },
    /// There is none.
    #[error("no root certificate for trust domain {trust_domain}")]
    Empty { trust_domain: TrustDomain },
}

/// The roots of every trusted trust domain. A root vouches for its own domain only,
/// whatever names its certificates carry.
///
/// Spec: SPIFFE Trust Domain and Bundle §4.
#[derive(Clone, Default)]
pub struct TrustBundles {
    domains: BTreeMap<TrustDomain, Vec<TrustAnchor<'static>>>,
}

impl TrustBundles {
    /// Nobody is trusted.
    pub fn new() -> Self {
        Self::default()
    }

    /// Trusts `roots` for `trust_domain`, in place of what was trusted for it before.
    ///
    /// # Errors
    /// When there is no root or one cannot be read; nothing is changed then.
    pub fn insert(
        &mut self,
        trust_domain: TrustDomain,
        roots: &[CertificateDer<'_>],
    ) -> Result<(), TrustError> {
        if roots.is_empty() {
            return Err(TrustError::Empty { trust_domain });
        }
        let mut anchors = Vec::with_capacity(roots.len());
        for (index, root) in roots.iter().enumerate() {
            let anchor = webpki::anchor_from_trusted_cert(root).map_err(|e| {
                let trust_domain = trust_domain.clone();
                TrustError::Malformed { trust_domain, index, reason: e.to_string() }
            })?;
            anchors.push(anchor.to_owned());
        }
        self.domains.insert(trust_domain, anchors);
        Ok(())
    }

    /// As [`TrustBundles::insert`], of roots that were read already.
    ///
    /// # Errors
    /// When there is no root.
    pub fn insert_anchors(
        &mut self,
        trust_domain: TrustDomain,
        anchors: &[TrustAnchor<'static>],
    ) -> Result<(), TrustError> {
        if anchors.is_empty() {
            return Err(TrustError::Empty { trust_domain });
        }
        self.domains.insert(trust_domain, anchors.to_vec());
        Ok(())
    }

    /// As [`TrustBundles::insert`], for one or more certificates in PEM.
    ///
    /// # Errors
    /// As [`TrustBundles::insert`].
    pub fn insert_pem(&mut self, trust_domain: TrustDomain, pem: &[u8]) -> Result<(), TrustError> {
        let mut roots = Vec::new();
        for (index, root) in CertificateDer::pem_slice_iter(pem).enumerate() {
            roots.push(root.map_err(|e| {
                let trust_domain = trust_domain.clone();
                TrustError::Malformed { trust_domain, index, reason: e.to_string() }
            })?);
        }
        self.insert(trust_domain, &roots)
    }

    /// Stops trusting `trust_domain`.
    pub fn remove(&mut self, trust_domain: &TrustDomain) {
        self.domains.remove(trust_domain);
    }

    /// The trusted trust domains.
    pub fn trust_domains(&self) -> impl Iterator<Item = &TrustDomain> {
        self.domains.keys()
    }

    pub(super) fn roots(&self, trust_domain: &TrustDomain) -> Option<&[TrustAnchor<'static>]> {
        self.domains.get(trust_domain).map(Vec::as_slice)
    }
}

impl fmt::Debug for TrustBundles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.domains.iter().map(|(d, r)| (d.as_str(), r.len()))).finish()
    }
}
