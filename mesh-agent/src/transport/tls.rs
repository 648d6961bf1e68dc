//! TLS on a connection to an endpoint, by a configuration that is ready.

use std::{io, sync::Arc, time::Duration};

use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{net::TcpStream, time};
use tokio_rustls::{TlsConnector, client};

use super::relay::Abort;

/// A connection that speaks TLS.
pub type TlsStream = client::TlsStream<TcpStream>;

/// The handshake; within `timeout`.
///
/// # Errors
/// The peer is refused, or refuses, or there is no TLS to be had from it. A peer that
/// refuses our certificate may say so only later, to the first who reads.
pub async fn connect(
    stream: TcpStream,
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    timeout: Duration,
) -> io::Result<TlsStream> {
    match time::timeout(timeout, TlsConnector::from(config).connect(name, stream)).await {
        Ok(connected) => connected,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no TLS handshake in time")),
    }
}

impl Abort for TlsStream {
    /// RST when the socket is closed, with no word of TLS before.
    fn abort(&mut self) {
        self.get_mut().0.abort();
    }
}
