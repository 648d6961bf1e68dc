//! What a connection carries once it has changed its protocol: opaque bytes, both ways.

use std::sync::Arc;

use bytes::BytesMut;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional};
use tokio_util::io::InspectReader;

use super::{
    Replayed, RequestBody,
    breakers::Admitted,
    record::RequestLog,
    timing::{Deadline, Expired},
};
use crate::{
    codec::guard::HeadGuard,
    observe::flags::ResponseFlag,
    route::LoadGuard,
    transport::http_pool::{BoxedIo, LeasedBody},
};

/// The side of the upstream.
pub(super) enum Upstream {
    /// Its connection, or a stream on it, has switched protocols. The body holds it.
    Switched(OnUpgrade, LeasedBody<RequestBody>),
    /// A connection that never carried HTTP.
    Opaque(BoxedIo),
}

impl Upstream {
    pub(super) fn of(switched: OnUpgrade, body: LeasedBody<RequestBody>) -> Self {
        match body.into_opaque() {
            Ok(io) => Self::Opaque(io),
            Err(body) => Self::Switched(switched, body),
        }
    }

    async fn opened(self) -> Result<Opened, hyper::Error> {
        Ok(match self {
            Self::Switched(switched, body) => {
                Opened { io: Box::new(TokioIo::new(switched.await?)), _body: Some(body) }
            }
            Self::Opaque(io) => Opened { io: Box::new(io), _body: None },
        })
    }
}

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

struct Opened {
    io: Box<dyn Duplex>,
    _body: Option<LeasedBody<RequestBody>>,
}

/// Both sides of a request whose response has switched protocols.
pub(super) struct Tunnel {
    pub(super) downstream: OnUpgrade,
    pub(super) upstream: Upstream,
    pub(super) deadline: Deadline,
    /// In flight until it has ended.
    pub(super) held: (LoadGuard, Admitted),
    pub(super) log: RequestLog,
}

impl Tunnel {
    /// Copies until both ways have ended, one side fails, or nothing was said for too long.
    /// Dropping the future cuts it. `IO` is what the downstream connection was served on, by
    /// HTTP/1.
    pub(super) async fn run<IO>(self)
    where
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let whole = |downstream: Upgraded| {
            let parts = downstream.downcast::<TokioIo<HeadGuard<IO>>>().ok()?;
            let (io, unread) = parts.io.into_inner().into_raw();
            let mut sniffed = BytesMut::from(&*parts.read_buf);
            sniffed.unsplit(unread);
            Some(Replayed { io, sniffed: sniffed.freeze() })
        };
        self.copy(whole).await;
    }

    /// The same, where the downstream is a stream of HTTP/2. It ends with its connection.
    pub(super) async fn run_stream(self) {
        self.copy(|downstream| Some(TokioIo::new(downstream))).await;
    }

    async fn copy<D>(self, of_upgraded: impl FnOnce(Upgraded) -> Option<D>)
    where
        D: AsyncRead + AsyncWrite + Unpin,
    {
        let Self { downstream, upstream, mut deadline, held: _held, mut log } = self;
        let cut = |mut log: RequestLog, why: String| {
            log.cut(ResponseFlag::UpstreamConnectionTermination, why);
        };
        let (downstream, upstream) = match tokio::try_join!(downstream, upstream.opened()) {
            Ok(both) => both,
            Err(error) => return cut(log, format!("the protocol was not switched: {error}")),
        };
        let Some(downstream) = of_upgraded(downstream) else {
            return cut(log, "the connection is another's".to_owned());
        };
        let (up, down) = (Arc::clone(&log.exchange), Arc::clone(&log.exchange));
        let mut downstream = InspectReader::new(downstream, |read| up.request_moved(read.len()));
        let mut upstream = InspectReader::new(upstream.io, |read| down.response_moved(read.len()));
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
