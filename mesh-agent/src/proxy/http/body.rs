//! Bodies on their way through: counted, timed, never gathered.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::{
    breakers::Admitted,
    copy::{Copy, Tee},
    headers::strip_trailers,
    held::{Held, Share},
    outliers,
    record::RequestLog,
    replay::Attempt,
    stages::{Stage, Stages},
    stalled,
    timing::{Deadline, Exchange, Expired},
};
use crate::{
    codec::compression::CodingError, observe::flags::ResponseFlag, route::LoadGuard,
    transport::http_pool::LeasedBody,
};

/// How much of a body that nobody wants is read, and for how long.
const DISCARDED_MAX_BYTES: usize = 1 << 20;
const DISCARD_TIMEOUT: Duration = Duration::from_secs(5);

/// A request's body, from downstream to upstream.
#[derive(Debug)]
pub struct RequestBody {
    /// What was read of it before it went on.
    ahead: Option<Box<Ahead>>,
    content: Content,
    exchange: Arc<Exchange>,
    http2: bool,
    /// Who gets a copy of what is read.
    tee: Option<Tee>,
}

#[derive(Debug, Default)]
struct Ahead {
    data: BytesMut,
    trailers: Option<HeaderMap>,
    /// There is nothing behind it.
    ended: bool,
    /// What `data` takes.
    held: Option<Held>,
}

#[derive(Debug)]
enum Content {
    Nothing,
    /// One of the agent's own.
    Whole(Bytes),
    Incoming(Incoming),
    Replayed(Attempt),
    Copied(Copy),
    /// What filters make of another one.
    Staged(Box<(RequestBody, Stages)>),
}

