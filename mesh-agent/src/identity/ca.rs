//! The development CA: a self-made root in a directory, signing in process.
//!
//! The root vouches for one trust domain, which its certificate names as URI SAN. (Name
//! constraints cannot say so: neither rcgen nor webpki knows them for URIs. Peers hold
//! a root to its own trust domain by their trust bundle.)

mod store;

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use tokio::sync::watch;

use self::store::{CERTIFICATE_FILE, KEY_FILE, Root};
use super::{
    clock::{Clock, Timestamp, system_clock},
    csr::PrivateKey,
    source::{CertificateSource, Fetch, Issued, SourceError},
    trust::{TrustBundles, TrustError},
};
use crate::model::identity::{Identity, TrustDomain};

/// How long a workload's certificate is valid unless told otherwise.
pub const DEFAULT_TTL: Duration = Duration::from_secs(24 * 3600);

/// How long before its issue a leaf is valid already, for peers whose clock is late.
const LEAF_CLOCK_SKEW: Duration = Duration::from_secs(60);
const ROOT_CLOCK_SKEW: Duration = Duration::from_secs(24 * 3600);
const ROOT_EXPIRY_WARNING: Duration = Duration::from_secs(30 * 24 * 3600);
const ROOT_TTL: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Why the development CA cannot be used, or cannot sign.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The file system refused.
    #[error("cannot {action} {}: {cause}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    /// `create` found a root.
    #[error("{} exists already", path.display())]
    Exists { path: PathBuf },
    /// There is no root, or only a half of one.
    #[error("{} is missing (`mesh-agent ca init` makes a root in an empty directory)", path.display())]
    Missing { path: PathBuf },
    /// The key is open to more than its owner.
    #[error("{} is readable by others (mode {mode:04o}): chmod it to 0600", path.display())]
    Exposed { path: PathBuf, mode: u32 },
    /// Whoever owns the key could exchange it.
    #[error("{} belongs to another user (uid {owner})", path.display())]
    ForeignOwner { path: PathBuf, owner: u32 },
    /// A file is not what its name says.
    #[error("{} cannot be used as root: {reason}", path.display())]
    Malformed { path: PathBuf, reason: String },
    /// `root.pem` and `root-key.pem` are not a pair.
    #[error("{CERTIFICATE_FILE} and {KEY_FILE} in {} do not belong together", dir.display())]
    KeyMismatch { dir: PathBuf },
    /// The root is that of another mesh.
    #[error(
        "{} is the root of trust domain `{found}`, but `{expected}` is configured",
        path.display()
    )]
    OtherTrustDomain { path: PathBuf, found: String, expected: TrustDomain },
    /// The root itself has expired.
    #[error("root of trust domain `{trust_domain}` expired at {not_after}")]
    RootExpired { trust_domain: TrustDomain, not_after: Timestamp },
    /// It cannot vouch for the identity.
    #[error("cannot sign for {identity}: this CA is for trust domain `{trust_domain}`")]
    ForeignIdentity { identity: Identity, trust_domain: TrustDomain },
    /// The signing request is broken, or its own signature is.
    #[error("signing request for {identity} is invalid: {cause}")]
    InvalidRequest {
        identity: Identity,
        #[source]
        cause: rcgen::Error,
    },
    /// The crypto library failed.
    #[error("cannot make a key or signature: {cause}")]
    Crypto {
        #[source]
        cause: rcgen::Error,
    },
}

/// Signs workload certificates with a root kept in a directory: `root.pem`, and
/// `root-key.pem` that only its owner may read.
pub struct DevelopmentCa {
    trust_domain: TrustDomain,
    issuer: Issuer<'static, PrivateKey>,
    root: CertificateDer<'static>,
    root_not_before: Timestamp,
    root_not_after: Timestamp,
    ttl: Duration,
    clock: Clock,
    trust: watch::Sender<Arc<TrustBundles>>,
}

impl DevelopmentCa {
    /// Makes a new root in `dir`, which is made too (mode 0700) where it is missing.
    ///
    /// # Errors
    /// [`CaError::Exists`] where `dir` holds a root, or half of one.
    pub fn create(dir: &Path, trust_domain: &TrustDomain) -> Result<Self, CaError> {
        for file in [KEY_FILE, CERTIFICATE_FILE] {
            let path = dir.join(file);
            if store::exists(&path)? {
                return Err(CaError::Exists { path });
            }
        }
        store::create_dir(dir)?;
        let path = dir.join(KEY_FILE);
        if !store::commit_new_key(&path)? {
            return Err(CaError::Exists { path });
        }
        Self::certify_and_open(dir, trust_domain)
    }

