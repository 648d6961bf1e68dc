//! Certificates: those that no honest agent would present, for tests that try to get in,
//! and those that a control plane hands out.

use std::{fs, path::Path, time::Duration};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};

/// An authority that signs whatever it is asked to.
#[derive(Debug)]
pub struct Pki {
    root_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate with its key.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// The certificate, DER.
    pub certificate: Vec<u8>,
    /// Its key, PKCS#8 in DER.
    pub key: Vec<u8>,
    /// The certificate, PEM.
    pub certificate_pem: String,
    /// Its key, PKCS#8 in PEM.
    pub key_pem: String,
}

impl Credentials {
    /// A line of the certificate's PEM, and one of the key's, that no other has.
    pub fn marks(&self) -> [&str; 2] {
        [&self.certificate_pem, &self.key_pem].map(|pem| pem.lines().nth(2).unwrap_or_default())
    }
}

/// When a certificate is valid, seen from now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    /// From a minute ago, for an hour.
    Now,
    /// From a minute ago, and for so much longer.
    For(Duration),
    /// Until an hour ago.
    Past,
    /// From in an hour.
    Future,
}

impl Pki {
    /// The bed's own authority: what it signs is trusted by the agents.
    pub fn of_the_mesh(ca_dir: &Path) -> Self {
        let read = |name: &str| {
            fs::read_to_string(ca_dir.join(name)).unwrap_or_else(|e| panic!("read {name}: {e}"))
        };
        let root_pem = read("root.pem");
        let key = KeyPair::from_pem(&read("root-key.pem")).expect("the root's key");
        let issuer = Issuer::from_ca_cert_pem(&root_pem, key).expect("the root certificate");
        Self { root_pem, issuer }
    }

    /// An authority that nobody trusts.
    pub fn foreign() -> Self {
        let key = KeyPair::generate().expect("make a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "a foreign root");
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let root_pem = params.self_signed(&key).expect("sign the root").pem();
        Self { root_pem, issuer: Issuer::new(params, key) }
    }

    /// The root certificate, or the intermediate's, PEM.
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// An authority that this one vouches for.
    #[must_use]
    pub fn intermediate(&self) -> Self {
        let key = KeyPair::generate().expect("make a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "an intermediate");
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let signed = params.signed_by(&key, &self.issuer).expect("sign the intermediate");
        Self { root_pem: signed.pem(), issuer: Issuer::new(params, key) }
    }

    /// A certificate for `names`: URIs, addresses and DNS names.
    pub fn issue(&self, names: &[&str], validity: Validity) -> Credentials {
        self.issue_with(names, validity, |_| {})
    }

    /// A certificate of who has this common name and this organization.
    pub fn issue_to(&self, [name, organization]: [&str; 2], names: &[&str]) -> Credentials {
        self.issue_with(names, Validity::Now, |params| {
            params.distinguished_name = DistinguishedName::new();
            params.distinguished_name.push(DnType::OrganizationName, organization);
            params.distinguished_name.push(DnType::CommonName, name);
        })
    }

    /// As [`Pki::issue`], once `change` is made.
    pub fn issue_with(
        &self,
        names: &[&str],
        validity: Validity,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Credentials {
        let key = KeyPair::generate().expect("make a key");
        let mut params = CertificateParams::default();
        let san = |name: &&str| match (name.parse(), name.contains("://")) {
            (Ok(address), _) => SanType::IpAddress(address),
            (_, true) => SanType::URI((*name).try_into().expect("a URI is ASCII")),
            (_, false) => SanType::DnsName((*name).try_into().expect("a name is ASCII")),
        };
        params.subject_alt_names = names.iter().map(san).collect();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let (hour, minute) = (Duration::from_secs(3600), Duration::from_secs(60));
        let now = std::time::SystemTime::now();
        let (from, to) = match validity {
            Validity::Now => (now - minute, now + hour),
            Validity::For(life) => (now - minute, now + life),
            Validity::Past => (now - 2 * hour, now - hour),
            Validity::Future => (now + hour, now + 2 * hour),
        };
        params.not_before = from.into();
        params.not_after = to.into();
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).expect("sign the certificate");
        Credentials {
            certificate: certificate.der().to_vec(),
            key: key.serialize_der(),
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        }
    }
}
