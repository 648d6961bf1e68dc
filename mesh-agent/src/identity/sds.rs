//! Workload certificates and trust bundles from SDS.
//!
//! Somebody else speaks SDS and delivers the secrets that there are, whole, at every
//! change ([`SdsCertificates::deliver`]); this side says which names it wants. What is
//! delivered is judged like any certificate that is issued: it must be the workload's
//! own, and verify by the roots that came the same way. What does not leaves the last
//! good one in use.
//!
//! Names are by SPIRE's convention unless told otherwise: a certificate goes by its
//! SPIFFE ID, the roots by `ROOTCA`.
//!
//! Spec: SPIRE's `doc/spire_agent.md`, "SDS configuration".

use std::{
    collections::HashMap,
    fmt,
    future::Future,
    pin::Pin,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time};

use super::{
    source::{CertificateSource, Fetch, Following, Issued, SourceError},
    trust::{TrustBundles, TrustError},
};
use crate::model::{
    identity::{Identity, TrustDomain},
    secret::{Secret, SecretKind},
    tls::{CertificateMaterial, Roots, TlsCertificate, ValidationContext},
};

/// Every secret that has been delivered, by name.
pub type Secrets = Arc<HashMap<Arc<str>, Arc<Secret>>>;

/// How a secret's name is made of a workload's identity.
///
/// `{identity}` stands for the SPIFFE ID, `{trust_domain}`, `{namespace}` and
/// `{service_account}` for its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretNames(String);

const PLACEHOLDERS: [&str; 4] =
    ["{identity}", "{trust_domain}", "{namespace}", "{service_account}"];

impl FromStr for SecretNames {
    type Err = String;

    fn from_str(template: &str) -> Result<Self, String> {
        let rest = PLACEHOLDERS.iter().fold(template.to_owned(), |s, p| s.replace(p, ""));
        if template.is_empty() || rest.contains(['{', '}']) {
            return Err(format!("`{template}`: placeholders are {}", PLACEHOLDERS.join(", ")));
        }
        Ok(Self(template.to_owned()))
    }
}

impl SecretNames {
    /// The name of that identity's certificate.
    pub fn of(&self, identity: &Identity) -> Arc<str> {
        let trust_domain = identity.trust_domain().as_str();
        let name = self.0.replace("{trust_domain}", trust_domain);
        let name = name.replace("{namespace}", identity.namespace());
        let name = name.replace("{service_account}", identity.service_account());
        name.replace("{identity}", &identity.to_string()).into()
    }
}

/// What is asked for.
#[derive(Debug, Clone)]
pub struct SdsOptions {
    pub names: SecretNames,
    /// The validation context whose roots are trusted.
    pub validation: Arc<str>,
    /// Whose roots they are, where the secret itself does not say.
    pub trust_domain: TrustDomain,
    /// How long a secret may take to arrive before it counts as missing.
    pub patience: Duration,
}

/// Says which secrets are wanted. Every `want` has its `unwant`.
pub trait Subscriptions: Send + Sync {
    fn want(&self, secret: &Arc<str>);
    fn unwant(&self, secret: &Arc<str>);
}

/// Certificates that SDS delivers.
pub struct SdsCertificates {
    options: SdsOptions,
    subscriptions: Arc<dyn Subscriptions>,
    secrets: watch::Sender<Secrets>,
    trust: watch::Sender<Arc<TrustBundles>>,
    /// What `trust` was made of, good or bad.
    judged: Mutex<Option<Arc<Secret>>>,
}

impl SdsCertificates {
    /// A source that has nothing yet, and has asked for the roots.
    pub fn new(options: SdsOptions, subscriptions: Arc<dyn Subscriptions>) -> Self {
        subscriptions.want(&options.validation);
        Self {
            options,
            subscriptions,
            secrets: watch::Sender::default(),
            trust: watch::Sender::default(),
            judged: Mutex::default(),
        }
    }

    /// Takes in all secrets there are now. Roots come first: whoever is woken by a
    /// certificate judges it by them.
    pub fn deliver(&self, secrets: &Secrets) {
        if let Some(secret) = secrets.get(&self.options.validation) {
            let mut judged = self.judged.lock().unwrap_or_else(PoisonError::into_inner);
            if !judged.as_ref().is_some_and(|known| Arc::ptr_eq(known, secret)) {
                *judged = Some(Arc::clone(secret));
                self.take_roots(secret);
            }
        }
        self.secrets.send_if_modified(|known| {
            let changed = !Arc::ptr_eq(known, secrets);
            if changed {
                *known = Arc::clone(secrets);
            }
            changed
        });
    }

    fn take_roots(&self, secret: &Secret) {
        match bundles(secret, &self.options.trust_domain) {
            Ok(bundles) => {
                let domains: Vec<_> = bundles.trust_domains().map(TrustDomain::as_str).collect();
                tracing::info!(secret = %secret.name, ?domains, "trust bundles delivered");
                self.trust.send_replace(Arc::new(bundles));
            }
            Err(error) => {
                tracing::error!(secret = %secret.name, %error, "the last good trust bundles stay");
            }
        }
    }

    fn missing(&self, secret: &Arc<str>, what: &'static str) -> SourceError {
        SourceError::NoSecret { secret: Arc::clone(secret), what }
    }

