//! What is read of a connection before its filter chain is chosen.

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    time,
};

use crate::{
    codec::{
        client_hello::{Hello, HelloReader},
        http_inspector::{self, Spoken},
        proxy_protocol::{self, Addresses, Parsed},
    },
    model::{
        listener::TransportProtocol,
        listener_filter::{Inspected, ListenerFilters, ProxyProtocol, TlsInspector},
    },
};

/// What one read takes off a connection whose listener filters run.
const READ_BYTES: usize = 4096;

/// What listener filters found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// What the PROXY protocol says.
    pub(super) addresses: Option<Addresses>,
    pub(super) inspected: Inspected,
}

/// Why no filter chain is chosen.
#[derive(Debug)]
pub(super) enum Stopped {
    /// The client closed its connection, or its half of it, as it was waited for.
    Gone,
    Refused(&'static str),
}

/// Runs `filters` on a stream. `bytes` is what was read of it, before and after, and is for
/// whoever reads on.
///
/// # Errors
/// Why the connection is to be closed.
pub(super) async fn run<D: AsyncRead + Unpin>(
    filters: &ListenerFilters,
    stream: &mut D,
    bytes: &mut BytesMut,
) -> Result<Found, Stopped> {
    let mut found = Found::default();
    if filters.wait() {
        let passing = pass(filters, stream, bytes, &mut found);
        match filters.timeout {
            None => passing.await?,
            Some(limit) => match time::timeout(limit, passing).await {
                Ok(passed) => passed?,
                Err(_) if filters.continue_on_timeout => {}
                Err(_) => return Err(Stopped::Refused("the listener filters took too long")),
            },
        }
    }
    found.inspected.for_tls = filters.tls_inspector.is_some();
    found.inspected.for_http = filters.http_inspector;
    Ok(found)
}

async fn pass<D: AsyncRead + Unpin>(
    filters: &ListenerFilters,
    stream: &mut D,
    bytes: &mut BytesMut,
    found: &mut Found,
) -> Result<(), Stopped> {
    if let Some(options) = filters.proxy_protocol {
        found.addresses = header(options, stream, bytes).await?;
    }
    let inspected = &mut found.inspected;
    if let Some(options) = filters.tls_inspector {
        client_hello(options, stream, bytes, inspected).await?;
    }
    // What speaks TLS has said all that it says in the clear.
    if filters.http_inspector && inspected.transport == TransportProtocol::RawBuffer {
        request_line(stream, bytes, inspected).await?;
    }
    Ok(())
}

async fn header<D: AsyncRead + Unpin>(
    options: ProxyProtocol,
    stream: &mut D,
    bytes: &mut BytesMut,
) -> Result<Option<Addresses>, Stopped> {
    loop {
        match proxy_protocol::parse(bytes, options) {
            Parsed::NeedMore => more(stream, bytes).await?,
            Parsed::Absent => return Ok(None),
            Parsed::Refused(why) => return Err(Stopped::Refused(why)),
            Parsed::Header { bytes: length, addresses } => {
                let _header = bytes.split_to(length);
                return Ok(addresses);
            }
        }
    }
}

async fn client_hello<D: AsyncRead + Unpin>(
    options: TlsInspector,
    stream: &mut D,
    bytes: &mut BytesMut,
    inspected: &mut Inspected,
) -> Result<(), Stopped> {
    let mut reader = HelloReader::new(options);
    loop {
        match reader.read(bytes) {
            Hello::NeedMore => more(stream, bytes).await?,
            Hello::Tls { server_name, application_protocols } => {
                inspected.transport = TransportProtocol::Tls;
                inspected.server_name = server_name;
                inspected.application_protocols = application_protocols;
                return Ok(());
            }
            Hello::Unreadable if options.close_on_errors => {
                return Err(Stopped::Refused("the ClientHello can't be read"));
            }
            Hello::Opaque | Hello::Unreadable => return Ok(()),
        }
    }
}

async fn request_line<D: AsyncRead + Unpin>(
    stream: &mut D,
    bytes: &mut BytesMut,
    inspected: &mut Inspected,
) -> Result<(), Stopped> {
    let mut searched = 0;
    loop {
        match http_inspector::inspect(bytes, searched) {
            Spoken::NeedMore => {
                searched = bytes.len();
                more(stream, bytes).await?;
            }
            Spoken::Http(protocol) => {
                inspected.application_protocols = vec![protocol.into()];
                return Ok(());
            }
            Spoken::Other => return Ok(()),
            Spoken::TooLong => return Err(Stopped::Refused("the request line is too long")),
        }
    }
}

/// What asks for more bounds how much there may be.
async fn more<D: AsyncRead + Unpin>(stream: &mut D, bytes: &mut BytesMut) -> Result<(), Stopped> {
    bytes.reserve(READ_BYTES);
    match stream.read_buf(bytes).await {
        Ok(0) | Err(_) => Err(Stopped::Gone),
        Ok(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests;
