//! Keeps one valid certificate for every identity of this node.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustls::{ClientConfig, ServerConfig, crypto::CryptoProvider, pki_types::CertificateDer};
use serde::Serialize;
use tokio::sync::{broadcast, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    certificate::{Certificate, CurrentCertificate},
    clock::{Clock, Timestamp, system_clock},
    refusal::RefusedPeer,
    rotation::{self, Progress},
    source::{CertificateSource, SourceError},
    tls,
    trust::TrustBundles,
    verify::{Role, SvidVerifier, verify_chain},
};
use crate::model::identity::Identity;

/// How many client configurations an identity keeps: one per identity it dials.
const CLIENT_CONFIGS: usize = 1024;

/// How many renewals may wait to be heard of.
const RENEWALS: usize = 256;

/// Why there is no TLS configuration to give.
#[derive(Debug, Clone, thiserror::Error)]
pub enum IdentityError {
    /// Nobody called [`IdentityManager::ensure`] for it, or it was released.
    #[error("{identity} is no identity of this node")]
    Unknown { identity: Identity },
    /// Its first certificate has not arrived.
    #[error("{identity} has no certificate yet")]
    Pending { identity: Identity },
    /// Its first certificate could not be fetched.
    #[error("cannot get a certificate for {identity}: {cause}")]
    Unavailable {
        identity: Identity,
        #[source]
        cause: Arc<SourceError>,
    },
    /// It could not be renewed in time.
    #[error(
        "certificate of {identity} expired at {not_after} and could not be renewed{}",
        because(last_error.as_deref())
    )]
    Expired { identity: Identity, not_after: Timestamp, last_error: Option<Arc<SourceError>> },
    /// The agent is stopping.
    #[error("certificate of {identity} is no longer kept: the agent is stopping")]
    Stopping { identity: Identity },
    /// rustls refused the configuration.
    #[error("cannot configure TLS for {identity}: {cause}")]
    Tls {
        identity: Identity,
        #[source]
        cause: rustls::Error,
    },
}

fn because(error: Option<&SourceError>) -> String {
    error.map_or_else(String::new, |e| format!(": {e}"))
}

/// How [`IdentityManager`] fetches and retries.
#[derive(Debug, Clone)]
pub struct IdentityOptions {
    /// Bounds one attempt to fetch a certificate.
    pub fetch_timeout: Duration,
    /// The pause after a first failure; it doubles with each further one.
    pub retry_min: Duration,
    /// The longest pause between attempts.
    pub retry_max: Duration,
    /// Judges validity, here and in handshakes.
    pub clock: Clock,
}

impl Default for IdentityOptions {
    fn default() -> Self {
        Self {
            fetch_timeout: Duration::from_secs(30),
            retry_min: Duration::from_secs(1),
            retry_max: Duration::from_secs(60),
            clock: system_clock(),
        }
    }
}

/// One identity's certificate, for `status`, metrics and the configuration dump.
#[derive(Debug, Clone, Serialize)]
pub struct CertificateStatus {
    pub identity: Identity,
    /// How many workloads of this node have it.
    pub holders: usize,
    /// Hexadecimal; `None` before the first certificate, as the next two.
    pub serial: Option<String>,
    pub not_before: Option<Timestamp>,
    pub not_after: Option<Timestamp>,
    /// Whether connections of this identity are refused now.
    pub expired: bool,
    /// Why the newest attempt to fetch or renew failed; `None` once one succeeded.
    pub last_error: Option<String>,
}

/// The certificates of this node's identities: fetches, rotates, and makes TLS
/// configurations of them.
///
/// Tasks are spawned on the runtime that [`IdentityManager::ensure`] is called on; they
/// end with [`IdentityManager::shutdown`], or when the manager is dropped.
pub struct IdentityManager {
    shared: Arc<Shared>,
    entries: Mutex<HashMap<Identity, Held>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// What rotation needs of the manager.
pub(super) struct Shared {
    pub(super) source: Arc<dyn CertificateSource>,
    pub(super) trust: watch::Receiver<Arc<TrustBundles>>,
    pub(super) provider: Arc<CryptoProvider>,
    pub(super) options: IdentityOptions,
    pub(super) renewals: broadcast::Sender<Renewal>,
    /// Told of every new certificate, first ones too.
    pub(super) arrivals: watch::Sender<()>,
}

/// What connections that are kept for later were not authenticated by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Renewal {
    /// The identity has another certificate than before.
    Certificate(Identity),
    /// Other roots are trusted than before; told by [`IdentityManager::trust`].
    Trust,
}

