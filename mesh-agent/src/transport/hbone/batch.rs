//! Lets streams write before their connection does.
//!
//! A stream that is written to wakes its connection's task, and the scheduler runs that
//! next: every small message would be a TLS record and a system call of its own. So
//! the connection goes to the end of the queue first; what other streams write
//! meanwhile leaves with it.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

/// Whether the connection has let the others go first since it was woken.
#[derive(Debug, Default)]
pub(super) struct Batch {
    waited: bool,
}

impl Batch {
    /// Pending on every other call, and woken at once: the connection's turn is behind
    /// those of all tasks that are ready now.
    pub(super) fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.waited = !self.waited;
        if self.waited {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(())
    }

    /// `future`, when it is its turn.
    pub(super) fn poll<F: Future + Unpin>(
        &mut self,
        future: &mut F,
        cx: &mut Context<'_>,
    ) -> Poll<F::Output> {
        ready!(self.poll_turn(cx));
        Pin::new(future).poll(cx)
    }
}
