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

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, future::poll_fn, rc::Rc};

    use super::Batch;

    #[tokio::test]
    async fn whoever_is_ready_goes_before_the_connection() {
        let order = Rc::new(RefCell::new(Vec::new()));
        let tasks = tokio::task::LocalSet::new();
        for name in ["connection", "stream 1", "stream 2"] {
            let order = Rc::clone(&order);
            tasks.spawn_local(async move {
                if name == "connection" {
                    let mut batch = Batch::default();
                    poll_fn(|cx| batch.poll_turn(cx)).await;
                }
                order.borrow_mut().push(name);
            });
        }
        tasks.await;
        assert_eq!(*order.borrow(), ["stream 1", "stream 2", "connection"]);
    }
}
