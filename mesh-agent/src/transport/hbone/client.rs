//! The initiating side: one mutually authenticated HTTP/2 connection, and one
//! CONNECT on it. Which connection serves whom is [`super::pool`]'s matter.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use h2::{
    Reason, RecvStream, SendStream,
    client::{Connection, SendRequest},
};
use http::{Method, Request, Response, StatusCode};
use rustls::pki_types::ServerName;
use tokio::{net::TcpStream, time};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    ALPN_H2, CONNECTION_WINDOW_BYTES, DATA_FRAME_BUDGET_BYTES, HboneError, HboneFailure,
    MAX_FRAME_BYTES, MAX_HEADER_LIST_BYTES, MAX_LOCAL_ERROR_RESETS, SEND_BUFFER_BYTES,
    STREAM_WINDOW_BYTES, UNSENT_TLS_BYTES, pool::HboneTarget,
};
use crate::{
    model::cluster::Keepalive,
    transport::{dial, read_ahead::ReadAhead},
};

/// The longest reason taken from a peer's refusal, in bytes.
const MAX_REASON_BYTES: usize = 256;

/// How many streams we assume that the peer takes until it says so: more than any of
/// our limits, and nothing that a peer would say.
const UNTOLD_MAX_STREAMS: usize = 0x1_0001;

pub(super) type ClientConnection = Connection<TlsStream<ReadAhead<TcpStream>>, Bytes>;

/// Dials the tunnel's address from the source pod, and speaks TLS and HTTP/2 there.
pub(super) async fn establish(
    target: &HboneTarget,
    tls: Arc<rustls::ClientConfig>,
    connect_timeout: Duration,
    handshake_timeout: Duration,
) -> Result<(SendRequest<Bytes>, ClientConnection), HboneError> {
    let error = |failure| HboneError::new(target, failure);
    let failed = |source: io::Error| error(HboneFailure::Handshake(source.into()));
    let tcp = dial::connect(
        target.pod.sockets.as_ref(),
        target.tunnel,
        Keepalive::Usual,
        connect_timeout,
    )
    .await
    .map_err(|source| error(HboneFailure::Dial(source.into())))?;
    // An address, so that no SNI is sent: the peer is named by its SPIFFE ID alone.
    let name = ServerName::IpAddress(target.tunnel.ip().into());
    let handshake = TlsConnector::from(tls).connect_with(name, ReadAhead::new(tcp), |tls| {
        tls.set_buffer_limit(Some(UNSENT_TLS_BYTES));
    });
    let stream = match time::timeout(handshake_timeout, handshake).await {
        Ok(result) => result.map_err(failed)?,
        Err(_) => return Err(failed(io::ErrorKind::TimedOut.into())),
    };
    if stream.get_ref().1.alpn_protocol() != Some(ALPN_H2) {
        return Err(error(HboneFailure::Alpn));
    }
    builder().handshake(stream).await.map_err(|error| {
        failed(error.into_io().unwrap_or_else(|| io::ErrorKind::ConnectionAborted.into()))
    })
}

/// Our limits towards a server.
pub(super) fn builder() -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(MAX_FRAME_BYTES)
        .max_header_list_size(MAX_HEADER_LIST_BYTES)
        .max_send_buffer_size(SEND_BUFFER_BYTES)
        .data_frame_budget(DATA_FRAME_BUDGET_BYTES)
        .max_local_error_reset_streams(Some(MAX_LOCAL_ERROR_RESETS))
        .initial_max_send_streams(UNTOLD_MAX_STREAMS)
        .max_concurrent_streams(0)
        .enable_push(false);
    builder
}

/// Whether the peer's SETTINGS have arrived: it accepted who we are and speaks HTTP/2.
/// A server judges a client's certificate after the client's handshake is done, so
/// nothing earlier says so.
pub(super) fn is_settled(sender: &SendRequest<Bytes>) -> bool {
    sender.current_max_send_streams() != UNTOLD_MAX_STREAMS
}

/// What became of a CONNECT that opened no stream.
#[derive(Debug)]
pub(super) enum OpenError {
    /// The connection takes no requests any more; nothing was sent.
    NotSent(h2::Error),
    /// The peer says that it did not process the request: REFUSED_STREAM.
    StreamRefused,
    /// The peer is going away and says that it did not process the request.
    GoAway,
    /// The connection broke first.
    Lost(io::Error),
    /// The peer broke HTTP/2 or reset the stream.
    Protocol(h2::Error),
    /// The peer answered with this instead of 200.
    Refused(StatusCode, Option<Box<str>>),
}

/// Sends the CONNECT and waits for its answer. Dropped meanwhile, the stream is reset.
pub(super) async fn open(
    sender: SendRequest<Bytes>,
    authority: SocketAddr,
) -> Result<(SendStream<Bytes>, RecvStream), OpenError> {
    let mut sender = sender.ready().await.map_err(OpenError::NotSent)?;
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = http::Uri::try_from(authority.to_string())
        .map_err(|_| OpenError::Protocol(Reason::INTERNAL_ERROR.into()))?;
    let (response, send) = sender.send_request(request, false).map_err(OpenError::NotSent)?;
    // Only streams keep a retired connection alive, not those who wait for an answer
    // on a clone of its sender.
    drop(sender);
    let response = response.await.map_err(classify)?;
    if response.status() != StatusCode::OK {
        return Err(OpenError::Refused(response.status(), reason(&response)));
    }
    Ok((send, response.into_body()))
}

fn classify(error: h2::Error) -> OpenError {
    if error.is_remote() && error.is_go_away() {
        return OpenError::GoAway;
    }
    if error.is_remote() && error.reason() == Some(Reason::REFUSED_STREAM) {
        return OpenError::StreamRefused;
    }
    if error.is_io() {
        let lost = || io::ErrorKind::ConnectionAborted.into();
        return OpenError::Lost(error.into_io().unwrap_or_else(lost));
    }
    OpenError::Protocol(error)
}

/// What the peer's `proxy-status` says, bounded and printable.
fn reason(response: &Response<RecvStream>) -> Option<Box<str>> {
    let value = response.headers().get("proxy-status")?.to_str().ok()?;
    // `to_str` gives ASCII only, so any byte is a boundary.
    Some(value[..value.len().min(MAX_REASON_BYTES)].into())
}