    /// Takes the root that `dir` holds.
    ///
    /// # Errors
    /// When it is missing, readable by others, broken, or another trust domain's.
    pub fn open(dir: &Path, trust_domain: &TrustDomain) -> Result<Self, CaError> {
        let root = Root::read(dir)?;
        let path = || dir.join(CERTIFICATE_FILE);
        let malformed = |reason: String| CaError::Malformed { path: path(), reason };
        if root.trust_domain != format!("spiffe://{trust_domain}") {
            let found = root.trust_domain.trim_start_matches("spiffe://").to_owned();
            return Err(CaError::OtherTrustDomain {
                path: path(),
                found,
                expected: trust_domain.clone(),
            });
        }
        let left = root.not_after.since(Timestamp::now(&system_clock()));
        if left < ROOT_EXPIRY_WARNING {
            let (path, not_after) = (path(), root.not_after);
            tracing::warn!(path = %path.display(), %not_after, "root certificate expires soon");
        }
        let issuer = Issuer::from_ca_cert_der(&root.certificate, root.key)
            .map_err(|e| malformed(e.to_string()))?;
        let mut trust = TrustBundles::new();
        trust
            .insert(trust_domain.clone(), std::slice::from_ref(&root.certificate))
            .map_err(|e| malformed(e.to_string()))?;
        Ok(Self {
            trust_domain: trust_domain.clone(),
            issuer,
            root: root.certificate,
            root_not_before: root.not_before,
            root_not_after: root.not_after,
            ttl: DEFAULT_TTL,
            clock: system_clock(),
            trust: watch::Sender::new(Arc::new(trust)),
        })
    }

    /// Takes the root that `dir` holds, and makes one first where there is none. Any
    /// number of agents may do so at once on a shared directory: they end with the
    /// same root, and an interrupted creation is completed.
    ///
    /// # Errors
    /// As [`DevelopmentCa::open`].
    pub fn open_or_create(dir: &Path, trust_domain: &TrustDomain) -> Result<Self, CaError> {
        // The key is always there before the certificate: a certificate without a key
        // was not left by an interrupted creation.
        let (key, certificate) = (dir.join(KEY_FILE), dir.join(CERTIFICATE_FILE));
        if store::exists(&certificate)? {
            return Self::open(dir, trust_domain);
        }
        store::create_dir(dir)?;
        if !store::exists(&key)? {
            store::commit_new_key(&key)?;
        }
        Self::certify_and_open(dir, trust_domain)
    }

    fn certify_and_open(dir: &Path, trust_domain: &TrustDomain) -> Result<Self, CaError> {
        let key = store::read_key(&dir.join(KEY_FILE))?;
        let now = Timestamp::now(&system_clock());
        let pem = self_signed_root(&key, trust_domain, now).map_err(crypto)?;
        store::commit(&dir.join(CERTIFICATE_FILE), pem.as_bytes(), 0o644)?;
        Self::open(dir, trust_domain)
    }

    /// How long the certificates signed from now on are valid; never longer than the
    /// root. Default: [`DEFAULT_TTL`]. Certificates count in seconds.
    #[must_use]
    pub fn with_ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Signs by another clock than the system's.
    #[must_use]
    pub fn with_clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// The trust domain it vouches for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// When the root expires; nothing can be signed from then on.
    pub fn root_not_after(&self) -> Timestamp {
        self.root_not_after
    }

