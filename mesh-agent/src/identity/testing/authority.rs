//! An authority for peers that are not of the mesh.

use std::time::SystemTime;

use rcgen::{BasicConstraints, CertificateParams, Issuer, KeyPair, SanType};

use crate::model::tls::{Roots, ValidationContext, anchors_from_pem};

/// An authority, and what it issues in PEM.
pub(in crate::identity) struct Authority {
    pub(in crate::identity) pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(in crate::identity) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    pub(in crate::identity) fn issue(
        &self,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        let san = |name: &&str| match name.contains("://") {
            true => SanType::URI((*name).try_into().unwrap()),
            false => SanType::DnsName((*name).try_into().unwrap()),
        };
        params.subject_alt_names = names.iter().map(san).collect();
        change(&mut params);
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    pub(in crate::identity) fn revokes(&self, serial: u64) -> String {
        let now = time::OffsetDateTime::from(SystemTime::now());
        let params = rcgen::CertificateRevocationListParams {
            this_update: now - time::Duration::hours(1),
            next_update: now + time::Duration::hours(1),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: vec![rcgen::RevokedCertParams {
                serial_number: serial.into(),
                revocation_time: now - time::Duration::minutes(1),
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }

    pub(in crate::identity) fn roots(&self) -> Roots {
        Roots::Inline(anchors_from_pem(self.pem.as_bytes()).unwrap().into())
    }

    pub(in crate::identity) fn trusted(&self) -> ValidationContext {
        ValidationContext { roots: Some(self.roots()), ..ValidationContext::default() }
    }
}
