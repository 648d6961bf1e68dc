//! What is read of a connection before its filter chain is chosen.

use std::sync::Arc;

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    time::{self, Instant},
};

use super::half_open::Entering;
use crate::{
    codec::{
        client_hello::{Hello, HelloReader},
        http_inspector::{self, Spoken},
        proxy_protocol::{self, Addresses, Parsed},
    },
    model::{
        listener::{Listener, TransportProtocol},
        listener_filter::{Inspected, ListenerFilters, ProxyProtocol, TlsInspector},
    },
    snapshot::{Snapshot, SnapshotCell},
};

/// What one read takes off a connection whose listener filters run.
const READ_BYTES: usize = 4096;

const LISTENER_GONE: &str = "its listener was removed as its first bytes were waited for";
const HEADER_CHANGED: &str =
    "whether it speaks the PROXY protocol has changed as its first bytes were waited for";

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

/// Runs the filters of the listener that is for a connection. `bytes` is what was read of it,
/// before and after, and is for whoever reads on. What holds now counts: a listener that
/// changes meanwhile looks for itself. What was found is of the snapshot that comes with it.
///
/// # Errors
/// Why the connection is to be closed.
pub(super) async fn run<D: AsyncRead + Unpin>(
    current: &SnapshotCell,
    listener: impl for<'a> Fn(&'a Snapshot) -> Option<&'a Arc<Listener>>,
    entering: &Entering<'_>,
    stream: &mut D,
    bytes: &mut BytesMut,
) -> Result<(Arc<Snapshot>, Found), Stopped> {
    let mut changes = current.changes();
    let mut reading = Reading { entering, stream, bytes, header: None };
    let began = Instant::now();
    let mut begun: Option<ListenerFilters> = None;
    let mut done = None;
    loop {
        changes.mark_unchanged();
        let snapshot = current.load();
        let filters = listener(&snapshot).map(|listener| &listener.listener_filters);
        let filters = match (filters, &begun) {
            // It was begun for a listener, and what it has said is not for anybody else.
            (None, Some(_)) => return Err(Stopped::Refused(LISTENER_GONE)),
            (Some(now), Some(before)) if now.proxy_protocol != before.proxy_protocol => {
                return Err(Stopped::Refused(HEADER_CHANGED));
            }
            (None, None) => return Ok((snapshot, Found::default())),
            (Some(filters), _) => filters,
        };
        if begun.as_ref() != Some(filters) {
            (begun, done) = (Some(filters.clone()), None);
        }
        if let Some(inspected) = done.take() {
            let addresses = reading.header.flatten();
            return Ok((snapshot, Found { addresses, inspected }));
        }
        tokio::select! {
            inspected = inspect(filters, began, &mut reading) => done = Some(inspected?),
            Ok(()) = changes.changed() => {}
        }
    }
}

/// What filters read a connection's first bytes by.
struct Reading<'a, D> {
    entering: &'a Entering<'a>,
    stream: &'a mut D,
    bytes: &'a mut BytesMut,
    /// What the PROXY protocol has said: once, before everything else.
    header: Option<Option<Addresses>>,
}

/// Runs `filters` within their time, which passes since the connection `began`.
async fn inspect<D: AsyncRead + Unpin>(
    filters: &ListenerFilters,
    began: Instant,
    reading: &mut Reading<'_, D>,
) -> Result<Inspected, Stopped> {
    let mut inspected = Inspected::default();
    if filters.wait() {
        let passing = pass(filters, reading, &mut inspected);
        match filters.timeout {
            None => passing.await?,
            Some(limit) => {
                match time::timeout(limit.saturating_sub(began.elapsed()), passing).await {
                    Ok(passed) => passed?,
                    Err(_) if filters.continue_on_timeout => {}
                    Err(_) => return Err(Stopped::Refused("the listener filters took too long")),
                }
            }
        }
    }
    inspected.for_tls = filters.tls_inspector.is_some();
    inspected.for_http = filters.http_inspector;
    Ok(inspected)
}

async fn pass<D: AsyncRead + Unpin>(
    filters: &ListenerFilters,
    reading: &mut Reading<'_, D>,
    inspected: &mut Inspected,
) -> Result<(), Stopped> {
    if let (Some(options), None) = (filters.proxy_protocol, reading.header) {
        reading.header = Some(header(options, reading).await?);
    }
    if let Some(options) = filters.tls_inspector {
        client_hello(options, reading, inspected).await?;
    }
    // What speaks TLS has said all that it says in the clear.
    if filters.http_inspector && inspected.transport == TransportProtocol::RawBuffer {
        request_line(reading, inspected).await?;
    }
    Ok(())
}

async fn header<D: AsyncRead + Unpin>(
    options: ProxyProtocol,
    reading: &mut Reading<'_, D>,
) -> Result<Option<Addresses>, Stopped> {
    loop {
        match proxy_protocol::parse(reading.bytes, options) {
            Parsed::NeedMore => reading.more().await?,
            Parsed::Absent => return Ok(None),
            Parsed::Refused(why) => return Err(Stopped::Refused(why)),
            Parsed::Header { bytes: length, addresses } => {
                let _header = reading.bytes.split_to(length);
                return Ok(addresses);
            }
        }
    }
}

async fn client_hello<D: AsyncRead + Unpin>(
    options: TlsInspector,
    reading: &mut Reading<'_, D>,
    inspected: &mut Inspected,
) -> Result<(), Stopped> {
    let mut reader = HelloReader::new(options);
    loop {
        match reader.read(reading.bytes) {
            Hello::NeedMore => reading.more().await?,
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
    reading: &mut Reading<'_, D>,
    inspected: &mut Inspected,
) -> Result<(), Stopped> {
    let mut searched = 0;
    loop {
        match http_inspector::inspect(reading.bytes, searched) {
            Spoken::NeedMore => {
                searched = reading.bytes.len();
                reading.more().await?;
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

impl<D: AsyncRead + Unpin> Reading<'_, D> {
    /// What asks for more bounds how much there may be.
    async fn more(&mut self) -> Result<(), Stopped> {
        self.bytes.reserve(READ_BYTES);
        self.entering.keeps(self.bytes.capacity());
        match self.stream.read_buf(self.bytes).await {
            Ok(0) | Err(_) => Err(Stopped::Gone),
            Ok(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
