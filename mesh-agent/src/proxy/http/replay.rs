//! A request's body that can be sent more than once.
//!
//! What has been sent is kept as long as it is little; what has not is still on its way
//! from the client, whichever attempt reads it.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use super::{
    RequestBody,
    body::RequestBodyError,
    held::{Held, Share},
};

/// Sends what is kept in pieces of at most this.
const PIECE_MAX_BYTES: usize = 64 * 1024;

/// A body, and what was sent of it.
#[derive(Debug)]
pub(super) struct Replay(Arc<Mutex<Shared>>);

#[derive(Debug)]
struct Shared {
    rest: RequestBody,
    /// Copied: a small piece of somebody's large buffer would keep all of it.
    sent: BytesMut,
    trailers: Option<HeaderMap>,
    ended: bool,
    max_bytes: u64,
    share: Share,
    /// What `sent` takes.
    held: Option<Held>,
    /// More was sent than is kept.
    exceeded: bool,
    /// The attempt that reads: one before it may not be gone yet, and gets nothing more.
    attempt: u32,
}

/// One attempt's view.
#[derive(Debug)]
pub(super) struct Attempt {
    body: Arc<Mutex<Shared>>,
    attempt: u32,
    /// How much of what is kept it has read.
    read: usize,
    trailers_read: bool,
}

impl Replay {
    /// Of `share` it takes what it keeps, at most so many bytes.
    pub(super) fn new(body: RequestBody, max_bytes: u64, share: Share) -> Self {
        Self(Arc::new(Mutex::new(Shared {
            rest: body,
            sent: BytesMut::new(),
            trailers: None,
            ended: false,
            max_bytes,
            share,
            held: None,
            exceeded: false,
            attempt: 0,
        })))
    }

    /// The body from its beginning. The attempt before this one is over.
    pub(super) fn attempt(&self) -> Attempt {
        let mut shared = lock(&self.0);
        shared.attempt += 1;
        let attempt = shared.attempt;
        Attempt { body: Arc::clone(&self.0), attempt, read: 0, trailers_read: false }
    }

    /// Whether it can still be sent from its beginning.
    pub(super) fn is_whole(&self) -> bool {
        !lock(&self.0).exceeded
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    // Every change is a single step.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn keep(&mut self, data: &[u8]) {
        let more = self.sent.len() as u64 + data.len() as u64 > self.max_bytes;
        if !more && !self.exceeded {
            self.sent.extend_from_slice(data);
            let bytes = self.sent.capacity();
            if Held::fits(&mut self.held, &self.share, bytes) {
                return;
            }
        }
        self.exceeded = true;
        (self.sent, self.held) = (BytesMut::new(), None);
    }
}

impl Attempt {
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        let mut shared = lock(&self.body);
        if shared.attempt != self.attempt {
            return Poll::Pending;
        }
        // Once too much was sent nothing is kept, and this attempt has read all that was.
        if let Some(kept @ [_, ..]) = shared.sent.get(self.read..) {
            let piece = Bytes::copy_from_slice(&kept[..kept.len().min(PIECE_MAX_BYTES)]);
            self.read += piece.len();
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        if shared.ended {
            let trailers = if self.trailers_read { None } else { shared.trailers.clone() };
            self.trailers_read = true;
            return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
        }
        let polled = ready!(Pin::new(&mut shared.rest).poll_frame(cx));
        match &polled {
            Some(Ok(frame)) => match (frame.data_ref(), frame.trailers_ref()) {
                (Some(data), _) => {
                    shared.keep(data);
                    self.read = shared.sent.len();
                }
                (None, trailers) => {
                    shared.trailers = trailers.cloned();
                    shared.ended = true;
                    self.trailers_read = true;
                }
            },
            Some(Err(_)) => {}
            None => shared.ended = true,
        }
        Poll::Ready(polled)
    }

    pub(super) fn is_end_stream(&self) -> bool {
        let shared = lock(&self.body);
        let read = self.read >= shared.sent.len();
        let trailers = shared.trailers.is_some() && !self.trailers_read;
        read && !trailers && (shared.ended || shared.rest.is_end_stream())
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        let shared = lock(&self.body);
        let kept = shared.sent.len().saturating_sub(self.read) as u64;
        let rest = if shared.ended { SizeHint::with_exact(0) } else { shared.rest.size_hint() };
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(kept));
        if let Some(upper) = rest.upper().and_then(|upper| upper.checked_add(kept)) {
            hint.set_upper(upper);
        }
        hint
    }
}
