//! An HBONE client that is not ours to trust: any certificate, any authority.

use std::{
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
};
use tests::{Pod, pki::Credentials};

/// What came of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// No TCP connection.
    NoTcp(String),
    /// The TLS handshake failed, or the server hung up where HTTP/2 should begin.
    NoTls(String),
    /// CONNECT was answered with this status.
    Answered(u16),
}

impl Outcome {
    /// # Panics
    /// Unless the peer was turned away before HTTP.
    #[track_caller]
    pub(crate) fn expect_turned_away(&self) {
        assert!(matches!(self, Self::NoTls(_)), "{self:?}");
    }
}

/// Dials `to` from `from`'s namespace and asks for CONNECT to `authority`.
pub(crate) fn connect(
    from: &Pod,
    to: SocketAddr,
    credentials: Option<&Credentials>,
    authority: &str,
) -> Outcome {
    let patience = Duration::from_secs(5);
    let dialled = from.netns().enter(|| TcpStream::connect_timeout(&to, patience));
    let stream = match dialled {
        Ok(stream) => stream,
        Err(error) => return Outcome::NoTcp(error.to_string()),
    };
    stream.set_nonblocking(true).expect("a socket can be non-blocking");
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let ask = ask(stream, credentials, authority);
        match tokio::time::timeout(Duration::from_secs(10), ask).await {
            Ok(Ok(status)) => Outcome::Answered(status),
            Ok(Err(error)) => Outcome::NoTls(error),
            Err(_) => panic!("the peer neither answers nor refuses"),
        }
    })
}

async fn ask(
    stream: TcpStream,
    credentials: Option<&Credentials>,
    authority: &str,
) -> Result<u16, String> {
    let stream = tokio::net::TcpStream::from_std(stream).map_err(|e| e.to_string())?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(tls(credentials)));
    let name = ServerName::try_from("pod.invalid").expect("a valid name");
    let tls = connector.connect(name, stream).await.map_err(|e| format!("handshake: {e}"))?;
    // In TLS 1.3 the server judges the certificate after the client is done: the
    // refusal arrives where the first answer should.
    let (send, connection) =
        h2::client::handshake(tls).await.map_err(|e| format!("http/2 preface: {e}"))?;
    let driver = tokio::spawn(async move { connection.await.map_err(|e| e.to_string()) });
    let answer = async {
        let mut send = send.ready().await.map_err(|e| format!("ready: {e}"))?;
        let request = http::Request::connect(authority).body(()).map_err(|e| e.to_string())?;
        let (response, _body) =
            send.send_request(request, false).map_err(|e| format!("send: {e}"))?;
        response.await.map(|r| r.status().as_u16()).map_err(|e| format!("response: {e}"))
    }
    .await;
    driver.abort();
    answer
}

fn tls(credentials: Option<&Credentials>) -> ClientConfig {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3 is supported")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible(provider)));
    let mut config = match credentials {
        None => builder.with_no_client_auth(),
        Some(Credentials { certificate, key, .. }) => {
            let chain = vec![CertificateDer::from(certificate.clone())];
            let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.clone()));
            builder.with_client_auth_cert(chain, key).expect("the key fits the certificate")
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// Believes every server.
#[derive(Debug)]
struct Gullible(Arc<CryptoProvider>);

impl ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
