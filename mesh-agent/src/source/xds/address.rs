//! Where a management server is, and how to get there.

use std::{fmt, io, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use hyper_util::rt::TokioIo;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream, lookup_host},
};

use super::tls::TlsOptions;

/// A management server: `http://host:port`, `https://host:port` or `unix:///path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerAddress {
    /// gRPC in the clear.
    Plain { host: String, port: u16 },
    /// gRPC over TLS.
    Tls { host: String, port: u16 },
    /// gRPC over a Unix socket.
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
        if !is_host(host) || (bare.is_none() && host.contains(':')) {
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

/// Whether this may be a host's name or an IP address.
pub(super) fn is_host(host: &str) -> bool {
    !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || "-._:".contains(c))
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

impl ServerAddress {
    /// What goes into `:authority`.
    fn authority(&self) -> String {
        match self {
            Self::Plain { host, port } | Self::Tls { host, port } if host.contains(':') => {
                format!("[{host}]:{port}")
            }
            Self::Plain { host, port } | Self::Tls { host, port } => format!("{host}:{port}"),
            Self::Unix(_) => "localhost".to_owned(),
        }
    }

    /// The host a certificate would be for.
    fn host(&self) -> &str {
        match self {
            Self::Plain { host, .. } | Self::Tls { host, .. } => host,
            Self::Unix(_) => "localhost",
        }
    }
}

/// A management server, and how it is dialled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    pub address: ServerAddress,
    /// `None`: in the clear.
    pub tls: Option<TlsOptions>,
    pub connection: ConnectionOptions,
}

/// How a connection is made, and how it is noticed that it is dead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionOptions {
    pub connect_timeout: Duration,
    pub family: Family,
    pub tcp_keepalive: TcpKeepaliveOptions,
    /// HTTP/2's PINGs: how often one is sent, and how long its answer may take. None
    /// unless asked for: gRPC servers hang up on clients that send them more often than
    /// they were told to bear, which is every five minutes by default.
    pub pings: Option<(Duration, Duration)>,
}

impl Default for ConnectionOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            family: Family::Any,
            tcp_keepalive: TcpKeepaliveOptions::default(),
            pings: None,
        }
    }
}

/// Which of a name's addresses are dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    Any,
    V4,
    V6,
    /// IPv4 first.
    V4Preferred,
    /// IPv6 if there is any, else IPv4.
    V6Preferred,
}

/// TCP's own probes: when the first is sent, how often the next, and how many may go
/// unanswered. What was sent may go unacknowledged for as long as all that takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpKeepaliveOptions {
    pub time: Duration,
    pub interval: Duration,
    pub probes: u32,
}

impl Default for TcpKeepaliveOptions {
    fn default() -> Self {
        Self { time: Duration::from_secs(30), interval: Duration::from_secs(10), probes: 3 }
    }
}

/// A byte stream to a server.
pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}

impl Server {
    pub(super) fn authority(&self) -> String {
        self.address.authority()
    }

    pub(super) async fn dial(self) -> io::Result<TokioIo<Box<dyn Io>>> {
        let Self { address, tls, connection } = self;
        let io: Box<dyn Io> = match &address {
            ServerAddress::Unix(path) => Box::new(UnixStream::connect(path).await?),
            ServerAddress::Plain { host, port } | ServerAddress::Tls { host, port } => {
                Box::new(tcp(host, *port, &connection).await?)
            }
        };
        let io = match tls {
            None => io,
            Some(tls) => Box::new(tls.connect(address.host(), io).await?),
        };
        Ok(TokioIo::new(io))
    }
}

async fn tcp(host: &str, port: u16, options: &ConnectionOptions) -> io::Result<TcpStream> {
    let found = lookup_host((host, port)).await?.collect();
    let addresses = options.family.choose(found);
    if addresses.is_empty() {
        return Err(io::Error::other(format!("`{host}` has no address of the family asked for")));
    }
    let stream = TcpStream::connect(addresses.as_slice()).await?;
    stream.set_nodelay(true)?;
    let TcpKeepaliveOptions { time, interval, probes } = options.tcp_keepalive;
    let keepalive =
        TcpKeepalive::new().with_time(time).with_interval(interval).with_retries(probes);
    let socket = SockRef::from(&stream);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(time.saturating_add(interval.saturating_mul(probes))))?;
    Ok(stream)
}

impl Family {
    fn choose(self, mut found: Vec<SocketAddr>) -> Vec<SocketAddr> {
        match self {
            Self::Any => {}
            Self::V4 => found.retain(SocketAddr::is_ipv4),
            Self::V6 => found.retain(SocketAddr::is_ipv6),
            Self::V4Preferred => found.sort_by_key(SocketAddr::is_ipv6),
            Self::V6Preferred => {
                if found.iter().any(SocketAddr::is_ipv6) {
                    found.retain(SocketAddr::is_ipv6);
                }
            }
        }
        found
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

    #[test]
    fn families_are_chosen_as_asked_for() {
        let (v4, v6) = ("10.0.0.1:1".parse().unwrap(), "[::1]:1".parse().unwrap());
        for (family, chosen) in [
            (Family::Any, vec![v6, v4]),
            (Family::V4, vec![v4]),
            (Family::V6, vec![v6]),
            (Family::V4Preferred, vec![v4, v6]),
            (Family::V6Preferred, vec![v6]),
        ] {
            assert_eq!(family.choose(vec![v6, v4]), chosen, "{family:?}");
        }
        assert_eq!(Family::V6Preferred.choose(vec![v4]), [v4]);
    }
}
