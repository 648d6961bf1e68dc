//! TLS to management servers.

use std::{env, fmt, fs, io, path::PathBuf, sync::Arc};

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use zeroize::Zeroizing;

use super::address::Io;
use crate::model::tls::TlsVersion;

/// How a server is verified, and what it is shown. Files are read anew for every
/// connection, so that they can be replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsOptions {
    /// Certificate authorities.
    pub ca: Pem,
    /// Our own certificate chain and its key, for servers that ask who we are.
    pub identity: Option<(Pem, Pem)>,
    /// The name that is asked for, and that must be in the certificate; `None`: the
    /// host that is dialled.
    pub server_name: Option<String>,
    /// Other names: one of these must be in the certificate instead, if there are any.
    pub accepted_names: Vec<String>,
    /// The lowest and the highest.
    pub(super) versions: (TlsVersion, TlsVersion),
}

/// Something in PEM.
#[derive(Clone, PartialEq, Eq)]
pub enum Pem {
    File(PathBuf),
    Inline(Zeroizing<Vec<u8>>),
    Environment(String),
}

impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // May be a key.
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Inline(_) => f.write_str("inline PEM"),
            Self::Environment(name) => write!(f, "${name}"),
        }
    }
}

impl Pem {
    fn read(&self) -> io::Result<Zeroizing<Vec<u8>>> {
        match self {
            Self::File(path) => match fs::read(path) {
                Ok(bytes) => Ok(Zeroizing::new(bytes)),
                Err(error) => Err(self.told(&error)),
            },
            Self::Inline(bytes) => Ok(bytes.clone()),
            Self::Environment(name) => match env::var(name) {
                Ok(text) => Ok(Zeroizing::new(text.into_bytes())),
                Err(error) => Err(self.told(&error)),
            },
        }
    }

    fn told(&self, error: &dyn fmt::Display) -> io::Error {
        io::Error::other(format!("{self}: {error}"))
    }

    fn certificates(&self) -> io::Result<Vec<CertificateDer<'static>>> {
        let pem = self.read()?;
        let found = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
        let found = found.map_err(|error| self.told(&error))?;
        if found.is_empty() { Err(self.told(&"holds no certificate")) } else { Ok(found) }
    }

    fn key(&self) -> io::Result<PrivateKeyDer<'static>> {
        PrivateKeyDer::from_pem_slice(&self.read()?).map_err(|error| self.told(&error))
    }
}

impl TlsOptions {
    /// Verified by these authorities, under the name that is dialled.
    pub fn new(ca: Pem, identity: Option<(Pem, Pem)>) -> Self {
        let versions = (TlsVersion::V1_2, TlsVersion::V1_3);
        Self { ca, identity, server_name: None, accepted_names: Vec::new(), versions }
    }

    /// Makes TLS on `io`, which leads to `host`.
    pub(super) async fn connect<S: Io + 'static>(
        self,
        host: &str,
        io: S,
    ) -> io::Result<TlsStream<S>> {
        let name = self.server_name.clone().unwrap_or_else(|| host.to_owned());
        let name = server_name(&name)?;
        let config = tokio::task::spawn_blocking(move || self.config()).await??;
        TlsConnector::from(Arc::new(config)).connect(name, io).await
    }

    /// Blocks.
    fn config(&self) -> io::Result<ClientConfig> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        for certificate in self.ca.certificates()? {
            roots.add(certificate).map_err(|error| self.ca.told(&error))?;
        }
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()
                .map_err(|error| self.ca.told(&error))?;
        let names = self.accepted_names.iter().map(|name| server_name(name));
        let names = names.collect::<io::Result<Vec<_>>>()?;
        let (min, max) = self.versions;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(TlsVersion::range(min, max))
            .map_err(io::Error::other)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyName { verifier, names }));
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => builder
                .with_client_auth_cert(chain.certificates()?, key.key()?)
                .map_err(|error| key.told(&error))?,
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}

fn server_name(name: &str) -> io::Result<ServerName<'static>> {
    ServerName::try_from(name.to_owned())
        .map_err(|error| io::Error::other(format!("`{name}` can't be in a certificate: {error}")))
}

/// The ordinary verification, with other names than the one that is dialled if any are
/// given.
#[derive(Debug)]
struct AnyName {
    verifier: Arc<WebPkiServerVerifier>,
    names: Vec<ServerName<'static>>,
}

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verify =
            |name| self.verifier.verify_server_cert(end_entity, intermediates, name, ocsp, now);
        let Some((first, others)) = self.names.split_first() else { return verify(server_name) };
        let mut verified = verify(first);
        for name in others {
            if verified.is_ok() {
                break;
            }
            verified = verify(name);
        }
        verified
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}
