//! Builders for this room's tests: simulated time, forged certificates, handshakes.

pub(super) mod authority;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyUsagePurpose, SanType,
};
use rustls::{
    ClientConfig, ServerConfig, SignatureScheme,
    client::ResolvesClientCert,
    pki_types::{CertificateDer, UnixTime},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
    time_provider::TimeProvider,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    sync::watch,
    time::Instant,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::{
    CertificateSource, DevelopmentCa, Fetch, IdentityManager, IdentityOptions, PrivateKey,
    SourceError, Timestamp, TrustBundles, system_clock, tls,
};
use crate::model::identity::{Identity, TrustDomain};

pub(super) fn id(path: &str) -> Identity {
    format!("spiffe://cluster.local/{path}").parse().unwrap()
}

pub(super) fn domain(name: &str) -> TrustDomain {
    name.parse().unwrap()
}

/// Wall-clock time that moves with tokio's paused clock, and can be set off.
#[derive(Debug)]
pub(super) struct TestClock {
    base: u64,
    start: Instant,
    offset_seconds: AtomicI64,
}

impl TestClock {
    pub(super) fn new() -> Arc<Self> {
        let base = Timestamp::now(&system_clock()).unix_seconds();
        Arc::new(Self { base, start: Instant::now(), offset_seconds: AtomicI64::new(0) })
    }

    pub(super) fn set_offset(&self, seconds: i64) {
        self.offset_seconds.store(seconds, Ordering::SeqCst);
    }
}

impl TimeProvider for TestClock {
    fn current_time(&self) -> Option<UnixTime> {
        let now = self.base + self.start.elapsed().as_secs();
        let now = now.saturating_add_signed(self.offset_seconds.load(Ordering::SeqCst));
        Some(UnixTime::since_unix_epoch(Duration::from_secs(now)))
    }
}

/// A development CA that can be told to fail or to hang.
pub(super) struct TestSource {
    pub(super) ca: DevelopmentCa,
    pub(super) failing: AtomicBool,
    pub(super) hanging: AtomicBool,
    pub(super) fetches: AtomicUsize,
    _dir: TempDir,
}

impl CertificateSource for TestSource {
    fn fetch<'a>(&'a self, identity: &'a Identity) -> Fetch<'a> {
        self.fetches.fetch_add(1, Ordering::SeqCst);
        if self.hanging.load(Ordering::SeqCst) {
            return Box::pin(std::future::pending());
        }
        if self.failing.load(Ordering::SeqCst) {
            let cause = io::Error::other("connection refused").into();
            return Box::pin(async { Err(SourceError::Source { source_name: "test CA", cause }) });
        }
        self.ca.fetch(identity)
    }

    fn trust_bundles(&self) -> watch::Receiver<Arc<TrustBundles>> {
        self.ca.trust_bundles()
    }
}

/// One node: a CA, a manager and the clock of both.
pub(super) struct Node {
    pub(super) source: Arc<TestSource>,
    pub(super) manager: IdentityManager,
    pub(super) clock: Arc<TestClock>,
}

pub(super) fn node(trust_domain: &str, ttl: Duration) -> Node {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::new();
    let ca = DevelopmentCa::create(dir.path(), &domain(trust_domain))
        .unwrap()
        .with_ttl(ttl)
        .with_clock(Arc::<TestClock>::clone(&clock));
    let source = Arc::new(TestSource {
        ca,
        failing: AtomicBool::new(false),
        hanging: AtomicBool::new(false),
        fetches: AtomicUsize::new(0),
        _dir: dir,
    });
    let options =
        IdentityOptions { clock: Arc::<TestClock>::clone(&clock), ..IdentityOptions::default() };
    Node {
        manager: IdentityManager::new(Arc::<TestSource>::clone(&source), options),
        source,
        clock,
    }
}

/// A root that signs whatever a test wants.
pub(super) struct Forge {
    pub(super) root: CertificateDer<'static>,
    intermediates: Vec<CertificateDer<'static>>,
    issuer: Issuer<'static, PrivateKey>,
}

impl Forge {
    pub(super) fn new(name: &str) -> Self {
        let key = PrivateKey::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let root = params.self_signed(&key).unwrap().into();
        Self { root, intermediates: vec![], issuer: Issuer::new(params, key) }
    }

    /// A CA that this one signed, whose certificate comes with each leaf it signs.
    pub(super) fn intermediate(&self, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let key = PrivateKey::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "intermediate");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap().into();
        let issuer = Issuer::new(params, key);
        Self { root: self.root.clone(), intermediates: vec![certificate], issuer }
    }

    /// A good certificate for `san`, spoilt by `change`.
    pub(super) fn leaf(
        &self,
        san: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Arc<CertifiedKey> {
        let key = PrivateKey::generate().unwrap();
        let mut params = CertificateParams::default();
        let now = Timestamp::now(&system_clock());
        params.not_before = now.minus(Duration::from_secs(60)).date_time().unwrap();
        params.not_after = now.plus(Duration::from_secs(3600)).date_time().unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![uri(san)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let mut chain = vec![params.signed_by(&key, &self.issuer).unwrap().into()];
        chain.extend_from_slice(&self.intermediates);
        Arc::new(CertifiedKey::new(chain, Arc::new(key)))
    }
}

pub(super) fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

/// Presents one certificate, or none.
#[derive(Debug)]
pub(super) struct Fixed(pub(super) Option<Arc<CertifiedKey>>);

impl ResolvesServerCert for Fixed {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.clone()
    }
}

impl ResolvesClientCert for Fixed {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.clone()
    }

    fn has_certs(&self) -> bool {
        self.0.is_some()
    }
}

pub(super) type Client = client::TlsStream<DuplexStream>;
pub(super) type Server = server::TlsStream<DuplexStream>;

/// Both sides' views of one handshake. The client's includes one byte that the server
/// sends after it, since a TLS 1.3 client learns only then that it was refused.
pub(super) async fn handshake(
    client: &Arc<ClientConfig>,
    server: &Arc<ServerConfig>,
) -> (io::Result<Client>, io::Result<Server>) {
    let (near, far) = duplex(64 * 1024);
    let connect = async {
        let mut stream =
            TlsConnector::from(Arc::clone(client)).connect(tls::server_name(), near).await?;
        stream.read_u8().await?;
        Ok(stream)
    };
    let accept = async {
        let mut stream = TlsAcceptor::from(Arc::clone(server)).accept(far).await?;
        stream.write_u8(1).await?;
        stream.flush().await?;
        Ok(stream)
    };
    tokio::join!(connect, accept)
}

/// Sends one byte each way.
pub(super) async fn exchange(client: &mut Client, server: &mut Server) -> io::Result<()> {
    client.write_u8(7).await?;
    client.flush().await?;
    assert_eq!(server.read_u8().await?, 7);
    server.write_u8(8).await?;
    server.flush().await?;
    assert_eq!(client.read_u8().await?, 8);
    Ok(())
}
