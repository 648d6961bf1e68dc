//! Bounds the memory of small frames that wait to be written.
//!
//! h2 bounds what waits by payload, but each frame costs it some 250 bytes beside: an
//! application that trickles single bytes into a connection whose peer stopped reading
//! TCP would have us hold 64 MiB for 256 KiB. So small frames are counted until h2 has
//! encoded them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::task::AtomicWaker;

/// Payloads below this are counted.
const SMALL_BYTES: usize = 256;

/// Small frames that one stream may have waiting.
pub(super) const MAX_WAITING: usize = 1024;

/// One stream's count.
#[derive(Debug, Default)]
pub(super) struct SmallFrames(Arc<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    frames: AtomicUsize,
    writer: AtomicWaker,
}

impl SmallFrames {
    /// Ready when one more may wait.
    pub(super) fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        let full = || self.0.frames.load(Ordering::Acquire) >= MAX_WAITING;
        if !full() {
            return Poll::Ready(());
        }
        self.0.writer.register(cx.waker());
        // One may have gone before its going could wake us.
        if full() { Poll::Pending } else { Poll::Ready(()) }
    }

    /// `data`, counted if it is small for as long as h2 holds it.
    pub(super) fn count(&self, data: Bytes) -> Bytes {
        if data.len() >= SMALL_BYTES {
            return data;
        }
        self.0.frames.fetch_add(1, Ordering::Relaxed);
        Bytes::from_owner(Counted { data, waiting: Arc::clone(&self.0) })
    }
}

struct Counted {
    data: Bytes,
    waiting: Arc<Waiting>,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if self.waiting.frames.fetch_sub(1, Ordering::AcqRel) == MAX_WAITING {
            self.waiting.writer.wake();
        }
    }
}
