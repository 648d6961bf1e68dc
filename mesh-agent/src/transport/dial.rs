//! TCP connections made from inside a pod's network namespace.

use std::{io, net::SocketAddr, os::fd::AsFd, time::Duration};

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::{
    net::{TcpSocket, TcpStream},
    time,
};

use super::leg::Leg;
use crate::model::{cluster::Keepalive, socket::PodSockets};

/// Silence after which the kernel probes the peer.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
/// Between probes; the third that stays unanswered ends the connection.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;

/// Why a TCP connection was not made.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// No socket could be made: the pod's network namespace is gone, or the agent
    /// is out of file descriptors.
    #[error("no socket in the pod's network namespace to dial {destination}")]
    Socket {
        destination: SocketAddr,
        #[source]
        source: io::Error,
    },
    /// Nobody listens there.
    #[error("{destination} refused the connection")]
    Refused { destination: SocketAddr },
    /// No answer in time.
    #[error("{destination} did not answer within {after:?}")]
    TimedOut { destination: SocketAddr, after: Duration },
    /// No route from the pod, or its interface is gone.
    #[error("{destination} is unreachable from the pod")]
    Unreachable {
        destination: SocketAddr,
        #[source]
        source: io::Error,
    },
    /// Anything else that `connect(2)` said.
    #[error("connecting to {destination}")]
    Connect {
        destination: SocketAddr,
        #[source]
        source: io::Error,
    },
}

impl DialError {
    /// In Envoy's words, what `connect(2)` said; `None`: nothing.
    pub fn transport_failure(&self) -> Option<String> {
        let (when, why) = match self {
            Self::Socket { .. } | Self::TimedOut { .. } => return None,
            Self::Refused { .. } => ("delayed", "Connection refused".to_owned()),
            Self::Unreachable { source, .. } | Self::Connect { source, .. } => {
                let later = source.kind() == io::ErrorKind::HostUnreachable;
                let why = source.to_string();
                let why = why.split(" (os error").next().unwrap_or_default();
                (if later { "delayed" } else { "immediate" }, why.to_owned())
            }
        };
        Some(format!("{when} connect error: {why}"))
    }

    /// Where the connection was to go.
    pub fn destination(&self) -> SocketAddr {
        match self {
            Self::Socket { destination, .. }
            | Self::Refused { destination }
            | Self::TimedOut { destination, .. }
            | Self::Unreachable { destination, .. }
            | Self::Connect { destination, .. } => *destination,
        }
    }
}

/// Connects to `destination` from the pod's own address.
///
/// Dropping the future closes the socket.
///
/// # Errors
/// See [`DialError`]; `timeout` covers the handshake, not the making of the socket.
pub async fn connect(
    sockets: &dyn PodSockets,
    destination: SocketAddr,
    keepalive: Keepalive,
    timeout: Duration,
) -> Result<TcpStream, DialError> {
    let socket =
        sockets.tcp(destination).map_err(|source| DialError::Socket { destination, source })?;
    finish(socket, destination, keepalive, timeout).await
}

/// Connects to `destination` from the agent's own network namespace.
///
/// # Errors
/// As [`connect`].
pub async fn connect_from_here(
    destination: SocketAddr,
    keepalive: Keepalive,
    timeout: Duration,
) -> Result<TcpStream, DialError> {
    let domain = Domain::for_address(destination);
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))
        .map_err(|source| DialError::Socket { destination, source })?;
    finish(socket, destination, keepalive, timeout).await
}

/// Connects to `destination` such that the application there sees `source`'s
/// address as its peer.
///
/// # Errors
/// As [`connect`].
pub async fn connect_from(
    sockets: &dyn PodSockets,
    source: SocketAddr,
    destination: SocketAddr,
    keepalive: Keepalive,
    timeout: Duration,
) -> Result<TcpStream, DialError> {
    let socket = sockets
        .tcp_from(source, destination)
        .map_err(|source| DialError::Socket { destination, source })?;
    finish(socket, destination, keepalive, timeout).await
}

/// As [`connect_from`], for what will be plaintext to the pod's own application for as long
/// as the connection lives: it may be spliced.
///
/// # Errors
/// As [`connect`].
pub async fn connect_application(
    sockets: &dyn PodSockets,
    source: SocketAddr,
    destination: SocketAddr,
    keepalive: Keepalive,
    timeout: Duration,
) -> Result<Leg, DialError> {
    let socket = sockets
        .tcp_from(source, destination)
        .and_then(|socket| sockets.offer_splice(socket.as_fd()).map(|()| socket))
        .map_err(|source| DialError::Socket { destination, source })?;
    let stream = finish(socket, destination, keepalive, timeout).await?;
    Leg::of(stream, sockets).map_err(|source| DialError::Connect { destination, source })
}

