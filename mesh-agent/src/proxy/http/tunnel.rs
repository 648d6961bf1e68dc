//! What a connection carries once it has changed its protocol: opaque bytes, both ways.

use std::sync::Arc;

use bytes::BytesMut;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional};
use tokio_util::io::InspectReader;

use super::{
    Replayed,
    breakers::Admitted,
    record::RequestLog,
    timing::{Deadline, Expired},
};
use crate::{codec::guard::HeadGuard, observe::flags::ResponseFlag, route::LoadGuard};

/// Both sides of a request whose response has switched protocols.
pub(super) struct Tunnel {
    pub(super) downstream: OnUpgrade,
    pub(super) upstream: OnUpgrade,
    pub(super) deadline: Deadline,
    /// In flight until it has ended.
    pub(super) held: (LoadGuard, Admitted),
    pub(super) log: RequestLog,
}

impl Tunnel {
    /// Copies until both ways have ended, one side fails, or nothing was said for too long.
    /// Dropping the future cuts it. `IO` is what the downstream connection was served on.
    pub(super) async fn run<IO>(self)
    where
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let Self { downstream, upstream, mut deadline, held: _held, mut log } = self;
        let cut = |mut log: RequestLog, why: String| {
            log.cut(ResponseFlag::UpstreamConnectionTermination, why);
        };
        let (downstream, upstream) = match tokio::try_join!(downstream, upstream) {
            Ok(both) => both,
            Err(error) => return cut(log, format!("the protocol was not switched: {error}")),
        };
        let Ok(parts) = downstream.downcast::<TokioIo<HeadGuard<IO>>>() else {
            return cut(log, "the connection is another's".to_owned());
        };
        let (io, unread) = parts.io.into_inner().into_raw();
        let mut sniffed = BytesMut::from(&*parts.read_buf);
        sniffed.unsplit(unread);
        let (up, down) = (Arc::clone(&log.exchange), Arc::clone(&log.exchange));
        let downstream = Replayed { io, sniffed: sniffed.freeze() };
        let mut downstream = InspectReader::new(downstream, |read| up.request_moved(read.len()));
        let upstream = TokioIo::new(upstream);
        let mut upstream = InspectReader::new(upstream, |read| down.response_moved(read.len()));
        match deadline.run(copy_bidirectional(&mut downstream, &mut upstream)).await {
            Ok(Ok(_)) => log.end(),
            Ok(Err(error)) => cut(log, format!("the tunnel broke off: {error}")),
            Err(Expired::StreamIdle) => {
                log.cut(ResponseFlag::StreamIdleTimeout, "stream idle timeout");
            }
            Err(Expired::Route | Expired::Request) => {
                log.cut(ResponseFlag::UpstreamRequestTimeout, "route timeout");
            }
            Err(Expired::Whole) => {
                log.cut(ResponseFlag::DurationTimeout, "max_duration_timeout");
            }
        }
    }
}