struct Held {
    holders: usize,
    entry: Arc<Entry>,
}

/// One identity's state; alive for as long as somebody holds the identity.
pub(super) struct Entry {
    pub(super) identity: Identity,
    pub(super) current: Arc<CurrentCertificate>,
    pub(super) progress: watch::Sender<Progress>,
    pub(super) stop: CancellationToken,
    server: Arc<ServerConfig>,
    clients: Mutex<ClientConfigs>,
}

impl IdentityManager {
    /// A manager without identities.
    pub fn new(source: Arc<dyn CertificateSource>, options: IdentityOptions) -> Self {
        let trust = source.trust_bundles();
        let renewals = broadcast::Sender::new(RENEWALS);
        let arrivals = watch::Sender::default();
        let provider = tls::provider();
        let shared = Shared { source, trust, provider, options, renewals, arrivals };
        Self {
            shared: Arc::new(shared),
            entries: Mutex::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        }
    }

    /// Holds `identity`: waits for its first certificate, which is rotated from then on
    /// until every holder has called [`IdentityManager::release`].
    ///
    /// Where the source pushes, not having got one yet is no failure: the identity is
    /// held, and its connections are refused until one comes.
    ///
    /// Cancel safe: where the future is dropped or fails, nothing is held.
    ///
    /// # Errors
    /// When the first attempt to fetch a certificate failed.
    pub async fn ensure(&self, identity: &Identity) -> Result<(), IdentityError> {
        let hold = Hold { manager: self, entry: self.hold(identity)?, kept: false };
        let mut progress = hold.entry.progress.subscribe();
        let settled = progress.wait_for(|p| !matches!(p, Progress::Pending));
        if hold.entry.stop.run_until_cancelled(settled).await.is_none() {
            return Err(IdentityError::Stopping { identity: identity.clone() });
        }
        match self.check_usable(&hold.entry) {
            // The log has said why.
            Err(IdentityError::Unavailable { .. }) if self.shared.source.pushes() => {}
            checked => checked?,
        }
        hold.keep();
        Ok(())
    }

    /// Ends one [`IdentityManager::ensure`]; with the last one the certificate is
    /// forgotten. Configurations that are still in use keep working until it expires.
    pub fn release(&self, identity: &Identity) {
        let mut entries = lock(&self.entries);
        let Some(held) = entries.get_mut(identity) else {
            tracing::warn!(%identity, "released an identity that is not held");
            return;
        };
        held.holders -= 1;
        if held.holders == 0 {
            held.entry.stop.cancel();
            entries.remove(identity);
        }
    }

    /// The server side of handshakes as `identity`. A client must present a certificate
    /// that a trust bundle vouches for; which one, [`super::peer_identity`] tells.
    /// The same value until the identity is released: it always presents the newest
    /// certificate.
    ///
    /// # Errors
    /// Without a valid certificate.
    pub fn server_config(&self, identity: &Identity) -> Result<Arc<ServerConfig>, IdentityError> {
        let entry = self.usable(identity)?;
        Ok(Arc::clone(&entry.server))
    }

    /// The client side of handshakes as `source`, with a server that proves to be
    /// `expected`. The same value for the same pair, while it is among the
    /// 1024 newest of its source.
    ///
    /// # Errors
    /// Without a valid certificate for `source`.
    pub fn client_config(
        &self,
        source: &Identity,
        expected: &Identity,
    ) -> Result<Arc<ClientConfig>, IdentityError> {
        let entry = self.usable(source)?;
        lock(&entry.clients).get_or_insert(expected, || {
            let verifier = self.shared.verifier(Some(expected.clone()));
            let current: Arc<CurrentCertificate> = Arc::clone(&entry.current);
            let provider = Arc::clone(&self.shared.provider);
            tls::client_config(provider, verifier, current, self.shared.clock())
                .map_err(|cause| IdentityError::Tls { identity: source.clone(), cause })
        })
    }