/// Why a request's body does not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum RequestBodyError {
    #[error(transparent)]
    Client(#[from] hyper::Error),
    /// By HTTP/2 and without an error, which hyper takes for the end.
    #[error("the client reset its request")]
    Reset,
    #[error(transparent)]
    Coding(#[from] CodingError),
    /// It is a copy, and what it is copied from was not read to its end, or too fast.
    #[error("there is no more of the copy")]
    Copy,
    /// Of what all requests' bodies, or those of one pod, may take of memory.
    #[error("too much is kept of requests' bodies")]
    NoRoom,
}

impl RequestBody {
    pub(super) fn new(incoming: Incoming, exchange: Arc<Exchange>, http2: bool) -> Self {
        if incoming.is_end_stream() {
            exchange.request_completed();
        }
        Self { content: Content::Incoming(incoming), exchange, http2, ahead: None, tee: None }
    }

    /// For a request that is sent again.
    pub(super) fn empty(exchange: Arc<Exchange>) -> Self {
        Self { content: Content::Nothing, exchange, http2: false, ahead: None, tee: None }
    }

    /// For a request that may be sent again with its body.
    pub(super) fn replayed(attempt: Attempt, exchange: Arc<Exchange>) -> Self {
        Self { content: Content::Replayed(attempt), exchange, http2: false, ahead: None, tee: None }
    }

    /// For a request of the agent's own.
    pub(super) fn whole(body: Bytes, exchange: Arc<Exchange>) -> Self {
        exchange.request_completed();
        Self { content: Content::Whole(body), exchange, http2: false, ahead: None, tee: None }
    }

    /// A copy of somebody else's.
    pub(super) fn copied(copy: Copy, exchange: Arc<Exchange>) -> Self {
        Self { content: Content::Copied(copy), exchange, http2: false, ahead: None, tee: None }
    }

    /// From here on, whatever is read is copied.
    pub(super) fn with_tee(mut self, tee: Tee) -> Self {
        self.tee = Some(tee);
        self
    }

    /// Has a filter change what comes from now on, what was read ahead too.
    pub(super) fn through(&mut self, stage: Stage) {
        let outer = Self::empty(self.exchange());
        let inner = std::mem::replace(self, outer);
        let mut stages = Stages::default();
        stages.push(stage);
        self.content = Content::Staged(Box::new((inner, stages)));
    }

    /// Reads on until the body has ended or as many bytes are held, and maybe a frame more;
    /// it goes on with them all the same. What is held is `share`'s. Returns whether it has ended.
    ///
    /// # Errors
    /// The client broke off, or there is no room.
    pub(super) async fn read_ahead(
        &mut self,
        bytes: usize,
        share: &Share,
    ) -> Result<bool, RequestBodyError> {
        loop {
            let ahead = self.ahead.get_or_insert_default();
            if ahead.ended || ahead.data.len() >= bytes {
                return Ok(ahead.ended);
            }
            let frame = std::future::poll_fn(|cx| self.poll_content(cx)).await.transpose()?;
            let ahead = self.ahead.get_or_insert_default();
            match frame.map(Frame::into_data) {
                Some(Ok(data)) => {
                    ahead.data.extend_from_slice(&data);
                    if !Held::fits(&mut ahead.held, share, ahead.data.capacity()) {
                        return Err(RequestBodyError::NoRoom);
                    }
                }
                Some(Err(frame)) => {
                    ahead.trailers = frame.into_trailers().ok();
                    ahead.ended = true;
                }
                None => ahead.ended = true,
            }
        }
    }

    /// What [`RequestBody::read_ahead`] has read.
    pub(super) fn ahead(&self) -> &[u8] {
        self.ahead.as_ref().map_or(&[], |ahead| &ahead.data)
    }

    fn poll_content(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        let Self { content, exchange, http2, .. } = self;
        let incoming = match content {
            Content::Nothing => return Poll::Ready(None),
            Content::Whole(body) => {
                let body = std::mem::take(body);
                return Poll::Ready((!body.is_empty()).then(|| Ok(Frame::data(body))));
            }
            Content::Incoming(incoming) => incoming,
            // Counted where it comes from.
            Content::Replayed(attempt) => return attempt.poll_frame(cx),
            Content::Copied(copy) => {
                let frame = ready!(copy.poll_frame(cx));
                if let Some(Ok(frame)) = &frame {
                    exchange.request_moved(frame.data_ref().map_or(0, Bytes::len));
                }
                if copy.is_end_stream() {
                    exchange.request_completed();
                }
                return Poll::Ready(frame);
            }
            Content::Staged(staged) => {
                let (inner, stages) = &mut **staged;
                let polled = stages.poll(cx, |cx| Pin::new(&mut *inner).poll_frame(cx));
                if let Poll::Ready(Some(Err(_))) = &polled {
                    exchange.request_broke();
                }
                return polled;
            }
        };
        let polled = Pin::new(&mut *incoming).poll_frame(cx);
        Poll::Ready(match ready!(polled) {
            Some(Ok(frame)) => {
                let (frame, bytes) = counted(frame);
                exchange.request_moved(bytes);
                if incoming.is_end_stream() {
                    exchange.request_completed();
                }
                Some(Ok(frame))
            }
            Some(Err(error)) => {
                exchange.request_broke();
                Some(Err(error.into()))
            }
            None if *http2 && !incoming.is_end_stream() => {
                exchange.request_broke();
                Some(Err(RequestBodyError::Reset))
            }
            None => {
                exchange.request_completed();
                None
            }
        })
    }

    fn content_has_ended(&self) -> bool {
        match &self.content {
            Content::Nothing => true,
            Content::Whole(body) => body.is_empty(),
            Content::Incoming(incoming) => incoming.is_end_stream(),
            Content::Replayed(attempt) => attempt.is_end_stream(),
            Content::Copied(copy) => copy.is_end_stream(),
            Content::Staged(staged) => staged.1.is_done(),
        }
    }

    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        if let Some(ahead) = &mut self.ahead {
            if !ahead.data.is_empty() {
                let data = std::mem::take(&mut ahead.data).freeze();
                ahead.held = None;
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            if ahead.ended {
                return Poll::Ready(ahead.trailers.take().map(|t| Ok(Frame::trailers(t))));
            }
        }
        self.poll_content(cx)
    }

    pub(super) fn exchange(&self) -> Arc<Exchange> {
        Arc::clone(&self.exchange)
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if self.http2
            && let Content::Incoming(incoming) =
                std::mem::replace(&mut self.content, Content::Nothing)
            && !incoming.is_end_stream()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(discard(incoming, Arc::clone(&self.exchange)));
        }
    }
}

