//! Where a management server is, and how to get there.

use std::{fmt, io, path::PathBuf, str::FromStr, sync::Arc};

use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::TlsConnector;

/// A management server: `http://host:port`, `https://host:port` or `unix:///path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerAddress {
    /// gRPC in the clear.
    Plain { host: String, port: u16 },
    /// gRPC over TLS.
    Tls { host: String, port: u16 },
    /// gRPC in the clear over a Unix socket.
    Unix(PathBuf),
}

impl FromStr for ServerAddress {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{s}` is none of http://HOST:PORT, https://HOST:PORT and unix:///PATH");
        let (scheme, rest) = s.split_once("://").ok_or_else(wrong)?;
        if scheme == "unix" {
            let path = PathBuf::from(rest);
            return if path.is_absolute() { Ok(Self::Unix(path)) } else { Err(wrong()) };
        }
        let (host, port) = rest.trim_end_matches('/').rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = bare.unwrap_or(host);
        let valid = |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c);
        if host.is_empty() || !host.chars().all(valid) || (bare.is_none() && host.contains(':')) {
            return Err(wrong());
        }
        let host = host.to_owned();
        match scheme {
            "http" => Ok(Self::Plain { host, port }),
            "https" => Ok(Self::Tls { host, port }),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain { .. } => write!(f, "http://{}", self.authority()),
            Self::Tls { .. } => write!(f, "https://{}", self.authority()),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

/// Files for TLS to management servers; read anew for every connection, so that they
/// can be replaced.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate authorities in PEM.
    pub ca: Option<PathBuf>,
    /// Our own certificate chain and its key in PEM, for servers that ask who we are.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// A byte stream to a server.
pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

impl ServerAddress {
    /// What goes into `:authority`.
    pub(super) fn authority(&self) -> String {
        match self {
            Self::Plain { host, port } | Self::Tls { host, port } if host.contains(':') => {
                format!("[{host}]:{port}")
            }
            Self::Plain { host, port } | Self::Tls { host, port } => format!("{host}:{port}"),
            Self::Unix(_) => "localhost".to_owned(),
        }
    }

    pub(super) fn is_tls(&self) -> bool {
        matches!(self, Self::Tls { .. })
    }

    pub(super) async fn dial(self, tls: TlsFiles) -> io::Result<TokioIo<Box<dyn Io>>> {
        let io: Box<dyn Io> = match self {
            Self::Unix(path) => Box::new(UnixStream::connect(path).await?),
            Self::Plain { host, port } => Box::new(tcp(&host, port).await?),
            Self::Tls { host, port } => {
                let config = tokio::task::spawn_blocking(move || tls.config()).await??;
                let name = ServerName::try_from(host.clone()).map_err(io::Error::other)?;
                let stream = tcp(&host, port).await?;
                Box::new(TlsConnector::from(Arc::new(config)).connect(name, stream).await?)
            }
        };
        Ok(TokioIo::new(io))
    }
}

async fn tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

impl TlsFiles {
    /// Blocks.
    fn config(&self) -> io::Result<ClientConfig> {
        let ca = self.ca.as_ref().ok_or_else(|| io::Error::other("no xds_ca is set"))?;
        let told = |path: &PathBuf, error: &dyn fmt::Display| {
            io::Error::other(format!("{}: {error}", path.display()))
        };
        let certificates = |path: &PathBuf| -> io::Result<Vec<_>> {
            let found = CertificateDer::pem_file_iter(path).map_err(|e| told(path, &e))?;
            let found: Vec<_> = found.collect::<Result<_, _>>().map_err(|e| told(path, &e))?;
            if found.is_empty() { Err(told(path, &"holds no certificate")) } else { Ok(found) }
        };
        let mut roots = RootCertStore::empty();
        for certificate in certificates(ca)? {
            roots.add(certificate).map_err(|error| told(ca, &error))?;
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_root_certificates(roots);
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let secret = PrivateKeyDer::from_pem_file(key).map_err(|e| told(key, &e))?;
                builder
                    .with_client_auth_cert(certificates(chain)?, secret)
                    .map_err(|error| told(key, &error))?
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_said_again() {
        for text in
            ["http://10.0.0.1:80", "https://xds.example.com:443", "unix:///run/x", "http://[::1]:1"]
        {
            assert_eq!(text.parse::<ServerAddress>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "http://",
            "http://a",
            "http://a:0",
            "http://a:b",
            "unix://x",
            "ftp://a:1",
            "http://::1:1",
            "http://a b:1",
            "dns:///x:1",
        ] {
            assert!(text.parse::<ServerAddress>().is_err(), "{text}");
        }
    }
}
