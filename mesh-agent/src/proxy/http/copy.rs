//! Copies of a body that is on its way to somebody else.
//!
//! Whoever the body is for sets the pace: a copy whose reader is slower holds a bounded part
//! of it, and breaks off beyond that.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;

use super::{
    body::RequestBodyError,
    held::{Held, Share},
};

/// What waits in one copy, at most: Envoy's default for a connection's buffer.
const WAITING_MAX_BYTES: usize = 1 << 20;
const WAITING_MAX_PIECES: usize = 1024;

/// Where copies are made.
#[derive(Debug, Default)]
pub(super) struct Tee {
    queues: Vec<Arc<Mutex<Queue>>>,
    share: Share,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Copy(Arc<Mutex<Queue>>);

#[derive(Debug, Default)]
struct Queue {
    pieces: VecDeque<Piece>,
    bytes: usize,
    /// What they take.
    held: Option<Held>,
    state: State,
    reader: Option<Waker>,
}

#[derive(Debug)]
enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    Ended,
    Broken,
}

fn lock(queue: &Mutex<Queue>) -> MutexGuard<'_, Queue> {
    // Every change is a single step.
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Queue {
    fn push(&mut self, piece: Piece, share: &Share) {
        if self.state != State::Open {
            return;
        }
        if let Piece::Data(data) = &piece {
            self.bytes += data.len();
        }
        self.pieces.push_back(piece);
        let fits = Held::fits(&mut self.held, share, self.bytes);
        if !fits || self.bytes > WAITING_MAX_BYTES || self.pieces.len() > WAITING_MAX_PIECES {
            self.close(State::Broken);
        }
        self.wake();
    }

    fn close(&mut self, state: State) {
        if self.state == State::Open {
            self.state = state;
            if state == State::Broken {
                (self.pieces, self.held) = (VecDeque::new(), None);
            }
            self.wake();
        }
    }

    fn wake(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

impl Tee {
    /// What waits in copies is `share`'s.
    pub(super) fn new(share: Share) -> Self {
        Self { queues: Vec::new(), share }
    }

    /// One more copy, from here on.
    pub(super) fn add(&mut self) -> Copy {
        let queue = Arc::<Mutex<Queue>>::default();
        self.queues.push(Arc::clone(&queue));
        Copy(queue)
    }

    pub(super) fn copy(&mut self, frame: &Frame<Bytes>) {
        // A small piece of somebody's large buffer would keep all of it.
        let own = frame.data_ref().map(|data| Bytes::copy_from_slice(data));
        for queue in &self.queues {
            if let Some(data) = &own {
                lock(queue).push(Piece::Data(data.clone()), &self.share);
            } else if let Some(trailers) = frame.trailers_ref() {
                lock(queue).push(Piece::Trailers(trailers.clone()), &self.share);
            }
        }
    }

    /// There is nothing more.
    pub(super) fn end(&mut self) {
        for queue in self.queues.drain(..) {
            lock(&queue).close(State::Ended);
        }
    }
}

impl Drop for Tee {
    fn drop(&mut self) {
        for queue in &self.queues {
            lock(queue).close(State::Broken);
        }
    }
}

impl Copy {
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        let mut queue = lock(&self.0);
        match (queue.pieces.pop_front(), queue.state) {
            (Some(Piece::Data(data)), _) => {
                queue.bytes = queue.bytes.saturating_sub(data.len());
                let bytes = queue.bytes;
                // Less always fits.
                queue.held.iter_mut().for_each(|held| _ = held.set(bytes));
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            (Some(Piece::Trailers(trailers)), _) => {
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
            (None, State::Ended) => Poll::Ready(None),
            (None, State::Broken) => Poll::Ready(Some(Err(RequestBodyError::Copy))),
            (None, State::Open) => {
                queue.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        let queue = lock(&self.0);
        queue.state == State::Ended && queue.pieces.is_empty()
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        // Nobody reads it any more.
        lock(&self.0).close(State::Broken);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::http_options::BODIES_OF_POD_MAX_BYTES;

    fn poll(copy: &mut Copy) -> Poll<Option<Result<Vec<u8>, ()>>> {
        let frame = copy.poll_frame(&mut Context::from_waker(Waker::noop()));
        frame.map(|frame| {
            frame.map(|frame| {
                frame.map(|f| f.into_data().unwrap_or_default().to_vec()).map_err(drop)
            })
        })
    }

    fn piece(bytes: usize) -> Frame<Bytes> {
        Frame::data(vec![b'x'; bytes].into())
    }

    #[test]
    fn copies_have_all_and_end() {
        let mut tee = Tee::default();
        let (mut one, mut other) = (tee.add(), tee.add());
        tee.copy(&piece(3));
        assert_eq!(poll(&mut one), Poll::Ready(Some(Ok(b"xxx".to_vec()))));
        assert!(poll(&mut one).is_pending() && !one.is_end_stream());
        tee.end();
        drop(tee);
        assert_eq!(poll(&mut one), Poll::Ready(None));
        assert!(one.is_end_stream() && !other.is_end_stream());
        assert_eq!(poll(&mut other), Poll::Ready(Some(Ok(b"xxx".to_vec()))));
        assert_eq!(poll(&mut other), Poll::Ready(None));
    }

    #[test]
    fn one_that_is_not_read_breaks_off_and_holds_nothing() {
        let mut tee = Tee::default();
        let (mut read, mut unread) = (tee.add(), tee.add());
        for _ in 0..32 {
            tee.copy(&piece(WAITING_MAX_BYTES / 16));
            assert!(matches!(poll(&mut read), Poll::Ready(Some(Ok(_)))));
        }
        assert_eq!(poll(&mut unread), Poll::Ready(Some(Err(()))));
        assert!(lock(&unread.0).pieces.is_empty());
        let mut pieces = tee.add();
        for _ in 0..=WAITING_MAX_PIECES {
            tee.copy(&piece(1));
        }
        assert_eq!(poll(&mut pieces), Poll::Ready(Some(Err(()))));
    }

    /// What counts is what is kept.
    #[test]
    fn a_crumb_does_not_keep_what_it_came_in() {
        let mut tee = Tee::default();
        let mut copy = tee.add();
        let buffer = Bytes::from(vec![b'x'; 64 << 10]);
        tee.copy(&Frame::data(buffer.slice(..1)));
        assert!(buffer.is_unique());
        assert_eq!(poll(&mut copy), Poll::Ready(Some(Ok(b"x".to_vec()))));
    }

    #[test]
    fn one_that_there_is_no_room_for_breaks_off() {
        let share = Share::default();
        let others = share.take(BODIES_OF_POD_MAX_BYTES - 10).unwrap();
        let mut tee = Tee::new(share.clone());
        let mut copy = tee.add();
        for _ in 0..3 {
            tee.copy(&piece(10));
            assert_eq!(poll(&mut copy), Poll::Ready(Some(Ok(vec![b'x'; 10]))));
        }
        tee.copy(&piece(11));
        assert_eq!(poll(&mut copy), Poll::Ready(Some(Err(()))));
        drop(others);
        // What was held is given back.
        assert!(share.take(BODIES_OF_POD_MAX_BYTES).is_some());
    }

    #[test]
    fn what_is_not_read_to_its_end_is_no_whole_copy() {
        let mut tee = Tee::default();
        let mut copy = tee.add();
        tee.copy(&piece(1));
        drop(tee);
        assert_eq!(poll(&mut copy), Poll::Ready(Some(Err(()))));
        assert!(!copy.is_end_stream());
    }
}
