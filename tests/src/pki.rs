//! Certificates that no honest agent would present, for tests that try to get in.

use std::{fs, path::Path, time::Duration};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    SanType,
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

/// When a certificate is valid, seen from now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    /// From a minute ago, for an hour.
    Now,
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
        let root_pem = params.self_signed(&key).expect("sign the root").pem();
        Self { root_pem, issuer: Issuer::new(params, key) }
    }

    /// The root certificate, PEM.
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// A certificate with `uris` as its URI SANs.
    pub fn issue(&self, uris: &[&str], validity: Validity) -> Credentials {
        let san = |uri: &&str| SanType::URI((*uri).try_into().expect("a URI is ASCII"));
        self.sign(uris.iter().map(san).collect(), validity)
    }

    /// A certificate with `hosts` as its DNS SANs.
    pub fn issue_for_hosts(&self, hosts: &[&str], validity: Validity) -> Credentials {
        let san = |host: &&str| SanType::DnsName((*host).try_into().expect("a host is ASCII"));
        self.sign(hosts.iter().map(san).collect(), validity)
    }

    fn sign(&self, names: Vec<SanType>, validity: Validity) -> Credentials {
        let key = KeyPair::generate().expect("make a key");
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let (hour, minute) = (Duration::from_secs(3600), Duration::from_secs(60));
        let now = std::time::SystemTime::now();
        let (from, to) = match validity {
            Validity::Now => (now - minute, now + hour),
            Validity::Past => (now - 2 * hour, now - hour),
            Validity::Future => (now + hour, now + 2 * hour),
        };
        params.not_before = from.into();
        params.not_after = to.into();
        let certificate = params.signed_by(&key, &self.issuer).expect("sign the certificate");
        Credentials {
            certificate: certificate.der().to_vec(),
            key: key.serialize_der(),
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        }
    }
}
