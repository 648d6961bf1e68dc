//! Bytes of one live connection, counted by the relay and read by whoever asks.

use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of one connection, named from the proxy's side as Envoy and Istio name
/// them: received from the downstream, sent to it.
#[derive(Debug, Default)]
pub struct Counters {
    pub received_bytes: AtomicU64,
    pub sent_bytes: AtomicU64,
}

impl Counters {
    /// Bytes that came from the downstream and that the upstream took.
    pub fn received(&self) -> u64 {
        self.received_bytes.load(Ordering::Relaxed)
    }

    /// Bytes that were handed to the downstream.
    pub fn sent(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed)
    }

    /// Says how many went each way in all, where somebody else counts them.
    pub fn set(&self, received_bytes: u64, sent_bytes: u64) {
        self.received_bytes.store(received_bytes, Ordering::Relaxed);
        self.sent_bytes.store(sent_bytes, Ordering::Relaxed);
    }

    /// `bytes` more came from the downstream.
    pub fn add_received(&self, bytes: u64) {
        self.received_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// `bytes` more went to the downstream.
    pub fn add_sent(&self, bytes: u64) {
        self.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}