async fn finish(
    socket: Socket,
    destination: SocketAddr,
    keepalive: Keepalive,
    timeout: Duration,
) -> Result<TcpStream, DialError> {
    prepare(&socket, keepalive).map_err(|source| DialError::Socket { destination, source })?;
    let socket = TcpSocket::from_std_stream(socket.into());
    match time::timeout(timeout, socket.connect(destination)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(source)) => Err(classify(destination, timeout, source)),
        Err(_) => Err(DialError::TimedOut { destination, after: timeout }),
    }
}

fn prepare(socket: &Socket, keepalive: Keepalive) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    let seconds = |s: u16| Duration::from_secs(s.into());
    let (probes, time, interval) = match keepalive {
        Keepalive::Usual => {
            (Some(KEEPALIVE_PROBES), Some(KEEPALIVE_IDLE), Some(KEEPALIVE_INTERVAL))
        }
        Keepalive::Off => return Ok(()),
        Keepalive::Probes { probes, time_s, interval_s } => {
            (probes.map(u32::from), time_s.map(seconds), interval_s.map(seconds))
        }
    };
    socket.set_keepalive(true)?;
    if let Some(probes) = probes {
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_retries(probes))?;
    }
    if let Some(time) = time {
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(time))?;
    }
    if let Some(interval) = interval {
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_interval(interval))?;
    }
    Ok(())
}

fn classify(destination: SocketAddr, after: Duration, source: io::Error) -> DialError {
    match source.kind() {
        io::ErrorKind::ConnectionRefused => DialError::Refused { destination },
        io::ErrorKind::TimedOut => DialError::TimedOut { destination, after },
        io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::NetworkDown
        | io::ErrorKind::AddrNotAvailable => DialError::Unreachable { destination, source },
        _ => DialError::Connect { destination, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::testing::{FullListener, GoneSockets, PlainSockets};

    const SHORT: Duration = Duration::from_millis(200);

    #[tokio::test]
    async fn a_listener_is_reached_without_delay_on_small_writes() {
        let listener = tokio::net::TcpListener::bind("[::1]:0").await.unwrap();
        let destination = listener.local_addr().unwrap();
        let stream = connect(&PlainSockets, destination, Keepalive::Usual, SHORT).await.unwrap();
        assert!(stream.nodelay().unwrap());
        let source = "127.0.0.1:1".parse().unwrap();
        connect_from(&PlainSockets, source, destination, Keepalive::Usual, SHORT).await.unwrap();
    }

    /// What the kernel says of a connection's probes: whether, how many, when, how often.
    async fn probes_of(keepalive: Keepalive) -> (bool, u32, Duration, Duration) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let destination = listener.local_addr().unwrap();
        let stream = connect(&PlainSockets, destination, keepalive, SHORT).await.unwrap();
        let socket = socket2::SockRef::from(&stream);
        (
            socket.keepalive().unwrap(),
            socket.tcp_keepalive_retries().unwrap(),
            socket.tcp_keepalive_time().unwrap(),
            socket.tcp_keepalive_interval().unwrap(),
        )
    }

    #[tokio::test]
    async fn silent_peers_are_probed_as_is_asked() {
        let seconds = Duration::from_secs;
        let usual = probes_of(Keepalive::Usual).await;
        assert_eq!(usual, (true, 3, seconds(60), seconds(10)));
        let all = Keepalive::Probes { probes: Some(5), time_s: Some(7), interval_s: Some(11) };
        assert_eq!(probes_of(all).await, (true, 5, seconds(7), seconds(11)));
        let (is_on, probes, time, interval) = probes_of(Keepalive::Off).await;
        assert!(!is_on);
        let kernels = Keepalive::Probes { probes: None, time_s: None, interval_s: None };
        assert_eq!(probes_of(kernels).await, (true, probes, time, interval));
        let one = Keepalive::Probes { probes: None, time_s: Some(9), interval_s: None };
        assert_eq!(probes_of(one).await, (true, probes, seconds(9), interval));
    }

    #[tokio::test]
    async fn failures_name_the_destination_and_the_cause() {
        let closed = {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            listener.local_addr().unwrap()
        };
        let refused = connect(&PlainSockets, closed, Keepalive::Usual, SHORT).await.unwrap_err();
        assert!(matches!(refused, DialError::Refused { .. }), "{refused:?}");
        assert_eq!(refused.destination(), closed);

        let full = FullListener::new();
        let silent =
            connect(&PlainSockets, full.address(), Keepalive::Usual, SHORT).await.unwrap_err();
        assert!(matches!(silent, DialError::TimedOut { .. }), "{silent:?}");

        let gone = connect(&GoneSockets, closed, Keepalive::Usual, SHORT).await.unwrap_err();
        assert!(matches!(gone, DialError::Socket { .. }), "{gone:?}");

        let broadcast = "255.255.255.255:1".parse().unwrap();
        let unreachable =
            connect(&PlainSockets, broadcast, Keepalive::Usual, SHORT).await.unwrap_err();
        assert!(
            matches!(unreachable, DialError::Unreachable { .. } | DialError::Connect { .. }),
            "{unreachable:?}"
        );
    }
}