/// Lets a client finish what nobody wants to read: to stop reading would reset the
/// HTTP/2 stream, which may cost the client the response that is on its way. Bounded;
/// what is left then waits for the end of the exchange. Spec: RFC 9113 §8.1.
async fn discard(mut incoming: Incoming, exchange: Arc<Exchange>) {
    let mut left = DISCARDED_MAX_BYTES;
    let read = async {
        while let Some(Ok(frame)) = incoming.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if left == 0 {
                break;
            }
        }
    };
    // Either way: what matters is whether the body has ended.
    let _ = tokio::time::timeout(DISCARD_TIMEOUT, read).await;
    if !incoming.is_end_stream() {
        exchange.keep_unread(incoming);
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = RequestBodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        let this = self.get_mut();
        let polled = ready!(this.poll_next(cx));
        let ended = this.is_end_stream();
        if let Some(tee) = &mut this.tee {
            match &polled {
                Some(Ok(frame)) => tee.copy(frame),
                Some(Err(_)) => this.tee = None,
                None => tee.end(),
            }
        }
        // Who reads may not ask again.
        if ended && let Some(tee) = &mut this.tee {
            tee.end();
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        match &self.ahead {
            Some(ahead) if !ahead.data.is_empty() || ahead.trailers.is_some() => false,
            Some(ahead) if ahead.ended => true,
            _ => self.content_has_ended(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        // Of no body hyper would tell the length by HTTP/2, which Envoy does not.
        if self.is_end_stream() {
            return SizeHint::default();
        }
        // What was read ahead has no other framing than it had.
        if self.ahead.is_some() {
            return SizeHint::default();
        }
        match &self.content {
            Content::Nothing => SizeHint::with_exact(0),
            Content::Whole(body) => SizeHint::with_exact(body.len() as u64),
            Content::Incoming(incoming) => incoming.size_hint(),
            Content::Replayed(attempt) => attempt.size_hint(),
            Content::Copied(_) => SizeHint::default(),
            Content::Staged(_) => SizeHint::default(),
        }
    }
}

/// Trailers that may go on, and how much body a frame is.
fn counted(frame: Frame<Bytes>) -> (Frame<Bytes>, usize) {
    match frame.into_data() {
        Ok(data) => {
            let bytes = data.len();
            (Frame::data(data), bytes)
        }
        Err(frame) => match frame.into_trailers() {
            Ok(mut trailers) => {
                strip_trailers(&mut trailers);
                (Frame::trailers(trailers), 0)
            }
            // No frame is of a third kind.
            Err(_) => (Frame::trailers(HeaderMap::new()), 0),
        },
    }
}

/// A response's body, towards downstream. Dropping it ends the request's record.
pub(super) struct ResponseBody {
    source: Source,
    /// What filters make of it.
    stages: Stages,
    /// `None`: the exchange goes on without it.
    log: Option<RequestLog>,
}

enum Source {
    Local(Bytes),
    /// Its length is told, and there is none.
    Announced,
    Upstream(Box<Upstream>),
}

struct Upstream {
    body: LeasedBody<RequestBody>,
    deadline: Deadline,
    /// In flight until the response has ended.
    held: (LoadGuard, Admitted),
}

/// Why a response that has begun is cut short.
#[derive(Debug, thiserror::Error)]
pub(super) enum CutShort {
    #[error("upstream broke off its response")]
    Upstream(#[source] hyper::Error),
    #[error("upstream reset its response")]
    Reset,
    #[error("the response took too long")]
    Expired(Expired),
    #[error(transparent)]
    Coding(#[from] CodingError),
}

impl ResponseBody {
    pub(super) fn local(body: Bytes, mut log: RequestLog) -> Self {
        if body.is_empty() {
            log.end();
        } else {
            sends(&log, log.idle());
        }
        Self { source: Source::Local(body), stages: Stages::default(), log: Some(log) }
    }

    pub(super) fn upstream(
        body: LeasedBody<RequestBody>,
        deadline: Deadline,
        held: (LoadGuard, Admitted),
        mut log: RequestLog,
    ) -> Self {
        if body.is_end_stream() {
            log.end();
        } else {
            sends(&log, deadline.again());
        }
        let source = Source::Upstream(Box::new(Upstream { body, deadline, held }));
        Self { source, stages: Stages::default(), log: Some(log) }
    }

    /// With what filters make of it, if anything.
    pub(super) fn through(self, stages: Stages) -> Self {
        Self { stages, ..self }
    }

    /// The response has no body whatever its headers say: HEAD.
    pub(super) fn bodiless(mut self) -> Self {
        self.log.iter_mut().for_each(RequestLog::end);
        self
    }

    /// What a 304 says of its length is another response's: hyper would leave it out where it
    /// knows that there is no body.
    pub(super) fn announced(mut log: RequestLog) -> Self {
        log.end();
        Self { source: Source::Announced, stages: Stages::default(), log: Some(log) }
    }

    /// The response ends with its head, and the exchange does not.
    pub(super) fn switched() -> Self {
        Self { source: Source::Local(Bytes::new()), stages: Stages::default(), log: None }
    }

    /// Of a response that has not been touched since it was made.
    pub(super) fn is_switched(&self) -> bool {
        self.log.is_none()
    }
}

/// From here on it is up to the client to take what there is.
fn sends(log: &RequestLog, deadline: Deadline) {
    log.exchange.ask_for_more(false);
    stalled::sends(deadline);
}

impl Source {
    fn is_end_stream(&self) -> bool {
        match self {
            Self::Announced => false,
            Self::Local(body) => body.is_empty(),
            Self::Upstream(upstream) => upstream.body.is_end_stream(),
        }
    }

    /// The next frame, as it comes; why there is none is noted.
    fn poll_frame(
        &mut self,
        log: &mut RequestLog,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, CutShort>>> {
        let upstream = match self {
            Self::Local(body) => {
                let body = std::mem::take(body);
                return Poll::Ready((!body.is_empty()).then(|| Ok(Frame::data(body))));
            }
            Self::Announced => return Poll::Ready(None),
            Self::Upstream(upstream) => upstream,
        };
        match Pin::new(&mut upstream.body).poll_frame(cx) {
            Poll::Ready(Some(Err(error))) => {
                outliers::broke_off(&upstream.held.0.reporter());
                log.cut(ResponseFlag::UpstreamConnectionTermination, error.to_string());
                Poll::Ready(Some(Err(CutShort::Upstream(error))))
            }
            Poll::Ready(None) if upstream.body.is_cut() => {
                outliers::broke_off(&upstream.held.0.reporter());
                log.cut(ResponseFlag::UpstreamRemoteReset, CutShort::Reset.to_string());
                Poll::Ready(Some(Err(CutShort::Reset)))
            }
            Poll::Ready(polled) => {
                Poll::Ready(polled.map(|polled| polled.map_err(CutShort::Upstream)))
            }
            Poll::Pending => upstream.deadline.poll_expired(cx).map(|expired| {
                log.expired(expired);
                Some(Err(CutShort::Expired(expired)))
            }),
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = CutShort;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, CutShort>>> {
        let this = self.get_mut();
        let Self { source, stages, log: Some(log) } = this else { return Poll::Ready(None) };
        let polled = match stages.is_empty() {
            true => source.poll_frame(log, cx),
            false => stages.poll(cx, |cx| source.poll_frame(log, cx)),
        };
        log.exchange.ask_for_more(polled.is_pending());
        match ready!(polled) {
            Some(Ok(frame)) => {
                let (frame, bytes) = counted(frame);
                log.exchange.response_moved(bytes);
                if let Some(trailers) = frame.trailers_ref() {
                    log.trailers(trailers);
                }
                if this.is_end_stream()
                    && let Some(log) = &mut this.log
                {
                    log.end();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                if let CutShort::Coding(error) = &error {
                    log.cut(ResponseFlag::UpstreamProtocolError, error.to_string());
                }
                Poll::Ready(Some(Err(error)))
            }
            None => {
                log.end();
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self.stages.is_empty() {
            true => self.source.is_end_stream(),
            false => self.stages.is_done(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            _ if !self.stages.is_empty() => SizeHint::default(),
            Source::Local(body) => SizeHint::with_exact(body.len() as u64),
            Source::Announced => SizeHint::default(),
            Source::Upstream(upstream) => upstream.body.size_hint(),
        }
    }
}
