//! One exchange's clock: when something last moved, and when it is too late.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

/// What request body, response body and request share. Times are in microseconds
/// since `start`.
#[derive(Debug)]
pub(super) struct Exchange {
    start: Instant,
    last_activity: AtomicU64,
    /// When the request had been read to its end, plus one; 0 before.
    request_complete: AtomicU64,
    request_bytes: AtomicU64,
    response_bytes: AtomicU64,
    request_broken: AtomicBool,
    /// Whether who sends the response waits for more of it.
    asked_for_more: AtomicBool,
    /// All of the response was handed over: it may still wait for the client to take it.
    handed_over: AtomicBool,
    /// Nothing of the response is left.
    over: AtomicBool,
    /// What passed while the client took nothing.
    expired: OnceLock<Expired>,
    /// How long the request may take to come, and the whole exchange; 0: for ever.
    request_max: AtomicU64,
    whole_max: AtomicU64,
    unread: Mutex<Option<Incoming>>,
}

impl Exchange {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            start: Instant::now(),
            last_activity: AtomicU64::new(0),
            request_complete: AtomicU64::new(0),
            request_bytes: AtomicU64::new(0),
            response_bytes: AtomicU64::new(0),
            request_broken: AtomicBool::new(false),
            asked_for_more: AtomicBool::new(true),
            handed_over: AtomicBool::new(false),
            over: AtomicBool::new(false),
            expired: OnceLock::new(),
            request_max: AtomicU64::new(0),
            whole_max: AtomicU64::new(0),
            unread: Mutex::new(None),
        })
    }

    /// Bounds the time that the request takes to come, from its head on.
    pub(super) fn limit_request(&self, limit: Option<Duration>) {
        self.request_max.store(micros(limit), Ordering::Relaxed);
    }

    /// Bounds the whole exchange, from the request's head on.
    pub(super) fn limit_whole(&self, limit: Option<Duration>) {
        self.whole_max.store(micros(limit), Ordering::Relaxed);
    }

    /// When such a limit passes.
    fn limit(&self, limit: &AtomicU64) -> Option<Instant> {
        match limit.load(Ordering::Relaxed) {
            0 => None,
            micros => Some(self.start + Duration::from_micros(micros)),
        }
    }

    /// By the clock of the wall.
    pub(super) fn started(&self) -> SystemTime {
        let now = SystemTime::now();
        now.checked_sub(self.elapsed()).unwrap_or(now)
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    fn now(&self) -> u64 {
        u64::try_from(self.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    pub(super) fn request_moved(&self, bytes: usize) {
        self.request_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.last_activity.store(self.now(), Ordering::Relaxed);
    }

    pub(super) fn response_moved(&self, bytes: usize) {
        self.response_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.last_activity.store(self.now(), Ordering::Relaxed);
    }

    pub(super) fn request_completed(&self) {
        self.request_complete.store(self.now() + 1, Ordering::Relaxed);
    }

    pub(super) fn is_request_complete(&self) -> bool {
        self.request_complete.load(Ordering::Relaxed) != 0
    }

    /// The client's side of the exchange failed while its body was read.
    pub(super) fn request_broke(&self) {
        self.request_broken.store(true, Ordering::Relaxed);
    }

    /// Who sends the response waits for more of it, or else for the client to take what there is.
    pub(super) fn ask_for_more(&self, asked: bool) {
        self.asked_for_more.store(asked, Ordering::Relaxed);
    }

    pub(super) fn is_asked_for_more(&self) -> bool {
        self.asked_for_more.load(Ordering::Relaxed)
    }

    /// Whoever sends the response has all of it.
    pub(super) fn hand_over(&self) {
        self.handed_over.store(true, Ordering::Relaxed);
    }

    /// Nothing of the response is left.
    pub(super) fn finish(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// The limit passed while the client took nothing: the exchange is given up.
    pub(super) fn expire(&self, why: Expired) {
        let _ = self.expired.set(why);
    }

    pub(super) fn expired(&self) -> Option<Expired> {
        self.expired.get().copied()
    }

    /// Keeps what nobody will read until the exchange has ended: see `body`'s `discard`.
    pub(super) fn keep_unread(&self, body: Incoming) {
        *self.unread.lock().unwrap_or_else(PoisonError::into_inner) = Some(body);
    }

    pub(super) fn is_request_broken(&self) -> bool {
        self.request_broken.load(Ordering::Relaxed)
    }

    pub(super) fn request_bytes(&self) -> u64 {
        self.request_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn response_bytes(&self) -> u64 {
        self.response_bytes.load(Ordering::Relaxed)
    }
}

/// At least one; `None` is 0. Longer than a year is for ever.
fn micros(limit: Option<Duration>) -> u64 {
    const YEAR_SECONDS: u64 = 31_536_000;
    match limit {
        Some(limit) if limit.as_secs() < YEAR_SECONDS => {
            u64::try_from(limit.as_micros()).unwrap_or(u64::MAX).max(1)
        }
        _ => 0,
    }
}

/// Which limit has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expired {
    /// The route's, counted from the request's end as Envoy does.
    Route,
    /// The listener's, without a byte either way.
    StreamIdle,
    /// The request did not come to its end in time.
    Request,
    /// Request and response together took too long.
    Whole,
}

/// Watches an [`Exchange`]'s limits with a single timer that is only ever looked at
/// again when it fires.
#[derive(Debug)]
pub(super) struct Deadline {
    exchange: Arc<Exchange>,
    stream_idle: Option<Duration>,
    route: Option<Duration>,
    /// What moved before this doesn't count.
    from: Instant,
    /// Whether it is for one attempt, and the exchange's own limits are for others to watch.
    attempt: bool,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Deadline {
    pub(super) fn new(exchange: Arc<Exchange>, stream_idle: Option<Duration>) -> Self {
        let from = exchange.start;
        Self { exchange, stream_idle, route: None, from, attempt: false, timer: None }
    }

    /// The limits of one attempt, which begins now: of its whole time, and of silence.
    pub(super) fn of_attempt(
        exchange: Arc<Exchange>,
        whole: Option<Duration>,
        idle: Option<Duration>,
    ) -> Self {
        let from = Instant::now();
        Self { exchange, stream_idle: idle, route: whole, from, attempt: true, timer: None }
    }

    /// The same limits, for somebody else to watch.
    pub(super) fn again(&self) -> Self {
        let exchange = Arc::clone(&self.exchange);
        Self { exchange, timer: None, ..*self }
    }

    pub(super) fn exchange(&self) -> &Exchange {
        &self.exchange
    }

    /// The upstream may not be silent for longer than this either.
    pub(super) fn limit_idle(&mut self, idle: Duration) {
        self.stream_idle = Some(self.stream_idle.map_or(idle, |own| own.min(idle)));
        self.timer = None;
    }

    /// The route is known now.
    pub(super) fn set_route(&mut self, timeout: Option<Duration>) {
        self.route = timeout;
        self.timer = None;
    }

    /// The earliest limit. While the request goes on the route's is at least its
    /// timeout away: looking again then is soon enough. It is for the upstream, which has done
    /// its part once all is handed over.
    fn next(&self) -> Option<(Instant, Option<Expired>)> {
        let at = |micros| self.exchange.start + Duration::from_micros(micros);
        let idle = self.stream_idle.map(|timeout| {
            let last = at(self.exchange.last_activity.load(Ordering::Relaxed));
            (last.max(self.from) + timeout, Some(Expired::StreamIdle))
        });
        let handed_over = self.exchange.handed_over.load(Ordering::Relaxed);
        let route = self.route.filter(|_| !handed_over).map(|timeout| {
            match self.exchange.request_complete.load(Ordering::Relaxed) {
                0 => (Instant::now() + timeout, None),
                complete => (at(complete - 1).max(self.from) + timeout, Some(Expired::Route)),
            }
        });
        let earliest = match (route, idle) {
            (Some(route), Some(idle)) if idle.0 < route.0 => Some(idle),
            (route, idle) => route.or(idle),
        };
        if self.attempt {
            return earliest;
        }
        let exchange = &*self.exchange;
        let request = exchange.limit(&exchange.request_max);
        let request = request.filter(|_| !exchange.is_request_complete());
        let whole = exchange.limit(&exchange.whole_max);
        let own = [
            request.map(|at| (at, Some(Expired::Request))),
            whole.map(|at| (at, Some(Expired::Whole))),
        ];
        earliest.into_iter().chain(own.into_iter().flatten()).min_by_key(|(at, _)| *at)
    }

    /// Ready when a limit has passed.
    pub(super) fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<Expired> {
        loop {
            // Who has used up its turn is told of no timer: whoever always does, as long as there is
            // more, would never hear of one.
            if let Some(timer) = &mut self.timer
                && timer.as_mut().poll(cx).is_pending()
                && Instant::now() < timer.deadline()
            {
                return Poll::Pending;
            }
            let Some((until, why)) = self.next() else { return Poll::Pending };
            if let Some(why) = why
                && Instant::now() >= until
            {
                return Poll::Ready(why);
            }
            match &mut self.timer {
                Some(timer) => timer.as_mut().reset(until),
                None => self.timer = Some(Box::pin(tokio::time::sleep_until(until))),
            }
        }
    }

    /// `future`'s output, unless a limit passes first.
    pub(super) async fn run<F: Future>(&mut self, future: F) -> Result<F::Output, Expired> {
        let mut future = std::pin::pin!(future);
        std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Ok(output)),
            Poll::Pending => self.poll_expired(cx).map(Err),
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, pin::pin};

    use tokio::task::coop;

    use super::*;

    #[tokio::test]
    async fn a_limit_passes_though_the_turn_is_used_up() {
        let idle = Duration::from_millis(20);
        let mut deadline = Deadline::new(Exchange::new(), Some(idle));
        assert!(poll_fn(|cx| Poll::Ready(deadline.poll_expired(cx))).await.is_pending());
        std::thread::sleep(2 * idle);
        let polled = poll_fn(|cx| {
            while coop::has_budget_remaining() {
                let _ = pin!(coop::consume_budget()).poll(cx);
            }
            Poll::Ready(deadline.poll_expired(cx))
        });
        assert_eq!(polled.await, Poll::Ready(Expired::StreamIdle));
    }
}
