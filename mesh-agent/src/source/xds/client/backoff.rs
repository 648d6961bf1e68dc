//! How often servers are tried, and how fast they are asked.

use std::time::Duration;

use tokio::time::{self, Instant};

use super::super::options::RateLimit;

/// Ever longer pauses, none of them the same for two agents.
#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    pub(super) fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first }
    }

    /// The next pause: agents of many nodes must not come back all at once.
    pub(super) fn pause(&mut self) -> Duration {
        let pause = self.next.mul_f64(rand::random_range(0.5..1.0));
        self.next = (self.next * 2).min(self.longest);
        pause
    }

    /// What was good is over after that long. Pauses begin anew, unless it was shorter than
    /// the next one: a server that says something and hangs up, again and again, is not
    /// good.
    pub(super) fn ended(&mut self, lived: Duration) {
        if lived >= self.next {
            self.reset();
        }
    }

    pub(super) fn reset(&mut self) {
        self.next = self.first;
    }
}

/// A bucket of tokens, of which each request takes one.
#[derive(Debug)]
pub(super) struct Limiter {
    limit: Option<RateLimit>,
    tokens: u32,
    /// Up to when it was filled.
    filled: Instant,
}

impl Limiter {
    pub(super) fn new(limit: Option<RateLimit>) -> Self {
        Self { limit, tokens: limit.map_or(0, |limit| limit.tokens), filled: Instant::now() }
    }

    /// Waits for a token and takes it.
    pub(super) async fn take(&mut self) {
        let Some(RateLimit { tokens, every }) = self.limit else { return };
        loop {
            while self.tokens < tokens && self.filled + every <= Instant::now() {
                self.tokens += 1;
                self.filled += every;
            }
            if self.tokens == tokens {
                self.filled = Instant::now();
            }
            if let Some(left) = self.tokens.checked_sub(1) {
                self.tokens = left;
                return;
            }
            time::sleep_until(self.filled + every).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound_and_are_never_quite_the_same() {
        let (first, longest) = (Duration::from_millis(500), Duration::from_secs(30));
        let mut backoff = Backoff::new(first, longest);
        let mut whole = first;
        for _ in 0..20 {
            let pause = backoff.pause();
            assert!(pause >= whole / 2 && pause < whole, "{pause:?} of {whole:?}");
            whole = (whole * 2).min(longest);
        }
        let mut pauses: Vec<_> = (0..20).map(|_| backoff.pause()).collect();
        pauses.sort();
        pauses.dedup();
        assert!(pauses.len() > 10, "{pauses:?}");
        backoff.reset();
        assert!(backoff.pause() < first);
    }

    #[test]
    fn what_is_over_at_once_does_not_shorten_pauses() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
        for _ in 0..10 {
            backoff.ended(Duration::from_millis(20));
            backoff.pause();
        }
        assert!(backoff.pause() >= Duration::from_secs(15));
        backoff.ended(Duration::from_secs(29));
        assert!(backoff.pause() >= Duration::from_secs(15));
        backoff.ended(Duration::from_secs(30));
        assert!(backoff.pause() <= Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn requests_go_no_faster_than_the_limit() {
        let every = Duration::from_secs(2);
        let mut limiter = Limiter::new(Some(RateLimit { tokens: 3, every }));
        let start = Instant::now();
        for _ in 0..3 {
            limiter.take().await;
        }
        assert_eq!(start.elapsed(), Duration::ZERO, "as many as there are tokens go at once");
        limiter.take().await;
        limiter.take().await;
        assert_eq!(start.elapsed(), 2 * every);
        time::sleep(100 * every).await;
        let start = Instant::now();
        for _ in 0..3 {
            limiter.take().await;
        }
        assert_eq!(start.elapsed(), Duration::ZERO, "a rest fills the bucket, and not more");
        limiter.take().await;
        assert!(start.elapsed() > Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_nothing_waits() {
        let mut limiter = Limiter::new(None);
        let start = Instant::now();
        for _ in 0..1000 {
            limiter.take().await;
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}
