//! Clients that do not take their responses.
//!
//! hyper asks a body for more when there is room for it; while there is none nobody polls the
//! body, and with it the exchange's limits. So whoever sends it looks at them, as Envoy does:
//! `stream_idle_timeout` and its kin hold for clients that read nothing, too.

use std::{
    cell::RefCell,
    future::Future,
    pin::{Pin, pin},
    task::{Context, Poll},
};

use hyper::rt::Executor;

use super::timing::Deadline;

tokio::task_local! {
    /// Of the response that the task sends.
    static SENDING: RefCell<Option<Deadline>>;
}

/// From now on the task sends a response that has this `deadline`.
pub(super) fn sends(deadline: Deadline) {
    // Without such a task nobody is stalled: a test's.
    let _ = SENDING.try_with(|sending| *sending.borrow_mut() = Some(deadline));
}

/// `sending`'s output, unless a limit passes while the client takes nothing.
pub(super) async fn watched<F: Future>(mut sending: Pin<&mut F>) -> Option<F::Output> {
    let watched = std::future::poll_fn(|cx| match sending.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => {
            SENDING.with(|sending| poll_stalled(&mut sending.borrow_mut(), cx)).map(|()| None)
        }
    });
    SENDING.scope(RefCell::new(None), watched).await
}

fn poll_stalled(sending: &mut Option<Deadline>, cx: &mut Context<'_>) -> Poll<()> {
    let Some(deadline) = sending else { return Poll::Pending };
    if deadline.exchange().is_over() {
        *sending = None;
        return Poll::Pending;
    }
    // The body looks at it itself.
    if deadline.exchange().is_asked_for_more() {
        return Poll::Pending;
    }
    deadline.poll_expired(cx).map(|why| deadline.exchange().expire(why))
}

/// Runs the streams of a connection, each in a task that is watched. One that is stalled is reset.
#[derive(Debug, Clone, Copy)]
pub(super) struct Watching;

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Watching {
    fn execute(&self, stream: F) {
        drop(tokio::spawn(async move { watched(pin!(stream)).await }));
    }
}