    /// Tells of certificates that take the place of others, from now on. Whoever lags
    /// behind is told so, and must take everything for renewed.
    pub fn renewals(&self) -> broadcast::Receiver<Renewal> {
        self.shared.renewals.subscribe()
    }

    /// Changes whenever other roots are trusted than before.
    pub fn trust(&self) -> watch::Receiver<Arc<TrustBundles>> {
        self.shared.trust.clone()
    }

    /// Changes with every certificate that an identity gets, its first one too.
    pub fn arrivals(&self) -> watch::Receiver<()> {
        self.shared.arrivals.subscribe()
    }

    /// The last second in which `identity` is proven to whoever trusts what this node
    /// trusts now, at either end of a handshake. `None`: it is not, now.
    pub fn proven_until(&self, identity: &Identity) -> Option<Timestamp> {
        let newest = self.usable(identity).ok()?.current.newest()?;
        let (leaf, intermediates) = newest.certified.cert.split_first()?;
        let trust = Arc::clone(&self.shared.trust.borrow());
        let algorithms = &self.shared.provider.signature_verification_algorithms;
        let now = self.now().unix_time();
        let proves = |role| verify_chain(&trust, algorithms, leaf, intermediates, role, now);
        let proven = [Role::Server, Role::Client].map(proves);
        proven.iter().all(Result::is_ok).then_some(newest.not_after)
    }

    /// What time it is for certificates.
    pub fn now(&self) -> Timestamp {
        self.shared.now()
    }

    /// Verifies the chain of a client that was let in at `then`, by the roots that are
    /// trusted now. That it has expired since does not matter.
    ///
    /// # Errors
    /// Why it would not be let in again.
    pub fn judge_client(
        &self,
        chain: &[CertificateDer<'_>],
        then: Timestamp,
    ) -> Result<(), RefusedPeer> {
        let Some((leaf, intermediates)) = chain.split_first() else {
            return Err(RefusedPeer::NoCertificate);
        };
        let trust = Arc::clone(&self.shared.trust.borrow());
        let algorithms = &self.shared.provider.signature_verification_algorithms;
        let then = then.unix_time();
        verify_chain(&trust, algorithms, leaf, intermediates, Role::Client, then).map(drop)
    }

    /// Every identity's certificate, in order of identity.
    pub fn status(&self) -> Vec<CertificateStatus> {
        let held: BTreeMap<_, _> = lock(&self.entries)
            .iter()
            .map(|(identity, h)| (identity.clone(), (h.holders, Arc::clone(&h.entry))))
            .collect();
        let now = Timestamp::now(&self.shared.options.clock);
        let status = |(identity, (holders, entry)): (Identity, (usize, Arc<Entry>))| {
            let newest = entry.current.newest();
            CertificateStatus {
                identity,
                holders,
                serial: newest.as_ref().map(|c| c.serial.clone()),
                not_before: newest.as_ref().map(|c| c.not_before),
                not_after: newest.as_ref().map(|c| c.not_after),
                expired: newest.as_ref().is_some_and(|c| c.has_expired(now)),
                last_error: entry.last_error().map(|e| e.to_string()),
            }
        };
        held.into_iter().map(status).collect()
    }

    /// Stops rotation and waits for its tasks. Certificates stay in use until they
    /// expire.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Counts one more holder; the first one starts the entry and its task.
    fn hold(&self, identity: &Identity) -> Result<Arc<Entry>, IdentityError> {
        let mut entries = lock(&self.entries);
        if let Some(held) = entries.get_mut(identity) {
            held.holders += 1;
            return Ok(Arc::clone(&held.entry));
        }
        if self.stop.is_cancelled() {
            return Err(IdentityError::Stopping { identity: identity.clone() });
        }
        let entry = self.new_entry(identity)?;
        self.tasks.spawn(rotation::run(Arc::clone(&self.shared), Arc::clone(&entry)));
        entries.insert(identity.clone(), Held { holders: 1, entry: Arc::clone(&entry) });
        Ok(entry)
    }

    fn new_entry(&self, identity: &Identity) -> Result<Arc<Entry>, IdentityError> {
        let clock = self.shared.clock();
        let current = CurrentCertificate::new(identity.clone(), Arc::clone(&clock));
        let presented: Arc<CurrentCertificate> = Arc::clone(&current);
        let provider = Arc::clone(&self.shared.provider);
        let server = tls::server_config(provider, self.shared.verifier(None), presented, clock)
            .map_err(|cause| IdentityError::Tls { identity: identity.clone(), cause })?;
        Ok(Arc::new(Entry {
            identity: identity.clone(),
            current,
            progress: watch::Sender::new(Progress::Pending),
            stop: self.stop.child_token(),
            server,
            clients: Mutex::default(),
        }))
    }

    fn usable(&self, identity: &Identity) -> Result<Arc<Entry>, IdentityError> {
        let entry = lock(&self.entries).get(identity).map(|held| Arc::clone(&held.entry));
        let Some(entry) = entry else {
            return Err(IdentityError::Unknown { identity: identity.clone() });
        };
        self.check_usable(&entry)?;
        Ok(entry)
    }

    fn check_usable(&self, entry: &Entry) -> Result<(), IdentityError> {
        let identity = || entry.identity.clone();
        let now = Timestamp::now(&self.shared.options.clock);
        match entry.current.newest() {
            Some(newest) if newest.has_expired(now) => Err(IdentityError::Expired {
                identity: identity(),
                not_after: newest.not_after,
                last_error: entry.last_error(),
            }),
            Some(_) => Ok(()),
            None => Err(match entry.last_error() {
                Some(cause) => IdentityError::Unavailable { identity: identity(), cause },
                None => IdentityError::Pending { identity: identity() },
            }),
        }
    }
}

impl Drop for IdentityManager {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl fmt::Debug for IdentityManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let identities: Vec<_> = lock(&self.entries).keys().cloned().collect();
        f.debug_struct("IdentityManager").field("identities", &identities).finish_non_exhaustive()
    }
}

