//! A bucket that fills all the time, as Envoy's does: what it holds follows from when it was
//! last empty.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use crate::model::filter::TokenBucket;

#[derive(Debug)]
pub(in crate::proxy) struct Bucket {
    max_tokens: f64,
    /// Tokens per second.
    rate: f64,
    origin: Instant,
    /// When it was empty, in seconds since `origin`: the bits of an `f64`, which may be below
    /// zero.
    empty_at: AtomicU64,
}

impl Bucket {
    /// A full one.
    pub(in crate::proxy) fn new(config: TokenBucket, now: Instant) -> Self {
        let TokenBucket { max_tokens, tokens_per_fill, fill_interval } = config;
        let max_tokens = f64::from(max_tokens);
        let rate = f64::from(tokens_per_fill) / fill_interval.as_secs_f64();
        let empty_at = AtomicU64::new((-max_tokens / rate).to_bits());
        Self { max_tokens, rate, origin: now, empty_at }
    }

    pub(in crate::proxy) fn rate(&self) -> f64 {
        self.rate
    }

    pub(in crate::proxy) fn max_tokens(&self) -> u64 {
        // Was a u32.
        self.max_tokens as u64
    }

    fn seconds(&self, now: Instant) -> f64 {
        now.saturating_duration_since(self.origin).as_secs_f64()
    }

    fn tokens(&self, empty_at: f64, now: f64) -> f64 {
        ((now - empty_at) * self.rate).min(self.max_tokens)
    }

    /// Takes so many tokens, or none.
    pub(in crate::proxy) fn consume(&self, tokens: u64, now: Instant) -> bool {
        let (now, wanted) = (self.seconds(now), tokens as f64);
        let take = |bits| {
            let there = self.tokens(f64::from_bits(bits), now);
            (there >= wanted).then(|| (now - (there - wanted) / self.rate).to_bits())
        };
        self.empty_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    /// Whole tokens.
    pub(in crate::proxy) fn remaining(&self, now: Instant) -> u64 {
        let empty_at = f64::from_bits(self.empty_at.load(Ordering::Relaxed));
        // Never below zero, but for what a clock's reading lags behind another's: saturates.
        self.tokens(empty_at, self.seconds(now)) as u64
    }

    /// Until there is a token.
    pub(in crate::proxy) fn next(&self, now: Instant) -> Duration {
        let empty_at = f64::from_bits(self.empty_at.load(Ordering::Relaxed));
        let lacks = 1.0 - self.tokens(empty_at, self.seconds(now));
        Duration::try_from_secs_f64(lacks.max(0.0) / self.rate).unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_fills_all_the_time_up_to_its_brim() {
        let start = Instant::now();
        let config = TokenBucket {
            max_tokens: 2,
            tokens_per_fill: 1,
            fill_interval: Duration::from_secs(10),
        };
        let bucket = Bucket::new(config, start);
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(bucket.consume(1, at(0)) && bucket.consume(1, at(0)) && !bucket.consume(1, at(0)));
        assert_eq!((bucket.remaining(at(9)), bucket.next(at(4)).as_secs()), (0, 6));
        assert!(
            !bucket.consume(1, at(9)) && bucket.consume(1, at(11)) && !bucket.consume(1, at(12))
        );
        assert_eq!(bucket.remaining(at(1000)), 2);
        assert!(!bucket.consume(3, at(1000)) && bucket.consume(2, at(1000)));
    }
}
