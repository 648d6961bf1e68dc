//! What a peer has to prove.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use rustls::pki_types::TrustAnchor;
use serde::{Serialize, Serializer};
use webpki::CertRevocationList;

use crate::model::{authz::StringMatcher, identity::TrustDomain};

/// Spec: `CertificateValidationContext`.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ValidationContext {
    /// Who may vouch for the peer.
    pub roots: Option<Roots>,
    /// Roots by the trust domain they vouch for, in place of `roots`. Spec:
    /// `SPIFFECertValidatorConfig`.
    pub trust_domains: BTreeMap<TrustDomain, Roots>,
    pub crls: Option<Crls>,
    /// Whether intermediates may be revoked without consequence.
    pub only_leaf_crl: bool,
    /// SHA-256 of the peer's certificate.
    #[serde(serialize_with = "hex")]
    pub certificate_hashes: Vec<[u8; 32]>,
    /// SHA-256 of the peer's public key.
    #[serde(serialize_with = "hex")]
    pub spki_hashes: Vec<[u8; 32]>,
    /// One of these must match; empty: any name will do.
    pub sans: Vec<SanMatcher>,
    /// Nobody has to vouch for the peer: it was said in so many words.
    pub accept_untrusted: bool,
}

impl ValidationContext {
    /// This one on top of `default`: lists are joined, the rest takes the place of what
    /// was there. Spec: `google.protobuf.Message.MergeFrom`.
    pub fn on_top_of(&self, default: &Self) -> Self {
        let joined = |a: &[_], b: &[_]| [a, b].concat();
        let mut trust_domains = default.trust_domains.clone();
        trust_domains.extend(self.trust_domains.clone());
        Self {
            roots: self.roots.clone().or_else(|| default.roots.clone()),
            trust_domains,
            crls: self.crls.clone().or_else(|| default.crls.clone()),
            only_leaf_crl: self.only_leaf_crl || default.only_leaf_crl,
            certificate_hashes: joined(&default.certificate_hashes, &self.certificate_hashes),
            spki_hashes: joined(&default.spki_hashes, &self.spki_hashes),
            sans: [default.sans.clone(), self.sans.clone()].concat(),
            accept_untrusted: self.accept_untrusted || default.accept_untrusted,
        }
    }

    /// Why peers can't be told apart by it, if so.
    pub fn flaw(&self) -> Option<&'static str> {
        let vouched = self.roots.is_some() || !self.trust_domains.is_empty();
        let pinned = !self.certificate_hashes.is_empty() || !self.spki_hashes.is_empty();
        if vouched || self.accept_untrusted {
            None
        } else if !self.sans.is_empty() {
            Some("names prove nothing without a trusted_ca: anybody can write them")
        } else if self.crls.is_some() {
            Some("a crl is of no use without a trusted_ca")
        } else if pinned {
            None
        } else {
            Some(
                "nothing says whom to trust, and anybody would be believed to be the peer: \
                 set trusted_ca, or trust_chain_verification: ACCEPT_UNTRUSTED if that is meant",
            )
        }
    }
}

/// Certificates to trust.
#[derive(Clone)]
pub enum Roots {
    Inline(Arc<[TrustAnchor<'static>]>),
    File(PathBuf),
}

/// Revocation lists.
#[derive(Clone)]
pub enum Crls {
    Inline(Arc<[CertRevocationList<'static>]>),
    File(PathBuf),
}

#[derive(Debug, Clone, Serialize)]
pub struct SanMatcher {
    pub kind: SanType,
    pub matcher: StringMatcher,
}

/// Spec: `SubjectAltNameMatcher.SanType`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SanType {
    /// Of whatever kind; of the deprecated `match_subject_alt_names`.
    Any,
    Email,
    Dns,
    Uri,
    IpAddress,
    /// With this object identifier, in dotted form.
    OtherName(Arc<str>),
}

/// How many there are, or where.
impl Roots {
    fn summary(&self) -> String {
        match self {
            Self::Inline(roots) => format!("{} inline", roots.len()),
            Self::File(path) => path.display().to_string(),
        }
    }
}

/// How many there are, or where.
impl Crls {
    fn summary(&self) -> String {
        match self {
            Self::Inline(lists) => format!("{} inline", lists.len()),
            Self::File(path) => path.display().to_string(),
        }
    }
}

macro_rules! summarized {
    ($($name:ident),*) => { $(
        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{}({})", stringify!($name), self.summary())
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.summary())
            }
        }
    )* };
}
summarized!(Roots, Crls);

fn hex<S: Serializer>(hashes: &[[u8; 32]], serializer: S) -> Result<S::Ok, S::Error> {
    let hex = |hash: &[u8; 32]| hash.iter().map(|b| format!("{b:02x}")).collect::<String>();
    serializer.collect_seq(hashes.iter().map(hex))
}