impl Shared {
    fn verifier(&self, expected: Option<Identity>) -> Arc<SvidVerifier> {
        SvidVerifier::new(self.trust.clone(), expected, &self.provider)
    }

    fn clock(&self) -> Clock {
        Arc::clone(&self.options.clock)
    }

    pub(super) fn now(&self) -> Timestamp {
        Timestamp::now(&self.options.clock)
    }
}

impl Entry {
    fn last_error(&self) -> Option<Arc<SourceError>> {
        match &*self.progress.borrow() {
            Progress::Failing(error) => Some(Arc::clone(error)),
            Progress::Pending | Progress::Ready => None,
        }
    }

    /// The newest certificate's expiry.
    pub(super) fn not_after(&self) -> Option<Timestamp> {
        self.current.newest().map(|newest: Arc<Certificate>| newest.not_after)
    }
}

/// Gives the holder's count back unless [`Hold::keep`] is reached.
struct Hold<'a> {
    manager: &'a IdentityManager,
    entry: Arc<Entry>,
    kept: bool,
}

impl Hold<'_> {
    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.manager.release(&self.entry.identity);
        }
    }
}

/// The newest client configurations of one source, by expected identity.
#[derive(Default)]
struct ClientConfigs {
    configs: HashMap<Identity, Arc<ClientConfig>>,
    /// Oldest first.
    order: VecDeque<Identity>,
}

impl ClientConfigs {
    fn get_or_insert<E>(
        &mut self,
        expected: &Identity,
        make: impl FnOnce() -> Result<Arc<ClientConfig>, E>,
    ) -> Result<Arc<ClientConfig>, E> {
        if let Some(config) = self.configs.get(expected) {
            return Ok(Arc::clone(config));
        }
        let config = make()?;
        if self.order.len() >= CLIENT_CONFIGS
            && let Some(oldest) = self.order.pop_front()
        {
            self.configs.remove(&oldest);
        }
        self.order.push_back(expected.clone());
        self.configs.insert(expected.clone(), Arc::clone(&config));
        Ok(config)
    }
}

/// No invariant spans a panic under these locks: what they guard stays usable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
