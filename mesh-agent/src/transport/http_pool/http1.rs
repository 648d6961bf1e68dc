//! One HTTP/1.1 connection, driven by whoever uses it.

use std::{
    future::Future,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
};

use http::{Method, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio_util::io::InspectReader;

use super::{
    BoxedIo, Heard, Home, HttpPoolOptions, LeasedBody, SendFailure, UpstreamBody, Use, torn::Tail,
};

/// The smallest that hyper takes.
const BUFFER_MIN_BYTES: usize = 8192;
/// Bounds what is buffered per connection, each way.
const BUFFER_MAX_BYTES: usize = 64 * 1024;

/// hyper has no name for one that may change its protocol.
type Connection = dyn Future<Output = Result<(), hyper::Error>> + Send;

/// A connection between requests, or in one.
pub(super) struct Http1<B: UpstreamBody> {
    sender: http1::SendRequest<Upload<B>>,
    /// Boxed: it moves between pool and requests. `None` once it has ended, or has a
    /// task of its own.
    connection: Option<Pin<Box<Connection>>>,
    pub(super) local: Option<SocketAddr>,
    pub(super) used: Use,
    tail: Tail,
}

impl<B: UpstreamBody> Http1<B> {
    pub(super) async fn handshake(
        io: BoxedIo,
        options: &HttpPoolOptions,
    ) -> Result<Self, hyper::Error> {
        let head_max_bytes = usize::try_from(options.response_head_max_bytes).unwrap_or(usize::MAX);
        let local = io.local_address();
        let tail = Tail::default();
        let noted = tail.clone();
        let io = InspectReader::new(io, move |read: &[u8]| noted.note(read));
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(head_max_bytes.clamp(BUFFER_MIN_BYTES, BUFFER_MAX_BYTES))
            .handshake(TokioIo::new(io))
            .await?;
        let connection = Some(Box::pin(connection.with_upgrades()) as Pin<Box<Connection>>);
        Ok(Self { sender, connection, local, used: Use::new(), tail })
    }

    /// Moves bytes; the connection is let go of when it has ended.
    pub(super) fn drive(&mut self, cx: &mut Context<'_>) {
        if let Some(connection) = &mut self.connection
            && connection.as_mut().poll(cx).is_ready()
        {
            // Its error, if any, has been told to the request in hand.
            self.connection = None;
        }
    }

    /// Whether a request may be sent: looks whether the peer has closed it.
    pub(super) fn is_alive(&mut self) -> bool {
        self.drive(&mut Context::from_waker(Waker::noop()));
        self.connection.is_some() && self.sender.is_ready()
    }

    /// Goes back to the pool, if the exchange has left it fit for another.
    pub(super) fn release(mut self, home: Home<B>, cx: &mut Context<'_>) {
        // From "response read" to "ready".
        self.drive(cx);
        if self.connection.is_some() && self.sender.is_ready() {
            home.keep(self);
        }
    }

    pub(super) async fn send(
        mut self,
        request: Request<B>,
        home: Home<B>,
    ) -> Result<Response<LeasedBody<B>>, SendFailure<B>> {
        let connect = request.method() == Method::CONNECT;
        self.used.count();
        self.tail.forget();
        let sent = (!request.body().is_end_stream()).then(Arc::<AtomicBool>::default);
        let request = request.map(|inner| Upload { inner, dropped: SetOnDrop(sent.clone()) });
        let response = {
            let mut response = pin!(self.sender.try_send_request(request));
            let connection = &mut self.connection;
            std::future::poll_fn(|cx| {
                if let Some(running) = connection
                    && running.as_mut().poll(cx).is_ready()
                {
                    *connection = None;
                }
                response.as_mut().poll(cx)
            })
            .await
        };
        let response = response.map_err(|mut failed| SendFailure {
            unsent: failed.take_message().map(|unsent| Box::new(unsent.map(|body| body.inner))),
            heard: match failed.error().is_incomplete_message() {
                true => self.tail.heard(),
                false => Heard::Nothing,
            },
            error: failed.into_error(),
        })?;
        let uploading = sent.is_some_and(|sent| !sent.load(Ordering::Acquire));
        let status = response.status();
        let switching = status == StatusCode::SWITCHING_PROTOCOLS || connect && status.is_success();
        if (uploading || switching)
            && let Some(connection) = self.connection.take()
        {
            // What has changed its protocol is handed over by hyper. Or the response overtook the request. From here on it is driven as it is
            // read, and a client may not read before it has sent everything: the
            // upload must not wait for that.
            tokio::spawn(connection);
        }
        Ok(response.map(|incoming| LeasedBody::http1(incoming, self, home)))
    }
}

/// A request body that tells when hyper is done with it.
pub(super) struct Upload<B> {
    inner: B,
    dropped: SetOnDrop,
}

struct SetOnDrop(Option<Arc<AtomicBool>>);

impl Drop for SetOnDrop {
    fn drop(&mut self) {
        if let Some(flag) = &self.0 {
            flag.store(true, Ordering::Release);
        }
    }
}

impl<B: UpstreamBody> Body for Upload<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        debug_assert!(self.dropped.0.is_some() || self.inner.is_end_stream());
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