    /// A secret, as soon as there is one of that name.
    async fn secret(
        &self,
        name: &Arc<str>,
        what: &'static str,
    ) -> Result<Arc<Secret>, SourceError> {
        let mut secrets = self.secrets.subscribe();
        let there = secrets.wait_for(|secrets| secrets.contains_key(name));
        let arrived = time::timeout(self.options.patience, there).await;
        let secret = arrived.ok().and_then(Result::ok).and_then(|s| s.get(name).map(Arc::clone));
        secret.ok_or_else(|| self.missing(name, what))
    }

    async fn issued(&self, identity: &Identity) -> Result<Issued, SourceError> {
        let name = self.options.names.of(identity);
        let secret = self.secret(&name, "the workload's certificate").await?;
        let certificate = certificate(&secret)?;
        // A bad one may have been replaced since.
        self.secret(&self.options.validation, "the roots to trust").await?;
        let certified = certificate.certified();
        Ok(Issued { chain: certified.cert.clone(), key: Arc::clone(&certified.key) })
    }
}

impl CertificateSource for SdsCertificates {
    fn fetch<'a>(&'a self, identity: &'a Identity) -> Fetch<'a> {
        Box::pin(self.issued(identity))
    }

    fn trust_bundles(&self) -> watch::Receiver<Arc<TrustBundles>> {
        self.trust.subscribe()
    }

    fn pushes(&self) -> bool {
        true
    }

    fn follow(&self, identity: &Identity) -> Option<Box<dyn Following>> {
        let name = self.options.names.of(identity);
        self.subscriptions.want(&name);
        Some(Box::new(Followed {
            name,
            validation: Arc::clone(&self.options.validation),
            subscriptions: Arc::clone(&self.subscriptions),
            secrets: self.secrets.subscribe(),
            // Whatever is there now may be fetched already, or not: it is new.
            seen: [None, None],
        }))
    }
}

impl Drop for SdsCertificates {
    fn drop(&mut self) {
        self.subscriptions.unwant(&self.options.validation);
    }
}

impl fmt::Debug for SdsCertificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SdsCertificates").field("options", &self.options).finish_non_exhaustive()
    }
}

/// One identity's secrets.
struct Followed {
    name: Arc<str>,
    validation: Arc<str>,
    subscriptions: Arc<dyn Subscriptions>,
    secrets: watch::Receiver<Secrets>,
    /// Its certificate and the roots, as they were last.
    seen: [Option<Arc<Secret>>; 2],
}

impl Followed {
    fn now(&mut self) -> [Option<Arc<Secret>>; 2] {
        let secrets = self.secrets.borrow_and_update();
        [&self.name, &self.validation].map(|name| secrets.get(name).map(Arc::clone))
    }
}

impl Following for Followed {
    fn changed<'a>(&'a mut self) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        Box::pin(async move {
            loop {
                let now = self.now();
                let is = |a: &Option<Arc<Secret>>, b: &Option<Arc<Secret>>| match (a, b) {
                    (Some(a), Some(b)) => Arc::ptr_eq(a, b),
                    (None, None) => true,
                    _ => false,
                };
                if !now.iter().zip(&self.seen).all(|(a, b)| is(a, b)) {
                    self.seen = now;
                    return;
                }
                if self.secrets.changed().await.is_err() {
                    // Nobody delivers any more.
                    return std::future::pending().await;
                }
            }
        })
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.subscriptions.unwant(&self.name);
    }
}

fn certificate(secret: &Secret) -> Result<&TlsCertificate, SourceError> {
    let other = |expected| SourceError::OtherSecret { secret: Arc::clone(&secret.name), expected };
    match &secret.kind {
        SecretKind::TlsCertificate(material) => match &**material {
            CertificateMaterial::Inline(certificate) => Ok(certificate),
            // Keys of workloads are in memory only.
            CertificateMaterial::Files(_) => Err(other("inline certificate")),
        },
        SecretKind::ValidationContext(_) => Err(other("certificate")),
    }
}

/// Why a secret's roots are not trusted.
#[derive(Debug, thiserror::Error)]
enum BundleError {
    #[error("it is no validation context")]
    OtherKind,
    /// Trusting without it would be trusting more than was said.
    #[error("{field} is not supported in the roots of workloads")]
    Unsupported { field: &'static str },
    #[error("it has no roots")]
    Empty,
    #[error(transparent)]
    Trust(#[from] TrustError),
}

fn bundles(secret: &Secret, trust_domain: &TrustDomain) -> Result<TrustBundles, BundleError> {
    let SecretKind::ValidationContext(context) = &secret.kind else {
        return Err(BundleError::OtherKind);
    };
    let ValidationContext {
        roots,
        trust_domains,
        crls,
        only_leaf_crl: _,
        certificate_hashes,
        spki_hashes,
        sans,
        accept_untrusted,
    } = &**context;
    for (field, is_set) in [
        ("crl", crls.is_some()),
        ("verify_certificate_hash", !certificate_hashes.is_empty()),
        ("verify_certificate_spki", !spki_hashes.is_empty()),
        ("match_typed_subject_alt_names", !sans.is_empty()),
        ("trust_chain_verification", *accept_untrusted),
    ] {
        if is_set {
            return Err(BundleError::Unsupported { field });
        }
    }
    let mut bundles = TrustBundles::new();
    let own = roots.iter().map(|roots| (trust_domain, roots));
    for (domain, roots) in own.chain(trust_domains) {
        match roots {
            Roots::Inline(anchors) => bundles.insert_anchors(domain.clone(), anchors)?,
            Roots::File(_) => return Err(BundleError::Unsupported { field: "filename" }),
        }
    }
    if bundles.trust_domains().next().is_none() {
        return Err(BundleError::Empty);
    }
    Ok(bundles)
}

#[cfg(test)]
mod tests;