    /// The root certificate, to be trusted by others.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// Trusts `roots` for another trust domain too, from the next handshake on.
    ///
    /// # Errors
    /// When a root cannot be read; nothing is changed then.
    pub fn trust_foreign(
        &self,
        trust_domain: TrustDomain,
        roots: &[CertificateDer<'_>],
    ) -> Result<(), TrustError> {
        self.change_trust(|trust| trust.insert(trust_domain, roots))
    }

    /// Stops trusting a foreign trust domain, from the next handshake on.
    pub fn distrust(&self, trust_domain: &TrustDomain) {
        self.trust.send_modify(|trust| Arc::make_mut(trust).remove(trust_domain));
    }

    fn change_trust(
        &self,
        change: impl FnOnce(&mut TrustBundles) -> Result<(), TrustError>,
    ) -> Result<(), TrustError> {
        let mut result = Ok(());
        self.trust.send_if_modified(|trust| {
            result = change(Arc::make_mut(trust));
            result.is_ok()
        });
        result
    }

    /// Signs the key of `request` for `identity`. Nothing but the key is taken from
    /// the request; that its sender is `identity` is for the caller to know.
    ///
    /// # Errors
    /// For an identity of another trust domain, a broken request, an expired root.
    pub fn sign(
        &self,
        request: &CertificateSigningRequestDer<'_>,
        identity: &Identity,
    ) -> Result<Vec<CertificateDer<'static>>, CaError> {
        if *identity.trust_domain() != self.trust_domain {
            return Err(CaError::ForeignIdentity {
                identity: identity.clone(),
                trust_domain: self.trust_domain.clone(),
            });
        }
        let now = Timestamp::now(&self.clock);
        if now >= self.root_not_after {
            return Err(CaError::RootExpired {
                trust_domain: self.trust_domain.clone(),
                not_after: self.root_not_after,
            });
        }
        let request = CertificateSigningRequestParams::from_der(request)
            .map_err(|cause| CaError::InvalidRequest { identity: identity.clone(), cause })?;
        let params = self.leaf_params(identity, now).map_err(crypto)?;
        let leaf = params.signed_by(&request.public_key, &self.issuer).map_err(crypto)?;
        Ok(vec![leaf.into()])
    }

    fn leaf_params(
        &self,
        identity: &Identity,
        now: Timestamp,
    ) -> Result<CertificateParams, rcgen::Error> {
        let mut params = CertificateParams::default();
        set_validity(
            &mut params,
            now.minus(LEAF_CLOCK_SKEW).max(self.root_not_before),
            now.plus(self.ttl).min(self.root_not_after),
        )?;
        params.serial_number = Some(random_serial()?);
        // The subject stays empty, which makes the SAN critical.
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        Ok(params)
    }

    fn issue(&self, identity: &Identity) -> Result<Issued, CaError> {
        let key = PrivateKey::generate().map_err(|_| crypto(rcgen::Error::RemoteKeyError))?;
        let request = key.signing_request(identity).map_err(crypto)?;
        let chain = self.sign(&request, identity)?;
        Ok(Issued { chain, key: Arc::new(key) })
    }
}

impl CertificateSource for DevelopmentCa {
    /// Never waits: two signatures, well below a millisecond.
    fn fetch<'a>(&'a self, identity: &'a Identity) -> Fetch<'a> {
        Box::pin(async move { self.issue(identity).map_err(SourceError::from) })
    }

    fn trust_bundles(&self) -> watch::Receiver<Arc<TrustBundles>> {
        self.trust.subscribe()
    }
}

impl fmt::Debug for DevelopmentCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DevelopmentCa")
            .field("trust_domain", &self.trust_domain)
            .field("root_not_after", &self.root_not_after)
            .field("ttl", &self.ttl)
            .finish_non_exhaustive()
    }
}

/// The root certificate in PEM.
fn self_signed_root(
    key: &PrivateKey,
    trust_domain: &TrustDomain,
    now: Timestamp,
) -> Result<String, rcgen::Error> {
    let serial = random_serial()?;
    let mut params = CertificateParams::default();
    set_validity(&mut params, now.minus(ROOT_CLOCK_SKEW), now.plus(ROOT_TTL))?;
    // Every root has a name of its own, so that a chain to another one of the same
    // trust domain is seen for what it is: signed by an unknown issuer.
    let name: String = serial.as_ref().iter().take(4).map(|b| format!("{b:02x}")).collect();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, trust_domain.as_str());
    params.distinguished_name.push(DnType::CommonName, format!("mesh development root {name}"));
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://{trust_domain}").try_into()?)];
    params.serial_number = Some(serial);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params.self_signed(key)?.pem())
}

fn set_validity(
    params: &mut CertificateParams,
    not_before: Timestamp,
    not_after: Timestamp,
) -> Result<(), rcgen::Error> {
    params.not_before = not_before.date_time().ok_or(rcgen::Error::Time)?;
    params.not_after = not_after.date_time().ok_or(rcgen::Error::Time)?;
    Ok(())
}

/// 127 random bits, never zero. Spec: RFC 5280 §4.1.2.2.
fn random_serial() -> Result<SerialNumber, rcgen::Error> {
    let mut bytes = [0_u8; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| rcgen::Error::RemoteKeyError)?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

const fn crypto(cause: rcgen::Error) -> CaError {
    CaError::Crypto { cause }
}

#[cfg(test)]
mod tests;
