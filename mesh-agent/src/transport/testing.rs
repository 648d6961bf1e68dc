//! What this room's tests are made of: plain sockets, self-made certificates, pods.

use std::{io, net::SocketAddr, sync::Arc};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    server::WebPkiClientVerifier,
};
use socket2::{Domain, Socket, Type};

use crate::model::{
    captured::Pod,
    socket::PodSockets,
    workload::{MtlsMode, Workload, WorkloadUid},
};

/// Sockets of the namespace that the test runs in.
#[derive(Debug)]
pub(crate) struct PlainSockets;

impl PodSockets for PlainSockets {
    fn tcp(&self, destination: SocketAddr) -> io::Result<Socket> {
        Socket::new(Domain::for_address(destination), Type::STREAM, None)
    }

    fn tcp_from(&self, _: SocketAddr, destination: SocketAddr) -> io::Result<Socket> {
        self.tcp(destination)
    }
}

/// Sockets of a pod that is gone.
#[derive(Debug)]
pub(crate) struct GoneSockets;

impl PodSockets for GoneSockets {
    fn tcp(&self, _: SocketAddr) -> io::Result<Socket> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn tcp_from(&self, _: SocketAddr, destination: SocketAddr) -> io::Result<Socket> {
        self.tcp(destination)
    }
}

/// A listener whose backlog is full: further SYNs get no answer.
pub(crate) struct FullListener {
    socket: Socket,
    _waiting: Vec<Socket>,
}

impl FullListener {
    pub(crate) fn new() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        socket.listen(0).unwrap();
        let address = socket.local_addr().unwrap();
        let waiting = (0..4).map(|_| {
            let client = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            client.set_nonblocking(true).unwrap();
            let _ = client.connect(&address);
            client
        });
        let _waiting = waiting.collect();
        Self { socket, _waiting }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.socket.local_addr().unwrap().as_socket().unwrap()
    }
}

/// A certificate authority that lives for one test.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        Arc::new(roots)
    }

    fn leaf(&self) -> (Vec<rustls::pki_types::CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let names = vec!["127.0.0.1".to_owned(), "::1".to_owned()];
        let key = KeyPair::generate().unwrap();
        let cert = CertificateParams::new(names).unwrap().signed_by(&key, &self.0).unwrap();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        (vec![cert.der().clone()], key.into())
    }

    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        let (chain, key) = self.leaf();
        let verifier =
            WebPkiClientVerifier::builder_with_provider(self.roots(), provider()).build().unwrap();
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    }

    pub(crate) fn client(&self) -> Arc<ClientConfig> {
        self.client_of(self)
    }

    /// Trusts us, and presents a certificate of `issuer`.
    pub(crate) fn client_of(&self, issuer: &Authority) -> Arc<ClientConfig> {
        let (chain, key) = issuer.leaf();
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(self.roots())
            .with_client_auth_cert(chain, key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// A pod of this node, whose sockets are `sockets`.
pub(crate) fn pod(uid: &str, sockets: Arc<dyn PodSockets>) -> Arc<Pod> {
    let workload = Workload {
        uid: WorkloadUid(uid.into()),
        name: uid.to_owned(),
        identity: "spiffe://cluster.local/ns/shop/sa/client".parse().unwrap(),
        addresses: vec![[127, 0, 0, 1].into()],
        labels: Default::default(),
        mtls: MtlsMode::Strict,
    };
    Arc::new(Pod { workload, sockets })
}
