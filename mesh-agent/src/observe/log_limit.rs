//! Bounds how often one place logs what strangers provoke.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Lines per [`WINDOW`].
const LINES: u32 = 20;

const WINDOW: Duration = Duration::from_secs(1);

/// One place's allowance. Metrics count all the same.
#[derive(Debug)]
pub struct LogLimit(Mutex<Option<State>>);

#[derive(Debug)]
struct State {
    since: Instant,
    lines: u32,
    suppressed: u64,
}

impl LogLimit {
    /// For a `static`.
    pub const fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// Whether to log now: how many lines were left out since the last one that was
    /// written, or `None` to leave this one out too.
    pub fn allows(&self) -> Option<u64> {
        self.allows_at(Instant::now())
    }

    fn allows_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let state = state.get_or_insert(State { since: now, lines: 0, suppressed: 0 });
        if now.saturating_duration_since(state.since) >= WINDOW {
            (state.since, state.lines) = (now, 0);
        }
        if state.lines >= LINES {
            state.suppressed += 1;
            return None;
        }
        state.lines += 1;
        Some(std::mem::take(&mut state.suppressed))
    }
}

impl Default for LogLimit {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_left_out_and_counted() {
        let limit = LogLimit::new();
        let start = Instant::now();
        let written = (0..1000).filter(|_| limit.allows_at(start).is_some()).count();
        assert_eq!(written, 20);
        assert_eq!(limit.allows_at(start + WINDOW), Some(980));
        assert_eq!(limit.allows_at(start + WINDOW), Some(0));
    }
}
