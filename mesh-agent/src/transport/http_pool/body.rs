//! A response's body, and the connection it holds until it has ended.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::{BoxedIo, Home, UpstreamBody, http1::Http1, http2::Claim};

/// The body of a response. Dropped before its end, it ends the exchange: HTTP/1.1
/// closes the connection, HTTP/2 resets the stream.
pub struct LeasedBody<B: UpstreamBody> {
    /// `None`: there is none, the connection carries no HTTP.
    incoming: Option<Incoming>,
    held: Held<B>,
    cut: bool,
}

enum Held<B: UpstreamBody> {
    Http1(Box<(Http1<B>, Home<B>)>),
    /// For its drop.
    Http2(#[expect(dead_code, reason = "counted until dropped")] Claim<B>),
    Opaque(BoxedIo),
    Nothing,
}

impl<B: UpstreamBody> LeasedBody<B> {
    pub(super) fn http1(incoming: Incoming, connection: Http1<B>, home: Home<B>) -> Self {
        Self {
            incoming: Some(incoming),
            held: Held::Http1(Box::new((connection, home))),
            cut: false,
        }
    }

    pub(super) fn http2(incoming: Incoming, claim: Claim<B>) -> Self {
        Self { incoming: Some(incoming), held: Held::Http2(claim), cut: false }
    }

    /// No body, and a connection that is for something else than HTTP.
    pub fn opaque(io: BoxedIo) -> Self {
        Self { incoming: None, held: Held::Opaque(io), cut: false }
    }

    /// The connection that is for something else than HTTP.
    ///
    /// # Errors
    /// The body itself: there is none.
    pub fn into_opaque(self) -> Result<BoxedIo, Self> {
        match self.held {
            Held::Opaque(io) => Ok(io),
            held => Err(Self { held, ..self }),
        }
    }
}

impl<B: UpstreamBody> LeasedBody<B> {
    /// Lets go of the connection if the body has ended. [`Body::poll_frame`] does it by
    /// itself; a body that is empty from the beginning is never polled.
    pub fn release_if_ended(&mut self, cx: &mut Context<'_>) {
        if self.incoming.as_ref().is_some_and(Body::is_end_stream) {
            self.release(cx);
        }
    }

    /// Whether it has ended before the server said so: hyper takes a stream that is reset
    /// without an error for one that has come to its end.
    ///
    /// Spec: RFC 9113 §8.1.
    pub fn is_cut(&self) -> bool {
        self.cut
    }

    fn release(&mut self, cx: &mut Context<'_>) {
        if let Held::Http1(held) = std::mem::replace(&mut self.held, Held::Nothing) {
            let (connection, home) = *held;
            connection.release(home, cx);
        }
    }
}

impl<B: UpstreamBody> Body for LeasedBody<B> {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        if let Held::Http1(held) = &mut this.held {
            held.0.drive(cx);
        }
        let Some(incoming) = &mut this.incoming else { return Poll::Ready(None) };
        let mut polled = Pin::new(&mut *incoming).poll_frame(cx);
        if polled.is_pending()
            && let Held::Http1(held) = &mut this.held
        {
            // Polling told hyper that another frame is wanted: it may be there already.
            held.0.drive(cx);
            polled = Pin::new(&mut *incoming).poll_frame(cx);
        }
        let frame = ready!(polled);
        if frame.is_none() && matches!(this.held, Held::Http2(_)) {
            this.cut = !incoming.is_end_stream();
        }
        match &frame {
            Some(Ok(_)) if !incoming.is_end_stream() => {}
            Some(Ok(_)) | None => this.release(cx),
            Some(Err(_)) => this.held = Held::Nothing,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}
