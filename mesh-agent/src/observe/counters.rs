//! Bytes of one live connection, counted by the relay and read by whoever asks.

use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of one connection, as the downstream (the side that opened it) sees them.
///
/// Istio's TCP metrics name these from the proxy's side: `received` there is
/// [`Counters::sent`] here, and the other way round.
#[derive(Debug, Default)]
pub struct Counters {
    sent: AtomicU64,
    received: AtomicU64,
}

impl Counters {
    /// Bytes that the downstream sent and the upstream side took.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Bytes that were handed to the downstream.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// The downstream sent `bytes` more.
    pub fn add_sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The downstream received `bytes` more.
    pub fn add_received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }
}
